"""What is looked at in a request and in a response, of whichever HTTP family."""

from __future__ import annotations

from typing import TYPE_CHECKING

from x402_mask._flow.effects import PAYLOAD_BYTES_MAX, Content
from x402_mask._wire.bodies import body_digest, is_replayable
from x402_mask._wire.caching import clock_in

if TYPE_CHECKING:
    from x402_mask._drive.family import Family, Request, Response


def fingerprint(family: Family, request: Request) -> str | None:
    """Digest of the request body, or ``None`` if it can be sent only once."""
    content_type = request.headers.get("content-type", "")
    if in_memory(family, request):
        return body_digest((request.content,), content_type)
    if not is_replayable(request.stream):
        return None
    return body_digest(request.stream, content_type)


def payload(family: Family, request: Request) -> Content | None:
    """The request body, if it is in memory, in plain, and not too long to be looked at.

    Of a form with files that it is one.
    """
    if "content-encoding" in request.headers:
        return None
    kind = request.headers.get("content-type", "")
    if not in_memory(family, request):
        is_form = kind.lower().startswith("multipart/")
        return Content(b"--", kind, is_upload=True) if is_form else None
    if len(request.content) > PAYLOAD_BYTES_MAX:
        return None
    return Content(request.content, kind)


def in_memory(family: Family, request: Request) -> bool:
    """Whether the body is bytes; makes ``request.content`` work where it is."""
    if isinstance(request.stream, family.ByteStream):
        request.read()  # on a redirect the body is there, and not yet "read"
        return True
    return False


def url_of(request: Request) -> str:
    """The URL without user and password: it is shown to approvers and written down."""
    url = request.url
    return str(url.copy_with(username=None, password=None) if url.userinfo else url)


def header_lists(response: Response, names: tuple[str, ...]) -> dict[str, list[str]]:
    """The values of the headers of these *names*, which are in lower case."""
    found: dict[str, list[str]] = {}
    for name, value in response.headers.multi_items():  # in lower case
        if name in names:
            found.setdefault(name, []).append(value)
    return found


def date_of(response: Response) -> float | None:
    """What the seller's clock says, in Unix seconds."""
    return clock_in(response.headers.get("date"), response.headers.get("age"))


def length_of(response: Response) -> int | None:
    """The length that the body is said to have, in bytes."""
    said = response.headers.get("content-length", "")
    return int(said) if said.isascii() and said.isdigit() and len(said) < 10 else None
