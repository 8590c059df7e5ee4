"""Fixtures for all tests."""

import pytest

from conftest_apiserver import apiserver, contract_summary

__all__ = ["apiserver"]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say against which API servers the contract ran."""
    if line := contract_summary():
        terminalreporter.write_line(line)
