"""Buying a payment token from a marketplace, and paying calls with it.

The second half of :mod:`x402_mask._flow`, for sellers of the Server402 kind::

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
Then the reservation stays, and an identical call says so for as long as a proof would live.  What
was paid for keeps its operation likewise: until its proof is dead an identical call shows the same
token, whatever the seller says.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar

from x402_mask import _json
from x402_mask._body import date_of
from x402_mask._effects import Fetch, Reply, ask, checkpoint, consult, fetch, record, sleep
from x402_mask._market import (
    PAYMENTS_PATH,
    UNPAID,
    MarketPayment,
    PaymentDocument,
    Unreadable,
    find_accepts,
    find_payment,
    micro_of,
    price_fault,
    read_payment,
)
from x402_mask._money import usd
from x402_mask._policy import choose, payee_fault
from x402_mask._proving import (
    check_resign,
    conclude,
    finish,
    prove,
    release,
    seen,
    settlement_fault,
)
from x402_mask._rows import EXPIRY_MARGIN_S, Proof, Result, Row, Twin
from x402_mask._terms import Plan, Verdict, quote_of, receipt_for
from x402_mask._tokenbook import TERMS, Begun, Bought
from x402_mask._transfers import Terms as Transfer
from x402_mask._windows import SECOND
from x402_mask._wire import REQUIRED_HEADER, TOKEN_HEADER, read_challenge, read_settlement, shown
from x402_mask.errors import (
    ApprovalDenied,
    LedgerError,
    OfferRefused,
    PaymentError,
    PaymentRefused,
    TermsRefused,
    TokenFlowError,
)

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping

    from x402_mask._effects import Effect, Fetched
    from x402_mask._models import Outcome
    from x402_mask._payer import Payer
    from x402_mask._policy import Choice
    from x402_mask._rows import View
    from x402_mask._terms import Call, Purchase
    from x402_mask._tokenbook import Purse, Way
    from x402_mask._transfers import SignedTransfer
    from x402_mask._wire import Challenge

log = logging.getLogger("x402_mask")
T = TypeVar("T")

_BY_OTHERS: Final = ("account", "balance", "settle")
"""Ways of paying of which no chain tells us."""

_FIRST_DELAY_S: Final = 0.25
_GROWTH: Final = 1.6
_DELAY_MAX_S: Final = 5.0
SKEW_US: Final = 30 * SECOND
"""How far past ``expiresAt`` a payment is still tried: two clocks differ."""


@dataclass(slots=True)
class _Deal:
    """One purchase on its way: what is bought, and how far it has come."""

    payer: Payer
    call: Call
    purchase: Purchase
    row: Row
    terms: Plan
    remote: str | None = None
    until: int | None = None
    held: bool = False
    """Whether money may have moved."""
    unsent: bool = False
    """Whether nothing has left for the payment that is asked for."""
    creating: bool = False
    """Whether it is being asked for."""
    purse: Purse | None = None
    """Whose balance may pay it because it is asked for."""
    heard: bool = True
    """Whether the last answer about it could be read."""
    stale: bool = False
    """Whether what was reserved is no longer what the seller offers."""
    settled: bool = False
    transaction: str | None = None
    note: str = ""


# --- whether, and for how much --------------------------------------------------------------------


def not_sold(payer: Payer, purchase: Purchase) -> PaymentRefused | None:
    """Why no token can be had for this call; ``None`` if one can be asked for."""
    sold = purchase.challenge.form == "server402" or purchase.origin in payer.token_origins
    if not purchase.is_tool or not sold:
        return OfferRefused(
            f"{purchase.origin} does not sell payment tokens for this call (token_origins=)",
            reason="no_offer",
        )
    return None


def plan(payer: Payer, purchase: Purchase, view: View) -> Plan:
    """To buy a token at the live price, within policy.

    Raises:
        OfferRefused: the offer may not be paid, or no price is named.
    """
    try:
        choice = choose(payer.policy, purchase.challenge, view.payees)
    except OfferRefused as refusal:
        if refusal.reason not in ("no_offer", "scheme"):
            raise
        named = _named(purchase.challenge.document)
        micro = micro_of(named) if named is not None else None
        if named is None or micro is None or price_fault(named, micro) is not None:
            raise
        return Plan(route="token", micro=micro, amount=micro)
    return Plan.of("token", choice)


def _named(document: Mapping[str, Any]) -> MarketPayment | None:
    """The payment that the 402 names in place of an offer."""
    found = find_payment(document)
    try:
        return None if found is None else read_payment(_json.dumps(found).encode())
    except Unreadable:
        return None


# --- tokens that are held already -----------------------------------------------------------------


def spend_held(
    payer: Payer, call: Call, origin: str, service: str, url: str
) -> Generator[Effect, Any, Verdict | Reply | None]:
    """Pay with a token that an earlier call bought; it moves no money.

    ``None`` if there is none; the 402 if the seller does not take it, which drops it.  *url* is
    where it is sent: a 402 of another place, to which httpx followed a redirect, is about no token.
    """
    now_us = payer.now_us()
    try:
        taken = yield from record(
            lambda wait_s: payer.ledger.take_token(origin, service, now_us=now_us, wait_s=wait_s)
        )
    except LedgerError as exc:  # said again, and louder, if the seller asks for money
        log.warning("held tokens cannot be read: %s", exc)
        return None
    if taken is None:
        payer.tokens.doubt(origin, service)
        return None
    payer.tokens.learn(origin, service)
    row = taken.row
    payer.emit("token_used", row, payment_id=row.id)
    outcome: Outcome = "settled" if row.state == "settled" else "unknown"
    receipt = replace(
        receipt_for(row, outcome, row.trans), route="held-token", usd=usd(0), amount=0
    )
    call.trip.paid, call.trip.receipt = True, receipt
    try:
        reply = yield from ask((TOKEN_HEADER, taken.token))
    except BaseException as failure:
        failure.add_note(f"x402_mask: a call of the token of payment {row.id} may be used")
        yield from _give_back(payer, row)
        raise
    if reply.status != 402:
        if not reply.delivered:
            yield from _give_back(payer, row)
        if 300 <= reply.status < 400:  # where that leads the token may be asked for as well
            call.trip.paid = False
        return Verdict(receipt=receipt, delivered=reply.delivered)
    call.trip.paid, call.trip.receipt = False, None
    if url == call.url != reply.url:
        yield from _give_back(payer, row)
    else:
        yield from _drop(payer, row, "refused by the seller")
    return reply


def _give_back(payer: Payer, row: Row) -> Generator[Effect, Any, None]:
    """Nothing was delivered for a call of a token: let an identical call present it again.

    If the seller has counted it, it says so with a 402, and that costs nothing.
    """
    now_us = payer.now_us()
    try:
        yield from record(
            lambda wait_s: payer.ledger.return_call(row.id, now_us=now_us, wait_s=wait_s)
        )
    except LedgerError as exc:
        log.warning("a call of the token of payment %s is lost: %s", row.id, exc)


def _drop(payer: Payer, row: Row, note: str) -> Generator[Effect, Any, None]:
    now_us = payer.now_us()
    yield from record(
        lambda wait_s: payer.ledger.drop_token(row.id, note, now_us=now_us, wait_s=wait_s)
    )
    payer.emit("token_dropped", row, payment_id=row.id, detail={"note": note})


# --- buying ---------------------------------------------------------------------------------------


def buy(
    payer: Payer, call: Call, purchase: Purchase, terms: Plan, row: Row
) -> Generator[Effect, Any, Verdict | None]:
    """Buy a token for the reservation in *row*, and call with it; ``None`` to look again.

    Raises:
        TokenFlowError: it could not be had; ``at_risk`` tells whether money may have moved.
        PaymentRefused: the marketplace's own terms are not those of the live offer.
    """
    deal = _Deal(payer, call, purchase, row, terms)
    return (yield from _orderly(deal, _begin(deal)))


def _orderly(deal: _Deal, steps: Generator[Effect, Any, T]) -> Generator[Effect, Any, T]:
    """Give the reservation back if the purchase ends by a decision before money could move.

    What ends otherwise (a lost answer, a cancellation) stays as the ledger has it: an identical
    call goes on from there.
    """
    try:
        return (yield from steps)
    except PaymentError as failure:
        failure.payment_id = deal.row.id
        if not deal.held and not failure.at_risk:
            yield from release(deal.payer, deal.row.id, failure)
        elif not isinstance(failure, PaymentRefused | TokenFlowError):
            failure.at_risk = True
        raise
    except BaseException as failure:
        if deal.unsent or (deal.creating and not _may_have_left(failure)):
            yield from release(deal.payer, deal.row.id, failure)
            raise
        if deal.held and not deal.call.trip.paid:
            yield from _end(deal, "unknown", f"no answer: {type(failure).__name__}")
        failure.add_note(
            f"x402_mask: the marketplace payment of {deal.row.id} is not finished;"
            f" an identical call {_what_follows(deal)}"
        )
        raise


def _what_follows(deal: _Deal) -> str:
    """How an identical call goes on, for a person who may know better whose balance pays."""
    if not deal.creating:
        return "goes on with it"
    if deal.purse is not None:
        return "creates no other for now, as a balance may have paid"
    return f"asks for it again (if a balance pays at {deal.purchase.origin}: balance_origins=)"


def _may_have_left(failure: BaseException) -> bool:
    """Whether a request that failed may have reached the seller; httpx and httpx2 tell by name."""
    kinds = {kind.__name__ for kind in type(failure).__mro__}
    return kinds.isdisjoint(("ConnectError", "ConnectTimeout", "PoolTimeout"))


def _begin(deal: _Deal) -> Generator[Effect, Any, Verdict | None]:
    """Ask for a payment, or go on with one that an earlier call left unpaid."""
    payer, row, now_us = deal.payer, deal.row, deal.payer.now_us()
    deal.unsent = True
    asked = yield from record(
        lambda wait_s: payer.ledger.ask_payment(
            row.id, purse=_purse(deal), now_us=now_us, wait_s=wait_s
        )
    )
    deal.remote, deal.purse = asked.remote, asked.purse
    if deal.remote is None:
        return (yield from _create(deal))
    deal.unsent = False
    return (yield from _go_on_unpaid(deal, asked.at))


def _purse(deal: _Deal) -> Purse | None:
    """Whose balance may pay what is asked for, as far as can be told from here."""
    payer = deal.payer
    if payer.marketplace_headers or deal.purchase.origin in payer.balance_origins:
        return "account"
    return "balance" if payer.signer is None and payer.settle_payment is None else None


def _is_gone(answer: Fetched) -> bool:
    return answer.status in (404, 410)


def _is_old(deal: _Deal, at_us: int) -> bool:
    """Whether a proof of that time, in microseconds, would be dead by now."""
    lived = deal.payer.now() - at_us / SECOND
    return lived > deal.payer.policy.max_validity_s + EXPIRY_MARGIN_S


def _write_off(deal: _Deal, payment: MarketPayment) -> Generator[Effect, Any, None]:
    """A balance paid while nobody looked, and its token is gone: it counts; look again."""
    yield from _hold(deal, "balance", None)
    yield from _end(deal, "settled", f"paid by a balance, and then {payment.status}")
    yield from _give_up(deal, f"the marketplace says {payment.status}")


def _create(deal: _Deal) -> Generator[Effect, Any, Verdict]:
    """Ask the marketplace for a payment; the ledger knows that already."""
    deal.payer.emit("token_asked", deal.purchase, payment_id=deal.row.id)
    yield from checkpoint()  # the last moment at which nothing has left
    deal.unsent, deal.creating = False, True
    answer = yield from fetch(_order(deal))
    deal.creating = False
    try:
        payment = read_payment(answer.body)
    except Unreadable as exc:
        payment = None
        if answer.status != 402:
            yield from _misread(deal, answer, exc)
    if payment is not None:
        able = deal.payer.signer is not None and not payment.is_paid
        signs = able and _asked(answer) is not None
        try:
            yield from _note(deal, payment, "x402" if signs else None)
        except LedgerError as exc:
            if not payment.is_paid:  # if it is, its token may still be stored, which says the same
                exc.at_risk = deal.purse is not None
                raise
            log.exception("the id of a payment that is paid could not be stored")
    return (yield from _pay(deal, payment, answer))


def _misread(deal: _Deal, answer: Fetched, fault: Unreadable) -> Generator[Effect, Any, NoReturn]:
    """The answer names no payment; if it says *paid* all the same, the price counts.

    Raises:
        TokenFlowError: always; at risk where it may be paid.
    """
    told = f"{deal.purchase.origin}{PAYMENTS_PATH} answered {answer.status}: {fault}"
    if _is_refusal(answer.status):
        raise TokenFlowError(told) from None
    if "paid" in fault.statuses:
        yield from _hold(deal, "balance", None)
        yield from _end(deal, "unknown", f"paid by a balance, but {fault}")
        raise TokenFlowError(f"{told}, and it says that it is paid", at_risk=True) from None
    pending = deal.purse != "account" and not UNPAID.isdisjoint(fault.statuses)
    raise TokenFlowError(told, at_risk=deal.purse is not None and not pending) from None


def _is_refusal(status: int) -> bool:
    """Whether nothing was done, by the meaning of the status (RFC 9110, 15.4 and 15.5)."""
    return status in (307, 308) or (400 <= status < 500 and status not in (408, 409, 499))


def _create_anew(deal: _Deal) -> Generator[Effect, Any, Verdict]:
    """Ask for another payment: nothing can come of the last one."""
    payer, row, now_us = deal.payer, deal.row, deal.payer.now_us()
    deal.remote, deal.until, deal.unsent = None, None, True
    asked = yield from record(
        lambda wait_s: payer.ledger.ask_anew(
            row.id, purse=_purse(deal), now_us=now_us, wait_s=wait_s
        )
    )
    deal.purse = asked.purse
    return (yield from _create(deal))


def _create_again(deal: _Deal, asked_us: int) -> Generator[Effect, Any, Verdict | None]:
    """Ask for a payment whose id was never heard of, unless asking may have been paying."""
    if deal.purse is None:
        return (yield from _create_anew(deal))
    told = f"the answer of {deal.purchase.origin}{PAYMENTS_PATH} was lost, or said nothing"
    yield from _count_unheard(deal, asked_us, told)
    return None


def _count_unheard(deal: _Deal, asked_us: int, told: str) -> Generator[Effect, Any, None]:
    """A balance may have paid, and nobody says so: in the end it counts; look again.

    Raises:
        TokenFlowError: it may still be heard of.
        PaymentRefused: ``resign="never"``.
    """
    if not _is_old(deal, asked_us):
        raise TokenFlowError(
            f"{told}, and a balance may have paid: no other payment is created yet; see the"
            " account",
            at_risk=True,
        )
    yield from _hold(deal, "account", None)
    yield from _end(deal, "unknown", f"{told}; a balance may have paid")
    check_resign(deal.payer, deal.row)
    yield from _give_up(deal, told)


def _order(deal: _Deal, proof: tuple[str, str] | None = None) -> Fetch:
    """The request that creates a payment, the same with a proof as without."""
    wanted = {"serviceId": deal.purchase.service}
    if deal.payer.provider_id is not None:
        wanted["providerId"] = deal.payer.provider_id
    return Fetch(
        method="POST", path=PAYMENTS_PATH, headers=deal.payer.marketplace_headers,
        content=_json.dumps(wanted).encode(), proof=proof,
    )  # fmt: skip


def _note(
    deal: _Deal, payment: MarketPayment, way: Way | None = None
) -> Generator[Effect, Any, None]:
    payer, row, now_us = deal.payer, deal.row, deal.payer.now_us()
    if way is None and (deal.remote, deal.until) == (payment.id, payment.until):
        return
    deal.remote, deal.until = payment.id, payment.until
    yield from record(
        lambda wait_s: payer.ledger.note_created(
            row.id, payment.id, payment.until, way=way, now_us=now_us, wait_s=wait_s
        )
    )


# --- paying ---------------------------------------------------------------------------------------


def _pay(
    deal: _Deal, payment: MarketPayment | None, answer: Fetched
) -> Generator[Effect, Any, Verdict]:
    """Pay in the first way that applies."""
    payer = deal.payer
    if payment is not None and payment.is_paid:
        return (yield from _paid_already(deal, payment))
    _check_terms(deal, payment)
    if payer.signer is not None or payer.settle_payment is not None:
        _check_payee(deal, payment)
    if payment is not None and _is_over(deal, payment):
        why = payment.status if payment.is_over else "past its expiresAt"
        raise TokenFlowError(f"the marketplace payment is {why} already")
    challenge = _asked(answer)
    if challenge is not None and payer.signer is not None:
        return (yield from _pay_x402(deal, challenge, payment, answer))
    if payment is None:
        why = "wants an x402 signature and this payer has no wallet"
        if challenge is None:
            why = "answered 402 and named neither a payment nor an offer"
        raise TokenFlowError(f"{deal.purchase.origin}{PAYMENTS_PATH} {why}")
    if _can_transfer(deal, payment):
        verdict = yield from _pay_by_transfer(deal, payment)
        if verdict is not None:
            return verdict
    if payer.settle_payment is not None:
        return (yield from _pay_by_hand(deal, payment))
    return (yield from _await_balance(deal, payment))


def _asked(answer: Fetched) -> Challenge | None:
    header = answer.headers.get(REQUIRED_HEADER, ())
    body = find_accepts(answer.body)
    if not header and body is None:
        return None
    found = read_challenge(header, body)
    return found if found is not None and (found.offers or found.skipped) else None


def _check_terms(deal: _Deal, payment: MarketPayment | None) -> None:
    """The payment object is for this service, at the live price."""
    if payment is None:
        return
    service = deal.purchase.service
    for named in payment.services:
        if not _is_service(deal.payer, named, service):
            raise TermsRefused(
                f"the payment is for the service {shown(named, 60)}, not {service}",
                reason="service",
            )
    fault = price_fault(payment, deal.terms.micro)
    if fault is not None:
        raise TermsRefused(fault, reason="price")


def _is_service(payer: Payer, named: str, service: str) -> bool:
    try:
        return payer.services.canonical(named) == service
    except ValueError:  # it looks like a URL, and is none
        return False


def _check_payee(deal: _Deal, payment: MarketPayment | None) -> None:
    """Where we may pay the payee: it is the live offer's, or one that policy allows.

    A payee that is no address is one of another rail, which only ``settle_payment`` can pay.
    """
    ours, theirs = _live_payee(deal), payment.pay_to if payment is not None else None
    if theirs is None:
        return
    policy, foreign = deal.payer.policy, not theirs.lower().startswith("0x")
    if ours is not None and theirs.lower() != ours.lower():
        if foreign and deal.payer.settle_payment is not None and policy.payees is None:
            return
        raise TermsRefused(
            f"the payment names the payee {shown(theirs, 50)}, the live offer {ours}",
            reason="payee",
        )
    fault = None if foreign else payee_fault(theirs, payer=deal.payer.address, asset="")
    if fault is None and policy.payees is not None and theirs.lower() not in policy.payees:
        fault = f"payee {shown(theirs, 50)} is not in payees="
    if fault is not None:
        raise TermsRefused(fault, reason="payee")


def _live_payee(deal: _Deal) -> str | None:
    """Whom the live 402 names: its offer, or the payment that is there in place of one."""
    if deal.terms.choice is not None:
        return deal.terms.pay_to
    named = _named(deal.purchase.challenge.document)
    return named.pay_to if named is not None else None


def _is_over(deal: _Deal, payment: MarketPayment) -> bool:
    """Whether nothing can come of an unpaid payment: it says so, or its time is past."""
    past = payment.until is not None and payment.until + SKEW_US <= deal.payer.now_us()
    return payment.is_over or (past and not payment.is_paid)


def _paid_already(deal: _Deal, payment: MarketPayment) -> Generator[Effect, Any, Verdict]:
    """Somebody's balance paid it: it counts in full, and nothing of ours moves."""
    try:
        _check_terms(deal, payment)
    except TermsRefused as fault:
        if not deal.held:
            yield from _hold(deal, "balance", None)
        raise TokenFlowError(f"it is paid already, but {fault}", at_risk=True) from None
    deal.settled, deal.note = True, "paid by a balance"
    return (yield from _take(deal, payment))


def _hold(
    deal: _Deal, way: Way, proof: Proof | None, choice: Choice | None = None
) -> Generator[Effect, Any, None]:
    """Write down, durably, that money may move from here on, and on which terms."""
    payer, row, now_us = deal.payer, deal.row, deal.payer.now_us()
    if choice is not None:
        row = row._replace(
            network=choice.offer.network, asset=choice.asset.address,
            amount=str(choice.offer.amount), pay_to=choice.offer.pay_to,
        )  # fmt: skip
    terms = {} if choice is None else {name: getattr(row, name) for name in TERMS}
    yield from record(
        lambda wait_s: payer.ledger.hold_purchase(
            row.id, way, proof, terms, now_us=now_us, wait_s=wait_s
        )
    )
    deal.row = row
    _is_held(deal, way)


def _is_held(deal: _Deal, way: str) -> None:
    deal.held = True
    deal.row = deal.row._replace(state="held")
    deal.payer.emit(
        "sent", deal.purchase, payment_id=deal.row.id, usd=usd(deal.row.micro),
        detail={"way": way},
    )  # fmt: skip


def _pay_x402(
    deal: _Deal, challenge: Challenge, payment: MarketPayment | None, answer: Fetched
) -> Generator[Effect, Any, Verdict]:
    choice = _same_offer(deal, challenge)
    there = Reply(status=402, url=answer.url, headers=answer.headers, date=answer.date)
    asked = replace(deal.purchase, challenge=challenge, reply=there)
    if deal.terms.choice is None:  # what is signed is decided only here
        _check_same_payee(deal, payment, choice)
        yield from _check_pinned(deal, choice)
        yield from _approve(deal, asked, choice)
    proof = yield from prove(deal.payer, asked, choice, deal.row.id)
    yield from _hold(deal, "x402", proof, choice)
    return (yield from _present(deal, proof))


def _same_offer(deal: _Deal, challenge: Challenge) -> Choice:
    """The offer at the payments endpoint that is the live one; any other is refused."""
    live = deal.terms.choice
    if live is not None:
        same = tuple(
            offer
            for offer in challenge.offers
            if (offer.network, offer.asset.lower(), offer.amount, offer.pay_to.lower())
            == (
                live.offer.network,
                live.offer.asset.lower(),
                live.offer.amount,
                live.offer.pay_to.lower(),
            )
        )
        if not same:
            raise _other_terms(live, challenge)
        challenge = replace(challenge, offers=same, rival=None)
    choice = choose(deal.payer.policy, challenge, {})
    if choice.micro != deal.terms.micro:
        raise TermsRefused(
            f"the payments endpoint asks ${usd(choice.micro)}, the payment names"
            f" ${usd(deal.terms.micro)}",
            reason="price",
        )
    return choice


def _approve(deal: _Deal, asked: Purchase, choice: Choice) -> Generator[Effect, Any, None]:
    """Ask the owner again, who approved a price and saw neither asset nor payee."""
    if deal.payer.approve is None:
        return
    quote = quote_of(deal.payer, asked, Plan.of("token", choice), (), None)
    if (yield from consult(deal.payer.approve, quote)) is not True:
        message = f"approve() did not approve ${quote.usd} to {quote.pay_to}"
        raise ApprovalDenied(message, quote=quote)


def _check_same_payee(deal: _Deal, payment: MarketPayment | None, choice: Choice) -> None:
    """Whom a payment object names, of the 402 or of its own, is whom the offer names."""
    payee = choice.offer.pay_to
    for named in (_live_payee(deal), payment.pay_to if payment is not None else None):
        if named is not None and named.lower() != payee.lower():
            raise TermsRefused(
                f"the payment names the payee {shown(named, 50)}, its offer {payee}", reason="payee"
            )


def _check_pinned(deal: _Deal, choice: Choice) -> Generator[Effect, Any, None]:
    """A payee that no live offer names was not recorded with the reservation."""
    payer, service, payee = deal.payer, deal.purchase.service, choice.offer.pay_to
    if not payer.policy.pin:
        return
    now_us = payer.now_us()
    view = yield from record(
        lambda wait_s: payer.ledger.look("", service, now_us=now_us, wait_s=wait_s)
    )
    if not view.payees and _live_payee(deal) is not None:  # the first, and both name it
        yield from record(
            lambda wait_s: payer.ledger.accept_payee(service, payee, now_us=now_us, wait_s=wait_s)
        )
    elif not view.payees.get(payee.lower()):
        raise TermsRefused(
            f"only the payments endpoint names the payee {payee}; if that is right:"
            f" payer.accept_payee({service!r}, {payee!r})",
            reason="payee",
        )


def _other_terms(live: Choice, challenge: Challenge) -> TermsRefused:
    payees = {offer.pay_to.lower() for offer in challenge.offers}
    if payees and live.offer.pay_to.lower() not in payees:
        return TermsRefused(
            "the payments endpoint names another payee than the live offer", reason="payee"
        )
    return TermsRefused(
        f"the payments endpoint does not offer the live ${usd(live.micro)}", reason="price"
    )


def _present(deal: _Deal, proof: Proof) -> Generator[Effect, Any, Verdict]:
    """Show the proof to the payments endpoint, for the first time or again: the same bytes."""
    answer = yield from fetch(_order(deal, (proof.header, proof.value)))
    settlement = read_settlement(answer.headers)
    fault = settlement_fault(deal.row, settlement)
    deal.note = f"HTTP {answer.status}; {fault}" if fault else f"HTTP {answer.status}"
    if answer.status == 402:
        yield from _end(deal, "rejected", deal.note)
        raise TokenFlowError(
            f"the payments endpoint asked again after it was paid ({deal.note})", at_risk=True
        )
    try:
        payment = read_payment(answer.body)
    except Unreadable as exc:
        if deal.remote is None:
            yield from _end(deal, "unknown", f"{deal.note}; {exc}")
            raise TokenFlowError(
                f"paid, but the answer ({answer.status}) cannot be read: {exc}", at_risk=True
            ) from None
        payment = None
    if payment is not None:
        yield from _note(deal, payment)
    if settlement is None or fault is None:
        told = settlement.transaction if settlement is not None else None
        deal.settled = yield from _believed(deal, proof, told)
        deal.transaction = told
    return (yield from _await_paid(deal, payment))


def _believed(deal: _Deal, proof: Proof, told: str | None) -> Generator[Effect, Any, bool]:
    """Whether *paid* settles it: with an RPC, only what is seen on chain does."""
    if not deal.payer.chain_knows(deal.row.network):
        return True
    return told is not None and (yield from seen(deal.payer, deal.row, proof, told))


def _can_transfer(deal: _Deal, payment: MarketPayment) -> bool:
    payer, network = deal.payer, deal.terms.network
    known = payment.pay_to is not None and payer.chain_knows(network)
    return known and network is not None and payer.desk().possible(network) is None


def _pay_by_transfer(deal: _Deal, payment: MarketPayment) -> Generator[Effect, Any, Verdict | None]:
    """A transfer on chain; ``None`` if none can be made and ``settle_payment`` may be asked."""
    try:
        yield from _hold_transfer(deal)
    except TokenFlowError as failure:
        if deal.payer.settle_payment is None:
            raise
        log.info("no transfer for payment %s: %s", deal.row.id, failure)
        return None
    _is_held(deal, "transfer")
    return (yield from _carry(deal, payment))


def _hold_transfer(deal: _Deal) -> Generator[Effect, Any, None]:
    """Have it signed and stored; nothing leaves yet."""
    payer, row = deal.payer, deal.row
    assert None not in (row.network, row.asset, row.payer, row.pay_to)  # the live offer has them
    terms = Transfer(
        payment_id=row.id, network=str(row.network), asset=str(row.asset), payer=str(row.payer),
        pay_to=str(row.pay_to), amount=int(row.amount),
    )  # fmt: skip
    while True:  # as long as others are first; `prepare` gives up in time
        prepared = yield from consult(payer.desk().prepare, terms)
        if (yield from _store_transfer(deal, prepared)):
            return


def _store_transfer(deal: _Deal, prepared: SignedTransfer) -> Generator[Effect, Any, bool]:
    payer, row, now_us = deal.payer, deal.row, deal.payer.now_us()
    return (
        yield from record(
            lambda wait_s: payer.ledger.hold_transfer(
                row.id, prepared, now_us=now_us, wait_s=wait_s
            )
        )
    )


def _carry(deal: _Deal, payment: MarketPayment | None) -> Generator[Effect, Any, Verdict]:
    """Bring the stored transaction to its end on chain, then wait for the token."""
    payer, row = deal.payer, deal.row
    carried = yield from consult(payer.desk().carry, row.id, payer.poll_paid_s)
    if carried.state == "mined":
        deal.settled, deal.transaction, deal.note = True, carried.transaction, "seen on chain"
        return (yield from _await_paid(deal, payment))
    yield from _end(deal, "unknown", carried.detail)
    if carried.state == "pending":
        raise TokenFlowError(f"the transfer is not confirmed: {carried.detail}", at_risk=True)
    resolved = yield from consult(payer.resolve, row)
    yield from _give_up(deal, carried.detail)
    raise TokenFlowError(
        f"the transfer moved nothing: {carried.detail}", at_risk=resolved.state != "void"
    )


def _pay_by_hand(deal: _Deal, payment: MarketPayment) -> Generator[Effect, Any, Verdict]:
    """The owner's own way of paying; it is called once, whatever comes of it."""
    payer = deal.payer
    yield from _hold(deal, "settle", None)
    try:
        yield from consult(payer.settle_payment, _document(deal, payment))
    except Exception as exc:
        yield from _end(deal, "unknown", f"settle_payment failed: {type(exc).__name__}")
        raise TokenFlowError(f"settle_payment failed: {type(exc).__name__}", at_risk=True) from exc
    deal.settled, deal.note = True, "paid by settle_payment"
    return (yield from _await_paid(deal, None))


def _document(deal: _Deal, payment: MarketPayment) -> PaymentDocument:
    document = PaymentDocument(payment.document)
    document.payment_id, document.pay_to = payment.id, payment.pay_to
    document.service, document.origin = deal.purchase.service, deal.purchase.origin
    document.usd = usd(deal.terms.micro)
    return document


# --- waiting --------------------------------------------------------------------------------------


def _await_balance(deal: _Deal, payment: MarketPayment) -> Generator[Effect, Any, Verdict]:
    """Nothing here can pay it; a balance may, for a while."""
    if deal.purse is None:
        deal.purse = "balance"
        yield from _note(deal, payment, "balance")
    found = yield from _poll(deal, payment, deal.payer.poll_unpaid_s)
    if found is not None and found.is_paid:
        return (yield from _paid_already(deal, found))
    if found is not None and found.is_lost:
        yield from _write_off(deal, found)
        raise TokenFlowError(f"a balance paid, and the payment is {found.status}", at_risk=True)
    if not deal.heard:
        raise TokenFlowError(
            f"the marketplace payment {payment.id} cannot be read, and a balance may have paid it",
            at_risk=True,
        )
    raise TokenFlowError(
        f"nothing here can pay the marketplace payment {payment.id}, and no balance did: give"
        " a wallet with an rpc, or settle_payment="
    )


def _await_paid(deal: _Deal, payment: MarketPayment | None) -> Generator[Effect, Any, Verdict]:
    """We paid: wait until the marketplace says so and gives the token."""
    found = yield from _poll(deal, payment, deal.payer.poll_paid_s, want_token=True)
    if found is not None and found.is_paid and found.token is not None:
        return (yield from _take(deal, found))
    paid = found is not None and found.is_paid
    outcome: Outcome = "settled" if paid and deal.settled else "unknown"
    if found is not None and found.is_over:
        yield from _end(deal, outcome, f"the marketplace payment is {found.status}")
        raise TokenFlowError(f"paid, but the marketplace says {found.status}", at_risk=True)
    yield from _end(deal, outcome, "paid, and no token came")
    told = "says paid and gave no token" if paid else "does not say paid"
    raise TokenFlowError(
        f"paid, but the marketplace {told}; an identical call asks again", at_risk=True
    )


def _poll(
    deal: _Deal, payment: MarketPayment | None, bound_s: float, *, want_token: bool = False
) -> Generator[Effect, Any, MarketPayment | None]:
    """Ask for the payment until it is paid or over, in growing intervals; the last answer."""
    payer, started = deal.payer, deal.payer.now()
    waited, delay, retry_s = 0.0, _FIRST_DELAY_S, 0.0
    while True:
        if payment is not None:
            done = payment.is_paid and (payment.token is not None or not want_token)
            if done or payment.is_over:
                return payment
        left = bound_s - max(waited, payer.now() - started)
        if deal.until is not None:
            left = min(left, deal.until / SECOND - payer.now())
        if left <= 0 or deal.remote is None:
            return payment
        pause = min(max(delay, retry_s), left)
        yield from sleep(pause)
        waited, delay = waited + pause, min(delay * _GROWTH, _DELAY_MAX_S)
        fresh, answer = yield from _read(deal)
        payment, retry_s = fresh or payment, _retry_after(answer, payer.now())


def _read(deal: _Deal) -> Generator[Effect, Any, tuple[MarketPayment | None, Fetched]]:
    """Ask for the payment once; ``None`` where the answer is not about it."""
    assert deal.remote is not None
    answer = yield from fetch(
        Fetch(
            method="GET", path=f"{PAYMENTS_PATH}/{deal.remote}",
            headers=deal.payer.marketplace_headers,
        )
    )  # fmt: skip
    try:
        payment = read_payment(answer.body, deal.remote)
    except Unreadable:
        payment = None
    deal.heard = payment is not None and payment.id == deal.remote
    return (payment if deal.heard else None), answer


def _retry_after(answer: Fetched, now: float) -> float:
    """Seconds that ``Retry-After`` asks for (RFC 9110, 10.2.3); 0 where it says nothing."""
    text = next(iter(answer.headers.get("retry-after", ())), "").strip()
    if text.isascii() and text.isdigit() and len(text) < 9:
        return float(text)
    date = date_of(text)
    return 0.0 if date is None else max(0.0, date - now)


# --- the token ------------------------------------------------------------------------------------


def _take(deal: _Deal, payment: MarketPayment) -> Generator[Effect, Any, Verdict]:
    """Store the token, then call with it."""
    payer, row, now_us = deal.payer, deal.row, deal.payer.now_us()
    if payment.token is None:
        found = yield from _poll(deal, payment, payer.poll_unpaid_s, want_token=True)
        if found is None or found.token is None:
            yield from _hold(deal, "balance", None)
            yield from _end(deal, "settled", "paid, and no token came")
            raise TokenFlowError("paid already, but the marketplace gave no token", at_risk=True)
        payment = found
    assert payment.token is not None
    bought = Bought(
        token=payment.token, calls=payment.calls, until=payment.until, settled=deal.settled,
        transaction=deal.transaction, note=deal.note,
    )  # fmt: skip
    try:
        yield from record(
            lambda wait_s: payer.ledger.store_token(row.id, bought, now_us=now_us, wait_s=wait_s)
        )
    except LedgerError as exc:
        if not deal.held:  # a balance paid, and nothing says so: an identical call reads it again
            exc.at_risk = True
            raise
        log.exception("the token of payment %s could not be stored", row.id)
        payer.emit("ledger_failed", payment_id=row.id, detail={"error": str(exc)})
    deal.held = True
    payer.emit("bought", row, payment_id=row.id, usd=usd(row.micro), detail={"note": deal.note})
    if bought.calls not in (0, 1):
        payer.tokens.learn(row.origin, row.service)
    verdict = yield from _redeem(deal, payment.token)
    assert verdict is not None  # a token that this call bought is not dropped
    return verdict


def _redeem(
    deal: _Deal, token: str, *, again: bool = False
) -> Generator[Effect, Any, Verdict | None]:
    """Call with the token that this operation bought.

    ``None`` if it was bought by an earlier call and the seller does not take it: it is dropped, but
    not before what paid for it has expired, for until then one operation has one proof.
    """
    call, row = deal.call, deal.row
    paid: Outcome = "settled" if deal.settled else "unknown"
    call.trip.paid = True
    call.trip.receipt = receipt_for(row, paid, deal.transaction)
    try:
        reply = yield from ask((TOKEN_HEADER, token))
    except BaseException as failure:
        yield from _end(deal, paid, f"no answer: {type(failure).__name__}")
        raise
    if reply.status == 402 and again and _is_closed(deal):
        call.trip.paid, call.trip.receipt = False, None
        yield from _end(deal, paid, "the seller does not take the token")
        yield from _drop(deal.payer, row, "refused by the seller")
        yield from _give_up(deal, "the seller does not take the token")
        return None
    outcome: Outcome = "rejected" if reply.status == 402 else paid
    result = Result(
        outcome=outcome, delivered=reply.delivered, transaction=deal.transaction,
        note=f"HTTP {reply.status}",
    )  # fmt: skip
    return (yield from conclude(deal.payer, call, row, result))


def _end(deal: _Deal, outcome: Outcome, note: str) -> Generator[Effect, Any, None]:
    """Write down how this call left the payment: without an answer to hand back."""
    result = Result(outcome=outcome, delivered=False, transaction=deal.transaction, note=note)
    yield from finish(deal.payer, deal.row, result)


def _give_up(deal: _Deal, note: str) -> Generator[Effect, Any, None]:
    payer, row, now_us = deal.payer, deal.row, deal.payer.now_us()
    yield from record(
        lambda wait_s: payer.ledger.give_up(row.id, note, now_us=now_us, wait_s=wait_s)
    )


# --- going on after a crash or a lost answer ------------------------------------------------------


def resume(
    payer: Payer, call: Call, purchase: Purchase, twin: Twin
) -> Generator[Effect, Any, Verdict | None]:
    """Go on with a purchase that another call left open; ``None`` to look again."""
    now_us = payer.now_us()
    try:
        begun = yield from record(
            lambda wait_s: payer.ledger.claim_purchase(
                twin.row.id, call, now_us=now_us, wait_s=wait_s
            )
        )
        if begun is None:
            return None
        row, terms = begun.row, _terms_again(payer, purchase, begun.row)
        stale = row.state == "reserved" and row.network is not None and terms.choice is None
        if stale and begun.purse is None:
            yield from _let_go(payer, row)
            return None  # decided anew
        payer.emit("represented", row, payment_id=row.id, usd=usd(row.micro))
        deal = _Deal(
            payer, call, purchase, row, terms,
            remote=begun.remote, until=begun.until, held=row.state != "reserved",
            settled=row.state == "settled", transaction=row.trans,
            purse=begun.purse, stale=stale,
        )  # fmt: skip
        return (yield from _orderly(deal, _go_on(deal, begun)))
    finally:
        payer.ledger.put_down(twin.row.id, call, now_us=now_us)


def _let_go(payer: Payer, row: Row) -> Generator[Effect, Any, None]:
    """Nothing was paid for this reservation, and the seller now asks for something else."""
    note, now_us = "the live offer is not the one that was reserved", payer.now_us()
    yield from record(
        lambda wait_s: payer.ledger.release(row.id, note, now_us=now_us, wait_s=wait_s)
    )
    payer.emit("released", row, payment_id=row.id, detail={"note": note})


def _terms_again(payer: Payer, purchase: Purchase, row: Row) -> Plan:
    """The terms that were reserved; the live offer only where it is still the same."""
    try:
        choice = choose(payer.policy, purchase.challenge, {})
    except OfferRefused:
        choice = None
    same = choice is not None and (
        (choice.offer.network, choice.asset.address, str(choice.offer.amount), payer.address)
        == (row.network, row.asset, row.amount, row.payer)
        and choice.offer.pay_to.lower() == (row.pay_to or "").lower()
    )
    return Plan(
        route="token", micro=row.micro, amount=int(row.amount), choice=choice if same else None
    )


def _go_on(deal: _Deal, begun: Begun) -> Generator[Effect, Any, Verdict | None]:
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
    deal: _Deal, asked_us: int, way: Way | None = None
) -> Generator[Effect, Any, Verdict | None]:
    """Pay a payment that was created, unless a balance has done so; where it is over, another."""
    payment, answer = yield from _read(deal)
    if payment is None and deal.purse is not None and not _is_gone(answer):
        yield from _count_unheard(deal, asked_us, f"{PAYMENTS_PATH} answered {answer.status}")
        return None
    if payment is not None and payment.is_lost:
        yield from _write_off(deal, payment)
        return None
    if deal.stale and not (payment is not None and payment.is_paid):
        yield from _let_go(deal.payer, deal.row)
        return None  # decided anew
    if payment is None or _is_over(deal, payment):
        return (yield from _create_anew(deal))
    if way == "x402" and not payment.is_paid and _asked(answer) is None:
        return (yield from _create_anew(deal))  # nothing else asks for the signature
    return (yield from _pay(deal, payment, answer))


def _go_on_with_token(deal: _Deal, begun: Begun) -> Generator[Effect, Any, Verdict | None]:
    token, expired = begun.token, begun.until is not None and begun.until <= deal.payer.now_us()
    if token is None and begun.remote is not None and not expired:
        payment, _ = yield from _read(deal)
        token = payment.token if payment is not None and payment.is_paid else None
    if token is None and not _is_closed(deal):
        yield from _end(deal, "settled" if deal.settled else "unknown", "the token is gone")
        raise TokenFlowError("the token that was bought is gone", at_risk=True)
    if token is None or (expired and _is_closed(deal)):
        yield from _end(deal, "settled" if deal.settled else "unknown", "the token expired")
        yield from _drop(deal.payer, deal.row, "expired")
        yield from _give_up(deal, "the token expired")
        return None
    return (yield from _redeem(deal, token, again=True))


def _go_on_paying(deal: _Deal, begun: Begun) -> Generator[Effect, Any, Verdict | None]:
    payment = None
    if begun.remote is not None:
        payment, _ = yield from _read(deal)
        if payment is not None and payment.is_paid and payment.token is not None:
            told = begun.way == "x402" and not deal.payer.chain_knows(deal.row.network)
            deal.settled = deal.settled or told or begun.way in _BY_OTHERS
            if begun.way in ("account", "balance"):
                return (yield from _paid_already(deal, payment))
            return (yield from _take(deal, payment))
    if begun.way == "transfer":
        return (yield from _carry(deal, payment))
    closed, due = _is_closed(deal), payment is not None and _is_due(deal, payment)
    if closed and not due:
        yield from _lapse(deal)
        return None
    if closed or begun.proof is None:
        return (yield from _await_paid(deal, payment))
    return (yield from _present(deal, begun.proof))


def _is_due(deal: _Deal, payment: MarketPayment) -> bool:
    """Whether the payment says that it is paid, or until when it may still say so."""
    return payment.is_paid or (payment.until is not None and not _is_over(deal, payment))


def _is_closed(deal: _Deal) -> bool:
    """Whether the operation's proof is dead: expired, or as old as any of this payer's may be."""
    payer, row = deal.payer, deal.row
    if row.valid_before is not None:
        return row.expired(payer.now_us())
    return _is_old(deal, row.at)


def _lapse(deal: _Deal) -> Generator[Effect, Any, None]:
    """The proof has expired: what it paid for stays counted, and a new one may be bought."""
    payer, row = deal.payer, deal.row
    yield from _end(deal, "unknown", "the proof has expired")
    check_resign(payer, row)
    if payer.chain_knows(row.network):
        yield from consult(payer.resolve, row)
    yield from _give_up(deal, "the proof has expired")
