"""How long an event loop may wait for a thread that is at a disk.

Nearly always the thread is done within a millisecond, and to wait for it costs less than to come
back to the loop for its answer.  How slow a disk will be nobody knows before: so the loop never
makes a call itself, and what it may wait in all is bounded, whatever disks do and however many
calls come at once.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from concurrent.futures import Future
    from typing import Any

AT_ONCE_S: Final = 0.005
"""Longest that a loop waits without coming round."""

SHARE: Final = 0.75
"""Of a loop's time, at most so much is spent on waiting: 20 ms on end, where it never stops."""

IN_VAIN_S: Final = 0.05
"""What a wait costs besides where it was too short: a disk that is slow now will be so again."""

_LEAST_S: Final = 0.0002
"""Less is not worth waiting for."""


class _Credit(threading.local):
    """What this thread's event loop may still wait."""

    def __init__(self) -> None:
        self.left_s = AT_ONCE_S
        self.at = time.perf_counter()


_credit: Final = _Credit()


def awaited_briefly(work: Future[Any]) -> bool:
    """Wait for *work* as long as an event loop may at this moment; whether it is done."""
    begun, credit = time.perf_counter(), _credit
    may_wait = min(AT_ONCE_S, credit.left_s + (begun - credit.at) * SHARE)
    if may_wait < _LEAST_S:
        return work.done()
    try:
        work.exception(may_wait)
        cost = 0.0
    except TimeoutError:
        cost = IN_VAIN_S
    now = time.perf_counter()
    credit.left_s, credit.at = may_wait - (now - begun) - cost, now
    return work.done()
