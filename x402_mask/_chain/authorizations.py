"""What the chain says about a signed authorization: settled, cancelled, unused, or not known.

The only module that talks to a chain; ``_chain.sender`` asks and sends through it.  One
question, :meth:`ChainReader.evidence`, is answered from one confirmed block that every endpoint of
the network must have and agree on; any fault, delay or contradiction is :class:`Unknown`, so money
is never freed by doubt.

* **used** and a ``Transfer`` of exactly what was signed in the same transaction: :class:`Settled`;
* **used** by ``cancelAuthorization``: :class:`Canceled`;
* **unused** in a confirmed block later than ``validBefore``, and no event to the contrary:
  :class:`Unused`.  It can never be used again, for both bounds are exclusive and block times do not
  fall (EIP-3009).  Where the chain's blocks lag behind our clock, the block must be later by as
  much: a chain that catches up makes in a second what else takes minutes, so that twelve blocks on
  top say little;
* everything else: :class:`Unknown`, whose reason is for people.

Every value read here is one 32-byte word that is compared for equality, so no ABI codec is needed.
The tests hold the words below against web3's codec.  What an endpoint is asked by: see
``_chain.rpc``.

Sources: EIP-3009 (``authorizationState``, events), EIP-20 (``Transfer``).
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, ParamSpec, Protocol, TypeVar

from x402_mask._chain.rpc import (
    ADDRESS,
    HASH,
    Background,
    Closed,
    Endpoint,
    EndpointError,
    Header,
    Log,
    Receipt,
    Refused,
    each,
    endpoints_of,
    hex_of,
    together,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence

_USED: Final = "0x98de503528ee59b575ef0c0a2576a82497bfc029a5685b209e9ec333479b10a5"
_CANCELED: Final = "0x1cdd46ff242716cdaa72d159d339a485b3438398348d68f09d7c8c0a59353d81"
TRANSFER: Final = "0xddf252ad1be2c89b69c2b068fc378daa952ba7f163c4a11628f55a4df523b3ef"
_AUTHORIZATION_STATE: Final = "0xe94a0102"

_EVENTS_MAX: Final = 16  # a nonce is used once; a liar could say a million
_FAR_SPANS: Final = 32  # how far past validBefore a late cancellation is looked for
_NEAR_S: Final = 120  # ordinary distance between this machine's clock and block times
_SKEW_S: Final = 3600  # a clock an hour fast signs "after" it was settled
_FUTURE_S: Final = 60  # how far a confirmed block may be ahead of a clock that is a little slow
_LAG_S: Final = 180  # how old a confirmed block may be where nothing lags: 12 blocks of 12 s
_QUESTION_TIME_OUTS: Final = 6  # one question may take as long as this many calls

_P = ParamSpec("_P")
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Authorization:
    """What was signed: one EIP-3009 ``TransferWithAuthorization``.

    ``network`` is CAIP-2, ``amount`` atomic units of ``asset``, ``nonce`` 0x and 64 hex digits,
    times are Unix seconds.  ``signed_at`` bounds the search for events from below.
    ``transaction`` is a hint, such as a seller's claim: looked at first, never trusted.
    ``time_out_s`` bounds the whole question about it, in seconds.

    Raises:
        ValueError: an address, nonce, amount or time that nobody could have signed.
    """

    network: str
    asset: str
    payer: str
    pay_to: str
    amount: int
    nonce: str
    valid_before: int
    signed_at: int
    transaction: str | None = None
    time_out_s: float | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        for name in ("asset", "payer", "pay_to"):
            if not ADDRESS.fullmatch(getattr(self, name)):
                raise ValueError(f"{name} is not an address")
        if not HASH.fullmatch(self.nonce):
            raise ValueError("nonce is not 32 bytes in hex")
        for name in ("amount", "valid_before", "signed_at"):
            value = getattr(self, name)
            if type(value) is not int or not 0 <= value < 1 << 256:
                raise ValueError(f"{name} is not an integer from 0 to 2**256 - 1")

    async def judge(self, endpoint: Endpoint, top: Header, lag_s: int) -> Evidence:
        """One endpoint's evidence as of the confirmed block ``top`` of a chain that lags so much.

        Raises:
            EndpointError: it cannot be believed.
        """
        terms = _Terms.of(self)
        if await _is_used(endpoint, terms, top):
            hinted = await _hinted(endpoint, self, terms, top)
            return hinted or await _searched(endpoint, self, terms, top)
        if top.time <= self.valid_before + lag_s:
            lags = f" by the {lag_s} s that the chain lags" if lag_s else ""
            return Unknown(
                reason=f"{endpoint.name}: not expired yet: unused in confirmed block {top.number}, "
                f"whose time {top.time} is not past validBefore {self.valid_before}{lags}"
            )
        window = await _window(endpoint, self, top)
        if await _events(endpoint, terms, *window):
            raise endpoint.error(
                "contradiction: the nonce is unused by state, used or cancelled by event"
            )
        return Unused(block=top.number, block_time=top.time)

    async def glance(self, endpoint: Endpoint, transaction: str) -> Evidence:
        """Whether *transaction* pays, at whatever depth.

        Raises:
            EndpointError: the endpoint cannot be believed.
        """
        terms = _Terms.of(self)
        checks: tuple[Coroutine[Any, Any, Any], ...] = (
            endpoint.check_chain(),
            endpoint.receipt(transaction),
        )
        _, receipt = await together(*checks)
        told = f"{endpoint.name}: transaction {transaction}"
        if receipt is None:
            return Unknown(reason=f"{told} is not on chain yet")
        if not receipt.ok:
            return Unknown(reason=f"{told} failed")
        if not _used_in(receipt, terms):
            return Unknown(reason=f"{told} does not use this authorization")
        if not _pays(receipt, terms):
            return Unknown(reason=_mismatch(endpoint, self, receipt))
        return Settled(transaction=receipt.transaction, block=receipt.block, amount=self.amount)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """The nonce was used, and its transaction moved exactly ``amount`` from payer to payee.

    ``past`` is whether ``validBefore`` is past in a confirmed block, as far as that is known.
    """

    transaction: str
    block: int
    amount: int
    past: bool | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Canceled:
    """The payer cancelled the authorization; it can never move money."""

    transaction: str
    block: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Unused:
    """Unused in confirmed ``block``, whose time (Unix seconds) is past ``validBefore``."""

    block: int
    block_time: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Unknown:
    """Nothing is proven; ``reason`` says why, for people.

    ``answered`` is whether the chain was asked, and only proves nothing yet.  ``past`` is whether
    ``validBefore`` is past in a confirmed block, as far as that is known.
    """

    reason: str
    answered: bool = field(default=True, compare=False, repr=False)
    past: bool | None = field(default=None, compare=False, repr=False)


Evidence = Settled | Canceled | Unused | Unknown


class Question(Protocol):
    """What is asked of a chain about one thing that was signed.

    ``network`` is CAIP-2.  Nobody can take anything from ``valid_before`` on, Unix seconds.
    ``transaction`` is a hint, such as a seller's claim.  ``time_out_s`` bounds the whole question.
    """

    @property
    def network(self) -> str: ...
    @property
    def valid_before(self) -> int: ...
    @property
    def transaction(self) -> str | None: ...
    @property
    def time_out_s(self) -> float | None: ...

    async def judge(self, endpoint: Endpoint, top: Header, lag_s: int) -> Evidence:
        """One endpoint's evidence as of the confirmed block ``top`` of a chain that lags so much.

        Raises:
            EndpointError: it cannot be believed.
        """
        ...

    async def glance(self, endpoint: Endpoint, transaction: str) -> Evidence:
        """Whether *transaction* pays, at whatever depth.

        Raises:
            EndpointError: the endpoint cannot be believed.
        """
        ...


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
        """What the confirmed chain proves of what was signed.  Blocks; never raises for RPC faults."""

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


# --- judging --------------------------------------------------------------------------------------


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


async def _hinted(
    endpoint: Endpoint, a: Authorization, terms: _Terms, top: Header
) -> Settled | None:
    """The settlement, if the hinted transaction is it; else the events are searched."""
    if a.transaction is None or not HASH.fullmatch(a.transaction):
        return None
    receipt = await endpoint.receipt(a.transaction)
    if receipt is None or receipt.block > top.number or not receipt.ok:
        return None
    if not _pays(receipt, terms):
        return None
    await endpoint.check_canonical(receipt)
    return Settled(transaction=receipt.transaction, block=receipt.block, amount=a.amount)


async def _window(endpoint: Endpoint, a: Authorization, top: Header) -> tuple[int, int]:
    """First and last block in which ``a`` is used, by clocks that agree within two minutes."""
    (first, _), (_, last) = await together(
        endpoint.around(a.signed_at - _NEAR_S, top), endpoint.around(a.valid_before, top)
    )
    return first, last


async def _searched(endpoint: Endpoint, a: Authorization, terms: _Terms, top: Header) -> Evidence:
    """Find by its events how the nonce was used."""
    first, last = await _window(endpoint, a, top)
    events = await _events(endpoint, terms, first, last)
    if not events:
        early, _ = await endpoint.around(a.signed_at - _SKEW_S, top)
        events = await _events(endpoint, terms, early, first - 1)
    if not events:
        late = min(top.number, last + _FAR_SPANS * endpoint.block_span)
        events = await _events(endpoint, terms, last + 1, late)
    if not events:
        raise endpoint.error("the nonce is used, but the event that says how was not found")
    kinds = {event.topics[0] for event in events}
    if kinds == {_USED}:
        return await _settled(endpoint, a, terms, top, events)
    if kinds == {_CANCELED} and len(events) == 1:
        return await _canceled(endpoint, top, events[0])
    raise endpoint.error("contradiction: more than one event says how the nonce was used")


async def _settled(
    endpoint: Endpoint, a: Authorization, terms: _Terms, top: Header, events: Sequence[Log]
) -> Settled:
    """The one transaction of these events that moved the money, and none that moved other."""
    receipts = [
        await endpoint.confirmed_receipt(event, top)
        for event in {event.transaction: event for event in events}.values()
    ]
    paying = [receipt for receipt in receipts if _pays(receipt, terms)]
    # A token that lets a used nonce pass without a revert may log the use again: harmless if
    # that transaction moved nothing of the payer's.
    others = [r for r in receipts if not _pays(r, terms) and _moved(r, terms)]
    if len(paying) != 1 or others:
        raise EndpointError(_mismatch(endpoint, a, (others or receipts)[0]))
    return Settled(transaction=paying[0].transaction, block=paying[0].block, amount=a.amount)


async def _canceled(endpoint: Endpoint, top: Header, event: Log) -> Canceled:
    receipt = await endpoint.confirmed_receipt(event, top)
    return Canceled(transaction=receipt.transaction, block=receipt.block)


def _mismatch(endpoint: Endpoint, a: Authorization, receipt: Receipt) -> str:
    return (
        f"{endpoint.name}: PAYMENT MISMATCH: transaction {receipt.transaction} on {a.network} used "
        f"the authorization of {a.payer}, but did not move exactly {a.amount} of {a.asset} to "
        f"{a.pay_to}; the money stays held, look at that transaction"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Terms:
    """The words of one authorization as they appear in calls and logs (lower-case hex)."""

    asset: str
    call: str
    payer: str
    pay_to: str
    nonce: str
    amount: str

    @classmethod
    def of(cls, a: Authorization) -> _Terms:
        payer, nonce = address_word(a.payer), a.nonce.lower()
        return cls(
            asset=a.asset.lower(),
            call=_AUTHORIZATION_STATE + payer[2:] + nonce[2:],
            payer=payer,
            pay_to=address_word(a.pay_to),
            nonce=nonce,
            amount=f"0x{a.amount:064x}",
        )


def address_word(address: str) -> str:
    return "0x" + "0" * 24 + address[2:].lower()


def _own(receipt: Receipt, terms: _Terms) -> list[Log]:
    return [log for log in receipt.logs if log.address == terms.asset]


def _used_in(receipt: Receipt, terms: _Terms) -> bool:
    use = (_USED, terms.payer, terms.nonce)
    return any(log.topics == use for log in _own(receipt, terms))


def _moved(receipt: Receipt, terms: _Terms) -> bool:
    """Whether anything of the payer's left in this token."""
    return any(log.topics[:2] == (TRANSFER, terms.payer) for log in _own(receipt, terms))


def _pays(receipt: Receipt, terms: _Terms) -> bool:
    """Whether this transaction used the nonce and moved exactly what was signed.

    A batch may use several authorizations of one payer; there the transfer that belongs to a use
    is the payer's first one after it, the order of EIP-3009's reference implementation.
    """
    if not _used_in(receipt, terms):
        return False
    own = _own(receipt, terms)
    at = [log.topics for log in own].index((_USED, terms.payer, terms.nonce))
    uses = sum(log.topics[:2] == (_USED, terms.payer) for log in own)
    moves = [
        log for log in (own if uses == 1 else own[at:]) if log.topics[:2] == (TRANSFER, terms.payer)
    ]
    return any(
        len(log.topics) == 3 and log.topics[2] == terms.pay_to and log.data == terms.amount
        for log in (moves if uses == 1 else moves[:1])
    )


# --- one endpoint ---------------------------------------------------------------------------------


async def _is_used(endpoint: Endpoint, terms: _Terms, block: Header) -> bool:
    """``authorizationState``: used or cancelled as of ``block``."""
    call = {"to": terms.asset, "data": terms.call}
    try:
        raw = await endpoint.call(
            "eth_call", call, {"blockHash": block.hash, "requireCanonical": True}
        )
    except Refused:
        # Not every node knows EIP-1898.  By number is as good: whoever asks compares the
        # block's hash again at the end.
        raw = await endpoint.call("eth_call", call, hex(block.number))
    word = hex_of(raw, HASH, endpoint)
    if int(word, 16) > 1:
        raise endpoint.error("authorizationState answered neither true nor false")
    return int(word, 16) == 1


async def _events(endpoint: Endpoint, terms: _Terms, first: int, last: int) -> list[Log]:
    """Uses and cancellations of the nonce in these blocks, asked for in bounded ranges."""
    wanted = ((_USED, _CANCELED), (terms.payer,), (terms.nonce,))
    return await endpoint.logs(terms.asset, wanted, first, last, most=_EVENTS_MAX)
