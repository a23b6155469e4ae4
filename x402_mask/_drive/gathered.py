"""Reading a stranger's body within bounds of bytes and time."""

from __future__ import annotations

import time
from typing import Final

from x402_mask._wire.codings import decode
from x402_mask._wire.x402 import CHALLENGE_BYTES_MAX

READ_S: Final = 10.0
"""Seconds for the first 64 KiB of a 402: a seller that trickles is not waited for."""

DRAIN_S: Final = 1.0
"""Seconds for a body that only keeps the connection in use, because a header decided."""


def reading_s(wait_s: float | None) -> float:
    """Seconds to read a body in, for a caller whose read time-out is *wait_s*."""
    return READ_S if wait_s is None else min(READ_S, max(DRAIN_S, wait_s))


class Gathered:
    """The start of a response body as it came over the wire, bounded in bytes and time."""

    __slots__ = ("_deadline", "_limit", "chunks", "complete", "size")

    def __init__(self, seconds: float = READ_S, limit: int = CHALLENGE_BYTES_MAX) -> None:
        self._limit = limit
        self.chunks: list[bytes] = []
        self.size = 0
        self.complete = False
        self._deadline = time.monotonic() + seconds

    def add(self, chunk: bytes) -> bool:
        """Take a chunk; whether to go on reading."""
        self.chunks.append(chunk)
        self.size += len(chunk)
        return self.size <= self._limit and time.monotonic() < self._deadline

    def joined(self) -> list[bytes]:
        """All of it as one chunk: a seller may have sent tens of thousands."""
        self.chunks = [b"".join(self.chunks)] if self.chunks else []
        return self.chunks

    def decoded(self, encodings: str) -> bytes | None:
        """The whole body, decoded; ``None`` if it is longer than the limit or in another coding."""
        if not self.complete or self.size > self._limit:
            return None
        return decode(b"".join(self.chunks), encodings, self._limit)
