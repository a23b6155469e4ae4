"""Cutting a paid call at any point of its way, and reading the ledger behind the library's back.

A *point* is a place where a call can be interrupted: before and after every effect that a
conversation wants done, inside each ledger transaction, before and after each send.  A run without
a cut tells how many points there are; then the call is made again, cut at each of them in turn.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import signal
import sqlite3
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx

from tests.support.loopback import Handler, HttpServer
from x402_mask import MemoryLedger, SQLiteLedger
from x402_mask.errors import LedgerError

_METHODS: Final = (
    *("view", "reserve", "hold", "claim", "finish", "release", "note_refusal", "spend"),
    *("ask_payment", "ask_anew", "note_created", "hold_purchase", "store_token", "give_up"),
    *("claim_purchase", "take_token", "drop_token"),
)

Strike = Callable[[str], None]


class Points:
    """Counts points as they are reached and strikes at the chosen ones (counted from 1)."""

    def __init__(self, *at: int, strike: Strike = lambda name: None) -> None:
        self.names: list[str] = []
        self.struck: list[str] = []
        self.armed = True
        self._at = frozenset(at)
        self._strike = strike
        self._lock = threading.Lock()

    def reach(self, name: str) -> None:
        """Pass the point *name*, unless it is struck here."""
        if not self.armed:
            return
        with self._lock:
            self.names.append(name)
            hit = len(self.names) in self._at
        if hit:
            self.struck.append(name)
            self._strike(name)


# --- ways to strike -------------------------------------------------------------------------------


class Bug(Exception):
    """Something nobody foresaw."""


def raising(make: Callable[[], BaseException]) -> Strike:
    """Raise at the point."""

    def strike(name: str) -> None:
        raise make()

    return strike


def fault(name: str) -> None:
    """Raise what really goes wrong there: the store fails, the connection breaks."""
    if name.startswith("ledger:") and not name.endswith((":enter", ":leave")):
        raise LedgerError(f"injected at {name}")
    if name.startswith("send:"):
        raise httpx.ReadError(f"injected at {name}")
    raise Bug(name)


def killing(name: str) -> None:
    """End this process as a power cut would."""
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


class Cancelling:
    """Cancel the task that makes the call, from whatever thread the point is in."""

    def __init__(self) -> None:
        self.loop: asyncio.AbstractEventLoop | None = None
        self.task: asyncio.Task[Any] | None = None

    def __call__(self, name: str) -> None:
        assert self.loop is not None and self.task is not None
        try:
            here = asyncio.get_running_loop() is self.loop
        except RuntimeError:
            here = False
        if here:  # others run, and cancel, only while the task waits for something
            self.loop.call_soon(self.task.cancel)
            return
        done = threading.Event()

        def cancel() -> None:
            assert self.task is not None
            self.task.cancel()
            done.set()

        self.loop.call_soon_threadsafe(cancel)
        done.wait(5)
        time.sleep(0.002)  # let the task see it while this thread still works


# --- points in the ledger -------------------------------------------------------------------------


class _CutMethods:
    """Points around each ledger method and inside its transactions."""

    points: Points
    _doing: threading.local

    def _name(self) -> str:
        return str(getattr(self._doing, "method", "other"))

    @contextmanager
    def _transaction(
        self, wait_s: float, *, write: bool = True, durable: bool = False
    ) -> Iterator[Any]:
        with self._committed_or_not(wait_s, write=write, durable=durable) as db:
            self.points.reach(f"ledger:{self._name()}:begun")
            yield db
            self.points.reach(f"ledger:{self._name()}:commit")
        self.points.reach(f"ledger:{self._name()}:committed")

    def _committed_or_not(self, wait_s: float, *, write: bool, durable: bool) -> Any:
        return super()._transaction(wait_s, write=write, durable=durable)  # type: ignore[misc]


def _cut_method(name: str) -> Callable[..., Any]:
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        outer, self._doing.method = getattr(self._doing, "method", "other"), name
        try:
            self.points.reach(f"ledger:{name}:enter")
            answer = getattr(super(_CutMethods, self), name)(*args, **kwargs)
            self.points.reach(f"ledger:{name}:leave")
            return answer
        finally:
            self._doing.method = outer

    method.__name__ = name
    return method


for _method in _METHODS:
    setattr(_CutMethods, _method, _cut_method(_method))


class CutSQLite(_CutMethods, SQLiteLedger):
    """A file ledger with points; not *brief*, its event loop waits for it as for a far one."""

    def __init__(self, path: Path, points: Points, *, brief: bool = True) -> None:
        super().__init__(path)
        self.points = points
        self.brief = brief  # type: ignore[misc]
        self._doing = threading.local()


class Deaf:
    """A database connection that breaks before it hears the answer."""

    def __init__(self, raw: Any) -> None:
        self._raw = raw

    def __getattr__(self, name: str) -> Any:
        return getattr(self._raw, name)

    def execute(self, *args: Any, **kwargs: Any) -> Any:
        """Let the server do it, then break."""
        import psycopg

        self._raw.execute(*args, **kwargs)
        self._raw.close()
        raise psycopg.OperationalError("injected: the answer was lost")


def cut_postgres(dsn: str, key: bytes, points: Points) -> Any:
    """A fleet's ledger with points; psycopg is imported only here."""
    from x402_mask import PostgresLedger

    class CutPostgres(_CutMethods, PostgresLedger):
        lose_answer = False
        """Whether the answer to the next COMMIT is lost, after the server has committed."""

        def _commit(self, raw: Any, *waits: float) -> None:
            lost, self.lose_answer = self.lose_answer, False
            super()._commit(Deaf(raw) if lost else raw, *waits)

    ledger = CutPostgres.__new__(CutPostgres)
    ledger.points, ledger._doing = points, threading.local()
    PostgresLedger.__init__(ledger, dsn, key=key)
    return ledger


class CutMemory(_CutMethods, MemoryLedger):
    """An in-memory ledger with points."""

    def __init__(self, points: Points) -> None:
        super().__init__()
        self.points = points
        self._doing = threading.local()


# --- points on the wire ---------------------------------------------------------------------------


NO_TLS: Final = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""For loopback; a context that loads the certificate store costs 30 ms each time."""


def _leg(request: httpx.Request) -> str:
    if request.url.path.startswith("/api/payments"):
        return f"market-{request.method}"
    proofs = {"payment-signature", "x-payment-token"}
    return "paid" if proofs & request.headers.keys() else "unpaid"


class CutTransport(httpx.HTTPTransport):
    """Sends over real sockets, with points before and after."""

    def __init__(self, points: Points) -> None:
        super().__init__(trust_env=False, verify=NO_TLS)
        self.points = points

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send, with a point on either side."""
        leg = _leg(request)
        self.points.reach(f"send:{leg}:before")
        response = super().handle_request(request)
        try:
            self.points.reach(f"send:{leg}:after")
        except BaseException:
            response.close()
            raise
        return response


class AsyncCutTransport(httpx.AsyncHTTPTransport):
    """:class:`CutTransport`, async."""

    def __init__(self, points: Points) -> None:
        super().__init__(trust_env=False, verify=NO_TLS)
        self.points = points

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send, with a point on either side; cancellations are felt at once."""
        leg = _leg(request)
        self.points.reach(f"send:{leg}:before")
        await asyncio.sleep(0)
        response = await super().handle_async_request(request)
        try:
            self.points.reach(f"send:{leg}:after")
            await asyncio.sleep(0)
        except BaseException:
            await response.aclose()
            raise
        return response


# --- points at every effect -----------------------------------------------------------------------


@contextmanager
def effects_cut(points: Points) -> Iterator[None]:
    """Put a point before and after every effect that a driver performs."""
    from x402_mask._drive import exchange as adapter

    sync, asynchronous = adapter.Exchange._perform, adapter.AsyncExchange._perform

    def perform(self: Any, effect: Any) -> Any:
        name = f"effect:{type(effect).__name__}"
        points.reach(f"{name}:before")
        answer = sync(self, effect)
        points.reach(f"{name}:after")
        return answer

    async def aperform(self: Any, effect: Any) -> Any:
        name = f"effect:{type(effect).__name__}"
        points.reach(f"{name}:before")
        answer = await asynchronous(self, effect)
        points.reach(f"{name}:after")
        return answer

    adapter.Exchange._perform = perform  # type: ignore[method-assign]
    adapter.AsyncExchange._perform = aperform  # type: ignore[method-assign]
    try:
        yield
    finally:
        adapter.Exchange._perform = sync  # type: ignore[method-assign]
        adapter.AsyncExchange._perform = asynchronous  # type: ignore[method-assign]


# --- the ledger's file, read without the library --------------------------------------------------


@dataclass(frozen=True, slots=True)
class Sums:
    """Micro-USD on a ledger file, by state."""

    reserved: int
    held: int
    settled: int
    released: int
    void: int

    @property
    def counted(self) -> int:
        """What counts against caps."""
        return self.reserved + self.held + self.settled


def sums(path: Path) -> Sums:
    """Add up a ledger file with plain SQL."""
    found = dict(rows(path, "SELECT state, SUM(micro) FROM payments GROUP BY state"))
    return Sums(*(int(found.get(name, 0)) for name in Sums.__slots__))


def rows(path: Path, sql: str) -> list[tuple[Any, ...]]:
    """Query a ledger file, read-only."""
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10)
    try:
        return connection.execute(sql).fetchall()
    finally:
        connection.close()


# --- an RPC endpoint that cannot be trusted -------------------------------------------------------

Lie = Callable[[str, list[Any], Any], Any]
"""Takes method, parameters and the true result; gives the answer, or the bytes of the whole body."""


class LyingRpc(HttpServer):
    """A JSON-RPC endpoint that passes calls on to another, and answers what its ``lie`` makes of it."""

    def __init__(self, upstream: str) -> None:
        self.lie: Lie = lambda method, params, truth: truth
        self.asked: list[str] = []
        host, _, port = upstream.removeprefix("http://").partition(":")
        liar = self

        class Asked(Handler):
            def do_POST(self) -> None:  # noqa: N802 - the base's name
                asked = self.rfile.read(int(self.headers["Content-Length"]))
                body = liar._answer(host, int(port), asked)
                if body is None:
                    self.close_connection = True
                    return
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                with suppress(OSError):
                    self.wfile.write(body)

        super().__init__(Asked)

    def _answer(self, host: str, port: int, asked: bytes) -> bytes | None:
        connection = http.client.HTTPConnection(host, port, timeout=10)
        try:
            connection.request("POST", "/", asked, {"Content-Type": "application/json"})
            answer = json.loads(connection.getresponse().read())
        finally:
            connection.close()
        call = json.loads(asked)
        self.asked.append(call["method"])
        lied = self.lie(call["method"], call["params"], answer.get("result"))
        if lied is None and answer.get("result") is not None:
            return None
        if isinstance(lied, bytes):
            return lied
        return json.dumps(
            answer if lied == answer.get("result") else {**answer, "result": lied}
        ).encode()
