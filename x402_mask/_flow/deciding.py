"""Deciding whether, and by which route, a call is paid; and what the owner is shown of it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from x402_mask._flow.asking import ask_owner
from x402_mask._flow.effects import Reply, consult, payload, record
from x402_mask._flow.inputs import is_light, judged
from x402_mask._flow.records import Call, Demand, Plan, Verdict, quote_of
from x402_mask._flow.steps import booked
from x402_mask._ledger.records import Reservation, new_payment_id
from x402_mask._money import usd
from x402_mask._policy.caps import applying
from x402_mask._policy.clocks import seller_clock
from x402_mask._policy.offers import FOREIGN, choose
from x402_mask._wire.x402 import shown
from x402_mask.errors import (
    ApprovalDenied,
    InputRefused,
    OfferRefused,
    PaymentError,
    PaymentRefused,
    TokenFlowError,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from x402_mask._flow.buyer import Buyer
    from x402_mask._flow.effects import Flow
    from x402_mask._ledger.records import LedgerView
    from x402_mask._models import Quote, Route, Spend
    from x402_mask._policy.caps import Limit
    from x402_mask._policy.catalog_cache import ServiceRequest

_NOTHING_HELD: Final = "prefer= allows tokens that are held only, and none is held here"


# --- deciding -------------------------------------------------------------------------------------


def check_input(buyer: Buyer, request: ServiceRequest) -> Flow[None]:
    """Refuse a body that the service will refuse once it is paid, as far as schemas tell."""
    stated = buyer.input_schemas(request)
    content = (yield from payload()) if stated is not None else None
    if stated is None or content is None:
        return
    texts = buyer.schemas(request, stated, content)
    if is_light(buyer.catalog, texts, content):
        reason, ignored = judged(buyer.catalog, texts, content)
    else:
        reason, ignored = yield from consult(judged, buyer.catalog, texts, content)
    for parts in ignored:
        buyer.schema_ignored(request, parts)
    if reason is not None:
        raise InputRefused(
            f"{request.name} would refuse this request: {reason}; validate_input=False"
            " pays for it all the same"
        )


def check_price(buyer: Buyer, demand: Demand, plan: Plan) -> None:
    """Refuse an offer that is dearer than the price that the seller's own catalog names."""
    listed = buyer.listed_price(demand.service_request)
    if listed is not None and plan.micro > listed:
        raise OfferRefused(
            f"${usd(plan.micro)} is asked, the catalog's price is ${usd(listed)};"
            " allow_above_catalog=True pays it",
            reason="catalog_price",
        )


def is_impossible(error: TokenFlowError) -> bool:
    """Whether no money moved and no rule forbids it: a route that turned out not to be one."""
    return not error.at_risk and not isinstance(error, PaymentRefused)


def why_none(failed: Mapping[Route, PaymentError]) -> PaymentError:
    """The error to raise where no route is possible: of one that was tried, else of the first."""
    tried = [error for error in failed.values() if isinstance(error, TokenFlowError)]
    return next(iter([*tried, *failed.values()]), PaymentRefused(_NOTHING_HELD, reason="no_offer"))


def held_now(buyer: Buyer, call: Call, demand: Demand) -> Flow[Verdict | Reply | None]:
    """A token that another process bought, perhaps: this one asked before it knew."""
    from x402_mask._flow.tokens.using import spend_held  # noqa: PLC0415

    url = demand.reply.url
    return (yield from spend_held(buyer, call, demand.origin, demand.service, url))


def plan_by(
    buyer: Buyer,
    demand: Demand,
    view: LedgerView,
    route: str,
    failed: Mapping[Route, PaymentError],
) -> Plan | PaymentError:
    """How to pay by *route*, or why that is not possible.

    Raises:
        PaymentRefused: it is possible, and policy forbids it.
    """
    skipped = tuple(f"{name}: {shown(error, 200)}" for name, error in failed.items())
    if route == "token":
        from x402_mask._flow.tokens import buying  # noqa: PLC0415

        why = buying.not_sold(buyer, demand)
        return why or replace(buying.plan(buyer, demand, view), skipped=skipped)
    if buyer.settings.signer is None:
        return PaymentRefused(
            f"{demand.service} wants an x402 signature and this payer has no wallet",
            reason="no_wallet",
        )
    seller_clock(buyer.now(), demand.reply.date, strict=buyer.settings.strict_clock)
    try:
        choice = choose(buyer.settings.policy, demand.challenge, view.payees)
    except OfferRefused as refusal:
        if refusal.reason in FOREIGN:  # no signature of ours is asked for
            return refusal
        raise
    return Plan.of("x402", choice, skipped)


def decide(buyer: Buyer, call: Call, demand: Demand, plan: Plan) -> Flow[None]:
    """Ask the owner, before anything is reserved."""
    check_price(buyer, demand, plan)
    if buyer.settings.preempt and plan.choice is not None:
        buyer.offer_cache.learn(demand.place, plan.choice)
    if buyer.settings.approve is None:
        return
    quote = yield from full_quote(buyer, call, demand, plan)
    if quote.refusal is not None:
        quote.refusal.quote = quote
        raise quote.refusal
    terms = (plan.route, plan.amount, plan.asset, plan.network, plan.pay_to)
    before, call.state.denied = call.state.denied, terms  # unless they are approved now
    if terms == before:
        message = f"${quote.usd} for {quote.service} was denied in this call"
        raise ApprovalDenied(message, quote=quote)
    yield from ask_owner(buyer, demand.operation, quote)
    call.state.denied = before


def full_quote(buyer: Buyer, call: Call, demand: Demand, plan: Plan) -> Flow[Quote]:
    """What *plan* would cost, and whether the ledger would reserve it now."""
    refusal, want = None, reservation(buyer, call, demand, plan)
    if plan.route != "held-token":  # which reserves nothing
        refusal = yield from record(
            lambda wait_s: buyer.ledger.foresee(want, buyer.settings.breaker, wait_s=wait_s)
        )
    caps = yield from room(buyer, applying(want.limits, want.service, want.also))
    return quote_of(buyer, demand, plan, caps, refusal)


def room(buyer: Buyer, limits: Sequence[Limit]) -> Flow[tuple[Spend, ...]]:
    """How far these limits are used."""
    caps = yield from booked(buyer, lambda at: buyer.ledger.spend(limits, **at))
    return tuple(caps)


def reservation(buyer: Buyer, call: Call, demand: Demand, plan: Plan) -> Reservation:
    """What the ledger is asked to set aside for *plan*."""
    now_us, asset = buyer.now_us(), plan.asset
    return Reservation(
        id=new_payment_id(now_us),
        at=now_us,
        service=demand.service,
        origin=demand.origin,
        operation=demand.operation,
        keyed=call.key is not None,
        route=plan.route,
        micro=plan.micro,
        amount=plan.amount,
        asset=asset.address if asset is not None else None,
        network=plan.network,
        payer=buyer.address,
        pay_to=plan.pay_to,
        limits=buyer.limits,
        lapsed=demand.lapsed,
        pin_payee=buyer.settings.policy.pin,
        also=demand.also,
        seller_us=demand.seller_us,
        detail={
            "method": demand.method,
            "path": demand.path,
            "form": demand.challenge.form,
            "skipped": list(plan.reasons),
            "approved": buyer.settings.approve is not None,
        },
    )
