"""Reservations: whatever forbids a payment, asked and reserved in one atomic step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from x402_mask._ledger import counters as _counters
from x402_mask._ledger import payees as _payees
from x402_mask._ledger import sums as _sums
from x402_mask._ledger.damage import foreign
from x402_mask._ledger.endings import Endings
from x402_mask._ledger.records import (
    COLUMNS,
    Busy,
    LedgerView,
    OpenPayment,
    Reserved,
    Row,
    breaker_open,
    paid_before,
    paused,
)
from x402_mask._ledger.token_rows import is_purchase, is_resumable, usable_token
from x402_mask._ledger.waiting import WAIT_S
from x402_mask._policy.caps import applying, keys_of
from x402_mask.errors import PaymentRefused

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from x402_mask._ledger.records import Breaker, Db, Proof, Reservation
    from x402_mask._policy.clocks import Clock, Clocks

_STOPS: Final = (
    "SELECT (SELECT value FROM meta WHERE name='paused'),"
    " (SELECT until FROM breakers WHERE origin=?)"
)
"""Whether the ledger is paused, and until when an origin is not paid."""


class Reserving(Endings):
    """The part of a ledger that decides whether a payment may be made, and reserves it."""

    def __init__(self) -> None:
        self._meters: set[tuple[str, str]] = set()

    def view(  # noqa: PLR0913  # a keyword for each thing that is known of the call
        self,
        operation: str,
        service: str,
        shop: str | None = None,
        *,
        origin: str | None = _payees.EVERYWHERE,
        also: Iterable[str] = (),
        keyed: bool = False,
        now_us: int,
        seller_us: int | None = None,
        wait_s: float = WAIT_S,
    ) -> LedgerView:
        """What is known about this operation and service; changes nothing.

        *shop* is the origin whose tokens would do, if any would; *origin* the one whose payees are
        asked for (``None``: nobody's), and *also* the keys of what the service may be besides;
        *seller_us* what time it is by the seller's clock, Unix microseconds.
        """
        self._flush(wait_s)
        with self._transaction(wait_s, write=False) as db:
            rows, clocks = self._undelivered(db, operation), self._clocks(db, now_us, seller_us)
            return LedgerView(
                paused=self._is_paused(db),
                token=shop is not None and usable_token(db, shop, service, now_us) is not None,
                twin=self._twin(db, rows, clocks),
                lapsed=tuple(row for row in rows if row.lapsed(now_us)),
                paid=self._paid(db, rows, clocks, keyed=keyed),
                payees={} if origin is None else _payees.known(db, origin, keys_of(service, also)),
            )

    def reserve(
        self,
        want: Reservation,
        breaker: Breaker | None = None,
        *,
        durable: bool = False,
        prove: Callable[[], Proof] | None = None,
        carrier: object = None,
        wait_s: float = WAIT_S,
    ) -> Reserved | OpenPayment:
        """Check every cap and reserve, in one atomic step.

        Returns a :class:`OpenPayment` instead when the operation turned out to be open already.
        *prove* makes the proof, without waiting for anybody: it is stored in the same transaction,
        as :meth:`hold` would, and may leave when this returns.  *carrier* carries it from then on.

        Raises:
            Paused, CapExceeded, OfferRefused, PaymentRefused: nothing was reserved.
            LedgerError: the ledger could not record; nothing was reserved.
        """
        self._know(_counters.units(want.limits), wait_s)
        self._flush(wait_s)
        durable = durable or prove is not None
        with self._carrying(want.id, carrier), self._transaction(wait_s, durable=durable) as db:
            twin = self._admit(db, want, breaker)
            if twin is not None:
                self._flying.pop(want.id, None)
                return twin
            payee = _payees.check(db, want)
            meters = self._running(db, want)
            before = self._check_caps(db, want)
            proof = None if prove is None else foreign(prove)
            _counters.count(db, meters, want.at, 0, want.micro)
            self._insert(db, want, before, proof, payee)
        return Reserved(new_payee=payee == "other", proof=proof)

    def foresee(
        self, want: Reservation, breaker: Breaker | None = None, *, wait_s: float = WAIT_S
    ) -> PaymentRefused | None:
        """The refusal that :meth:`reserve` would end in now; changes nothing that counts."""
        self._know(_counters.units(want.limits), wait_s)
        for swept in (False, True):
            try:
                with self._transaction(wait_s, write=False) as db:
                    if self._admit(db, want, breaker) is not None:
                        return None
                    _payees.standing(db, want)
                    full = _counters.measure(db, want)[1]
            except PaymentRefused as refusal:
                return refusal
            if full is None or swept or not self.sweep(now_us=want.at, wait_s=wait_s):
                return full
        raise AssertionError("unreachable")

    def sweep(self, *, now_us: int, wait_s: float = WAIT_S) -> list[str]:
        """Release reservations of processes that died before their proof was stored."""
        self._flush(wait_s)
        with self._transaction(wait_s) as db:
            return self._sweep(db, now_us)

    # --- inside a transaction

    def _undelivered(self, db: Db, operation: str) -> list[Row]:
        sql = (
            f"SELECT {COLUMNS} FROM payments WHERE operation=? AND delivered=0"  # noqa: S608
            " AND state IN ('reserved','held','settled') ORDER BY seq DESC LIMIT 256"
        )
        return [Row.read(r) for r in db.all(sql, operation)]

    def _twin(self, db: Db, rows: Sequence[Row], clocks: Clocks) -> OpenPayment | None:
        busy, known = None, dict[str, bool]()
        for row in reversed(rows):
            by: Clock | None = "ours"
            if row.route == "token":
                idle = is_resumable(db, row)
            else:
                by = clocks.alive_by(row.valid_before) if row.is_live else None
                idle = by is not None
            if not (idle or row.is_live or row.state == "reserved"):
                continue  # what is carried is waited for, however long that takes
            if self._in_flight(db, row, known):
                busy = busy or OpenPayment(row=row, busy=True)
            elif idle:
                return OpenPayment(row=row, busy=False, by=by or "ours")
        return busy

    def _admit(self, db: Db, want: Reservation, breaker: Breaker | None) -> OpenPayment | None:
        """Whatever forbids a payment, but for its payee and the caps; a twin to go on with.

        Raises:
            PaymentRefused: it may not be made.
        """
        is_paused, stopped_until = db.one(_STOPS, want.origin) or (None, None)
        if is_paused:
            raise paused()
        clocks = self._clocks(db, want.at, want.seller_us)
        rows = self._undelivered(db, want.operation)
        twin = want.unheard(rows) or self._twin(db, rows, clocks)
        if twin is not None and (want.keyed or not twin.busy):
            return twin
        paid = self._paid(db, rows, clocks, keyed=want.keyed)
        if paid:
            raise paid_before(paid[-1], keyed=want.keyed)
        if breaker is not None and stopped_until is not None and stopped_until > want.at:
            raise breaker_open(want.origin, breaker, stopped_until)
        return None

    def _paid(self, db: Db, rows: Sequence[Row], clocks: Clocks, *, keyed: bool) -> tuple[Row, ...]:
        """Those of *rows* that are not paid for again: expired, proven settled, not delivered."""
        return tuple(
            row
            for row in rows
            if row.refuses_again(clocks, keyed=keyed)
            and (row.valid_before is None or clocks.alive_by(row.valid_before) is None)
            and not (row.route == "token" and is_resumable(db, row))
        )

    def _know(self, units: set[tuple[str, str]], wait_s: float) -> None:
        """Start the counters that a new cap needs, counting what the ledger already holds."""
        if units <= self._meters:
            return
        with self._transaction(wait_s, write=False) as db:
            self._meters |= {(s, u) for s, u in db.all("SELECT scope, unit FROM meters")}
        if units <= self._meters:
            return
        if wait_s == 0:
            raise Busy
        with self._transaction(wait_s) as db:
            self._start_meters(db, units)
        self._meters |= units

    def _start_meters(self, db: Db, units: Iterable[tuple[str, str]]) -> None:
        for scope, unit in units:
            sql = "INSERT INTO meters (scope, unit) VALUES (?, ?) ON CONFLICT DO NOTHING"
            if db.run(sql, scope, unit):
                db.run("DELETE FROM counters WHERE scope=? AND unit=?", scope, unit)
                _counters.backfill(db, scope, unit)

    def _running(self, db: Db, want: Reservation) -> list[tuple[str, str]]:
        """The counters that count this payment; the caps' are all there, whatever was known before.

        A connection may be a moment old, and its database another one: a restored backup.
        """
        meters = _sums.take(db, want.keys)
        units = _counters.units(applying(want.limits, want.service, want.also))
        missing = units.difference(meters)
        if {scope for scope, _ in missing} - {"*", *want.keys}:  # a limit counts its kin as well
            missing -= set(db.all("SELECT scope, unit FROM meters"))
        if not missing:
            return meters
        self._start_meters(db, missing)
        return _sums.take(db, want.keys)

    def _check_caps(self, db: Db, want: Reservation) -> dict[str, int]:
        before, full = _counters.measure(db, want)
        if full is not None and self._sweep(db, want.at):
            before, full = _counters.measure(db, want)
        if full is not None:
            raise full
        return before

    def _sweep(self, db: Db, now_us: int) -> list[str]:
        sql = "SELECT DISTINCT flight FROM payments WHERE state='reserved' AND flight IS NOT NULL"
        owners = [owner for (owner,) in db.all(sql) if not self._is_other(db, owner)]
        sql = f"SELECT {COLUMNS} FROM payments WHERE state='reserved' AND flight=?"  # noqa: S608
        rows = [Row.read(found) for owner in owners for found in db.all(sql, owner)]
        idle = [row for row in rows if not self._is_carried(row.id)]
        dead = [row for row in idle if row.route != "token" or not is_purchase(db, row.id)]
        for row in dead:
            note = "its process ended before a proof was stored"
            self._move(db, row, "released", now_us, {"note": note}, note=note)
        return [row.id for row in dead]

    def _is_other(self, db: Db, owner: str) -> bool:
        """Whether *owner* is another process, and runs."""
        return owner != self._me() and self._is_alive(db, owner)
