"""The caller's time-out bounds every wait: for the ledger, for a chain."""

from __future__ import annotations

import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import anyio
import pytest

from tests.hostile.kit import Clock, World
from tests.support.faults import NO_TLS
from tests.support.seller import Reply, offer, paywall, sequence, served, v2_header
from x402_mask import AsyncClient, Client, LedgerError, receipt_of
from x402_mask._chain.verdicts import Settled
from x402_mask._payer import buyer_of

BASE = "eip155:8453"
LOCKED_S = 5.0
SLACK_S = 4.0
"""For a machine that is busy: what is mended here took tens of seconds."""


@contextmanager
def locked(world: World) -> Iterator[None]:
    """Another program holds the ledger's write lock, for as long as it likes."""
    with closing(sqlite3.connect(world.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")


@pytest.fixture
def silent() -> Iterator[str]:
    """An RPC endpoint that takes connections and never says anything."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """How long it took, and what came of it."""
    begun = time.monotonic()
    try:
        found = work()
    except Exception as error:
        found = error
    return time.monotonic() - begun, found


async def _crowd(world: World, url: str, count: int, seconds: float) -> list[Any]:
    found: list[Any] = []
    async with AsyncClient(world.payer(), timeout=seconds, verify=NO_TLS) as client:

        async def one(number: int) -> None:
            try:
                found.append(await client.get(url, params={"n": number}))
            except Exception as error:
                found.append(error)

        async with anyio.create_task_group() as group:
            for number in range(count):
                group.start_soon(one, number)
    return found


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize(("timeout", "wait"), [(60.0, LOCKED_S), (1.0, 1.0)])
def test_each_of_many_calls_waits_for_the_ledger_from_when_it_asked(
    world: World, backend: str, timeout: float, wait: float
) -> None:
    """Not from when a thread was free to wait for it; nor once more for each step of the call."""
    seller = world.seller()
    url = seller.sells()
    with Client(world.payer(), verify=NO_TLS) as client:
        client.get(url)
    with locked(world):
        took, found = timed(lambda: anyio.run(_crowd, world, url, 40, timeout, backend=backend))
    assert {type(one) for one in found} == {LedgerError}, found
    assert wait - 0.2 <= took < wait + SLACK_S
    assert all("locked for" in str(one) for one in found)
    assert len(seller.authorizations()) == 1, "of the call before"


def test_sync_calls_too(world: World) -> None:
    seller = world.seller()
    url = seller.sells()
    buyer = world.payer()
    with Client(buyer, verify=NO_TLS) as client:
        client.get(url)
    found: list[Any] = []

    def one(number: int) -> None:
        with Client(buyer, timeout=1, verify=NO_TLS) as client:
            found.append(timed(lambda: client.get(url, params={"n": number})))

    with locked(world):
        threads = [threading.Thread(target=one, args=(number,)) for number in range(12)]
        took, _ = timed(
            lambda: [*map(threading.Thread.start, threads), *map(threading.Thread.join, threads)]
        )
    assert all(isinstance(error, LedgerError) for _, error in found)
    assert took < 1 + SLACK_S


def test_lapsed_proofs_are_asked_about_together(world: World, silent: str) -> None:
    """Six of one operation, and an endpoint that does not answer: one time-out, not six."""
    seller, clock = world.seller(), Clock()
    paid = sequence(*[Reply(status=500)] * 6, served())
    url = seller.on("/paid", paywall(v2_header(offer("1000", maxTimeoutSeconds=60)), paid))
    for _ in range(6):
        with Client(world.payer(clock=clock), verify=NO_TLS) as client:
            assert client.get(url).status_code == 500
        clock.ahead += 400
    assert len(seller.authorizations()) == 6
    asking = world.payer(clock=clock, rpc={BASE: silent})
    with Client(asking, timeout=1, verify=NO_TLS) as client:
        took, answer = timed(lambda: client.get(url))
    assert answer.status_code == 200
    assert took < 1 + SLACK_S


def test_what_the_chain_said_waits_for_a_locked_ledger_within_the_same_time(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The endpoint answers at once; to write it down is part of the same wait."""
    seller, clock = world.seller(), Clock()
    url = seller.on(
        "/paid", paywall(v2_header(offer("1000", maxTimeoutSeconds=60)), Reply(status=500))
    )
    with Client(world.payer(clock=clock), verify=NO_TLS) as client:
        assert client.get(url).status_code == 500
    clock.ahead += 400
    asking = world.payer(clock=clock, rpc={BASE: "http://127.0.0.1:9"})

    class Chain:
        def evidence(self, asked: Any) -> Settled:
            return Settled(transaction="0x" + "ab" * 32, block=1, amount=1000)

    monkeypatch.setattr(buyer_of(asking), "chain", Chain)
    with Client(asking, timeout=0.5, verify=NO_TLS) as client, locked(world):
        took, error = timed(lambda: client.get(url))
    assert isinstance(error, LedgerError)
    assert took < LOCKED_S * 0.7


def test_an_answer_waits_for_the_chain_no_longer_than_its_caller(world: World, silent: str) -> None:
    """What is told of a settlement is looked up, while the answer is in hand."""
    seller = world.seller()
    url = seller.on("/paid", paywall(v2_header(offer("1000")), served()))
    with Client(world.payer(rpc={BASE: silent}), timeout=0.3, verify=NO_TLS) as client:
        took, answer = timed(lambda: client.get(url))
    receipt = receipt_of(answer)
    assert receipt is not None and receipt.outcome == "unknown"
    assert took < 2.5, "three seconds, for who waits for longer"
