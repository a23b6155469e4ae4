"""A purchase of a payment token on its way: how far it has come, and the steps that its ways share.

At each stage, what may have happened, and what an identical call does if this one ends there::

    stage    what may have happened              what an identical call does
    unsent   nothing has left                    is a new purchase: the reservation is given back,
                                                 as it is where the seller cannot be reached
    asking   the seller may have made a          asks for another; where a balance may pay what is
             payment, and a balance may have     asked for, it only says so, until a proof of that
             paid it; its id is not known        time would be dead: then the price counts
    asked    as above, and the answer came;      reads it: paid, it takes the token; unpaid, it pays
             nothing of ours has moved           it; over, it asks for another; where the seller's
                                                 offer has changed, it gives back and decides anew;
                                                 unreadable, where a balance may pay: as above
    paying   ours may have moved: a proof, a     never pays again: reads it, and takes the token, or
             transfer, what the owner did; or    shows the same proof, carries the same transfer,
             a balance has paid                  waits; with the proof dead the price stays counted,
                                                 and it buys anew, if `resign` and the chain allow
    bought   the token is here, and a call       calls with the same token; where that is refused
             may have been made with it          and the proof dead, it is dropped, and bought anew

Up to ``asked`` an end by decision (a refusal, other terms) gives the reservation back, unless a
balance may have paid, and so does an interruption at ``unsent``; any other leaves it.  From
``paying`` on nothing gives it back.  The ledger writes a stage before the step that it names
(``_ledger.purchases``), so that after a crash what was ``unsent`` is taken for ``asking``.

Part of the conversation (``_flow.tokens.buying``): no I/O, effects only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from x402_mask._flow.effects import Fetch, consult, fetch, sleep
from x402_mask._flow.lapsed import refuse
from x402_mask._flow.steps import booked, finish
from x402_mask._ledger.purchases import TERMS
from x402_mask._ledger.records import Proof, Result, Row
from x402_mask._money import SECOND, usd
from x402_mask._policy.clocks import Clocks
from x402_mask._wire import strict_json
from x402_mask._wire.bodies import date_of
from x402_mask._wire.server402 import (
    PAYMENTS_PATH,
    MarketPayment,
    Unreadable,
    payment_in,
    read_payment,
)

if TYPE_CHECKING:
    from x402_mask._flow.buyer import Buyer
    from x402_mask._flow.effects import Fetched, Flow
    from x402_mask._flow.records import Call, Demand, Plan
    from x402_mask._ledger.purchases import BalanceSource, Way
    from x402_mask._models import Outcome
    from x402_mask._policy.offers import Choice

Stage = Literal["unsent", "asking", "asked", "paying", "bought"]
"""How far a purchase has come, in this call; the table above says what each means."""

_FIRST_DELAY_S: Final = 0.25
_GROWTH: Final = 1.6
_DELAY_MAX_S: Final = 5.0
SKEW_US: Final = 30 * SECOND
"""How far past ``expiresAt`` a payment is still tried: two clocks differ."""


@dataclass(slots=True)
class TokenPurchase:
    """One purchase on its way: what is bought, and how far it has come."""

    buyer: Buyer
    call: Call
    demand: Demand
    row: Row
    terms: Plan
    remote: str | None = None
    until: int | None = None
    stage: Stage = "unsent"
    purse: BalanceSource | None = None
    """Whose balance may pay it because it is asked for."""
    heard: bool = True
    """Whether the last answer about it could be read."""
    settled: bool = False
    """Whether what paid for it is known to have moved."""
    transaction: str | None = None
    note: str = ""
    paid_on_chain: bool | None = None
    """Whether the chain proved it settled; ``None`` while it was not asked."""
    behind_us: int = 0
    """How far the clock of the ledger's database is behind ours, in microseconds."""

    @property
    def held(self) -> bool:
        """Whether money of ours, or a balance, may have moved for it."""
        return self.stage in ("paying", "bought")

    @property
    def outcome(self) -> Outcome:
        """What is known of the money that paid for it."""
        return "settled" if self.settled else "unknown"

    @property
    def is_stale(self) -> bool:
        """Whether what was reserved is no longer what the seller offers."""
        row = self.row
        return row.state == "reserved" and row.network is not None and self.terms.choice is None

    @property
    def live_payee(self) -> str | None:
        """Whom the live 402 names: its offer, or the payment that is there in place of one."""
        if self.terms.choice is not None:
            return self.terms.pay_to
        named = payment_in(self.demand.challenge.document)
        return named.pay_to if named is not None else None

    @property
    def is_closed(self) -> bool:
        """Whether its proof is dead by every clock: expired, or as old as its payer's may be."""
        if self.row.valid_before is not None:
            return self._clocks.alive_by(self.row.valid_before) is None
        return self.is_old(self.row.at)

    def is_old(self, at_us: int) -> bool:
        """Whether a proof of that time, in microseconds, would be dead by now."""
        until = -(-at_us // SECOND) + self.buyer.settings.policy.max_validity_s
        return self._clocks.alive_by(until) is None

    @property
    def _clocks(self) -> Clocks:
        now_us = self.buyer.now_us()
        return Clocks(now_us, self.demand.seller_us, lambda: now_us - self.behind_us)

    def is_over(self, payment: MarketPayment) -> bool:
        """Whether nothing can come of an unpaid payment: it says so, or its time is past."""
        past = payment.until is not None and self.is_past(payment.until)
        return payment.is_over or (past and not payment.is_paid)

    def is_past(self, until: int) -> bool:
        """Whether the time that a payment names, in microseconds, is past by any clock."""
        return until + SKEW_US <= self.buyer.now_us()


# --- written down ---------------------------------------------------------------------------------


def note_id(deal: TokenPurchase, payment: MarketPayment, way: Way | None = None) -> Flow[None]:
    """Write down what the marketplace calls the payment; *way* is how it wants to be paid."""
    buyer, row = deal.buyer, deal.row
    if way is None and (deal.remote, deal.until) == (payment.id, payment.until):
        return
    deal.remote, deal.until = payment.id, payment.until
    yield from booked(
        buyer,
        lambda at: buyer.ledger.note_created(row.id, payment.id, payment.until, way=way, **at),
    )


def hold(
    deal: TokenPurchase, way: Way, proof: Proof | None, choice: Choice | None = None
) -> Flow[None]:
    """Write down, durably, that money may move from here on, and on which terms."""
    buyer, row = deal.buyer, deal.row
    if choice is not None:
        row = row._replace(
            network=choice.offer.network,
            asset=choice.asset.address,
            amount=str(choice.offer.amount),
            pay_to=choice.offer.pay_to,
        )
    terms = {} if choice is None else {name: getattr(row, name) for name in TERMS}
    yield from booked(buyer, lambda at: buyer.ledger.hold_purchase(row.id, way, proof, terms, **at))
    deal.row = row
    mark_held(deal, way)


def mark_held(deal: TokenPurchase, way: str) -> None:
    """The ledger has it: money may move from here on."""
    deal.stage = "paying"
    deal.row = deal.row._replace(state="held")
    deal.buyer.emit(
        "sent",
        deal.demand,
        payment_id=deal.row.id,
        usd=usd(deal.row.micro),
        detail={"way": way},
    )


def end(deal: TokenPurchase, outcome: Outcome, note: str, reason: str | None = None) -> Flow[None]:
    """Write down how this call left the payment: without an answer to hand back."""
    result = Result(
        outcome=outcome, delivered=False, transaction=deal.transaction, note=note, reason=reason
    )
    yield from finish(deal.buyer, deal.row, result)


def is_alive_on_chain(deal: TokenPurchase) -> Flow[bool]:
    """Whether the chain says that the proof is not past its end, by its own time."""
    if not deal.buyer.chain_knows(deal.row.network) or deal.buyer.settings.resign == "never":
        return False
    (said,) = yield from consult(deal.buyer.resolve, [deal.row], deal.call.wait_s)
    deal.paid_on_chain = said.is_paid
    return said.is_past is False and not said.is_paid


def give_up(deal: TokenPurchase, note: str) -> Flow[None]:
    """Write down that nothing more can come of it: an identical call buys anew.

    Raises:
        PaymentRefused: its money is proven gone, and that is not paid for again by itself.
    """
    buyer, row, now_us = deal.buyer, deal.row, deal.buyer.now_us()
    if not row.seen and deal.paid_on_chain is None:
        yield from is_alive_on_chain(deal)
    if deal.paid_on_chain and not row.seen:
        row = row._replace(state="settled", seen=1)
    clocks = Clocks(now_us, None, lambda: now_us - deal.behind_us)
    if row.refuses_again(clocks, keyed=deal.call.key is not None):
        yield from refuse(buyer, deal.call, [row])
    yield from booked(buyer, lambda at: buyer.ledger.give_up(row.id, note, **at))


def write_off(deal: TokenPurchase, payment: MarketPayment) -> Flow[None]:
    """A balance paid while nobody looked, and its token is gone: it counts; look again."""
    yield from hold(deal, "balance", None)
    yield from end(deal, "settled", f"paid by a balance, and then {payment.status}")
    yield from give_up(deal, f"the marketplace says {payment.status}")


# --- asked ----------------------------------------------------------------------------------------


def order(deal: TokenPurchase, proof: tuple[str, str] | None = None) -> Fetch:
    """The request that creates a payment, the same with a proof as without."""
    wanted = {"serviceId": deal.demand.service}
    if deal.buyer.settings.provider_id is not None:
        wanted["providerId"] = deal.buyer.settings.provider_id
    return Fetch(
        method="POST",
        path=PAYMENTS_PATH,
        headers=deal.buyer.settings.marketplace_headers,
        content=strict_json.dumps(wanted).encode(),
        proof=proof,
    )


def poll(
    deal: TokenPurchase, payment: MarketPayment | None, bound_s: float, *, want_token: bool = False
) -> Flow[MarketPayment | None]:
    """Ask for the payment until it is paid or over, in growing intervals; the last answer."""
    buyer, started = deal.buyer, deal.buyer.now()
    bound_s, waited, delay, retry_s = deal.call.within(bound_s), 0.0, _FIRST_DELAY_S, 0.0
    while True:
        if payment is not None:
            done = payment.is_paid and (payment.token is not None or not want_token)
            if done or payment.is_over:
                return payment
        left = bound_s - max(waited, buyer.now() - started)
        if deal.until is not None:
            left = min(left, deal.until / SECOND - buyer.now())
        if left <= 0 or deal.remote is None:
            return payment
        pause = min(max(delay, retry_s), left)
        yield from sleep(pause)
        waited, delay = waited + pause, min(delay * _GROWTH, _DELAY_MAX_S)
        fresh, answer = yield from read(deal)
        payment, retry_s = fresh or payment, _retry_after(answer, buyer.now())


def read(deal: TokenPurchase) -> Flow[tuple[MarketPayment | None, Fetched]]:
    """Ask for the payment once; ``None`` where the answer is not about it."""
    assert deal.remote is not None
    answer = yield from fetch(
        Fetch(
            method="GET",
            path=f"{PAYMENTS_PATH}/{deal.remote}",
            headers=deal.buyer.settings.marketplace_headers,
        )
    )
    try:
        payment = read_payment(answer.body, deal.remote)
    except Unreadable:
        payment = None
    payment = payment if payment is not None and payment.id == deal.remote else None
    deal.heard = payment is not None
    return payment, answer


def is_gone(answer: Fetched) -> bool:
    """Whether the marketplace says that there is no such payment."""
    return answer.status in (404, 410)


def _retry_after(answer: Fetched, now: float) -> float:
    """Seconds that ``Retry-After`` asks for (RFC 9110, 10.2.3); 0 where it says nothing."""
    text = next(iter(answer.headers.get("retry-after", ())), "").strip()
    if text.isascii() and text.isdigit() and len(text) < 9:
        return float(text)
    date = date_of(text)
    return 0.0 if date is None else max(0.0, date - now)
