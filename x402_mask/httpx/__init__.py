"""Paying through httpx: transports, clients, an auth flow, and ``attach``.

``x402_mask.httpx2`` is this package with the other family's name, made by ``make twins``.
"""

from __future__ import annotations

try:
    import httpx  # noqa: TC002  # it may be lacking
except ModuleNotFoundError as exc:
    from x402_mask._system.extras import missing

    raise missing(exc, __name__, "httpx", {"httpx"}) from None

from x402_mask._drive.refusals import refusal_of
from x402_mask._models import Receipt
from x402_mask.httpx._auth import PaymentAuth, attach
from x402_mask.httpx._transport import (
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


def receipt_of(response: httpx.Response) -> Receipt | None:
    """What was paid for *response*, or ``None``."""
    found = response.extensions.get("x402_mask")
    return found if isinstance(found, Receipt) else None
