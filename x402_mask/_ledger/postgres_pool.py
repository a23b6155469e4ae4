"""Connections to PostgreSQL: bounded in number and in time, and silent about their DSN.

A connection may be to a pooler that lends a server's connection for one transaction and then gives
it to somebody else, so nothing of a session is used: no prepared statement (their names would be
another client's), no setting and no lock that outlives its transaction, no pipeline.  Each
statement is one round trip.

The only module that imports psycopg; ``_ledger.postgres`` loads it when a ledger is made.
"""

from __future__ import annotations

import math
import os
import re
import select
import threading
import time
import weakref
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from functools import lru_cache
from hashlib import sha256
from json import dumps
from random import uniform
from typing import TYPE_CHECKING, Any, Final

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.pq import TransactionStatus
from psycopg.waiting import Ready, Wait

from x402_mask._ledger.waiting import contended
from x402_mask._system.turns import Turn, Turns, caller
from x402_mask.errors import LedgerError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from psycopg.abc import PQGen

    from x402_mask._ledger.records import Change, Last

ANSWER_S: Final = 30.0
"""How long the server may take for one statement before the connection counts as lost."""

LATE_S: Final = 0.5
"""How long a statement may take after the time that its caller waits: a lock may come at the last
moment, and the server itself says that one did not."""

_CONNECTIONS_MAX: Final = 8
_CONNECT_S: Final = 4  # within the time that a reservation may wait
_CONNECT_MIN_S: Final = 0.02
"""Who has no time left tries for so long: a server nearby answers in less."""

_PAUSE_S: Final = 0.05
_SECRETS: Final = ("password", "sslpassword")
_IDENTITY: Final = ("host", "hostaddr", "port", "dbname", "user", "service")
_VARIABLES: Final = {
    "host": "PGHOST",
    "hostaddr": "PGHOSTADDR",
    "port": "PGPORT",
    "dbname": "PGDATABASE",
    "user": "PGUSER",
    "service": "PGSERVICE",
}
_DEFAULTS: Final = {
    "fallback_application_name": "x402_mask",
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 15_000,
}
"""So that a peer that vanished is noticed within half a minute, not within hours."""

_TEXT: Final = {"client_encoding": "UTF8"}
"""Else a database without an encoding of its own (``SQL_ASCII``) answers bytes, not text."""

_NOT_YET: Final = ("57P03", "53300")  # starting up, or too many connections
_ADVICE: Final = {
    "55P03": "others have its lock",
    "22003": "a counter of this ledger would overflow",
    "25006": "the server is read-only: name the primary in the DSN",
    "42501": "grant this role the schema x402_mask, or CREATE on the database",
    "42P01": "a table of the schema x402_mask is gone: restore it from a backup",
    "53100": "free some space on the server's disk",
    "53300": "the server takes no more connections",
}

_VERBS: Final = frozenset({b"SELECT", b"INSERT", b"UPDATE", b"DELETE", b"COMMIT"})
"""Statements that the server answers with their own word: another word is another answer."""

_READ: Final = getattr(select, "POLLIN", 1)
_WRITE: Final = getattr(select, "POLLOUT", 4)
_EVENTS: Final = {Wait.R: _READ, Wait.W: _WRITE, Wait.RW: _READ | _WRITE}

Error = psycopg.Error
_inherited: Final[list[Connection]] = []


class Connection(psycopg.Connection[tuple[Any, ...]]):
    """A connection that gives up on a server that does not answer."""

    until: float = math.inf
    """When whoever uses it has waited for long enough, by the monotonic clock."""
    fit: bool = True
    """Whether others may use it after whoever opened it."""
    clock_us: int | None = None
    """What the server's clock said when the open transaction began."""

    def begin(self, opening: bytes) -> None:
        """Execute the statements *opening*, of which the last asks for the server's clock."""
        cursor = self.ask(opening)
        while cursor.nextset():
            pass
        found = cursor.fetchone()
        self.clock_us = None if found is None else int(found[0])

    def ask(self, sql: bytes, params: tuple[object, ...] = ()) -> psycopg.Cursor[tuple[Any, ...]]:
        """Execute one statement, or several without *params*; a cursor with its answer.

        Raises:
            LedgerError: the answer is another statement's. The connection is closed: whatever comes
                from it next would be as wrong.
        """
        cursor = self.execute(sql, params or None, prepare=False)
        verb = sql[: sql.find(b" ")] if b" " in sql else sql
        if verb in _VERBS and (cursor.statusmessage or "").encode().partition(b" ")[0] != verb:
            self.close()
            raise LedgerError(
                "the ledger's database gave the answer to another statement; nothing was sent."
                " A pooler before it must be in transaction or session mode"
            )
        return cursor

    def wait(self, gen: PQGen[Any], *args: Any, **kwargs: Any) -> Any:
        """Drive *gen* until it is done: until ``until`` and a little, but not for ever."""
        if not hasattr(select, "poll"):  # Windows: TCP alone notices a lost peer there
            return super().wait(gen, *args, **kwargs)
        socket, poll = self.pgconn.socket, select.poll()
        begun = time.monotonic()
        answer_s = min(ANSWER_S, max(self.until - begun, 0.0) + LATE_S)
        deadline = begun + answer_s
        try:
            wanted = next(gen)
            while True:
                poll.register(socket, _EVENTS[wanted])
                found = poll.poll(max(0.0, deadline - time.monotonic()) * 1000)
                if not found:
                    raise _silence(answer_s)  # noqa: TRY301  # closes the connection below
                wanted = gen.send(_ready(found[0][1], wanted))
        except StopIteration as done:
            return done.value
        except BaseException as failure:
            if not (isinstance(failure, psycopg.Error) and failure.sqlstate):
                self.pgconn.finish()  # left in the middle of an exchange: of no use to anybody
            raise


def _silence(answer_s: float) -> psycopg.OperationalError:
    return psycopg.OperationalError(f"no answer within {answer_s:.2g} s")


def _ready(event: int, wanted: Wait) -> Ready:
    if event & ~(_READ | _WRITE):  # an error or a hang-up: libpq finds out which
        return Ready(wanted)
    return Ready((Ready.R if event & _READ else 0) | (Ready.W if event & _WRITE else 0))


class Db:
    """A :class:`x402_mask._ledger.ledger.Db` over one connection, with SQL as SQLite writes it."""

    __slots__ = ("changes", "last", "raw")

    def __init__(self, raw: Connection) -> None:
        self.raw = raw
        self.last: Last | None = None
        self.changes: list[Change] = []

    @property
    def clock_us(self) -> int | None:
        """What the server's clock said when the transaction began, microseconds."""
        return self.raw.clock_us

    def one(self, sql: str, *params: object) -> tuple[Any, ...] | None:
        """The first row, or ``None``."""
        return self.raw.ask(_translated(sql), params).fetchone()

    def all(self, sql: str, *params: object) -> list[tuple[Any, ...]]:
        """Every row."""
        return self.raw.ask(_translated(sql), params).fetchall()

    def run(self, sql: str, *params: object) -> int:
        """Execute, and tell how many rows changed."""
        return self.raw.ask(_translated(sql), params).rowcount


@lru_cache(maxsize=256)
def _translated(sql: str) -> bytes:
    return sql.replace("?", "%s").encode()


class _Slot:
    """Room for one connection, and whose turn it is to use it."""

    __slots__ = ("raw", "turns")

    def __init__(self) -> None:
        self.raw: Connection | None = None
        self.turns = Turns()

    def tidy(self) -> None:
        """Close a connection that is of no use to whoever comes next: one left in a transaction."""
        raw = self.raw
        if raw is None:
            return
        if raw.closed or not raw.fit or raw.info.transaction_status != TransactionStatus.IDLE:
            self.raw = None
            raw.close()


class Pool:
    """At most eight connections of one process, made when needed; never inherited by a fork.

    A connection is lent for as long as the function runs that says ``with``.  One that an
    interruption left behind, perhaps with the lock of all writers, is closed by whoever uses the
    pool next.

    Args:
        dsn: how to connect; kept where nothing prints it.
        prepare: called with each new connection and the deadline, before anybody uses it.

    Raises:
        ValueError: *dsn* cannot be read.
    """

    def __init__(self, dsn: str, prepare: Callable[[Connection, float], None]) -> None:
        settings = _settings(dsn)
        settings |= _from_environment(settings)
        self._secrets = [str(settings[name]) for name in _SECRETS if settings.get(name)]
        patience = int(settings.get("connect_timeout") or _CONNECT_S)
        conninfo = make_conninfo("", **{**_DEFAULTS, **settings, **_TEXT})
        self._conninfo: Callable[[], str] = lambda: conninfo  # a closure is not printed
        self._connect_s = patience if patience > 0 else _CONNECT_S
        self.identity = _identity(settings)
        self._prepare = prepare
        self._slots: list[_Slot] = []
        self.forked()
        weakref.finalize(self, _close, self._slots, os.getpid())

    def forked(self) -> None:
        """Start with no connection; in a child the parent's are neither used nor closed."""
        _inherited.extend(slot.raw for slot in self._slots if slot.raw is not None)
        self._slots[:] = [_Slot() for _ in range(_CONNECTIONS_MAX)]
        self._opening = Turns()
        self._reached = False

    @contextmanager
    def connection(self, deadline: float, wait_s: float, opening: bytes) -> Iterator[Connection]:
        """A connection on which the statements *opening* were just executed.

        One that fails in between is thrown away, and so is one left in a transaction.
        """
        turn = Turn(caller(1))  # of whoever says ``with``: it is over with that, at the latest
        slot = self._slot(turn, deadline, wait_s)
        try:
            yield self._opened(slot, deadline, opening)
        finally:
            if turn.is_over:  # interrupted, and only now disposed of: the slot may be another's
                self.sweep()
            else:
                slot.tidy()
                slot.turns.give_up(turn)

    def _slot(self, turn: Turn, deadline: float, wait_s: float) -> _Slot:
        """Take a slot, one with a connection if there is one."""
        self.sweep()
        while True:
            for slot in sorted(self._slots, key=lambda slot: slot.raw is None):
                if slot.turns.take(turn, 0):
                    slot.tidy()
                    return slot
            if time.monotonic() >= deadline:
                raise contended(wait_s)
            time.sleep(uniform(_PAUSE_S / 50, _PAUSE_S / 5))  # noqa: S311  # spreads the waiters

    def sweep(self) -> None:
        """Close the connections that were left in a transaction by what does not run any more."""
        for slot in self._slots:
            raw = slot.raw
            if raw is None or raw.info.transaction_status == TransactionStatus.IDLE:
                continue
            turn = Turn(caller(0))
            try:
                if slot.turns.take(turn, 0):
                    slot.tidy()
            finally:
                slot.turns.give_up(turn)

    def _opened(self, slot: _Slot, deadline: float, opening: bytes) -> Connection:
        """A connection whose server answered just now; one that broke is replaced."""
        while True:
            fresh = slot.raw is None
            raw = slot.raw or self._connected(slot, deadline)
            try:
                raw.until = deadline
                raw.begin(opening)
            except BaseException as failure:
                roll_back(raw)
                slot.tidy()
                if not is_lost(raw, failure) or time.monotonic() >= deadline:
                    raise
                time.sleep(_PAUSE_S if fresh else 0)
            else:
                return raw

    def _connected(self, slot: _Slot, deadline: float) -> Connection:
        """A new connection; a server that was reached before may be starting again: wait for it.

        A pooler takes connections for a server that it does not reach: the first statements tell.
        """
        while True:
            raw, failure, patient = None, None, False
            try:
                raw = self._reaching(deadline)
                slot.raw = raw  # from here on it is known to whoever comes next
                self._check(raw, deadline)
            except psycopg.Error as exc:
                failure = self.explained(exc)
                lost = raw is None or is_lost(raw, exc)
                patient = lost and (self._reached or exc.sqlstate in _NOT_YET)
            if failure is None:
                assert raw is not None
                self._reached = True
                return raw
            slot.raw = None
            if raw is not None:
                raw.close()
            if not patient or time.monotonic() + _PAUSE_S >= deadline:
                raise failure  # outside of the handler: the cause would show the DSN
            time.sleep(_PAUSE_S)

    def _reaching(self, deadline: float) -> Connection:
        """Connect, in a thread: libpq waits two seconds at least, and for names without a bound.

        Raises:
            psycopg.OperationalError: it cannot be reached, or not by the *deadline*.
        """
        left = max(_CONNECT_MIN_S, min(self._connect_s, deadline - time.monotonic()))
        reached: Future[Connection] = Future()

        def connect() -> None:
            try:
                raw = Connection.connect(
                    self._conninfo(),
                    autocommit=True,
                    prepare_threshold=None,
                    connect_timeout=max(2, math.ceil(left)),
                )
            except BaseException as failure:  # noqa: BLE001  # raised where it is waited for
                reached.set_exception(failure)
            else:
                reached.set_result(raw)

        threading.Thread(target=connect, name="x402-mask-connect", daemon=True).start()
        try:
            return reached.result(left)
        except BaseException as failure:
            reached.add_done_callback(_close_late)  # at once, where it is there
            if not isinstance(failure, TimeoutError):
                raise
        raise _silence(left)

    def _check(self, raw: Connection, deadline: float) -> None:
        """What is done once with every new connection, with one at a time."""
        turn = Turn(caller(0))
        try:
            raw.until = deadline
            self._take_opening(turn, deadline)
            self._prepare(raw, deadline)
        except BaseException as failure:
            if not isinstance(failure, psycopg.Error):  # else it is still told whether it was lost
                raw.close()
            raise
        finally:
            self._opening.give_up(turn)

    def _take_opening(self, turn: Turn, deadline: float) -> None:
        left = max(0.0, deadline - time.monotonic())
        if not self._opening.take(turn, left):
            raise contended(left)

    def explained(self, failure: psycopg.Error) -> LedgerError:
        """What failed and what to do, without the DSN."""
        text = failure.diag.message_primary or str(failure).strip()
        text = re.sub(r"(?s).*connection to server .*? failed: ", "", text)
        line = text.partition("\n")[0] or type(failure).__name__
        for secret in self._secrets:
            line = line.replace(secret, "***")
        advice = _ADVICE.get(failure.sqlstate or "", "see `x402-mask doctor`")
        return LedgerError(f"the ledger's database failed ({line}); {advice}")

    def close(self) -> None:
        """Close what nobody uses now."""
        for slot in self._slots:
            turn = Turn(caller(0))
            try:
                if slot.turns.take(turn, 0) and slot.raw is not None:
                    slot.raw.close()
                    slot.raw = None
            finally:
                slot.turns.give_up(turn)


def _close_late(reached: Future[Connection]) -> None:
    """Close a connection for which nobody waits any more, if it came to be."""
    if reached.exception() is None:
        reached.result().close()


def _close(slots: list[_Slot], pid: int) -> None:
    if pid == os.getpid():
        for slot in slots:
            if slot.raw is not None:
                slot.raw.close()


def is_lost(raw: Connection, failure: BaseException) -> bool:
    """Whether *failure* means that the connection is gone, rather than that the server refused."""
    if not isinstance(failure, psycopg.Error):
        return False
    return raw.closed or failure.diag.severity_nonlocalized in ("FATAL", "PANIC")


def roll_back(raw: Connection) -> None:
    """End the open transaction, if there is still one; the pool drops what does not end it."""
    with suppress(psycopg.Error):
        if not raw.closed:
            raw.execute(b"ROLLBACK", prepare=False)


def _settings(dsn: str) -> dict[str, Any]:
    try:
        return dict(conninfo_to_dict(dsn))
    except psycopg.Error:
        pass
    raise ValueError("dsn is not a PostgreSQL connection string")  # the cause would show it


def _from_environment(settings: dict[str, Any]) -> dict[str, str]:
    """Where the environment says that the database is, where the DSN does not.

    It is read once, so that one ledger is one database whatever is written there later. A service
    has a file of its own, which libpq reads before the environment.
    """
    found = {name: os.environ.get(variable) for name, variable in _VARIABLES.items()}
    said = {name: text for name, text in found.items() if text and name not in settings}
    service = settings.get("service") or said.get("service")
    return {"service": service} if service else said


def _identity(settings: dict[str, Any]) -> str:
    """Names the database, by a hash of all that is not secret."""
    named = {name: str(settings[name]) for name in _IDENTITY if settings.get(name) is not None}
    return sha256(dumps(named, sort_keys=True).encode()).hexdigest()[:16]
