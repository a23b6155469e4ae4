"""Fixtures of the transfers' tests: the real chain, and each kind of ledger."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.ledger.conftest import (
    dsn,
    ledger,
    own_home,
    postgres,
    shared,
    shared_dsn,
    store,
)
from tests.support.chain import Chain
from tests.support.fixtures import chain, pytest_terminal_summary
from tests.transfers.kit import Buyer
from tests.transfers.proxy import Proxy
from x402_mask import MemoryLedger
from x402_mask._ledger.ledger import Ledger

__all__ = [
    "chain",
    "dsn",
    "ledger",
    "own_home",
    "postgres",
    "pytest_terminal_summary",
    "shared",
    "shared_dsn",
    "store",
]

BuyerFor = Callable[..., Buyer]


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the machine's proxies out of it."""
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)


@pytest.fixture
def proxy(chain: Chain) -> Iterator[Proxy]:
    """Return an endpoint in front of the chain that can misbehave."""
    with Proxy(chain) as started:
        yield started


@pytest.fixture
def buyer(chain: Chain) -> Iterator[BuyerFor]:
    """Return a maker of buyers, each with a wallet of its own; they are closed after."""
    with ExitStack() as stack:

        def make(ledger: Ledger | None = None, **settings: Any) -> Buyer:
            made = Buyer.make(chain, MemoryLedger() if ledger is None else ledger, **settings)
            stack.callback(made.close)
            return made

        yield make
