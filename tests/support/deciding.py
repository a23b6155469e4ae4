"""Other choices of the owner's in a payer that is made: only a test may, for a payer is frozen."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from x402_mask._payer import buyer_of

if TYPE_CHECKING:
    from x402_mask import Payer


def decide(payer: Payer, **choices: Any) -> None:
    """Put other settings, by their names in ``Settings``, in the place of a payer's own."""
    buyer = buyer_of(payer)
    buyer.settings = replace(buyer.settings, **choices)
