"""The ledger's book of on-chain transfers: each signed transaction, stored before it is broadcast.

A payment has at most one *transfer*: one account nonce on one network, signed once or several times
(a replacement has higher fees and the same nonce, so only one of them can ever be mined).  Because
a transfer is stored durably before its bytes leave the process, and a payment never gets a second
nonce, no crash and no lost answer can pay twice::

    open ──► mined        seen in a block; the nonce is used
     ├─────► failed       reverted, as proven at depth: no money moved
     └─────► displaced    another transaction used the nonce, as proven at depth

From one address on one network at most one transfer is open: its nonce is known to be the next.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

from x402_mask._ledger.core import LedgerCore
from x402_mask._ledger.waiting import WAIT_S
from x402_mask.errors import LedgerError

if TYPE_CHECKING:
    from x402_mask._ledger.records import Db, Row
    from x402_mask._models import State

Progress = Literal["open", "mined", "failed", "displaced"]

MAY_SEND: Final = ("held", "settled")
"""States of a payment whose transfer may be sent: it is counted."""

_INT_MAX: Final = (1 << 63) - 1
_ADDRESS: Final = re.compile(r"0x[0-9a-fA-F]{40}")
_NETWORK: Final = re.compile(r"eip155:[1-9][0-9]{0,18}")
_HASH: Final = re.compile(r"0x[0-9a-f]{64}")
_RAW: Final = re.compile(r"0x([0-9a-f]{2})+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What a transfer is to do: move ``amount`` atomic units of ``asset`` from payer to payee.

    Raises:
        ValueError: a network, address or amount that is none.
    """

    payment_id: str
    network: str
    asset: str
    payer: str
    pay_to: str
    amount: int

    def __post_init__(self) -> None:
        if not _NETWORK.fullmatch(self.network):
            raise ValueError("network is not an EVM network in CAIP-2 form")
        for name in ("asset", "payer", "pay_to"):
            if not _ADDRESS.fullmatch(getattr(self, name)):
                raise ValueError(f"{name} is not an address")
        if type(self.amount) is not int or not 0 < self.amount < 1 << 256:
            raise ValueError("amount is not an integer from 1 to 2**256 - 1")

    @property
    def chain_id(self) -> int:
        """The EVM chain id."""
        return int(self.network.partition(":")[2])


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedTransfer:
    """One signed transaction that does what ``terms`` say.

    ``raw`` is its bytes in hex, worth money and never shown; ``max_gas_wei`` is the most that it
    can cost, in wei; ``first_block`` is a block before it was signed.

    Raises:
        ValueError: a number or hex that no ledger could store.
    """

    terms: Terms
    nonce: int
    hash: str
    raw: str = field(repr=False)
    max_gas_wei: int
    first_block: int

    def __post_init__(self) -> None:
        for name in ("nonce", "first_block"):
            if not 0 <= getattr(self, name) < _INT_MAX:
                raise ValueError(f"{name} is out of range")
        if self.max_gas_wei < 0 or not _HASH.fullmatch(self.hash) or not _RAW.fullmatch(self.raw):
            raise ValueError("not a signed transaction")


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTransfer:
    """What is stored of a payment's transfer; ``attempts`` oldest first, at least one.

    ``payment`` is the payment's own state; ``last_at`` is when the latest attempt was stored, Unix
    microseconds.
    """

    terms: Terms
    nonce: int
    state: Progress
    payment: State
    attempts: tuple[SignedTransfer, ...]
    last_at: int

    @property
    def last(self) -> SignedTransfer:
        """The latest attempt."""
        return self.attempts[-1]

    @property
    def hashes(self) -> tuple[str, ...]:
        """The transaction hash of every attempt."""
        return tuple(attempt.hash for attempt in self.attempts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How far one address has got on one network.

    ``waiting`` is the payment whose transfer is open; ``last`` the one that has the highest nonce
    stored, ``nonce``, which is -1 where nothing is stored.
    """

    waiting: str | None
    last: str | None
    nonce: int


class TransferBook(LedgerCore):
    """The part of a ledger that stores transfers; mixed into :class:`Ledger`."""

    def hold_transfer(
        self, payment_id: str, signed: SignedTransfer, *, now_us: int, wait_s: float = WAIT_S
    ) -> bool:
        """Store the signed transaction, encrypted and durably: from here on it may be broadcast.

        Returns ``False``, and stores nothing, if another payment's transfer from that address is
        open or its nonce is not above every stored one: the caller prepares again.

        Raises:
            LedgerError: it could not be stored, the reservation is gone, or it was made for other
                terms than these.
        """
        sealed = self._sealed(signed, 0)
        with self._transaction(wait_s, durable=True) as db:
            row = self._reserved(db, payment_id)
            _check_terms(row, signed.terms)
            if not _is_next(db, signed):
                return False
            detail = {
                **_shown(signed, 0),
                "proof": None,
                "header": None,
                "nonce": str(signed.nonce),
                "valid_before": None,
            }
            self._move(db, row, "held", now_us, detail, keep_flight=True)
            db.run("UPDATE payments SET nonce=? WHERE id=?", str(signed.nonce), payment_id)
            sql = "UPDATE purchases SET stage='paying', way='transfer' WHERE payment=?"
            db.run(sql, payment_id)
            _insert(db, signed, 0, sealed, now_us)
        return True

    def add_attempt(
        self, signed: SignedTransfer, attempt: int, *, now_us: int, wait_s: float = WAIT_S
    ) -> bool:
        """Store a replacement durably, before it is broadcast.

        Returns ``False``, and stores nothing, if *attempt* is not the next one (another process
        has replaced it meanwhile) or the transfer is no longer open.

        Raises:
            LedgerError: it could not be stored, or is no replacement of what is stored.
        """
        payment_id = signed.terms.payment_id
        sealed = self._sealed(signed, attempt)
        with self._transaction(wait_s, durable=True) as db:
            row = self._row(db, payment_id)
            _check_terms(row, signed.terms)
            known = db.all("SELECT nonce, state FROM transfers WHERE payment=?", payment_id)
            if not known or any(nonce != signed.nonce for nonce, _ in known):
                raise LedgerError(f"payment {payment_id} has no transfer with that nonce")
            is_open = row.state in MAY_SEND and all(state == "open" for _, state in known)
            if attempt != len(known) or not is_open:
                return False
            self._write(db, now_us, payment_id, "transfer_replaced", _shown(signed, attempt))
            _insert(db, signed, attempt, sealed, now_us)
        return True

    def transfer_of(self, payment_id: str, *, wait_s: float = WAIT_S) -> StoredTransfer | None:
        """What is stored of this payment's transfer, or ``None``.

        Raises:
            LedgerError: it cannot be read or decrypted.
        """
        sql = (
            "SELECT attempt, nonce, hash, raw, max_gas, first_block, state, at FROM transfers"
            " WHERE payment=? ORDER BY attempt"
        )
        with self._transaction(wait_s, write=False) as db:
            rows = db.all(sql, payment_id)
            row = self._row(db, payment_id) if rows else None
        terms = None if row is None else _terms(row)
        if row is None or terms is None:
            return None
        ledger_key = self._ledger_key()
        attempts = tuple(
            SignedTransfer(
                terms=terms,
                nonce=nonce,
                hash=name,
                max_gas_wei=int(gas),
                first_block=block,
                raw=ledger_key.open(raw, transfer_label(payment_id, attempt)),
            )
            for attempt, nonce, name, raw, gas, block, _, _ in rows
        )
        return StoredTransfer(
            terms=terms,
            nonce=attempts[0].nonce,
            state=rows[0][6],
            payment=row.state,
            attempts=attempts,
            last_at=rows[-1][7],
        )

    def standing(self, network: str, payer: str, *, wait_s: float = WAIT_S) -> Standing:
        """Which transfer from *payer* is open, and which was the last."""
        with self._transaction(wait_s, write=False) as db:
            return _standing(db, network, payer)

    def close_transfer(
        self,
        payment_id: str,
        state: Progress,
        transaction: str | None,
        *,
        now_us: int,
        wait_s: float = WAIT_S,
    ) -> None:
        """Record that the nonce is used, and by which transaction; the payment itself is not moved.

        ``mined`` may be corrected, for a block can be replaced by another; ``failed`` and
        ``displaced`` were proven at depth and stay.
        """
        if state not in get_args(Progress):
            raise ValueError(f"not how a transfer ends: {state}")
        with self._transaction(wait_s) as db:
            sql = (
                "UPDATE transfers SET state=? WHERE payment=? AND state<>?"
                " AND state IN ('open', 'mined')"
            )
            if db.run(sql, state, payment_id, state):
                detail = {"transfer": state, "transaction": transaction}
                self._write(db, now_us, payment_id, "transfer_closed", detail)

    def _sealed(self, signed: SignedTransfer, attempt: int) -> bytes:
        return self._ledger_key().seal(signed.raw, transfer_label(signed.terms.payment_id, attempt))


def transfer_label(payment_id: str, attempt: int) -> str:
    """What the encryption of a stored transaction is bound to."""
    return f"{payment_id}/transfer/{attempt}"


def _standing(db: Db, network: str, payer: str) -> Standing:
    sql = "SELECT payment, nonce FROM transfers WHERE network=? AND payer=?{} ORDER BY nonce {}"
    where = (network, payer.lower())
    waiting = db.one(sql.format(" AND state='open'", "LIMIT 1"), *where)
    last = db.one(sql.format("", "DESC LIMIT 1"), *where)
    return Standing(
        waiting=None if waiting is None else waiting[0],
        last=None if last is None else last[0],
        nonce=-1 if last is None else last[1],
    )


def _is_next(db: Db, signed: SignedTransfer) -> bool:
    now = _standing(db, signed.terms.network, signed.terms.payer)
    return now.waiting is None and signed.nonce > now.nonce


def _insert(db: Db, signed: SignedTransfer, attempt: int, sealed: bytes, now_us: int) -> None:
    db.run(
        "INSERT INTO transfers (payment, attempt, network, payer, nonce, hash, raw, max_gas,"
        " first_block, state, at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, 'open', ?)",
        signed.terms.payment_id,
        attempt,
        signed.terms.network,
        signed.terms.payer.lower(),
        signed.nonce,
        signed.hash,
        sealed,
        str(signed.max_gas_wei),
        signed.first_block,
        now_us,
    )


def _shown(signed: SignedTransfer, attempt: int) -> dict[str, Any]:
    """What the history says of an attempt; its bytes are not in it."""
    return {
        "transaction": signed.hash,
        "attempt": attempt,
        "max_gas_wei": str(signed.max_gas_wei),
    }


def _terms(row: Row) -> Terms | None:
    if row.network is None or row.asset is None or row.payer is None or row.pay_to is None:
        return None
    return Terms(
        payment_id=row.id,
        network=row.network,
        asset=row.asset,
        payer=row.payer,
        pay_to=row.pay_to,
        amount=int(row.amount),
    )


def _check_terms(row: Row, terms: Terms) -> None:
    """The ledger stores what does what was reserved, and nothing else.

    Raises:
        LedgerError: it does something else.
    """
    reserved = _terms(row)
    if reserved is None or _plain(reserved) != _plain(terms):
        raise LedgerError(f"payment {row.id} was not reserved for that transfer")


def _plain(terms: Terms) -> tuple[str, str, str, str, str, int]:
    addresses = (terms.asset.lower(), terms.payer.lower(), terms.pay_to.lower())
    return terms.payment_id, terms.network, *addresses, terms.amount
