"""What a seller may cost the command line in memory and time."""

from __future__ import annotations

import gzip
import os
import resource
import time
import zlib
from typing import Any

import pytest

from tests.cli.conftest import Cli, Sells
from tests.support.loopback import Listener
from tests.support.seller import Reply, Seller, offer, read_request, served, v2_header
from x402_mask._wire.unpacking import Unpacker, Unreadable
from x402_mask.cli import _answer

CLOSED = "content-length: 0\r\nconnection: close\r\n\r\n"


def unpack(data: bytes, codings: str, limit: int = 1 << 18, step: int = 1000) -> Unpacker:
    unpacker = Unpacker(codings, limit)
    unpacker.got = b""  # type: ignore[attr-defined]
    for at in range(0, len(data), step):
        unpacker.got += b"".join(unpacker.take(data[at : at + step]))  # type: ignore[attr-defined]
        if unpacker.full:
            break
    return unpacker


def bare(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush()


PACKED = {
    "": lambda data: data,
    "identity": lambda data: data,
    "gzip": gzip.compress,
    "X-GZip": gzip.compress,
    "deflate": zlib.compress,
    "deflate ": bare,
    "gzip, gzip": lambda data: gzip.compress(gzip.compress(data)),
    "gzip, deflate": lambda data: zlib.compress(gzip.compress(data)),
    "deflate, , gzip": lambda data: gzip.compress(bare(data)),
}


@pytest.mark.parametrize("step", [1, 7, 5000])
@pytest.mark.parametrize("codings", PACKED)
def test_codings_are_undone_piece_by_piece(codings: str, step: int) -> None:
    data = os.urandom(1500) + b"a" * 5000
    packed = PACKED[codings](data)
    whole: Any = unpack(packed, codings, step=step)
    assert (whole.got, whole.full, whole.ended) == (data, False, True)
    if codings.strip() not in ("", "identity"):
        assert not unpack(packed[:-12], codings, step=step).ended
    exact: Any = unpack(packed, codings, limit=len(data), step=step)
    assert (exact.got, exact.full) == (data, False)
    cut: Any = unpack(packed, codings, limit=len(data) - 1, step=step)
    assert (cut.got, cut.full) == (data[:-1], True)


def test_work_that_leads_to_nothing_is_bounded_too() -> None:
    """Empty blocks by the million: nothing comes of them, and they are not gone through."""
    nothing = gzip.compress(zlib.compress(b"")[:2] + b"\x00\x00\x00\xff\xff" * (20 << 20))
    found: Any = unpack(nothing, "deflate, gzip", limit=1000)
    assert (found.got, found.full) == (b"", True)
    assert unpack(b"x" * 200_000, "", limit=1000).full


@pytest.mark.parametrize("codings", ["br", "gzip, zstd", "gzip, " * 5, "Ignore"])
def test_codings_that_were_not_asked_for(codings: str) -> None:
    with pytest.raises(Unreadable):
        Unpacker(codings, 1000)


@pytest.mark.parametrize("codings", ["gzip", "deflate", "gzip, deflate"])
def test_what_is_not_what_it_says(codings: str) -> None:
    with pytest.raises(Unreadable):
        unpack(b"\xff" * 3000, codings)


# --- through the commands


def bomb(megabytes: int, times: int = 2) -> bytes:
    packer, out = zlib.compressobj(9, zlib.DEFLATED, 31), b""
    for _ in range(megabytes):
        out += packer.compress(bytes(1 << 20))
    out += packer.flush()
    for _ in range(times - 1):
        out = gzip.compress(out, 9)
    return out


@pytest.mark.parametrize("how", [(), ("--json",), ("--output", "made.bin")], ids=" ".join)
def test_an_answer_that_unpacks_to_gigabytes(cli: Cli, sells: Sells, how: tuple[str, ...]) -> None:
    """It is paid for, and said to be, with the payment's id; memory and disk are not filled."""
    sells(served(bomb(1500), headers=[("Content-Encoding", "gzip, gzip")]))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    done = cli("call", "thing", *how)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert done.code == 5 and "pay_" in done.words
    assert grown < 300 << 10, f"{grown >> 10} MiB"
    assert len(done.out) < 64 << 20
    assert list(cli.home.glob("*made*")) == []


@pytest.mark.parametrize("command", ["call", "quote"])
def test_an_error_that_unpacks_to_gigabytes(cli: Cli, seller: Seller, command: str) -> None:
    body, coded = bomb(1500), [("Content-Encoding", "gzip, gzip")]
    seller.on("/api/tools/thing", Reply(status=500, headers=coded, body=body))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert cli(command, "thing").code == 1
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 100 << 10, f"{grown >> 10} MiB"


@pytest.mark.parametrize("kind", ["gzip", "deflate", "gzip, deflate"])
def test_what_is_packed_honestly(cli: Cli, sells: Sells, seller: Seller, kind: str) -> None:
    sells(served(PACKED[kind](b'{"made": "it"}'), headers=[("Content-Encoding", kind)]))
    assert cli("call", "thing").out == b'{"made": "it"}'
    asked = {hit.header("accept-encoding") for hit in seller.hits if "/api/tools/" in hit.target}
    assert asked == {"gzip, deflate"}


def test_a_large_answer_that_is_packed_well(cli: Cli, sells: Sells) -> None:
    """Fifty megabytes of the same are no attack: one coding makes so much of so little."""
    sells(served(bomb(50, times=1), headers=[("Content-Encoding", "gzip")]))
    done = cli("call", "thing", "--output", "made.bin")
    assert done.code == 0, done.err
    assert (cli.home / "made.bin").stat().st_size == 50 << 20


class Dripping(Listener):
    """Answers who paid, or everybody, with a head or a body that does not end."""

    def __init__(self, start: bytes, more: bytes, *, paid: bool) -> None:
        self.start, self.more, self.paid = start, more, paid
        super().__init__()

    def serve(self, connection: Any) -> None:
        hit = read_request(connection.makefile("rb"), 0)
        if hit is None:
            return
        if "/api/tools/" not in hit.target:
            connection.sendall(f"HTTP/1.1 404 No\r\n{CLOSED}".encode())
            return
        if self.paid and not hit.proofs:
            asked = dict(v2_header(offer()).headers)["PAYMENT-REQUIRED"]
            head = f"HTTP/1.1 402 Pay\r\nPAYMENT-REQUIRED: {asked}\r\n{CLOSED}"
            connection.sendall(head.encode())
            return
        connection.sendall(self.start)
        while True:
            connection.sendall(self.more)
            time.sleep(0.05)


HEAD = (b"HTTP/1.1 200 OK\r\n", b"x-more: to come\r\n")
INTERIM = (b"", b"HTTP/1.1 102 Processing\r\n\r\n")
BODY = (b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n", b"x")


@pytest.mark.parametrize(
    ("command", "sends", "paid", "code"),
    [
        ("call", HEAD, False, 1),
        ("call", INTERIM, False, 1),
        ("call", HEAD, True, 4),
        ("call", BODY, True, 4),
        ("quote", HEAD, False, 1),
    ],
)
def test_an_answer_without_end(
    cli: Cli, command: str, sends: tuple[bytes, bytes], paid: bool, code: int
) -> None:
    with Dripping(*sends, paid=paid) as server:
        began = time.monotonic()
        origin = f"http://127.0.0.1:{server.port}"
        done = cli(command, "thing", "--timeout", "0.5", X402_MASK_ORIGINS=origin)
        assert time.monotonic() - began < 30
    assert done.code == code, done.err
    assert ("pay_" in done.err) is paid


def test_what_is_only_looked_at_is_bounded_in_time(cli: Cli, monkeypatch: Any) -> None:
    monkeypatch.setattr(_answer, "_BOUNDED_S", 1.0)
    with Dripping(BODY[0].replace(b"200 OK", b"500 No"), b"x", paid=False) as server:
        began = time.monotonic()
        done = cli("quote", "thing", X402_MASK_ORIGINS=f"http://127.0.0.1:{server.port}")
        assert time.monotonic() - began < 30
    assert done.code == 1
