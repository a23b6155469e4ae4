"""The HTTP library's own function by which a caller sends: whether what it got is handed over."""

from __future__ import annotations

import sys
from functools import cache
from opcode import opmap
from typing import TYPE_CHECKING, Final

from x402_mask._ledger.carrier import Carrier
from x402_mask._system.turns import is_running

if TYPE_CHECKING:
    from types import CodeType, FrameType

    from x402_mask._drive.family import Family

_DEPTH_MAX: Final = 40
"""How far out the client is looked for: transports may wrap transports."""

_VERBS: Final = ("request", "get", "options", "head", "post", "put", "patch", "delete")


def _codes(owner: object, *names: str) -> set[CodeType | None]:
    return {getattr(getattr(owner, name, None), "__code__", None) for name in names}


@cache
def _known(family: Family) -> tuple[set[CodeType | None], set[CodeType | None]]:
    """What sends, and what calls that."""
    outward = _codes(family.Client, *_VERBS) | _codes(family, *_VERBS)
    return _codes(family.Client, "send") - {None}, outward - {None}


_RETURNS: Final = {opmap[name] for name in ("RETURN_VALUE", "RETURN_CONST") if name in opmap}


class Sending(Carrier):
    """A function of the client that runs, and that hands over only by returning.

    To keep its frame after it has ended would keep all that its callers have, so it is let go of
    with the last of the body: a client that does not stream reads that before it returns.
    """

    __slots__ = ("_frame", "_returned")

    def __init__(self, frame: FrameType) -> None:
        super().__init__()
        self._frame: FrameType | None = frame
        self._returned = True

    def let_go(self) -> None:
        """The answer is the caller's, as far as anybody can still see."""
        self._frame = None

    @property
    def is_running(self) -> bool:
        """Whether the function has not come to its end."""
        frame = self._frame
        if frame is None or is_running(frame):
            return frame is not None
        self._returned = _has_returned(frame)
        self._frame = None
        return False

    @property
    def is_answered(self) -> bool:
        """Whether it returned; asked when it has ended."""
        return self._returned


def sending_function(family: Family, frame: FrameType | None) -> Sending | None:
    """The client's call that *frame* is a part of; ``None`` where there is none that can tell."""
    sends, outward = _known(family)
    for _ in range(_DEPTH_MAX):
        if frame is None or not _TELLS:
            return None
        if frame.f_code in sends:
            while frame.f_back is not None and frame.f_back.f_code in outward:
                frame = frame.f_back
            return Sending(frame)
        frame = frame.f_back
    return None


def _has_returned(frame: FrameType) -> bool:
    return frame.f_code.co_code[frame.f_lasti] in _RETURNS


def _tells() -> bool:
    """Whether this Python leaves in a frame by which step it ended."""
    frames = []

    def ends(*, well: bool) -> int:
        frames.append(sys._getframe())  # noqa: SLF001  # there is no other way
        if not well:
            raise KeyError
        return len(frames)

    ends(well=True)
    try:
        ends(well=False)
    except KeyError:
        return [_has_returned(frame) for frame in frames] == [True, False]
    finally:
        frames.clear()
    return False


_TELLS: Final = _tells()
