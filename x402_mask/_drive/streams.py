"""Bodies that are read once more, or watched while they are read; to be made a library's own."""

from __future__ import annotations

import sys
from traceback import walk_tb
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from x402_mask._drive.family import ByteStream, Family, Response
    from x402_mask._drive.sender import Sending


class Around:
    """A stream in place of another, which still knows what the client asks it for."""

    family: Family
    _source: Any

    @property
    def elapsed(self) -> Any:
        """How long the exchange took, in a family that keeps this with the stream."""
        return getattr(self._source, "elapsed", None)


class Watched(Around):
    """The body of a paid answer: one that breaks off was not delivered.

    A caller that stops reading has got what it wanted; that is not a failure.
    """

    def __init__(self, source: ByteStream, broken: Callable[[BaseException], None]) -> None:
        self._source, self._broken = source, broken
        self._told, self._before = False, sys.exc_info()[1]
        self.sending: Sending | None = None

    def __iter__(self) -> Iterator[bytes]:
        try:
            yield from self._source
        except GeneratorExit:
            raise
        except BaseException as failure:
            self._tell(failure)
            raise

    def _tell(self, failure: BaseException) -> None:
        self._told = True
        self._broken(failure)

    def close(self) -> None:
        try:
            failure = _since(self._before)
            self._before = None
            self._source.close()
            ours, by = (Watched.__iter__, self.family.Response.read), self.sending
            if failure is None:
                if by is not None:
                    by.let_go()
            elif not self._told and (_came_from(failure, *ours) or (by and by.is_running)):
                self._tell(failure)
        except BaseException as failure:
            self._tell(failure)
            raise


def until_read(answer: Response, by: Sending) -> None:
    """Let go of *by* with the last of the body; at once where nobody will say when that is."""
    if isinstance(answer.stream, Watched) and not hasattr(answer, "_content"):
        answer.stream.sending = by
    else:
        by.let_go()


class AsyncWatched(Around):
    """:class:`Watched`, async."""

    def __init__(
        self, source: ByteStream, broken: Callable[[BaseException], Awaitable[None]]
    ) -> None:
        self._source, self._broken = source, broken
        self._told, self._before = False, sys.exc_info()[1]

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for chunk in self._source:
                yield chunk
        except GeneratorExit:
            raise
        except BaseException as failure:
            await self._tell(failure)
            raise

    async def _tell(self, failure: BaseException) -> None:
        self._told = True
        await self._broken(failure)

    async def aclose(self) -> None:
        try:
            failure = _since(self._before)
            self._before = None
            await self._source.aclose()
            if (
                not self._told
                and failure is not None
                and _came_from(failure, AsyncWatched.__aiter__, self.family.Response.aread)
            ):
                await self._tell(failure)
        except BaseException as failure:
            await self._tell(failure)
            raise


def _since(before: BaseException | None) -> BaseException | None:
    """What is being handled, unless that was so *before*: a caller may try again in an except."""
    failure = sys.exc_info()[1]
    while before is not None and before is not failure:
        before = before.__context__
    return failure if before is None else None


def _came_from(failure: BaseException, *functions: Any) -> bool:
    """Whether it interrupted one of these: ours, where not even its own ``try`` had begun.

    Or what reads an answer as a whole: whoever wanted it so has nothing of it.
    """
    codes = [function.__code__ for function in functions]
    return any(frame.f_code in codes for frame, _ in walk_tb(failure.__traceback__))


class Rewound(Around):
    """A stream whose start was read: gives that again, then the rest."""

    def __init__(self, start: list[bytes], rest: Iterator[bytes], source: ByteStream) -> None:
        self._start, self._rest, self._source = start, rest, source

    def __iter__(self) -> Iterator[bytes]:
        yield from self._start
        yield from self._rest

    def close(self) -> None:
        self._source.close()


class AsyncRewound(Around):
    """:class:`Rewound`, async."""

    def __init__(self, start: list[bytes], rest: AsyncIterator[bytes], source: ByteStream) -> None:
        self._start, self._rest, self._source = start, rest, source

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for chunk in self._start:
            yield chunk
        async for chunk in self._rest:
            yield chunk

    async def aclose(self) -> None:
        close = getattr(self._rest, "aclose", None)
        if close is not None:  # an async generator that is left half read is never closed for us
            await close()
        await self._source.aclose()


def failing(failure: BaseException) -> Iterator[bytes]:
    """What is left of a body that broke off while it was looked at: the failure, once more."""
    yield from ()
    raise failure


async def afailing(failure: BaseException) -> AsyncIterator[bytes]:
    """:func:`failing`, async."""
    nothing: tuple[bytes, ...] = ()
    for chunk in nothing:
        yield chunk
    raise failure
