"""Undoing the codings of an answer piece by piece, never making more of it than is wanted.

A few kilobytes of gzip in gzip are gigabytes once a library has undone both.  Here each coding is
undone only as far as somebody takes what comes of it, and none may make more than the answer may
have bytes.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

ACCEPTED: Final = "gzip, deflate"
"""What is offered to sellers, so that what is installed beside us changes nothing."""
_CODINGS_MAX: Final = 4
_PIECE: Final = 64 << 10
_SLACK: Final = 64 << 10
"""Bytes that a coding may take besides what is coded."""


class Unreadable(Exception):
    """The answer is in a coding that was not asked for, or is not what it says."""


class Unpacker:
    """Takes an answer as it comes over the wire, and gives at most *limit* bytes of it, plain.

    ``full`` once there would be more; ``ended`` where every coding came to its end.

    Raises:
        Unreadable: a coding that is not known, or too many of them.
    """

    def __init__(self, codings: str, limit: int) -> None:
        names = [name.strip().lower() for name in codings.split(",")]
        names = [name for name in names if name not in ("", "identity")]
        if len(names) > _CODINGS_MAX:
            raise Unreadable(f"it is coded {len(names)} times over")
        self._stages = [_Stage(name, limit + _SLACK) for name in reversed(names)]
        self._left = limit
        self._wire = limit + _SLACK
        self.full = False

    @property
    def ended(self) -> bool:
        """Whether nothing is missing, as far as the codings tell."""
        return all(stage.ended for stage in self._stages)

    def take(self, chunk: bytes) -> Iterator[bytes]:
        """The plain bytes that *chunk* leads to.

        Raises:
            Unreadable: it is not in the coding that it is said to be in.
        """
        self._wire -= len(chunk)
        if self._wire < 0:
            self.full = True
        for piece in _through(chunk, self._stages):
            if self.full:
                return
            kept = piece[: self._left]
            self._left -= len(kept)
            self.full = len(kept) < len(piece)
            yield kept
        self.full = self.full or any(stage.spent for stage in self._stages)


def _through(data: bytes, stages: Sequence[_Stage]) -> Iterator[bytes]:
    if not stages:
        yield data
        return
    for piece in stages[0].take(data):
        yield from _through(piece, stages[1:])


class _Stage:
    """One coding."""

    def __init__(self, name: str, limit: int) -> None:
        if name not in ("gzip", "x-gzip", "deflate"):
            raise Unreadable("it is in a coding that was not asked for")
        self._inflater = None if name == "deflate" else zlib.decompressobj(16 + zlib.MAX_WBITS)
        self._start = b""
        self._left = limit

    @property
    def ended(self) -> bool:
        """Whether its end was there."""
        return self._inflater is not None and self._inflater.eof

    @property
    def spent(self) -> bool:
        """Whether it made more than it may."""
        return self._left < 0

    def take(self, data: bytes) -> Iterator[bytes]:
        """What *data* is, in pieces."""
        if self._inflater is None:
            data = self._start = self._start + data
            if len(data) < 2:
                return
            self._inflater = zlib.decompressobj(_deflate_window(data))
        while data and not self.ended and not self.spent:
            try:
                made = self._inflater.decompress(data, _PIECE)
            except zlib.error:
                raise Unreadable("it is not in the coding that it says") from None
            data = self._inflater.unconsumed_tail
            self._left -= len(made)
            if made:
                yield made


def _deflate_window(start: bytes) -> int:
    """With zlib's header, as the standard has it (RFC 1950), or without, as some send it."""
    zlibs = start[0] & 0x0F == 8 and int.from_bytes(start[:2], "big") % 31 == 0
    return zlib.MAX_WBITS if zlibs else -zlib.MAX_WBITS
