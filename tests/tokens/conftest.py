"""Fixtures of the token tests."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.fixtures import fast_path
from tests.support.postgres import postgres, summary
from tests.tokens.bazaar import Bazaar
from x402_mask._flow.tokens import purchase

__all__ = ["fast_path", "postgres"]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what could not run."""
    summary(terminalreporter)


@pytest.fixture(autouse=True)
def quiet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No proxies and no home of whoever runs the tests; the first poll comes at once."""
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(purchase, "_FIRST_DELAY_S", 0.01)


@pytest.fixture
def bazaar() -> Iterator[Bazaar]:
    """Return a marketplace on loopback."""
    with Bazaar() as opened:
        yield opened


@pytest.fixture
def silent() -> Iterator[None]:
    """No log of the faults that are injected."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)
