"""An offer is judged by what it is for before it is judged by its spelling."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from tests.hostile.kit import PAIR, Kind, World, every_kind, receipt
from tests.support.seller import (
    OTHER_PAYEE,
    PAYEE,
    challenge,
    encode,
    in_body,
    in_header,
    offer,
    offer_v1,
    paywall,
    served,
    v1_body,
    v2_header,
)
from x402_mask import ChallengeError, OfferRefused

SOLANA = "solana:5eykt4UsFv8P8NJdTREpY1vzqKqZKvdp"
MINT = "EPjFWdd5AufqSSqeM2qN1xzybapC8G4wEGGkZwyTDt1v"

FOREIGN: list[tuple[dict[str, Any], str]] = [
    ({"scheme": "upto", "amount": None}, "scheme"),
    ({"scheme": "nvm:erc4337", "amount": 1, "payTo": None}, "scheme"),
    ({"scheme": "batch-settlement", "extra": []}, "scheme"),
    ({"scheme": "upto", "network": None}, "scheme"),
    ({"network": SOLANA, "asset": MINT, "payTo": MINT, "amount": 1000}, "network"),
    ({"network": "solana-mainnet-beta", "asset": None}, "network"),
    ({"network": "eip155:137", "amount": "0.01"}, "network"),
    ({"network": "polygon", "payTo": None}, "network"),
    ({"network": "eip155:137", "maxTimeoutSeconds": "60"}, "network"),
    ({"network": "fiat", "asset": "USD", "amount": 0.01}, "network"),
    ({"asset": OTHER_PAYEE, "amount": 1000}, "asset"),
]
OURS: list[tuple[dict[str, Any], str]] = [
    ({"amount": 1000}, "price"),
    ({"amount": "0"}, "price"),
    ({"payTo": 7}, "payee"),
    ({"payTo": "0x" + "0" * 40}, "payee"),
    ({"extra": {"name": "x"}}, "domain"),
    ({"extra": []}, "domain"),
    ({"maxTimeoutSeconds": "60"}, "validity"),
]


@pytest.mark.parametrize(("changes", "reason"), FOREIGN, ids=repr)
def test_a_foreign_offer_is_foreign_however_it_is_written(
    world: World, kind: Kind, changes: dict[str, Any], reason: str
) -> None:
    url = world.seller().sells(offer(**changes))
    assert world.refused(world.buyer(kind), url, OfferRefused).reason == reason


@pytest.mark.parametrize(("changes", "reason"), OURS, ids=repr)
def test_the_reason_is_that_of_the_offer_that_could_have_been_ours(
    world: World, kind: Kind, changes: dict[str, Any], reason: str
) -> None:
    """Whatever stands around it."""
    foreign = [offer(**other) for other, _ in FOREIGN]
    url = world.seller().sells(*foreign, offer(**changes), *foreign)
    assert world.refused(world.buyer(kind), url, OfferRefused).reason == reason


@pytest.mark.parametrize("word", ["amount", "maxAmountRequired"])
@pytest.mark.parametrize("amount", [1000, 1000.0, 1e22])
def test_an_amount_as_a_number_is_said_to_be_one(
    world: World, kind: Kind, amount: float, word: str
) -> None:
    seller = world.seller()
    reply = v2_header(offer(amount)) if word == "amount" else v1_body(offer_v1(amount))
    error = world.refused(world.buyer(kind), seller.on("/paid", reply), OfferRefused)
    assert error.reason == "price" and f"{word} is a JSON number" in str(error)
    assert "positive integer" not in str(error)


# --- a challenge one level down -------------------------------------------------------------------

NESTED: dict[str, Any] = {
    "detail": {"detail": challenge(offer_v1(), version=1)},
    "paymentRequired": {"error": "PAYMENT_REQUIRED", "paymentRequired": challenge(offer())},
    "paymentRequirements": {"error": "pay", "paymentRequirements": [offer_v1()]},
    "data": {"ok": False, "data": {"x402Version": 2}},
}


@every_kind(*PAIR)
@pytest.mark.parametrize("key", NESTED)
def test_a_challenge_one_level_down_is_handed_back_with_one_warning(
    world: World, kind: Kind, key: str, caplog: pytest.LogCaptureFixture
) -> None:
    seller = world.seller()
    url = seller.on("/paid", in_body(NESTED[key]))
    with caplog.at_level(logging.WARNING, "x402_mask"):
        answer = world.buyer(kind).get(url)
    assert answer.status_code == 402 and answer.json() == NESTED[key]
    (line,) = [record.getMessage() for record in caplog.records]
    assert seller.origin in line and repr(key) in line and len(seller.hits) == 1


@pytest.mark.parametrize(
    "body",
    [
        {"error": "quota"},
        {"accepts_cookies": 1},
        {"a": {"b": challenge(offer())}},
        {"payTo": PAYEE},
        {"a": [{"payTo": 1}]},
    ],
    ids=repr,
)
def test_what_is_no_challenge_is_not_spoken_of(
    world: World, kind: Kind, body: Any, caplog: pytest.LogCaptureFixture
) -> None:
    url = world.seller().on("/paid", in_body(body))
    with caplog.at_level(logging.WARNING, "x402_mask"):
        assert world.buyer(kind).get(url).status_code == 402
    assert not caplog.records


# --- a proof that no server would take ------------------------------------------------------------

LONGEST = 12 * 1024


def line(hit: Any) -> int:
    """Bytes of the proof's header line."""
    return len("payment-signature: \r\n") + len(hit.header("payment-signature"))


def catalog(size: int) -> dict[str, Any]:
    """A seller's catalog entry of about this size."""
    return {"bazaar": {"info": {"input": {"type": "http"}}, "schema": {"x": "y" * size}}}


@pytest.mark.parametrize("size", [100, 7000, 8000, 9000, 12000, 30000])
@pytest.mark.parametrize("others", [{}, {"other": {"info": {"b": 1}}}], ids=["alone", "beside"])
def test_the_catalog_entry_is_left_out_where_the_header_would_be_too_long(
    world: World, kind: Kind, size: int, others: dict[str, Any]
) -> None:
    """Node answers 431 to 16 KiB of headers, and the money would be held."""
    seller = world.seller()
    extensions = {**others, **catalog(size)}
    document = challenge(offer(), extensions=extensions)
    url = seller.on("/paid", paywall(in_header(document), served()))
    assert receipt(world.buyer(kind).get(url)).outcome == "settled"
    (paid,) = seller.paid_hits()
    told = paid.proof.document or {}
    assert line(paid) <= LONGEST and told["accepted"] == document["accepts"][0]
    if "bazaar" in told.get("extensions", {}):
        assert told["extensions"] == extensions and size < 8500
    else:
        assert told.get("extensions", {}) == others and size > 7500
        assert "extensions" in told or not others


@pytest.mark.parametrize(
    "document",
    [
        challenge(offer(outputSchema={"x": "y" * 9000})),
        challenge(offer(), resource={"url": "/paid", "description": "ü" * 4600}),
        challenge(offer(), extensions={"other": {"info": "y" * 9000}, **catalog(10)}),
        challenge(offer(outputSchema={"x": "y" * 9000}), extensions=catalog(10)),
    ],
    ids=["offer", "resource", "extension", "beside-a-catalog"],
)
def test_what_is_too_large_all_the_same_is_refused_before_it_is_signed(
    world: World, kind: Kind, document: dict[str, Any]
) -> None:
    url = world.seller().on("/paid", paywall(in_header(document), served()))
    buyer = world.buyer(kind)
    error = world.refused(buyer, url, OfferRefused)
    assert error.reason == "too_large" and "12 KiB" in str(error)
    assert not world.in_state("released"), "it was known before anything was reserved"
    small = challenge(*document["accepts"], offer("1001"))
    assert receipt(buyer.get(world.sellers[0].on("/two", paywall(in_header(small), served()))))


def test_the_proof_of_version_1_repeats_nothing(world: World, kind: Kind) -> None:
    url = world.seller().on(
        "/paid", paywall(v1_body(offer_v1(outputSchema={"x": "y" * 20000})), served())
    )
    assert receipt(world.buyer(kind).get(url)).outcome == "settled"


def test_a_challenge_that_cannot_be_read_is_still_that(world: World, kind: Kind) -> None:
    """The limits of the challenge itself come first."""
    reply = in_header({"x402Version": 2, "accepts": {}})
    url = world.seller().on("/paid", paywall(reply, served()))
    world.refused(world.buyer(kind), url, ChallengeError)
    assert encode({}) == "e30="
