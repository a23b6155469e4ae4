"""Performing effects: the sync and the async way, independent of any HTTP library."""

from __future__ import annotations

import inspect
import threading
import time
from typing import TYPE_CHECKING, Any, TypeVar

from x402_mask._effects import Consult, Record, Sleep
from x402_mask._ledger import WAIT_S, Busy
from x402_mask._wallet import is_async

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

FAMILIES = frozenset({"httpx", "httpx2"})
"""The HTTP libraries that are served; their objects do not mix."""

_WRITERS = 8
"""Threads that may wait for the ledger at once, per event loop."""


def perform(effect: Record[Any] | Consult | Sleep) -> Any:
    """Do what a conversation wants done, blocking."""
    match effect:
        case Record(call):
            return call(WAIT_S)
        case Sleep(seconds):
            return time.sleep(seconds)
        case Consult(function, args):
            return _refuse_awaitable(function(*args))


def _refuse_awaitable(answer: Any) -> Any:
    if not inspect.isawaitable(answer):
        return answer
    if inspect.iscoroutine(answer):
        answer.close()
    raise TypeError("an async signer or approve needs an async client")


class AsyncPerformer:
    """Does what a conversation wants done without blocking the event loop.

    A ledger call that has begun is finished even if the task is cancelled meanwhile; the
    cancellation is kept and delivered at the next effect, so no entry is ever lost to it.
    """

    __slots__ = ("_cancelled", "_inline")

    def __init__(self, *, inline: bool) -> None:
        self._inline = inline
        self._cancelled: BaseException | None = None

    def deliver(self) -> None:
        """Raise a cancellation that came while the ledger was busy."""
        if self._cancelled is not None:
            cancelled, self._cancelled = self._cancelled, None
            raise cancelled

    async def perform(self, effect: Record[Any] | Consult | Sleep) -> Any:
        """Do it."""
        self.deliver()
        match effect:
            case Record(call):
                return await self._record(call)
            case Sleep(seconds):
                from anyio import sleep  # noqa: PLC0415

                return await sleep(seconds)
            case Consult(function, args):
                return await _consult(function, args)

    async def _record(self, call: Callable[[float], T]) -> T:
        if self._inline:
            try:
                return call(0)
            except Busy:
                pass
        answer, self._cancelled = await _finished(lambda: call(WAIT_S))
        return answer


async def _consult(function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    if is_async(function):
        return await function(*args)
    from anyio import to_thread  # noqa: PLC0415

    answer = await to_thread.run_sync(function, *args, abandon_on_cancel=True)
    return await answer if inspect.isawaitable(answer) else answer


async def _finished(call: Callable[[], T]) -> tuple[T, BaseException | None]:
    """Run *call* in a thread to its end, and tell of a cancellation that came meanwhile."""
    import sniffio  # noqa: PLC0415
    from anyio import CancelScope, to_thread  # noqa: PLC0415

    if sniffio.current_async_library() != "asyncio":  # trio waits for such a thread by itself
        return await to_thread.run_sync(call), None
    import asyncio  # noqa: PLC0415

    cancelled: BaseException | None = None
    with CancelScope(shield=True):
        task = asyncio.ensure_future(_in_thread(call))
        while not task.done():
            try:
                await asyncio.wait({task})
            except asyncio.CancelledError as exc:
                cancelled = exc
    return task.result(), cancelled


async def _in_thread(call: Callable[[], T]) -> T:
    """Run *call* in one of a few threads of its own, so that waiting writers starve nobody else."""
    import asyncio  # noqa: PLC0415

    return await asyncio.get_running_loop().run_in_executor(_executor(), call)


_lock = threading.Lock()
_executors: dict[int, Any] = {}


def _executor() -> Any:
    import os  # noqa: PLC0415
    from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415

    with _lock:
        pid = os.getpid()  # threads do not survive a fork
        if pid not in _executors:
            _executors.clear()
            _executors[pid] = ThreadPoolExecutor(_WRITERS, thread_name_prefix="x402-mask-ledger")
        return _executors[pid]
