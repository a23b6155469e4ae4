"""Async connections that hand on what came over them in pieces.

httpcore reads 64 KiB at a time and takes them apart before it waits again: thousands of informal
answers, or of chunks of one byte, in which the event loop does not come round.
"""

from __future__ import annotations

from typing import Any, Final

import httpcore
import httpx
from anyio.lowlevel import checkpoint

LINES: Final = 256
"""In one piece.  The dearest line is half of a ``102 Processing``: some 40 microseconds."""

_INNER_MAX: Final = 4
"""How deep transports that wrap transports are looked into."""


def in_pieces(inner: object, depth: int = 0) -> None:
    """Have the connections that *inner* will make hand on what they read in pieces."""
    pool = getattr(inner, "_pool", None)
    backend = getattr(pool, "_network_backend", None)
    if isinstance(backend, httpcore.AsyncNetworkBackend):
        if not isinstance(backend, _Backend):
            pool._network_backend = _Backend(backend)  # type: ignore[union-attr]  # noqa: SLF001  # httpx offers no way to give one
    elif depth < _INNER_MAX:
        for value in list(getattr(inner, "__dict__", {}).values()):
            if isinstance(value, httpx.AsyncBaseTransport):
                in_pieces(value, depth + 1)


def end_of_piece(data: bytes) -> int:
    """How much of *data* is handed on at once: a line may end in LF alone."""
    if data.count(b"\n") <= LINES:
        return len(data)
    end = 0
    for _ in range(LINES):
        end = data.index(b"\n", end) + 1
    return end


class _Backend(httpcore.AsyncNetworkBackend):
    """Makes such connections."""

    def __init__(self, inner: httpcore.AsyncNetworkBackend) -> None:
        self._inner = inner

    async def connect_tcp(self, *args: Any, **more: Any) -> httpcore.AsyncNetworkStream:
        return _Stream(await self._inner.connect_tcp(*args, **more))

    async def connect_unix_socket(self, *args: Any, **more: Any) -> httpcore.AsyncNetworkStream:
        return _Stream(await self._inner.connect_unix_socket(*args, **more))

    async def sleep(self, seconds: float) -> None:
        await self._inner.sleep(seconds)


class _Stream(httpcore.AsyncNetworkStream):
    """Such a connection."""

    def __init__(self, inner: httpcore.AsyncNetworkStream) -> None:
        self._inner = inner
        self._rest = b""

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109  # its face
        if self._rest:
            await checkpoint()  # others' turn
            data = self._rest
        else:
            data = await self._inner.read(max_bytes, timeout)
        end = min(end_of_piece(data), max_bytes)
        self._rest = data[end:]
        return data[:end]

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109
        await self._inner.write(buffer, timeout)

    async def aclose(self) -> None:
        await self._inner.aclose()

    async def start_tls(self, *args: Any, **more: Any) -> httpcore.AsyncNetworkStream:
        return _Stream(await self._inner.start_tls(*args, **more))

    def get_extra_info(self, info: str) -> Any:
        if info == "is_readable" and self._rest:
            return True  # what came after an answer makes a connection unfit for the next call
        return self._inner.get_extra_info(info)
