"""A cap that binds nothing is said, once, with the first call that asks for money (contract 3)."""

from __future__ import annotations

from typing import Any

import pytest

from tests.core.hand import SHOP, Hand
from x402_mask import Cap, MemoryLedger
from x402_mask._flow.records import CallState
from x402_mask._ledger.ledger import Ledger
from x402_mask.errors import LedgerError

CAPS = [
    Cap(1, per="day"),
    Cap(2, per="day", service="mask-refinment"),
    Cap(3, per="call", service=SHOP),
]


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The warnings about names."""
    found = [record for record in caplog.records if "has ever named" in record.getMessage()]
    caplog.clear()
    return [f"{record.levelname}: {record.getMessage()}" for record in found]


def test_it_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    """Of the caps that neither this call nor one before it names."""
    hand = Hand(options={"caps": CAPS})
    hand.call()
    (warning,) = told(caplog)
    assert warning.startswith("WARNING: ") and "'mask-refinment'" in warning and "$2" in warning
    hand.fingerprint = "cd" * 32
    hand.call()
    assert told(caplog) == []


def test_nothing_is_said_of_what_was_named_before(caplog: pytest.LogCaptureFixture) -> None:
    """On this ledger, by whatever payer; in any spelling."""
    ledger = MemoryLedger()
    Hand(options={"ledger": ledger}).call()
    caps = [Cap(1, per="day", service=SHOP), Cap(1, per="day", service="mask-refinement")]
    url = f"{SHOP}/api/tools/Mask-Refinement"
    hand = Hand(options={"ledger": ledger, "caps": [Cap(1, per="day"), *caps]})
    hand.call(url=url, state=CallState(origin=SHOP, url=url))
    assert told(caplog) == []


def test_a_ledger_that_cannot_be_asked_is_asked_again(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The call says what is wrong with it, and the next one compares the names."""

    def broken(self: Ledger, limits: Any, *, wait_s: float) -> Any:
        raise LedgerError("locked")

    hand = Hand(options={"caps": CAPS})
    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "unnamed", broken)
        hand.call()
    assert told(caplog) == []
    hand.fingerprint = "cd" * 32
    hand.call()
    assert len(told(caplog)) == 1
