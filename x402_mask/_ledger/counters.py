"""The counters of a ledger: what each cap's window holds, kept as payments change state.

A *meter* is a scope (a service, or ``*``) and a unit of time; it has a counter for each bucket of
time that money fell into (``_policy.caps``).  Every function works inside a transaction.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import chain
from typing import TYPE_CHECKING, Final, TypeVar

from x402_mask._ledger.damage import damaged
from x402_mask._money import MICRO_MAX, SECOND, usd
from x402_mask._policy.caps import NOTHING, Used, applying, bucket, named
from x402_mask._wire import strict_json
from x402_mask.errors import CapExceeded, LedgerError, PaymentRefused

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from x402_mask._ledger.records import Db, Reservation
    from x402_mask._models import Spend
    from x402_mask._policy.caps import Limit

T = TypeVar("T")

PART: Final = 100
"""Most rows that one statement reads or writes."""


_DAY: Final = 86400 * SECOND

_STEPS: Final = {"hour": 3600 * SECOND, "day": _DAY}

_WINDOW: Final = (
    "SELECT {}, SUM(settled), SUM(held), MIN(CASE WHEN settled + held > 0 THEN bucket END)"
    " FROM counters WHERE scope=? AND unit=? AND bucket>=?"
)

_RESTORES: Final = "SELECT -1, micro, 0, at FROM restores"
"""What counts for rows that a restore lost, read with the counters."""

_SUMS: Final = (
    "SUM(CASE WHEN state='settled' THEN micro ELSE 0 END),"
    " SUM(CASE WHEN state='settled' THEN 0 ELSE micro END)"
    " FROM payments WHERE state IN ('reserved','held','settled')"
)


_COUNTS_FOR: Final = (
    """(service=? OR replace(replace(also, '["', ',"'), ?, '')<>replace(also, '["', ',"'))"""
)
"""Whether a payment counts for a key.

In a JSON list a name begins after ``["`` or ``,"``, and nothing else looks so: within a name a
quotation mark comes after a backslash.
"""


def units(limits: Iterable[Limit]) -> set[tuple[str, str]]:
    """Scope and unit of every counter that the limits read."""
    return {(scope, x.unit) for x in limits if not x.per_call for scope in x.scopes}


def meters(db: Db, keys: frozenset[str]) -> list[tuple[str, str, bool]]:
    """Scope and unit of every counter that counts a payment for these services.

    And whether it is part of the sum over the counters (``_ledger.sums``).
    """
    found = db.all(_meters_of(len(keys)), *sorted(keys))
    return [(scope, unit, bool(summed)) for scope, unit, summed in found]


@lru_cache(maxsize=64)
def _meters_of(keys: int) -> str:
    marks = ", ".join("?" * keys)
    return f"SELECT scope, unit, summed FROM meters WHERE scope IN ({marks}, '*')"  # noqa: S608


def used(db: Db, limits: Sequence[Limit], now_us: int) -> list[Used]:
    """What each limit's window holds, asked at once."""
    found: dict[int, Used] = {}
    restores: dict[int, int | None] = {}
    read = [(n, x, scope) for n, x in enumerate(limits) if not x.per_call for scope in x.scopes]
    for some in _parts(read):
        sql = " UNION ALL ".join([*(_WINDOW.format(n) for n, _, _ in some), _RESTORES])
        params = [(scope, x.unit, x.first_bucket(now_us)) for _, x, scope in some]
        for n, settled, held, oldest in db.all(sql, *chain.from_iterable(params)):
            if (settled or 0) < 0 or (held or 0) < 0:  # would make room that no cap has
                raise damaged(ValueError(f"{settled!r:.40} and {held!r:.40} count for a cap"))
            if n < 0:
                restores[oldest] = None if settled is None else int(settled)
                continue
            here = Used(int(settled or 0), int(held or 0), oldest)
            found[n] = here if n not in found else found[n].plus(here)
    each = [(x, found.get(n, NOTHING)) for n, x in enumerate(limits)]
    return [u if not restores else x.restored(u, restores, now_us) for x, u in each]


def measure(db: Db, want: Reservation) -> tuple[dict[str, int], PaymentRefused | None]:
    """What each cap holds before this payment, and the refusal of the first that is too full."""
    limits = applying(want.limits, want.service, want.also)
    held = used(db, limits, want.at)
    before = {limit.name: u.total for limit, u in zip(limits, held, strict=True)}
    fits = all(b.total + want.micro <= a.micro for a, b in zip(limits, held, strict=True))
    if fits and named(limits, want.service):
        return before, None  # the usual case needs no words
    spends = [limit.spend(want.at, u) for limit, u in zip(limits, held, strict=True)]
    return before, over_cap(limits, spends, want.micro, want.service)


def over_cap(
    limits: Sequence[Limit], spends: Sequence[Spend], micro: int, service: str
) -> PaymentRefused | None:
    """The refusal of *micro* micro-USD more for *service*, or ``None`` if every limit has room."""
    if not named(limits, service):  # a cap that sees it by another name only is no permission
        return PaymentRefused(
            f"no cap names the service {service!r}; add a Cap for it, or one on '*'",
            reason="no_cap",
        )
    for limit, spend in zip(limits, spends, strict=True):
        if usd(micro) > spend.left:
            when = f", more at {spend.resets_at.isoformat()}" if spend.resets_at else ""
            return CapExceeded(
                f"${usd(micro)} would exceed the cap {limit.cap}: ${spend.left} left{when}."
                " Raise that Cap to allow it",
                cap=limit.cap,
                wanted=usd(micro),
                left=spend.left,
                resets_at=spend.resets_at,
            )
    return None


def count(db: Db, meters: Sequence[tuple[str, str]], at: int, settled: int, held: int) -> None:
    """Add to each of the counters at the instant *at*."""
    sums = [(scope, unit, bucket(unit, at), settled, held) for scope, unit in meters]
    now = {(scope, unit): (s, h) for scope, unit, s, h in _add(db, sums)}
    for scope, unit, slot, *_ in sums:
        s, h = now[scope, unit]
        db.changes.append((scope, unit, slot, s - settled, h - held, s, h))


def _add(
    db: Db, sums: Sequence[tuple[str, str, int, int, int]]
) -> Iterator[tuple[str, str, int, int]]:
    """Add to counters: scope, unit, bucket, settled, held; no bucket twice.

    Yields scope, unit, and what is settled and held now.
    """
    for some in _parts(sums):
        rows = db.all(_adding(len(some)), *chain.from_iterable(some))
        if len(rows) != len(some) or not all(0 <= s + h <= MICRO_MAX for _, _, s, h in rows):
            raise LedgerError("a counter of this ledger would overflow")
        yield from rows


@lru_cache(maxsize=PART)
def _adding(rows: int) -> str:
    return (
        "INSERT INTO counters (scope, unit, bucket, settled, held)"  # noqa: S608
        f" VALUES {', '.join(['(?, ?, ?, ?, ?)'] * rows)}"
        " ON CONFLICT (scope, unit, bucket) DO UPDATE"
        " SET settled=counters.settled+excluded.settled, held=counters.held+excluded.held"
        " RETURNING scope, unit, settled, held"
    )


def backfill(db: Db, scope: str, unit: str) -> None:
    """Fill a new counter from the payments on the ledger."""
    sums, mine = (_SUMS, ()) if scope == "*" else (f"{_SUMS} AND {_COUNTS_FOR}", _named(scope))
    if unit == "month":
        sql = f"SELECT at / ?, {sums} GROUP BY 1"
        months: dict[int, tuple[int, int]] = {}
        for day, settled, held in db.all(sql, _DAY, *mine):
            before = months.get(month := bucket(unit, day * _DAY), (0, 0))
            months[month] = (before[0] + int(settled), before[1] + int(held))
        list(_add(db, [(scope, unit, month, *sum_) for month, sum_ in months.items()]))
        return
    slot, steps = ("0", ()) if unit == "total" else ("at / ?", (_STEPS.get(unit) or int(unit),))
    db.run(
        "INSERT INTO counters (scope, unit, bucket, settled, held)"
        f" SELECT ?, ?, {slot}, {sums} GROUP BY 3",
        *(scope, unit, *steps, *mine),
    )


def _named(key: str) -> tuple[str, str]:
    """The parameters of :data:`_COUNTS_FOR`."""
    return key, f",{strict_json.dumps(key)}"


def unnamed(db: Db, limits: Iterable[Limit]) -> list[Limit]:
    """The limits on services that no payment counts for, as far as the last 10,000 tell."""
    found = [x for x in limits if x.scope != "*"]
    named = {key: _is_counted(db, key) for key in dict.fromkeys(x.key for x in found)}
    return [x for x in found if not named[x.key]]


def _is_counted(db: Db, key: str) -> bool:
    if db.one("SELECT 1 FROM counters WHERE scope=? LIMIT 1", key) is not None:
        return True
    sql = (
        "SELECT 1 FROM (SELECT service, also FROM payments"  # noqa: S608
        f" ORDER BY at DESC LIMIT 10000) AS recent WHERE {_COUNTS_FOR} LIMIT 1"
    )
    return db.one(sql, *_named(key)) is not None


def _parts(items: Sequence[T]) -> Iterator[Sequence[T]]:
    """A few at a time: the length of a statement is bounded."""
    for start in range(0, len(items), PART):
        yield items[start : start + PART]
