"""A body that the service would refuse is never paid for (contract 5, ``InputRefused``)."""

from __future__ import annotations

from typing import Any

import pytest

from tests.catalog.conftest import MakePayer
from tests.catalog.kit import MODES, Shop, client_of, entry, market, using
from tests.support.seller import offer, offer_v1, paywall, served, v1_body, v2_body, v2_header
from x402_mask import (
    Cap,
    InputRefused,
    Marketplace,
    MemoryLedger,
    Payer,
    PaymentRefused,
    Wallet,
    receipt_of,
)
from x402_mask._payer import buyer_of
from x402_mask.sandbox import Sandbox

SCHEMA = {"type": "object", "required": ["a"], "properties": {"a": {"type": "string"}}}
FIELDS = {
    "input": {
        "type": "http",
        "method": "POST",
        "bodyType": "json",
        "bodyFields": {"a": {"type": "string", "required": True}},
    }
}
BAZAAR = {
    "bazaar": {
        "info": {
            "input": {"type": "http", "method": "POST", "bodyType": "json", "body": {"a": "x"}}
        },
        "schema": {
            "type": "object",
            "properties": {
                "input": {
                    "type": "object",
                    "properties": {
                        "type": {"const": "http"},
                        "bodyType": {"enum": ["json", "form-data", "text"]},
                        "body": SCHEMA,
                    },
                }
            },
        },
    }
}
STATED = {
    "server402": lambda: {"schema": FIELDS},
    "input-schema": lambda: {"schema": {"input": SCHEMA}},
    "bazaar": lambda: {"extensions": BAZAAR},
    "bazaar-tool": lambda: {
        "extensions": {
            "bazaar": {"info": {"input": {"type": "mcp", "tool": "sold", "inputSchema": SCHEMA}}}
        }
    },
    "bazaar-plain": lambda: {"extensions": {"bazaar": {"inputSchema": SCHEMA}}},
    "document": lambda: {"inputSchema": SCHEMA},
}


def nothing_paid(payer: Payer, shop: Shop) -> bool:
    """No signature was asked for, no row was written, no proof left."""
    signer: Any = buyer_of(payer).settings.signer
    return signer.calls == 0 and payer.payments() == [] and shop.seller.proofs() == []


@pytest.mark.parametrize("stated", STATED)
def test_a_schema_in_the_challenge_is_kept_to(
    shop: Shop, make_payer: MakePayer, stated: str
) -> None:
    payer, url = make_payer(), shop.sells(**STATED[stated]())
    for body in ({}, {"a": 7}):
        with pytest.raises(InputRefused, match="validate_input=False") as caught:
            using("client", payer, lambda c: c.post(url, json=body))  # noqa: B023
    assert (caught.value.reason, caught.value.at_risk) == ("input", False)
    assert caught.value.response.status_code == 402
    assert nothing_paid(payer, shop)
    assert using("client", payer, lambda c: c.post(url, json={"a": "x"})).status_code == 200
    assert len(payer.payments()) == 1


@pytest.mark.parametrize(
    "reply",
    [
        v1_body({**offer_v1("200000"), "outputSchema": FIELDS}),
        v2_body(offer("200000"), extensions=BAZAAR),
        v2_header(offer("200000"), extensions=BAZAAR),
    ],
    ids=("v1", "v2-body", "v2-header"),
)
def test_in_every_form(shop: Shop, make_payer: MakePayer, reply: Any) -> None:
    payer = make_payer()
    url = shop.seller.on("/paid", paywall(reply, served()))
    with pytest.raises(InputRefused, match="'a' is required"):
        using("client", payer, lambda c: c.post(url, json={}))
    assert nothing_paid(payer, shop)
    assert using("client", payer, lambda c: c.post(url, json={"a": "x"})).content == b"goods"


@pytest.mark.parametrize("family", ["httpx", "httpx2"])
@pytest.mark.parametrize("mode", MODES)
def test_a_schema_in_the_catalog_is_kept_to(
    shop: Shop, make_payer: MakePayer, mode: str, family: str
) -> None:
    """No request more per paid call, under the service's legacy name as well."""
    shop.lists(entry(inputSchema=SCHEMA, legacyEndpoint="/api/tools/old"))
    urls = [shop.sells(), shop.sells("old")]
    payer = make_payer()
    market(shop, payer, mode, family).service("mask-refinement")
    asked = len(shop.paths())
    for url in urls:
        with pytest.raises(InputRefused, match="'a' is required"):
            using(mode, payer, lambda c: c.post(url, json={"b": "x"}), family)  # noqa: B023
    assert nothing_paid(payer, shop)
    assert using(mode, payer, lambda c: c.post(urls[1], json={"a": ""}), family).status_code == 200
    assert shop.paths()[asked:] == ["/api/tools/mask-refinement", *["/api/tools/old"] * 3]


def test_it_can_be_turned_off(shop: Shop, make_payer: MakePayer) -> None:
    shop.lists(entry(inputSchema=SCHEMA))
    payer = make_payer(validate_input=False)
    market(shop, payer).service("mask-refinement")
    url = shop.sells(schema=FIELDS)
    assert using("client", payer, lambda c: c.post(url, json={})).status_code == 200


def test_it_is_forgotten_after_an_hour(shop: Shop, make_payer: MakePayer) -> None:
    now = [1_700_000_000.0]
    shop.lists(entry(inputSchema=SCHEMA, pricing={"amountCents": 1}))
    payer = make_payer(clock=lambda: now[0])
    market(shop, payer).service("mask-refinement")
    url = shop.sells()
    for later in (0.0, 3599.0, -1.0):
        now[0] = 1_700_000_000.0 + later
        if later >= 0:
            with pytest.raises(PaymentRefused):
                using("client", payer, lambda c: c.post(url, json={}))
    for later in (3600.0, -1.0):
        now[0] = 1_700_000_000.0 + later
        assert using("client", payer, lambda c: c.post(url, json={})).status_code == 200


def test_an_origin_that_is_not_the_payers_teaches_it_nothing(
    shop: Shop, make_payer: MakePayer
) -> None:
    payer = make_payer(origins=["https://elsewhere.example"])
    shop.lists(entry(inputSchema=SCHEMA, legacyEndpoint="/api/tools/old"))
    market(shop, payer).search()
    assert (
        buyer_of(payer).catalog.recall(shop.origin, "mask-refinement", buyer_of(payer).now())
        is None
    )
    assert buyer_of(payer).catalog.groups == ()


def test_what_cannot_be_judged_is_paid(shop: Shop, make_payer: MakePayer) -> None:
    """GET parameters, bodies that are not in memory, and a mere example of a body."""
    payer = make_payer(caps=[Cap(50, per="total")])
    url = shop.sells(schema=FIELDS)
    info = {"bazaar": {"info": BAZAAR["bazaar"]["info"], "schema": {"type": "object"}}}
    example = shop.sells("example", extensions=info)
    said = {**BAZAAR["bazaar"], "info": {"input": {"type": "http", "bodyType": "form-data"}}}
    upload = shop.sells("upload", extensions={"bazaar": said})
    form = shop.sells("form", schema={"input": {**FIELDS["input"], "bodyType": "form-data"}})
    with client_of("client", payer) as client:
        for answer in (
            client.get(url),
            client.post(url, files={"f": b"x"}),
            client.post(url, content=b"[" + b"1," * 600_000 + b"1]"),
            client.post(url, content=b"\x1f\x8b", headers={"Content-Encoding": "gzip"}),
            client.post(example, json={}),
            client.post(form, data={"b": "x"}),
            client.post(upload, data={"b": "x"}),
        ):
            assert answer.status_code == 200


def test_an_open_operation_is_presented_again_whatever_the_catalog_says_now(
    shop: Shop, make_payer: MakePayer
) -> None:
    """Contract 2: its proof is out already, so refusing would save nothing."""
    payer, failing = make_payer(), served(b"oops", status=500)
    url = shop.sells(paid=failing)
    assert using("client", payer, lambda c: c.post(url, json={})).status_code == 500
    shop.lists(entry(inputSchema=SCHEMA))
    market(shop, payer).service("mask-refinement")
    assert using("client", payer, lambda c: c.post(url, json={})).status_code == 500
    assert len(shop.seller.authorizations()) == 1 and len(shop.seller.proofs()) == 2


def test_a_preempted_call_is_judged_too(shop: Shop, make_payer: MakePayer) -> None:
    payer, url = make_payer(preempt=True), shop.sells(schema=FIELDS)
    with client_of("client", payer) as client:
        client.post(url, json={"a": "x"})
        assert client.post(url, json={"a": "y"}).status_code == 200
        assert len(shop.seller.hits) == 3  # the second was paid with its first request
        with pytest.raises(InputRefused):
            client.post(url, json={})
    assert len(shop.seller.authorizations()) == 2


def test_a_schema_of_no_use_is_ignored_and_said_once(shop: Shop, make_payer: MakePayer) -> None:
    events: list[Any] = []
    payer = make_payer(on_event=events.append)
    evil = {"type": "object", "properties": {"a": {"pattern": "(a+)+$"}}, "$ref": "http://evil/"}
    url = shop.sells(inputSchema=evil)
    for _ in range(2):
        answer = using("client", payer, lambda c: c.post(url, json={"a": "a" * 60 + "!"}))
        assert answer.status_code == 200
    said = [event for event in events if event.kind == "schema_ignored"]
    assert [event.service for event in said] == ["mask-refinement"]
    assert said[0].detail == {"ignored": ("a $ref that leads elsewhere",)}


def test_a_quote_says_so_and_keeps_the_price(shop: Shop, make_payer: MakePayer) -> None:
    payer, url = make_payer(), shop.sells(schema=FIELDS)
    with client_of("client", payer) as client:
        quote = payer.quote(client.build_request("POST", url, json={}))
        fine = payer.quote(client.build_request("POST", url, json={"a": "x"}))
    assert quote is not None and isinstance(quote.refusal, InputRefused)
    assert str(quote.usd) == "0.20" and not quote.allowed
    assert fine is not None and fine.allowed


def test_the_sandbox_states_its_fields(shop: Shop) -> None:
    """End to end: what the marketplace would take the money for, and refuse."""
    with Sandbox() as real:
        options: Any = {"caps": [Cap(1, per="total")], "origins": [real.url]}
        with Payer(Wallet.create(), ledger=MemoryLedger(), **options) as payer:
            url = real.url + "/api/tools/mask-refinement"
            with pytest.raises(InputRefused, match="ImageURL is not of type string"):
                using("client", payer, lambda c: c.post(url, json={"ImageURL": 7}))
        assert real.book.settlements == []


def test_no_challenge_makes_trouble(shop: Shop, make_payer: MakePayer) -> None:
    """Where a schema could be, anything may be."""
    payer = make_payer()
    for odd in (
        None,
        7,
        "x",
        [],
        {},
        {"input": 7},
        {"input": {"type": "http", "bodyFields": [1]}},
        {"input": {"type": "http", "bodyFields": {"a": 7}}},
        {"input": {"type": "object"}},
    ):
        url = shop.sells(schema=odd, inputSchema=odd, extensions={"bazaar": odd})
        assert using("client", payer, lambda c: c.post(url, json={"a": 7})).status_code == 200  # noqa: B023


def test_a_giant_schema_of_the_catalog_is_ignored_and_not_kept(
    shop: Shop, make_payer: MakePayer
) -> None:
    events: list[Any] = []
    payer = make_payer(on_event=events.append)
    shop.lists(entry(inputSchema={**SCHEMA, "description": "x" * 500_000}))
    market(shop, payer).service("mask-refinement")
    terms = buyer_of(payer).catalog.recall(shop.origin, "mask-refinement", buyer_of(payer).now())
    assert terms is not None and len(terms.schema) < 70_000
    url = shop.sells()
    assert using("client", payer, lambda c: c.post(url, json={})).status_code == 200
    (said,) = [event for event in events if event.kind == "schema_ignored"]
    assert said.detail == {"ignored": ("longer than 64 KiB",)}


def test_nobody_is_asked_to_approve_what_would_be_refused(
    shop: Shop, make_payer: MakePayer
) -> None:
    asked: list[Any] = []

    def approve(quote: Any) -> bool:
        asked.append(quote)
        return True

    payer = make_payer(approve=approve)
    url = shop.sells(schema=FIELDS)
    with pytest.raises(InputRefused):
        using("client", payer, lambda c: c.post(url, json={}))
    assert asked == []
    using("client", payer, lambda c: c.post(url, json={"a": "x"}))
    assert len(asked) == 1


def test_a_held_token_is_not_spent_on_what_would_be_refused() -> None:
    """Neither before the seller is asked nor after: a token is money that is gone already."""
    with Sandbox(auto_paid=True, calls_per_payment=2) as real:
        options: Any = {"caps": [Cap(1, per="total")], "origins": [real.url], "prefer": TOKENS}
        pictures = {name: f"{real.url}/static/{path}" for name, path in PICTURES.items()}
        url = real.url + "/api/tools/mask-refinement"
        with (
            Payer(None, ledger=MemoryLedger(), **options) as payer,
            client_of("client", payer) as client,
        ):
            Marketplace(real.url, client).service("mask-refinement")
            bought = receipt_of(client.post(url, json=pictures))
            with pytest.raises(InputRefused, match="'MaskImageURL' is required"):
                client.post(url, json={"ImageURL": "https://a.example/x"})
            used = receipt_of(client.post(url, json=pictures))
        assert bought is not None and bought.route == "token"
        assert used is not None and used.route == "held-token"
        assert used.payment_id == bought.payment_id


TOKENS = ("held-token", "token")
PICTURES = {"ImageURL": "photo.png", "MaskImageURL": "mask.png"}
