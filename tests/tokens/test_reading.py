"""Reading payment objects: whatever comes is read or refused, and nothing else is ever raised."""

from __future__ import annotations

import json
from contextlib import suppress
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from x402_mask._money import UNLIMITED
from x402_mask._wire import strict_json
from x402_mask._wire.server402 import (
    MarketPayment,
    Unreadable,
    find_accepts,
    micro_of,
    price_fault,
    read_payment,
)

BASE: dict[str, Any] = {"paymentId": "pay_1", "status": "pending", "amountCents": 20}
KNOWN = (
    "paymentId",
    "status",
    "amountCents",
    "currency",
    "payTo",
    "serviceId",
    "service_id",
    "expiresAt",
    "maxCalls",
    "remainingCalls",
    "allowReuse",
    "token",
    "paymentToken",
    "accessToken",
    "payment",
    "data",
    "accepts",
)
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20)
    | st.sampled_from(["paid", "USD", "pay_1", "tok", "1E999999", "20"])
)
DOCUMENTS = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(KNOWN) | st.text(max_size=3), inner, max_size=8)
    ),
    max_leaves=20,
)


def read(**fields: Any) -> MarketPayment:
    """Read a plain payment object with some fields changed; ``...`` leaves one out."""
    document = {key: value for key, value in {**BASE, **fields}.items() if value is not ...}
    return read_payment(json.dumps(document).encode())


@settings(max_examples=120, deadline=None)
@given(DOCUMENTS | st.dictionaries(st.sampled_from(KNOWN), DOCUMENTS, max_size=12))
def test_any_json_is_read_or_refused(document: Any) -> None:
    try:
        found = read_payment(json.dumps(document).encode())
    except Unreadable as refusal:
        said = str(refusal)
    else:
        said = ""
        assert_safe(found)
    assert said.isascii() and len(said) < 200


def assert_safe(found: MarketPayment) -> None:
    """Nothing of a payment object that was read can harm."""
    assert "/" not in found.id and ".." not in found.id and found.id.isascii()
    assert found.cents is None or 0 <= found.cents <= 10**15
    assert found.token is None or (found.token.isascii() and " " not in found.token)
    assert found.calls == UNLIMITED or 0 <= found.calls <= 10**6
    assert found.until is None or -(2**63) < found.until < 2**63
    micro = micro_of(found)
    assert micro is None or 0 < micro <= 10**19
    assert price_fault(found, 200_000) is None or isinstance(price_fault(found, 200_000), str)
    assert "token=" not in repr(found)


@settings(max_examples=80, deadline=None)
@given(st.binary(max_size=200) | DOCUMENTS.map(lambda found: json.dumps(found).encode()))
def test_any_bytes_are_read_or_refused(body: bytes) -> None:
    with suppress(Unreadable):
        read_payment(body)
    found = find_accepts(body)
    assert found is None or isinstance(strict_json.loads(found)["accepts"], list)


@pytest.mark.parametrize("place", [(), ("payment",), ("data", "payment"), ("data",)])
def test_places(place: tuple[str, ...]) -> None:
    document: Any = {**BASE, "token": "tok", "status": " PAID "}
    for name in reversed(place):
        document = {name: document, "other": 1}
    found = read_payment(json.dumps(document).encode())
    assert (found.id, found.is_paid, found.token) == ("pay_1", True, "tok")


@pytest.mark.parametrize("name", ["token", "paymentToken", "accessToken"])
@pytest.mark.parametrize("place", ["top", "payment", "data", "inside"])
def test_token_names(name: str, place: str) -> None:
    document: dict[str, Any] = {"payment": {**BASE}}
    match place:
        case "top":
            document[name] = "tok"
        case "data":
            document["data"] = {name: "tok"}
        case _:
            document["payment"][name] = "tok"
    assert read_payment(json.dumps(document).encode()).token == "tok"


def test_the_first_name_wins() -> None:
    assert read(accessToken="c", paymentToken="b", token="a").token == "a"
    assert read(accessToken="c", paymentToken="b", token=None).token == "b"


@pytest.mark.parametrize(
    "token",
    ["", "a b", "a\nb", "a\r\nX: y", "ü", "x" * 5000, "x" * 2**20, 7, True, None, ["t"], {}],
)
def test_no_token(token: Any) -> None:
    assert read(token=token).token is None


@pytest.mark.parametrize("payment_id", ["_a", "-a", "a=", "a+b", "pay_1", "a.b~c:d", 7, 0])
def test_ids(payment_id: Any) -> None:
    assert read(paymentId=payment_id).id == str(payment_id)


@pytest.mark.parametrize(
    "payment_id",
    [
        "../x",
        "..",
        "a..b",
        "a/b",
        "%2e",
        "%2e%2e%2fx",
        "",
        "x" * 10_000,
        "pay é",
        "pay\n1",
        "a?b",
        "a#b",
        "a\\b",
        " a",
        ".",
        "/api",
        "http://h/x",
        -7,
        7.5,
        True,
        [],
        {},
    ],
)
def test_no_id(payment_id: Any) -> None:
    for status in ("pending", None, "PAID"):
        with pytest.raises(Unreadable) as caught:
            read(paymentId=payment_id, status=status)
        assert caught.value.statuses == ({status.lower()} if status else set())


@pytest.mark.parametrize("where", [[], ["payment"], ["data", "payment"], ["data"]])
def test_an_answer_about_a_known_id_need_not_repeat_it(where: list[str]) -> None:
    """Where it names another, or one that is none, it is not about this."""
    for more, found in (({}, "pay_1"), ({"paymentId": None}, "pay_1"), ({"paymentId": "x"}, "x")):
        said: Any = {"status": "paid", "token": "t", **more}
        for name in reversed(where):
            said = {name: said}
        payment = read_payment(json.dumps(said).encode(), "pay_1")
        assert (payment.id, payment.status, payment.token) == (found, "paid", "t")
    wrapped = b'{"status": "success", "data": {"status": "expired"}}'
    assert read_payment(wrapped, "pay_1").is_over
    assert read_payment(b'{"status": "Pending"}', "pay_1").status == "pending"
    for bad in (
        b'{"token": "t"}',
        b'{"status": "paid", "paymentId": "../x"}',
        b"[]",
        b"{}",
        b'{"status": "error"}',
        b'{"status": 500}',
    ):
        with pytest.raises(Unreadable):
            read_payment(bad, "pay_1")


@pytest.mark.parametrize("where", [[], ["payment"], ["data", "payment"], ["data"]])
def test_paid_without_an_id(where: list[str]) -> None:
    """Wherever a payment object may be, and whatever else is there."""
    said: Any = {"status": " Paid ", "token": "t"}
    for name in reversed(where):
        said = {"x": 1, name: said}
    with pytest.raises(Unreadable) as caught:
        read_payment(json.dumps(said).encode())
    assert caught.value.statuses == {"paid"}


@pytest.mark.parametrize(
    "body",
    [
        b'{"paymentId": "p", "status": "paid", "tok',
        b'{"status" :"Paid"',
        b'{"paymentId": "p", "status": "paid", "x": Infinity}',
    ],
)
def test_paid_in_what_is_no_json(body: bytes) -> None:
    """Cut off, say."""
    with pytest.raises(Unreadable) as caught:
        read_payment(body)
    assert caught.value.statuses == {"paid"}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>paid",
        b"[]",
        b'"paid"',
        b'{"x": {"status": "paid"}}',
        b'{"status": ["paid"]}',
        b'{"status": "unpaid"}',
    ],
)
def test_not_paid_without_an_id(body: bytes) -> None:
    with pytest.raises(Unreadable) as caught:
        read_payment(body)
    assert "paid" not in caught.value.statuses


@pytest.mark.parametrize(
    ("cents", "found"),
    [
        (20, 20),
        (0, 0),
        (20.0, 20),
        ("20", 20),
        ("20.5", Decimal("20.5")),
        (0.1, Decimal("0.1")),
        (None, None),
        (..., None),
    ],
)
def test_cents(cents: Any, found: Any) -> None:
    assert read(amountCents=cents).cents == found


@pytest.mark.parametrize(
    "cents",
    [
        -1,
        "-0.01",
        True,
        False,
        [],
        {},
        "x",
        "",
        "nan",
        "Infinity",
        "sNaN",
        10**16,
        1e300,
        "1E999999999999999999999",
        "9" * 77,
        "twenty",
    ],
)
def test_no_cents(cents: Any) -> None:
    """The payment can be read, and paid at no price."""
    payment = read(amountCents=cents)
    assert payment.cents is None and micro_of(payment) is None
    for micro in (0, 1, 200_000):
        assert "amountCents is" in str(price_fault(payment, micro))


@pytest.mark.parametrize(
    ("cents", "micro", "agrees"),
    [
        (20, 200_000, True),
        (20, 200_001, True),
        (20, 210_000, False),
        (20, 190_000, False),
        (19, 200_000, False),
        (0, 200_000, False),
        (0, 1000, True),
        (1, 1000, True),
        (0.1, 1000, True),
        ("0.1", 1001, False),
        (2000, 200_000, False),
        (None, 5, True),
    ],
)
def test_prices(cents: Any, micro: int, agrees: bool) -> None:
    assert (price_fault(read(amountCents=cents), micro) is None) is agrees


@pytest.mark.parametrize("currency", ["EUR", "XIAO", "usdt", "US D"])
def test_other_currencies(currency: str) -> None:
    fault = price_fault(read(currency=currency), 200_000)
    assert fault is not None and "not in USD" in fault
    assert price_fault(read(currency="usd"), 200_000) is None
    assert price_fault(read(currency=None), 200_000) is None


@pytest.mark.parametrize("status", ["pending", "PAYED", "paid!", "", None, 1, True, ["paid"], {}])
def test_not_paid(status: Any) -> None:
    found = read(status=status)
    assert not found.is_paid and not found.is_over


@pytest.mark.parametrize("status", ["completed", "", None, 7])
def test_paid_in_other_words(status: Any) -> None:
    """When it was paid, and the token that it brought: paying again is the greater risk."""
    signs = {"paidAt": "2026-06-24T00:00:00Z", "token": "tok"}
    assert read(status=status, **signs).is_paid
    assert not any(read(status=status, **{name: signs[name]}).is_paid for name in signs)


@pytest.mark.parametrize("status", ["pending", "unpaid", "expired", "exhausted"])
def test_a_known_word_is_taken_at_its_word(status: str) -> None:
    assert not read(status=status, paidAt="2026-06-24T00:00:00Z", token="tok").is_paid


@pytest.mark.parametrize(
    ("fields", "calls"),
    [
        ({}, 1),
        ({"maxCalls": 1, "remainingCalls": 1, "allowReuse": False}, 1),
        ({"maxCalls": 5}, 5),
        ({"maxCalls": 5, "remainingCalls": 3}, 3),
        ({"remainingCalls": 3}, 3),
        ({"maxCalls": 2, "remainingCalls": 9}, 2),
        ({"maxCalls": 5, "allowReuse": False}, 1),
        ({"allowReuse": True}, UNLIMITED),
        ({"allowReuse": True, "maxCalls": 4}, 4),
        ({"allowReuse": "true", "maxCalls": None}, 1),
        ({"allowReuse": 0, "maxCalls": 3}, 1),
        ({"allowReuse": "False", "maxCalls": 3}, 1),
        ({"allowReuse": "no", "maxCalls": 3}, 1),
        ({"allowReuse": None, "maxCalls": 3}, 3),
        ({"remainingCalls": 0}, 0),
        ({"maxCalls": -3}, 1),
        ({"maxCalls": 2.0}, 1),
        ({"maxCalls": "5"}, 1),
        ({"maxCalls": True}, 1),
        ({"maxCalls": 10**9}, 1),
    ],
)
def test_calls(fields: dict[str, Any], calls: int) -> None:
    assert read(**fields).calls == calls


def test_times() -> None:
    moment = int(datetime(2027, 1, 2, 3, 4, 5, tzinfo=UTC).timestamp() * 10**6)
    for text in ("2027-01-02T03:04:05Z", "2027-01-02T03:04:05", "2027-01-02T11:04:05+08:00"):
        assert read(expiresAt=text).until == moment
    assert read(expiresAt=moment // 10**6).until == moment
    assert read(expiresAt=moment // 10**3).until == moment
    for bad in ("soon", "", 0, -5, 10**30, True, [], "9999-99-99", "x" * 1000, None):
        assert read(expiresAt=bad).until is None
    for odd in ("0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59"):
        assert read(expiresAt=odd).until is not None


def test_not_objects() -> None:
    for body in (
        None,
        b"",
        b"{",
        b"[]",
        b"null",
        b"7",
        b'"paid"',
        b"{}",
        b"\xff\xfe",
        b"<html>",
        b'{"paymentId": "a", "paymentId": "b"}',
        b"[" * 5000,
        b'{"payment": []}',
    ):
        with pytest.raises(Unreadable):
            read_payment(body)


@pytest.mark.parametrize("place", [(), ("payment",), ("data", "payment"), ("data",)])
def test_offers_are_found_as_they_were_written(place: tuple[str, ...]) -> None:
    text = '{"paymentId" : "p", "accepts": [ {"amount":1.50} ]}'
    for name in reversed(place):
        text = f'{{"accepts": null, "{name}": {text} }}'
    found = find_accepts(text.encode())
    assert found is not None and b'[ {"amount":1.50} ]' in found
    for nothing in (b'{"accepts": null}', b'{"accepts": {}}', b'{"x": "accepts"}', b"{", None):
        assert find_accepts(nothing) is None
