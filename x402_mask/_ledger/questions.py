"""What the owner asks of a ledger; nothing here changes a payment."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from x402_mask._ledger import breakers as _breakers
from x402_mask._ledger import counters as _counters
from x402_mask._ledger import payees as _payees
from x402_mask._ledger.records import COLUMNS, Row
from x402_mask._ledger.reserving import Reserving
from x402_mask._ledger.token_rows import is_purchase, is_resumable
from x402_mask._ledger.waiting import WAIT_S
from x402_mask._models import Payment
from x402_mask._money import SECOND, usd
from x402_mask._policy.caps import as_datetime
from x402_mask._wire import strict_json
from x402_mask.errors import LedgerError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from x402_mask._ledger.records import Db
    from x402_mask._models import Spend
    from x402_mask._policy.caps import Limit


class Questions(Reserving):
    """The part of a ledger that answers its owner."""

    def spend(self, limits: Sequence[Limit], *, now_us: int, wait_s: float = WAIT_S) -> list[Spend]:
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

    def is_paused(self, *, wait_s: float = WAIT_S) -> bool:
        """Whether the ledger is paused."""
        with self._transaction(wait_s, write=False) as db:
            return self._is_paused(db)

    def payees(self, *, wait_s: float = WAIT_S) -> list[tuple[str, str, str, bool]]:
        """Every payee seen: origin (empty: at every one), service, address, trusted."""
        with self._transaction(wait_s, write=False) as db:
            return _payees.every(db)

    def breakers(self, *, now_us: int, wait_s: float = WAIT_S) -> dict[str, int]:
        """Origins whose breaker is open, and until when (microseconds)."""
        with self._transaction(wait_s, write=False) as db:
            return _breakers.open_now(db, now_us)

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
            open=is_resumable(db, row)
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
        if row.route == "token" and is_purchase(db, row.id):
            return "its marketplace payment is not finished; an identical call goes on with it"
        if row.state == "reserved":
            return "its process ended before a proof was stored; reconcile releases it"
        return "the seller has not said how it ended; reconcile asks the chain after it expires"


def _where(**wanted: str | None) -> tuple[str, list[str]]:
    given = {name: value for name, value in wanted.items() if value is not None}
    if not given:
        return "", []
    return " WHERE " + " AND ".join(f"{name}=?" for name in given), list(given.values())
