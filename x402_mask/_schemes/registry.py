"""The schemes that are known here.  A payer speaks those that are registered when it is made."""

from __future__ import annotations

from typing import TYPE_CHECKING

from x402_mask._schemes.exact_eip3009 import ExactEip3009

if TYPE_CHECKING:
    from x402_mask._schemes.scheme import Scheme

_known: dict[str, Scheme] = {}


def register(scheme: Scheme) -> None:
    """Let payers that are made from now on pay by *scheme*.

    Of schemes that offers call by one name, the first that fits an offer is taken.

    Raises:
        ValueError: there is one of that id.
    """
    if scheme.id in _known:
        raise ValueError(f"there is a scheme {scheme.id!r} already")
    _known[scheme.id] = scheme


def registered() -> dict[str, Scheme]:
    """Every scheme by its id, in the order of preference."""
    return dict(_known)


register(ExactEip3009())
