"""What an offer demands of the signature itself.  Pure.

A scheme signs one thing (:class:`Signs`): one primary type in one domain, with a nonce and times of
ours.  A seller that asks for another primary type, method, domain or message would get what it
cannot use, while the money is held: such an offer is refused, however its words are spelled.  What
demands nothing of a signature is the seller's business, and is let pass.

Words: x402 ``schemes/exact/scheme_exact_evm.md``, EIP-712, EIP-2612, EIP-3009 and Permit2; some
facilitators write ``primaryType`` into ``extra``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from x402_mask._crypto.eip712 import domain_separator
from x402_mask._policy.offers import Objection
from x402_mask._wire.x402 import shown

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from x402_mask._models import Asset, Offer

_METHOD: Final = re.compile(r".*transfermethod")
_KIND: Final = re.compile(r"(authorization|signature|signing)(method|type|scheme|standard|kind)")
"""The kind of signature; within an object it may as well be how to log in, or a webhook's."""

_DOMAIN: Final = re.compile(r"(?:eip712)?(?:domain)?(name|version|chainid|verifyingcontract)")
_OTHER_WAYS: Final = frozenset(
    {
        "permit2",
        "eip2612",
        "erc2612",
        "erc7710",
        "receivewithauthorization",
        "permittransferfrom",
        "permitwitnesstransferfrom",
    }
)
"""What else is signed for a transfer, whatever the key is under which only that stands."""

_WORDS: Final = re.compile(
    r"support.*|accepts?.*|alternative.*|fallback.*|.*(description|title|memo)"
)
"""Keys of what is on offer besides, and of words for people."""

_FILLER: Final = re.compile(r"[\W_]")
_INNER_MAX: Final = 3
_CHOICES_MAX: Final = 16
_WORD_MAX: Final = 60
_MESSAGE: Final = frozenset(
    {"nonce", "salt", "spender", "deadline", "validafter", "validbefore", "permitted"}
)
_OTHER: Final = re.compile(
    r"(?!supports?)(?!.*supported).*(primarytype|typeddata|eip712|witness).*"
    r"|(uses?|requires?|must|force)?permit2?(only|required)?"
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Signs:
    """What a scheme signs: ``told`` in words for people, the rest in those of EIP-712.

    ``methods`` are the names that sellers give it as a transfer method, besides its primary type.
    """

    told: str
    primary: str
    methods: frozenset[str]
    types: Mapping[str, Any]
    domain: Callable[[Asset], Mapping[str, Any]]


def demand(signs: Signs, offer: Offer, asset: Asset) -> Objection | None:
    """Reason code and words for what *offer* demands besides *signs*; ``None`` if nothing."""
    for field, ours in (("name", asset.name), ("version", asset.version)):
        theirs = offer.extra.get(field)
        if theirs is not None and (isinstance(theirs, bool) or str(theirs) != ours):
            return Objection(
                "domain", f"the token's {field} is {ours!r}, the offer says {shown(theirs, 40)}"
            )
    for place in (offer.extra, offer.raw):
        for name, value in place.items():
            found = _demanded(signs, _bare(name), value, asset)
            if found is not None:
                return found
    return _demanded_inside(signs, offer.extra, _INNER_MAX)


def _demanded_inside(signs: Signs, place: Mapping[str, Any], depth: int) -> Objection | None:
    """What an object within says of the kind of signature, in a word and by its own name."""
    for key, value in place.items():
        name = _bare(key)
        found = None if _WORDS.fullmatch(name) else _one_demanded(signs, name, value, depth)
        if found is not None:
            return found
    return None


def _one_demanded(signs: Signs, name: str, value: Any, depth: int) -> Objection | None:
    """What a member demands; of a list, where there is nothing else in it to choose."""
    if isinstance(value, dict):
        return _demanded_inside(signs, value, depth - 1) if depth else None
    if isinstance(value, str):
        free = depth < _INNER_MAX and _KIND.fullmatch(name)
        return None if free else _word_demanded(signs, name, value)
    if not isinstance(value, list) or not depth or not 0 < len(value) <= _CHOICES_MAX:
        return None
    one = name.removesuffix("s") if _METHOD.fullmatch(name.removesuffix("s")) else name
    found = [_one_demanded(signs, one, choice, depth - 1) for choice in value]
    return found[0] if all(found) else None


def _word_demanded(signs: Signs, name: str, value: str) -> Objection | None:
    if name == "primarytype":
        return None if value == signs.primary else _asks(signs, "the primary type", value)
    if _METHOD.fullmatch(name) or _KIND.fullmatch(name):
        typed = _KIND.fullmatch(name) is not None and _bare(value) == "eip712"
        known = typed or value == signs.primary or value in signs.methods
        return None if known else _asks(signs, "the transfer method", value)
    if (
        len(value) <= _WORD_MAX
        and _bare(value) in _OTHER_WAYS - signs.methods
        and not _WORDS.fullmatch(name)
    ):
        return _asks(signs, "another kind of signature,", value)
    return None


def _demanded(signs: Signs, name: str, value: Any, asset: Asset) -> Objection | None:
    if value is None or value is False:
        return None
    if name in ("domain", "eip712domain", "eip712") and isinstance(value, dict):
        return _domain_fault(value, signs.domain(asset))
    if name in ("domainseparator", "eip712domainseparator"):
        same = str(value).lower() == f"0x{domain_separator(signs.domain(asset)).hex()}"
        return (
            None
            if same
            else Objection("domain", "the offer names another domain separator for the token")
        )
    part = _DOMAIN.fullmatch(name)
    if part is not None and name not in ("name", "version"):
        return _domain_fault({part[1]: value}, signs.domain(asset))
    if name in ("types", "eip712types") and isinstance(value, dict):
        mine = {of: fields for of, fields in value.items() if of != "EIP712Domain"}
        return None if mine == signs.types else _asks(signs, "other types")
    if isinstance(value, str) and (found := _word_demanded(signs, name, value)) is not None:
        return found
    if name == "primarytype" or _METHOD.fullmatch(name) or _KIND.fullmatch(name):
        return None if isinstance(value, str) else _asks(signs, "the transfer method", value)
    if name in _MESSAGE:
        return (
            None
            if (name, str(value)) == ("validafter", "0")
            else _asks(signs, f"a {name} of its own")
        )
    return _asks(signs, "another kind of signature,", name) if _OTHER.fullmatch(name) else None


def _asks(signs: Signs, what: str, value: object = "") -> Objection:
    told = f"the offer demands {what} {shown(value, 30)}".rstrip()
    return Objection("transfer_method", f"{told}; only {signs.told} is signed")


def _domain_fault(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> Objection | None:
    """Why a domain that the seller names, or a part of one, is not the one signed in."""
    mine = {name.lower(): str(value) for name, value in ours.items()}
    for name, value in theirs.items():
        word, told = _bare(name), str(value)
        same = mine.get(word) == told
        if word == "verifyingcontract":
            same = mine.get(word, "").lower() == told.lower()
        if value is not None and not same:
            return Objection("domain", f"the offer names another {shown(name, 30)} for the token")
    return None


def _bare(name: str) -> str:
    """A key without what its spellings differ in."""
    return _FILLER.sub("", name).lower()
