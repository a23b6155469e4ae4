"""Performing effects: the sync and the async way, independent of any HTTP library."""

from __future__ import annotations

import gc
import inspect
import sys
import time
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeVar

from x402_mask._drive.pace import awaited_briefly
from x402_mask._flow.effects import AsyncNeeded, Checkpoint, Consult, Record, Sleep
from x402_mask._ledger.records import Busy
from x402_mask._ledger.waiting import WAIT_S
from x402_mask._wallets.local import is_async

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

    from x402_mask._flow.buyer import Buyer
    from x402_mask._ledger.carrier import Carrier
    from x402_mask._ledger.ledger import Ledger

T = TypeVar("T")

_LATER = (
    "asyncio",
    "anyio.lowlevel",
    "anyio.to_thread",
    "anyio._backends._asyncio",
    "concurrent.futures.thread",
    "cryptography.hazmat.primitives.ciphers.aead",
    "encodings.ascii",
)
_THREADS = 8
"""Threads that may wait for others at a ledger at once; and as many that wait for disks only."""


_WAIT_MIN_S = 0.02
"""Who has no time left tries for so long: with none at all a ledger would not wait, and say so by a
signal instead of an error; and of many that are refused not all come back to their loop at once."""


class Patience:
    """How long one call waits for the ledger in all, from one wait for others to the next.

    As long as its caller's read time-out, and five seconds at most.  Waiting for a thread to wait
    in is waiting too.  A ledger that was waited for in vain is not waited for once more.
    """

    __slots__ = ("_left_s", "_wait_s")

    def __init__(self, read_s: float | None = None) -> None:
        self._wait_s = self._left_s = WAIT_S if read_s is None else min(read_s, WAIT_S)

    def renew(self, *, paid: bool = False) -> None:
        """Something else has happened: what follows may wait as long again.

        Also after a wait that was in vain where it was *paid* meanwhile, which is to be written.
        """
        if paid or self._left_s > 0:
            self._left_s = self._wait_s

    def starting_now(self, call: Callable[[float], T]) -> Callable[[], T]:
        """*call*, with what is left of the time from this moment on."""
        until = time.monotonic() + self._left_s

        def patiently() -> T:
            try:
                return call(max(_WAIT_MIN_S, until - time.monotonic()))
            finally:
                self._left_s = until - time.monotonic()

        return patiently


def perform(
    effect: Record[Any] | Consult | Sleep | Checkpoint, patience: Patience | None = None
) -> Any:
    """Do what a conversation wants done, blocking."""
    patience = patience or Patience()
    match effect:
        case Record(call):
            return patience.starting_now(call)()
        case Checkpoint():
            return None
        case Sleep(seconds):
            patience.renew()
            return time.sleep(seconds)
        case Consult(function, args):
            patience.renew()
            return _refuse_awaitable(function(*args))


def _refuse_awaitable(answer: Any) -> Any:
    if not inspect.isawaitable(answer):
        return answer
    if inspect.iscoroutine(answer):
        answer.close()
    raise AsyncNeeded("an async signer or approve needs an async client")


def prepare() -> None:
    """Import what the first call needs; called when a client is made, as no call waits then.

    What all imports left to Python's garbage collector is looked through now, once: else a call
    would wait for that, 20 ms or more.
    """
    if all(name in sys.modules for name in _LATER):
        return
    for name in _LATER:
        import_module(name)
    gc.collect()


class AsyncPerformer:
    """Does what a conversation wants done without blocking the event loop.

    A ledger call that has begun is finished even if the task is cancelled meanwhile; the
    cancellation is kept and delivered at the next effect, so no entry is ever lost to it.

    Args:
        ledger: that of the calls; one in memory is called on the loop, and others in threads.
        patience: how long a contended call may take.
    """

    __slots__ = ("_brief", "_cancelled", "_inline", "_patience", "_waited", "may_wait")

    def __init__(self, ledger: Ledger, patience: Patience | None = None) -> None:
        self._inline, self._brief = ledger.inline, ledger.brief
        self._patience = patience or Patience()
        self._cancelled: BaseException | None = None
        self._waited = False
        self.may_wait = True
        """False once the coroutine is being closed: then it blocks, as it can no longer await."""

    async def deliver(self) -> None:
        """Raise a cancellation that came while the ledger was busy."""
        if self._cancelled is not None:
            cancelled, self._cancelled = self._cancelled, None
            raise cancelled
        if self._waited and self.may_wait:
            from anyio.lowlevel import checkpoint_if_cancelled  # noqa: PLC0415

            self._waited = False
            await checkpoint_if_cancelled()

    async def perform(self, effect: Record[Any] | Consult | Sleep | Checkpoint) -> Any:
        """Do it."""
        await self.deliver()
        match effect:
            case Checkpoint():
                return None
            case Record(call):
                return await self.record(call)
            case Sleep(seconds):
                from anyio import sleep  # noqa: PLC0415

                self._patience.renew()
                return await sleep(seconds)
            case Consult(function, args):
                self._patience.renew()
                return await _consult(function, args)

    async def record(self, call: Callable[[float], T]) -> T:
        """Call the ledger, to the end, with the seconds that it may wait."""
        if not self.may_wait:
            return self._patience.starting_now(call)()
        try:
            if self._inline:
                return call(0)
            if self._brief:  # waits for nobody, so that who waits for others is not in its way
                return await self._finished(_threads("disk").submit(call, 0))
        except Busy:
            pass
        patiently = self._patience.starting_now(call)
        return await self._finished(_threads("ledger").submit(patiently), brief=False)

    async def _finished(self, work: Future[T], *, brief: bool = True) -> T:
        """What comes of *work*, which is done to its end; keep a cancellation that comes meanwhile.

        The threads are our own, so that who waits for a ledger starves nobody else.
        """
        interrupted: BaseException | None = None
        try:
            if brief and awaited_briefly(work):
                return work.result()
        except BaseException as exc:
            if work.done():  # its own
                raise
            interrupted = exc
        try:
            await self._done(work)
            if interrupted is not None:
                raise interrupted
            return work.result()
        finally:
            del work, interrupted  # what they raised knows this frame

    async def _done(self, work: Future[T]) -> None:
        from anyio import CancelScope, to_thread  # noqa: PLC0415

        self._waited = True
        with CancelScope(shield=True):
            if not _on_asyncio():  # there the shield is all it takes
                await to_thread.run_sync(work.exception)
                return
            import asyncio  # noqa: PLC0415

            done = asyncio.wrap_future(work)
            while not done.done():
                try:
                    await asyncio.wait({done})  # which never cancels what it waits for
                except asyncio.CancelledError as exc:
                    self._cancelled = exc
            done.exception()  # it is told of by *work*


async def taken_back(buyer: Buyer, carrier: Carrier, failure: BaseException) -> None:
    """A call that ends with *failure* does not hand over what was recorded as delivered in it."""
    performer = AsyncPerformer(buyer.ledger)
    performer.may_wait = not isinstance(failure, GeneratorExit)
    await take_back(buyer, carrier, performer)
    if isinstance(failure, Exception):
        await performer.deliver()


async def take_back(buyer: Buyer, carrier: Carrier | None, performer: AsyncPerformer) -> None:
    """Nobody gets what was recorded as delivered."""
    if buyer.ledger.handed_by(carrier):
        await performer.record(partial(buyer.take_back, carrier))


async def _consult(function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    if is_async(function):
        return await function(*args)
    from anyio import to_thread  # noqa: PLC0415

    # in a list, because trio refuses a thread that returns a coroutine
    (answer,) = await to_thread.run_sync(lambda: [function(*args)], abandon_on_cancel=True)
    return await answer if inspect.isawaitable(answer) else answer


def _on_asyncio() -> bool:
    import asyncio  # noqa: PLC0415

    try:
        return asyncio.current_task() is not None
    except RuntimeError:
        return False


_pools: dict[tuple[int, str], Any] = {}


def _threads(name: str) -> Any:
    """The threads of that *name*."""
    import os  # noqa: PLC0415
    from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415

    mine = (os.getpid(), name)  # threads do not survive a fork
    found = _pools.get(mine)
    if found is None:
        for others in [known for known in _pools if known[0] != mine[0]]:
            _pools.pop(others, None)
        made = ThreadPoolExecutor(_THREADS, thread_name_prefix=f"x402-mask-{name}")
        found = _pools.setdefault(mine, made)  # one that is not used has no threads
    return found
