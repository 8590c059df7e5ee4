"""One installation for all end-to-end tests: four nodes, a store, an operator."""

from collections.abc import Generator, Iterator
from typing import Any

import pytest
from product import Product, TestedJob
from tiny_job import tiny_job

from trireme.resources.status import JobState

NODES = 4


@pytest.fixture(scope="session")
def installation(tmp_path_factory: pytest.TempPathFactory, kubectl_program: str) -> Iterator[Product]:
    product = Product(tmp_path_factory.mktemp("product"), NODES)
    try:
        product.start()
        yield product
    finally:
        product.stop()


@pytest.fixture
def product(installation: Product) -> Iterator[Product]:
    """The installation, healthy and without jobs before and after each test."""
    yield installation
    installation.heal()


@pytest.fixture(scope="session")
def undisturbed(installation: Product) -> TestedJob:
    """A job that ran to its end without a fault; it is kept for all tests."""
    job = installation.apply(tiny_job("undisturbed", nodes=1, devices=2, steps=60))
    installation.jobs.pop(job.name)
    job.wait_state(JobState.SUCCEEDED)
    return job


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    """On failure, show the cluster as it was then."""
    report = yield
    product = getattr(item, "funcargs", {}).get("product")
    if report.when == "call" and report.failed and isinstance(product, Product):
        report.sections.append(("the cluster at the time of the failure", product.describe()))
    return report
