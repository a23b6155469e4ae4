"""Which offer may be paid, and which of those is cheapest.  Pure.

Policy only ever drops offers: nothing here can add one, and when nothing is left it refuses.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from x402_mask._crypto.eip712 import checksum
from x402_mask._money import MICRO_MAX
from x402_mask._policy.demands import demand
from x402_mask._wire.assets import DISPUTED_NAMES, EIP3009_ASSETS, PERMIT2_ASSETS, caip2
from x402_mask._wire.x402 import PROOF_BYTES_MAX, Skipped, is_too_large, shown
from x402_mask.errors import OfferRefused

if TYPE_CHECKING:
    from collections.abc import Mapping

    from x402_mask._models import Asset, Offer
    from x402_mask._wire.x402 import Challenge

VALIDITY_MIN_S: Final = 10
"""Shortest authorization worth signing: facilitators want 6 s left when they verify (PyPI x402)."""

SCHEME: Final = "exact"
FOREIGN: Final = ("no_offer", "scheme", "network")
"""Reasons of offers that were never meant for this payer: another way of paying may be possible."""

_ADDRESS: Final = re.compile(r"0x[0-9a-fA-F]{40}")
_FLOWS: Final = ("authorization", "upfront", "escrow")
_REASONS: Final = (  # in the order of the checks: the last one reached is the one reported
    "scheme",
    "network",
    "asset",
    "transfer_method",
    "domain",
    "payee",
    "validity",
    "price",
    "too_large",
)
_KNOWN_ELSEWHERE: Final = frozenset(
    (asset.network, asset.address.lower()) for asset in (*EIP3009_ASSETS, *PERMIT2_ASSETS)
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Policy:
    """What the owner allows, in the form that is quick to check."""

    networks: frozenset[str]
    names: frozenset[str]
    assets: Mapping[tuple[str, str], Asset]
    payees: frozenset[str] | None
    pin: bool
    max_validity_s: int
    payer: str | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Choice:
    """The offer that will be paid: the one frozen thing that is checked, reserved and signed."""

    offer: Offer
    asset: Asset
    micro: int
    validity_s: int
    skipped: tuple[Skipped, ...]


def choose(policy: Policy, challenge: Challenge, trusted: Mapping[str, bool]) -> Choice:
    """The cheapest offer within policy.

    Args:
        policy: the owner's.
        challenge: what the 402 said.
        trusted: payees known for the service, and whether each is trusted.

    Raises:
        OfferRefused: there is none; the message tells why, for the offer that came closest.
    """
    return _choose(policy, challenge, trusted) if trusted else _known_choice(policy, challenge)


@lru_cache(maxsize=16)
def _known_choice(policy: Policy, challenge: Challenge) -> Choice:
    """Of the very same challenge, as a seller sends it time and again."""
    return _choose(policy, challenge, {})


def _choose(policy: Policy, challenge: Challenge, trusted: Mapping[str, bool]) -> Choice:
    skipped = [_closer(policy, skip) for skip in challenge.skipped]
    allowed: list[Choice] = []
    for offer in challenge.offers:
        reason = _objection(policy, offer, trusted) or _size_objection(challenge, offer)
        if reason is not None:
            new = offer.pay_to if _is_new(policy, offer, trusted) else None
            skipped.append(
                Skipped(index=offer.index, reason=reason[0], detail=reason[1], new_payee=new)
            )
            continue
        asset = policy.assets[offer.network, offer.asset.lower()]
        allowed.append(
            Choice(
                offer=offer,
                asset=asset,
                micro=asset.micro_usd(offer.amount),
                validity_s=min(offer.max_timeout_s, policy.max_validity_s),
                skipped=(),
            )
        )
    if not allowed:
        raise _refusal(skipped)
    best = min(allowed, key=_cost)
    _check_rival(best.offer, challenge)
    dearer = tuple(
        Skipped(index=c.offer.index, reason="price", detail="not cheaper")
        for c in allowed
        if c is not best
    )
    return Choice(
        offer=best.offer,
        asset=best.asset,
        micro=best.micro,
        validity_s=best.validity_s,
        skipped=(*skipped, *dearer),
    )


def is_foreign(policy: Policy, challenge: Challenge) -> bool:
    """Whether every offer is in another scheme or on another network than could be paid."""
    skipped = [_closer(policy, skip).reason for skip in challenge.skipped]
    objections = [_objection(policy, offer, {}) for offer in challenge.offers]
    return all(one in FOREIGN for one in [*skipped, *(o and o[0] for o in objections)])


def _cost(choice: Choice) -> tuple[int, int, int]:
    """Cheapest first, compared exactly; then the flow that pays last; then the seller's order."""
    exact = choice.offer.amount * 10 ** (36 - choice.asset.decimals)
    late = choice.offer.extra.get("paymentFlow") in (None, "authorization")
    return exact, 0 if late else 1, choice.offer.index


def _objection(policy: Policy, offer: Offer, trusted: Mapping[str, bool]) -> tuple[str, str] | None:
    """Reason code and words why *offer* may not be paid; ``None`` if it may."""
    if offer.scheme != SCHEME:
        return _scheme_objection(offer.scheme)
    if offer.extra.get("paymentFlow") not in (None, *_FLOWS):
        return "scheme", f"payment flow {shown(offer.extra['paymentFlow'], 30)} is not spoken"
    asset = policy.assets.get((offer.network, offer.asset.lower()))
    return (
        _network_objection(policy, offer.network, offer.raw.get("network"))
        or (_asset_objection(offer.network, offer.asset) if asset is None else demand(offer, asset))
        or _payee_objection(policy, offer, trusted)
        or _terms_objection(policy, offer, asset)
    )


def _closer(policy: Policy, skip: Skipped) -> Skipped:
    """An offer that could not be read, judged first by what it is for.

    How an offer is spelled matters only where it could have been ours.
    """
    found = None
    if skip.scheme is not None and skip.scheme != SCHEME:
        found = _scheme_objection(skip.scheme)
    elif skip.network is not None:
        network = caip2(skip.network)
        found = _network_objection(policy, network, skip.network)
        if found is None and skip.asset is not None:
            known = (network, skip.asset.lower()) in policy.assets
            found = None if known else _asset_objection(network, skip.asset)
    return skip if found is None else replace(skip, reason=found[0], detail=found[1])


def _scheme_objection(scheme: str) -> tuple[str, str]:
    return "scheme", f"scheme {shown(scheme, 30)} is not spoken"


def _network_objection(policy: Policy, network: str, name: object) -> tuple[str, str] | None:
    if network not in policy.networks:
        return "network", f"network {shown(network, 40)} is not in networks="
    if name in DISPUTED_NAMES and name not in policy.names:
        return "network", f"the name {name} means different chains to different sellers"
    return None


def _asset_objection(network: str, asset: str) -> tuple[str, str]:
    known = (network, asset.lower()) in _KNOWN_ELSEWHERE
    why = "is not in assets=" if known else "is not a token this library knows (assets=)"
    return "asset", f"asset {shown(asset, 50)} {why}"


def _size_objection(challenge: Challenge, offer: Offer) -> tuple[str, str] | None:
    if not is_too_large(challenge, offer):
        return None
    return "too_large", (
        "the proof would repeat so much of the challenge that its header passes"
        f" {PROOF_BYTES_MAX // 1024} KiB, which servers refuse"
    )


def _payee_objection(
    policy: Policy, offer: Offer, trusted: Mapping[str, bool]
) -> tuple[str, str] | None:
    bad = payee_fault(offer.pay_to, payer=policy.payer, asset=offer.asset)
    if bad is not None:
        return "payee", bad
    if policy.payees is not None and offer.pay_to.lower() not in policy.payees:
        return "payee", f"payee {offer.pay_to} is not in payees="
    if _is_new(policy, offer, trusted):
        return "payee", f"payee {offer.pay_to} is new here; payer.accept_payee() allows it"
    return None


def _is_new(policy: Policy, offer: Offer, trusted: Mapping[str, bool]) -> bool:
    """Whether others are pinned, and the owner may accept this one as well."""
    if not policy.pin or not trusted or trusted.get(offer.pay_to.lower()):
        return False
    return payee_fault(offer.pay_to, payer=policy.payer, asset=offer.asset) is None


def payee_fault(pay_to: str, *, payer: str | None, asset: str) -> str | None:
    """Why nobody should ever pay *pay_to*; ``None`` if it is an ordinary address."""
    if not _ADDRESS.fullmatch(pay_to):
        return f"payee {shown(pay_to, 50)} is not an address"
    bare = pay_to[2:]
    if int(bare, 16) == 0:
        return "the payee is the zero address"
    if payer is not None and pay_to.lower() == payer.lower():
        return "the payee is the payer"
    if pay_to.lower() == asset.lower():
        return "the payee is the token contract"
    mixed = bare not in (bare.lower(), bare.upper())
    if mixed and checksum(pay_to) != pay_to:
        return f"payee {pay_to} has a wrong checksum (EIP-55)"
    return None


def _terms_objection(policy: Policy, offer: Offer, asset: Asset | None) -> tuple[str, str] | None:
    if min(offer.max_timeout_s, policy.max_validity_s) < VALIDITY_MIN_S:
        return "validity", f"the offer is valid for {offer.max_timeout_s} s, under 10 s"
    if asset is None or asset.micro_usd(offer.amount) > MICRO_MAX:
        return "price", "the amount is larger than a ledger can count"
    return None


def _check_rival(offer: Offer, challenge: Challenge) -> None:
    """Refuse when header and body of one 402 ask for different money for the same token."""
    if challenge.rival is None:
        return
    same = [
        other
        for other in challenge.rival.offers
        if (other.network, other.asset.lower()) == (offer.network, offer.asset.lower())
    ]
    terms = (offer.amount, offer.pay_to.lower())
    if same and all((other.amount, other.pay_to.lower()) != terms for other in same):
        raise OfferRefused(
            "header and body of the 402 name different amounts or payees", reason="contradiction"
        )


def _refusal(skipped: list[Skipped]) -> OfferRefused:
    if not skipped:
        return OfferRefused("the 402 offers nothing that can be paid", reason="no_offer")
    ranked = {reason: rank for rank, reason in enumerate(_REASONS)}
    closest = max(skipped, key=lambda skip: ranked.get(skip.reason, -1))
    others = f" ({len(skipped)} offers, none within policy)" if len(skipped) > 1 else ""
    refusal = OfferRefused(f"no payment: {closest.detail}{others}", reason=closest.reason)
    refusal.pay_to = closest.new_payee if closest.reason == "payee" else None
    return refusal
