"""What the tests of the ledgers share: times, payments to be, and a look behind the ledger."""

from __future__ import annotations

import json
import os
import secrets
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Self

from x402_mask import Cap, PaymentError
from x402_mask._ledger.ledger import Ledger
from x402_mask._ledger.records import (
    Breaker,
    OpenPayment,
    Proof,
    Reservation,
    Result,
    new_payment_id,
)
from x402_mask._ledger.sqlite import SQLiteLedger
from x402_mask._money import usd
from x402_mask._policy.caps import Limit, compile_caps
from x402_mask._system.turns import Turn

SECOND = 1_000_000
HOUR, DAY = 3600 * SECOND, 86400 * SECOND
ROOT = Path(__file__).parents[2]
WIDE = Cap(1_000_000, per="total")
SERVICE, ORIGIN, PAYEE = "mask-refinement", "https://seller.example", "0x" + "Ab" * 20


def at(text: str) -> int:
    """Microseconds of a UTC time such as ``2026-05-15 12:30``."""
    moment = datetime.fromisoformat(text).replace(tzinfo=UTC)
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


NOW = at("2026-05-15 12:30")
DEAD = NOW + 331 * SECOND
"""When a proof of this file that was made at ``NOW`` has expired, its margin too."""


def limits(*caps: Cap) -> tuple[Limit, ...]:
    """Caps as the ledger takes them."""
    return compile_caps(caps, lambda service: service)


def want(*caps: Cap, **changed: Any) -> Reservation:
    """A reservation of a tenth of a cent, with *changed* fields."""
    micro = changed.get("micro", 1000)
    plain = Reservation(
        id=new_payment_id(changed.get("at", NOW)),
        at=NOW,
        service=SERVICE,
        origin=ORIGIN,
        operation=secrets.token_hex(16),
        keyed=False,
        route="x402",
        micro=micro,
        amount=micro,
        asset="0x" + "aa" * 20,
        network="eip155:8453",
        payer="0x" + "bb" * 20,
        pay_to=PAYEE,
        limits=limits(*(caps or (WIDE,))),
        pin_payee=False,
        detail={"method": "POST"},
    )
    return replace(plain, **changed)


def proof(**changed: Any) -> Proof:
    """A proof that nobody else has."""
    plain = Proof(
        header="PAYMENT-SIGNATURE",
        value="proof-" + secrets.token_hex(40),
        nonce="0x" + secrets.token_hex(32),
        valid_before=NOW // SECOND + 300,
    )
    return replace(plain, **changed)


def end(outcome: Any = "settled", **changed: Any) -> Result:
    """How a call ended: with a 2xx if it was settled."""
    return Result(**{"outcome": outcome, "delivered": outcome == "settled", **changed})


def reserved(ledger: Ledger, *caps: Cap, **changed: Any) -> Reservation:
    """Reserve, and tell what."""
    made = want(*caps, **changed)
    answer = ledger.reserve(made)
    assert not isinstance(answer, OpenPayment)
    return made


def held(ledger: Ledger, *caps: Cap, valid_before: int | None = None, **changed: Any) -> Any:
    """Reserve and hold; returns the reservation and the proof."""
    made = reserved(ledger, *caps, **changed)
    sent = proof() if valid_before is None else proof(valid_before=valid_before)
    ledger.hold(made.id, sent, now_us=made.at)
    return made, sent


def in_state(ledger: Ledger, state: str, *caps: Cap, **changed: Any) -> Reservation:
    """A payment brought to *state* by the usual way: ``settled`` unseen, ``seen`` on chain."""
    made = reserved(ledger, *caps, **changed)
    if state == "reserved":
        return made
    if state == "released":
        ledger.release(made.id, "never sent", now_us=made.at)
        return made
    ledger.hold(made.id, proof(), now_us=made.at)
    if state == "settled":
        ledger.finish(made.id, end(transaction="0x" + "77" * 32), now_us=made.at)
    elif state in ("void", "seen"):
        ledger.finish(made.id, end("unknown"), now_us=made.at)
        proven: Any = {"void": "void", "seen": "settled"}[state]
        when = max(made.at, DEAD) if state == "void" else made.at
        assert ledger.resolve(made.id, proven, transaction=None, note="", now_us=when)
    return made


def state_of(ledger: Ledger, payment_id: str) -> str:
    """The state of one payment."""
    return next(p.state for p in ledger.payments(limit=10_000) if p.payment_id == payment_id)


def used(ledger: Ledger, cap: Cap, now_us: int = NOW) -> int:
    """Micro-USD that count against *cap*."""
    (spend,) = ledger.spend(limits(cap), now_us=now_us)
    assert spend.left == max(spend.limit - spend.settled - spend.held, usd(0))
    return int((spend.settled + spend.held) * SECOND)


def refusal(ledger: Ledger, wanted: Reservation, breaker: Breaker | None = None) -> PaymentError:
    """The error of a reservation that must fail."""
    try:
        answer = ledger.reserve(wanted, breaker)
    except PaymentError as error:
        return error
    raise AssertionError(f"not refused: {answer}")


# --- the store behind a ledger --------------------------------------------------------------------


@dataclass(frozen=True)
class Store:
    """One kind of ledger, and the ways around it that the tests need.

    ``again`` is another ledger on the same data; ``raw`` a plain connection to it, whose ``?`` is
    the driver's own; ``spec`` what a worker process needs to open it.
    """

    kind: str
    ledger: Ledger
    again: Callable[[], Ledger]
    raw: Callable[[], Any]
    spec: Mapping[str, str]

    def sql(self, text: str, *params: object) -> list[tuple[Any, ...]]:
        """Execute behind the ledger's back."""
        with closing(self.raw()) as raw:
            cursor = raw.execute(
                text if self.kind != "postgres" else text.replace("?", "%s"), params
            )
            return cursor.fetchall() if cursor.description else []

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep every writer out, as another process would."""
        if self.kind == "memory":
            with _held_elsewhere(self.ledger._turns):  # type: ignore[attr-defined]
                yield
            return
        with closing(self.raw()) as raw:
            if self.kind == "sqlite":
                raw.execute("BEGIN IMMEDIATE")
            else:
                from x402_mask._ledger.postgres import _LOCK

                raw.execute(f"BEGIN; SELECT pg_advisory_xact_lock({_LOCK})")
            yield
            raw.execute("ROLLBACK")

    def bury(self) -> None:
        """Let the leases of all other processes run out, where there are leases."""
        if self.kind == "postgres":
            past = "clock_timestamp() - interval '1 second'"
            self.sql(f"UPDATE owners SET until = {past} WHERE owner <> ?", self.ledger._me())

    def worker(self, *args: str) -> Worker:
        """Another process on the same ledger; see ``worker.py``."""
        return Worker(self.spec, *args)


class Worker:
    """A process of a ``worker.py``, killed when the test is over."""

    def __init__(
        self, spec: Mapping[str, Any], *args: str, module: str = "tests.ledger.worker"
    ) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, json.dumps(dict(spec)), *args],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        self._timer = threading.Timer(60, self.process.kill)
        self._timer.start()

    def line(self) -> Any:
        """The next thing it says."""
        assert self.process.stdout is not None
        text = self.process.stdout.readline()
        assert text, f"the worker ended with {self.process.wait(10)}"
        return json.loads(text)

    def go(self) -> None:
        """Let it go on."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def kill(self) -> None:
        """End it as ``kill -9`` does."""
        self.process.kill()
        self.process.wait(10)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._timer.cancel()
        self.process.kill()
        self.process.wait(10)
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with suppress(BrokenPipeError):
                    stream.close()


@contextmanager
def _held_elsewhere(turns: Any) -> Iterator[None]:
    """A turn that another thread has."""
    taken, enough = threading.Event(), threading.Event()

    def hold() -> None:
        turn = Turn(None)
        assert turns.take(turn, 10)
        taken.set()
        enough.wait(60)
        turns.give_up(turn)

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        assert taken.wait(10)
        yield
    finally:
        enough.set()
        thread.join(10)


def sqlite_store(path: Path) -> Store:
    """A ledger in a file."""
    return Store(
        kind="sqlite",
        ledger=SQLiteLedger(path),
        again=lambda: SQLiteLedger(path),
        raw=lambda: sqlite3.connect(path, isolation_level=None, timeout=10),
        spec={"sqlite": os.fspath(path)},
    )


def together(count: int, work: Callable[[int], Any]) -> list[Any]:
    """Run *work* in *count* threads that start at once; their answers, or what they raised."""
    barrier, answers = threading.Barrier(count), [None] * count

    def run(number: int) -> None:
        barrier.wait(20)
        try:
            answers[number] = work(number)
        except Exception as failure:
            answers[number] = failure  # type: ignore[call-overload]

    threads = [threading.Thread(target=run, args=(n,), daemon=True) for n in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    return answers
