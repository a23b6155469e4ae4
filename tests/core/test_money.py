"""Integer money: what may be written, what it means, and that nothing is ever rounded away."""

from __future__ import annotations

import pickle
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from x402_mask import Asset, Cap
from x402_mask._money import MICRO_MAX, SECOND, micro_usd, parse_usd, usd
from x402_mask._policy.caps import Used, applying, as_datetime, bucket, compile_caps

micros = st.integers(-MICRO_MAX, MICRO_MAX)
GOOD: list[tuple[Any, int]] = [
    ("0.25", 250_000),
    ("5", 5_000_000),
    (" 1.5 ", 1_500_000),
    ("1e-6", 1),
    ("1E3", 10**9),
    ("0.000001", 1),
    (Decimal("0.10"), 100_000),
    (7, 7_000_000),
    ("-1", -1_000_000),
    ("+2", 2 * 10**6),
    ("0.0000010", 1),
    ("9223372036854.775807", MICRO_MAX),
]
WRONG_VALUES = [
    "",
    "x",
    "0.0000001",
    "1,5",
    "$1",
    "NaN",
    "Infinity",
    "-inf",
    "1e99",
    "1e-99",
    "9223372036854.775808",
    Decimal("NaN"),
    Decimal("1e-7"),
    "1e1000000000",
    10**20,
]
WRONG_TYPES = [0.25, 1.0, True, None, b"1", [], object()]


@pytest.mark.parametrize(("written", "micro"), GOOD)
def test_amounts_that_can_be_written(written: Any, micro: int) -> None:
    """``str``, ``Decimal`` or ``int``, at most six decimals."""
    assert parse_usd(written) == micro


@pytest.mark.parametrize("value", WRONG_VALUES)
def test_amounts_that_are_none(value: Any) -> None:
    """Contract 1: ``ValueError``, without a pause for a large exponent."""
    with pytest.raises(ValueError, match="USD"):
        parse_usd(value)
    with pytest.raises(ValueError, match="USD"):
        Cap(value, per="day")


@pytest.mark.parametrize("value", WRONG_TYPES)
def test_types_that_are_no_money(value: Any) -> None:
    """Contract 1: a float is a ``TypeError``, so is what merely counts as a number."""
    with pytest.raises(TypeError, match="USD"):
        parse_usd(value)
    with pytest.raises(TypeError, match="USD"):
        Cap(value, per="day")


@given(micros)
def test_money_survives_being_shown(micro: int) -> None:
    """Exactly, and with at least two decimals."""
    shown = usd(micro)
    assert parse_usd(shown) == parse_usd(str(shown)) == micro
    assert shown * 10**6 == micro
    text = f"{shown:f}"
    assert len(text.partition(".")[2]) >= 2


@given(st.text(max_size=20))
def test_any_text_is_an_amount_or_a_value_error(text: str) -> None:
    """Nothing else is raised."""
    try:
        micro = parse_usd(text)
    except ValueError:
        return
    assert abs(micro) <= MICRO_MAX and Decimal(text.strip()) * 10**6 == micro


@given(st.integers(0, 10**60), st.integers(0, 36))
def test_atomic_amounts_round_up_to_micro_usd(amount: int, decimals: int) -> None:
    """Never less than the price, and less than one micro more."""
    micro = micro_usd(amount, decimals)
    assert micro * 10**decimals >= amount * 10**6
    assert (micro - 1) * 10**decimals < amount * 10**6 or amount == 0


# --- caps


@given(st.integers(1, MICRO_MAX), st.sampled_from(["call", "hour", "day", "month", "total"]))
def test_a_cap_is_what_was_written(micro: int, per: str) -> None:
    """And equal to one that was written otherwise."""
    cap = Cap(usd(micro), per=per, service="s")
    assert (cap.micro, cap.per, cap.service) == (micro, per, "s")
    assert cap == Cap(f"{usd(micro):f}", per=per, service="s")
    assert hash(cap) == hash(Cap(usd(micro), per=per, service="s"))
    assert pickle.loads(pickle.dumps(cap)) == cap


@pytest.mark.parametrize("limit", ["0", 0, "-1", Decimal("-0.5"), "-0"])
def test_a_cap_is_above_zero(limit: Any) -> None:
    """Contract 1."""
    with pytest.raises(ValueError, match="above 0"):
        Cap(limit, per="day")


def test_windows_and_services_are_checked() -> None:
    """A typing error in a cap must not become a cap that never binds."""
    for per in ("days", "Day", "", "week"):
        with pytest.raises(ValueError, match="per"):
            Cap(1, per=per)
    for per in (None, 3600, b"day"):
        with pytest.raises(TypeError, match="per"):
            Cap(1, per=per)  # type: ignore[arg-type]
    for span in (timedelta(0), timedelta(seconds=-1)):
        with pytest.raises(ValueError, match="longer"):
            Cap(1, per=span)
    for service in ("", "  "):
        with pytest.raises(ValueError, match="service"):
            Cap(1, per="day", service=service)
    with pytest.raises(TypeError, match="service"):
        Cap(1, per="day", service=None)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        Cap(1, "day")  # type: ignore[misc]
    with pytest.raises(AttributeError):
        Cap(1, per="day").limit = Decimal(2)  # type: ignore[misc]


def test_a_cap_names_a_service_by_its_own_name() -> None:
    """Contract 1: an alias is canonicalised."""
    cap = Cap(1, per="day", service="aliyun-imageseg-refine-mask")
    assert cap == Cap(1, per="day", service="mask-refinement")


def test_caps_say_what_they_are() -> None:
    """In messages and on the command line."""
    for cap, text in (
        (Cap("0.25", per="call"), "$0.25/call on all services"),
        (Cap(2, per="day", service="mask-refinement"), "$2.00/day on mask-refinement"),
        (Cap("0.000001", per=timedelta(hours=36)), "$0.000001/36h on all services"),
        (Cap(1, per=timedelta(days=7)), "$1.00/7d on all services"),
        (Cap(1, per=timedelta(minutes=5)), "$1.00/5min on all services"),
        (Cap(1, per=timedelta(seconds=2.5)), "$1.00/2.5s on all services"),
    ):
        assert str(cap) == text


def test_assets_are_checked() -> None:
    """A wrong entry of the owner would sign for another token."""
    good: dict[str, Any] = {
        "network": "eip155:1",
        "address": "0x" + "ab" * 20,
        "decimals": 6,
        "name": "n",
        "version": "1",
    }
    assert Asset(**good).chain_id == 1 and Asset(**good).micro_usd(7) == 7
    for field, wrong in (
        ("network", "base"),
        ("network", "eip155:0"),
        ("network", "eip155:01"),
        ("network", "eip155:x"),
        ("address", "0x12"),
        ("address", "ab" * 20),
        ("decimals", -1),
        ("decimals", 37),
        ("decimals", True),
        ("decimals", 6.0),
    ):
        with pytest.raises(ValueError, match=r"."):
            Asset(**{**good, field: wrong})
    for field in ("name", "version"):
        with pytest.raises(TypeError, match="strings"):
            Asset(**{**good, field: 2})


# --- windows

instants = st.integers(0, 4_000_000_000 * SECOND)


def limit_of(per: Any) -> Any:
    """One compiled cap."""
    return compile_caps([Cap(1, per=per)], str)[0]


@given(instants)
def test_calendar_buckets_are_utc_and_half_open(at: int) -> None:
    """Contract 4."""
    moment = as_datetime(at)
    assert bucket("hour", at) == int(moment.timestamp()) // 3600
    assert bucket("day", at) == (moment.date() - datetime(1970, 1, 1, tzinfo=UTC).date()).days
    assert bucket("month", at) == moment.year * 12 + moment.month - 1
    assert bucket("total", at) == bucket("call", at) == 0
    for per in ("hour", "day", "month"):
        resets = limit_of(per).resets_at(at, None)
        first = int(resets.timestamp()) * SECOND
        assert bucket(per, first) == bucket(per, at) + 1 and bucket(per, first - 1) == bucket(
            per, at
        )


@given(instants, instants, st.integers(1, 400 * 86400 * SECOND))
def test_a_rolling_window_forgets_late_never_early(paid: int, later: int, window: int) -> None:
    """At most one part in a hundred late."""
    limit = limit_of(timedelta(microseconds=window))
    now = paid + later
    counts = bucket(limit.unit, paid) >= limit.first_bucket(now)
    if later < window:
        assert counts, "forgotten too early"
    slice_us = max(1, window // 100)
    if later >= window + slice_us:
        assert not counts, "remembered more than 1 % too long"


@given(instants, st.integers(1, 10**6))
def test_a_payment_recorded_in_the_future_counts_now(now: int, ahead: int) -> None:
    """A clock that went back must not open the caps."""
    for per in ("hour", "day", "month", timedelta(hours=5)):
        limit = limit_of(per)
        assert bucket(limit.unit, now + ahead * SECOND) >= limit.first_bucket(now)


def test_what_a_window_says_of_itself() -> None:
    """``left`` is never below zero; ``resets_at`` is when there is room again."""
    now = 1_800_000_000 * SECOND
    rolling = limit_of(timedelta(hours=1))
    spend = rolling.spend(now, Used(700_000, 400_000, bucket(rolling.unit, now)))
    assert (spend.settled, spend.held, spend.left) == (Decimal("0.70"), Decimal("0.40"), 0)
    assert timedelta(hours=1) <= spend.resets_at - as_datetime(now) <= timedelta(seconds=3636)
    assert (
        limit_of("total").resets_at(now, 0) is None and limit_of("call").resets_at(now, 0) is None
    )
    assert rolling.resets_at(now, None) is None
    december = int(datetime(2027, 12, 31, 23, tzinfo=UTC).timestamp()) * SECOND
    assert limit_of("month").resets_at(december, None) == datetime(2028, 1, 1, tzinfo=UTC)
    assert as_datetime(-5) == as_datetime(0) and as_datetime(10**30).year == 9999
    assert limit_of("month").resets_at(10**30, None).year == 9999


def test_which_caps_apply() -> None:
    """Those that name the service, and those on all."""
    limits = compile_caps([Cap(1, per="day"), Cap(1, per="day", service="b")], str)
    assert [len(applying(limits, name)) for name in ("a", "b", "*")] == [1, 2, 1]
