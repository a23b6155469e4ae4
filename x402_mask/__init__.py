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
from x402_mask._wallets.local import Wallet
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
    refusal_of,
)

if TYPE_CHECKING:
    from x402_mask._ledger.postgres import PostgresLedger
    from x402_mask._ledger.sqlite import MemoryLedger, SQLiteLedger
    from x402_mask.marketplace.client import Marketplace
    from x402_mask.marketplace.documents import CatalogError, CatalogService, UnknownService
    from x402_mask.marketplace.refine import RefinedMask, ServiceFailed, refine_mask

__version__ = "0.1.0"

__all__ = [
    "ApprovalDenied",
    "Asset",
    "AsyncClient",
    "AsyncPaymentTransport",
    "BodyNotReplayable",
    "Cap",
    "CapExceeded",
    "CatalogError",
    "CatalogService",
    "ChallengeError",
    "Client",
    "Event",
    "InputRefused",
    "LedgerError",
    "Marketplace",
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
    "RefinedMask",
    "Resolved",
    "SQLiteLedger",
    "ServiceFailed",
    "SignerError",
    "Spend",
    "TermsRefused",
    "TokenFlowError",
    "UnknownService",
    "Wallet",
    "attach",
    "receipt_of",
    "refine_mask",
    "refusal_of",
]

_LAZY = {
    "CatalogError": "x402_mask.marketplace.documents",
    "CatalogService": "x402_mask.marketplace.documents",
    "Marketplace": "x402_mask.marketplace.client",
    "UnknownService": "x402_mask.marketplace.documents",
    "RefinedMask": "x402_mask.marketplace.refine",
    "ServiceFailed": "x402_mask.marketplace.refine",
    "refine_mask": "x402_mask.marketplace.refine",
    "MemoryLedger": "x402_mask._ledger.sqlite",
    "SQLiteLedger": "x402_mask._ledger.sqlite",
    "PostgresLedger": "x402_mask._ledger.postgres",
}


def __getattr__(name: str) -> Any:
    """Load what not everyone needs, a driver, a catalog or MCP, when it is asked for."""
    from importlib import import_module  # noqa: PLC0415

    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    if name == "mcp":
        return import_module("x402_mask.mcp")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
