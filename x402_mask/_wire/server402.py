"""The marketplace's payment object, read tolerantly.  Pure.

No reply of the live service has been seen; its documents name some keys and are cut before others.
So every key may be missing, null, nested or renamed; what is contradictory or unsafe is refused.

Source: the public documents of Server402 (discovery, agent guide and service pages, June 2026).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any, Final

from x402_mask._money import SECOND, UNLIMITED
from x402_mask._wire import strict_json
from x402_mask._wire.x402 import Challenge, shown

if TYPE_CHECKING:
    from collections.abc import Mapping

PAYMENTS_PATH: Final = "/api/payments"
TERMINAL: Final = frozenset({"expired", "exhausted"})
"""Statuses that end the wait.  ``paid`` is the only other one that is attested."""
UNPAID: Final = frozenset({"pending", "created", "unpaid"})
"""Words that say so for certain; of a payment with an id, every word but *paid* means it."""

_ID: Final = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._~:+=-]{0,127}")
_TOKEN: Final = re.compile(r"[\x21-\x7e]{1,4096}")
_CALLS_MAX: Final = 1_000_000
_CENT: Final = 10_000  # micro-USD
_SAYS_PAID: Final = re.compile(rb'"status"\s*:\s*"paid"', re.IGNORECASE)
_TOKEN_NAMES: Final = ("token", "paymentToken", "accessToken")
_NO: Final = ("false", "no", "0")
_DOLLARS: Final = frozenset({"usd", "usdc"})


class PaymentDocument(dict[str, Any]):
    """A marketplace payment as ``settle_payment`` is given it: the object as received.

    Attributes:
        payment_id: its id at the marketplace.
        service: the canonical service that it buys.
        origin: the marketplace.
        usd: the live price that was reserved, USD.
        pay_to: the payee it names, or ``None``.
    """

    payment_id: str
    service: str
    origin: str
    usd: Decimal
    pay_to: str | None

    def __repr__(self) -> str:
        return f"<PaymentDocument {self.payment_id} {self.service} ${self.usd}>"


@dataclass(frozen=True, slots=True, kw_only=True)
class MarketPayment:
    """A payment object that could be read.  ``until`` is microseconds, ``calls`` are calls left.

    ``fault``: why the price that it names is none.
    """

    id: str
    status: str
    cents: Decimal | None
    fault: str | None
    currency: str | None
    pay_to: str | None
    services: tuple[str, ...]
    until: int | None
    calls: int
    paid_at: str | None
    token: str | None = field(repr=False)
    document: Mapping[str, Any] = field(repr=False)

    __hash__ = None  # type: ignore[assignment]  # holds a mapping

    @property
    def is_paid(self) -> bool:
        """Whether the marketplace says that it is paid: in a word, or by all that comes of it."""
        known = self.status in UNPAID | TERMINAL
        return self.status == "paid" or not (known or None in (self.paid_at, self.token))

    @property
    def is_lost(self) -> bool:
        """Whether somebody paid it, and nothing can come of it any more."""
        return self.is_over and self.paid_at is not None

    @property
    def is_over(self) -> bool:
        """Whether nothing can come of it any more."""
        return self.status in TERMINAL


class Unreadable(ValueError):
    """Not a payment object; the text says why.

    ``statuses`` are what it says all the same, wherever a payment object may be.
    """

    def __init__(self, why: str, *statuses: str) -> None:
        super().__init__(why)
        self.statuses: Final = frozenset(filter(None, statuses))


def read_payment(body: bytes | None, asked: str | None = None) -> MarketPayment:
    """The payment object in *body*: at the top level, or under ``payment``, or ``data.payment``.

    *asked* is the id that was asked for: an object whose status is known need not repeat it.

    Raises:
        Unreadable: there is none, or it cannot be used.
    """
    if body is None:
        raise Unreadable("the answer is too long, or was redirected")
    try:
        document = strict_json.loads(body)
    except (strict_json.BadJSON, UnicodeDecodeError):
        cut_off = ["paid"] if _SAYS_PAID.search(body) else []
        raise Unreadable("the answer is not JSON", *cut_off) from None
    found = find_payment(document)
    if found is None and asked is not None:
        known = UNPAID | TERMINAL | {"paid"}
        found = next((at for at in _places(document) if _status(at) in known), None)
        found = None if found is None else {**found, "paymentId": asked}
    if found is None:
        raise Unreadable(
            "the answer holds no payment object (paymentId)", *map(_status, _places(document))
        )
    return _read(found, document)


def find_payment(document: Any) -> Mapping[str, Any] | None:
    """Where in *document* the payment object is; ``None`` if nowhere."""
    return next((at for at in _places(document) if at.get("paymentId") is not None), None)


def payment_in(document: Any) -> MarketPayment | None:
    """The payment that a 402's *document* names, maybe in place of an offer; ``None`` if none."""
    found = find_payment(document)
    try:
        return None if found is None else read_payment(strict_json.dumps(found).encode())
    except Unreadable:
        return None


def _places(document: Any) -> list[Mapping[str, Any]]:
    """Where in *document* a payment object may be."""
    if not isinstance(document, dict):
        return []
    data = document.get("data")
    nested = data.get("payment") if isinstance(data, dict) else None
    places = (document, document.get("payment"), nested, data)
    return [place for place in places if isinstance(place, dict)]


def _status(place: Mapping[str, Any]) -> str:
    status = place.get("status")
    return status.strip().lower() if isinstance(status, str) else ""


def find_accepts(body: bytes | None) -> bytes | None:
    """The object in *body* that lists ``accepts``, as it was written; ``None`` if there is none.

    At the top level, or where a payment object may be.
    """
    if body is None or b'"accepts"' not in body:
        return None
    try:
        text = strict_json.as_text(body)
        document = strict_json.loads(text)
    except (strict_json.BadJSON, UnicodeDecodeError):
        return None
    for path in ((), ("payment",), ("data", "payment"), ("data",)):
        place, written = document, text
        for name in path:
            place = place.get(name) if isinstance(place, dict) else None
            if isinstance(place, dict):
                written = strict_json.members(written)[name]
        if isinstance(place, dict) and isinstance(place.get("accepts"), list):
            return written.encode()
    return None


def challenge_in(body: bytes | None) -> Challenge | None:
    """A 402 that is a payment object and lists no offers, as a challenge; ``None`` if it is none.

    The marketplace's documents say that a call without a token may be answered so.
    """
    if body is None or b'"paymentId"' not in body:
        return None
    try:
        text = strict_json.as_text(body)
        document = strict_json.loads(text)
    except (strict_json.BadJSON, UnicodeDecodeError):
        return None
    if find_payment(document) is None:
        return None
    return Challenge(form="server402", offers=(), skipped=(), document=document, text=text)


def _read(found: Mapping[str, Any], document: Mapping[str, Any]) -> MarketPayment:
    payment_id = found.get("paymentId")
    if type(payment_id) is int and payment_id >= 0:
        payment_id = str(payment_id)
    if not isinstance(payment_id, str) or not _ID.fullmatch(payment_id) or ".." in payment_id:
        raise Unreadable(
            f"paymentId {shown(payment_id, 40)} is not an id", *map(_status, _places(document))
        )
    cents, fault = _cents(found.get("amountCents"))
    return MarketPayment(
        id=payment_id,
        status=_status(found),
        cents=cents,
        fault=fault,
        currency=_word(found.get("currency")),
        pay_to=_word(found.get("payTo")),
        services=tuple(
            name for key in ("serviceId", "service_id") if (name := _word(found.get(key)))
        ),
        until=_time(found.get("expiresAt")),
        calls=_calls(found),
        paid_at=_word(found.get("paidAt")),
        token=_token(found, document),
        document=found,
    )


def _word(value: object) -> str | None:
    return value if isinstance(value, str) and 0 < len(value) <= 256 else None


def _cents(value: object) -> tuple[Decimal | None, str | None]:
    """Cents, whatever number or text they are; or what is wrong.  Nothing where nothing is said."""
    if value is None:
        return None, None
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None, "amountCents is not a number"
    try:
        cents = Decimal(str(value))
    except InvalidOperation:
        return None, "amountCents is not a number"
    if not cents.is_finite() or not 0 <= cents <= Decimal(10) ** 15:
        return None, "amountCents is out of range"
    return cents, None


def _time(value: object) -> int | None:
    """Microseconds of an RFC 3339 date-time, or of Unix seconds or milliseconds."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 10**14:
        return value * (1000 if value >= 10**11 else SECOND)
    if not isinstance(value, str) or len(value) > 64:
        return None
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        return None
    moment = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
    return int(moment.timestamp() * SECOND)


def _calls(found: Mapping[str, Any]) -> int:
    """Calls that a token is good for: one, unless the payment says otherwise."""
    most, left, reuse = (found.get(n) for n in ("maxCalls", "remainingCalls", "allowReuse"))
    counts = [n for n in (most, left) if type(n) is int and 0 <= n <= _CALLS_MAX]
    if str(reuse).strip().lower() in _NO:
        return min([1, *counts])
    if counts:
        return min(counts)
    return UNLIMITED if reuse is True else 1


def _token(found: Mapping[str, Any], document: Mapping[str, Any]) -> str | None:
    for place in (found, document, document.get("payment"), document.get("data")):
        known = place if isinstance(place, dict) else {}
        for token in map(known.get, _TOKEN_NAMES):
            if isinstance(token, str) and _TOKEN.fullmatch(token):
                return token
    return None


def price_fault(payment: MarketPayment, micro: int) -> str | None:
    """How the payment object's price contradicts the live *micro* USD; ``None`` if it agrees.

    Whole cents cannot hold a sub-cent price, so they may be rounded either way.
    """
    if payment.currency is not None and payment.currency.lower() not in _DOLLARS:
        return f"the payment is in {shown(payment.currency, 20)}, not in USD"
    if payment.cents is None:
        return payment.fault
    named = payment.cents * _CENT
    if payment.cents == payment.cents.to_integral_value():
        agrees = abs(named - micro) < _CENT
    else:
        agrees = named == micro
    if agrees:
        return None
    return f"the payment names {payment.cents} cents, the live offer ${Decimal(micro) / 10**6}"


def micro_of(payment: MarketPayment) -> int | None:
    """The price in micro-USD that a payment object alone names, rounded up."""
    if payment.cents is None or payment.cents <= 0:
        return None
    return int((payment.cents * _CENT).to_integral_value(rounding="ROUND_CEILING"))
