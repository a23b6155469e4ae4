"""How a connection to SQLite waits for its lock: in small steps, spread over the writers."""

from __future__ import annotations

import random
import sqlite3
import time
from typing import Any, Final

from x402_mask._book import WAIT_S

_PAUSE_S: Final = 0.004
_PAUSE_MAX_S: Final = 0.05


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
