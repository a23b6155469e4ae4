"""Transports that pay, and the clients that use them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import httpx

from x402_mask._drive import deadline
from x402_mask._drive.clients import is_foreign
from x402_mask._drive.context import CONTEXT, CallContext, is_side_request, origin, sender, sending
from x402_mask._drive.exchange import AsyncExchange, Exchange
from x402_mask._drive.layer import Layer, straight
from x402_mask._drive.perform import prepare, taken_back
from x402_mask._drive.sender import sending_function
from x402_mask._drive.streams import until_read
from x402_mask._ledger.carrier import Carrier, carried
from x402_mask._ledger.waiting import WAIT_S
from x402_mask._payer import buyer_of
from x402_mask._system.turns import caller

if TYPE_CHECKING:
    from types import TracebackType

    from x402_mask._drive.refusals import OnRefusal
    from x402_mask._payer import Payer

TIMEOUT = httpx.Timeout(5.0, read=60.0)
"""Default of our clients: settling on a chain takes longer than httpx's five seconds."""

_KNOWN = {CONTEXT, "x402_mask"}


class PaymentTransport(httpx.BaseTransport):
    """An httpx transport that pays 402 answers within the payer's caps.

    Args:
        payer: decides and pays.
        inner: the transport that is wrapped; default ``httpx.HTTPTransport()``.
        on_refusal: ``"raise"`` a refusal or ``"return"`` the 402; default: as the payer says.
        total_timeout: seconds, from the first byte of a call to the end of its answer's headers;
            ``httpx.TimeoutException`` when they are over.

    Raises:
        TypeError: *inner* is not an httpx transport, or the payer needs an async client.
        ValueError: *inner* pays by another payer, or *on_refusal* is neither.
    """

    def __init__(
        self,
        payer: Payer,
        inner: httpx.BaseTransport | None = None,
        *,
        on_refusal: OnRefusal | None = None,
        total_timeout: float | None = None,
    ) -> None:
        check_sync(payer)
        self._layer = Layer(httpx, buyer_of(payer), on_refusal, self._way)
        self.payer = payer
        self._total = deadline.checked(total_timeout)
        if inner is None:
            inner = httpx.HTTPTransport()
        self.inner: httpx.BaseTransport = _checked(payer, inner, "handle_request")
        if self._total is not None:
            _watch_sockets(self.inner)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send *request*; pay for it if it must be and may be."""
        if not deadline.is_bounded(self._total):
            return self._handle(request)
        with deadline.transporting(httpx, self._total):
            return self._handle(request)

    def _way(self, _: httpx.URL) -> Any:
        return self.inner

    def _ask(self, request: httpx.Request) -> httpx.Response:
        return deadline.ask(self.inner.handle_request, request)

    def _handle(self, request: httpx.Request) -> httpx.Response:
        response = None
        eager = self._layer.buyer.sends_first(request.url)
        if not eager and not _KNOWN & request.extensions.keys():  # most calls
            response = self._ask(request)
            if response.status_code != 402:
                if response.has_redirect_location:  # the next hop belongs to this call
                    context = request.extensions[CONTEXT] = CallContext(request)
                    context.lead(request, response)
                return response
        # a lambda, no partial: Python looks for signals when what is written in C returns
        return carried([lambda: self._converse(request, response)])

    def _converse(self, request: httpx.Request, response: httpx.Response | None) -> httpx.Response:
        """Go on from the first *response*, or from the start."""
        if not origin(request) or is_side_request(request):
            return response or self._ask(request)
        here = caller(1)
        by = None if sender() is not None else sending_function(httpx, here)
        exchange = Exchange(self._layer, request, Carrier(lambda: here, by or sender()))
        try:
            with exchange.context.carried():
                sent = exchange.start()
                while sent is not None:
                    found = response or self._ask(sent)
                    sent, response = exchange.received(found, exchange.asked(sent, request)), None
            answer: httpx.Response = exchange.answer()
            if by is not None:
                until_read(answer, by)
            return (answer, here := None)[0]  # in one step: see Carrier
        except BaseException as exc:
            exchange.failed(exc)
            if by is not None:
                by.let_go()
            raise

    def __enter__(self) -> Self:
        self.inner.__enter__()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc_value: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        self.inner.__exit__(exc_type, exc_value, traceback)

    def close(self) -> None:
        """Close the wrapped transport, never the payer."""
        self.inner.close()


class AsyncPaymentTransport(httpx.AsyncBaseTransport):
    """An async httpx transport that pays 402 answers within the payer's caps.

    Args:
        payer: decides and pays.
        inner: the transport that is wrapped; default ``httpx.AsyncHTTPTransport()``.
        on_refusal: ``"raise"`` a refusal or ``"return"`` the 402; default: as the payer says.
        total_timeout: seconds, from the first byte of a call to the end of its answer's headers;
            ``httpx.TimeoutException`` when they are over.

    Raises:
        TypeError: *inner* is not an async httpx transport.
        ValueError: *inner* pays by another payer, or *on_refusal* is neither.
    """

    def __init__(
        self,
        payer: Payer,
        inner: httpx.AsyncBaseTransport | None = None,
        *,
        on_refusal: OnRefusal | None = None,
        total_timeout: float | None = None,
    ) -> None:
        prepare()
        self._layer = Layer(httpx, buyer_of(payer), on_refusal, self._way)
        self.payer = payer
        self._total = deadline.checked(total_timeout)
        if inner is None:
            inner = httpx.AsyncHTTPTransport()
        self.inner: httpx.AsyncBaseTransport = _checked(payer, inner, "handle_async_request")
        _in_pieces(self.inner)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send *request*; pay for it if it must be and may be."""
        if not deadline.is_bounded(self._total):
            return await self._handle(request)
        with deadline.transporting(httpx, self._total):
            return await self._handle(request)

    def _way(self, _: httpx.URL) -> Any:
        return self.inner

    async def _ask(self, request: httpx.Request) -> httpx.Response:
        return await deadline.ask_async(self.inner.handle_async_request, request)

    async def _handle(self, request: httpx.Request) -> httpx.Response:
        response = None
        eager = self._layer.buyer.sends_first(request.url)
        if not eager and not _KNOWN & request.extensions.keys():  # most calls
            response = await self._ask(request)
            if response.status_code != 402:
                if response.has_redirect_location:  # the next hop belongs to this call
                    context = request.extensions[CONTEXT] = CallContext(request)
                    context.lead(request, response)
                return response
        carrier = Carrier(within=sender())
        return await carrier.follow(self._converse(carrier, request, response))

    async def _converse(
        self, carrier: Carrier, request: httpx.Request, response: httpx.Response | None
    ) -> httpx.Response:
        """Go on from the first *response*, or from the start."""
        if not origin(request) or is_side_request(request):
            return response or await self._ask(request)
        handed = False
        carrier.handed = lambda: handed
        exchange = AsyncExchange(self._layer, request, carrier)
        try:
            with exchange.context.carried():
                sent = await exchange.start()
                while sent is not None:
                    found = response or await self._ask(sent)
                    asked = exchange.asked(sent, request)
                    sent, response = await exchange.received(found, asked), None
            answer: httpx.Response = exchange.answer()
            return (answer, handed := True)[0]  # in one step: see Carrier
        except BaseException as exc:
            await exchange.failed(exc)
            raise

    async def __aenter__(self) -> Self:
        await self.inner.__aenter__()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc_value: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        await self.inner.__aexit__(exc_type, exc_value, traceback)

    async def aclose(self) -> None:
        """Close the wrapped transport, never the payer."""
        await self.inner.aclose()


def _in_pieces(inner: httpx.AsyncBaseTransport) -> None:
    from x402_mask.httpx._pieces import in_pieces  # noqa: PLC0415  # sync programs need no anyio

    in_pieces(inner)


def _watch_sockets(inner: httpx.BaseTransport) -> None:
    from x402_mask.httpx._sockets import watch_sockets  # noqa: PLC0415  # few need it

    watch_sockets(inner)


def _checked(payer: Payer, inner: Any, method: str) -> Any:
    """*inner*, a transport of this family; mixing them fails deep inside, wordless.

    Of a transport that pays already the one that it wraps: two layers are one.
    """
    if not callable(getattr(inner, method, None)) or is_foreign(inner, httpx):
        raise TypeError(
            f"{type(inner).__name__} is not a transport of {httpx.__name__} with {method}()"
        )
    if not isinstance(inner, (PaymentTransport, AsyncPaymentTransport)):
        return inner
    if inner.payer is not payer:
        raise ValueError("this transport pays by another payer")
    return inner.inner


def is_paying(transport: Any, payer: Payer) -> bool:
    """Whether *transport* pays by *payer* already."""
    layers = (PaymentTransport, AsyncPaymentTransport)
    return isinstance(transport, layers) and transport.payer is payer


def answer_so(client: Client | AsyncClient, *, returned: bool) -> None:
    """Have a client's transports hand refusals back, or raise them."""
    for transport in (client._transport, *client._mounts.values()):  # noqa: SLF001  # of ours
        if isinstance(transport, (PaymentTransport, AsyncPaymentTransport)):
            transport._layer.returns = returned  # noqa: SLF001  # of this module


def check_sync(payer: Payer) -> None:
    """Refuse a payer that a sync client cannot pay by.

    Raises:
        TypeError: a part of it is async, or it is no payer.
    """
    part = buyer_of(payer).needs_async
    if part is not None:
        raise TypeError(f"the payer's {part} is async: use an async client")


# --- clients --------------------------------------------------------------------------------------


class Client(httpx.Client):
    """An ``httpx.Client`` that pays.  Everything else works as in httpx.

    ``verify``, ``limits``, ``http2``, ``proxy``, ``mounts`` and environment proxies keep working,
    and are paid through; but a call to a plain http origin, which is on this machine, goes through
    no proxy.  The default time-out is 5 s, and 60 s to read.  *total_timeout* bounds a call, with
    its redirects, from its first byte to the end of its answer's headers, in seconds.
    *on_refusal*: ``"raise"`` a refusal or ``"return"`` the 402, whatever the payer says.
    """

    def __init__(
        self,
        payer: Payer,
        *,
        on_refusal: OnRefusal | None = None,
        total_timeout: float | None = None,
        **kwargs: Any,
    ) -> None:
        check_sync(payer)
        self.payer = payer
        self._on_refusal: OnRefusal | None = on_refusal
        self._total = deadline.checked(total_timeout)
        kwargs.setdefault("timeout", TIMEOUT)
        if kwargs.get("mounts"):
            mounts = kwargs["mounts"].items()
            kwargs["mounts"] = {key: t if t is None else self._paying(t) for key, t in mounts}
        super().__init__(**kwargs)

    def send(self, request: httpx.Request, **kwargs: Any) -> httpx.Response:
        """As ``httpx.Client.send``, within ``total_timeout``."""
        return carried([lambda: self._sent(request, kwargs)])  # as in the transport

    def _sent(self, request: httpx.Request, kwargs: Any) -> httpx.Response:
        here = caller(1)
        carrier = Carrier(lambda: here)
        try:
            with sending(carrier), deadline.calling(httpx, self._total):
                response = super().send(request, **kwargs)
            return (response, here := None)[0]  # in one step: see Carrier
        except BaseException:  # after the transport was done: the answer is lost all the same
            buyer_of(self.payer).take_back(carrier, WAIT_S)
            raise

    def _paying(self, transport: httpx.BaseTransport) -> httpx.BaseTransport:
        if self._on_refusal is None and is_paying(transport, self.payer):
            if self._total is not None:
                _watch_sockets(transport)
            return transport
        return PaymentTransport(
            self.payer, transport, on_refusal=self._on_refusal, total_timeout=self._total
        )

    def _transport_for_url(self, url: httpx.URL) -> httpx.BaseTransport:
        found: httpx.BaseTransport | None = straight(self, buyer_of(self.payer), url)
        return super()._transport_for_url(url) if found is None else found

    def _init_transport(self, *args: Any, **kwargs: Any) -> httpx.BaseTransport:
        return self._paying(super()._init_transport(*args, **kwargs))

    def _init_proxy_transport(self, *args: Any, **kwargs: Any) -> httpx.BaseTransport:
        return self._paying(super()._init_proxy_transport(*args, **kwargs))


class AsyncClient(httpx.AsyncClient):
    """An ``httpx.AsyncClient`` that pays; see :class:`Client`."""

    def __init__(
        self,
        payer: Payer,
        *,
        on_refusal: OnRefusal | None = None,
        total_timeout: float | None = None,
        **kwargs: Any,
    ) -> None:
        buyer_of(payer)
        self.payer = payer
        self._on_refusal: OnRefusal | None = on_refusal
        self._total = deadline.checked(total_timeout)
        kwargs.setdefault("timeout", TIMEOUT)
        if kwargs.get("mounts"):
            mounts = kwargs["mounts"].items()
            kwargs["mounts"] = {key: t if t is None else self._paying(t) for key, t in mounts}
        super().__init__(**kwargs)

    async def send(self, request: httpx.Request, **kwargs: Any) -> httpx.Response:
        """As ``httpx.AsyncClient.send``, within ``total_timeout``."""
        carrier = Carrier()
        return await carrier.follow(self._sent(carrier, request, kwargs))

    async def _sent(self, carrier: Carrier, request: httpx.Request, kwargs: Any) -> httpx.Response:
        handed = False
        carrier.handed = lambda: handed
        try:
            with sending(carrier), deadline.calling(httpx, self._total):
                response = await super().send(request, **kwargs)
            return (response, handed := True)[0]  # in one step: see Carrier
        except BaseException as exc:
            await taken_back(buyer_of(self.payer), carrier, exc)
            raise

    def _paying(self, transport: httpx.AsyncBaseTransport) -> httpx.AsyncBaseTransport:
        if self._on_refusal is None and is_paying(transport, self.payer):
            return transport
        return AsyncPaymentTransport(
            self.payer, transport, on_refusal=self._on_refusal, total_timeout=self._total
        )

    def _transport_for_url(self, url: httpx.URL) -> httpx.AsyncBaseTransport:
        found: httpx.AsyncBaseTransport | None = straight(self, buyer_of(self.payer), url)
        return super()._transport_for_url(url) if found is None else found

    def _init_transport(self, *args: Any, **kwargs: Any) -> httpx.AsyncBaseTransport:
        return self._paying(super()._init_transport(*args, **kwargs))

    def _init_proxy_transport(self, *args: Any, **kwargs: Any) -> httpx.AsyncBaseTransport:
        return self._paying(super()._init_proxy_transport(*args, **kwargs))
