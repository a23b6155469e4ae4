"""Buying a payment token from a marketplace, and paying calls with it.

The second half of ``_flow.conversation``, for sellers of the Server402 kind::

    reserve ─► ask for a payment ─► pay it ─► poll until paid ─► call with X-Payment-Token
                     │                 │
                     │                 └─ the point of no return: never paid again from here on
                     └─ still unpaid: nothing moved, the reservation is given back

A payment is paid in the first way that applies: it is paid already; by an x402 signature, where the
payments endpoint asks for one; by a transfer on chain; by the owner's ``settle_payment``; or by a
balance, while it is polled.  After a crash or a lost answer an identical call goes on where the
ledger says this one stopped.

Creating a payment is not paying: where that answer is lost, no id is known, and it is created
again under the same reservation; where it says nothing, the reservation is given back.  Unless a
balance may pay at creation: the request had ``marketplace_headers``, the origin is one of
``balance_origins``, a balance has paid there before, or nothing here can pay in any other way.
Then the reservation stays, and an identical call says so for as long as a proof would live.  If a
balance pays where none was looked for, what was lost before is counted with it.  What was paid for
keeps its operation likewise: until its proof is dead an identical call shows the same token,
whatever the seller says.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final, NoReturn, TypeVar

from x402_mask._flow.effects import checkpoint, fetch, record
from x402_mask._flow.records import Plan
from x402_mask._flow.steps import booked, check_resign, release
from x402_mask._flow.tokens import paying, purchase, using
from x402_mask._flow.tokens.purchase import TokenPurchase
from x402_mask._money import usd
from x402_mask._policy.offers import FOREIGN, choose
from x402_mask._wire.server402 import (
    PAYMENTS_PATH,
    UNPAID,
    MarketPayment,
    Unreadable,
    micro_of,
    payment_in,
    price_fault,
    read_payment,
)
from x402_mask.errors import LedgerError, OfferRefused, PaymentError, PaymentRefused, TokenFlowError

if TYPE_CHECKING:
    from x402_mask._flow.buyer import Buyer
    from x402_mask._flow.effects import Fetched, Flow
    from x402_mask._flow.records import Call, Demand, Verdict
    from x402_mask._flow.tokens.purchase import Stage
    from x402_mask._ledger.purchases import BalanceSource, Begun, Way
    from x402_mask._ledger.records import LedgerView, OpenPayment, Proof, Row

log = logging.getLogger("x402_mask")
T = TypeVar("T")

_BY_OTHERS: Final = ("account", "balance", "settle")
"""Ways of paying of which no chain tells us."""

# --- whether, and for how much --------------------------------------------------------------------


def not_sold(buyer: Buyer, demand: Demand) -> PaymentRefused | None:
    """Why no token can be had for this call; ``None`` if one can be asked for."""
    sold = demand.challenge.form == "server402" or demand.origin in buyer.settings.token_origins
    if not demand.is_tool or not sold:
        return OfferRefused(
            f"{demand.origin} does not sell payment tokens for this call (token_origins=)",
            reason="no_offer",
        )
    return None


def plan(buyer: Buyer, demand: Demand, view: LedgerView) -> Plan:
    """To buy a token at the live price, within policy.

    Raises:
        OfferRefused: the offer may not be paid, or no price is named.
    """
    try:
        choice = choose(buyer.settings.policy, demand.challenge, view.payees)
    except OfferRefused as refusal:
        if refusal.reason not in FOREIGN:
            raise
        named = payment_in(demand.challenge.document)
        micro = micro_of(named) if named is not None else None
        if named is None or micro is None or price_fault(named, micro) is not None:
            raise
        return Plan(route="token", micro=micro, amount=micro)
    return Plan.of("token", choice)


# --- buying ---------------------------------------------------------------------------------------


def buy(buyer: Buyer, call: Call, demand: Demand, terms: Plan, row: Row) -> Flow[Verdict | None]:
    """Buy a token for the reservation in *row*, and call with it; ``None`` to look again.

    Raises:
        TokenFlowError: it could not be had; ``at_risk`` tells whether money may have moved.
        PaymentRefused: the marketplace's own terms are not those of the live offer.
    """
    deal = TokenPurchase(buyer, call, demand, row, terms)
    return (yield from _orderly(deal, _begin(deal)))


def _orderly(deal: TokenPurchase, steps: Flow[T]) -> Flow[T]:
    """Give the reservation back if the purchase ends by a decision before money could move.

    What ends otherwise (a lost answer, a cancellation) stays as the ledger has it: an identical
    call goes on from there.
    """
    try:
        return (yield from steps)
    except PaymentError as failure:
        failure.payment_id = deal.row.id
        if not deal.held and not failure.at_risk:
            yield from release(deal.buyer, deal.row.id, failure)
        elif not isinstance(failure, PaymentRefused | TokenFlowError):
            failure.at_risk = True
        raise
    except BaseException as failure:
        if deal.stage == "unsent" or (deal.stage == "asking" and not _may_have_left(failure)):
            yield from release(deal.buyer, deal.row.id, failure)
            raise
        if deal.held and not deal.call.state.paid:
            yield from purchase.end(deal, "unknown", f"no answer: {type(failure).__name__}")
        failure.add_note(
            f"x402_mask: the marketplace payment of {deal.row.id} is not finished;"
            f" an identical call {_what_follows(deal)}"
        )
        raise


def _what_follows(deal: TokenPurchase) -> str:
    """How an identical call goes on, for a person who may know better whose balance pays."""
    if deal.stage != "asking":
        return "goes on with it"
    if deal.purse is not None:
        return "creates no other for now, as a balance may have paid"
    return f"asks for it again (if a balance pays at {deal.demand.origin}: balance_origins=)"


def _may_have_left(failure: BaseException) -> bool:
    """Whether a request that failed may have reached the seller; httpx and httpx2 tell by name."""
    kinds = {kind.__name__ for kind in type(failure).__mro__}
    return kinds.isdisjoint(("ConnectError", "ConnectTimeout", "PoolTimeout"))


def _begin(deal: TokenPurchase) -> Flow[Verdict | None]:
    """Ask for a payment, or go on with one that an earlier call left unpaid."""
    buyer, row = deal.buyer, deal.row
    asked = yield from booked(
        buyer, lambda at: buyer.ledger.ask_payment(row.id, purse=_balance_source(deal), **at)
    )
    deal.remote, deal.purse = asked.remote, asked.purse
    if deal.remote is None:
        return (yield from _create(deal))
    deal.stage = "asked"
    return (yield from _go_on_unpaid(deal, asked.at))


def _balance_source(deal: TokenPurchase) -> BalanceSource | None:
    """Whose balance may pay what is asked for, as far as can be told from here."""
    buyer = deal.buyer
    if buyer.settings.marketplace_headers or deal.demand.origin in buyer.settings.balance_origins:
        return "account"
    return (
        "balance"
        if buyer.settings.signer is None and buyer.settings.settle_payment is None
        else None
    )


def _create(deal: TokenPurchase) -> Flow[Verdict]:
    """Ask the marketplace for a payment; the ledger knows that already."""
    deal.buyer.emit("token_asked", deal.demand, payment_id=deal.row.id)
    yield from checkpoint()  # the last moment at which nothing has left
    deal.stage = "asking"
    answer = yield from fetch(purchase.order(deal))
    deal.stage = "asked"
    try:
        payment = read_payment(answer.body)
    except Unreadable as exc:
        payment = None
        if answer.status != 402:
            yield from _misread(deal, answer, exc)
    if payment is not None:
        able = deal.buyer.settings.signer is not None and not payment.is_paid
        signs = able and paying.asked(deal, payment, answer) is not None
        try:
            yield from purchase.note_id(deal, payment, "x402" if signs else None)
        except LedgerError as exc:
            if not payment.is_paid:  # if it is, its token may still be stored, which says the same
                exc.at_risk = deal.purse is not None
                raise
            log.exception("the id of a payment that is paid could not be stored")
    return (yield from paying.pay(deal, payment, answer))


def _misread(deal: TokenPurchase, answer: Fetched, fault: Unreadable) -> Flow[NoReturn]:
    """The answer names no payment; if it says *paid* all the same, the price counts.

    Raises:
        TokenFlowError: always; at risk where it may be paid.
    """
    told = f"{deal.demand.origin}{PAYMENTS_PATH} answered {answer.status}: {fault}"
    if _is_refusal(answer.status):
        raise TokenFlowError(told) from None
    if "paid" in fault.statuses:
        yield from purchase.hold(deal, "balance", None)
        yield from purchase.end(deal, "unknown", f"paid by a balance, but {fault}")
        raise TokenFlowError(f"{told}, and it says that it is paid", at_risk=True) from None
    pending = deal.purse != "account" and not UNPAID.isdisjoint(fault.statuses)
    raise TokenFlowError(told, at_risk=deal.purse is not None and not pending) from None


def _is_refusal(status: int) -> bool:
    """Whether nothing was done, by the meaning of the status (RFC 9110, 15.4 and 15.5)."""
    return status in (307, 308) or (400 <= status < 500 and status not in (408, 409, 499))


def _create_anew(deal: TokenPurchase) -> Flow[Verdict]:
    """Ask for another payment: nothing can come of the last one."""
    buyer, row = deal.buyer, deal.row
    deal.remote, deal.until, deal.stage = None, None, "unsent"
    asked = yield from booked(
        buyer, lambda at: buyer.ledger.ask_anew(row.id, purse=_balance_source(deal), **at)
    )
    deal.purse = asked.purse
    return (yield from _create(deal))


def _create_again(deal: TokenPurchase, asked_us: int) -> Flow[Verdict | None]:
    """Ask for a payment whose id was never heard of, unless asking may have been paying."""
    if deal.purse is None:
        return (yield from _create_anew(deal))
    told = f"the answer of {deal.demand.origin}{PAYMENTS_PATH} was lost, or said nothing"
    yield from _count_unheard(deal, asked_us, told)
    return None


def _count_unheard(deal: TokenPurchase, asked_us: int, told: str) -> Flow[None]:
    """A balance may have paid, and nobody says so: in the end it counts; look again.

    Raises:
        TokenFlowError: it may still be heard of.
        PaymentRefused: ``resign="never"``.
    """
    if not deal.is_old(asked_us):
        raise TokenFlowError(
            f"{told}, and a balance may have paid: no other payment is created yet; see the"
            " account",
            at_risk=True,
        )
    yield from purchase.hold(deal, "account", None)
    yield from purchase.end(deal, "unknown", f"{told}; a balance may have paid")
    check_resign(deal.buyer, deal.row)
    yield from purchase.give_up(deal, told)


# --- going on after a crash or a lost answer ------------------------------------------------------


def resume(buyer: Buyer, call: Call, demand: Demand, twin: OpenPayment) -> Flow[Verdict | None]:
    """Go on with a purchase that another call left open; ``None`` to look again."""
    now_us = buyer.now_us()
    try:
        begun = yield from record(
            lambda wait_s: buyer.ledger.claim_purchase(
                twin.row.id, call.by, now_us=now_us, wait_s=wait_s
            )
        )
        if begun is None:
            return None
        deal, row = _begun(buyer, call, demand, begun), begun.row
        if deal.is_stale and deal.purse is None:
            yield from _let_go(buyer, row)
            return None  # decided anew
        buyer.emit("represented", row, payment_id=row.id, usd=usd(row.micro))
        return (yield from _orderly(deal, _go_on(deal, begun)))
    finally:
        buyer.ledger.let_go(twin.row.id, call.by, now_us=now_us)


def _begun(buyer: Buyer, call: Call, demand: Demand, begun: Begun) -> TokenPurchase:
    """A purchase as far as an earlier call has brought it; at ``asked``, it was asked for."""
    row = begun.row
    reached: Stage = "bought" if begun.stage == "bought" else "paying"
    return TokenPurchase(
        buyer,
        call,
        demand,
        row,
        _terms_again(buyer, demand, row),
        stage="asked" if row.state == "reserved" else reached,
        remote=begun.remote,
        until=begun.until,
        settled=row.state == "settled",
        transaction=row.trans,
        purse=begun.purse,
        behind_us=begun.behind_us,
    )


def _let_go(buyer: Buyer, row: Row) -> Flow[None]:
    """Nothing was paid for this reservation, and the seller now asks for something else."""
    note = "the live offer is not the one that was reserved"
    yield from booked(buyer, lambda at: buyer.ledger.release(row.id, note, **at))
    buyer.emit("released", row, payment_id=row.id, detail={"note": note})


def _terms_again(buyer: Buyer, demand: Demand, row: Row) -> Plan:
    """The terms that were reserved; the live offer only where it is still the same."""
    try:
        choice = choose(buyer.settings.policy, demand.challenge, {})
    except OfferRefused:
        choice = None
    same = choice is not None and (
        (choice.offer.network, choice.asset.address, str(choice.offer.amount), buyer.address)
        == (row.network, row.asset, row.amount, row.payer)
        and choice.offer.pay_to.lower() == (row.pay_to or "").lower()
    )
    return Plan(
        route="token", micro=row.micro, amount=int(row.amount), choice=choice if same else None
    )


def _go_on(deal: TokenPurchase, begun: Begun) -> Flow[Verdict | None]:
    match begun.stage:
        case "bought":
            return (yield from _go_on_with_token(deal, begun))
        case "paying":
            return (yield from _go_on_paying(deal, begun))
        case _ if begun.remote is None:
            return (yield from _create_again(deal, begun.at))
        case _:
            return (yield from _go_on_unpaid(deal, begun.at, begun.way))


def _go_on_unpaid(
    deal: TokenPurchase, asked_us: int, way: Way | None = None
) -> Flow[Verdict | None]:
    """Pay a payment that was created, unless a balance has done so; where it is over, another."""
    payment, answer = yield from purchase.read(deal)
    if payment is None and deal.purse is not None and not purchase.is_gone(answer):
        yield from _count_unheard(deal, asked_us, f"{PAYMENTS_PATH} answered {answer.status}")
        return None
    if payment is not None and payment.is_lost:
        yield from purchase.write_off(deal, payment)
        return None
    if deal.is_stale and not (payment is not None and payment.is_paid):
        yield from _let_go(deal.buyer, deal.row)
        return None  # decided anew
    if payment is None or deal.is_over(payment):
        return (yield from _create_anew(deal))
    if way == "x402" and not payment.is_paid and paying.asked(deal, payment, answer) is None:
        return (yield from _create_anew(deal))  # nothing else asks for the signature
    return (yield from paying.pay(deal, payment, answer))


def _go_on_with_token(deal: TokenPurchase, begun: Begun) -> Flow[Verdict | None]:
    token, expired = begun.token, begun.until is not None and begun.until <= deal.buyer.now_us()
    if token is None and begun.remote is not None and not expired:
        payment, _ = yield from purchase.read(deal)
        token = payment.token if payment is not None and payment.is_paid else None
    if token is None and not deal.is_closed:
        yield from purchase.end(deal, deal.outcome, "the token is gone")
        raise TokenFlowError("the token that was bought is gone", at_risk=True)
    if token is None or (expired and deal.is_closed):
        yield from purchase.end(deal, deal.outcome, "the token expired")
        yield from using.drop(deal.buyer, deal.row, "expired")
        yield from purchase.give_up(deal, "the token expired")
        return None
    return (yield from using.redeem(deal, token, again=True))


def _go_on_paying(deal: TokenPurchase, begun: Begun) -> Flow[Verdict | None]:
    payment = None
    if begun.remote is not None:
        payment = yield from _last_word(deal)
        if payment is not None and payment.is_paid and payment.token is not None:
            told = begun.way == "x402" and not deal.buyer.chain_knows(deal.row.network)
            deal.settled = deal.settled or told or begun.way in _BY_OTHERS
            if begun.way in ("account", "balance"):
                return (yield from paying.paid_already(deal, payment))
            return (yield from using.take(deal, payment))
    if begun.way == "transfer":
        return (yield from paying.carry(deal, payment))
    closed = deal.is_closed
    if closed and not _is_due(deal, payment):
        return (yield from _lapse(deal, begun.proof))
    if closed or begun.proof is None:
        return (yield from paying.await_paid(deal, payment))
    return (yield from paying.present(deal, begun.proof))


def _last_word(deal: TokenPurchase) -> Flow[MarketPayment | None]:
    """What the marketplace says; before a purchase is given up, one bad answer is not enough."""
    payment, _ = yield from purchase.read(deal)
    if deal.heard or not deal.is_closed:
        return payment
    return (
        yield from purchase.poll(deal, None, deal.buyer.settings.poll_unpaid_s, want_token=True)
    )


def _is_due(deal: TokenPurchase, payment: MarketPayment | None) -> bool:
    """Whether the payment says until when its token may still come."""
    if payment is not None and payment.is_over:
        return False
    until = deal.until if payment is None else payment.until
    return until is not None and not deal.is_past(until)


def _lapse(deal: TokenPurchase, proof: Proof | None) -> Flow[Verdict | None]:
    """The proof has expired: what it paid for stays counted, and a new one may be bought.

    Unless the chain's own time is not past it: then the same bytes are shown again.
    """
    if proof is not None and (yield from purchase.is_alive_on_chain(deal)):
        return (yield from paying.present(deal, proof))
    yield from purchase.end(deal, "unknown", "the proof has expired")
    check_resign(deal.buyer, deal.row)
    yield from purchase.give_up(deal, "the proof has expired")
    return None
