"""Whichever line an interruption strikes, nothing is paid twice and no ledger is lost."""

from __future__ import annotations

import gc
import signal
import sys
import time
import weakref
from contextlib import closing
from pathlib import Path
from random import Random

import httpx
import pytest

from tests.faults.flows import FLOWS
from tests.faults.lines import (
    KINDS,
    Lines,
    TheirLines,
    UntilItReturns,
    faults,
    interrupted,
    lines_of,
    strikes_of,
)
from tests.faults.lines import Trial as OneProof
from tests.transport.kit import Kind, Rig, run
from x402_mask import Cap, SQLiteLedger
from x402_mask._ledger.audit import verify
from x402_mask._ledger.carrier import yes

STRIDE = 67
"""Every so manieth line here, from another one for each kind; every line in the soak."""

pytestmark = [
    pytest.mark.timeout(300),
    # one that comes while the garbage collector closes something, or in a callback of it, is
    # Python's to report
    pytest.mark.filterwarnings(
        "ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning"
    ),
]


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_call_interrupted_at_any_line(kind: Kind, fast_path: Path) -> None:
    """The ledger counts what is out, is free for all, and an identical call shows the same proof."""
    count = lines_of(OneProof, kind, fast_path)
    assert count > 500
    lines = range(1 + KINDS.index(kind) * 5, count + 1, STRIDE)
    found = faults(interrupted(kind, fast_path, lines))
    assert not found, "\n".join(found)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_call_interrupted_in_its_last_lines(kind: Kind, fast_path: Path) -> None:
    """Each of those after the delivery was written down, by all that may come there."""
    count = lines_of(OneProof, kind, fast_path)
    lines = range(count - 24, count + 1)
    found = faults(interrupted(kind, fast_path, lines, strikes=strikes_of(kind), ledgers="file"))
    assert not found, "\n".join(found)


@pytest.mark.parametrize(("kind", "trial"), FLOWS, ids=str)
def test_a_token_or_a_tool_interrupted_at_any_line(
    kind: Kind, trial: type[OneProof], fast_path: Path
) -> None:
    """One price is taken and counted, and an identical call is served."""
    count = lines_of(trial, kind, fast_path)
    found = faults(interrupted(kind, fast_path, range(11, count + 1, 3 * STRIDE), trial=trial))
    assert not found, "\n".join(found)


@pytest.mark.parametrize("kind", KINDS[4:5], ids=str)
def test_memory_that_runs_out_in_a_ledgers_thread(kind: Kind, fast_path: Path) -> None:
    """Where an async call has its ledger written by another thread."""
    count = lines_of(OneProof, kind, fast_path, threads=True)
    lines = range(13, count + 1, STRIDE)
    strikes = (MemoryError,)
    found = faults(
        interrupted(kind, fast_path, lines, strikes=strikes, ledgers="file", threads=True)
    )
    assert not found, "\n".join(found)


def test_a_strike_among_garbage_harms_no_other_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """One in a finalizer, while Python makes the frame of a call that is to be traced."""
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)
    thresholds, struck = gc.get_threshold(), 0
    try:
        for number in range(1500):
            gc.set_threshold(1 + number % 50)
            lines = Lines(1)
            node = type("Node", (), {})  # a class refers to itself
            weakref.finalize(node, yes)
            del node
            with lines:
                for _ in range(60):
                    [None for _ in "a"]
            struck += lines.count
    finally:
        gc.set_threshold(*thresholds)
    assert struck > 50


@pytest.mark.parametrize("kind", [k for k in KINDS if k.plug == "client"], ids=str)
def test_a_call_interrupted_between_what_is_paid_and_its_caller(
    kind: Kind, fast_path: Path
) -> None:
    """In the HTTP library's own code: reading the answer, its cookies, the way back."""
    count = lines_of(UntilItReturns, kind, fast_path, TheirLines)
    lines = range(count, 1, -7)
    trials = interrupted(kind, fast_path, lines, trial=UntilItReturns, lines=TheirLines)
    found = faults(trials)
    assert not found, "\n".join(found)


def test_ctrl_c_by_a_real_signal(fast_path: Path) -> None:
    """At random moments, in whatever Python is doing then: the process lives on, as a notebook's."""
    rig = Rig(KINDS[0])
    rig.payer = rig.make_payer(
        ledger=SQLiteLedger(fast_path / "signals.db"), caps=[Cap("5000", per="total")]
    )
    transport = rig.wrap(rig.payer, rig.wire)
    got: list[int] = []

    def call(number: int) -> int:
        request = httpx.Request("POST", rig.sells(), json={"number": number})
        response = transport.handle_request(request)
        got.append(number)
        return int(response.status_code)

    begun = time.perf_counter()
    for number in range(20):
        assert call(-number - 1) == 200
    each = (time.perf_counter() - begun) / 20
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    hits, chance, until = 0, Random(4), time.monotonic() + 6
    try:
        for number in range(1, 3000):
            seen, first = len(rig.proofs), None
            try:
                try:
                    signal.setitimer(signal.ITIMER_REAL, chance.uniform(1e-5, each * 1.3))
                    first = call(number)
                finally:
                    signal.setitimer(signal.ITIMER_REAL, 0)
            except KeyboardInterrupt:
                hits += 1
            if got[-1] == number:  # the caller had its answer
                continue
            assert first is None
            assert call(number) == 200
            assert len(set(rig.proofs[seen:])) == 1
            if time.monotonic() > until:
                break
    finally:
        signal.signal(signal.SIGALRM, before)
    assert hits > 50
    assert verify(rig.payer.ledger).ok
    rig.payer.close()


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_what_the_last_step_loses_is_on_disk_at_once(
    kind: Kind, fast_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the ledger cannot be written from the event loop: a thread does it then."""
    from x402_mask._drive import exchange

    def lost(_: object) -> None:
        raise MemoryError

    for kind_of in (exchange.Exchange, exchange.AsyncExchange):
        monkeypatch.setattr(kind_of, "answer", lost)
    trial = OneProof(kind, Lines(0), fast_path)
    run(kind.colour, trial.interrupted)
    assert trial.first is MemoryError
    with closing(SQLiteLedger(trial.file)) as ledger:
        (paid,) = ledger.payments()
    assert paid.open
    trial.rig.payer.close()
