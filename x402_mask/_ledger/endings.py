"""How calls end: what the ledger writes of them, at once or, after an interruption, later."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from x402_mask._ledger import breakers as _breakers
from x402_mask._ledger.carrier import Carrier
from x402_mask._ledger.core import LedgerCore, storable
from x402_mask._ledger.records import MOVES, Busy, Result
from x402_mask._ledger.token_rows import forget_spent, is_purchase
from x402_mask._ledger.waiting import WAIT_S
from x402_mask.errors import LedgerError

if TYPE_CHECKING:
    from x402_mask._ledger.records import Breaker, Db
    from x402_mask._models import State


class Endings(LedgerCore):
    """The part of a ledger that writes down how calls ended."""

    def finish(
        self,
        payment_id: str,
        result: Result,
        breaker: Breaker | None = None,
        *,
        carrier: object = None,
        now_us: int,
        wait_s: float = WAIT_S,
    ) -> bool:
        """Record how the call ended.  Returns whether this opened the origin's breaker.

        What was delivered is re-opened after all if *carrier*, the call, ends in any other way than
        in its caller's hands: however it is interrupted, and wherever.
        """
        if result.delivered and isinstance(carrier, Carrier):
            self._self().handing[payment_id] = (carrier, now_us)  # before anybody can see it
        try:
            with self._transaction(wait_s) as db:
                opened = self._finish(db, payment_id, result, breaker, now_us)
        except Busy:
            raise  # the caller comes again, and until then its call is in flight
        except BaseException as failure:
            if isinstance(failure, LedgerError):
                self._unwritten[object()] = (payment_id, result, now_us)
            self._flying.pop(payment_id, None)
            raise
        self._flying.pop(payment_id, None)
        return opened

    def let_go(self, payment_id: str, carrier: object = None, *, now_us: int) -> None:
        """*carrier* no longer carries the payment, whatever happened to its row; no I/O.

        For the way out after an interruption: what the row should say is written with the next
        call, and until then an identical call already finds the proof idle, not in flight.  Does
        nothing where the end was written.
        """
        if payment_id in self._flying and self._flying[payment_id] is carrier:
            end = Result(outcome="unknown", delivered=False, note="interrupted")
            self._unwritten[object()] = (payment_id, end, now_us)
            self._flying.pop(payment_id, None)

    def reopen(self, payment_id: str, *, now_us: int, wait_s: float = WAIT_S) -> None:
        """The answer that was recorded as delivered never reached its caller after all."""
        self._take_back(payment_id, now_us)
        self._flush(wait_s)

    def take_back(self, carrier: object, *, now_us: int, wait_s: float = WAIT_S) -> None:
        """What was recorded as delivered by *carrier* never reached its caller.

        May be asked again after :class:`Busy`: what is marked by then is still to be written.
        """
        for payment_id in self.handed_by(carrier):
            self._take_back(payment_id, now_us)
        if self._unwritten:
            self._flush(wait_s)

    def handed_by(self, carrier: object) -> list[str]:
        """Payments that were recorded as delivered by *carrier*, or within what it carries."""
        known = list(self._self().handing.items())
        return [name for name, (by, _) in known if carrier in (by, by.within)]

    def _finish(
        self, db: Db, payment_id: str, result: Result, breaker: Breaker | None, now_us: int
    ) -> bool:
        row = self._row(db, payment_id)
        if row.state == "reserved" and row.route == "token" and is_purchase(db, row.id):
            db.run(
                "UPDATE payments SET flight=NULL WHERE id=?", row.id
            )  # an identical call goes on
            return False
        if row.state == "reserved":  # interrupted before its proof was stored
            note = storable(result.note)
            self._move(db, row, "released", now_us, {"note": note}, note=note)
            return False
        state: State = "settled" if result.outcome == "settled" else row.state
        if state not in MOVES[row.state]:
            return False  # reconciled meanwhile: the chain knows better
        note, transaction = storable(result.note), storable(result.transaction)
        delivered = not result.lost and bool(result.delivered or row.delivered)
        outcome = (row.outcome or result.outcome) if result.lost else result.outcome
        detail: dict[str, Any] = {
            "outcome": outcome,
            "delivered": delivered,
            "note": note,
            "transaction": transaction,
        }
        kind = "reopened" if result.lost else outcome
        told = transaction if row.trans is None else row.trans
        reason = row.reason if result.lost else result.reason and storable(result.reason)
        if reason is not None:
            detail["reason"] = reason
        also = {
            "delivered": int(delivered),
            "outcome": outcome,
            "trans": told,
            "reason": reason,
        }
        self._move(db, row, state, now_us, detail, note=note, kind=kind, also=also)
        if row.route == "token" and delivered:
            forget_spent(db, row.id)
        return _breakers.trip(db, row.origin, result, breaker, now_us)

    def _flush(self, wait_s: float) -> None:
        """Write the ends of calls that could not be written when they happened."""
        me = self._self()
        handing = me.handing
        if not handing and not me.unwritten:
            return
        for payment_id, (carrier, at) in list(handing.items()):
            if carrier.is_running:
                continue
            if carrier.is_answered:  # asked once it has ended: then that changes no more
                handing.pop(payment_id, None)
            else:
                self._take_back(payment_id, at)
        if not me.unwritten:
            return
        with self._transaction(wait_s) as db:
            ends = list(me.unwritten.items())  # now, as other threads may have written some
            for _, (payment_id, result, at) in ends:
                if self._find(db, payment_id) is not None:
                    self._finish(db, payment_id, result, None, at)
        for key, _ in ends:
            me.unwritten.pop(key, None)

    def _take_back(self, payment_id: str, at: int) -> None:
        """What is to be written of a payment whose answer its caller never had."""
        note = "the answer broke off before its caller had it"
        end = Result(outcome="unknown", delivered=False, lost=True, note=note)
        self._unwritten[object()] = (payment_id, end, at)
        self._self().handing.pop(payment_id, None)  # last: until then it would be found again
