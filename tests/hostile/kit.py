"""Buyers of every plug point behind one face, and the books the hostile tests are judged by."""

from __future__ import annotations

import asyncio
import ssl
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from decimal import Decimal
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest
import trio
from eth_account import Account

from tests.support.seller import Authorization, Seller
from x402_mask import Cap, Payer, PaymentError, PaymentRefused, SQLiteLedger, receipt_of

KEY = "0x" + "11" * 32
WIDE = Decimal(1_000_000)
# Every seller speaks plain http on loopback; loading the roots anew for each client costs 20 ms.
NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
OPEN_STATES = ("reserved", "held")


# --- the wallet -----------------------------------------------------------------------------------


class Signer:
    """A wallet by the contract's words, that counts and remembers what it was asked to sign."""

    def __init__(self, key: str = KEY) -> None:
        self._account = Account.from_key(key)
        self._lock = threading.Lock()
        self.address: str = self._account.address
        self.signed: list[dict[str, Any]] = []
        self.before: Callable[[], None] = lambda: None

    @property
    def calls(self) -> int:
        """How often a signature was asked for."""
        return len(self.signed)

    def sign_typed_data(self, domain: Any, types: Any, message: Any) -> bytes:
        """Sign as eth-account does."""
        with self._lock:
            self.signed.append({"domain": dict(domain), "message": dict(message)})
        self.before()
        fields = {name: value for name, value in types.items() if name != "EIP712Domain"}
        signed = self._account.sign_typed_data(dict(domain), fields, dict(message))
        return bytes(signed.signature)


class AsyncSigner(Signer):
    """The same wallet behind a coroutine."""

    async def sign_typed_data(  # type: ignore[override]
        self, domain: Any, types: Any, message: Any
    ) -> bytes:
        """Sign as eth-account does."""
        return super().sign_typed_data(domain, types, message)


class GreedySigner(Signer):
    """A wallet that could do more than it is ever to be asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.misused: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if not name.startswith(("sign_", "unsafe_", "send_")):
            raise AttributeError(name)

        def refuse(*args: object, **kwargs: object) -> object:
            self.misused.append(name)
            raise AssertionError(f"{name} was called")

        return refuse


# --- the plug points ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Kind:
    """One way to plug the payer in: library, colour, plug point."""

    lib: str
    colour: str
    plug: str

    def __str__(self) -> str:
        return f"{self.lib}-{self.colour}-{self.plug}"


CORE = tuple(Kind("httpx", c, p) for p in ("client", "attach") for c in ("sync", "asyncio"))
SYNC = tuple(kind for kind in CORE if kind.colour == "sync")
ASYNC = tuple(kind for kind in CORE if kind.colour == "asyncio")
PAIR = (CORE[0], CORE[3])
OTHER_PAIR = (CORE[1], CORE[2])
TRIO = (
    Kind("httpx", "trio", "client"),
    Kind("httpx", "trio", "attach"),
    Kind("httpx2", "trio", "client"),
)
OTHERS = (
    *(Kind("httpx", c, p) for p in ("transport", "auth") for c in ("sync", "asyncio")),
    *(Kind("httpx2", c, p) for p in ("client", "attach", "auth") for c in ("sync", "asyncio")),
    *TRIO,
)
EVERY = (*CORE, *OTHERS)


def every_kind(*kinds: Kind) -> pytest.MarkDecorator:
    """Parametrise ``kind`` over other plug points than the four usual ones."""
    return pytest.mark.parametrize("kind", kinds or EVERY, ids=str)


def build_client(kind: Kind, payer: Payer, **options: Any) -> Any:
    """An HTTP client of this kind that pays."""
    lib = import_module(kind.lib)
    mask: Any = import_module("x402_mask" if kind.lib == "httpx" else "x402_mask.httpx2")
    sync = kind.colour == "sync"
    plain = lib.Client if sync else lib.AsyncClient
    options.setdefault("timeout", 5.0)
    options.setdefault("verify", NO_TLS)
    if kind.plug == "client":
        return (mask.Client if sync else mask.AsyncClient)(payer, **options)
    if kind.plug == "attach":
        return mask.attach(plain(**options), payer)
    if kind.plug == "auth":
        return plain(auth=mask.PaymentAuth(payer), **options)
    inner = (lib.HTTPTransport if sync else lib.AsyncHTTPTransport)(verify=NO_TLS)
    wrap = mask.PaymentTransport if sync else mask.AsyncPaymentTransport
    return plain(transport=wrap(payer, inner), **options)


@dataclass(slots=True)
class Streamed:
    """A streamed answer: what was there before it was read, and what was read."""

    response: Any
    consumed_at_first: bool
    seconds: float
    sent_at_first: int = 0
    chunks: list[bytes] = field(default_factory=list)

    @property
    def body(self) -> bytes:
        """What was read."""
        return b"".join(self.chunks)


class Buyer:
    """One client, driven from ordinary test code whatever its colour."""

    def __init__(self, kind: Kind, payer: Payer, **options: Any) -> None:
        self.kind = kind
        self.payer = payer
        self.lib: ModuleType = import_module(kind.lib)
        self._options = options
        self._runner = asyncio.Runner() if kind.colour == "asyncio" else None
        self._client: Any = None
        if kind.colour != "trio":
            self._client = build_client(kind, payer, **options)

    def _run(self, job: Callable[[Any], Any]) -> Any:
        """Run an async job with the client, under the loop of this buyer."""

        async def with_own_client() -> Any:
            async with build_client(self.kind, self.payer, **self._options) as client:
                return await job(client)

        if self._runner is None:
            return trio.run(with_own_client)
        return self._runner.run(job(self._client))

    def call(self, method: str, url: str, **kw: Any) -> Any:
        """Send a request and read the answer."""
        if self.kind.colour == "sync":
            return self._client.request(method, url, **kw)
        return self._run(lambda client: client.request(method, url, **kw))

    def get(self, url: str, **kw: Any) -> Any:
        """GET it."""
        return self.call("GET", url, **kw)

    def post(self, url: str, **kw: Any) -> Any:
        """POST it."""
        return self.call("POST", url, **kw)

    def stream(
        self,
        method: str,
        url: str,
        *,
        take: int | None = None,
        raw: bool = False,
        seller: Seller | None = None,
        on_chunk: Callable[[bytes], object] = lambda chunk: None,
        **kw: Any,
    ) -> Streamed:
        """Send a request, read at most ``take`` bytes of the answer (``None``: all), close it."""
        began = time.monotonic()

        def arrived(response: Any) -> Streamed:
            seconds = time.monotonic() - began
            sent = seller.sent_bytes if seller else 0
            return Streamed(response, response.is_stream_consumed, seconds, sent)

        def keep(streamed: Streamed, chunk: bytes) -> bool:
            streamed.chunks.append(chunk)
            on_chunk(chunk)
            return take is not None and sum(map(len, streamed.chunks)) >= take

        if self.kind.colour == "sync":
            with self._client.stream(method, url, **kw) as response:
                streamed = arrived(response)
                if take != 0:
                    for chunk in response.iter_raw() if raw else response.iter_bytes():
                        if keep(streamed, chunk):
                            break
                return streamed

        async def job(client: Any) -> Streamed:
            async with client.stream(method, url, **kw) as response:
                streamed = arrived(response)
                if take != 0:
                    chunks = response.aiter_raw() if raw else response.aiter_bytes()
                    async for chunk in chunks:
                        if keep(streamed, chunk):
                            break
                return streamed

        result: Streamed = self._run(job)
        return result

    def gather(self, calls: Sequence[dict[str, Any]]) -> list[Any]:
        """Make these calls at once; an exception stands in the place of its answer."""
        if self.kind.colour == "sync":
            return self._gather_threads(calls)
        if self.kind.colour == "trio":
            return list(self._run(lambda client: _gather_trio(client, calls)))

        async def job(client: Any) -> list[Any]:
            tasks = [client.request(**call) for call in calls]
            return list(await asyncio.gather(*tasks, return_exceptions=True))

        return list(self._run(job))

    def _gather_threads(self, calls: Sequence[dict[str, Any]]) -> list[Any]:
        start = threading.Barrier(len(calls))

        def one(call: dict[str, Any]) -> Any:
            start.wait(5)
            try:
                return self._client.request(**call)
            except Exception as error:
                return error

        with ThreadPoolExecutor(len(calls)) as pool:
            return list(pool.map(one, calls))

    def cancel(self, ready: Callable[[], object], method: str, url: str, **kw: Any) -> str:
        """Start a call, cancel it once ``ready()``; the name of what came out."""
        assert self.kind.colour != "sync"
        job = _cancel_trio if self.kind.colour == "trio" else _cancel_asyncio
        return str(self._run(lambda client: job(client, ready, method, url, **kw)))

    def run(self, job: Callable[[Any], Any]) -> Any:
        """Run an async job with this buyer's client."""
        return self._run(job)

    def close(self) -> None:
        """Close the client and its loop."""
        if self.kind.colour == "sync":
            self._client.close()
        if self._runner is not None:
            with suppress(Exception):
                self._runner.run(self._client.aclose())
            self._runner.close()


async def _gather_trio(client: Any, calls: Sequence[dict[str, Any]]) -> list[Any]:
    results: list[Any] = [None] * len(calls)

    async def one(index: int) -> None:
        try:
            results[index] = await client.request(**calls[index])
        except Exception as error:
            results[index] = error

    async with trio.open_nursery() as nursery:
        for index in range(len(calls)):
            nursery.start_soon(one, index)
    return results


async def _cancel_asyncio(
    client: Any, ready: Callable[[], object], method: str, url: str, **kw: Any
) -> str:
    task = asyncio.ensure_future(client.request(method, url, **kw))
    deadline = time.monotonic() + 5
    while not ready() and time.monotonic() < deadline:  # noqa: ASYNC110 - a thread tells
        await asyncio.sleep(0.005)
    task.cancel()
    try:
        await task
    except BaseException as error:
        return type(error).__name__
    return "answered"


async def _cancel_trio(
    client: Any, ready: Callable[[], object], method: str, url: str, **kw: Any
) -> str:
    outcome = "answered"

    async def one(task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        nonlocal outcome
        with trio.CancelScope() as scope:
            task_status.started(scope)
            try:
                await client.request(method, url, **kw)
            except BaseException as error:
                outcome = type(error).__name__
                raise

    async with trio.open_nursery() as nursery:
        scope = await nursery.start(one)
        deadline = time.monotonic() + 5
        while not ready() and time.monotonic() < deadline:  # noqa: ASYNC110 - a thread tells
            await trio.sleep(0.005)
        scope.cancel()
    return outcome


# --- the world of one test ------------------------------------------------------------------------


@dataclass(slots=True)
class Clock:
    """A clock the test moves; it ticks with the real one."""

    ahead: float = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead


_NOT_FORETOLD = ("redirected", "approval", "in_flight", "wait")
"""What only the way of the call tells, or somebody who is asked."""


class World:
    """Sellers, one wallet, one ledger; closed and audited after the test."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.path = directory / "ledger.db"
        self.signer = Signer()
        self.events: list[Any] = []
        self.sellers: list[Seller] = []
        self.payers: list[Payer] = []
        self.buyers: list[Buyer] = []
        self.audited = True
        self.may_stay_reserved = False

    # --- making things

    def seller(self) -> Seller:
        """A new seller."""
        self.sellers.append(Seller())
        return self.sellers[-1]

    def payer(self, *caps: Cap, wide: bool = True, **options: Any) -> Payer:
        """A payer on this world's wallet and ledger, for all sellers made so far.

        A cap that never binds is added last: its row of ``spend()`` is what the audit reads.
        """
        options.setdefault("origins", [seller.origin for seller in self.sellers])
        options.setdefault("wallet", self.signer)
        options.setdefault("on_event", self.events.append)
        if "ledger" not in options:
            options["ledger"] = SQLiteLedger(self.path)
        all_caps = [*caps, Cap(WIDE, per="total")] if wide else list(caps)
        payer = Payer(options.pop("wallet"), caps=all_caps, **options)
        self.payers.append(payer)
        return payer

    def buyer(self, kind: Kind, payer: Payer | None = None, **options: Any) -> Buyer:
        """A client of this kind; without a payer, one with only the cap that never binds."""
        buyer = Buyer(kind, payer or self.payer(), **options)
        self.buyers.append(buyer)
        return buyer

    # --- looking

    def authorizations(self) -> list[Authorization]:
        """What all sellers together could collect."""
        return [one for seller in self.sellers for one in seller.authorizations()]

    def collectable(self) -> Decimal:
        """The same in USD."""
        return usd(sum(one.usd_micro for one in self.authorizations()))

    def counted(self) -> Decimal:
        """What the ledger says is gone or may be gone, in USD."""
        row = self.payers[-1].spend()[-1]
        return Decimal(row.settled) + Decimal(row.held)

    def settled(self) -> Decimal:
        """What the ledger calls settled, in USD."""
        return Decimal(self.payers[-1].spend()[-1].settled)

    def held(self) -> Decimal:
        """What the ledger calls reserved or held, in USD."""
        return Decimal(self.payers[-1].spend()[-1].held)

    def in_state(self, *states: str) -> list[Any]:
        """Payments of the ledger in these states."""
        return [one for state in states for one in self.payers[-1].payments(state=state)]

    # --- judging

    def refused(
        self,
        buyer: Buyer,
        url: str,
        *expected: type[BaseException],
        method: str = "POST",
        **kw: Any,
    ) -> Any:
        """The call is refused before anything is signed, and the error says so properly."""
        signed, counted, proofs = self.signer.calls, self.counted(), len(self._proofs())
        with pytest.raises(expected or (PaymentRefused,)) as caught:
            buyer.call(method, url, **kw)
        error: Any = caught.value
        for family in (httpx.HTTPError, buyer.lib.HTTPError):
            assert not isinstance(error, family), "a retry library would repeat it"
        assert error.at_risk is False
        assert error.response.status_code == 402
        assert isinstance(error.response.content, bytes)
        if isinstance(error, PaymentRefused):
            reason: object = error.reason
            assert isinstance(reason, str) and reason
            self._foretold(buyer, error)
        assert self.signer.calls == signed, "something was signed"
        assert len(self._proofs()) == proofs, "a proof was sent"
        assert self.counted() == counted, "a refusal was counted"
        assert not self.in_state("reserved")
        return error

    def _foretold(self, buyer: Buyer, error: PaymentRefused) -> None:
        """What a quote says of the same 402 is what the call said, as far as nobody is asked."""
        if error.reason in _NOT_FORETOLD:
            return
        quote = buyer.payer.quote(error.response)
        assert quote is not None and quote.refusal is not None, error
        assert quote.refusal.reason == error.reason

    def _proofs(self) -> list[Any]:
        return [proof for seller in self.sellers for proof in seller.proofs()]

    def audit(self) -> None:
        """The invariants that hold after every test."""
        for seller in self.sellers:
            assert not seller.errors, seller.errors
        self._audit_places()
        if not (self.audited and self.payers):
            return
        rows = self.payers[-1].spend()
        for row in rows:
            used = Decimal(row.settled) + Decimal(row.held)
            assert used <= Decimal(row.limit), f"cap passed: {row}"
            assert Decimal(row.left) >= 0
        assert self.collectable() <= self.counted(), "a seller holds more than was counted"
        if not self.may_stay_reserved:
            assert not self.in_state("reserved"), "a reservation was left behind"

    def _audit_places(self) -> None:
        """No nonce was shown in two places, and every one was really asked of the wallet."""
        places: dict[str, str] = {}
        for one in self.authorizations():
            where = places.setdefault(one.nonce, one.origin)
            assert where == one.origin, "a proof was shown to two origins"

    def close(self) -> None:
        """Close everything that was made."""
        for buyer in self.buyers:
            buyer.close()
        for seller in self.sellers:
            seller.close()
        for payer in self.payers:
            with suppress(Exception):
                payer.close()


# --- small things ---------------------------------------------------------------------------------


def usd(micro: int) -> Decimal:
    """Micro-USD as USD."""
    return Decimal(micro) / 10**6


def receipt(response: Any) -> Any:
    """The receipt of a response that must have one."""
    found = receipt_of(response)
    assert found is not None, "no receipt"
    return found


def id_of(payment: Any) -> str:
    """The id of a ``Payment`` record."""
    return str(payment.payment_id)


def attempt(buyer: Buyer, url: str, method: str = "GET", **kw: Any) -> Any:
    """The answer, or our error, or the network's: whichever came."""
    try:
        return buyer.call(method, url, **kw)
    except (PaymentError, buyer.lib.HTTPError) as error:
        return error


def notes(error: BaseException) -> str:
    """What was added to an exception."""
    return "\n".join(getattr(error, "__notes__", []))


def one_shot(kind: Kind, *parts: bytes) -> Any:
    """A body that can be sent only once, in the colour of the client."""
    if kind.colour == "sync":

        def generate() -> Iterator[bytes]:
            yield from parts

        return generate()

    async def agenerate() -> AsyncIterator[bytes]:
        for part in parts:
            yield part

    return agenerate()
