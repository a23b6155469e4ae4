"""A schema that somebody changed is found when the ledger is opened, before anything is paid."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.ledger.conftest import KEY, clear
from tests.ledger.kit import WIDE, Store, held, refusal, reserved, sqlite_store, used, want
from tests.ledger.test_schema import OLDER, as_before
from tests.support.postgres import Postgres
from x402_mask import LedgerError, PostgresLedger, SQLiteLedger

FREE = "UPDATE counters SET held=0, settled=0"

EITHER: dict[str, tuple[str, str]] = {
    "another column": ("ALTER TABLE payments ADD COLUMN more TEXT", "table payments is not as"),
    "a column gone": ("ALTER TABLE payments DROP COLUMN again", "table payments is not as"),
    "a column renamed": ("ALTER TABLE payments RENAME again TO more", "table payments is not as"),
    "an index gone": ("DROP INDEX payments_held", "index payments_held is missing"),
    "another index": (
        "CREATE UNIQUE INDEX one ON payments (service)",
        "index one is not as x402_mask made it",
    ),
    "an index on less": (
        "DROP INDEX payments_held; CREATE INDEX payments_held ON payments (seq)",
        "index payments_held is not as",
    ),
    "a table gone": ("DROP TABLE breakers", "table breakers is missing"),
    "a table of somebody's": ("CREATE TABLE extra (x TEXT)", "table extra is not as"),
    "a view in place of a table": (
        (
            "ALTER TABLE meters RENAME TO meters_;"
            " CREATE VIEW meters AS SELECT * FROM meters_ WHERE 1=0"
        ),
        "(view|table|index) meters",
    ),
    "a view": ("CREATE VIEW v AS SELECT * FROM payments", "view v is not as"),
}

SQLITE: dict[str, tuple[str, str]] = {
    "a trigger": (
        f"CREATE TRIGGER t AFTER INSERT ON payments BEGIN {FREE}; END|",
        "trigger t is not as",
    ),
    "a trigger called like a backup's table": (
        f"CREATE TRIGGER _litestream_t AFTER INSERT ON history BEGIN {FREE}; END|",
        "trigger _litestream_t is not as",
    ),
    "a view called so": ("CREATE VIEW _litestream_v AS SELECT 1", "view _litestream_v is not as"),
    "a check": (
        (
            "DROP TABLE breakers; CREATE TABLE breakers (origin TEXT PRIMARY KEY, failures INTEGER NOT"
            " NULL CHECK (failures < 0), until BIGINT NOT NULL)"
        ),
        "table breakers is not as",
    ),
    "no key": (
        (
            "DROP TABLE breakers; CREATE TABLE breakers (origin TEXT, failures INTEGER NOT NULL,"
            " until BIGINT NOT NULL)"
        ),
        "table breakers is not as",
    ),
    "another collation": (
        (
            "DROP TABLE breakers; CREATE TABLE breakers (origin TEXT PRIMARY KEY COLLATE NOCASE,"
            " failures INTEGER NOT NULL, until BIGINT NOT NULL)"
        ),
        "table breakers is not as",
    ),
}

POSTGRES: dict[str, tuple[str, str]] = {
    "a trigger": (
        (
            "CREATE OR REPLACE FUNCTION public.f() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END"
            " $$; CREATE TRIGGER t BEFORE INSERT ON counters EXECUTE FUNCTION public.f()"
        ),
        "trigger t is not as",
    ),
    "a rule": ("CREATE RULE r AS ON UPDATE TO payments DO INSTEAD NOTHING", "rule r is not as"),
    "a policy on rows": ("ALTER TABLE payments ENABLE ROW LEVEL SECURITY", "payments is not as"),
    "a check": ("ALTER TABLE payments ADD CONSTRAINT c CHECK (micro > 0)", "constraint c is not"),
    "a foreign key": (
        "ALTER TABLE tokens ADD CONSTRAINT c FOREIGN KEY (payment) REFERENCES payments (id)",
        "constraint c is not",
    ),
    "a column that may be empty": (
        "ALTER TABLE payments ALTER COLUMN micro DROP NOT NULL",
        "payments is not as",
    ),
    "another default": ("ALTER TABLE payments ALTER seen SET DEFAULT 1", "payments is not as"),
    "another type": ("ALTER TABLE payments ALTER micro TYPE integer", "payments is not as"),
    "a table that a crash empties": ("ALTER TABLE counters SET UNLOGGED", "counters is not as"),
    "a table that inherits": (
        "CREATE TABLE public.heir () INHERITS (x402_mask.counters)",
        "table counters is not as",
    ),
    "a function": (
        "CREATE FUNCTION x402_mask.sum(int) RETURNS int LANGUAGE sql AS 'SELECT 0'",
        "function sum is not as",
    ),
    "everybody's table": (
        "GRANT UPDATE ON counters TO PUBLIC",
        "grant to everybody on counters is not as",
    ),
    "everybody's schema": (
        "GRANT CREATE ON SCHEMA x402_mask TO PUBLIC",
        "grant to everybody on x402_mask is not as",
    ),
}


def change(store: Store, statements: str) -> None:
    """Execute behind the ledger's back; ``|`` ends the statements, where one has ``;`` inside."""
    if store.kind == "postgres" or statements.endswith("|"):
        with closing(store.raw()) as raw:
            raw.execute(statements.removesuffix("|"))
        return
    for statement in statements.split(";"):
        store.sql(statement)


def check(store: Store, statements: str, sentence: str) -> None:
    """A changed schema is said, by whatever is asked, and nothing is reserved."""
    held(store.ledger)
    store.ledger.close()
    change(store, statements)
    for ask in (lambda x: x.reserve(want()), lambda x: x.payments(), lambda x: x.is_paused()):
        with pytest.raises(LedgerError, match=f"schema of .* was changed: the .*{sentence}"):
            ask(store.again())


@pytest.mark.parametrize("what", EITHER)
def test_a_changed_schema_is_found_when_the_ledger_is_opened(shared: Store, what: str) -> None:
    check(shared, *EITHER[what])


@pytest.mark.parametrize("what", SQLITE)
def test_what_only_sqlite_can_be_changed_to(tmp_path: Path, what: str) -> None:
    check(sqlite_store(tmp_path / "ledger.db"), *SQLITE[what])


@pytest.mark.parametrize("shared", ["postgres"], indirect=True)
@pytest.mark.parametrize("what", POSTGRES)
def test_what_only_postgres_can_be_changed_to(shared: Store, what: str) -> None:
    try:
        check(shared, *POSTGRES[what])
    finally:
        shared.sql("DROP TABLE IF EXISTS public.heir")
        shared.sql("DROP FUNCTION IF EXISTS public.f CASCADE")


@pytest.mark.parametrize("version", OLDER)
def test_an_older_ledger_with_a_trigger_is_not_brought_up_to_date(
    shared: Store, version: int
) -> None:
    """What brings it up to date would run it."""
    reserved(shared.ledger)
    shared.ledger.close()
    as_before(shared, version)
    change(shared, (SQLITE if shared.kind == "sqlite" else POSTGRES)["a trigger"][0])
    assert "trigger t is not as x402_mask made it" in str(refusal(shared.again(), want()))


def test_statistics_and_a_backup_program_are_no_change(tmp_path: Path) -> None:
    """``ANALYZE`` and Litestream keep tables of their own; neither touches ours."""
    store = sqlite_store(tmp_path / "ledger.db")
    held(store.ledger)
    store.ledger.close()
    for statement in (
        "ANALYZE",
        "CREATE TABLE _litestream_seq (id INTEGER PRIMARY KEY, seq INTEGER)",
        "CREATE TABLE _litestream_lock (id INTEGER)",
        "VACUUM",
    ):
        store.sql(statement)
    assert used(store.again(), WIDE) == 1000


@pytest.fixture
def shadowed(postgres: Postgres) -> Iterator[str]:
    """Return a database whose search path and public schema were prepared by somebody."""
    import psycopg

    dsn = postgres.database()
    with psycopg.connect(dsn, autocommit=True) as raw:
        raw.execute("CREATE TABLE public.payments (x TEXT)")
        raw.execute("CREATE VIEW public.meta AS SELECT 'paused' AS name, '1' AS value")
    yield dsn
    clear(dsn)


def test_tables_of_other_schemas_are_never_meant(shadowed: str) -> None:
    ledger = PostgresLedger(f"{shadowed} options=-csearch_path=public", key=KEY)
    reserved(ledger)
    assert not ledger.is_paused()
    assert used(ledger, WIDE) == 1000
    ledger.close()


def test_looking_takes_no_longer_on_a_long_past(tmp_path: Path) -> None:
    """Nothing that opening does reads the rows of the past."""
    path = tmp_path / "ledger.db"
    held(SQLiteLedger(path))

    def opening() -> float:
        began = time.perf_counter()
        ledger: Any = SQLiteLedger(path)
        ledger.is_paused()
        took = time.perf_counter() - began
        ledger.close()
        return took

    short = min(opening() for _ in range(5))
    with closing(sqlite3.connect(path)) as raw:
        raw.executescript(
            "WITH RECURSIVE n(i) AS (SELECT 2 UNION ALL SELECT i+1 FROM n WHERE i<60000)"
            " INSERT INTO payments (seq, id, at, updated, state, service, origin, route, micro,"
            " amount, operation) SELECT i, 'p' || i, i, i, 'released', 's', 'o', 'x402', 1, '1', ''"
            " FROM n"
        )
    assert min(opening() for _ in range(5)) < 5 * short + 0.02
