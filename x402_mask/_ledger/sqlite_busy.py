"""A connection to SQLite, which waits for its lock in small steps, spread over the writers.

And which of its errors means what.
"""

from __future__ import annotations

import random
import sqlite3
import time
from typing import TYPE_CHECKING, Any, Final

from x402_mask._ledger.waiting import WAIT_S

if TYPE_CHECKING:
    from x402_mask._ledger.records import Change, Last

_PAUSE_S: Final = 0.004
_PAUSE_MAX_S: Final = 0.05


class Connection:
    """A :class:`x402_mask._ledger.records.Db` over one sqlite3 connection."""

    __slots__ = ("changes", "durable", "last", "raw")

    def __init__(self, raw: sqlite3.Connection) -> None:
        self.raw = raw
        self.last: Last | None = None
        self.changes: list[Change] = []
        self.durable: bool | None = None
        """What ``synchronous`` was last set to: whether commits survive a power cut."""

    @property
    def clock_us(self) -> int | None:
        """No clock but this host's."""
        return None

    def one(self, sql: str, *params: object) -> tuple[Any, ...] | None:
        """The first row, or ``None``."""
        found = self.raw.execute(sql, params).fetchone()
        return None if found is None else tuple(found)

    def all(self, sql: str, *params: object) -> list[tuple[Any, ...]]:
        """Every row."""
        return self.raw.execute(sql, params).fetchall()

    def run(self, sql: str, *params: object) -> int:
        """Execute, and tell how many rows changed."""
        return self.raw.execute(sql, params).rowcount

    def columns(self, table: str) -> set[str]:
        """The names of a table's columns; none where there is no such table."""
        return {name for (name,) in self.all("SELECT name FROM pragma_table_info(?)", table)}


def begun(raw: sqlite3.Connection, *, write: bool) -> bool:
    """Begin a transaction that sees one state of the ledger; ``False`` if it is locked."""
    try:
        raw.execute("BEGIN IMMEDIATE" if write else "BEGIN")
        if not write:
            raw.execute("SELECT 1 FROM meta").fetchone()  # takes the snapshot, or finds the lock
    except sqlite3.OperationalError as exc:
        if not is_busy(exc):
            raise
        if raw.in_transaction:
            raw.execute("ROLLBACK")
        return False
    return True


def pause(tries: int, left_s: float) -> float:
    """Seconds until the next try: rarer the longer the queue, but often again for the eldest.

    Many waiters that all try often leave no processor to the one that holds the lock.
    """
    longest = _PAUSE_S if left_s < WAIT_S / 2 else min(_PAUSE_S * tries, _PAUSE_MAX_S)
    return random.uniform(_PAUSE_S / 8, longest)  # noqa: S311  # spreads the writers


def insist(raw: sqlite3.Connection, pragma: str, deadline: float) -> Any:
    """Execute *pragma*, again while the database is locked; its one value, if it has one."""
    while True:
        try:
            found = raw.execute(pragma).fetchall()
        except sqlite3.OperationalError as exc:
            if not is_busy(exc) or time.monotonic() >= deadline:
                raise
            time.sleep(_PAUSE_S)
        else:
            return found[0][0] if found else None


def is_busy(exc: sqlite3.Error) -> bool:
    """Whether somebody else has the lock."""
    return exc.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


_BROKEN: Final = (
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_NOTADB,
    sqlite3.SQLITE_CANTOPEN,
)


def is_broken(failure: BaseException) -> bool:
    """Whether a file is not what it was, so that its connection may never work again."""
    return _code(failure) in _BROKEN or is_read_only(failure)


def is_read_only(failure: BaseException) -> bool:
    """Whether a file was opened for reading only: it stays so, whatever may be written later."""
    return _code(failure) == sqlite3.SQLITE_READONLY


def _code(failure: BaseException) -> int | None:
    code = getattr(failure, "sqlite_errorcode", None)  # the module's own errors have none
    return code & 0xFF if isinstance(failure, sqlite3.Error) and code is not None else None


def advice(failure: sqlite3.Error) -> str:
    """What to do about it."""
    text = str(failure)
    if "readonly" in text:
        return "make the file and its directory writable"
    if "full" in text:
        return "free some disk space"
    if "malformed" in text or "not a database" in text:
        return "it is damaged: restore a backup, and reconcile it with the chain"
    return "see `x402-mask doctor`"
