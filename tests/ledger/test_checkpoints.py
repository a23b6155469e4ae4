"""SQLite's log is copied into the database by a thread: nobody who pays waits for it."""

from __future__ import annotations

import gc
import logging
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.ledger.kit import ROOT, reserved, together
from x402_mask import SQLiteLedger
from x402_mask._ledger import sqlite_wal
from x402_mask._ledger.audit import verify

LOG = "x402_mask"


@pytest.fixture
def ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a ledger that is checkpointed every twenty commits."""
    monkeypatch.setattr(sqlite_wal, "COMMITS", 20)
    made = SQLiteLedger(tmp_path / "ledger.db")
    yield made
    made.close()
    assert sqlite_wal.finish(10) == frozenset()


def test_the_file_is_found_from_anywhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The program may go to another directory after it has opened its ledger."""
    monkeypatch.setattr(sqlite_wal, "COMMITS", 2)
    copied: list[str] = []
    monkeypatch.setattr(sqlite_wal, "_checkpoint", copied.append)
    monkeypatch.chdir(tmp_path)
    ledger = SQLiteLedger("ledger.db")
    reserved(ledger)
    monkeypatch.chdir("/")
    reserved(ledger)
    assert sqlite_wal.finish(10) == frozenset()
    assert copied == [str((tmp_path / "ledger.db").resolve())]
    ledger.close()


def test_the_second_of_two_at_one_file_is_still_known_when_the_first_is_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else a fork would not wait for it, and the child inherit what it has open."""
    first, second = threading.Event(), threading.Event()
    assert sqlite_wal._begin("one file", lambda _: first.wait(20) and None)
    with monkeypatch.context() as at_once:  # as where the first is not started yet
        at_once.setattr(threading.Thread, "is_alive", lambda _: False)
        assert sqlite_wal._begin("one file", lambda _: second.wait(20) and None)
    first.set()
    while len(running()) > 1:
        time.sleep(0.01)
    assert sqlite_wal.finish(0) == {"one file"}
    second.set()
    assert sqlite_wal.finish(20) == frozenset()


def log_bytes(ledger: SQLiteLedger) -> int:
    return ledger.path.with_name(ledger.path.name + "-wal").stat().st_size


def running() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name == "x402-mask-checkpoint"]


def test_the_log_stays_short_and_nothing_is_lost(
    ledger: SQLiteLedger, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """400 reservations write some 12 MB of log, which would stay there; it is begun anew."""
    monkeypatch.setattr(sqlite_wal, "LOG_BYTES", 0)
    for _ in range(20):
        answers = together(4, lambda _: [reserved(ledger) for _ in range(5)])
        assert all(isinstance(answer, list) for answer in answers), answers
        assert sqlite_wal.finish(10) == frozenset()  # so that some find no writer busy
    assert log_bytes(ledger) < grown(ledger, monkeypatch, tmp_path) / 2
    with closing(sqlite3.connect(f"file:{ledger.path}?immutable=1", uri=True)) as raw:
        [(copied,)] = raw.execute("SELECT COUNT(*) FROM payments")
    assert copied > 200  # in the database itself, without the log
    assert len(ledger.payments(limit=1000)) == 400
    assert verify(ledger).problems == []


def grown(ledger: SQLiteLedger, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> int:
    """How long the log of as many reservations is where nobody copies it, in bytes."""
    monkeypatch.setattr(sqlite_wal, "COMMITS", 10**9)
    other = SQLiteLedger(tmp_path / "other.db")
    for _ in range(400):
        reserved(other)
    found = log_bytes(other)
    other.close()
    return found


def test_closing_does_not_wait_for_the_thread(
    ledger: SQLiteLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be an event loop that closes; what was written is there for whoever opens it next."""
    slowly(monkeypatch, 0.5)
    for _ in range(25):
        reserved(ledger)
    begun = time.monotonic()
    ledger.close()
    assert running() and time.monotonic() - begun < 0.4
    assert len(ledger.payments()) == 25
    assert sqlite_wal.finish(10) == frozenset()
    assert len(SQLiteLedger(ledger.path).payments()) == 25


def test_trouble_costs_nobody_a_payment(
    ledger: SQLiteLedger, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A disk that is full, say: what was committed stays in the log."""

    def fails(*args: Any, **options: Any) -> sqlite3.Connection:
        if options.get("uri"):
            raise sqlite3.OperationalError("database or disk is full")
        return connect(*args, **options)

    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", fails)
    with caplog.at_level(logging.DEBUG, logger=LOG):
        for _ in range(25):
            reserved(ledger)
        assert sqlite_wal.finish(10) == frozenset()
    assert "disk is full" in caplog.text
    assert len(ledger.payments()) == 25


def test_where_no_thread_can_be_had(
    ledger: SQLiteLedger, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with caplog.at_level(logging.DEBUG, logger=LOG):
        for _ in range(25):
            reserved(ledger)
    assert "can't start new thread" in caplog.text
    assert len(ledger.payments()) == 25


def test_a_file_that_is_gone_is_not_made_anew(tmp_path: Path) -> None:
    for work in (sqlite_wal._checkpoint, sqlite_wal._lengthen):
        sqlite_wal._run(str(tmp_path / "gone.db"), work)
    assert list(tmp_path.iterdir()) == []


# --- room for the log -----------------------------------------------------------------------------


def test_the_log_is_made_long_once(ledger: SQLiteLedger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commits need not wait for the file system to find room; and nobody sees what is in it."""
    begun: list[str] = []
    lengthen = sqlite_wal._lengthen
    monkeypatch.setattr(sqlite_wal, "COMMITS", 10**9)
    monkeypatch.setattr(
        sqlite_wal, "_lengthen", lambda path: (begun.append(path), lengthen(path))[1]
    )
    for _ in range(sqlite_wal.FEW_COMMITS - 1):
        reserved(ledger)
    assert running() == [] and log_bytes(ledger) < sqlite_wal.LOG_BYTES
    reserved(ledger)
    assert sqlite_wal.finish(10) == frozenset()
    length = log_bytes(ledger)
    assert length >= sqlite_wal.LOG_BYTES
    other = SQLiteLedger(ledger.path)
    for _ in range(15):
        reserved(ledger)
        reserved(other)
    assert sqlite_wal.finish(10) == frozenset()
    assert log_bytes(ledger) == length
    assert len(begun) == 2  # once by each, and the second found it long
    consistent(ledger, sqlite_wal.FEW_COMMITS + 30)
    other.close()


def consistent(ledger: SQLiteLedger, payments: int) -> None:
    """Everything is there, and nothing else."""
    assert len(ledger.payments()) == payments
    assert verify(ledger).problems == []
    with closing(sqlite3.connect(ledger.path)) as raw:
        assert raw.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert raw.execute("SELECT name FROM sqlite_master WHERE name='room'").fetchall() == []


def test_not_where_it_would_fill_the_disk(
    ledger: SQLiteLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = shutil.disk_usage(ledger.path.parent)._replace(free=10 * sqlite_wal.LOG_BYTES - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: few)
    for _ in range(12):
        reserved(ledger)
    assert sqlite_wal.finish(10) == frozenset()
    assert log_bytes(ledger) < 1 << 20


KILLED = """
import os, signal, sys
from tests.ledger.kit import reserved
from x402_mask import SQLiteLedger
from x402_mask._ledger import sqlite_wal

connected = sqlite_wal._connected
class Raw:
    def __init__(self, path):
        self.raw = connected(path)
    def close(self):
        self.raw.close()
    def execute(self, sql, *params):
        if sql == "ROLLBACK":
            print(os.stat(sys.argv[1] + "-wal").st_size, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        return self.raw.execute(sql, *params)
sqlite_wal._connected = Raw
ledger = SQLiteLedger(sys.argv[1])
for _ in range(sqlite_wal.FEW_COMMITS):
    reserved(ledger)
sqlite_wal.finish(20)
"""


def test_killed_while_it_is_made_long(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert int(done.stdout) >= sqlite_wal.LOG_BYTES  # all of it stands in the log, uncommitted
    ledger = SQLiteLedger(path)
    consistent(ledger, sqlite_wal.FEW_COMMITS)
    reserved(ledger)
    consistent(ledger, sqlite_wal.FEW_COMMITS + 1)
    ledger.close()


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="no /proc here")
def test_a_ledger_that_is_dropped_leaves_no_file_open(tmp_path: Path) -> None:
    ledger = SQLiteLedger(tmp_path / "ledger.db")
    reserved(ledger)
    assert list(opened(tmp_path))
    del ledger
    gc.collect()
    assert list(opened(tmp_path)) == []


def opened(directory: Path) -> Iterator[str]:
    """The files of *directory* that this process has open; by name."""
    for number in os.listdir("/proc/self/fd"):  # noqa: PTH208
        with suppress(OSError):
            if (name := os.readlink(f"/proc/self/fd/{number}")).startswith(str(directory)):  # noqa: PTH115
                yield name


# --- forks ----------------------------------------------------------------------------------------

FORK = """
import gc, os, sqlite3, sys, time
from tests.ledger.kit import reserved
from x402_mask import LedgerError, SQLiteLedger
from x402_mask._ledger import sqlite_wal
import x402_mask._ledger.sqlite as sqlite

connect = sqlite3.connect
def slow(*args, **options):
    raw = connect(*args, **options)
    if options.get("uri"):
        raw.execute("SELECT 1 FROM meta").fetchall()
        time.sleep(float(sys.argv[2]))
    return raw
sqlite3.connect = slow
sqlite_wal.COMMITS = 2
sqlite.WAIT_S = float(sys.argv[3])
ledger = SQLiteLedger(sys.argv[1])
reserved(ledger)
reserved(ledger)
while not sqlite_wal._running:
    time.sleep(0.001)
time.sleep(0.1)
if sys.argv[4] == "dropped":
    del ledger
    gc.collect()
pid = os.fork()
if pid == 0:
    try:
        reserved(ledger if sys.argv[4] == "kept" else SQLiteLedger(sys.argv[1]))
        print("reserved", flush=True)
    except LedgerError as error:
        print("told" if "fork" in str(error) else error, flush=True)
    os._exit(0)
os.waitpid(pid, 0)
ledger = SQLiteLedger(sys.argv[1])
reserved(ledger)
sqlite_wal.finish(20)
print(len(ledger.payments()))
"""


@pytest.mark.parametrize("ledger", ["kept", "another", "dropped"])
@pytest.mark.parametrize(
    ("takes_s", "patience_s", "said"), [("0.4", "5", "reserved 4"), ("2", "0.05", "told 3")]
)
def test_a_fork_waits_for_a_checkpoint(
    tmp_path: Path, takes_s: str, patience_s: str, said: str, ledger: str
) -> None:
    """A child that inherits a connection would undo what others write: it waits, or is told.

    Whatever became of the ledger that began the checkpoint, and by whatever object it is used.
    """
    done = subprocess.run(
        [sys.executable, "-c", FORK, str(tmp_path / "ledger.db"), takes_s, patience_s, ledger],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert " ".join(done.stdout.split()) == said, done.stderr


FORK_IN_HANDLER = """
import os, signal, sys, threading
from tests.ledger.kit import reserved
from x402_mask import SQLiteLedger
from x402_mask._ledger import sqlite_wal
import x402_mask._ledger.sqlite as sqlite

sqlite_wal.COMMITS = 2
sqlite.WAIT_S = 0.2
def fork(*_):
    if os.fork() == 0:
        os._exit(0)
    os.wait()
    print("forked", flush=True)
signal.signal(signal.SIGUSR1, fork)
start = threading.Thread.start
def started(thread):
    if thread.name == "x402-mask-checkpoint":
        os.kill(os.getpid(), signal.SIGUSR1)
    start(thread)
threading.Thread.start = started
class Watched(dict):
    def __setitem__(self, thread, path):
        os.kill(os.getpid(), signal.SIGUSR1)
        super().__setitem__(thread, path)
sqlite_wal._running = Watched()
ledger = SQLiteLedger(sys.argv[1])
for _ in range(2):
    reserved(ledger)
print(len(ledger.payments()))
"""

THREADS_OF_A_CHILD = """
import os, sys, threading
from tests.ledger.kit import reserved
from x402_mask import SQLiteLedger

ledger = SQLiteLedger(sys.argv[1])
reserved(ledger)
if os.fork() == 0:
    threads = [threading.Thread(target=reserved, args=(ledger,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    os._exit(0)
os.wait()
print(len(ledger.payments()))
"""


@pytest.mark.parametrize(
    ("script", "said"), [(FORK_IN_HANDLER, "forked forked 2"), (THREADS_OF_A_CHILD, "4")]
)
def test_forks_at_odd_moments(tmp_path: Path, script: str, said: str) -> None:
    """In signal handlers while a checkpoint begins; and used first by the child's threads."""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "ledger.db")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (" ".join(done.stdout.split()), done.stderr) == (said, "")


def slowly(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Let every checkpoint take that long."""

    def slow(*args: Any, **options: Any) -> sqlite3.Connection:
        raw = connect(*args, **options)
        if options.get("uri"):
            time.sleep(seconds)
        return raw

    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", slow)
