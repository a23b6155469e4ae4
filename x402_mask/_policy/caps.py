"""Caps as arithmetic: which buckets of which counters a cap reads.  Pure; no clock, no storage.

A ledger keeps, per scope (a service, or ``*``) and per *unit*, a counter for each *bucket* of time.
Calendar caps read one bucket and later ones; a rolling window of length W is cut into buckets of
W/100, so that it forgets at most 1 % late and never early.  A payment recorded in a later bucket
than now (a clock that went back) counts now as well.

Times are integer microseconds since the Unix epoch, amounts integer micro-USD.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from x402_mask._models import Spend
from x402_mask._money import SECOND, usd
from x402_mask._services import service_key

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from x402_mask._models import Cap

_HOUR: Final = 3600 * SECOND
_DAY: Final = 24 * _HOUR
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_TIME_MAX: Final = 253_402_300_799 * SECOND  # the last second of the year 9999
SLICES: Final = 100
_KIN_MAX: Final = 16
"""Most other services that one limit counts: each has counters of its own, started by a scan."""


@dataclass(frozen=True, slots=True)
class Limit:
    """A cap, ready to be checked: what it counts, in which unit, up to how much.

    ``scope`` is the service as its owner names it, ``key`` what its counters are kept under.
    ``kin`` are the keys of other services that it counts as well, and that must fit it: a seller's
    catalog calls them the same service.
    """

    cap: Cap
    scope: str
    micro: int
    unit: str
    window_us: int = 0
    kin: tuple[str, ...] = ()
    name: str = field(init=False, repr=False, compare=False)
    """The cap in words, as history has it."""
    key: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", str(self.cap))
        object.__setattr__(self, "key", service_key(self.scope))

    @property
    def scopes(self) -> tuple[str, ...]:
        """Every scope whose counters it reads."""
        return (self.key, *self.kin)

    @property
    def per_call(self) -> bool:
        """Whether the cap bounds one payment and reads no counter."""
        return self.unit == "call"

    def first_bucket(self, now_us: int) -> int:
        """The oldest bucket that counts at *now_us*."""
        return bucket(self.unit, now_us - self.window_us)

    def restored(self, used: Used, restores: Mapping[int, int | None], now_us: int) -> Used:
        """*used*, and what the owner counts for rows that a restore lost at some instants.

        An amount in micro-USD, or ``None``: then the cap is full until its window has passed.
        """
        if self.per_call:
            return used
        first = self.first_bucket(now_us)
        for at, micro in restores.items():
            slot = bucket(self.unit, at)
            if slot >= first:
                held = max(0, self.micro - used.total) if micro is None else micro
                used = used.plus(Used(held=held, oldest=slot))
        return used

    def resets_at(self, now_us: int, oldest: int | None) -> datetime | None:
        """When the window next forgets something; *oldest* is the oldest bucket in use."""
        if self.unit in ("call", "total"):
            return None
        if self.unit in _NEXT:
            return _NEXT[self.unit](now_us)
        if oldest is None:
            return None
        return as_datetime((oldest + 1) * int(self.unit) + self.window_us)

    def spend(self, now_us: int, used: Used) -> Spend:
        """The public record of how far this cap is used."""
        return Spend(
            service=self.scope,
            per=self.cap.per,
            limit=usd(self.micro),
            settled=usd(used.settled),
            held=usd(used.held),
            left=usd(max(0, self.micro - used.total)),
            resets_at=self.resets_at(now_us, used.oldest),
        )


@dataclass(frozen=True, slots=True)
class Used:
    """What a window holds, micro-USD; ``held`` is reserved plus held."""

    settled: int = 0
    held: int = 0
    oldest: int | None = None

    @property
    def total(self) -> int:
        """All of it: what counts against the cap."""
        return self.settled + self.held

    def plus(self, other: Used) -> Used:
        """Both together."""
        oldest = [b for b in (self.oldest, other.oldest) if b is not None]
        return Used(self.settled + other.settled, self.held + other.held, min(oldest, default=None))


NOTHING: Final = Used()


def compile_caps(caps: Sequence[Cap], canonical: Callable[[str], str]) -> tuple[Limit, ...]:
    """Caps as limits, with service aliases resolved by *canonical*."""
    return tuple(_compile(cap, canonical(cap.service)) for cap in caps)


def _compile(cap: Cap, scope: str) -> Limit:
    if not isinstance(cap.per, timedelta):
        return Limit(cap, scope, cap.micro, cap.per)
    window_us = cap.per // timedelta(microseconds=1)
    return Limit(cap, scope, cap.micro, str(max(1, window_us // SLICES)), window_us)


def keys_of(service: str, also: Iterable[str] = ()) -> frozenset[str]:
    """The keys of every service that a payment counts for: its own, and what it is *also*."""
    return _keys_of(service, tuple(also))


@lru_cache(maxsize=256)
def _keys_of(service: str, also: tuple[str, ...]) -> frozenset[str]:
    return frozenset((service_key(service), *also))


def applying(limits: Sequence[Limit], service: str, also: Iterable[str] = ()) -> tuple[Limit, ...]:
    """The limits that a payment must fit which is for *service*, and *also* counts for others."""
    keys = keys_of(service, also)
    return tuple(x for x in limits if x.scope == "*" or not keys.isdisjoint(x.scopes))


def named(limits: Sequence[Limit], service: str) -> bool:
    """Whether a cap of the owner's own names *service*, or all services."""
    return any(limit.scope in ("*", service) for limit in limits)


# Groups of names.  A seller's catalog may call several services the same: then a payment for any of
# them fills the caps of all, and a cap cannot be passed by going to a service's other name.
#
# - The owner's own aliases are another thing: they say which service a cap names, and are resolved
#   before a Limit is made (compile_caps).  A group is a stranger's word.  So it may only forbid: a
#   limit gets more scopes to count and never loses one, and a limit that is reached by a group
#   alone permits nothing (named).
# - No counter belongs to a group.  Each key has counters of its own, and a limit adds up those of
#   its key and its kin when it is read.  A group that comes late so finds what was spent before.
#   A payment that counts for two keys of one limit (``also``) is added twice: too much, never too
#   little.
# - A group is not followed further: b, c of (a b), (b c) are kin, a, c are not.  Else one odd entry
#   would let all caps of a payer fill each other.
# - Kin are bounded, and the first stay: a later group that could push one out would make room.


def akin(limits: Sequence[Limit], groups: Iterable[frozenset[str]]) -> tuple[Limit, ...]:
    """The limits, each counting also the services that share a group with its own, 16 at most.

    Those of earlier groups go first, so that later groups take none away.  Nothing is ever taken
    off a limit, so a group can only make payments harder.
    """
    found = tuple(groups)
    return tuple(replace(limit, kin=_kin(limit.key, found)) for limit in limits)


def _kin(key: str, groups: tuple[frozenset[str], ...]) -> tuple[str, ...]:
    if key == "*":
        return ()  # counts every service as it is
    keys = ([service_key(name) for name in sorted(group)] for group in groups)
    kin = (other for group in keys if key in group for other in group)
    return tuple(other for other in dict.fromkeys(kin) if other != key)[:_KIN_MAX]


def bucket(unit: str, at_us: int) -> int:
    """The bucket of *unit* that holds the instant *at_us*."""
    if unit == "hour":
        return at_us // _HOUR
    if unit == "day":
        return at_us // _DAY
    if unit == "month":
        moment = as_datetime(at_us)
        return moment.year * 12 + moment.month - 1
    if unit in ("total", "call"):
        return 0
    return at_us // int(unit)


def as_datetime(at_us: int) -> datetime:
    """An aware UTC datetime; instants outside the years 1970 to 9999 are clipped."""
    return _EPOCH + timedelta(microseconds=min(max(at_us, 0), _TIME_MAX))


def _next_hour(now_us: int) -> datetime:
    return as_datetime((now_us // _HOUR + 1) * _HOUR)


def _next_day(now_us: int) -> datetime:
    return as_datetime((now_us // _DAY + 1) * _DAY)


def _next_month(now_us: int) -> datetime:
    moment = as_datetime(now_us)
    year, month = (moment.year + 1, 1) if moment.month == 12 else (moment.year, moment.month + 1)
    return datetime(min(year, 9999), month, 1, tzinfo=UTC)


_NEXT: Final = {"hour": _next_hour, "day": _next_day, "month": _next_month}
