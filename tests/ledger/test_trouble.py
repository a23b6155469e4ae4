"""Broken files, lost keys, full disks: money is never freed by doubt, and the error says what to do."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.ledger.kit import (
    NOW,
    ROOT,
    WIDE,
    Store,
    end,
    held,
    in_state,
    proof,
    refusal,
    reserved,
    state_of,
    used,
    want,
)
from x402_mask import LedgerError, SQLiteLedger
from x402_mask._ledger.audit import verify
from x402_mask._ledger.ledger import Ledger
from x402_mask._ledger.schema import SCHEMA_VERSION


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return where the ledger of the test is."""
    return tmp_path / "ledger.db"


@pytest.fixture
def full(path: Path) -> Iterator[SQLiteLedger]:
    """Return a ledger with a few payments, closed on disk."""
    made = SQLiteLedger(path)
    for state in ("held", "settled", "released"):
        in_state(made, state)
    made.close()
    yield made
    made.close()


def complaint(ledger: Ledger) -> str:
    """What a reservation and a question are both refused with."""
    error = refusal(ledger, want())
    assert type(error) is LedgerError
    assert not error.at_risk
    with pytest.raises(LedgerError):
        ledger.payments()
    return str(error)


# --- keys -----------------------------------------------------------------------------------------


def test_without_its_key_a_ledger_does_not_open(full: SQLiteLedger, path: Path) -> None:
    key = full.key_path.read_bytes()
    full.key_path.unlink()
    assert "ledger.db.key is missing or belongs to another ledger; restore it" in complaint(full)
    assert not full.key_path.exists()  # a new key would only hide what is missing

    full.key_path.write_bytes(b"ab" * 32 + b"\n")
    assert "belongs to another ledger" in complaint(SQLiteLedger(path))
    full.key_path.write_bytes(b"not a key")
    assert "not a ledger key; restore it from a backup" in complaint(SQLiteLedger(path))
    full.key_path.write_bytes(key)
    reserved(full)
    assert used(full, WIDE) == 3000


def test_a_first_call_that_stores_a_proof_makes_no_key_either(full: SQLiteLedger) -> None:
    full.key_path.unlink()
    fresh = SQLiteLedger(full.path)
    with pytest.raises(LedgerError, match="missing or belongs"):
        fresh.hold("pay_1", proof(), now_us=NOW)
    assert not full.key_path.exists()


@pytest.mark.skipif(os.name == "nt", reason="POSIX modes")
def test_only_the_owner_can_read_what_the_ledger_writes(path: Path) -> None:
    ledger = SQLiteLedger(path)
    held(ledger)
    modes = {file.name: file.stat().st_mode & 0o777 for file in path.parent.glob("ledger.db*")}
    ledger.close()
    assert len(modes) == 5, modes
    assert set(modes.values()) == {0o600}, modes


def test_a_proof_of_another_payment_is_not_accepted(store: Store) -> None:
    """Somebody who can write the database cannot make us present one proof for another."""
    if store.kind == "memory":
        pytest.skip("nobody else can write it")
    ledger = store.ledger
    first, _ = held(ledger)
    second, _ = held(ledger)
    for made in (first, second):
        ledger.finish(made.id, end("unknown"), now_us=NOW)
    store.sql(
        "UPDATE payments SET proof = (SELECT proof FROM payments WHERE id = ?) WHERE id = ?",
        first.id,
        second.id,
    )
    with pytest.raises(LedgerError, match="cannot be decrypted"):
        ledger.claim(second.id, now_us=NOW)
    assert ledger.claim(first.id, now_us=NOW) is not None


# --- other programs -------------------------------------------------------------------------------


def test_an_older_program_refuses_a_newer_ledger(full: SQLiteLedger, path: Path) -> None:
    with closing(sqlite3.connect(path)) as raw:
        raw.execute(f"PRAGMA user_version={SCHEMA_VERSION + 1}")
    said = complaint(SQLiteLedger(path))
    assert f"written by a newer x402_mask (schema {SCHEMA_VERSION + 1}" in said
    assert "upgrade this program" in said


def test_a_database_of_something_else_is_left_alone(path: Path) -> None:
    with closing(sqlite3.connect(path)) as raw:
        raw.execute("CREATE TABLE recipes (name TEXT)")
    assert "not a ledger of x402_mask" in complaint(SQLiteLedger(path))
    with closing(sqlite3.connect(path)) as raw:
        assert raw.execute("SELECT name FROM sqlite_master").fetchall() == [("recipes",)]


# --- damage ---------------------------------------------------------------------------------------


def garbage(path: Path) -> None:
    """Text, not a database."""
    path.write_bytes(b"these are not the payments you are looking for" * 100)


def scrambled(path: Path) -> None:
    """The header is fine, the pages are not."""
    data = bytearray(path.read_bytes())
    data[1024:] = os.urandom(len(data) - 1024)
    path.write_bytes(data)


def cut(path: Path) -> None:
    """The end of the file is gone."""
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 3)


@pytest.mark.parametrize("harm", [garbage, scrambled, cut])
def test_a_damaged_file_is_named_and_nothing_is_reserved(
    full: SQLiteLedger, path: Path, harm: Any
) -> None:
    harm(path)
    damaged = path.read_bytes()
    ledger = SQLiteLedger(path)
    error = refusal(ledger, want())
    assert type(error) is LedgerError
    said = str(error)
    assert "ledger.db" in said
    assert "it is damaged: restore a backup, and reconcile it with the chain" in said
    ledger.close()
    assert path.read_bytes() == damaged
    with pytest.raises(LedgerError):
        verify(ledger)


@pytest.mark.parametrize("how", ["emptied", "removed"])
def test_an_empty_file_where_a_ledger_was_is_not_a_new_budget(
    full: SQLiteLedger, path: Path, how: str
) -> None:
    path.write_bytes(b"") if how == "emptied" else path.unlink()
    said = complaint(SQLiteLedger(path))
    assert "is empty or gone, but ledger.db.head knows of 7 entries: restore it" in said
    full.head_file.path.unlink()  # only its owner says that it is to begin again
    assert used(SQLiteLedger(path), WIDE) == 0


def test_a_directory_or_a_path_below_a_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "cannot open" in complaint(SQLiteLedger(tmp_path / "file" / "ledger.db"))
    (tmp_path / "folder").mkdir()
    assert "unable to open" in complaint(SQLiteLedger(tmp_path / "folder"))


# --- disks ----------------------------------------------------------------------------------------


def test_a_read_only_file_can_be_read_and_says_so(
    full: SQLiteLedger, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it is for a user without the right to write: root has every right, so by the URI."""
    connect = sqlite3.connect

    def read_only(file: Any, **settings: Any) -> sqlite3.Connection:
        made: sqlite3.Connection = connect(f"file:{file}?mode=ro", uri=True, **settings)
        return made

    with closing(connect(path, isolation_level=None)) as other:
        other.execute("SELECT count(*) FROM payments").fetchall()  # keeps the log there
        monkeypatch.setattr("x402_mask._ledger.sqlite.sqlite3.connect", read_only)
        ledger = SQLiteLedger(path)
        error = refusal(ledger, want())
        assert type(error) is LedgerError
        assert "readonly" in str(error)
        assert "make the file and its directory writable" in str(error)
        assert len(ledger.payments()) == 3
        ledger.close()


@contextmanager
def pages(ledger: SQLiteLedger, more: int) -> Iterator[None]:
    """Let the database grow by a few pages only."""
    assert ledger._db is not None
    raw = ledger._db.raw
    (count,) = raw.execute("PRAGMA page_count").fetchone()
    raw.execute(f"PRAGMA max_page_count={count + more}")
    yield
    raw.execute("PRAGMA max_page_count=1000000")


def test_a_full_disk_is_an_error_and_nothing_is_half_written(path: Path) -> None:
    ledger = SQLiteLedger(path)
    reserved(ledger)
    with pages(ledger, 4):
        for _ in range(200):
            made = want()
            try:
                ledger.reserve(made)
            except LedgerError as error:
                said = str(error)
                break
        else:
            raise AssertionError("the disk did not fill up")
    assert "full" in said
    assert "free some disk space" in said
    assert made.id not in [p.payment_id for p in ledger.payments(limit=1000)]
    assert used(ledger, WIDE) == 1000 * len(ledger.payments(limit=1000))
    assert verify(ledger).problems == []
    reserved(ledger)
    ledger.close()


def test_a_proof_that_finds_no_room_on_the_disk_was_never_held(path: Path) -> None:
    ledger = SQLiteLedger(path)
    made = reserved(ledger)
    with pages(ledger, 2), pytest.raises(LedgerError, match="free some disk space"):
        ledger.hold(made.id, proof(value="x" * 100_000), now_us=NOW)
    assert state_of(ledger, made.id) == "reserved"
    ledger.release(made.id, "never sent", now_us=NOW)
    assert verify(ledger).problems == []
    ledger.close()


FILLING = """
import resource, signal, sys
from tests.ledger.kit import held, NOW, end
from x402_mask import LedgerError, SQLiteLedger

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
ledger = SQLiteLedger(sys.argv[1])
held(ledger)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), -1))
done = []
try:
    while True:
        done.append(held(ledger)[0].id)
except LedgerError as error:
    print(error)
resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1))
done.append(held(ledger)[0].id)
print(*done)
"""


@pytest.mark.skipif(os.name == "nt", reason="POSIX limits")
@pytest.mark.parametrize("limit", [100_000, 131_071, 140_000])
def test_a_write_that_fails_in_mid_commit_loses_and_invents_nothing(path: Path, limit: int) -> None:
    """A real write error, wherever it strikes: what was acknowledged is there, and the rest not."""
    done = subprocess.run(
        [sys.executable, "-c", FILLING, str(path), str(limit)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    said, acknowledged = done.stdout.splitlines()
    assert "ledger.db failed" in said
    ledger = SQLiteLedger(path)
    ledger.sweep(now_us=NOW)
    states = {p.payment_id: p.state for p in ledger.payments(limit=1000)}
    for payment in acknowledged.split():
        assert states.pop(payment) == "held"
    assert sorted(states.values()) in (["held"], ["held", "released"])  # the first, the cut off
    assert used(ledger, WIDE) == 1000 * (len(acknowledged.split()) + 1)
    assert verify(ledger).problems == []
    ledger.close()


# --- what must survive ----------------------------------------------------------------------------


def test_what_must_survive_a_power_cut_is_synced(path: Path) -> None:
    """... to the disk before the call returns: a stored proof, a pause, an accepted payee."""
    ledger = SQLiteLedger(path)
    ledger.is_paused()
    assert ledger._db is not None
    raw = ledger._db.raw

    def level() -> str:
        """At which the last transaction was committed: the setting stays until it is changed."""
        (found,) = raw.execute("PRAGMA synchronous").fetchone()
        return {1: "NORMAL", 2: "FULL"}[found]

    made, sent = want(), proof()
    ledger.spend(made.limits, now_us=NOW)
    ledger.reserve(made)
    assert level() == "NORMAL"  # what follows is synced with it
    ledger.hold(made.id, sent, now_us=NOW)
    assert level() == "FULL"
    ledger.finish(made.id, end("unknown"), now_us=NOW)
    assert level() == "NORMAL"  # lost, it is held and open: the same bytes again
    ledger.reserve(want(), durable=True)
    assert level() == "FULL"
    ledger.finish(made.id, end("unknown"), now_us=NOW)
    ledger.reserve(want(), prove=proof)  # and may leave at once
    assert level() == "FULL"
    ledger.set_paused(True, now_us=NOW)
    assert level() == "FULL"
    ledger.accept_payee("a", "0x" + "1" * 40, "https://a.example", now_us=NOW)
    assert level() == "FULL"
    ledger.close()


def test_no_proof_is_readable_in_the_database(shared: Store) -> None:
    """Not in the tables, not in the files, not in the log beside them."""
    made, sent = held(shared.ledger)
    shared.ledger.finish(made.id, end("unknown"), now_us=NOW)
    shared.ledger.claim(made.id, now_us=NOW)
    rows = [
        repr(row)
        for table in ("payments", "history", "meta", "counters", "payees")
        for row in shared.sql(f"SELECT * FROM {table}")
    ]
    assert made.id in "".join(rows)
    if shared.kind == "sqlite":
        path = Path(shared.spec["sqlite"])
        rows += [file.read_bytes().decode("latin-1") for file in path.parent.glob("ledger.db*")]
    secret = sent.value.removeprefix("proof-")
    assert all(secret not in row and secret[:40] not in row for row in rows)
    assert len(rows) > 5


def test_a_ledger_can_be_closed_and_used_again(store: Store) -> None:
    made, sent = held(store.ledger)
    store.ledger.close()
    store.ledger.close()
    store.ledger.finish(made.id, end("unknown"), now_us=NOW)
    assert store.ledger.claim(made.id, now_us=NOW) == sent


def test_a_file_swapped_behind_a_closed_ledger_is_counted_anew(path: Path, tmp_path: Path) -> None:
    """A restored backup may know fewer caps: their counters are begun again, not taken for empty."""
    old = SQLiteLedger(path)
    reserved(old)
    old.close()
    backup = path.read_bytes()
    from x402_mask import Cap

    cap = Cap("0.001", per="day")
    assert used(old, cap) == 1000
    old.close()
    path.write_bytes(backup)
    refusal(old, want(cap))
    assert used(old, cap) == 1000
    old.close()
