"""What a payer does with a catalog: refuse a dearer offer, and see through other names."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from tests.catalog.conftest import MakePayer
from tests.catalog.kit import MODES, Shop, client_of, entry, market, using
from tests.support.seller import offer
from x402_mask import (
    Cap,
    CapExceeded,
    Marketplace,
    MemoryLedger,
    OfferRefused,
    Payer,
    PaymentRefused,
)
from x402_mask._payer import buyer_of
from x402_mask._policy.catalog_cache import CatalogCache, CatalogEntry
from x402_mask.sandbox import Sandbox


def post(payer: Payer, url: str) -> Any:
    return using("client", payer, lambda client: client.post(url, json={}))


# --- prices


@pytest.mark.parametrize("mode", MODES)
def test_a_dearer_offer_than_the_catalogs_is_refused(
    shop: Shop, make_payer: MakePayer, mode: str
) -> None:
    shop.lists(entry())
    payer = make_payer()
    market(shop, payer, mode).search()
    url = shop.sells(amount="200001")
    with pytest.raises(OfferRefused, match="allow_above_catalog=True") as caught:
        using(mode, payer, lambda c: c.post(url, json={}))
    assert caught.value.reason == "catalog_price" and "$0.200001 is asked" in str(caught.value)
    assert payer.payments() == [] and shop.seller.proofs() == []
    url = shop.sells(amount="200000")
    assert using(mode, payer, lambda c: c.post(url, json={})).status_code == 200


@pytest.mark.parametrize(
    ("pricing", "most"),
    [
        ({"amountCents": 0.1}, 1000),
        ({"amountCents": "0.15"}, 1500),
        ({"amountCents": 0}, 10_000),
        ({"amountCents": 5, "currency": None}, 50_000),
    ],
)
def test_prices_below_a_cent(shop: Shop, make_payer: MakePayer, pricing: Any, most: int) -> None:
    """Whole cents of 0 are what such a price is rounded to, so they mean up to a cent."""
    shop.lists(entry(pricing=pricing))
    payer = make_payer()
    market(shop, payer).service("mask-refinement")
    with pytest.raises(OfferRefused, match="the catalog's price"):
        post(payer, shop.sells(amount=str(most + 1)))
    assert post(payer, shop.sells(amount=str(most))).status_code == 200


@pytest.mark.parametrize(
    ("options", "pricing"),
    [
        ({"allow_above_catalog": True}, {"amountCents": 1}),
        ({}, None),
        ({}, {"amountCents": "x"}),
        ({}, {"amountCents": 1, "currency": "CNY"}),
    ],
)
def test_a_price_that_is_not_known_or_not_minded(
    shop: Shop, make_payer: MakePayer, options: Any, pricing: Any
) -> None:
    shop.lists(entry(pricing=pricing))
    payer = make_payer(**options)
    market(shop, payer).service("mask-refinement")
    assert post(payer, shop.sells()).status_code == 200


def test_a_quote_says_so(shop: Shop, make_payer: MakePayer) -> None:
    shop.lists(entry(pricing={"amountCents": 1}))
    payer, url = make_payer(), shop.sells()
    with client_of("client", None) as client:
        Marketplace(shop.origin, client, payer=payer).search()  # a plain client, and whose it is
        quote = payer.quote(client.build_request("POST", url, json={}))
    assert quote is not None and quote.refusal is not None
    assert (quote.refusal.reason, quote.usd) == ("catalog_price", Decimal("0.20"))


def test_the_last_word_of_the_catalog_counts(shop: Shop, make_payer: MakePayer) -> None:
    payer, url = make_payer(), shop.sells()
    for cents, allowed in ((1, False), (20, True), (19, False)):
        shop.lists(entry(pricing={"amountCents": cents}))
        market(shop, payer).service("mask-refinement")
        if allowed:
            assert post(payer, url).status_code == 200
        else:
            with pytest.raises(OfferRefused):
                post(payer, url)


# --- names


def test_a_cap_sees_through_a_name_that_the_catalog_tells(
    shop: Shop, make_payer: MakePayer
) -> None:
    """What was spent under either name counts, what was spent before the catalog was read too."""
    shop.lists(entry("bar", endpointAliases=["/api/tools/foo"]))
    bar, foo = shop.sells("bar"), shop.sells("foo")
    payer = make_payer(caps=[Cap(5, per="total"), Cap("0.60", per="day", service="bar")])
    post(payer, foo)
    assert payer.spend()[1].settled == 0  # two services, as far as anybody knows
    market(shop, payer).service("bar")
    assert payer.spend()[1].settled == Decimal("0.20")
    post(payer, foo)
    post(payer, bar)
    for url in (foo, bar):
        with pytest.raises(CapExceeded) as caught:
            post(payer, url)
        assert (caught.value.cap.service, caught.value.left) == ("bar", 0)
    assert [p.service for p in payer.payments()] == ["bar", "foo", "foo"]  # none was moved
    assert len(shop.seller.authorizations()) == 3


def test_both_names_keep_their_own_caps(shop: Shop, make_payer: MakePayer) -> None:
    """A catalog can only add: it neither lifts a cap, nor stands in for one that is missing."""
    shop.lists(entry("bar", endpointAliases=["/api/tools/foo"]))
    bar, foo = shop.sells("bar"), shop.sells("foo")
    tight = make_payer(
        caps=[Cap("0.10", per="call", service="foo"), Cap(5, per="day", service="bar")]
    )
    market(shop, tight).service("bar")
    for url in (bar, foo):
        with pytest.raises(CapExceeded) as caught:
            post(tight, url)
        assert caught.value.cap.service == "foo"
    capless = make_payer(caps=[Cap(5, per="day", service="bar")])
    market(shop, capless).service("bar")
    with pytest.raises(PaymentRefused, match="no cap names the service 'foo'") as refused:
        post(capless, foo)
    assert refused.value.reason == "no_cap"
    assert post(capless, bar).status_code == 200


def test_a_name_lasts_longer_than_a_price(shop: Shop, make_payer: MakePayer) -> None:
    now = [1_700_000_000.0]
    shop.lists(entry("bar", endpointAliases=["/api/tools/foo"]))
    payer = make_payer(
        clock=lambda: now[0], caps=[Cap(5, per="day"), Cap("0.1", per="call", service="bar")]
    )
    market(shop, payer).service("bar")
    now[0] += 7200
    with pytest.raises(CapExceeded):
        post(payer, shop.sells("foo"))


def test_a_name_that_is_learned_while_a_call_is_weighed(
    shop: Shop, make_payer: MakePayer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cap that applies from then on is one that the reservation asks; nothing fails by it."""
    payer = make_payer(
        caps=[Cap(1, per="total"), Cap("0.01", per="total", service="bar")], approve=lambda _: True
    )
    room = payer.ledger.spend

    def meanwhile(*args: Any, **kwargs: Any) -> Any:
        found = room(*args, **kwargs)
        buyer_of(payer).learn(shop.origin, named("foo", "bar", at=buyer_of(payer).now()))
        return found

    monkeypatch.setattr(payer.ledger, "spend", meanwhile)
    with pytest.raises(CapExceeded):
        post(payer, shop.sells("foo"))


def test_words_to_search_by_are_not_names(shop: Shop, make_payer: MakePayer) -> None:
    shop.lists(entry("bar", discovery={"aliases": ["timestamp"]}, keywords=["timestamp"]))
    payer = make_payer()
    market(shop, payer).service("bar")
    assert buyer_of(payer).catalog.groups == ()


def test_a_services_own_entry_goes_before_a_claim_to_its_name(
    shop: Shop, make_payer: MakePayer
) -> None:
    shop.lists(
        entry("foo", pricing={"amountCents": 1}),
        entry("bar", endpointAliases=["/api/tools/foo"], pricing={"amountCents": 900}),
    )
    payer = make_payer()
    market(shop, payer).search()
    with pytest.raises(OfferRefused, match="catalog's price is"):
        post(payer, shop.sells("foo"))


def test_an_endpoint_that_names_no_tool_teaches_nothing(shop: Shop, make_payer: MakePayer) -> None:
    """Its URL is the origin's service, or the owner's pattern: other paths share that name."""
    shop.lists(entry("bar", endpoint="/v2/bar", pricing={"amountCents": 1}))
    payer = make_payer()
    market(shop, payer).service("bar")
    other = shop.seller.sells(offer("200000"), path="/v2/other")
    assert post(payer, other).status_code == 200


# --- bounds


def named(name: str, *names: str, at: float = 0) -> CatalogEntry:
    return CatalogEntry(service=name, micro=1, schema="", names=frozenset((name, *names)), at=at)


def test_a_shelf_is_bounded() -> None:
    cache = CatalogCache()
    for n in range(1000):
        cache.keep("o", named(f"s{n}", *(f"a{n}-{k}" for k in range(100))))
    known = [n for n in range(1000) if cache.recall("o", f"s{n}", 1) is not None]
    assert known == list(range(744, 1000))
    assert len(cache.groups) == 64 and max(map(len, cache.groups)) == 8
    assert cache.recall("o", "a999-0", 1) == cache.recall("o", "s999", 1)
    assert cache.recall("p", "s999", 1) is None


def test_a_shelf_tells_whether_a_name_is_new() -> None:
    cache = CatalogCache()
    assert not cache.keep("o", named("a"))
    assert cache.keep("o", named("a", "b"))
    assert not cache.keep("o", named("a", "b", at=5))
    assert cache.keep("o", named("a", "c"))


def test_a_token_is_not_bought_above_the_catalogs_price() -> None:
    """The token route is judged as the x402 route is: by what the live offer asks."""
    with Sandbox(auto_paid=True) as real:
        options: Any = {"caps": [Cap(1, per="total")], "origins": [real.url], "prefer": ("token",)}
        with Payer(None, ledger=MemoryLedger(), **options) as payer:
            using("client", payer, lambda c: Marketplace(real.url, c).service("timestamp"))
            cheap = CatalogEntry(
                service="timestamp",
                micro=29_999,
                schema="",
                names=frozenset(),
                at=buyer_of(payer).now(),
            )
            buyer_of(payer).learn(real.url, cheap)
            with pytest.raises(OfferRefused, match="the catalog's price"):
                using("client", payer, lambda c: c.get(real.url + "/api/tools/timestamp"))
            assert payer.payments() == []
