"""The head of the history chain, kept outside the database.

A chain shows an edited row, or one cut from the middle; only a head kept elsewhere shows that the
last rows are gone, as when an older copy is put back.  The file is two rings of small records, one
record written in place after each commit: the first ring holds commits that were synced to the
disk, which no power cut undoes, the second the others.

Several processes write one head, each after its commit and so in any order.  Each row has a place
of its own in its ring, and nothing newer is written over, so that the head never goes back and no
writer waits for another.
"""

from __future__ import annotations

import json
import logging
import os
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from x402_mask._ledger.private_files import NO_LINK, keep_private, make_folder
from x402_mask.errors import LedgerError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

log = logging.getLogger("x402_mask")

_SLOT: Final = 256
_SLOTS: Final = 8
_FILE: Final = 2 * _SLOTS * _SLOT
_MAC_BYTES: Final = 32
_SEQ_MAX: Final = 2**63 - 1
_FLAGS: Final = getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0) | NO_LINK
"""A pipe that somebody put there is refused, and never waited for."""


class Mark(NamedTuple):
    """A row of history that was there: its number and its place in the chain.

    ``ledger`` is the id of its ledger (empty where an older program wrote the mark), and ``era``
    the last row by which an owner had accepted a loss before it, 0 for none.
    """

    seq: int
    mac: bytes
    ledger: str = ""
    era: int = 0


class Head(NamedTuple):
    """The last row that is known, and the last one that no power cut undoes, if one is known."""

    last: Mark
    durable: Mark | None


class HeadFile:
    """Remembers the last rows of history that were committed."""

    __slots__ = ("_file", "_newest", "_pending", "_seen", "_told", "path")

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: int | None = None
        self._pending: tuple[int, bytes] | None = None
        self._told = False
        self._seen = b""
        self._newest: Mark | None = None
        """The last durable row by what was seen last of that ring, or written there."""

    @property
    def pending(self) -> tuple[int, bytes] | None:
        """The last row that the open transaction appended."""
        return self._pending

    def moved(self, seq: int, mac: bytes) -> None:
        """A row was appended in the open transaction."""
        self._pending = (seq, mac)

    def forget(self) -> None:
        """The open transaction was rolled back, or its end was written down."""
        self._pending = None

    def write(self, mark: Mark, *, durable: bool, anew: bool = False) -> None:
        """A transaction that ended with *mark* was committed, and synced if *durable*.

        *anew*: forget first what was known.  A lagging head is harmless (rows after it are still
        chained to it), so a failing write stops nobody; it is logged, once.
        """
        try:
            self._put(mark, durable=durable, anew=anew)
        except OSError as exc:
            self.close()
            if not self._told:
                self._told = True
                log.warning("%s cannot be written (%s): %s", self.path, exc.strerror, _UNNOTICED)

    def _put(self, mark: Mark, *, durable: bool, anew: bool) -> None:
        if self._file is None:
            make_folder(self.path.parent)
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | _FLAGS, 0o600)
        if anew:
            os.truncate(self._file, 0)
        place = _place(mark.seq, durable=durable)
        if _number(_read_at(self._file, place)) <= mark.seq:
            record = _record(mark)
            _write_at(self._file, place, record)
            if durable and self._newest is not None and self._newest.seq < mark.seq:
                self._seen = self._seen[:place] + record + self._seen[place + _SLOT :]
                self._newest = mark

    def lose(self, after: int) -> None:
        """Forget rows after *after* that were not durable: a power cut undid them."""
        with suppress(OSError):
            found = dict(_marks(self._read()))
            with self.path.open("r+b") as file:
                for place, mark in found.items():
                    if place >= _FILE // 2 and mark.seq > after:
                        file.seek(place)
                        file.write(b" " * _SLOT)

    def close(self) -> None:
        """Close the file; writing opens it again."""
        file, self._file = self._file, None
        if file is not None:
            with suppress(OSError):
                os.close(file)

    def __del__(self) -> None:
        """A ledger that is dropped without being closed leaves no file open."""
        self.close()

    def read(self) -> Head | None:
        """What is known, or ``None`` where there is no file, or nothing in it can be read.

        Raises:
            LedgerError: the file is there and cannot be read, or is a symbolic link.
        """
        try:
            found = list(_marks(self._read()))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as exc:
            keep_private(self.path)  # says it better where it is a link, or somebody else's
            raise LedgerError(f"cannot read {self.path.name}: {exc.strerror}") from exc
        if not found:
            return None
        durable = [mark for place, mark in found if place < _FILE // 2]
        return Head(max(mark for _, mark in found), max(durable, default=None))

    def durable(self) -> Mark | None:
        """The last row that no power cut undoes, as far as that is told; quick, and never fails."""
        try:
            if self._file is None:
                data = self._read()[: _FILE // 2]
            else:
                data = _read_at(self._file, 0, _FILE // 2)
        except OSError:  # whoever opens the ledger next says what is wrong
            return None
        if data != self._seen:  # another process wrote meanwhile
            self._newest = max((mark for _, mark in _marks(data)), default=None)
            self._seen = data
        return self._newest

    def _read(self) -> bytes:
        descriptor = os.open(self.path, os.O_RDONLY | _FLAGS)
        try:
            return os.read(descriptor, _FILE)
        finally:
            os.close(descriptor)


if hasattr(os, "pread"):  # half the system calls

    def _read_at(file: int, place: int, size: int = _SLOT) -> bytes:
        return os.pread(file, size, place)

    def _write_at(file: int, place: int, record: bytes) -> None:
        os.pwrite(file, record, place)

else:  # Windows

    def _read_at(file: int, place: int, size: int = _SLOT) -> bytes:
        os.lseek(file, place, os.SEEK_SET)
        return os.read(file, size)

    def _write_at(file: int, place: int, record: bytes) -> None:
        os.lseek(file, place, os.SEEK_SET)
        os.write(file, record)


_UNNOTICED: Final = "it would not be noticed if the ledger lost its last rows"


def _place(seq: int, *, durable: bool) -> int:
    """Where in the file the record of row *seq* is."""
    return ((0 if durable else _SLOTS) + seq % _SLOTS) * _SLOT


def _record(mark: Mark) -> bytes:
    """JSON, put together by hand: it is written after each commit.  An id is hex, or not told."""
    ledger = mark.ledger if mark.ledger.isalnum() and mark.ledger.isascii() else ""
    text = f'{{"seq":{mark.seq},"mac":"{mark.mac.hex()}","ledger":"{ledger}","era":{mark.era}}}'
    return text.ljust(_SLOT).encode("ascii")


def _number(record: bytes) -> int:
    """The number that a record begins with; -1 where it is none."""
    head, colon, rest = record.partition(b":")
    number = rest.partition(b",")[0].strip()
    return int(number) if colon and head == b'{"seq"' and number.isdigit() else -1


def _marks(data: bytes) -> Iterator[tuple[int, Mark]]:
    """Every record that can be read, and where it is."""
    for place in range(0, len(data), _SLOT):
        mark = _mark(data[place : place + _SLOT])
        if mark is not None:
            yield place, mark


def _mark(record: bytes) -> Mark | None:
    try:
        found: dict[str, Any] = json.loads(record.decode("ascii").strip(" \0"))
        mark = Mark(
            int(found["seq"]),
            bytes.fromhex(found["mac"]),
            str(found.get("ledger", "")),
            int(found.get("era", 0)),
        )
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
        return None
    fits = 0 < mark.seq <= _SEQ_MAX and 0 <= mark.era <= _SEQ_MAX
    return mark if fits and len(mark.mac) == _MAC_BYTES else None
