"""Seller text made safe.

What a seller says is untrusted.  In a terminal it could move the cursor, change the title, fake a
line of ours or turn text around, so only printable characters of it get there, and not too many.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Final

_SEQUENCES: Final = re.compile(
    r"""
      (?: \x1b\[ | \x9b ) [0-?]* [ -/]* [@-~]                              # CSI: colours, cursor
    | (?: \x1b[\]PX^_] | [\x9d\x90\x98\x9e\x9f] )                         # OSC, DCS, ...
      .*? (?: \x07 | \x1b\\ | \x9c | $ )                                 # ... and their end
    | \x1b [ -/]* [0-~]                                                   # the rest of ESC
    """,
    re.VERBOSE | re.DOTALL,
)
_HIDDEN: Final = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
"""Unicode categories that are not shown: controls, direction marks, surrogates, line separators."""


def clean(text: object, limit: int = 300, *, lines: bool = False) -> str:
    """Untrusted *text* as printable characters, at most *limit*; on one line unless *lines*."""
    raw = _SEQUENCES.sub("", str(text)[: limit * 20])
    kept = "".join(c for c in raw if c in "\n\t" or unicodedata.category(c) not in _HIDDEN)
    if not lines:
        kept = " ".join(kept.split())
    return kept if len(kept) <= limit else kept[: limit - 1] + "…"
