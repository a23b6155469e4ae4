"""Whether a proof is alive: one function judges, by every clock that is at hand.

An operation is open until each of them is past ``validBefore`` and a margin: ours, that of the
ledger's database, and the seller's, as its 402 names it.  So a clock that is wrong, or lies, can
only keep an operation open for longer, never make two proofs of it; the seller, who may say what it
likes, for a day at most.  With an ``rpc`` the chain is asked as well: ``_flow.lapsed``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Final, Literal

from x402_mask._money import SECOND
from x402_mask.errors import OfferRefused

if TYPE_CHECKING:
    from collections.abc import Callable

EXPIRY_MARGIN_S: Final = 30
"""Seconds past ``validBefore`` for which an operation still counts as open."""

DAY_US: Final = 86_400 * SECOND
"""How long a seller's clock may keep an operation open that has expired by ours; and for how long,
without a key, what is proven settled is not paid for again."""

SKEW_IGNORED_S: Final = 10
SKEW_MAX_S: Final = 300
"""Most that a seller's ``Date`` may move our clock: five minutes, as Kerberos allows (RFC 4120)."""

Clock = Literal["ours", "database", "seller", "chain"]


def dead_at(valid_before: int) -> int:
    """When a proof counts as expired, Unix microseconds."""
    return (valid_before + EXPIRY_MARGIN_S) * SECOND


@dataclass(frozen=True)
class Clocks:
    """Every clock at hand, in Unix microseconds, as of one moment.

    ``seller`` is what the 402 says; ``ask_database`` is called at most once, and only where the
    answer matters, for it may be a round trip.  ``None`` where there is no such clock.
    """

    ours: int
    seller: int | None = None
    ask_database: Callable[[], int | None] = lambda: None

    @cached_property
    def database(self) -> int | None:
        """The database's clock."""
        return self.ask_database()

    @property
    def slowest(self) -> int:
        """The earlier of our clock and the database's."""
        return self.ours if self.database is None else min(self.ours, self.database)

    def alive_by(self, valid_before: int | None) -> Clock | None:
        """Which clock has the proof alive still; ``None`` where it has expired by all."""
        if valid_before is None:
            return "ours"
        dead = dead_at(valid_before)
        if self.ours <= dead:
            return "ours"
        if self.database is not None and self.database <= dead:
            return "database"
        if self.seller is not None and self.seller <= dead and self.ours <= dead + DAY_US:
            return "seller"
        return None


def seller_clock(now: float, date: float | None, *, strict: bool) -> float:
    """The time to stamp by: ours, or the seller's ``Date`` where that is later, by five minutes.

    One that is earlier moves nothing.  Whether a proof has expired is judged by our clock: stamped
    by an earlier one it were dead to us, and signed anew, while it can still be settled.

    Raises:
        OfferRefused: *strict*, and the clocks are further apart than that.
    """
    skew = 0.0 if date is None else date - now
    if date is not None and SKEW_IGNORED_S < skew <= SKEW_MAX_S:
        return date
    if abs(skew) <= SKEW_MAX_S:
        return now
    if strict:
        raise OfferRefused(
            f"this machine's clock is {skew:+.0f} s from the seller's; set the clock",
            reason="clock",
        )
    return now
