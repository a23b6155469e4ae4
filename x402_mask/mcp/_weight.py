"""How much a tool's arguments are, told without writing them out."""

from __future__ import annotations

from typing import Any, Final

from x402_mask.errors import PaymentRefused

ARGUMENTS_BYTES_MAX: Final = 8 << 20
"""Most that a tool is called with: a large picture.  More keeps whoever reads it too long."""

_VALUE: Final = 64
"""What any value counts, besides the text in it."""


def check_size(arguments: dict[str, Any] | None) -> None:
    """Refuse more than can be read without keeping an event loop; before anything is sent.

    Raises:
        PaymentRefused: it is too much.
    """
    if weight(arguments, ARGUMENTS_BYTES_MAX) > ARGUMENTS_BYTES_MAX:
        raise PaymentRefused(
            "the tool's arguments are more than 8 MiB: pass a URL, or call it by a session that"
            " does not pay",
            reason="too_large",
        )


def weight(value: Any, most: int) -> int:
    """About how many bytes *value* is as JSON; anything above *most* once that is passed."""
    total, left = 0, [value]
    while left and total <= most:
        item = left.pop()
        total += _VALUE
        if isinstance(item, (str, bytes, bytearray)):
            total += len(item)
        elif isinstance(item, (dict, list, tuple, set, frozenset)):
            if len(item) * _VALUE > most - total:
                return most + 1
            if isinstance(item, dict):
                total += sum(len(name) for name in item if isinstance(name, str))
                left.extend(item.values())
            else:
                left.extend(item)
    return total
