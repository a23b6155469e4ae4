"""Who makes a call, and whether what it bought has reached its caller.

A call may be interrupted between any two steps, those of cleaning up after an interruption
included.  So nothing here rests on a line that must be executed: whether a call still runs is asked
of the function that makes it, and whether it ended in its caller's hands is written by the very
step that hands it over.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any, TypeVar

from x402_mask._system.turns import is_running

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

T = TypeVar("T")

_FRAMES = ("gi_frame", "cr_frame", "ag_frame")


class Carrier:
    """Whoever makes one call: a function that runs, or a coroutine or generator not at its end.

    ``handed`` tells whether the caller has the answer; asked when the call has ended.  A function
    that returns nothing may set it to :func:`yes` with its last line.

    Args:
        here: of the call that :func:`carried` makes, the function that this calls; ``None`` once
            the caller has the answer, so that nothing of the call outlives it.
        within: of what runs in another call, through which its caller gets the answer: that one.
    """

    __slots__ = ("_flow", "_here", "handed", "within")

    def __init__(
        self, here: Callable[[], FrameType | None] | None = None, within: Carrier | None = None
    ) -> None:
        self.within = within
        self.handed = _not_yet if here is None else lambda: here() is None
        self._here = here
        self._flow: weakref.ref[Any] | None = None

    def follow(self, flow: T) -> T:
        """The call is what *flow*, a coroutine or a generator, makes from beginning to end."""
        self._flow = weakref.ref(flow)
        return flow

    @property
    def is_running(self) -> bool:
        """Whether the call may still come to its end."""
        if self.within is not None and self.within.is_running:
            return True
        if self._here is not None:
            frame = self._here()
            return frame is not None and is_running(frame)
        flow = None if self._flow is None else self._flow()
        return flow is not None and any(getattr(flow, name, None) for name in _FRAMES)

    @property
    def is_answered(self) -> bool:
        """Whether the caller has the answer; asked when the call has ended."""
        return self.handed() and (self.within is None or self.within.is_answered)


def yes() -> bool:
    """The caller has the answer."""
    return True


def _not_yet() -> bool:
    return False


def carried(call: list[Callable[[], T]]) -> T:
    """Make a call, in a function that runs as long as the call does and keeps nothing of it."""
    return call.pop()()
