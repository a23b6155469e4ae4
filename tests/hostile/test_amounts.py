"""Rows 1 to 12: amount, asset, domain, network, scheme."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from tests.hostile.kit import (
    ASYNC,
    CORE,
    EVERY,
    SYNC,
    GreedySigner,
    Kind,
    World,
    attempt,
    every_kind,
    receipt,
    usd,
)
from tests.support.seller import (
    BASE,
    BASE_SEPOLIA,
    OTHER_PAYEE,
    PAYEE,
    USDC,
    USDC_CELO,
    USDC_ETHEREUM,
    USDC_SEPOLIA,
    WIDE_USD,
    offer,
    offer_server402,
    offer_v1,
    paywall,
    served,
    server402_body,
    v1_body,
    v2_body,
    v2_header,
)
from x402_mask import Asset, Cap, CapExceeded, ChallengeError, OfferRefused, PaymentRefused

UNREADABLE = (OfferRefused, ChallengeError)


def wide_asset() -> Any:
    """The owner's own entry for a dollar with 18 decimals."""
    return Asset(
        network=BASE,
        address=WIDE_USD.address,
        decimals=18,
        name=WIDE_USD.name,
        version=WIDE_USD.version,
    )


def usdc_asset() -> Any:
    """Base USDC as an explicit entry."""
    return Asset(network=BASE, address=USDC.address, decimals=6, name="USD Coin", version="2")


# --- row 1


@every_kind(*EVERY)
def test_the_cheapest_offer_within_policy_is_paid_and_not_the_dear_one_listed_first(
    world: World, kind: Kind
) -> None:
    """Row 1: 900000 listed before 1000; the second is paid, at every plug point."""
    seller = world.seller()
    url = seller.sells(offer("900000"), offer("1000", payTo=OTHER_PAYEE))
    buyer = world.buyer(kind, world.payer(Cap("0.01", per="call")))
    response = buyer.post(url, json={"a": 1})
    assert response.status_code == 200 and response.content == b"goods"
    assert [(one.value, one.to) for one in seller.authorizations()] == [(1000, OTHER_PAYEE)]
    paid = receipt(response)
    assert (paid.usd, paid.amount, paid.outcome) == (Decimal("0.001"), 1000, "settled")
    assert paid.route == "x402" and paid.origin == seller.origin and paid.network == BASE
    assert paid.pay_to.lower() == OTHER_PAYEE.lower() and paid.payer == world.signer.address
    assert paid.transaction and world.settled() == Decimal("0.001")


def test_between_two_acceptable_offers_the_cheaper_is_paid(world: World, kind: Kind) -> None:
    """Row 1: order in the list decides nothing."""
    seller = world.seller()
    url = seller.sells(offer("5000"), offer("1000"), offer("3000"))
    assert world.buyer(kind).get(url).status_code == 200
    assert [one.value for one in seller.authorizations()] == [1000]


def test_a_refusal_for_money_names_the_limit_and_by_how_much(world: World, kind: Kind) -> None:
    """Row 1: the error has the cap, what was wanted, what is left, and names the knob."""
    seller = world.seller()
    cap = Cap("0.01", per="call")
    buyer = world.buyer(kind, world.payer(cap))
    error = world.refused(buyer, seller.sells(offer("900000")), CapExceeded)
    assert Decimal(error.wanted) == Decimal("0.9") and Decimal(error.left) == Decimal("0.01")
    assert error.cap == cap
    assert "0.9" in str(error) and "0.01" in str(error) and "cap" in str(error).lower()
    assert len(seller.hits) == 1


# --- row 2


def test_many_small_payments_stop_at_the_cumulative_cap(world: World, kind: Kind) -> None:
    """Row 2: thirty payments of $1 under a $5 cap are five."""
    seller = world.seller()
    url = seller.sells(offer("1000000"))
    buyer = world.buyer(kind, world.payer(Cap("5", per="day")))
    outcomes = []
    for _ in range(30):
        try:
            outcomes.append(buyer.post(url).status_code)
        except CapExceeded as error:
            outcomes.append(error.reason)
    assert outcomes[:5] == [200] * 5 and 200 not in outcomes[5:]
    assert len(seller.authorizations()) == 5 and world.signer.calls == 5
    row = world.payers[-1].spend()[0]
    assert row.settled == 5 and row.held == 0 == row.left


def test_the_cap_of_one_service_is_its_own_budget(world: World, kind: Kind) -> None:
    """Row 2: per-service caps, under the marketplace path and its legacy alias alike."""
    seller = world.seller()
    mask = seller.sells(offer("1000000"), path="/api/tools/mask-refinement")
    alias = seller.sells(offer("1000000"), path="/api/tools/aliyun-imageseg-refine-mask")
    other = seller.sells(offer("1000000"), path="/api/tools/other")
    payer = world.payer(Cap("2", per="day", service="mask-refinement"))
    buyer = world.buyer(kind, payer)
    assert buyer.post(mask).status_code == 200
    assert receipt(buyer.post(alias)).service == "mask-refinement"
    world.refused(buyer, mask, CapExceeded)
    world.refused(buyer, alias, CapExceeded)
    assert receipt(buyer.post(other)).service == "other"


def test_a_service_no_cap_names_is_refused(world: World, kind: Kind) -> None:
    """Row 2: no cap, no money."""
    seller = world.seller()
    payer = world.payer(Cap("5", per="day", service="mask-refinement"), wide=False)
    error = world.refused(world.buyer(kind, payer), seller.sells(), PaymentRefused)
    assert error.reason == "no_cap"


# --- rows 3 and 4


def test_decimals_come_from_the_registry_and_not_from_the_seller(world: World, kind: Kind) -> None:
    """Row 3: 10^12 units of USDC are a million dollars, whatever ``extra.decimals`` says."""
    seller = world.seller()
    extra = {"name": "USD Coin", "version": "2", "decimals": 18}
    url = seller.sells(offer(str(10**12), extra=extra, decimals=18))
    buyer = world.buyer(kind, world.payer(Cap("1", per="call")))
    error = world.refused(buyer, url, CapExceeded)
    assert Decimal(error.wanted) == 10**6


def test_offers_are_compared_in_dollars_and_not_in_digits(world: World, kind: Kind) -> None:
    """Row 3: 10^15 units of an 18-decimal dollar are cheaper than 2000 of USDC."""
    seller = world.seller()
    url = seller.sells(offer("2000"), offer(str(10**15), token=WIDE_USD))
    payer = world.payer(Cap("0.01", per="call"), assets=[usdc_asset(), wide_asset()])
    paid = receipt(world.buyer(kind, payer).get(url))
    assert (paid.usd, paid.amount) == (Decimal("0.001"), 10**15)
    assert seller.totals() == {(PAYEE, WIDE_USD.address): 10**15}


def test_a_cap_counts_an_18_decimal_dollar_as_a_dollar(world: World, kind: Kind) -> None:
    """Row 3: $1 of it does not fit a cap of half a dollar; a fraction of a unit rounds up."""
    seller = world.seller()
    payer = world.payer(Cap("0.5", per="call"), assets=[wide_asset()])
    buyer = world.buyer(kind, payer)
    dear = seller.sells(offer(str(10**18), token=WIDE_USD), path="/dear")
    error = world.refused(buyer, dear, CapExceeded)
    assert Decimal(error.wanted) == 1
    tiny = receipt(buyer.get(seller.sells(offer("1", token=WIDE_USD), path="/tiny")))
    assert (tiny.usd, tiny.amount) == (Decimal("0.000001"), 1)


@pytest.mark.parametrize(
    "asset",
    [
        "0x833589fcd6edb6e08f4c7c32d4f71b54bda02914",
        "0x036CbD53842c5426634e7929541eC2318f3dCF7e",
        "0x0000000000000000000000000000000000000000",
        "USDC",
        "",
        42,
    ],
    ids=["look-alike", "other-network", "zero", "word", "empty", "number"],
)
def test_an_unknown_token_is_refused(world: World, kind: Kind, asset: object) -> None:
    """Row 4: a look-alike, a token of another network, or no address at all."""
    seller = world.seller()
    url = seller.sells(offer("1000", asset=asset))
    world.refused(world.buyer(kind), url, *UNREADABLE)
    assert len(seller.hits) == 1


# --- rows 5 and 6


@pytest.mark.parametrize(
    "extra",
    [
        {"name": "Not USDC", "version": "9"},
        {"name": "USDC", "version": "2"},
        {"name": "USD Coin", "version": "1"},
        {"name": "USD Coin", "version": 2.5},
        {"name": ["USD Coin"], "version": "2"},
    ],
    ids=["both", "name", "version", "number", "list"],
)
def test_a_domain_that_differs_from_the_registry_is_refused(
    world: World, kind: Kind, extra: object
) -> None:
    """Row 5: the domain is ours; a seller who disagrees about it is not paid."""
    url = world.seller().sells(offer("1000", extra=extra))
    world.refused(world.buyer(kind), url, *UNREADABLE)


def test_a_missing_domain_is_filled_from_the_registry(world: World, kind: Kind) -> None:
    """Row 5: the marketplace sends no ``extra``; the pinned domain is signed, the echo untouched."""
    seller = world.seller()
    entry = offer_server402("1000")
    url = seller.on("/paid", paywall(server402_body(entry), served()))
    assert world.buyer(kind).post(url).status_code == 200
    assert seller.paid_hits()[0].proof.accepted == entry
    assert len(seller.authorizations()) == 1


@pytest.mark.parametrize(
    "addition",
    [
        {"verifyingContract": "0x4200000000000000000000000000000000000006"},
        {"chainId": 1},
        {"domain": {"name": "Not USDC", "version": "9", "chainId": 1}},
    ],
    ids=["verifying-contract", "chain-id", "domain"],
)
def test_a_domain_part_from_the_seller_is_never_signed(
    world: World, kind: Kind, addition: dict[str, Any]
) -> None:
    """Row 6: only the pinned (chain, contract, name, version) is ever signed."""
    seller = world.seller()
    extra = {"name": "USD Coin", "version": "2", **addition}
    buyer = world.buyer(kind)
    outcome = attempt(buyer, seller.sells(offer("1000", extra=extra)))
    assert not isinstance(outcome, PaymentRefused) or world.signer.calls == 0
    for call in world.signer.signed:
        domain = call["domain"]
        assert (domain["name"], domain["version"]) == ("USD Coin", "2")
        assert int(domain["chainId"]) == 8453
        assert domain["verifyingContract"].lower() == USDC.address.lower()


@pytest.mark.parametrize(
    "addition",
    [{"verifyingContract": "0x4200000000000000000000000000000000000006"}, {"chainId": 1}],
    ids=["verifying-contract", "chain-id"],
)
def test_a_contradicting_domain_part_is_refused(
    world: World, kind: Kind, addition: dict[str, Any]
) -> None:
    """Row 6: another contract or chain than the registry's is a disagreement like row 5's."""
    extra = {"name": "USD Coin", "version": "2", **addition}
    url = world.seller().sells(offer("1000", extra=extra))
    world.refused(world.buyer(kind), url, *UNREADABLE)


# --- rows 7 and 8


PERMIT2 = {"name": "USD Coin", "version": "2", "assetTransferMethod": "permit2"}


def test_permit2_is_not_used_because_a_seller_asks_for_it(world: World, kind: Kind) -> None:
    """Row 7: Permit2 is the owner's choice; an eip3009 offer beside it is taken, though dearer."""
    seller = world.seller()
    buyer = world.buyer(kind)
    world.refused(buyer, seller.sells(offer("10", extra=PERMIT2), path="/only"), OfferRefused)
    both = seller.sells(offer("10", extra=PERMIT2), offer("1000"), path="/both")
    assert buyer.get(both).status_code == 200
    assert [one.value for one in seller.authorizations()] == [1000]
    for proof in seller.proofs():
        assert "permit2Authorization" not in str(proof.document)


@pytest.mark.parametrize("method", ["erc7710", "PERMIT2", "", 7, ["eip3009"]], ids=repr)
def test_an_unknown_transfer_method_is_not_guessed(
    world: World, kind: Kind, method: object
) -> None:
    """Row 7: whatever is not eip3009 is skipped."""
    extra = {"name": "USD Coin", "version": "2", "assetTransferMethod": method}
    url = world.seller().sells(offer("1000", extra=extra))
    world.refused(world.buyer(kind), url, *UNREADABLE)


def test_an_unlimited_approval_is_never_given(world: World, kind: Kind) -> None:
    """Row 8: gas sponsoring advertised at a price of one unit; a wallet that could is not asked."""
    seller = world.seller()
    world.signer = signer = GreedySigner()
    sponsoring = {
        "erc20ApprovalGasSponsoring": {"info": {"description": "free"}, "schema": {}},
        "eip2612GasSponsoring": {"info": {"description": "free"}, "schema": {}},
    }
    buyer = world.buyer(kind)
    permit2 = v2_header(offer("1", extra=PERMIT2), extensions=sponsoring)
    world.refused(buyer, seller.on("/permit2", paywall(permit2, served())), OfferRefused)
    plain = v2_header(offer("1"), extensions=sponsoring)
    assert buyer.get(seller.on("/plain", paywall(plain, served()))).status_code == 200
    document = seller.paid_hits()[0].proof.document or {}
    assert document["extensions"] == sponsoring
    assert signer.misused == [] and signer.calls == 1


# --- row 9


AMOUNTS: dict[str, object] = {
    "negative": "-5",
    "exponent": "1e3",
    "zero": "0",
    "zeros": "000",
    "endless": "9" * 5000,
    "json-number": 1000,
    "json-float": 1000.0,
    "arabic": "١٠٠٠",
    "full-width": "１０００",
    "two-to-256": str(2**256),
    "seventy-nine-digits": "1" + "0" * 78,
    "plus": "+5",
    "space": " 1000",
    "newline": "1000\n",
    "hex": "0x3e8",
    "underscore": "1_000",
    "decimal": "10.00",
    "empty": "",
    "null": None,
    "true": True,
    "list": ["1000"],
    "object": {"value": "1000"},
}


@pytest.mark.parametrize("amount", AMOUNTS.values(), ids=AMOUNTS)
def test_an_amount_that_is_not_plain_digits_in_range_is_refused(
    world: World, kind: Kind, amount: object
) -> None:
    """Row 9: version 2, in the body where 5000 digits fit."""
    seller = world.seller()
    entry = {**offer("1"), "amount": amount}
    url = seller.on("/paid", paywall(v2_body(entry), served()))
    world.refused(world.buyer(kind), url, *UNREADABLE)


@pytest.mark.parametrize("amount", AMOUNTS.values(), ids=AMOUNTS)
@every_kind(ASYNC[1])
def test_a_version_1_amount_obeys_the_same_rule(world: World, kind: Kind, amount: object) -> None:
    """Row 9: version 1 has another name for it and no other rule."""
    seller = world.seller()
    entry = {**offer_v1("1"), "maxAmountRequired": amount}
    url = seller.on("/paid", paywall(v1_body(entry), served()))
    world.refused(world.buyer(kind), url, *UNREADABLE)


@pytest.mark.parametrize("amount", AMOUNTS.values(), ids=AMOUNTS)
@every_kind(CORE[1])
def test_one_bad_amount_does_not_spoil_a_good_offer(
    world: World, kind: Kind, amount: object
) -> None:
    """Row 9 and 43: the bad entry is skipped, the good one paid."""
    seller = world.seller()
    bad = {**offer("1"), "amount": amount}
    url = seller.on("/paid", paywall(v2_body(bad, offer("1000")), served()))
    assert world.buyer(kind).get(url).status_code == 200
    assert [one.value for one in seller.authorizations()] == [1000]


def test_an_amount_too_large_for_the_books_is_refused(world: World, kind: Kind) -> None:
    """Row 9: more than 2^63-1 micro-dollars does not wrap around, and fits no cap."""
    seller = world.seller()
    buyer = world.buyer(kind)
    for number, amount in enumerate((2**63 - 1, 2**63, 2**64 + 1000, 2**256 - 1)):
        url = seller.sells(offer(str(amount)), path=f"/{number}")
        world.refused(buyer, url, PaymentRefused)


# --- rows 10 and 11


def test_the_network_allowlist_holds_in_version_1_too(world: World, kind: Kind) -> None:
    """Row 10: an owner of test money never signs for Base mainnet, in either version's spelling."""
    seller = world.seller()
    buyer = world.buyer(kind, world.payer(networks=[BASE_SEPOLIA]))
    old = seller.on("/v1", paywall(v1_body(offer_v1("1000", network="base")), served()))
    world.refused(buyer, old, OfferRefused)
    world.refused(buyer, seller.sells(offer("1000"), path="/v2"), OfferRefused)
    right = offer_v1("1000", network="base-sepolia", token=USDC_SEPOLIA)
    allowed = seller.on("/right", paywall(v1_body(right), served()))
    assert buyer.get(allowed).status_code == 200
    assert [one.network for one in seller.authorizations()] == [BASE_SEPOLIA]


@pytest.mark.parametrize("network", ["story", "educhain", "skale-base-sepolia", "Base", "unknown"])
@every_kind(*SYNC)
def test_a_disputed_or_unknown_network_name_is_not_guessed(
    world: World, kind: Kind, network: str
) -> None:
    """Row 10: names two packages map differently, or nobody knows."""
    seller = world.seller()
    entry = offer_v1("1000", network=network)
    world.refused(
        world.buyer(kind), seller.on("/paid", paywall(v1_body(entry), served())), *UNREADABLE
    )


def test_a_disputed_name_needs_more_than_its_network(world: World, kind: Kind) -> None:
    """Row 10: two packages map ``story`` to different chains; a v1 seller may mean the other one."""
    seller = world.seller()
    story = Asset(
        network="eip155:1514",
        address="0xF1815bd50389c46847f0Bda824eC8da914045D14",
        decimals=6,
        name="Bridged USDC",
        version="2",
    )
    entry = offer_v1(
        "1000",
        network="story",
        asset=story.address,
        extra={"name": story.name, "version": story.version},
    )
    payer = world.payer(networks=["eip155:1514"], assets=[story])
    url = seller.on("/paid", paywall(v1_body(entry), served()))
    world.refused(world.buyer(kind, payer), url, OfferRefused)


def test_an_asset_outside_the_networks_is_not_a_way_around_them(world: World, kind: Kind) -> None:
    """Row 10: ``assets`` names tokens, ``networks`` decides."""
    seller = world.seller()
    url = seller.sells()
    try:
        payer = world.payer(networks=[BASE_SEPOLIA], assets=[usdc_asset()])
    except ValueError:
        payer = world.payer(networks=[BASE_SEPOLIA])
    world.refused(world.buyer(kind, payer), url, OfferRefused)


def test_without_a_network_list_the_seller_does_not_choose_the_chain(
    world: World, kind: Kind
) -> None:
    """Row 11: the default is Base mainnet alone."""
    seller = world.seller()
    buyer = world.buyer(kind)
    foreign = [offer("1", token=token) for token in (USDC_CELO, USDC_ETHEREUM, USDC_SEPOLIA)]
    world.refused(buyer, seller.sells(*foreign, path="/foreign"), OfferRefused)
    assert buyer.get(seller.sells(*foreign, offer("1000"), path="/both")).status_code == 200
    assert [(one.network, one.value) for one in seller.authorizations()] == [(BASE, 1000)]


@pytest.mark.parametrize(
    "network",
    ["eip155:08453", "EIP155:8453", "eip155:8453 ", "eip155:0x2105", "eip155:", "8453", 8453],
    ids=repr,
)
@every_kind(*SYNC)
def test_another_spelling_of_a_network_is_not_paid(
    world: World, kind: Kind, network: object
) -> None:
    """Row 11: CAIP-2 is compared as text."""
    url = world.seller().sells(offer("1000", network=network))
    world.refused(world.buyer(kind), url, *UNREADABLE)


# --- row 12


@pytest.mark.parametrize("scheme", ["upto", "batch-settlement", "auth-capture", "EXACT", "", 1])
def test_only_exact_is_signed(world: World, kind: Kind, scheme: object) -> None:
    """Row 12: ``upto`` and other schemes are skipped, and refused when nothing else is there."""
    seller = world.seller()
    buyer = world.buyer(kind)
    strange = offer("10", scheme=scheme)
    world.refused(buyer, seller.sells(strange, path="/only"), *UNREADABLE)
    assert buyer.get(seller.sells(strange, offer("1000"), path="/both")).status_code == 200
    assert [one.usd_micro for one in seller.authorizations()] == [1000]
    assert world.counted() == usd(1000)
