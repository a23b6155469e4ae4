"""Pay HTTP 402 answers from any httpx client, within the caps you set."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from x402_mask._models import (
    Asset,
    Cap,
    Event,
    Offer,
    Payment,
    Quote,
    Receipt,
    Resolved,
    Spend,
)
from x402_mask._payer import Payer
from x402_mask._wallet import Wallet
from x402_mask.errors import (
    ApprovalDenied,
    BodyNotReplayable,
    CapExceeded,
    ChallengeError,
    InputRefused,
    LedgerError,
    OfferRefused,
    OriginRefused,
    Paused,
    PaymentError,
    PaymentRefused,
    SignerError,
    TermsRefused,
    TokenFlowError,
)
from x402_mask.httpx import (
    AsyncClient,
    AsyncPaymentTransport,
    Client,
    PaymentAuth,
    PaymentTransport,
    attach,
    receipt_of,
)

if TYPE_CHECKING:
    from x402_mask._postgres import PostgresLedger
    from x402_mask._sqlite import MemoryLedger, SQLiteLedger

__version__ = "0.1.0"

__all__ = [
    "ApprovalDenied",
    "Asset",
    "AsyncClient",
    "AsyncPaymentTransport",
    "BodyNotReplayable",
    "Cap",
    "CapExceeded",
    "ChallengeError",
    "Client",
    "Event",
    "InputRefused",
    "LedgerError",
    "MemoryLedger",
    "Offer",
    "OfferRefused",
    "OriginRefused",
    "Paused",
    "Payer",
    "Payment",
    "PaymentAuth",
    "PaymentError",
    "PaymentRefused",
    "PaymentTransport",
    "PostgresLedger",
    "Quote",
    "Receipt",
    "Resolved",
    "SQLiteLedger",
    "SignerError",
    "Spend",
    "TermsRefused",
    "TokenFlowError",
    "Wallet",
    "attach",
    "receipt_of",
]

_LAZY = {
    "MemoryLedger": "x402_mask._sqlite",
    "SQLiteLedger": "x402_mask._sqlite",
    "PostgresLedger": "x402_mask._postgres",
}


def __getattr__(name: str) -> Any:
    """Load ledgers when they are asked for: a database driver is not for everyone."""
    if name in _LAZY:
        from importlib import import_module  # noqa: PLC0415

        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
