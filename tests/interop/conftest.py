"""Fixtures of the tests against the official TypeScript sellers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.chain import Chain
from tests.support.fixtures import chain, needed, payer_for, pytest_terminal_summary
from tests.support.official_py import FacilitatorServer
from tests.support.official_ts import ExpressSeller

__all__ = ["chain", "express", "facilitator", "payer_for", "pytest_terminal_summary"]


@pytest.fixture(scope="session")
def facilitator(chain: Chain) -> Iterator[FacilitatorServer]:
    """Return the official Python facilitator over HTTP."""
    with FacilitatorServer(chain) as served:
        yield served


@pytest.fixture(scope="session", params=[2, 1], ids=["express-v2", "express-v1"])
def express(
    chain: Chain, facilitator: FacilitatorServer, request: pytest.FixtureRequest
) -> Iterator[ExpressSeller]:
    """Return the official Express seller of each protocol version."""
    with needed(lambda: ExpressSeller(chain, facilitator, request.param)) as started:
        yield started
