"""What a quote says is what the call does (contract 1: ``quote``, ``aquote``)."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from tests.hostile.kit import (
    CORE,
    PAIR,
    Clock,
    Kind,
    World,
    attempt,
    every_kind,
    id_of,
    one_shot,
)
from tests.support.seller import (
    OTHER_PAYEE,
    PAYEE,
    Reply,
    offer,
    paywall,
    sequence,
    served,
    v2_header,
)
from x402_mask import Cap, PaymentRefused
from x402_mask._payer import buyer_of

if TYPE_CHECKING:
    from x402_mask import Payer

BROKEN = Reply(status=500, body=b"oops")


def quoted(kind: Kind, payer: Payer, method: str, url: str, **kw: Any) -> Any:
    """What the payer says that a call would cost, by its own request."""
    request = _library(kind).Request(method, url, **kw)
    if kind.colour == "sync":
        return payer.quote(request)
    return anyio.run(payer.aquote, request)


def _library(kind: Kind) -> Any:
    from importlib import import_module

    return import_module(kind.lib)


def same(world: World, kind: Kind, payer: Payer, url: str, reason: str, **kw: Any) -> None:
    """Asked before and after, by request and by answer, a quote says what the call says."""
    before = quoted(kind, payer, "POST", url, **kw)
    rows, history = payer.payments(), len(list(payer.ledger.history()))
    assert not before.allowed and before.refusal.reason == reason
    error = world.refused(world.buyer(kind, payer), url, PaymentRefused, **kw)
    assert (error.reason, str(error)) == (reason, str(before.refusal))
    assert error.payment_id == before.refusal.payment_id
    after = quoted(kind, payer, "POST", url, **kw)
    assert after.refusal.reason == reason
    assert len(payer.payments()) == len(rows) and len(list(payer.ledger.history())) >= history


def test_a_payee_that_other_origins_do_not_agree_about(world: World, kind: Kind) -> None:
    """Under ``payees="pin"``: the first payee of a new origin, which one other names."""
    shops = [world.seller() for _ in range(3)]
    path = "/api/tools/thing"
    urls = [
        shop.on(path, paywall(v2_header(offer(payTo=payee)), served(b"{}")))
        for shop, payee in zip(shops, (PAYEE, OTHER_PAYEE, PAYEE), strict=True)
    ]
    payer = world.payer(payees="pin")
    buyer = world.buyer(kind, payer)
    for url in urls[:2]:
        assert quoted(kind, payer, "POST", url).allowed
        assert buyer.post(url).status_code == 200
    same(world, kind, payer, urls[2], "payee")
    payer.accept_payee("thing", PAYEE, shops[2].origin)
    assert quoted(kind, payer, "POST", urls[2]).allowed
    assert buyer.post(urls[2]).status_code == 200


@pytest.mark.parametrize("key", [None, "k"])
def test_what_is_proven_settled(world: World, kind: Kind, key: str | None) -> None:
    """``paid_before``: it is foretold, and the day that it lasts begins with a call only."""
    clock, seller = Clock(), world.seller()
    url = seller.on("/paid", paywall(v2_header(offer()), BROKEN))
    payer = world.payer(clock=clock)
    kw = {} if key is None else {"extensions": {"x402_mask": {"operation": key}}}
    assert world.buyer(kind, payer).post(url, **kw).status_code == 500
    (payment,) = payer.payments()
    now = buyer_of(payer).now_us()
    payer.ledger.resolve(id_of(payment), "settled", transaction="0x1", note="seen", now_us=now)
    clock.ahead = 400
    first = quoted(kind, payer, "POST", url, **kw)
    clock.ahead = 400 + 25 * 3600
    assert quoted(kind, payer, "POST", url, **kw).refusal.reason == first.refusal.reason
    same(world, kind, payer, url, "paid_before", **kw)
    clock.ahead += 25 * 3600
    assert quoted(kind, payer, "POST", url, **kw).allowed is (key is None)
    assert quoted(kind, payer, "POST", url).allowed  # another operation, or a day later
    world.audited = False


def test_an_expired_proof_that_is_not_to_be_signed_anew(world: World, kind: Kind) -> None:
    """``resign="never"``."""
    clock, seller = Clock(), world.seller()
    url = seller.on("/paid", paywall(v2_header(offer()), BROKEN))
    payer = world.payer(clock=clock, resign="never")
    assert world.buyer(kind, payer).post(url).status_code == 500
    clock.ahead = 400
    same(world, kind, payer, url, "resign")


def test_an_open_operation_costs_nothing_more(world: World, kind: Kind) -> None:
    """Its cap is full, and a call shows the same bytes all the same."""
    seller = world.seller()
    url = seller.on("/paid", paywall(v2_header(offer()), sequence(BROKEN, served(b"goods"))))
    payer = world.payer(Cap("0.001", per="total"), payees="pin")
    buyer = world.buyer(kind, payer)
    assert buyer.post(url).status_code == 500
    quote = quoted(kind, payer, "POST", url)
    assert quote.allowed and payer.payments()[0].payment_id in quote.skipped[0]
    assert quoted(kind, payer, "POST", url, json={"other": 1}).refusal.reason == "cap"
    assert buyer.post(url).content == b"goods"
    assert len(seller.authorizations()) == 1
    assert quoted(kind, payer, "POST", url).refusal.reason == "cap"


def test_a_body_that_can_be_sent_once(world: World, kind: Kind) -> None:
    """``body``: known before anything is signed, so a quote knows it."""
    url = world.seller().sells(offer())
    payer = world.payer()
    quote = quoted(kind, payer, "POST", url, content=one_shot(kind, b"a"))
    assert quote.refusal.reason == "body" and quote.usd is not None
    error = attempt(world.buyer(kind, payer), url, "POST", content=one_shot(kind, b"a"))
    assert error.reason == "body" and str(error) == str(quote.refusal)


def test_a_no_that_still_holds(world: World, kind: Kind) -> None:
    """``approval``: nobody is asked by a quote, and for a minute nobody is by the call either."""
    asked: list[object] = []
    url = world.seller().sells(offer())
    payer = world.payer(approve=lambda quote: bool(asked.append(quote)))
    assert quoted(kind, payer, "POST", url).allowed and not asked
    world.refused(world.buyer(kind, payer), url)
    assert len(asked) == 1
    same(world, kind, payer, url, "approval")
    assert len(asked) == 1


REFUSALS: dict[str, dict[str, Any]] = {
    "cap": {"caps": [Cap("0.0009", per="call")]},
    "no_cap": {"caps": [Cap(1, per="day", service="other")], "wide": False},
    "no_wallet": {"wallet": None},
    "network": {"networks": ["eip155:1"]},
    "payee": {"payees": [OTHER_PAYEE]},
    "breaker": {"breaker_after": 1},
    "paused": {},
}


@pytest.mark.parametrize("approves", [False, True])
@pytest.mark.parametrize("reason", REFUSALS)
def test_every_reason_is_foretold(world: World, kind: Kind, reason: str, approves: bool) -> None:
    """Also where the owner is to be asked: nobody is asked for what is refused in any case."""
    seller, asked = world.seller(), list[object]()
    url = seller.sells(offer())
    broken = seller.on("/broken", paywall(v2_header(offer()), BROKEN))
    options = dict(REFUSALS[reason])
    caps = options.pop("caps", [])
    if approves:
        options["approve"] = lambda quote: bool(asked.append(quote)) or True
    payer = world.payer(*caps, **options)
    if reason == "breaker":
        world.buyer(kind, payer).post(broken)
        asked.clear()
    if reason == "paused":
        payer.pause()
    same(world, kind, payer, url, reason)
    assert asked == []


def test_two_reasons_at_once(world: World, kind: Kind) -> None:
    """The one that the call meets first: a payee before a cap, whether the owner is asked or not."""
    shops = [world.seller() for _ in range(3)]
    urls = [
        shop.on("/api/tools/thing", paywall(v2_header(offer(payTo=payee)), served(b"{}")))
        for shop, payee in zip(shops, (PAYEE, OTHER_PAYEE, PAYEE), strict=True)
    ]
    asked: list[object] = []
    payer = world.payer(
        Cap("0.002", per="total"), payees="pin", approve=lambda quote: not asked.append(quote)
    )
    for url in urls[:2]:
        assert world.buyer(kind, payer).post(url).status_code == 200
    same(world, kind, payer, urls[2], "payee")
    assert len(asked) == 2
    payer.pause()
    same(world, kind, payer, urls[2], "paused")


@every_kind(*PAIR)
def test_a_redirect_to_another_origin(world: World, kind: Kind) -> None:
    """``redirected``, of an answer that was redirected."""
    first, second = world.seller(), world.seller()
    url = second.sells(offer())
    start = first.on("/start", Reply(status=307, headers=[("Location", url)]))
    payer = world.payer()
    unpaid = {"x402_mask": {"pay": False}}
    buyer = world.buyer(kind, payer, follow_redirects=True)
    quote = payer.quote(buyer.get(start, extensions=unpaid))
    assert quote is not None and quote.refusal is not None
    assert quote.refusal.reason == attempt(buyer, start).reason == "redirected"


def test_time_is_told_by_the_same_clocks(world: World) -> None:
    """An offer under ten seconds, and a short life of signatures."""
    kind = CORE[0]
    url = world.seller().sells(offer(maxTimeoutSeconds=9))
    same(world, kind, world.payer(max_validity=timedelta(seconds=60)), url, "validity")
