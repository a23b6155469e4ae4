"""One scenario for both families, three colours and four plug points.

A scenario is a coroutine that talks to a :class:`Rig`.  In the sync colour nothing in it ever waits,
so it is stepped without an event loop; else it runs under asyncio or trio.

The seller is :class:`Wire`, a transport in memory that plays the same scripts as the loopback seller
of ``tests.support.seller`` and remembers every leg; tests that need sockets ask for :meth:`Rig.seller`.
"""

from __future__ import annotations

import itertools
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from tests.support.seller import (
    Answer,
    Authorization,
    Hit,
    Reply,
    Seller,
    authorization_of,
    offer,
    paywall,
    play,
    served,
    v2_header,
)
from x402_mask import Cap, MemoryLedger, Payer, Wallet, receipt_of

KEY = "11" * 32
SHOP = "https://shop.example"
OTHER = "https://other.example"
URL = SHOP + "/paid"
NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""Trusts nobody.  Loading the authorities of the world takes 90 ms a time."""


@dataclass(frozen=True, slots=True)
class Kind:
    """Family, colour and plug point."""

    lib: str
    colour: str
    plug: str

    def __str__(self) -> str:
        return f"{self.lib}-{self.colour}-{self.plug}"

    @property
    def sync(self) -> bool:
        """Whether this is the sync colour."""
        return self.colour == "sync"


WIRED = frozenset({"verify", "limits", "http1", "http2", "proxy"})
"""Options of a client that a transport needs to be given itself."""
LIBS = ("httpx", "httpx2")
COLOURS = ("sync", "asyncio", "trio")
PLUGS = ("transport", "client", "auth", "attach")
EVERY = tuple(Kind(*names) for names in itertools.product(LIBS, COLOURS, PLUGS))


def kinds(
    *plugs: str, libs: Iterable[str] = LIBS, colours: Iterable[str] = COLOURS
) -> pytest.MarkDecorator:
    """Parametrise over the kinds with these plug points (none: all four)."""
    chosen = [
        kind
        for kind in EVERY
        if kind.plug in (plugs or PLUGS) and kind.lib in libs and kind.colour in colours
    ]
    return pytest.mark.parametrize("kind", chosen, ids=str)


def run(colour: str, scenario: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    """Run a scenario in a colour; a sync one must never wait."""
    if colour != "sync":
        return anyio.run(scenario, backend=colour)
    coroutine = scenario()
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value
    coroutine.close()
    raise AssertionError("a sync scenario waited")


# --- a seller in memory ---------------------------------------------------------------------------


@dataclass(slots=True, kw_only=True)
class Leg(Hit):
    """One request as the wire got it."""

    url: str
    request: Any = field(repr=False)
    chunks: list[bytes] = field(default_factory=list)

    @property
    def timeout(self) -> Any:
        """The time-outs that govern this leg."""
        return self.request.extensions.get("timeout")

    def authorization(self) -> Authorization | None:
        """What this leg lets the seller collect."""
        return authorization_of(self.url, self.proof) if self.proofs else None


@cache
def _types(lib: Any) -> tuple[type[Any], type[Any]]:
    """The stream and the transport of a family."""

    class Body(lib.SyncByteStream, lib.AsyncByteStream):  # type: ignore[misc]
        """A response body that tells how much of it was taken and whether it was closed."""

        def __init__(self, chunks: Iterable[Any], rig: Rig) -> None:
            self.chunks = chunks
            self.rig = rig
            self.taken = 0
            self.closed = False

        def __iter__(self) -> Iterator[bytes]:
            for chunk in self.chunks:
                if isinstance(chunk, BaseException):
                    raise chunk
                self.taken += 1
                yield chunk

        async def __aiter__(self) -> AsyncIterator[bytes]:
            for chunk in self.chunks:
                if self.rig.bodies_wait:
                    await anyio.lowlevel.checkpoint()
                if isinstance(chunk, BaseException):
                    raise chunk
                self.taken += 1
                yield chunk

        def close(self) -> None:
            self.closed = True
            number, failure = self.rig.fail_closing
            if self.rig.bodies.index(self) == number:
                raise failure

        async def aclose(self) -> None:
            self.close()

    class Wire(lib.BaseTransport, lib.AsyncBaseTransport):  # type: ignore[misc]
        """A transport that plays the scripts of a rig."""

        def __init__(self, rig: Rig) -> None:
            self.rig = rig
            self.closed = 0

        def handle_request(self, request: Any) -> Any:
            leg = self.rig.arrived(request)
            for chunk in request.stream:
                leg.chunks.append(chunk)
            return self.rig.answered(leg)

        async def handle_async_request(self, request: Any) -> Any:
            leg = self.rig.arrived(request)
            await anyio.lowlevel.checkpoint()
            async for chunk in request.stream:
                leg.chunks.append(chunk)
            response = self.rig.answered(leg)
            if self.rig.before_answer is not None:
                await self.rig.before_answer(leg)
            return response

        def close(self) -> None:
            self.closed += 1

        async def aclose(self) -> None:
            self.closed += 1

    return Body, Wire


class Rig:
    """One kind of client, its payer, and the shop it buys from."""

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self.lib: Any = import_module(kind.lib)
        self.mask: Any = import_module("x402_mask" if kind.lib == "httpx" else "x402_mask.httpx2")
        self.legs: list[Leg] = []
        self.bodies: list[Any] = []
        self.events: list[Any] = []
        self.bodies_wait = True
        self.fail_closing: tuple[int, BaseException] = (-1, LookupError())
        self.calm = False
        self.before_answer: Callable[[Leg], Awaitable[None]] | None = None
        self.wire = _types(self.lib)[1](self)
        self._routes: dict[str, Answer] = {}
        self._payer: Payer | None = None
        self._client: Any = None
        self._clients: list[Any] = []
        self._payers: list[Payer] = []
        self._sellers: list[Seller] = []

    # --- the shop

    def on(self, url: str, answer: Answer) -> str:
        """Answer requests to *url* (without query) so; returns the URL."""
        url = url if "://" in url else SHOP + url
        self._routes[url] = answer
        return url

    def sells(self, *offers: Any, url: str = URL, paid: Answer | None = None) -> str:
        """Ask for payment in a version 2 header and deliver to whoever shows a proof."""
        return self.on(url, paywall(v2_header(*(offers or (offer(),))), paid or served()))

    def arrived(self, request: Any) -> Leg:
        """Remember a request."""
        leg = Leg(
            method=request.method,
            target=request.url.raw_path.decode("ascii"),
            headers=[(k.decode("latin-1"), v.decode("latin-1")) for k, v in request.headers.raw],
            body=b"",
            connection=0,
            began=time.monotonic(),
            url=f"{request.url.scheme}://{request.url.netloc.decode('ascii')}"
            + request.url.raw_path.decode("ascii"),
            request=request,
        )
        self.legs.append(leg)
        return leg

    def answered(self, leg: Leg) -> Any:
        """The response to a request whose body was taken."""
        leg.body = b"".join(leg.chunks)
        reply = play(self._routes.get(leg.url.partition("?")[0], Reply(status=404)), leg)
        chunks = [reply.body] if isinstance(reply.body, bytes) else reply.body
        body = _types(self.lib)[0](chunks, self)
        self.bodies.append(body)
        headers = list(reply.headers)
        if isinstance(reply.body, bytes) and reply.framing == "length":
            headers.append(("Content-Length", str(len(reply.body))))
        return self.lib.Response(reply.status, headers=headers, stream=body)

    def seller(self) -> Seller:
        """A seller on a loopback socket; closed with the rig."""
        self._sellers.append(Seller())
        return self._sellers[-1]

    @property
    def proofs(self) -> list[str]:
        """Every proof that reached the wire, repeats included."""
        return [proof.raw for leg in self.legs for proof in leg.proofs]

    # --- the buyer

    def make_payer(self, **options: Any) -> Payer:
        """A payer for the shop, the other shop and every loopback seller; closed with the rig."""
        options.setdefault("caps", [Cap("5", per="total")])
        options.setdefault("origins", [SHOP, OTHER, *(one.origin for one in self._sellers)])
        options.setdefault("ledger", MemoryLedger())
        options.setdefault("on_event", self.events.append)
        payer = Payer(options.pop("wallet", None) or Wallet.from_key(KEY), **options)
        self._payers.append(payer)
        return payer

    @property
    def payer(self) -> Payer:
        """The payer of tests that need only one."""
        if self._payer is None:
            self._payer = self.make_payer()
        return self._payer

    @payer.setter
    def payer(self, payer: Payer) -> None:
        self._payer = payer

    @property
    def plain(self) -> Any:
        """The family's own client, of this colour."""
        return self.lib.Client if self.kind.sync else self.lib.AsyncClient

    def wrap(self, payer: Payer, inner: Any = None) -> Any:
        """A paying transport of this colour."""
        mask = self.mask
        return (mask.PaymentTransport if self.kind.sync else mask.AsyncPaymentTransport)(
            payer, inner
        )

    def make_client(self, payer: Payer | None = None, **options: Any) -> Any:
        """A client of this kind that pays; ``inner=None`` makes it use sockets."""
        payer = payer or self.payer
        inner = options.pop("inner", self.wire)
        if inner is None:
            options.setdefault("verify", NO_TLS)
        made = self._make(payer, inner, options)
        self._clients.append(made)
        return made

    def _make(self, payer: Payer, inner: Any, options: dict[str, Any]) -> Any:
        if self.kind.plug == "transport":
            if inner is None:
                own = self.lib.HTTPTransport if self.kind.sync else self.lib.AsyncHTTPTransport
                inner = own(**{name: options.pop(name) for name in WIRED & set(options)})
            return self.plain(transport=self.wrap(payer, inner), **options)
        if inner is not None:
            options["transport"] = inner
        if self.kind.plug == "client":
            own = self.mask.Client if self.kind.sync else self.mask.AsyncClient
            return own(payer, **options)
        if self.kind.plug == "attach":
            return self.mask.attach(self.plain(**options), payer)
        return self.plain(auth=self.mask.PaymentAuth(payer, options.pop("auth", None)), **options)

    @property
    def client(self) -> Any:
        """The client of tests that need only one."""
        if self._client is None:
            self._client = self.make_client()
        return self._client

    @client.setter
    def client(self, client: Any) -> None:
        self._client = client

    # --- the same words in every colour

    async def call(self, method: str, url: str = URL, **kw: Any) -> Any:
        """Send a request and read the answer."""
        return await self.wait(self.client.request(method, url, **kw))

    async def get(self, url: str = URL, **kw: Any) -> Any:
        """GET it."""
        return await self.call("GET", url, **kw)

    async def post(self, url: str = URL, **kw: Any) -> Any:
        """POST it."""
        return await self.call("POST", url, **kw)

    async def send(self, request: Any, **kw: Any) -> Any:
        """Send a request that was built before."""
        return await self.wait(self.client.send(request, **kw))

    async def wait(self, answer: Any) -> Any:
        """An answer that is awaitable in the async colours."""
        return answer if self.kind.sync else await answer

    @asynccontextmanager
    async def stream(self, method: str, url: str = URL, **kw: Any) -> AsyncIterator[Any]:
        """Send a request, read nothing, close the answer at the end."""
        if self.kind.sync:
            with self.client.stream(method, url, **kw) as response:
                yield response
        else:
            async with self.client.stream(method, url, **kw) as response:
                yield response

    async def chunks(
        self, response: Any, how: str = "bytes", watch: Callable[[int], object] = lambda count: None
    ) -> list[Any]:
        """Iterate a response: ``raw``, ``bytes``, ``text`` or ``lines``, watched chunk by chunk."""
        found: list[Any] = []
        if self.kind.sync:
            for chunk in getattr(response, f"iter_{how}")():
                found.append(chunk)
                watch(len(found))
        else:
            async for chunk in getattr(response, f"aiter_{how}")():
                found.append(chunk)
                watch(len(found))
        return found

    async def read(self, response: Any) -> bytes:
        """Read the rest of a response."""
        return bytes(await self.wait(response.read() if self.kind.sync else response.aread()))

    async def shut(self, closable: Any) -> None:
        """Close a client, a transport or a response."""
        await self.wait(closable.close() if self.kind.sync else closable.aclose())

    def hook(self, function: Callable[[Any], object]) -> Any:
        """An event hook of this colour."""
        if self.kind.sync:
            return function

        async def hook(event: Any) -> None:
            await anyio.lowlevel.checkpoint()
            function(event)

        return hook

    def body(self, parts: Iterable[bytes]) -> Any:
        """A request body that can be sent only once, of this colour."""
        if self.kind.sync:
            return (part for part in parts)

        async def generate() -> AsyncIterator[bytes]:
            for part in parts:
                await anyio.lowlevel.checkpoint()
                yield part

        return generate()

    async def close(self) -> None:
        """Close every client."""
        for client in self._clients:
            await self.shut(client)

    def close_rest(self) -> None:
        """Close sellers and payers."""
        for seller in self._sellers:
            seller.close()
            assert not seller.errors, seller.errors
        for payer in self._payers:
            payer.close()

    # --- judging

    def states(self) -> list[str]:
        """The states of all payments, newest first."""
        return [payment.state for payment in self.payer.payments()]

    def paid(self, response: Any) -> Any:
        """The receipt of a delivered response, which the ledger agrees with."""
        assert response.status_code == 200
        receipt = receipt_of(response)
        assert receipt is not None and receipt.outcome == "settled"
        (row,) = [p for p in self.payer.payments() if p.payment_id == receipt.payment_id]
        assert (row.state, row.open) == ("settled", False)
        return receipt

    def all_closed(self) -> bool:
        """Whether every response of the wire was closed."""
        return all(body.closed for body in self.bodies)


def module_of(name: str) -> ModuleType:
    """A family by name."""
    return import_module(name)
