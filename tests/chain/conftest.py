"""Fixtures of the tests on a real chain."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from web3 import Web3

from tests.support.chain import Chain
from tests.support.fixtures import chain, own_chain, payer_for, pytest_terminal_summary
from tests.support.official_py import OfficialSeller
from x402_mask.sandbox import Sandbox

__all__ = ["chain", "own_chain", "payer_for", "pytest_terminal_summary", "sandbox", "seller"]


@pytest.fixture
def seller(chain: Chain) -> Iterator[OfficialSeller]:
    """Return the official Python seller, with a payee of its own."""
    with OfficialSeller(chain) as served:
        yield served


@pytest.fixture
def sandbox(chain: Chain, request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    """Return our sandbox settling on the chain; the parameter is the shape of its challenge."""
    with Sandbox(
        rpc=chain.url,
        facilitator_key=Web3.to_hex(chain.account().key),
        pay_to=chain.account().address,
        challenge=getattr(request, "param", "attested"),
    ) as served:
        yield served
