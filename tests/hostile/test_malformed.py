"""Rows 40 to 43: challenges that are none, or are broken, or are several."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from tests.hostile.kit import (
    ASYNC,
    OTHERS,
    PAIR,
    SYNC,
    Kind,
    World,
    attempt,
    every_kind,
    receipt,
    usd,
)
from tests.support.seller import (
    OTHER_PAYEE,
    PAYEE,
    Reply,
    challenge,
    encode,
    in_body,
    in_header,
    offer,
    offer_server402,
    offer_v1,
    paywall,
    served,
    server402_body,
    v1_body,
    v2_body,
    v2_header,
)
from x402_mask import ChallengeError, OfferRefused, PaymentError

UNREADABLE = (ChallengeError, OfferRefused)


# --- row 40


NO_CHALLENGE: dict[str, bytes] = {
    "quota": b'{"error": "quota exceeded", "upgrade": "https://x.example"}',
    "html": b"<html><body>Payment Required</body></html>",
    "empty": b"",
    "text": b"pay us",
    "array": b"[]",
    "string": b'"accepts"',
    "number": b"402",
    "broken-json": b'{"error": ',
    "binary": bytes(range(256)),
    "latin-1": "Zahlung nötig".encode("latin-1"),
    "near-miss": b'{"accepted": true, "version": 2}',
    "utf-16": '{"a": 1}'.encode("utf-16"),
    "deep": b"[" * 20_000,
    "huge-number": b'{"a": ' + b"9" * 20_000 + b"}",
    "nan": b'{"a": NaN}',
}


@pytest.mark.parametrize("body", NO_CHALLENGE.values(), ids=NO_CHALLENGE)
def test_a_402_that_is_no_payment_challenge_is_handed_back(
    world: World, kind: Kind, body: bytes
) -> None:
    """Row 40: somebody's quota; the caller gets the response he would get without us."""
    seller = world.seller()
    url = seller.on("/quota", Reply(status=402, body=body, headers=[("X-Left", "0")]))
    buyer = world.buyer(kind)
    response = buyer.post(url, content=b"x")
    assert (response.status_code, response.content) == (402, body)
    assert response.headers["x-left"] == "0" and response.request.method == "POST"
    assert "x402_mask" not in response.extensions
    assert buyer.stream("POST", url, raw=True).body == body
    assert world.signer.calls == 0 and len(seller.hits) == 2


PAYMENT_SCHEME = (
    'Payment id="c1", realm="shop", method="evm", intent="charge", '
    'request="eyJhbW91bnQiOiIxMDAwIn0"'
)


def test_a_402_in_the_words_of_another_protocol(world: World, kind: Kind) -> None:
    """Row 74: handed back with its header; beside an offer of x402 that alone is paid, once."""
    seller = world.seller()
    words = [("WWW-Authenticate", PAYMENT_SCHEME)]
    alone = seller.on("/mpp", Reply(status=402, headers=words, body=b'{"type": "payment"}'))
    both = seller.on("/both", paywall(v2_header(offer("1000"), headers=words), served()))
    used = seller.on("/used", paywall(v2_header(offer("1000"), headers=words), Reply(status=403)))
    buyer = world.buyer(kind)
    response = buyer.get(alone, headers={"Authorization": "Bearer mine"})
    assert (response.status_code, response.content) == (402, b'{"type": "payment"}')
    assert response.headers["www-authenticate"] == PAYMENT_SCHEME
    assert world.signer.calls == 0 and world.counted() == 0
    assert buyer.get(both, headers={"Authorization": "Bearer mine"}).status_code == 200
    assert [hit.values("authorization") for hit in seller.hits] == [["Bearer mine"]] * 3
    for _ in range(2):
        assert buyer.get(used).status_code == 403
    assert len(seller.authorizations()) == world.signer.calls == 2
    assert (world.held(), world.counted()) == (usd(1000), usd(2000))


@pytest.mark.parametrize("status", [200, 400, 401, 403, 404, 429, 500])
def test_a_challenge_under_another_status_is_not_one(world: World, kind: Kind, status: int) -> None:
    """Row 40: only a 402 asks for money."""
    seller = world.seller()
    asked = v2_header(offer())
    body = v1_body(offer_v1()).body
    url = seller.on("/odd", Reply(status=status, headers=asked.headers, body=body))
    response = world.buyer(kind).get(url)
    assert (response.status_code, response.content) == (status, body)
    assert world.signer.calls == 0 and len(seller.hits) == 1


# --- row 41


@pytest.mark.parametrize(
    "body",
    [
        "Zahlung nötig".encode("latin-1"),
        b"<html>paywall</html>",
        b"",
        b"\xff\xfe\x00",
        b"[" * 50_000,
        b'{"accepts": 7}',
    ],
    ids=["latin-1", "html", "empty", "binary", "deep", "odd"],
)
def test_the_body_beside_a_good_header_does_not_matter(
    world: World, kind: Kind, body: bytes
) -> None:
    """Row 41: when the header decides, the body is not even looked at."""
    seller = world.seller()
    headers = [("Content-Type", "application/json; charset=utf-8")]
    reply = in_header(challenge(offer()), body=body, headers=headers)
    url = seller.on("/paid", paywall(reply, served()))
    assert world.buyer(kind).get(url).status_code == 200
    assert len(seller.authorizations()) == 1


# --- row 42


FORMS: dict[str, tuple[Reply, str]] = {
    "v2-header": (v2_header(offer()), "payment-signature"),
    "v2-body": (v2_body(offer()), "payment-signature"),
    "v1-body": (v1_body(offer_v1()), "x-payment"),
    "server402": (server402_body(offer_server402()), "payment-signature"),
    "v2-header-extra-less": (v2_header(offer(extra=None)), "payment-signature"),
    "version-as-text": (v2_header(offer(), version="2"), "payment-signature"),
    "v1-extra-as-text": (
        v1_body(offer_v1(extra=json.dumps({"name": "USD Coin", "version": "2"}))),
        "x-payment",
    ),
    "no-content-type": (
        Reply(status=402, body=v1_body(offer_v1()).body),
        "x-payment",
    ),
}


@pytest.mark.parametrize("form", FORMS)
@every_kind(*PAIR, OTHERS[4], OTHERS[-1])
def test_every_form_of_an_honest_challenge_is_paid(world: World, kind: Kind, form: str) -> None:
    """Row 42: header first, then body; the proof goes into the header of its version."""
    reply, header = FORMS[form]
    seller = world.seller()
    url = seller.on("/paid", paywall(reply, served()))
    response = world.buyer(kind).post(url, json={})
    assert response.status_code == 200 and receipt(response).outcome == "settled"
    (paid,) = seller.paid_hits()
    assert paid.proof.header == header and len(seller.authorizations()) == 1
    document = paid.proof.document or {}
    if header == "x-payment":
        assert set(document) == {"x402Version", "scheme", "network", "payload"}
        assert (document["x402Version"], document["network"]) == (1, "base")
    else:
        assert document["x402Version"] == 2 and "null" not in json.dumps(document)


@pytest.mark.parametrize("difference", ["amount", "payee", "none"])
def test_when_header_and_body_disagree_the_body_is_never_paid(
    world: World, kind: Kind, difference: str
) -> None:
    """Row 42: the header wins (contract 2); refusing the contradiction is right as well."""
    seller = world.seller()
    changes = {"amount": {"amount": "900000"}, "payee": {"payTo": OTHER_PAYEE}, "none": {}}
    body = json.dumps(challenge({**offer("1000"), **changes[difference]})).encode()
    reply = in_header(challenge(offer("1000")), body=body)
    url = seller.on("/paid", paywall(reply, served()))
    outcome = attempt(world.buyer(kind), url)
    if isinstance(outcome, PaymentError):
        assert outcome.at_risk is False and difference != "none"
        assert world.signer.calls == 0
        return
    assert outcome.status_code == 200
    assert [(one.value, one.to) for one in seller.authorizations()] == [(1000, PAYEE)]


@pytest.mark.parametrize("same", [True, False], ids=["same", "different"])
def test_two_challenge_headers_are_refused(world: World, kind: Kind, same: bool) -> None:
    """Row 42: joined text must not decode to something, and the first must not simply win."""
    seller = world.seller()
    one = v2_header(offer("1000")).headers
    two = one if same else v2_header(offer("2000")).headers
    reply = Reply(status=402, headers=[*one, *two], body=b"{}")
    url = seller.on("/paid", paywall(reply, served()))
    world.refused(world.buyer(kind), url, ChallengeError)


def test_a_broken_header_is_not_replaced_by_a_good_body(world: World, kind: Kind) -> None:
    """Row 42: the header was meant; a body beside it is no second chance."""
    seller = world.seller()
    good = v2_body(offer())
    reply = Reply(status=402, headers=[("PAYMENT-REQUIRED", "%%%")], body=good.body)
    world.refused(world.buyer(kind), seller.on("/paid", paywall(reply, served())), ChallengeError)


# --- row 43


def b64(data: bytes) -> str:
    """Standard base64."""
    return base64.b64encode(data).decode("ascii")


GOOD_TEXT = json.dumps(challenge(offer()))
BROKEN_HEADERS: dict[str, str] = {
    "words": "not base64!",
    "empty": "",
    "json-plain": GOOD_TEXT,
    "foreign-bytes": "!" + encode(challenge(offer())),
    "four-foreign-bytes": "!*.!" + encode(challenge(offer())),
    "foreign-bytes-inside": encode(challenge(offer()))[:40]
    + "!!--"
    + encode(challenge(offer()))[40:],
    "inner-space": encode(challenge(offer()))[:40] + " " + encode(challenge(offer()))[40:],
    "cut": encode(challenge(offer()))[:-30],
    "list": b64(b"[]"),
    "null": b64(b"null"),
    "string": b64(b'"x"'),
    "number": b64(b"402"),
    "half": b64(b'{"x402Version": 2,'),
    "utf-16": b64(GOOD_TEXT.encode("utf-16")),
    "trailing": b64(GOOD_TEXT.encode() + b"{}"),
    "deep": b64(b'{"x402Version":2,"accepts":' + b"[" * 20_000),
    "deep-closed": b64(b'{"x402Version":2,"accepts":' + b"[" * 9_000 + b"]" * 9_000 + b"}"),
    "accepts-null": encode({"x402Version": 2, "accepts": None}),
    "accepts-object": encode({"x402Version": 2, "accepts": {"0": offer()}}),
    "accepts-text": encode({"x402Version": 2, "accepts": "exact"}),
    "accepts-missing": encode({"x402Version": 2}),
    "accepts-empty": encode({"x402Version": 2, "accepts": []}),
    "accepts-junk": encode({"x402Version": 2, "accepts": [None, 3, "x", [], {}]}),
    "version-99": encode(challenge(offer(), version=99)),
    "version-0": encode(challenge(offer(), version=0)),
    "version-minus": encode(challenge(offer(), version=-2)),
    "version-word": encode(challenge(offer(), version="two")),
    "version-99-text": encode(challenge(offer(), version="99")),
    "version-true": encode(challenge(offer(), version=True)),
    "version-list": encode(challenge(offer(), version=[2])),
    "version-fraction": encode(challenge(offer(), version=2.5)),
    "nan": b64(GOOD_TEXT.replace('"maxTimeoutSeconds": 60', '"maxTimeoutSeconds": NaN').encode()),
    "infinity": b64(
        GOOD_TEXT.replace('"maxTimeoutSeconds": 60', '"maxTimeoutSeconds": 1e999').encode()
    ),
    "endless-number": b64(
        GOOD_TEXT.replace('"maxTimeoutSeconds": 60', '"maxTimeoutSeconds": ' + "9" * 9000).encode()
    ),
}


@pytest.mark.parametrize("value", BROKEN_HEADERS.values(), ids=BROKEN_HEADERS)
def test_a_broken_challenge_header_is_one_type_of_error(
    world: World, kind: Kind, value: str
) -> None:
    """Row 43: not base64, not an object, nulls, depth, versions: our own error, nothing signed."""
    seller = world.seller()
    reply = Reply(status=402, headers=[("PAYMENT-REQUIRED", value)], body=b"the body")
    url = seller.on("/paid", paywall(reply, served()))
    error = world.refused(world.buyer(kind), url, *UNREADABLE)
    assert error.response.content == b"the body"
    assert len(str(error)) < 2000, "the seller's text is repeated without a limit"


@pytest.mark.parametrize("value", BROKEN_HEADERS.values(), ids=BROKEN_HEADERS)
@every_kind(Kind("httpx2", "sync", "client"))
def test_the_twin_family_reads_as_strictly(world: World, kind: Kind, value: str) -> None:
    """Row 43: the same table under httpx2."""
    seller = world.seller()
    reply = Reply(status=402, headers=[("PAYMENT-REQUIRED", value)], body=b"the body")
    world.refused(world.buyer(kind), seller.on("/p", paywall(reply, served())), *UNREADABLE)


BROKEN_BODIES: dict[str, str] = {
    "version-alone": '{"x402Version": 1}',
    "version-99": json.dumps(challenge(offer(), version=99)),
    "version-text": json.dumps(challenge(offer(), version="zwei")),
    "accepts-number": '{"accepts": 5}',
    "accepts-null": '{"accepts": null}',
    "accepts-object": '{"accepts": {}}',
    "accepts-junk": '{"accepts": [1, null, "x"]}',
    "half-a-challenge": '{"x402Version": 1, "accepts": [{"scheme": "exact"',
    "deep": '{"x402Version": 1, "accepts": ' + "[" * 20_000,
    "deep-closed": '{"x402Version": 1, "accepts": ' + "[" * 9_000 + "]" * 9_000 + "}",
    "empty-entry": '{"x402Version": 1, "accepts": [{}]}',
    "v2-entry-in-v1": json.dumps(challenge(offer(), version=1)),
}


@pytest.mark.parametrize("text", BROKEN_BODIES.values(), ids=BROKEN_BODIES)
def test_a_body_that_claims_to_be_a_challenge_and_is_broken(
    world: World, kind: Kind, text: str
) -> None:
    """Row 43: nothing signed; unreadable as a challenge, or nothing in it to accept.

    Text that is no JSON at all may be taken for no challenge and handed back; version 2 names
    under version 1 are refused or read as what they say, never as another amount.
    """
    seller = world.seller()
    url = seller.on("/paid", paywall(in_body(text), served()))
    buyer = world.buyer(kind)
    if text.startswith('{"x402Version": 1, "accepts": [{"scheme"') or text.endswith("[" * 99):
        outcome = attempt(buyer, url)
        assert isinstance(outcome, ChallengeError) or outcome.status_code == 402
        assert world.signer.calls == 0
        return
    if '"x402Version": 1' in text and '"amount"' in text:
        try:
            buyer.get(url)
        except UNREADABLE:
            assert world.signer.calls == 0
        assert all(one.value == 1000 for one in seller.authorizations())
        return
    world.refused(buyer, url, *UNREADABLE)


BAD_ENTRIES: dict[str, Any] = {
    "null": None,
    "number": 7,
    "text": "exact",
    "list": [],
    "empty": {},
    "no-asset": {k: v for k, v in offer("1").items() if k != "asset"},
    "no-payee": {k: v for k, v in offer("1").items() if k != "payTo"},
    "no-network": {k: v for k, v in offer("1").items() if k != "network"},
    "no-scheme": {k: v for k, v in offer("1").items() if k != "scheme"},
    "nulls": dict.fromkeys(offer("1")),
    "solana": offer("1", network="solana:5eykt4UsFv8P8NJdTREpY1vzqKqZKvdp", asset="EPjF"),
    "fiat": offer("1", network="eip155:8453", asset="USD"),
    "unknown-flow": offer("1", extra={"name": "USD Coin", "version": "2", "paymentFlow": "later"}),
    "extra-list": offer("1", extra=["USD Coin", "2"]),
    "extra-text": offer("1", extra="USD Coin"),
}


@pytest.mark.parametrize("entry", BAD_ENTRIES.values(), ids=BAD_ENTRIES)
def test_one_bad_entry_does_not_spoil_the_good_ones(world: World, kind: Kind, entry: Any) -> None:
    """Row 43: skipped, and the good entry beside it is paid; alone it is refused."""
    seller = world.seller()
    buyer = world.buyer(kind)
    both = seller.on("/both", paywall(v2_body(entry, offer("1000")), served()))
    alone = seller.on("/alone", paywall(v2_body(entry), served()))
    assert buyer.get(both).status_code == 200
    assert [one.value for one in seller.authorizations()] == [1000]
    world.refused(buyer, alone, *UNREADABLE)


@pytest.mark.parametrize("flow", ["authorization", "upfront", "escrow"])
def test_known_flows_are_paid(world: World, kind: Kind, flow: str) -> None:
    """Row 43: only an unknown flow is skipped."""
    seller = world.seller()
    extra = {"name": "USD Coin", "version": "2", "paymentFlow": flow}
    assert world.buyer(kind).get(seller.sells(offer("1000", extra=extra))).status_code == 200


@every_kind(*SYNC, *ASYNC)
def test_a_list_of_very_many_offers_is_bounded(world: World, kind: Kind) -> None:
    """Row 43: two thousand tiny entries; read within reason, and no dear one is taken."""
    seller = world.seller()
    url = seller.on("/many", paywall(v2_body(*([{}] * 2000), offer("900000")), served()))
    buyer = world.buyer(kind)
    outcome = attempt(buyer, url)
    if isinstance(outcome, PaymentError):
        assert outcome.at_risk is False and world.signer.calls == 0
    assert len(seller.authorizations()) <= 1


@pytest.mark.parametrize(
    "text", ["\x1b[2J\x1b[31m", "\r\nSet-Cookie: a=b", "\u202e\u2066", "x" * 10_000]
)
def test_text_of_the_seller_does_not_reach_the_terminal_raw(
    world: World, kind: Kind, text: str
) -> None:
    """Row 56, first half: control characters and length of seller text are tamed in our messages."""
    seller = world.seller()
    document = challenge(offer(network=text, scheme=text, payTo=text), error=text)
    error = world.refused(
        world.buyer(kind), seller.on("/p", paywall(in_body(document), served())), *UNREADABLE
    )
    message = str(error)
    assert len(message) < 3000
    assert not any(c in message for c in "\x1b\r\u202e\u2066")


def test_case_and_spaces_around_the_header_do_not_matter(world: World, kind: Kind) -> None:
    """Row 41: HTTP header names have no case, and values may be padded."""
    seller = world.seller()
    value = encode(challenge(offer()))
    reply = Reply(status=402, headers=[("payment-required", f"  {value}\t ")], body=b"{}")
    url = seller.on("/paid", paywall(reply, served()))
    assert world.buyer(kind).get(url).status_code == 200
