"""Bodies: reading a stranger's within bounds, and telling whether our own can be sent twice."""

from __future__ import annotations

import email.utils
import hashlib
import re
import time
from datetime import UTC
from typing import TYPE_CHECKING, Any, Final

from x402_mask._wire.codings import decode
from x402_mask._wire.x402 import CHALLENGE_BYTES_MAX

if TYPE_CHECKING:
    from collections.abc import Iterable

READ_S: Final = 10.0
"""Seconds for the first 64 KiB of a 402: a seller that trickles is not waited for."""

DRAIN_S: Final = 1.0
"""Seconds for a body that only keeps the connection in use, because a header decided."""

_BOUNDARY: Final = re.compile(r'boundary="?([^";,\s]+)', re.IGNORECASE)


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


def is_replayable(stream: Any) -> bool:
    """Whether a request stream that is not held in memory gives the same bytes twice.

    Only multipart forms do, as they seek their files back; an open file given as a body would
    replay empty, without an error.
    """
    fields = getattr(stream, "fields", None)
    if type(stream).__name__ != "MultipartStream" or not isinstance(fields, list):
        return False
    return all(_rereadable(getattr(field, "file", b"")) for field in fields)


def _rereadable(file: Any) -> bool:
    if isinstance(file, (str, bytes)):
        return True
    try:
        return bool(file.seekable())
    except (AttributeError, ValueError):
        return False


def body_digest(chunks: Iterable[bytes], content_type: str) -> str:
    """SHA-256 of a request body, in hex, with the random boundary of a multipart form left out."""
    found = None
    if content_type.lower().startswith("multipart/"):
        found = _BOUNDARY.search(content_type)
    boundary = found[1].encode("latin-1", "replace") if found else None
    total = hashlib.sha256()
    for chunk in chunks:
        total.update(chunk.replace(boundary, b"") if boundary else chunk)
    return total.hexdigest()


def date_of(value: str | None) -> float | None:
    """A ``Date`` header in Unix seconds, or ``None`` where there is no usable one."""
    if not value or len(value) > 64:
        return None
    try:
        date = email.utils.parsedate_to_datetime(value)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return (date if date.tzinfo is not None else date.replace(tzinfo=UTC)).timestamp()
