"""Rows 48 to 50: many at once, a crash, a ledger or a wallet that fails."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from tests.hostile.kit import (
    ASYNC,
    CORE,
    EVERY,
    KEY,
    SYNC,
    TRIO,
    AsyncSigner,
    Kind,
    Signer,
    World,
    attempt,
    build_client,
    every_kind,
    usd,
)
from tests.support.seller import Reply, distinct, offer, paywall, sequence, served, v2_header
from x402_mask import (
    Cap,
    CapExceeded,
    LedgerError,
    MemoryLedger,
    PaymentError,
    SignerError,
    SQLiteLedger,
    Wallet,
)

DOLLAR = offer("1000000")
HTTPX2 = (Kind("httpx2", "sync", "attach"), Kind("httpx2", "asyncio", "client"))


# --- row 48


@pytest.mark.parametrize("memory", [False, True], ids=["sqlite", "memory"])
@every_kind(*CORE, *HTTPX2, *TRIO)
def test_twenty_calls_at_once_and_a_budget_for_three(
    world: World, kind: Kind, memory: bool
) -> None:
    """Row 48: exactly three are paid; the others never reach the wallet."""
    seller = world.seller()
    url = seller.sells(DOLLAR, paid=served(delay=0.05))
    ledger = MemoryLedger() if memory else SQLiteLedger(world.path)
    buyer = world.buyer(kind, world.payer(Cap("3", per="day"), ledger=ledger), timeout=10)
    answers = buyer.gather([{"method": "POST", "url": url, "content": b"x"}] * 20)
    refused = [answer for answer in answers if isinstance(answer, CapExceeded)]
    paid = [a for a in answers if not isinstance(a, Exception) and a.status_code == 200]
    assert (len(paid), len(refused)) == (3, 17), answers
    assert len(seller.authorizations()) == 3 and world.signer.calls == 3
    assert world.settled() == 3


def test_different_calls_at_once_share_the_budget(world: World, kind: Kind) -> None:
    """Row 48: the cap on "*" counts all services."""
    seller = world.seller()
    urls = [seller.sells(DOLLAR, path=f"/api/tools/{n}", paid=served(delay=0.03)) for n in range(8)]
    buyer = world.buyer(kind, world.payer(Cap("3", per="day")), timeout=10)
    buyer.gather([{"method": "POST", "url": url} for url in urls])
    assert len(seller.authorizations()) == 3


SCRIPT = """
import sys
from concurrent.futures import ThreadPoolExecutor
from x402_mask import Cap, CapExceeded, Client, Payer, SQLiteLedger, Wallet
origin, path, key, calls = sys.argv[1:]
payer = Payer(Wallet.from_key(key), caps=[Cap("3", per="day")], origins=[origin],
              ledger=SQLiteLedger(path))
with Client(payer, timeout=15) as client:
    print("ready", flush=True)
    sys.stdin.readline()
    def one(n):
        try:
            return client.post(origin + "/paid", content=b"x").status_code
        except CapExceeded:
            return 0
    with ThreadPoolExecutor(4) as pool:
        print(*pool.map(one, range(int(calls))), flush=True)
"""


def spawn(*arguments: str) -> subprocess.Popen[str]:
    """A buyer in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ},
    )


def test_processes_share_the_budget_too(world: World) -> None:
    """Row 48: two processes, four threads each, one ledger file, money for three calls."""
    seller = world.seller()
    seller.sells(DOLLAR, paid=served(delay=0.02))
    world.payer(Cap("3", per="day"))
    crowd = [spawn(seller.origin, str(world.path), KEY, "8") for _ in range(2)]
    try:
        for one in crowd:
            assert one.stdout is not None and one.stdout.readline().strip() == "ready"
        outcomes = [one.communicate("go\n", timeout=20)[0] for one in crowd]
    finally:
        for one in crowd:
            one.kill()
            one.wait()
    statuses = " ".join(outcomes).split()
    assert statuses.count("200") == 3 and statuses.count("0") == 13, outcomes
    assert len(seller.authorizations()) == 3


# --- row 49


def test_a_process_killed_after_its_proof_left_is_counted_and_resumed(world: World) -> None:
    """Row 49: SIGKILL between the proof and the answer; the next process shows the same bytes."""
    seller = world.seller()
    url = seller.on(
        "/paid", paywall(v2_header(DOLLAR), sequence(Reply(delay=5, drop=True), served()))
    )
    victim = spawn(seller.origin, str(world.path), KEY, "1")
    try:
        assert victim.stdout is not None and victim.stdin is not None
        victim.stdout.readline()
        victim.stdin.write("go\n")
        victim.stdin.flush()
        seller.wait_for(seller.paid_hits, 10)
    finally:
        victim.send_signal(signal.SIGKILL)
        victim.wait(10)
        victim.communicate()
    payer = world.payer(wallet=Wallet.from_key(KEY))
    assert world.counted() == 1, "the row was not on disk before the bytes left"
    assert world.buyer(SYNC[0], payer).post(url, content=b"x").status_code == 200
    assert len(distinct(seller.proofs())) == 1 and world.counted() == 1


def test_the_row_is_durable_before_the_bytes_leave(world: World, kind: Kind) -> None:
    """Row 49: when the proof arrives, another connection to the file already counts it."""
    seller = world.seller()
    seen: list[Any] = []

    def look(hit: Any) -> Reply:
        watcher = world.payer()
        seen.append(world.counted())
        seen.append(len(watcher.payments(state="held")) + len(watcher.payments(state="reserved")))
        return served()(hit)

    assert world.buyer(kind).get(seller.sells(paid=look)).status_code == 200
    assert seen == [usd(1000), 1]


# --- row 50: the ledger


def test_a_locked_ledger_fails_closed_and_does_not_stall_the_loop(world: World) -> None:
    """Row 50: held locked by another program for longer than 5 s: ``LedgerError``, nothing signed.

    One wait serves a thread and an event loop, whose pulse is taken meanwhile.
    """
    seller = world.seller()
    url = seller.sells()
    sync = world.buyer(SYNC[0], world.payer())
    apart = world.buyer(ASYNC[0], world.payer())
    locker = sqlite3.connect(world.path, isolation_level=None, check_same_thread=False)
    locker.execute("BEGIN IMMEDIATE")
    outcomes: list[BaseException] = []

    def call() -> None:
        try:
            sync.get(url)
        except Exception as error:
            outcomes.append(error)

    async def with_pulse(client: Any) -> float:
        async def go() -> None:
            try:
                await client.get(url)
            except Exception as error:
                outcomes.append(error)

        return await longest_gap(go)

    thread = threading.Thread(target=call)
    try:
        thread.start()
        began = time.monotonic()
        gap = apart.run(with_pulse)
        thread.join(15)
        waited = time.monotonic() - began
    finally:
        locker.execute("ROLLBACK")
        locker.close()
    assert [type(error) for error in outcomes] == [LedgerError, LedgerError]
    assert all(getattr(error, "at_risk", None) is False for error in outcomes)
    assert 3 < waited < 10 and gap < 0.4, (waited, gap)
    assert world.signer.calls == 0 and seller.proofs() == []
    assert sync.get(url).status_code == 200


async def longest_gap(job: Callable[[], Awaitable[object]]) -> float:
    """Run the job beside a pulse every 10 ms; the longest pause between two beats."""
    gaps: list[float] = []
    finished = False

    async def pulse() -> None:
        last = time.monotonic()
        while not finished:
            await anyio.sleep(0.01)
            now = time.monotonic()
            gaps.append(now - last)
            last = now

    beat = asyncio.ensure_future(pulse())
    await job()
    finished = True
    await beat
    return max(gaps)


@every_kind(*EVERY)
def test_a_ledger_that_is_gone_fails_closed(world: World, kind: Kind) -> None:
    """Row 50: its tables vanish before the call; ``LedgerError``, and nothing was signed."""
    seller = world.seller()
    url = seller.sells()
    buyer = world.buyer(kind, world.payer())
    assert buyer.get(url).status_code == 200
    world.audited = False
    with sqlite3.connect(world.path, isolation_level=None) as connection:
        rows = connection.execute("SELECT type, name FROM sqlite_master").fetchall()
        for sort, name in rows:
            if sort in {"trigger", "view"}:
                connection.execute(f'DROP {sort} IF EXISTS "{name}"')
        for sort, name in rows:
            if sort == "table" and not name.startswith("sqlite_"):
                connection.execute(f'DROP TABLE IF EXISTS "{name}"')
    connection.close()
    with pytest.raises(LedgerError) as caught:
        buyer.get(url)
    assert caught.value.at_risk is False and caught.value.response.status_code == 402
    assert world.signer.calls == 1 and len(seller.proofs()) == 1


@pytest.mark.parametrize(
    "content", [b"not a database at all" * 100, b"SQLite format 3\0" + b"\xff" * 4096]
)
def test_a_ledger_file_that_is_no_ledger_is_named(world: World, content: bytes) -> None:
    """Row 50: garbage in the file: a clear error at the latest when money is to be spent."""
    world.path.write_bytes(content)
    world.audited = False
    seller = world.seller()
    url = seller.sells()
    with pytest.raises(PaymentError) as caught:
        world.buyer(SYNC[0], world.payer()).get(url)
    assert isinstance(caught.value, LedgerError)
    assert world.signer.calls == 0 and world.path.read_bytes() == content


# --- row 50: the wallet


class Broken(Signer):
    """A wallet that raises, or answers with something else than its signature."""

    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.answer = answer

    def sign_typed_data(self, domain: Any, types: Any, message: Any) -> Any:
        """Do what it was made for."""
        super().sign_typed_data(domain, types, message)
        if isinstance(self.answer, BaseException):
            raise self.answer
        if isinstance(self.answer, Signer):
            return self.answer.sign_typed_data(domain, types, message)
        return self.answer


ANSWERS: dict[str, Callable[[], Any]] = {
    "raises": lambda: RuntimeError("no device"),
    "time-out": lambda: TimeoutError("no device"),
    "stranger": lambda: Signer("0x" + "22" * 32),
    "zeros": lambda: b"\0" * 65,
    "short": lambda: b"\1" * 64,
    "text": lambda: "yes",
    "none": lambda: None,
    "empty": lambda: b"",
    "number": lambda: 1,
    "huge": lambda: b"\1" * 100_000,
}


@pytest.mark.parametrize("answer", ANSWERS)
def test_a_wallet_that_fails_releases_and_sends_nothing(
    world: World, kind: Kind, answer: str
) -> None:
    """Row 50: ``SignerError``; every signature is recovered and checked before it is sent."""
    seller = world.seller()
    url = seller.sells()
    payer = world.payer(wallet=Broken(ANSWERS[answer]()))
    with pytest.raises(SignerError) as caught:
        world.buyer(kind, payer).get(url)
    assert caught.value.at_risk is False and caught.value.response.status_code == 402
    assert seller.proofs() == [] and world.counted() == 0
    assert len(world.in_state("released")) == 1 and not world.in_state("reserved")


def test_a_wallet_of_hex_text_or_of_bytes_is_the_same_wallet(world: World, kind: Kind) -> None:
    """Row 50: what ``sign_typed_data`` returns may be bytes or hex, with or without ``0x``."""
    seller = world.seller()
    url = seller.sells()
    real = Signer()

    class Text(Signer):
        def sign_typed_data(self, domain: Any, types: Any, message: Any) -> Any:
            return "0x" + real.sign_typed_data(domain, types, message).hex()

    for wallet in (Text(), real):
        assert world.buyer(kind, world.payer(wallet=wallet)).get(url).status_code == 200
    assert len(seller.authorizations()) == 2


@pytest.mark.parametrize("shape", ["v-0-or-1", "high-s"])
def test_an_odd_signature_is_put_right_or_refused(world: World, kind: Kind, shape: str) -> None:
    """Row 50: contracts want v of 27 or 28 and a low s; anything else would never settle."""
    seller = world.seller()
    order = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141

    class Odd(Signer):
        def sign_typed_data(self, domain: Any, types: Any, message: Any) -> bytes:
            good = super().sign_typed_data(domain, types, message)
            if shape == "v-0-or-1":
                return good[:64] + bytes([good[64] - 27])
            s = order - int.from_bytes(good[32:64], "big")
            return good[:32] + s.to_bytes(32, "big") + bytes([55 - good[64]])

    outcome = attempt(world.buyer(kind, world.payer(wallet=Odd())), seller.sells())
    if isinstance(outcome, SignerError):
        assert seller.proofs() == [] and world.counted() == 0
        return
    assert outcome.status_code == 200
    signature = (seller.proofs()[0].document or {})["payload"]["signature"].removeprefix("0x")
    assert signature[128:] in {"1b", "1c"} and int(signature[64:128], 16) <= order // 2


@every_kind(*(kind for kind in EVERY if kind.colour == "sync" and kind.plug != "auth"))
def test_an_async_wallet_with_a_sync_client_is_a_type_error_at_once(
    world: World, kind: Kind
) -> None:
    """Row 50: said when the client is built, not when money moves."""
    seller = world.seller()
    seller.sells()
    with pytest.raises(TypeError):
        build_client(kind, world.payer(wallet=AsyncSigner()))

    async def approve(quote: object) -> bool:
        return True

    with pytest.raises(TypeError):
        build_client(kind, world.payer(approve=approve))


@every_kind(*(kind for kind in EVERY if kind.colour == "sync" and kind.plug == "auth"))
def test_an_auth_that_meets_an_async_wallet_in_a_sync_client_says_so(
    world: World, kind: Kind
) -> None:
    """Row 50: ``PaymentAuth`` learns its colour with the first request; nothing leaves."""
    seller = world.seller()
    url = seller.sells()
    buyer = world.buyer(kind, world.payer(wallet=AsyncSigner()))
    with pytest.raises((TypeError, SignerError)):
        buyer.get(url)
    assert seller.proofs() == [] and world.counted() == 0


@every_kind(*(kind for kind in EVERY if kind.colour != "sync"))
def test_async_wallets_and_approvals_work_in_async_clients(world: World, kind: Kind) -> None:
    """Row 50: both kinds of each."""
    seller = world.seller()
    url = seller.sells()

    async def approve(quote: object) -> bool:
        await anyio.lowlevel.checkpoint()
        return True

    payer = world.payer(wallet=AsyncSigner(), approve=approve)
    assert world.buyer(kind, payer).get(url).status_code == 200
    assert world.buyer(kind, world.payer(approve=lambda quote: True)).get(url).status_code == 200
    assert len(seller.authorizations()) == 2


@pytest.mark.parametrize("who", ["signer", "approval"])
@every_kind(*ASYNC)
def test_a_slow_wallet_or_approval_does_not_stall_the_loop(
    world: World, kind: Kind, who: str
) -> None:
    """Row 50: a blocking wallet and a blocking ``approve`` run off the event loop."""
    seller = world.seller()
    url = seller.sells()

    def slow(*_: object) -> bool:
        time.sleep(0.5)
        return True

    if who == "signer":
        world.signer.before = lambda: (slow(), None)[1]
    payer = world.payer(approve=slow if who == "approval" else None)
    buyer = world.buyer(kind, payer)

    async def with_pulse(client: Any) -> float:
        return await longest_gap(lambda: client.get(url))

    assert buyer.run(with_pulse) < 0.3
    assert len(seller.authorizations()) == 1


@pytest.mark.parametrize("failure", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_in_the_wallet_passes_and_nothing_leaves(
    world: World, failure: type[BaseException]
) -> None:
    """Row 50 and 28: Ctrl-C at the device prompt: no proof, and the money is free again."""
    seller = world.seller()
    url = seller.sells()
    payer = world.payer(wallet=Broken(failure()))
    with pytest.raises(failure):
        world.buyer(SYNC[0], payer).get(url)
    assert seller.proofs() == [] and world.counted() == 0


def test_without_a_wallet_a_signature_is_refused(world: World, kind: Kind) -> None:
    """Row 50: ``wallet=None`` where only a signature would do."""
    seller = world.seller()
    error = world.refused(world.buyer(kind, world.payer(wallet=None)), seller.sells())
    assert error.reason == "no_wallet"


def test_a_ledger_in_a_place_that_cannot_be_is_an_error(world: World, tmp_path: Path) -> None:
    """Row 50: a path below a file."""
    (tmp_path / "file").write_bytes(b"")
    world.audited = False
    seller = world.seller()
    url = seller.sells()
    with pytest.raises((LedgerError, OSError)):
        ledger = SQLiteLedger(tmp_path / "file" / "ledger.db")
        world.buyer(SYNC[0], world.payer(ledger=ledger)).get(url)
    assert world.signer.calls == 0
