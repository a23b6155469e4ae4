"""What an event loop waits for a thread at a disk, and what comes of an interruption meanwhile."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future

import anyio
import pytest

from x402_mask import MemoryLedger, SQLiteLedger
from x402_mask._drive import pace
from x402_mask._drive.perform import AsyncPerformer
from x402_mask._ledger.records import Busy

BACKENDS = pytest.mark.parametrize("backend", ["asyncio", "trio"])


class Brief(MemoryLedger):
    """A ledger of which one call is usually quick."""

    inline, brief = False, True


@pytest.fixture(autouse=True)
def rested() -> None:
    """A loop that has not waited for long."""
    time.sleep((pace.AT_ONCE_S + pace.IN_VAIN_S) / pace.SHARE)


def recorded(backend: str, call: Callable[[float], object]) -> object:
    """What comes of *call* at such a ledger."""
    return anyio.run(AsyncPerformer(Brief()).record, call, backend=backend)


def test_all_waits_together_are_bounded() -> None:
    """Of very many that come at once: the first is waited for, and then none."""
    work = Future[None]()
    begun = time.monotonic()
    assert not any(pace.awaited_briefly(work) for _ in range(400))
    assert time.monotonic() - begun < 400 * pace.AT_ONCE_S / 4


def test_waits_that_are_not_in_vain_are_bounded_too() -> None:
    """Four milliseconds each, of which no single one would be too long."""
    took = 0.0
    for _ in range(100):
        work = Future[None]()
        timer = threading.Timer(0.004, work.set_result, (None,))
        timer.start()
        begun = time.monotonic()
        pace.awaited_briefly(work)
        took += time.monotonic() - begun
        timer.join()
    begun = time.monotonic()
    done = Future[None]()
    done.set_result(None)
    assert all(pace.awaited_briefly(done) for _ in range(100)), "what is done is not waited for"
    assert time.monotonic() - begun < 1


@BACKENDS
def test_a_call_is_made_once_whether_or_not_it_is_quick(backend: str) -> None:
    """In another thread than the loop's, with nothing to wait for others."""
    for seconds in (0.0, 0.1):
        found: list[tuple[float, bool]] = []

        def call(wait_s: float, found: list[tuple[float, bool]] = found, s: float = seconds) -> str:
            time.sleep(s)
            found.append((wait_s, threading.current_thread() is threading.main_thread()))
            return "done"

        assert recorded(backend, call) == "done"
        assert found == [(0, False)]


@BACKENDS
def test_who_finds_it_busy_comes_again_with_patience(backend: str) -> None:
    waits: list[float] = []

    def call(wait_s: float) -> str:
        waits.append(wait_s)
        if wait_s == 0:
            raise Busy
        return "done"

    assert recorded(backend, call) == "done"
    assert waits[0] == 0 and 4 < waits[1] <= 5 and len(waits) == 2


@BACKENDS
@pytest.mark.parametrize("error", [TimeoutError, LookupError])
@pytest.mark.parametrize("seconds", [0.0, 0.1])
def test_what_it_raises_is_raised(backend: str, error: type[Exception], seconds: float) -> None:
    """A time-out of its own as well, which is none of the loop's."""

    def call(_: float) -> None:
        time.sleep(seconds)
        raise error("its own")

    with pytest.raises(error, match="its own"):
        recorded(backend, call)


@pytest.mark.parametrize("seconds", [0.0, 0.2])
def test_an_interruption_comes_when_the_call_is_done(
    seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal while it is waited for: else its caller would go on while it is still at it."""
    monkeypatch.setattr(pace, "AT_ONCE_S", 5.0)
    monkeypatch.setattr(pace._credit, "left_s", 5.0)  # so that it does not come in the loop's wait
    done: list[str] = []

    def call(_: float) -> None:
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        time.sleep(seconds)
        done.append("done")

    async def scenario() -> list[str]:
        with pytest.raises(KeyboardInterrupt):
            await AsyncPerformer(Brief()).record(call)
        return [*done]

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    loop = asyncio.new_event_loop()  # no runner, which would make a cancellation of it
    try:
        assert loop.run_until_complete(scenario()) == ["done"]
    finally:
        loop.close()
        signal.signal(signal.SIGINT, before)


def test_which_ledgers_are_waited_for_so() -> None:
    assert SQLiteLedger.brief and not SQLiteLedger.inline
    assert MemoryLedger.inline
