"""What usual servers make of a path: the spellings under which one place answers.  Pure.

Servers fold case, merge slashes, resolve dot segments before or after they decode, decode once or
(behind a proxy) more often, cut ``;parameters``, trailing dots and blanks, stop at a NUL, and take
letters that look alike for the same (IIS, and databases that look a name up).  No two do the same,
so a path has several *readings*, and what is kept for any of them is kept for all: a reading may
add a cap and never takes one away.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote

if TYPE_CHECKING:
    from collections.abc import Iterator

_DECODINGS: Final = 5
"""How often a path is decoded at most: each proxy on the way does it once, and none has five."""

_PLAIN: Final = re.compile(r"(?:/[a-z0-9_-](?:[a-z0-9._-]*[a-z0-9_-])?)*/?")
_PARAMETERS: Final = re.compile(r";[^/\\]*")
_SLASHES: Final = re.compile(r"[/\\]+")
_WIDE: Final = re.compile(r"%u([0-9a-f]{4})", re.IGNORECASE)
"""A letter as IIS decodes it besides."""
_ODD: Final = re.compile(r"[^ -*,-~]")


@lru_cache(maxsize=1024)
def readings(path: str) -> tuple[str, ...]:
    """Each way that servers may read *path*, in lower case and without a slash at its end.

    ``""`` is the root.  A path that is spelled plainly has one reading.
    """
    if _PLAIN.fullmatch(path):
        return (path.removesuffix("/"),)
    texts = (text for decoded in _decodings(path) for text in _cuts(decoded))
    return tuple(dict.fromkeys(found for text in texts for found in _resolutions(text)))


def _decodings(path: str) -> dict[str, None]:
    """The path as the first server sees it, the second, and so on.

    Parameters are cut by none of them, or by one and those behind it.
    """
    found: dict[str, None] = {}
    for first_cut in range(_DECODINGS, -1, -1):
        text = path
        for decoded in range(_DECODINGS):
            text = _decoded(_without_parameters(text) if decoded >= first_cut else text)
            found |= {text: None, _without_parameters(text): None}
        if not any(";" in one for one in found):
            break  # nothing to cut
    return found


def _decoded(text: str) -> str:
    return unquote(_WIDE.sub(lambda found: chr(int(found[1], 16)), text))


def _without_parameters(text: str) -> str:
    return _PARAMETERS.sub("", text)


def _cuts(text: str) -> Iterator[str]:
    """Whole; and up to a NUL, or to what begins a query or fragment once it is decoded."""
    yield text.replace("\0", "")
    for stop in "\0?#":
        if stop in text:
            yield text.partition(stop)[0]


def _resolutions(text: str) -> Iterator[str]:
    """Without dot segments: slashes are merged before they are resolved, or afterwards."""
    for spelled in dict.fromkeys((text.casefold(), folded(text))):
        path = spelled.replace("\\", "/")
        yield _resolved(_SLASHES.sub("/", path))
        if "//" in path:
            yield _resolved(path)


def folded(text: str) -> str:
    """Lower case without accents, other widths and what is not seen; a plus sign is a blank."""
    if _ODD.search(text) is None:
        return text.casefold()
    plain = unicodedata.normalize("NFKD", text.casefold().replace("+", " "))
    kinds = ((char, unicodedata.category(char)) for char in plain)
    return "".join("-" if kind == "Pd" else char for char, kind in kinds if kind[0] not in "CM")


def _resolved(text: str) -> str:
    kept: list[str] = []
    for segment in text.split("/"):
        bare = segment.strip()
        if bare == "..":
            del kept[-1:]
        elif bare != ".":
            kept.append(bare.rstrip(". "))
    return "".join(f"/{segment}" for segment in kept if segment)
