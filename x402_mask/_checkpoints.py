"""Copying SQLite's write-ahead log into the database, away from whoever pays.

SQLite itself does it within the commit that makes the log too long, which then takes tens of
milliseconds.  Here a thread does, on a connection of its own; commits go on meanwhile.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Final

log = logging.getLogger("x402_mask")

COMMITS: Final = 500
"""After how many commits: some four thousand pages of log, sixteen megabytes."""

LOG_PAGES_MAX: Final = 20_000
"""What SQLite takes for too long a log, should the thread not get to it."""

_WAIT_S: Final = 0.05

_guard = threading.RLock()  # a signal handler may fork while this thread has it
_running: dict[str, threading.Thread | None] = {}
"""Every checkpoint of this process by its file, whatever became of the ledger that began it."""


class Checkpointer:
    """Has a database checkpointed now and then."""

    __slots__ = ("_commits",)

    def __init__(self) -> None:
        self._commits = 0

    def committed(self, path: str) -> None:
        """Something was written to *path*; called by one thread at a time."""
        self._commits += 1
        if self._commits >= COMMITS and _begin(path):
            self._commits = 0


def _begin(path: str) -> bool:
    """Begin a checkpoint, unless one of this file is going on."""
    with _guard:
        if path in _running:
            return False
        _running[path] = None
    try:
        thread = threading.Thread(
            target=_run, args=(path,), name="x402-mask-checkpoint", daemon=True
        )
        _running[path] = thread
        thread.start()
    except RuntimeError as exc:  # no thread to be had: the log grows a little longer
        log.debug("no checkpoint of %s: %s", path, exc)
        _running.pop(path, None)
    return True


def finish(timeout_s: float) -> frozenset[str]:
    """Wait until none is going on; the files of those that still are."""
    until = time.monotonic() + timeout_s
    with _guard:
        threads = [thread for thread in _running.values() if thread is not None]
    for thread in threads:
        if thread.ident is not None and thread is not threading.current_thread():
            thread.join(max(0.0, until - time.monotonic()))
    with _guard:
        return frozenset(_running)


def forked() -> None:
    """In a child: the parent's threads are not here."""
    global _guard  # noqa: PLW0603
    _guard = threading.RLock()
    _running.clear()


def _run(path: str) -> None:
    try:
        _checkpoint(path)
    except (OSError, ValueError, sqlite3.Error) as exc:  # everybody reads what is in the log
        log.debug("no checkpoint of %s: %s", path, exc)
    finally:
        with _guard:
            _running.pop(path, None)


def _checkpoint(path: str) -> None:
    """Copy what is there, then what came meanwhile: only an empty log is begun anew.

    The first pass holds up nobody.  The second one keeps writers out, for the few pages that are
    left, and is put off to the next time where they are busy.
    """
    location = f"{Path(path).as_uri()}?mode=rw"  # never makes a file that is gone
    with closing(sqlite3.connect(location, uri=True, timeout=_WAIT_S)) as raw:
        raw.execute("PRAGMA fullfsync=1")  # macOS: the log is begun anew only after this
        raw.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        raw.execute("PRAGMA wal_checkpoint(RESTART)").fetchall()
