"""``total_timeout``: a bound on a call, from its first byte to the end of its answer's headers.

httpx bounds each wait.  A seller that sends a header line a second, or one "102 Processing" after
another, is never waited for too long, and never done.
"""

from __future__ import annotations

import math
import threading
import time
from concurrent.futures import Future
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from typing import TYPE_CHECKING, Any, Final, TypeVar

from x402_mask._drive.family import made
from x402_mask._drive.streams import Around
from x402_mask._flow.effects import Consult, Sleep

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from x402_mask._drive.family import ByteStream, Family, Request
    from x402_mask._flow.effects import Effect

T = TypeVar("T")


_GRACE_S: Final = 0.1
"""Waits that have a time-out of their own end by that first: a TLS handshake that is cancelled
would leave its connection open."""


class Limit:
    """When one call is over."""

    __slots__ = ("at", "family", "over", "seconds")

    def __init__(self, family: Family, seconds: float) -> None:
        self.family, self.seconds = family, seconds
        self.at = time.monotonic() + seconds
        self.over = False
        """The call has returned: a task that it left behind is no part of it."""

    def left(self) -> float:
        """Seconds until then; not above 0 once it is past."""
        return self.at - time.monotonic()

    @property
    def words(self) -> str:
        """What is said when it is past."""
        return f"no whole answer within total_timeout={self.seconds:g} s"

    def error(self, request: Request | None = None) -> Exception:
        """What is raised when it is past."""
        late: Exception = self.family.ReadTimeout(self.words, request=request)
        return late


_called: ContextVar[Limit | None] = ContextVar("x402_mask_called", default=None)
"""Of the client's call: its redirects and its auth flow included."""
_running: ContextVar[Limit | None] = ContextVar("x402_mask_running", default=None)
"""While a transport is at it: what is read of a body afterwards is not bounded."""


def checked(seconds: object) -> float | None:
    """A ``total_timeout`` as it may be given.

    Raises:
        TypeError, ValueError: it is no number of seconds above 0, and not ``None``.
    """
    if seconds is None:
        return None
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
        raise TypeError(f"total_timeout is seconds, or None, not {type(seconds).__name__}")
    if not 0 < seconds < math.inf:
        raise ValueError("total_timeout is a number of seconds above 0, or None")
    return float(seconds)


def _live(limit: Limit | None) -> Limit | None:
    return None if limit is None or limit.over else limit


def running() -> Limit | None:
    """The bound on what is done here and now."""
    limit = _running.get()
    return None if limit is None or limit.over else limit


def is_bounded(seconds: float | None) -> bool:
    """Whether a transport has a bound to keep, its own or its client's."""
    return seconds is not None or _live(_called.get()) is not None


@contextmanager
def calling(family: Family, seconds: float | None) -> Iterator[None]:
    """While a client is at a call."""
    if seconds is None:
        yield
        return
    limit = Limit(family, seconds)
    token = _called.set(limit)
    try:
        yield
    finally:
        limit.over = True
        _called.reset(token)


@contextmanager
def transporting(family: Family, seconds: float | None) -> Iterator[None]:
    """While a transport is at a call: what bounds it is its own limit, or the client's."""
    whole = _live(_called.get())
    limit = None if seconds is None else Limit(family, seconds)
    if limit is None or (whole is not None and whole.at < limit.at):
        assert whole is not None
        limit = Limit(family, whole.seconds)
        limit.at = whole.at
    token = _running.set(limit)
    try:
        yield
    finally:
        limit.over = True
        _running.reset(token)


# --- one leg of a call ----------------------------------------------------------------------------


@contextmanager
def _shortened(limit: Limit, request: Request) -> Iterator[None]:
    """No single wait is longer than what is left of it all; the body has the caller's own again."""
    given = request.extensions.get("timeout")
    known = given if isinstance(given, dict) else {}
    left = limit.left()
    if left <= 0:
        raise limit.error(request)
    waits = {name: known.get(name) for name in ("connect", "read", "write", "pool")}
    request.extensions["timeout"] = {
        **known,
        **{name: left if s is None else min(s, left) for name, s in waits.items()},
    }
    try:
        yield
    except limit.family.TimeoutException as exc:
        if limit.left() > 0:
            raise
        raise type(exc)(limit.words, request=request) from exc
    finally:
        if given is None:
            del request.extensions["timeout"]
        else:
            request.extensions["timeout"] = given


def ask(send: Callable[[Any], T], request: Request) -> T:
    """Send *request*, within the limit that there is.

    Raises:
        httpx.TimeoutException: it was not answered in time.
    """
    limit = running()
    if limit is None:
        return send(request)
    with _shortened(limit, request):
        return send(request)


async def ask_async(send: Callable[[Any], Awaitable[T]], request: Request) -> T:
    """:func:`ask`, async."""
    limit = running()
    if limit is None:
        return await send(request)
    with _shortened(limit, request):
        response = await bounded(limit, lambda: send(request), request)
    answered: Any = response
    answered.stream = made(BoundedStream, limit.family, "AsyncByteStream")(answered.stream)
    return response


async def bounded(
    limit: Limit, wait: Callable[[], Awaitable[T]], request: Request | None = None
) -> T:
    """Wait, and give up when the limit is past.

    Raises:
        httpx.ReadTimeout: it is past.
    """
    from anyio import move_on_after  # noqa: PLC0415

    with move_on_after(max(0.0, limit.left()) + _GRACE_S):
        return await wait()
    raise limit.error(request)


class BoundedStream(Around):
    """A body: what is read of it while its call is going on, as of a 402, counts for the limit."""

    def __init__(self, source: ByteStream) -> None:
        self._source = source

    async def __aiter__(self) -> AsyncIterator[bytes]:
        chunks = self._source.__aiter__()
        try:
            while True:
                limit = running()
                following = chunks.__anext__
                yield await (following() if limit is None else bounded(limit, following))
        except StopAsyncIteration:
            return
        finally:
            close = getattr(chunks, "aclose", None)
            if close is not None:
                await close()

    async def aclose(self) -> None:
        await self._source.aclose()


# --- what is waited for besides the seller --------------------------------------------------------


def shortened(effect: Effect) -> Effect:
    """A wait of the conversation's own: no longer than what is left.

    Raises:
        httpx.ReadTimeout: nothing is.
    """
    limit = running()
    if limit is None or not isinstance(effect, Sleep):
        return effect
    if limit.left() <= 0:
        raise limit.error()
    return Sleep(min(effect.seconds, limit.left()))


def performed_blocking(perform: Callable[[Any], T], effect: Effect) -> T:
    """:func:`performed`, for who blocks: a question that has no end is left to a thread.

    Raises:
        httpx.ReadTimeout: the limit is past.
    """
    limit = running()
    if limit is None or not isinstance(effect, Consult):
        return perform(shortened(effect))
    answer: Future[T] = Future()
    context = copy_context()

    def ask_it() -> None:
        try:
            answer.set_result(context.run(perform, effect))
        except BaseException as failure:  # noqa: BLE001  # raised where it is waited for
            answer.set_exception(failure)

    threading.Thread(target=ask_it, name="x402-mask-asking", daemon=True).start()
    try:
        answer.exception(max(0.0, limit.left()))
    except TimeoutError:
        raise limit.error() from None
    return answer.result()


async def performed(perform: Callable[[Any], Awaitable[Any]], effect: Effect) -> Any:
    """Perform *effect*; questions to people and chains end with the limit.

    Raises:
        httpx.ReadTimeout: it is past.
    """
    limit = running()
    if limit is None or not isinstance(effect, (Consult, Sleep)):
        return await perform(effect)
    return await bounded(limit, lambda: perform(shortened(effect)))
