"""Caches between buyer and seller (RFC 9111): what they are told, and what their answers tell."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from x402_mask._wire.bodies import date_of

if TYPE_CHECKING:
    from collections.abc import Iterable

_DIRECTIVE: Final = re.compile(r'(?:[^,"]|"(?:[^"\\]|\\.)*"?)+')
_WITHOUT_ASKING: Final = frozenset({"only-if-cached", "max-age", "max-stale"})
_ASKING: Final = ("no-store", "no-cache")
_AGE_MAX: Final = 1 << 31
"""What RFC 9111, 1.2.2, has a cache say of anything older."""


def uncached(values: Iterable[str]) -> str:
    """``Cache-Control`` of a request that only the seller may answer, and nobody may keep.

    What the caller asked of caches besides stays.
    """
    kept = [
        part.strip()
        for value in values
        for part in _DIRECTIVE.findall(value)
        if part.strip() and _name(part) not in (*_WITHOUT_ASKING, *_ASKING)
    ]
    return ", ".join([*kept, *_ASKING])


def _name(directive: str) -> str:
    return directive.partition("=")[0].strip().lower()


def clock_in(date: str | None, age: str | None) -> float | None:
    """The seller's clock in Unix seconds: its ``Date``, and the ``Age`` of an answer from a cache.

    ``None`` where there is no usable ``Date``.
    """
    said = date_of(date)
    first = (age or "").partition(",")[0].strip()
    if said is None or not (first.isascii() and first.isdigit() and len(first) < 12):
        return said
    return said + min(int(first), _AGE_MAX)
