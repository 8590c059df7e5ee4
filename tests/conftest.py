"""Fixtures for all tests."""

import pytest

from conftest_apiserver import apiserver, contract_summary

__all__ = ["apiserver"]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests in e2e/ start the whole product: one file of them belongs to `make test`, the rest is long.

    Tests with real processes and clocks get a second try, since a busy machine can starve a heartbeat past any limit;
    the summary counts every rerun. Unit tests get none.
    """
    for item in items:
        if "e2e" in item.path.parts and item.path.name != "test_node_loss.py":
            item.add_marker(pytest.mark.long)
        if {"e2e", "integration"} & set(item.path.parts):
            item.add_marker(pytest.mark.flaky(reruns=1))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say why a test needed its second try, and against which API servers the contract ran."""
    for report in terminalreporter.stats.get("rerun", []):
        terminalreporter.write_sep("_", f"first try of {report.nodeid}")
        terminalreporter.write_line(report.longreprtext)
    if line := contract_summary():
        terminalreporter.write_line(line)
