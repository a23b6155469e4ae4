"""Whose turn it is, among threads of which any may be interrupted between any two steps.

A lock that is given back in a ``finally``, or by the end of a ``with``, is kept for ever where an
interruption (Ctrl-C, a failed allocation) comes at just that line.  So a turn lasts no longer than
the function that took it runs: whoever comes next finds that out, and goes on.

There is no moment at which a turn is taken and nobody knows by whom.  Turns are a chain, and to
take one is to become, in a single step, the heir of the last one that is over.
"""

from __future__ import annotations

import contextlib
import sys
import time
from threading import Lock, get_ident
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from types import FrameType

_PATIENCE_S: Final = 0.005
"""How long one may wait for a turn before those who come after it may no longer go first."""

_YIELD_S: Final = 0.001
_LOOK_S: Final = 0.02
"""How often one that waits looks whether the function that has the turn still runs."""

_CONTEXTLIB: Final = vars(contextlib)
_RESUMABLE: Final = 0x20 | 0x80 | 0x200  # CO_GENERATOR, CO_COROUTINE, CO_ASYNC_GENERATOR


def caller(depth: int) -> FrameType | None:
    """The function *depth* calls out, or the next one that may say ``with`` and runs to its end.

    What can be suspended cannot be asked whether it runs, and contextlib only stands between.
    """
    frame: FrameType | None = sys._getframe(depth + 1)  # noqa: SLF001  # there is no other way
    while frame is not None and (
        frame.f_code.co_flags & _RESUMABLE or frame.f_globals is _CONTEXTLIB
    ):
        frame = frame.f_back
    return frame


def is_running(frame: FrameType) -> bool:
    """Whether a function still runs, in whichever thread.

    Python refuses to clear the frame of one that does.  To clear that of one that does not changes
    nothing but what a debugger could still see of it.
    """
    try:
        frame.clear()
    except RuntimeError:
        return True
    return False


# How a chain of turns excludes.  Each Turn has room for one heir; the last of the chain has the
# turn until it is over.  To take it (_taken): walk to the end; if that is not over, wait; if it is,
# ``heir.setdefault(0, mine)``, and see whether what is there now is mine or another was first.
#
# That call is the one step that decides.  It is one call into C that runs no Python code (the key
# is an int), so an interruption comes before it, and nothing has happened, or after it, and the
# turn is taken, by a frame that everybody can ask.  What follows (_last, where the next walk
# starts) only shortens walks.
#
# A turn is over when it was given up, or when its function has returned or was left by an
# exception, at whichever line.  So giving up only saves others the asking, and need not be reached;
# but for a turn without a function, which a fork takes, and nothing else ends.  Giving up calls
# nobody by name: it opens one lock, and whoever wakes takes the turn or sleeps again, for _LOOK_S
# at most, after which it asks the frame by itself.


class Turn:
    """One thread's turn, or its wish for one.

    Args:
        frame: the function that it lasts no longer than; ``None``: until it is given up.
    """

    __slots__ = ("frame", "given_up", "heir", "thread")

    def __init__(self, frame: FrameType | None) -> None:
        self.frame = frame
        self.given_up = False
        self.thread = get_ident()
        self.heir: dict[int, Turn] = {}

    @property
    def is_over(self) -> bool:
        """Whether nobody has it any more."""
        frame = self.frame  # let go of as it is given up, perhaps meanwhile
        return self.given_up or (frame is not None and not is_running(frame))


class Turns:
    """A lock for :class:`Turn`s.  Whoever waits for long goes first; else the quick ones do."""

    __slots__ = ("_last", "_waiting", "_wake")

    def __init__(self) -> None:
        self._last = Turn(None)
        self._last.given_up = True
        self._waiting: dict[Turn, float] = {}
        self._wake = Lock()  # a hint that saves time, and excludes nobody
        self._wake.acquire()

    def _latest(self) -> Turn:
        latest = self._last
        while latest.heir:
            latest = latest.heir[0]
        return latest

    @property
    def is_mine(self) -> bool:
        """Whether a function of this thread has the turn."""
        latest = self._latest()
        return latest.thread == get_ident() and not latest.is_over

    def take(self, turn: Turn, timeout: float) -> bool:
        """Wait for the turn, *timeout* seconds at most; whether *turn* is it now.

        A thread that comes back at once, an event loop or a worker with more to do, would else take
        each turn before one that waits has woken up.
        """
        if not self._waiting and self._taken(turn):  # as nearly always
            return True
        begun = time.monotonic()
        if not self._others_first(begun) and self._taken(turn):
            return True
        if timeout <= 0:
            return False
        try:
            self._waiting[turn] = begun
            while (left := begun + timeout - time.monotonic()) > 0:
                if self._others_first(begun):
                    self._call()  # it may have been one of them that was called
                    time.sleep(min(left, _YIELD_S))
                elif self._taken(turn):
                    return True
                else:
                    self._wake.acquire(timeout=min(left, _LOOK_S))
            return self._taken(turn)
        finally:
            self._waiting.pop(turn, None)

    def give_up(self, turn: Turn) -> None:
        """End *turn*, whether it was taken or not."""
        turn.given_up = True
        turn.frame = None
        if self._waiting:
            self._call()

    def _taken(self, turn: Turn) -> bool:
        latest = self._latest()
        over = latest.is_over or latest.frame is turn.frame is not None
        if not over or latest.heir.setdefault(0, turn) is not turn:
            return False
        self._last = turn
        return True

    def _others_first(self, begun: float) -> bool:
        """Whether one who came before *begun* has waited for long, and still waits."""
        if not self._waiting:
            return False
        now = time.monotonic()
        return any(
            since < begun and now - since > _PATIENCE_S and not turn.is_over
            for turn, since in list(self._waiting.items())
        )

    def _call(self) -> None:
        try:
            self._wake.release()
        except RuntimeError:  # somebody was called already and has not come yet
            return


class Mutex:
    """A ``with`` lock for a few lines, which an interruption of these lines cannot leave locked."""

    __slots__ = ("_mine", "_turns")

    def __init__(self) -> None:
        self._turns = Turns()
        self._mine: Turn | None = None

    def __enter__(self) -> None:
        if self._turns.is_mine:
            raise RuntimeError("locked by this very thread, which cannot wait for itself")
        turn = Turn(caller(1))
        while not self._turns.take(turn, 60):
            pass
        self._mine = turn

    def __exit__(self, *exc: object) -> None:
        if self._mine is not None:
            self._turns.give_up(self._mine)
