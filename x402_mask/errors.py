"""Everything this library raises about money, in one tree.

::

    PaymentError                     something about paying; see .at_risk
    ├── PaymentRefused               policy said no; nothing was signed
    │   ├── CapExceeded              a cap would be passed
    │   ├── OriginRefused            not in origins, not https, or redirected elsewhere
    │   ├── OfferRefused             no offer within policy
    │   │   └── TermsRefused         a marketplace payment is not on the live terms
    │   ├── InputRefused             the request does not match the service's input schema
    │   ├── ApprovalDenied           approve(quote) did not return True
    │   ├── BodyNotReplayable        the request body can be sent only once
    │   └── Paused                   the owner paused this ledger
    ├── ChallengeError               a payment challenge that cannot be read
    ├── SignerError                  the wallet failed; the reservation was released
    ├── TokenFlowError               the marketplace payment could not be completed
    └── LedgerError                  the ledger could not record; nothing was sent

:class:`TermsRefused` is a :class:`TokenFlowError` as well.  None of them is an
``httpx.HTTPError``: a retry library must not repeat a refusal.

Stable values of ``PaymentRefused.reason``:

==================== ===================================================================
``cap``              a cap would be passed (:class:`CapExceeded`)
``no_cap``           no cap names the service
``no_wallet``        the challenge wants a signature and the payer has no wallet
``no_offer``         the challenge lists nothing that can be paid
``origin``           the origin is not listed
``not_https``        the origin is neither https nor loopback, or is loopback behind a proxy
``redirected``       a redirect led to another origin, or away from a paid request
``scheme``           no offer uses a scheme or payment flow that this library speaks
``transfer_method``  the offer wants something else signed than EIP-3009's transfer
``network``          no offer is on an allowed network
``asset``            no offer is in an allowed asset
``domain``           the offer's EIP-712 name or version is not the registry's
``price``            the amount is malformed, zero, or too large
``payee``            the payee is zero, the payer, the token, badly written, or not allowed
``validity``         the offer leaves less than 10 seconds
``service``          a marketplace payment is for another service
``catalog_price``    the offer is dearer than the catalog's price for the service
``contradiction``    header and body of the challenge name different terms
``clock``            this machine's clock is too far from the seller's, or another clock at hand
                     keeps an expired proof alive (the message says which)
``input``            :class:`InputRefused`
``approval``         :class:`ApprovalDenied`
``body``             :class:`BodyNotReplayable`
``paused``           :class:`Paused`
``breaker``          too many unknown or rejected payments in a row at this origin
``in_flight``        the same operation key is being paid by another call
``paid_before``      this operation was paid, as the chain proved, and its answer never arrived
``resign``           the operation's proof has expired and ``resign="never"``
``too_large``        the proof would not fit into a header that servers take (12 KiB); or a tool's
                     arguments are more than 8 MiB
``wait``             approval or signing took so long that the offer ran out
==================== ===================================================================
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datetime import datetime
    from decimal import Decimal

    from x402_mask._models import Cap, Quote


class PaymentError(Exception):
    """Something about paying went wrong.

    Attributes:
        at_risk: whether money may still move for this call.
        payment_id: the ledger's id of the payment concerned, if there is one.
        response: the 402 that started it, body readable, where one was received.  Of a body over
            64 KiB it may hold the beginning only.  Not pickled.
    """

    at_risk: bool = False

    def __init__(
        self, message: str, *, at_risk: bool | None = None, payment_id: str | None = None
    ) -> None:
        super().__init__(message)
        if at_risk is not None:
            self.at_risk = at_risk
        self.payment_id = payment_id
        self.response: Any = None

    def __reduce__(self) -> tuple[Any, ...]:
        return _blank, (type(self), self.args), {**vars(self), "response": None}


def _blank(kind: type[PaymentError], args: tuple[Any, ...]) -> PaymentError:
    """An error as unpickling begins it; its attributes follow."""
    return kind.__new__(kind, *args)


class PaymentRefused(PaymentError):
    """Policy said no: nothing was signed for this call.

    Attributes:
        reason: a stable code, listed in this module's docstring.
        quote: what would have been paid, where that much was known.
    """

    default_reason = "refused"

    def __init__(
        self,
        message: str,
        *,
        reason: str | None = None,
        quote: Quote | None = None,
        payment_id: str | None = None,
    ) -> None:
        super().__init__(message, payment_id=payment_id)
        self.reason = reason or self.default_reason
        self.quote = quote


class CapExceeded(PaymentRefused):
    """A cap would be passed.

    Attributes:
        cap: the :class:`~x402_mask.Cap` that refused.
        wanted: the price, USD.
        left: what that cap has left, USD.
        resets_at: when the cap has room again, or ``None``.
    """

    default_reason = "cap"

    def __init__(
        self,
        message: str,
        *,
        cap: Cap,
        wanted: Decimal,
        left: Decimal,
        resets_at: datetime | None,
        quote: Quote | None = None,
    ) -> None:
        super().__init__(message, quote=quote)
        self.cap = cap
        self.wanted = wanted
        self.left = left
        self.resets_at = resets_at


class OriginRefused(PaymentRefused):
    """The origin is not listed, is not https, or was reached by a redirect."""

    default_reason = "origin"


class OfferRefused(PaymentRefused):
    """No offer of the challenge is within policy.

    Attributes:
        pay_to: the payee that ``payees="pin"`` refused, or ``None``.
    """

    default_reason = "no_offer"
    pay_to: str | None = None


class InputRefused(PaymentRefused):
    """The request does not match the service's own input schema."""

    default_reason = "input"


class ApprovalDenied(PaymentRefused):
    """``approve(quote)`` returned something other than ``True``."""

    default_reason = "approval"


class BodyNotReplayable(PaymentRefused):
    """The request body is a one-shot stream, so a paid retry could not send it again."""

    default_reason = "body"


class Paused(PaymentRefused):
    """The owner paused this ledger; ``payer.resume()`` or ``x402-mask resume`` ends it."""

    default_reason = "paused"


class ChallengeError(PaymentError):
    """A 402 that claims to be a payment challenge and cannot be read."""


class SignerError(PaymentError):
    """The wallet failed, or returned a signature that is not the wallet's own."""


class TokenFlowError(PaymentError):
    """The marketplace payment could not be completed; ``at_risk`` tells if money may move."""


class TermsRefused(OfferRefused, TokenFlowError):
    """A marketplace payment names another price, payee or service than the live offer."""


class LedgerError(PaymentError):
    """The ledger could not record; nothing was sent."""
