"""What keeps payments from being made, whatever the caps leave."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from x402_mask._policy.caps import as_datetime

if TYPE_CHECKING:
    from x402_mask._ledger.ledger import Ledger


def stops_of(ledger: Ledger) -> dict[str, Any]:
    """What keeps payments from being made on this ledger: a pause, open breakers."""
    breakers = ledger.breakers(now_us=time.time_ns() // 1000)
    return {
        "paused": ledger.is_paused(),
        "breakers": {origin: as_datetime(until) for origin, until in breakers.items()},
    }
