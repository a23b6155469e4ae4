"""Integer money: atomic units of a token, micro-USD for caps, and windows of time.  No floats."""

from __future__ import annotations

from datetime import timedelta
from decimal import Context, Decimal, InvalidOperation
from functools import lru_cache
from typing import Final

MICRO: Final = 1_000_000
SECOND: Final = 1_000_000
"""Microseconds."""
UNLIMITED: Final = -1
"""Calls of a payment token that are not counted."""
MICRO_MAX: Final = 2**63 - 1
"""The most micro-USD a ledger row can hold (a signed 64-bit integer)."""

_EXACT = Context(prec=60)


def parse_usd(value: object) -> int:
    """Micro-USD of a ``str``, ``Decimal`` or ``int`` number of dollars.

    Raises:
        TypeError: a float, a bool, or any other type.
        ValueError: not a plain number, more than six decimals, or above 2**63-1 micro-USD.
    """
    if isinstance(value, bool) or not isinstance(value, (str, Decimal, int)):
        raise TypeError(f"USD amounts are str, Decimal or int, not {type(value).__name__}")
    try:
        number = Decimal(value.strip() if isinstance(value, str) else value)
    except InvalidOperation:
        raise ValueError(f"not a USD amount: {value!r}") from None
    if not number.is_finite() or abs(number.adjusted()) > 40:
        raise ValueError(f"not a USD amount: {value!r}")
    micro = _EXACT.multiply(number, Decimal(MICRO))
    if micro != micro.to_integral_value():
        raise ValueError(f"USD amounts have at most six decimals: {value!r}")
    if abs(micro) > MICRO_MAX:
        raise ValueError(f"USD amount too large: {value!r}")
    return int(micro)


@lru_cache(maxsize=1024)
def usd(micro: int) -> Decimal:
    """Dollars, as a ``Decimal`` with the fewest decimals but at least two."""
    number = Decimal(micro).scaleb(-6, _EXACT)
    cents = number.quantize(Decimal("0.01"), context=_EXACT)
    return cents if cents == number else number.normalize(_EXACT)


def micro_usd(amount: int, decimals: int) -> int:
    """Micro-USD of *amount* atomic units of a one-dollar token; finer amounts round up."""
    if decimals <= 6:
        return int(amount * 10 ** (6 - decimals))
    return int(-(-amount // 10 ** (decimals - 6)))


def span(per: str | timedelta) -> str:
    """The window of a cap, as it is written in X402_MASK_CAPS."""
    if isinstance(per, str):
        return per
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        if not per % timedelta(seconds=length):
            return f"{per // timedelta(seconds=length)}{unit}"
    return f"{per.total_seconds():g}s"
