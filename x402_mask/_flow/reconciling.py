"""What the chain knows about payments that the ledger does not know the end of."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final, NamedTuple

from x402_mask._chain.evidence import question_of
from x402_mask._chain.verdicts import Canceled, Settled, Unknown, Unused
from x402_mask._ledger.waiting import WAIT_S
from x402_mask._models import Resolved
from x402_mask._system.deadlines import Deadline

if TYPE_CHECKING:
    from collections.abc import Sequence

    from x402_mask._chain.verdicts import Evidence
    from x402_mask._flow.buyer import Buyer
    from x402_mask._ledger.records import Proof, Row
    from x402_mask._models import State

_AT_ONCE: Final = 16  # questions; an operation has seldom more than one proof
_WRITE_S: Final = 0.5
"""How long a ledger may take, at most, to take what a chain said with its caller's last moment."""

_NO_EVIDENCE: Final = "how a chain is asked about what was signed is not known here"
_NO_TIME: Final = "there was no time left to ask the chain"
_GLANCE_S: Final = 3.0  # the answer to a paid call waits for this


class Said(NamedTuple):
    """What the chain said about one payment, and what became of it.

    ``is_paid``: it is proven settled, and the ledger says so.  ``is_past``: whether its proof is
    dead by the chain's own time; ``None`` where that is not known.
    """

    resolved: Resolved
    is_paid: bool = False
    is_past: bool | None = None


def reconcile(buyer: Buyer) -> list[Resolved]:
    """Resolve every payment that the chain can tell the end of; say of the others why not."""
    done = [
        Resolved(
            payment_id=found,
            state="released",
            transaction=None,
            detail="its process ended before a proof was stored",
        )
        for found in buyer.ledger.sweep(now_us=buyer.now_us())
    ]
    for row in buyer.ledger.unresolved(buyer.chains):
        if buyer.chain_knows(row.network):
            done += [said.resolved for said in resolve(buyer, [row])]
        elif row.state == "held":
            done.append(_unresolved(row, "no rpc for its network", answered=False).resolved)
    return done


def resolve(buyer: Buyer, rows: Sequence[Row], wait_s: float | None = None) -> list[Said]:
    """Ask the chain about these together; only proof frees money, and only proof settles it.

    *wait_s* bounds the questions, in seconds: by default each as long as the reader allows.
    """
    deadline = Deadline(wait_s)
    if len(rows) == 1:
        answers = [_asked(buyer, rows[0], deadline)]
    else:
        with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="x402-mask-asking") as pool:
            answers = list(pool.map(lambda row: _asked(buyer, row, deadline), rows))
    return [_written(buyer, row, a, deadline) for row, a in zip(rows, answers, strict=True)]


def _asked(buyer: Buyer, row: Row, deadline: Deadline) -> Evidence | None:
    """What the chain says of a signature; ``None`` where there is none."""
    if row.nonce is None:
        return None
    question = question_of(row, deadline.left())
    if question is None:
        return Unknown(reason=_NO_EVIDENCE, answered=False)
    if question.time_out_s == 0:
        return Unknown(reason=_NO_TIME, answered=False)
    return buyer.chain().evidence(question)


def _written(buyer: Buyer, row: Row, evidence: Evidence | None, deadline: Deadline) -> Said:
    if row.valid_before is None:
        return _transferred(buyer, row, deadline)
    if evidence is None:
        return _unresolved(row, "it was not paid by a signature")
    if isinstance(evidence, Settled):
        said = _write(buyer, row, "settled", evidence.transaction, "seen on chain", deadline)
        return said._replace(is_past=evidence.past)
    if isinstance(evidence, Canceled):
        return _write(buyer, row, "void", evidence.transaction, "cancelled on chain", deadline)
    if isinstance(evidence, Unused):
        return _write(buyer, row, "void", None, f"unused at block {evidence.block}", deadline)
    return _unresolved(row, evidence.reason, answered=evidence.answered, is_past=evidence.past)


def _transferred(buyer: Buyer, row: Row, deadline: Deadline) -> Said:
    """What became of a payment by on-chain transfer; nothing is sent."""
    stored = buyer.ledger.transfer_of(row.id)
    if stored is None:
        return _unresolved(row, "it was not paid by a signature")
    sender = buyer.transfer_sender(deadline.left())
    verdict = sender.evidence(stored)
    ended = sender.close(stored, verdict)
    if ended.state == "mined":
        return _write(buyer, row, "settled", ended.transaction, "seen on chain", deadline)
    if ended.state != "pending":
        return _write(buyer, row, "void", ended.transaction, ended.detail, deadline)
    answered = not isinstance(verdict, Unknown) or verdict.answered
    return _unresolved(row, ended.detail, answered=answered)


def seen(
    buyer: Buyer, row: Row, proof: Proof, transaction: str, wait_s: float | None = None
) -> bool:
    """Whether *transaction* is on chain and moved exactly what was signed."""
    signed = row._replace(nonce=proof.nonce, valid_before=proof.valid_before, trans=transaction)
    question = question_of(signed)
    bound = {} if wait_s is None else {"time_out_s": min(_GLANCE_S, wait_s)}
    return question is not None and isinstance(buyer.chain().seen(question, **bound), Settled)


def _write(
    buyer: Buyer, row: Row, state: State, transaction: str | None, note: str, until: Deadline
) -> Said:
    """Write down what is proven.  That nothing was moved counts only once our clock agrees.

    An endpoint could say so of a proof that is alive, and what it says cannot be checked.
    """
    now_us = buyer.now_us()
    if state == "void" and row.valid_before is not None and not row.expired(now_us):
        return _unresolved(row, f"{note}, but it has not expired by this machine's clock")
    left = until.left()
    wait_s = WAIT_S if left is None else min(WAIT_S, max(_WRITE_S, left))
    changed = buyer.ledger.resolve(
        row.id, state, transaction=transaction, note=note, now_us=now_us, wait_s=wait_s
    )
    if not changed and state == "void":
        return _unresolved(row, f"{note}, but the ledger does not have it expired, or moved on")
    if changed:
        buyer.emit("reconciled", row, payment_id=row.id, detail={"state": state, "note": note})
    found = Resolved(payment_id=row.id, state=state, transaction=transaction, detail=note)
    return Said(found, is_paid=state == "settled", is_past=True)


def _unresolved(
    row: Row, reason: str, *, answered: bool = True, is_past: bool | None = None
) -> Said:
    found = Resolved(
        payment_id=row.id, state=row.state, transaction=row.trans, detail=reason, answered=answered
    )
    return Said(found, is_past=is_past)
