"""What was paid for on its way through a client that is not ours."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.faults.lines import TheirLines, UntilItReturns, faults, interrupted, lines_of
from tests.transport.kit import Kind, Rig
from x402_mask._drive.context import sending
from x402_mask._ledger.carrier import Carrier
from x402_mask._system.turns import caller

SYNC = Kind("httpx", "sync", "transport")

AFTER_THE_BODY = 30
"""So many lines of httpx come when the body was closed: nobody can tell them from the caller's."""


@pytest.mark.timeout(120)
def test_a_client_that_is_interrupted_before_the_body_was_read(fast_path: Path) -> None:
    """The identical call shows the same proof, wherever in the client the first one ended."""
    count = lines_of(UntilItReturns, SYNC, fast_path, TheirLines)
    lines = range(count - AFTER_THE_BODY, count - 300, -4)
    trials = list(interrupted(SYNC, fast_path, lines, trial=UntilItReturns, lines=TheirLines))
    assert sum(one.trial.first is KeyboardInterrupt for one in trials) > 50
    twice = [text for text in faults(trials) if "recorded as delivered" not in text]
    assert not twice, "\n".join(twice)


class Thing:
    """Something of the caller's."""


def test_nothing_of_the_caller_outlives_its_call() -> None:
    """The client's function is watched no longer than it runs, so that its callers are let go of."""
    rig = Rig(SYNC)
    client, url = rig.make_client(), rig.sells()

    def call() -> weakref.ref[Thing]:
        mine = Thing()
        assert client.post(url, json={"image": 1}).status_code == 200
        return weakref.ref(mine)

    assert call()() is None
    rig.payer.close()


class Breaks(httpx.SyncByteStream):
    """An answer that nobody paid for, and that breaks off."""

    def __iter__(self) -> Iterator[bytes]:
        yield b"x"
        raise httpx.ReadError("broke off")


@pytest.mark.parametrize("plug", ["transport", "client", "auth", "attach"])
def test_a_call_made_while_another_failure_is_handled_is_a_call_of_its_own(plug: str) -> None:
    """Its caller had the answer: the next identical call buys again."""
    rig = Rig(Kind("httpx", "sync", plug))
    client, url = rig.make_client(), rig.sells()
    with httpx.Client(
        transport=httpx.MockTransport(lambda _: httpx.Response(200, stream=Breaks()))
    ) as other:
        try:
            other.get("https://elsewhere.example/")
        except httpx.ReadError:
            assert client.post(url, json={"image": 1}).status_code == 200
    assert not any(paid.open for paid in rig.payer.payments())
    assert client.post(url, json={"image": 1}).status_code == 200
    assert len(set(rig.proofs)) == 2
    rig.payer.close()


def test_a_client_that_was_interrupted_takes_no_other_call_for_its_own() -> None:
    """Where the interruption came before it had taken itself away: later calls are delivered."""
    kept: list[Any] = []
    with suppress(KeyboardInterrupt):
        _interrupted_while_sending(kept)
    rig = Rig(Kind("httpx", "sync", "transport"))
    client, url = rig.make_client(), rig.sells()
    for _ in range(2):
        assert client.post(url, json={"image": 1}).status_code == 200
    assert len(set(rig.proofs)) == 2
    rig.payer.close()
    kept.pop().__exit__(None, None, None)


def _interrupted_while_sending(kept: list[Any]) -> None:
    here = caller(0)
    kept.append(sending(Carrier(lambda: here)))
    kept[0].__enter__()
    raise KeyboardInterrupt
