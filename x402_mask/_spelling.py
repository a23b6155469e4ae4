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
    from collections.abc import Callable, Iterator

_DECODINGS: Final = 5
"""How often a path is decoded at most: each proxy on the way does it once, and none has five."""

_PLAIN: Final = re.compile(r"(?:/[a-z0-9_-](?:[a-z0-9._-]*[a-z0-9_-])?)*/?")
_PARAMETERS: Final = re.compile(r";[^/\\]*")
_SLASHES: Final = re.compile("/+")
_BLANK_DOTS: Final = re.compile(r"(^|/)(\s+\.\.?\s*|\.\.?\s+)(/|$)")
"""What some take for a segment of dots, and some for a name."""
_TEXTS_MAX: Final = 4096
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

    Parameters are cut by any of them, and one that hands on may have resolved dot segments.
    """
    found: dict[str, None] = {}
    seen_now = {path: None}
    for _ in range(_DECODINGS):
        handed_on: dict[str, None] = {}
        for text in seen_now:
            for whole in (text, _without_parameters(text)):
                decoded = _decoded(whole)
                handed_on |= {decoded: None, _without_parameters(decoded): None}
        seen_now = {text: None for text in handed_on if text not in found}
        found |= seen_now
        if len(found) > _TEXTS_MAX:
            break
        for text in tuple(seen_now):
            if "%" in text:  # else there is nothing for a second one to decode
                seen_now |= dict.fromkeys(_strictly_resolved(text))
    return found


def _decoded(text: str) -> str:
    return unquote(_WIDE.sub(lambda found: chr(int(found[1], 16)), text))


def _without_parameters(text: str) -> str:
    return _PARAMETERS.sub("", text)


def _cuts(text: str) -> Iterator[str]:
    """Whole, without its NULs or with them; and up to what ends it once it is decoded.

    That is a NUL, or what begins a query, a fragment or all parameters.
    """
    yield text
    for stop in "\0?#;":
        if stop in text:
            yield text.partition(stop)[0]
    if "\0" in text:
        yield text.replace("\0", "")


def _resolutions(text: str) -> Iterator[str]:
    """Without dot segments, in each way that they are told.

    Slashes are merged before they are resolved, or afterwards; a backslash is a slash, or a
    letter; dots with blanks about them are such a segment, or a name.
    """
    for spelled in dict.fromkeys((text.casefold(), folded(text))):
        for path in dict.fromkeys((spelled.replace("\\", "/"), spelled)):
            for one in dict.fromkeys((_SLASHES.sub("/", path), path)):
                yield _resolved(one, str.strip)
                if _BLANK_DOTS.search(one):
                    yield _resolved(one, str)


def _strictly_resolved(text: str) -> Iterator[str]:
    """As a server resolves it that hands the path on: a segment of dots is nothing but these."""
    if "/." in text:
        yield from (_resolved(one, str, "") for one in (_SLASHES.sub("/", text), text))


def folded(text: str) -> str:
    """Lower case without accents, other widths and what is not seen; a plus sign is a blank."""
    if _ODD.search(text) is None:
        return text.casefold()
    plain = unicodedata.normalize("NFKD", text.casefold().replace("+", " "))
    kinds = ((char, unicodedata.category(char)) for char in plain)
    return "".join("-" if kind == "Pd" else char for char, kind in kinds if kind[0] not in "CM")


def _resolved(text: str, bared: Callable[[str], str], ends: str = ". ") -> str:
    """*text* without dot segments, as *bared* shows them, and without *ends* of its names."""
    kept: list[str] = []
    for segment in text.split("/"):
        bare = bared(segment)
        if bare == "..":
            del kept[-1:]
        elif bare != ".":
            kept.append(bare.strip().rstrip(ends) if ends else segment)
    return "".join(f"/{segment}" for segment in kept if segment)
