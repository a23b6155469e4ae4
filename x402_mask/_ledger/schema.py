"""The tables of a ledger, and what brings those of an older program up to date."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Final

from x402_mask._services import service_key
from x402_mask._wire import strict_json
from x402_mask.errors import LedgerError

if TYPE_CHECKING:
    from collections.abc import Callable

    from x402_mask._ledger.records import Db

SCHEMA_VERSION: Final = 3
"""1: payments.  2: marketplace payments, tokens and on-chain transfers besides.  3: pins by origin,
the owner's spoken no, the ledger's own id, what counts for rows that a restore lost (``micro`` is
NULL where every cap is full), and two more columns of ``payments``: ``also``, services
besides its own that a payment counts for (a JSON list), and ``again``, when a repeat of an
operation that is proven settled was first refused (microseconds); ``reason``, the seller's
words for its last refusal; and the sum over the counters,
in each row of history, and which counters it holds (``_ledger.sums``)."""

TABLES: Final = """
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT NOT NULL){plain};
CREATE TABLE IF NOT EXISTS payments (
  seq {serial}, id TEXT NOT NULL UNIQUE, at BIGINT NOT NULL, updated BIGINT NOT NULL,
  state TEXT NOT NULL, service TEXT NOT NULL, origin TEXT NOT NULL, route TEXT NOT NULL,
  micro BIGINT NOT NULL, amount TEXT NOT NULL, asset TEXT, network TEXT, payer TEXT, pay_to TEXT,
  operation TEXT NOT NULL, delivered INTEGER NOT NULL DEFAULT 0, flight TEXT,
  nonce TEXT, valid_before BIGINT, header TEXT, proof {blob}, proof_digest TEXT,
  outcome TEXT, trans TEXT, seen INTEGER NOT NULL DEFAULT 0, note TEXT NOT NULL DEFAULT '',
  also TEXT, again BIGINT, reason TEXT);
CREATE INDEX IF NOT EXISTS payments_open ON payments (operation) WHERE delivered = 0;
CREATE INDEX IF NOT EXISTS payments_reserved ON payments (flight) WHERE state = 'reserved';
CREATE INDEX IF NOT EXISTS payments_held ON payments (seq) WHERE state = 'held';
DROP INDEX IF EXISTS payments_counted;
CREATE INDEX IF NOT EXISTS payments_summed ON payments (at, service, state, micro, also);
CREATE TABLE IF NOT EXISTS meters (
  scope TEXT NOT NULL, unit TEXT NOT NULL, summed INTEGER NOT NULL DEFAULT 0,
  PRIMARY KEY (scope, unit)){plain};
CREATE TABLE IF NOT EXISTS counters (
  scope TEXT NOT NULL, unit TEXT NOT NULL, bucket BIGINT NOT NULL,
  settled BIGINT NOT NULL, held BIGINT NOT NULL, PRIMARY KEY (scope, unit, bucket)){plain};
CREATE TABLE IF NOT EXISTS payees (
  origin TEXT NOT NULL, service TEXT NOT NULL, payee TEXT NOT NULL, trusted INTEGER NOT NULL,
  at BIGINT NOT NULL, PRIMARY KEY (origin, service, payee));
CREATE TABLE IF NOT EXISTS denials (operation TEXT PRIMARY KEY, until BIGINT NOT NULL){plain};
CREATE TABLE IF NOT EXISTS restores (at BIGINT PRIMARY KEY, micro BIGINT);
CREATE TABLE IF NOT EXISTS breakers (
  origin TEXT PRIMARY KEY, failures INTEGER NOT NULL, until BIGINT NOT NULL);
CREATE TABLE IF NOT EXISTS history (
  seq {key}, at BIGINT NOT NULL, payment TEXT, kind TEXT NOT NULL,
  data TEXT NOT NULL, mac {blob} NOT NULL, sums TEXT);
CREATE TABLE IF NOT EXISTS purchases (
  payment TEXT PRIMARY KEY, stage TEXT NOT NULL, way TEXT, remote TEXT, until BIGINT,
  at BIGINT NOT NULL){plain};
CREATE TABLE IF NOT EXISTS tokens (
  payment TEXT PRIMARY KEY, origin TEXT NOT NULL, service TEXT NOT NULL, sealed {blob},
  digest TEXT NOT NULL, calls BIGINT NOT NULL, until BIGINT, live INTEGER NOT NULL,
  at BIGINT NOT NULL){plain};
CREATE INDEX IF NOT EXISTS tokens_live ON tokens (origin, service) WHERE live = 1;
CREATE TABLE IF NOT EXISTS transfers (
  payment TEXT NOT NULL, attempt INTEGER NOT NULL, network TEXT NOT NULL, payer TEXT NOT NULL,
  nonce BIGINT NOT NULL, hash TEXT NOT NULL, raw {blob} NOT NULL, max_gas TEXT NOT NULL,
  first_block BIGINT NOT NULL, state TEXT NOT NULL, at BIGINT NOT NULL,
  PRIMARY KEY (network, payer, nonce, attempt), UNIQUE (payment, attempt));
CREATE INDEX IF NOT EXISTS transfers_open ON transfers (network, payer) WHERE state = 'open';
"""

_ADDED: Final = (
    ("payments", "also", "TEXT"),
    ("payments", "again", "BIGINT"),
    ("payments", "reason", "TEXT"),
    ("meters", "summed", "INTEGER NOT NULL DEFAULT 0"),
    ("history", "sums", "TEXT"),
)
"""Columns that tables have got since their first version."""


def make_tables(db: Db, tables: str, columns: Callable[[str], set[str]]) -> None:
    """Make what is missing, in a new database or an older program's; no row of money changes.

    Another process may have done the same meanwhile: it is asked what is there, not which version.

    Args:
        db: an open transaction that writes.
        tables: :data:`TABLES` in the words of this database.
        columns: tells the names of a table's columns; none where there is no such table.
    """
    pins = _take_payees(db) if _is_old(columns("payees")) else []
    spelled = "also" not in columns("payments")
    for table, name, kind in _ADDED:
        there = columns(table)
        if there and name not in there:
            db.run(f"ALTER TABLE {table} ADD COLUMN {name} {kind}")
    for statement in tables.split(";"):
        if statement.strip():
            db.run(statement)
    if spelled:
        _join_spellings(db)
    for pin in pins:  # they hold at every origin, as they did
        sql = "INSERT INTO payees (origin, service, payee, trusted, at) VALUES ('', ?, ?, ?, ?)"
        db.run(sql, *pin)
    if meta(db, "id") is None:
        set_meta(db, "id", secrets.token_hex(16))


def _is_old(payees: set[str]) -> bool:
    return bool(payees) and "origin" not in payees


def _take_payees(db: Db) -> list[tuple[object, ...]]:
    """The pins of the second schema, whose table makes room for one with origins."""
    pins: dict[tuple[str, str], tuple[int, int]] = {}
    for service, payee, trusted, at in db.all("SELECT service, payee, trusted, at FROM payees"):
        before = pins.get(pin := (service_key(service), payee), (trusted, at))
        pins[pin] = max(before[0], trusted), min(before[1], at)
    db.run("DROP TABLE payees")
    return [(*pin, *rest) for pin, rest in pins.items()]


def _join_spellings(db: Db) -> None:
    """Let payments that an older program knew by several spellings of a service count together.

    Their counters are begun again: a cap starts that of its key when it is next asked for.
    """
    odd = {
        service: service_key(service)
        for (service,) in db.all("SELECT DISTINCT service FROM payments")
        if service != service_key(service)
    }
    for service, key in odd.items():
        db.run("UPDATE payments SET also=? WHERE service=?", strict_json.dumps([key]), service)
    scopes = {scope for (scope,) in db.all("SELECT DISTINCT scope FROM counters")}
    scopes |= {scope for (scope,) in db.all("SELECT DISTINCT scope FROM meters")}
    for scope in scopes:
        if scope != service_key(scope) or scope in odd.values():
            db.run("DELETE FROM meters WHERE scope=?", scope)
            db.run("DELETE FROM counters WHERE scope=?", scope)


def newer_schema(name: str, version: object) -> LedgerError:
    """Refusal to touch what a newer program wrote."""
    return LedgerError(
        f"{name} was written by a newer x402_mask (schema {version}, this program knows"
        f" {SCHEMA_VERSION}); upgrade this program"
    )


def meta(db: Db, name: str) -> str | None:
    """What the ledger says of itself under *name*."""
    found = db.one("SELECT value FROM meta WHERE name=?", name)
    return None if found is None else str(found[0])


def set_meta(db: Db, name: str, value: str) -> None:
    """Write down what the ledger says of itself."""
    sql = "INSERT INTO meta (name, value) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value=?"
    db.run(sql, name, value, value)
