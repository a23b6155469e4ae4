"""What the ledger knows of marketplace payments: those being bought, and the tokens they gave.

A purchase goes through stages, each written down before the step it names::

    asked ─► created ─► paying ─► bought ─► closed
                 └─────────────────┘  a balance paid it

``asked``: the marketplace may have made a payment, whose id is not known; also again, after one
that came to nothing.  ``created``: its id is known and nothing was paid by us.  ``paying``: money
may have moved; never paid again.  ``bought``: the token is here.  ``closed``: nothing more can come
of it.

Where asking may be paying, the way is a purse from the start: see :data:`BalanceSource`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

from x402_mask._ledger.core import NOTHING_ELSE
from x402_mask._ledger.endings import Endings
from x402_mask._ledger.key import digest
from x402_mask._ledger.records import Proof
from x402_mask._ledger.token_rows import is_resumable, usable_token
from x402_mask._ledger.waiting import WAIT_S

if TYPE_CHECKING:
    from collections.abc import Mapping

    from x402_mask._ledger.records import Db, Row
    from x402_mask._models import State

Stage = Literal["asked", "created", "paying", "bought", "closed"]
BalanceSource = Literal["account", "balance"]
"""Whose balance may pay a payment because it is asked for: ``account``, that of an account which
the request or the owner names, or which has paid at the origin before; ``balance``, whoever's it
is, since nothing here can pay in any other way."""
Way = BalanceSource | Literal["x402", "transfer", "settle"]


TERMS: Final = ("network", "asset", "amount", "pay_to")
"""What is signed of a payment, as its columns are called."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A payment that the marketplace is asked for, or after, if its id *remote* is known.

    ``at`` is when it was asked for, in microseconds; ``purse`` is set where asking may be paying;
    ``took`` names the payment of an identical call that had created it.
    """

    remote: str | None
    at: int
    purse: BalanceSource | None
    took: str | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Begun:
    """A purchase that was begun, as far as the ledger knows it.

    ``remote`` is its id at the marketplace; ``at`` when it was asked for and ``until`` when it
    expires there, in microseconds; ``purse`` as in :class:`Asked`; ``proof`` what was, or may have
    been, presented to the payments endpoint; ``behind_us`` how far the database's clock is behind
    ours.
    """

    row: Row
    stage: Stage
    at: int
    purse: BalanceSource | None
    way: Way | None
    remote: str | None
    until: int | None
    behind_us: int
    proof: Proof | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bought:
    """A token, and what the marketplace said of it; ``calls`` is ``UNLIMITED`` where it is."""

    token: str = field(repr=False)
    calls: int
    until: int | None
    settled: bool
    transaction: str | None = None
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Held:
    """One call of a token that was paid for earlier; ``row`` is the payment that bought it."""

    row: Row
    token: str = field(repr=False)


class TokenBook(Endings):
    """The part of a ledger that keeps purchases and tokens."""

    def ask_payment(
        self,
        payment_id: str,
        *,
        purse: BalanceSource | None = None,
        now_us: int,
        wait_s: float = WAIT_S,
    ) -> Asked:
        """The marketplace is about to be asked for a payment, which *purse* may pay at once.

        Or after one that an identical call created and nobody paid, which this purchase takes over.
        Durable: from here on the reservation is not given back without an answer.
        """
        with self._transaction(wait_s, durable=True) as db:
            row = self._reserved(db, payment_id)
            purse = _balance_source(db, row.origin, purse)
            asked = _taken_over(db, row, purse) or Asked(None, now_us, purse)
            self._ask(db, row, asked, now_us)
        return asked

    def ask_anew(
        self,
        payment_id: str,
        *,
        purse: BalanceSource | None = None,
        now_us: int,
        wait_s: float = WAIT_S,
    ) -> Asked:
        """Nothing can come of the payment that was asked for; another is about to be."""
        with self._transaction(wait_s, durable=True) as db:
            row = self._reserved(db, payment_id)
            _note_lost(db, payment_id)
            asked = Asked(None, now_us, _balance_source(db, row.origin, purse))
            self._ask(db, row, asked, now_us)
        return asked

    def _ask(self, db: Db, row: Row, asked: Asked, now_us: int) -> None:
        db.run(
            "INSERT INTO purchases (payment, stage, way, remote, at) VALUES (?, ?, ?, ?, ?)"
            " ON CONFLICT (payment) DO UPDATE SET stage=excluded.stage, way=excluded.way,"
            " remote=excluded.remote, until=NULL, at=excluded.at",
            row.id,
            "asked" if asked.remote is None else "created",
            *(asked.purse, asked.remote, asked.at),
        )
        took = {} if asked.took is None else {"took": asked.took}
        detail = {"remote": asked.remote, "purse": asked.purse, **took}
        self._write(db, now_us, row.id, "asked", detail)

    def note_created(
        self,
        payment_id: str,
        remote: str,
        until: int | None,
        *,
        way: Way | None = None,
        now_us: int,
        wait_s: float = WAIT_S,
    ) -> None:
        """The marketplace named the payment, or named it anew; *way* is how it wants to be paid."""
        with self._transaction(wait_s) as db:
            db.run(
                "UPDATE purchases SET remote=?, until=?, way=COALESCE(?, way), stage=CASE stage"
                " WHEN 'asked' THEN 'created' ELSE stage END WHERE payment=?",
                *(remote, until, way, payment_id),
            )
            data = {"remote": remote, "until": until}
            self._write(db, now_us, payment_id, "created", data)

    def hold_purchase(
        self,
        payment_id: str,
        way: Way,
        proof: Proof | None,
        terms: Mapping[str, object] = NOTHING_ELSE,
        *,
        now_us: int,
        wait_s: float = WAIT_S,
    ) -> None:
        """Money may move from here on; *proof*, if there is one, is stored encrypted.

        *terms* are what is signed: network, asset, amount and payee, which the row names from here
        on. Where the 402 named a price alone, only now they are known.

        Raises:
            LedgerError: it could not be recorded, or the reservation is gone.
        """
        with self._transaction(wait_s, durable=True) as db:
            row = self._reserved(db, payment_id)
            self._write(db, now_us, payment_id, "paying", {"way": way, **terms})
            if terms:
                sql = "UPDATE payments SET network=?, asset=?, amount=?, pay_to=? WHERE id=?"
                db.run(sql, *(terms[name] for name in TERMS), payment_id)
            self._hold(db, row, proof, now_us)
            db.run("UPDATE purchases SET stage='paying', way=? WHERE payment=?", way, payment_id)
            if way == "balance":
                self._found_balance(db, row, now_us)

    def _found_balance(self, db: Db, row: Row, now_us: int) -> None:
        """A balance paid: also, perhaps, what was asked for under this reservation and lost."""
        _note_balance(db, row.origin)
        note = f"its answer was lost, and a balance may have paid it: it paid {row.id}"
        for _ in range(_take_lost(db, row.id)):
            self._count_besides(db, row, now_us, note)

    def store_token(
        self, payment_id: str, bought: Bought, *, now_us: int, wait_s: float = WAIT_S
    ) -> None:
        """The marketplace says *paid* and gave a token; one of its calls is this operation's."""
        sealed = self._ledger_key().seal(bought.token, token_label(payment_id))
        with self._transaction(wait_s, durable=True) as db:
            row = self._row(db, payment_id)
            if row.state == "reserved":  # a balance paid: nothing was signed, the money is gone
                self._hold(db, row, None, now_us)
                db.run("UPDATE purchases SET way='balance' WHERE payment=?", payment_id)
                self._found_balance(db, row, now_us)
                row = self._row(db, payment_id)
            self._write_bought(db, row, bought, now_us)
            left = bought.calls - 1 if bought.calls > 0 else bought.calls
            db.run(
                "INSERT INTO tokens (payment, origin, service, sealed, digest, calls, until, live,"
                " at) VALUES (?, ?, ?, ?, ?, ?, ?, 1, ?)",
                *(payment_id, row.origin, row.service, sealed, digest(bought.token), left),
                *(bought.until, now_us),
            )
            db.run("UPDATE purchases SET stage='bought' WHERE payment=?", payment_id)

    def _write_bought(self, db: Db, row: Row, bought: Bought, now_us: int) -> None:
        state: State = "settled" if bought.settled else row.state
        data = {
            "transaction": bought.transaction,
            "token": digest(bought.token),
            "calls": bought.calls,
            "note": bought.note,
        }
        self._move(db, row, state, now_us, data, note=bought.note, kind="bought", keep_flight=True)
        db.run(
            "UPDATE payments SET trans=COALESCE(trans, ?) WHERE id=?", bought.transaction, row.id
        )

    def give_up(self, payment_id: str, note: str, *, now_us: int, wait_s: float = WAIT_S) -> None:
        """Nothing more can come of a purchase that was paid for: an identical call buys anew."""
        with self._transaction(wait_s) as db:
            db.run("UPDATE purchases SET stage='closed' WHERE payment=?", payment_id)
            self._write(db, now_us, payment_id, "closed", {"note": note})

    def claim_purchase(
        self, payment_id: str, carrier: object, *, now_us: int, wait_s: float = WAIT_S
    ) -> Begun | None:
        """Take an open purchase in hand, to go on with it; ``None`` if another call has it.

        Raises:
            LedgerError: what was stored cannot be decrypted.
        """
        self._flush(wait_s)
        with self._transaction(wait_s) as db:
            row = self._row(db, payment_id)
            if not is_resumable(db, row) or self._in_flight(db, row):
                return None
            found = db.one(
                "SELECT stage, at, way, remote, until FROM purchases WHERE payment=?", payment_id
            )
            assert found is not None  # or it were not resumable
            database_us = self._database_us(db)
            behind_us = 0 if database_us is None else max(0, now_us - database_us)
            purchase = self._unsealed(db, row, behind_us, *found)
            db.run("UPDATE payments SET flight=? WHERE id=?", self._me(), row.id)
            self._write(db, now_us, row.id, "represented", {"stage": purchase.stage})
            self._flying[payment_id] = carrier
        return purchase

    def _unsealed(  # what the columns of a purchase say
        self,
        db: Db,
        row: Row,
        behind_us: int,
        stage: Any,
        at: int,
        way: Any,
        remote: str | None,
        until: int | None,
    ) -> Begun:
        token = db.one("SELECT sealed FROM tokens WHERE payment=? AND sealed IS NOT NULL", row.id)
        proof = None
        if row.proof is not None:
            value = self._ledger_key().open(row.proof, row.id)
            proof = Proof(
                header=row.header or "",
                value=value,
                nonce=row.nonce,
                valid_before=row.valid_before,
            )
        label = token_label(row.id)
        return Begun(
            row=row,
            stage=stage,
            at=at,
            way=way,
            purse=_balance_source(db, row.origin, way if way in get_args(BalanceSource) else None),
            remote=remote,
            until=until,
            behind_us=behind_us,
            proof=proof,
            token=None if token is None else self._ledger_key().open(token[0], label),
        )

    # --- tokens with calls left

    def take_token(
        self, origin: str, service: str, *, now_us: int, wait_s: float = WAIT_S
    ) -> Held | None:
        """Take one call of a token that has calls left and is not expired, the oldest first."""
        with self._transaction(wait_s, write=False) as db:  # most often there is none
            if usable_token(db, origin, service, now_us) is None:
                return None
        with self._transaction(wait_s) as db:
            found = usable_token(db, origin, service, now_us)
            if found is None or self._is_paused(db):
                return None
            payment_id, sealed = found
            token = self._ledger_key().open(sealed, token_label(payment_id))
            db.run("UPDATE tokens SET calls=calls-1 WHERE payment=? AND calls>0", payment_id)
            self._write(db, now_us, payment_id, "token_used", {})
            return Held(row=self._row(db, payment_id), token=token)

    def return_call(self, payment_id: str, *, now_us: int, wait_s: float = WAIT_S) -> None:
        """The call that :meth:`take_token` took brought nothing: it may be presented again."""
        with self._transaction(wait_s) as db:
            db.run(
                "UPDATE tokens SET calls=calls+1 WHERE payment=? AND live=1 AND calls>=0",
                payment_id,
            )
            self._write(db, now_us, payment_id, "token_returned", {})

    def held_tokens(self, *, now_us: int, wait_s: float = WAIT_S) -> frozenset[tuple[str, str]]:
        """Origin and service of every token that has calls left."""
        sql = (
            "SELECT DISTINCT origin, service FROM tokens WHERE live=1 AND calls<>0"
            " AND (until IS NULL OR until>?)"
        )
        with self._transaction(wait_s, write=False) as db:
            return frozenset((origin, service) for origin, service in db.all(sql, now_us))

    def drop_token(
        self, payment_id: str, note: str, *, now_us: int, wait_s: float = WAIT_S
    ) -> None:
        """The token is spent, expired or refused: forget it.

        The operation that bought it, if it was not delivered, is as open as before.
        """
        with self._transaction(wait_s) as db:
            db.run("UPDATE tokens SET live=0, sealed=NULL WHERE payment=?", payment_id)
            self._write(db, now_us, payment_id, "token_dropped", {"note": note})


def _balance_source(db: Db, origin: str, purse: BalanceSource | None) -> BalanceSource | None:
    """*purse*, unless a balance that is not this wallet's has ever paid a payment of *origin*."""
    known = db.one("SELECT 1 FROM meta WHERE name=?", _balance_of(origin))
    return purse if known is None else "account"


def _note_balance(db: Db, origin: str) -> None:
    sql = "INSERT INTO meta (name, value) VALUES (?, 'pays') ON CONFLICT (name) DO NOTHING"
    db.run(sql, _balance_of(origin))


def _note_lost(db: Db, payment_id: str) -> None:
    """What was asked for last, if its answer was lost, may turn out to have been paid."""
    sql = "SELECT 1 FROM purchases WHERE payment=? AND stage='asked' AND remote IS NULL"
    if db.one(sql, payment_id) is not None:
        db.run(
            "INSERT INTO meta (name, value) VALUES (?, '1') ON CONFLICT (name)"
            " DO UPDATE SET value=CAST(CAST(meta.value AS BIGINT) + 1 AS TEXT)",
            _lost_of(payment_id),
        )


def _take_lost(db: Db, payment_id: str) -> int:
    """How many were lost; none from now on."""
    found = db.one("SELECT value FROM meta WHERE name=?", _lost_of(payment_id))
    if found is None:
        return 0
    db.run("DELETE FROM meta WHERE name=?", _lost_of(payment_id))
    return int(found[0])


def _lost_of(payment_id: str) -> str:
    return f"lost {payment_id}"


def _balance_of(origin: str) -> str:
    return f"balance {origin}"


def _taken_over(db: Db, row: Row, purse: BalanceSource | None) -> Asked | None:
    """What an identical call left created and unpaid; from now on this purchase alone follows it.

    One that asked for a signature is left alone: only creating it anew does so again.
    """
    found = db.one(
        "SELECT payment, remote, way, purchases.at FROM purchases JOIN payments ON id=payment"
        " WHERE operation=? AND origin=? AND state='released' AND stage='created'"
        " AND (way IS NULL OR way IN ('account', 'balance')) ORDER BY seq DESC LIMIT 1",
        *(row.operation, row.origin),
    )
    if found is None:
        return None
    payment, remote, way, at = found
    db.run("UPDATE purchases SET stage='closed' WHERE payment=?", payment)
    purse = "account" if "account" in (way, purse) else way or purse
    return Asked(str(remote), int(at), purse, took=payment)


def token_label(payment_id: str) -> str:
    """What a sealed token is bound to, so that it cannot pass for a proof."""
    return f"token {payment_id}"
