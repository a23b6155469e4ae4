"""A fleet's database that says nothing: each caller waits as long as it would, and no longer."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from tests.ledger.conftest import KEY
from tests.ledger.kit import want
from tests.support.seller import offer, v2_header
from x402_mask import (
    AsyncPaymentTransport,
    Cap,
    LedgerError,
    Payer,
    PaymentTransport,
    PostgresLedger,
    Wallet,
)
from x402_mask._drive.perform import Patience

pg = pytest.importorskip("x402_mask._ledger.postgres_pool")

SHOP = "https://shop.example"
TOOL = f"{SHOP}/api/tools/mask-refinement"
LIBPQ_S = 2.0
"""The shortest time-out that libpq keeps."""


@pytest.fixture
def ledger() -> Iterator[PostgresLedger]:
    """A ledger at an address that takes connections and never says anything."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listening:
        port = listening.getsockname()[1]
        found = PostgresLedger(f"host=127.0.0.1 port={port} user=u dbname=d", key=KEY)
        yield found
        found.close()


def timed(work: Callable[[], Any]) -> float:
    begun = time.monotonic()
    with pytest.raises(LedgerError):
        work()
    return time.monotonic() - begun


def test_a_first_connection_takes_no_longer_than_its_caller_waits(ledger: PostgresLedger) -> None:
    """Not libpq's shortest time-out; and not once for the lease and once for what is asked."""
    assert timed(lambda: ledger.reserve(want(), wait_s=0.2)) < LIBPQ_S * 0.8
    assert timed(lambda: ledger.is_paused(wait_s=0.2)) < LIBPQ_S * 0.8


def test_many_at_once_wait_no_longer(ledger: PostgresLedger) -> None:
    """More than there are connections."""
    took: list[float] = []

    def one() -> None:
        took.append(timed(lambda: ledger.is_paused(wait_s=0.2)))

    threads = [threading.Thread(target=one) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(took) == 12 and max(took) < LIBPQ_S * 0.8


def answer(request: httpx.Request) -> httpx.Response:
    assert "payment-signature" not in request.headers
    return httpx.Response(402, headers=list(v2_header(offer()).headers), content=b"{}")


@pytest.mark.parametrize("colour", ["sync", "async"])
def test_a_call_waits_once(ledger: PostgresLedger, colour: str) -> None:
    """For a token that may be held, and then for its reservation: together, not each."""
    payer = Payer(
        Wallet.from_key("0x" + "11" * 32), origins=[SHOP], caps=[Cap("1", per="day")], ledger=ledger
    )
    if colour == "sync":
        with httpx.Client(
            transport=PaymentTransport(payer, httpx.MockTransport(answer)), timeout=2
        ) as client:
            took = timed(lambda: client.post(TOOL, json={}))
    else:

        async def call() -> None:
            inner = httpx.MockTransport(answer)
            transport = AsyncPaymentTransport(payer, inner)
            async with httpx.AsyncClient(transport=transport, timeout=2) as client:
                await client.post(TOOL, json={})

        took = timed(lambda: asyncio.run(call()))
    assert took < 3.3, "each alone takes two"


def test_a_connection_that_comes_too_late_is_closed(
    ledger: PostgresLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody waits for it any more."""
    closed, come = threading.Event(), threading.Event()

    class Late:
        def close(self) -> None:
            closed.set()

    def connect(*_: Any, **__: Any) -> Late:
        come.wait(10)
        return Late()

    monkeypatch.setattr(pg.Connection, "connect", connect)
    assert timed(lambda: ledger.is_paused(wait_s=0.05)) < 5
    assert not closed.is_set()
    come.set()
    assert closed.wait(10)


def test_patience_that_was_in_vain_comes_back_only_for_what_was_paid() -> None:
    """What is to be written of a payment is worth waiting for again."""
    waits: list[float] = []
    patience = Patience(0.1)

    def slow(wait_s: float) -> None:
        waits.append(wait_s)
        time.sleep(0.15)

    patience.starting_now(slow)()
    patience.renew()
    patience.starting_now(slow)()
    patience.renew(paid=True)
    patience.starting_now(slow)()
    assert waits[0] > 0.05 > waits[1] and waits[2] > 0.05
