"""Many calls at once, in tasks, threads and processes: the cap holds, and nothing is bought twice."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.faults.processes import Process
from tests.support.postgres import Postgres
from tests.support.seller import Hit, Reply
from tests.tokens import jobs
from tests.tokens.bazaar import Bazaar, once
from tests.tokens.shop import USD, WALLET, assert_sound, counted, made, payer, states
from x402_mask import Cap, CapExceeded, MemoryLedger, PaymentRefused, SQLiteLedger, receipt_of

THREE = [Cap("0.6", per="total")]


def arranged(bazaar: Bazaar, way: str) -> dict[str, Any]:
    """A marketplace for one way of paying; the buyer's options."""
    bazaar.asks = "server402" if way == "x402" else None
    bazaar.paid_at = None if way == "x402" else 2
    options: dict[str, Any] = {"prefer": ("held-token", "token"), "poll_unpaid": 5}
    return {**options, "wallet": WALLET} if way == "x402" else options


@pytest.mark.parametrize("way", ["x402", "balance"])
@pytest.mark.parametrize("same", [False, True])
def test_twenty_tasks_and_room_for_three(
    bazaar: Bazaar, fast_path: Path, way: str, same: bool
) -> None:
    """Exactly three tokens; identical calls in flight at once are separate purchases."""
    buyer = payer(
        bazaar, ledger=SQLiteLedger(fast_path / "l.db"), caps=THREE, **arranged(bazaar, way)
    )

    async def one(client: Any, number: int) -> str:
        url = bazaar.url() if same else f"{bazaar.url()}?n={number}"
        try:
            return str((await client.get(url)).status_code)
        except CapExceeded:
            return "cap"

    async def crowd() -> list[str]:
        async with made("async-client", buyer, timeout=30) as client:
            return await asyncio.gather(*(one(client, n) for n in range(20)))

    assert sorted(asyncio.run(crowd())) == ["200"] * 3 + ["cap"] * 17
    assert len(bazaar.moved) == len(bazaar.bought) == bazaar.served == 3
    assert counted(buyer) == 3 * USD and states(buyer) == ["settled"] * 3
    assert_sound(buyer, bazaar)


def test_a_fleet_on_postgres(bazaar: Bazaar, postgres: Postgres) -> None:
    """Two hosts' ledgers of one database: room for three tokens, then their calls are shared."""
    from x402_mask import PostgresLedger

    dsn, key = postgres.database(), "5c" * 32
    options = {"caps": THREE, **arranged(bazaar, "x402")}
    buyers = [payer(bazaar, ledger=PostgresLedger(dsn, key=key), **options) for _ in range(2)]
    bazaar.calls = 3

    async def one(client: Any, number: int) -> str:
        try:
            return str((await client.get(f"{bazaar.url()}?n={number}")).status_code)
        except CapExceeded:
            return "cap"

    async def crowd(count: int) -> list[str]:
        async with (
            made("async-client", buyers[0], timeout=30) as here,
            made("async-client", buyers[1], timeout=30) as there,
        ):
            return await asyncio.gather(*(one((here, there)[n % 2], n) for n in range(count)))

    assert set(asyncio.run(crowd(8))) <= {"200", "cap"}
    assert len(bazaar.moved) <= 3
    while asyncio.run(crowd(2)) != ["cap", "cap"]:
        assert len(bazaar.moved) <= 3
    assert (len(bazaar.moved), bazaar.served) == (3, 9)
    assert counted(buyers[1]) == 3 * USD
    for buyer in buyers:
        assert_sound(buyer, bazaar)
        buyer.close()


def test_twenty_threads_and_room_for_three(bazaar: Bazaar, fast_path: Path) -> None:
    path = fast_path / "l.db"
    options = {"caps": THREE, **arranged(bazaar, "balance")}
    buyers = [payer(bazaar, ledger=SQLiteLedger(path), **options) for _ in range(4)]

    def one(number: int) -> str:
        with made("client", buyers[number % 4], timeout=30) as client:
            try:
                return str(client.get(f"{bazaar.url()}?n={number}").status_code)
            except CapExceeded:
                return "cap"

    with ThreadPoolExecutor(20) as pool:
        outcomes = sorted(pool.map(one, range(20)))
    assert outcomes == ["200"] * 3 + ["cap"] * 17
    assert len(bazaar.moved) == 3
    for buyer in buyers:
        assert_sound(buyer, bazaar)


def test_the_second_of_two_with_one_key_waits(bazaar: Bazaar) -> None:
    """It waits for the first one's end, and is a purchase of its own then: nobody pays twice over."""
    began, go = threading.Event(), threading.Event()

    def held_up(hit: Hit) -> Reply | None:
        began.set()
        return None

    bazaar.paid_at = 30
    bazaar.before["create"] = once(held_up, lambda hit: None)
    buyer = payer(bazaar, caps=[Cap("0.2", per="total")], poll_unpaid=10)
    options = {"extensions": {"x402_mask": {"operation": "one"}}}
    outcomes: list[Any] = []

    def one(timeout: float) -> None:
        with made("client", buyer, timeout=timeout) as client:
            try:
                outcomes.append(client.get(bazaar.url(), **options).status_code)
            except PaymentRefused as refusal:
                outcomes.append(refusal.reason)

    first = threading.Thread(target=one, args=(20.0,))
    first.start()
    assert began.wait(5)
    one(0.2)  # within its own time-out the first is not over
    assert outcomes == ["in_flight"]
    sale = next(iter(bazaar.sales.values()))
    sale.polled = 29
    first.join(10)
    go.set()
    assert outcomes == ["in_flight", 200]
    assert len(bazaar.sales) == 1 and len(bazaar.moved) == 1
    assert_sound(buyer, bazaar)


@pytest.mark.parametrize("ledger", ["memory", "sqlite"])
def test_two_tasks_of_one_operation_share_a_token_for_two(
    bazaar: Bazaar, fast_path: Path, ledger: str
) -> None:
    """The second has waited, and finds the token that the first one bought."""
    bazaar.paid_at, bazaar.calls = 3, 2
    store = MemoryLedger() if ledger == "memory" else SQLiteLedger(fast_path / "l.db")
    buyer = payer(bazaar, ledger=store, poll_unpaid=10)
    options = {"extensions": {"x402_mask": {"operation": "one"}}}

    async def both() -> list[Any]:
        async with made("async-client", buyer) as client:
            return await asyncio.gather(*(client.get(bazaar.url(), **options) for _ in range(2)))

    receipts = [receipt_of(answer) for answer in asyncio.run(both())]
    assert sorted(r.route for r in receipts if r is not None) == ["held-token", "token"]
    assert len(bazaar.sales) == len(bazaar.moved) == 1 and counted(buyer) == USD
    assert_sound(buyer, bazaar)


def test_a_waiting_task_goes_on_with_what_the_first_left_open(bazaar: Bazaar) -> None:
    """The first one's answer is lost: the second, with the same key, shows the same token."""
    bazaar.paid_at = 3
    bazaar.before["redeem"] = once(lambda hit: Reply(drop=True), lambda hit: None)
    buyer = payer(bazaar, caps=[Cap("0.2", per="total")], poll_unpaid=10)
    options = {"extensions": {"x402_mask": {"operation": "one"}}}

    async def one(client: Any) -> str:
        try:
            answer = await client.get(bazaar.url(), **options)
        except Exception as error:
            return type(error).__name__
        receipt = receipt_of(answer)
        assert receipt is not None and receipt.usd == USD
        return str(answer.status_code)

    async def both() -> list[str]:
        async with made("async-client", buyer) as client:
            return await asyncio.gather(one(client), one(client))

    assert sorted(asyncio.run(both())) == ["200", "RemoteProtocolError"]
    assert len(bazaar.moved) == 1 and states(buyer) == ["settled"]
    assert_sound(buyer, bazaar)


def test_two_processes_on_one_ledger(bazaar: Bazaar, fast_path: Path) -> None:
    """Room for one: one token is bought; room for a held token: it is shared."""
    bazaar.paid_at = 2
    path = fast_path / "l.db"
    SQLiteLedger(path).held_tokens(now_us=0)
    arguments = (path, bazaar.url(), bazaar.origin, "balance")
    with Process(jobs.plain_call, *arguments) as one, Process(jobs.plain_call, *arguments) as two:
        assert sorted([one.heard(), two.heard()]) == ["200", "CapExceeded"]
    assert len(bazaar.moved) == 1
    bazaar.calls = 2
    for wanted in (["redeem"], ["redeem"]):
        bazaar.hits.clear()
        with Process(jobs.plain_call, *arguments, "0.4") as other:
            assert other.heard() == "200"
        assert bazaar.steps()[-1:] == wanted
    assert bazaar.steps() == ["redeem"] and len(bazaar.moved) == 2


def test_two_processes_go_on_with_one_purchase(bazaar: Bazaar, fast_path: Path) -> None:
    """What a third left open is taken up by one of them; the other finds the cap full."""
    path = fast_path / "l.db"
    bazaar.before["poll"] = once(lambda hit: Reply(drop=True), lambda hit: None)
    bazaar.paid_at = 1
    arguments = (path, bazaar.url(), bazaar.origin, "balance")
    with Process(jobs.plain_call, *arguments) as first:
        assert first.heard() == "RemoteProtocolError"
    with Process(jobs.plain_call, *arguments) as one, Process(jobs.plain_call, *arguments) as two:
        assert sorted([one.heard(), two.heard()]) == ["200", "CapExceeded"]
    assert len(bazaar.moved) == 1
