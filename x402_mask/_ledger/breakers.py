"""Breakers: an origin whose calls end badly several times in a row is not paid for a while."""

from __future__ import annotations

from typing import TYPE_CHECKING

from x402_mask._ledger.damage import whole
from x402_mask._money import SECOND

if TYPE_CHECKING:
    from x402_mask._ledger.records import Breaker, Db, Result


def trip(db: Db, origin: str, result: Result, breaker: Breaker | None, now_us: int) -> bool:
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


def open_now(db: Db, now_us: int) -> dict[str, int]:
    """Origins whose breaker is open, and until when (microseconds)."""
    found = db.all("SELECT origin, until FROM breakers WHERE until > ?", now_us)
    return {str(origin): whole(until) for origin, until in found}
