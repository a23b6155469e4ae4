"""Which offer may be paid, by what signature, and which of those is cheapest.  Pure.

Policy only ever drops offers: nothing here can add one, and when nothing is left it refuses.  What
can be signed it is handed (:class:`OfferScheme`); it knows none by name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from x402_mask._crypto.eip712 import checksum
from x402_mask._money import MICRO_MAX
from x402_mask._wire.assets import DISPUTED_NAMES, KNOWN_ASSETS, caip2
from x402_mask._wire.x402 import PROOF_BYTES_MAX, Skipped, is_too_large, shown
from x402_mask.errors import OfferRefused

if TYPE_CHECKING:
    from collections.abc import Mapping

    from x402_mask._models import Asset, Offer
    from x402_mask._wire.x402 import Challenge, Form

VALIDITY_MIN_S: Final = 10
"""Shortest authorization worth signing: facilitators want 6 s left when they verify (PyPI x402)."""

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
    (asset.network, asset.address.lower()) for asset in KNOWN_ASSETS
)


class Objection(NamedTuple):
    """Why an offer may not be paid: reason code and words.

    ``new_payee`` is whom it names, where that is all that is in the way.
    """

    reason: str
    detail: str
    new_payee: str | None = None


class OfferScheme(Protocol):
    """What can be signed to pay, as far as policy asks: ``_schemes.scheme`` has the rest."""

    @property
    def id(self) -> str:
        """What it is called here; no other is called so."""
        ...

    @property
    def name(self) -> str:
        """What offers call it; others may be called so too, and be told apart by what they fit."""
        ...

    @property
    def payload_bytes(self) -> int:
        """Most bytes of a payload."""
        ...

    def fits(self, offer: Offer, asset: Asset, payer: str | None) -> Objection | None:
        """Why this scheme cannot pay *offer* in *asset*; ``None`` if it can.

        It judges what is asked of the signature, and whether *payer* could pay that payee at all.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Policy:
    """What the owner allows, in the form that is quick to check."""

    networks: frozenset[str]
    names: frozenset[str]
    schemes: tuple[OfferScheme, ...]
    assets: Mapping[tuple[str, str], Asset]
    payees: frozenset[str] | None
    pin: bool
    max_validity_s: int
    payer: str | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Choice:
    """The offer that will be paid: the one frozen thing that is checked, reserved and signed.

    ``scheme`` is the id of what is signed, ``form`` the version that the offer is made in.
    """

    offer: Offer
    scheme: str
    form: Form
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
        found = _judged(policy, challenge, offer, trusted)
        if isinstance(found, Choice):
            allowed.append(found)
        else:
            skipped.append(
                Skipped(
                    index=offer.index,
                    reason=found.reason,
                    detail=found.detail,
                    new_payee=found.new_payee,
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
    return replace(best, skipped=(*skipped, *dearer))


def is_foreign(policy: Policy, challenge: Challenge) -> bool:
    """Whether every offer is in another scheme or on another network than could be paid."""
    found: list[Choice | Objection | Skipped] = [_closer(policy, s) for s in challenge.skipped]
    found += [_judged(policy, challenge, offer, {}) for offer in challenge.offers]
    return all(not isinstance(one, Choice) and one.reason in FOREIGN for one in found)


def _cost(choice: Choice) -> tuple[int, int, int]:
    """Cheapest first, compared exactly; then the flow that pays last; then the seller's order."""
    exact = choice.offer.amount * 10 ** (36 - choice.asset.decimals)
    late = choice.offer.extra.get("paymentFlow") in (None, "authorization")
    return exact, 0 if late else 1, choice.offer.index


def _judged(
    policy: Policy, challenge: Challenge, offer: Offer, trusted: Mapping[str, bool]
) -> Choice | Objection:
    """The offer as it would be paid, or why it may not be."""
    foreign = _foreign_objection(policy, offer)
    if foreign is not None:
        return foreign
    asset = policy.assets.get((offer.network, offer.asset.lower()))
    if asset is None:
        return _asset_objection(offer.network, offer.asset)
    objections = []
    for scheme in policy.schemes:
        if scheme.name != offer.scheme:
            continue
        objection = (
            scheme.fits(offer, asset, policy.payer)
            or _payee_objection(policy, offer, trusted)
            or _terms_objection(policy, offer, asset)
            or _size_objection(challenge, offer, scheme)
        )
        if objection is None:
            return Choice(
                offer=offer,
                scheme=scheme.id,
                form=challenge.form_of(offer),
                asset=asset,
                micro=asset.micro_usd(offer.amount),
                validity_s=min(offer.max_timeout_s, policy.max_validity_s),
                skipped=(),
            )
        objections.append(objection)
    return max(objections, key=_closeness)


def _closeness(objection: Objection | Skipped) -> int:
    """How near to being paid an offer was that is refused."""
    return _REASONS.index(objection.reason) if objection.reason in _REASONS else -1


def _closer(policy: Policy, skip: Skipped) -> Skipped:
    """An offer that could not be read, judged first by what it is for.

    How an offer is spelled matters only where it could have been ours.
    """
    found = None
    if skip.scheme is not None:
        found = _scheme_objection(policy, skip.scheme)
    if found is None and skip.network is not None:
        network = caip2(skip.network)
        found = _network_objection(policy, network, skip.network)
        if found is None and skip.asset is not None:
            known = (network, skip.asset.lower()) in policy.assets
            found = None if known else _asset_objection(network, skip.asset)
    return skip if found is None else replace(skip, reason=found.reason, detail=found.detail)


def _foreign_objection(policy: Policy, offer: Offer) -> Objection | None:
    """Why an offer was never meant for this payer."""
    found = _scheme_objection(policy, offer.scheme)
    if found is None and offer.extra.get("paymentFlow") not in (None, *_FLOWS):
        flow = shown(offer.extra["paymentFlow"], 30)
        found = Objection("scheme", f"payment flow {flow} is not spoken")
    return found or _network_objection(policy, offer.network, offer.raw.get("network"))


def _scheme_objection(policy: Policy, name: str) -> Objection | None:
    if any(scheme.name == name for scheme in policy.schemes):
        return None
    return Objection("scheme", f"scheme {shown(name, 30)} is not spoken")


def _network_objection(policy: Policy, network: str, name: object) -> Objection | None:
    if network not in policy.networks:
        return Objection("network", f"network {shown(network, 40)} is not in networks=")
    if name in DISPUTED_NAMES and name not in policy.names:
        return Objection("network", f"the name {name} means different chains to different sellers")
    return None


def _asset_objection(network: str, asset: str) -> Objection:
    known = (network, asset.lower()) in _KNOWN_ELSEWHERE
    why = "is not in assets=" if known else "is not a token this library knows (assets=)"
    return Objection("asset", f"asset {shown(asset, 50)} {why}")


def _size_objection(challenge: Challenge, offer: Offer, scheme: OfferScheme) -> Objection | None:
    if not is_too_large(challenge, offer, scheme.payload_bytes):
        return None
    return Objection(
        "too_large",
        "the proof would repeat so much of the challenge that its header passes"
        f" {PROOF_BYTES_MAX // 1024} KiB, which servers refuse",
    )


def _payee_objection(policy: Policy, offer: Offer, trusted: Mapping[str, bool]) -> Objection | None:
    """Why the owner does not allow a payee who could be paid."""
    payee = offer.pay_to
    if policy.payees is not None and payee.lower() not in policy.payees:
        return Objection("payee", f"payee {payee} is not in payees=")
    if policy.pin and trusted and not trusted.get(payee.lower()):
        told = f"payee {payee} is new here; payer.accept_payee() allows it"
        return Objection("payee", told, new_payee=payee)
    return None


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


def _terms_objection(policy: Policy, offer: Offer, asset: Asset) -> Objection | None:
    if min(offer.max_timeout_s, policy.max_validity_s) < VALIDITY_MIN_S:
        return Objection("validity", f"the offer is valid for {offer.max_timeout_s} s, under 10 s")
    if asset.micro_usd(offer.amount) > MICRO_MAX:
        return Objection("price", "the amount is larger than a ledger can count")
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
    closest = max(skipped, key=_closeness)
    others = f" ({len(skipped)} offers, none within policy)" if len(skipped) > 1 else ""
    refusal = OfferRefused(f"no payment: {closest.detail}{others}", reason=closest.reason)
    refusal.pay_to = closest.new_payee if closest.reason == "payee" else None
    return refusal
