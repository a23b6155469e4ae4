"""Copying SQLite's write-ahead log into the database, away from whoever pays.

SQLite itself does it within the commit that makes the log too long, which then takes tens of
milliseconds.  Here a thread does, on a connection of its own; commits go on meanwhile.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
from contextlib import closing
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

log = logging.getLogger("x402_mask")

COMMITS: Final = 500
"""After how many commits: some four thousand pages of log, sixteen megabytes."""

LOG_PAGES_MAX: Final = 20_000
"""What SQLite takes for too long a log, should the thread not get to it."""

_WAIT_S: Final = 0.05


class Checkpointer:
    """Checkpoints one database now and then; it outlives neither its process nor a fork."""

    __slots__ = ("_busy", "_commits", "_path", "_thread")

    def __init__(self, path: Path) -> None:
        self._path = path
        self._busy = threading.Lock()
        self._commits = 0
        self._thread: threading.Thread | None = None

    @property
    def busy(self) -> bool:
        """Whether a checkpoint is going on, or was when this process was forked."""
        return self._busy.locked()

    def committed(self) -> None:
        """Something was written; called by one thread at a time."""
        self._commits += 1
        if self._commits < COMMITS or (self._thread is not None and self._thread.is_alive()):
            return
        self._commits = 0
        self._thread = threading.Thread(
            target=_checkpoint,
            args=(self._path, self._busy),
            name="x402-mask-checkpoint",
            daemon=True,
        )
        try:
            self._thread.start()
        except RuntimeError as exc:  # no thread to be had: the log grows a little longer
            self._thread = None
            log.debug("no checkpoint of %s: %s", self._path.name, exc)

    def finish(self, timeout_s: float) -> bool:
        """Wait until no checkpoint is going on; ``False`` if one still is."""
        thread = self._thread
        if thread is None or thread is threading.current_thread():
            return True
        thread.join(timeout_s)
        return not thread.is_alive()


def _checkpoint(path: Path, busy: threading.Lock) -> None:
    """Copy what is there, then what came meanwhile: only an empty log is begun anew.

    The first pass holds up nobody.  The second one keeps writers out, for the few pages that are
    left, and is put off to the next time where they are busy.
    """
    try:
        location = f"{path.absolute().as_uri()}?mode=rw"  # never makes a file that is gone
        with busy, closing(sqlite3.connect(location, uri=True, timeout=_WAIT_S)) as raw:
            raw.execute("PRAGMA wal_checkpoint(PASSIVE)")
            raw.execute("PRAGMA wal_checkpoint(RESTART)")
    except sqlite3.Error as exc:  # what was committed is in the log, where everybody reads it
        log.debug("no checkpoint of %s: %s", path.name, exc)
