"""A ledger is one place, fixed when it is named: one budget wherever its process goes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ledger.kit import WIDE, reserved, used
from x402_mask import PostgresLedger, SQLiteLedger


@pytest.fixture
def rooms(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """Return two directories; the process is in the first, and goes home at the end."""
    before = Path.cwd()
    found = tmp_path / "one", tmp_path / "other"
    for room in found:
        room.mkdir()
    os.chdir(found[0])
    yield found
    os.chdir(before)


def test_a_relative_path_stays_where_it_was_named(rooms: tuple[Path, Path]) -> None:
    """Through a change of directory, a close and an opening; key and head go with it."""
    one, other = rooms
    ledger = SQLiteLedger("ledger.db")
    assert ledger.path == one / "ledger.db"
    os.chdir(other)  # before it was ever opened
    reserved(ledger)
    ledger.close()
    os.chdir(one)
    assert used(ledger, WIDE) == 1000
    os.chdir(other)
    ledger.close()
    reserved(ledger)
    assert used(SQLiteLedger(one / "ledger.db"), WIDE) == 2000
    ledger.close()
    assert list(other.iterdir()) == []
    assert {"ledger.db", "ledger.db.key", "ledger.db.head"} <= {x.name for x in one.iterdir()}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_in_another_directory_has_the_same_budget(rooms: tuple[Path, Path]) -> None:
    _one, other = rooms
    ledger = SQLiteLedger("ledger.db")
    reserved(ledger)
    os.chdir(other)
    child = os.fork()
    if child == 0:
        try:
            reserved(ledger)
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert used(ledger, WIDE) == 2000
    ledger.close()
    assert list(other.iterdir()) == []


def test_a_tilde_is_the_home_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert SQLiteLedger("~/money/l.db").path == tmp_path / "money" / "l.db"
    assert SQLiteLedger(Path("~") / "l.db").path == tmp_path / "l.db"
    with pytest.raises(ValueError, match="begins with ~, and whose"):
        SQLiteLedger("~nobody-of-that-name/l.db")
    for relative in ("here", '"/root"', "./here"):  # it would follow the process's directory
        monkeypatch.setenv("HOME", relative)
        with pytest.raises(ValueError, match="begins with ~, and whose"):
            SQLiteLedger("~/l.db")


def test_the_usual_place_is_fixed_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Key and head of a shared ledger do not follow what the environment says later."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "one"))
    ledger, shared = SQLiteLedger(), PostgresLedger("dbname=x")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "other"))
    for path in (ledger.path, ledger.key_path, shared.key_path, shared.head_file.path):
        assert path.is_relative_to(tmp_path / "one")


def test_a_database_is_the_one_that_the_environment_named_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two databases that one DSN reaches are two ledgers, each with a head of its own."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    for name in ("PGHOST", "PGHOSTADDR", "PGPORT", "PGDATABASE", "PGUSER", "PGSERVICE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PGDATABASE", "one")
    first = PostgresLedger("host=db")
    monkeypatch.setenv("PGDATABASE", "two")
    second, plain = PostgresLedger("host=db"), PostgresLedger("host=db dbname=one")
    assert "dbname=one" in first._pool._conninfo() and "dbname=two" in second._pool._conninfo()
    assert first.head_file.path == plain.head_file.path != second.head_file.path
    monkeypatch.setenv("PGSERVICE", "spending")  # whose file says what the database is
    served = PostgresLedger("host=db")._pool._conninfo()
    assert "service=spending" in served and "dbname" not in served


@pytest.mark.parametrize(
    "path",
    [
        "postgresql://me:sesame@db/spend",
        "postgres:/me:sesame@db",
        "mysql://sesame@h",
        "file:l.db",
        "FILE:/tmp/sesame.db?mode=rwc",
        "sqlite:l.db",
        ":memory:",
        "",
        '"/tmp/sesame.db"',
        "'l.db'",
        "/tmp/sesame.db\n",
        " l.db",
        "a\0b",
        "a\nb",
        "host=h password=sesame dbname=d",
        "DBNAME = spend",
        "me:sesame@db/spend",
        "me:sesame@db:5432/spend",
        "$HOME/l.db",
        "${HOME}/l.db",
        "/srv/${WHERE}/l.db",
        "/home/$USER/l.db",
        "$LEDGER",
        "%APPDATA%\\l.db",
        "%APPDATA%/l.db",
        "C:\\Users\\me\\l.db",
        "c:/l.db",
        "\\\\host\\share\\l.db",
    ],
)
def test_what_names_no_file_makes_none(rooms: tuple[Path, Path], path: str) -> None:
    """Least of all a directory that is called by a password."""
    kinds = (path, Path(path)) if path and "\n" not in path else (path,)
    for named in kinds:
        with pytest.raises(ValueError, match="the path of a ledger ") as caught:
            SQLiteLedger(named)
        assert "sesame" not in str(caught.value)
    assert list(rooms[0].iterdir()) == []


def test_strange_names_of_files_are_names(rooms: tuple[Path, Path]) -> None:
    for name in (
        "a b.db",
        "it's.db",
        "ledger",
        "c:d",
        "x=y",
        "naïve.db",
        "./:memory:",
        "a$b",
        "$1.db",
        "5%.db",
        "a@b",
    ):
        ledger = SQLiteLedger(name)
        assert ledger.path == rooms[0] / name
        reserved(ledger)
        ledger.close()
