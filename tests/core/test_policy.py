"""Policy only ever drops offers; of what is left it takes the cheapest, whatever the order."""

from __future__ import annotations

import dataclasses
import random
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.support.seller import OTHER_PAYEE, PAYEE, USDC, USDC_CELO, USDC_SEPOLIA, WIDE_USD, offer
from x402_mask import Asset, Cap, MemoryLedger, OfferRefused, Payer, Wallet
from x402_mask._models import Offer
from x402_mask._money import MICRO_MAX
from x402_mask._payer import buyer_of
from x402_mask._policy.clocks import SKEW_MAX_S, seller_clock
from x402_mask._policy.offers import VALIDITY_MIN_S, Choice, Policy, choose, payee_fault
from x402_mask._schemes.exact_eip3009 import ExactEip3009
from x402_mask._schemes.scheme import Moment
from x402_mask._wire.x402 import Challenge, read_challenge

WALLET = Wallet.from_key("11" * 32)
WIDE = Asset(WIDE_USD.network, WIDE_USD.address, 18, WIDE_USD.name, WIDE_USD.version)


def policy_of(**options: Any) -> Policy:
    """The policy of a payer with these options."""
    options.setdefault("caps", [Cap(1, per="day")])
    options.setdefault("origins", ["https://shop.example"])
    return buyer_of(Payer(WALLET, ledger=MemoryLedger(), **options)).settings.policy


USDC_ASSET = Asset(USDC.network, USDC.address, 6, USDC.name, USDC.version)
POLICY = policy_of(assets=[USDC_ASSET, WIDE])


def challenged(*entries: Any) -> Challenge:
    """A challenge with these entries."""
    import json

    found = read_challenge([], json.dumps({"x402Version": 2, "accepts": entries}).encode())
    assert found is not None
    return found


entries = st.builds(
    lambda token, digits, **changes: {
        **offer(str(digits), token=token),
        **{key: value for key, value in changes.items() if value is not None},
    },
    token=st.sampled_from([USDC, WIDE_USD, USDC_SEPOLIA, USDC_CELO]),
    digits=st.one_of(
        st.integers(0, 50), st.integers(10**9, 10**20), st.integers(2**63 - 5, 2**63 + 5)
    ),
    scheme=st.sampled_from([None, None, None, "upto"]),
    payTo=st.sampled_from([None, None, OTHER_PAYEE, PAYEE.lower(), WALLET.address, "merchant"]),
    maxTimeoutSeconds=st.sampled_from([None, 9, 10, 3600]),
    extra=st.sampled_from(
        [
            None,
            None,
            {"paymentFlow": "upfront"},
            {"paymentFlow": "authorization"},
            {"name": "x"},
            {"assetTransferMethod": "permit2"},
        ]
    ),
)


def acceptable(found: Offer) -> bool:
    """The rules once more, said independently."""
    wide = found.asset == WIDE.address
    return (
        found.scheme == "exact"
        and found.network == "eip155:8453"
        and (wide or found.asset == USDC.address)
        and found.pay_to in (PAYEE, OTHER_PAYEE, PAYEE.lower())
        and found.max_timeout_s >= 10
        and found.extra.get("name") in (None, "Wide USD" if wide else "USD Coin")
        and found.extra.get("assetTransferMethod") is None
        and -(-found.amount * 10**6 // 10 ** (18 if wide else 6)) <= MICRO_MAX
    )


def exact_cost(found: Offer) -> int:
    """In the finest unit."""
    return found.amount * (1 if found.asset == WIDE.address else 10**12)


@given(st.lists(entries, max_size=8), st.randoms(use_true_random=False))
def test_the_cheapest_that_is_acceptable_in_any_order(
    listed: list[Any], rng: random.Random
) -> None:
    """And refused exactly when there is none."""
    found = challenged(*listed)
    good = [one for one in found.offers if acceptable(one)]
    if not good:
        with pytest.raises(OfferRefused):
            choose(POLICY, found, {})
        return
    chosen = choose(POLICY, found, {})
    assert acceptable(chosen.offer) and chosen.offer.raw == listed[chosen.offer.index]
    assert exact_cost(chosen.offer) == min(map(exact_cost, good))
    assert (chosen.asset.network, chosen.asset.address) == (
        chosen.offer.network,
        chosen.offer.asset,
    )
    assert chosen.micro == chosen.asset.micro_usd(chosen.offer.amount) <= MICRO_MAX
    assert VALIDITY_MIN_S <= chosen.validity_s <= min(300, chosen.offer.max_timeout_s)
    assert len(chosen.skipped) == len(listed) - 1
    mixed = list(listed)
    rng.shuffle(mixed)
    other = choose(POLICY, challenged(*mixed), {})
    assert (exact_cost(other.offer), other.micro) == (exact_cost(chosen.offer), chosen.micro)


CENT = 10**16
"""Atomic units of a cent, in a token of 18 decimals."""


@pytest.mark.parametrize(
    ("usdc", "wide", "taken"),
    [
        ("10000", CENT - 1, "wide"),
        ("10000", CENT + 1, "usdc"),
        ("10000", CENT, "first"),
        ("1", 10**11, "wide"),
        ("999999", 1, "wide"),
        ("1", 10**18, "usdc"),
    ],
)
def test_tokens_of_different_decimals_are_compared_as_money(
    usdc: str, wide: int, taken: str
) -> None:
    """Row 3: never as bare digits, and exactly, where both round to the same micro-USD."""
    for listed in ((USDC, WIDE_USD), (WIDE_USD, USDC)):
        amounts = {USDC.address: usdc, WIDE_USD.address: str(wide)}
        chosen = choose(
            POLICY, challenged(*[offer(amounts[one.address], token=one) for one in listed]), {}
        )
        expected = {"usdc": USDC, "wide": WIDE_USD, "first": listed[0]}[taken]
        assert chosen.asset.address == expected.address


@given(st.lists(entries, min_size=1, max_size=6), st.integers(0, 5))
def test_an_offer_more_never_makes_it_dearer(listed: list[Any], at: int) -> None:
    """Dropping what is not taken changes nothing."""
    assume(at < len(listed))
    try:
        fewer = choose(POLICY, challenged(*listed[:at], *listed[at + 1 :]), {})
    except OfferRefused:
        return
    more = choose(POLICY, challenged(*listed), {})
    assert exact_cost(more.offer) <= exact_cost(fewer.offer)


def refusal(policy: Policy, *listed: Any, trusted: dict[str, bool] | None = None) -> OfferRefused:
    """The refusal of these entries."""
    with pytest.raises(OfferRefused) as caught:
        choose(policy, challenged(*listed), trusted or {})
    return caught.value


def test_the_reason_is_that_of_the_offer_that_came_closest() -> None:
    """A price is nearer to a payment than a scheme."""
    listed = [
        offer(scheme="upto"),
        offer(network="eip155:1"),
        offer(asset="0x" + "42" * 20),
        offer(extra={"assetTransferMethod": "permit2"}),
        offer(extra={"name": "x"}),
        offer(payTo="merchant"),
        offer(maxTimeoutSeconds=5),
        offer("0"),
    ]
    reasons = []
    while listed:
        reasons.append(refusal(POLICY, *listed).reason)
        listed.pop()
    assert reasons == [
        "price",
        "validity",
        "payee",
        "domain",
        "transfer_method",
        "asset",
        "network",
        "scheme",
    ]
    assert refusal(POLICY).reason == "no_offer"


def test_the_refusal_names_the_knob() -> None:
    """Contract 2.4."""
    base = policy_of()
    for entry, words in (
        (offer(network="eip155:137"), "networks="),
        (offer(token=WIDE_USD), "assets="),
        (offer(maxTimeoutSeconds=3), "under 10 s"),
    ):
        assert words in str(refusal(base, entry))
    assert "payees=" in str(refusal(policy_of(payees=[OTHER_PAYEE]), offer()))
    pinned = refusal(policy_of(payees="pin"), offer(), trusted={OTHER_PAYEE.lower(): True})
    assert "accept_payee" in str(pinned) and pinned.pay_to == PAYEE
    for wrong in ("0x" + "0" * 40, "no address", WALLET.address):  # nothing that could be accepted
        other = refusal(policy_of(payees="pin"), offer(payTo=wrong), trusted={"0x1": True})
        assert other.pay_to is None


def test_payees_none_pin_and_listed() -> None:
    """Contract 1."""
    assert choose(policy_of(), challenged(offer()), {OTHER_PAYEE.lower(): True})
    listed = policy_of(payees=[PAYEE])
    assert choose(listed, challenged(offer(payTo=PAYEE.lower())), {})
    assert refusal(listed, offer(payTo=OTHER_PAYEE)).reason == "payee"
    pin = policy_of(payees="pin")
    assert choose(pin, challenged(offer()), {})
    assert choose(pin, challenged(offer()), {PAYEE.lower(): True, OTHER_PAYEE.lower(): False})
    for trusted in ({OTHER_PAYEE.lower(): True}, {PAYEE.lower(): False}):
        assert refusal(pin, offer(), trusted=trusted).reason == "payee"


@given(st.binary(min_size=20, max_size=20))
def test_addresses_are_taken_in_any_honest_spelling(raw: bytes) -> None:
    """Lower, upper or checksummed; one wrong letter case is refused."""
    from eth_utils import to_checksum_address

    assume(any(raw))
    good = str(to_checksum_address(raw))
    for spelling in (good, good.lower(), "0x" + good[2:].upper()):
        assert payee_fault(spelling, payer=None, asset="") is None
    letters = [at for at, char in enumerate(good) if char.isalpha() and at > 1]
    assume(len(letters) > 2)
    wrong = good[: letters[0]] + good[letters[0]].swapcase() + good[letters[0] + 1 :]
    mixed = wrong[2:] not in (wrong[2:].lower(), wrong[2:].upper())
    assert (payee_fault(wrong, payer=None, asset="") is not None) == mixed
    assert payee_fault(good, payer=good.lower(), asset="")
    assert payee_fault(good, payer=None, asset=good.lower())


def test_validity_is_clamped() -> None:
    """Row 18: the owner's own limit."""
    policy = policy_of(max_validity=timedelta(seconds=45))
    for theirs, ours in ((10, 10), (45, 45), (46, 45), (10**9, 45)):
        assert choose(policy, challenged(offer(maxTimeoutSeconds=theirs)), {}).validity_s == ours


# --- clocks


def a_choice(validity_s: int = 60) -> Choice:
    """Something to authorize."""
    chosen = choose(POLICY, challenged(offer()), {})
    return dataclasses.replace(chosen, validity_s=validity_s)


@given(
    now=st.floats(1e9, 2e9),
    skew=st.floats(-1000, 1000),
    validity_s=st.integers(10, 300),
    cap_s=st.integers(10, 300),
)
def test_an_authorization_never_outlives_the_owners_limit(
    now: float, skew: float, validity_s: int, cap_s: int
) -> None:
    """By our clock, whatever the seller's says; and it is worth something by the seller's."""
    theirs = seller_clock(now, now + skew, strict=False)
    try:
        made = ExactEip3009().prepare(
            a_choice(validity_s),
            payer=WALLET.address,
            moment=Moment(now, theirs, cap_s),
            nonce=b"n" * 32,
        )
    except OfferRefused as refused:
        reason = refused.reason
    else:
        reason = ""
    if reason:
        assert reason == "clock"
        return
    assert made.valid_before <= int(now) + cap_s
    assert VALIDITY_MIN_S <= made.valid_before - int(theirs) <= validity_s
    assert made.valid_after == 0


def test_the_sellers_clock_is_followed_within_five_minutes() -> None:
    """Row 21: small skews do not matter, large ones are an error; no clock is put back."""
    now = 1_800_000_000.0
    for skew, used in (
        (0, now),
        (10, now),
        (-10, now),
        (11, now + 11),
        (300, now + 300),
        (-11, now),
        (-300, now),
    ):
        assert seller_clock(now, now + skew, strict=True) == used
    assert seller_clock(now, None, strict=True) == now
    for skew in (SKEW_MAX_S + 1, -SKEW_MAX_S - 1, 3600, -3600):
        with pytest.raises(OfferRefused) as caught:
            seller_clock(now, now + skew, strict=True)
        assert caught.value.reason == "clock" and f"{skew:+d} s" in str(caught.value)
        assert seller_clock(now, now + skew, strict=False) == now


def test_clocks_that_leave_no_time_are_refused() -> None:
    """The seller is ahead by more than the owner lets a signature live."""
    with pytest.raises(OfferRefused, match="set the clock") as caught:
        ExactEip3009().prepare(
            a_choice(), payer=WALLET.address, moment=Moment(1000, 1200, 100), nonce=b"n" * 32
        )
    assert caught.value.reason == "clock"


def test_version_1_is_backdated() -> None:
    """PyPI x402: ten minutes."""
    choice = dataclasses.replace(a_choice(), form="v1")
    made = ExactEip3009().prepare(
        choice, payer=WALLET.address, moment=Moment(1000.7, 1000.7, 300), nonce=b"n" * 32
    )
    assert (made.valid_after, made.valid_before) == (400, 1060)


def test_quoted_addresses_of_the_seller_module_are_right() -> None:
    """The fixtures themselves are honest addresses."""
    for payee in (PAYEE, OTHER_PAYEE):
        assert payee_fault(payee, payer=None, asset="") is None
