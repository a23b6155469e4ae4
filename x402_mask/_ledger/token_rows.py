"""Questions about purchases and tokens that need only a transaction, whatever part asks them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from x402_mask._ledger.records import Db, Row


def is_purchase(db: Db, payment_id: str) -> bool:
    """Whether the marketplace may have been asked for this payment."""
    found = db.one("SELECT 1 FROM purchases WHERE payment=?", payment_id)
    return found is not None


def is_resumable(db: Db, row: Row) -> bool:
    """Whether an identical call goes on with this purchase instead of buying again."""
    if row.delivered or row.state not in ("reserved", "held", "settled"):
        return False
    found = db.one("SELECT stage FROM purchases WHERE payment=?", row.id)
    return found is not None and found[0] != "closed"


def forget_spent(db: Db, payment_id: str) -> None:
    """After a delivery: a token without calls left is not used again.

    Unless the answer breaks off after all, and its own operation presents it once more.
    """
    sql = "UPDATE tokens SET live=0 WHERE payment=? AND calls=0"
    db.run(sql, payment_id)


def usable_token(db: Db, origin: str, service: str, now_us: int) -> tuple[Any, ...] | None:
    """The payment and the sealed token to be used next; ``None`` if none is left."""
    return db.one(
        "SELECT payment, sealed FROM tokens WHERE origin=? AND service=? AND live=1 AND calls<>0"
        " AND (until IS NULL OR until>?) ORDER BY at LIMIT 1",
        *(origin, service, now_us),
    )
