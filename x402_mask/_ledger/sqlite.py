"""The default ledger: one SQLite file, shared by threads and processes; and its in-memory twin."""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
import time
import weakref
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, ClassVar, Final

from x402_mask._ledger import sqlite_wal, sums
from x402_mask._ledger.damage import damage_said
from x402_mask._ledger.head import HeadFile
from x402_mask._ledger.key import LedgerKey, data_path, load_key, sync_directory
from x402_mask._ledger.ledger import Ledger
from x402_mask._ledger.owners import is_alive, new_owner
from x402_mask._ledger.past import Past
from x402_mask._ledger.private_files import follow, keep_private, make_file, make_folder
from x402_mask._ledger.records import Busy, Db
from x402_mask._ledger.schema import (
    SCHEMA_VERSION,
    TABLES,
    make_tables,
    meta,
    newer_schema,
    set_meta,
)
from x402_mask._ledger.shape import insist_on_sqlite
from x402_mask._ledger.sqlite_busy import (
    Connection,
    advice,
    begun,
    insist,
    is_broken,
    is_read_only,
    pause,
)
from x402_mask._ledger.sqlite_files import file_at, files_at
from x402_mask._ledger.waiting import WAIT_S, contended, reentered
from x402_mask._system.owner_text import file_of_ledger
from x402_mask._system.turns import Turn, Turns, caller
from x402_mask.errors import LedgerError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from x402_mask._ledger.past import Memory
    from x402_mask._ledger.sqlite_files import Files

log = logging.getLogger("x402_mask")

_SCHEMA: Final = TABLES.format(
    serial="INTEGER PRIMARY KEY",  # no row is ever deleted, so none is numbered twice
    key="INTEGER PRIMARY KEY",
    plain=" WITHOUT ROWID",
    blob="BLOB",
)
_HEAD_S: Final = 0.5
"""How long a process may take from its commit to its head."""

_UNKNOWN: Final = (
    "it is made anew, and nobody can say whether the ledger has lost its last rows;"
    " `x402-mask ledger accept` counts what may have been spent"
)


class _SQL(Ledger):
    """What the file and the in-memory ledger share: a connection behind a lock."""

    def __init__(self) -> None:
        super().__init__()
        self._turns = Turns()
        self._pid = os.getpid()
        self._db: Connection | None = None
        self._disposal: weakref.finalize[..., Any] | None = None

    def _current(self) -> Connection | None:
        """The open connection, if there is one that may be used."""
        return self._db

    def _commit(self, db: Connection) -> None:
        db.raw.execute("COMMIT")

    def _open(self, deadline: float) -> Connection:
        raise NotImplementedError

    def _after_fork(self) -> None:
        raise NotImplementedError

    @contextmanager
    def _transaction(
        self, wait_s: float, *, write: bool = True, durable: bool = False
    ) -> Iterator[Db]:
        deadline = time.monotonic() + wait_s
        if self._pid != os.getpid():
            self._after_fork()
        if self._turns.is_mine:
            raise Busy if wait_s == 0 else reentered()
        turn = Turn(caller(1))  # of whoever says ``with``: it is over with that, at the latest
        try:
            if not self._turns.take(turn, wait_s):
                raise Busy if wait_s == 0 else contended(wait_s)
            db = self._current() or self._opened(deadline, wait_s)
            self._db = db
            try:
                self._begin(db, deadline, wait_s, write=write, durable=durable)
                with damage_said:
                    yield db
                sums.all_written(db)
                self._commit(db)
            except BaseException as failure:
                if not turn.is_over:  # else the connection is somebody else's, who rolled it back
                    self._roll_back(db)
                    self._doubted(failure)
                raise
            self._committed()
        except sqlite3.Error as exc:
            raise self._explained(exc) from exc
        finally:
            self._turns.give_up(turn)

    def _opened(self, deadline: float, wait_s: float) -> Connection:
        if wait_s == 0:
            raise Busy  # opening touches the disk: not on an event loop
        self._meters.clear()  # the file may be another one by now
        db = self._open(deadline)
        if self._disposal is not None:
            self._disposal.detach()
        self._disposal = weakref.finalize(self, _dispose, db.raw, os.getpid())
        self._disposal.atexit = False
        return db

    def _begin(
        self, db: Connection, deadline: float, wait_s: float, *, write: bool, durable: bool
    ) -> None:
        if db.raw.in_transaction:  # left by an interruption between two steps
            db.raw.execute("ROLLBACK")
        db.last, db.changes = None, []
        self._forget_head()  # left likewise
        if write and db.durable is not durable:
            db.durable = None
            db.raw.execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
            db.durable = durable
        tries = 0
        while not begun(db.raw, write=write):
            left = deadline - time.monotonic()
            if wait_s == 0:
                raise Busy
            if left <= 0:
                raise contended(wait_s)
            tries += 1
            time.sleep(pause(tries, left))

    def _roll_back(self, db: Connection) -> None:
        try:
            if db.raw.in_transaction:
                db.raw.execute("ROLLBACK")
        except sqlite3.Error:
            self._db = None  # a fresh connection starts from what is on disk
            with suppress(sqlite3.Error):
                db.raw.close()
        self._forget_head()

    def _committed(self) -> None:
        """Called after each commit."""

    def _forget_head(self) -> None:
        """Called after each rollback."""

    def _doubted(self, failure: BaseException) -> None:
        """Called after a *failure* that may have come from the files of the open connection."""

    def _closed(self) -> None:
        """Called after the connection was closed."""

    def _explained(self, exc: sqlite3.Error) -> LedgerError:
        return LedgerError(f"the ledger failed: {exc}")

    def _new_owner(self) -> str:
        return new_owner()

    def _is_alive(self, db: Db, owner: str) -> bool:  # noqa: ARG002
        return is_alive(owner)

    def close(self) -> None:
        """Close the connection; the ledger opens a new one when it is used again."""
        if self._pid != os.getpid():
            return  # inherited: the parent's to close
        if self._turns.is_mine:
            raise reentered()
        turn = Turn(caller(0))
        try:
            if not self._turns.take(turn, 2 * WAIT_S):
                raise contended(2 * WAIT_S)
            if self._db is not None:
                self._db.raw.close()
            self._db = None
            self._closed()
        finally:
            self._turns.give_up(turn)


class SQLiteLedger(_SQL):
    """A durable ledger in one SQLite file (WAL), safe across threads, processes and crashes.

    The ledger to choose on one host.  A reservation is one commit, which waits for the disk and for
    no network; writers take turns.  So it tops out with the first writer: one makes some 1400
    durable reservations a second (two cores, a local disk), eight make 1200 to 1500 together, 64
    (threads of eight processes) 400 to 1250, and the unluckiest of these waits 1.5 s for its turn.

    Args:
        path: the file; by default ``ledger.db`` in the user's data directory. A relative path is
            fixed now, by the directory of this moment; ``~`` is the user's directory. Beside it
            live ``<path>.key`` (encrypts stored proofs, chains the history) and ``<path>.head``.

    Raises:
        ValueError: *path* names no file: a URL, a DSN, text in quotation marks.
        LedgerError: from any method: the file cannot be opened, read or written.
    """

    head_is_whole: ClassVar[bool] = True
    brief: ClassVar[bool] = True

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        super().__init__()
        self.path = file_of_ledger(path) if path is not None else default_path()
        self._spelled = str(self.path)
        self._key: LedgerKey | None = None
        self._real: str | None = None
        self._past = Past(HeadFile(self.path.with_name(self.path.name + ".head")))
        self._place: Files | None = None
        self._unfit = False
        self._reads_only = False
        self._checkpointer = sqlite_wal.Checkpointer()
        self._frozen: Turn | None = None
        _ledgers.add(self)

    def __repr__(self) -> str:
        return f"SQLiteLedger({str(self.path)!r})"

    @property
    def _identity(self) -> object:
        return self._real or os.path.realpath(self.path)

    @property
    def key_path(self) -> Path:
        """The file with this ledger's key."""
        return self.path.with_name(self.path.name + ".key")

    @property
    def head_file(self) -> HeadFile:
        """Where the head of the history is kept besides the database."""
        return self._past.head

    @property
    def past(self) -> Past:
        """What is known of the ledger besides what it says itself."""
        return self._past

    def _ledger_key(self) -> LedgerKey:
        if self._key is None:
            with self._transaction(WAIT_S, write=False):
                pass  # opening the database finds its key, or makes it
        assert self._key is not None
        return self._key

    def _open(self, deadline: float) -> Connection:
        if os.path.realpath(self.path) in _open_before_fork:
            raise _forked_in_use()
        keep_private(self._past.head.path)
        memory = self._past.remember()  # before the file: rows after it are no contradiction
        try:
            there = file_at(self._spelled)
            fresh = there is None
            if fresh:
                self._past.refuse_to_forget(self.path.name)
                make_folder(self.path.parent)
                make_file(self.path)
            for file in self._files():
                keep_private(file)
            raw = sqlite3.connect(
                self.path,
                timeout=0,
                isolation_level=None,
                check_same_thread=False,
                cached_statements=256,
            )
        except (OSError, sqlite3.Error) as exc:
            raise LedgerError(f"cannot open the ledger {self.path.name}: {exc}") from exc
        db = Connection(raw)
        try:
            self._real = os.path.realpath(self.path)
            insist(raw, "PRAGMA journal_mode=WAL", deadline)
            insist(raw, f"PRAGMA wal_autocheckpoint={sqlite_wal.LOG_PAGES_MAX}", deadline)
            insist(raw, "PRAGMA fullfsync=1", deadline)  # macOS: sync reaches the platter
            self._prepare(db, deadline)
            self._compare(db, memory, deadline)
            if fresh:
                sync_directory(self.path.parent)
                there = file_at(self._spelled)
            self._place = (there, *self._found()[1:])
        except OSError as exc:
            raw.close()
            raise LedgerError(f"cannot open the ledger {self.path.name}: {exc.strerror}") from exc
        except BaseException:
            raw.close()
            raise
        return db

    def _files(self) -> Iterator[Path]:
        """The database and what lies beside it."""
        file = follow(self.path)
        yield from (file.with_name(file.name + end) for end in ("", "-wal", "-shm", "-journal"))
        yield from (self.key_path, self._past.head.path)

    def _found(self) -> Files:
        """Which files lie at the path."""
        return files_at(self._spelled, self._real or self._spelled)

    def _current(self) -> Connection | None:
        """The open connection, if its files still lie at the path.

        Else what lies there is opened and compared: some mounts only number their files anew.
        One that an interruption left, and that was opened only to be looked at, is no better.
        """
        if self._db is not None and (self._unfit or self._reads_only or not self._is_there()):
            self._drop()
        return self._db

    def _is_there(self) -> bool:
        try:
            return self._found() == self._place
        except OSError:  # whoever opens it says what it is
            return False

    def _drop(self) -> None:
        db, self._db, self._unfit = self._db, None, False
        self._past.head.close()  # it may have been replaced as well
        if db is not None:
            db.raw.close()  # where the file was moved SQLite leaves alone what now has its name

    def _compare(self, db: Connection, memory: Memory, deadline: float) -> None:
        """Refuse what is older or another than it was; see to it that there is a head."""
        self._begin(db, deadline, WAIT_S, write=False, durable=False)
        try:
            self._past.judge(db, memory, self.path.name)
            many = self._past.audited(db, self._ledger_key())
        finally:
            if db.raw.in_transaction:  # SQLite ends it by itself where it cannot read
                db.raw.execute("ROLLBACK")
        headless = memory.head is None and self._past.has_rows
        if self._past.lenient:  # whoever pays next opens it strictly
            self._unfit = headless or self._past.unfit
            return
        if headless:
            self._make_head(db, deadline)
        if many and begun(db.raw, write=True):  # else whoever writes now may do it
            try:
                self._sum_newer(db, self._ledger_key())
                db.raw.execute("COMMIT")
                self._past.committed(durable=False)
            finally:
                self._roll_back(db)

    def _make_head(self, db: Connection, deadline: float) -> None:
        """There are rows and no head: whether the last ones are gone, nobody can say.

        Or they are the very first, by a process that comes to its head only after its commit.
        """
        until = time.monotonic() + _HEAD_S
        while (found := self._past.head.read()) is None and time.monotonic() < until:
            time.sleep(_HEAD_S / 50)
        if found is not None:
            return
        try:
            self._begin(db, deadline, WAIT_S, write=True, durable=True)
            if self._past.head.read() is None:  # else another process was first
                log.warning("%s is missing, or not to be read: %s", self._past.head.path, _UNKNOWN)
                now_us = time.time_ns() // 1000
                set_meta(db, "headless", str(now_us))
                self._write(db, now_us, None, "head_made", {})
            db.raw.execute("COMMIT")
        except sqlite3.OperationalError as exc:
            if exc.sqlite_errorcode & 0xFF != sqlite3.SQLITE_READONLY:
                raise
            log.warning("%s is missing, and %s cannot be written", self._past.head.path, self.path)
        self._past.committed(durable=True)

    def _prepare(self, db: Connection, deadline: float) -> None:
        """Make or check the tables; refuse a newer program's file, or another key's."""
        version = insist(db.raw, "PRAGMA user_version", deadline)
        if version > SCHEMA_VERSION:
            raise newer_schema(self.path.name, version)
        if version < SCHEMA_VERSION:
            insist_on_sqlite(db, _SCHEMA, self.path.name, whole=False)
            self._begin(db, deadline, WAIT_S, write=True, durable=True)
            self._make_tables(db)
            db.raw.execute("COMMIT")
        insist_on_sqlite(db, _SCHEMA, self.path.name, whole=True)
        self._key = self._past.key = self._checked_key(db)

    def _make_tables(self, db: Connection) -> None:
        """In a new file, or one that another process has made meanwhile."""
        if db.one("SELECT 1 FROM sqlite_master WHERE name='meta'") is None:
            self._past.refuse_to_forget(self.path.name)
            if db.one("SELECT 1 FROM sqlite_master LIMIT 1") is not None:
                raise LedgerError(f"{self.path.name} is not a ledger of x402_mask")
        make_tables(db, _SCHEMA, db.columns)
        db.raw.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
        if meta(db, "key") is None:
            key = load_key(self.key_path, create=True)
            assert key is not None
            set_meta(db, "key", LedgerKey(key).key_id)

    def _checked_key(self, db: Connection) -> LedgerKey:
        made_with = meta(db, "key")
        if made_with is None:
            raise LedgerError(f"{self.path.name} is not a ledger of x402_mask")
        key = load_key(self.key_path, create=False)
        if key is None or LedgerKey(key).key_id != made_with:
            raise LedgerError(
                f"{self.key_path.name} is missing or belongs to another ledger; restore it beside"
                f" {self.path.name}, without it stored proofs cannot be read"
            )
        return LedgerKey(key)

    def _freeze(self) -> None:
        """Before a fork: nothing of SQLite may be inherited open.

        SQLite keeps its locks per process and file. A child that inherits a connection believes it
        holds the parent's locks, and what it then writes is lost when the parent closes the file.
        """
        if self._turns.is_mine:
            return
        turn = Turn(None)  # until it is thawed
        if self._turns.take(turn, 2 * WAIT_S):
            self._frozen = turn
            if self._db is not None:
                self._db.raw.close()
                self._db = None

    def _thaw(self) -> None:
        turn, self._frozen = self._frozen, None
        if turn is not None:
            self._turns.give_up(turn)

    def _after_fork(self) -> None:
        if self._db is not None or not self._turns.take(Turn(None), 0):
            _inherited.append(self._db)  # closing it here would be as bad as using it
            raise _forked_in_use()
        self._renew()

    def _renew(self) -> None:
        """In a child that inherited nothing open: as in a new process."""
        self._turns = Turns()
        self._frozen = None
        self._pid = os.getpid()
        self._past.forked()

    def _goes_on(self, db: Db, seq: int, mac: bytes) -> None:
        self._past.goes_on(db, seq, mac, self.path.name)

    def _moved_head(self, seq: int, mac: bytes) -> None:
        self._past.moved(seq, mac)

    def _committed(self) -> None:
        if self._past.head.pending is not None:
            self._reads_only = False
            durable = self._db is None or self._db.durable is not False
            self._past.committed(durable=durable)
            self._checkpointer.committed(str(self._real))
        if self._unfit:
            self._drop()

    def _forget_head(self) -> None:
        self._past.head.forget()

    def _roll_back(self, db: Connection) -> None:
        super()._roll_back(db)
        if self._unfit or self._past.unfit:
            self._drop()

    def _doubted(self, failure: BaseException) -> None:
        if is_broken(failure):
            self._reads_only = is_read_only(failure)
            self._drop()  # whoever comes next opens, and compares, what is there then

    def _closed(self) -> None:
        self._past.head.close()

    def _explained(self, exc: sqlite3.Error) -> LedgerError:
        return LedgerError(f"the ledger {self.path.name} failed ({exc}); {advice(exc)}")


class MemoryLedger(_SQL):
    """A ledger that lives and dies with this process; for tests and short scripts.

    It cannot follow a fork: two processes would each have the whole budget.
    """

    inline: ClassVar[bool] = True

    def __init__(self) -> None:
        super().__init__()
        self._key = LedgerKey(os.urandom(32))

    def __repr__(self) -> str:
        return "MemoryLedger()"

    @property
    def _identity(self) -> object:
        return self._key

    def _ledger_key(self) -> LedgerKey:
        return self._key

    def _open(self, deadline: float) -> Connection:  # noqa: ARG002
        raw = sqlite3.connect(
            ":memory:", isolation_level=None, check_same_thread=False, cached_statements=256
        )
        db = Connection(raw)
        make_tables(db, _SCHEMA, db.columns)
        return db

    def _after_fork(self) -> None:
        raise LedgerError("a MemoryLedger cannot be used after a fork; use a SQLiteLedger")

    def close(self) -> None:
        """Does nothing: what is in memory is the ledger."""


def _dispose(raw: sqlite3.Connection, pid: int) -> None:
    """Close the connection of a ledger that was dropped, unless a fork inherited it."""
    if pid == os.getpid():
        raw.close()


def default_path() -> Path:
    """Where the ledger of this user lives."""
    return data_path() / "ledger.db"


_ledgers: Final[weakref.WeakSet[SQLiteLedger]] = weakref.WeakSet()
_inherited: Final[list[Connection | None]] = []
_open_before_fork: set[str] = set()
"""Files of which this process has inherited an open connection, and which it must not open."""
_forking = threading.RLock()
_still_open: frozenset[str] = frozenset()


def _forked_in_use() -> LedgerError:
    return LedgerError(
        "this process was forked while the ledger was in use, and cannot use it; fork before the"
        " ledger is used, or start workers with the spawn method"
    )


def _before_fork() -> None:
    global _still_open  # noqa: PLW0603
    _forking.acquire()
    for ledger in list(_ledgers):
        ledger._freeze()  # noqa: SLF001
    _still_open = sqlite_wal.finish(2 * WAIT_S)


def _after_fork_in_parent() -> None:
    for ledger in list(_ledgers):
        ledger._thaw()  # noqa: SLF001
    _forking.release()


def _after_fork_in_child() -> None:
    global _forking  # noqa: PLW0603
    _forking = threading.RLock()
    _open_before_fork.update(_still_open)
    for ledger in list(_ledgers):
        if ledger._frozen is not None:  # noqa: SLF001
            ledger._renew()  # noqa: SLF001  # the turn is the forking thread's
        elif ledger._db is not None and ledger._real is not None:  # noqa: SLF001
            _open_before_fork.add(ledger._real)  # noqa: SLF001
    sqlite_wal.forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=_after_fork_in_parent,
        after_in_child=_after_fork_in_child,
    )
