"""Whether a disk commits quickly enough for an event loop to wait for it."""

from __future__ import annotations

from typing import Final

QUICK_S: Final = 0.008
"""Longest commit that an event loop waits for: a local disk takes one millisecond."""

IN_A_ROW: Final = 32
"""How many such commits are seen, in a thread, before the next is made on an event loop."""


class Pace:
    """Knows how long the last commits took, wherever they were made."""

    __slots__ = ("_quick",)

    def __init__(self) -> None:
        self._quick = 0

    @property
    def is_quick(self) -> bool:
        """Whether none of the last durable commits was slow; not known is not quick."""
        return self._quick >= IN_A_ROW

    def took(self, seconds: float, *, durable: bool) -> None:
        """A commit took so long; one that did not wait for the disk says nothing good of it."""
        if seconds > QUICK_S:
            self._quick = 0
        elif durable:
            self._quick += 1
