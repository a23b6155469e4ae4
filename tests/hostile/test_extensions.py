"""Rows 53 and 54: extensions, and the echo."""

from __future__ import annotations

import base64
import json
from decimal import Decimal
from typing import Any

import pytest

from tests.hostile.kit import EVERY, GreedySigner, Kind, World, every_kind
from tests.support.seller import (
    PAYEE,
    USDC,
    challenge,
    in_body,
    in_header,
    offer,
    paywall,
    served,
    v2_header,
)
from x402_mask import ChallengeError, OfferRefused


def sign_in(domain: str) -> dict[str, Any]:
    """A sign-in challenge."""
    info = {
        "domain": domain,
        "uri": f"https://{domain}/login",
        "version": "1",
        "nonce": "abcdef1234567890",
        "issuedAt": "2026-11-01T00:00:00Z",
        "statement": "I grant this site control of my account",
    }
    chains = [{"chainId": "eip155:8453", "type": "eip191"}]
    return {"sign-in-with-x": {"info": info, "supportedChains": chains, "schema": {}}}


# --- row 53


@pytest.mark.parametrize("domain", ["bank.example", "127.0.0.1"])
def test_a_sign_in_challenge_is_never_signed(world: World, kind: Kind, domain: str) -> None:
    """Row 53: for another domain or for this one; paying needs the normal policy and nothing else."""
    seller = world.seller()
    world.signer = signer = GreedySigner()
    both = v2_header(offer(), extensions=sign_in(domain))
    alone = in_header(challenge(extensions=sign_in(domain)))
    buyer = world.buyer(kind)
    assert buyer.get(seller.on("/both", paywall(both, served()))).status_code == 200
    world.refused(
        buyer, seller.on("/alone", paywall(alone, served())), OfferRefused, ChallengeError
    )
    assert signer.misused == [] and signer.calls == 1
    assert all(hit.header("sign-in-with-x") is None for hit in seller.hits)


# --- row 54


STRANGE: dict[str, Any] = {
    "outputSchema": {"type": "object", "properties": {"b": 1, "a": [None, True, {"z": {}}]}},
    "description": 'caffè ₮ \u2028 \U0001f511 "quoted" \\ / </script>',
    "bigNumber": 123456789012345678901234567890,
    "float": 0.1,
    "emptyText": "",
    "emptyList": [],
    "maxAmountRequired": "1000",
    "Amount": "other key, other case",
}


@every_kind(*EVERY)
def test_the_offer_and_the_extensions_are_echoed_as_received(world: World, kind: Kind) -> None:
    """Row 54: nothing added, nothing dropped, order and letter case kept."""
    seller = world.seller()
    extra = {"zeta": 1, "version": "2", "name": "USD Coin", "nested": {"b": [1.5], "a": "x"}}
    entry = {**STRANGE, **offer("1000", payTo=PAYEE, extra=extra)}
    extensions = {
        "unknown-extension": {"info": {"b": 1, "a": [1, 2]}, "schema": {"$x": "y"}},
        "bazaar": {"info": {"input": {"type": "http", "method": "GET"}}, "schema": {}},
    }
    resource = {"url": "http://seller.invalid/x", "tags": ["a"], "serviceName": "s"}
    document = challenge(entry, extensions=extensions, resource=resource)
    url = seller.on("/paid", paywall(in_header(document), served()))
    assert world.buyer(kind).get(url).status_code == 200
    sent = seller.paid_hits()[0].proof.document or {}
    for got, expected in (
        (sent["accepted"], entry),
        (sent["extensions"], extensions),
        (sent["resource"], resource),
    ):
        assert json.dumps(got) == json.dumps(expected)
    assert set(sent) == {"x402Version", "accepted", "payload", "resource", "extensions"}


NUMBERS = ["1.10", "1e2", "0.1000000000000000055511151231257827", "-0.0", "1.0", "1E400"]


@pytest.mark.parametrize("number", NUMBERS)
def test_a_number_in_the_echo_keeps_its_value(world: World, kind: Kind, number: str) -> None:
    """Row 54: the same double comes back; what overflows one is refused or kept, never rounded."""
    seller = world.seller()
    text = json.dumps(challenge(offer("1000", rate="RATE"))).replace('"RATE"', number)
    url = seller.on("/paid", paywall(in_body(text), served()))
    try:
        world.buyer(kind).get(url)
    except ChallengeError:
        assert number == "1E400"
        assert world.signer.calls == 0
        return
    raw = base64.b64decode(seller.proofs()[0].raw)
    echoed = json.loads(raw, parse_float=Decimal)["accepted"]["rate"]
    assert float(echoed) == float(number) != float("inf") or Decimal(echoed) == Decimal(number)


@pytest.mark.parametrize("name", ["extensions", "resource"])
def test_what_was_not_sent_is_not_echoed(world: World, kind: Kind, name: str) -> None:
    """Row 54: an absent key stays absent; null is not invented."""
    seller = world.seller()
    document = {"x402Version": 2, "accepts": [offer("1000")]}
    url = seller.on("/paid", paywall(in_header(document), served()))
    assert world.buyer(kind).get(url).status_code == 200
    assert name not in (seller.paid_hits()[0].proof.document or {})


def test_the_typed_data_is_ours_and_the_echo_is_theirs(world: World, kind: Kind) -> None:
    """Row 54: an offer without ``extra`` is signed with the registry's domain, echoed without it."""
    seller = world.seller()
    entry = offer("1000", extra=None)
    url = seller.sells(entry)
    assert world.buyer(kind).get(url).status_code == 200
    assert "extra" not in seller.paid_hits()[0].proof.accepted
    (call,) = world.signer.signed
    assert call["domain"]["name"] == USDC.name and call["domain"]["version"] == USDC.version
