"""A refusal as it reaches a program: in a 402 that is handed back, or behind an SDK's own error."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, Literal

from x402_mask.errors import PaymentError

if TYPE_CHECKING:
    from collections.abc import Iterator

OnRefusal = Literal["raise", "return"]
REFUSAL: Final = "x402_mask_refusal"
"""Where a response that is handed back keeps its refusal."""

_SENTENCE_MAX: Final = 500
_LINKS_MAX: Final = 1000
_UNPRINTABLE: Final = re.compile(r"[^\x20-\x7e]+")


def returns(on_refusal: str | None) -> bool | None:
    """Whether a refusal is handed back; ``None``: somebody else says.

    Raises:
        ValueError: neither ``"raise"`` nor ``"return"``.
    """
    if on_refusal not in ("raise", "return", None):
        raise ValueError('on_refusal is "raise" or "return"')
    return None if on_refusal is None else on_refusal == "return"


def hand_back(response: Any, refusal: PaymentError) -> None:
    """Make *response*, a 402, say what was refused, to SDKs that would repeat the call as well."""
    response.extensions[REFUSAL] = refusal
    response.headers["x-should-retry"] = "false"
    response.headers["x-402-refusal"] = _sentence(refusal)
    response.headers["cache-control"] = "no-store"  # a cache outside would go on saying it
    refusal.response = response


def _sentence(refusal: PaymentError) -> str:
    """Our words in one line of ASCII, as a header must be."""
    words = " ".join(str(refusal).split())
    return _UNPRINTABLE.sub("?", words)[:_SENTENCE_MAX].strip() or type(refusal).__name__


def refusal_of(found: object) -> PaymentError | None:
    """The :class:`~x402_mask.PaymentError` behind an error or a response, or ``None``.

    SDKs catch what a client raises and raise an error of their own; ours is looked for in its
    causes, contexts and parts, and in the response that it carries.  A response has one where
    ``on_refusal="return"`` handed it back.
    """
    waiting, seen = deque([found]), {id(None)}
    while waiting and len(seen) < _LINKS_MAX:
        one = waiting.popleft()
        if id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, PaymentError):
            return one
        waiting.extend(_behind(one))
    return None


def _behind(one: object) -> Iterator[object]:
    """What an error or a response leads to, the nearest first."""
    extensions = getattr(one, "extensions", None)
    if isinstance(extensions, Mapping):
        yield extensions.get(REFUSAL)
    if isinstance(one, BaseException):
        yield one.__cause__
        yield getattr(one, "response", None)
        yield one.__context__
    if isinstance(one, BaseExceptionGroup):
        yield from one.exceptions
