"""What an interruption leaves of a fleet's ledger while its traceback is still kept, and silence.

A notebook, a debugger or a task that nobody asks for its result keeps the frames of a call that was
interrupted: nothing may wait for them to be thrown away.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from tests.faults.lines import Lines, elsewhere
from tests.ledger.conftest import KEY
from tests.ledger.kit import NOW, SERVICE, WIDE, held, proof, reserved, want
from tests.ledger.proxy import Proxy
from tests.support.postgres import Postgres
from x402_mask import LedgerError, PostgresLedger
from x402_mask._ledger.audit import verify

pytestmark = pytest.mark.timeout(120)

CALLS: dict[str, Callable[[PostgresLedger], object]] = {
    "view": lambda ledger: ledger.view(want().operation, SERVICE, now_us=NOW),
    "reserve": lambda ledger: ledger.reserve(want(WIDE), prove=proof, wait_s=5),
    "pause": lambda ledger: ledger.set_paused(False, now_us=NOW),
}


@pytest.fixture
def host(dsn: str) -> Iterator[Callable[[], PostgresLedger]]:
    """Return what makes a ledger with connections of its own, as another process has."""
    made: list[PostgresLedger] = []

    def new() -> PostgresLedger:
        made.append(PostgresLedger(dsn, key=KEY))
        return made[-1]

    yield new
    for one in made:
        one.close()


@pytest.mark.parametrize("fresh", [False, True], ids=["connected", "connecting"])
@pytest.mark.parametrize("name", CALLS)
def test_what_an_interruption_left_is_taken_from_it(
    host: Callable[[], PostgresLedger], name: str, fresh: bool
) -> None:
    """Whatever line it struck: neither the lock of all writers, nor room for a connection."""
    ledger, other, call = host(), host(), CALLS[name]
    reserved(ledger)
    reserved(other)
    kept: list[BaseException] = []
    wrong: list[str] = []
    for at in itertools.count(1, 211 if fresh else 2):
        if fresh:
            ledger.close()
        lines = Lines(at)
        try:
            with lines:
                call(ledger)
        except BaseException as failure:  # that is the point
            kept.append(failure)
        if not lines.where:
            break  # the call has no line of that number
        begun = time.monotonic()
        if elsewhere(lambda: reserved(ledger)) is None:
            wrong.append(f"{lines.where}: of no use to its own process")
        if elsewhere(lambda: reserved(other)) is None or time.monotonic() - begun > 2:
            wrong.append(f"{lines.where}: locked for others")
    assert len(kept) > 3
    assert not wrong, "\n".join(wrong)
    assert verify(other).ok


def test_a_lock_left_behind_is_given_back_though_the_process_asks_no_more(
    host: Callable[[], PostgresLedger], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its thread that renews the lease finds it; else the server does, before a waiter gives up."""
    ledger, other = host(), host()
    held(ledger)
    reserved(other)

    def strike(*args: object) -> object:
        raise KeyboardInterrupt

    monkeypatch.setattr("x402_mask._ledger.postgres_pool.roll_back", lambda raw: None)
    monkeypatch.setattr("x402_mask._ledger.postgres_pool._Slot.tidy", strike)
    monkeypatch.setattr(ledger, "_insert", strike)
    with pytest.raises(KeyboardInterrupt) as kept:
        ledger.reserve(want(WIDE))
    monkeypatch.undo()
    other.reserve(want(WIDE), wait_s=5)
    assert kept.value.__traceback__ is not None


@pytest.mark.parametrize("connected", [True, False], ids=["connected", "connecting"])
def test_a_silent_server_keeps_a_caller_no_longer_than_it_would_wait(
    dsn: str, postgres: Postgres, host: Callable[[], PostgresLedger], connected: bool
) -> None:
    """At whichever statement it falls silent; and those that come meanwhile wait no longer."""
    reserved(host())
    with Proxy(postgres.folder) as proxy:
        for at in (1, 4, 9):
            ledger = PostgresLedger(dsn.replace(str(postgres.folder), str(proxy.folder)), key=KEY)
            if connected:
                reserved(ledger)
            proxy.at, proxy.cut, proxy.asked = at, "silence", 0
            took = _seconds(ledger), _Elsewhere(ledger)
            assert took[0] < 4
            assert took[1].seconds() < 4
            assert proxy.cut is None
            proxy.hang_up()
            ledger.close()


def _seconds(ledger: PostgresLedger) -> float:
    begun = time.monotonic()
    with suppress(LedgerError):
        ledger.reserve(want(WIDE), prove=proof, wait_s=1)
    return time.monotonic() - begun


class _Elsewhere:
    """The same in another thread."""

    def __init__(self, ledger: PostgresLedger) -> None:
        self._took: list[float] = []
        self._thread = threading.Thread(target=lambda: self._took.append(_seconds(ledger)))
        self._thread.start()

    def seconds(self) -> float:
        self._thread.join(30)
        return self._took[0] if self._took else 30.0
