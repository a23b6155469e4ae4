"""Offers that were paid before, so that a later call can send its proof with the first request.

Kept in memory by one payer.  An offer is good for ten minutes; an offer that was answered 402 turns
preemption off for its service for ten minutes; a service that changed its terms between two
challenges is not preempted again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from x402_mask._policy import Choice
    from x402_mask._wire import Challenge

OFFER_S: Final = 600
PAUSE_S: Final = 600


class Memory:
    """What this payer may offer before it is asked."""

    __slots__ = ("_off_until", "_offers", "_terms")

    def __init__(self) -> None:
        self._offers: dict[tuple[str, str, str], tuple[Challenge, float]] = {}
        self._off_until: dict[tuple[str, str], float] = {}
        self._terms: dict[tuple[str, str], Any] = {}

    def recall(self, method: str, origin: str, service: str, now: float) -> Challenge | None:
        """The challenge that was paid last, if it may be answered before it is made again."""
        if self._off_until.get((origin, service), 0) > now:
            return None
        challenge, at = self._offers.get((method, origin, service), (None, 0.0))
        return challenge if at <= now < at + OFFER_S else None

    def learn(self, origin: str, service: str, choice: Choice) -> None:
        """Compare the terms of a fresh challenge with the last ones."""
        offer = choice.offer
        terms = (offer.network, offer.asset.lower(), offer.amount, offer.pay_to.lower())
        if self._terms.setdefault((origin, service), terms) != terms:
            self._off_until[origin, service] = float("inf")

    def keep(self, method: str, origin: str, service: str, challenge: Challenge, at: float) -> None:
        """An offer made at *at* was paid, and what it bought was delivered."""
        self._offers[method, origin, service] = (challenge, at)

    def rejected(self, method: str, origin: str, service: str, now: float) -> None:
        """An offer that was kept is not good any more."""
        self._offers.pop((method, origin, service), None)
        paused = self._off_until.get((origin, service), 0)
        self._off_until[origin, service] = max(paused, now + PAUSE_S)


class HeldTokens:
    """Which services a token with calls left is known for; ``None`` before anybody looked.

    A hint that saves looking: the ledger knows, and other processes use the same tokens.
    """

    __slots__ = ("known",)

    def __init__(self) -> None:
        self.known: set[tuple[str, str]] | None = None

    @property
    def possible(self) -> bool:
        """Whether there may be any."""
        known = self.known  # another thread may forget it meanwhile
        return known is None or bool(known)

    def learn(self, origin: str, service: str) -> None:
        """A token with calls left was stored."""
        known = self.known
        if known is not None:
            known.add((origin, service))

    def doubt(self, origin: str, service: str) -> None:
        """None was to be had: it is spent, or all is paused.  The next call looks again."""
        known = self.known
        if known is not None and (origin, service) in known:
            self.known = None
