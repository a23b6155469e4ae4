"""Many threads, many processes, one cap: used in full and never passed."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tests.ledger.kit import (
    DEAD,
    NOW,
    ROOT,
    SERVICE,
    Store,
    end,
    held,
    limits,
    proof,
    reserved,
    together,
    used,
    want,
)
from tests.ledger.worker import TOTAL
from x402_mask import Cap, CapExceeded, LedgerError, SQLiteLedger
from x402_mask._ledger.audit import verify
from x402_mask._ledger.ledger import Ledger
from x402_mask._ledger.records import Busy, Reserved
from x402_mask._system.turns import Turn, caller

pytestmark = pytest.mark.timeout(90)


def test_threads_use_a_cap_in_full_and_never_pass_it(ledger: Ledger) -> None:
    cap = Cap("0.05", per="day")

    def buy(_: int) -> int:
        count = 0
        while count < 100:
            try:
                ledger.reserve(want(cap))
            except CapExceeded:
                return count
            count += 1
        raise AssertionError("the cap was passed")

    counts = together(16, buy)
    assert sum(counts) == 50, counts
    assert used(ledger, cap) == 50_000
    assert verify(ledger).problems == []


def test_threads_that_meet_at_the_first_call_stay_in_flight(store: Store) -> None:
    """Nobody's reservation is taken for a dead process's by a neighbour that sweeps."""
    cap = Cap("0.004", per="total")

    def buy(_: int) -> str:
        made = want(cap)
        try:
            store.ledger.reserve(made)
        except CapExceeded:
            return "refused"
        time.sleep(0.02)
        store.ledger.hold(made.id, proof(), now_us=NOW)
        return "held"

    answers = together(20, buy)
    assert sorted(map(str, answers)) == ["held"] * 4 + ["refused"] * 16


def test_whole_payments_from_many_threads_add_up(ledger: Ledger) -> None:
    cap = Cap("0.02", per="day", service=SERVICE)
    moves = ("settled", "unknown", "release", "void")

    def pay(number: int) -> None:
        for move in moves:
            made = reserved(ledger, cap, Cap(1, per="month"), micro=number + 1)
            if move == "release":
                ledger.release(made.id, "", now_us=NOW)
                continue
            ledger.hold(made.id, proof(), now_us=NOW)
            ledger.finish(made.id, end(move if move != "void" else "unknown"), now_us=NOW)
            if move == "void":
                assert ledger.resolve(made.id, "void", transaction=None, note="", now_us=DEAD)

    assert together(8, pay) == [None] * 8
    (spend,) = ledger.spend(limits(cap), now_us=NOW)
    assert spend.settled == spend.held == limits(Cap("0.000036", per="call"))[0].cap.limit
    assert verify(ledger).problems == []


@pytest.mark.parametrize("processes", [8])
def test_processes_use_a_cap_in_full_and_never_pass_it(shared: Store, processes: int) -> None:
    started = time.monotonic()
    reserved(shared.ledger, Cap(1, per="day"))
    shared.ledger.spend(limits(TOTAL), now_us=NOW)
    workers = [shared.worker("race", "4") for _ in range(processes)]
    try:
        for worker in workers:
            assert worker.line() == "ready"
        for worker in workers:
            worker.go()
        counts = [worker.line() for worker in workers]
        assert sum(map(sum, counts)) == 399, counts
        assert used(shared.ledger, TOTAL) == 400_000
    finally:
        for worker in workers:
            worker.__exit__()
    report = verify(shared.ledger)
    assert (report.problems, report.rows) == ([], 400)
    assert time.monotonic() - started < 60  # 4 s on an idle machine


@pytest.mark.parametrize("openers", [8])
def test_ledgers_that_are_made_at_the_same_time_are_one(shared: Store, openers: int) -> None:
    """Tables, key and counters are made once."""
    ledgers = [shared.again() for _ in range(openers)]
    cap = Cap("0.008", per="day")
    answers = together(openers, lambda n: ledgers[n].reserve(want(cap)))
    assert answers == [Reserved(new_payee=False)] * openers
    assert used(shared.ledger, cap) == 8000
    made, sent = held(ledgers[0])
    ledgers[0].finish(made.id, end("unknown"), now_us=NOW)
    assert ledgers[1].claim(made.id, now_us=NOW) == sent


# --- waiting --------------------------------------------------------------------------------------


def test_a_lock_held_for_a_second_is_waited_for(shared: Store) -> None:
    reserved(shared.ledger)
    with shared.locked():
        waiting = threading.Thread(target=lambda: reserved(shared.ledger))
        waiting.start()
        time.sleep(1)
        assert waiting.is_alive()
    waiting.join(10)
    assert not waiting.is_alive()
    assert used(shared.ledger, Cap(1, per="total")) == 2000


def test_a_lock_held_for_more_than_five_seconds_is_an_error(shared: Store) -> None:
    reserved(shared.ledger)
    with shared.locked():
        started = time.monotonic()
        with pytest.raises(LedgerError, match=r"locked for 5 s; nothing was sent"):
            shared.ledger.reserve(want())
        assert 4.9 < time.monotonic() - started < 8
        assert not shared.ledger.is_paused()  # readers wait for nobody
    reserved(shared.ledger)
    assert used(shared.ledger, Cap(1, per="total")) == 2000


def test_a_wait_can_be_shorter(store: Store) -> None:
    reserved(store.ledger)
    with store.locked():
        started = time.monotonic()
        with pytest.raises(LedgerError, match=r"locked for 0\.2 s"):
            store.ledger.reserve(want(), wait_s=0.2)
        assert time.monotonic() - started < 3


@pytest.mark.parametrize("call", ["reserve", "view", "claim", "finish", "release", "hold"])
def test_who_must_not_wait_is_told_to_come_again(store: Store, call: str) -> None:
    """``wait_s=0`` never blocks: not for the lock, and not to open the ledger for the first time."""
    ledger = store.ledger
    made, _ = held(ledger)
    calls: dict[str, Any] = {
        "reserve": lambda: ledger.reserve(want(), wait_s=0),
        "view": lambda: ledger.view("", SERVICE, now_us=NOW, wait_s=0),
        "claim": lambda: ledger.claim(made.id, now_us=NOW, wait_s=0),
        "finish": lambda: ledger.finish(made.id, end(), now_us=NOW, wait_s=0),
        "release": lambda: ledger.release(made.id, "", now_us=NOW, wait_s=0),
        "hold": lambda: ledger.hold(made.id, proof(), now_us=NOW, wait_s=0),
    }
    if store.kind == "sqlite" and call == "view":
        ledger.close()
    with store.locked(), pytest.raises(Busy):
        calls[call]()
    assert made.id in ledger._flying
    assert ledger.payments()[0].note == "in flight"


def test_a_new_ledger_is_not_opened_on_an_event_loop(tmp_path: Any) -> None:
    ledger = SQLiteLedger(tmp_path / "new.db")
    with pytest.raises(Busy):
        ledger.is_paused(wait_s=0)
    assert not ledger.path.exists()
    reserved(ledger)
    assert not ledger.is_paused(wait_s=0)
    ledger.close()


def test_a_finalizer_in_the_middle_of_a_call_does_not_spoil_it(store: Store) -> None:
    """Garbage is collected, and signals come, in a thread that is inside of a transaction."""
    ledger = store.ledger
    made, _ = held(ledger)

    def finishing(*args: Any) -> None:
        with pytest.raises(LedgerError, match="this very thread"):
            ledger.finish(made.id, end(), now_us=NOW)
        insert(*args)

    insert, ledger._insert = ledger._insert, finishing  # type: ignore[method-assign]
    reserved(ledger)
    ledger._insert = insert  # type: ignore[method-assign]
    assert verify(ledger).problems == []
    reserved(ledger)
    assert [p.state for p in ledger.payments()] == ["reserved", "reserved", "settled"]


# --- forks ----------------------------------------------------------------------------------------

FORK = """
import json, os, sys
from tests.ledger.kit import held, reserved, want, end, limits, used, NOW
from tests.ledger.worker import opened
from x402_mask import Cap

ledger, cap = opened(json.loads(sys.argv[1])), Cap("0.003", per="day")
made, sent = held(ledger, cap, operation="an operation")
to_parent, from_child = os.pipe()
to_child, from_parent = os.pipe()
pid = os.fork()
if pid == 0:
    try:
        mine = reserved(ledger, cap)
        os.write(from_child, b"x")
        os.read(to_child, 1)
        assert ledger.view("an operation", "mask-refinement", now_us=NOW).twin.busy
        ledger.hold(mine.id, sent, now_us=NOW)
        ledger.finish(mine.id, end(), now_us=NOW)
        ledger.close()
        os._exit(0)
    except BaseException as failure:
        print(repr(failure), flush=True)
        os._exit(1)
os.read(to_parent, 1)
again = opened(json.loads(sys.argv[1]))
assert used(again, cap) == 2000
ledger.close()  # what the child goes on to write must not be lost by this
reserved(again, cap)
again.close()
os.write(from_parent, b"x")
status = os.waitpid(pid, 0)[1]
print(json.dumps([status, sorted(p.state for p in ledger.payments()), used(ledger, cap)]))
"""


def test_parent_and_child_of_a_fork_share_the_ledger_and_lose_nothing(shared: Store) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORK, __import__("json").dumps(dict(shared.spec))],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.strip() == '[0, ["held", "reserved", "settled"], 3000]', done.stderr
    assert verify(shared.ledger).problems == []


FORK_INSIDE = """
import os, sys, threading
from tests.ledger.kit import reserved
from x402_mask import LedgerError, SQLiteLedger, MemoryLedger
import x402_mask._ledger.sqlite as sqlite

sqlite.WAIT_S = 0.1
ledger = MemoryLedger() if sys.argv[1] == "memory" else SQLiteLedger(sys.argv[1])
reserved(ledger)
inside, leave = threading.Event(), threading.Event()
def use():
    with ledger._transaction(5, write=False):
        inside.set()
        leave.wait(20)
if sys.argv[1] != "memory":
    thread = threading.Thread(target=use)
    thread.start()
    inside.wait(20)
pid = os.fork()
if pid == 0:
    for _ in range(2):
        try:
            reserved(ledger)
        except LedgerError as error:
            print(error, flush=True)
    os._exit(0)
os.waitpid(pid, 0)
leave.set()
reserved(ledger)
print(len(ledger.payments()))
"""


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
def test_a_child_that_cannot_have_the_ledger_is_told(tmp_path: Any, kind: str) -> None:
    """Forked in the middle of a call, or from a ledger in memory: never a second budget."""
    where = "memory" if kind == "memory" else str(tmp_path / "ledger.db")
    done = subprocess.run(
        [sys.executable, "-c", FORK_INSIDE, where],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    first, second, count = done.stdout.splitlines()
    assert first == second
    assert "fork" in first
    assert count == "2"


def left_behind() -> Turn:
    """What an interruption leaves of a function that waited for its turn."""
    return Turn(caller(0))


def test_who_waited_for_long_goes_first(tmp_path: Path) -> None:
    """Else a loop of 200 calls at once takes the lock each time before a waiter has woken up."""
    ledger = SQLiteLedger(tmp_path / "ledger.db")
    ledger.is_paused()
    waiting = ledger._turns._waiting
    somebody = Turn(None)
    waiting[somebody] = time.monotonic() - 0.1
    with pytest.raises(Busy):
        ledger.is_paused(wait_s=0)
    begun = time.monotonic()
    assert ledger.is_paused(wait_s=0.2) is False and time.monotonic() - begun > 0.15
    turn = threading.Timer(0.1, waiting.pop, [somebody])
    turn.start()
    begun = time.monotonic()
    assert ledger.is_paused(wait_s=5) is False and time.monotonic() - begun > 0.09
    turn.join()
    waiting[Turn(None)] = time.monotonic()  # just come: the quick go first
    assert ledger.is_paused(wait_s=0) is False
    waiting[left_behind()] = time.monotonic() - 0.1  # nobody waits for it any more
    assert ledger.is_paused(wait_s=0) is False
    ledger.close()
