"""Tool results and JSON-RPC errors as the conversation knows answers: status, headers, body.

A 402 over MCP has no status line.  It is known to look like this (x402 ``transports-v2/mcp.md``,
PyPI x402 2.25.0 ``mcp/``, and what the public documents of Server402 leave open):

* ``structuredContent`` is the challenge, with ``isError``; the text repeats it;
* the challenge stands in ``{"x402/error": {"code": 402, "data": ...}}``, there or in the text;
* it is JSON in the text alone, also behind ``Error executing tool <name>:``;
* it is a marketplace's payment object, or its body without ``x402Version``;
* the challenge stands in ``_meta["x402/error"]``;
* it is a JSON-RPC error of code 402, -32402 or -32042 with the challenge as ``data``, or one level
  below, alone in a list or not.  The last code is MCP's own for "visit this URL first", and is that
  where no challenge is found.
"""

from __future__ import annotations

import base64
import json
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from x402_mask._wire import strict_json
from x402_mask._wire.server402 import find_payment
from x402_mask._wire.x402 import CHALLENGE_BYTES_MAX, REQUIRED_HEADER, SETTLEMENT_HEADERS

if TYPE_CHECKING:
    from collections.abc import Callable

    from mcp import MCPError
    from mcp.types import CallToolResult

PAYMENT_META: Final = "x402/payment"
SETTLEMENT_META: Final = "x402/payment-response"
TOKEN_ARGUMENT: Final = "paymentToken"  # noqa: S105  # an argument's name
_CODES: Final = (402, -32402, -32042)

_WRAPPER: Final = "x402/error"
_PREFIX: Final = re.compile(r"Error executing tool [^\r\n{]{1,256}?:\s*(?=\{)")
_WORDS: Final = ("x402Version", "accepts", "paymentId")
_UNPAID: Final = frozenset({"pending", "unpaid", "required", "payment_required", "created", "new"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """One answer, as the conversation sees it: 402, 500 (an error of the tool) or 200."""

    status: int
    headers: dict[str, list[str]]
    body: bytes | None = None


@dataclass(frozen=True, slots=True)
class _Said:
    """A JSON object that may be a challenge.

    ``written`` is its text where it came as text; ``marked`` whether it is wrapped as one.
    """

    document: dict[str, Any]
    written: str | None = None
    marked: bool = False

    @property
    def data(self) -> bytes:
        """The JSON as written."""
        text = _dumped(self.document) if self.written is None else self.written
        return text.encode("utf-8", "replace")


def heard(result: CallToolResult, ours: Callable[[dict[str, Any]], bool]) -> Heard:
    """What a tool result says of payment.

    Args:
        result: the tool's result.
        ours: whether a document, which no ``isError`` comes with, is about this very call.  What a
            tool delivers may well quote somebody else's challenge.
    """
    structured, text, meta = _structured(result), _text(result), _meta(result)
    headers = _settlement(result)
    found = [said for said in (structured, text) if said is not None and _claims(said.document)]
    if meta is not None:
        found += [replace(said, marked=True) for said in _claiming(meta)]
    if not result.is_error:
        delivered = _succeeded(result)
        found = [] if delivered else [s for s in found if s.marked or ours(s.document)]
    if found:
        return _challenged(found, headers)
    broken = _broken(result) if result.is_error else None
    if broken is not None:
        return Heard(status=402, headers=headers, body=broken)
    return Heard(status=500 if result.is_error else 200, headers=headers)


def heard_error(error: MCPError) -> Heard | None:
    """What a JSON-RPC error asks for; ``None`` for one that has nothing to do with payment."""
    if error.code not in _CODES:
        return None
    data = error.data
    said = _below(data) if isinstance(data, (dict, list)) else _object_in(_written(error))
    found = [] if said is None else _claiming(said)
    if found:
        return _challenged(found, {})
    if error.code != _CODES[0]:
        return None
    return Heard(status=402, headers={}) if said is None else _challenged([said], {})


def _written(error: MCPError) -> str:
    return error.data if isinstance(error.data, str) else error.message


def _claiming(said: _Said) -> list[_Said]:
    """*said* where it is a challenge, else those one level below."""
    if _claims(said.document):
        return [said]
    below = (_below(value) for value in said.document.values())
    return [one for one in below if one is not None and _claims(one.document)]


def _below(value: Any) -> _Said | None:
    if isinstance(value, list) and len(value) == 1:  # of several nobody says which is meant
        value = value[0]
    if isinstance(value, dict):
        return _unwrapped(value)
    return _object_in(value) if isinstance(value, str) else None


def names_place(document: dict[str, Any], origin: str, tool: str) -> bool:
    """Whether a challenge says that it is one, of this tool or a resource on this origin."""
    if "x402Version" not in document and "error" not in document:
        return False
    accepts = document.get("accepts")
    offers = accepts if isinstance(accepts, list) else []
    named = [document.get("resource"), *(o.get("resource") for o in offers if isinstance(o, dict))]
    return all(_is_place(resource, origin, tool) for resource in named if resource is not None)


def names_service(document: dict[str, Any], is_service: Callable[[str], bool]) -> bool:
    """Whether an unpaid payment object is for this service."""
    ids = [document.get(name) for name in ("serviceId", "internalServiceId")]
    named = [one for one in ids if isinstance(one, str)]
    status = str(document.get("status", "")).strip().lower().replace(" ", "_")
    return status in _UNPAID and bool(named) and all(is_service(one) for one in named)


def _is_place(resource: Any, origin: str, tool: str) -> bool:
    url = resource.get("url") if isinstance(resource, dict) else resource
    if not isinstance(url, str):
        return False
    if url.startswith("mcp://tool/"):
        return url == f"mcp://tool/{tool}"
    try:
        parts = urlsplit(url)
        return not parts.scheme or url == origin or url.startswith(origin + "/")
    except ValueError:
        return False


# --- where a challenge may stand ------------------------------------------------------------------


def _structured(result: CallToolResult) -> _Said | None:
    content = result.structured_content
    return _unwrapped(content) if isinstance(content, dict) else None


def _meta(result: CallToolResult) -> _Said | None:
    told = (result.meta or {}).get(_WRAPPER)
    if isinstance(told, str):
        return _object_in(told)
    return _unwrapped({_WRAPPER: told}) if isinstance(told, dict) else None


def _text(result: CallToolResult) -> _Said | None:
    first = result.content[0] if result.content else None
    text = getattr(first, "text", None)
    return _object_in(text) if isinstance(text, str) else None


def _object_in(text: str) -> _Said | None:
    """The JSON object that *text* is, behind a server's prefix or not."""
    text = _bare(text)
    if not text.startswith("{") or len(text) > CHALLENGE_BYTES_MAX:
        return None
    if not any(f'"{word}"' in text for word in _WORDS):  # most answers, which are not parsed twice
        return None
    try:
        document = strict_json.loads(text)
    except strict_json.BadJSON:
        return None
    return _unwrapped(document, text) if isinstance(document, dict) else None


def _bare(text: str) -> str:
    text = text.strip("\ufeff \t\r\n")
    prefix = _PREFIX.match(text)
    return text[prefix.end() :] if prefix else text


def _broken(result: CallToolResult) -> bytes | None:
    """Text that claims to be a challenge and cannot be read: it is an error, not an answer."""
    first = result.content[0] if result.content else None
    text = _bare(str(getattr(first, "text", "")))
    if len(text) > CHALLENGE_BYTES_MAX:
        return None
    claims = text.startswith("{") and '"x402Version"' in text and '"accepts"' in text
    return text.encode("utf-8", "replace") if claims and _object_in(text) is None else None


def _unwrapped(document: dict[str, Any], written: str | None = None) -> _Said:
    error = document.get(_WRAPPER)
    if not isinstance(error, dict):
        return _Said(document, written)
    data = error.get("data")
    inner = data if isinstance(data, dict) else error
    return _Said(inner, marked=error.get("code", 402) in (*_CODES, "402"))


def _claims(document: dict[str, Any]) -> bool:
    """Whether this asks for money: a challenge, a marketplace's body, or a payment object."""
    if "x402Version" in document or find_payment(document) is not None:
        return True
    accepts = document.get("accepts")
    return isinstance(accepts, list) and any(isinstance(offer, dict) for offer in accepts)


# --- in the conversation's terms ------------------------------------------------------------------


def _challenged(found: list[_Said], headers: dict[str, list[str]]) -> Heard:
    """The first document decides; a second one may not name other terms, as with HTTP's body."""
    first, others = found[0], found[1:]
    if "x402Version" not in first.document:
        return Heard(status=402, headers=headers, body=_bounded(first.data))
    required = {REQUIRED_HEADER: [base64.b64encode(first.data).decode("ascii")]}
    body = _bounded(others[0].data) if others else None
    return Heard(status=402, headers={**required, **headers}, body=body)


def _bounded(body: bytes) -> bytes | None:
    return body if len(body) <= CHALLENGE_BYTES_MAX else None


def _dumped(value: Any) -> str:
    """JSON of what a seller sent; what no JSON can hold is refused by whoever reads it."""
    try:
        return json.dumps(value, separators=(",", ":"))
    except RecursionError:
        return "nested too deep"


def _succeeded(result: CallToolResult) -> bool:
    told = (result.meta or {}).get(SETTLEMENT_META)
    return isinstance(told, dict) and told.get("success") is True


def _settlement(result: CallToolResult) -> dict[str, list[str]]:
    """The settlement a result reports: in ``_meta``, or where a failed one is seen to stand."""
    told = (result.meta or {}).get(SETTLEMENT_META)
    if told is None and isinstance(result.structured_content, dict):
        told = result.structured_content.get(SETTLEMENT_META)
    if told is None:
        return {}
    text = told if isinstance(told, str) else _dumped(told)
    value = base64.b64encode(text.encode("utf-8", "replace")).decode("ascii")
    return {SETTLEMENT_HEADERS[0]: [value]}
