"""``ledger accept``: the way on after a restore."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from tests.cli.conftest import Cli, Sells
from tests.support.seller import Seller


@pytest.fixture
def lost(cli: Cli, sells: Sells, tmp_path: Path) -> Cli:
    """Return a command line whose ledger is older than it was, by one payment of 0.10."""
    sells()
    path = cli.home / "l.db"
    mine = cli.having(X402_MASK_LEDGER="l.db", X402_MASK_CAPS="0.25/call,1/day", COLUMNS="400")
    assert mine("call", "thing", "n=1").code == 0
    with closing(sqlite3.connect(path)) as raw:
        raw.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    shutil.copy(path, tmp_path / "older.db")
    assert mine("call", "thing", "n=2").code == 0
    for end in ("-wal", "-shm"):
        path.with_name("l.db" + end).unlink(missing_ok=True)
    shutil.copy(tmp_path / "older.db", path)
    return mine


def test_nothing_is_paid_from_an_older_ledger(lost: Cli, seller: Seller) -> None:
    """Before anything is signed; doctor says what to do, and so does every other question."""
    before = len(seller.proofs())
    for command in (("call", "thing", "n=3"), ("spend",), ("payments",), ("pause",), ("doctor",)):
        done = lost(*command)
        assert done.code == 1
        assert "is older than itself: 3 rows are missing from its history" in done.words
        assert "`x402-mask ledger accept`" in done.words
    assert len(seller.proofs()) == before


def test_what_is_missing_is_shown_and_asked_about(lost: Cli, seller: Seller) -> None:
    for answer in ("n\n", ""):
        done = lost("ledger", "accept", stdin=answer)
        assert done.code == 1
        assert "3 rows are missing" in done.words
        assert "count every cap as full until its window has passed" in done.words
        assert lost("call", "thing", "n=3").code == 1
    done = lost("ledger", "accept", stdin="y\n")
    assert done.code == 0
    assert "accepted: every cap is full until its window has passed" in done.words
    assert len(seller.proofs()) == 2
    refused = lost("call", "thing", "n=3")
    assert refused.code == 3
    assert "would exceed the cap $1.00/day" in refused.words
    spend = lost("spend")
    assert "caps are full since a loss was accepted at" in spend.words
    (day,) = [c for c in lost("spend", "--json").document["caps"] if c["per"] == "day"]
    assert day["left"] == "0.00"
    doctor = lost("doctor").words
    assert "caps are full since a loss was accepted at" in doctor
    assert "everything is as it was written" in doctor


def test_an_amount_takes_the_place_of_full_caps(lost: Cli) -> None:
    assert lost("ledger", "accept", "--yes").code == 0
    done = lost("ledger", "accept", "--spent", "$0.10", "--yes", "--json")
    assert done.code == 0
    assert done.document["accepted"] is True
    assert (done.document["missing"], done.document["spent"]) == (0, "0.10")
    (day,) = [c for c in lost("spend", "--json").document["caps"] if c["per"] == "day"]
    assert day["left"] == "0.80"  # of 1.00: 0.10 that the copy knows, and 0.10 that was said
    assert lost("call", "thing", "n=3").code == 0
    assert "$0.10 counts against caps since a loss was accepted" in lost("spend").words


def test_it_is_said_in_one_document(lost: Cli) -> None:
    document = lost("ledger", "accept", "--yes", "--json").document
    assert document == {
        "ledger": str(lost.home / "l.db"),
        "accepted": True,
        "missing": 3,
        "another": False,
        "wrong": None,
        "head_made": None,
        "spent": None,
    }
    assert lost("ledger", "accept", "--json").document["accepted"] is False


def test_there_may_be_nothing_to_accept(cli: Cli, sells: Sells) -> None:
    sells()
    assert cli("call", "thing", "n=1").code == 0
    done = cli("ledger", "accept")
    assert done.code == 0
    assert "there is nothing to accept" in done.words
    assert cli("ledger", "accept", "--spent", "-1").code == 2
    assert cli("ledger", "accept", "--spent", "much").code == 2


def test_a_missing_head_is_a_line_in_doctor_until_it_is_accepted(cli: Cli, sells: Sells) -> None:
    sells()
    mine = cli.having(X402_MASK_LEDGER="l.db", COLUMNS="400")
    assert mine("call", "thing", "n=1").code == 0
    (cli.home / "l.db.head").unlink()
    line = "its head file was missing and was made anew at"
    for _ in range(2):
        done = mine("doctor")
        assert line in done.words
        assert "everything is as it was written" in done.words
    assert mine("ledger", "accept", "--spent", "0", "--yes").code == 0
    assert line not in mine("doctor").words
    assert mine("call", "thing", "n=2").code == 0


def test_a_ledger_that_is_gone_is_not_accepted(lost: Cli) -> None:
    (lost.home / "l.db").unlink()
    done = lost("ledger", "accept", "--yes")
    assert done.code == 1
    assert "is empty or gone" in done.words
    assert not (lost.home / "l.db").exists()
