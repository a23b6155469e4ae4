"""One call in either colour: give it responses, and it gives the next request to send."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

from x402_mask._drive import deadline
from x402_mask._drive.context import CallContext
from x402_mask._drive.cookies import carry_cookies, take_cookies
from x402_mask._drive.family import made
from x402_mask._drive.gathered import DRAIN_S, Gathered, reading_s
from x402_mask._drive.messages import (
    date_of,
    fingerprint,
    header_lists,
    in_memory,
    length_of,
    payload,
    url_of,
)
from x402_mask._drive.paid import named
from x402_mask._drive.perform import AsyncPerformer, Patience, perform, take_back
from x402_mask._drive.pump import AsyncPump, Pump
from x402_mask._drive.refusals import REFUSAL, hand_back
from x402_mask._drive.streams import (
    AsyncRewound,
    AsyncWatched,
    Rewound,
    Watched,
    afailing,
    failing,
)
from x402_mask._flow import conversation
from x402_mask._flow.effects import (
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
from x402_mask._flow.records import Call, Verdict, options_of
from x402_mask._ledger.waiting import WAIT_S
from x402_mask._wire.caching import uncached
from x402_mask._wire.x402 import PROOF_HEADERS, REQUIRED_HEADER, SETTLEMENT_HEADERS
from x402_mask.errors import PaymentError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from x402_mask._drive.family import ByteStream, Cookies, Request, Response
    from x402_mask._drive.layer import Layer
    from x402_mask._flow.effects import Effect
    from x402_mask._ledger.carrier import Carrier

_READ_HEADERS = (REQUIRED_HEADER, *SETTLEMENT_HEADERS)
_SIDE_HEADERS = (*_READ_HEADERS, "retry-after")
_PROOFS = frozenset(name.lower() for name in PROOF_HEADERS)
_AT_ONCE = 1 << 20
"""Bytes of a body that are digested in an event loop: a few milliseconds."""

_OURS = frozenset({"x402_mask", REFUSAL})


class _Exchange:
    """What both colours of a call have in common: everything but waiting."""

    def __init__(self, layer: Layer, request: Request, carrier: Carrier | None = None) -> None:
        self.layer, self.buyer, self.family = layer, layer.buyer, layer.family
        self.request = request
        self.context = CallContext.of(request)
        self.is_nested = self.context.is_carried
        if not self.is_nested:  # else the outer layer hands over what this one bought
            self.context.carrier, self.context.returns = carrier, layer.returns
        self.carrier = self.context.carrier
        self.context.shed(request)
        self.has_proven = False
        self.response: Response | None = None
        self.gathered: Gathered | None = None
        self.side_request: Request | None = None
        self.cookies: Cookies | None = None
        call = self._call()
        self.patience, self.read_s = Patience(call.wait_s), reading_s(call.wait_s)
        self.flow: Generator[Effect, Any, Verdict] = conversation.converse(self.buyer, call)

    def _call(self) -> Call:
        key, unpaid = options_of(self.request.extensions.get("x402_mask"))
        timeout = self.request.extensions.get("timeout")
        return Call(
            method=self.request.method,
            url=url_of(self.request),
            state=self.context.state,
            key=key,
            wait_s=timeout.get("read") if isinstance(timeout, dict) else None,
            has_proof=unpaid or not _PROOFS.isdisjoint(self.request.headers.keys()),
            may_begin=self.layer.may_begin(self.request.url),
            carrier=self.carrier,
            returns_refusals=self.context.returns,
        )

    def reply(self, response: Response, request: Request) -> Reply:
        """The response as the conversation sees it; a plain answer costs next to nothing."""
        self.response = response
        self.request = request
        found, status = header_lists(response, _READ_HEADERS), response.status_code
        paid = self.context.retry() if self.context.retry is not None else None
        for hop in response.history:
            told = header_lists(hop, SETTLEMENT_HEADERS) if hop.request is paid else {}
            found |= told  # of a paid answer that redirected, seen by an auth flow
            status = hop.status_code if told and status == 402 else status  # which is another price
        date = date_of(response) if status == 402 else None
        return Reply(
            status=status,
            url=url_of(request),
            headers=found,
            date=date,
            direct=self.layer.note(request.url, response),
            length=length_of(response) if status == 402 else None,
        )

    def paid_request(self, proof: tuple[str, str]) -> Request:
        """A copy of the request that carries the proof: the caller's own request never does."""
        request = self.request
        headers = request.headers.copy()
        headers[proof[0]] = proof[1]
        headers["cache-control"] = uncached(headers.get_list("cache-control"))
        retry = self.family.Request(
            request.method,
            request.url,
            headers=headers,
            stream=request.stream,
            extensions=request.extensions,
        )
        if in_memory(self.family, request):
            retry.read()
        if self.response is not None and "set-cookie" in self.response.headers:
            given = self.family.Cookies()
            take_cookies(self.family, self.response, request, given)
            carry_cookies(self.family, given, retry)
        if self.cookies is not None:
            carry_cookies(self.family, self.cookies, retry)
        self.context.retry, self.context.proof = weakref.ref(retry), proof
        self.has_proven = True
        self.context.requests.append(self.context.retry)
        return retry

    def make_side_request(self, wanted: Fetch) -> Request:
        """Another request to the same origin: nothing of the caller's goes along but its name."""
        url = self.request.url.copy_with(
            username=None, password=None, raw_path=wanted.path.encode("ascii"), fragment=None
        )
        headers = {"accept": "application/json", "accept-encoding": "gzip, deflate"}
        if "user-agent" in self.request.headers:
            headers["user-agent"] = self.request.headers["user-agent"]
        if wanted.content is not None:
            headers["content-type"] = "application/json"
        named = self.family.Headers(headers)
        named.update(wanted.headers)
        named["cache-control"] = uncached(named.get_list("cache-control"))
        side_request = self.family.Request(
            wanted.method,
            url,
            headers=named,
            content=wanted.content,
            extensions=self.request.extensions,
        )
        if self.cookies is not None:
            carry_cookies(self.family, self.cookies, side_request)
        if wanted.proof is not None:
            side_request.headers[wanted.proof[0]] = wanted.proof[1]
            self.context.proof = wanted.proof
        self.context.retry = self.context.side_request = weakref.ref(side_request)
        self.context.private = tuple(wanted.headers)
        self.context.requests.append(self.context.side_request)
        self.side_request = side_request
        return side_request

    def asked(self, sent: Request, request: Request) -> Request:
        """What an answer to *sent* answers: the side request, or the call."""
        return sent if sent is self.side_request else request

    def fetched(self, response: Response, request: Request, gathered: Gathered) -> Fetched:
        """A side request's answer for the conversation; one that was redirected says nothing."""
        side_request, self.side_request = self.side_request, None
        assert side_request is not None
        body = gathered.decoded(response.headers.get("content-encoding", ""))
        self.emptied(response)
        straight = request is side_request
        if straight and "set-cookie" in response.headers:
            self._keep_cookies(response, side_request)
        return Fetched(
            status=response.status_code if straight else 302,
            url=str(side_request.url),
            headers=header_lists(response, _SIDE_HEADERS) if straight else {},
            body=body if straight else None,
            date=date_of(response),
        )

    def _keep_cookies(self, response: Response, side_request: Request) -> None:
        """For the rest of this call: a marketplace may know by them whose payment it is."""
        self.cookies = self.family.Cookies() if self.cookies is None else self.cookies
        take_cookies(self.family, response, side_request, self.cookies)

    def park(self) -> ByteStream:
        """What is kept of a 402 while its connection is used for a side request."""
        return self.family.ByteStream(b"".join(self.gathered.chunks) if self.gathered else b"")

    def emptied(self, response: Response) -> None:
        """Leave nothing to read in a 402 that is discarded: under an auth flow httpx reads it."""
        response.headers.pop("content-encoding", None)
        response.stream = self.family.ByteStream(b"")

    def answer(self) -> Response:
        """The response that is handed back, when the conversation is over."""
        assert self.response is not None
        return self.response

    def fingerprint(self) -> str | None:
        """Digest of the request body, or ``None`` if it can be sent only once."""
        return fingerprint(self.family, self.request)

    def payload(self) -> Content | None:
        """The request body, if it may be looked at."""
        return payload(self.family, self.request)

    def body(self) -> bytes | None:
        """The 402's body, if all of it was read and it could be decoded."""
        assert self.gathered is not None
        assert self.response is not None
        return self.gathered.decoded(self.response.headers.get("content-encoding", ""))

    def watch(self, response: Response, payment_id: str, *, delivered: bool) -> None:
        """If reading the paid answer fails, say which payment it was; it was not *delivered*."""
        raise NotImplementedError

    def conclude(self, verdict: Verdict) -> None:
        """Put the verdict on the response that is handed back."""
        assert self.response is not None
        receipt = verdict.receipt
        if receipt is not None:
            delivered = verdict.delivered and receipt.route != "held-token"
            self.watch(self.response, receipt.payment_id, delivered=delivered)
        self.leave(self.response)
        if verdict.receipt is not None:
            self.response.extensions["x402_mask"] = verdict.receipt
            named(self.family, self.response)
            if self.response.status_code == 402:  # a cache outside would go on saying it
                self.response.headers["cache-control"] = "no-store"
        if verdict.refusal is not None:
            hand_back(self.response, verdict.refusal)

    def leave(self, response: Response) -> None:
        """The call ends with *response*, unless that leads on or an outer layer is at it."""
        if not self.is_nested:
            self.context.lead(self.request, response)

    def is_handled(self, response: Response) -> bool:
        """Whether a layer below paid for this call, or refused to: then this one does not."""
        asked = self.side_request is None and not self.has_proven
        return asked and not _OURS.isdisjoint(response.extensions.keys())

    def step_aside(self, response: Response) -> None:
        """Hand back what a layer below has handled."""
        self.flow.close()
        self.response = response
        self.leave(response)

    def detached(self) -> Response:
        """The 402 with as much of its body as was read, free of its connection.

        What could not be decoded within the limit is there as it came over the wire.
        """
        assert self.response is not None
        headers = self.response.headers.copy()
        for name in ("content-encoding", "content-length", "transfer-encoding"):
            headers.pop(name, None)  # of what was sent, not of what is here
        raw = b"".join(self.gathered.chunks) if self.gathered is not None else b""
        known = self.body() if self.gathered is not None else None
        copy = self.family.Response(
            self.response.status_code,
            headers=headers,
            stream=self.family.ByteStream(raw if known is None else known),
            request=self.request,
        )
        copy.read()
        return copy


class Exchange(_Exchange, Pump[Verdict]):
    """One call, sync: give it responses, it gives the next request to send."""

    def start(self) -> Request | None:
        """The first request to send."""
        return self._pump(lambda: next(self.flow))

    def received(self, response: Response, request: Request) -> Request | None:
        """The next request to send, or ``None`` when ``self.response`` is the answer."""
        if self.is_handled(response):
            self.step_aside(response)
            return None
        if self.side_request is None:
            return self._pump(lambda: self.flow.send(self.reply(response, request)))
        try:
            answer = self._fetched(response, request)
        except BaseException as exc:  # noqa: BLE001  # the flow decides
            failure = exc
            return self._pump(lambda: self.throw(failure))
        return self._pump(lambda: self.flow.send(answer))

    def _fetched(self, response: Response, request: Request) -> Fetched:
        gathered, source = Gathered(self.read_s), response.stream
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
        """The call ends with *exc*: write down what that means, wherever it came from."""
        try:
            if not self.is_over:
                self._pump(lambda: self.throw(exc))
        except BaseException as raised:  # re-raised unless it is the same
            if raised is not exc and not isinstance(raised, GeneratorExit):
                raise
        finally:
            self.lost()

    def lost(self) -> None:
        """Its caller does not get what was recorded as delivered."""
        self.buyer.take_back(self.carrier, WAIT_S)

    def _pump(self, step: Callable[[], Effect]) -> Request | None:
        self.patience.renew(paid=self.context.proof is not None)
        try:
            found = self.advance(step)
        except BaseException as exc:
            self._abandon(exc)
            raise
        if isinstance(found, Fetch):
            return self._side_request(found)
        if isinstance(found, Ask):
            return self.request if found.proof is None else self._paid(found.proof)
        self.conclude(found)
        return None

    def _side_request(self, wanted: Fetch) -> Request:
        try:
            side_request = self.make_side_request(wanted)
            if self.response is not None:
                self.response.stream.close()
                self.response.stream = self.park()
        except BaseException as exc:
            self.failed(exc)
            raise
        return side_request

    def _paid(self, proof: tuple[str, str]) -> Request:
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
        return deadline.performed_blocking(lambda e: perform(e, self.patience), effect)

    def read(self, *, wanted: bool) -> bytes | None:
        """The 402's body, as far as the limit goes; the response can still be read in full.

        Where it is not *wanted*, because a header decides, one that breaks off is no body.
        """
        response = self.response
        assert response is not None
        self.gathered = gathered = Gathered(self.read_s if wanted else DRAIN_S)
        source = response.stream
        chunks = iter(source)
        try:
            for chunk in chunks:
                if not gathered.add(chunk):
                    break
            else:
                gathered.complete = True
        except self.family.TransportError as failure:
            if wanted:
                raise
            if self.has_proven:  # whoever reads what was paid for is told
                chunks = failing(failure)
        rewound = made(Rewound, self.family, "SyncByteStream")
        response.stream = rewound(gathered.joined(), chunks, source)
        return self.body()

    def _discard(self) -> None:
        """Let go of the 402 before the retry, so that a pool of one connection suffices."""
        if self.response is not None:
            self.response.stream.close()
            self.emptied(self.response)

    def _abandon(self, exc: BaseException) -> None:
        if self.response is None:
            return
        if isinstance(exc, PaymentError):
            exc.response = self.detached()
        self.response.close()

    def watch(self, response: Response, payment_id: str, *, delivered: bool) -> None:
        source, buyer = response.stream, self.buyer  # the answer does not keep the exchange

        def broken(failure: BaseException) -> None:
            failure.add_note(broken_off(payment_id))
            if delivered:
                buyer.reopen(payment_id, WAIT_S)

        response.stream = made(Watched, self.family, "SyncByteStream")(source, broken)


class AsyncExchange(_Exchange, AsyncPump[Verdict]):
    """:class:`Exchange`, async."""

    def __init__(self, layer: Layer, request: Request, carrier: Carrier | None = None) -> None:
        super().__init__(layer, request, carrier)
        self._performer = AsyncPerformer(self.buyer.ledger, self.patience)

    async def start(self) -> Request | None:
        """The first request to send."""
        return await self._pump(lambda: next(self.flow))

    async def received(self, response: Response, request: Request) -> Request | None:
        """The next request to send, or ``None`` when ``self.response`` is the answer."""
        if self.is_handled(response):
            self.step_aside(response)
            return None
        if self.side_request is None:
            return await self._pump(lambda: self.flow.send(self.reply(response, request)))
        try:
            answer = await self._fetched(response, request)
        except BaseException as exc:  # noqa: BLE001  # the flow decides
            failure = exc
            return await self._pump(lambda: self.throw(failure))
        return await self._pump(lambda: self.flow.send(answer))

    async def _fetched(self, response: Response, request: Request) -> Fetched:
        gathered, source = Gathered(self.read_s), response.stream
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
        """The call ends with *exc*: write down what that means, wherever it came from."""
        try:
            if not self.is_over:
                await self._pump(lambda: self.throw(exc))
        except BaseException as raised:  # re-raised unless it is the same
            if raised is not exc and not isinstance(raised, GeneratorExit):
                raise
        finally:
            self._performer.may_wait = not isinstance(exc, GeneratorExit)
            await self.lost()

    async def lost(self) -> None:
        """Its caller does not get what was recorded as delivered."""
        await take_back(self.buyer, self.carrier, self._performer)

    async def _pump(self, step: Callable[[], Effect]) -> Request | None:
        self.patience.renew(paid=self.context.proof is not None)
        try:
            found = await self.advance(step)
        except GeneratorExit:
            raise
        except BaseException as exc:
            await self._abandon(exc)
            raise
        if isinstance(found, Fetch):
            return await self._side_request(found)
        if isinstance(found, Ask):
            return self.request if found.proof is None else await self._paid(found.proof)
        self.conclude(found)
        return None

    async def _side_request(self, wanted: Fetch) -> Request:
        try:
            side_request = self.make_side_request(wanted)
            if self.response is not None:
                await self.response.stream.aclose()
                self.response.stream = self.park()
        except BaseException as exc:
            await self.failed(exc)
            raise
        return side_request

    async def _paid(self, proof: tuple[str, str]) -> Request:
        try:
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
            return await self._fingerprint()
        if isinstance(effect, Payload):
            return self.payload()
        assert not isinstance(effect, (Ask, Fetch))
        return await deadline.performed(self._performer.perform, effect)

    async def _fingerprint(self) -> str | None:
        """:meth:`fingerprint`; a body that is long, or in files, is read in a thread.

        It is read to the end even if the call is cancelled: it is the caller's, who may close it.
        """
        if in_memory(self.family, self.request) and len(self.request.content) <= _AT_ONCE:
            return self.fingerprint()
        from anyio import to_thread  # noqa: PLC0415

        return await to_thread.run_sync(self.fingerprint)

    async def read(self, *, wanted: bool) -> bytes | None:
        """The 402's body, as far as the limit goes; the response can still be read in full."""
        response = self.response
        assert response is not None
        self.gathered = gathered = Gathered(self.read_s if wanted else DRAIN_S)
        source = response.stream
        chunks = source.__aiter__()
        try:
            async for chunk in chunks:
                if not gathered.add(chunk):
                    break
            else:
                gathered.complete = True
        except self.family.TransportError as failure:
            if wanted:
                raise
            if self.has_proven:  # whoever reads what was paid for is told
                chunks = afailing(failure)
        rewound = made(AsyncRewound, self.family, "AsyncByteStream")
        response.stream = rewound(gathered.joined(), chunks, source)
        return self.body()

    async def _discard(self) -> None:
        """Let go of the 402 before the retry, so that a pool of one connection suffices."""
        if self.response is not None:
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

    def watch(self, response: Response, payment_id: str, *, delivered: bool) -> None:
        source, buyer, performer = response.stream, self.buyer, self._performer
        lost = Record(lambda wait_s: buyer.reopen(payment_id, wait_s))

        async def broken(failure: BaseException) -> None:
            failure.add_note(broken_off(payment_id))
            if delivered:
                await performer.perform(lost)

        response.stream = made(AsyncWatched, self.family, "AsyncByteStream")(source, broken)


def broken_off(payment_id: str) -> str:
    """The note on a failure to read a paid answer."""
    return f"x402_mask: the answer to payment {payment_id} broke off"
