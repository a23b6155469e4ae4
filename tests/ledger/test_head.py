"""A head file that no ledger wrote is refused or made anew, whatever it is, and never waited for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.ledger.kit import held, refusal, together, want
from x402_mask import LedgerError, SQLiteLedger
from x402_mask._ledger.head import HeadFile

MAC = "ab" * 32


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
@pytest.mark.parametrize("end", [".head", ".key", "-wal", "-shm", "-journal", ""])
def test_a_pipe_in_place_of_a_file_is_refused_at_once(tmp_path: Path, end: str) -> None:
    path = tmp_path / "ledger.db"
    first = SQLiteLedger(path)
    held(first)
    first.close()
    file = path.with_name(path.name + end)
    file.unlink(missing_ok=True)
    os.mkfifo(file)
    ledger = SQLiteLedger(path)
    (error,) = together(1, lambda _: refusal(ledger, want()))
    assert type(error) is LedgerError
    assert f"unable to open ledger.db{end}: it is not a file" in str(error)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_put_there_while_the_ledger_runs_is_not_waited_for(tmp_path: Path) -> None:
    ledger = SQLiteLedger(tmp_path / "ledger.db")
    held(ledger)
    ledger.head_file.path.unlink()
    os.mkfifo(ledger.head_file.path)
    ledger.head_file.close()
    (answer,) = together(1, lambda _: ledger.reserve(want()))
    assert not isinstance(answer, Exception)
    (head,) = together(1, lambda _: ledger.head_file.durable())
    assert head is None
    ledger.close()


@pytest.mark.parametrize(
    "record",
    [
        f'{{"seq":Infinity,"mac":"{MAC}"}}',
        f'{{"seq":1e999,"mac":"{MAC}"}}',
        f'{{"seq":NaN,"mac":"{MAC}"}}',
        f'{{"seq":{2**63},"mac":"{MAC}"}}',
        f'{{"seq":{10**60},"mac":"{MAC}"}}',
        f'{{"seq":3,"mac":"{MAC}","ledger":"","era":{2**63}}}',
        f'{{"seq":3,"mac":"{MAC}","ledger":"","era":-Infinity}}',
        f'{{"seq":[3],"mac":"{MAC}"}}',
        '{"seq":3,"mac":3}',
        "[" * 250,
    ],
)
def test_a_record_that_no_ledger_wrote_is_none(tmp_path: Path, record: str) -> None:
    path = tmp_path / "ledger.db"
    ledger = SQLiteLedger(path)
    held(ledger)
    ledger.close()
    ledger.head_file.path.write_text(record.ljust(256))
    assert HeadFile(ledger.head_file.path).read() is None
    held(ledger)
    ledger.close()
