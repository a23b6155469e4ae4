"""Made from ``x402_mask/httpx/_cookies.py`` by ``make twins``: edit that."""

from __future__ import annotations

from typing import Final

import httpx2

_COOKIES_MAX: Final = 50
_COOKIE_BYTES_MAX: Final = 4096
"""What RFC 6265, 6.1, has a client keep; to read a cookie takes long, and a seller sends many."""


def take_cookies(given: httpx2.Response, request: httpx2.Request, jar: httpx2.Cookies) -> None:
    """Put the first cookies that *given*, the answer to *request*, sets into *jar*."""
    values = given.headers.get_list("set-cookie")[:_COOKIES_MAX]
    kept = [("set-cookie", one) for one in values if len(one) <= _COOKIE_BYTES_MAX]
    jar.extract_cookies(httpx2.Response(given.status_code, headers=kept, request=request))


def carry_cookies(given: httpx2.Cookies, request: httpx2.Request) -> None:
    """Send the cookies that the seller gave, besides those the request has."""
    bare = httpx2.Request(request.method, request.url)
    given.set_cookie_header(bare)
    fresh = bare.headers.get("cookie")
    if fresh:
        names = {part.partition("=")[0].strip() for part in fresh.split(";")}
        sent = [p.strip() for line in request.headers.get_list("cookie") for p in line.split(";")]
        kept = [part for part in sent if part and part.partition("=")[0].strip() not in names]
        request.headers["cookie"] = "; ".join([*kept, fresh])
