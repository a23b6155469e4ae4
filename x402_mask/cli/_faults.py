"""How a command ends: exit codes, and every failure as one sentence or one JSON document."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

from x402_mask._text.codes import code_of
from x402_mask._text.settings import on_command_line
from x402_mask.errors import PaymentRefused

if TYPE_CHECKING:
    from x402_mask._models import Event, Payment
    from x402_mask.errors import PaymentError

DONE: Final = 0
FAILED: Final = 1
USAGE: Final = 2
REFUSED: Final = 3
UNKNOWN: Final = 4
SELLER_FAILED: Final = 5


class Failure(Exception):
    """A command could not do what it was asked; *message* says why and what to do.

    Args:
        message: one sentence or two, safe to print.
        exit_code: one of this module's.
        code: stable, for programs: ``config``, ``refused``, ``network``, ``seller``, ...; ``usage``
            or ``failed`` where none is given.
        reason: of a refusal, as listed in :mod:`x402_mask.errors`.
        at_risk: whether money may have moved, or may still.
        payment_id: of the payment concerned.
        more: further keys of the JSON document, beside ``error``.
    """

    def __init__(
        self,
        message: str,
        exit_code: int = FAILED,
        *,
        code: str = "",
        reason: str | None = None,
        at_risk: bool = False,
        payment_id: str | None = None,
        more: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.exit_code = exit_code
        self.code = code or ("usage" if exit_code == USAGE else "failed")
        self.reason = reason
        self.at_risk = at_risk
        self.payment_id = payment_id
        self.more = more or {}

    @property
    def document(self) -> dict[str, Any]:
        """What ``--json`` prints."""
        told = {
            "code": self.code,
            "reason": self.reason,
            "message": str(self),
            "at_risk": self.at_risk,
            "payment_id": self.payment_id,
            "exit_code": self.exit_code,
        }
        return {"error": told, **self.more}


@dataclass(slots=True)
class Money:
    """What is known of the money of this command, kept from the payer's events.

    ``state`` is ``none`` until a proof is about to leave; from then on no failure whatever may be
    reported as "nothing paid".
    """

    state: Literal["none", "unknown", "settled"] = "none"
    payment_id: str | None = None
    kinds: list[str] = field(default_factory=list)

    def watch(self, event: Event) -> None:
        """For ``Payer(on_event=...)``."""
        self.kinds.append(event.kind)
        if event.kind in ("sent", "represented"):
            self.state, self.payment_id = "unknown", event.payment_id
        elif event.kind == "settled" and event.payment_id == self.payment_id:
            self.state = "settled"

    def look(self, payment: Payment | None) -> None:
        """Take the ledger's word: what was presented again may be settled since an earlier call."""
        if payment is not None and payment.state == "settled":
            self.state = "settled"

    def exit_code(self, harmless: int = FAILED) -> int:
        """The code of a failure: *harmless* only where no proof left."""
        return {"none": harmless, "unknown": UNKNOWN, "settled": SELLER_FAILED}[self.state]


def of_payment_error(error: PaymentError, money: Money) -> Failure:
    """A library error as the end of a command."""
    at_risk = error.at_risk or money.state != "none"
    harmless = REFUSED if isinstance(error, PaymentRefused) else FAILED
    exit_code = money.exit_code(harmless)
    if at_risk and exit_code == harmless:
        exit_code = UNKNOWN
    more = {}
    if isinstance(error, PaymentRefused) and error.quote is not None:
        more["quote"] = quote_document(error.quote)
    return Failure(
        on_command_line(error),
        exit_code,
        code=code_of(error),
        reason=getattr(error, "reason", None),
        at_risk=at_risk,
        payment_id=error.payment_id or money.payment_id,
        more=more,
    )


def of_lost_answer(error: Exception, url: str, money: Money) -> Failure:
    """A network failure: harmless before a proof left, and otherwise nobody knows."""
    what = f"{type(error).__name__}: {error}".rstrip(": ")
    if money.state == "none":
        return Failure(f"no answer from {url} ({what}); nothing was paid", code="network")
    settled = " it is settled, and" if money.state == "settled" else ""
    message = (
        f"payment {money.payment_id} was sent to {url} and the answer was lost ({what});{settled}"
        " the same command presents the same payment again while it is valid,"
        " `x402-mask payments` shows its state"
    )
    return Failure(
        message,
        money.exit_code(),
        code="network",
        at_risk=money.state == "unknown",
        payment_id=money.payment_id,
    )


def quote_document(quote: Any) -> dict[str, Any]:
    """A quote for programs, without what is only of use inside."""
    from x402_mask._text.values import plain

    found: dict[str, Any] = plain(quote)
    found.pop("offer", None)
    refusal = quote.refusal
    found["allowed"] = quote.allowed
    found["refusal"] = None if refusal is None else plain(refusal)
    return found
