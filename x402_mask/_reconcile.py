"""What the chain knows about payments that the ledger does not know the end of."""

from __future__ import annotations

from typing import TYPE_CHECKING

from x402_mask._models import Resolved
from x402_mask._windows import SECOND

if TYPE_CHECKING:
    from x402_mask._chain import Authorization
    from x402_mask._models import State
    from x402_mask._payer import Payer
    from x402_mask._rows import Proof, Row


def reconcile(payer: Payer) -> list[Resolved]:
    """Resolve every payment that the chain can tell the end of; say of the others why not."""
    done = [
        Resolved(payment_id=found, state="released", transaction=None,
                 detail="its process ended before a proof was stored")
        for found in payer.ledger.sweep(now_us=payer.now_us())
    ]  # fmt: skip
    for row in payer.ledger.unresolved(payer.chains):
        if payer.chain_knows(row.network):
            done.append(resolve(payer, row))
        elif row.state == "held":
            done.append(_unresolved(row, "no rpc for its network", answered=False))
    return done


def resolve(payer: Payer, row: Row) -> Resolved:
    """Ask the chain about one payment; only proof frees money, and only proof settles it."""
    from x402_mask._chain import Canceled, Settled, Unused  # noqa: PLC0415

    if row.valid_before is None:
        return _transferred(payer, row)
    signed = _authorization(row, row.nonce, row.valid_before, row.trans)
    if signed is None:
        return _unresolved(row, "it was not paid by a signature")
    evidence = payer.chain().evidence(signed)
    if isinstance(evidence, Settled):
        return _write(payer, row, "settled", evidence.transaction, "seen on chain")
    if isinstance(evidence, Canceled):
        return _write(payer, row, "void", evidence.transaction, "cancelled on chain")
    if isinstance(evidence, Unused):
        return _write(payer, row, "void", None, f"unused at block {evidence.block}")
    return _unresolved(row, evidence.reason, answered=evidence.answered)


def _transferred(payer: Payer, row: Row) -> Resolved:
    """What became of a payment by on-chain transfer; nothing is sent."""
    from x402_mask._chain import Unknown  # noqa: PLC0415

    stored = payer.ledger.transfer_of(row.id)
    if stored is None:
        return _unresolved(row, "it was not paid by a signature")
    desk = payer.desk()
    verdict = desk.evidence(stored)
    ended = desk.close(stored, verdict)
    if ended.state == "mined":
        return _write(payer, row, "settled", ended.transaction, "seen on chain")
    if ended.state != "pending":
        return _write(payer, row, "void", ended.transaction, ended.detail)
    answered = not isinstance(verdict, Unknown) or verdict.answered
    return _unresolved(row, ended.detail, answered=answered)


def seen(payer: Payer, row: Row, proof: Proof, transaction: str) -> bool:
    """Whether *transaction* is on chain and moved exactly what was signed."""
    from x402_mask._chain import Settled  # noqa: PLC0415

    signed = _authorization(row, proof.nonce, proof.valid_before, transaction)
    return signed is not None and isinstance(payer.chain().seen(signed), Settled)


def _authorization(
    row: Row, nonce: str | None, valid_before: int | None, transaction: str | None
) -> Authorization | None:
    from x402_mask._chain import Authorization  # noqa: PLC0415

    if nonce is None or valid_before is None or row.network is None or row.asset is None:
        return None
    if row.payer is None or row.pay_to is None:
        return None
    return Authorization(
        network=row.network, asset=row.asset, payer=row.payer, pay_to=row.pay_to,
        amount=int(row.amount), nonce=nonce, valid_before=valid_before,
        signed_at=row.at // SECOND, transaction=transaction,
    )  # fmt: skip


def _write(payer: Payer, row: Row, state: State, transaction: str | None, note: str) -> Resolved:
    changed = payer.ledger.resolve(
        row.id, state, transaction=transaction, note=note, now_us=payer.now_us()
    )
    if changed:
        payer.emit("reconciled", row, payment_id=row.id, detail={"state": state, "note": note})
    return Resolved(payment_id=row.id, state=state, transaction=transaction, detail=note)


def _unresolved(row: Row, reason: str, *, answered: bool = True) -> Resolved:
    return Resolved(
        payment_id=row.id, state=row.state, transaction=row.trans, detail=reason, answered=answered
    )
