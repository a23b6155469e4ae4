"""Bodies: a stranger's within bounds, our own sent twice or not at all."""

from __future__ import annotations

import gzip
import io
import zlib
from typing import Any, ClassVar

import httpx
import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from x402_mask._drive import gathered as _gathered
from x402_mask._drive.gathered import Gathered
from x402_mask._wire.bodies import body_digest, date_of, is_replayable
from x402_mask._wire.codings import decode
from x402_mask._wire.x402 import CHALLENGE_BYTES_MAX


def raw_deflate(data: bytes) -> bytes:
    """Without zlib's header, as some servers send it."""
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush()


CODINGS: list[tuple[str, Any]] = [
    ("", bytes),
    ("identity", bytes),
    ("gzip", gzip.compress),
    ("x-gzip", gzip.compress),
    ("GZip", gzip.compress),
    ("deflate", zlib.compress),
    ("deflate", raw_deflate),
    (" gzip , identity ", gzip.compress),
    ("identity,gzip", gzip.compress),
    ("deflate, gzip", lambda data: gzip.compress(zlib.compress(data))),
    (",,", bytes),
]


@pytest.mark.parametrize(("coding", "pack"), CODINGS)
@given(data=st.binary(max_size=500))
def test_codings(coding: str, pack: Any, data: bytes) -> None:
    """In the order they were applied, undone from the last to the first."""
    assert decode(pack(data), coding) == data


def test_gzip_in_members() -> None:
    """RFC 1952, 2.2: one after another, with or without padding; bounded like the rest."""
    one, two = b'{"accepts": [', b"]}"
    packed = gzip.compress(one) + gzip.compress(b"") + gzip.compress(two)
    assert decode(packed, "gzip") == decode(packed + b"\0\0", "x-gzip") == one + two
    assert decode(packed[:-3], "gzip") is None
    most = gzip.compress(b"0" * CHALLENGE_BYTES_MAX)
    assert decode(most + gzip.compress(b"0"), "gzip") is None
    assert decode(most + gzip.compress(b""), "gzip") == b"0" * CHALLENGE_BYTES_MAX
    assert decode(gzip.compress(b"") * 2000, "gzip") is None


def test_codings_that_are_not_undone(caplog: pytest.LogCaptureFixture) -> None:
    """Unknown, damaged, cut off, or longer than the limit: nothing, and no exception."""
    data = b'{"a": 1}' * 50
    assert decode(data, "xz") is None and decode(gzip.compress(data), "lzma, gzip") is None
    assert "in the coding xz is not read" in caplog.text and "coding lzma" in caplog.text
    assert decode(data, "gzip") is None and decode(data, "deflate") is None
    assert decode(gzip.compress(data)[:-9], "gzip") is None
    most = b"0" * CHALLENGE_BYTES_MAX
    assert decode(gzip.compress(most), "gzip") == most
    assert decode(gzip.compress(most + b"0"), "gzip") is None
    assert decode(gzip.compress(gzip.compress(b"0" * 50_000_000)), "gzip, gzip") is None


@given(st.binary(max_size=300), st.text("gzipdeflatbr, x-", max_size=30))
def test_any_coding_of_any_bytes(data: bytes, coding: str) -> None:
    """Bytes or nothing."""
    found = decode(data, coding)
    assert found is None or len(found) <= CHALLENGE_BYTES_MAX


def test_gathering_stops_at_the_limit() -> None:
    """Contract 2: 64 KiB are read, not one chunk more."""
    gathered = Gathered()
    assert gathered.add(b"x" * CHALLENGE_BYTES_MAX)
    gathered.complete = True
    assert gathered.decoded("") == b"x" * CHALLENGE_BYTES_MAX
    assert not gathered.add(b"y")
    assert gathered.decoded("") is None
    assert b"".join(gathered.chunks).endswith(b"xy"), "what was read is handed back"
    cut = Gathered()
    cut.add(b"{}")
    assert cut.decoded("") is None, "a body that was not read to its end is not a challenge"


def test_gathering_stops_after_ten_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """A seller that trickles is not waited for."""
    now = [0.0]
    monkeypatch.setattr(_gathered.time, "monotonic", lambda: now[0])
    gathered = Gathered()
    assert gathered.add(b"x")
    now[0] = 9.9
    assert gathered.add(b"x")
    now[0] = 10.0
    assert not gathered.add(b"x")


# --- our own


@pytest.mark.parametrize("lib", [httpx, httpx2])
def test_which_streams_replay(lib: Any) -> None:
    """Multipart forms of bytes and seekable files; nothing else is trusted."""

    def form(file: Any) -> Any:
        return lib.Request("POST", "https://a.example", files={"f": ("n", file)}).stream

    class Closed(io.BytesIO):
        def seekable(self) -> bool:
            raise ValueError("closed")

    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return False

    assert is_replayable(form(b"bytes")) and is_replayable(form(io.BytesIO(b"x")))
    assert is_replayable(
        lib.Request(
            "POST", "https://a.example", files={"f": b"x"}, data={"a": "b", "c": ["d", "e"]}
        ).stream
    )
    assert not is_replayable(form(Pipe(b"x"))) and not is_replayable(form(Closed(b"x")))
    for content in (iter([b"x"]), io.BytesIO(b"x"), [b"x"]):
        assert not is_replayable(lib.Request("POST", "https://a.example", content=content).stream)
    assert not is_replayable(None) and not is_replayable(object())

    class MultipartStream:
        fields = "not a list"

    assert not is_replayable(MultipartStream())


def test_a_file_without_a_word_on_seeking_is_not_trusted() -> None:
    """It may be anything."""

    class Field:
        file = object()

    class MultipartStream:
        fields: ClassVar[list[Any]] = [Field()]

    assert not is_replayable(MultipartStream())


@given(st.lists(st.binary(max_size=30), max_size=6), st.integers(1, 9))
def test_a_digest_does_not_depend_on_chunks(parts: list[bytes], size: int) -> None:
    """Nor on the content type, unless it is a form."""
    whole = b"".join(parts)
    again = [whole[at : at + size] for at in range(0, len(whole), size)]
    assert body_digest(parts, "") == body_digest(again, "application/json")
    assert body_digest([whole + b"x"], "") != body_digest([whole], "")


def test_boundaries_of_forms_are_ignored() -> None:
    """Quoted or not, in any case of the header; a body that is no form keeps every byte."""

    def form(boundary: bytes, value: bytes) -> list[bytes]:
        return [b"--" + boundary + b"\r\n\r\n" + value, b"\r\n--" + boundary + b"--\r\n"]

    one = body_digest(form(b"aaaa1111", b"v"), "multipart/form-data; boundary=aaaa1111")
    assert one == body_digest(form(b"bbbb2222", b"v"), 'Multipart/Form-Data; BOUNDARY="bbbb2222"')
    assert one != body_digest(form(b"aaaa1111", b"w"), "multipart/form-data; boundary=aaaa1111")
    assert one != body_digest(form(b"aaaa1111", b"v"), "text/plain; boundary=aaaa1111")
    assert body_digest(form(b"aaaa1111", b"v"), "multipart/form-data") == body_digest(
        form(b"aaaa1111", b"v"), ""
    )


DATES: dict[str, float | None] = {
    "Tue, 14 Nov 2023 22:13:20 GMT": 1_700_000_000.0,
    "Tue, 14 Nov 2023 22:13:20 -0000": 1_700_000_000.0,
    "Tue, 14 Nov 2023 23:13:20 +0100": 1_700_000_000.0,
    "Tuesday, 14-Nov-23 22:13:20 GMT": 1_700_000_000.0,
    "": None,
    "yesterday": None,
    "14": None,
    "x" * 65: None,
    "Tue, 99 Nov 2023 22:13:20 GMT": None,
    "Tue, 14 Nov 99999 22:13:20 GMT": None,
    "Tue, 14 Nov 2023 99:99:99 GMT": None,
}


@pytest.mark.parametrize(("text", "at"), DATES.items())
def test_dates(text: str, at: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A header of a stranger, whatever this machine's time zone."""
    import time

    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        assert date_of(text) == at
    finally:
        monkeypatch.undo()
        time.tzset()
    assert date_of(None) is None


@given(st.text(max_size=70))
def test_any_date(text: str) -> None:
    """A number or nothing."""
    found = date_of(text)
    assert found is None or isinstance(found, float)
