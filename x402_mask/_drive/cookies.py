"""Cookies that a seller gives while it is being paid: they go with the rest of the call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from x402_mask._drive.family import Cookies, Family, Request, Response

_COOKIES_MAX: Final = 50
_COOKIE_BYTES_MAX: Final = 4096
"""What RFC 6265, 6.1, has a client keep; to read a cookie takes long, and a seller sends many."""


def take_cookies(family: Family, given: Response, request: Request, jar: Cookies) -> None:
    """Put the first cookies that *given*, the answer to *request*, sets into *jar*."""
    values = given.headers.get_list("set-cookie")[:_COOKIES_MAX]
    kept = [("set-cookie", one) for one in values if len(one) <= _COOKIE_BYTES_MAX]
    jar.extract_cookies(family.Response(given.status_code, headers=kept, request=request))


def carry_cookies(family: Family, given: Cookies, request: Request) -> None:
    """Send the cookies that the seller gave, besides those the request has."""
    bare = family.Request(request.method, request.url)
    given.set_cookie_header(bare)
    fresh = bare.headers.get("cookie")
    if fresh:
        names = {part.partition("=")[0].strip() for part in fresh.split(";")}
        sent = [p.strip() for line in request.headers.get_list("cookie") for p in line.split(";")]
        kept = [part for part in sent if part and part.partition("=")[0].strip() not in names]
        request.headers["cookie"] = "; ".join([*kept, fresh])
