"""Finding the HTTP family of what is to be quoted."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from x402_mask._models import Quote
    from x402_mask._payer import Payer


def quote(payer: Payer, asked: Any) -> Quote | None:
    """``Payer.quote`` in the family of *asked*."""
    found: Quote | None = _family(asked).quote(payer, asked)
    return found


async def aquote(payer: Payer, asked: Any) -> Quote | None:
    """``Payer.aquote`` in the family of *asked*."""
    found: Quote | None = await _family(asked).aquote(payer, asked)
    return found


def _family(asked: Any) -> Any:
    from x402_mask.httpx import _quote as ours  # noqa: PLC0415

    if isinstance(asked, ours.ASKED):
        return ours
    if "httpx2" in sys.modules:  # else nothing can be of that family
        from x402_mask.httpx2 import _quote as theirs  # noqa: PLC0415

        if isinstance(asked, theirs.ASKED):
            return theirs
    raise TypeError(f"quote() takes an httpx request or response, not {type(asked).__name__}")
