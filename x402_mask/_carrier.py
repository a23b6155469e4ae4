"""Who makes a call, and whether what it bought has reached its caller.

A call may be interrupted between any two steps, those of cleaning up after an interruption
included.  So nothing here rests on a line that must be executed: whether a call still runs is asked
of the function that makes it, and whether it ended in its caller's hands is written by the very
step that hands it over.
"""

from __future__ import annotations

import weakref
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TypeVar

from x402_mask._turns import is_running

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
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
    """

    __slots__ = ("_flow", "_here", "handed")

    def __init__(self, here: Callable[[], FrameType | None] | None = None) -> None:
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
        if self._here is not None:
            frame = self._here()
            return frame is not None and is_running(frame)
        flow = None if self._flow is None else self._flow()
        return flow is not None and any(getattr(flow, name, None) for name in _FRAMES)


def yes() -> bool:
    """The caller has the answer."""
    return True


def _not_yet() -> bool:
    return False


def carried(call: list[Callable[[], T]]) -> T:
    """Make a call, in a function that runs as long as the call does and keeps nothing of it."""
    return call.pop()()


# --- what a client may still lose -----------------------------------------------------------------

_on_its_way: ContextVar[list[str] | None] = ContextVar("x402_mask_on_its_way", default=None)


@contextmanager
def delivering() -> Iterator[list[str]]:
    """While a client is at a call: the payments whose answers its transports have handed it.

    Its hooks and its auth come after them, and what they raise is all that its caller gets.
    """
    found: list[str] = []
    token = _on_its_way.set(found)
    try:
        yield found
    finally:
        _on_its_way.reset(token)


def on_its_way(payment_id: str) -> None:
    """The answer to a payment is handed to a client, if one of ours made the call."""
    found = _on_its_way.get()
    if found is not None:
        found.append(payment_id)


def known_lost(payment_id: str) -> None:
    """An answer was lost on its way, and that is written down already."""
    with suppress(ValueError):
        (_on_its_way.get() or []).remove(payment_id)
