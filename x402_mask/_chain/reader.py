"""Asking a chain: one question to every endpoint of a network, answered from one confirmed block.

The only module that puts questions to a chain; ``_chain.sender`` asks and sends through it.  The
block must be had by every endpoint of the network, and they must agree on it and on the answer; any
fault, delay or contradiction is :class:`~x402_mask._chain.verdicts.Unknown`, so money is never
freed by doubt.  What is asked about a signature: see the question of its scheme.  What an endpoint
is asked by: see ``_chain.rpc``.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeVar

from x402_mask._chain.rpc import (
    HASH,
    Background,
    Closed,
    Endpoint,
    EndpointError,
    each,
    endpoints_of,
)
from x402_mask._chain.verdicts import Settled, Unknown

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence

    from x402_mask._chain.rpc import Header
    from x402_mask._chain.verdicts import Evidence, Question

_FUTURE_S: Final = 60  # how far a confirmed block may be ahead of a clock that is a little slow
_LAG_S: Final = 180  # how old a confirmed block may be where nothing lags: 12 blocks of 12 s
_QUESTION_TIME_OUTS: Final = 6  # one question may take as long as this many calls

_P = ParamSpec("_P")
_T = TypeVar("_T")


class ChainReader:
    """Reads evidence about authorizations from JSON-RPC endpoints.  Safe to share by threads.

    ``endpoints`` maps CAIP-2 networks to one URL or several; several must all agree.
    ``margin_blocks`` are the blocks that must lie on top of the one that is believed;
    ``block_span`` is the widest range of one ``eth_getLogs`` (an endpoint that refuses it is asked
    for less); ``time_out_s`` bounds each call, and six times that one question, unless it says
    otherwise; ``clock`` gives Unix seconds, against which the times of blocks are judged.  A single
    endpoint that lies consistently about the past is believed: give two of different operators.

    Proxies are taken from the environment, redirects are never followed, and no message shows more
    of a URL than scheme, host and port.

    Raises:
        ValueError: a network that is not ``eip155:<id>``, a URL that is neither https nor http on
            loopback, no URL at all, or a number out of range.
    """

    def __init__(
        self,
        endpoints: Mapping[str, str | Sequence[str]],
        *,
        margin_blocks: int = 12,
        block_span: int = 2000,
        time_out_s: float = 10.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if margin_blocks < 0 or block_span < 1 or not time_out_s > 0:
            raise ValueError("margin_blocks >= 0, block_span >= 1 and time_out_s > 0 are needed")
        self._addresses = {
            network: endpoints_of(network, urls) for network, urls in endpoints.items()
        }
        self._margin_blocks = margin_blocks
        self._block_span = block_span
        self._time_out_s = time_out_s
        self._clock = clock
        self._until: float | None = None
        self._backgrounds: dict[int, Background] = {}

    def __repr__(self) -> str:
        return f"ChainReader({ {n: [e.name for e in es] for n, es in self._addresses.items()} })"

    def __reduce__(self) -> str | tuple[Any, ...]:
        raise TypeError("a ChainReader cannot be pickled: its URLs may carry keys")

    @property
    def networks(self) -> frozenset[str]:
        """The networks that can be asked about (CAIP-2)."""
        return frozenset(self._addresses)

    def until(self, deadline: float) -> ChainReader:
        """This reader, for questions that end by then at the latest (``time.monotonic``)."""
        bounded = object.__new__(type(self))
        bounded.__dict__.update(self.__dict__, _until=deadline)
        return bounded

    def count(self, network: str) -> int:
        """How many endpoints *network* has."""
        return len(self._addresses.get(network, ()))

    def evidence(self, question: Question) -> Evidence:
        """What the confirmed chain proves of it.  Blocks; never raises for RPC faults."""

        async def ask(endpoints: Sequence[Endpoint]) -> Evidence:
            top = await self._top(endpoints)
            ahead = self._ahead(endpoints, top)
            lag_s = max(0, int(self._clock()) - top.time - _LAG_S)
            answers = await each(
                endpoints, lambda endpoint: _believed(question.judge, endpoint, top, lag_s)
            )
            await same_block(endpoints, top.number, top)
            found = _agreed(endpoints, answers)
            if ahead is not None:  # it frees nothing; that money has gone needs no clock
                return found if isinstance(found, Settled) else ahead
            if isinstance(found, Settled | Unknown):
                found = replace(found, past=top.time > question.valid_before + lag_s)
            return found

        bound_s = self._time_out_s * _QUESTION_TIME_OUTS
        wanted_s = question.time_out_s
        return self._ask(question, ask, bound_s if wanted_s is None else min(bound_s, wanted_s))

    def seen(self, question: Question, *, time_out_s: float = 3.0) -> Settled | Unknown:
        """Whether the hinted transaction, unconfirmed as it may be, pays.  Blocks briefly.

        ``time_out_s`` bounds the whole question.  Never raises for RPC faults.
        """
        hint = question.transaction
        if hint is None or not HASH.fullmatch(hint):
            return Unknown(reason="no transaction is named")

        async def ask(endpoints: Sequence[Endpoint]) -> Evidence:
            answers = await each(
                endpoints, lambda endpoint: _believed(question.glance, endpoint, hint)
            )
            return _agreed(endpoints, answers)

        answer = self._ask(question, ask, time_out_s)
        return answer if isinstance(answer, Settled | Unknown) else Unknown(reason="not settled")

    def close(self) -> None:
        """Close connections and end the background thread.  Later questions are Unknown."""
        self._backgrounds.setdefault(os.getpid(), Background()).close()

    def _ask(
        self,
        question: Question,
        ask: Callable[[Sequence[Endpoint]], Awaitable[Evidence]],
        time_out_s: float,
    ) -> Evidence:
        try:
            return self.ask(question.network, ask, time_out_s)
        except EndpointError as error:
            return Unknown(reason=str(error), answered=False)

    def ask(
        self,
        network: str,
        question: Callable[[Sequence[Endpoint]], Awaitable[_T]],
        time_out_s: float,
    ) -> _T:
        """Put a question to all endpoints of *network*; blocks, for *time_out_s* at most.

        Raises:
            EndpointError: there is none, it failed, or there was no answer in time.
        """
        if self._until is not None:
            time_out_s = max(0.0, min(time_out_s, self._until - time.monotonic()))
        # Keyed by process: after a fork neither thread nor connections are the child's.
        background = self._backgrounds.setdefault(os.getpid(), Background())
        endpoints = [
            Endpoint(address, background, self._time_out_s, self._block_span)
            for address in self._addresses.get(network, ())
        ]
        if not endpoints:
            raise EndpointError(f"no RPC endpoint is configured for {network}")

        async def bounded() -> _T:
            try:
                async with asyncio.timeout(time_out_s):
                    return await question(endpoints)
            except TimeoutError:
                hosts = ", ".join(endpoint.name for endpoint in endpoints)
                raise EndpointError(
                    f"{hosts}: RPC timed out (no answer in {time_out_s:g} s)"
                ) from None

        try:
            return background.run(bounded)
        except (concurrent.futures.CancelledError, Closed):
            raise EndpointError("the chain reader is closed") from None

    async def common_top(self, endpoints: Sequence[Endpoint]) -> Header:
        """The highest block with the margin on top of it at every endpoint, not from the future."""
        top = await self._top(endpoints)
        ahead = self._ahead(endpoints, top)
        if ahead is not None:
            raise EndpointError(ahead.reason)
        return top

    async def _top(self, endpoints: Sequence[Endpoint]) -> Header:
        heads = await each(endpoints, Endpoint.head)
        number = min(heads) - self._margin_blocks
        if number < 0:
            raise EndpointError(
                f"the chain has {min(heads) + 1} blocks, too few for a margin of "
                f"{self._margin_blocks}"
            )
        return await same_block(endpoints, number, None)

    def _ahead(self, endpoints: Sequence[Endpoint], top: Header) -> Unknown | None:
        """What is said of a block from the future: no chain confirms what has not happened yet."""
        ahead_s = top.time - self._clock()
        if ahead_s <= _FUTURE_S:
            return None
        return Unknown(
            reason=f"{endpoints[0].name}: block {top.number} is {ahead_s:.0f} s ahead of this"
            " machine's clock: the endpoint lies, or the clock is slow",
            answered=False,
        )


async def same_block(endpoints: Sequence[Endpoint], number: int, expected: Header | None) -> Header:
    headers = await each(endpoints, lambda endpoint: endpoint.header(number))
    first = headers[0] if expected is None else expected
    for endpoint, header in zip(endpoints, headers, strict=True):
        if header != first:
            raise EndpointError(
                f"{endpoint.name}: endpoints disagree on block {number}, or it was replaced"
            )
    return first


async def _believed(
    ask: Callable[_P, Coroutine[Any, Any, Evidence]], *args: _P.args, **kwargs: _P.kwargs
) -> Evidence:
    """What one endpoint answers; unknown where it cannot be believed."""
    try:
        return await ask(*args, **kwargs)
    except EndpointError as error:
        return Unknown(reason=str(error), answered=False)


def _agreed(endpoints: Sequence[Endpoint], answers: Sequence[Evidence]) -> Evidence:
    first = answers[0]
    if all(answer == first for answer in answers):
        return first
    unknowns = [answer for answer in answers if isinstance(answer, Unknown)]
    if len(unknowns) == len(answers):
        return first
    said = "; ".join(
        answer.reason if isinstance(answer, Unknown) else f"{endpoint.name}: {answer}"
        for endpoint, answer in zip(endpoints, answers, strict=True)
    )
    return Unknown(reason=f"endpoints disagree: {said}", answered=False)
