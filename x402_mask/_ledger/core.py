"""What every part of a ledger builds on: transactions, payments that move, the history.

A ledger is put together of parts, each with tables of its own: payments (``_ledger.ledger``),
marketplace purchases and tokens (``_ledger.purchases``), transfers on chain
(``_ledger.transfers``).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextlib import AbstractContextManager

    from x402_mask._ledger.key import Vault
    from x402_mask._ledger.records import Db, Proof, Row
    from x402_mask._models import State

WAIT_S: Final = 5.0
"""How long a reservation waits for a contended lock: measured with 64 writers on one SQLite file,
5 s fails none of 384 reservations (worst wait 0.64 s) where 0.5 s fails 12."""

NOTHING_ELSE: Final[Mapping[str, object]] = MappingProxyType({})


class Book(ABC):
    """The part of a ledger that its other parts are written in terms of."""

    @abstractmethod
    def _transaction(
        self, wait_s: float, *, write: bool = True, durable: bool = False
    ) -> AbstractContextManager[Db]:
        """A transaction; *durable*: on return it survives a power cut."""

    @abstractmethod
    def _vault(self) -> Vault:
        """The key of this ledger."""

    @property
    @abstractmethod
    def _flying(self) -> dict[str, object]:
        """Payments that calls of this process carry, and which call carries each."""

    @abstractmethod
    def _me(self) -> str:
        """What this process is called."""

    @abstractmethod
    def _database_us(self, db: Db) -> int | None:
        """Unix microseconds by the database's own clock, where that is not this machine's."""

    @abstractmethod
    def _flush(self, wait_s: float) -> None:
        """Write the ends of calls that could not be written when they happened."""

    @abstractmethod
    def _is_paused(self, db: Db) -> bool:
        """Whether the owner forbids every payment."""

    @abstractmethod
    def _row(self, db: Db, payment_id: str) -> Row:
        """The payment, which is there."""

    @abstractmethod
    def _reserved(self, db: Db, payment_id: str) -> Row:
        """The payment, which is reserved: nothing was signed for it yet."""

    @abstractmethod
    def _in_flight(self, db: Db, row: Row, known: dict[str, bool] | None = None) -> bool:
        """Whether a call carries the payment; *known* remembers other owners from row to row."""

    @abstractmethod
    def _hold(self, db: Db, row: Row, proof: Proof | None, now_us: int) -> None:
        """Money may move from here on, by *proof* if there is one, which is stored encrypted."""

    @abstractmethod
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

    @abstractmethod
    def _count_besides(self, db: Db, row: Row, now_us: int, note: str) -> None:
        """Hold the price of *row* once more, for a payment that may have been made unheard."""

    @abstractmethod
    def _write(
        self, db: Db, now_us: int, payment_id: str | None, kind: str, data: Mapping[str, Any]
    ) -> None:
        """Append to the history, chained to the row before."""
