"""What the owner said no to: not asked again for a minute, by any process on the ledger."""

from __future__ import annotations

from typing import Final

from x402_mask._ledger.core import LedgerCore
from x402_mask._ledger.waiting import WAIT_S
from x402_mask._money import SECOND

DENIED_US: Final = 60 * SECOND
"""How long a no lasts.  What repeats a refused call by itself does so within seconds."""


class DenialBook(LedgerCore):
    """The part of a ledger that keeps what was denied."""

    def denied_for(self, operation: str, *, now_us: int, wait_s: float = WAIT_S) -> int:
        """Microseconds for which the owner's no to an operation still holds; 0: ask."""
        with self._transaction(wait_s, write=False) as db:
            row = db.one("SELECT until FROM denials WHERE operation=?", operation)
        left = 0 if row is None else row[0] - now_us
        return left if 0 < left <= DENIED_US else 0  # longer: the clock was set back

    def deny(self, operation: str, *, now_us: int, wait_s: float = WAIT_S) -> None:
        """The owner said no to an operation."""
        with self._transaction(wait_s) as db:
            db.run("DELETE FROM denials WHERE until<=?", now_us)
            db.run(
                "INSERT INTO denials VALUES (?, ?)"
                " ON CONFLICT (operation) DO UPDATE SET until=excluded.until",
                operation,
                now_us + DENIED_US,
            )
