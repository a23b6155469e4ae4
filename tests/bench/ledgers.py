"""What a reservation costs, by how many payments the ledger holds and how many write at once."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from tests.support.postgres import Postgres, Unavailable
from x402_mask import Cap, PostgresLedger, SQLiteLedger
from x402_mask._ledger.ledger import Ledger
from x402_mask._ledger.records import Proof, Reservation, new_payment_id
from x402_mask._policy.caps import compile_caps

LIMITS = compile_caps(
    [Cap("0.25", per="call"), Cap("1000000000", per="day"), Cap("1000000000", per="total")], str
)


WRITERS = (1, 8, 64)
PROCESSES = 8


def reservation(number: int) -> Reservation:
    at = time.time_ns() // 1000
    return Reservation(
        id=new_payment_id(at),
        at=at,
        service="mask-refinement",
        origin="https://seller.example",
        operation=f"{number}-{os.urandom(12).hex()}",
        keyed=False,
        route="x402",
        micro=200000,
        amount=200000,
        asset="0x" + "1" * 40,
        network="eip155:8453",
        payer="0x" + "2" * 40,
        pay_to="0x" + "3" * 40,
        limits=LIMITS,
        pin_payee=False,
    )


def prove() -> Proof:
    """A proof of the usual size: what is measured is all that happens before it leaves."""
    return Proof(
        header="PAYMENT-SIGNATURE",
        value="x" * 1100,
        nonce="0x" + os.urandom(32).hex(),
        valid_before=int(time.time()) + 300,
    )


def fill(ledger: SQLiteLedger, payments: int) -> None:
    """Copy one finished payment many times, and let the counters count them anew."""
    ledger.reserve(reservation(0))
    with ledger._transaction(60, durable=True) as db:
        columns = (
            "at, updated, state, service, origin, route, micro, amount, asset, network, payer,"
            " pay_to, delivered"
        )
        db.run(
            f"INSERT INTO payments (id, operation, {columns})"
            " WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i < ?)"
            " SELECT 'pay_' || hex(randomblob(16)), hex(randomblob(16)),"
            " at - 3600000000 * (i % 720), updated, 'settled', service, origin, route, micro,"
            " amount, asset, network, payer, pay_to, 1 FROM n, (SELECT * FROM payments LIMIT 1)",
            payments,
        )
        db.run(
            "INSERT INTO history (seq, at, payment, kind, data, mac)"
            " WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i < ?)"
            " SELECT i + 1000, at, payment, kind, data, mac"
            " FROM n, (SELECT * FROM history LIMIT 1)",
            3 * payments,
        )


def reserve_times(ledgers: list[Any], rounds: int) -> list[list[float]]:
    """Seconds of single reservations, the ledgers in turn."""
    times: list[list[float]] = [[] for _ in ledgers]
    for turn in range(rounds):
        order = list(enumerate(ledgers))
        for at, ledger in order if turn % 2 else reversed(order):
            want = reservation(turn)
            begun = time.perf_counter()
            ledger.reserve(want, prove=prove)
            times[at].append(time.perf_counter() - begun)
    return times


def filled(folder: Path, sizes: tuple[int, ...]) -> dict[int, SQLiteLedger]:
    """Ledgers that hold so many payments."""
    ledgers = {size: SQLiteLedger(folder / f"size-{size}.db") for size in sizes}
    for size, ledger in ledgers.items():
        if size:
            fill(ledger, size)
        ledger.close()  # all begin with an empty log: one that need not grow is synced sooner
    return ledgers


def by_size(ledgers: dict[int, SQLiteLedger], rounds: int = 300) -> dict[int, float]:
    """Median microseconds of a durable reservation by payments on the ledger."""
    times = reserve_times(list(ledgers.values()), rounds + 50)
    for ledger in ledgers.values():
        ledger.close()
    return {
        size: statistics.median(spent[50:]) * 1e6
        for size, spent in zip(ledgers, times, strict=True)
    }


# --- many writers -----------------------------------------------------------------------------


def throughput(store: str, writers: int, seconds: float = 2.0) -> dict[str, float]:
    """Durable reservations per second by that many writers, threads of up to eight processes.

    *store* is the path of a SQLite file, or the connection string of a PostgreSQL database.
    """
    processes = min(writers, PROCESSES)
    command = [sys.executable, "-m", "tests.bench.ledgers", store, str(writers // processes)]
    workers = [
        subprocess.Popen(
            [*command, str(seconds)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(processes)
    ]
    spent: list[float] = []
    for worker in workers:
        assert worker.stdout is not None and worker.stdout.readline() == "ready\n"
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write("go\n")
        worker.stdin.flush()
    for worker in workers:
        spent += json.loads(worker.communicate(timeout=120)[0])
    return {
        "per_s": len(spent) / seconds,
        "median_ms": statistics.median(spent) * 1e3,
        "worst_ms": max(spent) * 1e3,
    }


def by_writers(folder: Path) -> dict[str, dict[int, dict[str, float]]]:
    """Throughput of both stores; PostgreSQL is left out where it does not run."""
    found = {"SQLite": {n: throughput(str(folder / f"{n}.db"), n) for n in WRITERS}}
    try:
        with Postgres({"fsync": "on"}) as server:
            os.environ["X402_MASK_LEDGER_KEY"] = "11" * 32
            found["PostgreSQL"] = {n: throughput(server.database(), n) for n in WRITERS}
    except Unavailable as why:
        print(f"no PostgreSQL here: {why}")
    return found


def work(store: str, threads: int, seconds: float) -> None:
    """One process of writers: ready, go, and the seconds that each reservation took."""
    ledger: Ledger = PostgresLedger(store) if " " in store else SQLiteLedger(store)
    ledger.reserve(reservation(0), durable=True)
    spent: list[float] = []

    def write() -> None:
        while time.monotonic() < until:
            want = reservation(0)
            begun = time.perf_counter()
            ledger.reserve(want, prove=prove, wait_s=30)
            spent.append(time.perf_counter() - begun)

    print("ready", flush=True)
    sys.stdin.readline()
    until = time.monotonic() + seconds
    others = [threading.Thread(target=write) for _ in range(threads - 1)]
    for thread in others:
        thread.start()
    write()
    for thread in others:
        thread.join()
    print(json.dumps(spent))


if __name__ == "__main__":
    work(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
