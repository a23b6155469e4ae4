"""Does the ledger still say what was written to it?

The history is chained by a keyed hash, so nobody without the key can change, remove or add a row of
it unnoticed; its head, kept beside the database, shows when the last rows are gone.  Everything
else follows from the history: payments, counters, payees and the pause are replayed from it and
compared with the tables.
"""

from __future__ import annotations

import csv
import json
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from itertools import chain
from typing import IO, TYPE_CHECKING, Any, Final, Literal

from x402_mask._crypto.eip712 import keccak
from x402_mask._ledger import sums as _sums
from x402_mask._ledger.key import digest
from x402_mask._ledger.payees import EVERYWHERE
from x402_mask._ledger.purchases import token_label
from x402_mask._ledger.replay import COMPARED, FIXED, MOVING, Replay
from x402_mask._ledger.transfers import transfer_label
from x402_mask._money import usd
from x402_mask._policy.caps import as_datetime, bucket, keys_of
from x402_mask._services import service_key
from x402_mask._wire import strict_json
from x402_mask.errors import LedgerError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from x402_mask._ledger.head import Head
    from x402_mask._ledger.key import LedgerKey
    from x402_mask._ledger.ledger import Ledger
    from x402_mask._ledger.records import Db

_CHUNK: Final = 2000
_WAIT_S: Final = 30.0
_COUNTED: Final = ("reserved", "held", "settled")

_SHOWN: Final = ("id", *FIXED, *MOVING)


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditReport:
    """What an audit found.

    ``rows`` is the number of history rows, ``problems`` a sentence for each thing that is not as
    it was written; ``ok`` when there is none.  ``unknown`` names what cannot be told from what was
    written: it accuses nobody.
    """

    ok: bool
    rows: int
    problems: list[str]
    unknown: list[str] = field(default_factory=list)


def verify(ledger: Ledger) -> AuditReport:
    """Check the whole ledger against its history, and the history against its key and its head.

    Reads one consistent state; payments go on meanwhile, in other processes also on SQLite.

    Raises:
        LedgerError: the ledger cannot be opened or read.
    """
    with _snapshot(ledger) as (db, head):
        return _audit(ledger, db, head)


def export(ledger: Ledger, format: Literal["csv", "jsonl"], file: IO[str]) -> int:  # noqa: A002
    """Write every payment, the whole history and the result of :func:`verify` to *file*.

    Money is in USD as text and in integers; times are ISO 8601, UTC.  Stored proofs are left out.
    Returns the number of records written.

    Raises:
        ValueError: *format* is neither ``csv`` nor ``jsonl``.
        LedgerError: the ledger cannot be opened or read.
        OSError: *file* cannot be written.
    """
    return export_audited(ledger, format, file)[0]


def export_audited(
    ledger: Ledger,
    format: Literal["csv", "jsonl"],  # noqa: A002
    file: IO[str],
) -> tuple[int, AuditReport]:
    """:func:`export`, and what the audit of the same state found.

    Raises:
        ValueError, LedgerError, OSError: as :func:`export` does.
    """
    if format not in ("csv", "jsonl"):
        raise ValueError(f"format is csv or jsonl, not {format!r}")
    with _snapshot(ledger) as (db, head):
        report = _audit(ledger, db, head)
        verdict = {"record": "verification", **asdict(report)}
        records = chain(_payment_records(db), _history_records(db), [verdict])
        write = _write_csv if format == "csv" else _write_lines
        return write(records, file), report


@contextmanager
def _snapshot(ledger: Ledger) -> Iterator[tuple[Db, Head | None]]:
    """One state of the database, and the head as it was known just before."""
    past = ledger.past
    with nullcontext() if past is None else past.leniently():  # what is lost is for the report
        ledger._ledger_key()  # noqa: SLF001  # opens the ledger, so that its own complaints come first
        head = None if ledger.head_file is None else ledger.head_file.read()
        with ledger._transaction(_WAIT_S, write=False) as db:  # noqa: SLF001
            yield db, head


def _audit(ledger: Ledger, db: Db, head: Head | None) -> AuditReport:
    ledger_key, replay = ledger._ledger_key(), Replay()  # noqa: SLF001
    _check_chain(db, ledger_key, replay, head)
    if head is None and ledger.head_is_whole and replay.rows:
        replay.problem("the head file is missing: lost last rows would not be noticed")
    _check_payments(db, ledger_key, replay)
    _check_counters(db, replay)
    _check_payees(db, replay)
    _check_purchases(db, replay)
    _check_tokens(db, ledger_key, replay)
    _check_transfers(db, ledger_key, replay)
    _check_pause(db, replay)
    _check_restores(db, replay)
    return AuditReport(
        ok=not replay.problems,
        rows=replay.rows,
        problems=replay.report(),
        unknown=replay.unknown,
    )


# --- comparing ------------------------------------------------------------------------------------


def _check_chain(db: Db, ledger_key: LedgerKey, replay: Replay, head: Head | None) -> None:
    """Walk the history: nothing missing, nothing changed, nothing after the fact."""
    expected, before = 1, b""
    marks = {} if head is None else {x.seq: x.mac for x in (head.durable, head.last) if x}
    columns = "seq, at, payment, kind, data, mac, sums"
    for seq, at, payment, kind, text, mac, sums in _stream(db, columns):
        replay.rows += 1
        if type(seq) is not int or seq < expected:
            replay.problem(f"history row {seq!r} was added")
            continue
        if seq > expected:
            replay.problem(f"{_rows(expected, seq - 1)} missing from the history")
        if _linked(ledger_key, before, seq, at, payment, kind, text, sums) != mac:
            replay.problem(f"history row {seq} ({kind}) is not as it was written")
        if marks.get(seq, mac) != mac:
            replay.problem(f"history row {seq} is not the one that the head file knows")
        try:
            replay.apply(at, payment, kind, strict_json.loads(text))
        except (KeyError, TypeError, ValueError, AttributeError):
            replay.problem(f"history row {seq} ({kind}) does not follow from the rows before it")
        expected, before = seq + 1, mac if isinstance(mac, bytes) else b""
    if head is not None and head.last.seq >= expected:
        replay.problem(
            f"{_rows(expected, head.last.seq)} missing from the end of the history, which the head"
            " file knows"
        )


def _rows(first: int, last: int) -> str:
    return f"row {first} is" if first == last else f"rows {first} to {last} are"


def _linked(ledger_key: LedgerKey, before: bytes, *row: Any) -> bytes | None:
    """The chain's next value; ``None`` for what no ledger writes."""
    try:
        return ledger_key.link(before, _sums.record(*row))
    except (TypeError, ValueError):
        return None


def _check_payments(db: Db, ledger_key: LedgerKey, replay: Replay) -> None:
    """Compare the payments with what their history makes of them."""
    found = set()
    for row in _stream(db, f"seq, id, proof, {', '.join(COMPARED)}", "payments"):
        payment, proof = row[1], row[2]
        found.add(payment)
        known = replay.payments.get(payment)
        if known is None:
            replay.problem(f"payment {payment} is not in the history")
            continue
        for name, value in zip(COMPARED, row[3:], strict=True):
            if value != known[name]:
                replay.problem(
                    f"payment {payment} has {name} {value!r}, its history says {known[name]!r}"
                )
        if not _is_sealed(ledger_key, payment, proof, known["proof_digest"]):
            replay.problem(f"payment {payment} does not hold the proof that was stored for it")
    for payment in replay.payments.keys() - found:
        replay.problem(f"payment {payment} is in the history but not among the payments")


def _is_sealed(ledger_key: LedgerKey, label: str, sealed: Any, named: str | None) -> bool:
    """Whether *sealed* opens to what has the digest *named*; nothing, where nothing is named."""
    if sealed is None or named is None:
        return sealed is None and named is None
    try:
        return digest(ledger_key.open(sealed, label)) == named
    except (LedgerError, TypeError, AttributeError):
        return False


def _check_counters(db: Db, replay: Replay) -> None:
    """Add up every counter again, from the payments as the history has them."""
    sql = "SELECT scope, unit, bucket, settled, held FROM counters"
    stored = {(scope, unit, slot): (s, h) for scope, unit, slot, s, h in db.all(sql)}
    meters = _meters(db, replay)
    for scope, unit in sorted({key[:2] for key in stored} - meters, key=str):
        replay.problem(f"the counter {scope}/{unit} is no longer kept up, though it was begun")
    counted = _counted(replay, meters)
    slots = counted.keys() | {key for key in stored if key[:2] in meters}
    for key in sorted(slots, key=str):
        found, should = stored.get(key, (0, 0)), counted.get(key, (0, 0))
        if found != should:
            replay.problem(
                f"the counter {'/'.join(map(str, key))} says settled {found[0]!r} and held"
                f" {found[1]!r} micro-USD, the payments add up to {should[0]} and {should[1]}"
            )


def _meters(db: Db, replay: Replay) -> set[tuple[str, str]]:
    found = set(db.all("SELECT scope, unit FROM meters"))
    for scope, unit in sorted(found, key=str):
        if not _is_unit(unit):
            replay.problem(f"the counter {scope}/{unit} is none that a cap could use")
            found.discard((scope, unit))
    return found


def _counted(
    replay: Replay, meters: set[tuple[str, str]]
) -> dict[tuple[str, str, int], tuple[int, int]]:
    """What each bucket of each counter holds: settled, and reserved plus held."""
    units: dict[str, list[str]] = {}
    for scope, unit in meters:
        units.setdefault(scope, []).append(unit)
    sums: dict[tuple[str, str, int], tuple[int, int]] = {}
    for row in replay.payments.values():
        if row["state"] not in _COUNTED:
            continue
        settled = row["micro"] if row["state"] == "settled" else 0
        also = () if row["also"] is None else strict_json.loads(row["also"])
        for scope in ("*", *keys_of(row["service"], also)):
            for unit in units.get(scope, ()):
                key = (scope, unit, bucket(unit, row["at"]))
                before = sums.get(key, (0, 0))
                sums[key] = (before[0] + settled, before[1] + row["micro"] - settled)
    return sums


def _is_unit(unit: Any) -> bool:
    named = unit in ("hour", "day", "month", "total")
    return named or (isinstance(unit, str) and unit.isascii() and unit.isdigit() and int(unit) > 0)


def _check_payees(db: Db, replay: Replay) -> None:
    should = dict(replay.payees)
    for (service, payee), trusted in replay.pins.items():
        pin = (EVERYWHERE, service_key(service), payee)
        should[pin] = should.get(pin, False) or trusted
    sql = "SELECT origin, service, payee, trusted FROM payees"
    stored = {(o, s, p): bool(t) for o, s, p, t in db.all(sql)}
    said = {None: "unknown", True: "trusted", False: "seen but not trusted"}
    for pin in sorted(stored.keys() | should.keys(), key=str):
        origin, service, payee = pin
        if stored.get(pin) != should.get(pin):
            replay.problem(
                f"the payee {payee} of {service} at {origin or 'every origin'} is"
                f" {said[stored.get(pin)]}, by the history {said[should.get(pin)]}"
            )


def _check_purchases(db: Db, replay: Replay) -> None:
    """Nobody has turned a purchase that was paid for into one that may be made again."""
    stored = {
        payment: (stage, remote)
        for payment, stage, remote in db.all("SELECT payment, stage, remote FROM purchases")
    }
    for payment in sorted(stored.keys() | replay.purchases.keys(), key=str):
        had, should = stored.get(payment), replay.purchases.get(payment)
        if should is not None and payment in replay.maybe_closed and had == ("closed", should[1]):
            continue
        if had != should:
            replay.problem(f"the purchase of payment {payment} is {had}, by the history {should}")


def _check_tokens(db: Db, ledger_key: LedgerKey, replay: Replay) -> None:
    """Every token is the one that was bought, where it was bought, until it was dropped."""
    found = set()
    for payment, origin, service, sealed, named in db.all(
        "SELECT payment, origin, service, sealed, digest FROM tokens"
    ):
        found.add(payment)
        row, should = replay.payments.get(payment, {}), replay.tokens.get(payment)
        held = None if payment in replay.dropped else should
        if (named, origin, service) != (should, row.get("origin"), row.get("service")) or (
            not _is_sealed(ledger_key, token_label(payment), sealed, held)
        ):
            replay.problem(f"the token of payment {payment} is not as it was stored")
    for payment in sorted(replay.tokens.keys() - found):
        replay.problem(f"the token of payment {payment} is in the history but not stored")


def _check_transfers(db: Db, ledger_key: LedgerKey, replay: Replay) -> None:
    """Every signed transaction that was stored is there, and opens to what its hash says."""
    sql = "SELECT payment, attempt, hash, raw FROM transfers ORDER BY payment, attempt"
    found = set()
    for payment, attempt, name, raw in db.all(sql):
        found.add((payment, attempt))
        if replay.transfers.get((payment, attempt)) != name or not _is_transaction(
            ledger_key, transfer_label(payment, attempt), raw, name
        ):
            replay.problem(f"transfer {attempt} of payment {payment} is not as it was stored")
    for payment, attempt in sorted(replay.transfers.keys() - found):
        replay.problem(f"transfer {attempt} of payment {payment} is in the history but not stored")


def _is_transaction(ledger_key: LedgerKey, label: str, raw: Any, name: str) -> bool:
    try:
        plain = bytes.fromhex(ledger_key.open(raw, label)[2:])
    except (LedgerError, TypeError, ValueError):
        return False
    return "0x" + keccak(plain).hex() == name


def _check_pause(db: Db, replay: Replay) -> None:
    found = db.one("SELECT value FROM meta WHERE name='paused'")
    paused = found is not None and bool(found[0])
    if paused != replay.paused:
        said = {True: "paused", False: "not paused"}
        replay.problem(
            f"the ledger is {said[paused]}, by the history it should be {said[replay.paused]}"
        )


def _check_restores(db: Db, replay: Replay) -> None:
    if dict(db.all("SELECT at, micro FROM restores")) != replay.restores:
        replay.problem("what counts for rows that a restore lost is not what the history says")


def _stream(db: Db, columns: str, table: str = "history") -> Iterator[tuple[Any, ...]]:
    """Rows in the order of ``seq``, the first column, a part at a time."""
    sql = f"SELECT {columns} FROM {table} WHERE seq > ? ORDER BY seq LIMIT {_CHUNK}"  # noqa: S608
    last: Any = -(2**63)
    while rows := db.all(sql, last):
        yield from rows
        last = rows[-1][0]


# --- exporting ------------------------------------------------------------------------------------


def _payment_records(db: Db) -> Iterator[dict[str, Any]]:
    for row in _stream(db, f"seq, {', '.join(_SHOWN)}", "payments"):
        record = dict(zip(_SHOWN, row[1:], strict=True))
        yield {
            "record": "payment",
            "seq": row[0],
            "payment_id": record.pop("id"),
            "at": _moment(record.pop("at")),
            "updated_at": _moment(record.pop("updated")),
            "usd": _dollars(record["micro"]),
            "transaction": record.pop("trans"),
            **record,
        }


def _history_records(db: Db) -> Iterator[dict[str, Any]]:
    for seq, at, payment, kind, text, mac in _stream(db, "seq, at, payment, kind, data, mac"):
        yield {
            "record": "history",
            "seq": seq,
            "at": _moment(at),
            "payment_id": payment,
            "kind": kind,
            "data": text,
            "mac": mac.hex() if isinstance(mac, bytes) else mac,
        }


def _moment(value: Any) -> Any:
    """A time as text; what is no time (somebody wrote to the table) as it is."""
    return as_datetime(value).isoformat() if type(value) is int else value


def _dollars(micro: Any) -> Any:
    return str(usd(micro)) if type(micro) is int else micro


def _write_lines(records: Iterable[Mapping[str, Any]], file: IO[str]) -> int:
    written = 0
    for written, record in enumerate(records, 1):  # noqa: B007
        file.write(json.dumps(record, default=repr) + "\n")
    return written


_FIELDS: Final = (
    "record",
    "seq",
    "payment_id",
    "at",
    "updated_at",
    "state",
    "kind",
    "service",
    "origin",
    "route",
    "usd",
    "micro",
    "amount",
    "asset",
    "network",
    "payer",
    "pay_to",
    "operation",
    "outcome",
    "delivered",
    "transaction",
    "seen",
    "nonce",
    "valid_before",
    "header",
    "proof_digest",
    "note",
    "reason",
    "data",
    "mac",
    "ok",
    "rows",
    "problems",
    "unknown",
)


def _write_csv(records: Iterable[Mapping[str, Any]], file: IO[str]) -> int:
    table: csv.DictWriter[str] = csv.DictWriter(file, _FIELDS, lineterminator="\n")
    table.writeheader()
    written = 0
    for written, record in enumerate(records, 1):  # noqa: B007
        table.writerow({name: _cell(value) for name, value in record.items()})
    return written


def _cell(value: Any) -> Any:
    """A value as a spreadsheet should read it: never as a formula."""
    if isinstance(value, list):
        value = "; ".join(value)
    if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")):
        return "'" + value
    return value
