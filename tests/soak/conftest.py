"""Fixtures of the soak tests: those of the fault tests."""

from __future__ import annotations

from tests.faults.conftest import pytest_terminal_summary, quiet, seller
from tests.support.fixtures import fast_path, own_chain

__all__ = ["fast_path", "own_chain", "pytest_terminal_summary", "quiet", "seller"]
