"""Showing things: tables and listings for people, one JSON document for programs."""

from __future__ import annotations

import codecs
import contextlib
import dataclasses
import json
import re
import sys
import textwrap
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from x402_mask._money import span
from x402_mask._text.printable import clean
from x402_mask._text.values import money, plain

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.console import Console
    from rich.table import Table

    from x402_mask._models import Spend

_PIPE_WIDTH: Final = 240
_PIPE_LINE: Final = 80
"""Columns of a listing that goes to a pipe: whoever pages it has no more, as a rule."""
_CUT_MIN: Final = 8
_NOTE_INDENT: Final = "    "
_ADDRESS: Final = re.compile(r"0x[0-9a-fA-F]{40}")
_IN_ASCII: Final = {"→": "->", "←": "<-", "…": "..."}


def _in_ascii(error: UnicodeError) -> tuple[str, int]:
    """For streams that cannot take every character: ours spelt out, others as escapes."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    at = error.start
    char = error.object[at]
    return _IN_ASCII.get(char) or char.encode("ascii", "backslashreplace").decode(), at + 1


codecs.register_error("x402_mask.ascii", _in_ascii)


def document(value: Any) -> str:
    """*value* as one JSON document in ASCII: no character of it can act on a terminal."""
    return json.dumps(plain(value), indent=2, ensure_ascii=True, allow_nan=False)


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


def when(value: datetime) -> str:
    """A UTC time for people, without a year if it is this year's, else without the hour."""
    same = value.year == datetime.now(UTC).year
    return f"{value:%m-%d %H:%M}" if same else f"{value:%Y-%m-%d}"


def count(number: int, noun: str) -> str:
    """``1 payment``, ``2 payments``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def checksummed(address: str) -> str:
    """An address as it is written everywhere; what is none, as it is."""
    from x402_mask._crypto.eip712 import checksum

    return checksum(address) if _ADDRESS.fullmatch(address) else address


def short_id(payment_id: str) -> str:
    """The end of a payment's id: its beginning is the time, and so much like its neighbours'."""
    return payment_id if len(payment_id) <= 13 else f"pay_…{payment_id[-8:]}"


def short_hash(transaction: str) -> str:
    """Both ends of a transaction's hash."""
    return transaction if len(transaction) <= 13 else f"{transaction[:6]}…{transaction[-4:]}"


# --- listings -------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class Line:
    """One line of a listing: its cells whole, the same made short, and what is said below it."""

    whole: tuple[str, ...]
    short: tuple[str, ...]
    note: str = ""


def listing(columns: Sequence[str], lines: Sequence[Line], *, cut: int) -> None:
    """Show *lines*, each on one line: whole where there is room, else short.

    Column number *cut* gives way where there is little room, and the last columns where there is
    less.  Every cell is made safe.
    """
    room = console().width if sys.stdout.isatty() else _PIPE_LINE
    heads = tuple(name.lstrip(">") for name in columns)
    rows, widths = _fitted([heads, *(line.whole for line in lines)], room, None)
    if sum(widths) + 2 * len(widths) - 2 > room:
        rows, widths = _fitted([heads, *(line.short for line in lines)], room, cut)
    for row, note in zip(rows, ["", *(line.note for line in lines)], strict=True):
        _print_line(columns, row, widths)
        for part in textwrap.wrap(clean(note, 1000), max(20, room - len(_NOTE_INDENT))):
            show_line(_NOTE_INDENT + part)


def _fitted(
    rows: Sequence[Sequence[str]], room: int, cut: int | None
) -> tuple[list[list[str]], list[int]]:
    """The rows made safe, and the width of each column that there is room for."""
    from rich.cells import cell_len

    safe = [[clean(cell) for cell in row] for row in rows]
    widths = [max(map(cell_len, column)) for column in zip(*safe, strict=True)]
    while cut is not None and (over := sum(widths) + 2 * len(widths) - 2 - room) > 0:
        if widths[cut] - over >= _CUT_MIN or len(widths) == cut + 1:
            widths[cut] = max(_CUT_MIN, widths[cut] - over)
            break
        widths.pop()
    return safe, widths


def _print_line(columns: Sequence[str], row: Sequence[str], widths: Sequence[int]) -> None:
    from rich.cells import cell_len, set_cell_size

    cells = []
    for name, cell, width in zip(columns, row, widths, strict=False):
        text = cell if cell_len(cell) <= width else set_cell_size(cell, width - 1) + "…"
        padding = " " * (width - cell_len(text))
        cells.append(padding + text if name.startswith(">") else text + padding)
    show_line("  ".join(cells).rstrip())


def show_line(text: str) -> None:
    """A line on stdout, as long as it is."""
    from rich.text import Text

    console().print(Text(text), soft_wrap=True)


# --- caps -----------------------------------------------------------------------------------------


def show_caps(spends: Sequence[Spend], title: str = "caps (USD)") -> None:
    """How far each cap is used: a table, or where that is too wide, a few words on each."""
    target, made = console(), _caps_table(spends, title)
    wide = target.options.update(max_width=_PIPE_WIDTH)
    if target.measure(made, options=wide).maximum <= target.width:
        target.print(made)
        return
    show_line(title)
    for s in spends:
        service, per, limit, settled, held, left, more_at = _cap_cells(s)
        show_line(f"  {service}, {limit} per {per}")
        told = f"settled {settled}, held {held}, left {left}"
        told += f", more at {more_at}" if more_at else ""
        for part in textwrap.wrap(told, max(20, target.width - len(_NOTE_INDENT))):
            show_line(_NOTE_INDENT + part)


def _cap_cells(s: Spend) -> tuple[str, ...]:
    return (
        "all services" if s.service == "*" else clean(s.service),
        span(s.per),
        *(money(v) for v in (s.limit, s.settled, s.held, s.left)),
        "" if s.resets_at is None else f"{s.resets_at + timedelta(seconds=59):%Y-%m-%d %H:%M}Z",
    )


def _caps_table(spends: Sequence[Spend], title: str) -> Table:
    columns = ("service", "per", ">limit", ">settled", ">held", ">left", "more at")
    return table(title, columns, [_cap_cells(s) for s in spends])
