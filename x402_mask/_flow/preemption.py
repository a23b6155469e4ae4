"""Offers that were paid before, so that a later call can send its proof with the first request.

Kept in memory by one payer, per method, origin, service and path, the latest of them.  An offer is
good for ten minutes; one that was answered 402 turns preemption off for its place for ten minutes;
a service that changed its terms between two challenges of one path is not preempted again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from x402_mask._policy.offers import Choice
    from x402_mask._wire.x402 import Challenge

OFFER_S: Final = 600
PAUSE_S: Final = 600
_PLACES_MAX: Final = 1024


class Place(NamedTuple):
    """What one offer is for: nothing that is said of it holds anywhere else."""

    method: str
    origin: str
    service: str
    path: str


class OfferCache:
    """What this payer may offer before it is asked."""

    __slots__ = ("_changed", "_off_until", "_offers", "_terms")

    def __init__(self) -> None:
        self._offers: dict[Place, tuple[Challenge, float]] = {}
        self._off_until: dict[Place, float] = {}
        self._terms: dict[Place, Any] = {}
        self._changed: set[tuple[str, str]] = set()

    def recall(self, place: Place, now: float) -> Challenge | None:
        """The challenge that was paid last, if it may be answered before it is made again."""
        if (place.origin, place.service) in self._changed or self._off_until.get(place, 0) > now:
            return None
        challenge, at = self._offers.get(place, (None, 0.0))
        return challenge if at <= now < at + OFFER_S else None

    def learn(self, place: Place, choice: Choice) -> None:
        """Compare the terms of a fresh challenge with the last ones, by whichever method."""
        offer, page = choice.offer, place._replace(method="")
        terms = (offer.network, offer.asset.lower(), offer.amount, offer.pay_to.lower())
        if self._terms.get(page, terms) != terms:
            self._changed.add((place.origin, place.service))
        self._put(self._terms, page, terms)

    def keep(self, place: Place, challenge: Challenge, at: float) -> None:
        """An offer made at *at* was paid, and what it bought was delivered."""
        self._put(self._offers, place, (challenge, at))

    def rejected(self, place: Place, now: float) -> None:
        """An offer that was kept is not good any more."""
        self._offers.pop(place, None)
        self._put(self._off_until, place, now + PAUSE_S)

    @staticmethod
    def _put(places: dict[Place, Any], place: Place, value: object) -> None:
        """Put last; what was put first is let go of, for paths may be without number.

        A place that is forgotten is asked before it is paid.
        """
        places.pop(place, None)
        if len(places) >= _PLACES_MAX:
            for old in list(places)[: _PLACES_MAX // 2]:  # a copy: other threads put as well
                places.pop(old, None)
        places[place] = value


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
