"""Fixtures of the chain; import them in a ``conftest.py`` to use them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pytest
from eth_account.signers.local import LocalAccount

from tests.support.chain import Chain
from tests.support.npm import Unavailable

if TYPE_CHECKING:
    from x402_mask import Payer


class PayerFor(Protocol):
    """Make a payer for a wallet and an origin; further arguments are those of ``Payer``."""

    def __call__(self, wallet: LocalAccount, origin: str, **settings: Any) -> Payer: ...


@contextmanager
def needed() -> Iterator[None]:
    """Skip in one line what this machine cannot run; fail with ``X402_MASK_REQUIRE_NODE=1``."""
    try:
        yield
    except Unavailable as missing:
        if os.environ.get("X402_MASK_REQUIRE_NODE") == "1":
            pytest.fail(str(missing), pytrace=False)
        pytest.skip(str(missing))


@pytest.fixture(scope="session")
def chain() -> Iterator[Chain]:
    """Return a chain shared by the session; leave its clock alone."""
    with needed():
        started = Chain.start()
    with started:
        yield started


@pytest.fixture
def own_chain() -> Iterator[Chain]:
    """Return a chain for one test, which may move its clock."""
    with needed():
        started = Chain.start()
    with started:
        yield started


@pytest.fixture
def payer_for(tmp_path: Path) -> Iterator[PayerFor]:
    """Return a maker of payers on one durable ledger, capped at $5 a day; they are closed after."""
    from x402_mask import Cap, Payer, SQLiteLedger, Wallet

    with ExitStack() as stack:

        def make(wallet: LocalAccount, origin: str, **settings: Any) -> Payer:
            chosen: dict[str, Any] = {
                "caps": [Cap("5", per="day")],
                "ledger": SQLiteLedger(tmp_path / "ledger.db"),
            }
            made = Payer(Wallet.from_key(wallet.key), origins=[origin], **chosen | settings)
            return stack.enter_context(closing(made))

        yield make
