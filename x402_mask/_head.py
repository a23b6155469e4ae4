"""The head of the history chain, kept outside the database.

A chain shows an edited row, or one cut from the middle; only a head kept elsewhere shows that the
last rows are gone.  The file is one small record, written in place after each commit.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from typing import TYPE_CHECKING

from x402_mask._private import NO_LINK, make_folder

if TYPE_CHECKING:
    from pathlib import Path

_SIZE = 128


class HeadFile:
    """Remembers the last row of history that was committed."""

    __slots__ = ("_file", "_pending", "path")

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: int | None = None
        self._pending: tuple[int, bytes] | None = None

    @property
    def pending(self) -> tuple[int, bytes] | None:
        """The last row that the open transaction appended."""
        return self._pending

    def moved(self, seq: int, mac: bytes) -> None:
        """A row was appended in the open transaction."""
        self._pending = (seq, mac)

    def forget(self) -> None:
        """The open transaction was rolled back."""
        self._pending = None

    def write(self) -> None:
        """The open transaction was committed.

        A lagging head is harmless (rows after it are still chained to it), so a failing write is
        left to ``doctor``, which compares.
        """
        if self._pending is None:
            return
        seq, mac = self._pending
        self._pending = None
        record = json.dumps({"seq": seq, "mac": mac.hex()}).ljust(_SIZE).encode("ascii")
        try:
            if self._file is None:
                make_folder(self.path.parent)
                flags = os.O_WRONLY | os.O_CREAT | NO_LINK | getattr(os, "O_BINARY", 0)
                self._file = os.open(self.path, flags, 0o600)
            os.lseek(self._file, 0, os.SEEK_SET)
            os.write(self._file, record)
        except OSError:
            self.close()

    def close(self) -> None:
        """Close the file; writing opens it again."""
        file, self._file = self._file, None
        if file is not None:
            with suppress(OSError):
                os.close(file)

    def __del__(self) -> None:
        """A ledger that is dropped without being closed leaves no file open."""
        self.close()

    def read(self) -> tuple[int, bytes] | None:
        """The last known head, or ``None`` where there is none."""
        try:
            record = json.loads(self.path.read_text("ascii"))
            return int(record["seq"]), bytes.fromhex(record["mac"])
        except (OSError, ValueError, KeyError, TypeError):
            return None
