"""Steps that every way of paying shares: sign, store, give back, judge, write down.

Part of the conversation (``_flow.conversation``): no I/O, effects only.
"""

from __future__ import annotations

import logging
import secrets
from typing import TYPE_CHECKING, Final, TypedDict, TypeVar

from x402_mask._flow import reasons
from x402_mask._flow.effects import checkpoint, consult, read_body, record
from x402_mask._flow.journal import service_at
from x402_mask._flow.records import Verdict, receipt_for
from x402_mask._ledger.records import Proof, Result, Row
from x402_mask._money import usd
from x402_mask._policy.clocks import seller_clock
from x402_mask._schemes.scheme import Moment, held_to, scheme_of
from x402_mask._wallets.local import Wallet, checked_signature
from x402_mask._wire.x402 import proof_header
from x402_mask.errors import LedgerError, OfferRefused, PaymentError, PaymentRefused, SignerError

if TYPE_CHECKING:
    from collections.abc import Callable

    from x402_mask._flow.buyer import Buyer
    from x402_mask._flow.effects import Flow, Reply
    from x402_mask._flow.records import Call, Demand
    from x402_mask._policy.offers import Choice
    from x402_mask._schemes.scheme import Unsigned
    from x402_mask._wire.x402 import Settlement

log = logging.getLogger("x402_mask")
T = TypeVar("T")

_LEFT_MIN_S: Final = 6
"""Seconds that must be left when a proof leaves: what facilitators want when they verify."""


class At(TypedDict):
    """When the ledger is called, by our clock, and how long it may wait."""

    now_us: int
    wait_s: float


def booked(buyer: Buyer, call: Callable[[At], T]) -> Flow[T]:
    """Call the ledger with both clocks; a lambda, so that its own arguments stay checked."""
    now_us = buyer.now_us()
    return (yield from record(lambda wait_s: call({"now_us": now_us, "wait_s": wait_s})))


# --- before the point of no return ----------------------------------------------------------------


def prove_here(buyer: Buyer, demand: Demand, choice: Choice, payment_id: str) -> Proof:
    """The proof by a wallet in this process."""
    unsigned = _prepared(buyer, demand, choice, buyer.now())
    assert isinstance(buyer.settings.signer, Wallet)
    signature = buyer.settings.signer.sign_checked(unsigned.digest)
    return _proof(buyer, demand, choice, unsigned, signature, payment_id)


def prove(buyer: Buyer, demand: Demand, choice: Choice, payment_id: str) -> Flow[Proof]:
    """The proof, whoever signs."""
    if isinstance(buyer.settings.signer, Wallet):
        return prove_here(buyer, demand, choice, payment_id)
    now = buyer.now()
    unsigned = _prepared(buyer, demand, choice, now)
    signature = yield from _sign(buyer, unsigned)
    waited = buyer.now() - now
    if waited > choice.validity_s - _LEFT_MIN_S:
        raise OfferRefused(f"signing took {waited:.0f} s, the offer ran out", reason="wait")
    return _proof(buyer, demand, choice, unsigned, signature, payment_id)


def _prepared(buyer: Buyer, demand: Demand, choice: Choice, now: float) -> Unsigned:
    settings, date = buyer.settings, demand.reply.date
    assert settings.address is not None
    moment = Moment(
        now=now,
        seller=seller_clock(now, date, strict=settings.strict_clock),
        life_max_s=settings.policy.max_validity_s,
    )
    unsigned = settings.schemes[choice.scheme].prepare(
        choice, payer=settings.address, moment=moment, nonce=secrets.token_bytes(32)
    )
    return held_to(choice, unsigned, moment)


def _proof(
    buyer: Buyer,
    demand: Demand,
    choice: Choice,
    unsigned: Unsigned,
    signature: bytes,
    payment_id: str,
) -> Proof:
    header, value = proof_header(
        demand.challenge,
        choice.offer,
        unsigned.payload(signature),
        payment_id,
        payload_bytes=buyer.settings.schemes[choice.scheme].payload_bytes,
    )
    return Proof(header=header, value=value, nonce=unsigned.key, valid_before=unsigned.valid_before)


def _sign(buyer: Buyer, unsigned: Unsigned) -> Flow[bytes]:
    signer, digest = buyer.settings.signer, unsigned.digest
    assert signer is not None
    try:
        returned = yield from consult(signer.sign_typed_data, *unsigned.typed_data())
    except Exception as exc:
        raise SignerError(f"the wallet failed: {type(exc).__name__}") from exc
    return checked_signature(returned, digest, signer.address)


def release(
    buyer: Buyer, payment_id: str, failure: BaseException, *, unsent: bool = False
) -> Flow[None]:
    """Give the reservation back; if even that fails it stays reserved, which counts."""
    note = f"never sent: {type(failure).__name__}"
    if isinstance(failure, PaymentError):
        failure.payment_id = payment_id
    try:
        yield from booked(
            buyer, lambda at: buyer.ledger.release(payment_id, note, unsent=unsent, **at)
        )
    except LedgerError as exc:
        log.exception("payment %s could not be released and stays reserved", payment_id)
        buyer.emit("ledger_failed", payment_id=payment_id, detail={"error": str(exc)})
    else:
        buyer.emit("released", payment_id=payment_id, detail={"note": note})


def check_resign(buyer: Buyer, row: Row) -> None:
    """Whether an expired proof may be followed by a new one.

    Raises:
        PaymentRefused: ``resign="never"``.
    """
    if buyer.settings.resign == "never":
        raise PaymentRefused(
            f"the proof of this operation has expired ({row.id}) and resign='never'",
            reason="resign",
            payment_id=row.id,
        )


# --- after the point of no return -----------------------------------------------------------------


def conclude(
    buyer: Buyer, call: Call, row: Row, result: Result, *, told: bool = False
) -> Flow[Verdict]:
    """Write down how a call with a proof was answered, and hand the answer back.

    *told*: observers know how it ended, and hear nothing new.
    """
    call.state.receipt = receipt_for(row, result.outcome, result.transaction, result.reason)
    try:
        yield from finish(buyer, row, result, told=told, carrier=call.by)
        yield from checkpoint()  # the last moment for a cancellation
    except BaseException:
        if result.delivered:  # but it never reached the caller
            yield from record(lambda wait_s: buyer.reopen(row.id, wait_s))
        raise
    return Verdict(receipt=call.state.receipt, delivered=result.delivered)


def warn_of_error(row: Row, reply: Reply) -> None:
    """Name the payment where the answer to it is an error, unless it asks to be paid again."""
    if reply.status >= 400 and reply.status != 402:
        log.warning(
            "HTTP %d answers payment %s ($%s for %s)",
            *(reply.status, row.id, usd(row.micro), service_at(row.service, row.origin)),
        )


def why_refused(row: Row, reply: Reply) -> Flow[str | None]:
    """Why the seller refused the proof; it may be in the body of another 402, which stays readable.

    Other errors are the service's own affair, unless a header speaks of the payment; and a body
    that may be long, or is still being made, is the caller's to read.
    """
    if reply.delivered:
        return None
    said = reasons.in_headers(reply.headers)
    short = reply.length is not None and reply.length <= reasons.BODY_BYTES_MAX
    if said is None and reply.status == 402 and short:
        said = reasons.in_body((yield from read_body(wanted=False)))
    return None if said is None else reasons.explained(said, row)


def seen(buyer: Buyer, call: Call, row: Row, proof: Proof, told: str | None) -> Flow[bool]:
    """Whether the chain shows the transaction; a reader that fails costs nobody the answer."""
    try:
        return bool((yield from consult(buyer.seen_on_chain, row, proof, told, call.wait_s)))
    except Exception:
        log.exception("the chain could not be asked about payment %s", row.id)
        return False


def settlement_fault(
    buyer: Buyer, row: Row, proof: Proof, settlement: Settlement | None
) -> str | None:
    """Why the settlement does not prove that exactly this was paid; ``None`` if it agrees."""
    if settlement is None:
        return "no settlement reported"
    if settlement.garbled:
        return "the settlement header cannot be read"
    if not settlement.success:
        return f"settlement failed: {settlement.error or 'no reason given'}"
    if settlement.network not in (None, row.network):
        return "the settlement names another network"
    if settlement.payer is not None and settlement.payer.lower() != (row.payer or "").lower():
        return "the settlement names another payer"
    found = scheme_of(buyer.settings.schemes.values(), proof.nonce)
    if found is None:
        return "what was signed is of a scheme that is not known here"
    return found[0].settlement_fault(settlement, int(row.amount))


def finish(
    buyer: Buyer, row: Row, result: Result, *, told: bool = False, carrier: object = None
) -> Flow[None]:
    """Write down the end.  A ledger that fails now costs nobody the answer: money stays held."""
    try:
        opened = yield from booked(
            buyer,
            lambda at: buyer.ledger.finish(
                row.id, result, buyer.settings.breaker, carrier=carrier, **at
            ),
        )
    except LedgerError as exc:
        log.exception("the end of payment %s is not recorded, it stays held", row.id)
        buyer.emit("ledger_failed", payment_id=row.id, detail={"error": str(exc)})
        return
    if told:
        return
    kind = {"unknown": "held"}.get(result.outcome, result.outcome)
    detail = {"note": result.note, **({"reason": result.reason} if result.reason else {})}
    buyer.emit(kind, row, payment_id=row.id, usd=usd(row.micro), detail=detail)
    if opened:
        buyer.emit("breaker_open", row, payment_id=row.id)
