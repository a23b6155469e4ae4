"""A moment by which something must have ended."""

from __future__ import annotations

import time


class Deadline:
    """A moment, *seconds* from now; ``None``: there is none."""

    __slots__ = ("at",)

    def __init__(self, seconds: float | None) -> None:
        self.at = None if seconds is None else time.monotonic() + seconds

    def left(self) -> float | None:
        """Seconds until then, 0 when it is past; ``None`` where there is no such moment."""
        return None if self.at is None else max(0.0, self.at - time.monotonic())
