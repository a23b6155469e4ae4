"""Servers on loopback: how they start, and how they stop.  All of them are context managers.

:class:`Listener` speaks whatever its ``serve`` speaks, a thread for each connection;
:class:`HttpServer` hands requests to a handler of the standard library; :class:`ServedApp` runs an
ASGI application.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self


class CutShort(Exception):
    """The client went away in the middle of a request's head: a killed or cancelled one may."""


class Stops:
    """What stops when its block ends."""

    def close(self) -> None:
        """Stop."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class Listener(Stops):
    """One thread for each connection; every connection is cut when it closes.

    A subclass sets its own attributes before it calls ``__init__``, which begins to accept.

    Attributes:
        idle_s: how long a client may say nothing.
        join_s: how long ``close`` waits for each thread; 0 waits for none.
    """

    idle_s = 5.0
    join_s = 5.0

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port: int = self._listener.getsockname()[1]
        self.origin = f"http://127.0.0.1:{self.port}"
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self._connections: dict[int, socket.socket] = {}
        self._opened = 0
        self._threads: list[threading.Thread] = []
        self._start(self._accept)

    def serve(self, connection: socket.socket) -> None:
        """Answer one connection to its end."""
        raise NotImplementedError

    def serve_numbered(self, connection: socket.socket, number: int) -> None:
        """Answer the connection of this number: the first is 1."""
        self.serve(connection)

    def open_connections(self) -> int:
        """Connections a client holds open at this moment."""
        with self._lock:
            return len(self._connections)

    def _start(self, work: Any, *args: Any) -> None:
        thread = threading.Thread(target=work, args=args, daemon=True)
        if self.join_s:
            self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._closing.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.settimeout(self.idle_s)
            with self._lock:
                self._opened += 1
                number = self._opened
                self._connections[number] = connection
            self._start(self._guarded, connection, number)

    def _guarded(self, connection: socket.socket, number: int) -> None:
        try:
            with contextlib.suppress(OSError, CutShort, http.client.HTTPException), connection:
                self.serve_numbered(connection, number)
        finally:
            with self._lock:
                self._connections.pop(number, None)

    def close(self) -> None:
        """Stop accepting and cut every connection."""
        self._closing.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            connections = list(self._connections.values())
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(self.join_s)


class Handler(BaseHTTPRequestHandler):
    """A handler that keeps connections open and prints nothing."""

    protocol_version = "HTTP/1.1"
    timeout = 20
    disable_nagle_algorithm = True  # else headers and body meet a delayed ACK, 40 ms

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base's name
        """Nothing is logged."""


class _Threading(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # a shorter queue resets connections when many come at once


class HttpServer(Stops):
    """The standard library's server, with a handler for each request.

    A subclass sets its own attributes before it calls ``__init__``, which begins to serve.
    """

    def __init__(self, handler: type[BaseHTTPRequestHandler]) -> None:
        self._server = _Threading(("127.0.0.1", 0), handler)
        self.port: int = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Stop serving and wait for the thread."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)


class ServedApp(Stops):
    """An ASGI application on a free loopback port, run by uvicorn in a thread."""

    def __init__(self, app: Any) -> None:
        """Serve *app*; returns once it accepts connections.

        Raises:
            RuntimeError: it did not within a minute.
        """
        import uvicorn

        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        config = uvicorn.Config(app, log_level="warning", access_log=False, lifespan="off")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._socket]}, daemon=True
        )
        self._thread.start()
        deadline = time.monotonic() + 60  # on a machine with much else to do
        while not self._server.started:
            if time.monotonic() > deadline or not self._thread.is_alive():
                raise RuntimeError("uvicorn did not start")
            time.sleep(0.005)

    def close(self) -> None:
        """Stop serving and wait for the thread."""
        self._server.should_exit = True
        self._server.force_exit = True
        self._thread.join(10)
        self._socket.close()
