"""Pause, payees, breaker, refusals: what the owner set, and what the ledger tells about it."""

from __future__ import annotations

from typing import Any

import pytest

from tests.ledger.kit import (
    NOW,
    ORIGIN,
    PAYEE,
    SECOND,
    SERVICE,
    Store,
    end,
    held,
    in_state,
    proof,
    refusal,
    reserved,
    want,
)
from x402_mask import OfferRefused, Paused, PaymentRefused
from x402_mask._ledger.audit import verify
from x402_mask._ledger.ledger import Ledger
from x402_mask._ledger.records import Breaker, Reserved
from x402_mask._policy.caps import as_datetime

OTHER = "0x" + "cd" * 20
ELSEWHERE = "https://elsewhere.example"
BREAKER = Breaker(failures=3, seconds=60)

# --- pause ----------------------------------------------------------------------------------------


def test_a_paused_ledger_refuses_until_it_is_resumed(ledger: Ledger) -> None:
    ledger.set_paused(True, now_us=NOW)
    assert ledger.is_paused()
    assert ledger.view("", SERVICE, now_us=NOW).paused
    error = refusal(ledger, want())
    assert isinstance(error, Paused)
    assert error.reason == "paused"
    ledger.set_paused(False, now_us=NOW)
    assert not ledger.is_paused()
    reserved(ledger)


def test_a_pause_is_seen_by_others_at_once_and_outlives_them(shared: Store) -> None:
    other = shared.again()
    assert not other.is_paused()
    shared.ledger.set_paused(True, now_us=NOW)
    assert isinstance(refusal(other, want()), Paused)
    other.close()
    shared.ledger.close()
    assert shared.again().is_paused()


def test_what_was_signed_before_a_pause_can_still_be_written_down(ledger: Ledger) -> None:
    made = reserved(ledger)
    ledger.set_paused(True, now_us=NOW)
    ledger.hold(made.id, proof(), now_us=NOW)
    ledger.finish(made.id, end(), now_us=NOW)
    assert ledger.payments()[0].state == "settled"


# --- payees ---------------------------------------------------------------------------------------


def test_without_pins_a_new_payee_is_paid_and_reported(ledger: Ledger) -> None:
    assert ledger.reserve(want()) == Reserved(new_payee=False)
    assert ledger.reserve(want(pay_to=PAYEE.lower())) == Reserved(new_payee=False)
    assert ledger.reserve(want(pay_to=OTHER)) == Reserved(new_payee=True)
    assert ledger.reserve(want(pay_to=OTHER)) == Reserved(new_payee=False)
    assert ledger.payees() == [
        (ORIGIN, SERVICE, PAYEE.lower(), True),
        (ORIGIN, SERVICE, OTHER, False),
    ]


def test_a_pinned_service_refuses_another_payee_until_it_is_accepted(ledger: Ledger) -> None:
    reserved(ledger, pin_payee=True)
    error = refusal(ledger, want(pin_payee=True, pay_to=OTHER))
    assert isinstance(error, OfferRefused)
    assert error.reason == "payee"
    assert "accept_payee" in str(error)
    assert ledger.payees() == [(ORIGIN, SERVICE, PAYEE.lower(), True)]

    ledger.accept_payee(SERVICE, OTHER.upper().replace("0X", "0x"), ORIGIN, now_us=NOW)
    assert ledger.reserve(want(pin_payee=True, pay_to=OTHER)) == Reserved(new_payee=False)
    reserved(ledger, pin_payee=True)
    view = ledger.view("", SERVICE, origin=ORIGIN, now_us=NOW)
    assert view.payees == {PAYEE.lower(): True, OTHER: True}


def test_a_payee_that_was_only_seen_is_not_trusted_by_a_later_pin(ledger: Ledger) -> None:
    reserved(ledger)
    reserved(ledger, pay_to=OTHER)
    assert isinstance(refusal(ledger, want(pin_payee=True, pay_to=OTHER)), OfferRefused)


def test_every_service_has_its_own_pin(ledger: Ledger) -> None:
    reserved(ledger, pin_payee=True)
    reserved(ledger, pin_payee=True, pay_to=OTHER, service="another")
    assert isinstance(
        refusal(ledger, want(pin_payee=True, pay_to=PAYEE, service="another")), OfferRefused
    )


def test_every_origin_has_its_own_pin(ledger: Ledger) -> None:
    """What one seller names says nothing about another, whatever it calls its service."""
    reserved(ledger, pin_payee=True)
    reserved(ledger, pin_payee=True, pay_to=OTHER, origin=ELSEWHERE)
    for origin, payee in ((ORIGIN, OTHER), (ELSEWHERE, PAYEE)):
        error = refusal(ledger, want(pin_payee=True, pay_to=payee, origin=origin))
        assert isinstance(error, OfferRefused) and error.pay_to == payee
        assert f"{origin!r})" in str(error)
    assert ledger.view("", SERVICE, origin=ELSEWHERE, now_us=NOW).payees == {OTHER: True}
    assert ledger.view("", SERVICE, now_us=NOW).payees == {}


def test_a_new_origin_that_names_the_payee_of_one_seller_of_many(ledger: Ledger) -> None:
    """Origins that agree are one seller's; where they differ, another's payee is no first one."""
    for origin in (ORIGIN, ELSEWHERE):
        reserved(ledger, pin_payee=True, origin=origin)
    reserved(ledger, pin_payee=True, pay_to=OTHER, origin="https://third.example")
    fourth: dict[str, Any] = {"origin": "https://fourth.example", "pin_payee": True}
    for payee in (PAYEE, OTHER):
        error = refusal(ledger, want(pay_to=payee, **fourth))
        assert isinstance(error, OfferRefused) and error.pay_to == payee
    reserved(ledger, pay_to="0x" + "9" * 40, **fourth)
    ledger.accept_payee(SERVICE, OTHER, fourth["origin"], now_us=NOW)
    reserved(ledger, pay_to=OTHER, **fourth)


def test_a_pin_holds_for_every_spelling_of_its_service(ledger: Ledger) -> None:
    """Else a seller that is called at another spelling would be a new one."""
    reserved(ledger, pin_payee=True)
    spelled: dict[str, Any] = {"pay_to": OTHER, "pin_payee": True}
    for other in ({"service": SERVICE.upper()}, {"service": ORIGIN, "also": (SERVICE,)}):
        assert isinstance(refusal(ledger, want(**spelled, **other)), OfferRefused)
        reserved(ledger, pin_payee=True, **other)


def test_a_refused_payee_is_remembered_until_it_is_accepted(ledger: Ledger) -> None:
    """At the one origin that named it; where none or several did the owner says which."""
    for origin in (ORIGIN, ELSEWHERE):
        reserved(ledger, pin_payee=True, origin=origin)
    with pytest.raises(ValueError, match="no origin has one"):
        ledger.accept_payee(SERVICE, OTHER, now_us=NOW)
    note = {"reason": "payee", "origin": ELSEWHERE}
    ledger.note_refusal(note, (ELSEWHERE, SERVICE, OTHER), now_us=NOW, wait_s=5)
    with pytest.raises(ValueError, match="no origin has one"):
        ledger.accept_payee("another", OTHER, now_us=NOW)
    assert ledger.accept_payee(SERVICE, OTHER, now_us=NOW) == ELSEWHERE
    reserved(ledger, pin_payee=True, pay_to=OTHER, origin=ELSEWHERE)
    assert isinstance(refusal(ledger, want(pin_payee=True, pay_to=OTHER)), OfferRefused)
    for origin in (ORIGIN, ELSEWHERE):
        ledger.note_refusal(note, (origin, SERVICE, "0x" + "9" * 40), now_us=NOW, wait_s=5)
    with pytest.raises(ValueError, match=f"several .*{ELSEWHERE}, {ORIGIN}"):
        ledger.accept_payee(SERVICE, OTHER, now_us=NOW)
    assert verify(ledger).problems == []


def test_refused_payees_do_not_fill_the_ledger(ledger: Ledger) -> None:
    """A seller may name a new one with each 402."""
    reserved(ledger, pin_payee=True)
    for number in range(40):
        payee = (ORIGIN, SERVICE, f"0x{number:040x}")
        ledger.note_refusal({"reason": "payee"}, payee, now_us=NOW, wait_s=5)
    assert len(ledger.payees()) == 16 and verify(ledger).problems == []


def test_a_payment_to_nobody_in_particular_pins_nobody(ledger: Ledger) -> None:
    reserved(ledger, pin_payee=True, pay_to=None)
    assert ledger.payees() == []


# --- breaker --------------------------------------------------------------------------------------


def failed(
    ledger: Ledger, *, at: int = NOW, outcome: str = "unknown", origin: str = ORIGIN
) -> bool:
    """One payment that ended badly; whether that opened the breaker."""
    made, _ = held(ledger, at=at, origin=origin)
    return ledger.finish(made.id, end(outcome), BREAKER, now_us=at)


@pytest.mark.parametrize("outcome", ["unknown", "rejected"])
def test_bad_ends_in_a_row_open_the_breaker_for_a_while(ledger: Ledger, outcome: str) -> None:
    assert [failed(ledger, outcome=outcome) for _ in range(3)] == [False, False, True]
    until = NOW + 60 * SECOND
    assert ledger.breakers(now_us=NOW) == {ORIGIN: until}
    error = refusal(ledger, want(at=until - 1), BREAKER)
    assert isinstance(error, PaymentRefused)
    assert error.reason == "breaker"
    assert as_datetime(until).isoformat() in str(error)

    assert isinstance(ledger.reserve(want(at=until), BREAKER), Reserved)
    assert ledger.breakers(now_us=until) == {}


def test_the_breaker_is_one_origins_and_optional(ledger: Ledger) -> None:
    for _ in range(3):
        failed(ledger)
    assert isinstance(ledger.reserve(want(origin="https://other.example"), BREAKER), Reserved)
    assert isinstance(ledger.reserve(want()), Reserved)


@pytest.mark.parametrize(
    "good", [end(), end("unknown", delivered=True), end("settled", delivered=False)]
)
def test_a_good_end_begins_the_count_anew(ledger: Ledger, good: object) -> None:
    failed(ledger)
    failed(ledger)
    made, _ = held(ledger)
    ledger.finish(made.id, good, BREAKER, now_us=NOW)  # type: ignore[arg-type]
    assert [failed(ledger) for _ in range(3)] == [False, False, True]


def test_an_opened_breaker_counts_from_the_beginning(ledger: Ledger) -> None:
    for _ in range(3):
        failed(ledger)
    later = NOW + 61 * SECOND
    assert [failed(ledger, at=later) for _ in range(3)] == [False, False, True]


# --- what the ledger tells ------------------------------------------------------------------------


def test_payments_come_newest_first_and_can_be_filtered(ledger: Ledger) -> None:
    made = [
        in_state(ledger, state, service=service).id
        for service in ("a", "b")
        for state in ("held", "settled", "held")
    ]
    newest_first = made[::-1]
    assert [p.payment_id for p in ledger.payments()] == newest_first
    assert [p.payment_id for p in ledger.payments(limit=2)] == newest_first[:2]
    assert [p.payment_id for p in ledger.payments(service="a")] == newest_first[3:]
    assert [p.payment_id for p in ledger.payments(state="settled")] == [made[4], made[1]]
    assert [p.payment_id for p in ledger.payments(state="held", service="b", limit=1)] == [made[5]]
    assert ledger.payments(service="' OR 1=1 --") == []


def test_what_a_payment_waits_for_is_said(ledger: Ledger) -> None:
    notes = {}
    in_state(ledger, "reserved")
    notes["reserved in flight"] = ledger.payments()[0].note
    made, _ = held(ledger)
    notes["held in flight"] = ledger.payments()[0].note
    ledger.finish(made.id, end("unknown"), now_us=NOW)
    notes["held"] = ledger.payments()[0].note
    forgotten = reserved(ledger)
    ledger._flying.pop(forgotten.id)
    notes["reserved"] = ledger.payments()[0].note
    in_state(ledger, "settled")
    notes["settled"] = ledger.payments()[0].note
    assert notes["reserved in flight"] == notes["held in flight"] == "in flight"
    assert "asks the chain" in notes["held"]
    assert "reconcile releases it" in notes["reserved"]
    assert notes["settled"] == ""


def test_every_decision_is_in_the_history(ledger: Ledger) -> None:
    """Allowed and refused, caps before and after, the proof only by its digest."""
    made, sent = held(ledger)
    ledger.finish(made.id, end("unknown", note="HTTP 500"), now_us=NOW)
    ledger.claim(made.id, now_us=NOW)
    ledger.finish(made.id, end(transaction="0x1"), now_us=NOW)
    ledger.resolve(made.id, "settled", transaction="0x1", note="seen", now_us=NOW)
    ledger.note_refusal({"reason": "cap", "origin": ORIGIN}, now_us=NOW, wait_s=5)
    ledger.accept_payee(SERVICE, OTHER, ORIGIN, now_us=NOW)
    ledger.set_paused(True, now_us=NOW)
    ledger.set_paused(False, now_us=NOW)

    rows = ledger.history()
    assert [row["seq"] for row in rows] == list(range(1, 11))
    assert [row["kind"] for row in rows] == [
        "reserved",
        "held",
        "unknown",
        "represented",
        "settled",
        "reconciled",
        "refused",
        "payee",
        "paused",
        "resumed",
    ]
    assert [row["payment_id"] for row in rows] == [made.id] * 6 + [None] * 4
    first, cap = rows[0], str(made.limits[0].cap)
    assert (first["caps_before"], first["caps_after"]) == ({cap: 0}, {cap: 1000})
    assert (first["method"], first["amount"], first["pay_to"]) == ("POST", "1000", PAYEE)
    assert rows[1]["nonce"] == sent.nonce
    assert sent.value not in str(rows)
    assert rows[6]["reason"] == "cap"


def test_details_do_not_overwrite_what_was_reserved(ledger: Ledger) -> None:
    reserved(ledger, detail={"micro": 1, "service": "cheap", "method": "GET"})
    (row,) = ledger.history()
    assert (row["micro"], row["service"], row["method"]) == (1000, SERVICE, "GET")
