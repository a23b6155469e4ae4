"""Reading a 402: who asks to be paid, for what, and which operation it is."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from x402_mask._flow.effects import Reply, fingerprint, read_body
from x402_mask._flow.records import Call, Demand
from x402_mask._money import SECOND
from x402_mask._services import origin_of, path_of, tool_of
from x402_mask._wire.x402 import REQUIRED_HEADER, nested_in, read_challenge, shown
from x402_mask.errors import BodyNotReplayable, OriginRefused

if TYPE_CHECKING:
    from x402_mask._flow.buyer import Buyer
    from x402_mask._flow.effects import Flow
    from x402_mask._wire.x402 import Challenge

log = logging.getLogger("x402_mask")


def challenge_of(buyer: Buyer, call: Call, reply: Reply) -> Flow[Challenge | None]:
    """What the 402 asks for; a marketplace may name a payment in place of offers."""
    header = reply.headers.get(REQUIRED_HEADER, ())
    body = yield from read_body(wanted=not header)
    found = read_challenge(header, body)
    if found is not None or call.state.origin not in buyer.settings.origins:
        return found
    if tool_of(call.state.url) is not None:
        from x402_mask._wire.server402 import challenge_in  # noqa: PLC0415  # few sellers ask so

        found = challenge_in(body)
    below = nested_in(body) if found is None else None
    if below is not None:
        log.warning(
            "%s answered 402 with a challenge under %r, where none is read: not paid, handed back",
            call.state.origin,
            shown(below, 40),
        )
    return found


def demand_of(buyer: Buyer, call: Call, reply: Reply, challenge: Challenge) -> Demand:
    """Who asks, and for what; refuses every origin that the owner and the caller did not name."""
    origin = origin_asked(reply.url)
    if origin != call.state.origin:
        raise OriginRefused(
            f"a redirect led from {call.state.origin} to {origin}, which asks for money",
            reason="redirected",
        )
    if origin not in buyer.settings.origins:
        if origin.startswith("http:") and "https:" + origin[5:] in buyer.settings.origins:
            raise OriginRefused(f"{origin} is not https", reason="not_https")
        raise OriginRefused(f"{origin} asks for payment and is not in origins=")
    if not reply.direct:
        raise OriginRefused(
            f"{origin} is plain http and was not reached on this machine: a proxy would read the"
            " proof; name its host in NO_PROXY, or use a Client of this library",
            reason="not_https",
        )
    return Demand(
        challenge=challenge,
        reply=reply,
        method=call.method,
        origin=origin,
        service=buyer.settings.services.name(call.state.url),
        path=path_of(reply.url),
        is_tool=tool_of(call.state.url) is not None,
        also=buyer.settings.services.also(call.state.url, call.state.tool),
        seller_us=None if reply.date is None else int(reply.date * SECOND),
    )


def identified(call: Call, demand: Demand) -> Flow[Demand]:
    """The demand with its operation: the caller's key, or a digest of what is asked."""
    body = yield from fingerprint()
    if body is None:
        raise BodyNotReplayable(
            "the request body is a one-shot stream, which a paid retry could not send again:"
            " pass bytes, or read it first"
        )
    url = demand.reply.url.partition("#")[0]
    asked = ("key", call.key) if call.key is not None else (demand.method, url, body)
    parts = (demand.origin, demand.service, *asked)
    operation = hashlib.sha256("\n".join(map(repr, parts)).encode()).hexdigest()
    return replace(demand, operation=operation)


def origin_asked(url: str) -> str:
    try:
        return origin_of(url)
    except ValueError:
        raise OriginRefused(f"{shown(url)} is not an http(s) URL", reason="not_https") from None
