"""What the conversation speaks of: a call, who asks to be paid for it, and how it will be.

Data, and the public records made of it.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from x402_mask._flow.preemption import Place
from x402_mask._ledger.records import Reservation, Row
from x402_mask._models import Quote, Receipt
from x402_mask._money import usd
from x402_mask._policy.caps import as_datetime
from x402_mask._policy.catalog_cache import ServiceRequest
from x402_mask._wire import strict_json

if TYPE_CHECKING:
    from x402_mask._flow.buyer import Buyer
    from x402_mask._flow.effects import Reply
    from x402_mask._ledger.carrier import Carrier
    from x402_mask._models import Asset, Offer, Route, Spend
    from x402_mask._policy.offers import Choice
    from x402_mask._wire.x402 import Challenge
    from x402_mask.errors import PaymentError, PaymentRefused


@dataclass(slots=True, eq=False)
class CallState:
    """What the hops of one call share, redirects included, so that together they pay once.

    A call is what the caller made.  Each request that comes of it, by a redirect too, is a hop: a
    conversation of its own, with a :class:`Call` of its own and this one state.  ``origin`` and
    ``url`` are those that the caller named, and never change: they say which service is paid for,
    and whose 402 may be paid, wherever a redirect leads.  The rest says how far the call has come::

        state      paid   row   receipt       the next hop
        new        no     -     -             asks, and may pay a 402
        presented  yes    yes   how it ended  only asks: a 402 is handed back, a 2xx delivers `row`
        token used yes    -     of 0 USD      only asks: a 402 is handed back
        led on     no     -     of 0 USD      as new: there a token may be asked for as well

    A proof, or a token that this operation bought, makes it ``presented``; a token held from before
    ``token used``, and ``led on`` where that is answered by a redirect.  Only a 402 leads back to
    ``new``: one to a held token, or to one that an earlier call bought, if its proof is dead.

    It is changed before the bytes leave, not when an answer comes: whatever interrupts a hop, the
    next one does not take the call for new.  What goes on after the call is the ledger's to know.
    """

    origin: str
    url: str
    receipt: Receipt | None = None
    paid: bool = False
    """Whether something that pays was sent, so that no hop may pay any more."""
    row: Row | None = None
    """The payment that was presented, of which a redirect may still lead to the delivery."""
    tool: str | None = None
    """The MCP tool that is called, where it is one."""
    denied: object = None
    """The terms that the owner did not approve, so that nobody is asked the same twice."""


def operation_key(key: object) -> str | None:
    """The caller's own key of what must be paid once, or ``None``.

    Raises:
        TypeError, ValueError: it is none, and so it could not be kept.
    """
    if key is None:
        return None
    if not isinstance(key, str):
        raise TypeError(f"x402_mask: an operation is a str, not {type(key).__name__}")
    if not key:
        raise ValueError("x402_mask: an operation is not empty")
    return key


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Call:
    """One request, as the conversation sees it.

    ``wait_s``, the caller's read time-out, bounds every wait: for a twin, the ledger, a chain or a
    marketplace.  ``may_begin``: a proof may go with the first request.
    """

    method: str
    url: str
    state: CallState
    key: str | None = None
    wait_s: float | None = 5.0
    has_proof: bool = False
    carrier: Carrier | None = None
    """Who makes it, where that is known."""
    may_begin: bool = True
    returns_refusals: bool | None = None
    """Whether a refusal is handed back and not raised; ``None``: as the payer says."""

    def returns(self, buyer: Buyer) -> bool:
        """Whether a refusal of this call is handed back and not raised."""
        own = self.returns_refusals
        return buyer.settings.returns_refusals if own is None else own

    def within(self, seconds: float) -> float:
        """So many seconds, or as many as the caller waits for anything."""
        return seconds if self.wait_s is None else min(seconds, self.wait_s)

    @property
    def by(self) -> object:
        """Who carries what this call pays, for the ledger."""
        return self if self.carrier is None else self.carrier


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Verdict:
    """What goes on the response that is handed back."""

    receipt: Receipt | None = None
    refusal: PaymentError | None = None
    delivered: bool = False


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Demand:
    """A 402 that was read: who asks, for what, and which operation it is."""

    challenge: Challenge
    reply: Reply
    method: str
    origin: str
    service: str
    operation: str = ""
    path: str = field(default="", repr=False)
    is_tool: bool = False
    also: tuple[str, ...] = ()
    """Keys of other services that a usual server may take its URL for: their caps count too."""
    seller_us: int | None = None
    """The time by the seller's clock, Unix microseconds, while that may keep a proof alive."""
    lapsed: frozenset[str] = frozenset()
    """Payments whose proofs have expired, after all that could be asked about them was asked."""
    is_remembered: bool = False
    """Whether nobody has asked: the offer is one that was paid before."""

    @property
    def place(self) -> Place:
        """What its offer is for."""
        return Place(self.method, self.origin, self.service, self.path)

    @property
    def service_request(self) -> ServiceRequest:
        """What is asked of the service, for judging the input."""
        return ServiceRequest(self.method, self.origin, self.service, self.challenge, self.also)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Plan:
    """How a call will be paid, and what that costs: ``micro`` USD, ``amount`` atomic units.

    ``choice`` is the live offer; a marketplace may name a price without one.  ``skipped`` says why
    each other route was not taken.
    """

    route: Route
    micro: int
    amount: int
    choice: Choice | None = None
    skipped: tuple[str, ...] = ()

    @classmethod
    def of(cls, route: Route, choice: Choice, skipped: tuple[str, ...] = ()) -> Plan:
        """The plan to pay the live offer."""
        return cls(
            route=route,
            micro=choice.micro,
            amount=choice.offer.amount,
            choice=choice,
            skipped=skipped,
        )

    @property
    def pay_to(self) -> str | None:
        """Whom the live offer names."""
        return self.choice.offer.pay_to if self.choice is not None else None

    @property
    def offer(self) -> Offer | None:
        """The live offer."""
        return self.choice.offer if self.choice is not None else None

    @property
    def asset(self) -> Asset | None:
        """What the live offer is paid in."""
        return self.choice.asset if self.choice is not None else None

    @property
    def network(self) -> str | None:
        """Where the live offer is paid (CAIP-2)."""
        return self.choice.offer.network if self.choice is not None else None

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why each other route and offer was not taken."""
        offers = self.choice.skipped if self.choice is not None else ()
        return (*self.skipped, *map(str, offers))


def quote_of(
    buyer: Buyer,
    demand: Demand,
    plan: Plan,
    caps: tuple[Spend, ...],
    refusal: PaymentRefused | None,
) -> Quote:
    """The public record of a plan, in which the owner's code may change what it likes."""
    offer = (
        None
        if plan.offer is None
        else replace(plan.offer, raw=deepcopy(plan.offer.raw), extra=deepcopy(plan.offer.extra))
    )
    return Quote(
        service=demand.service,
        origin=demand.origin,
        method=demand.method,
        url=demand.reply.url,
        route=plan.route,
        usd=usd(plan.micro),
        amount=plan.amount,
        asset=plan.asset,
        network=plan.network,
        pay_to=plan.pay_to,
        payer=buyer.address,
        offer=offer,
        skipped=plan.reasons,
        caps=caps,
        refusal=refusal,
    )


def row_of(want: Reservation) -> Row:
    """The reservation as the ledger now has it."""
    return Row(
        id=want.id,
        at=want.at,
        updated=want.at,
        state="reserved",
        service=want.service,
        origin=want.origin,
        route=want.route,
        micro=want.micro,
        amount=str(want.amount),
        asset=want.asset,
        network=want.network,
        payer=want.payer,
        pay_to=want.pay_to,
        operation=want.operation,
        delivered=0,
        flight=None,
        nonce=None,
        valid_before=None,
        header=None,
        proof=None,
        proof_digest=None,
        outcome=None,
        trans=None,
        seen=0,
        note="",
        also=strict_json.dumps(want.others) if want.others else None,
    )


def receipt_for(
    row: Row, outcome: Any, transaction: str | None, reason: str | None = None
) -> Receipt:
    """The receipt of the payment in *row*; a *transaction* that was known before stays known."""
    return Receipt(
        payment_id=row.id,
        service=row.service,
        origin=row.origin,
        route=row.route,
        usd=usd(row.micro),
        amount=int(row.amount),
        asset=row.asset,
        network=row.network,
        payer=row.payer,
        pay_to=row.pay_to,
        outcome=outcome,
        transaction=transaction or row.trans,
        at=as_datetime(row.at),
        reason=reason,
    )


def paid_note(receipt: Receipt) -> str:
    """What an exception says of the payment that its answer was sent for."""
    return f"x402_mask: payment {receipt.payment_id} was sent (${receipt.usd}, {receipt.outcome})"


def options_of(options: object) -> tuple[str | None, bool]:
    """What the caller says of this one call: its operation, and whether it is never paid.

    Raises:
        TypeError, ValueError: it is not understood, and so it cannot be kept.
    """
    if options is None:
        return None, False
    if not isinstance(options, dict) or not options.keys() <= {"operation", "pay"}:
        raise TypeError('extensions={"x402_mask": {"operation": ..., "pay": ...}} and nothing else')
    pay = options.get("pay", True)
    if not isinstance(pay, bool):
        raise TypeError('extensions={"x402_mask": {"pay": ...}} is a bool')
    return operation_key(options.get("operation")), not pay
