"""Bodies that are sent: whether they can be sent twice, and their digest; dates of answers."""

from __future__ import annotations

import email.utils
import hashlib
import re
from datetime import UTC
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

_BOUNDARY: Final = re.compile(r'boundary="?([^";,\s]+)', re.IGNORECASE)


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
