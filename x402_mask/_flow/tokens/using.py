"""Calls that are paid with a token: one that is held already, or one that was just bought.

Part of the conversation (``_flow.conversation``): no I/O, effects only.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from x402_mask._flow.effects import Reply, ask
from x402_mask._flow.records import Verdict, receipt_for
from x402_mask._flow.steps import booked, conclude, warn_of_error, why_refused
from x402_mask._flow.tokens import purchase
from x402_mask._ledger.purchases import Bought
from x402_mask._ledger.records import Result, Row
from x402_mask._money import usd
from x402_mask._wire.x402 import TOKEN_HEADER
from x402_mask.errors import LedgerError, TokenFlowError

if TYPE_CHECKING:
    from x402_mask._flow.buyer import Buyer
    from x402_mask._flow.effects import Flow
    from x402_mask._flow.records import Call
    from x402_mask._flow.tokens.purchase import TokenPurchase
    from x402_mask._models import Outcome
    from x402_mask._wire.server402 import MarketPayment

log = logging.getLogger("x402_mask")


def spend_held(
    buyer: Buyer, call: Call, origin: str, service: str, url: str
) -> Flow[Verdict | Reply | None]:
    """Pay with a token that an earlier call bought; it moves no money.

    ``None`` if there is none; the 402 if the seller does not take it, which drops it.  *url* is
    where it is sent: a 402 of another place, to which httpx followed a redirect, is about no token.
    """
    try:
        taken = yield from booked(buyer, lambda at: buyer.ledger.take_token(origin, service, **at))
    except LedgerError as exc:  # said again, and louder, if the seller asks for money
        log.warning("held tokens cannot be read: %s", exc)
        return None
    if taken is None:
        buyer.tokens.doubt(origin, service)
        return None
    buyer.tokens.learn(origin, service)
    row = taken.row
    buyer.emit("token_used", row, payment_id=row.id)
    outcome: Outcome = "settled" if row.state == "settled" else "unknown"
    receipt = replace(
        receipt_for(row, outcome, row.trans), route="held-token", usd=usd(0), amount=0
    )
    call.state.paid, call.state.receipt = True, receipt
    try:
        reply = yield from ask((TOKEN_HEADER, taken.token))
    except BaseException as failure:
        failure.add_note(f"x402_mask: a call of the token of payment {row.id} may be used")
        yield from _give_back(buyer, row)
        raise
    if reply.status != 402:
        warn_of_error(row, reply)
        if not reply.delivered:
            yield from _give_back(buyer, row)
        if 300 <= reply.status < 400:  # where that leads the token may be asked for as well
            call.state.paid = False
        return Verdict(receipt=receipt, delivered=reply.delivered)
    call.state.paid, call.state.receipt = False, None
    if url == call.url != reply.url:
        yield from _give_back(buyer, row)
    else:
        yield from drop(buyer, row, "refused by the seller")
    return reply


def _give_back(buyer: Buyer, row: Row) -> Flow[None]:
    """Nothing was delivered for a call of a token: let an identical call present it again.

    If the seller has counted it, it says so with a 402, and that costs nothing.
    """
    try:
        yield from booked(buyer, lambda at: buyer.ledger.return_call(row.id, **at))
    except LedgerError as exc:
        log.warning("a call of the token of payment %s is lost: %s", row.id, exc)


def drop(buyer: Buyer, row: Row, note: str) -> Flow[None]:
    """Forget a token that is of no use any more."""
    yield from booked(buyer, lambda at: buyer.ledger.drop_token(row.id, note, **at))
    buyer.emit("token_dropped", row, payment_id=row.id, detail={"note": note})


def take(deal: TokenPurchase, payment: MarketPayment) -> Flow[Verdict]:
    """Store the token, then call with it."""
    buyer, row = deal.buyer, deal.row
    if payment.token is None:
        found = yield from purchase.poll(
            deal, payment, buyer.settings.poll_unpaid_s, want_token=True
        )
        if found is None or found.token is None:
            yield from purchase.hold(deal, "balance", None)
            yield from purchase.end(deal, "settled", "paid, and no token came")
            raise TokenFlowError("paid already, but the marketplace gave no token", at_risk=True)
        payment = found
    assert payment.token is not None
    bought = Bought(
        token=payment.token,
        calls=payment.calls,
        until=payment.until,
        settled=deal.settled,
        transaction=deal.transaction,
        note=deal.note,
    )
    try:
        yield from booked(buyer, lambda at: buyer.ledger.store_token(row.id, bought, **at))
    except LedgerError as exc:
        if not deal.held:  # a balance paid, and nothing says so: an identical call reads it again
            exc.at_risk = True
            raise
        log.exception("the token of payment %s could not be stored", row.id)
        buyer.emit("ledger_failed", payment_id=row.id, detail={"error": str(exc)})
    deal.stage = "bought"
    buyer.emit("bought", row, payment_id=row.id, usd=usd(row.micro), detail={"note": deal.note})
    if bought.calls not in (0, 1):
        buyer.tokens.learn(row.origin, row.service)
    verdict = yield from redeem(deal, payment.token)
    assert verdict is not None  # a token that this call bought is not dropped
    return verdict


def redeem(deal: TokenPurchase, token: str, *, again: bool = False) -> Flow[Verdict | None]:
    """Call with the token that this operation bought.

    ``None`` if it was bought by an earlier call and the seller does not take it: it is dropped, but
    not before what paid for it has expired, for until then one operation has one proof.
    """
    call, row = deal.call, deal.row
    paid = deal.outcome
    call.state.paid, call.state.row = True, row
    call.state.receipt = receipt_for(row, paid, deal.transaction)
    try:
        reply = yield from ask((TOKEN_HEADER, token))
    except BaseException as failure:
        yield from purchase.end(deal, paid, f"no answer: {type(failure).__name__}")
        raise
    if reply.status == 402 and again and deal.is_closed:
        call.state.paid, call.state.row, call.state.receipt = False, None, None
        yield from purchase.end(deal, paid, "the seller does not take the token")
        yield from drop(deal.buyer, row, "refused by the seller")
        yield from purchase.give_up(deal, "the seller does not take the token")
        return None
    warn_of_error(row, reply)
    outcome: Outcome = "rejected" if reply.status == 402 else paid
    result = Result(
        outcome=outcome,
        delivered=reply.delivered,
        transaction=deal.transaction,
        note=f"HTTP {reply.status}",
        reason=(yield from why_refused(row, reply)),
    )
    return (yield from conclude(deal.buyer, call, row, result))
