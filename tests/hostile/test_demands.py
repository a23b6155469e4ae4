"""What a seller demands of the signature is done, or its offer is refused; never another signed."""

from __future__ import annotations

from typing import Any

import pytest

from tests.hostile.kit import PAIR, Kind, World, every_kind, receipt
from tests.support.seller import (
    OTHER_PAYEE,
    USDC,
    challenge,
    in_body,
    in_header,
    offer,
    offer_server402,
    offer_v1,
    paywall,
    served,
    server402_body,
    v1_body,
    v2_body,
)
from x402_mask import OfferRefused
from x402_mask._crypto.eip712 import TRANSFER_TYPES

DOMAIN = {"name": "USD Coin", "version": "2"}
FULL_DOMAIN = {**DOMAIN, "chainId": 8453, "verifyingContract": USDC.address}

SEPARATOR = "0x02fa7265e7c5d81118673727957699e4d68f74cd74b7db77da710fe8a2c7834f"
"""As USDC itself answers on Base."""

DEMANDS: list[dict[str, Any]] = [
    {"primaryType": "ReceiveWithAuthorization"},
    {"primaryType": "Permit"},
    {"primary_type": "Permit"},
    {"primaryType": 7},
    {"assetTransferMethod": "EIP-3009"},
    {"assetTransferMethod": "permit2"},
    {"AssetTransferMethod": "permit2"},
    {"asset_transfer_method": "permit2"},
    {"transferMethod": "permit2"},
    {"token-transfer-method": "erc7710"},
    {"signatureType": "eip1271"},
    {"authorizationType": "ReceiveWithAuthorization"},
    {"permit2": True},
    {"usePermit2": True},
    {"requirePermit": "yes"},
    {"domain": {"name": "Not USDC", "version": "2"}},
    {"domain": {**FULL_DOMAIN, "chainId": 1}},
    {"domain": {**FULL_DOMAIN, "salt": "0x" + "11" * 32}},
    {"eip712Domain": {"verifyingContract": OTHER_PAYEE}},
    {"verifying_contract": OTHER_PAYEE},
    {"chain_id": 1},
    {"domainName": "usd coin"},
    {"types": {"Permit": []}},
    {"types": {**TRANSFER_TYPES, "Other": []}},
    {"nonce": "0x" + "11" * 32},
    {"salt": "0x" + "11" * 32},
    {"spender": OTHER_PAYEE},
    {"validBefore": 1},
    {"validAfter": "1700000000"},
    {"deadline": 1},
    {"witness": {"to": OTHER_PAYEE}},
    {"typedData": {"primaryType": "Permit"}},
    {"eip712Name": "USDC"},
    {"eip712_chain_id": 1},
    {"domainSeparator": "0x" + "11" * 32},
    {"standard": "Permit2"},
    {"functionName": "receiveWithAuthorization"},
    {"scheme-variant": "EIP-2612"},
    {"signatureType": "EIP-191"},
]

INSIDE: list[dict[str, Any]] = [
    {"signing": {"primaryType": "ReceiveWithAuthorization"}},
    {"token": {"evm": {"assetTransferMethod": "permit2"}}},
    {"settlement": {"function": "receiveWithAuthorization"}},
    {"settlement": {"how": "permit2"}},
    {"methods": ["permit2"]},
    {"assetTransferMethods": ["erc7710", "x"]},
    {"signing": [{"primaryType": "ReceiveWithAuthorization"}]},
    {"signing": {"methods": ["Permit2", "EIP-2612"]}},
]


@pytest.mark.parametrize("demand", INSIDE, ids=repr)
def test_a_demand_further_inside_is_one_as_well(
    world: World, kind: Kind, demand: dict[str, Any]
) -> None:
    url = world.seller().sells(offer(extra={**DOMAIN, **demand}))
    error = world.refused(world.buyer(kind), url, OfferRefused)
    assert error.reason == "transfer_method"


@pytest.mark.parametrize("demand", DEMANDS, ids=repr)
@pytest.mark.parametrize("place", ["extra", "entry"])
def test_a_demand_that_is_not_followed_is_a_refusal(
    world: World, kind: Kind, demand: dict[str, Any], place: str
) -> None:
    """In ``extra``, where it belongs, or beside it."""
    entry = offer(extra={**DOMAIN, **demand}) if place == "extra" else {**offer(), **demand}
    url = world.seller().sells(entry)
    error = world.refused(world.buyer(kind), url, OfferRefused)
    assert error.reason in ("transfer_method", "domain")
    assert (
        receipt(world.buyer(kind).get(world.sellers[0].sells(entry, offer("1001")))).amount == 1001
    )


@pytest.mark.parametrize("demand", DEMANDS[:4], ids=repr)
def test_a_demand_of_a_version_1_seller(world: World, kind: Kind, demand: dict[str, Any]) -> None:
    seller = world.seller()
    entry = offer_v1(extra={**DOMAIN, **demand})
    url = seller.on("/paid", paywall(v1_body(entry), served()))
    assert world.refused(world.buyer(kind), url, OfferRefused).reason == "transfer_method"


@pytest.mark.parametrize(
    "extra",
    [
        {"primaryType": "TransferWithAuthorization"},
        {"assetTransferMethod": "eip3009"},
        {"transferMethod": "eip3009"},
        {"domain": FULL_DOMAIN},
        {"domain": "shop.example"},
        {"types": TRANSFER_TYPES},
        {"types": ["image/png"]},
        {"permit2": False, "nonce": None},
        {"supportsPermit2": True, "supportsEip712": True},
        {"signature": "0x" + "11" * 65, "signer": OTHER_PAYEE},
        {"validAfter": 0},
        {"name": "USD Coin", "version": 2},
        {"eip712Name": "USD Coin", "eip712Version": "2", "eip712ChainId": 8453},
        {"eip712": DOMAIN, "eip712Supported": True, "signatureType": "EIP-712"},
        {"signatureScheme": "eip712", "supportedMethods": ["eip3009", "permit2"]},
        {"supports": {"assetTransferMethod": "permit2"}, "fallbackMethod": "permit2"},
        {"webhook": {"signatureType": "hmac", "nonce": "x", "url": "https://shop.example"}},
        {"title": "Permit2", "info": {"description": "permit2"}, "plan": {"type": "permit"}},
        {"schema": {"properties": {"primaryType": {"type": "string"}, "permit2": {}}}},
        {"facilitatorAddress": OTHER_PAYEE, "feePayer": "x", "memo": "y", "decimals": 6},
        {"description": "permit2 nonce domain", "paymentFlow": "upfront"},
        {"methods": ["eip3009", "permit2"], "assetTransferMethods": ["permit2", "eip3009"]},
        {"signing": [{"primaryType": "Permit"}, {"primaryType": "TransferWithAuthorization"}]},
        {"formats": [], "tags": ["permit"], "domainSeparator": SEPARATOR},
    ],
    ids=repr,
)
def test_what_is_done_anyway_or_demands_nothing_is_paid(
    world: World, kind: Kind, extra: dict[str, Any]
) -> None:
    url = world.seller().sells(offer(extra={**DOMAIN, **extra}))
    assert receipt(world.buyer(kind).get(url)).outcome == "settled"


# --- the words of version 1 -----------------------------------------------------------------------


def versionless(**changes: Any) -> dict[str, Any]:
    """A version 1 offer in a body without a version; ``None`` leaves a word out."""
    entry = {**offer_v1(), **changes}
    return challenge({k: v for k, v in entry.items() if v is not None}, version=None)


V1_WORDS = {
    "all of them": versionless(),
    "without a resource": versionless(resource=None),
    "a chain in the new way": versionless(network="eip155:8453"),
    "the amount's word alone": versionless(network="eip155:8453", resource=None),
    "the other two": versionless(maxAmountRequired=None, amount="1000"),
}
NEW_WORDS = {
    "the marketplace": server402_body(offer_server402()),
    "the marketplace by a chain's name": server402_body(offer_server402(network="base")),
    "the marketplace with a resource": server402_body({**offer_server402(), "resource": "/x"}),
    "both amounts": server402_body({**offer_server402(), "maxAmountRequired": "1000"}),
    "said to be version 2": v2_body({**offer_v1(), "network": "eip155:8453"}),
}


@every_kind(*PAIR)
@pytest.mark.parametrize("words", V1_WORDS)
def test_version_1_in_its_own_words_is_paid_by_its_own_header(
    world: World, kind: Kind, words: str
) -> None:
    document = V1_WORDS[words]
    seller = world.seller()
    url = seller.on("/paid", paywall(in_body(document), served()))
    assert receipt(world.buyer(kind).get(url)).outcome == "settled"
    (paid,) = seller.paid_hits()
    assert paid.proof.header == "x-payment" and paid.header("payment-signature") is None
    told = paid.proof.document or {}
    assert set(told) == {"x402Version", "scheme", "network", "payload"}
    assert told["network"] == document["accepts"][0]["network"] and told["x402Version"] == 1


FOREIGN: dict[str, Any] = {
    "a later version's": {**offer(), "network": "solana:5eykt4UsFv8P8NJdTREpY1vzqKqZKvdp"},
    "another scheme's": {"scheme": "channel", "network": "lightning", "amount": 7},
    "no offer": {},
    "too dear": offer("999999999999"),
}


@pytest.mark.parametrize("words", V1_WORDS)
@pytest.mark.parametrize("other", FOREIGN)
@pytest.mark.parametrize("first", [True, False])
def test_an_offer_in_version_1_stays_so_beside_any_other(
    world: World, kind: Kind, words: str, other: str, *, first: bool
) -> None:
    """Its seller reads no other header, and what it does not read holds the money."""
    (entry,) = V1_WORDS[words]["accepts"]
    listed = [FOREIGN[other], entry] if first else [entry, FOREIGN[other]]
    seller = world.seller()
    url = seller.on("/paid", paywall(in_body({"accepts": listed}), served()))
    assert receipt(world.buyer(kind).get(url)).outcome == "settled"
    (paid,) = seller.paid_hits()
    assert paid.proof.header == "x-payment" and (paid.proof.document or {})["x402Version"] == 1


def test_an_offer_in_later_words_stays_so_beside_one_of_version_1(world: World, kind: Kind) -> None:
    (dear,) = versionless(maxAmountRequired="900000")["accepts"]
    seller = world.seller()
    url = seller.on("/paid", paywall(in_body({"accepts": [dear, offer_server402()]}), served()))
    assert receipt(world.buyer(kind).get(url)).outcome == "settled"
    assert [hit.proof.header for hit in seller.paid_hits()] == ["payment-signature"]


@pytest.mark.parametrize("words", NEW_WORDS)
def test_other_words_without_a_version_are_no_version_1(
    world: World, kind: Kind, words: str
) -> None:
    seller = world.seller()
    url = seller.on("/paid", paywall(NEW_WORDS[words], served()))
    assert world.buyer(kind).get(url).status_code == 200
    assert [hit.proof.header for hit in seller.paid_hits()] == ["payment-signature"]


def test_the_header_of_version_2_is_version_2_whatever_its_words(world: World, kind: Kind) -> None:
    """``PAYMENT-REQUIRED`` belongs to version 2."""
    seller = world.seller()
    url = seller.on("/paid", paywall(in_header(versionless()), served()))
    assert world.buyer(kind).get(url).status_code == 200
    assert [hit.proof.header for hit in seller.paid_hits()] == ["payment-signature"]
