"""Every promise of a ledger is tested on each kind of ledger."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ledger.kit import Store, sqlite_store
from tests.support.postgres import Postgres, own_postgres, postgres, summary
from x402_mask import MemoryLedger
from x402_mask._ledger.ledger import Ledger

__all__ = ["own_postgres", "postgres"]

KEY = "5c" * 32
KINDS = ("memory", "sqlite", "postgres")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what could not run."""
    summary(terminalreporter)


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No data directory, key or DSN of the person who runs the tests."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    for name in ("X402_MASK_LEDGER_KEY", "PGPASSWORD", "PGSERVICE", "PGHOST"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def shared_dsn(postgres: Postgres) -> str:
    """Return a database for one test after the other."""
    return postgres.database()


@pytest.fixture
def dsn(shared_dsn: str) -> Iterator[str]:
    """Return a database without a ledger."""
    yield shared_dsn
    clear(shared_dsn)


def clear(dsn: str) -> None:
    """Forget the ledger, and everybody who still uses it."""
    import psycopg

    with psycopg.connect(dsn, autocommit=True) as raw:
        for tries in range(5):  # whoever is cut off may be at the tables in that very moment
            raw.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            try:
                raw.execute("DROP SCHEMA IF EXISTS x402_mask CASCADE")
            except psycopg.OperationalError:  # a deadlock, or rows that another changed
                if tries == 4:
                    raise
            else:
                return


def postgres_store(dsn: str) -> Store:
    """A ledger in PostgreSQL."""
    import psycopg

    from x402_mask import PostgresLedger

    return Store(
        kind="postgres",
        ledger=PostgresLedger(dsn, key=KEY),
        again=lambda: PostgresLedger(dsn, key=KEY),
        raw=lambda: psycopg.connect(f"{dsn} options=-csearch_path=x402_mask", autocommit=True),
        spec={"postgres": dsn, "key": KEY},
    )


def memory_store() -> Store:
    """A ledger in memory."""
    ledger = MemoryLedger()

    def raw() -> None:
        raise AssertionError("what is in memory is in one place")

    return Store(kind="memory", ledger=ledger, again=lambda: ledger, raw=raw, spec={})


def made(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Store]:
    """A store of *kind*; its ledgers are closed when the test is over."""
    if kind == "memory":
        store = memory_store()
    elif kind == "sqlite":
        store = sqlite_store(tmp_path / "ledger.db")
    else:
        store = postgres_store(request.getfixturevalue("dsn"))
    opened: list[Ledger] = [store.ledger]

    def again() -> Ledger:
        opened.append(store.again())
        return opened[-1]

    yield Store(kind, store.ledger, again, store.raw, store.spec)
    for ledger in opened:
        ledger.close()


@pytest.fixture(params=KINDS)
def store(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Store]:
    """Return a store of each kind."""
    yield from made(request.param, tmp_path, request)


@pytest.fixture(params=KINDS[1:])
def shared(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Store]:
    """Return a store of each kind that processes can share."""
    yield from made(request.param, tmp_path, request)


@pytest.fixture
def ledger(store: Store) -> Ledger:
    """Return a ledger of each kind."""
    return store.ledger
