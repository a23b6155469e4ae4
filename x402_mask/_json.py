"""JSON from strangers: strict, small, shallow."""

from __future__ import annotations

import json
from typing import Any, Final

DEPTH_MAX: Final = 32
"""Deepest nesting read.  Challenges in the wild nest 6 to 12 deep (bazaar schemas)."""

_DIGITS_MAX: Final = 78  # of 2**256 - 1


class BadJSON(ValueError):
    """The text is not JSON that this library accepts."""


def loads(data: bytes | str) -> Any:
    """Parse JSON, refusing what two readers might read differently.

    Raises:
        BadJSON: not UTF-8, not JSON, a repeated key, NaN or infinity, an integer of more than
            78 digits, or nesting deeper than :data:`DEPTH_MAX`.
    """
    try:
        text = data if isinstance(data, str) else data.decode("utf-8")
        value = _decoder.decode(text.removeprefix("\ufeff"))
    except BadJSON:
        raise
    except RecursionError:
        raise BadJSON("nested too deeply") from None
    except ValueError:
        raise BadJSON("not JSON") from None
    _check_depth(value)
    return value


def dumps(value: Any) -> bytes:
    """Compact JSON in ASCII."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode("ascii")


def _integer(text: str) -> int:
    if len(text) > _DIGITS_MAX:
        raise BadJSON("an integer with too many digits")
    return int(text)


def _float(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise BadJSON("a number out of range")
    return number


def _constant(text: str) -> Any:
    raise BadJSON(f"{text} is not JSON")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise BadJSON("a repeated key")
    return result


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(DEPTH_MAX + 1):
        level = [
            child
            for item in level
            if isinstance(item, (dict, list))
            for child in (item.values() if isinstance(item, dict) else item)
        ]
        if not level:
            return
    raise BadJSON("nested too deeply")


_decoder = json.JSONDecoder(
    object_pairs_hook=_object,
    parse_int=_integer,
    parse_float=_float,
    parse_constant=_constant,
)
