"""Every way a 402 is known to look over MCP, and what only looks like one."""

from __future__ import annotations

import json
from typing import Any

import pytest
from mcp import MCPError
from mcp.types import CallToolResult

from tests.mcp.kit import (
    ORIGIN,
    Json,
    Shop,
    asks,
    colours,
    connected,
    document,
    made,
    payer_of,
    run,
    said,
)
from tests.support.seller import challenge, offer, offer_server402, offer_v1
from x402_mask import ChallengeError, OfferRefused, OriginRefused, Receipt
from x402_mask._wire.x402 import read_challenge, read_settlement
from x402_mask.mcp import PaidSession, receipt_of
from x402_mask.mcp._answers import heard

V1 = challenge(offer_v1("100000"), version=1)
ATTESTED: Json = {"accepts": [offer_server402("100000")], "error": "payment required"}
NULLS = document(accepts=[{**offer("100000"), "note": None, "outputSchema": {"a": [{"b": None}]}}])
ERROR = {"code": 402, "message": "payment required", "data": document()}
FORMS: dict[str, Any] = {
    "structured": asks(document()),
    "with nulls": asks(NULLS),
    "structured alone": said("pay first", document(), is_error=True),
    "text": said(json.dumps(document()), is_error=True),
    "wrapped, structured": said("pay first", {"x402/error": ERROR}, is_error=True),
    "wrapped, text": said(json.dumps({"x402/error": ERROR}), is_error=True),
    "wrapped, flat": said(json.dumps({"x402/error": {"code": 402, **document()}}), is_error=True),
    "prefixed": said(f"Error executing tool make_thing: {json.dumps(document())}", is_error=True),
    "prefixed, wrapped": said(
        f"Error executing tool make_thing: {json.dumps({'x402/error': ERROR})}", is_error=True
    ),
    "attested": asks(ATTESTED),
    "attested, text": said(json.dumps(ATTESTED), is_error=True),
    "version 1": asks(V1),
    "no isError": asks(document(), is_error=False),
    "no isError, wrapped": said("", {"x402/error": ERROR}),
    "error": MCPError(402, "Payment required", document()),
    "error, wrapped": MCPError(402, "Payment required", {"x402/error": ERROR}),
    "error, in the message": MCPError(402, json.dumps(document())),
    "error, one level down": MCPError(402, "pay", {"paymentRequired": document()}),
    "error, written one level down": MCPError(402, "pay", {"challenge": json.dumps(document())}),
    "error -32402": MCPError(-32402, "Payment required", document()),
    "error -32402, as text": MCPError(-32402, "Payment required", json.dumps(document())),
    "error -32402, in the message": MCPError(-32402, json.dumps(document())),
    "error -32402, wrapped": MCPError(-32402, "pay", {"x402/error": ERROR}),
    "error -32402, one level down": MCPError(-32402, "pay", {"kind": "x402", "x402": document()}),
    "error -32042": MCPError(-32042, "Payment required", document()),
    "error -32042, one level down": MCPError(
        -32042, "pay", {"challenges": [{"method": "evm"}], "x402": document()}
    ),
    "error -32042, in a list": MCPError(-32042, "pay", {"challenges": [document()]}),
    "error -32402, a list": MCPError(-32402, "pay", [document()]),
    "meta": said("pay first", is_error=True, meta={"x402/error": document()}),
    "meta, wrapped": said("pay first", is_error=True, meta={"x402/error": ERROR}),
    "meta, as text": said("pay", is_error=True, meta={"x402/error": json.dumps(document())}),
    "meta, no isError": said("pay first", meta={"x402/error": {**ERROR, "code": -32402}}),
    "meta, one level down": said(
        "pay", is_error=True, meta={"x402/error": {"code": 402, "data": {"x402": document()}}}
    ),
    "meta, and the same as text": asks(document(), meta={"x402/error": ERROR}),
}


@pytest.mark.parametrize("mode", ["legacy", "auto"])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_paid(form: str, mode: str) -> None:
    """One challenge, one signature, one receipt; the offer goes back as it came, but for nulls."""
    shop, payer = Shop(FORMS[form]), payer_of()

    async def scenario() -> CallToolResult:
        async with connected(shop, mode) as session:
            return await PaidSession(session, payer, ORIGIN).call_tool("make_thing", {"n": 1})

    result = run(scenario)
    assert result.structured_content == {"made": "it"}
    receipt = receipt_of(result)
    assert isinstance(receipt, Receipt)
    assert (receipt.outcome, receipt.service, str(receipt.usd)) == ("settled", "make-thing", "0.10")
    assert len(shop.authorizations) == 1 and len(shop.calls) == 2
    (proof,) = shop.proofs
    assert isinstance(proof, dict) and "null" not in json.dumps(proof)
    if form == "version 1":
        assert proof["x402Version"] == 1 and proof["network"] == "base"
    else:
        asked = {"attested": ATTESTED, "attested, text": ATTESTED}.get(form, document())
        (wanted,) = asked["accepts"]
        more = {"outputSchema": {"a": [{}]}} if form == "with nulls" else {}
        assert proof["accepted"] == wanted | more
    assert [call.arguments for call in shop.calls] == [{"n": 1}, {"n": 1}]


HANDED_BACK: dict[str, CallToolResult] = {
    "a plain answer": said("hello", {"made": "it"}),
    "an error of the tool": said("no such thing", is_error=True),
    "a fault": said("Internal Server Error", is_error=True),
    "somebody else's challenge, delivered": said(
        "", document(resource={"url": "https://other.example/api/tools/x"})
    ),
    "another tool's challenge, delivered": said("", document(resource={"url": "mcp://tool/other"})),
    "an old challenge of others, delivered": said(
        "", {"x402Version": 1, "accepts": [{"resource": "https://other.example/x"}]}
    ),
    "what a tool accepts": said("", {"accepts": ["json"], "error": "unknown type"}, is_error=True),
    "a payment object that was delivered": said(
        "", {"paymentId": "p", "status": "pending", "serviceId": "other-thing"}
    ),
    "a text over 64 KiB": said(json.dumps(document(more="x" * 65_536)), is_error=True),
    "prose": said('{"x402Version": is a key of challenges', is_error=True),
}


@pytest.mark.parametrize("kind", HANDED_BACK)
def test_what_is_no_challenge_is_handed_back(kind: str) -> None:
    """Nothing is signed, nothing is asked twice, and nothing is kept from the caller."""
    shop, payer = Shop(HANDED_BACK[kind]), payer_of()

    async def scenario() -> CallToolResult:
        async with connected(shop) as session:
            return await PaidSession(session, payer, ORIGIN).call_tool("make_thing")

    result = run(scenario)
    assert result.content == HANDED_BACK[kind].content
    assert result.is_error is HANDED_BACK[kind].is_error
    assert receipt_of(result) is None
    assert len(shop.calls) == 1 and payer.payments() == []


BROKEN: dict[str, Any] = {
    "no list": asks({"x402Version": 2, "accepts": None}),
    "unknown version": asks(document(x402Version=99)),
    "cut": said(json.dumps(document())[:-9], is_error=True),
    "two of a key": said('{"x402Version": 2, "accepts": [], "accepts": [{}]}', is_error=True),
    "deep": asks(document(extensions=json.loads("[" * 40 + "]" * 40))),
    "an error of 402": MCPError(402, "pay", {"x402Version": 2, "accepts": "all"}),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_garbage_that_claims_to_be_a_challenge(kind: str) -> None:
    """One type of error, with the answer that caused it."""
    shop, payer = Shop(BROKEN[kind]), payer_of()

    async def scenario() -> None:
        async with connected(shop) as session:
            with pytest.raises(ChallengeError) as caught:
                await PaidSession(session, payer, ORIGIN).call_tool("make_thing")
            assert caught.value.response is not None and caught.value.at_risk is False

    run(scenario)
    assert len(shop.calls) == 1 and payer.payments() == []


def test_structured_content_and_text_that_name_other_terms() -> None:
    """As with header and body: a different amount is a refusal, not a choice."""
    shop = Shop(said(json.dumps(document("100")), document("200000"), is_error=True))

    async def scenario() -> None:
        async with connected(shop) as session:
            with pytest.raises(OfferRefused) as caught:
                await PaidSession(session, payer_of(), ORIGIN).call_tool("make_thing")
            assert caught.value.reason == "contradiction"

    run(scenario)
    assert shop.proofs == []


ODD: dict[str, CallToolResult] = {
    "not a number": said("", {"score": float("nan")}, meta={"x402/payment-response": float("inf")}),
    "long": said("x" * 200_000, {"accepts": "x" * 200_000}),
    "no text": CallToolResult(content=[], structured_content=[1], is_error=True),
    "half a character": said("\ud800", {"a": "\ud800"}, is_error=True),
    "settlement without end": said("", {"a": 1}, meta={"x402/payment-response": "y" * 200_000}),
}


@pytest.mark.parametrize("kind", ODD)
def test_no_answer_is_too_odd_to_be_handed_back(kind: str) -> None:
    """After a payment above all: reading an answer never fails."""
    found = heard(ODD[kind], lambda _: True)
    assert found.status == (500 if ODD[kind].is_error else 200)
    settled = read_settlement(found.headers)
    assert settled is None or settled.garbled


def test_a_challenge_that_no_json_can_hold() -> None:
    found = heard(asks({**document(), "extensions": {"a": float("nan")}}), lambda _: True)
    with pytest.raises(ChallengeError):
        read_challenge(found.headers["payment-required"], found.body)


@colours
def test_a_402_without_a_challenge_is_the_servers_own_error(backend: str) -> None:
    shop = Shop(MCPError(402, "pay somehow"))

    async def scenario() -> None:
        async with connected(shop) as session:
            with pytest.raises(MCPError, match="pay somehow"):
                await PaidSession(session, payer_of(), ORIGIN).call_tool("make_thing")

    run(scenario, backend)
    assert shop.proofs == []


ERRORS: dict[str, MCPError] = {
    "a URL to visit": MCPError(
        -32042,
        "visit",
        {
            "elicitations": [
                {
                    "mode": "url",
                    "url": "https://a.example",
                    "message": "sign in",
                    "elicitationId": "1",
                }
            ]
        },
    ),
    "a URL, and nothing": MCPError(-32042, "visit"),
    "another scheme": MCPError(-32402, "pay", {"challenges": [{"method": "tempo"}]}),
    "what it accepts": MCPError(-32402, "pay", {"accepts": ["json"]}),
    "two levels down": MCPError(-32402, "pay", {"a": {"b": document()}}),
    "another code": MCPError(-32000, "Payment required", document()),
}


@pytest.mark.parametrize("kind", ERRORS)
def test_errors_that_ask_for_nothing_are_the_servers_own(kind: str) -> None:
    """-32042 is MCP's own for "visit this URL first": it comes as it was sent."""
    shop, payer = Shop(ERRORS[kind]), payer_of()

    async def scenario() -> None:
        async with connected(shop) as session:
            with pytest.raises(MCPError) as caught:
                await PaidSession(session, payer, ORIGIN).call_tool("make_thing")
            assert caught.value.code == ERRORS[kind].code
            assert caught.value.error == ERRORS[kind].error

    run(scenario)
    assert len(shop.calls) == 1 and shop.proofs == [] and payer.payments() == []


@pytest.mark.parametrize("code", [402, -32402, -32042])
def test_an_error_that_names_two_sets_of_terms(code: int) -> None:
    dearer = document(accepts=[offer("200000")])
    shop = Shop(MCPError(code, "pay", {"a": document(), "b": dearer}))

    async def scenario() -> None:
        async with connected(shop) as session:
            with pytest.raises(OfferRefused) as caught:
                await PaidSession(session, payer_of(), ORIGIN).call_tool("make_thing")
            assert caught.value.reason == "contradiction"

    run(scenario)
    assert shop.proofs == []


def test_a_challenge_in_meta_beside_a_settlement_is_none() -> None:
    """Delivered is delivered."""
    told = {"success": True, "transaction": "0x" + "ab" * 32, "network": "eip155:8453"}
    result = said("made", meta={"x402/error": ERROR, "x402/payment-response": told})
    assert heard(result, lambda _: True).status == 200


def test_an_origin_that_is_not_listed_is_not_paid() -> None:
    """But what it gives away is handed on."""
    shop = Shop(asks(document()))

    async def scenario() -> None:
        async with connected(shop) as session:
            paid = PaidSession(session, payer_of("https://other.example"), ORIGIN)
            with pytest.raises(OriginRefused, match=r"shop\.example"):
                await paid.call_tool("make_thing")
            shop.unpaid = made()
            assert receipt_of(await paid.call_tool("make_thing")) is None

    run(scenario)
    assert shop.proofs == []
