"""Asking one JSON-RPC endpoint: bounded, strict, in a thread of its own.

Why plain JSON-RPC and not web3: what an endpoint says is the word of a stranger, so an answer needs
a size limit, a deadline for the whole exchange (one byte a second is a time-out too) and no
redirects, which web3's providers do not offer; and httpx's client would log the URL with its API
key, so requests go straight to its transport.

Sources: EIP-1474 (JSON-RPC), EIP-1898 (calls by block hash).
"""

from __future__ import annotations

import asyncio
import base64
import re
import ssl
import threading
import urllib.parse
import urllib.request
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Any, Final, TypeVar

import httpx

from x402_mask._services import is_loopback
from x402_mask._wire import strict_json

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence

BYTES_MAX: Final = 4 << 20
"""Largest answer read.  A receipt of a transaction that fills a 60 M gas block is below 3 MiB."""
CALLS_MAX: Final = 400
"""Calls to one endpoint for one question; a free plan that serves ten blocks at a time fits."""

_CLOSE_BLOCKS: Final = 64  # more logs cost an endpoint nothing, more questions cost round trips

ADDRESS: Final = re.compile(r"0x[0-9a-fA-F]{40}")
HASH: Final = re.compile(r"0x[0-9a-fA-F]{64}")
TRANSFER: Final = "0xddf252ad1be2c89b69c2b068fc378daa952ba7f163c4a11628f55a4df523b3ef"
DATA: Final = re.compile(r"0x[0-9a-fA-F]*")
_QUANTITY: Final = re.compile(r"0x[0-9a-fA-F]{1,64}")
_NETWORK: Final = re.compile(r"eip155:([1-9][0-9]{0,18})")

_T = TypeVar("_T")
Topics = tuple[tuple[str, ...], ...]
"""For each place of a log's topics, the words it may hold."""


class EndpointError(Exception):
    """An endpoint cannot be believed, or nothing can be concluded; the text says why."""


class Refused(EndpointError):
    """The endpoint answered with a JSON-RPC error."""


class Closed(Exception):
    """The background thread was closed."""


async def together(*asked: Coroutine[Any, Any, _T]) -> list[_T]:
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


async def each(
    endpoints: Sequence[Endpoint], ask: Callable[[Endpoint], Coroutine[Any, Any, _T]]
) -> list[_T]:
    return await together(*(ask(endpoint) for endpoint in endpoints))


# --- what an endpoint says ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    number: int
    hash: str
    time: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    address: str
    topics: tuple[str, ...]
    data: str
    transaction: str
    block: int
    block_hash: str
    removed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    transaction: str
    block: int
    block_hash: str
    ok: bool
    logs: tuple[Log, ...]


class Endpoint:
    """One endpoint during one question: decodes strictly, counts calls."""

    def __init__(
        self, address: EndpointAddress, background: Background, time_out_s: float, block_span: int
    ) -> None:
        self.name = address.name
        self.block_span = block_span
        self._address = address
        self._background = background
        self._time_out_s = time_out_s
        self._calls = count(1)

    def error(self, text: str) -> EndpointError:
        return EndpointError(f"{self.name}: {text}")

    async def check_chain(self) -> None:
        found = quantity_of(await self.call("eth_chainId"), self)
        if found != self._address.chain_id:
            raise self.error(f"serves chain {found}, not {self._address.chain_id}")

    async def head(self) -> int:
        """Number of the latest block, on the right chain."""
        checks: tuple[Coroutine[Any, Any, Any], ...] = (
            self.check_chain(),
            self.call("eth_blockNumber"),
        )
        _, number = await together(*checks)
        return quantity_of(number, self)

    async def header(self, number: int) -> Header:
        raw = await self.call("eth_getBlockByNumber", hex(number), False)
        if raw is None:
            raise self.error(f"lags: does not have block {number}")
        block = object_of(raw, self)
        header = Header(
            number=quantity_of(block.get("number"), self),
            hash=hex_of(block.get("hash"), HASH, self),
            time=quantity_of(block.get("timestamp"), self),
        )
        if header.number != number:
            raise self.error(f"answered block {header.number} for block {number}")
        return header

    async def around(self, time: int, high: Header) -> tuple[int, int]:
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

    async def _bracket(self, time: int, high: Header) -> tuple[Header, Header]:
        """Blocks around ``time``, found in steps that grow: a second a block, then four times."""
        step = high.time - time
        while True:
            low = await self.header(max(0, high.number - step))
            self._check_order(low, high)
            if low.time <= time or low.number == 0:
                return low, high
            high, step = low, step * 4

    def _check_order(self, *headers: Header) -> None:
        times = [header.time for header in headers]
        if times != sorted(times):
            raise self.error("block times fall as numbers rise")

    async def logs(
        self, address: str, topics: Topics, first: int, last: int, *, most: int
    ) -> list[Log]:
        """Logs with one of these words at each place, asked for in bounded ranges of blocks."""
        found: list[Log] = []
        while first <= last:
            upto = min(last, first + self.block_span - 1)
            try:
                found += await self._logs(address, topics, first, upto)
            except Refused:
                if upto == first:
                    raise
                self.block_span = max(1, (upto - first + 1) // 4)  # many plans serve less
                continue
            if len(found) > most:
                raise self.error("more events than there can be")
            first = upto + 1
        return found

    async def _logs(self, address: str, topics: Topics, first: int, last: int) -> list[Log]:
        raw = await self.call(
            "eth_getLogs",
            {
                "address": address,
                "fromBlock": hex(first),
                "toBlock": hex(last),
                "topics": [words[0] if len(words) == 1 else list(words) for words in topics],
            },
        )
        logs = [_log(item, self) for item in list_of(raw, self)]
        for log in logs:
            inside = first <= log.block <= last
            if not inside or log.address != address or not _matches(log.topics, topics):
                raise self.error("answered a log that was not asked for")
        return [log for log in logs if not log.removed]

    async def receipt(self, transaction: str) -> Receipt | None:
        raw = await self.call("eth_getTransactionReceipt", transaction)
        if raw is None:
            return None
        receipt = _receipt(object_of(raw, self), self)
        if receipt.transaction != transaction.lower():
            raise self.error("answered another transaction's receipt")
        return receipt

    async def confirmed_receipt(self, event: Log, top: Header) -> Receipt:
        """The receipt that holds ``event``, in the canonical chain up to ``top``."""
        receipt = await self.receipt(event.transaction)
        if receipt is None or not receipt.ok or receipt.block > top.number:
            raise self.error(
                f"a log names transaction {event.transaction}, which has not succeeded"
            )
        if event not in receipt.logs:
            raise self.error("contradiction: a log is missing from its transaction's receipt")
        await self.check_canonical(receipt)
        return receipt

    async def check_canonical(self, receipt: Receipt) -> None:
        if (await self.header(receipt.block)).hash != receipt.block_hash:
            raise self.error(f"transaction {receipt.transaction} is in a block that was replaced")

    async def call(self, method: str, *params: object) -> Any:
        call_id = next(self._calls)
        if call_id > CALLS_MAX:
            raise self.error(f"needed more than {CALLS_MAX} calls")
        body = strict_json.dumps(
            {"jsonrpc": "2.0", "id": call_id, "method": method, "params": list(params)}
        ).encode()
        try:
            async with asyncio.timeout(self._time_out_s):
                content = await self._post(body)
        except TimeoutError:
            raise self.error("RPC timed out") from None
        except (httpx.HTTPError, httpx.StreamError, OSError) as error:
            # Its text may hold the URL, so only its name is shown.
            raise self.error(f"RPC failed ({type(error).__name__})") from None
        return _result(content, call_id, method, self)

    async def _post(self, body: bytes) -> bytes:
        transport = self._background.transport(self._address)
        try:
            return await _exchange(transport, body, self)
        except (httpx.NetworkError, httpx.RemoteProtocolError):
            # A kept connection may have been closed by the peer just now.  Every call is a read.
            return await _exchange(transport, body, self)

    def request(self, body: bytes) -> httpx.Request:
        return httpx.Request("POST", self._address.url, headers=self._address.headers, content=body)

    def clean(self, text: object) -> str:
        """An endpoint's own words, short and printable, unless they repeat part of its URL."""
        shown = re.sub(r"[^ -~]+", " ", text)[:120] if isinstance(text, str) else ""
        return "" if any(secret in shown for secret in self._address.secrets) else shown


def _matches(words: Sequence[str], topics: Topics) -> bool:
    return len(words) == len(topics) and all(
        word in allowed for word, allowed in zip(words, topics, strict=True)
    )


def _guess(low: Header, high: Header, time: int, turn: int) -> int:
    """A block strictly between: a little before the likely one, a little after it, the middle.

    Where block times are even, the first two enclose it; the third ends the search where not.
    """
    width = high.number - low.number
    if turn % 3 == 0:
        return low.number + width // 2
    likely = (time - low.time) * width // (high.time - low.time)
    aside = _CLOSE_BLOCKS // 2 if turn % 3 == 2 else -_CLOSE_BLOCKS // 2
    return low.number + min(max(likely + aside, 1), width - 1)


async def _exchange(transport: httpx.AsyncBaseTransport, body: bytes, endpoint: Endpoint) -> bytes:
    """Post and read the answer, at most :data:`BYTES_MAX` of it."""
    response = await transport.handle_async_request(endpoint.request(body))
    try:
        if response.status_code != 200:
            raise endpoint.error(f"RPC answered HTTP {response.status_code}")
        if response.headers.get("content-encoding", "identity") != "identity":
            raise endpoint.error("RPC answered in an encoding that was not asked for")
        content = bytearray()
        async for chunk in response.aiter_raw():
            content += chunk
            if len(content) > BYTES_MAX:
                raise endpoint.error(f"RPC answered more than {BYTES_MAX} bytes")
        return bytes(content)
    finally:
        await response.aclose()


def _result(content: bytes, call_id: int, method: str, endpoint: Endpoint) -> Any:
    try:
        answer = object_of(strict_json.loads(content), endpoint)
    except strict_json.BadJSON as error:
        raise endpoint.error(f"RPC answered garbage ({error})") from None
    if answer.get("error") is not None:
        refusal = object_of(answer["error"], endpoint)
        code = refusal.get("code")
        shown = (
            f"error {code if type(code) is int else '?'} {endpoint.clean(refusal.get('message'))}"
        )
        raise Refused(f"{endpoint.name}: RPC refused {method}: {shown.rstrip()}")
    if answer.get("jsonrpc") != "2.0" or answer.get("id") != call_id or "result" not in answer:
        raise endpoint.error("RPC answered something that is no answer to the call")
    return answer["result"]


def object_of(raw: object, endpoint: Endpoint) -> dict[str, Any]:
    if not isinstance(raw, dict):
        raise endpoint.error("RPC answered garbage (an object was expected)")
    return raw


def list_of(raw: object, endpoint: Endpoint) -> list[Any]:
    if not isinstance(raw, list):
        raise endpoint.error("RPC answered garbage (a list was expected)")
    return raw


def hex_of(raw: object, form: re.Pattern[str], endpoint: Endpoint) -> str:
    if not isinstance(raw, str) or not form.fullmatch(raw):
        raise endpoint.error("RPC answered garbage (other hex was expected)")
    return raw.lower()


def quantity_of(raw: object, endpoint: Endpoint) -> int:
    return int(hex_of(raw, _QUANTITY, endpoint), 16)


def _log(raw: object, endpoint: Endpoint) -> Log:
    log = object_of(raw, endpoint)
    return Log(
        address=hex_of(log.get("address"), ADDRESS, endpoint),
        topics=tuple(
            hex_of(topic, HASH, endpoint) for topic in list_of(log.get("topics"), endpoint)
        ),
        data=hex_of(log.get("data"), DATA, endpoint),
        transaction=hex_of(log.get("transactionHash"), HASH, endpoint),
        block=quantity_of(log.get("blockNumber"), endpoint),
        block_hash=hex_of(log.get("blockHash"), HASH, endpoint),
        removed=log.get("removed", False) is not False,  # anything odd counts as removed
    )


def _receipt(raw: Mapping[str, Any], endpoint: Endpoint) -> Receipt:
    receipt = Receipt(
        transaction=hex_of(raw.get("transactionHash"), HASH, endpoint),
        block=quantity_of(raw.get("blockNumber"), endpoint),
        block_hash=hex_of(raw.get("blockHash"), HASH, endpoint),
        ok=quantity_of(raw.get("status"), endpoint) == 1,
        logs=tuple(_log(item, endpoint) for item in list_of(raw.get("logs"), endpoint)),
    )
    here = (receipt.transaction, receipt.block, receipt.block_hash)
    for log in receipt.logs:
        if log.removed or (log.transaction, log.block, log.block_hash) != here:
            raise endpoint.error("contradiction: a receipt holds a log of another place")
    return receipt


def address_word(address: str) -> str:
    return "0x" + "0" * 24 + address[2:].lower()


# --- endpoints and the background thread ----------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointAddress:
    """Where to ask; only ``name`` may be shown."""

    name: str
    chain_id: int
    url: httpx.URL = field(repr=False)
    headers: Mapping[str, str] = field(repr=False, hash=False)
    secrets: tuple[str, ...] = field(repr=False)


def endpoints_of(network: str, urls: str | Sequence[str]) -> tuple[EndpointAddress, ...]:
    match = _NETWORK.fullmatch(network)
    if match is None:
        raise ValueError(f"not a network that can be asked: {network!r} (eip155:<id> is)")
    given = dict.fromkeys([urls] if isinstance(urls, str) else urls)
    if not given:
        raise ValueError(f"no RPC endpoint given for {network}")
    return tuple(_address(network, int(match[1]), text) for text in given)


def _address(network: str, chain_id: int, text: str) -> EndpointAddress:
    try:
        url = httpx.URL(text)
    except (httpx.InvalidURL, TypeError):
        raise ValueError(f"an RPC endpoint of {network} is not a URL") from None
    if url.scheme not in ("http", "https") or not url.host:
        raise ValueError(f"an RPC endpoint of {network} is not an http(s) URL")
    if url.scheme == "http" and not is_loopback(url.host):
        raise ValueError(
            f"an RPC endpoint of {network} is plain http and not on loopback, so anybody on the way"
            " could answer for it: use https"
        )
    headers = {
        "accept": "application/json",
        "accept-encoding": "identity",
        "content-type": "application/json",
        "user-agent": "x402-mask",
    }
    if url.userinfo:
        login = urllib.parse.unquote_to_bytes(url.userinfo)
        headers["authorization"] = "Basic " + base64.b64encode(login).decode("ascii")
    return EndpointAddress(
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


class Background:
    """An event loop in a daemon thread, so that a deadline ends any wait, wherever a peer stalls.

    Blocking sockets would have to trust each ``recv`` to come to an end: a peer that sends one byte
    of a header at a time would hold the caller for days.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._closed = False
        self._transports: dict[EndpointAddress, httpx.AsyncHTTPTransport] = {}

    def run(self, work: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
        """Run ``work()`` in the loop and wait for it.

        Raises:
            Closed: the loop was closed before.
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

    def transport(self, address: EndpointAddress) -> httpx.AsyncHTTPTransport:
        """The endpoint's connections; called in the loop only."""
        if address not in self._transports:
            # Loading the certificate store takes 30 ms; a context without one trusts nobody.
            plain = address.url.scheme == "http"
            verify = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT) if plain else True
            try:
                self._transports[address] = httpx.AsyncHTTPTransport(
                    verify=verify, proxy=_proxy(address.url)
                )
            except (ValueError, ImportError):
                raise EndpointError(
                    f"{address.name}: the environment's proxy cannot be used"
                ) from None
        return self._transports[address]

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
            raise Closed
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
    """The proxy that the environment names for this URL; plain http stays on this machine."""
    if url.scheme == "http":
        return None
    proxies = urllib.request.getproxies()
    if urllib.request.proxy_bypass(url.host):
        return None
    return proxies.get(url.scheme) or proxies.get("all")
