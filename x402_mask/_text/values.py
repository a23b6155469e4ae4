"""Values for people and for programs: money, times, windows, records."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from x402_mask._money import span
from x402_mask._text.settings import on_command_line


def plain(value: Any) -> Any:
    """*value* in JSON's own types: USD as text, times in ISO 8601, windows as ``36h``."""
    if isinstance(value, Decimal):
        return str(value)
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, timedelta):
        return span(value)
    if isinstance(value, BaseException):
        return {"reason": getattr(value, "reason", None), "message": on_command_line(value)}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value)]
        return {name: plain(getattr(value, name)) for name in names}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item) for item in value]
    return value


def money(value: Decimal | None) -> str:
    """USD for people."""
    return "" if value is None else f"${value}"


def moment(value: datetime | None) -> str:
    """A UTC time for people."""
    return "" if value is None else f"{value:%Y-%m-%d %H:%M:%S}Z"
