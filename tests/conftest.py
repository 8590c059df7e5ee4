"""Fixtures for all tests."""

from conftest_apiserver import apiserver

__all__ = ["apiserver"]
