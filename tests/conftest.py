"""Fixtures for all tests."""

import faulthandler
import os
import shutil
import sys
from collections.abc import Generator
from pathlib import Path
from typing import ClassVar

import hypothesis
import pytest

from conftest_apiserver import apiserver, control_plane_summary, count

__all__ = ["apiserver"]
# How long an example takes says something of the machine and nothing of the code.
hypothesis.settings.register_profile("trireme", deadline=None)
hypothesis.settings.load_profile("trireme")
# `make test-tools` puts kubectl and helm beside this interpreter where the computer has none of their own.
os.environ["PATH"] = os.pathsep.join([os.environ.get("PATH", os.defpath), str(Path(sys.executable).parent)])


@pytest.fixture(scope="session")
def kubectl_program() -> str:
    """Path of kubectl; a computer without it fails the test."""
    return _program("kubectl")


@pytest.fixture(scope="session")
def helm_program() -> str:
    """Path of helm; a computer without it fails the test."""
    return _program("helm")


@pytest.fixture(scope="session")
def prometheus_program() -> str:
    """Path of prometheus; a computer without it fails the test."""
    return _program("prometheus", PROMETHEUS)


@pytest.fixture(scope="session")
def promtool_program() -> str:
    """Path of promtool, which comes with Prometheus; a computer without it fails the test."""
    return _program("promtool", PROMETHEUS)


PROMETHEUS = "install it (Debian: apt-get install prometheus)"


def _program(name: str, how: str = "run `make test-tools`, or install it") -> str:
    found = shutil.which(name)
    if found is None:
        pytest.fail(f"this test needs {name}: {how}")
    return found


class _NONE:
    """A test without parameters."""

    params: ClassVar[dict[str, object]] = {}


SHORT_E2E = {"test_node_loss.py", "test_prometheus.py"}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests in e2e/ start the whole product: two files of them belong to `make test`, the rest is long.

    Tests with real processes and clocks get a second try, since a busy machine can starve a heartbeat past any limit;
    the summary counts every rerun. Unit tests get none.
    """
    for item in items:
        if item.get_closest_marker("local_apiserver") and "real" in getattr(item, "callspec", _NONE).params.values():
            item.add_marker(pytest.mark.skip(reason="a property of the local API server alone"))
        if "e2e" in item.path.parts and item.path.name not in SHORT_E2E:
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


STUCK_SECONDS = 120.0
"""How long a phase of a test may go on after its timeout before the whole run ends."""

_stderr = 2


def pytest_configure() -> None:
    """Keep the real stderr; during tests it is captured."""
    global _stderr
    _stderr = os.dup(2)


@pytest.hookimpl(wrapper=True)
def _guard(item: pytest.Item) -> Generator[None, object, object]:
    """End the run with every thread's stack when a phase of a test hangs.

    pytest-timeout raises in the main thread, once for all tries of a test: an event loop can swallow that, and what
    then runs, the clean-up above all, runs without any limit.
    """
    marker = item.get_closest_marker("timeout")
    seconds = float(marker.args[0] if marker and marker.args else item.config.getini("timeout"))
    faulthandler.dump_traceback_later(seconds + STUCK_SECONDS, file=_stderr, exit=True)
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()


pytest_runtest_setup = pytest_runtest_teardown = _guard


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Count what runs against which control plane."""
    count(item)
    return (yield from _guard(item))
