"""Paying in an existing client: an auth flow, and the hooks that make it safe on redirects."""

from __future__ import annotations

import sys
import weakref
from collections.abc import AsyncGenerator
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Any, TypeVar, cast

import httpx

from x402_mask._drive.context import origin, sender
from x402_mask._drive.exchange import AsyncExchange, Exchange
from x402_mask._drive.hooks import AsyncDeferred, Deferred, bare, scrub, strip, wrap_hooks
from x402_mask._drive.layer import Layer
from x402_mask._drive.perform import prepare
from x402_mask._drive.refusals import returns
from x402_mask._ledger.carrier import Carrier, yes
from x402_mask._ledger.waiting import WAIT_S
from x402_mask._payer import buyer_of, payer_of
from x402_mask.httpx._transport import AsyncClient, Client, answer_so, check_sync

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from types import AsyncGeneratorType

    from x402_mask._drive.refusals import OnRefusal
    from x402_mask._payer import Payer

_AnyClient = TypeVar("_AnyClient", httpx.Client, httpx.AsyncClient)


class PaymentAuth(httpx.Auth):
    """An ``httpx.Auth`` that pays 402 answers.

    An auth flow cannot keep a proof from following a redirect to another host: with
    ``follow_redirects`` use :func:`attach`, which can.

    Args:
        payer: decides and pays.
        inner: another auth that is applied as well, outside the payment.
        on_refusal: ``"raise"`` a refusal or ``"return"`` the 402; default: as the payer says.

    Raises:
        TypeError: *payer* is no payer, or needs an async client and this one is sync.
        ValueError: *on_refusal* is neither.
    """

    def __init__(
        self,
        payer: Payer,
        inner: httpx.Auth | None = None,
        *,
        on_refusal: OnRefusal | None = None,
    ) -> None:
        prepare()
        self._layer = Layer(httpx, buyer_of(payer), on_refusal)
        self.payer = payer
        self.inner = inner
        self._prepare: Callable[[], None] | None = None

    def _other(self, request: httpx.Request) -> httpx.Auth:
        if self.inner is not None:
            return self.inner
        if request.url.username or request.url.password:
            return httpx.BasicAuth(request.url.username, request.url.password)
        return httpx.Auth()

    def sync_auth_flow(
        self, request: httpx.Request
    ) -> Generator[httpx.Request, httpx.Response, None]:
        """Send *request*; pay for it if it must be and may be."""
        check_sync(self.payer)
        if self._prepare is not None:
            self._prepare()
        carrier = Carrier(within=sender())
        return carrier.follow(self._sync_auth_flow(carrier, request))

    def _sync_auth_flow(
        self, carrier: Carrier, request: httpx.Request
    ) -> Generator[httpx.Request, httpx.Response, None]:
        outer = self._other(request).sync_auth_flow(request)
        try:
            with suppress(StopIteration), closing(outer):
                wanted = next(outer)
                while True:
                    response = yield from self._paid(carrier, wanted)
                    wanted = outer.send(response)
            carrier.handed = yes  # last, as what follows is not ours to see
        except BaseException:
            self._layer.buyer.take_back(carrier, WAIT_S)
            raise

    def _paid(
        self, carrier: Carrier, request: httpx.Request
    ) -> Generator[httpx.Request, httpx.Response, httpx.Response]:
        if not origin(request):
            return (yield request)
        exchange, sent = Exchange(self._layer, request, carrier), None
        deferred = exchange.context.deferred = []
        try:
            with exchange.context.carried():
                sent, response = exchange.start(), None
                while sent is not None:
                    response = yield sent
                    asked = scrub(response, sent, request, exchange.side_request)
                    sent = exchange.received(response, asked)
        except BaseException as exc:
            if sent is not None and sent is not request:
                bare(sent)
            # httpx closes the flow: the real exception is the context of the GeneratorExit
            exchange.failed(exc.__context__ or exc)
            raise
        assert response is not None
        answer: httpx.Response = exchange.answer()
        _become(response, answer)
        for hook, seen in deferred:
            if seen is answer:
                hook(seen)
        return answer

    def async_auth_flow(
        self, request: httpx.Request
    ) -> AsyncGenerator[httpx.Request, httpx.Response]:
        """Send *request*; pay for it if it must be and may be."""
        if self._prepare is not None:
            self._prepare()
        carrier, closable = Carrier(within=sender()), _Closable()
        flow = carrier.follow(self._async_auth_flow(carrier, closable, request))
        closable.flow = cast("Any", flow)
        return closable

    async def _async_auth_flow(
        self, carrier: Carrier, closable: _Closable, request: httpx.Request
    ) -> AsyncGenerator[httpx.Request, httpx.Response]:
        outer = self._other(request).async_auth_flow(request)
        exchange = sent = wanted = None
        try:
            with suppress(StopAsyncIteration):
                wanted = await anext(outer)
                while True:
                    if not origin(wanted):
                        wanted = await outer.asend((yield wanted))
                        continue
                    exchange = AsyncExchange(self._layer, wanted, carrier)
                    deferred = exchange.context.deferred = []
                    with exchange.context.carried():
                        sent, response = await exchange.start(), None
                        while sent is not None:
                            response = yield sent
                            asked = scrub(response, sent, wanted, exchange.side_request)
                            sent = await exchange.received(response, asked)
                    assert response is not None
                    answer: httpx.Response = exchange.answer()
                    _become(response, answer)
                    for hook, seen in deferred:
                        if seen is answer:
                            await hook(seen)
                    wanted = await outer.asend(answer)
            await outer.aclose()
            closable.done()
            carrier.handed = yes  # last, as what follows is not ours to see
        except BaseException as exc:
            if sent is not None and sent is not wanted:
                bare(sent)
            try:
                if exchange is not None:
                    await exchange.failed(exc)
            finally:
                await outer.aclose()
            raise


class _Closable(AsyncGenerator[httpx.Request, httpx.Response]):
    """An auth flow that is told why it is closed.

    httpx closes a flow when sending failed.  A sync flow finds the failure as the context of its
    ``GeneratorExit``; Python sets none for an async one, so it is looked up here.
    """

    flow: AsyncGeneratorType[httpx.Request, httpx.Response]

    def done(self) -> None:
        """Nothing failed: closing, which comes before the caller has the answer, takes no step."""
        self.aclose = self.flow.aclose  # type: ignore[method-assign]

    async def asend(self, value: Any) -> httpx.Request:
        return await self.flow.asend(value)

    async def athrow(self, *exc: Any) -> httpx.Request:
        return await self.flow.athrow(*exc)

    async def aclose(self) -> None:
        failure = sys.exc_info()[1]
        if self.flow.ag_running:
            return  # it is where the failure happened, and was closed with all that waited for it
        if failure is not None and self.flow.ag_frame is not None:
            try:
                await self.flow.athrow(failure)
            except StopAsyncIteration:
                return
            except BaseException as raised:  # the caller is about to raise it
                if raised is not failure:
                    raise
        await self.flow.aclose()


def _become(last: httpx.Response, wanted: httpx.Response) -> None:
    """Make the last answer of an auth flow, which httpx hands back, the one that is *wanted*.

    They differ where a side request came after the 402 that is handed back; httpx has read it.
    """
    if last is wanted:
        return
    last.status_code, last.request = wanted.status_code, wanted.request
    last.headers, last.stream = wanted.headers.copy(), httpx.ByteStream(wanted.content)
    last.headers.pop("content-encoding", None)
    last.extensions, last.history = wanted.extensions, wanted.history
    last.next_request = None


# --- attach ---------------------------------------------------------------------------------------


def attach(client: _AnyClient, payer: Payer, *, on_refusal: OnRefusal | None = None) -> _AnyClient:
    """Make an existing client pay, and return it.

    Uses public httpx API only: the client's ``auth`` (its own is kept and applied as well) and its
    event hooks.  A proof is taken off every redirect; response hooks do not see a 402 that is then
    paid.  A call with its own ``auth=`` is not paid.  A client that pays already stays as it is,
    but for *on_refusal*: ``"raise"`` a refusal or ``"return"`` the 402, whatever the payer says.

    Raises:
        TypeError: not a client of this family, or the payer needs an async client.
        ValueError: the client pays by another payer, as far as its public parts tell, or
            *on_refusal* is neither.
    """
    _check_client(client)
    buyer_of(payer)
    if isinstance(client, httpx.Client):
        check_sync(payer)
    paying = payer_of(client)
    if paying is payer:
        _answer_so(client, returns(on_refusal))
        return client
    if paying is not None:
        raise ValueError("this client pays by another payer")
    auth = PaymentAuth(payer, client.auth, on_refusal=on_refusal)
    auth._prepare = _keeper(client)  # noqa: SLF001  # they are made for each other
    auth._layer.way = _way(client)  # noqa: SLF001  # as above
    client.auth = auth
    return client


def _answer_so(client: Any, returned: bool | None) -> None:  # noqa: FBT001  # one of three
    """Have a client that pays already hand refusals back, or raise them."""
    if returned is None:
        return
    if isinstance(client.auth, PaymentAuth):
        client.auth._layer.returns = returned  # noqa: SLF001  # of this module
    if isinstance(client, (Client, AsyncClient)):
        answer_so(client, returned=returned)


def _way(client: httpx.Client | httpx.AsyncClient) -> Callable[[httpx.URL], Any]:
    """Which transport a client takes; to look is private, and where it fails nothing is known."""
    held = weakref.ref(client)

    def way(url: httpx.URL) -> Any:
        look = getattr(held(), "_transport_for_url", None)
        return look(url) if look is not None else None

    return way


def _keeper(client: httpx.Client | httpx.AsyncClient) -> Callable[[], None]:
    """Puts a guard among the client's hooks, again if they were all replaced."""
    guard = _async_guard(client) if isinstance(client, httpx.AsyncClient) else _guard(client)
    held = weakref.ref(client)

    def prepare() -> None:
        owner = held()
        if owner is not None and guard not in owner.event_hooks["request"]:
            owner.event_hooks["request"].append(guard)

    prepare()
    return prepare


def _check_client(client: object) -> None:
    if not isinstance(client, (httpx.Client, httpx.AsyncClient)):
        raise TypeError(f"attach() takes an {httpx.__name__} client, not {type(client).__name__}")


def _guard(client: httpx.Client) -> Callable[[httpx.Request], None]:
    held = weakref.ref(client)

    def guard(request: httpx.Request) -> None:
        strip(request)
        owner = held()
        if owner is not None:
            wrap_hooks(owner.event_hooks["response"], Deferred)

    return guard


def _async_guard(client: httpx.AsyncClient) -> Callable[[httpx.Request], Any]:
    held = weakref.ref(client)

    async def guard(request: httpx.Request) -> None:
        strip(request)
        owner = held()
        if owner is not None:
            wrap_hooks(owner.event_hooks["response"], AsyncDeferred)

    return guard
