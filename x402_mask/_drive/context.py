"""What the requests of one call share, and which requests those are."""

from __future__ import annotations

import weakref
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from x402_mask._flow.records import CallState
from x402_mask._services import origin_of
from x402_mask._wire.x402 import PROOF_HEADERS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from x402_mask._drive.family import URL, Request, Response
    from x402_mask._ledger.carrier import Carrier

CONTEXT = "x402_mask_trip"
_carried: ContextVar[CallContext | None] = ContextVar("x402_mask_carried", default=None)
"""The call that a layer further out is making: what it sends, a layer below does not begin anew."""

_sender: ContextVar[Carrier | None] = ContextVar("x402_mask_sender", default=None)
"""The client's call that is going on, and that hands over whatever is paid for in it."""


def sender() -> Carrier | None:
    """Who makes the call that a transport is asked to carry, where a client of ours does.

    One that has ended stands here where an interruption came before it was taken away.
    """
    found = _sender.get()
    return found if found is not None and found.is_running else None


@contextmanager
def sending(carrier: Carrier) -> Iterator[None]:
    """While a client is at a call."""
    before = _sender.get()
    _sender.set(carrier)
    try:
        yield
    finally:
        if _sender.get() is carrier:  # a call that was dropped ends anywhere, as below
            _sender.set(before)


class CallContext:
    """What the requests of one call share: redirects copy extensions, but not what is in them."""

    __slots__ = (
        "_layers",
        "_leads_to",
        "_state",
        "_url",
        "carrier",
        "deferred",
        "private",
        "proof",
        "requests",
        "retry",
        "returns",
        "side_request",
    )

    def __init__(self, request: Request) -> None:
        self._url = request.url
        self._state: CallState | None = None
        self._layers = 0
        self.carrier: Carrier | None = None
        self.returns: bool | None = None
        self._leads_to: tuple[str, URL] | None = None
        self.requests = [weakref.ref(request)]
        self.retry: weakref.ref[Request] | None = None
        self.side_request: weakref.ref[Request] | None = None
        self.proof: tuple[str, str] | None = None
        self.private: tuple[str, ...] = ()
        self.deferred: list[tuple[Callable[[Response], Any], Response]] | None = None

    @classmethod
    def of(cls, request: Request) -> CallContext:
        """The context of the call that *request* belongs to.

        Only what a layer at this call sends goes on in it, and the request that a redirect led to,
        once.  Any other, be it made with the extensions of a call, refused, failed or answered, is
        a new call, which the ledger, not this context, keeps from paying twice.
        """
        context = request.extensions.get(CONTEXT)
        if isinstance(context, cls) and (context.is_carried or context.is_led_to(request)):
            context.requests.append(weakref.ref(request))
            return context
        context = cls(request)
        request.extensions[CONTEXT] = context
        return context

    @property
    def state(self) -> CallState:
        """What the hops share; made when somebody asks for money, which most calls never see."""
        if self._state is None:
            self._state = CallState(origin=origin_at(self._url), url=str(self._url))
        return self._state

    @property
    def is_carried(self) -> bool:
        """Whether a layer further out is at this call, here and now."""
        return self._layers > 0 and _carried.get() is self

    @contextmanager
    def carried(self) -> Iterator[None]:
        """While a layer is at this call."""
        before, sent_by = _carried.get(), _sender.get()
        _carried.set(self)
        _sender.set(None)  # what the owner's code calls meanwhile is no part of this call
        self._layers += 1
        try:
            yield
        finally:
            self._layers -= 1  # a task that was begun meanwhile may outlive the call
            if _carried.get() is self:  # a flow that was dropped ends anywhere, in anybody's call
                _carried.set(before)
                _sender.set(sent_by)

    def lead(self, request: Request, response: Response) -> None:
        """The call is answered; where that is a redirect, one request goes on in it."""
        self._leads_to = _target(request, response) if response.has_redirect_location else None

    def is_led_to(self, request: Request) -> bool:
        """Whether *request* follows the redirect that answered this call, and is the first to."""
        if self._leads_to is None or any(known() is request for known in self.requests):
            return False
        method, url = self._leads_to
        if (request.method, _place(request.url)) != (method, _place(url)):
            return False
        self._leads_to = None
        return True

    @property
    def on_side_request(self) -> bool:
        """Whether what is sent, and answered, is a side request, or where one was redirected to."""
        return self.side_request is not None and self.side_request is self.retry

    def shed(self, request: Request) -> None:
        """Take our proof off redirects, and anybody's off what leaves the origin that was named."""
        if self.proof is not None and not (self.retry is not None and self.retry() is request):
            name, value = self.proof
            if request.headers.get(name) == value:
                del request.headers[name]
        if (
            self.on_side_request
            and self.side_request is not None
            and self.side_request() is not request
        ):
            for name in (*self.private, "authorization", "cookie"):
                request.headers.pop(name, None)
        if request.url is not self._url and origin(request) != self.state.origin:
            for name in PROOF_HEADERS:
                request.headers.pop(name, None)


def origin(request: Request) -> str:
    """The origin that is asked; empty where it is not http(s), which the transport may refuse."""
    return origin_at(request.url)


def is_side_request(request: Request) -> bool:
    """Whether this is a side request of an outer layer, or where one was redirected to: its own."""
    context = request.extensions.get(CONTEXT)
    return isinstance(context, CallContext) and context.is_carried and context.on_side_request


def origin_at(url: URL) -> str:
    """The origin of *url*; empty where it is not http(s)."""
    try:
        return _known_origin(f"{url.scheme}://{url.netloc.decode('ascii')}")
    except ValueError:
        return ""


_known_origin = lru_cache(maxsize=256)(origin_of)


def _target(request: Request, response: Response) -> tuple[str, URL] | None:
    """Method and URL of the request that follows a redirect, as httpx makes it."""
    try:
        url = type(request.url)(response.headers["location"])
        if url.scheme and not url.host:
            url = url.copy_with(host=request.url.host)
        url = request.url.join(url)
    except Exception:  # noqa: BLE001  # each library has its own
        return None  # it will not follow what is no URL
    method, status = request.method, response.status_code
    if (status in (302, 303) and method != "HEAD") or (status == 301 and method == "POST"):
        method = "GET"
    return method, url


def _place(url: URL) -> tuple[str, str, int | None, str]:
    """What a hook of the caller's that adds to the query leaves alone."""
    return url.scheme, url.host, url.port, url.path
