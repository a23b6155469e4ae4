"""What a reservation costs, by how many payments the ledger holds and how many write at once."""

from __future__ import annotations

import secrets
import statistics
import threading
import time
from pathlib import Path
from typing import Any

from x402_mask import Cap, SQLiteLedger
from x402_mask._ledger import Reservation
from x402_mask._windows import compile_caps

LIMITS = compile_caps(
    [Cap("0.25", per="call"), Cap("1000000000", per="day"), Cap("1000000000", per="total")], str
)


def reservation(number: int) -> Reservation:
    return Reservation(
        id="pay_" + secrets.token_hex(16), at=time.time_ns() // 1000, service="mask-refinement",
        origin="https://seller.example", operation=f"{number}-{secrets.token_hex(12)}",
        keyed=False, route="x402", micro=200000, amount=200000, asset="0x" + "1" * 40,
        network="eip155:8453", payer="0x" + "2" * 40, pay_to="0x" + "3" * 40, limits=LIMITS,
        pin_payee=False,
    )  # fmt: skip


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
            ledger.reserve(want, durable=True)
            times[at].append(time.perf_counter() - begun)
    return times


def by_size(folder: Path, sizes: tuple[int, ...], rounds: int = 600) -> dict[int, float]:
    """Median microseconds of a durable reservation by payments on the ledger."""
    ledgers = []
    for size in sizes:
        ledger = SQLiteLedger(folder / f"size-{size}.db")
        if size:
            fill(ledger, size)
        ledgers.append(ledger)
    times = reserve_times(ledgers, rounds + 50)
    for ledger in ledgers:
        ledger.close()
        ledger.path.unlink()
    return {
        size: statistics.median(spent[50:]) * 1e6 for size, spent in zip(sizes, times, strict=True)
    }


def throughput(ledger: Any, writers: int, seconds: float = 3.0) -> tuple[float, float]:
    """Durable reservations per second, and the median microseconds of one, with many writers."""
    spent: list[float] = []
    until = time.monotonic() + seconds

    def write() -> None:
        while time.monotonic() < until:
            begun = time.perf_counter()
            ledger.reserve(reservation(0), durable=True)
            spent.append(time.perf_counter() - begun)

    threads = [threading.Thread(target=write) for _ in range(writers)]
    begun = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(spent) / (time.monotonic() - begun), statistics.median(spent) * 1e6
