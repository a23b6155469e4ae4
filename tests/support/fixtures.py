"""Fixtures of the chain and of the disk; import them in a ``conftest.py`` to use them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import pytest
from eth_account.signers.local import LocalAccount

from tests.support.chain import Chain
from tests.support.npm import Unavailable
from x402_mask._ledger import sqlite_wal

if TYPE_CHECKING:
    from x402_mask import Payer


T = TypeVar("T")
_missing: set[str] = set()


class PayerFor(Protocol):
    """Make a payer for a wallet and an origin; further arguments are those of ``Payer``."""

    def __call__(self, wallet: LocalAccount, origin: str, **settings: Any) -> Payer: ...


def needed(start: Callable[[], T]) -> T:
    """Return ``start()``; skip where this machine lacks what it needs.

    With ``X402_MASK_REQUIRE_NODE=1`` in the environment it fails instead.
    """
    try:
        return start()
    except Unavailable as missing:
        reason = str(missing)
    if os.environ.get("X402_MASK_REQUIRE_NODE") == "1":
        pytest.fail(reason, pytrace=False)
    _missing.add(reason)
    pytest.skip(reason)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say once, not once a test, what could not run."""
    while _missing:
        terminalreporter.write_line(f"Skipped the tests on a real chain: {_missing.pop()}")


@pytest.fixture(scope="session")
def chain() -> Iterator[Chain]:
    """Return a chain shared by the session; leave its clock alone."""
    with needed(Chain.start) as started:
        yield started


@pytest.fixture
def own_chain() -> Iterator[Chain]:
    """Return a chain for one test, which may move its clock."""
    with needed(Chain.start) as started:
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


@pytest.fixture
def fast_path(tmp_path: Path) -> Iterator[Path]:
    """A directory in memory, where there is one: thousands of ledgers are synced there for free."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    # a thread of a ledger that a test has dropped makes files beside it, also while it is removed
    with tempfile.TemporaryDirectory(dir=memory, ignore_cleanup_errors=True) as directory:
        yield Path(directory)
        sqlite_wal.finish(10)
