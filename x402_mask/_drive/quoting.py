"""What a request or a 402 would cost, without paying."""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from x402_mask._drive.clients import FAMILIES, around
from x402_mask._drive.context import origin_at
from x402_mask._drive.exchange import AsyncExchange, Exchange
from x402_mask._drive.layer import Layer
from x402_mask._drive.perform import perform
from x402_mask._drive.pump import Pump
from x402_mask._flow import quoting
from x402_mask._flow.effects import Ask, Fetch, Fingerprint, Payload, ReadBody
from x402_mask._flow.records import Call, CallState, operation_key
from x402_mask._wire.x402 import CHALLENGE_BYTES_MAX

if TYPE_CHECKING:
    from x402_mask._drive.family import Family, Request, Response
    from x402_mask._flow.buyer import Buyer
    from x402_mask._flow.effects import Effect
    from x402_mask._models import Quote

_READ_S: Final = 60.0
"""How long an answer may take; of ours that is the default as well."""


def quote(buyer: Buyer, asked: Request | Response) -> Quote | None:
    """``Payer.quote``.

    Raises:
        TypeError: it is neither a request nor a response of a library that is known.
    """
    family = _family(asked)
    if isinstance(asked, family.Response):
        return _judged(family, buyer, asked, _content(family, asked))
    with family.Client(**_options(family, buyer)) as client:
        response = client.send(asked, stream=True)
        try:
            exchange = Exchange(Layer(family, buyer), response.request)
            exchange.response = response
            body = exchange.read(wanted=True) if response.status_code == 402 else None
            return _judged(family, buyer, response, body, asks=True)
        finally:
            response.close()


async def aquote(buyer: Buyer, asked: Request | Response) -> Quote | None:
    """``Payer.aquote``.

    Raises:
        TypeError: it is neither a request nor a response of a library that is known.
    """
    from anyio import to_thread  # noqa: PLC0415

    family = _family(asked)
    if isinstance(asked, family.Response):
        return await to_thread.run_sync(_judged, family, buyer, asked, _content(family, asked))
    async with family.AsyncClient(**_options(family, buyer)) as client:
        response = await client.send(asked, stream=True)
        try:
            exchange = AsyncExchange(Layer(family, buyer), response.request)
            exchange.response = response
            body = await exchange.read(wanted=True) if response.status_code == 402 else None
            judge = partial(_judged, asks=True)
            return await to_thread.run_sync(judge, family, buyer, response, body)
        finally:
            await response.aclose()


def _judged(
    family: Family, buyer: Buyer, response: Response, body: bytes | None, *, asks: bool = False
) -> Quote | None:
    layer, request = Layer(family, buyer), response.request
    layer.direct[origin_at(request.url)] = True  # where its connection is gone and cannot tell
    judging = _Judging(Exchange(layer, request), body)
    reply = judging.exchange.reply(response, request)
    judging.flow = quoting.quote(layer.buyer, _call(response), reply, asks=asks)
    found = judging.advance(partial(next, judging.flow))
    assert not isinstance(found, (Ask, Fetch))
    return found


class _Judging(Pump["Quote | None"]):
    """What a quote wants done; it sends nothing."""

    def __init__(self, exchange: Exchange, body: bytes | None) -> None:
        self.exchange, self._body = exchange, body

    def _perform(self, effect: Effect) -> Any:
        if isinstance(effect, ReadBody):
            return self._body
        if isinstance(effect, Payload):
            return self.exchange.payload()
        if isinstance(effect, Fingerprint):
            return self.exchange.fingerprint()
        assert not isinstance(effect, (Ask, Fetch))
        return perform(effect)


def _call(response: Response) -> Call:
    """The call that *response* ends, from its first request on."""
    request = response.request
    first = response.history[0].request if response.history else request
    options, timeout = request.extensions.get("x402_mask"), request.extensions.get("timeout")
    return Call(
        method=request.method,
        url=str(request.url),
        state=CallState(origin=origin_at(first.url), url=str(first.url)),
        key=operation_key(options.get("operation")) if isinstance(options, dict) else None,
        wait_s=timeout.get("read") if isinstance(timeout, dict) else _READ_S,
    )


def _options(family: Family, buyer: Buyer) -> dict[str, Any]:
    """Of the client that sends what is quoted; it does not pay."""
    timeout = family.Timeout(5.0, read=_READ_S)
    return {"timeout": timeout, "mounts": around(buyer.settings.origins)}


def _content(family: Family, response: Response) -> bytes | None:
    """A body that was read, unless it is longer than any challenge."""
    try:
        content: bytes = response.content
    except family.ResponseNotRead:
        return None
    return content if len(content) <= CHALLENGE_BYTES_MAX else None


def _family(asked: object) -> Family:
    for name in FAMILIES:
        family: Family = sys.modules.get(name)  # what is not imported has made nothing
        kinds = (getattr(family, "Request", None), getattr(family, "Response", None))
        if isinstance(asked, tuple(filter(None, kinds))):
            return family
    raise TypeError(f"quote() takes an httpx request or response, not {type(asked).__name__}")
