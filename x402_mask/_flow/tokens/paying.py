"""The ways of paying a marketplace payment, and waiting for its token.

In this order, the first that applies: it is paid already; an x402 signature, where the payments
endpoint asks for one; a transfer on chain; the owner's ``settle_payment``; or a balance, which may
pay while it is polled.

Part of the conversation (``_flow.tokens.buying``): no I/O, effects only.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from x402_mask._flow import reasons
from x402_mask._flow.asking import ask_owner
from x402_mask._flow.effects import Reply, consult, fetch
from x402_mask._flow.records import Plan, quote_of
from x402_mask._flow.steps import booked, prove, seen, settlement_fault
from x402_mask._flow.tokens import purchase
from x402_mask._flow.tokens.using import take
from x402_mask._ledger.transfers import Terms as Transfer
from x402_mask._money import usd
from x402_mask._policy.offers import choose, is_foreign, payee_fault
from x402_mask._wire.server402 import (
    PAYMENTS_PATH,
    PaymentDocument,
    Unreadable,
    find_accepts,
    price_fault,
    read_payment,
)
from x402_mask._wire.x402 import REQUIRED_HEADER, read_challenge, read_settlement, shown
from x402_mask.errors import TermsRefused, TokenFlowError

if TYPE_CHECKING:
    from x402_mask._flow.buyer import Buyer
    from x402_mask._flow.effects import Fetched, Flow
    from x402_mask._flow.records import Demand, Verdict
    from x402_mask._flow.tokens.purchase import TokenPurchase
    from x402_mask._ledger.records import Proof
    from x402_mask._ledger.transfers import SignedTransfer
    from x402_mask._models import Outcome
    from x402_mask._policy.offers import Choice
    from x402_mask._wire.server402 import MarketPayment
    from x402_mask._wire.x402 import Challenge

log = logging.getLogger("x402_mask")

PREPARE_S: Final = 30.0
"""How long a transfer waits for one that is before it, where its caller waits for longer."""


def pay(deal: TokenPurchase, payment: MarketPayment | None, answer: Fetched) -> Flow[Verdict]:
    """Pay in the first way that applies."""
    buyer = deal.buyer
    if payment is not None and payment.is_paid:
        return (yield from paid_already(deal, payment))
    _check_terms(deal, payment)
    if buyer.settings.signer is not None or buyer.settings.settle_payment is not None:
        _check_payee(deal, payment)
    if payment is not None and deal.is_over(payment):
        why = payment.status if payment.is_over else "past its expiresAt"
        raise TokenFlowError(f"the marketplace payment is {why} already")
    challenge = asked(deal, payment, answer)
    if challenge is not None and buyer.settings.signer is not None:
        return (yield from _pay_x402(deal, challenge, payment, answer))
    if payment is None:
        why = "wants an x402 signature and this payer has no wallet"
        if challenge is None:
            why = "answered 402 and named neither a payment nor an offer"
        raise TokenFlowError(f"{deal.demand.origin}{PAYMENTS_PATH} {why}")
    if _can_transfer(deal, payment):
        verdict = yield from _pay_by_transfer(deal, payment)
        if verdict is not None:
            return verdict
    if buyer.settings.settle_payment is not None:
        return (yield from _pay_by_hand(deal, payment))
    return (yield from _await_balance(deal, payment))


def asked(deal: TokenPurchase, payment: MarketPayment | None, answer: Fetched) -> Challenge | None:
    """What the payments endpoint wants signed, if anything.

    Offers that are all in another scheme or on another network leave the payment's other ways open.
    """
    header = answer.headers.get(REQUIRED_HEADER, ())
    body = find_accepts(answer.body)
    if not header and body is None:
        return None
    found = read_challenge(header, body)
    if found is None or not (found.offers or found.skipped):
        return None
    others = payment is not None and is_foreign(deal.buyer.settings.policy, found)
    return None if others else found


def paid_already(deal: TokenPurchase, payment: MarketPayment) -> Flow[Verdict]:
    """Somebody's balance paid it: it counts in full, and nothing of ours moves."""
    try:
        _check_terms(deal, payment)
    except TermsRefused as fault:
        if not deal.held:
            yield from purchase.hold(deal, "balance", None)
        raise TokenFlowError(f"it is paid already, but {fault}", at_risk=True) from None
    deal.settled, deal.note = True, "paid by a balance"
    return (yield from take(deal, payment))


# --- its terms ------------------------------------------------------------------------------------


def _check_terms(deal: TokenPurchase, payment: MarketPayment | None) -> None:
    """The payment object is for this service, at the live price."""
    if payment is None:
        return
    service = deal.demand.service
    for named in payment.services:
        if not _is_service(deal.buyer, named, service):
            raise TermsRefused(
                f"the payment is for the service {shown(named, 60)}, not {service}",
                reason="service",
            )
    fault = price_fault(payment, deal.terms.micro)
    if fault is not None:
        raise TermsRefused(fault, reason="price")


def _is_service(buyer: Buyer, named: str, service: str) -> bool:
    try:
        return buyer.settings.services.canonical(named) == service
    except ValueError:  # it looks like a URL, and is none
        return False


def _check_payee(deal: TokenPurchase, payment: MarketPayment | None) -> None:
    """Where we may pay the payee: it is the live offer's, or one that policy allows.

    A payee that is no address is one of another rail, which only ``settle_payment`` can pay.
    """
    ours, theirs = deal.live_payee, payment.pay_to if payment is not None else None
    if theirs is None:
        return
    policy, foreign = deal.buyer.settings.policy, not theirs.lower().startswith("0x")
    if ours is not None and theirs.lower() != ours.lower():
        if foreign and deal.buyer.settings.settle_payment is not None and policy.payees is None:
            return
        raise TermsRefused(
            f"the payment names the payee {shown(theirs, 50)}, the live offer {ours}",
            reason="payee",
        )
    fault = None if foreign else payee_fault(theirs, payer=deal.buyer.address, asset="")
    if fault is None and policy.payees is not None and theirs.lower() not in policy.payees:
        fault = f"payee {shown(theirs, 50)} is not in payees="
    if fault is not None:
        raise TermsRefused(fault, reason="payee")


# --- by a signature -------------------------------------------------------------------------------


def _pay_x402(
    deal: TokenPurchase, challenge: Challenge, payment: MarketPayment | None, answer: Fetched
) -> Flow[Verdict]:
    choice = _same_offer(deal, challenge)
    there = Reply(status=402, url=answer.url, headers=answer.headers, date=answer.date)
    asked = replace(deal.demand, challenge=challenge, reply=there)
    if deal.terms.choice is None:  # what is signed is decided only here
        _check_same_payee(deal, payment, choice)
        yield from _check_pinned(deal, choice)
        yield from _approve(deal, asked, choice)
    proof = yield from prove(deal.buyer, asked, choice, deal.row.id)
    yield from purchase.hold(deal, "x402", proof, choice)
    return (yield from present(deal, proof))


def _same_offer(deal: TokenPurchase, challenge: Challenge) -> Choice:
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
    choice = choose(deal.buyer.settings.policy, challenge, {})
    if choice.micro != deal.terms.micro:
        raise TermsRefused(
            f"the payments endpoint asks ${usd(choice.micro)}, the payment names"
            f" ${usd(deal.terms.micro)}",
            reason="price",
        )
    return choice


def _other_terms(live: Choice, challenge: Challenge) -> TermsRefused:
    payees = {offer.pay_to.lower() for offer in challenge.offers}
    if payees and live.offer.pay_to.lower() not in payees:
        return TermsRefused(
            "the payments endpoint names another payee than the live offer", reason="payee"
        )
    return TermsRefused(
        f"the payments endpoint does not offer the live ${usd(live.micro)}", reason="price"
    )


def _check_same_payee(deal: TokenPurchase, payment: MarketPayment | None, choice: Choice) -> None:
    """Whom a payment object names, of the 402 or of its own, is whom the offer names."""
    payee = choice.offer.pay_to
    for named in (deal.live_payee, payment.pay_to if payment is not None else None):
        if named is not None and named.lower() != payee.lower():
            raise TermsRefused(
                f"the payment names the payee {shown(named, 50)}, its offer {payee}", reason="payee"
            )


def _check_pinned(deal: TokenPurchase, choice: Choice) -> Flow[None]:
    """A payee that no live offer names was not recorded with the reservation."""
    buyer, asked, payee = deal.buyer, deal.demand, choice.offer.pay_to
    if not buyer.settings.policy.pin:
        return
    view = yield from booked(
        buyer,
        lambda at: buyer.ledger.view("", asked.service, origin=asked.origin, also=asked.also, **at),
    )
    if not view.payees and deal.live_payee is not None:  # the first, and both name it
        yield from booked(
            buyer, lambda at: buyer.ledger.accept_payee(asked.service, payee, asked.origin, **at)
        )
    elif not view.payees.get(payee.lower()):
        refusal = TermsRefused(
            f"only the payments endpoint names the payee {payee}; if that is right:"
            f" payer.accept_payee({asked.service!r}, {payee!r}, {asked.origin!r})",
            reason="payee",
        )
        refusal.pay_to = payee
        raise refusal


def _approve(deal: TokenPurchase, asked: Demand, choice: Choice) -> Flow[None]:
    """Ask the owner again, who approved a price and saw neither asset nor payee."""
    if deal.buyer.settings.approve is None:
        return
    quote = quote_of(deal.buyer, asked, Plan.of("token", choice), (), None)
    yield from ask_owner(deal.buyer, asked.operation, quote)


def present(deal: TokenPurchase, proof: Proof) -> Flow[Verdict]:
    """Show the proof to the payments endpoint, for the first time or again: the same bytes."""
    answer = yield from fetch(purchase.order(deal, (proof.header, proof.value)))
    settlement = read_settlement(answer.headers)
    fault = settlement_fault(deal.buyer, deal.row, proof, settlement)
    deal.note = f"HTTP {answer.status}; {fault}" if fault else f"HTTP {answer.status}"
    if answer.status == 402:
        said = reasons.in_headers(answer.headers) or reasons.in_body(answer.body)
        reason = said and reasons.explained(said, deal.row)
        yield from purchase.end(deal, "rejected", deal.note, reason)
        raise TokenFlowError(
            f"the payments endpoint asked again after it was paid ({reason or deal.note})",
            at_risk=True,
        )
    try:
        payment = read_payment(answer.body)
    except Unreadable as exc:
        if deal.remote is None:
            yield from purchase.end(deal, "unknown", f"{deal.note}; {exc}")
            raise TokenFlowError(
                f"paid, but the answer ({answer.status}) cannot be read: {exc}", at_risk=True
            ) from None
        payment = None
    if payment is not None:
        yield from purchase.note_id(deal, payment)
    if settlement is None or fault is None:
        told = settlement.transaction if settlement is not None else None
        deal.settled = yield from _believed(deal, proof, told)
        deal.transaction = told
    return (yield from await_paid(deal, payment))


def _believed(deal: TokenPurchase, proof: Proof, told: str | None) -> Flow[bool]:
    """Whether *paid* settles it: with an RPC, only what is seen on chain does."""
    if not deal.buyer.chain_knows(deal.row.network):
        return True
    return told is not None and (yield from seen(deal.buyer, deal.call, deal.row, proof, told))


# --- by a transfer, or by the owner ---------------------------------------------------------------


def _can_transfer(deal: TokenPurchase, payment: MarketPayment) -> bool:
    buyer, network = deal.buyer, deal.terms.network
    known = payment.pay_to is not None and buyer.chain_knows(network)
    return known and network is not None and buyer.transfer_sender().possible(network) is None


def _pay_by_transfer(deal: TokenPurchase, payment: MarketPayment) -> Flow[Verdict | None]:
    """A transfer on chain; ``None`` if none can be made and ``settle_payment`` may be asked."""
    try:
        yield from _hold_transfer(deal)
    except TokenFlowError as failure:
        if deal.buyer.settings.settle_payment is None:
            raise
        log.info("no transfer for payment %s: %s", deal.row.id, failure)
        return None
    purchase.mark_held(deal, "transfer")
    return (yield from carry(deal, payment))


def _hold_transfer(deal: TokenPurchase) -> Flow[None]:
    """Have it signed and stored; nothing leaves yet."""
    buyer, row = deal.buyer, deal.row
    assert None not in (row.network, row.asset, row.payer, row.pay_to)  # the live offer has them
    terms = Transfer(
        payment_id=row.id,
        network=str(row.network),
        asset=str(row.asset),
        payer=str(row.payer),
        pay_to=str(row.pay_to),
        amount=int(row.amount),
    )
    wait_s = deal.call.within(PREPARE_S)
    while True:  # as long as others are first; `prepare` gives up in time
        prepared = yield from consult(buyer.transfer_sender(wait_s).prepare, terms, wait_s)
        if (yield from _store_transfer(deal, prepared)):
            return


def _store_transfer(deal: TokenPurchase, prepared: SignedTransfer) -> Flow[bool]:
    buyer, row = deal.buyer, deal.row
    return (yield from booked(buyer, lambda at: buyer.ledger.hold_transfer(row.id, prepared, **at)))


def carry(deal: TokenPurchase, payment: MarketPayment | None) -> Flow[Verdict]:
    """Bring the stored transaction to its end on chain, then wait for the token."""
    buyer, row = deal.buyer, deal.row
    wait_s = deal.call.within(buyer.settings.poll_paid_s)
    progress = yield from consult(buyer.transfer_sender(deal.call.wait_s).carry, row.id, wait_s)
    if progress.state == "mined":
        deal.settled, deal.transaction, deal.note = True, progress.transaction, "seen on chain"
        return (yield from await_paid(deal, payment))
    yield from purchase.end(deal, "unknown", progress.detail)
    if progress.state == "pending":
        raise TokenFlowError(f"the transfer is not confirmed: {progress.detail}", at_risk=True)
    (said,) = yield from consult(buyer.resolve, [row], deal.call.wait_s)
    deal.paid_on_chain = said.is_paid
    yield from purchase.give_up(deal, progress.detail)
    raise TokenFlowError(
        f"the transfer moved nothing: {progress.detail}", at_risk=said.resolved.state != "void"
    )


def _pay_by_hand(deal: TokenPurchase, payment: MarketPayment) -> Flow[Verdict]:
    """The owner's own way of paying; it is called once, whatever comes of it."""
    settle = deal.buyer.settings.settle_payment
    assert settle is not None
    yield from purchase.hold(deal, "settle", None)
    try:
        yield from consult(settle, _document(deal, payment))
    except Exception as exc:
        yield from purchase.end(deal, "unknown", f"settle_payment failed: {type(exc).__name__}")
        raise TokenFlowError(f"settle_payment failed: {type(exc).__name__}", at_risk=True) from exc
    deal.settled, deal.note = True, "paid by settle_payment"
    return (yield from await_paid(deal, None))


def _document(deal: TokenPurchase, payment: MarketPayment) -> PaymentDocument:
    document = PaymentDocument(payment.document)
    document.payment_id, document.pay_to = payment.id, payment.pay_to
    document.service, document.origin = deal.demand.service, deal.demand.origin
    document.usd = usd(deal.terms.micro)
    return document


# --- waiting --------------------------------------------------------------------------------------


def _await_balance(deal: TokenPurchase, payment: MarketPayment) -> Flow[Verdict]:
    """Nothing here can pay it; a balance may, for a while."""
    if deal.purse is None:
        deal.purse = "balance"
        yield from purchase.note_id(deal, payment, "balance")
    found = yield from purchase.poll(deal, payment, deal.buyer.settings.poll_unpaid_s)
    if found is not None and found.is_paid:
        return (yield from paid_already(deal, found))
    if found is not None and found.is_lost:
        yield from purchase.write_off(deal, found)
        raise TokenFlowError(f"a balance paid, and the payment is {found.status}", at_risk=True)
    if not deal.heard:
        raise TokenFlowError(
            f"the marketplace payment {payment.id} cannot be read, and a balance may have paid it",
            at_risk=True,
        )
    raise TokenFlowError(
        f"nothing here can pay the marketplace payment {payment.id}, and no balance did: give"
        " a wallet, for a transfer on chain with an rpc=, or settle_payment="
    )


def await_paid(deal: TokenPurchase, payment: MarketPayment | None) -> Flow[Verdict]:
    """We paid: wait until the marketplace says so and gives the token."""
    found = yield from purchase.poll(
        deal, payment, deal.buyer.settings.poll_paid_s, want_token=True
    )
    if found is not None and found.is_paid and found.token is not None:
        return (yield from take(deal, found))
    paid = found is not None and found.is_paid
    outcome: Outcome = "settled" if paid and deal.settled else "unknown"
    if found is not None and found.is_over:
        yield from purchase.end(deal, outcome, f"the marketplace payment is {found.status}")
        raise TokenFlowError(f"paid, but the marketplace says {found.status}", at_risk=True)
    yield from purchase.end(deal, outcome, "paid, and no token came")
    told = "says paid and gave no token" if paid else "does not say paid"
    raise TokenFlowError(
        f"paid, but the marketplace {told}; an identical call asks again", at_risk=True
    )
