"""What was paid for an answer: by the seller's receipt, and by the ledger, which remembers more."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from x402_mask._text.printable import clean
from x402_mask._text.values import money
from x402_mask.cli._faults import FAILED, SELLER_FAILED, UNKNOWN
from x402_mask.errors import LedgerError

if TYPE_CHECKING:
    from x402_mask._models import Payment, Receipt
    from x402_mask._payer import Payer

_LOOK_BACK: Final = 1000
"""Payments among which one that was presented just now is looked for."""


def payment_of(payer: Payer, payment_id: str | None) -> Payment | None:
    """That payment as the ledger has it; ``None`` where it cannot be found."""
    with contextlib.suppress(LedgerError):
        recent = payer.payments(limit=_LOOK_BACK)
        return next((one for one in recent if one.payment_id == payment_id), None)
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Paid:
    """The receipt of an answer, and its payment where the receipt does not tell the end.

    A proof that is presented again may be refused because it was settled with an earlier call: its
    receipt says ``rejected``, its payment ``settled``.
    """

    receipt: Receipt | None
    payment: Payment | None = None

    @classmethod
    def of(cls, payer: Payer, receipt: Receipt | None) -> Paid:
        """What *receipt* says, and where that is not the end, what the ledger says."""
        if receipt is None or receipt.outcome == "settled":
            return cls(receipt=receipt)
        return cls(receipt=receipt, payment=payment_of(payer, receipt.payment_id))

    @property
    def payment_id(self) -> str | None:
        """The payment's id on the ledger."""
        return None if self.receipt is None else self.receipt.payment_id

    @property
    def state(self) -> str | None:
        """The payment's state; what the ledger does not tell is held."""
        if self.receipt is None:
            return None
        if self.receipt.outcome == "settled":
            return "settled"
        return "held" if self.payment is None else self.payment.state

    @property
    def at_risk(self) -> bool:
        """Whether money may still move."""
        return self.state not in (None, "settled")

    @property
    def exit_code(self) -> int:
        """The exit code where the seller answered with anything but success."""
        if self.receipt is None:
            return FAILED
        return UNKNOWN if self.at_risk else SELLER_FAILED

    @property
    def line(self) -> str:
        """What was paid, in one line."""
        receipt = self.receipt
        if receipt is None:
            return "nothing was paid"
        if receipt.route == "held-token":
            return f"used a token that was paid for before ({receipt.payment_id})"
        what = f"{money(receipt.usd)} for {receipt.service}"
        if receipt.outcome == "settled":
            told = f"paid {what}: settled{_in(receipt.transaction)}"
        elif self.payment is not None and self.payment.state == "settled":
            told = (
                f"{what} is settled already{_in(self.payment.transaction)}: nothing more was paid"
            )
        else:
            told = f"a payment of {what} was sent and stays held: {self._why}"
        return f"{told} ({receipt.payment_id})"

    @property
    def _why(self) -> str:
        """Why it is not known to be settled; the ledger's note is *HTTP status; what is wrong*."""
        assert self.receipt is not None
        fault = "" if self.payment is None else clean(self.payment.note.partition("; ")[2])
        if self.receipt.reason is not None:
            return f"the seller refused it: {clean(self.receipt.reason, 400)}"
        if self.receipt.outcome == "rejected":
            return f"the seller asked to be paid again ({fault or 'no settlement reported'})"
        return fault or "no settlement reported"


def _in(transaction: str | None) -> str:
    return f" in {clean(transaction)}" if transaction else ""
