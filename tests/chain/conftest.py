"""Fixtures of the tests on a real chain."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.chain import Chain
from tests.support.fixtures import chain, own_chain, payer_for, pytest_terminal_summary
from tests.support.official_py import OfficialSeller

__all__ = ["chain", "own_chain", "payer_for", "pytest_terminal_summary", "seller"]


@pytest.fixture
def seller(chain: Chain) -> Iterator[OfficialSeller]:
    """Return the official Python seller, with a payee of its own."""
    with OfficialSeller(chain) as served:
        yield served
