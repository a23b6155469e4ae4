"""What the chain says about a signed authorization: settled, cancelled, unused, or not known.

The only module that talks to a chain; :mod:`x402_mask._transfer` asks and sends through it.  One
question, :meth:`ChainReader.evidence`, is answered from one confirmed block that every endpoint of
the network must have and agree on; any fault, delay or contradiction is :class:`Unknown`, so money
is never freed by doubt.

* **used** and a ``Transfer`` of exactly what was signed in the same transaction: :class:`Settled`;
* **used** by ``cancelAuthorization``: :class:`Canceled`;
* **unused** in a confirmed block later than ``validBefore``, and no event to the contrary:
  :class:`Unused`.  It can never be used again, for both bounds are exclusive and block times do not
  fall (EIP-3009);
* everything else: :class:`Unknown`, whose reason is for people.

Why plain JSON-RPC and not web3: what an endpoint says is the word of a stranger, so an answer needs
a size limit, a deadline for the whole exchange (one byte a second is a time-out too) and no
redirects, which web3's providers do not offer; and httpx's client would log the URL with its API
key, so requests go straight to its transport.  Every value read here is one 32-byte word that is
compared for equality, so no ABI codec is needed either.  The tests hold the words below against
web3's codec.

Sources: EIP-3009 (``authorizationState``, events), EIP-20 (``Transfer``), EIP-1474 (JSON-RPC),
EIP-1898 (calls by block hash).
"""

from __future__ import annotations

import asyncio
import base64
import concurrent.futures
import os
import re
import ssl
import threading
import urllib.parse
import urllib.request
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Any, Final, TypeVar

import httpx

from x402_mask import _json

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence

_USED: Final = "0x98de503528ee59b575ef0c0a2576a82497bfc029a5685b209e9ec333479b10a5"
_CANCELED: Final = "0x1cdd46ff242716cdaa72d159d339a485b3438398348d68f09d7c8c0a59353d81"
_TRANSFER: Final = "0xddf252ad1be2c89b69c2b068fc378daa952ba7f163c4a11628f55a4df523b3ef"
_AUTHORIZATION_STATE: Final = "0xe94a0102"

_BYTES_MAX: Final = 4 << 20
"""Largest answer read.  A receipt of a transaction that fills a 60 M gas block is below 3 MiB."""
_CALLS_MAX: Final = 400
"""Calls to one endpoint for one question; a free plan that serves ten blocks at a time fits."""
_EVENTS_MAX: Final = 16  # a nonce is used once; a liar could say a million
_CLOSE_BLOCKS: Final = 64  # more logs cost an endpoint nothing, more questions cost round trips
_FAR_SPANS: Final = 32  # how far past validBefore a late cancellation is looked for
_NEAR_S: Final = 120  # ordinary distance between this machine's clock and block times
_SKEW_S: Final = 3600  # a clock an hour fast signs "after" it was settled
_QUESTION_TIME_OUTS: Final = 6  # one question may take as long as this many calls

_ADDRESS: Final = re.compile(r"0x[0-9a-fA-F]{40}")
_HASH: Final = re.compile(r"0x[0-9a-fA-F]{64}")
_DATA: Final = re.compile(r"0x[0-9a-fA-F]*")
_QUANTITY: Final = re.compile(r"0x[0-9a-fA-F]{1,64}")
_NETWORK: Final = re.compile(r"eip155:([1-9][0-9]{0,18})")


_T = TypeVar("_T")
_Topics = tuple[tuple[str, ...], ...]
"""For each place of a log's topics, the words it may hold."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Authorization:
    """What was signed: one EIP-3009 ``TransferWithAuthorization``.

    ``network`` is CAIP-2, ``amount`` atomic units of ``asset``, ``nonce`` 0x and 64 hex digits,
    times are Unix seconds.  ``signed_at`` bounds the search for events from below.
    ``transaction`` is a hint, such as a seller's claim: looked at first, never trusted.

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

    def __post_init__(self) -> None:
        for name in ("asset", "payer", "pay_to"):
            if not _ADDRESS.fullmatch(getattr(self, name)):
                raise ValueError(f"{name} is not an address")
        if not _HASH.fullmatch(self.nonce):
            raise ValueError("nonce is not 32 bytes in hex")
        for name in ("amount", "valid_before", "signed_at"):
            value = getattr(self, name)
            if type(value) is not int or not 0 <= value < 1 << 256:
                raise ValueError(f"{name} is not an integer from 0 to 2**256 - 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """The nonce was used, and its transaction moved exactly ``amount`` from payer to payee."""

    transaction: str
    block: int
    amount: int


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

    ``answered`` is whether the chain was asked, and only proves nothing yet.
    """

    reason: str
    answered: bool = field(default=True, compare=False, repr=False)


Evidence = Settled | Canceled | Unused | Unknown


class ChainReader:
    """Reads evidence about authorizations from JSON-RPC endpoints.  Safe to share by threads.

    ``endpoints`` maps CAIP-2 networks to one URL or several; several must all agree.
    ``margin_blocks`` are the blocks that must lie on top of the one that is believed;
    ``block_span`` is the widest range of one ``eth_getLogs`` (an endpoint that refuses it is asked
    for less); ``time_out_s`` bounds each call, and six times that one question.  A single endpoint
    that lies consistently is believed: give two of different operators.

    Proxies are taken from the environment, redirects are never followed, and no message shows more
    of a URL than scheme, host and port.

    Raises:
        ValueError: a network that is not ``eip155:<id>``, a URL that is not http(s), no URL at
            all, or a number out of range.
    """

    def __init__(
        self,
        endpoints: Mapping[str, str | Sequence[str]],
        *,
        margin_blocks: int = 12,
        block_span: int = 2000,
        time_out_s: float = 10.0,
    ) -> None:
        if margin_blocks < 0 or block_span < 1 or not time_out_s > 0:
            raise ValueError("margin_blocks >= 0, block_span >= 1 and time_out_s > 0 are needed")
        self._endpoints = {
            network: _endpoints(network, urls) for network, urls in endpoints.items()
        }
        self._margin_blocks = margin_blocks
        self._block_span = block_span
        self._time_out_s = time_out_s
        self._backgrounds: dict[int, _Background] = {}

    def __repr__(self) -> str:
        return f"ChainReader({ {n: [e.name for e in es] for n, es in self._endpoints.items()} })"

    def __reduce__(self) -> str | tuple[Any, ...]:
        raise TypeError("a ChainReader cannot be pickled: its URLs may carry keys")

    @property
    def networks(self) -> frozenset[str]:
        """The networks that can be asked about (CAIP-2)."""
        return frozenset(self._endpoints)

    def count(self, network: str) -> int:
        """How many endpoints *network* has."""
        return len(self._endpoints.get(network, ()))

    def evidence(self, a: Authorization) -> Evidence:
        """What the confirmed chain proves about ``a``.  Blocks; never raises for RPC faults."""

        async def ask(views: Sequence[_View]) -> Evidence:
            top = await self.common_top(views)
            answers = await _each(views, lambda view: _answer(view, a, top))
            await _same_block(views, top.number, top)
            return _agreed(views, answers)

        return self._ask(a, ask, self._time_out_s * _QUESTION_TIME_OUTS)

    def seen(self, a: Authorization, *, time_out_s: float = 3.0) -> Settled | Unknown:
        """Whether the hinted transaction, unconfirmed as it may be, pays ``a``.  Blocks briefly.

        ``time_out_s`` bounds the whole question.  Never raises for RPC faults.
        """
        hint = a.transaction
        if hint is None or not _HASH.fullmatch(hint):
            return Unknown(reason="no transaction is named")

        async def ask(views: Sequence[_View]) -> Evidence:
            return _agreed(views, await _each(views, lambda view: _glance(view, a, hint)))

        answer = self._ask(a, ask, time_out_s)
        return answer if isinstance(answer, Settled | Unknown) else Unknown(reason="not settled")

    def close(self) -> None:
        """Close connections and end the background thread.  Later questions are Unknown."""
        self._backgrounds.setdefault(os.getpid(), _Background()).close()

    def _ask(
        self,
        a: Authorization,
        ask: Callable[[Sequence[_View]], Awaitable[Evidence]],
        time_out_s: float,
    ) -> Evidence:
        try:
            return self.ask(a.network, ask, time_out_s)
        except Fault as fault:
            return Unknown(reason=str(fault), answered=False)

    def ask(
        self,
        network: str,
        question: Callable[[Sequence[_View]], Awaitable[_T]],
        time_out_s: float,
    ) -> _T:
        """Put a question to all endpoints of *network*; blocks, for *time_out_s* at most.

        Raises:
            Fault: there is none, it failed, or there was no answer in time.
        """
        # Keyed by process: after a fork neither thread nor connections are the child's.
        background = self._backgrounds.setdefault(os.getpid(), _Background())
        views = [
            _View(endpoint, background, self._time_out_s, self._block_span)
            for endpoint in self._endpoints.get(network, ())
        ]
        if not views:
            raise Fault(f"no RPC endpoint is configured for {network}")

        async def bounded() -> _T:
            try:
                async with asyncio.timeout(time_out_s):
                    return await question(views)
            except TimeoutError:
                hosts = ", ".join(view.name for view in views)
                raise Fault(f"{hosts}: RPC timed out (no answer in {time_out_s:g} s)") from None

        try:
            return background.run(bounded)
        except (concurrent.futures.CancelledError, _Closed):
            raise Fault("the chain reader is closed") from None

    async def common_top(self, views: Sequence[_View]) -> _Header:
        """The highest block with the margin on top of it at every endpoint."""
        heads = await _each(views, _View.head)
        number = min(heads) - self._margin_blocks
        if number < 0:
            raise Fault(
                f"the chain has {min(heads) + 1} blocks, too few for a margin of "
                f"{self._margin_blocks}"
            )
        return await _same_block(views, number, None)


# --- judging -----------------------------------------------------------------------------------


class Fault(Exception):
    """An endpoint cannot be believed, or nothing can be concluded; the text says why."""


class _Refused(Fault):
    """The endpoint answered with a JSON-RPC error."""


class _Closed(Exception):
    """The background thread was closed."""


async def _together(*asked: Coroutine[Any, Any, _T]) -> list[_T]:
    """Await all; raise the first fault when all have come to an end.

    None is cancelled because of another: each has its own deadline, and a connection that is
    cancelled while it is made may be left open by the event loop.
    """
    answers: list[_T] = []
    for answer in await asyncio.gather(*asked, return_exceptions=True):
        if isinstance(answer, BaseException):
            raise answer
        answers.append(answer)
    return answers


async def _each(
    views: Sequence[_View], ask: Callable[[_View], Coroutine[Any, Any, _T]]
) -> list[_T]:
    return await _together(*(ask(view) for view in views))


async def _same_block(views: Sequence[_View], number: int, expected: _Header | None) -> _Header:
    headers = await _each(views, lambda view: view.header(number))
    first = headers[0] if expected is None else expected
    for view, header in zip(views, headers, strict=True):
        if header != first:
            raise Fault(f"{view.name}: endpoints disagree on block {number}, or it was replaced")
    return first


async def _answer(view: _View, a: Authorization, top: _Header) -> Evidence:
    try:
        return await _judge(view, a, top)
    except Fault as fault:
        return Unknown(reason=str(fault), answered=False)


def _agreed(views: Sequence[_View], answers: Sequence[Evidence]) -> Evidence:
    first = answers[0]
    if all(answer == first for answer in answers):
        return first
    unknowns = [answer for answer in answers if isinstance(answer, Unknown)]
    if len(unknowns) == len(answers):
        return first
    said = "; ".join(
        answer.reason if isinstance(answer, Unknown) else f"{view.name}: {answer}"
        for view, answer in zip(views, answers, strict=True)
    )
    return Unknown(reason=f"endpoints disagree: {said}", answered=False)


async def _judge(view: _View, a: Authorization, top: _Header) -> Evidence:
    """One endpoint's evidence as of the confirmed block ``top``."""
    terms = _Terms.of(a)
    if await view.is_used(terms, top):
        return await _hinted(view, a, terms, top) or await _searched(view, a, terms, top)
    if top.time <= a.valid_before:
        return Unknown(
            reason=f"{view.name}: not expired yet: unused in confirmed block {top.number}, whose "
            f"time {top.time} is not past validBefore {a.valid_before}"
        )
    window = await _window(view, a, top)
    if await view.events(terms, *window):
        raise view.fault("contradiction: the nonce is unused by state, used or cancelled by event")
    return Unused(block=top.number, block_time=top.time)


async def _glance(view: _View, a: Authorization, hint: str) -> Evidence:
    """Whether the hinted transaction pays, at whatever depth."""
    terms = _Terms.of(a)
    checks: tuple[Coroutine[Any, Any, Any], ...] = (view.check_chain(), view.receipt(hint))
    try:
        _, receipt = await _together(*checks)
    except Fault as fault:
        return Unknown(reason=str(fault), answered=False)
    if receipt is None:
        return Unknown(reason=f"{view.name}: transaction {hint} is not on chain yet")
    if not receipt.ok:
        return Unknown(reason=f"{view.name}: transaction {hint} failed")
    if not _used_in(receipt, terms):
        return Unknown(reason=f"{view.name}: transaction {hint} does not use this authorization")
    if not _pays(receipt, terms):
        return Unknown(reason=_mismatch(view, a, receipt))
    return Settled(transaction=receipt.transaction, block=receipt.block, amount=a.amount)


async def _hinted(view: _View, a: Authorization, terms: _Terms, top: _Header) -> Settled | None:
    """The settlement, if the hinted transaction is it; else the events are searched."""
    if a.transaction is None or not _HASH.fullmatch(a.transaction):
        return None
    receipt = await view.receipt(a.transaction)
    if receipt is None or receipt.block > top.number or not receipt.ok:
        return None
    if not _pays(receipt, terms):
        return None
    await view.check_canonical(receipt)
    return Settled(transaction=receipt.transaction, block=receipt.block, amount=a.amount)


async def _window(view: _View, a: Authorization, top: _Header) -> tuple[int, int]:
    """First and last block in which ``a`` is used, by clocks that agree within two minutes."""
    (first, _), (_, last) = await _together(
        view.around(a.signed_at - _NEAR_S, top), view.around(a.valid_before, top)
    )
    return first, last


async def _searched(view: _View, a: Authorization, terms: _Terms, top: _Header) -> Evidence:
    """Find by its events how the nonce was used."""
    first, last = await _window(view, a, top)
    events = await view.events(terms, first, last)
    if not events:
        early, _ = await view.around(a.signed_at - _SKEW_S, top)
        events = await view.events(terms, early, first - 1)
    if not events:
        late = min(top.number, last + _FAR_SPANS * view.block_span)
        events = await view.events(terms, last + 1, late)
    if not events:
        raise view.fault("the nonce is used, but the event that says how was not found")
    kinds = {event.topics[0] for event in events}
    if kinds == {_USED}:
        return await _settled(view, a, terms, top, events)
    if kinds == {_CANCELED} and len(events) == 1:
        return await _canceled(view, top, events[0])
    raise view.fault("contradiction: more than one event says how the nonce was used")


async def _settled(
    view: _View, a: Authorization, terms: _Terms, top: _Header, events: Sequence[_Log]
) -> Settled:
    """The one transaction of these events that moved the money, and none that moved other."""
    receipts = [
        await view.confirmed_receipt(event, top)
        for event in {event.transaction: event for event in events}.values()
    ]
    paying = [receipt for receipt in receipts if _pays(receipt, terms)]
    # A token that lets a used nonce pass without a revert may log the use again: harmless if
    # that transaction moved nothing of the payer's.
    others = [r for r in receipts if not _pays(r, terms) and _moved(r, terms)]
    if len(paying) != 1 or others:
        raise Fault(_mismatch(view, a, (others or receipts)[0]))
    return Settled(transaction=paying[0].transaction, block=paying[0].block, amount=a.amount)


async def _canceled(view: _View, top: _Header, event: _Log) -> Canceled:
    receipt = await view.confirmed_receipt(event, top)
    return Canceled(transaction=receipt.transaction, block=receipt.block)


def _mismatch(view: _View, a: Authorization, receipt: _Receipt) -> str:
    return (
        f"{view.name}: PAYMENT MISMATCH: transaction {receipt.transaction} on {a.network} used the "
        f"authorization of {a.payer}, but did not move exactly {a.amount} of {a.asset} to "
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
        payer, nonce = _address_word(a.payer), a.nonce.lower()
        return cls(
            asset=a.asset.lower(),
            call=_AUTHORIZATION_STATE + payer[2:] + nonce[2:],
            payer=payer,
            pay_to=_address_word(a.pay_to),
            nonce=nonce,
            amount=f"0x{a.amount:064x}",
        )


def _address_word(address: str) -> str:
    return "0x" + "0" * 24 + address[2:].lower()


def _own(receipt: _Receipt, terms: _Terms) -> list[_Log]:
    return [log for log in receipt.logs if log.address == terms.asset]


def _used_in(receipt: _Receipt, terms: _Terms) -> bool:
    use = (_USED, terms.payer, terms.nonce)
    return any(log.topics == use for log in _own(receipt, terms))


def _moved(receipt: _Receipt, terms: _Terms) -> bool:
    """Whether anything of the payer's left in this token."""
    return any(log.topics[:2] == (_TRANSFER, terms.payer) for log in _own(receipt, terms))


def _pays(receipt: _Receipt, terms: _Terms) -> bool:
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
        log
        for log in (own if uses == 1 else own[at:])
        if log.topics[:2] == (_TRANSFER, terms.payer)
    ]
    return any(
        len(log.topics) == 3 and log.topics[2] == terms.pay_to and log.data == terms.amount
        for log in (moves if uses == 1 else moves[:1])
    )


# --- one endpoint ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Header:
    number: int
    hash: str
    time: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Log:
    address: str
    topics: tuple[str, ...]
    data: str
    transaction: str
    block: int
    block_hash: str
    removed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class _Receipt:
    transaction: str
    block: int
    block_hash: str
    ok: bool
    logs: tuple[_Log, ...]


class _View:
    """One endpoint during one question: decodes strictly, counts calls."""

    def __init__(
        self, endpoint: _Endpoint, background: _Background, time_out_s: float, block_span: int
    ) -> None:
        self.name = endpoint.name
        self.block_span = block_span
        self._endpoint = endpoint
        self._background = background
        self._time_out_s = time_out_s
        self._calls = count(1)

    def fault(self, text: str) -> Fault:
        return Fault(f"{self.name}: {text}")

    async def check_chain(self) -> None:
        found = _quantity(await self.call("eth_chainId"), self)
        if found != self._endpoint.chain_id:
            raise self.fault(f"serves chain {found}, not {self._endpoint.chain_id}")

    async def head(self) -> int:
        """Number of the latest block, on the right chain."""
        checks: tuple[Coroutine[Any, Any, Any], ...] = (
            self.check_chain(),
            self.call("eth_blockNumber"),
        )
        _, number = await _together(*checks)
        return _quantity(number, self)

    async def header(self, number: int) -> _Header:
        raw = await self.call("eth_getBlockByNumber", hex(number), False)
        if raw is None:
            raise self.fault(f"lags: does not have block {number}")
        block = _object(raw, self)
        header = _Header(
            number=_quantity(block.get("number"), self),
            hash=_hex(block.get("hash"), _HASH, self),
            time=_quantity(block.get("timestamp"), self),
        )
        if header.number != number:
            raise self.fault(f"answered block {header.number} for block {number}")
        return header

    async def is_used(self, terms: _Terms, block: _Header) -> bool:
        """``authorizationState``: used or cancelled as of ``block``."""
        call = {"to": terms.asset, "data": terms.call}
        try:
            raw = await self.call(
                "eth_call", call, {"blockHash": block.hash, "requireCanonical": True}
            )
        except _Refused:
            # Not every node knows EIP-1898.  By number is as good: whoever asks compares the
            # block's hash again at the end.
            raw = await self.call("eth_call", call, hex(block.number))
        word = _hex(raw, _HASH, self)
        if int(word, 16) > 1:
            raise self.fault("authorizationState answered neither true nor false")
        return int(word, 16) == 1

    async def around(self, time: int, high: _Header) -> tuple[int, int]:
        """Blocks up to ``high``, close together, at or before and after ``time``.

        The first is 0 where all blocks are later, the second ``high`` where none is.
        """
        if high.time <= time:
            return high.number, high.number
        low, high = await self._bracket(time, high)
        turn = 0
        while low.time <= time and high.number - low.number > _CLOSE_BLOCKS:
            turn += 1
            middle = await self.header(_guess(low, high, time, turn))
            self._check_order(low, middle, high)
            low, high = (middle, high) if middle.time <= time else (low, middle)
        return low.number, high.number

    async def _bracket(self, time: int, high: _Header) -> tuple[_Header, _Header]:
        """Blocks around ``time``, found in steps that grow: a second a block, then four times."""
        step = high.time - time
        while True:
            low = await self.header(max(0, high.number - step))
            self._check_order(low, high)
            if low.time <= time or low.number == 0:
                return low, high
            high, step = low, step * 4

    def _check_order(self, *headers: _Header) -> None:
        times = [header.time for header in headers]
        if times != sorted(times):
            raise self.fault("block times fall as numbers rise")

    async def events(self, terms: _Terms, first: int, last: int) -> list[_Log]:
        """Uses and cancellations of the nonce in these blocks, asked for in bounded ranges."""
        wanted = ((_USED, _CANCELED), (terms.payer,), (terms.nonce,))
        return await self.logs(terms.asset, wanted, first, last, most=_EVENTS_MAX)

    async def logs(
        self, address: str, topics: _Topics, first: int, last: int, *, most: int
    ) -> list[_Log]:
        """Logs with one of these words at each place, asked for in bounded ranges of blocks."""
        found: list[_Log] = []
        while first <= last:
            upto = min(last, first + self.block_span - 1)
            try:
                found += await self._logs(address, topics, first, upto)
            except _Refused:
                if upto == first:
                    raise
                self.block_span = max(1, (upto - first + 1) // 4)  # many plans serve less
                continue
            if len(found) > most:
                raise self.fault("more events than there can be")
            first = upto + 1
        return found

    async def _logs(self, address: str, topics: _Topics, first: int, last: int) -> list[_Log]:
        raw = await self.call(
            "eth_getLogs",
            {
                "address": address,
                "fromBlock": hex(first),
                "toBlock": hex(last),
                "topics": [words[0] if len(words) == 1 else list(words) for words in topics],
            },
        )
        logs = [_log(item, self) for item in _list(raw, self)]
        for log in logs:
            inside = first <= log.block <= last
            if not inside or log.address != address or not _matches(log.topics, topics):
                raise self.fault("answered a log that was not asked for")
        return [log for log in logs if not log.removed]

    async def receipt(self, transaction: str) -> _Receipt | None:
        raw = await self.call("eth_getTransactionReceipt", transaction)
        if raw is None:
            return None
        receipt = _receipt(_object(raw, self), self)
        if receipt.transaction != transaction.lower():
            raise self.fault("answered another transaction's receipt")
        return receipt

    async def confirmed_receipt(self, event: _Log, top: _Header) -> _Receipt:
        """The receipt that holds ``event``, in the canonical chain up to ``top``."""
        receipt = await self.receipt(event.transaction)
        if receipt is None or not receipt.ok or receipt.block > top.number:
            raise self.fault(
                f"a log names transaction {event.transaction}, which has not succeeded"
            )
        if event not in receipt.logs:
            raise self.fault("contradiction: a log is missing from its transaction's receipt")
        await self.check_canonical(receipt)
        return receipt

    async def check_canonical(self, receipt: _Receipt) -> None:
        if (await self.header(receipt.block)).hash != receipt.block_hash:
            raise self.fault(f"transaction {receipt.transaction} is in a block that was replaced")

    async def call(self, method: str, *params: object) -> Any:
        call_id = next(self._calls)
        if call_id > _CALLS_MAX:
            raise self.fault(f"needed more than {_CALLS_MAX} calls")
        body = _json.dumps(
            {"jsonrpc": "2.0", "id": call_id, "method": method, "params": list(params)}
        ).encode()
        try:
            async with asyncio.timeout(self._time_out_s):
                content = await self._post(body)
        except TimeoutError:
            raise self.fault("RPC timed out") from None
        except (httpx.HTTPError, httpx.StreamError, OSError) as error:
            # Its text may hold the URL, so only its name is shown.
            raise self.fault(f"RPC failed ({type(error).__name__})") from None
        return _result(content, call_id, method, self)

    async def _post(self, body: bytes) -> bytes:
        transport = self._background.transport(self._endpoint)
        try:
            return await _exchange(transport, body, self)
        except (httpx.NetworkError, httpx.RemoteProtocolError):
            # A kept connection may have been closed by the peer just now.  Every call is a read.
            return await _exchange(transport, body, self)

    def request(self, body: bytes) -> httpx.Request:
        return httpx.Request(
            "POST", self._endpoint.url, headers=self._endpoint.headers, content=body
        )

    def clean(self, text: object) -> str:
        """An endpoint's own words, short and printable, unless they repeat part of its URL."""
        shown = re.sub(r"[^ -~]+", " ", text)[:120] if isinstance(text, str) else ""
        return "" if any(secret in shown for secret in self._endpoint.secrets) else shown


def _matches(words: Sequence[str], topics: _Topics) -> bool:
    return len(words) == len(topics) and all(
        word in allowed for word, allowed in zip(words, topics, strict=True)
    )


def _guess(low: _Header, high: _Header, time: int, turn: int) -> int:
    """A block strictly between: a little before the likely one, a little after it, the middle.

    Where block times are even, the first two enclose it; the third ends the search where not.
    """
    width = high.number - low.number
    if turn % 3 == 0:
        return low.number + width // 2
    likely = (time - low.time) * width // (high.time - low.time)
    aside = _CLOSE_BLOCKS // 2 if turn % 3 == 2 else -_CLOSE_BLOCKS // 2
    return low.number + min(max(likely + aside, 1), width - 1)


async def _exchange(transport: httpx.AsyncBaseTransport, body: bytes, view: _View) -> bytes:
    """Post and read the answer, at most :data:`_BYTES_MAX` of it."""
    response = await transport.handle_async_request(view.request(body))
    try:
        if response.status_code != 200:
            raise view.fault(f"RPC answered HTTP {response.status_code}")
        if response.headers.get("content-encoding", "identity") != "identity":
            raise view.fault("RPC answered in an encoding that was not asked for")
        content = bytearray()
        async for chunk in response.aiter_raw():
            content += chunk
            if len(content) > _BYTES_MAX:
                raise view.fault(f"RPC answered more than {_BYTES_MAX} bytes")
        return bytes(content)
    finally:
        await response.aclose()


def _result(content: bytes, call_id: int, method: str, view: _View) -> Any:
    try:
        answer = _object(_json.loads(content), view)
    except _json.BadJSON as error:
        raise view.fault(f"RPC answered garbage ({error})") from None
    if answer.get("error") is not None:
        refusal = _object(answer["error"], view)
        code = refusal.get("code")
        shown = f"error {code if type(code) is int else '?'} {view.clean(refusal.get('message'))}"
        raise _Refused(f"{view.name}: RPC refused {method}: {shown.rstrip()}")
    if answer.get("jsonrpc") != "2.0" or answer.get("id") != call_id or "result" not in answer:
        raise view.fault("RPC answered something that is no answer to the call")
    return answer["result"]


def _object(raw: object, view: _View) -> dict[str, Any]:
    if not isinstance(raw, dict):
        raise view.fault("RPC answered garbage (an object was expected)")
    return raw


def _list(raw: object, view: _View) -> list[Any]:
    if not isinstance(raw, list):
        raise view.fault("RPC answered garbage (a list was expected)")
    return raw


def _hex(raw: object, form: re.Pattern[str], view: _View) -> str:
    if not isinstance(raw, str) or not form.fullmatch(raw):
        raise view.fault("RPC answered garbage (other hex was expected)")
    return raw.lower()


def _quantity(raw: object, view: _View) -> int:
    return int(_hex(raw, _QUANTITY, view), 16)


def _log(raw: object, view: _View) -> _Log:
    log = _object(raw, view)
    return _Log(
        address=_hex(log.get("address"), _ADDRESS, view),
        topics=tuple(_hex(topic, _HASH, view) for topic in _list(log.get("topics"), view)),
        data=_hex(log.get("data"), _DATA, view),
        transaction=_hex(log.get("transactionHash"), _HASH, view),
        block=_quantity(log.get("blockNumber"), view),
        block_hash=_hex(log.get("blockHash"), _HASH, view),
        removed=log.get("removed", False) is not False,  # anything odd counts as removed
    )


def _receipt(raw: Mapping[str, Any], view: _View) -> _Receipt:
    receipt = _Receipt(
        transaction=_hex(raw.get("transactionHash"), _HASH, view),
        block=_quantity(raw.get("blockNumber"), view),
        block_hash=_hex(raw.get("blockHash"), _HASH, view),
        ok=_quantity(raw.get("status"), view) == 1,
        logs=tuple(_log(item, view) for item in _list(raw.get("logs"), view)),
    )
    here = (receipt.transaction, receipt.block, receipt.block_hash)
    for log in receipt.logs:
        if log.removed or (log.transaction, log.block, log.block_hash) != here:
            raise view.fault("contradiction: a receipt holds a log of another place")
    return receipt


# --- endpoints and the background thread ---------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Endpoint:
    """Where to ask; only ``name`` may be shown."""

    name: str
    chain_id: int
    url: httpx.URL = field(repr=False)
    headers: Mapping[str, str] = field(repr=False, hash=False)
    secrets: tuple[str, ...] = field(repr=False)


def _endpoints(network: str, urls: str | Sequence[str]) -> tuple[_Endpoint, ...]:
    match = _NETWORK.fullmatch(network)
    if match is None:
        raise ValueError(f"not a network that can be asked: {network!r} (eip155:<id> is)")
    given = dict.fromkeys([urls] if isinstance(urls, str) else urls)
    if not given:
        raise ValueError(f"no RPC endpoint given for {network}")
    return tuple(_endpoint(network, int(match[1]), text) for text in given)


def _endpoint(network: str, chain_id: int, text: str) -> _Endpoint:
    try:
        url = httpx.URL(text)
    except (httpx.InvalidURL, TypeError):
        raise ValueError(f"an RPC endpoint of {network} is not a URL") from None
    if url.scheme not in ("http", "https") or not url.host:
        raise ValueError(f"an RPC endpoint of {network} is not an http(s) URL")
    headers = {
        "accept": "application/json",
        "accept-encoding": "identity",
        "content-type": "application/json",
        "user-agent": "x402-mask",
    }
    if url.userinfo:
        login = urllib.parse.unquote_to_bytes(url.userinfo)
        headers["authorization"] = "Basic " + base64.b64encode(login).decode("ascii")
    return _Endpoint(
        name=f"{url.scheme}://{url.netloc.decode('ascii')}",
        chain_id=chain_id,
        url=url.copy_with(username=None, password=None, fragment=None),
        headers=headers,
        secrets=tuple(_secrets(url)),
    )


def _secrets(url: httpx.URL) -> Iterable[str]:
    """Parts of the URL that might be a key."""
    for part in (url.username, url.password, *url.path.split("/"), *url.params.values()):
        if len(part) >= 6:
            yield part


class _Background:
    """An event loop in a daemon thread, so that a deadline ends any wait, wherever a peer stalls.

    Blocking sockets would have to trust each ``recv`` to come to an end: a peer that sends one byte
    of a header at a time would hold the caller for days.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._closed = False
        self._transports: dict[_Endpoint, httpx.AsyncHTTPTransport] = {}

    def run(self, work: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
        """Run ``work()`` in the loop and wait for it.

        Raises:
            _Closed: the loop was closed before.
            concurrent.futures.CancelledError: the loop was closed meanwhile.
        """
        with self._lock:
            loop = self._running_loop()
            future = asyncio.run_coroutine_threadsafe(work(), loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def transport(self, endpoint: _Endpoint) -> httpx.AsyncHTTPTransport:
        """The endpoint's connections; called in the loop only."""
        if endpoint not in self._transports:
            # Loading the certificate store takes 30 ms; a context without one trusts nobody.
            plain = endpoint.url.scheme == "http"
            verify = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT) if plain else True
            try:
                self._transports[endpoint] = httpx.AsyncHTTPTransport(
                    verify=verify, proxy=_proxy(endpoint.url)
                )
            except (ValueError, ImportError):
                raise Fault(f"{endpoint.name}: the environment's proxy cannot be used") from None
        return self._transports[endpoint]

    def close(self) -> None:
        with self._lock:
            self._closed = True
            loop, thread, self._loop = self._loop, self._thread, None
        if loop is None or thread is None:
            return
        asyncio.run_coroutine_threadsafe(self._wind_up(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        if self._closed:
            raise _Closed
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(
                target=self._loop.run_forever, name="x402-mask-chain", daemon=True
            )
            self._thread.start()
        return self._loop

    async def _wind_up(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for transport in self._transports.values():
            await transport.aclose()
        await asyncio.get_running_loop().shutdown_asyncgens()
        await asyncio.sleep(0)  # a closed connection says so in the next round of the loop


def _proxy(url: httpx.URL) -> str | None:
    """The proxy that the environment names for this URL."""
    proxies = urllib.request.getproxies()
    if urllib.request.proxy_bypass(url.host):
        return None
    return proxies.get(url.scheme) or proxies.get("all")
