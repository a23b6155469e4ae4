"""JSON from strangers: strict, small, shallow."""

from __future__ import annotations

import json
from itertools import accumulate
from typing import Any, Final

DEPTH_MAX: Final = 32
"""Deepest nesting read.  Challenges in the wild nest 6 to 12 deep (bazaar schemas)."""

_DIGITS_MAX: Final = 78  # of 2**256 - 1
_NO_BRACKETS: Final = bytes(set(range(256)) - set(b"[]{}"))
_STEPS: Final = bytes.maketrans(b"[{]}", bytes((1, 1, 255, 255)))  # 255 is -1
_AT_ONCE: Final = 16 * 1024
"""Brackets looked at in one step of C, which lets no other thread run."""


class BadJSON(ValueError):
    """The text is not JSON that this library accepts."""


def loads(data: bytes | str, depth_max: int = DEPTH_MAX) -> Any:
    """Parse JSON, refusing what two readers might read differently.

    Raises:
        BadJSON: not UTF-8, not JSON, a repeated key, NaN or infinity, an integer of more than
            78 digits, or nesting deeper than *depth_max*.
    """
    try:
        text = as_text(data)
        _check_brackets(text, depth_max)
        return _decoder.decode(text)
    except BadJSON:
        raise
    except ValueError:
        raise BadJSON("not JSON") from None


def dumps(value: Any) -> str:
    """Compact JSON in ASCII."""
    return _encode(value)


def as_text(data: bytes | str) -> str:
    """JSON as text, without a byte order mark.  Raises ``UnicodeDecodeError`` if not UTF-8."""
    text = data if isinstance(data, str) else data.decode("utf-8")
    return text.removeprefix("\ufeff")


def members(text: str) -> dict[str, str]:
    """The members of a JSON object that :func:`loads` accepted, each value as it was written.

    What is echoed to a seller goes back to the letter: a number read and written again may differ.
    """
    found: dict[str, str] = {}
    at = _after_space(text, text.index("{") + 1)
    while text[at] != "}":
        key, at = _decoder.raw_decode(text, at)
        start = _after_space(text, _after_space(text, at) + 1)  # behind the colon
        _, at = _decoder.raw_decode(text, start)
        found[key] = text[start:at]
        at = _after_comma(text, at)
    return found


def elements(text: str) -> list[str]:
    """The elements of a JSON array that :func:`loads` accepted, each as it was written."""
    found: list[str] = []
    at = _after_space(text, text.index("[") + 1)
    while text[at] != "]":
        _, end = _decoder.raw_decode(text, at)
        found.append(text[at:end])
        at = _after_comma(text, end)
    return found


def _after_space(text: str, at: int) -> int:
    while text[at] in " \t\r\n":
        at += 1
    return at


def _after_comma(text: str, at: int) -> int:
    at = _after_space(text, at)
    return _after_space(text, at + 1) if text[at] == "," else at


def _integer(text: str) -> int:
    if len(text) > _DIGITS_MAX:
        raise BadJSON("an integer with too many digits")
    return int(text)


def _constant(text: str) -> Any:
    raise BadJSON(f"{text} is not JSON")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise BadJSON("a repeated key")
    return result


def _check_brackets(text: str, depth_max: int) -> None:
    """Refuse deep nesting before it is parsed, in one pass at the speed of C.

    The parser recurses on the C stack, and importing eth-account lifts Python's recursion limit to
    100 000 (py_ecc does): far past the end of a thread's stack.
    """
    if text.count("[") + text.count("{") <= depth_max:
        return
    # what is left of quotes begins or ends a string
    plain = text.replace("\\\\", "").replace('\\"', "")
    outside = "".join(plain.split('"')[::2]).encode("ascii", "replace")
    steps = memoryview(outside.translate(_STEPS, _NO_BRACKETS)).cast("b")
    if len(steps) <= depth_max:
        return
    depth = 0
    for start in range(0, len(steps), _AT_ONCE):
        depths = list(accumulate(steps[start : start + _AT_ONCE], initial=depth))
        if max(depths) > depth_max:
            raise BadJSON("nested too deeply")
        depth = depths[-1]


_encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode
_decoder = json.JSONDecoder(
    object_pairs_hook=_object,
    parse_int=_integer,
    parse_constant=_constant,
)
