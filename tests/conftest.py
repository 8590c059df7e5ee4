"""Fixtures for all tests."""

import os
import shutil
import sys
from pathlib import Path
from typing import ClassVar

import pytest

from conftest_apiserver import apiserver, control_plane_summary, count

__all__ = ["apiserver"]
# `make test-tools` puts kubectl beside this interpreter where the computer has none of its own.
os.environ["PATH"] = os.pathsep.join([os.environ.get("PATH", os.defpath), str(Path(sys.executable).parent)])


@pytest.fixture(scope="session")
def kubectl_program() -> str:
    """Path of kubectl; a computer without it fails the test."""
    program = shutil.which("kubectl")
    if program is None:
        pytest.fail("this test needs kubectl: run `make test-tools`, or install it")
    return program


class _NONE:
    """A test without parameters."""

    params: ClassVar[dict[str, object]] = {}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests in e2e/ start the whole product: one file of them belongs to `make test`, the rest is long.

    Tests with real processes and clocks get a second try, since a busy machine can starve a heartbeat past any limit;
    the summary counts every rerun. Unit tests get none.
    """
    for item in items:
        if item.get_closest_marker("local_apiserver") and "real" in getattr(item, "callspec", _NONE).params.values():
            item.add_marker(pytest.mark.skip(reason="a property of the local API server alone"))
        if "e2e" in item.path.parts and item.path.name != "test_node_loss.py":
            item.add_marker(pytest.mark.long)
        if {"e2e", "integration"} & set(item.path.parts):
            item.add_marker(pytest.mark.flaky(reruns=1))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say why a test needed its second try, and against which API servers the contract ran."""
    for report in terminalreporter.stats.get("rerun", []):
        terminalreporter.write_sep("_", f"first try of {report.nodeid}")
        terminalreporter.write_line(report.longreprtext)
    for line in control_plane_summary():
        terminalreporter.write_line(line)


def pytest_runtest_call(item: pytest.Item) -> None:
    """Count what runs against which control plane."""
    count(item)
