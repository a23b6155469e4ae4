"""A process on a shared ledger, for tests that need more than one: ``worker SPEC JOB ...``.

It answers in lines of JSON, and waits where a job says so for a line on its input.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from typing import Any

from tests.ledger.kit import held, limits, reserved, want
from x402_mask import (
    Cap,
    CapExceeded,
    MemoryLedger,
    PaymentError,
    PostgresLedger,
    SQLiteLedger,
)
from x402_mask._ledger.ledger import Ledger

TOTAL = Cap("0.4", per="total")


def opened(spec: dict[str, str]) -> Ledger:
    """The ledger that the test shares."""
    if "sqlite" in spec:
        return SQLiteLedger(spec["sqlite"])
    if "postgres" in spec:
        return PostgresLedger(spec["postgres"], key=spec["key"])
    return MemoryLedger()


def say(value: Any) -> None:
    """One line for the test."""
    print(json.dumps(value), flush=True)


def reserve(ledger: Ledger) -> None:
    """Reserve, say what, and stay in flight until told or killed."""
    say(reserved(ledger).id)
    sys.stdin.readline()


def hold(ledger: Ledger, operation: str) -> None:
    """Hold a proof for *operation*, say which, and stay in flight until told or killed."""
    made, sent = held(ledger, operation=operation, valid_before=2**40)
    say([made.id, sent.value])
    sys.stdin.readline()


def claim(ledger: Ledger, payment_id: str, now_us: str) -> None:
    """Take an open proof in hand, say its bytes, and stay in flight until told or killed."""
    ledger.is_paused()
    say("ready")
    sys.stdin.readline()
    found = ledger.claim(payment_id, now_us=int(now_us))
    say(None if found is None else found.value)
    sys.stdin.readline()


def race(ledger: Ledger, threads: str) -> None:
    """Reserve in several threads until the cap is full; say how often that went well."""
    ledger.spend(limits(TOTAL), now_us=0)
    say("ready")
    sys.stdin.readline()
    done: list[int] = []

    def run() -> None:
        count = 0
        while True:
            try:
                ledger.reserve(want(TOTAL, at=time.time_ns() // 1000), wait_s=60)
            except CapExceeded:
                break
            count += 1
        done.append(count)

    workers = [threading.Thread(target=run) for _ in range(int(threads))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    say(done)
    sys.stdin.readline()  # in flight until every other process is done too


def one_by_one(ledger: Ledger, limit: str) -> None:
    """Reserve each time it is told to, under a cap of so much; say whether, or why not."""
    cap = Cap(limit, per="total")
    while sys.stdin.readline():
        try:
            ledger.reserve(want(cap))
        except PaymentError as refused:
            say(type(refused).__name__)
        else:
            say(True)


JOBS = {job.__name__: job for job in (reserve, hold, claim, race, one_by_one)}

if __name__ == "__main__":
    shared = opened(json.loads(sys.argv[1]))
    JOBS[sys.argv[2]](shared, *sys.argv[3:])
    shared.close()
