"""A ledger knows that it is older than it was, another, or gone, and nothing is paid from it.

A power cut that loses what was not synced is no such thing, and neither is a mount that numbers
its files anew.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from tests.ledger.kit import (
    DAY,
    NOW,
    SECOND,
    WIDE,
    Worker,
    end,
    held,
    limits,
    refusal,
    reserved,
    sqlite_store,
    state_of,
    together,
    used,
    want,
)
from x402_mask import Cap, LedgerError, PostgresLedger, SQLiteLedger
from x402_mask._ledger.audit import verify
from x402_mask._ledger.head import HeadFile, Mark
from x402_mask._ledger.ledger import Ledger
from x402_mask._ledger.restore import accept, standing

FILES = ("", "-wal", "-shm")
KEY = "5c" * 32


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return where the ledger of the test is."""
    return tmp_path / "money" / "ledger.db"


@pytest.fixture
def opened() -> Iterator[Callable[[Path], SQLiteLedger]]:
    """Return what opens ledgers that are closed when the test is over."""
    made: list[SQLiteLedger] = []

    def ledger(path: Path) -> SQLiteLedger:
        made.append(SQLiteLedger(path))
        return made[-1]

    yield ledger
    for one in made:
        one.close()


def settle(path: Path) -> None:
    """Copy the log into the file, so that the file alone is the ledger."""
    with closing(sqlite3.connect(path)) as raw:
        raw.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


def copy(path: Path, to: Path) -> None:
    """Keep the ledger as it is now: without its key and its head."""
    settle(path)
    shutil.copy(path, to)


def put_back(copied: Path, path: Path, *, in_place: bool = False) -> None:
    """Put a copy where the ledger is, as a restore does."""
    for end_ in FILES[1:]:
        path.with_name(path.name + end_).unlink(missing_ok=True)
    if in_place:
        path.write_bytes(copied.read_bytes())
    else:
        draft = path.with_name("draft")
        shutil.copy(copied, draft)
        draft.replace(path)


def said(ledger: Ledger) -> str:
    """What a payment and a question are both refused with."""
    error = refusal(ledger, want())
    assert type(error) is LedgerError
    assert not error.at_risk
    with pytest.raises(LedgerError):
        ledger.payments()
    return str(error)


# --- older ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("running", [False, True], ids=["closed", "in use"])
@pytest.mark.parametrize("in_place", [False, True], ids=["another file", "written over"])
def test_an_older_copy_put_back_pays_nothing(
    path: Path, tmp_path: Path, opened: Any, running: bool, in_place: bool
) -> None:
    """Neither what had it open nor what opens it later, and refusing leaves the evidence."""
    ledger = opened(path)
    held(ledger)
    copy(path, tmp_path / "older")
    held(ledger)
    held(ledger)
    if not running:
        ledger.close()
    copy(path, tmp_path / "newest")
    put_back(tmp_path / "older", path, in_place=in_place)
    head = ledger.head_file.path.read_bytes()
    for one in (ledger, opened(path), opened(path)):
        if running and in_place and one is ledger:  # its own view of the file is in shreds
            assert type(refusal(one, want())) is LedgerError
            one.close()
            continue
        told = said(one)
        assert "ledger.db is older than itself: 4 rows are missing from its history" in told
        assert "`x402-mask ledger accept`" in told
    assert ledger.head_file.path.read_bytes() == head
    assert "rows 3 to 6 are missing" in verify(opened(path)).problems[0]

    ledger.close()
    put_back(tmp_path / "newest", path)
    assert used(ledger, WIDE) == 3000
    held(opened(path))


@pytest.mark.parametrize("ends", [FILES, ("-shm",), ("-wal", "-shm")], ids=str)
def test_older_files_written_over_those_in_use_pay_nothing(
    path: Path, opened: Any, ends: tuple[str, ...]
) -> None:
    """Not even by one who saw no row that is missing: the others did, and wrote that down."""
    idle, busy = opened(path), opened(path)
    held(idle)
    files = [path.with_name(path.name + end_) for end_ in ends]
    older = [file.read_bytes() for file in files]
    held(busy)
    held(busy)
    for file, data in zip(files, older, strict=True):
        with file.open("r+b") as raw:
            raw.write(data)
    for one in (idle, busy, idle):
        assert type(refusal(one, want())) is LedgerError


def test_an_older_copy_that_went_on_to_be_used_pays_nothing(
    path: Path, tmp_path: Path, opened: Any
) -> None:
    """Where its head had been lost, and the head of the newest copy comes back."""
    ledger = opened(path)
    held(ledger)
    copy(path, tmp_path / "older")
    held(ledger)
    ledger.close()
    head = ledger.head_file.path.read_bytes()
    put_back(tmp_path / "older", path)
    ledger.head_file.path.unlink()
    other = opened(path)
    for _ in range(5):
        held(other)
    other.close()
    ledger.head_file.path.write_bytes(head)
    assert "is an older copy that went on to be used: row 4 is another" in said(opened(path))


def test_a_log_deleted_after_a_kill_pays_nothing(path: Path, opened: Any) -> None:
    """What was acknowledged was in the log alone."""
    ledger = opened(path)
    held(ledger)
    ledger.close()  # copies its log
    with Worker({"sqlite": str(path)}, "hold", "operation") as worker:
        worker.line()
        worker.kill()
    path.with_name(path.name + "-wal").unlink()
    path.with_name(path.name + "-shm").unlink(missing_ok=True)
    assert "older than itself: 2 rows are missing" in said(opened(path))


def test_a_head_of_an_older_program_is_as_good(path: Path, tmp_path: Path, opened: Any) -> None:
    ledger = opened(path)
    held(ledger)
    copy(path, tmp_path / "older")
    held(ledger)
    ledger.close()
    last = ledger.head_file.read()
    assert last is not None
    record = {"seq": last.last.seq, "mac": last.last.mac.hex()}
    ledger.head_file.path.write_text(json.dumps(record).ljust(128))
    assert used(opened(path), WIDE) == 2000
    put_back(tmp_path / "older", path)
    assert "older than itself" in said(opened(path))


def test_two_older_files_put_back_together_cannot_be_seen(
    path: Path, tmp_path: Path, opened: Any
) -> None:
    """... by a new process, as the documentation says; a process that had it open knows better."""
    ledger = opened(path)
    held(ledger)
    copy(path, tmp_path / "older")
    head = ledger.head_file.path.read_bytes()
    held(ledger)
    ledger.close()
    put_back(tmp_path / "older", path)
    ledger.head_file.path.write_bytes(head)
    assert used(opened(path), WIDE) == 1000
    assert "older than itself" in said(ledger)


# --- another, or gone -----------------------------------------------------------------------------


@pytest.mark.parametrize("running", [False, True], ids=["closed", "in use"])
def test_another_ledger_at_the_path_pays_nothing(
    path: Path, tmp_path: Path, opened: Any, running: bool
) -> None:
    """Made anew with a copy of the key, and longer than the first."""
    ledger = opened(path)
    held(ledger)
    other = opened(tmp_path / "other" / "l.db")
    (tmp_path / "other").mkdir()
    shutil.copy(ledger.key_path, other.key_path)
    for _ in range(4):
        held(other)
    other.close()
    settle(other.path)  # a thread may have been at its log
    if not running:
        ledger.close()
    put_back(other.path, path)
    for one in (ledger, opened(path)):
        assert "is another ledger than the one that was used here before" in said(one)
    if running:  # what the head file says matters no more to what had it open
        ledger.head_file.path.unlink()
        assert "is another ledger" in said(ledger)


def test_a_file_that_is_deleted_while_it_is_used_is_gone(path: Path, opened: Any) -> None:
    ledger = opened(path)
    made, _ = held(ledger)
    for end_ in FILES:
        path.with_name(path.name + end_).unlink()
    for one in (ledger, opened(path)):
        assert "is empty or gone" in said(one)
    assert not path.exists()
    with pytest.raises(LedgerError):
        ledger.finish(made.id, end(), now_us=NOW)
    ledger.head_file.path.unlink()
    assert "is empty or gone, but was in use just now" in said(ledger)
    assert not path.exists()


def test_a_running_ledger_leaves_the_file_that_took_its_name_alone(
    path: Path, tmp_path: Path, opened: Any
) -> None:
    """Closing what was replaced deletes no log by its name."""
    ledger = opened(path)
    held(ledger)
    path.rename(tmp_path / "moved.db")
    for end_ in FILES[1:]:
        path.with_name(path.name + end_).unlink()
    ledger.head_file.path.unlink()
    other = opened(path)
    held(other)
    with pytest.raises(LedgerError):
        held(ledger)
    ledger.close()
    assert path.with_name(path.name + "-wal").exists()
    assert used(opened(path), WIDE) == 1000


# --- no such thing --------------------------------------------------------------------------------


def test_the_same_ledger_in_another_file_is_gone_on_with(
    path: Path, tmp_path: Path, opened: Any
) -> None:
    ledger = opened(path)
    held(ledger)
    copy(path, tmp_path / "same")
    put_back(tmp_path / "same", path)
    held(ledger)
    assert used(opened(path), WIDE) == used(ledger, WIDE) == 2000
    assert verify(ledger).ok


def test_a_mount_that_numbers_its_files_anew_is_gone_on_with(
    path: Path, opened: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = opened(path)
    held(ledger)
    numbers = count()
    monkeypatch.setattr(SQLiteLedger, "_found", lambda ledger: ((1, next(numbers)),) * 3)
    for _ in range(2):
        held(ledger)
    assert used(ledger, WIDE) == 3000
    assert verify(ledger).ok


def test_a_power_cut_may_lose_what_was_not_synced(
    path: Path, tmp_path: Path, opened: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """The end of a call is lost: the money is held again, nothing is freed, and nobody accused."""
    ledger = opened(path)
    made, _ = held(ledger)
    copy(path, tmp_path / "synced")
    ledger.finish(made.id, end(), now_us=NOW)
    other = reserved(ledger)
    ledger.release(other.id, "never sent", now_us=NOW)
    ledger.close()
    put_back(tmp_path / "synced", path)

    again = opened(path)
    with caplog.at_level(logging.WARNING, "x402_mask"):
        assert state_of(again, made.id) == "held"
    assert "has lost its last rows, up to row 5, which were not yet synced" in caplog.text
    caplog.clear()
    assert verify(again).problems == []
    again.finish(made.id, end("unknown"), now_us=NOW)
    held(again)
    again.close()
    third = opened(path)
    assert used(third, WIDE) == 2000
    assert verify(third).problems == []
    assert caplog.text == ""


def test_a_missing_head_is_made_anew_and_that_is_said(
    path: Path, opened: Any, caplog: pytest.LogCaptureFixture
) -> None:
    ledger = opened(path)
    held(ledger)
    ledger.close()
    ledger.head_file.path.unlink()
    again = opened(path)
    with caplog.at_level(logging.WARNING, "x402_mask"):
        assert used(again, WIDE) == 1000
    assert "ledger.db.head is missing" in caplog.text
    assert [row["kind"] for row in again.history()][-1] == "head_made"
    assert standing(again).headless is not None
    report = verify(again)
    assert report.problems == []
    assert "no head was left" in report.unknown[0]
    again.close()
    caplog.clear()
    held(opened(path))
    assert caplog.text == ""
    assert again.head_file.read() is not None


def test_many_that_open_a_new_ledger_at_once_warn_of_nothing(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ledgers = [SQLiteLedger(path) for _ in range(6)]
    with caplog.at_level(logging.WARNING, "x402_mask"):
        for made in together(6, lambda n: held(ledgers[n])):
            assert not isinstance(made, Exception), made
    assert caplog.text == ""
    assert used(ledgers[0], WIDE) == 6000
    for one in ledgers:
        one.close()


def test_looking_at_the_file_each_time_costs_next_to_nothing(path: Path, opened: Any) -> None:
    """One look at the file, its log and the index of that, and none at key and head."""
    ledger = opened(path)
    held(ledger)
    looks: list[Any] = []
    found = ledger._found
    ledger._found = lambda: looks.append(1) or found()  # type: ignore[method-assign]
    ledger.is_paused()
    assert len(looks) == 1


# --- the head -------------------------------------------------------------------------------------


def mark(seq: int, era: int = 0) -> Mark:
    """A row that somebody wrote."""
    return Mark(seq, bytes([seq % 256]) * 32, "id", era)


def test_the_head_never_goes_back(tmp_path: Path) -> None:
    """Whoever writes it late, with whatever in between."""
    head, late = HeadFile(tmp_path / "head"), HeadFile(tmp_path / "head")
    for seq in range(1, 40):
        head.write(mark(seq), durable=seq % 3 == 0)
    for seq in range(1, 39):
        late.write(mark(seq), durable=seq % 3 == 0)
        found = head.read()
        assert found is not None
        assert (found.last, found.durable) == (mark(39), mark(39))
    late.write(mark(40), durable=False)
    found = head.read()
    assert found is not None
    assert (found.last, found.durable) == (mark(40), mark(39))
    head.lose(39)
    found = head.read()
    assert found is not None
    assert found.last == mark(39)
    head.close()
    late.close()


def test_a_torn_record_leaves_the_others(tmp_path: Path) -> None:
    head = HeadFile(tmp_path / "head")
    for seq in (1, 2, 3):
        head.write(mark(seq), durable=True)
    data = bytearray(head.path.read_bytes())
    data[3 * 256 : 3 * 256 + 40] = b"\0" * 40
    head.path.write_bytes(data)
    found = head.read()
    assert found is not None
    assert found.last == mark(2)
    head.close()


def test_processes_on_one_file_keep_one_head(path: Path, opened: Any) -> None:
    spec = {"sqlite": str(path)}
    ledger = opened(path)
    ledger.payments()
    with Worker(spec, "race", "3") as one, Worker(spec, "race", "3") as other:
        for worker in (one, other):
            assert worker.line() == "ready"
        for worker in (one, other):
            worker.go()
        for worker in (one, other):
            worker.line()
    found, (last,) = ledger.head_file.read(), _last(path)
    assert found is not None
    assert found.last.seq == last
    assert verify(ledger).ok


def _last(path: Path) -> tuple[int]:
    with closing(sqlite3.connect(path)) as raw:
        found: tuple[int] = raw.execute("SELECT max(seq) FROM history").fetchone()
        return found


def test_a_head_that_cannot_be_written_is_said_once(
    path: Path, opened: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = opened(path)
    held(ledger)

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("x402_mask._ledger.head._write_at", full)
    with caplog.at_level(logging.WARNING, "x402_mask"):
        held(ledger)
        held(ledger)
    assert caplog.text.count("ledger.db.head cannot be written (No space left on device)") == 1
    assert used(ledger, WIDE) == 3000


def test_a_head_that_cannot_be_read_is_no_missing_head(path: Path, opened: Any) -> None:
    ledger = opened(path)
    held(ledger)
    ledger.close()
    ledger.head_file.path.unlink()
    ledger.head_file.path.mkdir()
    assert "ledger.db.head" in said(opened(path))


# --- accepting ------------------------------------------------------------------------------------


def restored(path: Path, tmp_path: Path, ledger: SQLiteLedger) -> None:
    """Lose a payment of 0.001 by a restore."""
    held(ledger)
    copy(path, tmp_path / "older")
    held(ledger)
    copy(path, tmp_path / "newest")
    put_back(tmp_path / "older", path)


def test_accepting_counts_every_window_as_full_until_it_has_passed(
    path: Path, tmp_path: Path, opened: Any
) -> None:
    ledger = opened(path)
    restored(path, tmp_path, ledger)
    again = opened(path)
    found = standing(again)
    assert found.loss is not None
    assert (found.loss.missing, found.loss.another) == (2, False)
    said(again)  # asking is not accepting
    assert accept(again, None, now_us=NOW).loss == found.loss
    (row,) = [row for row in again.history() if row["kind"] == "accepted"]
    assert (row["missing"], row["micro"]) == (2, None)
    day, hour, rolling = Cap(1, per="day"), Cap(2, per="hour"), Cap(3, per=timedelta(hours=30))
    total, call, named = Cap(9, per="total"), Cap(5, per="call"), Cap(1, per="day", service="x")
    caps = (day, hour, rolling, total, named)
    for one in (again, ledger, opened(path)):  # what had it open goes on with it
        spends = one.spend(limits(*caps), now_us=NOW)
        assert [spend.left for spend in spends] == [0] * 5
        assert [spend.settled + spend.held for spend in spends] == [1, 2, 3, 9, 1]
        assert "exceed the cap" in str(refusal(one, want(day)))
        reserved(one, call)
    later = NOW + DAY
    lefts = [spend.left for spend in again.spend(limits(*caps), now_us=later)]
    assert lefts[0] == 1
    assert lefts[1] == 2
    assert lefts[2] == 0  # thirty hours have not passed
    assert lefts[3] == 0  # a total never does
    assert lefts[4] == 1
    assert again.spend(limits(rolling), now_us=NOW + 31 * 3600 * SECOND)[0].left > 2
    assert verify(again).problems == []


def test_an_amount_counts_against_every_cap_in_place_of_full_ones(
    path: Path, tmp_path: Path, opened: Any
) -> None:
    ledger = opened(path)
    restored(path, tmp_path, ledger)
    accept(ledger, None, now_us=NOW)
    accept(ledger, 400_000, now_us=NOW)
    one, service = Cap(1, per="total"), Cap(1, per="day", service="elsewhere")
    total, other = ledger.spend(limits(one, service), now_us=NOW)
    assert str(total.held) == "0.401"  # and what the older copy knows
    assert str(other.held) == "0.40"
    reserved(ledger, one, micro=599_000)
    assert "exceed the cap" in str(refusal(ledger, want(one)))
    assert ledger.spend(limits(service), now_us=NOW + DAY)[0].held == 0
    accept(ledger, 0, now_us=NOW)
    assert verify(ledger).problems == []
    assert verify(opened(path)).problems == []


def test_what_was_accepted_is_accepted_once(path: Path, tmp_path: Path, opened: Any) -> None:
    """An older copy put back after that is a loss again, also one that holds the acceptance."""
    ledger = opened(path)
    restored(path, tmp_path, ledger)
    accept(ledger, 0, now_us=NOW)
    held(ledger)
    copy(path, tmp_path / "accepted")
    held(ledger)
    ledger.close()
    for older in ("older", "accepted"):
        put_back(tmp_path / older, path)
        assert "older than itself" in said(opened(path))
        assert "older than itself" in said(ledger)
    put_back(tmp_path / "newest", path)  # what was lost has come too late
    assert "Nothing is paid from it" in said(opened(path))


def test_nothing_is_accepted_by_halves(
    path: Path, tmp_path: Path, opened: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Committed, and killed before the head was written: the row says what the owner said."""
    ledger = opened(path)
    restored(path, tmp_path, ledger)
    again = opened(path)
    with monkeypatch.context() as patch:
        patch.setattr(HeadFile, "write", lambda *_, **__: None)
        accept(again, None, now_us=NOW)
    again.close()
    third = opened(path)
    assert third.spend(limits(Cap(1, per="day")), now_us=NOW)[0].left == 0
    reserved(third, Cap(5, per="call"))
    found = third.head_file.read()
    assert found is not None
    assert found.last.seq == _last(path)[0]


def test_an_edited_acceptance_is_found(path: Path, tmp_path: Path, opened: Any) -> None:
    ledger = opened(path)
    restored(path, tmp_path, ledger)
    accept(ledger, 900_000, now_us=NOW)
    store = sqlite_store(path)
    store.sql("UPDATE restores SET micro=1")
    assert "not what the history says" in verify(ledger).problems[0]
    store.ledger.close()


def test_another_ledger_may_be_accepted(path: Path, tmp_path: Path, opened: Any) -> None:
    ledger = opened(path)
    held(ledger)
    ledger.close()
    for end_ in FILES:
        path.with_name(path.name + end_).unlink(missing_ok=True)
    ledger.head_file.path.rename(tmp_path / "head")
    other = opened(path)
    held(other)
    other.close()
    (tmp_path / "head").rename(ledger.head_file.path)
    again = opened(path)
    found = standing(again).loss
    assert found is not None
    assert (found.another, found.missing) == (True, 2)
    accept(again, 0, now_us=NOW)
    held(again)
    held(opened(path))


# --- a fleet --------------------------------------------------------------------------------------


@pytest.fixture
def hosts(dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Return what makes the ledger of a host: each has a head file of its own."""
    made: list[PostgresLedger] = []

    def host(name: str) -> PostgresLedger:
        monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / name))
        made.append(PostgresLedger(dsn, key=KEY))
        return made[-1]

    yield host
    for one in made:
        one.close()


class Backup:
    """The tables of a PostgreSQL ledger as they were, to be put back in one transaction."""

    TABLES = ("history", "payments", "counters", "meters", "meta", "restores")

    def __init__(self, dsn: str) -> None:
        import psycopg

        self.raw = psycopg.connect(f"{dsn} options=-csearch_path=x402_mask", autocommit=True)
        for name in self.TABLES:
            self.raw.execute(f"CREATE TABLE IF NOT EXISTS public.b_{name} AS SELECT * FROM {name}")

    def put_back(self) -> None:
        """As a restore of a dump does."""
        with self.raw.transaction():
            for name in self.TABLES:
                self.raw.execute(f"DELETE FROM {name}")
                self.raw.execute(f"INSERT INTO {name} SELECT * FROM public.b_{name}")

    def close(self) -> None:
        for name in self.TABLES:
            self.raw.execute(f"DROP TABLE public.b_{name}")
        self.raw.close()


@pytest.fixture
def backup(dsn: str) -> Iterator[Callable[[], Backup]]:
    """Return what keeps the tables as they are."""
    made: list[Backup] = []

    def keep() -> Backup:
        made.append(Backup(dsn))
        return made[-1]

    yield keep
    for one in made:
        one.close()


def test_an_older_database_is_known_on_every_host(hosts: Any, backup: Any) -> None:
    """... whether it is connected or comes later; one acceptance is for all of them."""
    one, other = hosts("one"), hosts("other")
    held(one)
    kept = backup()
    held(other)
    held(one)
    kept.put_back()
    assert type(refusal(one, want())) is LedgerError  # still connected
    one.close()
    for ledger in (one, hosts("one")):
        assert "the ledger's database is older than itself: 4 rows are missing" in said(ledger)
    other.close()
    assert "2 rows are missing" in said(other)
    assert "2 rows are missing" in said(hosts("other"))
    assert used(hosts("third"), WIDE) == 1000  # which knows nothing of it

    accept(one, None, now_us=NOW)
    accept(one, 999_000, now_us=NOW)  # said again before the others come
    for ledger in (one, other, hosts("one"), hosts("other"), hosts("third")):
        assert ledger.spend(limits(Cap(1, per="day")), now_us=NOW)[0].left == 0
        reserved(ledger, Cap(5, per="call"))
    assert verify(one).problems == []
    assert verify(other).problems == []


def test_an_older_database_is_known_by_what_another_process_of_the_host_wrote(
    hosts: Any, backup: Any
) -> None:
    idle, busy = hosts("one"), hosts("one")
    held(idle)
    kept = backup()
    held(busy)
    held(busy)
    kept.put_back()
    assert type(refusal(idle, want())) is LedgerError  # it has seen all that is there
    assert "4 rows are missing" in said(idle)


def test_another_database_is_known(hosts: Any, dsn: str) -> None:
    """Dropped, and begun again by a host that knew nothing."""
    import psycopg

    one = hosts("one")
    held(one)
    one.close()
    with psycopg.connect(dsn, autocommit=True) as raw:
        raw.execute("DROP SCHEMA x402_mask CASCADE")
    other = hosts("other")
    for _ in range(3):
        held(other)
    assert "is another ledger than the one that was used here before" in said(one)
    assert "is another ledger" in said(hosts("one"))


def test_an_audit_reads_an_older_database(hosts: Any, backup: Any) -> None:
    """And what it read by is not paid from."""
    one = hosts("one")
    held(one)
    kept = backup()
    held(one)
    kept.put_back()
    one.close()
    assert "rows 3 to 4 are missing" in verify(one).problems[0]
    assert "older than itself" in said(one)


def test_a_fork_keeps_what_was_known(path: Path, tmp_path: Path, opened: Any) -> None:
    if not hasattr(os, "fork"):
        pytest.skip("needs fork")
    ledger = opened(path)
    held(ledger)
    copy(path, tmp_path / "older")
    child = os.fork()
    if child == 0:
        code = 1
        try:
            held(ledger)
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    held(ledger)
    assert used(ledger, WIDE) == 3000
    assert verify(ledger).ok
    put_back(tmp_path / "older", path)
    assert "older than itself" in said(ledger)
