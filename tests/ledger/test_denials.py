"""The owner's spoken no holds for a minute, for every process on the ledger."""

from __future__ import annotations

from tests.ledger.kit import NOW, SECOND, Store
from x402_mask._ledger.audit import verify
from x402_mask._ledger.ledger import Ledger

MINUTE = 60 * SECOND


def test_a_no_holds_for_a_minute(ledger: Ledger) -> None:
    assert ledger.denied_for("a", now_us=NOW) == 0
    ledger.deny("a", now_us=NOW)
    assert ledger.denied_for("a", now_us=NOW) == MINUTE
    assert ledger.denied_for("a", now_us=NOW + MINUTE - 1) == 1
    assert ledger.denied_for("a", now_us=NOW + MINUTE) == 0
    assert ledger.denied_for("b", now_us=NOW) == 0
    assert verify(ledger).ok


def test_another_no_begins_anew(ledger: Ledger) -> None:
    for second in (0, 30, 90):
        ledger.deny("a", now_us=NOW + second * SECOND)
    assert ledger.denied_for("a", now_us=NOW + 149 * SECOND) == SECOND
    assert ledger.denied_for("a", now_us=NOW + 150 * SECOND) == 0


def test_a_clock_that_was_set_back_makes_no_longer_one(ledger: Ledger) -> None:
    ledger.deny("a", now_us=NOW)
    assert ledger.denied_for("a", now_us=NOW - SECOND) == 0


def test_others_hear_of_it_and_it_outlives_them(shared: Store) -> None:
    other = shared.again()
    assert other.denied_for("a", now_us=NOW) == 0
    shared.ledger.deny("a", now_us=NOW)
    assert other.denied_for("a", now_us=NOW) == MINUTE
    other.close()
    shared.ledger.close()
    assert shared.again().denied_for("a", now_us=NOW) == MINUTE


def test_what_is_past_is_forgotten(shared: Store) -> None:
    for number in range(5):
        shared.ledger.deny(str(number), now_us=NOW)
    shared.ledger.deny("last", now_us=NOW + 2 * MINUTE)
    assert shared.sql("SELECT operation FROM denials") == [("last",)]
