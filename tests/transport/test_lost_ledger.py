"""A ledger that goes away, or comes back older, while a client pays from it."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.support.seller import Reply
from tests.transport.kit import Rig, kinds
from x402_mask import LedgerError, SQLiteLedger

FILES = ("", "-wal", "-shm")


def remove(path: Path) -> None:
    """Delete the ledger under whoever has it open."""
    for end in FILES:
        path.with_name(path.name + end).unlink(missing_ok=True)


@kinds("client", "attach")
async def test_an_answer_is_handed_over_though_its_ledger_is_gone(rig: Rig, tmp_path: Path) -> None:
    """It was paid for; what comes after it is not."""
    path = tmp_path / "l.db"
    rig.payer = rig.make_payer(ledger=SQLiteLedger(path))

    def gone(_: Any) -> Reply:
        remove(path)
        return Reply(body=b"here it is")

    rig.sells(paid=gone)
    response = await rig.get()
    assert response.status_code == 200
    for _ in range(2):
        with pytest.raises(LedgerError, match="is empty or gone") as caught:
            await rig.get()
        assert not caught.value.at_risk
    assert len(rig.proofs) == 1
    assert not path.exists()


@kinds("client", "attach")
async def test_nothing_is_signed_on_an_older_ledger(rig: Rig, tmp_path: Path) -> None:
    path = tmp_path / "l.db"
    rig.payer = rig.make_payer(ledger=SQLiteLedger(path))
    rig.sells()
    await rig.get()
    with closing(sqlite3.connect(path)) as raw:
        raw.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    shutil.copy(path, tmp_path / "older")
    await rig.get()
    remove(path)
    shutil.copy(tmp_path / "older", path)
    for _ in range(2):
        with pytest.raises(LedgerError, match="older than itself") as caught:
            await rig.get()
        assert caught.value.response is not None  # as every error after a 402
    assert len(set(rig.proofs)) == 2
