"""Made from ``x402_mask/httpx/_sockets.py`` by ``make twins``: edit that."""

from __future__ import annotations

import os
import socket
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import httpcore2
import httpx2

from x402_mask._drive.deadline import running

if TYPE_CHECKING:
    from collections.abc import Iterator

_INNER_MAX: Final = 4
"""How deep transports that wrap transports are looked into."""


def watch_sockets(inner: object, depth: int = 0) -> None:
    """Let the blocking connections that *inner* will make know of the limit.

    A wait that blocks cannot be ended from without, so each is told how long it may still take.
    Over a sync transport of another make each single wait is bounded, but not their sum.
    """
    pool = getattr(inner, "_pool", None)
    backend = getattr(pool, "_network_backend", None)
    if isinstance(backend, httpcore2.NetworkBackend):
        if not isinstance(backend, _Backend):
            pool._network_backend = _Backend(backend)  # type: ignore[union-attr]  # noqa: SLF001  # httpx2 offers no way to give one
    elif depth < _INNER_MAX:
        for value in list(getattr(inner, "__dict__", {}).values()):
            if isinstance(value, httpx2.BaseTransport):
                watch_sockets(value, depth + 1)


@contextmanager
def _within(timeout: float | None, late: type[Exception]) -> Iterator[float | None]:
    """The seconds that one wait may take; one that comes to the limit says so."""
    limit = running()
    if limit is None:
        yield timeout
        return
    left = limit.left()
    if left <= 0:
        raise late(limit.words)
    try:
        yield left if timeout is None else min(timeout, left)
    except Exception as exc:
        if limit.left() > 0:
            raise
        raise late(limit.words) from exc


class _Backend(httpcore2.NetworkBackend):
    """Makes connections that know of the limit."""

    def __init__(self, inner: httpcore2.NetworkBackend) -> None:
        self._inner = inner

    def connect_tcp(
        self, host: str, port: int, timeout: float | None = None, *args: Any, **more: Any
    ) -> httpcore2.NetworkStream:
        with _within(timeout, httpcore2.ConnectTimeout) as wait:
            return _Stream(self._inner.connect_tcp(host, port, wait, *args, **more))

    def connect_unix_socket(
        self, path: str, timeout: float | None = None, *args: Any, **more: Any
    ) -> httpcore2.NetworkStream:
        with _within(timeout, httpcore2.ConnectTimeout) as wait:
            return _Stream(self._inner.connect_unix_socket(path, wait, *args, **more))

    def sleep(self, seconds: float) -> None:
        with _within(seconds, httpcore2.ConnectTimeout) as wait:
            self._inner.sleep(wait or 0.0)


class _Stream(httpcore2.NetworkStream):
    """A connection that knows of the limit."""

    def __init__(self, inner: httpcore2.NetworkStream) -> None:
        self._inner = inner

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        with _within(timeout, httpcore2.ReadTimeout) as wait:
            return self._inner.read(max_bytes, wait)

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        with _within(timeout, httpcore2.WriteTimeout) as wait:
            self._inner.write(buffer, wait)

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self, ssl_context: Any, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.NetworkStream:
        connection = self._inner.get_extra_info("socket")
        with _within(timeout, httpcore2.ConnectTimeout) as wait, _hung_up(connection):
            return _Stream(self._inner.start_tls(ssl_context, server_hostname, wait))

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)


@contextmanager
def _hung_up(connection: Any) -> Iterator[None]:
    """A handshake is many waits in one call: it is ended by taking its connection away."""
    limit = running()
    if limit is None or not isinstance(connection, socket.socket):
        yield
        return
    with socket.socket(fileno=os.dup(connection.fileno())) as same:  # TLS takes the first one over
        watch = threading.Timer(max(0.0, limit.left()), same.shutdown, (socket.SHUT_RDWR,))
        watch.daemon = True
        watch.start()
        try:
            yield
        finally:
            watch.cancel()
            watch.join()  # before the number of its socket is another's
