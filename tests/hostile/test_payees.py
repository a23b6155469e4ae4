"""Rows 13 to 17: who is paid, and by which claim."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.hostile.kit import KEY, SYNC, Kind, World, attempt, every_kind, receipt
from tests.support.seller import (
    OTHER_PAYEE,
    PAYEE,
    USDC,
    encode,
    in_body,
    in_header,
    offer,
    offer_v1,
    paywall,
    sequence,
    served,
    v1_body,
    v2_header,
)
from x402_mask import ChallengeError, OfferRefused, PaymentError, Wallet

UNREADABLE = (OfferRefused, ChallengeError)
THIRD_PAYEE = "0x3C44CdDdB6a900fa2b585dd299e03d12FA4293BC"


def shifting(*payees: str) -> Any:
    """A seller whose every challenge names the next payee."""
    challenges = sequence(*(v2_header(offer("1000", payTo=payee)) for payee in payees))
    return paywall(challenges, served())


def kinds_of(events: list[Any]) -> set[str]:
    """The kinds of events, by whatever tells them apart."""
    labels = ("kind", "name", "type", "event")
    return {
        " ".join([type(e).__name__, *(str(getattr(e, label, "")) for label in labels)])
        for e in events
    }


# --- row 13


def test_sellers_do_not_pin_each_other(world: World, kind: Kind) -> None:
    """Row 13: the payee of one is a new one at another, for the same service and to the end."""
    one, other = world.seller(), world.seller()
    path = "/api/tools/mask-refinement"
    here, there = one.on(path, shifting(PAYEE, OTHER_PAYEE)), other.on(path, shifting(OTHER_PAYEE))
    payer = world.payer(payees="pin", origins=[one.origin, other.origin])
    buyer = world.buyer(kind, payer)
    assert buyer.get(there).status_code == buyer.get(here).status_code == 200
    error = world.refused(buyer, here, OfferRefused)
    assert isinstance(error, OfferRefused) and error.pay_to == OTHER_PAYEE
    with pytest.raises(ValueError, match="no origin has one"):
        payer.accept_payee("another", OTHER_PAYEE)
    with pytest.raises(ValueError, match="not in origins="):
        payer.accept_payee("mask-refinement", OTHER_PAYEE, "https://shop.example")
    payer.accept_payee("mask-refinement", OTHER_PAYEE)
    assert buyer.get(here).status_code == 200
    assert [seller.authorizations()[-1].to for seller in (one, other)] == [OTHER_PAYEE] * 2


def test_a_payee_that_changes_is_paid_by_default_and_reported(world: World, kind: Kind) -> None:
    """Row 13, as the contract has it: whom the listed origin names is paid, a change is reported."""
    seller = world.seller()
    url = seller.on("/paid", shifting(PAYEE, PAYEE, OTHER_PAYEE))
    buyer = world.buyer(kind)
    buyer.get(url)
    world.events.clear()
    buyer.get(url)
    unchanged = kinds_of(world.events)
    world.events.clear()
    assert buyer.get(url).status_code == 200
    assert [one.to for one in seller.authorizations()] == [PAYEE, PAYEE, OTHER_PAYEE]
    assert kinds_of(world.events) - unchanged, "the change of payee was not reported"
    assert any(OTHER_PAYEE.lower() in repr(event).lower() for event in world.events)


def test_a_pinned_payee_refuses_a_change_until_it_is_accepted(world: World, kind: Kind) -> None:
    """Row 13: ``payees="pin"``, per service, released by ``accept_payee``."""
    seller = world.seller()
    url = seller.on("/paid", shifting(PAYEE, OTHER_PAYEE))
    payer = world.payer(payees="pin")
    buyer = world.buyer(kind, payer)
    assert buyer.get(url).status_code == 200
    error = world.refused(buyer, url, OfferRefused)
    assert OTHER_PAYEE.lower() in str(error).lower()
    world.refused(buyer, url, OfferRefused)
    payer.accept_payee(seller.origin, OTHER_PAYEE)
    assert buyer.get(url).status_code == 200
    assert [one.to for one in seller.authorizations()] == [PAYEE, OTHER_PAYEE]


def test_a_pin_is_kept_per_service_and_survives_a_restart(world: World, kind: Kind) -> None:
    """Row 13: another service of the same seller has its own payee; the pin is in the ledger."""
    seller = world.seller()
    mask = seller.on("/api/tools/mask-refinement", shifting(PAYEE, OTHER_PAYEE))
    other = seller.on("/api/tools/other", shifting(OTHER_PAYEE))
    buyer = world.buyer(kind, world.payer(payees="pin"))
    assert buyer.post(mask).status_code == 200
    assert buyer.post(other).status_code == 200
    later = world.buyer(kind, world.payer(payees="pin"))
    world.refused(later, mask, OfferRefused)
    assert later.post(other).status_code == 200


def test_only_listed_payees_are_paid(world: World, kind: Kind) -> None:
    """Row 13: a list allows those addresses only, in any letter case."""
    seller = world.seller()
    payer = world.payer(payees=[PAYEE.lower()])
    buyer = world.buyer(kind, payer)
    cheap = offer("10", payTo=OTHER_PAYEE)
    world.refused(buyer, seller.sells(cheap, path="/stranger"), OfferRefused)
    assert buyer.get(seller.sells(cheap, offer("1000"), path="/both")).status_code == 200
    assert [one.to for one in seller.authorizations()] == [PAYEE]


# --- row 14


WRONG_PAYEES: dict[str, object] = {
    "zero": "0x" + "0" * 40,
    "self": Wallet.from_key(KEY).address,
    "self-in-lower-case": Wallet.from_key(KEY).address.lower(),
    "token": USDC.address,
    "token-in-lower-case": USDC.address.lower(),
    "word": "merchant",
    "placeholder": "0xMerchantAddress",
    "bad-checksum": PAYEE.replace("Bc", "bC"),
    "short": PAYEE[:-1],
    "long": PAYEE + "0",
    "no-prefix": PAYEE[2:],
    "name": "seller.eth",
    "empty": "",
    "number": 0x209693BC6AFC0C5328BA36FAF03C514EF312287C,
    "list": [PAYEE],
    "padded": PAYEE + " ",
    "arabic": "0x" + "١" * 40,
}


@pytest.mark.parametrize("payee", WRONG_PAYEES.values(), ids=WRONG_PAYEES)
def test_a_payee_that_cannot_be_right_is_refused(world: World, kind: Kind, payee: object) -> None:
    """Row 14: zero, the payer, the token, a word, a bad checksum, anything unparsable."""
    url = world.seller().sells(offer("1000", payTo=payee))
    world.refused(world.buyer(kind), url, *UNREADABLE)


@pytest.mark.parametrize("payee", WRONG_PAYEES.values(), ids=WRONG_PAYEES)
@every_kind(SYNC[1])
def test_the_payee_rules_hold_in_version_1_and_with_a_list(
    world: World, kind: Kind, payee: object
) -> None:
    """Row 14: naming such an address in ``payees`` does not make it payable."""
    seller = world.seller()
    try:
        payer = world.payer(payees=[payee])
    except (ValueError, TypeError):
        payer = world.payer()
    url = seller.on("/paid", paywall(v1_body(offer_v1("1000", payTo=payee)), served()))
    world.refused(world.buyer(kind, payer), url, *UNREADABLE)


def test_a_lower_case_payee_is_paid_and_echoed_as_it_was(world: World, kind: Kind) -> None:
    """Row 14 and 54: without a checksum there is none to be wrong."""
    seller = world.seller()
    url = seller.sells(offer("1000", payTo=PAYEE.lower(), asset=USDC.address.lower()))
    assert world.buyer(kind).get(url).status_code == 200
    accepted = seller.paid_hits()[0].proof.accepted
    assert (accepted["payTo"], accepted["asset"]) == (PAYEE.lower(), USDC.address.lower())


# --- row 15


def test_what_was_judged_is_what_is_signed(world: World, kind: Kind) -> None:
    """Row 15: one offer goes through policy, ledger, wallet and echo."""
    seller = world.seller()
    entries = [
        offer("3000", payTo=OTHER_PAYEE),
        offer("1000", payTo=PAYEE, maxTimeoutSeconds=20),
        offer("2000", payTo=THIRD_PAYEE, maxTimeoutSeconds=200),
    ]
    quotes: list[Any] = []

    def approve(quote: Any) -> bool:
        quotes.append(quote)
        return True

    payer = world.payer(approve=approve)
    response = world.buyer(kind, payer).get(seller.sells(*entries))
    proof = seller.paid_hits()[0].proof
    (one,) = seller.authorizations()
    assert proof.accepted == entries[1]
    assert (one.to, one.value) == (PAYEE, 1000) and len(quotes) == 1
    (call,) = world.signer.signed
    assert str(call["message"]["to"]).lower() == PAYEE.lower()
    assert int(call["message"]["value"]) == 1000
    assert receipt(response).amount == 1000


@pytest.mark.parametrize("key", ["amount", "payTo", "asset", "network", "accepts", "x402Version"])
def test_a_key_given_twice_is_not_read_two_ways(world: World, kind: Kind, key: str) -> None:
    """Row 15 and 43: duplicate JSON keys make two readings of one offer; none is paid."""
    seller = world.seller()
    document = json.dumps({"x402Version": 2, "accepts": [offer("1000")]})
    doubled = document.replace(f'"{key}":', f'"{key}": "0", "{key}":', 1)
    assert doubled != document
    header = seller.on("/header", paywall(in_header(doubled), served()))
    body = seller.on("/body", paywall(in_body(doubled), served()))
    buyer = world.buyer(kind)
    world.refused(buyer, header, *UNREADABLE)
    world.refused(buyer, body, *UNREADABLE)


def test_the_name_of_the_other_version_does_not_change_the_price(world: World, kind: Kind) -> None:
    """Row 15: an entry with both names of the price is not checked on one and signed on the other."""
    seller = world.seller()
    entry = {**offer("1000"), "maxAmountRequired": "900000"}
    buyer = world.buyer(kind, world.payer())
    outcome = attempt(buyer, seller.sells(entry))
    if isinstance(outcome, PaymentError):
        assert outcome.at_risk is False and world.signer.calls == 0
        return
    assert [one.value for one in seller.authorizations()] == [1000]


# --- row 16


def test_the_contacted_origin_decides_and_not_the_resource_claimed(
    world: World, kind: Kind
) -> None:
    """Row 16: ``resource.url`` names somebody else's service; the caller's URL is what counts."""
    seller = world.seller()
    claim = {"url": "https://bank.example/api/tools/mask-refinement", "description": "bank"}
    reply = v2_header(offer("1000"), resource=claim)
    url = seller.on("/paid", paywall(reply, served()))
    response = world.buyer(kind).get(url)
    paid = receipt(response)
    assert (paid.service, paid.origin) == (seller.origin, seller.origin)
    document = seller.paid_hits()[0].proof.document or {}
    assert document["resource"] == claim


# --- row 17


def test_a_signed_offer_that_contradicts_accepts_never_sets_the_price(
    world: World, kind: Kind
) -> None:
    """Row 17: a forged, expired offer over 10000; what is signed is the entry of ``accepts``."""
    seller = world.seller()
    payload = {
        "version": 1,
        "resourceUrl": seller.origin + "/paid",
        "scheme": "exact",
        "network": "eip155:8453",
        "asset": USDC.address,
        "payTo": OTHER_PAYEE,
        "amount": "10000",
        "validUntil": 1,
    }
    forged = {
        "format": "eip712",
        "acceptIndex": 0,
        "payload": payload,
        "signature": "0x" + "1" * 130,
    }
    extensions = {"offer-receipt": {"info": {"offers": [forged]}, "schema": {}}}
    reply = v2_header(offer("1"), extensions=extensions)
    url = seller.on("/paid", paywall(reply, served()))
    assert world.buyer(kind).get(url).status_code == 200
    assert [(one.value, one.to) for one in seller.authorizations()] == [(1, PAYEE)]
    document = seller.paid_hits()[0].proof.document or {}
    assert encode(document["extensions"]) == encode(extensions)
