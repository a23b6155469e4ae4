"""What SQLite's write-ahead log needs besides commits, done away from whoever pays.

SQLite itself copies the log into the database within the commit that makes it too long, which then
takes tens of milliseconds.  And while the log file still grows, a durable commit waits for the file
system to find it room, which doubles it.  Here a thread, on a connection of its own, makes the file
long once, and has the log begun anew before that gets too long.
"""

from __future__ import annotations

import logging
import os
import shutil
import sqlite3
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger("x402_mask")

COMMITS: Final = 500
"""After how many commits the log is copied: some four thousand pages of it, sixteen megabytes."""

LOG_BYTES: Final = 8 << 20
"""How long the file is made at once: half of that, in some twenty milliseconds."""

FEW_COMMITS: Final = 8
"""After how many commits it is: who makes fewer, a command line say, has nothing to gain."""

LOG_PAGES_MAX: Final = 20_000
"""What SQLite takes for too long a log, should the thread not get to it."""

_WAIT_S: Final = 0.05

_running: dict[threading.Thread, str] = {}
"""The threads at it in this process, and at which file, whatever became of the ledger that began.

No lock guards it, which an interruption could leave locked: two at once do no harm.
"""


class Checkpointer:
    """Has a database's log seen to now and then."""

    __slots__ = ("_commits", "_long")

    def __init__(self) -> None:
        self._commits = 0
        self._long = False

    def committed(self, path: str) -> None:
        """Something was written to *path*; called by one thread at a time."""
        self._commits += 1
        if self._commits >= COMMITS:
            if _begin(path, _checkpoint):
                self._commits = 0
        elif self._commits >= FEW_COMMITS and not self._long:
            self._long = _begin(path, _lengthen)


def _begin(path: str, work: Callable[[str], None]) -> bool:
    """Begin *work* on the file at *path*, unless a thread is at it already."""
    if path in _files():
        return False
    thread = threading.Thread(
        target=_run, args=(path, work), name="x402-mask-checkpoint", daemon=True
    )
    _running[thread] = path  # before it may be done
    try:
        thread.start()
    except RuntimeError as exc:  # no thread to be had: the log grows a little longer
        log.debug("the log of %s is left as it is: %s", path, exc)
        _running.pop(thread, None)
    return True


def _files() -> frozenset[str]:
    return frozenset(path for thread, path in list(_running.items()) if thread.is_alive())


def finish(timeout_s: float) -> frozenset[str]:
    """Wait until none is going on; the files of those that still are."""
    until = time.monotonic() + timeout_s
    for thread in list(_running):
        if thread.is_alive() and thread is not threading.current_thread():
            thread.join(max(0.0, until - time.monotonic()))
    return _files()


def forked() -> None:
    """In a child: the parent's threads are not here."""
    _running.clear()


def _run(path: str, work: Callable[[str], None]) -> None:
    try:
        work(path)
    except (OSError, ValueError, sqlite3.Error) as exc:  # everybody reads what is in the log
        log.debug("the log of %s is left as it is: %s", path, exc)
    finally:
        _running.pop(threading.current_thread(), None)


def _checkpoint(path: str) -> None:
    """Copy what is there, then what came meanwhile: only an empty log is begun anew.

    The first pass holds up nobody.  The second one keeps writers out, for the few pages that are
    left, and is put off to the next time where they are busy.
    """
    with closing(_connected(path)) as raw:
        raw.execute("PRAGMA fullfsync=1")  # macOS: the log is begun anew only after this
        raw.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        raw.execute("PRAGMA wal_checkpoint(RESTART)").fetchall()


def _lengthen(path: str) -> None:
    """Make the log file long: by a transaction that outgrows its cache, undone.

    What it wrote was never committed, so that nobody reads it and the next commits go over it.
    Not where it would fill the disk.
    """
    log = Path(f"{path}-wal")
    if log.stat().st_size >= LOG_BYTES or shutil.disk_usage(log.parent).free < 10 * LOG_BYTES:
        return
    with closing(_connected(path)) as raw:
        raw.execute("PRAGMA cache_size=10")
        raw.execute("BEGIN IMMEDIATE")
        raw.execute("CREATE TABLE room (bytes)")
        raw.execute("INSERT INTO room VALUES (zeroblob(?))", (LOG_BYTES,))
        with log.open("rb") as file:
            os.fsync(file.fileno())  # while writers are kept out: else the next commit waits for it
        raw.execute("ROLLBACK")


def _connected(path: str) -> sqlite3.Connection:
    location = f"{Path(path).as_uri()}?mode=rw"  # never makes a file that is gone
    return sqlite3.connect(location, uri=True, timeout=_WAIT_S, isolation_level=None)
