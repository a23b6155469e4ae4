"""A turn is held by a function that runs, and by nobody once that has ended, however it did."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from tests.ledger.kit import Store, held, together
from x402_mask._ledger import sqlite
from x402_mask._ledger.ledger import Ledger
from x402_mask._system import turns as _turns
from x402_mask._system.turns import Mutex, Turn, Turns, caller, is_running
from x402_mask.errors import LedgerError

FILES = {str(Path(sqlite.__file__)), str(Path(_turns.__file__))}


class Interrupted(BaseException):
    """Ctrl-C, or memory that ran out."""


@contextmanager
def interrupted_at(line: int) -> Iterator[list[str]]:
    """Raise at the *line*-th line that is executed of turns and of the SQLite ledger."""
    left, struck = [line], list[str]()

    def at_line(frame: FrameType, event: str, _: Any) -> Any:
        if event == "line" and not struck:
            left[0] -= 1
            if left[0] == 0:
                struck.append(f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}")
                raise Interrupted
        return at_line

    def enter(frame: FrameType, *_: Any) -> Any:
        return at_line if frame.f_code.co_filename in FILES else None

    sys.settrace(enter)
    try:
        yield struck
    finally:
        sys.settrace(None)


def elsewhere(work: Callable[[], Any]) -> Any:
    """What *work* returns in another thread, which must not take long."""
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(work()))
    thread.start()
    thread.join(20)
    assert found, "it hangs, or failed"
    return found[0]


def test_a_ledger_that_was_interrupted_at_any_line_goes_on(store: Store) -> None:
    """By the same thread, by another, and while the interruption itself is still looked at."""
    if store.kind == "postgres":
        pytest.skip("a connection that is left in a transaction is ended by the server, in 15 s")
    ledger, line, kept = store.ledger, 0, list[BaseException]()
    held(ledger)
    while True:
        line += 1
        try:
            with interrupted_at(line) as struck:
                held(ledger)
        except Interrupted as failure:
            kept.append(failure)  # and with it every function that it went through
        if not struck:
            break
        begun = time.monotonic()
        assert elsewhere(lambda: ledger.is_paused(wait_s=2)) is False, struck
        held(ledger)
        assert time.monotonic() - begun < 2, struck
    assert line > 60 and len(kept) > 50
    report = [p for p in ledger.payments(limit=10_000) if p.state not in ("reserved", "held")]
    assert not report, "nothing else was made of it"


def test_nobody_takes_the_turn_of_a_function_that_runs() -> None:
    """Eight threads that count in steps which the others could come between."""
    turns, total = Turns(), [0]

    def count(_: int) -> int:
        for _ in range(300):
            turn = Turn(caller(0))
            assert turns.take(turn, 30)
            before = total[0]
            if before % 50 == 0:
                time.sleep(0.001)
            total[0] = before + 1
            turns.give_up(turn)
        return 300

    assert sum(together(8, count)) == total[0] == 2400


def test_a_function_that_ended_has_no_turn() -> None:
    """Neither one that returned without a word, nor one that waited and was interrupted."""
    turns = Turns()

    def forgetful() -> None:
        assert turns.take(Turn(caller(0)), 0)
        assert turns.is_mine

    def busy(_: int = 0) -> bool:
        return turns.take(Turn(caller(0)), 0)

    forgetful()
    assert not turns.is_mine and busy()
    kept = Turn(None)
    assert turns.take(kept, 0) and not busy() and not elsewhere(busy)
    turns.give_up(kept)
    assert elsewhere(busy)
    never = Turn(caller(0))
    turns.give_up(never)  # it was not taken: nothing happens
    assert turns.take(Turn(caller(0)), 0)


def test_one_that_waits_is_woken() -> None:
    turns, first = Turns(), Turn(None)
    assert turns.take(first, 0)
    threading.Timer(0.1, turns.give_up, [first]).start()
    begun = time.monotonic()
    assert turns.take(Turn(None), 30)
    assert 0.05 < time.monotonic() - begun < 10


def test_it_lasts_as_long_as_whoever_says_with() -> None:
    """However many generators and exit stacks stand between."""
    turns = Turns()

    @contextmanager
    def taken() -> Iterator[None]:
        turn = Turn(caller(1))
        assert turns.take(turn, 0)
        yield
        turns.give_up(turn)

    @contextmanager
    def around() -> Iterator[None]:
        with taken():
            yield

    def user() -> None:
        with around():
            assert turns.is_mine
        assert not turns.is_mine
        with ExitStack() as stack:
            stack.enter_context(around())
            assert turns.is_mine
        assert not turns.is_mine

    user()


def test_what_runs_and_what_does_not() -> None:
    def ended() -> FrameType:
        frame = caller(0)
        assert frame is not None and is_running(frame)
        return frame

    assert not is_running(ended())
    frame = caller(0)
    assert frame is not None
    assert elsewhere(lambda: is_running(frame)) is True


def test_a_mutex_is_free_after_any_end_of_its_lines() -> None:
    mutex, inside = Mutex(), [0]

    def work(_: int = 0) -> int:
        with mutex:
            inside[0] += 1
            assert inside[0] == 1
            inside[0] -= 1
        return 1

    def leave() -> None:
        mutex.__enter__()  # and no exit: interrupted at just that line

    leave()
    assert elsewhere(work) == 1
    with suppress(ZeroDivisionError), mutex:
        raise ZeroDivisionError
    assert sum(together(8, work)) == 8


def test_a_handler_in_the_middle_of_a_call_is_told(ledger: Ledger) -> None:
    """A signal handler of the same thread cannot wait for what it interrupts."""

    def handler() -> None:
        with pytest.raises(LedgerError, match="this very thread"):
            ledger.is_paused(wait_s=1)

    with ledger._transaction(1):
        handler()
    assert ledger.is_paused() is False


def test_threads_take_turns_in_the_order_in_which_they_came() -> None:
    """... once they have waited for long; and one that gave up waiting is not waited for."""
    turns, first, order = Turns(), Turn(None), list[int]()

    def come(number: int, patience: float) -> None:
        turn = Turn(caller(0))
        if turns.take(turn, patience):
            order.append(number)
        else:
            order.append(-number)
        turns.give_up(turn)

    assert turns.take(first, 1)
    threads = [
        threading.Thread(target=come, args=(n, 0.01 if n in (2, 5) else 20)) for n in range(1, 7)
    ]
    for count, thread in enumerate(threads, 1):
        thread.start()
        deadline = time.monotonic() + 5
        while len(turns._waiting) + len(order) < count and time.monotonic() < deadline:
            time.sleep(0.001)
    while len(order) < 2:
        time.sleep(0.001)
    time.sleep(0.01)
    turns.give_up(first)
    for thread in threads:
        thread.join(10)
    assert order == [-2, -5, 1, 3, 4, 6]
    assert not turns.is_mine and turns.take(Turn(None), 0)


def test_an_interruption_while_waiting_for_the_turn_leaves_no_ticket() -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    turns, first = Turns(), Turn(None)
    assert turns.take(first, 0)
    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGUSR1)).start()
        with pytest.raises(KeyboardInterrupt):
            turns.take(Turn(caller(0)), 20)
    finally:
        signal.signal(signal.SIGUSR1, before)
    turns.give_up(first)
    assert not turns._waiting and elsewhere(lambda: turns.take(Turn(None), 0))
