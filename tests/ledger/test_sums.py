"""Counters that do not say what was spent are found when a ledger is opened, however long its past."""

from __future__ import annotations

import random
import sqlite3
import threading
import time
from contextlib import closing, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.ledger.kit import (
    DAY,
    HOUR,
    NOW,
    SERVICE,
    Store,
    end,
    held,
    in_state,
    limits,
    proof,
    refusal,
    reserved,
    sqlite_store,
    used,
    want,
)
from tests.ledger.test_schema import as_before
from x402_mask import Cap, CapExceeded, LedgerError, MemoryLedger
from x402_mask._ledger import sums as _sums
from x402_mask._ledger.audit import verify
from x402_mask._ledger.ledger import Ledger
from x402_mask._ledger.restore import accept, standing

CAPS = (
    Cap(1, per="total"),
    Cap(1, per="month"),
    Cap(1, per="day"),
    Cap(1, per="hour"),
    Cap(1, per=timedelta(hours=5), service=SERVICE),
)


def lived(ledger: Ledger) -> None:
    """Every kind of end, now and long ago."""
    for at in (NOW - 400 * DAY, NOW - DAY, NOW - HOUR, NOW):
        for state in ("reserved", "held", "settled", "seen", "released", "void"):
            in_state(ledger, state, *CAPS, at=at)


CHANGED: dict[str, tuple[str, str]] = {
    "a total emptied": ("UPDATE counters SET held=0, settled=0 WHERE unit='total'", "counters"),
    "a month made less": ("UPDATE counters SET held=held-1 WHERE unit='month'", "counters"),
    "held made settled": (
        "UPDATE counters SET held=0, settled=settled+held WHERE unit='total'",
        "counters",
    ),
    "all counters gone": ("DELETE FROM counters", "counters"),
    "a counter gone": ("DELETE FROM counters WHERE unit='total'", "counters"),
    "a counter moved": (
        "UPDATE counters SET bucket=bucket-1 WHERE unit='month' AND held>0",
        "counters",
    ),
    "a counter more": ("INSERT INTO counters VALUES ('*', 'hour', 1000000, 0, -5)", "counters"),
    "a counter stopped": ("DELETE FROM meters WHERE unit='total'", "counters"),
    "a counter begun anew": ("UPDATE meters SET summed=0 WHERE unit='total'", "counters"),
    "another service's": ("UPDATE counters SET scope='other' WHERE scope<>'*'", "counters"),
    "the sum with it": (
        "UPDATE counters SET held=0; UPDATE history SET sums='0:0'",
        "row .* is not as it was",
    ),
    "no sum": ("UPDATE counters SET held=0; UPDATE history SET sums=NULL", "row .* is not as it"),
    "the last row": (
        "UPDATE history SET data='{}' WHERE seq=(SELECT MAX(seq) FROM history)",
        "row .* is not as",
    ),
    "a payment made cheap": (
        f"UPDATE payments SET micro=1 WHERE state='held' AND at={NOW}",
        "does not hold what",
    ),
    "a payment set free": (
        f"UPDATE payments SET state='void' WHERE state='settled' AND at={NOW}",
        "does not hold what",
    ),
    "a payment gone": (f"DELETE FROM payments WHERE state='held' AND at={NOW}", "does not hold"),
    "a payment moved back": (
        f"UPDATE payments SET at={NOW - DAY} WHERE at={NOW} AND state='held'",
        "does not hold what",
    ),
    "a payment of another service": (
        f"UPDATE payments SET service='x' WHERE at={NOW} AND state='held'",
        "does not hold what",
    ),
}


@pytest.mark.parametrize("what", CHANGED)
def test_changed_counters_are_found_when_the_ledger_is_opened(shared: Store, what: str) -> None:
    lived(shared.ledger)
    shared.ledger.close()
    statements, sentence = CHANGED[what]
    for statement in statements.split(";"):
        shared.sql(statement)
    failure = refusal(shared.again(), want(*CAPS))
    assert type(failure) is LedgerError
    assert sentence.partition(" ")[0] in str(failure) and "Nothing is paid from it" in str(failure)
    with pytest.raises(LedgerError, match=sentence):
        shared.again().payments()


@pytest.mark.parametrize("seed", range(6))
def test_no_honest_life_is_refused_at_the_next_opening(shared: Store, seed: int) -> None:
    """Calls of several kinds, caps that come and go, clocks that go back, old ends written late."""
    rng, now, made = random.Random(seed), NOW, list[Any]()
    ledger = shared.ledger
    pool = [*CAPS, Cap(1, per="day", service="b"), Cap("0.003", per=timedelta(minutes=5))]
    for step in range(40):
        now += rng.choice((0, HOUR, 3 * DAY, 40 * DAY, -HOUR, -2 * DAY))
        if step % 10 == 9:
            ledger.close()
            ledger = shared.again()
        with suppress(LedgerError, CapExceeded, IndexError):
            what = rng.randrange(6)
            if what < 3:
                caps = (Cap(100, per="call"), *rng.sample(pool, 3), Cap(100, per="day"))
                made.append(
                    reserved(ledger, *caps, at=now, service=rng.choice((SERVICE, "b", "B")))
                )
            elif what == 3:
                ledger.hold(rng.choice(made).id, proof(), now_us=now)
            elif what == 4:
                ledger.finish(rng.choice(made).id, end(), now_us=now)
            else:
                ledger.spend(limits(*rng.sample(pool, 2)), now_us=now)
                with suppress(AssertionError):
                    ledger.resolve(
                        rng.choice(made).id,
                        rng.choice(("settled", "void")),
                        transaction=None,
                        note="",
                        now_us=now,
                    )
    ledger.close()
    assert shared.again().payments()
    assert verify(shared.again()).problems == []


def test_a_counter_that_a_new_cap_began_is_in_the_sum_with_its_first_payment(
    shared: Store,
) -> None:
    in_state(shared.ledger, "settled")
    cap = Cap(1, per="month")
    shared.ledger.spend(limits(cap), now_us=NOW)
    assert shared.sql("SELECT summed FROM meters WHERE unit='month'") == [(0,)]
    again = shared.again()
    assert used(again, cap) == 1000
    reserved(again, cap)
    assert shared.sql("SELECT summed FROM meters WHERE unit='month'") == [(1,)]
    shared.sql("UPDATE counters SET settled=0 WHERE unit='month'")
    assert isinstance(refusal(shared.again(), want(cap)), LedgerError)


@pytest.mark.parametrize("version", [1, 2])
def test_an_older_ledger_gets_a_sum_with_its_next_row(shared: Store, version: int) -> None:
    lived(shared.ledger)
    as_before(shared, version)
    ledger = shared.again()
    before = used(ledger, CAPS[0])
    reserved(ledger, *CAPS)
    assert used(shared.again(), CAPS[0]) == before + 1000
    assert verify(ledger).problems == []
    shared.sql("UPDATE counters SET settled=0, held=0 WHERE unit='total'")
    assert isinstance(refusal(shared.again(), want(*CAPS)), LedgerError)


def test_changed_counters_can_be_audited_and_accepted(shared: Store) -> None:
    """The report tells which; the owner goes on with what the payments add up to, and what he says."""
    lived(shared.ledger)
    before = used(shared.ledger, CAPS[0])
    shared.ledger.close()
    shared.sql("UPDATE counters SET held=0, settled=0 WHERE unit='total'")
    ledger = shared.again()
    assert any("counter */total/0" in problem for problem in verify(ledger).problems)
    assert isinstance(refusal(ledger, want(*CAPS)), LedgerError)  # reading let nobody in
    found = standing(ledger)
    assert found.wrong is not None and "Nothing is paid from it" in found.wrong
    accept(ledger, 5000, now_us=NOW)
    assert used(ledger, CAPS[0]) == before + 5000
    reserved(ledger, *CAPS)
    assert used(shared.again(), CAPS[0]) == before + 6000
    assert verify(ledger).problems == []


def test_a_change_without_a_row_of_history_is_not_committed() -> None:
    """Else the next opening would call an honest ledger changed."""
    ledger = MemoryLedger()
    reserved(ledger)
    with pytest.raises(LedgerError, match="without a row of history"):  # noqa: SIM117
        with ledger._transaction(5) as db:
            db.changes.append(("*", "total", 0, 0, 0, 0, 1))
    reserved(ledger)


def test_opening_adds_up_what_is_new_and_not_the_past(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After many buckets the sum begins with newer ones, and holds those all the same."""
    monkeypatch.setattr(_sums, "BUCKETS_MAX", 50)
    store = sqlite_store(tmp_path / "ledger.db")
    caps = (Cap(1, per="hour"), Cap(1, per="total"))
    for hours in range(60):
        in_state(store.ledger, "settled", *caps, at=NOW + hours * HOUR)
    store.ledger.close()
    read: list[int] = []
    whole = _sums._read

    def counted(*args: Any) -> Any:
        found = whole(*args)
        read.append(len(found))
        return found

    monkeypatch.setattr(_sums, "_read", counted)
    store.again().payments()
    assert max(read) > 50
    read.clear()
    store.again().payments()
    assert max(read) < 10
    ledger = store.again()
    in_state(ledger, "settled", *caps, at=NOW + 60 * HOUR)
    assert used(store.again(), caps[1]) == 61_000
    assert verify(ledger).problems == []
    store.sql("UPDATE counters SET settled=settled-1 WHERE unit='total'")
    assert isinstance(refusal(store.again(), want(*caps)), LedgerError)


def test_a_million_payments_are_not_read_at_an_opening(tmp_path: Path) -> None:
    """As far as a test can: sixty thousand, and the total of all of them is still held to."""
    path = tmp_path / "ledger.db"
    store = sqlite_store(path)
    held(store.ledger, Cap(10, per="total"))
    store.ledger.close()

    def opening() -> float:
        began = time.perf_counter()
        ledger = store.again()
        ledger.is_paused()
        took = time.perf_counter() - began
        ledger.close()
        return took

    short = min(opening() for _ in range(5))
    with closing(sqlite3.connect(path)) as raw:
        raw.executescript(
            "WITH RECURSIVE n(i) AS (SELECT 2 UNION ALL SELECT i+1 FROM n WHERE i<60000)"
            " INSERT INTO payments (seq, id, at, updated, state, service, origin, route, micro,"
            " amount, operation) SELECT i, 'p' || i, i, i, 'released', 's', 'o', 'x402', 1, '1', ''"
            " FROM n"
        )
    assert min(opening() for _ in range(5)) < 5 * short + 0.05
    store.sql("UPDATE counters SET held=0 WHERE unit='total'")
    with pytest.raises(LedgerError, match="counters"):
        opening()


def test_a_reader_that_connects_leaves_the_sum_to_whoever_writes(
    shared: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does it take what the writer has appended for its own, and call it the head."""
    ledger, found = shared.ledger, list[bool]()
    cap = Cap(5, per="day")
    for n in range(3):
        reserved(ledger, cap, at=NOW - n * DAY)
    ledger.close()
    monkeypatch.setattr(_sums, "BUCKETS_MAX", 0)
    with ledger._transaction(10) as db:
        ledger._write(db, NOW, None, "resumed", {})
        pending = ledger.past.head.pending
        reader = shared.again() if shared.kind == "sqlite" else ledger
        thread = threading.Thread(target=lambda: found.append(reader.is_paused(wait_s=2)))
        thread.start()
        thread.join(30)
        assert found == [False]
        assert ledger.past.head.pending == pending
    assert verify(ledger).ok


def test_what_was_opened_to_be_looked_at_is_not_written_after_an_interruption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = sqlite_store(tmp_path / "ledger.db")
    reserved(store.ledger)
    store.ledger.close()
    store.sql("UPDATE counters SET held=0")
    ledger = store.again()

    def struck(*_: object) -> None:
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(ledger, "_committed", struck)
    with pytest.raises(KeyboardInterrupt):
        standing(ledger)
    with pytest.raises(LedgerError, match="counters"):
        ledger.set_paused(False, now_us=NOW)
    ledger.close()
