"""Caps: what counts, in which window, up to the last micro-USD (contract, section 4)."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from tests.ledger.kit import (
    DAY,
    HOUR,
    NOW,
    SECOND,
    SERVICE,
    WIDE,
    at,
    end,
    held,
    in_state,
    limits,
    refusal,
    reserved,
    used,
    want,
)
from x402_mask import Cap, CapExceeded, PaymentRefused
from x402_mask._ledger.ledger import Ledger
from x402_mask._ledger.records import OpenPayment
from x402_mask._money import MICRO_MAX
from x402_mask._policy.caps import akin

ALL: tuple[Any, ...] = ("hour", "day", "month", "total", timedelta(hours=1), timedelta(days=30))


@pytest.mark.parametrize("per", ALL, ids=str)
def test_a_cap_is_used_to_the_last_unit_and_not_one_further(ledger: Ledger, per: Any) -> None:
    cap = Cap("0.01", per=per)
    for _ in range(3):
        reserved(ledger, cap, micro=3333)

    error = refusal(ledger, want(cap, micro=2))
    assert isinstance(error, CapExceeded)
    assert (error.reason, error.cap) == ("cap", cap)
    assert (error.wanted, error.left) == (Decimal("0.000002"), Decimal("0.000001"))
    reserved(ledger, cap, micro=1)
    assert used(ledger, cap) == 10_000
    assert isinstance(refusal(ledger, want(cap, micro=1)), CapExceeded)


def test_a_cap_per_call_bounds_one_payment_and_counts_none(ledger: Ledger) -> None:
    cap = Cap("0.01", per="call")
    for _ in range(3):
        reserved(ledger, cap, micro=10_000)
    error = refusal(ledger, want(cap, micro=10_001))
    assert isinstance(error, CapExceeded)
    assert (error.left, error.resets_at) == (Decimal("0.01"), None)
    assert used(ledger, cap) == 0


def test_a_payment_fits_every_cap_that_names_it(ledger: Ledger) -> None:
    everything, one = Cap("0.01", per="day"), Cap("0.004", per="day", service="a")
    caps = (everything, one, Cap("0.009", per="hour", service="b"))
    reserved(ledger, *caps, service="a", micro=4000)

    error = refusal(ledger, want(*caps, service="a", micro=1))
    assert isinstance(error, CapExceeded)
    assert error.cap == one
    reserved(ledger, *caps, service="b", micro=6000)
    error = refusal(ledger, want(*caps, service="b", micro=1))
    assert isinstance(error, CapExceeded)
    assert error.cap == everything
    assert [used(ledger, cap) for cap in caps] == [10_000, 4000, 6000]


def test_spends_come_in_the_order_of_the_caps(ledger: Ledger) -> None:
    caps = (Cap(1, per="total"), Cap(2, per="call"), Cap(3, per="day", service=SERVICE))
    reserved(ledger, *caps, micro=700_000)
    first = ledger.spend(limits(*caps), now_us=NOW)
    again = ledger.spend(limits(*reversed(caps)), now_us=NOW)
    assert [s.per for s in first] == ["total", "call", "day"]
    assert [s.left for s in first] == [Decimal("0.3"), Decimal(2), Decimal("2.3")]
    assert [s.service for s in first] == ["*", "*", SERVICE]
    assert again == list(reversed(first))


def test_a_service_that_no_cap_names_is_refused(ledger: Ledger) -> None:
    error = refusal(ledger, want(Cap(1, per="day", service="other")))
    assert isinstance(error, PaymentRefused)
    assert error.reason == "no_cap"
    assert ledger.payments() == []


def test_a_refused_payment_leaves_no_trace_in_any_counter(ledger: Ledger) -> None:
    caps = (Cap(1, per="total"), Cap("0.001", per="day"))
    refusal(ledger, want(*caps, micro=1001))
    assert [used(ledger, cap) for cap in caps] == [0, 0]
    assert ledger.payments() == []
    assert ledger.payees() == []


def test_held_and_settled_money_counts_and_released_and_void_does_not(ledger: Ledger) -> None:
    cap = Cap(1, per="day")
    for state, micro in (
        ("reserved", 1),
        ("held", 10),
        ("settled", 100),
        ("seen", 1000),
        ("released", 10_000),
        ("void", 100_000),
    ):
        in_state(ledger, state, cap, micro=micro)
    (spend,) = ledger.spend(limits(cap), now_us=NOW)
    assert (spend.held, spend.settled) == (Decimal("0.000011"), Decimal("0.0011"))
    assert spend.left == Decimal("0.998889")


def test_presenting_again_counts_nothing(ledger: Ledger) -> None:
    cap = Cap("0.001", per="total")
    made, _ = held(ledger, cap)
    ledger.finish(made.id, end("unknown"), now_us=NOW)
    assert ledger.claim(made.id, now_us=NOW) is not None
    assert used(ledger, cap) == 1000


def test_what_a_cap_can_hold_is_bounded(ledger: Ledger) -> None:
    """Sums beyond 2**63-1 micro-USD are refused, not wrapped around."""
    most = Decimal(MICRO_MAX) / SECOND
    cap = Cap(most, per="day")
    reserved(ledger, cap, micro=MICRO_MAX)
    assert used(ledger, cap) == MICRO_MAX
    assert isinstance(refusal(ledger, want(cap, micro=1)), CapExceeded)
    two = Cap(most, per="day", service="other")
    assert "overflow" in str(refusal(ledger, want(two, micro=MICRO_MAX, service="other")))
    assert used(ledger, two) == 0


# --- windows --------------------------------------------------------------------------------------

EDGES = [
    ("hour", "2026-05-15 12:00", "2026-05-15 12:59:59.999999", True),
    ("hour", "2026-05-15 12:59:59.999999", "2026-05-15 13:00", False),
    ("hour", "2026-05-15 23:59:59.999999", "2026-05-16 00:00", False),
    ("day", "2026-05-15 00:00", "2026-05-15 23:59:59.999999", True),
    ("day", "2026-05-15 23:59:59.999999", "2026-05-16 00:00", False),
    ("month", "2026-05-01 00:00", "2026-05-31 23:59:59.999999", True),
    ("month", "2026-05-31 23:59:59.999999", "2026-06-01 00:00", False),
    ("month", "2028-02-29 23:59:59.999999", "2028-03-01 00:00", False),
    ("month", "2026-12-31 23:59:59.999999", "2027-01-01 00:00", False),
    ("month", "2026-12-01 00:00", "2026-12-31 23:59:59.999999", True),
    ("total", "2001-01-01 00:00", "2099-12-31 23:59:59", True),
]


@pytest.mark.parametrize(("per", "then", "now", "counts"), EDGES)
def test_calendar_windows_are_half_open(
    ledger: Ledger, per: str, then: str, now: str, counts: bool
) -> None:
    cap = Cap("0.001", per=per)
    reserved(ledger, cap, at=at(then))
    assert used(ledger, cap, at(now)) == (1000 if counts else 0)
    if counts:
        assert isinstance(refusal(ledger, want(cap, at=at(now))), CapExceeded)
    else:
        reserved(ledger, cap, at=at(now))


@pytest.mark.parametrize("per", ALL, ids=str)
def test_a_clock_that_goes_back_frees_nothing(ledger: Ledger, per: Any) -> None:
    """A payment recorded later than now counts in the current window too."""
    midnight = at("2026-06-01 00:00")
    for back in (1, HOUR, DAY, 40 * DAY):
        cap = Cap("0.001", per=per, service=f"{back} back")
        reserved(ledger, cap, at=midnight, service=cap.service)
        assert used(ledger, cap, midnight - back) == 1000
        again = want(cap, at=midnight - back, service=cap.service)
        assert isinstance(refusal(ledger, again), CapExceeded)


def test_after_a_jump_back_both_sides_of_the_edge_count(ledger: Ledger) -> None:
    cap, midnight = Cap("0.002", per="day"), at("2026-05-16 00:00")
    reserved(ledger, cap, at=midnight - 1)
    reserved(ledger, cap, at=midnight)
    assert used(ledger, cap, midnight) == 1000
    assert used(ledger, cap, midnight - 1) == 2000
    assert isinstance(refusal(ledger, want(cap, at=midnight - 1)), CapExceeded)
    reserved(ledger, cap, at=midnight + 1)


SPANS = [
    timedelta(microseconds=100),
    timedelta(microseconds=199),
    timedelta(seconds=1),
    timedelta(seconds=90),
    timedelta(hours=36),
    timedelta(days=365, microseconds=7),
]


@pytest.mark.parametrize("span", SPANS, ids=str)
def test_a_rolling_window_forgets_at_most_a_hundredth_late_and_never_early(
    ledger: Ledger, span: timedelta
) -> None:
    window = span // timedelta(microseconds=1)
    for start in (NOW, NOW + 17, NOW + 999_983):
        cap = Cap("0.001", per=span, service=f"from {start}")
        reserved(ledger, cap, at=start, service=cap.service)
        for later in (0, 1, window // 2, window - 1, window):
            assert used(ledger, cap, start + later) == 1000
        assert used(ledger, cap, start + window + window // 100 + 1) == 0


@pytest.mark.parametrize("per", ["hour", "day", "month", timedelta(minutes=7), timedelta(days=3)])
def test_a_refusal_says_when_there_is_room_again(ledger: Ledger, per: Any) -> None:
    cap = Cap("0.001", per=per)
    reserved(ledger, cap)
    error = refusal(ledger, want(cap))
    assert isinstance(error, CapExceeded)
    assert error.resets_at is not None
    (spend,) = ledger.spend(limits(cap), now_us=NOW)
    assert spend.resets_at == error.resets_at
    when = at(error.resets_at.replace(tzinfo=None).isoformat())
    assert when > NOW
    refusal(ledger, want(cap, at=when - 1))
    reserved(ledger, cap, at=when)


# --- caps that come later -------------------------------------------------------------------------


def test_a_cap_added_later_counts_what_the_ledger_holds(ledger: Ledger) -> None:
    """... in its window and for its service, as if it had been there from the start."""
    for moment in (
        "2024-02-29 23:00",
        "2026-04-30 23:59:59.999999",
        "2026-05-01 00:00",
        "2026-05-14 12:00",
        "2026-05-15 11:59",
        "2026-05-15 12:29:59",
    ):
        for state in ("reserved", "held", "settled", "released", "void"):
            in_state(ledger, state, at=at(moment))
            in_state(ledger, state, at=at(moment), service="another")
    inside = {"hour": 1, "day": 2, "month": 4, "total": 6, ALL[4]: 2, ALL[5]: 5}
    caps = [Cap(1000, per=per, service=service) for per in ALL for service in ("*", SERVICE)]
    for cap in caps:
        services = 2 if cap.service == "*" else 1
        assert used(ledger, cap) == inside[cap.per] * 3 * services * 1000, cap

    full = used(ledger, caps[3])
    tight = Cap(Decimal(full + 1000) / SECOND, per="day", service=SERVICE)
    reserved(ledger, tight)
    assert isinstance(refusal(ledger, want(tight)), CapExceeded)
    assert used(ledger, caps[0]) == 1000 * (inside["hour"] * 6 + 1)


def test_a_cap_of_another_process_is_kept_up_by_all(shared: Any) -> None:
    """Counters are the ledger's, not the process's that first needed them."""
    first, second = shared.ledger, shared.again()
    reserved(first, Cap(1, per="day"))
    cap = Cap("0.002", per=timedelta(hours=2), service=SERVICE)
    assert used(second, cap) == 1000
    reserved(first, Cap(1, per="day"))
    assert used(second, cap) == 2000
    assert isinstance(refusal(second, want(cap)), CapExceeded)


# --- services that a catalog calls the same


def test_a_limit_counts_its_kin_as_well(ledger: Ledger) -> None:
    """What was spent before they were known to be kin too, and in every state."""
    in_state(ledger, "settled", service="foo", micro=1000)
    in_state(ledger, "void", service="foo", micro=1000)
    reserved(ledger, service="bar", micro=2000)
    caps = (Cap("0.01", per="day", service="bar"), Cap("0.008", per="total", service="foo"), WIDE)
    kin = akin(limits(*caps), [frozenset({"foo", "bar"}), frozenset({"else", "where"})])
    assert [one.kin for one in kin] == [("foo",), ("bar",), ()]
    first = ledger.spend(kin, now_us=NOW)
    assert [(s.settled, s.held) for s in first] == [(Decimal("0.001"), Decimal("0.002"))] * 3

    answer = ledger.reserve(want(service="foo", micro=5000, limits=kin))
    assert not isinstance(answer, OpenPayment)
    for service in ("foo", "bar"):
        error = refusal(ledger, want(service=service, micro=1, limits=kin))
        assert isinstance(error, CapExceeded) and error.cap == caps[1]
    assert [s.left for s in ledger.spend(kin, now_us=NOW)][:2] == [Decimal("0.002"), 0]
    assert [p.service for p in ledger.payments()] == ["foo", "bar", "foo", "foo"]


def test_a_cap_on_kin_is_no_permission(ledger: Ledger) -> None:
    kin = akin(limits(Cap(1, per="day", service="bar")), [frozenset({"foo", "bar"})])
    error = refusal(ledger, want(service="foo", limits=kin))
    assert isinstance(error, PaymentRefused) and error.reason == "no_cap"


def test_an_oldest_payment_of_kin_frees_the_window_first(ledger: Ledger) -> None:
    cap = Cap("0.01", per=timedelta(hours=1), service="bar")
    kin = akin(limits(cap), [frozenset({"foo", "bar"})])
    reserved(ledger, service="foo", micro=5000)
    reserved(ledger, service="bar", micro=5000, at=NOW + 10 * 60 * SECOND)
    at_once = NOW + 20 * 60 * SECOND
    (spend,) = ledger.spend(kin, now_us=at_once)
    alone = ledger.spend(limits(cap), now_us=at_once)[0]
    assert spend.left == 0 and spend.resets_at is not None and alone.resets_at is not None
    assert spend.resets_at < alone.resets_at


def test_kin_are_few_and_never_lost_to_later_ones() -> None:
    groups = [frozenset({"bar", f"a{n:02}", f"b{n:02}"}) for n in range(50)]
    (first,) = akin(limits(Cap(1, per="day", service="bar")), groups[:2])
    (later,) = akin((first,), groups)
    assert first.kin == ("a00", "b00", "a01", "b01")
    assert len(later.kin) == 16 and later.kin[:4] == first.kin
    assert "bar" not in later.kin
