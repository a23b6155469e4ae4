"""Paying through httpx: transports, clients, an auth flow, and ``attach``.

``x402_mask/httpx2.py`` is this file with the other family's name, made by ``make twins``.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import AsyncGenerator
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Self, TypeVar, cast

import httpx

from x402_mask import _flow
from x402_mask._body import DRAIN_S, READ_S, Gathered, body_digest, date_of, is_replayable
from x402_mask._book import WAIT_S
from x402_mask._drive import FAMILIES, Abandoned, AsyncPerformer, perform
from x402_mask._effects import (
    PAYLOAD_BYTES_MAX,
    Ask,
    Content,
    Fetch,
    Fetched,
    Fingerprint,
    Payload,
    ReadBody,
    Record,
    Reply,
)
from x402_mask._models import Receipt
from x402_mask._services import origin_of
from x402_mask._terms import Call, Trip, Verdict
from x402_mask._wire import (
    CHALLENGE_BYTES_MAX,
    PROOF_HEADERS,
    REQUIRED_HEADER,
    SETTLEMENT_HEADERS,
)
from x402_mask.errors import PaymentError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator
    from types import AsyncGeneratorType, TracebackType

    from x402_mask._effects import Effect
    from x402_mask._models import Quote
    from x402_mask._payer import Payer

__all__ = [
    "AsyncClient",
    "AsyncPaymentTransport",
    "Client",
    "PaymentAuth",
    "PaymentTransport",
    "attach",
    "receipt_of",
]

TIMEOUT = httpx.Timeout(5.0, read=60.0)
"""Default of our clients: settling on a chain takes longer than httpx's five seconds."""

_READ_HEADERS = (REQUIRED_HEADER, *SETTLEMENT_HEADERS)
_ERRAND_HEADERS = (*_READ_HEADERS, "retry-after")
_PROOFS = frozenset(name.lower() for name in PROOF_HEADERS)
_SLOT = "x402_mask_trip"
_KNOWN = {_SLOT, "x402_mask"}
_AnyClient = TypeVar("_AnyClient", httpx.Client, httpx.AsyncClient)


def receipt_of(response: httpx.Response) -> Receipt | None:
    """What was paid for *response*, or ``None``."""
    found = response.extensions.get("x402_mask")
    return found if isinstance(found, Receipt) else None


# --- one call, in either colour -------------------------------------------------------------------


class _Slot:
    """What the requests of one call share: redirects copy extensions, but not what is in them."""

    __slots__ = (
        "_trip", "_url", "deferred", "errand", "over", "private", "proof", "requests", "retry",
    )  # fmt: skip

    def __init__(self, request: httpx.Request) -> None:
        self._url = request.url
        self._trip: Trip | None = None
        self.requests = [weakref.ref(request)]
        self.retry: weakref.ref[httpx.Request] | None = None
        self.errand: weakref.ref[httpx.Request] | None = None
        self.proof: tuple[str, str] | None = None
        self.private: tuple[str, ...] = ()
        self.over = False
        self.deferred: list[tuple[Callable[[httpx.Response], Any], httpx.Response]] | None = None

    @classmethod
    def of(cls, request: httpx.Request) -> _Slot:
        """The slot of the call that *request* belongs to.

        A redirect is a new request that carries the slot on.  The same request sent again, or one
        made with the extensions of a call that is over, is a new call, which the ledger, not this
        slot, keeps from paying twice.
        """
        slot = request.extensions.get(_SLOT)
        if isinstance(slot, cls) and not slot.over and not slot.knows(request):
            slot.requests.append(weakref.ref(request))
            return slot
        slot = cls(request)
        request.extensions[_SLOT] = slot
        return slot

    @property
    def trip(self) -> Trip:
        """What the hops share; made when somebody asks for money, which most calls never see."""
        if self._trip is None:
            self._trip = Trip(origin=_origin_of(self._url), url=str(self._url))
        return self._trip

    def knows(self, request: httpx.Request) -> bool:
        """Whether *request* was already sent in this call."""
        return any(known() is request for known in self.requests)

    @property
    def on_errand(self) -> bool:
        """Whether what is sent, and answered, is an errand, or where one was redirected to."""
        return self.errand is not None and self.errand is self.retry

    def shed(self, request: httpx.Request) -> None:
        """Take every proof off a request that leaves the origin the caller named."""
        if self.on_errand and self.errand is not None and self.errand() is not request:
            for name in (*self.private, "authorization", "cookie"):
                request.headers.pop(name, None)
        if _origin(request) != self.trip.origin:
            for name in PROOF_HEADERS:
                request.headers.pop(name, None)


class _Session:
    """What both colours of a call have in common: everything but waiting."""

    def __init__(self, payer: Payer, request: httpx.Request) -> None:
        self.payer = payer
        self.request = request
        self.slot = _Slot.of(request)
        self.response: httpx.Response | None = None
        self.gathered: Gathered | None = None
        self.errand: httpx.Request | None = None
        self.cookies: httpx.Cookies | None = None
        self.flow: Generator[Effect, Any, Verdict] = _flow.converse(payer, self._call())

    def _call(self) -> Call:
        options = self.request.extensions.get("x402_mask")
        key = options.get("operation") if isinstance(options, dict) else None
        if key is not None and not isinstance(key, str):
            raise TypeError('extensions={"x402_mask": {"operation": ...}} is a str')
        timeout = self.request.extensions.get("timeout")
        return Call(
            method=self.request.method,
            url=_url(self.request),
            trip=self.slot.trip,
            key=key,
            wait_s=timeout.get("read") if isinstance(timeout, dict) else None,
            has_proof=_unpaid(options) or not _PROOFS.isdisjoint(self.request.headers.keys()),
        )

    def reply(self, response: httpx.Response, request: httpx.Request) -> Reply:
        """The response as the conversation sees it; a plain answer costs next to nothing."""
        self.response = response
        self.request = request
        found = _lists(response, _READ_HEADERS)
        paid = self.slot.retry() if self.slot.retry is not None else None
        for hop in response.history:
            if hop.request is paid:  # a paid answer that redirected, seen by an auth flow
                found |= _lists(hop, SETTLEMENT_HEADERS)
        date = date_of(response.headers.get("date")) if response.status_code == 402 else None
        return Reply(status=response.status_code, url=_url(request), headers=found, date=date)

    def paid_request(self, proof: tuple[str, str]) -> httpx.Request:
        """A copy of the request that carries the proof: the caller's own request never does."""
        request = self.request
        headers = request.headers.copy()
        headers[proof[0]] = proof[1]
        retry = httpx.Request(
            request.method,
            request.url,
            headers=headers,
            stream=request.stream,
            extensions=request.extensions,
        )
        if _in_memory(request):
            retry.read()
        if self.response is not None and "set-cookie" in self.response.headers:
            self.response.request = request
            _carry_cookies(self.response.cookies, retry)
        if self.cookies is not None:
            _carry_cookies(self.cookies, retry)
        self.slot.retry, self.slot.proof = weakref.ref(retry), proof
        self.slot.requests.append(self.slot.retry)
        return retry

    def errand_request(self, wanted: Fetch) -> httpx.Request:
        """Another request to the same origin: nothing of the caller's goes along but its name."""
        url = self.request.url.copy_with(
            username=None, password=None, raw_path=wanted.path.encode("ascii"), fragment=None
        )
        headers = {"accept": "application/json", "accept-encoding": "gzip, deflate"}
        if "user-agent" in self.request.headers:
            headers["user-agent"] = self.request.headers["user-agent"]
        if wanted.content is not None:
            headers["content-type"] = "application/json"
        named = httpx.Headers(headers)
        named.update(wanted.headers)
        errand = httpx.Request(
            wanted.method, url, headers=named, content=wanted.content,
            extensions=self.request.extensions,
        )  # fmt: skip
        if self.cookies is not None:
            _carry_cookies(self.cookies, errand)
        if wanted.proof is not None:
            errand.headers[wanted.proof[0]] = wanted.proof[1]
            self.slot.proof = wanted.proof
        self.slot.retry = self.slot.errand = weakref.ref(errand)
        self.slot.private = tuple(wanted.headers)
        self.slot.requests.append(self.slot.errand)
        self.errand = errand
        return errand

    def asked(self, sent: httpx.Request, request: httpx.Request) -> httpx.Request:
        """What an answer to *sent* answers: the errand, or the call."""
        return sent if sent is self.errand else request

    def fetched(
        self, response: httpx.Response, request: httpx.Request, gathered: Gathered
    ) -> Fetched:
        """An errand's answer as the conversation sees it; one that was redirected says nothing."""
        errand, self.errand = self.errand, None
        assert errand is not None
        body = gathered.decoded(response.headers.get("content-encoding", ""))
        self.emptied(response)
        straight = request is errand
        if straight and "set-cookie" in response.headers:
            self._keep_cookies(response, errand)
        return Fetched(
            status=response.status_code if straight else 302,
            url=str(errand.url),
            headers=_lists(response, _ERRAND_HEADERS) if straight else {},
            body=body if straight else None,
            date=date_of(response.headers.get("date")),
        )

    def _keep_cookies(self, response: httpx.Response, errand: httpx.Request) -> None:
        """For the rest of this call: a marketplace may know by them whose payment it is."""
        response.request = errand
        self.cookies = httpx.Cookies() if self.cookies is None else self.cookies
        self.cookies.extract_cookies(response)

    def park(self) -> httpx.ByteStream:
        """What is kept of a 402 while its connection is used for an errand."""
        return httpx.ByteStream(b"".join(self.gathered.chunks) if self.gathered else b"")

    @staticmethod
    def emptied(response: httpx.Response) -> None:
        """Leave nothing to read in a 402 that is discarded: under an auth flow httpx reads it."""
        response.headers.pop("content-encoding", None)
        response.stream = httpx.ByteStream(b"")

    def throw(self, exc: BaseException) -> Effect:
        """Tell the conversation of a failure."""
        return self.flow.throw(Abandoned() if isinstance(exc, GeneratorExit) else exc)

    def fingerprint(self) -> str | None:
        """Digest of the request body, or ``None`` if it can be sent only once."""
        content_type = self.request.headers.get("content-type", "")
        if _in_memory(self.request):
            return body_digest((self.request.content,), content_type)
        if not is_replayable(self.request.stream):
            return None
        return body_digest(cast("Any", self.request.stream), content_type)

    def payload(self) -> Content | None:
        """The request body, if it is in memory, in plain, and not too long to be looked at."""
        if "content-encoding" in self.request.headers or not _in_memory(self.request):
            return None
        if len(self.request.content) > PAYLOAD_BYTES_MAX:
            return None
        return Content(self.request.content, self.request.headers.get("content-type", ""))

    def body(self) -> bytes | None:
        """The 402's body, if all of it was read and it could be decoded."""
        assert self.gathered is not None
        assert self.response is not None
        return self.gathered.decoded(self.response.headers.get("content-encoding", ""))

    def watch(self, response: httpx.Response, payment_id: str) -> None:
        """If reading the paid answer fails, it was not delivered."""
        raise NotImplementedError

    def conclude(self, verdict: Verdict) -> None:
        """Put the verdict on the response that is handed back."""
        assert self.response is not None
        receipt = verdict.receipt
        if verdict.delivered and receipt is not None and receipt.route != "held-token":
            self.watch(self.response, receipt.payment_id)
        self.slot.over = not self.response.has_redirect_location
        if verdict.receipt is not None:
            self.response.extensions["x402_mask"] = verdict.receipt
        if verdict.refusal is not None:
            self.response.extensions["x402_mask_refusal"] = verdict.refusal
            verdict.refusal.response = self.response

    def detached(self) -> httpx.Response:
        """The 402 with as much of its body as was read, free of its connection.

        What could not be decoded within the limit is there as it came over the wire.
        """
        assert self.response is not None
        headers = self.response.headers.copy()
        for name in ("content-encoding", "content-length", "transfer-encoding"):
            headers.pop(name, None)  # of what was sent, not of what is here
        raw = b"".join(self.gathered.chunks) if self.gathered is not None else b""
        known = self.body() if self.gathered is not None else None
        copy = httpx.Response(
            self.response.status_code,
            headers=headers,
            stream=httpx.ByteStream(raw if known is None else known),
            request=self.request,
        )
        copy.read()
        return copy


def _lists(response: httpx.Response, names: tuple[str, ...]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, value in response.headers.multi_items():  # in lower case
        if name in names:
            found.setdefault(name, []).append(value)
    return found


def _in_memory(request: httpx.Request) -> bool:
    """Whether the body is bytes; makes ``request.content`` work where it is."""
    if isinstance(request.stream, httpx.ByteStream):
        request.read()  # on a redirect the body is there, and not yet "read"
        return True
    return False


def _origin(request: httpx.Request) -> str:
    """The origin that is asked; empty where it is not http(s), which the transport may refuse."""
    return _origin_of(request.url)


def _origin_of(url: httpx.URL) -> str:
    try:
        return _known_origin(f"{url.scheme}://{url.netloc.decode('ascii')}")
    except ValueError:
        return ""


_known_origin = lru_cache(maxsize=256)(origin_of)


def _url(request: httpx.Request) -> str:
    """The URL without user and password: it is shown to approvers and written down."""
    url = request.url
    return str(url.copy_with(username=None, password=None) if url.userinfo else url)


def _carry_cookies(given: httpx.Cookies, request: httpx.Request) -> None:
    """Send the cookies that the seller gave, besides those the request has."""
    bare = httpx.Request(request.method, request.url)
    given.set_cookie_header(bare)
    fresh = bare.headers.get("cookie")
    if fresh:
        names = {part.partition("=")[0].strip() for part in fresh.split(";")}
        sent = [p.strip() for line in request.headers.get_list("cookie") for p in line.split(";")]
        kept = [part for part in sent if part and part.partition("=")[0].strip() not in names]
        request.headers["cookie"] = "; ".join([*kept, fresh])


def _unpaid(options: object) -> bool:
    """Whether the caller said of this one call that it is never paid: ``{"pay": False}``."""
    return isinstance(options, dict) and options.get("pay", True) is False


class _SyncSession(_Session):
    """One call, sync: give it responses, it gives the next request to send."""

    def start(self) -> httpx.Request | None:
        """The first request to send."""
        return self._pump(lambda: next(self.flow))

    def received(self, response: httpx.Response, request: httpx.Request) -> httpx.Request | None:
        """The next request to send, or ``None`` when ``self.response`` is the answer."""
        if self.errand is None:
            return self._pump(lambda: self.flow.send(self.reply(response, request)))
        try:
            answer = self._fetched(response, request)
        except BaseException as exc:  # noqa: BLE001  # the flow decides
            failure = exc
            return self._pump(lambda: self.throw(failure))
        return self._pump(lambda: self.flow.send(answer))

    def _fetched(self, response: httpx.Response, request: httpx.Request) -> Fetched:
        gathered, source = Gathered(READ_S), response.stream
        assert isinstance(source, httpx.SyncByteStream)
        try:
            for chunk in source:
                if not gathered.add(chunk):
                    break
            else:
                gathered.complete = True
        finally:
            source.close()
        return self.fetched(response, request, gathered)

    def failed(self, exc: BaseException) -> None:
        """Sending failed: the conversation writes down what that means."""
        try:
            self._pump(lambda: self.throw(exc))
        except BaseException as raised:  # re-raised unless it is the same
            if raised is not exc and not isinstance(raised, Abandoned):
                raise

    def _pump(self, step: Callable[[], Effect]) -> httpx.Request | None:
        try:
            effect = step()
            while not isinstance(effect, (Ask, Fetch)):
                try:
                    answer = self._perform(effect)
                except BaseException as exc:  # noqa: BLE001  # the flow decides
                    effect = self.throw(exc)
                else:
                    effect = self.flow.send(answer)
        except StopIteration as stop:
            self.conclude(stop.value)
            return None
        except BaseException as exc:
            self._abandon(exc)
            raise
        if isinstance(effect, Fetch):
            return self._errand(effect)
        if effect.proof is None:
            return self.request
        return self._paid(effect.proof)

    def _errand(self, wanted: Fetch) -> httpx.Request:
        try:
            errand = self.errand_request(wanted)
            if self.response is not None:
                assert isinstance(self.response.stream, httpx.SyncByteStream)
                self.response.stream.close()
                self.response.stream = self.park()
        except BaseException as exc:
            self.failed(exc)
            raise
        return errand

    def _paid(self, proof: tuple[str, str]) -> httpx.Request:
        try:
            retry = self.paid_request(proof)
            self._discard()
        except BaseException as exc:
            self.failed(exc)
            raise
        return retry

    def _perform(self, effect: Effect) -> Any:
        if isinstance(effect, ReadBody):
            return self.read(wanted=effect.wanted)
        if isinstance(effect, Fingerprint):
            return self.fingerprint()
        if isinstance(effect, Payload):
            return self.payload()
        assert not isinstance(effect, (Ask, Fetch))
        return perform(effect)

    def read(self, *, wanted: bool) -> bytes | None:
        """The 402's body, as far as the limit goes; the response can still be read in full.

        Where it is not *wanted*, because a header decides, one that breaks off is no body.
        """
        response = self.response
        assert response is not None
        self.gathered = gathered = Gathered(READ_S if wanted else DRAIN_S)
        source = response.stream
        assert isinstance(source, httpx.SyncByteStream)
        chunks = iter(source)
        try:
            for chunk in chunks:
                if not gathered.add(chunk):
                    break
            else:
                gathered.complete = True
        except httpx.TransportError:
            if wanted:
                raise
        response.stream = _Rewound(gathered.chunks, chunks, source)
        return self.body()

    def _discard(self) -> None:
        """Let go of the 402 before the retry, so that a pool of one connection suffices."""
        if self.response is not None:
            assert isinstance(self.response.stream, httpx.SyncByteStream)
            self.response.stream.close()
            self.emptied(self.response)

    def _abandon(self, exc: BaseException) -> None:
        if self.response is None:
            return
        if isinstance(exc, PaymentError):
            exc.response = self.detached()
        self.response.close()

    def watch(self, response: httpx.Response, payment_id: str) -> None:
        source = response.stream
        assert isinstance(source, httpx.SyncByteStream)
        response.stream = _Watched(source, lambda: self.payer.reopen(payment_id, WAIT_S))


class _AsyncSession(_Session):
    """:class:`_SyncSession`, async."""

    def __init__(self, payer: Payer, request: httpx.Request) -> None:
        super().__init__(payer, request)
        self._performer = AsyncPerformer(inline=payer.ledger.inline)

    async def start(self) -> httpx.Request | None:
        """The first request to send."""
        return await self._pump(lambda: next(self.flow))

    async def received(
        self, response: httpx.Response, request: httpx.Request
    ) -> httpx.Request | None:
        """The next request to send, or ``None`` when ``self.response`` is the answer."""
        if self.errand is None:
            return await self._pump(lambda: self.flow.send(self.reply(response, request)))
        try:
            answer = await self._fetched(response, request)
        except BaseException as exc:  # noqa: BLE001  # the flow decides
            failure = exc
            return await self._pump(lambda: self.throw(failure))
        return await self._pump(lambda: self.flow.send(answer))

    async def _fetched(self, response: httpx.Response, request: httpx.Request) -> Fetched:
        gathered, source = Gathered(READ_S), response.stream
        assert isinstance(source, httpx.AsyncByteStream)
        try:
            async for chunk in source:
                if not gathered.add(chunk):
                    break
            else:
                gathered.complete = True
        finally:
            await source.aclose()
        return self.fetched(response, request, gathered)

    async def failed(self, exc: BaseException) -> None:
        """Sending failed: the conversation writes down what that means."""
        try:
            await self._pump(lambda: self.throw(exc))
        except BaseException as raised:  # re-raised unless it is the same
            if raised is not exc and not isinstance(raised, GeneratorExit):
                raise

    def throw(self, exc: BaseException) -> Effect:
        """Tell the conversation of a failure; a coroutine that is being closed cannot wait."""
        self._performer.may_wait = not isinstance(exc, GeneratorExit)
        return super().throw(exc)

    async def _pump(self, step: Callable[[], Effect]) -> httpx.Request | None:
        try:
            effect = step()
            while not isinstance(effect, (Ask, Fetch)):
                try:
                    answer = await self._perform(effect)
                except BaseException as exc:  # noqa: BLE001  # the flow decides
                    effect = self.throw(exc)
                else:
                    effect = self.flow.send(answer)
        except StopIteration as stop:
            self.conclude(stop.value)
            return None
        except Abandoned:
            raise GeneratorExit from None
        except BaseException as exc:
            await self._abandon(exc)
            raise
        if isinstance(effect, Fetch):
            return await self._errand(effect)
        if effect.proof is None:
            return self.request
        return await self._paid(effect.proof)

    async def _errand(self, wanted: Fetch) -> httpx.Request:
        try:
            await self._performer.deliver()
            errand = self.errand_request(wanted)
            if self.response is not None:
                assert isinstance(self.response.stream, httpx.AsyncByteStream)
                await self.response.stream.aclose()
                self.response.stream = self.park()
        except BaseException as exc:
            await self.failed(exc)
            raise
        return errand

    async def _paid(self, proof: tuple[str, str]) -> httpx.Request:
        try:
            await self._performer.deliver()
            retry = self.paid_request(proof)
            await self._discard()
        except BaseException as exc:
            await self.failed(exc)
            raise
        return retry

    async def _perform(self, effect: Effect) -> Any:
        if isinstance(effect, ReadBody):
            return await self.read(wanted=effect.wanted)
        if isinstance(effect, Fingerprint):
            return self.fingerprint()
        if isinstance(effect, Payload):
            return self.payload()
        assert not isinstance(effect, (Ask, Fetch))
        return await self._performer.perform(effect)

    async def read(self, *, wanted: bool) -> bytes | None:
        """The 402's body, as far as the limit goes; the response can still be read in full."""
        response = self.response
        assert response is not None
        self.gathered = gathered = Gathered(READ_S if wanted else DRAIN_S)
        source = response.stream
        assert isinstance(source, httpx.AsyncByteStream)
        chunks = source.__aiter__()
        try:
            async for chunk in chunks:
                if not gathered.add(chunk):
                    break
            else:
                gathered.complete = True
        except httpx.TransportError:
            if wanted:
                raise
        response.stream = _AsyncRewound(gathered.chunks, chunks, source)
        return self.body()

    async def _discard(self) -> None:
        """Let go of the 402 before the retry, so that a pool of one connection suffices."""
        if self.response is not None:
            assert isinstance(self.response.stream, httpx.AsyncByteStream)
            await self.response.stream.aclose()
            self.emptied(self.response)

    async def _abandon(self, exc: BaseException) -> None:
        if self.response is None:
            return
        if isinstance(exc, PaymentError):
            exc.response = self.detached()
        from anyio import CancelScope  # noqa: PLC0415

        with CancelScope(shield=True):
            await self.response.aclose()

    def watch(self, response: httpx.Response, payment_id: str) -> None:
        source = response.stream
        assert isinstance(source, httpx.AsyncByteStream)
        lost = Record(lambda wait_s: self.payer.reopen(payment_id, wait_s))
        response.stream = _AsyncWatched(source, lambda: self._performer.perform(lost))


class _Around:
    """A stream in place of another, which still knows what the client asks it for."""

    _source: Any

    @property
    def elapsed(self) -> Any:
        """How long the exchange took, in a family that keeps this with the stream."""
        return getattr(self._source, "elapsed", None)


class _Watched(_Around, httpx.SyncByteStream):
    """The body of a paid answer: one that breaks off was not delivered.

    A caller that stops reading has got what it wanted; that is not a failure.
    """

    def __init__(self, source: httpx.SyncByteStream, lost: Callable[[], None]) -> None:
        self._source, self._lost = source, lost

    def __iter__(self) -> Iterator[bytes]:
        try:
            yield from self._source
        except GeneratorExit:
            raise
        except BaseException:
            self._lost()
            raise

    def close(self) -> None:
        try:
            self._source.close()
        except BaseException:
            self._lost()
            raise


class _AsyncWatched(_Around, httpx.AsyncByteStream):
    """:class:`_Watched`, async."""

    def __init__(self, source: httpx.AsyncByteStream, lost: Callable[[], Awaitable[Any]]) -> None:
        self._source, self._lost = source, lost

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for chunk in self._source:
                yield chunk
        except GeneratorExit:
            raise
        except BaseException:
            await self._lost()
            raise

    async def aclose(self) -> None:
        try:
            await self._source.aclose()
        except BaseException:
            await self._lost()
            raise


class _Rewound(_Around, httpx.SyncByteStream):
    """A stream whose start was read: gives that again, then the rest."""

    def __init__(
        self, start: list[bytes], rest: Iterator[bytes], source: httpx.SyncByteStream
    ) -> None:
        self._start, self._rest, self._source = start, rest, source

    def __iter__(self) -> Iterator[bytes]:
        yield from self._start
        yield from self._rest

    def close(self) -> None:
        self._source.close()


class _AsyncRewound(_Around, httpx.AsyncByteStream):
    """:class:`_Rewound`, async."""

    def __init__(
        self, start: list[bytes], rest: AsyncIterator[bytes], source: httpx.AsyncByteStream
    ) -> None:
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


# --- transports -----------------------------------------------------------------------------------


class PaymentTransport(httpx.BaseTransport):
    """An httpx transport that pays 402 answers within the payer's caps.

    Args:
        payer: decides and pays.
        inner: the transport that is wrapped; default ``httpx.HTTPTransport()``.

    Raises:
        TypeError: *inner* is not an httpx transport, or the payer needs an async client.
    """

    def __init__(self, payer: Payer, inner: httpx.BaseTransport | None = None) -> None:
        _check_sync(payer)
        self.payer = payer
        self.inner = httpx.HTTPTransport() if inner is None else _checked(inner, "handle_request")

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send *request*; pay for it if it must be and may be."""
        response = None
        eager = self.payer.sends_first(request.url)
        if not eager and not _KNOWN & request.extensions.keys():  # most calls
            response = self.inner.handle_request(request)
            if response.status_code != 402:
                if response.has_redirect_location:  # the next hop belongs to this call
                    request.extensions[_SLOT] = _Slot(request)
                return response
        return self._converse(request, response)

    def _converse(self, request: httpx.Request, response: httpx.Response | None) -> httpx.Response:
        """Go on from the first *response*, or from the start."""
        if not _origin(request):
            return response or self.inner.handle_request(request)
        session = _SyncSession(self.payer, request)
        session.slot.shed(request)
        sent = session.start()
        while sent is not None:
            try:
                answer = self.inner.handle_request(sent) if response is None else response
            except BaseException as exc:
                session.failed(exc)
                raise
            sent, response = session.received(answer, session.asked(sent, request)), None
        assert session.response is not None
        return session.response

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

    Raises:
        TypeError: *inner* is not an async httpx transport.
    """

    def __init__(self, payer: Payer, inner: httpx.AsyncBaseTransport | None = None) -> None:
        self.payer = payer
        self.inner = (
            httpx.AsyncHTTPTransport() if inner is None else _checked(inner, "handle_async_request")
        )

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send *request*; pay for it if it must be and may be."""
        response = None
        eager = self.payer.sends_first(request.url)
        if not eager and not _KNOWN & request.extensions.keys():  # most calls
            response = await self.inner.handle_async_request(request)
            if response.status_code != 402:
                if response.has_redirect_location:  # the next hop belongs to this call
                    request.extensions[_SLOT] = _Slot(request)
                return response
        return await self._converse(request, response)

    async def _converse(
        self, request: httpx.Request, response: httpx.Response | None
    ) -> httpx.Response:
        """Go on from the first *response*, or from the start."""
        if not _origin(request):
            return response or await self.inner.handle_async_request(request)
        session = _AsyncSession(self.payer, request)
        session.slot.shed(request)
        sent = await session.start()
        while sent is not None:
            try:
                answer = (
                    await self.inner.handle_async_request(sent) if response is None else response
                )
            except BaseException as exc:
                await session.failed(exc)
                raise
            asked = session.asked(sent, request)
            sent, response = await session.received(answer, asked), None
        assert session.response is not None
        return session.response

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


def _checked(inner: Any, method: str) -> Any:
    """Whether *inner* is a transport of this family; mixing them fails deep inside, wordless."""
    families = {kind.__module__.partition(".")[0] for kind in type(inner).__mro__}
    ours = httpx.BaseTransport.__module__.partition(".")[0]
    if not callable(getattr(inner, method, None)) or families & (FAMILIES - {ours}):
        raise TypeError(
            f"{type(inner).__name__} is not a transport of {httpx.__name__} with {method}()"
        )
    return inner


def _check_sync(payer: Payer) -> None:
    if payer.needs_async is not None:
        raise TypeError(f"the payer's {payer.needs_async} is async: use an async client")


# --- clients --------------------------------------------------------------------------------------


class Client(httpx.Client):
    """An ``httpx.Client`` that pays.  Everything else works as in httpx.

    ``verify``, ``limits``, ``http2``, ``proxy``, ``mounts`` and environment proxies keep working,
    and are paid through.  The default time-out is 5 s, and 60 s to read.
    """

    def __init__(self, payer: Payer, **kwargs: Any) -> None:
        _check_sync(payer)
        self._payer = payer
        kwargs.setdefault("timeout", TIMEOUT)
        if kwargs.get("mounts"):
            mounts = kwargs["mounts"].items()
            kwargs["mounts"] = {key: t if t is None else self._paying(t) for key, t in mounts}
        super().__init__(**kwargs)

    def _paying(self, transport: httpx.BaseTransport) -> httpx.BaseTransport:
        if isinstance(transport, PaymentTransport):
            return transport
        return PaymentTransport(self._payer, transport)

    def _init_transport(self, *args: Any, **kwargs: Any) -> httpx.BaseTransport:
        return self._paying(super()._init_transport(*args, **kwargs))

    def _init_proxy_transport(self, *args: Any, **kwargs: Any) -> httpx.BaseTransport:
        return self._paying(super()._init_proxy_transport(*args, **kwargs))


class AsyncClient(httpx.AsyncClient):
    """An ``httpx.AsyncClient`` that pays; see :class:`Client`."""

    def __init__(self, payer: Payer, **kwargs: Any) -> None:
        self._payer = payer
        kwargs.setdefault("timeout", TIMEOUT)
        if kwargs.get("mounts"):
            mounts = kwargs["mounts"].items()
            kwargs["mounts"] = {key: t if t is None else self._paying(t) for key, t in mounts}
        super().__init__(**kwargs)

    def _paying(self, transport: httpx.AsyncBaseTransport) -> httpx.AsyncBaseTransport:
        if isinstance(transport, AsyncPaymentTransport):
            return transport
        return AsyncPaymentTransport(self._payer, transport)

    def _init_transport(self, *args: Any, **kwargs: Any) -> httpx.AsyncBaseTransport:
        return self._paying(super()._init_transport(*args, **kwargs))

    def _init_proxy_transport(self, *args: Any, **kwargs: Any) -> httpx.AsyncBaseTransport:
        return self._paying(super()._init_proxy_transport(*args, **kwargs))


# --- auth flow and attach -------------------------------------------------------------------------


class PaymentAuth(httpx.Auth):
    """An ``httpx.Auth`` that pays 402 answers.

    An auth flow cannot keep a proof from following a redirect to another host: with
    ``follow_redirects`` use :func:`attach`, which can.

    Args:
        payer: decides and pays.
        inner: another auth that is applied as well, outside the payment.
    """

    def __init__(self, payer: Payer, inner: httpx.Auth | None = None) -> None:
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
        _check_sync(self.payer)
        if self._prepare is not None:
            self._prepare()
        outer = self._other(request).sync_auth_flow(request)
        try:
            wanted = next(outer)
            while True:
                response = yield from self._paid(wanted)
                wanted = outer.send(response)
        except StopIteration:
            return
        finally:
            outer.close()

    def _paid(
        self, request: httpx.Request
    ) -> Generator[httpx.Request, httpx.Response, httpx.Response]:
        if not _origin(request):
            return (yield request)
        session = _SyncSession(self.payer, request)
        deferred = session.slot.deferred = []
        sent, response = session.start(), None
        while sent is not None:
            try:
                response = yield sent
            except BaseException as exc:
                if sent is not request:
                    _bare(sent)
                # httpx closes the flow: the real exception is the context of the GeneratorExit
                session.failed(exc.__context__ or exc)
                raise
            asked = _scrub(response, sent, request, session.errand)
            sent = session.received(response, asked)
        assert response is not None
        assert session.response is not None
        _become(response, session.response)
        for hook, seen in deferred:
            if seen is session.response:
                hook(seen)
        return session.response

    def async_auth_flow(
        self, request: httpx.Request
    ) -> AsyncGenerator[httpx.Request, httpx.Response]:
        """Send *request*; pay for it if it must be and may be."""
        if self._prepare is not None:
            self._prepare()
        return _Closable(cast("Any", self._async_auth_flow(request)))

    async def _async_auth_flow(
        self, request: httpx.Request
    ) -> AsyncGenerator[httpx.Request, httpx.Response]:
        outer = self._other(request).async_auth_flow(request)
        try:
            wanted = await anext(outer)
            while True:
                if not _origin(wanted):
                    wanted = await outer.asend((yield wanted))
                    continue
                session = _AsyncSession(self.payer, wanted)
                deferred = session.slot.deferred = []
                sent, response = await session.start(), None
                while sent is not None:
                    try:
                        response = yield sent
                    except BaseException as exc:
                        if sent is not wanted:
                            _bare(sent)
                        await session.failed(exc)
                        raise
                    asked = _scrub(response, sent, wanted, session.errand)
                    sent = await session.received(response, asked)
                assert response is not None
                assert session.response is not None
                _become(response, session.response)
                for hook, seen in deferred:
                    if seen is session.response:
                        await hook(seen)
                wanted = await outer.asend(session.response)
        except StopAsyncIteration:
            return
        finally:
            await outer.aclose()


class _Closable(AsyncGenerator[httpx.Request, httpx.Response]):
    """An auth flow that is told why it is closed.

    httpx closes a flow when sending failed.  A sync flow finds the failure as the context of its
    ``GeneratorExit``; Python sets none for an async one, so it is looked up here.
    """

    def __init__(self, flow: AsyncGeneratorType[httpx.Request, httpx.Response]) -> None:
        self._flow = flow

    async def asend(self, value: Any) -> httpx.Request:
        return await self._flow.asend(value)

    async def athrow(self, *exc: Any) -> httpx.Request:
        return await self._flow.athrow(*exc)

    async def aclose(self) -> None:
        failure = sys.exc_info()[1]
        if self._flow.ag_running:
            return  # it is where the failure happened, and was closed with all that waited for it
        if failure is not None and self._flow.ag_frame is not None:
            try:
                await self._flow.athrow(failure)
            except StopAsyncIteration:
                return
            except BaseException as raised:  # the caller is about to raise it
                if raised is not failure:
                    raise
        await self._flow.aclose()


def _scrub(
    response: httpx.Response,
    sent: httpx.Request,
    request: httpx.Request,
    errand: httpx.Request | None,
) -> httpx.Request:
    """Keep the proof out of what the caller can look at afterwards; what was asked is returned."""
    if sent is request:
        return response.request
    _bare(sent)
    if response.next_request is not None:
        _bare(response.next_request)
    if sent is errand:
        return response.request
    if response.request is not sent:
        return response.request  # where a redirect led, without the proof
    response.request = request
    return request


def _become(last: httpx.Response, wanted: httpx.Response) -> None:
    """Make the last answer of an auth flow, which httpx hands back, the one that is *wanted*.

    They differ where an errand came after the 402 that is handed back; httpx has read that one.
    """
    if last is wanted:
        return
    last.status_code, last.request = wanted.status_code, wanted.request
    last.headers, last.stream = wanted.headers.copy(), httpx.ByteStream(wanted.content)
    last.headers.pop("content-encoding", None)
    last.extensions, last.history = wanted.extensions, wanted.history
    last.next_request = None


def _bare(request: httpx.Request) -> None:
    """Take the proof off a request that was sent: errors and histories go on showing it."""
    for name in PROOF_HEADERS:
        request.headers.pop(name, None)


def attach(client: _AnyClient, payer: Payer) -> _AnyClient:
    """Make an existing client pay, and return it.

    Uses public httpx API only: the client's ``auth`` (its own is kept and applied as well) and its
    event hooks.  A proof is taken off every redirect; response hooks do not see a 402 that is then
    paid.  A call with its own ``auth=`` is not paid.

    Raises:
        TypeError: not a client of this family, or the payer needs an async client.
        ValueError: the client is attached to another payer.
    """
    _check_client(client)
    if isinstance(client, httpx.Client):
        _check_sync(payer)
    if isinstance(client.auth, PaymentAuth):
        if client.auth.payer is not payer:
            raise ValueError("this client is attached to another payer")
        return client
    auth = PaymentAuth(payer, client.auth)
    auth._prepare = _keeper(client)  # noqa: SLF001  # they are made for each other
    client.auth = auth
    return client


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
        _strip(request)
        owner = held()
        if owner is not None:
            _wrap_hooks(owner.event_hooks["response"], _Deferred)

    return guard


def _async_guard(client: httpx.AsyncClient) -> Callable[[httpx.Request], Any]:
    held = weakref.ref(client)

    async def guard(request: httpx.Request) -> None:
        _strip(request)
        owner = held()
        if owner is not None:
            _wrap_hooks(owner.event_hooks["response"], _AsyncDeferred)

    return guard


def _strip(request: httpx.Request) -> None:
    """Take our proof off redirects, and anybody's proof off other origins."""
    slot = request.extensions.get(_SLOT)
    if not isinstance(slot, _Slot):
        slot = request.extensions[_SLOT] = _Slot(request)
    retry = slot.retry() if slot.retry is not None else None
    if slot.proof is not None and retry is not request:
        name, value = slot.proof
        if request.headers.get(name) == value:
            del request.headers[name]
    slot.shed(request)


def _wrap_hooks(hooks: list[Any], wrapper: Callable[[Any], Any]) -> None:
    """Wrap the client's response hooks, those added since the last call as well."""
    hooks[:] = [hook if isinstance(hook, _Deferred) else wrapper(hook) for hook in hooks]


class _Deferred:
    """A response hook that waits with a 402 until it is known to be handed back."""

    __slots__ = ("hook",)

    def __init__(self, hook: Callable[[httpx.Response], Any]) -> None:
        self.hook = hook

    def __call__(self, response: httpx.Response) -> Any:
        if not self.waits(response):
            self.hook(response)

    def waits(self, response: httpx.Response) -> bool:
        """Whether the hook is put off."""
        slot = response.request.extensions.get(_SLOT)
        if isinstance(slot, _Slot) and slot.on_errand:
            return True  # an errand of ours is no answer of the caller's
        if response.status_code != 402 or not isinstance(slot, _Slot) or slot.deferred is None:
            return False
        slot.deferred.append((self.hook, response))
        return True

    def __eq__(self, other: object) -> bool:
        """So that the hook can be found, and taken off, by its own name."""
        return other is self or other == self.hook

    def __hash__(self) -> int:
        return hash(self.hook)


class _AsyncDeferred(_Deferred):
    """:class:`_Deferred`, async."""

    __slots__ = ()

    async def __call__(self, response: httpx.Response) -> None:
        if not self.waits(response):
            await self.hook(response)


# --- quoting --------------------------------------------------------------------------------------


def quote(payer: Payer, asked: httpx.Request | httpx.Response) -> Quote | None:
    """``Payer.quote`` for this family."""
    if isinstance(asked, httpx.Response):
        return _judged(payer, asked, _content(asked))
    with httpx.Client(timeout=TIMEOUT) as client:
        response = client.send(asked, stream=True)
        try:
            session = _SyncSession(payer, response.request)
            session.response = response
            return _judged(
                payer, response, session.read(wanted=True) if response.status_code == 402 else None
            )
        finally:
            response.close()


async def aquote(payer: Payer, asked: httpx.Request | httpx.Response) -> Quote | None:
    """``Payer.aquote`` for this family."""
    from anyio import to_thread  # noqa: PLC0415

    if isinstance(asked, httpx.Response):
        return await to_thread.run_sync(_judged, payer, asked, _content(asked))
    async with httpx.AsyncClient(timeout=TIMEOUT) as client:
        response = await client.send(asked, stream=True)
        try:
            session = _AsyncSession(payer, response.request)
            session.response = response
            body = await session.read(wanted=True) if response.status_code == 402 else None
            return await to_thread.run_sync(_judged, payer, response, body)
        finally:
            await response.aclose()


def _judged(payer: Payer, response: httpx.Response, body: bytes | None) -> Quote | None:
    session = _SyncSession(payer, response.request)
    request = response.request
    call = Call(method=request.method, url=str(request.url), trip=session.slot.trip)
    flow = _flow.quote(payer, call, session.reply(response, response.request))
    try:
        effect = next(flow)
        while True:
            if isinstance(effect, ReadBody):
                answer: Any = body
            elif isinstance(effect, Payload):
                answer = session.payload()
            else:
                answer = perform(cast("Any", effect))
            effect = flow.send(answer)
    except StopIteration as stop:
        return cast("Quote | None", stop.value)


def _content(response: httpx.Response) -> bytes | None:
    """A body that was read, unless it is longer than any challenge."""
    try:
        content = response.content
    except httpx.ResponseNotRead:
        return None
    return content if len(content) <= CHALLENGE_BYTES_MAX else None
