"""What an offer demands of the signature itself.  Pure.

One thing is signed here: EIP-3009's ``TransferWithAuthorization`` in the token's own domain, with a
nonce and times of ours.  A seller that asks for another primary type, method, domain or message
would get what it cannot use, while the money is held: such an offer is refused, however its words
are spelled.  What demands nothing of a signature is the seller's business, and is let pass.

Words: x402 ``schemes/exact/scheme_exact_evm.md``, EIP-712, EIP-2612, EIP-3009 and Permit2; some
facilitators write ``primaryType`` into ``extra``.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from x402_mask._crypto.eip712 import TRANSFER_TYPES, asset_domain, domain_separator
from x402_mask._policy.offers import Objection
from x402_mask._wire.x402 import shown

if TYPE_CHECKING:
    from collections.abc import Mapping

    from x402_mask._models import Asset, Offer

_PRIMARY: Final = "TransferWithAuthorization"
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


def demand(offer: Offer, asset: Asset) -> Objection | None:
    """Reason code and words for what *offer* demands and is not done here; ``None`` if nothing."""
    for field, ours in (("name", asset.name), ("version", asset.version)):
        theirs = offer.extra.get(field)
        if theirs is not None and (isinstance(theirs, bool) or str(theirs) != ours):
            return Objection(
                "domain", f"the token's {field} is {ours!r}, the offer says {shown(theirs, 40)}"
            )
    for place in (offer.extra, offer.raw):
        for name, value in place.items():
            found = _demanded(_bare(name), value, asset)
            if found is not None:
                return found
    return _demanded_inside(offer.extra, _INNER_MAX)


def _demanded_inside(place: Mapping[str, Any], depth: int) -> Objection | None:
    """What an object within says of the kind of signature, in a word and by its own name."""
    for key, value in place.items():
        name = _bare(key)
        found = None if _WORDS.fullmatch(name) else _one_demanded(name, value, depth)
        if found is not None:
            return found
    return None


def _one_demanded(name: str, value: Any, depth: int) -> Objection | None:
    """What a member demands; of a list, where there is nothing else in it to choose."""
    if isinstance(value, dict):
        return _demanded_inside(value, depth - 1) if depth else None
    if isinstance(value, str):
        free = depth < _INNER_MAX and _KIND.fullmatch(name)
        return None if free else _word_demanded(name, value)
    if not isinstance(value, list) or not depth or not 0 < len(value) <= _CHOICES_MAX:
        return None
    one = name.removesuffix("s") if _METHOD.fullmatch(name.removesuffix("s")) else name
    found = [_one_demanded(one, choice, depth - 1) for choice in value]
    return found[0] if all(found) else None


def _word_demanded(name: str, value: str) -> Objection | None:
    if name == "primarytype":
        return None if value == _PRIMARY else _asks("the primary type", value)
    if _METHOD.fullmatch(name) or _KIND.fullmatch(name):
        typed = _KIND.fullmatch(name) is not None and _bare(value) == "eip712"
        known = typed or value in ("eip3009", _PRIMARY)
        return None if known else _asks("the transfer method", value)
    if len(value) <= _WORD_MAX and _bare(value) in _OTHER_WAYS and not _WORDS.fullmatch(name):
        return _asks("another kind of signature,", value)
    return None


def _demanded(name: str, value: Any, asset: Asset) -> Objection | None:
    if value is None or value is False:
        return None
    if name in ("domain", "eip712domain", "eip712") and isinstance(value, dict):
        return _domain_fault(value, asset)
    if name in ("domainseparator", "eip712domainseparator"):
        same = str(value).lower() == f"0x{domain_separator(asset_domain(asset)).hex()}"
        return (
            None
            if same
            else Objection("domain", "the offer names another domain separator for the token")
        )
    part = _DOMAIN.fullmatch(name)
    if part is not None and name not in ("name", "version"):
        return _domain_fault({part[1]: value}, asset)
    if name in ("types", "eip712types") and isinstance(value, dict):
        mine = {of: fields for of, fields in value.items() if of != "EIP712Domain"}
        return None if mine == TRANSFER_TYPES else _asks("other types")
    if isinstance(value, str) and (found := _word_demanded(name, value)) is not None:
        return found
    if name == "primarytype" or _METHOD.fullmatch(name) or _KIND.fullmatch(name):
        return None if isinstance(value, str) else _asks("the transfer method", value)
    if name in _MESSAGE:
        return None if (name, str(value)) == ("validafter", "0") else _asks(f"a {name} of its own")
    return _asks("another kind of signature,", name) if _OTHER.fullmatch(name) else None


def _asks(what: str, value: object = "") -> Objection:
    told = f"the offer demands {what} {shown(value, 30)}".rstrip()
    return Objection(
        "transfer_method", f"{told}; only EIP-3009 TransferWithAuthorization is signed"
    )


def _domain_fault(theirs: Mapping[str, Any], asset: Asset) -> Objection | None:
    """Why a domain that the seller names, or a part of one, is not the token's."""
    for name, value in theirs.items():
        word, told = _bare(name), str(value)
        same = {
            "name": told == asset.name,
            "version": told == asset.version,
            "chainid": told == str(asset.chain_id),
            "verifyingcontract": told.lower() == asset.address.lower(),
        }
        if value is not None and not same.get(word, False):
            return Objection("domain", f"the offer names another {shown(name, 30)} for the token")
    return None


def _bare(name: str) -> str:
    """A key without what its spellings differ in."""
    return re.sub(r"[\W_]", "", name).lower()
