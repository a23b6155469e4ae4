"""The two HTTP libraries, which are alike: what is made by one, and what is looked at of either.

A front end hands its library over once, as the module; what is written for both never imports one.
"""

from __future__ import annotations

from functools import cache
from typing import Any, TypeAlias

Family: TypeAlias = Any
"""The module ``httpx`` or ``httpx2``."""

Request: TypeAlias = Any
"""A request of either; as much of it is used as the two have in common."""

Response: TypeAlias = Any
"""A response of either."""

URL: TypeAlias = Any
"""A URL of either."""

Cookies: TypeAlias = Any
"""A jar of either."""

ByteStream: TypeAlias = Any
"""A body of either, which is iterated over and closed."""


@cache
def made(kind: type, family: Family, base: str) -> Any:
    """*kind* as a class of the library: its *base*, with what *kind* does in place of that."""
    own = getattr(family, base)
    return type(kind.__name__, (kind, own), {"__module__": kind.__module__, "family": family})
