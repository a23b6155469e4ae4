"""What a payment counts for besides its own service: on every ledger, durably (contract 3)."""

from __future__ import annotations

from typing import Any

import pytest

from tests.ledger.kit import DEAD, NOW, Store, held, in_state, limits, refusal, reserved, used, want
from x402_mask import Cap, CapExceeded
from x402_mask._ledger.audit import verify
from x402_mask._ledger.ledger import Ledger

DEAR = Cap("0.002", per="day", service="dear")
ALL = Cap(1, per="day")
SPELLED: dict[str, Any] = {"service": "https://seller.example", "also": ("dear", "other")}


def test_a_payment_counts_for_everything_that_it_may_be(ledger: Ledger) -> None:
    """Its own service, and each that its URL may be read as."""
    reserved(ledger, ALL, DEAR, **SPELLED)
    assert used(ledger, DEAR) == used(ledger, ALL) == 1000
    assert used(ledger, Cap(1, per="day", service="other")) == 1000
    assert used(ledger, Cap(1, per="day", service="oth")) == 0
    reserved(ledger, ALL, DEAR, service="dear")
    error = refusal(ledger, want(ALL, DEAR, **SPELLED))
    assert isinstance(error, CapExceeded) and error.cap == DEAR
    error = refusal(ledger, want(ALL, DEAR, service="dear"))
    assert isinstance(error, CapExceeded) and error.cap == DEAR


def test_a_cap_that_it_is_read_to_is_no_permission(ledger: Ledger) -> None:
    """What is named nowhere is refused, however it may be read."""
    assert refusal(ledger, want(DEAR, **SPELLED)).reason == "no_cap"  # type: ignore[attr-defined]


def test_a_call_cap_counts_too(ledger: Ledger) -> None:
    """It reads no counter, and bounds each payment."""
    small = Cap("0.0005", per="call", service="other")
    assert isinstance(refusal(ledger, want(ALL, small, **SPELLED)), CapExceeded)


@pytest.mark.parametrize("per", ["hour", "day", "month", "total"])
@pytest.mark.parametrize("state", ["reserved", "held", "settled", "seen", "released", "void"])
def test_a_cap_added_later_counts_what_was_spent(ledger: Ledger, state: str, per: Any) -> None:
    """From the payments, in every state; and what they do later as well."""
    in_state(ledger, state, ALL, **SPELLED)
    moving, _ = held(ledger, ALL, **SPELLED)
    counts = 0 if state in ("released", "void") else 1000
    later = Cap(1, per=per, service="dear")
    assert used(ledger, later) == counts + 1000
    ledger.resolve(moving.id, "void", transaction=None, note="", now_us=DEAD)
    assert used(ledger, later) == counts
    assert verify(ledger).problems == []


def test_every_process_counts_alike(shared: Store) -> None:
    """It is on the ledger, not in the memory of who paid."""
    made = reserved(shared.ledger, ALL, **SPELLED)
    shared.ledger.close()
    ledger = shared.again()
    assert used(ledger, DEAR) == 1000
    assert refusal(ledger, want(ALL, DEAR, micro=1500, service="dear")) is not None
    shared.ledger.release(made.id, "never sent", now_us=NOW)
    assert used(ledger, DEAR) == 0
    assert verify(ledger).problems == []


def test_names_with_odd_letters_are_told_apart(ledger: Ledger) -> None:
    """What is written down is found as a whole name, whatever is in it."""
    names = ('a"b', "a", "b", "%", "a_b", "ж", "a\\")
    for name in names:
        reserved(ledger, ALL, service="elsewhere", also=(name,))
    for name in names:
        assert used(ledger, Cap(1, per="day", service=name)) == 1000, name
    assert used(ledger, Cap(1, per="day", service="axb")) == 0


def test_a_cap_in_another_spelling_is_one_on_the_same_service(ledger: Ledger) -> None:
    """Each counts what the other does."""
    loud, quiet = Cap("0.002", per="day", service="Dear"), Cap("0.002", per="day", service="dear")
    reserved(ledger, ALL, loud, service="dear")
    reserved(ledger, ALL, quiet, service="DEAR", also=("dear",))
    assert used(ledger, loud) == used(ledger, quiet) == 2000
    for service in ("dear", "Dear"):
        assert isinstance(refusal(ledger, want(ALL, loud, service=service)), CapExceeded)
    assert [spend.service for spend in ledger.spend(limits(loud, quiet), now_us=NOW)] == [
        "Dear",
        "dear",
    ]


def test_the_audit_notices_that_it_was_taken_away(shared: Store) -> None:
    """What a payment counts for is part of what is compared with the history."""
    reserved(shared.ledger, ALL, DEAR, **SPELLED)
    shared.sql("UPDATE payments SET also=NULL")
    assert any("has also None" in problem for problem in verify(shared.ledger).problems)


@pytest.mark.parametrize("state", ["reserved", "settled", "void", "released"])
def test_which_caps_no_call_has_named(ledger: Ledger, state: str) -> None:
    """Whatever became of the call, and whether or not a counter was begun."""
    caps = limits(ALL, DEAR, Cap(1, per="call", service="dear"), Cap(1, per="day", service="Typo"))
    assert [one.scope for one in ledger.unnamed(caps)] == ["dear", "dear", "Typo"]
    in_state(ledger, state, ALL, **SPELLED)
    assert [one.scope for one in ledger.unnamed(caps)] == ["Typo"]
    ledger.spend(caps, now_us=NOW)
    assert [one.scope for one in ledger.unnamed(caps)] == ["Typo"]
    reserved(ledger, ALL, service="TYPO")
    assert ledger.unnamed(caps) == []
