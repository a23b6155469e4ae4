"""The ledger of a fleet: one PostgreSQL database, shared by any number of hosts.

Same tables and same SQL as the default ledger, in the schema ``x402_mask``.  Writers queue for one
advisory lock, so caps hold across hosts; readers see one snapshot and wait for nobody.
"""

from __future__ import annotations

import logging
import os
import re
import threading
import time
import weakref
from contextlib import contextmanager
from functools import partial
from hashlib import sha256
from typing import TYPE_CHECKING, Final, NoReturn

from x402_mask._ledger import sums
from x402_mask._ledger.damage import damage_said
from x402_mask._ledger.head import HeadFile
from x402_mask._ledger.key import LedgerKey, data_path, load_key
from x402_mask._ledger.ledger import Ledger
from x402_mask._ledger.owners import boot_id, is_alive, new_owner
from x402_mask._ledger.past import Past
from x402_mask._ledger.private_files import keep_private, make_folder
from x402_mask._ledger.records import Busy
from x402_mask._ledger.schema import (
    SCHEMA_VERSION,
    TABLES,
    make_tables,
    meta,
    newer_schema,
    set_meta,
)
from x402_mask._ledger.shape import catalog, insist_on_postgres
from x402_mask._ledger.waiting import WAIT_S, contended, reentered
from x402_mask._system.turns import Turn, Turns, caller
from x402_mask._wire.x402 import shown
from x402_mask.errors import LedgerError

if TYPE_CHECKING:
    from x402_mask._ledger import postgres_pool
else:
    try:
        from x402_mask._ledger import postgres_pool
    except ImportError:  # psycopg comes with an extra; making a ledger says so
        postgres_pool = None

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from x402_mask._ledger.records import Breaker, Db, OpenPayment, Proof, Reservation, Reserved

log = logging.getLogger("x402_mask")

_VERSION: Final = re.compile("[1-9][0-9]{0,8}")

LEASE_S: Final = 20.0
"""A process that has not renewed its lease for so long is dead to the others."""

BEAT_S: Final = 5.0
"""How often a process with calls in flight renews its lease."""

_SCHEMA: Final = (
    TABLES.format(serial="BIGSERIAL PRIMARY KEY", key="BIGINT PRIMARY KEY", plain="", blob="BYTEA")
    + "CREATE TABLE IF NOT EXISTS owners (owner TEXT PRIMARY KEY, until TIMESTAMPTZ NOT NULL);"
)
_LOCK: Final = int.from_bytes(sha256(b"x402_mask ledger").digest()[:8], signed=True)
_LOCKED: Final = "55P03"
_IDLE_MS: Final = 4_000  # a stopped process must not keep the lock from those who wait for it
_WAIT_MIN_S: Final = 0.02
_ASK_S: Final = 1.0
"""How long a caller whose time is up waits to hear whether a commit was made, at most."""

_KEY_VARIABLE: Final = "X402_MASK_LEDGER_KEY"
_KEY_BYTES: Final = 32
_NAME: Final = "the ledger's database"


class PostgresLedger(Ledger):
    """A ledger in a PostgreSQL database, for several hosts with one budget.

    The ledger to choose for a fleet, and only there.  A reservation is a dozen statements, each a
    round trip, under one lock for all hosts.  It tops out with the first writer, even with the
    server on the same machine: 210 to 460 durable reservations a second, a sixth to a third of
    what :class:`~x402_mask.SQLiteLedger` makes.  Eight or 64 writers (threads of up to eight
    processes) share 300 to 420, and each of 64 waits up to 1 s.  A network divides this further.

    Whether another host's call is still in flight is known by a lease of 20 s on the database's
    clock, renewed every 5 s.  Every commit is synchronous: what was acknowledged survives the
    server.  Nothing of a session outlives its transaction, so a pooler in transaction mode may be
    between.  Needs the extra ``x402-mask[postgres]``.

    Args:
        dsn: a connection string or URL; never shown in a repr, an error or a log.
        key: 32 bytes (or their hex), the same on every host: encrypts stored proofs and chains the
            history. By default the environment variable ``X402_MASK_LEDGER_KEY``, else the file
            ``postgres.key`` in the user's data directory, made when the ledger is new.

    Raises:
        ImportError: psycopg is not installed.
        ValueError: *dsn* or *key* cannot be read.
        LedgerError: from any method: the database cannot be reached, read or written.
    """

    def __init__(self, dsn: str, *, key: bytes | str | None = None) -> None:
        super().__init__()
        if postgres_pool is None:
            raise ImportError("a PostgresLedger needs psycopg: pip install 'x402-mask[postgres]'")
        self._given_key = None if key is None else _read_key(key)
        self._key: LedgerKey | None = None
        self._pool = postgres_pool.Pool(dsn, self._prepare)
        self._folder = data_path()
        self._past = Past(HeadFile(self._folder / f"postgres-{self._pool.identity}.head"))
        self._writing = Turns()
        self._heart = _Heart(weakref.ref(self))
        self._pid = os.getpid()

    def __repr__(self) -> str:
        return f"PostgresLedger(<{self._pool.identity}>)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a PostgresLedger cannot be pickled: make one in each process")

    @property
    def _identity(self) -> object:
        return self._pool.identity

    @property
    def key_path(self) -> Path:
        """The file with this ledger's key, where no key was given."""
        return self._folder / "postgres.key"

    @property
    def head_file(self) -> HeadFile:
        """The last entry this host wrote, kept besides the database."""
        return self._past.head

    @property
    def past(self) -> Past:
        """What is known of the ledger besides what it says itself."""
        return self._past

    def close(self) -> None:
        """Close the connections; the ledger opens new ones when it is used again."""
        if self._pid != os.getpid():
            return  # inherited: the parent's to close
        self._heart.stop()
        self._pool.close()
        turn = Turn(caller(0))
        if self._writing.take(turn, WAIT_S):
            self._past.head.close()
        self._writing.give_up(turn)

    # --- transactions

    @contextmanager
    def _transaction(
        self,
        wait_s: float,
        *,
        write: bool = True,
        durable: bool = False,  # noqa: ARG002  # every commit is
    ) -> Iterator[Db]:
        if wait_s == 0:
            raise Busy  # the network is never quick enough for an event loop
        self._follow_fork()
        if self._writing.is_mine:
            raise reentered()
        deadline = time.monotonic() + wait_s
        turn = Turn(caller(1))  # of whoever says ``with``: it is over with that, at the latest
        try:
            if write:
                if not self._writing.take(turn, wait_s):
                    raise contended(wait_s)
                self._past.head.forget()  # what an interruption left
            opening = _begin_writing(deadline) if write else _READING
            with self._pool.connection(deadline, wait_s, opening) as raw:
                try:
                    db = postgres_pool.Db(raw)
                    with damage_said:
                        yield db
                    sums.all_written(db)
                    if write:
                        self._commit(raw, deadline, wait_s)
                    else:
                        raw.ask(b"COMMIT")
                except BaseException:
                    self._undo(raw, turn)
                    raise
            if write:
                self._past.committed(durable=True)
        except postgres_pool.Error as exc:
            raise self._explained(exc, wait_s) from None
        finally:
            if self._writing.is_mine:
                self._past.head.forget()
            self._writing.give_up(turn)

    def _undo(self, raw: postgres_pool.Connection, turn: Turn) -> None:
        if not turn.is_over:  # else the connection is somebody else's by now
            postgres_pool.roll_back(raw)
            raw.fit = raw.fit and self._past.loss is None

    def _commit(self, raw: postgres_pool.Connection, deadline: float, wait_s: float) -> None:
        """Commit; if the connection breaks meanwhile, find out whether that was before or after."""
        try:
            answer = raw.execute(b"COMMIT", prepare=False).statusmessage
        except postgres_pool.Error as failure:
            if not postgres_pool.is_lost(raw, failure):
                raise
            raw.close()
        else:
            if answer != "COMMIT":
                raise LedgerError("the ledger's database did not commit; nothing was written")
            return
        if not self._was_committed(max(min(wait_s, _ASK_S), deadline - time.monotonic())):
            raise LedgerError(
                "the ledger's database was lost before it committed; nothing was written"
            )

    def _was_committed(self, wait_s: float) -> bool:
        """Whether the last transaction, cut off in its commit, is there.

        Whoever holds the lock knows that the transaction has ended; its last entry of the history
        is chained by a keyed hash, so that no other transaction can have written the same.
        """
        last, deadline = self._past.head.pending, time.monotonic() + wait_s
        try:
            with self._pool.connection(deadline, wait_s, _begin_writing(deadline)) as raw:
                db = postgres_pool.Db(raw)
                sql = "SELECT 1 FROM history WHERE seq=? AND mac=?"
                found = last is not None and db.one(sql, *last) is not None
                postgres_pool.roll_back(raw)
        except (LedgerError, postgres_pool.Error):
            raise LedgerError(
                "the ledger's database was lost in mid-commit and cannot be asked whether it"
                " committed; what it did commit counts. Nothing was sent"
            ) from None
        return found

    def _explained(self, failure: postgres_pool.Error, wait_s: float) -> LedgerError:
        if failure.sqlstate == _LOCKED:
            return contended(wait_s)
        return self._pool.explained(failure)

    def _follow_fork(self) -> None:
        if self._pid == os.getpid():
            return
        self._writing = Turns()
        self._pool.forked()
        self._heart = _Heart(weakref.ref(self))
        self._past.forked()
        self._pid = os.getpid()

    def _goes_on(self, db: Db, seq: int, mac: bytes) -> None:
        try:
            self._past.goes_on(db, seq, mac, _NAME)
        except LedgerError:
            self._pool.close()  # whoever comes next connects, and compares, anew
            raise

    def _moved_head(self, seq: int, mac: bytes) -> None:
        self._past.moved(seq, mac)

    # --- tables and key

    def _prepare(self, raw: postgres_pool.Connection, deadline: float) -> None:
        """Make or check the tables; refuse a newer program's, or another key's."""
        keep_private(self._past.head.path)
        memory = self._past.remember()  # before the database: rows after it are no contradiction
        db = postgres_pool.Db(raw)
        there = catalog(db)
        if ("table", "meta") not in there:
            raw.begin(_begin_writing(deadline))
            self._make_tables(db)
            raw.ask(b"COMMIT")
        found = dict(
            db.all("SELECT name, value FROM x402_mask.meta WHERE name IN ('schema','key')")
        )
        version = found.get("schema", "")
        if not _VERSION.fullmatch(version):
            raise LedgerError(f"the schema {shown(version)!r} is not a ledger of x402_mask")
        if int(version) > SCHEMA_VERSION:
            raise newer_schema(_NAME, version)
        if int(version) < SCHEMA_VERSION:
            raw.begin(_begin_writing(deadline))
            self._make_tables(db)
            set_meta(db, "schema", str(SCHEMA_VERSION))
            raw.ask(b"COMMIT")
        insist_on_postgres(db, _SCHEMA, there)
        self._key = self._past.key = self._checked_key(found.get("key"))
        self._meters.clear()  # the database may be another one by now
        raw.begin(_READING)
        self._past.judge(db, memory, _NAME)
        many = self._past.audited(db, self._key)
        raw.ask(b"COMMIT")
        raw.fit = not self._past.unfit  # else for this thread only, which does not pay
        if many:
            self._sum_anew(raw)

    def _sum_anew(self, raw: postgres_pool.Connection) -> None:
        """Let the sum begin with newer counters, unless somebody writes: a later one may do it.

        A reader waits for no writer; and what another thread has appended, and not yet written
        down as the head, would be taken for ours.
        """
        turn, mine = Turn(caller(0)), self._writing.is_mine
        try:
            if not mine and not self._writing.take(turn, 0):
                return
            raw.begin(_begin_writing(time.monotonic()))
            self._sum_newer(postgres_pool.Db(raw), self._ledger_key())
            raw.ask(b"COMMIT")
            self._past.committed(durable=True)
        except postgres_pool.Error as exc:
            if exc.sqlstate != _LOCKED:
                raise
            postgres_pool.roll_back(raw)
        finally:
            self._writing.give_up(turn)

    def _make_tables(self, db: Db) -> None:
        if db.one("SELECT to_regclass('x402_mask.meta')") == (None,):
            self._past.refuse_to_forget(_NAME)
        if db.one("SELECT to_regnamespace('x402_mask')") == (None,):
            db.run("CREATE SCHEMA x402_mask")
        make_tables(db, _SCHEMA, partial(_columns, db))
        if meta(db, "key") is None:
            set_meta(db, "schema", str(SCHEMA_VERSION))
            set_meta(db, "key", self._new_key().key_id)

    def _configured_key(self) -> bytes | None:
        if self._given_key is not None:
            return self._given_key
        text = os.environ.get(_KEY_VARIABLE)
        if not text:
            return None
        try:
            return _read_key(text)
        except ValueError:
            raise LedgerError(f"{_KEY_VARIABLE} is not 64 hex digits") from None

    def _new_key(self) -> LedgerKey:
        key = self._configured_key()
        if key is None:
            self._make_folder()
            key = load_key(self.key_path, create=True)
        assert key is not None
        return LedgerKey(key)

    def _make_folder(self) -> None:
        try:
            make_folder(self._folder)
        except OSError as exc:
            raise LedgerError(f"cannot make the data directory: {exc.strerror}") from exc

    def _checked_key(self, made_with: str | None) -> LedgerKey:
        key = self._configured_key() or load_key(self.key_path, create=False)
        if made_with is None:
            raise LedgerError("the schema x402_mask of this database is not a ledger of x402_mask")
        if key is None or LedgerKey(key).key_id != made_with:
            which = "no key for this ledger is known here" if key is None else "this is another key"
            raise LedgerError(
                f"{which}: every host needs the key the ledger was made with, by key=,"
                f" {_KEY_VARIABLE} or {self.key_path.name} in the data directory"
            )
        return LedgerKey(key)

    def _ledger_key(self) -> LedgerKey:
        if self._key is None:
            with self._transaction(WAIT_S, write=False):
                pass  # connecting checks the key
        assert self._key is not None
        return self._key

    # --- who is alive

    def reserve(
        self,
        want: Reservation,
        breaker: Breaker | None = None,
        *,
        durable: bool = False,
        prove: Callable[[], Proof] | None = None,
        carrier: object = None,
        wait_s: float = WAIT_S,
    ) -> Reserved | OpenPayment:
        """Check every cap and reserve; see :meth:`Ledger.reserve`."""
        return super().reserve(
            want,
            breaker,
            durable=durable,
            prove=prove,
            carrier=carrier,
            wait_s=self._stay_alive(wait_s),
        )

    def claim(
        self,
        payment_id: str,
        carrier: object = None,
        *,
        now_us: int,
        seller_us: int | None = None,
        by_chain: bool = False,
        wait_s: float = WAIT_S,
    ) -> Proof | None:
        """Take an open proof in hand; see :meth:`Ledger.claim`."""
        return super().claim(
            payment_id,
            carrier,
            now_us=now_us,
            seller_us=seller_us,
            by_chain=by_chain,
            wait_s=self._stay_alive(wait_s),
        )

    def _stay_alive(self, wait_s: float) -> float:
        """Hold a lease that outlasts this call, and keep it while calls are in flight.

        Returns what is left of *wait_s*.
        """
        if wait_s == 0:
            raise Busy
        until = time.monotonic() + wait_s
        self._follow_fork()
        self._heart.start(wait_s)
        return max(_WAIT_MIN_S, until - time.monotonic())

    def _renew(self, wait_s: float) -> None:
        deadline = time.monotonic() + wait_s
        try:
            with self._pool.connection(deadline, wait_s, _RENEWING) as raw:
                postgres_pool.Db(raw).run(
                    "INSERT INTO owners (owner, until)"
                    " VALUES (?, clock_timestamp() + make_interval(secs => ?))"
                    " ON CONFLICT (owner) DO UPDATE SET until=excluded.until",
                    self._me(),
                    LEASE_S,
                )
                raw.ask(b"COMMIT")
        except postgres_pool.Error as exc:
            raise self._explained(exc, wait_s) from None

    def _database_us(self, db: Db) -> int | None:
        """Unix microseconds by the server's clock: hosts that differ agree on that one."""
        return db.clock_us  # asked with the transaction's first statements

    def _new_owner(self) -> str:
        return new_owner()

    def _is_alive(self, db: Db, owner: str) -> bool:
        if owner.startswith(f"{boot_id()}:") and not is_alive(owner):
            return False  # it ran on this host, so there is no need to wait for its lease
        sql = "SELECT 1 FROM owners WHERE owner=? AND until > clock_timestamp()"
        return db.one(sql, owner) is not None

    def _sweep(self, db: Db, now_us: int) -> list[str]:
        swept = super()._sweep(db, now_us)
        db.run("DELETE FROM owners WHERE until < clock_timestamp() - make_interval(days => 1)")
        return swept


class _Heart:
    """Renews a ledger's lease from a thread of its own, as long as the ledger has calls in flight.

    A lease that cannot be renewed runs out: then other processes give the reservations back, and
    this process's ``hold`` finds them gone and sends nothing.
    """

    def __init__(self, ledger: weakref.ref[PostgresLedger]) -> None:
        self._ledger = ledger
        self._turns = Turns()
        self._thread: threading.Thread | None = None
        self._stopped = threading.Event()
        self._renewed = self._needed = -LEASE_S

    def start(self, wait_s: float) -> None:
        """Renew the lease now, unless it is young, and go on renewing it."""
        self._needed = time.monotonic()
        if self._beats and self._needed - self._renewed < LEASE_S / 2:
            return
        turn = Turn(caller(0))
        try:
            if not self._turns.take(turn, wait_s):
                raise contended(wait_s)
            ledger = self._ledger()
            assert ledger is not None
            if time.monotonic() - self._renewed > LEASE_S / 2:
                self._renew(ledger, max(0.0, self._needed + wait_s - time.monotonic()))
            if not self._beats:
                self._stopped = threading.Event()
                self._thread = threading.Thread(
                    target=self._beat, args=(self._stopped,), name="x402-mask-lease", daemon=True
                )
                self._thread.start()
        finally:
            self._turns.give_up(turn)

    @property
    def _beats(self) -> bool:
        """Whether the thread runs: it may have been interrupted before it was started."""
        return self._thread is not None and self._thread.is_alive()

    def stop(self) -> None:
        """Stop renewing."""
        turn = Turn(caller(0))
        try:
            self._turns.take(turn, WAIT_S)
            self._stopped.set()
            self._thread = None
            self._renewed = -LEASE_S
        finally:
            self._turns.give_up(turn)

    def _renew(self, ledger: PostgresLedger, wait_s: float) -> None:
        before = time.monotonic()
        ledger._renew(wait_s)  # noqa: SLF001
        self._renewed = before

    def _beat(self, stopped: threading.Event) -> None:
        while not stopped.wait(BEAT_S):
            ledger = self._ledger()
            if ledger is None or not self._again(ledger, stopped):
                return
            del ledger

    def _again(self, ledger: PostgresLedger, stopped: threading.Event) -> bool:
        turn = Turn(caller(0))
        try:
            if not self._turns.take(turn, BEAT_S):
                return True  # somebody renews it just now
            if stopped.is_set():
                return False
            if not ledger._flying and time.monotonic() - self._needed > LEASE_S:  # noqa: SLF001
                self._thread = None
                return False
        finally:
            self._turns.give_up(turn)
        try:
            self._renew(ledger, BEAT_S)
        except LedgerError as exc:
            log.warning("the lease on the ledger could not be renewed: %s", exc)
        return True


def _columns(db: Db, table: str) -> set[str]:
    """The names of a table's columns; none where there is no such table."""
    sql = (
        "SELECT attname FROM pg_attribute WHERE attrelid=to_regclass(?) AND attnum>0"
        " AND NOT attisdropped"
    )
    return {name for (name,) in db.all(sql, f"x402_mask.{table}")}


def _begin_writing(deadline: float) -> bytes:
    """Begin, alone among all writers of the database.

    Not a stricter isolation level: its snapshot would be older than the lock.
    """
    patience_ms = max(1, int((deadline - time.monotonic()) * 1000))
    return (
        "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE;"
        "SET LOCAL search_path TO x402_mask, pg_temp;"
        "SET LOCAL synchronous_commit TO on;"
        f"SET LOCAL idle_in_transaction_session_timeout TO {_IDLE_MS};"
        f"SET LOCAL lock_timeout TO {patience_ms};"
        f"SELECT pg_advisory_xact_lock({_LOCK});{_CLOCK}"
    ).encode()


_CLOCK: Final = "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint"
_READING: Final = (
    "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY;SET LOCAL search_path TO x402_mask, pg_temp;"
    + _CLOCK
).encode()
_RENEWING: Final = (
    "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE;"
    "SET LOCAL search_path TO x402_mask, pg_temp;"
    "SET LOCAL synchronous_commit TO off;" + _CLOCK  # a lease lost with the server only ends sooner
).encode()


def _read_key(key: bytes | str) -> bytes:
    try:
        found = bytes.fromhex(key.strip()) if isinstance(key, str) else bytes(key)
    except ValueError:
        found = b""
    if len(found) != _KEY_BYTES:
        raise ValueError("a ledger key is 32 bytes, or 64 hex digits")
    return found
