"""An API server with the operator's CRDs and rules."""

import pytest
from operator_harness import install

from conftest_apiserver import ApiServerProcess


@pytest.fixture
def prepared(apiserver: ApiServerProcess) -> ApiServerProcess:
    install(apiserver)
    return apiserver
