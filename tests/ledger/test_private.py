"""What belongs to the ledger is its owner's alone, whatever the umask was and whoever came before."""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ledger.conftest import KEY
from tests.ledger.kit import WIDE, held, refusal, reserved, used, want
from x402_mask import LedgerError, PostgresLedger, SQLiteLedger
from x402_mask._ledger.audit import verify

pytestmark = pytest.mark.skipif(os.name == "nt", reason="POSIX modes")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return where the ledger of the test is."""
    return tmp_path / "ledger.db"


@pytest.fixture
def generous() -> Iterator[None]:
    """Let the process make files for everybody."""
    before = os.umask(0)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    """Who may do what."""
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.usefixtures("generous")
def test_no_umask_opens_a_ledger_to_others(tmp_path: Path) -> None:
    """... nor the directories that are made for it."""
    ledger = SQLiteLedger(tmp_path / "a" / "b" / "ledger.db")
    held(ledger)
    found = {file.name: mode(file) for file in (tmp_path / "a").rglob("*")}
    ledger.close()
    assert set(found) > {"b", "ledger.db", "ledger.db-wal", "ledger.db.key", "ledger.db.head"}
    assert mode(tmp_path / "a") == found.pop("b") == 0o700
    assert set(found.values()) == {0o600}, found


@pytest.mark.usefixtures("generous")
def test_no_umask_opens_the_key_of_a_fleet(dsn: str, tmp_path: Path) -> None:
    ledger = PostgresLedger(dsn)
    held(ledger)
    folder = ledger.key_path.parent
    ledger.close()
    assert mode(folder) == mode(tmp_path / "data") == 0o700
    assert {mode(file) for file in folder.iterdir()} == {0o600}


@pytest.mark.parametrize("name", ["ledger.db", "ledger.db.key", "ledger.db.head", "ledger.db-wal"])
@pytest.mark.parametrize(
    ("wide", "what"),
    [(0o644, "read"), (0o666, "read and write"), (0o622, "write"), (0o640, "read")],
)
def test_a_file_that_others_may_use_is_mended_and_said(
    path: Path, name: str, wide: int, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    first = SQLiteLedger(path)
    held(first)
    file = path.with_name(name)
    file.chmod(wide)
    caplog.set_level(logging.WARNING)
    second = SQLiteLedger(path)
    reserved(second)
    assert mode(file) == 0o600
    assert f"others could {what} {name} (mode {wide:03o}); now only its owner can" in caplog.text
    caplog.clear()
    SQLiteLedger(path).payments()
    assert not caplog.text
    assert used(second, WIDE) == 2000
    for ledger in (first, second):
        ledger.close()


def test_what_cannot_be_mended_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system without modes, or somebody else's file."""
    ledger = SQLiteLedger(path)
    held(ledger)
    ledger.close()
    ledger.key_path.chmod(0o644)
    monkeypatch.setattr(Path, "chmod", lambda *_: None)
    said = str(refusal(SQLiteLedger(path), want()))
    assert "others may read ledger.db.key, and its mode cannot be changed" in said
    monkeypatch.undo()
    ledger.key_path.chmod(0o600)
    monkeypatch.setattr(os, "geteuid", lambda: 4321)
    if os.getuid() != 0:
        assert "belongs to another user" in str(refusal(SQLiteLedger(path), want()))


@pytest.mark.parametrize(
    "name",
    ["ledger.db.key", "ledger.db.head", "ledger.db-wal", "ledger.db-shm", "ledger.db-journal"],
)
@pytest.mark.parametrize("there", [True, False])
def test_a_planted_link_is_refused(path: Path, name: str, there: bool) -> None:
    """A key that somebody knows, or a file of the owner's that would be written over."""
    victim = path.with_name("victim")
    if there:
        victim.write_text("11" * 32 + "\n")
    path.with_name(name).symlink_to(victim)
    ledger = SQLiteLedger(path)
    said = str(refusal(ledger, want()))
    assert f"{name} is a link to another file" in said
    assert victim.exists() == there
    assert not there or victim.read_text() == "11" * 32 + "\n"


def test_a_link_put_in_while_the_ledger_runs_is_not_written_through(path: Path) -> None:
    ledger, victim = SQLiteLedger(path), path.with_name("victim")
    reserved(ledger)
    ledger.close()
    ledger.payments()  # open, and the head is not
    victim.write_text("precious")
    ledger.head_file.path.unlink()
    ledger.head_file.path.symlink_to(victim)
    try:
        reserved(ledger)
    except LedgerError:
        pass
    finally:
        ledger.close()
    assert victim.read_text() == "precious"


def test_a_planted_link_to_the_key_of_a_fleet_is_refused(dsn: str, tmp_path: Path) -> None:
    known = tmp_path / "known"
    known.write_text("11" * 32 + "\n")
    ledger = PostgresLedger(dsn)
    ledger.key_path.parent.mkdir(parents=True)
    ledger.key_path.symlink_to(known)
    assert "postgres.key is a link to another file" in str(refusal(ledger, want()))
    elsewhere = PostgresLedger(dsn, key=KEY)
    elsewhere.head_file.path.symlink_to(known)
    assert "is a link to another file" in str(refusal(elsewhere, want()))


def test_a_database_behind_ones_own_link_is_that_database(tmp_path: Path) -> None:
    real, link = tmp_path / "disk" / "real.db", tmp_path / "ledger.db"
    ledger = SQLiteLedger(real)
    held(ledger)
    ledger.close()
    for end in (".key", ".head"):
        real.with_name(real.name + end).rename(link.with_name(link.name + end))
    link.symlink_to(real)
    again = SQLiteLedger(link)
    assert used(again, WIDE) == 1000
    assert verify(again).problems == []
    again.close()


@pytest.mark.parametrize("case", ["nothing there", "a shared directory"])
def test_a_database_behind_a_link_of_anybodys_is_refused(tmp_path: Path, case: str) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    target, link = tmp_path / "theirs.db", shared / "ledger.db"
    link.symlink_to(target)
    if case == "a shared directory":
        SQLiteLedger(target).payments()
        shared.chmod(0o777)
    said = str(refusal(SQLiteLedger(link), want()))
    assert "ledger.db is a link that somebody else may have put there" in said
    assert target.exists() == (case == "a shared directory")
