"""Why a seller refuses what was paid: kept, short, harmless, and translated where it is known."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from tests.hostile.kit import PAIR, Kind, World, every_kind, receipt
from tests.support.seller import (
    Reply,
    challenge,
    encode,
    in_body,
    in_header,
    offer,
    offer_v1,
    paywall,
    sequence,
    served,
    v2_header,
)
from x402_mask._ledger.audit import verify

FUNDS = "invalid_exact_evm_insufficient_balance"
USED = "invalid_exact_evm_nonce_already_used"


def settled_not(reason: object, status: int = 402, **more: Any) -> Reply:
    """A failed settlement."""
    document = {"success": False, "errorReason": reason, "transaction": "", **more}
    return Reply(status=status, headers=[("PAYMENT-RESPONSE", encode(document))], body=b"{}")


PLACES: dict[str, Any] = {
    "challenge": in_header(challenge(offer(), error=FUNDS)),
    "settlement": settled_not(FUNDS),
    "settlement-before-challenge": in_header(
        challenge(offer(), error="Payment required"), headers=settled_not(FUNDS).headers
    ),
    "version-1": in_body(challenge(offer_v1(), version=1, error=FUNDS)),
    "error-object": in_body({"error": {"code": FUNDS, "message": FUNDS}}),
    "only-a-code": in_body({"error": {"code": FUNDS}}),
    "invalid-reason": in_body({"isValid": False, "invalidReason": FUNDS}),
    "detail": in_body({"detail": FUNDS}),
    "other-status": settled_not(FUNDS, status=500),
    "precondition": replace(in_header(challenge(offer(), error=FUNDS)), status=412),
}


@every_kind()
@pytest.mark.parametrize("place", ["challenge", "version-1"])
def test_the_reason_is_kept_by_every_plug_point(world: World, kind: Kind, place: str) -> None:
    kept(world, kind, place)


@pytest.mark.parametrize("place", PLACES)
def test_the_reason_is_found_where_sellers_put_it(world: World, kind: Kind, place: str) -> None:
    kept(world, kind, place)


def kept(world: World, kind: Kind, place: str) -> None:
    """It is on the receipt, in the ledger, in the events; and the answer is whole."""
    seller, refusing = world.seller(), PLACES[place]
    url = seller.on("/paid", paywall(v2_header(offer("10000")), refusing))
    payer = world.payer()
    answer = world.buyer(kind, payer).get(url)
    assert answer.status_code == refusing.status and answer.content == refusing.body
    found = receipt(answer)
    assert found.outcome == ("rejected" if refusing.status == 402 else "unknown")
    assert found.reason.startswith(f"{FUNDS} (")
    for word in (world.signer.address, "$0.01", "USD Coin", "base (eip155:8453)"):
        assert word in found.reason
    (payment,) = payer.payments()
    assert (payment.state, payment.reason) == ("held", found.reason)
    assert world.events[-1].detail["reason"] == found.reason
    assert verify(payer.ledger).ok


TRANSLATED = {
    "insufficient_funds": "lacks $0.001",
    "permit2_insufficient_balance": "lacks $0.001",
    "Insufficient balance": "lacks $0.001",
    USED: "paid before",
    "duplicate_settlement": "paid before",
    "authorization is already used": "paid before",
    "settlement_pending": "not confirmed yet",
    "permit2_allowance_required": "no allowance",
    "invalid_exact_evm_payload_authorization_valid_before": "too late",
    "permit2_not_yet_valid": "too early",
    "No matching payment requirements": "terms have changed",
    "unexpected_settle_error": "may have moved",
}


@pytest.mark.parametrize("code", TRANSLATED)
def test_a_known_code_is_translated(world: World, kind: Kind, code: str) -> None:
    url = world.seller().on("/paid", paywall(v2_header(offer()), settled_not(code)))
    reason = receipt(world.buyer(kind).get(url)).reason
    assert reason.startswith(f"{code} (") and TRANSLATED[code] in reason


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("we are closed", "we are closed"),
        ("x" * 5000, "x" * 197 + "..."),
        ("\x1b[31mred\nline", "\\x1b[31mred\\nline"),
        ("  ", None),
        ("", None),
        (7, None),
        (["a"], None),
        (None, None),
        ("Payment required", None),
        ("X-PAYMENT header is required", None),
    ],
)
def test_what_it_says_is_made_short_and_harmless(
    world: World, kind: Kind, said: object, kept: str | None
) -> None:
    reply = in_body({"error": said})
    url = world.seller().on("/paid", paywall(v2_header(offer()), reply))
    assert receipt(world.buyer(kind).get(url)).reason == kept


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"[]",
        b"{" * 100,
        b'{"error": "x", "error": "y"}',
        b"\xff\xfe",
        json.dumps({"error": "x", "y": "z" * 20_000}).encode(),
    ],
)
def test_a_body_that_says_nothing_is_handed_back_whole(
    world: World, kind: Kind, body: bytes
) -> None:
    url = world.seller().on("/paid", paywall(v2_header(offer()), Reply(status=402, body=body)))
    answer = world.buyer(kind).get(url)
    assert answer.content == body and receipt(answer).reason is None


@every_kind(*PAIR)
def test_a_delivery_has_no_reason(world: World, kind: Kind) -> None:
    """Whatever is in it; and what refused before is not said of it."""
    script = sequence(settled_not(USED), served(b'{"error": "of the service"}'))
    url = world.seller().on("/paid", paywall(v2_header(offer()), script))
    payer = world.payer()
    buyer = world.buyer(kind, payer)
    first, second = buyer.get(url), buyer.get(url)
    assert "paid before" in receipt(first).reason and receipt(second).reason is None
    assert receipt(first).payment_id == receipt(second).payment_id
    assert payer.payments()[0].reason is None and verify(payer.ledger).ok


@every_kind(*PAIR)
def test_an_answer_that_breaks_off_still_breaks_off(world: World, kind: Kind) -> None:
    """Looking for a reason hides nothing from whoever reads what was paid for."""
    reply = Reply(status=402, body=b'{"error": "x"}', length=99, cut=14)
    url = world.seller().on("/paid", paywall(v2_header(offer()), reply))
    payer = world.payer()
    buyer = world.buyer(kind, payer)
    with pytest.raises(buyer.lib.RemoteProtocolError):
        buyer.get(url)
    (payment,) = payer.payments()
    assert (payment.state, payment.outcome) == ("held", "rejected")
