"""Rows 27 to 35: retries, repeats, time-outs, cancellation."""

from __future__ import annotations

import asyncio
import io
import logging
import re
import threading
import time
from collections.abc import Generator
from contextlib import suppress
from datetime import timedelta
from decimal import Decimal
from importlib import import_module
from itertools import pairwise
from typing import Any

import httpx
import pytest
import trio

from tests.hostile.kit import (
    ASYNC,
    CORE,
    EVERY,
    KEY,
    NO_TLS,
    OTHERS,
    TRIO,
    Buyer,
    Clock,
    Kind,
    World,
    attempt,
    build_client,
    every_kind,
    id_of,
    notes,
    receipt,
    usd,
)
from tests.support.seller import (
    OTHER_PAYEE,
    Answer,
    Hit,
    Reply,
    Seller,
    distinct,
    in_header,
    offer,
    offer_server402,
    offer_v1,
    paywall,
    sequence,
    served,
    server402_body,
    settlement,
    v1_body,
    v2_body,
    v2_header,
)
from x402_mask import Cap, CapExceeded, PaymentError, PaymentRefused

FORMS: dict[str, Reply] = {
    "header": v2_header(offer()),
    "body": v2_body(offer()),
    "version-1": v1_body(offer_v1()),
    "server402": server402_body(offer_server402()),
}
CLIENTS = CORE[:2]
AUTHS = tuple(kind for kind in OTHERS if kind.plug == "auth")
SILENCE = Reply(delay=3.0, drop=True)


def stumbling(*paid: Answer, challenge: Answer | None = None) -> Any:
    """A seller whose paid answers come in this order; the last is repeated."""
    return paywall(challenge or v2_header(offer()), sequence(*paid))


def one_proof(seller: Seller, shown: int) -> bool:
    """The same bytes were shown so often, and nothing else."""
    proofs = seller.proofs()
    assert len(proofs) == shown, f"{len(proofs)} proofs were sent"
    return len(distinct(proofs)) == 1 and len(seller.authorizations()) == 1


# --- row 27


@every_kind(*CORE, *AUTHS, *TRIO)
def test_a_time_out_after_the_proof_then_the_same_bytes(world: World, kind: Kind) -> None:
    """Row 27: ``ReadTimeout`` stays ``ReadTimeout``, names the payment; the next call re-presents."""
    seller = world.seller()
    url = seller.on("/paid", stumbling(SILENCE, served()))
    buyer = world.buyer(kind)
    with pytest.raises(buyer.lib.ReadTimeout) as caught:
        buyer.post(url, json={"a": 1}, timeout=0.3)
    assert type(caught.value) is buyer.lib.ReadTimeout
    (held,) = world.in_state("held")
    if (kind.lib, kind.colour, kind.plug) != ("httpx2", "asyncio", "auth"):
        assert id_of(held) in notes(caught.value)
    response = buyer.post(url, json={"a": 1})
    assert response.status_code == 200 and receipt(response).payment_id == id_of(held)
    assert one_proof(seller, 2) and world.signer.calls == 1
    assert world.counted() == usd(1000) == world.settled()


@pytest.mark.parametrize("form", FORMS)
def test_the_same_bytes_in_every_wire_form(world: World, kind: Kind, form: str) -> None:
    """Row 27: header, body, version 1, marketplace."""
    seller = world.seller()
    url = seller.on("/paid", stumbling(Reply(drop=True), served(), challenge=FORMS[form]))
    buyer = world.buyer(kind)
    with pytest.raises(buyer.lib.RemoteProtocolError):
        buyer.get(url)
    assert buyer.get(url).status_code == 200
    assert one_proof(seller, 2)
    expected = "x-payment" if form == "version-1" else "payment-signature"
    assert {proof.header for proof in seller.proofs()} == {expected}


def test_the_time_out_of_the_caller_governs_the_paid_leg(world: World, kind: Kind) -> None:
    """Row 27: the retry does not wait for ever, nor for a default."""
    seller = world.seller()
    buyer = world.buyer(kind)
    began = time.monotonic()
    with pytest.raises(buyer.lib.ReadTimeout):
        buyer.get(seller.on("/paid", stumbling(SILENCE)), timeout=0.2)
    assert time.monotonic() - began < 2


# --- row 28


BROKEN: dict[str, Answer] = {
    "reset": Reply(reset=True),
    "drop": Reply(drop=True),
    "half-a-head": Reply(body=b"", length=10, cut=0, status=500),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_a_broken_connection_after_the_proof_then_the_same_bytes(
    world: World, kind: Kind, broken: str
) -> None:
    """Row 28: three calls, one nonce."""
    seller = world.seller()
    url = seller.on("/paid", stumbling(BROKEN[broken], BROKEN[broken], served()))
    buyer = world.buyer(kind)
    for _ in range(2):
        with pytest.raises(buyer.lib.TransportError) as caught:
            buyer.get(url)
        (held,) = world.in_state("held")
        assert broken == "half-a-head" or id_of(held) in notes(caught.value)
    assert buyer.get(url).status_code == 200
    assert one_proof(seller, 3) and world.signer.calls == 1


@pytest.mark.parametrize("status", [302, 400, 401, 403, 404, 409, 412, 429, 500, 502, 503])
def test_another_status_after_the_proof_then_the_same_bytes(
    world: World, kind: Kind, status: int
) -> None:
    """Row 28: the answer is handed back as it is; the operation stays open, three calls, one nonce."""
    seller = world.seller()
    failed = Reply(status=status, body=b"sorry", headers=[("X-Why", "because")])
    url = seller.on("/paid", stumbling(failed, failed, served()))
    buyer = world.buyer(kind)
    for _ in range(2):
        response = buyer.post(url, content=b"x")
        assert (response.status_code, response.content) == (status, b"sorry")
        assert response.headers["x-why"] == "because"
        assert receipt(response).outcome == "unknown" and world.held() == usd(1000)
    assert buyer.post(url, content=b"x").status_code == 200
    assert one_proof(seller, 3) and world.counted() == usd(1000)


@every_kind(*ASYNC, *(kind for kind in OTHERS if kind.colour != "sync"))
def test_a_cancelled_call_then_the_same_bytes(world: World, kind: Kind) -> None:
    """Row 28: cancelled in asyncio or trio while the seller had the proof."""
    seller = world.seller()
    url = seller.on("/paid", stumbling(SILENCE, served()))
    buyer = world.buyer(kind)
    outcome = buyer.cancel(seller.paid_hits, "POST", url, json={"a": 1})
    assert outcome in {"CancelledError", "Cancelled"}
    assert world.held() == usd(1000) and not world.in_state("reserved")
    assert buyer.post(url, json={"a": 1}).status_code == 200
    assert one_proof(seller, 2)


@every_kind(*ASYNC, *TRIO)
def test_a_call_cancelled_before_its_proof_leaves_nothing(world: World, kind: Kind) -> None:
    """Row 28: cancelled while the first answer was awaited; nothing was promised to anyone."""
    seller = world.seller()
    url = seller.on("/paid", sequence(Reply(delay=3.0, drop=True), v2_header(offer()), served()))
    buyer = world.buyer(kind)
    buyer.cancel(lambda: seller.hits, "POST", url)
    assert world.signer.calls == 0 and world.counted() == 0
    assert buyer.post(url).status_code == 200


@every_kind(ASYNC[0], TRIO[0])
def test_a_call_cancelled_in_the_wallet_sends_nothing(world: World, kind: Kind) -> None:
    """Row 28: cancelled while the wallet thinks; no proof leaves, and the next call pays once."""
    seller = world.seller()
    asked = threading.Event()

    def think() -> None:
        if not asked.is_set():
            asked.set()
            time.sleep(0.3)

    world.signer.before = think
    url = seller.sells()
    buyer = world.buyer(kind)
    buyer.cancel(asked.is_set, "POST", url)
    assert seller.proofs() == []
    assert buyer.post(url).status_code == 200
    assert len(seller.authorizations()) == 1 and world.counted() == usd(1000)


@every_kind(*EVERY)
def test_the_next_client_and_the_next_payer_show_the_same_bytes(world: World, kind: Kind) -> None:
    """Rows 27 and 49: the stored proof belongs to the ledger, not to one client."""
    seller = world.seller()
    url = seller.on("/paid", stumbling(Reply(status=503), served()))
    first = world.payer()
    world.buyer(kind, first).post(url, content=b"x")
    first.close()
    world.payers.clear()
    assert world.buyer(kind, world.payer()).post(url, content=b"x").status_code == 200
    assert one_proof(seller, 2)


def test_what_makes_an_operation(world: World, kind: Kind) -> None:
    """Row 27: method, URL and body; headers and the boundary of a multipart form do not count."""
    seller = world.seller()
    url = seller.on("/paid", stumbling(Reply(status=500)))
    buyer = world.buyer(kind)

    def nonces() -> int:
        return len(seller.authorizations())

    buyer.post(url, content=b"x")
    buyer.post(url, content=b"x", headers={"X-Trace": "2", "Authorization": "Bearer new"})
    assert nonces() == 1
    calls: list[dict[str, Any]] = [
        {"method": "POST", "url": url, "content": b"y"},
        {"method": "PUT", "url": url, "content": b"x"},
        {"method": "POST", "url": url + "?q=1", "content": b"x"},
    ]
    for number, call in enumerate(calls, start=2):
        buyer.call(**call)
        buyer.call(**call)
        assert nonces() == number
    for _ in range(2):
        buyer.post(url, files={"image": ("a.png", io.BytesIO(b"png"), "image/png")})
    assert nonces() == 5
    bodies = {hit.body for hit in seller.paid_hits() if b"png" in hit.body}
    assert len(bodies) == 2, "the test meant to send two boundaries"


def test_after_a_2xx_an_identical_call_is_a_new_purchase(world: World, kind: Kind) -> None:
    """Row 27: also when the seller sent no settlement and the money is still held."""
    seller = world.seller()
    url = seller.on("/paid", stumbling(Reply(body=b"goods")))
    buyer = world.buyer(kind)
    ids = {receipt(buyer.post(url, content=b"x")).payment_id for _ in range(3)}
    assert len(seller.authorizations()) == 3 and len(ids) == 3
    assert world.held() == usd(3000)


def test_an_expired_operation_may_be_signed_anew_and_both_count(world: World, kind: Kind) -> None:
    """Row 27: same bytes until ``validBefore`` + 30 s; then a new proof, on top of the held one."""
    seller = world.seller()
    url = seller.on("/paid", stumbling(Reply(status=503)))
    clock = Clock()
    payer = world.payer(Cap("0.002", per="total"), clock=clock)
    buyer = world.buyer(kind, payer)
    buyer.get(url)
    clock.ahead = 75
    buyer.get(url)
    assert one_proof(seller, 2), "within 30 s after validBefore the proof still counts as alive"
    clock.ahead = 120
    buyer.get(url)
    assert len(seller.authorizations()) == 2 and world.held() == usd(2000)
    clock.ahead = 300
    world.refused(buyer, url, CapExceeded, method="GET")


def test_the_owner_can_forbid_signing_anew(world: World, kind: Kind) -> None:
    """Row 27: ``resign="never"``."""
    seller = world.seller()
    url = seller.on("/paid", stumbling(Reply(status=503)))
    clock = Clock()
    buyer = world.buyer(kind, world.payer(clock=clock, resign="never"))
    buyer.get(url)
    clock.ahead = 600
    with pytest.raises(PaymentError):
        buyer.get(url)
    assert len(seller.authorizations()) == 1 and world.signer.calls == 1


# --- row 29


@every_kind(*EVERY)
def test_a_seller_that_always_asks_again_gets_one_signature(world: World, kind: Kind) -> None:
    """Row 29: the second 402 is handed back as rejected, the money held; five calls, one nonce."""
    seller = world.seller()
    url = seller.on("/paid", v2_header(offer()))
    buyer = world.buyer(kind)
    for _ in range(5):
        response = buyer.post(url, content=b"x")
        assert response.status_code == 402 and response.content == b"{}"
        assert receipt(response).outcome == "rejected"
    assert one_proof(seller, 5) and world.signer.calls == 1
    assert len(seller.hits) == 10 and world.held() == usd(1000)


# --- row 30


NEW_TERMS: dict[str, Reply] = {
    "dearer": v2_header(offer("900000")),
    "cheaper": v2_header(offer("1")),
    "other-payee": v2_header(offer(payTo=OTHER_PAYEE)),
    "other-form": v1_body(offer_v1()),
    "marketplace": server402_body(offer_server402("2000")),
    "nothing": Reply(status=402, body=b"{}"),
    "unreadable": Reply(status=402, headers=[("PAYMENT-REQUIRED", "!!!")]),
    "bottomless": Reply(status=402, body=b"x" * 200_000),
}


@pytest.mark.parametrize("terms", NEW_TERMS)
def test_new_terms_after_the_proof_are_not_signed(world: World, kind: Kind, terms: str) -> None:
    """Row 30: whatever the second 402 says, it is handed back, and nothing more is signed."""
    seller = world.seller()
    url = seller.on("/paid", stumbling(NEW_TERMS[terms]))
    response = world.buyer(kind).get(url)
    assert response.status_code == 402 and response.content == NEW_TERMS[terms].body
    assert receipt(response).outcome == "rejected"
    assert one_proof(seller, 1) and world.held() == usd(1000)


def test_terms_that_change_between_two_calls_do_not_open_a_second_signature(
    world: World, kind: Kind
) -> None:
    """Row 30: the operation is open, so the identical call shows the old bytes, not new ones."""
    seller = world.seller()
    challenge = sequence(v2_header(offer("1000")), v2_header(offer("5000", payTo=OTHER_PAYEE)))
    url = seller.on("/paid", stumbling(Reply(status=503), challenge=challenge))
    buyer = world.buyer(kind)
    for _ in range(3):
        outcome = attempt(buyer, url)
        assert not isinstance(outcome, PaymentError) or outcome.at_risk is True
    assert len(seller.authorizations()) == 1 and world.signer.calls == 1


# --- row 31


def bearer(lib_name: str) -> Any:
    """An auth flow that refreshes its token on 401 and repeats the request."""
    lib: Any = import_module(lib_name)

    class Bearer(lib.Auth):  # type: ignore[misc]
        def auth_flow(self, request: Any) -> Generator[Any, Any, None]:
            request.headers["Authorization"] = "Bearer old"
            response = yield request
            if response.status_code == 401:
                request.headers["Authorization"] = "Bearer new"
                yield request

    return Bearer()


@every_kind(*(kind for kind in EVERY if kind.plug != "auth"))
def test_an_auth_flow_that_repeats_after_401_pays_once(world: World, kind: Kind) -> None:
    """Row 31: the refreshed request carries the same proof."""
    seller = world.seller()

    def till(hit: Hit) -> Reply:
        if hit.header("authorization") == "Bearer old":
            return Reply(status=401)
        return served()(hit)

    url = seller.on("/paid", paywall(v2_header(offer()), till))
    response = world.buyer(kind, auth=bearer(kind.lib)).get(url)
    assert response.status_code == 200 and response.content == b"goods"
    assert one_proof(seller, 2) and world.signer.calls == 1
    assert receipt(response).outcome == "settled"


@every_kind(*(kind for kind in CORE if kind.plug == "attach"))
def test_the_clients_own_auth_still_works_on_both_legs(world: World, kind: Kind) -> None:
    """Row 31: ``attach`` composes with the auth the client already has."""
    seller = world.seller()
    url = seller.sells()
    buyer = world.buyer(kind, auth=("user", "secret"))
    assert buyer.get(url).status_code == 200
    sent = [hit.header("authorization") for hit in seller.hits]
    assert sent[0] is not None and sent[0] == sent[1]


# --- row 32


@pytest.mark.parametrize("with_challenge", [True, False], ids=["challenge", "bare"])
@pytest.mark.parametrize(
    "reason",
    [
        "settlement_pending",
        "invalid_exact_evm_nonce_already_used",
        "duplicate_settlement",
        "unexpected_settle_error",
        "insufficient_funds",
        "a code nobody knows",
    ],
)
def test_a_failed_settlement_is_no_reason_to_sign_again(
    world: World, kind: Kind, reason: str, with_challenge: bool
) -> None:
    """Row 32: pending, already used, server error: a claim; the same proof or nothing."""
    seller = world.seller()

    def failed(hit: Hit) -> Reply:
        told = settlement(hit, success=False, errorReason=reason, transaction="")
        asked = v2_header(offer(), error=reason).headers if with_challenge else []
        return Reply(status=402, headers=[told, *asked], body=b"{}")

    url = seller.on("/paid", stumbling(failed))
    buyer = world.buyer(kind)
    for _ in range(3):
        response = buyer.get(url)
        assert response.status_code == 402 and receipt(response).outcome == "rejected"
    assert one_proof(seller, 3) and world.signer.calls == 1
    assert world.held() == usd(1000) and world.settled() == 0


# --- row 33


def identified(required: bool) -> Reply:
    """A challenge with ``payment-identifier``."""
    info = {"required": required, "note": "kept"}
    extensions = {"payment-identifier": {"info": info, "schema": {"type": "object"}}}
    return v2_header(offer(), extensions=extensions)


def identifier(proof: Any) -> Any:
    """The id in a proof."""
    return proof.document["extensions"]["payment-identifier"]["info"].get("id")


@pytest.mark.parametrize("status", [503, 409])
def test_a_payment_identifier_goes_with_its_bytes(world: World, kind: Kind, status: int) -> None:
    """Row 33: an id where one is required; the same id only with the same bytes; 409 stops."""
    seller = world.seller()
    url = seller.on("/paid", stumbling(Reply(status=status), challenge=identified(True)))
    buyer = world.buyer(kind)
    for _ in range(3):
        assert buyer.get(url).status_code == status
    assert one_proof(seller, 3)
    proof = seller.proofs()[0]
    assert re.fullmatch(r"[A-Za-z0-9_-]{16,128}", identifier(proof))
    entry = (proof.document or {})["extensions"]["payment-identifier"]
    assert entry["schema"] == {"type": "object"}
    assert (entry["info"]["required"], entry["info"]["note"]) == (True, "kept")


def test_two_purchases_have_two_identifiers(world: World, kind: Kind) -> None:
    """Row 33: an id is never used for other bytes."""
    seller = world.seller()
    url = seller.on("/paid", stumbling(served(), challenge=identified(True)))
    buyer = world.buyer(kind)
    for _ in range(3):
        assert buyer.get(url).status_code == 200
    assert len({identifier(proof) for proof in seller.proofs()}) == 3


# --- row 35


def test_a_retry_loop_for_http_errors_does_not_repeat_a_refusal(world: World, kind: Kind) -> None:
    """Row 35: ``except httpx.HTTPError: retry`` sees no refusal at all."""
    seller = world.seller()
    url = seller.sells(offer("900000"))
    buyer = world.buyer(kind, world.payer(Cap("0.01", per="call")))
    tries = 0
    with pytest.raises(CapExceeded):
        for _ in range(5):
            tries += 1
            try:
                buyer.get(url)
            except buyer.lib.HTTPError:
                continue
    assert tries == 1 and len(seller.hits) == 1


def test_a_retry_loop_over_time_outs_pays_once(world: World, kind: Kind) -> None:
    """Row 35: what a retry library does with ``ReadTimeout`` costs nothing more."""
    seller = world.seller()
    url = seller.on("/paid", stumbling(SILENCE, Reply(reset=True), Reply(status=502), served()))
    buyer = world.buyer(kind)
    response = None
    for _ in range(6):
        try:
            response = buyer.get(url, timeout=0.3)
            if response.status_code == 200:
                break
        except buyer.lib.TransportError:
            continue
    assert response is not None and response.status_code == 200
    assert one_proof(seller, 4) and world.counted() == usd(1000)


def test_no_error_of_ours_is_an_http_error() -> None:
    """Row 35: the whole tree."""
    families = [PaymentError]
    for family in families:
        families.extend(family.__subclasses__())
        assert not issubclass(family, httpx.HTTPError | OSError | httpx.InvalidURL)
    assert len(families) >= 11


# --- what a refusal looks like when it is returned


@every_kind(*EVERY)
def test_a_refusal_can_be_returned_instead_of_raised(world: World, kind: Kind) -> None:
    """Contract 2.4: the 402 comes back whole, with the error beside it, for every kind of refusal."""
    seller = world.seller()
    payer = world.payer(Cap("0.01", per="call"), on_refusal="return")
    buyer = world.buyer(kind, payer)
    replies = {
        "CapExceeded": v2_header(offer("900000")),
        "OfferRefused": v2_header(offer(network="eip155:1")),
        "ChallengeError": Reply(status=402, headers=[("PAYMENT-REQUIRED", "!")], body=b"body"),
    }
    for name, reply in replies.items():
        url = seller.on("/" + name, paywall(reply, served()))
        response = buyer.get(url)
        assert response.status_code == 402 and response.content == reply.body
        error = response.extensions["x402_mask_refusal"]
        assert type(error).__name__ == name and error.at_risk is False
    assert buyer.get(seller.sells()).status_code == 200
    assert world.signer.calls == 1


def test_a_paused_payer_refuses(world: World, kind: Kind) -> None:
    """Contract 1: paused is durable and total; it ends with ``resume``."""
    seller = world.seller()
    url = seller.sells()
    payer = world.payer()
    buyer = world.buyer(kind, payer)
    payer.pause()
    world.refused(buyer, url, PaymentRefused)
    world.refused(world.buyer(kind, world.payer()), url, PaymentRefused)
    payer.resume()
    assert buyer.get(url).status_code == 200


# --- preemption under hostile terms


def preempting(world: World, kind: Kind, *caps: Cap) -> Buyer:
    """A buyer that sends proofs ahead."""
    return world.buyer(kind, world.payer(*caps, preempt=True))


def test_a_preempted_proof_that_is_rejected_is_not_followed_by_a_second(
    world: World, kind: Kind
) -> None:
    """Row 30: the price went up after the first purchase; one live signature, then the usual way."""
    seller = world.seller()
    raised = v2_header(offer("2000"))
    url = seller.on("/paid", stumbling(served(), raised))
    buyer = preempting(world, kind)
    assert buyer.get(url).status_code == 200 and len(seller.hits) == 2
    response = buyer.get(url)
    assert response.status_code == 402 and receipt(response).outcome == "rejected"
    assert len(seller.hits) == 3, "the proof was to go with the first request"
    assert len(seller.authorizations()) == 2 and world.signer.calls == 2
    buyer.get(url)
    assert len(seller.authorizations()) == 2, "the rejected proof is still alive"


def test_preemption_stays_within_the_cap(world: World, kind: Kind) -> None:
    """Row 2: a proof sent ahead is reserved like any other."""
    seller = world.seller()
    url = seller.sells()
    buyer = preempting(world, kind, Cap("0.002", per="day"))
    assert [buyer.get(url).status_code for _ in range(2)] == [200, 200]
    assert len(seller.hits) == 3
    with pytest.raises(CapExceeded):
        buyer.get(url)
    assert len(seller.authorizations()) == 2


def test_preemption_is_off_where_it_was_not_asked_for(world: World, kind: Kind) -> None:
    """Contract 1: by default no proof leaves before a challenge."""
    seller = world.seller()
    url = seller.sells()
    buyer = world.buyer(kind)
    for _ in range(2):
        buyer.get(url)
    assert [bool(hit.proofs) for hit in seller.hits] == [False, True] * 2


def test_a_seller_of_two_prices_is_not_paid_ahead(world: World, kind: Kind) -> None:
    """Contract 2: preemption is off for a service whose terms changed between two challenges."""
    seller = world.seller()
    challenge = sequence(v2_header(offer("1000")), v2_header(offer("2000")))
    one = seller.on("/api/tools/x", paywall(challenge, served()))
    buyer = preempting(world, kind)
    buyer.get(one)
    buyer.post(one)
    before = len(seller.hits)
    buyer.get(one, params={"n": "3"})
    assert not seller.hits[before].proofs


# --- an explicit key


def keyed(url: str, key: str = "job-1", **kw: Any) -> dict[str, Any]:
    """A call under the caller's own operation key."""
    return {"method": "POST", "url": url, "extensions": {"x402_mask": {"operation": key}}, **kw}


def overlap(seller: Seller) -> bool:
    """Were two paid requests in the seller's hands at once?"""
    hits = sorted(seller.paid_hits(), key=lambda hit: hit.began)
    return any(b.began < (a.ended or 0) for a, b in pairwise(hits))


@every_kind(*CLIENTS)
def test_calls_that_share_a_key_wait_for_each_other(world: World, kind: Kind) -> None:
    """Contract 2: one operation, one live proof; the later call waits for the earlier."""
    seller = world.seller()
    url = seller.on("/paid", stumbling(served(delay=0.3)))
    answers = world.buyer(kind).gather([keyed(url), keyed(url)])
    assert [answer.status_code for answer in answers] == [200, 200]
    assert not overlap(seller), "two live proofs under one key"


@every_kind(*CLIENTS)
def test_calls_without_a_key_are_separate_purchases(world: World, kind: Kind) -> None:
    """Contract 2: identical calls in flight at the same time are two purchases."""
    seller = world.seller()
    url = seller.on("/paid", stumbling(served(delay=0.3)))
    call = {"method": "POST", "url": url, "content": b"x"}
    answers = world.buyer(kind).gather([call, call])
    assert [answer.status_code for answer in answers] == [200, 200]
    assert len(seller.authorizations()) == 2 and world.counted() == usd(2000)
    assert overlap(seller)


@every_kind(*CLIENTS)
def test_the_later_call_of_a_key_gives_up_within_its_own_time_out(world: World, kind: Kind) -> None:
    """Contract 2: it waits, but not longer than its caller allowed, and signs nothing meanwhile."""
    seller = world.seller()
    url = seller.on("/paid", stumbling(served(delay=1.5)))
    began = time.monotonic()
    quick = keyed(url, timeout=0.4)
    answers = world.buyer(kind).gather([keyed(url, timeout=0.8), quick])
    assert all(isinstance(answer, Exception) for answer in answers)
    assert time.monotonic() - began < 4
    assert len(seller.authorizations()) == 1 and world.signer.calls == 1


@every_kind(*CLIENTS)
def test_the_later_call_of_a_key_shows_the_bytes_of_a_failed_earlier_one(
    world: World, kind: Kind
) -> None:
    """Contract 2: the earlier got a 503, so the operation is open: same bytes, not new ones."""
    seller = world.seller()
    url = seller.on("/paid", stumbling(Reply(status=503, delay=0.3), served()))
    answers = world.buyer(kind).gather([keyed(url), keyed(url)])
    assert sorted(answer.status_code for answer in answers) == [200, 503]
    assert one_proof(seller, 2) and world.counted() == Decimal("0.001")


def test_a_key_covers_calls_whose_bodies_differ(world: World, kind: Kind) -> None:
    """Contract 2: a retry that stamps a new time into its body is the same operation by its key."""
    seller = world.seller()
    url = seller.on("/paid", stumbling(Reply(status=503), served()))
    buyer = world.buyer(kind)
    buyer.call(**keyed(url, json={"now": 1}))
    assert buyer.call(**keyed(url, json={"now": 2})).status_code == 200
    assert one_proof(seller, 2)


def test_an_empty_v2_error_text_does_not_matter(world: World, kind: Kind) -> None:
    """Row 29: the text of a rejection decides nothing, be it empty, huge or markup."""
    seller = world.seller()
    texts = ["", "x" * 5000, "<script>", "\u202e", None]
    url = seller.on(
        "/paid",
        stumbling(
            *(in_header({"x402Version": 2, "accepts": [offer()], "error": t}) for t in texts)
        ),
    )
    buyer = world.buyer(kind)
    for _ in texts:
        assert buyer.get(url).status_code == 402
    assert one_proof(seller, len(texts))


# --- what a caller may do with one request


@every_kind(*(kind for kind in EVERY if kind.colour == "sync"))
@pytest.mark.parametrize("status", [200, 503])
def test_one_request_object_sent_twice_is_two_calls(world: World, kind: Kind, status: int) -> None:
    """Row 27 (facts 2.6): the state of the first call must not leak into the second."""
    seller = world.seller()
    url = seller.on("/paid", stumbling(served(status=status)))
    client: Any = build_client(kind, world.payer())
    request = client.build_request("POST", url, content=b"x")
    with client:
        answers = [client.send(request) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [status] * 2
    assert all(receipt(answer) for answer in answers)
    assert len(seller.authorizations()) == (2 if status == 200 else 1)
    assert len(seller.hits) == 4 and all(len(hit.proofs) <= 1 for hit in seller.hits)


@every_kind(*EVERY)
def test_extensions_reused_between_calls_carry_nothing_over(world: World, kind: Kind) -> None:
    """Row 27: the caller's own dictionaries are not our memory."""
    seller = world.seller()
    url = seller.sells()
    mine: dict[str, Any] = {"operation": "monthly"}
    shared = {"x402_mask": mine}
    buyer = world.buyer(kind)
    ids = {receipt(buyer.get(url, extensions=shared)).payment_id for _ in range(2)}
    assert len(ids) == 2 == len(seller.authorizations())
    assert mine == {"operation": "monthly"} and set(shared) == {"x402_mask"}


@every_kind(*(kind for kind in EVERY if kind.plug == "attach"))
def test_attaching_twice_pays_once(world: World, kind: Kind) -> None:
    """Row 31: a second ``attach`` is refused, ignored, or at least does not pay again."""
    seller = world.seller()
    url = seller.on("/paid", v2_header(offer()))
    mask: Any = import_module("x402_mask" if kind.lib == "httpx" else "x402_mask.httpx2")
    lib: Any = import_module(kind.lib)
    payer = world.payer()
    with suppress(TypeError, ValueError, RuntimeError):
        if kind.colour == "sync":
            with mask.attach(mask.attach(lib.Client(verify=NO_TLS), payer), payer) as client:
                client.get(url)
        else:

            async def main() -> None:
                plain = lib.AsyncClient(verify=NO_TLS)
                async with mask.attach(mask.attach(plain, payer), payer) as client:
                    await client.get(url)

            trio.run(main) if kind.colour == "trio" else asyncio.run(main())
    assert len(seller.authorizations()) <= 1 and world.signer.calls <= 1


@every_kind(*CLIENTS)
def test_two_calls_at_once_after_a_failure_share_no_proof(world: World, kind: Kind) -> None:
    """Contract 2: one of them takes up the open proof, the other is a purchase of its own."""
    seller = world.seller()
    url = seller.on("/paid", stumbling(Reply(status=503), served(delay=0.2)))
    buyer = world.buyer(kind)
    call: dict[str, Any] = {"method": "POST", "url": url, "content": b"x"}
    buyer.call(**call)
    answers = buyer.gather([call, call])
    assert [answer.status_code for answer in answers] == [200, 200]
    assert len(seller.authorizations()) == 2 and len(seller.proofs()) == 3
    assert world.settled() == usd(2000) and world.held() == 0


@every_kind(*EVERY)
def test_no_log_no_error_and_no_note_shows_a_proof(
    world: World, kind: Kind, caplog: pytest.LogCaptureFixture
) -> None:
    """Row 25: a proof is a bearer secret; debug logs, messages and notes are read by others."""
    caplog.set_level(logging.DEBUG)
    seller = world.seller()
    url = seller.on("/paid", stumbling(Reply(reset=True), Reply(status=500), served()))
    buyer = world.buyer(kind)
    error = attempt(buyer, url)
    assert isinstance(error, buyer.lib.TransportError)
    shown = [str(error), repr(error), notes(error), str(error.request.headers.raw)]
    for _ in range(2):
        response = buyer.get(url)
        shown += [repr(response), repr(receipt(response)), repr(response.extensions)]
    refusal = world.refused(buyer, seller.sells(offer(network="eip155:1"), path="/no"))
    shown += [str(refusal), repr(refusal), repr(vars(refusal)), repr(world.payers[-1])]
    shown += [repr(payment) for payment in world.payers[-1].payments()]
    shown += [record.getMessage() for record in caplog.records]
    proof = seller.proofs()[0]
    signature = (proof.document or {})["payload"]["signature"].removeprefix("0x")
    text = "\n".join(shown)
    assert proof.raw not in text and signature not in text and KEY[2:] not in text


# --- clocks and caps


def test_a_clock_set_back_frees_no_money(world: World, kind: Kind) -> None:
    """Contract 4: a payment recorded later than now counts in the current window too."""
    seller = world.seller()
    url = seller.sells()
    clock = Clock(ahead=3 * 86400)
    payer = world.payer(Cap("0.001", per="day"), Cap("0.005", per=timedelta(hours=1)), clock=clock)
    buyer = world.buyer(kind, payer)
    assert buyer.get(url).status_code == 200
    clock.ahead = 0
    world.refused(buyer, url, CapExceeded, method="GET")


def test_a_price_that_fills_the_cap_exactly_is_paid(world: World, kind: Kind) -> None:
    """Row 2: up to the cap, and not a micro-dollar more."""
    seller = world.seller()
    buyer = world.buyer(kind, world.payer(Cap("0.003", per="total"), Cap("0.002", per="call")))
    assert buyer.get(seller.sells(offer("2000"))).status_code == 200
    world.refused(buyer, seller.sells(offer("1001"), path="/more"), CapExceeded)
    assert buyer.get(seller.sells(offer("1000"), path="/exact")).status_code == 200


def test_a_cap_added_later_counts_what_was_spent_before(world: World, kind: Kind) -> None:
    """Row 2: one ledger is one budget, whatever payer object uses it."""
    seller = world.seller()
    url = seller.sells()
    assert world.buyer(kind, world.payer()).get(url).status_code == 200
    strict = world.payer(Cap("0.0015", per="total"))
    world.refused(world.buyer(kind, strict), url, CapExceeded)
