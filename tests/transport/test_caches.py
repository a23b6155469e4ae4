"""Caches between buyer and seller, which may answer for the seller, and keep what it said."""

from __future__ import annotations

import time
from email.utils import formatdate
from typing import Any

import pytest

from tests.support.seller import Reply, offer, paywall, served, v2_header
from tests.transport.kit import SHOP, URL, Rig, kinds
from x402_mask import OfferRefused
from x402_mask._wire.caching import clock_in, uncached


def cache(rig: Rig, below: Any) -> Any:
    """A shared cache that does what RFC 9111 allows, and no more than it must, for sixty seconds."""
    lib, kept = rig.lib, {}  # type: ignore[var-annotated]

    def told(message: Any) -> set[str]:
        return {part.strip() for part in message.headers.get("cache-control", "").split(",")}

    class Cache(lib.BaseTransport, lib.AsyncBaseTransport):  # type: ignore[misc]
        def found(self, request: Any) -> Any:
            if "no-cache" in told(request):
                return None
            if str(request.url) in kept:
                status, headers, body = kept[str(request.url)]
                return lib.Response(status, headers=[*headers, ("Age", "1")], content=body)
            return lib.Response(504) if "only-if-cached" in told(request) else None

        def keep(self, request: Any, response: Any) -> Any:
            if "no-store" not in told(request) and "max-age=60" in told(response):
                headers = response.headers.multi_items()
                kept[str(request.url)] = response.status_code, headers, response.content
            return response

        def handle_request(self, request: Any) -> Any:
            answer = self.found(request)
            if answer is None:
                answer = below.handle_request(request)
                answer.read()
                self.keep(request, answer)
            return answer

        async def handle_async_request(self, request: Any) -> Any:
            answer = self.found(request)
            if answer is None:
                answer = await below.handle_async_request(request)
                await answer.aread()
                self.keep(request, answer)
            return answer

    return Cache()


def keepable(reply: Reply) -> Reply:
    """An answer that any cache may keep."""
    return Reply(
        status=reply.status,
        body=reply.body,
        headers=[*reply.headers, ("Cache-Control", "public, max-age=60")],
    )


@kinds()
async def test_the_paid_leg_reaches_the_seller_through_a_cache(rig: Rig) -> None:
    """That keeps its 402, and would keep what was paid for."""
    rig.on(URL, paywall(keepable(v2_header(offer())), lambda leg: keepable(served()(leg))))
    rig.client = rig.make_client(inner=cache(rig, rig.wire))
    ids = {rig.paid(await rig.get()).payment_id for _ in range(3)}
    assert len(ids) == len(set(rig.proofs)) == 3 and len(rig.legs) == 4
    assert {leg.header("cache-control") for leg in rig.legs[1:]} == {"no-store, no-cache"}
    assert rig.legs[0].header("cache-control") is None


@kinds()
async def test_a_known_price_is_paid_through_a_cache(rig: Rig) -> None:
    """The proof that goes with the first request is no less one."""
    rig.payer = rig.make_payer(preempt=True)
    rig.on(URL, paywall(keepable(v2_header(offer())), lambda leg: keepable(served()(leg))))
    rig.client = rig.make_client(inner=cache(rig, rig.wire))
    rig.paid(await rig.get())
    rig.paid(await rig.get())
    assert len(rig.legs) == 3 and len(set(rig.proofs)) == 2


@kinds()
async def test_the_callers_own_words_to_caches(rig: Rig) -> None:
    """Kept, but for those by which a cache would answer the paid leg; the first leg keeps all."""
    rig.on(URL, paywall(keepable(v2_header(offer())), lambda leg: keepable(served()(leg))))
    rig.client = rig.make_client(inner=cache(rig, rig.wire))
    rig.paid(await rig.get())
    words = "no-transform, only-if-cached"
    rig.paid(await rig.get(headers={"Cache-Control": words}))
    assert len(rig.legs) == 3  # the first was answered by the cache
    assert rig.legs[-1].values("cache-control") == ["no-transform, no-store, no-cache"]


@pytest.mark.parametrize(
    ("said", "sent"),
    [
        ([], "no-store, no-cache"),
        (["max-age=0"], "no-store, no-cache"),
        (["MAX-AGE = 60, Max-Stale"], "no-store, no-cache"),
        (["only-if-cached", "min-fresh=5"], "min-fresh=5, no-store, no-cache"),
        (["no-cache, no-store, no-transform"], "no-transform, no-store, no-cache"),
        (['x="a, max-age=1", max-age=2'], 'x="a, max-age=1", no-store, no-cache'),
        (['x="a, \\" max-age=1", , y'], 'x="a, \\" max-age=1", y, no-store, no-cache'),
        (['x="open, max-age=1'], 'x="open, max-age=1, no-store, no-cache'),
    ],
)
def test_what_is_said_to_caches(said: list[str], sent: str) -> None:
    assert uncached(said) == sent


@kinds()
@pytest.mark.parametrize("age", [3600, 400])
async def test_a_402_from_a_cache_is_no_wrong_clock(rig: Rig, age: int) -> None:
    asked = v2_header(offer())
    asked.headers.extend([("Date", formatdate(time.time() - age, usegmt=True)), ("Age", str(age))])
    rig.on(URL, paywall(asked, served()))
    rig.paid(await rig.get())
    asked.headers.pop()
    with pytest.raises(OfferRefused, match="clock"):
        await rig.get()


@pytest.mark.parametrize(
    ("age", "later"),
    [
        (None, 0),
        ("", 0),
        ("0", 0),
        ("60", 60),
        (" 60 ", 60),
        ("60, 7", 60),
        ("-60", 0),
        ("1.5", 0),
        ("\N{SUPERSCRIPT TWO}", 0),
        ("9" * 11, 1 << 31),
        ("9" * 5000, 0),
        ("x", 0),
    ],
)
def test_age_is_a_number_of_seconds_or_nothing(age: str | None, later: int) -> None:
    date = "Tue, 01 Dec 2026 00:00:00 GMT"
    then = clock_in(date, None)
    assert then is not None and clock_in(date, age) == then + later
    assert clock_in(None, age) is clock_in("yesterday", age) is None


@kinds("transport")
async def test_a_cache_outside_keeps_what_was_paid_for_and_no_402_of_ours(rig: Rig) -> None:
    """Whoever puts a cache in front of a paying transport pays for what it does not hold."""
    rig.on(URL, paywall(keepable(v2_header(offer())), lambda leg: keepable(served()(leg))))
    dear = SHOP + "/dear"
    rig.on(dear, paywall(keepable(v2_header(offer("9000000"))), served()))
    never = SHOP + "/never"
    rig.on(never, keepable(v2_header(offer())))
    rig.payer = rig.make_payer(on_refusal="return")
    rig.client = rig.plain(transport=cache(rig, rig.wrap(rig.payer, rig.wire)))
    rig.paid(await rig.get())
    assert (await rig.get()).status_code == 200 and len(rig.legs) == 2
    for _ in range(2):
        refused = await rig.get(dear)
        assert refused.extensions["x402_mask_refusal"].reason == "cap"
    for _ in range(2):  # the seller does not take the proof; it is shown again
        assert (await rig.get(never)).extensions["x402_mask"].outcome == "rejected"
    assert len(rig.legs) == 8 and len(set(rig.proofs)) == 2
    await rig.shut(rig.client)
