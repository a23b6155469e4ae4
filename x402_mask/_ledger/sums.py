"""That the counters are what this program wrote, told without reading the past.

Who can write the database, and has no key, could set a counter back and so spend a cap again.  So
each row of history carries a sum over the counters: of each its keyed hash, added up modulo 2**256,
which is brought up to date by what changed, at no question more.  The chain binds it, so that no
older state of the counters fits the last row.  Opening a ledger adds up anew: of each counter only
the buckets since an instant that the sum names, and that moves on now and then, so that the time
does not grow with the past.  The newest payments are added up as well, as far as a few rows go.
"""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from x402_mask._ledger import counters as _counters
from x402_mask._ledger.damage import whole
from x402_mask._policy.caps import SLICES, bucket, keys_of
from x402_mask._wire import strict_json
from x402_mask.errors import LedgerError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from x402_mask._ledger.key import LedgerKey
    from x402_mask._ledger.records import Db, Last

    Counter = tuple[str, str, int, int, int]
    """Scope, unit, bucket, settled, held."""

    Meter = tuple[str, str, bool]
    """Scope, unit, and whether its counters are in the sum."""

BUCKETS_MAX: Final = 4096
"""How many buckets an opening may add up before a later one begins with newer ones."""

PAYMENTS_MAX: Final = 1000
"""How many payments, the newest, an opening adds up."""

_MODULUS: Final = 1 << 256
_DIGITS: Final = 64


class Sum(NamedTuple):
    """The sum over every counter, from the bucket of the instant *since* on (microseconds)."""

    since: int
    total: int

    def __str__(self) -> str:
        return f"{self.since}:{self.total:0{_DIGITS}x}"

    def covers(self, unit: str, slot: int) -> bool:
        """Whether that bucket is part of it."""
        return slot >= first(unit, self.since)


def first(unit: str, at_us: int) -> int:
    """The oldest bucket that a cap may read at an instant."""
    rolling = unit.isdigit()
    return bucket(unit, at_us) - (SLICES + 1 if rolling else 0)


def last(db: Db) -> Last | None:
    """The last row of history, asked for once a transaction."""
    if db.last is None:
        sql = "SELECT seq, mac, sums FROM history ORDER BY seq DESC LIMIT 1"
        found = db.one(sql)
        if found is not None:
            db.last = _row_of_history(*found)
    return db.last


def _row_of_history(seq: object, mac: object, sums: object) -> Last:
    if type(seq) is not int or not isinstance(mac, bytes) or not isinstance(sums, str | None):
        raise LedgerError("the last row of the ledger's history is damaged: restore a backup")
    return seq, mac, sums


def take(db: Db, keys: frozenset[str]) -> list[tuple[str, str]]:
    """Scope and unit of every counter of these services; from now on they are in the sum."""
    found = _counters.meters(db, keys)
    for scope, unit, summed in found:
        if summed:
            continue
        db.run("UPDATE meters SET summed=1 WHERE scope=? AND unit=?", scope, unit)
        row = last(db)
        if row is not None and row[2] is not None:
            since = _sum_of(row[2]).since
            for *_, slot, settled, held in db.all(_BUCKETS, scope, unit, first(unit, since)):
                db.changes.append((scope, unit, slot, 0, 0, settled, held))
    return [(scope, unit) for scope, unit, _ in found]


def after(db: Db, ledger_key: LedgerKey, before: Last | None, now_us: int) -> str:
    """The sum that the next row of history carries."""
    if before is None or before[2] is None:  # a new ledger, or an older program's
        now = added_up(db, ledger_key, now_us)
    elif not db.changes:
        return before[2]
    else:
        since, total = _sum_of(before[2])
        for scope, unit, slot, settled, held, settled_now, held_now in db.changes:
            if slot >= first(unit, since):
                total += _hash(ledger_key, scope, unit, slot, settled_now, held_now)
                total -= _hash(ledger_key, scope, unit, slot, settled, held)
        now = Sum(since, total % _MODULUS)
    db.changes.clear()
    return str(now)


def added_up(db: Db, ledger_key: LedgerKey, since: int) -> Sum:
    """The sum over the counters as they are."""
    summed = [meter[:2] for meter in _meters(db) if meter[2]]
    return Sum(since, _total(ledger_key, [*_read(db, summed, since), *_restored(restores(db))]))


def restores(db: Db) -> dict[int, int | None]:
    """What counts for rows that a restore lost, by its time: micro-USD; ``None``: full caps."""
    found = db.all("SELECT at, micro FROM restores ORDER BY at")
    return {whole(at): None if micro is None else whole(micro) for at, micro in found}


def set_restores(db: Db, before: Mapping[int, int | None], now: Mapping[int, int | None]) -> None:
    """Write down what counts for lost rows; the next row of history carries it in its sum."""
    were = {counter[:3]: counter[3:] for counter in _restored(before)}
    are = {counter[:3]: counter[3:] for counter in _restored(now)}
    for key in were.keys() | are.keys():
        db.changes.append((*key, *were.get(key, _ZERO), *are.get(key, _ZERO)))
    db.run("DELETE FROM restores")
    for at, micro in now.items():
        db.run("INSERT INTO restores (at, micro) VALUES (?, ?)", at, micro)


def _restored(found: Mapping[int, int | None]) -> list[Counter]:
    """What counts for lost rows, as counters of no scope: whoever removes one frees money too."""
    return [("", "total", at, 1, -1 if micro is None else micro) for at, micro in found.items()]


def begin_anew(db: Db) -> None:
    """Forget counters that cannot be trusted: a cap begins them from the payments when it is asked.

    The next row of history carries the sum over those that are left, which are none.
    """
    for table in ("meters", "counters"):
        db.run(f"DELETE FROM {table}")  # noqa: S608
    row = last(db)
    db.last = None if row is None else (row[0], row[1], None)


def all_written(db: Db) -> None:
    """Called before a commit: what was counted has its row of history.

    Raises:
        LedgerError: it has not, so that an honest ledger would be called changed.
    """
    if db.changes:
        raise LedgerError("a counter was changed without a row of history; nothing was written")


def check(db: Db, ledger_key: LedgerKey) -> bool:
    """Add up the counters; whether that was much, and newer ones should be begun with.

    Raises:
        LedgerError: they are not what was written, or not what the newest payments add up to.
    """
    rows = db.all(
        "SELECT seq, at, payment, kind, data, mac, sums FROM history ORDER BY seq DESC LIMIT 2"
    )
    if not rows:
        return False
    seq, at, *_, sums = rows[0]
    if not is_linked(ledger_key, seq, {row[0]: row[1:] for row in rows}):
        raise LedgerError(f"row {seq} of the ledger's history is not as it was written; {_ADVICE}")
    should = None if sums is None else _sum_of(sums)
    meters = _meters(db)
    counters = _read(
        db, [meter[:2] for meter in meters], at if should is None else min(should.since, at)
    )
    added = []
    if should is not None:
        summed = {(scope, unit) for scope, unit, summed in meters if summed}
        added = [c for c in counters if c[:2] in summed and should.covers(c[1], c[2])]
        added += _restored(restores(db))
        if _total(ledger_key, added) != should.total:
            raise LedgerError(f"the counters of the ledger are not as they were written; {_ADVICE}")
    _check_payments(db, [c for c in counters if c[2] >= first(c[1], at)], meters, at)
    return len(added) > BUCKETS_MAX


def is_linked(ledger_key: LedgerKey, seq: int, rows: Mapping[int, Sequence[Any]]) -> bool:
    """Whether row *seq* of *rows* was chained to the one before, if that is there as well.

    A row is here its instant, payment, kind, data, link and sum.
    """
    at, payment, kind, data, mac, sums = rows[seq]
    before = rows[seq - 1][4] if seq - 1 in rows else b""
    return (
        isinstance(before, bytes)
        and ledger_key.link(before, record(seq, at, payment, kind, data, sums)) == mac
    )


_ADVICE: Final = (
    "somebody or something changed them. Nothing is paid from it: restore a backup, or run"
    " `x402-mask ledger accept`; `x402-mask doctor` tells what was changed"
)


def _check_payments(
    db: Db, counters: Sequence[Counter], meters: Sequence[Meter], now_us: int
) -> None:
    """The buckets that are open at an instant hold what the newest payments add up to."""
    sql = "SELECT at, service, state, micro, also FROM payments ORDER BY at DESC LIMIT ?"
    rows = db.all(sql, PAYMENTS_MAX + 1)
    older = rows.pop()[0] if len(rows) > PAYMENTS_MAX else None
    units: dict[str, list[str]] = {}
    for scope, unit, _ in meters:
        units.setdefault(scope, []).append(unit)
    should: dict[tuple[str, str, int], tuple[int, int]] = {}
    for at, service, state, micro, also in rows:
        if state not in ("reserved", "held", "settled"):
            continue
        settled = micro if state == "settled" else 0
        for scope in ("*", *keys_of(service, () if also is None else strict_json.loads(also))):
            for unit in units.get(scope, ()):
                key = (scope, unit, bucket(unit, at))
                before = should.get(key, (0, 0))
                should[key] = (before[0] + settled, before[1] + micro - settled)
    found = {(scope, unit, slot): (s, h) for scope, unit, slot, s, h in counters}
    for key in sorted(found.keys() | should.keys()):
        _, unit, slot = key
        whole = older is None or slot > bucket(unit, older)
        if (
            whole
            and slot >= first(unit, now_us)
            and found.get(key, _ZERO) != should.get(key, _ZERO)
        ):
            raise LedgerError(
                f"the counter {'/'.join(map(str, key))} of the ledger does not hold what its"
                f" payments add up to; {_ADVICE}"
            )


_ZERO: Final = (0, 0)


def _meters(db: Db) -> list[Meter]:
    return [(scope, unit, bool(summed)) for scope, unit, summed in db.all(_METERS)]


def _read(db: Db, meters: Sequence[tuple[str, str]], since: int) -> list[Counter]:
    """Every bucket of these counters that is open at *since* or later."""
    found: list[Counter] = []
    for start in range(0, len(meters), _counters.PART):
        some = meters[start : start + _counters.PART]
        sql = " UNION ALL ".join([_BUCKETS] * len(some))
        params = [(scope, unit, first(unit, since)) for scope, unit in some]
        found += [(a, b, c, d, e) for a, b, c, d, e in db.all(sql, *chain.from_iterable(params))]
    return found


def _total(ledger_key: LedgerKey, counters: Iterable[Counter]) -> int:
    return sum(_hash(ledger_key, *counter) for counter in counters) % _MODULUS


_METERS: Final = "SELECT scope, unit, summed FROM meters"
_BUCKETS: Final = (
    "SELECT scope, unit, bucket, settled, held FROM counters WHERE scope=? AND unit=? AND bucket>=?"
)


def _hash(ledger_key: LedgerKey, scope: str, unit: str, slot: int, settled: int, held: int) -> int:
    """The keyed hash of a counter; an empty one is none."""
    if settled == held == 0:
        return 0
    return ledger_key.number(f"{settled} {held} {slot} {unit} {scope}".encode())


def _sum_of(sums: str) -> Sum:
    since, _, total = sums.partition(":")
    try:
        return Sum(int(since), int(total, 16))
    except ValueError:
        raise LedgerError(
            "the last row of the ledger's history is damaged: restore a backup"
        ) from None


def record(
    seq: int, at: int, payment_id: str | None, kind: str, text: str, sums: str | None
) -> bytes:
    """What is chained of a row of history: these as a JSON array; older programs had no sums."""
    named = strict_json.dumps(payment_id)
    chained = f"[{seq},{at},{named},{strict_json.dumps(kind)},{strict_json.dumps(text)}"
    return (chained + ("]" if sums is None else f',"{sums}"]')).encode("ascii")
