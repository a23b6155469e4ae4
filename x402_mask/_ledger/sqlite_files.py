"""Which files lie at a path just now: a database, its log, and the index of the log.

A process that has them open goes on with files that somebody has deleted, or put others in the
place of, while whoever opens the path finds those others: two processes that no lock keeps apart.
"""

from __future__ import annotations

import os

File = tuple[int, int] | None
"""The device and the number of a file; ``None`` where there is none."""

Files = tuple[File, File, File]
"""Of the database, its log and its index."""


def file_at(path: str) -> File:
    """Which file lies at *path*.

    Raises:
        OSError: that cannot be told.
    """
    try:
        found = os.stat(path)  # noqa: PTH116  # quicker, and asked in each transaction
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def files_at(path: str, real: str) -> Files:
    """Which database lies at *path*, and which log and index beside *real*, the same without links.

    Raises:
        OSError: that cannot be told.
    """
    return file_at(path), file_at(real + "-wal"), file_at(real + "-shm")
