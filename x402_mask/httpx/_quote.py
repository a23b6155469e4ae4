"""What a request or a 402 would cost, without paying."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import httpx

from x402_mask._drive.clients import around
from x402_mask._drive.exchange import AsyncSession, SyncSession
from x402_mask._drive.layer import Layer
from x402_mask._drive.perform import perform
from x402_mask._drive.pump import Pump
from x402_mask._drive.slot import origin_at
from x402_mask._flow import quoting
from x402_mask._flow.effects import Ask, Fetch, Fingerprint, Payload, ReadBody
from x402_mask._flow.records import Call, CallState, operation_key
from x402_mask._payer import buyer_of
from x402_mask._wire.x402 import CHALLENGE_BYTES_MAX
from x402_mask.httpx._transport import TIMEOUT

if TYPE_CHECKING:
    from x402_mask._flow.effects import Effect
    from x402_mask._models import Quote
    from x402_mask._payer import Payer

ASKED = (httpx.Request, httpx.Response)
"""What may be quoted."""


def quote(payer: Payer, asked: httpx.Request | httpx.Response) -> Quote | None:
    """``Payer.quote`` for this family."""
    if isinstance(asked, httpx.Response):
        return _judged(payer, asked, _content(asked))
    with httpx.Client(timeout=TIMEOUT, mounts=_mounts(payer)) as client:
        response = client.send(asked, stream=True)
        try:
            session = SyncSession(Layer(httpx, buyer_of(payer)), response.request)
            session.response = response
            body = session.read(wanted=True) if response.status_code == 402 else None
            return _judged(payer, response, body, asks=True)
        finally:
            response.close()


async def aquote(payer: Payer, asked: httpx.Request | httpx.Response) -> Quote | None:
    """``Payer.aquote`` for this family."""
    from anyio import to_thread  # noqa: PLC0415

    if isinstance(asked, httpx.Response):
        return await to_thread.run_sync(_judged, payer, asked, _content(asked))
    async with httpx.AsyncClient(timeout=TIMEOUT, mounts=_mounts(payer)) as client:
        response = await client.send(asked, stream=True)
        try:
            session = AsyncSession(Layer(httpx, buyer_of(payer)), response.request)
            session.response = response
            body = await session.read(wanted=True) if response.status_code == 402 else None
            judge = partial(_judged, asks=True)
            return await to_thread.run_sync(judge, payer, response, body)
        finally:
            await response.aclose()


def _judged(
    payer: Payer, response: httpx.Response, body: bytes | None, *, asks: bool = False
) -> Quote | None:
    layer, request = Layer(httpx, buyer_of(payer)), response.request
    layer.direct[origin_at(request.url)] = True  # where its connection is gone and cannot tell
    judging = _Judging(SyncSession(layer, request), body)
    reply = judging.session.reply(response, request)
    judging.flow = quoting.quote(layer.buyer, _call(response), reply, asks=asks)
    found = judging.advance(partial(next, judging.flow))
    assert not isinstance(found, (Ask, Fetch))
    return found


class _Judging(Pump["Quote | None"]):
    """What a quote wants done; it sends nothing."""

    def __init__(self, session: SyncSession, body: bytes | None) -> None:
        self.session, self._body = session, body

    def _perform(self, effect: Effect) -> Any:
        if isinstance(effect, ReadBody):
            return self._body
        if isinstance(effect, Payload):
            return self.session.payload()
        if isinstance(effect, Fingerprint):
            return self.session.fingerprint()
        assert not isinstance(effect, (Ask, Fetch))
        return perform(effect)


def _call(response: httpx.Response) -> Call:
    """The call that *response* ends, from its first request on."""
    request = response.request
    first = response.history[0].request if response.history else request
    options, timeout = request.extensions.get("x402_mask"), request.extensions.get("timeout")
    return Call(
        method=request.method,
        url=str(request.url),
        state=CallState(origin=origin_at(first.url), url=str(first.url)),
        key=operation_key(options.get("operation")) if isinstance(options, dict) else None,
        wait_s=timeout.get("read") if isinstance(timeout, dict) else TIMEOUT.read,
    )


def _mounts(payer: Payer) -> dict[str, None]:
    return around(buyer_of(payer).settings.origins)


def _content(response: httpx.Response) -> bytes | None:
    """A body that was read, unless it is longer than any challenge."""
    try:
        content = response.content
    except httpx.ResponseNotRead:
        return None
    return content if len(content) <= CHALLENGE_BYTES_MAX else None
