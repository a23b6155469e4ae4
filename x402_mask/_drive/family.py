"""The two HTTP libraries, which are alike: what is made by one, and what is looked at of either.

A front end hands its library over once, as the module; what is written for both never imports one.
"""

from __future__ import annotations

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
