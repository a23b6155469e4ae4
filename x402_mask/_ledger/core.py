"""What every part of a ledger builds on: transactions, payments that move, the history.

A ledger is put together of parts, each with tables of its own or questions of its own: reservations
(``_ledger.reserving``), ends of calls (``_ledger.endings``), marketplace purchases and tokens
(``_ledger.purchases``), transfers on chain (``_ledger.transfers``), and what the owner asks
(``_ledger.questions``).  A backend adds a connection and transactions.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, overload

from x402_mask._ledger import counters as _counters
from x402_mask._ledger import sums as _sums
from x402_mask._ledger.carrier import Carrier
from x402_mask._ledger.key import digest
from x402_mask._ledger.records import COLUMNS, MOVES, Reservation, Row, new_payment_id
from x402_mask._ledger.schema import meta
from x402_mask._policy.clocks import Clocks
from x402_mask._wire import strict_json
from x402_mask.errors import LedgerError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from contextlib import AbstractContextManager

    from x402_mask._ledger.head import HeadFile
    from x402_mask._ledger.key import LedgerKey
    from x402_mask._ledger.past import Past
    from x402_mask._ledger.records import Db, Proof, Result
    from x402_mask._models import State

NOTHING_ELSE: Final[Mapping[str, object]] = MappingProxyType({})
NO_PROOF: Final[Mapping[str, object]] = MappingProxyType(
    dict.fromkeys(("header", "proof", "proof_digest", "nonce", "valid_before"))
)

_TEXT_MAX: Final = 1000


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


class LedgerCore(ABC):
    """The part of a ledger that its other parts are written in terms of."""

    # --- what a backend provides

    @abstractmethod
    def _transaction(
        self, wait_s: float, *, write: bool = True, durable: bool = False
    ) -> AbstractContextManager[Db]:
        """A transaction; *durable*: on return it survives a power cut."""

    @abstractmethod
    def _ledger_key(self) -> LedgerKey:
        """The key of this ledger."""

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

    def _goes_on(self, db: Db, seq: int, mac: bytes) -> None:  # noqa: B027  # optional for backends
        """Called before a row follows that one; a backend may know that others came after it."""

    def _moved_head(self, seq: int, mac: bytes) -> None:  # noqa: B027  # optional for backends
        """Called inside the transaction for every row of history; a backend may keep the head."""

    # --- this process, and the calls it carries

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

    # --- rows

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

    def _is_paused(self, db: Db) -> bool:
        return bool(meta(db, "paused"))

    def _clocks(self, db: Db, now_us: int, seller_us: int | None = None) -> Clocks:
        return Clocks(now_us, seller_us, partial(self._database_us, db))

    # --- payments that move

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
            **(NO_PROOF if proof is None else self._stored(proof, want.id)),
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
            "proof": self._ledger_key().seal(proof.value, payment_id),
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

    # --- the history

    def _write(
        self, db: Db, now_us: int, payment_id: str | None, kind: str, data: Mapping[str, Any]
    ) -> None:
        """Append to the history, chained to the row before."""
        before, ledger_key = _sums.last(db), self._ledger_key()
        sums = _sums.after(db, ledger_key, before, now_us)
        seq, mac, _ = before or (0, b"", None)
        self._goes_on(db, seq, mac)
        seq, text = seq + 1, strict_json.dumps(data)
        mac = ledger_key.link(mac, _sums.record(seq, now_us, payment_id, kind, text, sums))
        db.run(
            "INSERT INTO history (seq, at, payment, kind, data, mac, sums)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            *(seq, now_us, payment_id, kind, text, mac, sums),
        )
        db.last = (seq, mac, sums)
        self._moved_head(seq, mac)

    def _sum_newer(self, db: Db, ledger_key: LedgerKey) -> None:
        """Let the sum over the counters begin with those that are open now; in a transaction."""
        _sums.check(db, ledger_key)  # again: nothing is written over what somebody changed
        last = _sums.last(db)
        found = db.one("SELECT at FROM history ORDER BY seq DESC LIMIT 1")
        if last is None or found is None:
            return
        db.last = (*last[:2], str(_sums.added_up(db, ledger_key, found[0])))
        self._write(db, found[0], None, "summed", {})


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


@overload
def storable(text: str) -> str: ...
@overload
def storable(text: str | None) -> str | None: ...
def storable(text: str | None) -> str | None:
    """Text that every database can store, and no longer than a note should be."""
    if text is None:
        return None
    return text.encode("utf-8", "replace").decode().replace("\0", "?")[:_TEXT_MAX]


def _set(columns: Mapping[str, object]) -> str:
    return "".join(f", {name}=?" for name in columns)
