"""What an agent is told of failures: the reason, the owner's setting, and words of ours alone.

Errors of this library quote what a seller wrote: a status line, a field of a schema, a network, the
URL of a document.  An agent that reads them as ours would take orders from whoever sells.  So each
failure is said anew here, and its own text goes into the field that is marked.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from x402_mask._money import span
from x402_mask._text.codes import code_of
from x402_mask._text.printable import clean
from x402_mask._text.settings import in_settings
from x402_mask._text.values import moment, money
from x402_mask.errors import CapExceeded

if TYPE_CHECKING:
    from collections.abc import Collection

    from x402_mask._models import Quote, Receipt
    from x402_mask.errors import PaymentError

Json = dict[str, Any]

SELLER_TEXT: Final = "untrusted_seller_text"
SELLER_DATA: Final = "untrusted_seller_data_base64"
_SAID_MAX: Final = 1000
"""Characters of an error's own text."""

_CAPS: Final = "X402_MASK_CAPS (caps)"
_ORIGINS: Final = "X402_MASK_ORIGINS (origins)"
_KNOBS: Final = {
    "cap": _CAPS,
    "no_cap": _CAPS,
    "no_wallet": "X402_MASK_PRIVATE_KEY or X402_MASK_KEYSTORE (wallet)",
    "origin": _ORIGINS,
    "not_https": _ORIGINS,
    "network": "networks",
    "asset": "assets",
    "payee": "payees; `x402-mask payees` accepts a new one",
    "input": "validate_input",
    "catalog_price": "allow_above_catalog",
    "paused": "`x402-mask resume`",
    "breaker": "breaker_after, breaker_for",
    "resign": "resign",
}
_REASONS: Final = {
    "no_cap": "no limit of the owner's names this service, so it is not paid",
    "no_wallet": "the seller wants a signature and the owner gave no wallet",
    "no_offer": "the seller offers nothing that can be paid",
    "origin": "this seller is not one that the owner listed",
    "not_https": "this seller is not reached safely, so it is not paid",
    "redirected": "a redirect led to another seller than the one that was called",
    "scheme": "the seller offers no way of paying that is known here",
    "transfer_method": "the seller wants something signed that is not signed here",
    "network": "the seller offers no network that the owner allows",
    "asset": "the seller offers no currency that the owner allows",
    "domain": "the seller describes the currency otherwise than it is known",
    "price": "the seller's price is no amount that can be paid",
    "payee": "the address that the money would go to is not one that may be paid",
    "validity": "the seller's offer runs out too soon",
    "service": "the marketplace's payment is for another service",
    "catalog_price": "the seller asks more than the price in its own catalog",
    "contradiction": "the seller names two different sets of terms",
    "clock": "the clocks of this machine and of the seller differ too much",
    "input": "the arguments do not fit the input that the service itself describes",
    "approval": "the owner did not approve this payment",
    "body": "this request could not be sent a second time",
    "paused": "the owner has paused all payments",
    "breaker": "too many payments to this seller ended badly; it is left alone for a while",
    "in_flight": "another call with the same key is being paid",
    "resign": "the payment for this call has expired, and the owner allows no second one",
    "wait": "approving or signing took so long that the offer ran out",
    "paid_before": "this was paid for before, and is not paid for again",
    "too_large": "the payment would be too large to be sent",
}
_CODES: Final = {
    "refused": "the owner's settings do not allow this payment",
    "challenge": "the seller asks for payment in a form that cannot be read",
    "signer": "the wallet failed",
    "token_flow": "the payment at the marketplace could not be completed",
    "ledger": "the ledger of payments cannot be used",
    "payment": "the payment failed",
}

KINDS: Final = frozenset(
    {
        "application/json",
        "application/pdf",
        "application/xml",
        "application/zip",
        "application/octet-stream",
        "application/problem+json",
        "application/ld+json",
        "application/x-ndjson",
        "image/jpeg",
        "image/png",
        "image/gif",
        "image/webp",
        "image/svg+xml",
        "audio/mpeg",
        "audio/wav",
        "audio/ogg",
        "video/mp4",
        "text/plain",
        "text/html",
        "text/csv",
        "text/markdown",
        "text/xml",
        "text/event-stream",
    }
)
"""Content types that are named; another is the seller's word for what it sent."""

_TRANSACTION: Final = re.compile(r"0x[0-9a-fA-F]{64}")
_ADDRESS: Final = re.compile(r"0x[0-9a-fA-F]{40}")


def failure(code: str, message: str, said: object = "", more: Json | None = None) -> Json:
    """A failure in our words; what it was *said* with goes into the marked field."""
    document: Json = {"error": {"code": code, "message": message, **(more or {})}}
    text = clean(said, _SAID_MAX)
    return {**document, SELLER_TEXT: text} if text else document


def refusal(error: PaymentError) -> Json:
    """An error of this library."""
    code, reason = code_of(error), getattr(error, "reason", None)
    more: Json = {"at_risk": error.at_risk, "payment_id": error.payment_id}
    message = _CODES[code]
    if reason is not None:
        more |= {"reason": reason, "owner_setting": _KNOBS.get(reason)}
        message = _REASONS.get(reason, message)
    if isinstance(error, CapExceeded):
        message = _over(error)
    return failure(code, message, in_settings(error), more)


def _over(error: CapExceeded) -> str:
    cap = error.cap
    whose = "all services together" if cap.service == "*" else cap.service
    text = (
        f"{money(error.wanted)} is asked, and the owner's limit of {money(cap.limit)} per"
        f" {span(cap.per)} for {whose} has {money(error.left)} left"
    )
    return text if error.resets_at is None else f"{text}; more at {moment(error.resets_at)}"


def quoted(quote: Quote, networks: Collection[str]) -> Json:
    """What a call would cost; every value is ours, a number, or an address."""
    told: Json = {
        "service": quote.service,
        "route": quote.route,
        "usd": None if quote.usd is None else str(quote.usd),
        "amount": quote.amount,
        "network": quote.network if quote.network in networks else None,
        "pay_to": _matching(_ADDRESS, quote.pay_to),
        "allowed": quote.allowed,
    }
    if quote.refusal is None:
        return {"quote": told}
    refused = refusal(quote.refusal)
    told["refusal"] = refused.pop("error")
    return {"quote": told, **refused}


def paid(receipt: Receipt, networks: Collection[str]) -> Json:
    """What was paid; a transaction is named if it is one, not if it is a seller's prose."""
    return {
        "payment_id": receipt.payment_id,
        "service": receipt.service,
        "route": receipt.route,
        "usd": str(receipt.usd),
        "outcome": receipt.outcome,
        "network": receipt.network if receipt.network in networks else None,
        "transaction": _matching(_TRANSACTION, receipt.transaction),
    }


def _matching(pattern: re.Pattern[str], text: str | None) -> str | None:
    return text if text is not None and pattern.fullmatch(text) else None
