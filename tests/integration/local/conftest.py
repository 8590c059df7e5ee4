"""One local cluster for the tests of the node and the controllers."""

from collections.abc import Iterator

import pytest
from local_cluster_tools import GRACE_SECONDS, Cluster, Kubectl

from conftest_apiserver import CONTROL_PLANES
from trireme_local import control_plane
from trireme_local.cluster import LocalCluster


@pytest.fixture(scope="session", params=CONTROL_PLANES)
def cluster(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, kubectl_program: str
) -> Iterator[Cluster]:
    local = LocalCluster(tmp_path_factory.mktemp("cluster"))
    try:
        state = local.up(
            nodes=3,
            grace_seconds=GRACE_SECONDS,
            capacity={"cpu": "4", "memory": "4Gi", "example.com/device": "2"},
            control_plane=control_plane.assets() if request.param == "real" else None,
            say=lambda text: None,
        )
        yield Cluster(local, state, Kubectl(local.kubeconfig))
    finally:
        local.down()


@pytest.fixture
def kubectl(cluster: Cluster) -> Kubectl:
    return cluster.kubectl
