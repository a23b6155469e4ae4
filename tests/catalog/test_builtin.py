"""What mask-refinement takes is known without a catalog (contract 2)."""

from __future__ import annotations

from typing import Any

import anyio
import httpx
import pytest

from tests.catalog.conftest import MakePayer
from tests.catalog.kit import MODES, Shop, entry, market, using
from tests.catalog.test_input import nothing_paid
from tests.support.seller import offer, paywall, served, server402_body
from x402_mask import (
    AsyncPaymentTransport,
    Cap,
    InputRefused,
    MemoryLedger,
    OfferRefused,
    Payer,
    PaymentTransport,
    Wallet,
)
from x402_mask.sandbox import Sandbox

GOOD = {"ImageURL": "https://a.example/x.png", "MaskImageURL": "https://a.example/m.png"}
IMAGE, MASK = GOOD.values()
WRONG: dict[str, dict[str, Any]] = {
    "a name in another case": {"json": {"ImageUrl": IMAGE, "MaskImageURL": MASK}},
    "a name missing": {"json": {"ImageURL": IMAGE}},
    "every name in another case": {"json": {name.lower(): url for name, url in GOOD.items()}},
    "no text": {"json": {**GOOD, "MaskImageURL": 7}},
    "no URL": {"json": {**GOOD, "ImageURL": "photo.png"}},
    "empty": {"json": {**GOOD, "ImageURL": ""}},
    "not JSON": {"content": b"ImageURL=x"},
    "a form": {"data": GOOD},
    "a list": {"json": [GOOD]},
}
ELSE: dict[str, dict[str, Any]] = {
    "another thing": {"json": {"n": 1}},
    "nothing": {},
    "bytes": {"content": b"abc"},
    "no inputs": {"json": {}},
    "a list": {"json": [1, 2]},
    "text": {"json": "photo"},
    "a form of other things": {"data": {"n": 1}},
    "files": {"files": {"n": b"abc"}},
}


def stated(*names: str, required: bool = False) -> Any:
    """An ``outputSchema`` whose input has these fields."""
    field = {"type": "string", "required": True} if required else {"type": "string"}
    return {
        "input": {
            "type": "http",
            "method": "POST",
            "bodyType": "json",
            "bodyFields": dict.fromkeys(names, field),
        }
    }


@pytest.mark.parametrize("wrong", WRONG)
def test_what_it_would_refuse_is_not_paid_for(
    shop: Shop, make_payer: MakePayer, wrong: str
) -> None:
    """Whoever sells it, and however its path is spelled."""
    payer, url = make_payer(), shop.sells()
    for place in (url, shop.sells("Mask-Refinement"), shop.sells("mask%2Drefinement")):
        with pytest.raises(InputRefused):
            using("client", payer, lambda c: c.post(place, **WRONG[wrong]))  # noqa: B023
    assert nothing_paid(payer, shop)
    assert using("client", payer, lambda c: c.post(url, json=GOOD)).status_code == 200
    assert using("client", payer, lambda c: c.post(url, json={**GOOD, "x": 1})).status_code == 200


@pytest.mark.parametrize("mode", MODES)
def test_by_every_client(shop: Shop, make_payer: MakePayer, mode: str) -> None:
    """Before anything is signed."""
    payer, url = make_payer(), shop.sells()
    with pytest.raises(InputRefused, match=r"'ImageURL' is required .*'ImageUrl'"):
        using(mode, payer, lambda c: c.post(url, **WRONG["a name in another case"]))
    assert nothing_paid(payer, shop)


def test_the_sandbox_says_itself_that_it_is_this_service() -> None:
    """Its challenge states these inputs: what names none of them is wrong as well."""
    with (
        Sandbox() as real,
        Payer(
            Wallet.create(), caps=[Cap(1, per="total")], origins=[real.url], ledger=MemoryLedger()
        ) as payer,
    ):
        url = f"{real.url}/api/tools/mask-refinement"
        for body in (*WRONG.values(), *ELSE.values()):
            with pytest.raises(InputRefused):
                using("client", payer, lambda c: c.post(url, **body))  # noqa: B023
        assert payer.payments() == []


HOMES = ("https://x402vip.com", "https://aivps.lat")


@pytest.mark.parametrize("url", [f"{home}/api/tools/mask-refinement" for home in HOMES])
@pytest.mark.parametrize("mode", ["transport", "async-transport"])
def test_at_home_nothing_else_is_meant(mode: str, url: str) -> None:
    """Where its own marketplace states nothing, a request for something else is wrong too."""
    sent: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        sent.append(request)
        challenge = offer("200000", extra=None)
        return httpx.Response(402, content=server402_body(challenge).body)

    with Payer(
        Wallet.create(), caps=[Cap(1, per="total")], origins=HOMES, ledger=MemoryLedger()
    ) as payer:
        for body in (*WRONG.values(), *ELSE.values()):
            with pytest.raises(InputRefused, match=r"^mask-refinement would refuse this request"):
                through(mode, payer, answer, url, body)
        assert [r for r in sent if "payment-signature" in r.headers] == []
        assert payer.payments() == []
        assert through(mode, payer, answer, url, {"json": GOOD}) == 402  # paid, and asked again
        assert len(payer.payments()) == 1


def through(mode: str, payer: Payer, answer: Any, url: str, body: dict[str, Any]) -> int:
    """The status of a call through a paying transport round *answer*."""
    if mode == "transport":
        with httpx.Client(transport=PaymentTransport(payer, httpx.MockTransport(answer))) as client:
            return client.post(url, **body).status_code

    async def later() -> int:
        inner = AsyncPaymentTransport(payer, httpx.MockTransport(answer))
        async with httpx.AsyncClient(transport=inner) as client:
            return (await client.post(url, **body)).status_code

    return anyio.run(later)


@pytest.mark.parametrize("path", ["/API/tools/Mask-Refinement", "/api//tools/mask-refinement"])
def test_the_refusal_names_the_service_that_was_meant(
    shop: Shop, make_payer: MakePayer, path: str
) -> None:
    """However its path is spelled: the origin would not refuse anything."""
    shop.sells()
    unpaid = server402_body(offer("200000", extra=None))
    url = shop.seller.on(path, paywall(unpaid, served(b"{}")))
    with pytest.raises(InputRefused, match=r"^mask-refinement would refuse this request"):
        using("client", make_payer(), lambda c: c.post(url, json={"imageurl": "x"}))


@pytest.mark.parametrize("other", ELSE)
def test_another_service_of_that_name_is_not_judged_by_it(
    shop: Shop, make_payer: MakePayer, other: str
) -> None:
    """A seller that states nothing, asked for something else; and one that states other inputs."""
    payer, url = make_payer(), shop.sells()
    assert using("client", payer, lambda c: c.post(url, **ELSE[other])).status_code == 200
    url = shop.sells(schema=stated("image_url", "imageurl"))
    body = {"json": {"imageurl": "x", "n": other}}
    assert using("client", payer, lambda c: c.post(url, **body)).status_code == 200


def test_its_sellers_catalog_knows_better(shop: Shop, make_payer: MakePayer) -> None:
    """An input that is optional there is optional."""
    schema = {"type": "object", "properties": {name: {"type": "string"} for name in GOOD}}
    shop.lists(entry(inputSchema=schema))
    payer, url = make_payer(), shop.sells(schema=stated(*GOOD))
    with pytest.raises(InputRefused):
        using("client", payer, lambda c: c.post(url, json={"ImageURL": IMAGE}))
    market(shop, payer).service("mask-refinement")
    assert (
        using("client", payer, lambda c: c.post(url, json={"ImageURL": IMAGE})).status_code == 200
    )


def test_it_can_be_turned_off(shop: Shop, make_payer: MakePayer) -> None:
    """As every judgement of bodies can."""
    payer, url = make_payer(validate_input=False), shop.sells()
    assert using("client", payer, lambda c: c.post(url, json={"ImageURL": 7})).status_code == 200


def test_other_terms_of_a_catalog_hold_for_every_spelling(
    shop: Shop, make_payer: MakePayer
) -> None:
    """A price and a schema can only make paying harder, so another spelling lifts neither."""
    schema = {"type": "object", "required": ["a"]}
    shop.lists(entry("thing", inputSchema=schema, pricing={"amountCents": 10}))
    payer = make_payer()
    market(shop, payer).service("thing")
    url = shop.sells("Thing", amount="100000")
    with pytest.raises(InputRefused):
        using("client", payer, lambda c: c.post(url, json={}))
    shop.sells("Thing", amount="110000")
    with pytest.raises(OfferRefused, match="catalog's price"):
        using("client", payer, lambda c: c.post(url, json={"a": 1}))
    assert nothing_paid(payer, shop)
