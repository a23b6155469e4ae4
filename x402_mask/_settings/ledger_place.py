"""Which ledger a text of the owner's names: a path, or a DSN."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from x402_mask._system.owner_text import (
    LIBPQ,
    fixed,
    maybe_secret,
    plain,
)

if TYPE_CHECKING:
    from pathlib import Path

    from x402_mask._ledger.ledger import Ledger

_URL_SCHEME: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
_ANCHORED: Final = re.compile(r"/(?!/)|[\\~]|\.\.?[/\\]|[A-Za-z]:[/\\]")
"""How a path begins that can be nothing else."""
_UNLIKELY: Final = re.compile(r"[:@=?*|<>\"'`;]|//")
"""What other names of files are refused for: it is part of a DSN that cannot be read."""


def fixed_ledger(text: str, base: Path | None = None) -> str:
    """What *text* names, whatever becomes of the process's directory before it is opened.

    Where it names nothing, it stays as it is: whoever opens it is told so.
    """
    try:
        return _ledger_place(text, base)
    except ValueError:
        return text


def _ledger_place(text: str, base: Path | None = None) -> str:
    """The DSN or the absolute path that *text* names.

    A path that might as well be a DSN with a mistake in it is refused: on each host it would be
    another budget, under a directory that is called by the password.
    """
    text = plain(text)
    scheme = _URL_SCHEME.match(text)
    if scheme is not None and scheme[1] not in ("postgres", "postgresql"):
        raise ValueError(f"a ledger is a path or a postgresql:// URL, not {scheme[1]}://")
    if scheme is not None or LIBPQ.match(text):
        return text
    if "://" in text or not (_ANCHORED.match(text) or _UNLIKELY.search(text) is None):
        raise ValueError(
            "is neither a path nor a DSN that can be read; a path begins with / or ./,"
            " a DSN with postgresql://"
        )
    found = fixed(text, base)
    if not _ANCHORED.match(text) and maybe_secret(text, found):
        raise ValueError(
            "might be a password in the wrong place, so it is not taken for a path: a path begins"
            " with / or ./, or it ends as a database does, such as in .db"
        )
    return str(found)


def _is_path(ledger: str) -> bool:
    return not (_URL_SCHEME.match(ledger) or LIBPQ.match(ledger))


def open_ledger(where: str) -> Ledger:
    """The ledger at a path or a PostgreSQL DSN, which is a URL or begins with a keyword of libpq.

    A SQLite file is only opened when it is used.

    Raises:
        ValueError: neither can be read in it, or the driver of PostgreSQL is not installed.
    """
    place = _ledger_place(where)
    if _is_path(place):
        from x402_mask._ledger.sqlite import SQLiteLedger  # noqa: PLC0415

        return SQLiteLedger(place)
    from x402_mask._ledger.postgres import PostgresLedger  # noqa: PLC0415  # its driver is an extra

    try:
        return PostgresLedger(place)
    except ImportError as exc:
        raise ValueError(str(exc)) from None
