"""Showing things: tables for people, one JSON document for programs, and seller text made safe.

What a seller says is untrusted.  In a terminal it could move the cursor, change the title, fake a
line of ours or turn text around, so only printable characters of it get there, and not too many.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import sys
import unicodedata
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from x402_mask._models import Spend

_SEQUENCES: Final = re.compile(
    r"""
      (?: \x1b\[ | \x9b ) [0-?]* [ -/]* [@-~]                              # CSI: colours, cursor
    | (?: \x1b[\]PX^_] | [\x9d\x90\x98\x9e\x9f] )                         # OSC, DCS, ...
      .*? (?: \x07 | \x1b\\ | \x9c | $ )                                 # ... and their end
    | \x1b [ -/]* [0-~]                                                   # the rest of ESC
    """,
    re.VERBOSE | re.DOTALL,
)
_HIDDEN: Final = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
"""Unicode categories that are not shown: controls, direction marks, surrogates, line separators."""

_PIPE_WIDTH: Final = 240


def clean(text: object, limit: int = 300, *, lines: bool = False) -> str:
    """Untrusted *text* as printable characters, at most *limit*; on one line unless *lines*."""
    raw = _SEQUENCES.sub("", str(text)[: limit * 20])
    kept = "".join(c for c in raw if c in "\n\t" or unicodedata.category(c) not in _HIDDEN)
    if not lines:
        kept = " ".join(kept.split())
    return kept if len(kept) <= limit else kept[: limit - 1] + "…"


def document(value: Any) -> str:
    """*value* as one JSON document in ASCII: no character of it can act on a terminal."""
    return json.dumps(plain(value), indent=2, ensure_ascii=True, allow_nan=False)


def plain(value: Any) -> Any:
    """*value* in JSON's own types: USD as text, times in ISO 8601, windows as ``36h``."""
    if isinstance(value, Decimal):
        return str(value)
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, timedelta):
        return span(value)
    if isinstance(value, BaseException):
        return {"reason": getattr(value, "reason", None), "message": str(value)}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value)]
        return {name: plain(getattr(value, name)) for name in names}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item) for item in value]
    return value


def span(per: str | timedelta) -> str:
    """The window of a cap, as it is written in X402_MASK_CAPS."""
    if isinstance(per, str):
        return per
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        if not per % timedelta(seconds=length):
            return f"{per // timedelta(seconds=length)}{unit}"
    return f"{per.total_seconds():g}s"


def say(text: str, *, style: str = "") -> None:
    """A message for people, on stderr.  Nobody there to read it is no failure."""
    from rich.text import Text

    with contextlib.suppress(OSError, SystemExit):  # rich makes the second of a broken pipe
        console(error=True).print(Text(text, style=style), soft_wrap=True)


def put(value: Any) -> None:
    """The one JSON document, on stdout."""
    sys.stdout.write(document(value) + "\n")
    sys.stdout.flush()


def console(*, error: bool = False) -> Console:
    """A console that adds nothing to what it is given, and does not crop for pipes."""
    from rich.console import Console

    stream = sys.stderr if error else sys.stdout
    width = None if stream.isatty() else _PIPE_WIDTH
    return Console(file=stream, width=width, highlight=False, markup=False, emoji=False)


def show(renderable: Any) -> None:
    """A table or a line of our own, on stdout."""
    console().print(renderable)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> Table:
    """A table; columns whose name starts with ``>`` are set right.  Every cell is made safe."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    made = Table(
        title=Text(title), title_justify="left", box=box.SIMPLE_HEAD, show_header=any(columns)
    )
    for name in columns:
        made.add_column(
            name.lstrip(">"), justify="right" if name.startswith(">") else "left", overflow="fold"
        )
    for row in rows:
        made.add_row(*(cell if isinstance(cell, Text) else Text(clean(cell)) for cell in row))
    return made


def facts(title: str, pairs: Mapping[str, object]) -> Table:
    """A table of names and values, without those that are ``None``."""
    rows = [(name, value) for name, value in pairs.items() if value is not None]
    return table(title, ("", ""), rows)


def money(value: Decimal | None) -> str:
    """USD for people."""
    return "" if value is None else f"${value}"


def moment(value: datetime | None) -> str:
    """A UTC time for people."""
    return "" if value is None else f"{value:%Y-%m-%d %H:%M:%S}Z"


def caps_table(spends: Sequence[Spend], title: str = "caps (USD)") -> Table:
    """How far each cap is used."""
    columns = ("service", "per", ">limit", ">settled", ">held", ">left", "more at")
    rows = [
        (
            "all services" if s.service == "*" else s.service,
            span(s.per),
            *(money(v) for v in (s.limit, s.settled, s.held, s.left)),
            moment(s.resets_at),
        )
        for s in spends
    ]
    return table(title, columns, rows)
