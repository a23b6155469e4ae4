"""Paying through httpx2.

Made from ``x402_mask/httpx/__init__.py`` by ``make twins``: edit that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from x402_mask._models import Receipt
from x402_mask.httpx2._auth import PaymentAuth, attach
from x402_mask.httpx2._transport import (
    AsyncClient,
    AsyncPaymentTransport,
    Client,
    PaymentTransport,
)

if TYPE_CHECKING:
    import httpx2

__all__ = [
    "AsyncClient",
    "AsyncPaymentTransport",
    "Client",
    "PaymentAuth",
    "PaymentTransport",
    "attach",
    "receipt_of",
]


def receipt_of(response: httpx2.Response) -> Receipt | None:
    """What was paid for *response*, or ``None``."""
    found = response.extensions.get("x402_mask")
    return found if isinstance(found, Receipt) else None
