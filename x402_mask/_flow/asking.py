"""Asking the owner whether a payment may be made.

Part of the conversation (``_flow.conversation``): no I/O, effects only.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from x402_mask._flow.effects import AsyncNeeded, consult
from x402_mask._flow.steps import booked
from x402_mask._money import SECOND
from x402_mask.errors import ApprovalDenied, LedgerError, PaymentError

if TYPE_CHECKING:
    from x402_mask._flow.buyer import Buyer
    from x402_mask._flow.effects import Flow
    from x402_mask._models import Quote

log = logging.getLogger("x402_mask")


def ask_owner(buyer: Buyer, operation: str, quote: Quote) -> Flow[None]:
    """Return where the owner approves: only ``True`` does, and what fails has not.

    A spoken no holds for a minute, in every process on the ledger: whatever repeats the call is
    refused without another question.  A question that fails denies this call only.

    Raises:
        ApprovalDenied: it is not approved.
        PaymentError: ``approve`` refused in its own words.
    """
    assert buyer.settings.approve is not None
    denied = yield from denied_before(buyer, operation, quote)
    if denied is not None:
        denied.quote = quote
        raise denied
    try:
        approved = (yield from consult(buyer.settings.approve, quote)) is True
    except ApprovalDenied:
        yield from _remember(buyer, operation)
        raise
    except (PaymentError, AsyncNeeded):
        raise  # the owner's own words; a mistake that says what to do
    except Exception as exc:
        message = f"approve() failed: {type(exc).__name__}"
        raise ApprovalDenied(message, quote=quote) from exc
    if not approved:
        yield from _remember(buyer, operation)
        payee = "" if quote.pay_to is None else f" to {quote.pay_to}"
        raise ApprovalDenied(
            f"approve() did not approve ${quote.usd} for {quote.service}{payee}", quote=quote
        )


def denied_before(buyer: Buyer, operation: str, quote: Quote) -> Flow[ApprovalDenied | None]:
    """The refusal of what the owner said no to less than a minute ago, if it is such a call."""
    left = yield from booked(buyer, lambda at: buyer.ledger.denied_for(operation, **at))
    if not left:
        return None
    return ApprovalDenied(
        f"${quote.usd} for {quote.service} was denied less than a minute ago; whoever approves"
        f" is asked again in {-(-left // SECOND)} s"
    )


def _remember(buyer: Buyer, operation: str) -> Flow[None]:
    """Write a no down; where that fails it holds for this call, and the next one asks."""
    try:
        yield from booked(buyer, lambda at: buyer.ledger.deny(operation, **at))
    except LedgerError as exc:
        log.warning("that a payment was denied could not be recorded: %s", exc)
