"""Rows 22 to 26: redirects, other origins, plain http."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.hostile.kit import CORE, EVERY, PAIR, TRIO, Kind, World, attempt, every_kind, receipt
from tests.support.seller import (
    PROOF_HEADERS,
    Hit,
    Reply,
    Seller,
    offer,
    paywall,
    sequence,
    served,
    settlement,
    v2_header,
)
from x402_mask import Cap, OriginRefused, PaymentError, PaymentTransport

HTTPX2 = (Kind("httpx2", "sync", "attach"), Kind("httpx2", "asyncio", "client"))
ROAMING = (*CORE, *HTTPX2, TRIO[1])
STATUSES = [302, 303, 307, 308]


def redirect(location: str, status: int = 307, **reply: Any) -> Reply:
    """A redirect."""
    return Reply(status=status, headers=[("Location", location)], **reply)


def paid_redirect(location: str, status: int = 307) -> Any:
    """A redirect that also says the payment was settled, as the official middleware does."""

    def script(hit: Hit) -> Reply:
        return Reply(status=status, headers=[("Location", location), settlement(hit)])

    return script


def saw_no_proof(seller: Seller) -> bool:
    """No payment header ever reached this seller."""
    names = {name.lower() for hit in seller.hits for name, _ in hit.headers}
    return not names & set(PROOF_HEADERS)


# --- row 22


@pytest.mark.parametrize("status", STATUSES)
@every_kind(*PAIR, *HTTPX2)
def test_a_stranger_reached_by_a_redirect_is_not_paid(
    world: World, kind: Kind, status: int
) -> None:
    """Row 22: both origins are on the list; only the one the caller named is ever paid."""
    shop, stranger = world.seller(), world.seller()
    target = stranger.sells()
    start = shop.on("/go", redirect(target, status))
    buyer = world.buyer(kind, follow_redirects=True)
    error = world.refused(buyer, start, OriginRefused)
    assert error.response.request.url.host == "127.0.0.1"
    assert len(stranger.hits) == 1 and saw_no_proof(stranger)


@every_kind(*ROAMING)
def test_a_stranger_not_on_the_list_is_not_paid(world: World, kind: Kind) -> None:
    """Row 22: nothing outside ``origins`` is ever paid, by redirect or directly."""
    shop, stranger = world.seller(), world.seller()
    target = stranger.sells()
    start = shop.on("/go", redirect(target))
    payer = world.payer(origins=[shop.origin])
    buyer = world.buyer(kind, payer, follow_redirects=True)
    world.refused(buyer, start, OriginRefused)
    error = world.refused(buyer, target, OriginRefused)
    assert stranger.origin in str(error) and "origins" in str(error)
    assert saw_no_proof(stranger)


@every_kind(*ROAMING)
def test_a_redirect_within_the_origin_before_payment_is_followed_and_paid_once(
    world: World, kind: Kind
) -> None:
    """Row 22 and 23: the slash redirect of a framework, before anything was paid."""
    shop = world.seller()
    shop.sells(path="/paid/")
    start = shop.on("/paid", redirect("/paid/"))
    response = world.buyer(kind, follow_redirects=True).post(start, json={"a": 1})
    assert response.status_code == 200 and response.content == b"goods"
    assert len(shop.authorizations()) == 1
    (paid,) = shop.paid_hits()
    assert paid.body.replace(b" ", b"") == b'{"a":1}'


@every_kind(*CORE)
def test_a_redirect_does_not_move_a_call_to_another_budget(world: World, kind: Kind) -> None:
    """Row 22 and contract 3: the caller's URL names the service, not where the seller sends him."""
    shop = world.seller()
    shop.sells(path="/api/tools/other")
    start = shop.on("/api/tools/mask-refinement", redirect("/api/tools/other"))
    tight = Cap("0.0015", per="day", service="mask-refinement")
    payer = world.payer(tight, Cap("1", per="day", service="other"))
    buyer = world.buyer(kind, payer, follow_redirects=True)
    outcomes = [attempt(buyer, start, "POST") for _ in range(3)]
    paid = [one for one in outcomes if not isinstance(one, PaymentError)]
    assert {receipt(one).service for one in paid} <= {"mask-refinement"}
    assert len(paid) == len(shop.authorizations()) <= 1


# --- row 23


@pytest.mark.parametrize("status", STATUSES)
@every_kind(*PAIR, *HTTPX2)
def test_a_redirect_after_payment_never_causes_a_second_payment(
    world: World, kind: Kind, status: int
) -> None:
    """Row 23: the paid answer is a redirect to a page that asks for money too."""
    shop = world.seller()
    shop.on("/paid/", paywall(v2_header(offer("1000")), served()))
    url = shop.on("/paid", paywall(v2_header(offer("1000")), paid_redirect("/paid/", status)))
    buyer = world.buyer(kind, follow_redirects=True)
    outcome = attempt(buyer, url, "POST")
    assert len(shop.authorizations()) == 1 and world.signer.calls == 1
    if isinstance(outcome, PaymentError):
        assert outcome.at_risk is True, "money may still move for this call"


@pytest.mark.parametrize("status", STATUSES)
def test_a_paid_redirect_is_handed_back_to_a_caller_who_does_not_follow(
    world: World, kind: Kind, status: int
) -> None:
    """Row 23: paid, content at another URL: the caller sees the redirect and the receipt."""
    shop = world.seller()
    url = shop.on("/paid", paywall(v2_header(offer()), paid_redirect("/elsewhere", status)))
    response = world.buyer(kind).post(url)
    assert response.status_code == status and response.headers["location"] == "/elsewhere"
    assert receipt(response).outcome == "settled"
    assert len(shop.authorizations()) == 1


@every_kind(*ROAMING)
def test_a_paid_redirect_to_another_shop_leaks_nothing_and_pays_nothing(
    world: World, kind: Kind
) -> None:
    """Row 23 and 25: the paid answer points at another listed seller, who asks for money."""
    shop, other = world.seller(), world.seller()
    target = other.sells()
    url = shop.on("/paid", paywall(v2_header(offer()), paid_redirect(target)))
    outcome = attempt(world.buyer(kind, follow_redirects=True), url, "POST")
    assert len(shop.authorizations()) == 1 and saw_no_proof(other)
    if isinstance(outcome, PaymentError):
        assert outcome.at_risk is True, "the first seller holds a proof"


@every_kind(*ROAMING)
def test_a_paid_redirect_to_free_content_elsewhere_is_delivered(world: World, kind: Kind) -> None:
    """Row 23: a signed download URL on another host is a normal way to deliver."""
    shop, store = world.seller(), world.seller()
    target = store.on("/file", Reply(body=b"file"))
    url = shop.on("/paid", paywall(v2_header(offer()), paid_redirect(target, 303)))
    response = world.buyer(kind, follow_redirects=True).post(url)
    assert response.status_code == 200 and response.content == b"file"
    assert len(shop.authorizations()) == 1 and saw_no_proof(store)


@every_kind(*(kind for kind in EVERY if kind.plug == "auth" and kind.colour != "trio"))
def test_an_auth_alone_does_not_pay_a_stranger_either(world: World, kind: Kind) -> None:
    """Row 22: ``PaymentAuth`` sees only the last answer; it must look where that came from."""
    shop, stranger = world.seller(), world.seller()
    start = shop.on("/go", redirect(stranger.sells()))
    error = world.refused(world.buyer(kind, follow_redirects=True), start, OriginRefused)
    assert error.response.status_code == 402
    assert saw_no_proof(stranger) and saw_no_proof(shop)


@every_kind(*ROAMING)
def test_an_offer_paid_before_is_not_paid_ahead_through_another_shop(
    world: World, kind: Kind
) -> None:
    """Row 22: preemption knows the second shop's price; a redirect from the first is no order."""
    shop, other = world.seller(), world.seller()
    target = other.sells()
    start = shop.on("/go", redirect(target))
    buyer = world.buyer(kind, world.payer(preempt=True), follow_redirects=True)
    assert buyer.get(target).status_code == 200
    other.hits.clear()
    world.refused(buyer, start, OriginRefused, method="GET")
    assert saw_no_proof(other)


@every_kind(*ROAMING)
def test_a_proof_sent_ahead_does_not_follow_a_redirect(world: World, kind: Kind) -> None:
    """Row 25: the preempted request is redirected to another listed seller."""
    shop, other = world.seller(), world.seller()
    target = other.on("/free", Reply(body=b"free"))
    paid = sequence(served(), redirect(target))
    url = shop.on("/paid", paywall(v2_header(offer()), paid))
    buyer = world.buyer(kind, world.payer(preempt=True), follow_redirects=True)
    assert buyer.get(url).content == b"goods"
    assert buyer.get(url).content == b"free"
    assert len(shop.hits) == 3 and saw_no_proof(other)


@every_kind(*ROAMING)
def test_an_open_operation_is_not_shown_through_another_shop(world: World, kind: Kind) -> None:
    """Row 22: nor is a proof of an earlier, failed call to the second shop."""
    shop, other = world.seller(), world.seller()
    target = other.sells(paid=Reply(status=503))
    start = shop.on("/go", redirect(target))
    buyer = world.buyer(kind, follow_redirects=True)
    assert buyer.get(target).status_code == 503
    attempt(buyer, start)
    assert world.signer.calls == 1 and len(other.proofs()) == 1 and saw_no_proof(shop)


# --- row 24


@every_kind(*ROAMING)
def test_a_redirect_loop_after_payment_is_one_payment(world: World, kind: Kind) -> None:
    """Row 24: the paid page redirects to itself for ever."""
    shop = world.seller()
    url = shop.on("/paid", paywall(v2_header(offer()), paid_redirect("/paid")))
    outcome = attempt(world.buyer(kind, follow_redirects=True), url, "POST")
    assert outcome is not None
    assert len(shop.authorizations()) == 1 and world.signer.calls == 1
    assert len(shop.hits) <= 50


@every_kind(*ROAMING)
def test_a_loop_between_two_shops_is_at_most_one_payment(world: World, kind: Kind) -> None:
    """Row 24: two listed sellers send the buyer back and forth, both asking for money."""
    shop, other = world.seller(), world.seller()
    url = shop.on("/paid", paywall(v2_header(offer()), paid_redirect(other.origin + "/paid")))
    other.on("/paid", paywall(redirect(shop.origin + "/paid"), redirect(shop.origin + "/paid")))
    attempt(world.buyer(kind, follow_redirects=True), url, "POST")
    assert len(world.authorizations()) == 1 and saw_no_proof(other)


@every_kind(*ROAMING)
def test_a_loop_before_payment_pays_nothing(world: World, kind: Kind) -> None:
    """Row 24: an unpaid loop ends as it would without us."""
    shop = world.seller()
    buyer = world.buyer(kind, follow_redirects=True)
    with pytest.raises(buyer.lib.TooManyRedirects):
        buyer.get(shop.on("/go", redirect("/go")))
    assert world.signer.calls == 0


# --- row 25


@every_kind(*ROAMING)
def test_payment_headers_of_the_caller_do_not_follow_to_another_origin(
    world: World, kind: Kind
) -> None:
    """Row 25: a proof the caller set by hand is stripped when the origin changes."""
    shop, other = world.seller(), world.seller()
    target = other.on("/free", Reply(body=b"free"))
    start = shop.on("/go", redirect(target))
    mine = dict.fromkeys(PROOF_HEADERS, "mine")
    buyer = world.buyer(kind, follow_redirects=True)
    response = buyer.get(start, headers={**mine, "X-Other": "kept"})
    assert response.content == b"free"
    assert [shop.hits[0].header(name) for name in PROOF_HEADERS] == ["mine"] * 4
    assert saw_no_proof(other) and other.hits[0].header("x-other") == "kept"


@every_kind(*ROAMING)
def test_payment_headers_of_the_client_do_not_follow_either(world: World, kind: Kind) -> None:
    """Row 25: the same with headers set on the client, there and back again."""
    shop, other = world.seller(), world.seller()
    shop.on("/end", Reply(body=b"end"))
    target = other.on("/hop", redirect(shop.origin + "/end"))
    start = shop.on("/go", redirect(target))
    headers = {"X-Payment-Token": "mine", "PAYMENT-SIGNATURE": "mine"}
    buyer = world.buyer(kind, follow_redirects=True, headers=headers)
    assert buyer.get(start).content == b"end"
    assert saw_no_proof(other)


@every_kind(*ROAMING, *(kind for kind in EVERY if kind.plug == "auth" and kind.colour != "trio"))
def test_what_the_caller_holds_afterwards_shows_no_proof(world: World, kind: Kind) -> None:
    """Row 25: requests, next requests and history are passed on, logged and pickled."""
    shop = world.seller()
    end = shop.on("/end", Reply(body=b"end"))
    url = shop.on("/paid", paywall(v2_header(offer()), paid_redirect(end)))
    seen: list[Any] = []
    if kind.plug == "auth":
        response = world.buyer(kind).get(url)
        assert response.next_request is not None
        seen.append(response.next_request)
    else:
        response = world.buyer(kind, follow_redirects=True).get(url)
        assert response.content == b"end"
    seen += [one.request for one in (response, *response.history)]
    assert len(shop.authorizations()) == 1 and response.elapsed.total_seconds() >= 0
    for request in seen:
        assert not {name.lower() for name in request.headers} & set(PROOF_HEADERS)


def test_a_transport_makes_its_own_network_and_refuses_other_families(world: World) -> None:
    """Contract 1: ``inner`` is optional."""
    shop = world.seller()
    url = shop.sells()
    with httpx.Client(transport=PaymentTransport(world.payer())) as client:
        assert client.get(url).content == b"goods"


# --- row 34


@pytest.mark.parametrize("name", ["PAYMENT-SIGNATURE", "X-PAYMENT", "X-Payment-Token"])
@every_kind(*CORE)
def test_a_proof_the_caller_attached_is_passed_through(world: World, kind: Kind, name: str) -> None:
    """Row 34: no second header, no signature, whatever the seller thinks of it."""
    shop = world.seller()
    pleased = shop.on("/pleased", paywall(v2_header(offer()), Reply(body=b"goods")))
    cross = shop.on("/cross", v2_header(offer()))
    buyer = world.buyer(kind)
    assert buyer.get(pleased, headers={name: "mine"}).content == b"goods"
    attempt(buyer, cross, headers={name: "mine"})
    assert all(hit.header(name) == "mine" for hit in shop.hits)
    assert all(len(hit.proofs) == 1 for hit in shop.hits)
    assert world.signer.calls == 0 and world.counted() == 0
