"""What comes over an async connection is handed on in pieces, all of it and in order."""

from __future__ import annotations

from typing import Any

import anyio
import httpcore
import pytest

from x402_mask.httpx._pieces import LINES, _Stream, end_of_piece


class Source(httpcore.AsyncNetworkStream):
    """A connection on which these arrive."""

    def __init__(self, *data: bytes) -> None:
        self.data = list(data)

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109
        assert not self.data or len(self.data[0]) <= max_bytes
        return self.data.pop(0) if self.data else b""

    def get_extra_info(self, info: str) -> Any:
        return False if info == "is_readable" else None


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"plain",
        b"\n" * 5000,
        b"a\r\nbc\r\n" * 3000,
        b"x" * 60000 + b"\n" * 5000,
        b"\n" * LINES,
    ],
)
def test_all_of_it_in_order(backend: str, data: bytes) -> None:
    """In pieces of some lines; short ones, and long ones with few lines, as they came."""

    async def scenario() -> list[bytes]:
        stream, found = _Stream(Source(data, b"after")), list[bytes]()
        while piece := await stream.read(65536):
            found.append(piece)
        return found

    found = anyio.run(scenario, backend=backend)
    assert b"".join(found) == (data + b"after" if data else b"")
    assert all(piece.count(b"\n") <= LINES for piece in found)
    if 0 < data.count(b"\n") <= LINES:
        assert found == [data, b"after"]


def test_no_more_than_was_asked_for() -> None:
    async def scenario() -> None:
        stream = _Stream(Source(b"\n" * 1000))
        assert await stream.read(1000) == b"\n" * LINES
        assert await stream.read(10) == b"\n" * 10

    anyio.run(scenario)


def test_a_connection_with_a_rest_is_not_used_again() -> None:
    """What came after an answer is no answer to the next call."""

    async def scenario() -> None:
        stream = _Stream(Source(b"\n" * (LINES + 1)))
        await stream.read(65536)
        assert stream.get_extra_info("is_readable") is True
        await stream.read(65536)
        assert stream.get_extra_info("is_readable") is False

    anyio.run(scenario)


def test_where_a_piece_ends() -> None:
    assert end_of_piece(b"a\n" * (LINES + 1)) == 2 * LINES
    assert end_of_piece(b"a\n" * LINES + b"b") == 2 * LINES + 1
