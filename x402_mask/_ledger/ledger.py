"""The ledger: what may be spent, what was spent, and what is still open.

Two-phase and append-only: *reserved* before anything is signed, *held* (durably, with the encrypted
proof) before a proof leaves, then *settled*, *released* or *void*.  All logic is here, once, in SQL
that SQLite and PostgreSQL share; a backend adds a connection and transactions.

Every public method takes ``wait_s``, the seconds it may wait for a contended lock: with 0 it raises
:class:`Busy` instead of waiting, so that async callers can go elsewhere to wait.
"""

from __future__ import annotations

import os
from abc import abstractmethod
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Final, overload

from x402_mask._ledger import counters as _counters
from x402_mask._ledger import payees as _payees
from x402_mask._ledger import sums as _sums
from x402_mask._ledger.carrier import Carrier
from x402_mask._ledger.core import NOTHING_ELSE, WAIT_S
from x402_mask._ledger.damage import foreign, whole
from x402_mask._ledger.denials import DenialBook
from x402_mask._ledger.key import digest
from x402_mask._ledger.purchases import TokenBook, usable_token
from x402_mask._ledger.records import (
    COLUMNS,
    MOVES,
    Busy,
    Proof,
    Reservation,
    Reserved,
    Result,
    Row,
    Twin,
    View,
    breaker_open,
    new_payment_id,
    paid_before,
    paused,
)
from x402_mask._ledger.schema import meta, set_meta
from x402_mask._ledger.transfers import TransferBook
from x402_mask._models import Payment
from x402_mask._money import SECOND, usd
from x402_mask._policy.caps import applying, as_datetime, keys_of
from x402_mask._policy.clocks import Clocks
from x402_mask._wire import strict_json
from x402_mask.errors import LedgerError, PaymentRefused

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from x402_mask._ledger.head import HeadFile
    from x402_mask._ledger.key import Vault
    from x402_mask._ledger.past import Past
    from x402_mask._ledger.records import Breaker, Db
    from x402_mask._models import Spend, State
    from x402_mask._policy.caps import Limit
    from x402_mask._policy.clocks import Clock

_TEXT_MAX: Final = 1000
_WAITED_S: Final = 0.05
"""A call that comes with less has waited before, for others of its own."""

_STOPS: Final = (
    "SELECT (SELECT value FROM meta WHERE name='paused'),"
    " (SELECT until FROM breakers WHERE origin=?)"
)
"""Whether the ledger is paused, and until when an origin is not paid."""

_NO_PROOF: Final[Mapping[str, object]] = dict.fromkeys(
    ("header", "proof", "proof_digest", "nonce", "valid_before")
)


@dataclass(slots=True, eq=False)
class _Self:
    """This process: its name, the calls it carries, and ends of calls it could not write down.

    A forked child is another process and starts with none.
    """

    owner: str
    flying: dict[str, object] = field(default_factory=dict)
    handing: dict[str, tuple[Carrier, int]] = field(default_factory=dict)
    """Payments recorded as delivered by calls that have not been seen to end yet, and when."""
    unwritten: dict[object, tuple[str, Result, int]] = field(default_factory=dict)
    """In the order in which they came, each under a key of its own: who wrote one down takes off
    that one alone, whatever else became known of the payment meanwhile."""


_selves: dict[tuple[object, int], _Self] = {}
"""By ledger and process: two objects on one file are one owner, and see each other's calls."""


class Ledger(TokenBook, TransferBook, DenialBook):
    """Where reservations live.  One ledger is one budget, whatever payer or process uses it."""

    inline: ClassVar[bool] = False
    """Whether an uncontended call waits for nothing at all, and may be made on an event loop."""

    brief: ClassVar[bool] = False
    """Whether it nearly always takes so little that a loop may wait for a thread that makes it."""

    head_is_whole: ClassVar[bool] = False
    """Whether every writer keeps the same head file, so that one must be there."""

    def __init__(self) -> None:
        self._meters: set[tuple[str, str]] = set()

    # --- what a backend provides

    @abstractmethod
    def _is_alive(self, db: Db, owner: str) -> bool:
        """Whether the process that calls itself *owner* still runs."""

    @property
    @abstractmethod
    def _identity(self) -> object:
        """Equal for ledger objects that are the same ledger."""

    @abstractmethod
    def _new_owner(self) -> str:
        """A name for this process."""

    @abstractmethod
    def close(self) -> None:
        """Give up connections; using the ledger again opens new ones."""

    @property
    def head_file(self) -> HeadFile | None:
        """Where the head of the history is kept besides the database, if anywhere."""
        return None

    @property
    def past(self) -> Past | None:
        """What is known of the ledger besides what it says itself, if anything."""
        return None

    def _database_us(self, db: Db) -> int | None:  # noqa: ARG002  # optional for backends
        """Unix microseconds by the database's own clock, where that is not this machine's."""
        return None

    # --- the conversation

    def look(  # noqa: PLR0913  # a keyword for each thing that is known of the call
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
    ) -> View:
        """What is known about this operation and service; changes nothing.

        *shop* is the origin whose tokens would do, if any would; *origin* the one whose payees are
        asked for (``None``: nobody's), and *also* the keys of what the service may be besides;
        *seller_us* what time it is by the seller's clock, Unix microseconds.
        """
        self._flush(wait_s)
        with self._transaction(wait_s, write=False) as db:
            rows, clocks = self._undelivered(db, operation), self._clocks(db, now_us, seller_us)
            return View(
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
    ) -> Reserved | Twin:
        """Check every cap and reserve, in one atomic step.

        Returns a :class:`Twin` instead when the operation turned out to be open already.
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

        *carrier* is whoever may later :meth:`put_down` what was claimed.  *by_chain*: the chain
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
            value = self._vault().open(row.proof or b"", row.id)
            db.run("UPDATE payments SET flight=? WHERE id=?", self._me(), row.id)
            self._write(db, now_us, row.id, "represented", {"proof": row.proof_digest})
            self._flying[payment_id] = carrier  # if the commit fails the row names nobody
        return Proof(
            header=row.header or "", value=value, nonce=row.nonce, valid_before=row.valid_before
        )

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

    def put_down(self, payment_id: str, carrier: object = None, *, now_us: int) -> None:
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
        note = _text(note)
        with self._transaction(wait_s) as db:
            row = self._row(db, payment_id)
            mine = unsent and row.state == "held" and row.id in self._flying
            row = row if mine else self._reserved(db, payment_id)
            also = _NO_PROOF if mine else NOTHING_ELSE  # nobody may collect what is not counted
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
        note, transaction = _text(note), _text(transaction)
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

    # --- the owner's questions and orders

    def room(self, limits: Sequence[Limit], *, now_us: int, wait_s: float = WAIT_S) -> list[Spend]:
        """How far each limit is used, in the order given."""
        units = _counters.units(limits)
        for _ in range(3):
            self._know(units, wait_s)
            with self._transaction(wait_s, write=False) as db:
                if units <= set(db.all("SELECT scope, unit FROM meters")):
                    used = _counters.used(db, limits, now_us)
                    return [x.spend(now_us, u) for x, u in zip(limits, used, strict=True)]
            self._meters.clear()  # another database than a moment ago
        raise LedgerError("the counters of this ledger do not stay; see `x402-mask doctor`")

    def unnamed(self, limits: Sequence[Limit], *, wait_s: float = WAIT_S) -> list[Limit]:
        """The limits on services that no payment on this ledger counts for."""
        with self._transaction(wait_s, write=False) as db:
            return _counters.unnamed(db, limits)

    def payments(
        self,
        *,
        service: str | None = None,
        state: str | None = None,
        limit: int = 100,
        wait_s: float = WAIT_S,
    ) -> list[Payment]:
        """Payments, newest first."""
        where, params = _where(service=service, state=state)
        sql = f"SELECT {COLUMNS} FROM payments{where} ORDER BY seq DESC LIMIT ?"  # noqa: S608
        with self._transaction(wait_s, write=False) as db:
            known: dict[str, bool] = {}
            return [self._payment(db, Row.read(r), known) for r in db.all(sql, *params, limit)]

    def unresolved(self, networks: Iterable[str], *, wait_s: float = WAIT_S) -> list[Row]:
        """Held payments, and settlements on *networks* that no chain confirmed; oldest first."""
        chains = sorted(networks)
        settled = (
            f" OR (state='settled' AND seen=0 AND nonce IS NOT NULL AND network IN"
            f" ({', '.join('?' * len(chains))}))"
        )
        sql = (
            f"SELECT {COLUMNS} FROM payments WHERE state='held'"  # noqa: S608
            f"{settled if chains else ''} ORDER BY seq"
        )
        with self._transaction(wait_s, write=False) as db:
            return [Row.read(r) for r in db.all(sql, *chains)]

    def sweep(self, *, now_us: int, wait_s: float = WAIT_S) -> list[str]:
        """Release reservations of processes that died before their proof was stored."""
        self._flush(wait_s)
        with self._transaction(wait_s) as db:
            return self._sweep(db, now_us)

    def set_paused(self, paused: bool, *, now_us: int, wait_s: float = WAIT_S) -> None:  # noqa: FBT001
        """Pause or resume every process on this ledger, durably."""
        with self._transaction(wait_s, durable=True) as db:
            set_meta(db, "paused", "1" if paused else "")
            self._write(db, now_us, None, "paused" if paused else "resumed", {})

    def is_paused(self, *, wait_s: float = WAIT_S) -> bool:
        """Whether the ledger is paused."""
        with self._transaction(wait_s, write=False) as db:
            return self._is_paused(db)

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

    def payees(self, *, wait_s: float = WAIT_S) -> list[tuple[str, str, str, bool]]:
        """Every payee seen: origin (empty: at every one), service, address, trusted."""
        with self._transaction(wait_s, write=False) as db:
            return _payees.every(db)

    def breakers(self, *, now_us: int, wait_s: float = WAIT_S) -> dict[str, int]:
        """Origins whose breaker is open, and until when (microseconds)."""
        with self._transaction(wait_s, write=False) as db:
            found = db.all("SELECT origin, until FROM breakers WHERE until > ?", now_us)
            return {str(origin): whole(until) for origin, until in found}

    def history(self, *, wait_s: float = WAIT_S) -> list[dict[str, Any]]:
        """The append-only history, oldest first."""
        sql = "SELECT seq, at, payment, kind, data FROM history ORDER BY seq"
        with self._transaction(wait_s, write=False) as db:
            return [
                {
                    "seq": s,
                    "at": as_datetime(at).isoformat(),
                    "payment_id": p,
                    "kind": k,
                    **strict_json.loads(data),
                }
                for s, at, p, k, data in db.all(sql)
            ]

    # --- inside a transaction

    def _me(self) -> str:
        return self._self().owner

    def _self(self) -> _Self:
        known = (self._identity, os.getpid())
        found = _selves.get(known)
        if found is None:  # threads that come here together agree on one
            found = _selves.setdefault(known, _Self(self._new_owner()))
        return found

    @property
    def _flying(self) -> dict[str, object]:
        """Payments that calls of this process carry, and which call carries each."""
        return self._self().flying

    @property
    def _unwritten(self) -> dict[object, tuple[str, Result, int]]:
        return self._self().unwritten

    def _in_flight(self, db: Db, row: Row, known: dict[str, bool] | None = None) -> bool:
        """Whether a call carries the payment; *known* remembers other owners from row to row."""
        if row.flight is None:
            return False
        if row.flight == self._me():
            return self._is_carried(row.id)
        known = {} if known is None else known
        if row.flight not in known:
            known[row.flight] = self._is_alive(db, row.flight)
        return known[row.flight]

    def _is_paused(self, db: Db) -> bool:
        return bool(meta(db, "paused"))

    def _undelivered(self, db: Db, operation: str) -> list[Row]:
        sql = (
            f"SELECT {COLUMNS} FROM payments WHERE operation=? AND delivered=0"  # noqa: S608
            " AND state IN ('reserved','held','settled') ORDER BY seq DESC LIMIT 256"
        )
        return [Row.read(r) for r in db.all(sql, operation)]

    def _clocks(self, db: Db, now_us: int, seller_us: int | None = None) -> Clocks:
        return Clocks(now_us, seller_us, partial(self._database_us, db))

    def _twin(self, db: Db, rows: Sequence[Row], clocks: Clocks) -> Twin | None:
        busy, known = None, dict[str, bool]()
        for row in reversed(rows):
            by: Clock | None = "ours"
            if row.route == "token":
                idle = self._resumable(db, row)
            else:
                by = clocks.alive_by(row.valid_before) if row.is_live else None
                idle = by is not None
            if not (idle or row.is_live or row.state == "reserved"):
                continue  # what is carried is waited for, however long that takes
            if self._in_flight(db, row, known):
                busy = busy or Twin(row=row, busy=True)
            elif idle:
                return Twin(row=row, busy=False, by=by or "ours")
        return busy

    def _admit(self, db: Db, want: Reservation, breaker: Breaker | None) -> Twin | None:
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
            and not (row.route == "token" and self._resumable(db, row))
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
        dead = [row for row in idle if row.route != "token" or not self._is_purchase(db, row.id)]
        for row in dead:
            note = "its process ended before a proof was stored"
            self._move(db, row, "released", now_us, {"note": note}, note=note)
        return [row.id for row in dead]

    def _is_other(self, db: Db, owner: str) -> bool:
        """Whether *owner* is another process, and runs."""
        return owner != self._me() and self._is_alive(db, owner)

    def _insert(
        self,
        db: Db,
        want: Reservation,
        before: Mapping[str, int],
        proof: Proof | None,
        payee: str = "known",
    ) -> None:
        """The payment's row and its first entries of history; held at once with a *proof*."""
        others = want.others
        fixed = {
            "service": want.service,
            "origin": want.origin,
            "route": want.route,
            "micro": want.micro,
            "amount": str(want.amount),
            "asset": want.asset,
            "network": want.network,
            "payer": want.payer,
            "pay_to": want.pay_to,
            "operation": want.operation,
        }
        columns = {
            "id": want.id,
            "at": want.at,
            "updated": want.at,
            "flight": self._me(),
            "state": "reserved" if proof is None else "held",
            **fixed,
            "also": strict_json.dumps(others) if others else None,
            **(_NO_PROOF if proof is None else self._stored(proof, want.id)),
        }
        names, marks = ", ".join(columns), ", ".join("?" * len(columns))
        sql = f"INSERT INTO payments ({names}) VALUES ({marks})"  # noqa: S608
        db.run(sql, *columns.values())
        after = {name: used + want.micro for name, used in before.items()}
        also = {"also": others} if others else {}
        record = {**want.detail, **fixed, **also, "caps_before": before, "caps_after": after}
        record["payee"] = payee
        self._write(db, want.at, want.id, "reserved", record)
        if proof is not None:
            self._write(db, want.at, want.id, "held", {**_described(proof), "state": "held"})

    def _finish(
        self, db: Db, payment_id: str, result: Result, breaker: Breaker | None, now_us: int
    ) -> bool:
        row = self._row(db, payment_id)
        if row.state == "reserved" and row.route == "token" and self._is_purchase(db, row.id):
            db.run(
                "UPDATE payments SET flight=NULL WHERE id=?", row.id
            )  # an identical call goes on
            return False
        if row.state == "reserved":  # interrupted before its proof was stored
            note = _text(result.note)
            self._move(db, row, "released", now_us, {"note": note}, note=note)
            return False
        state: State = "settled" if result.outcome == "settled" else row.state
        if state not in MOVES[row.state]:
            return False  # reconciled meanwhile: the chain knows better
        note, transaction = _text(result.note), _text(result.transaction)
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
        reason = row.reason if result.lost else result.reason and _text(result.reason)
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
            self._forget_spent(db, row.id)
        return _trip(db, row.origin, result, breaker, now_us)

    def _count_besides(self, db: Db, row: Row, now_us: int, note: str) -> None:
        """Hold the price of *row* once more, for a payment that may have been made unheard.

        No cap is asked: what may have been spent counts, whether it was allowed or not.
        """
        want = Reservation(
            id=new_payment_id(now_us),
            at=row.at,
            service=row.service,
            origin=row.origin,
            operation=row.operation,
            keyed=False,
            route=row.route,
            micro=row.micro,
            amount=int(row.amount),
            asset=row.asset,
            network=row.network,
            payer=row.payer,
            pay_to=row.pay_to,
            limits=(),
            pin_payee=False,
            also=row.others,
            detail={"besides": row.id},
        )
        _counters.count(db, _sums.take(db, row.keys), row.at, 0, row.micro)
        self._insert(db, want, {}, None)
        held = self._reserved(db, want.id)
        self._move(db, held, "held", now_us, {**_described(None), "note": note}, note=note)

    def _hold(self, db: Db, row: Row, proof: Proof | None, now_us: int) -> None:
        also = NOTHING_ELSE if proof is None else self._stored(proof, row.id)
        self._move(db, row, "held", now_us, _described(proof), keep_flight=True, also=also)

    def _stored(self, proof: Proof, payment_id: str) -> dict[str, object]:
        """The columns that hold a proof."""
        return {
            "header": proof.header,
            "nonce": proof.nonce,
            "valid_before": proof.valid_before,
            "proof": self._vault().seal(proof.value, payment_id),
            "proof_digest": digest(proof.value),
        }

    def _move(  # noqa: PLR0913  # a keyword for each thing that changes with the state
        self,
        db: Db,
        row: Row,
        state: State,
        now_us: int,
        detail: Mapping[str, Any],
        *,
        note: str = "",
        kind: str | None = None,
        keep_flight: bool = False,
        also: Mapping[str, object] = NOTHING_ELSE,
    ) -> None:
        """The one place where a payment changes state, and its counters with it.

        *also* names further columns to set.
        """
        if state not in MOVES[row.state]:
            raise LedgerError(f"payment {row.id} cannot go from {row.state} to {state}")
        flight = row.flight if keep_flight else None
        db.run(
            f"UPDATE payments SET state=?, updated=?, note=?, flight=?{_set(also)} WHERE id=?",  # noqa: S608
            *(state, now_us, note, flight, *also.values(), row.id),
        )
        settled = (state == "settled") - (row.state == "settled")
        held = (state in ("reserved", "held")) - (row.state in ("reserved", "held"))
        if settled or held:
            meters = _sums.take(db, row.keys)
            _counters.count(db, meters, row.at, settled * row.micro, held * row.micro)
        self._write(db, now_us, row.id, kind or state, {**detail, "state": state})

    def _write(
        self, db: Db, now_us: int, payment_id: str | None, kind: str, data: Mapping[str, Any]
    ) -> None:
        """Append to the history, chained to the row before."""
        before, vault = _sums.last(db), self._vault()
        sums = _sums.after(db, vault, before, now_us)
        seq, mac, _ = before or (0, b"", None)
        self._goes_on(db, seq, mac)
        seq, text = seq + 1, strict_json.dumps(data)
        mac = vault.link(mac, _sums.record(seq, now_us, payment_id, kind, text, sums))
        db.run(
            "INSERT INTO history (seq, at, payment, kind, data, mac, sums)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            *(seq, now_us, payment_id, kind, text, mac, sums),
        )
        db.last = (seq, mac, sums)
        self._moved_head(seq, mac)

    def _sum_newer(self, db: Db, vault: Vault) -> None:
        """Let the sum over the counters begin with those that are open now; in a transaction."""
        _sums.check(db, vault)  # again: nothing is written over what somebody changed
        last = _sums.last(db)
        found = db.one("SELECT at FROM history ORDER BY seq DESC LIMIT 1")
        if last is None or found is None:
            return
        db.last = (*last[:2], str(_sums.added_up(db, vault, found[0])))
        self._write(db, found[0], None, "summed", {})

    def _goes_on(self, db: Db, seq: int, mac: bytes) -> None:  # optional for backends
        """Called before a row follows that one; a backend may know that others came after it."""

    def _moved_head(self, seq: int, mac: bytes) -> None:  # optional for backends
        """Called inside the transaction for every row of history; a backend may keep the head."""

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

    def _is_carried(self, payment_id: str) -> bool:
        """Whether a call of this process carries the payment, and still runs."""
        carrier = self._flying.get(payment_id, self)
        return carrier is not self and (not isinstance(carrier, Carrier) or carrier.is_running)

    @contextmanager
    def _carrying(self, payment_id: str, carrier: object) -> Iterator[None]:
        """This process carries the payment, from before others can see its row."""
        self._flying[payment_id] = carrier
        try:
            yield
        except BaseException:
            self._flying.pop(payment_id, None)
            raise

    def _row(self, db: Db, payment_id: str) -> Row:
        found = self._find(db, payment_id)
        if found is None:
            raise LedgerError(f"payment {payment_id} is not on this ledger")
        return found

    def _reserved(self, db: Db, payment_id: str) -> Row:
        row = self._row(db, payment_id)
        if row.state != "reserved":
            raise LedgerError(f"payment {payment_id} is {row.state}, not reserved")
        return row

    def _find(self, db: Db, payment_id: str) -> Row | None:
        found = db.one(f"SELECT {COLUMNS} FROM payments WHERE id=?", payment_id)  # noqa: S608
        return None if found is None else Row.read(found)

    def _payment(self, db: Db, row: Row, known: dict[str, bool]) -> Payment:
        return Payment(
            payment_id=row.id,
            state=row.state,
            service=row.service,
            origin=row.origin,
            route=row.route,
            usd=usd(row.micro),
            amount=int(row.amount),
            asset=row.asset,
            network=row.network,
            payer=row.payer,
            pay_to=row.pay_to,
            nonce=row.nonce,
            valid_before=None
            if row.valid_before is None
            else as_datetime(row.valid_before * SECOND),
            operation=row.operation,
            open=self._resumable(db, row)
            if row.route == "token"
            else row.proof is not None and not row.delivered and row.state in ("held", "settled"),
            outcome=row.outcome,
            transaction=row.trans,
            reason=row.reason,
            proof_digest=row.proof_digest,
            note=row.note or self._waits_for(db, row, known),
            at=as_datetime(row.at),
            updated_at=as_datetime(row.updated),
        )

    def _waits_for(self, db: Db, row: Row, known: dict[str, bool]) -> str:
        if row.state not in ("reserved", "held"):
            return ""
        if self._in_flight(db, row, known):
            return "in flight"
        if row.route == "token" and self._is_purchase(db, row.id):
            return "its marketplace payment is not finished; an identical call goes on with it"
        if row.state == "reserved":
            return "its process ended before a proof was stored; reconcile releases it"
        return "the seller has not said how it ended; reconcile asks the chain after it expires"


def contended(wait_s: float) -> LedgerError:
    """Others held the lock for all the time there was."""
    shown = f"{wait_s:.2g} s" if wait_s >= _WAITED_S else "all the time that this call waits"
    return LedgerError(f"the ledger was locked for {shown}; nothing was sent")


def reentered() -> LedgerError:
    """A signal handler or a finalizer came in the middle of a call of its own thread."""
    return LedgerError("the ledger is in use by this very thread; nothing was sent")


# --- pieces that need only a transaction ----------------------------------------------------------


def _described(proof: Proof | None) -> dict[str, Any]:
    """What the history says of a proof, or of money that moves without one."""
    if proof is None:
        return dict.fromkeys(("header", "proof", "nonce", "valid_before"))
    return {
        "header": proof.header,
        "proof": digest(proof.value),
        "nonce": proof.nonce,
        "valid_before": proof.valid_before,
    }


def _trip(db: Db, origin: str, result: Result, breaker: Breaker | None, now_us: int) -> bool:
    """Count a bad end, or forget them after a good one; whether the breaker opened now."""
    if breaker is None:
        return False
    if result.delivered or result.outcome == "settled":
        db.run("UPDATE breakers SET failures=0, until=0 WHERE origin=? AND failures>0", origin)
        return False
    db.run(
        "INSERT INTO breakers (origin, failures, until) VALUES (?, 1, 0)"
        " ON CONFLICT (origin) DO UPDATE SET failures=breakers.failures+1",
        origin,
    )
    found = db.one("SELECT failures FROM breakers WHERE origin=?", origin)
    if found is None or found[0] < breaker.failures:
        return False
    until = now_us + int(breaker.seconds * SECOND)
    db.run("UPDATE breakers SET failures=0, until=? WHERE origin=?", until, origin)
    return True


@overload
def _text(text: str) -> str: ...
@overload
def _text(text: str | None) -> str | None: ...
def _text(text: str | None) -> str | None:
    """Text that every database can store, and no longer than a note should be."""
    if text is None:
        return None
    return text.encode("utf-8", "replace").decode().replace("\0", "?")[:_TEXT_MAX]


def _set(columns: Mapping[str, object]) -> str:
    return "".join(f", {name}=?" for name in columns)


def _where(**wanted: str | None) -> tuple[str, list[str]]:
    given = {name: value for name, value in wanted.items() if value is not None}
    if not given:
        return "", []
    return " WHERE " + " AND ".join(f"{name}=?" for name in given), list(given.values())
