"""JSON from sellers and users, of any size but not of any depth."""

from __future__ import annotations

import json
import re
from typing import Any, Final

DEPTH_MAX: Final = 200
"""Deepest nesting read.  Python's own limit is not to be relied upon: a library that the wallet
needs raises it so far that deep JSON ends the process, and an answer paid for with it."""

_STRINGS: Final = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
_NO_BRACKETS: Final = bytes(set(range(256)) - set(b"[]{}"))


def parse(content: bytes | str) -> Any:
    """Parse JSON.

    Raises:
        ValueError: not JSON, a number that JSON does not have, or nested too deeply.
    """
    data = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
    depth = 0
    for bracket in _STRINGS.sub(b"", data).translate(None, _NO_BRACKETS):
        depth += 1 if bracket in b"[{" else -1
        if depth > DEPTH_MAX:
            raise ValueError("nested too deeply")
    return json.loads(data, parse_constant=_refuse)


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
