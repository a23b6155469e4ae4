"""Paying through httpx2.

Made from ``x402_mask/httpx/__init__.py`` by ``make twins``: edit that.
"""

from __future__ import annotations

try:
    import httpx2  # noqa: TC002  # it may be lacking
except ModuleNotFoundError as exc:
    from x402_mask._system.extras import missing

    raise missing(exc, __name__, "httpx2", {"httpx2"}) from None

from x402_mask._drive.refusals import refusal_of
from x402_mask._models import Receipt
from x402_mask.httpx2._auth import PaymentAuth, attach
from x402_mask.httpx2._transport import (
    AsyncClient,
    AsyncPaymentTransport,
    Client,
    PaymentTransport,
)

__all__ = [
    "AsyncClient",
    "AsyncPaymentTransport",
    "Client",
    "PaymentAuth",
    "PaymentTransport",
    "attach",
    "receipt_of",
    "refusal_of",
]


def receipt_of(response: httpx2.Response) -> Receipt | None:
    """What was paid for *response*, or ``None``."""
    found = response.extensions.get("x402_mask")
    return found if isinstance(found, Receipt) else None
