"""What a call would do, told without doing it.

Part of the conversation (``_flow.conversation``): no I/O, effects only.  It goes the way of a call,
by the same steps and in the same order, up to where a call would reserve; what would refuse it
first is what a quote says.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from x402_mask._flow import lapsed
from x402_mask._flow.asking import denied_before
from x402_mask._flow.conversation import look
from x402_mask._flow.deciding import check_input, check_price, full_quote, plan_by, room, why_none
from x402_mask._flow.demand import challenge_of, demand_of, identified, origin_asked
from x402_mask._flow.lapsed import Doubts
from x402_mask._flow.records import Plan
from x402_mask._ledger.records import paused
from x402_mask._models import Quote
from x402_mask._money import usd
from x402_mask._policy.caps import applying
from x402_mask._policy.offers import choose
from x402_mask.errors import PaymentError, PaymentRefused

if TYPE_CHECKING:
    from x402_mask._flow.buyer import Buyer
    from x402_mask._flow.effects import Flow, Reply
    from x402_mask._flow.records import Call, Demand
    from x402_mask._ledger.records import LedgerView, OpenPayment
    from x402_mask._models import Route


def quote(buyer: Buyer, call: Call, reply: Reply, *, asks: bool = False) -> Flow[Quote | None]:
    """What this 402 would cost.  Signs nothing, reserves nothing; ``None`` if it asks for nothing.

    *asks*: the chain may be asked about earlier proofs of the operation, as a call would.

    Raises:
        ChallengeError: it claims to be a challenge and cannot be read.
    """
    if reply.status != 402:
        return None
    challenge = yield from challenge_of(buyer, call, reply)
    if challenge is None:
        return None
    try:
        demand = demand_of(buyer, call, reply, challenge)
    except PaymentRefused as refusal:
        return _refused(buyer, call, reply, refusal)
    bar: PaymentRefused | None = None
    try:
        demand = yield from identified(call, demand)
    except PaymentRefused as refusal:
        bar = refusal
    demand, view, twin, found = yield from _known(buyer, call, demand, asks=asks)
    if view.token and buyer.settings.prefer[0] == "held-token":
        bar, found = (paused() if view.paused else None), None  # it goes with the first request
    elif twin is not None and found is None and bar is None:
        return (yield from _again(buyer, demand, twin))
    bar = bar or found
    try:
        yield from check_input(buyer, demand.service_request)
    except PaymentRefused as refusal:
        bar = bar or refusal
    try:
        plan, found = _first_plan(buyer, demand, view)
    except PaymentRefused as refusal:
        return _refused(buyer, call, reply, bar or refusal)
    return (yield from _priced(buyer, call, demand, plan, bar or found))


def _known(
    buyer: Buyer, call: Call, demand: Demand, *, asks: bool
) -> Flow[tuple[Demand, LedgerView, OpenPayment | None, PaymentRefused | None]]:
    """What the ledger knows, the proof that would be presented again, and what refuses either.

    The purchase knows then of the proofs that have expired, as a call's does before it reserves.
    """
    doubts = Doubts()
    view = yield from look(buyer, call, demand)
    if view.paused:
        return demand, view, None, paused()
    if asks and (yield from lapsed.ask(buyer, call, view, doubts)):
        demand = doubts.clocks(demand, view)
        view = yield from look(buyer, call, demand)
    twin = doubts.twin(view)
    try:
        if twin is not None and not twin.busy:
            lapsed.check_twin(twin)
            return demand, view, twin, None
        demand = lapsed.foresee(buyer, call, demand, view)
    except PaymentRefused as refusal:
        return demand, view, None, refusal
    return demand, view, None, None


def _again(buyer: Buyer, demand: Demand, twin: OpenPayment) -> Flow[Quote]:
    """The operation is open: a call shows what was signed for it, and nothing more is counted."""
    row, limits = twin.row, applying(buyer.limits, demand.service, demand.also)
    caps = yield from room(buyer, limits)
    told = f"payment {row.id} of this operation is open: a call goes on with it, and counts no more"
    return Quote(
        service=row.service,
        origin=row.origin,
        method=demand.method,
        url=demand.reply.url,
        route=row.route,
        usd=usd(row.micro),
        amount=int(row.amount),
        asset=buyer.settings.policy.assets.get((row.network or "", (row.asset or "").lower())),
        network=row.network,
        pay_to=row.pay_to,
        payer=row.payer,
        skipped=(told,),
        caps=caps,
    )


def _priced(
    buyer: Buyer, call: Call, demand: Demand, plan: Plan, bar: PaymentRefused | None
) -> Flow[Quote]:
    """The quote of a plan, with what would refuse it first."""
    held = plan.route == "held-token"
    if bar is None and not held:
        try:
            check_price(buyer, demand, plan)
        except PaymentRefused as refusal:
            bar = refusal
    found = yield from full_quote(buyer, call, demand, plan)
    bar = bar or found.refusal
    if bar is None and buyer.settings.approve is not None and not held:
        bar = yield from denied_before(buyer, demand.operation, found)
    return replace(found, refusal=bar)


def _first_plan(
    buyer: Buyer, demand: Demand, view: LedgerView
) -> tuple[Plan, PaymentRefused | None]:
    """The plan that a call would begin with, and what would keep it from being carried out."""
    failed: dict[Route, PaymentError] = {}
    try:
        for route in buyer.settings.prefer:
            if route != "held-token":
                plan = plan_by(buyer, demand, view, route, failed)
                if isinstance(plan, Plan):
                    return plan, None
                failed[route] = plan
            elif view.token:
                return Plan(route="held-token", micro=0, amount=0), None
        raise why_none(failed)
    except PaymentRefused as bar:
        if bar.reason not in ("no_wallet", "clock"):  # the price is known all the same
            raise
        return Plan.of("x402", choose(buyer.settings.policy, demand.challenge, view.payees)), bar


def _refused(buyer: Buyer, call: Call, reply: Reply, refusal: PaymentRefused) -> Quote:
    return Quote(
        service=buyer.settings.services.name(call.state.url),
        origin=origin_asked(reply.url),
        method=call.method,
        url=reply.url,
        route=None,
        usd=None,
        amount=None,
        asset=None,
        network=None,
        pay_to=None,
        payer=buyer.address,
        refusal=refusal,
    )
