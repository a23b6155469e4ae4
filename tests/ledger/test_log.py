"""A log that is deleted while a ledger is used parts nobody from the others' payments."""

from __future__ import annotations

import os
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path

import pytest

from tests.ledger.kit import NOW, Worker, held, limits, refusal, sqlite_store, used, want
from x402_mask import Cap, CapExceeded, LedgerError, SQLiteLedger
from x402_mask._ledger.audit import verify
from x402_mask._ledger.sqlite_busy import is_broken

CAP = Cap("0.004", per="total")
"""Room for four payments."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return where the ledger of the test is."""
    return tmp_path / "ledger.db"


def pays(worker: Worker) -> bool | str:
    """Let it reserve once: whether it did, or the words of the refusal."""
    worker.go()
    answer = worker.line()
    assert isinstance(answer, bool | str)
    return answer


def deleted(path: Path, *ends: str, settled: bool) -> None:
    """Delete what lies beside the database, as a careless clean-up does."""
    if settled:
        with closing(sqlite3.connect(path)) as raw:
            raw.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    for end in ends:
        path.with_name(path.name + end).unlink(missing_ok=True)


@pytest.mark.parametrize("ends", [("-wal", "-shm"), ("-wal",), ("-shm",)], ids=str)
@pytest.mark.parametrize("first", ["who had it open", "who comes"])
def test_processes_go_on_together_after_the_log_was_deleted(
    path: Path, ends: tuple[str, ...], first: str
) -> None:
    """Each counts what the other pays, and neither fails for good."""
    spec = {"sqlite": str(path)}
    with Worker(spec, "one_by_one", "0.004") as one:
        assert pays(one) is True
        deleted(path, *ends, settled=True)
        with Worker(spec, "one_by_one", "0.004") as other:
            turns = [one, other] if first == "who had it open" else [other, one]
            answers = [pays(worker) for _ in range(3) for worker in turns]
            assert answers == [True, True, True, "CapExceeded", "CapExceeded", "CapExceeded"]
    ledger = SQLiteLedger(path)
    assert used(ledger, CAP) == 4000
    assert verify(ledger).problems == []
    ledger.close()


def test_what_only_the_deleted_log_held_is_not_lost(path: Path) -> None:
    """Its process still has it open, and writes it into the database before it opens another."""
    spec = {"sqlite": str(path)}
    with Worker(spec, "one_by_one", "0.004") as one:
        assert pays(one) is True
        deleted(path, "-wal", "-shm", settled=False)
        assert pays(one) is True
        with Worker(spec, "one_by_one", "0.004") as other:
            assert [pays(other), pays(one), pays(other)] == [True, True, "CapExceeded"]


def test_a_log_that_another_process_replaced_is_no_lock_that_both_hold(path: Path) -> None:
    """While one is at it, the other cannot read what the first is about to write."""
    ledger = sqlite_store(path).ledger
    held(ledger, CAP)
    deleted(path, "-wal", "-shm", settled=True)
    with Worker({"sqlite": str(path)}, "one_by_one", "0.004") as other:
        assert [pays(other) for _ in range(3)] == [True, True, True]
        assert ledger.spend(limits(CAP), now_us=NOW)[0].left == 0
        assert type(refusal(ledger, want(CAP))) is CapExceeded
    ledger.close()


@pytest.mark.parametrize("code", ["IOERR", "CORRUPT", "NOTADB", "CANTOPEN", "READONLY"])
def test_a_connection_that_failed_is_not_asked_again(
    path: Path, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    """Whatever broke it may be over; what is there then is compared before anything is paid."""
    ledger = SQLiteLedger(path)
    held(ledger)
    db = ledger._db
    failure = sqlite3.OperationalError(code)
    failure.sqlite_errorcode = getattr(sqlite3, f"SQLITE_{code}")
    assert is_broken(failure)

    def fail(*_args: object, **_kwargs: object) -> None:
        raise failure

    with monkeypatch.context() as patch:
        patch.setattr(ledger, "_insert", fail)
        assert type(refusal(ledger, want())) is LedgerError
    held(ledger)
    assert ledger._db is not db
    ledger.close()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root mounts")
def test_a_disk_that_was_read_only_for_a_while_is_written_again(tmp_path: Path) -> None:
    """By the process that met it: what was opened meanwhile can only read."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], check=False
    ).returncode:
        pytest.skip("no file system can be mounted here")
    ledger = SQLiteLedger(disk / "ledger.db")
    try:
        with Worker({"sqlite": str(ledger.path)}, "one_by_one", "0.004") as other:
            assert pays(other) is True
            other.kill()  # its log stays, without which nobody can read on such a disk
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        assert type(refusal(ledger, want())) is LedgerError
        assert used(ledger, CAP) == used(ledger, CAP) == 1000
        assert len(ledger.payments()) == 1
        subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
        held(ledger)
    finally:
        ledger.close()
        subprocess.run(["umount", "-l", disk], check=True)
