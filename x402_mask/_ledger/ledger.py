"""The ledger: what may be spent, what was spent, and what is still open.

Two-phase and append-only: *reserved* before anything is signed, *held* (durably, with the encrypted
proof) before a proof leaves, then *settled*, *released* or *void*.  All logic is here, once, in SQL
that SQLite and PostgreSQL share; a backend adds a connection and transactions.

Every public method takes ``wait_s``, the seconds it may wait for a contended lock: with 0 it raises
:class:`Busy` instead of waiting, so that async callers can go elsewhere to wait.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from x402_mask._ledger import payees as _payees
from x402_mask._ledger.core import NO_PROOF, NOTHING_ELSE, storable
from x402_mask._ledger.denials import DenialBook
from x402_mask._ledger.purchases import TokenBook
from x402_mask._ledger.questions import Questions
from x402_mask._ledger.records import MOVES, Proof
from x402_mask._ledger.schema import set_meta
from x402_mask._ledger.transfers import TransferBook
from x402_mask._ledger.waiting import WAIT_S

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from x402_mask._models import State


class Ledger(Questions, TokenBook, TransferBook, DenialBook):
    """Where reservations live.  One ledger is one budget, whatever payer or process uses it."""

    inline: ClassVar[bool] = False
    """Whether an uncontended call waits for nothing at all, and may be made on an event loop."""

    brief: ClassVar[bool] = False
    """Whether it nearly always takes so little that a loop may wait for a thread that makes it."""

    head_is_whole: ClassVar[bool] = False
    """Whether every writer keeps the same head file, so that one must be there."""

    # --- the conversation

    def hold(self, payment_id: str, proof: Proof, *, now_us: int, wait_s: float = WAIT_S) -> None:
        """Store the proof, encrypted and durably: from here on it may leave.

        Raises:
            LedgerError: it could not be stored, or the reservation is gone.
        """
        with self._transaction(wait_s, durable=True) as db:
            self._hold(db, self._reserved(db, payment_id), proof, now_us)

    def claim(
        self,
        payment_id: str,
        carrier: object = None,
        *,
        now_us: int,
        seller_us: int | None = None,
        by_chain: bool = False,
        wait_s: float = WAIT_S,
    ) -> Proof | None:
        """Take an open proof in hand, to present the same bytes again; ``None`` if too late.

        *carrier* is whoever may later :meth:`let_go` what was claimed.  *by_chain*: the chain
        says that the proof is alive, whatever the clocks say.

        Raises:
            LedgerError: the stored proof cannot be decrypted.
        """
        self._flush(wait_s)
        with self._transaction(wait_s) as db:
            row, clocks = self._row(db, payment_id), self._clocks(db, now_us, seller_us)
            alive = row.is_live and (by_chain or clocks.alive_by(row.valid_before) is not None)
            if not alive or self._in_flight(db, row):
                return None
            value = self._ledger_key().open(row.proof or b"", row.id)
            db.run("UPDATE payments SET flight=? WHERE id=?", self._me(), row.id)
            self._write(db, now_us, row.id, "represented", {"proof": row.proof_digest})
            self._flying[payment_id] = carrier  # if the commit fails the row names nobody
        return Proof(
            header=row.header or "", value=value, nonce=row.nonce, valid_before=row.valid_before
        )

    def release(
        self,
        payment_id: str,
        note: str,
        *,
        unsent: bool = False,
        now_us: int,
        wait_s: float = WAIT_S,
    ) -> None:
        """Give a reservation back: its proof never left this process.

        *unsent*: there is a proof, made with the reservation, and its caller, who alone ever had
        it, says that it was not sent.
        """
        note = storable(note)
        with self._transaction(wait_s) as db:
            row = self._row(db, payment_id)
            mine = unsent and row.state == "held" and row.id in self._flying
            row = row if mine else self._reserved(db, payment_id)
            also = NO_PROOF if mine else NOTHING_ELSE  # nobody may collect what is not counted
            self._move(db, row, "released", now_us, {"note": note}, note=note, also=also)
        self._flying.pop(payment_id, None)

    def resolve(
        self,
        payment_id: str,
        state: State,
        *,
        transaction: str | None,
        note: str,
        now_us: int,
        wait_s: float = WAIT_S,
    ) -> bool:
        """Record what the chain proved: ``settled`` or ``void``.

        Returns ``False`` if the payment had moved on meanwhile, for what was once seen on chain
        stays; or if it is to be void and its proof is alive by our clock or the database's.
        """
        if state not in ("settled", "void"):
            raise ValueError(f"a chain proves settled or void, not {state}")
        note, transaction = storable(note), storable(transaction)
        with self._transaction(wait_s) as db:
            row = self._row(db, payment_id)
            if row.seen or state not in MOVES[row.state]:
                return False
            signed = row.valid_before is not None  # a transaction has no clock
            if state == "void" and signed and self._clocks(db, now_us).alive_by(row.valid_before):
                return False
            detail = {"transaction": transaction, "note": note, "seen": True}
            self._move(
                db, row, state, now_us, detail, note=note, kind="reconciled", keep_flight=True
            )
            db.run("UPDATE payments SET trans=?, seen=1 WHERE id=?", transaction, payment_id)
            return True

    def note_refusal(
        self,
        detail: Mapping[str, Any],
        payee: tuple[str, str, str] | None = None,
        *,
        now_us: int,
        wait_s: float = 0,
    ) -> None:
        """Write down that a payment was refused.

        *payee*: origin, service and address, where the payee was refused as a new one.
        """
        with self._transaction(wait_s) as db:
            if payee is not None:
                origin, service, address = payee
                if _payees.remember_refused(db, origin, service, address.lower(), now_us):
                    pin = {"origin": origin, "service": service, "payee": address.lower()}
                    detail = {**detail, **pin}
            self._write(db, now_us, None, "refused", detail)

    def refuse_again(
        self, payment_ids: Iterable[str], *, now_us: int, wait_s: float = WAIT_S
    ) -> None:
        """These are proven settled, and a repeat is refused: note when that was first said."""
        with self._transaction(wait_s, durable=True) as db:
            for payment_id in payment_ids:
                sql = "UPDATE payments SET again=? WHERE id=? AND again IS NULL"
                if db.run(sql, now_us, payment_id):
                    self._write(db, now_us, payment_id, "paid_before", {})

    # --- the owner's orders

    def set_paused(self, paused: bool, *, now_us: int, wait_s: float = WAIT_S) -> None:  # noqa: FBT001
        """Pause or resume every process on this ledger, durably."""
        with self._transaction(wait_s, durable=True) as db:
            set_meta(db, "paused", "1" if paused else "")
            self._write(db, now_us, None, "paused" if paused else "resumed", {})

    def accept_payee(
        self,
        service: str,
        payee: str,
        origin: str | None = None,
        *,
        now_us: int,
        wait_s: float = WAIT_S,
    ) -> str:
        """Trust *payee* for *service* at *origin*, besides those trusted there; returns the origin.

        Raises:
            ValueError: no origin is named, and not one alone has a refused change.
        """
        with self._transaction(wait_s, durable=True) as db:
            place = _payees.accept(db, origin, service, payee.lower(), now_us)
            pin = {"origin": place, "service": service, "payee": payee.lower()}
            self._write(db, now_us, None, "payee", pin)
        return place
