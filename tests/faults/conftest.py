"""Fixtures of the fault tests."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import fixtures
from tests.support.fixtures import fast_path, own_chain
from tests.support.postgres import postgres, summary
from tests.support.seller import Seller

__all__ = ["fast_path", "own_chain", "postgres"]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say once what could not run."""
    fixtures.pytest_terminal_summary(terminalreporter)
    summary(terminalreporter)


@pytest.fixture(autouse=True)
def quiet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No proxies and no home of whoever runs the tests; no log of the faults that are injected."""
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture
def seller() -> Iterator[Seller]:
    """A seller on loopback; what its scripts raised fails the test."""
    with Seller() as opened:
        yield opened
        assert not opened.errors, opened.errors
