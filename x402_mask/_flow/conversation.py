"""The conversation: request, challenge, choice, reservation, proof, retry, settlement.

This is the whole story of a paid call, told once.  It does no I/O: it yields effects
(``_flow.effects``) that a sync or an async driver performs::

    ask ─ not 402 ──────────────────────────────► hand back, unread
     │ 402
     ├─ not a challenge ────────────────────────► hand back
     ├─ refused by policy ──────────────────────► raise, nothing signed
     ├─ the operation is open already ─► claim ─┐
     └─ reserve ─► sign ─► hold (durable) ──────┤   (one transaction, if the wallet is here)
                                                ▼
                                        ask with proof     ← the point of no return
                                                │
                                     finish: settled / unknown / rejected

Before the point of no return every failure releases the reservation; after it none does.
Buying a payment token from a marketplace is told in ``_flow.tokens.buying``.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Final

from x402_mask._flow import lapsed
from x402_mask._flow.cap_names import warn_once
from x402_mask._flow.deciding import (
    check_input,
    decide,
    held_now,
    is_impossible,
    plan_by,
    reservation,
    room,
    why_none,
)
from x402_mask._flow.demand import challenge_of, demand_of, identified
from x402_mask._flow.effects import Reply, ask, checkpoint, record, sleep
from x402_mask._flow.lapsed import Doubts
from x402_mask._flow.preemption import Place
from x402_mask._flow.records import Call, Demand, Plan, Verdict, quote_of, receipt_for, row_of
from x402_mask._flow.steps import (
    booked,
    conclude,
    finish,
    prove,
    prove_here,
    release,
    seen,
    settlement_fault,
    warn_of_error,
    why_refused,
)
from x402_mask._ledger.records import OpenPayment, Proof, Reservation, Result, Row, paused
from x402_mask._money import usd
from x402_mask._policy.caps import applying
from x402_mask._policy.catalog_cache import ServiceRequest
from x402_mask._services import origin_of, path_of, tool_of
from x402_mask._wallets.local import Wallet
from x402_mask._wire.x402 import read_settlement, shown
from x402_mask.errors import (
    CapExceeded,
    InputRefused,
    LedgerError,
    OfferRefused,
    PaymentError,
    PaymentRefused,
    TokenFlowError,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from decimal import Decimal

    from x402_mask._flow.buyer import Buyer
    from x402_mask._flow.effects import Flow
    from x402_mask._ledger.records import LedgerView, Reserved
    from x402_mask._models import Route
    from x402_mask._policy.offers import Choice

log = logging.getLogger("x402_mask")

_POLL_S: Final = 0.05


def converse(buyer: Buyer, call: Call) -> Flow[Verdict]:
    """Make one call, paying if it must be and may be.

    Raises:
        PaymentError: a 402 that may not be paid, or could not be.
        BaseException: whatever the transport raised, unchanged.
    """
    if call.state.paid:
        return (yield from _after_redirect(buyer, call))
    reply = None
    if not call.has_proof and call.may_begin:
        first = yield from _send_first(buyer, call)
        if isinstance(first, Verdict):
            return first
        reply = first
    if reply is None:
        reply = yield from ask()
    if reply.status != 402 or call.has_proof:
        return Verdict(receipt=call.state.receipt)
    try:
        return (yield from _pay(buyer, call, reply))
    except PaymentRefused as refusal:
        yield from _note_refusal(buyer, call, reply, refusal)
        if call.returns(buyer):
            return Verdict(refusal=refusal)
        raise
    except PaymentError as error:
        if call.returns(buyer) and not error.at_risk:
            return Verdict(refusal=error)
        raise


def _after_redirect(buyer: Buyer, call: Call) -> Flow[Verdict]:
    """What a paid answer led to: never paid for again, and the delivery if it is a 2xx."""
    row, receipt = call.state.row, call.state.receipt
    try:
        reply = yield from ask()
    except BaseException as failure:
        if row is not None:
            failure.add_note(f"x402_mask: payment {row.id} was sent, and what it led to is lost")
        raise
    if row is None or receipt is None or not reply.delivered:
        return Verdict(receipt=receipt)
    result = Result(
        outcome=receipt.outcome,
        delivered=True,
        transaction=receipt.transaction,
        note=f"HTTP {reply.status} after a redirect",
    )
    return (yield from conclude(buyer, call, row, result, told=True))


def _pay(buyer: Buyer, call: Call, reply: Reply) -> Flow[Verdict]:
    challenge = yield from challenge_of(buyer, call, reply)
    if challenge is None:
        return Verdict()
    demand = demand_of(buyer, call, reply, challenge)
    buyer.emit("challenge", demand, detail={"form": challenge.form})
    demand = yield from identified(call, demand)
    asked_at = buyer.now()
    yield from warn_once(buyer, demand)
    verdict = yield from _open(buyer, call, demand)
    if buyer.settings.preempt and verdict.delivered:
        buyer.offer_cache.keep(demand.place, challenge, asked_at)
    return verdict


def _send_first(buyer: Buyer, call: Call) -> Flow[Verdict | Reply | None]:
    """Pay with the first request: by a token that is held, or by a proof for a known price.

    ``None`` to ask first; a 402 that did not take the token is the answer to asking.
    """
    if buyer.tokens.possible and buyer.settings.prefer[0] == "held-token":
        held = yield from _held_first(buyer, call)
        if held is not None:
            return held
    return (yield from _preempt(buyer, call)) if buyer.settings.preempt else None


def _held_first(buyer: Buyer, call: Call) -> Flow[Verdict | Reply | None]:
    service = tool_of(call.url)
    origin = call.state.origin
    if service is None or origin not in buyer.settings.origins or origin_of(call.url) != origin:
        return None
    known = buyer.tokens.known
    if known is None:
        try:
            found = yield from booked(buyer, lambda at: buyer.ledger.held_tokens(**at))
        except LedgerError as exc:  # said again, and louder, if the seller asks for money
            log.warning("held tokens cannot be read: %s", exc)
            return None
        known = buyer.tokens.known = set(found)
    if (origin, service) not in known:
        return None
    try:
        also = buyer.settings.services.also(call.url)
        yield from check_input(buyer, ServiceRequest(call.method, origin, service, also=also))
    except InputRefused:
        return None  # said when the seller asks for money; until then it costs no token
    from x402_mask._flow.tokens.using import spend_held  # noqa: PLC0415  # most payers hold none

    return (yield from spend_held(buyer, call, origin, service, call.url))


def _preempt(buyer: Buyer, call: Call) -> Flow[Verdict | None]:
    """Pay a price that is known already with the first request; ``None`` to ask first after all."""
    service, path = buyer.settings.services.name(call.url), path_of(call.url)
    place = Place(call.method, origin_of(call.url), service, path)
    challenge = buyer.offer_cache.recall(place, buyer.now())
    if challenge is None:
        return None
    try:
        known = Reply(status=402, url=call.url, headers={})
        demand = replace(demand_of(buyer, call, known, challenge), is_remembered=True)
        demand = yield from identified(call, demand)
        verdict = yield from _open(buyer, call, demand)
    except PaymentRefused:
        return None  # the refusal is said, and recorded, when the seller really asks
    except TokenFlowError as error:
        if not is_impossible(error):
            raise
        return None  # as above
    if verdict.receipt is not None and verdict.receipt.outcome == "rejected":
        buyer.offer_cache.rejected(place, buyer.now())
    return verdict


def _open(buyer: Buyer, call: Call, demand: Demand) -> Flow[Verdict]:
    """Find the operation's open proof and present it again, or reserve and sign a new one."""
    waited, doubts = 0.0, Doubts()
    tried: dict[Route, PaymentError] = {}
    while True:
        view = yield from look(buyer, call, demand)
        if view.paused:
            raise paused()
        if (yield from lapsed.ask(buyer, call, view, doubts)):
            demand = doubts.clocks(demand, view)
            continue
        twin = doubts.twin(view)
        if twin is not None and not twin.busy:
            try:
                verdict = yield from _represent(buyer, call, demand, twin)
            except TokenFlowError as error:
                if not is_impossible(error) or tried:
                    raise
                tried["token"], verdict = error, None  # given back: the other routes are left
            if verdict is not None:
                return verdict
            doubts.dismiss(twin)
            continue
        if twin is not None and call.key is not None:
            yield from _wait(call, waited, twin)
            waited += _POLL_S
            continue
        demand = yield from lapsed.check(buyer, call, demand, view)
        yield from check_input(buyer, demand.service_request)
        verdict = yield from _by_route(buyer, call, demand, view, tried)
        if verdict is not None:
            return verdict


def look(buyer: Buyer, call: Call, demand: Demand) -> Flow[LedgerView]:
    """What the ledger knows of the operation, and of what is on the way to paying for it."""
    shop = demand.origin if demand.is_tool else None
    return (
        yield from booked(
            buyer,
            lambda at: buyer.ledger.view(
                demand.operation,
                demand.service,
                shop,
                origin=demand.origin if buyer.settings.policy.pin else None,
                also=demand.also,
                keyed=call.key is not None,
                seller_us=demand.seller_us,
                **at,
            ),
        )
    )


def _wait(call: Call, waited: float, twin: OpenPayment) -> Flow[None]:
    """Let the call that carries the same key finish, within this caller's own time-out."""
    if call.wait_s is not None and waited >= call.wait_s:
        raise PaymentRefused(
            f"another call with the same operation key is in flight ({twin.row.id})",
            reason="in_flight",
            payment_id=twin.row.id,
        )
    yield from sleep(_POLL_S)


def _by_route(
    buyer: Buyer, call: Call, demand: Demand, view: LedgerView, tried: Mapping[Route, PaymentError]
) -> Flow[Verdict | None]:
    """Pay by the first route that is possible; ``None`` to look again.

    A refusal by policy ends the call.  If no route is possible, the error of one that was tried is
    raised, else that of the first.
    """
    failed = dict(tried)
    for route in buyer.settings.prefer:
        if route in failed:
            continue
        if route == "held-token":
            held = (yield from held_now(buyer, call, demand)) if view.token else None
            if isinstance(held, Verdict):
                return held
            if held is not None:  # another 402, which did not take it
                return (yield from _pay(buyer, call, held))
            continue
        plan = plan_by(buyer, demand, view, route, failed)
        if isinstance(plan, PaymentError):
            failed[route] = plan
            continue
        try:
            yield from decide(buyer, call, demand, plan)
            return (yield from _reserve_and_buy(buyer, call, demand, plan))
        except TokenFlowError as error:
            if not is_impossible(error):
                raise
            failed[route] = error
    raise why_none(failed)


def _reserve_and_buy(buyer: Buyer, call: Call, demand: Demand, plan: Plan) -> Flow[Verdict | None]:
    """Reserve, sign, present; ``None`` if the operation was opened by another call meanwhile."""
    want = reservation(buyer, call, demand, plan)
    try:
        reserved = yield from _reserve(buyer, call, demand, plan, want)
        if reserved is None:
            return None
        row, proof = row_of(want), reserved.proof
        if plan.route == "token" or plan.choice is None:
            from x402_mask._flow.tokens.buying import buy  # noqa: PLC0415

            return (yield from buy(buyer, call, demand, plan, row))
        if proof is None:
            proof = yield from _sign_and_hold(buyer, demand, plan.choice, row)
        else:
            yield from _may_go(buyer, row)
        buyer.emit("sent", demand, payment_id=row.id, usd=usd(row.micro))
        return (yield from _present(buyer, call, row, proof))
    except PaymentRefused as refusal:
        refusal.quote = quote_of(buyer, demand, plan, (), refusal)
        if refusal.reason == "cap":
            with suppress(LedgerError):  # the refusal stands, with or without the whole picture
                caps = yield from room(buyer, applying(want.limits, want.service, want.also))
                refusal.quote = replace(refusal.quote, caps=caps)
        raise
    finally:  # whatever interrupts this, at whichever line: nobody carries the payment any more
        buyer.ledger.let_go(want.id, call.by, now_us=want.at)


def _reserve(
    buyer: Buyer, call: Call, demand: Demand, plan: Plan, want: Reservation
) -> Flow[Reserved | None]:
    """Reserve against every cap at once; ``None`` if the operation was opened meanwhile.

    A wallet in this process signs within the reservation, so that one commit is enough.  What signs
    elsewhere may take long, and outlive this host: its reservation is durable before it is asked.
    """
    make = None
    if (
        plan.route == "x402"
        and plan.choice is not None
        and isinstance(buyer.settings.signer, Wallet)
    ):
        make = partial(prove_here, buyer, demand, plan.choice, want.id)
    answer = yield from record(
        lambda wait_s: buyer.ledger.reserve(
            want,
            buyer.settings.breaker,
            durable=plan.route == "x402",
            prove=make,
            carrier=call.by,
            wait_s=wait_s,
        )
    )
    if isinstance(answer, OpenPayment):
        return None
    buyer.emit(
        "reserved",
        demand,
        payment_id=want.id,
        usd=usd(want.micro),
        detail={"route": want.route, "skipped": want.detail["skipped"]},
    )
    if answer.new_payee:
        buyer.emit("payee_changed", demand, payment_id=want.id, detail={"pay_to": want.pay_to})
    return answer


# --- proving --------------------------------------------------------------------------------------


def _sign_and_hold(buyer: Buyer, demand: Demand, choice: Choice, row: Row) -> Flow[Proof]:
    """Have it signed, and store the proof; until then every failure gives the money back."""
    try:
        proof = yield from prove(buyer, demand, choice, row.id)
        yield from booked(buyer, lambda at: buyer.ledger.hold(row.id, proof, **at))
    except BaseException as failure:
        yield from release(buyer, row.id, failure)
        raise
    return proof


def _may_go(buyer: Buyer, row: Row) -> Flow[None]:
    """The last moment before the proof leaves: a cancellation gives the money back."""
    try:
        yield from checkpoint()
    except BaseException as failure:
        yield from release(buyer, row.id, failure, unsent=True)
        raise


def _represent(buyer: Buyer, call: Call, demand: Demand, twin: OpenPayment) -> Flow[Verdict | None]:
    """Present the same bytes again; ``None`` if another call took them first."""
    if twin.row.route == "token":
        from x402_mask._flow.tokens.buying import resume  # noqa: PLC0415

        return (yield from resume(buyer, call, demand, twin))
    lapsed.check_twin(twin)
    row, now_us = twin.row, buyer.now_us()
    try:
        proof = yield from record(
            lambda wait_s: buyer.ledger.claim(
                row.id,
                call.by,
                now_us=now_us,
                seller_us=demand.seller_us,
                by_chain=twin.by == "chain",
                wait_s=wait_s,
            )
        )
        if proof is None:
            return None
        buyer.emit("represented", row, payment_id=row.id, usd=usd(row.micro))
        return (yield from _present(buyer, call, row, proof))
    finally:
        buyer.ledger.let_go(row.id, call.by, now_us=now_us)


# --- after the point of no return -----------------------------------------------------------------


def _present(buyer: Buyer, call: Call, row: Row, proof: Proof) -> Flow[Verdict]:
    """Send the proof, and write down how it ended, however it ended."""
    call.state.paid, call.state.row = True, row
    call.state.receipt = receipt_for(row, "unknown", None)
    try:
        reply = yield from ask((proof.header, proof.value))
        result = yield from _judge(buyer, call, row, proof, reply)
    except BaseException as failure:
        note = f"no answer: {type(failure).__name__}"
        yield from finish(buyer, row, Result(outcome="unknown", delivered=False, note=note))
        failure.add_note(f"x402_mask: payment {row.id} was sent and its outcome is not known")
        raise
    warn_of_error(row, reply)
    return (yield from conclude(buyer, call, row, result))


def _judge(buyer: Buyer, call: Call, row: Row, proof: Proof, reply: Reply) -> Flow[Result]:
    """What the answer says of the money; with an RPC, ``settled`` only if the chain agrees."""
    settlement = read_settlement(reply.headers)
    fault = settlement_fault(buyer, row, proof, settlement)
    told = settlement.transaction if settlement is not None else None
    note = f"HTTP {reply.status}; {fault}" if fault else f"HTTP {reply.status}"
    agreed = fault is None and reply.status != 402  # a seller that asks again is not believed
    if fault is None and buyer.chain_knows(row.network):
        agreed = yield from seen(buyer, call, row, proof, told)
        note = note if agreed else f"{note}; the settlement is not seen on chain yet"
    if agreed:
        return Result(outcome="settled", delivered=reply.delivered, transaction=told, note=note)
    rejected = reply.status == 402
    return Result(
        outcome="rejected" if rejected else "unknown",
        delivered=reply.delivered,
        note=note,
        reason=(yield from why_refused(row, reply)),
    )


def _note_refusal(buyer: Buyer, call: Call, reply: Reply, refusal: PaymentRefused) -> Flow[None]:
    """Put the refusal in the history; a ledger that cannot take it does not hide the reason."""
    try:
        origin = origin_of(reply.url)
    except ValueError:  # an auth flow may lead anywhere
        origin = shown(reply.url)
    service = buyer.settings.services.name(call.state.url)
    detail = {
        "reason": refusal.reason,
        "message": shown(refusal, 300),
        "origin": origin,
        "method": call.method,
        "path": path_of(reply.url)[:200],
    }
    buyer.emit(
        "refused",
        ServiceRequest(call.method, origin, service),
        payment_id=refusal.payment_id,
        usd=_asked_usd(refusal),
        detail=detail,
    )
    payee = None
    if isinstance(refusal, OfferRefused) and refusal.pay_to is not None:
        payee = (call.state.origin, service, refusal.pay_to)
    try:
        yield from booked(buyer, lambda at: buyer.ledger.note_refusal(detail, payee, **at))
    except LedgerError as exc:
        log.warning("a refusal could not be recorded: %s", exc)


def _asked_usd(refusal: PaymentRefused) -> Decimal | None:
    """What was asked, where that much was known."""
    if isinstance(refusal, CapExceeded):
        return refusal.wanted
    return None if refusal.quote is None else refusal.quote.usd
