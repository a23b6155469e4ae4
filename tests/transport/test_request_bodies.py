"""What is sent twice must be the same twice, and nothing is buffered unasked (facts 3.1, 3.2, 3.4)."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.seller import Reply, play, served
from tests.transport.kit import SHOP, URL, Leg, Rig, kinds
from x402_mask import BodyNotReplayable

REPLAYABLE: dict[str, dict[str, Any]] = {
    "none": {},
    "bytes": {"content": b"\x00\xffbytes"},
    "text": {"content": "text"},
    "empty": {"content": b""},
    "json": {"json": {"ImageURL": "https://x.example/a.png", "n": [1, 2.5, None]}},
    "form": {"data": {"a": "1", "b": ["2", "3"]}},
}


def framing(leg: Leg) -> tuple[list[str], list[str]]:
    """How the body of a leg was announced."""
    return leg.values("content-length"), leg.values("transfer-encoding")


@kinds()
async def test_a_body_in_memory_is_sent_again_exactly(rig: Rig) -> None:
    """Fact 3.1, and one framing header on each leg (3.4)."""
    rig.sells()
    for body in REPLAYABLE.values():
        rig.legs.clear()
        rig.paid(await rig.post(**body))
        first, paid = rig.legs
        assert first.body == paid.body
        assert framing(first) == framing(paid) == ([str(len(first.body))], [])
        assert first.values("content-type") == paid.values("content-type")


def files(tmp_path: Path) -> dict[str, Any]:
    """A form with a value, bytes, an open file and a file in memory."""
    path = tmp_path / "photo.png"
    path.write_bytes(b"\x89PNG" + bytes(range(256)) * 500)
    return {
        "data": {"note": "hello"},
        "files": {
            "raw": ("a.bin", b"raw bytes", "application/octet-stream"),
            "photo": ("photo.png", path.open("rb"), "image/png"),
            "mask": ("mask.png", io.BytesIO(b"mask" * 1000)),
        },
    }


@kinds()
async def test_a_multipart_form_with_files_is_sent_again_exactly(rig: Rig, tmp_path: Path) -> None:
    """Fact 3.1: the family seeks the files back."""
    rig.sells()
    form = files(tmp_path)
    try:
        rig.paid(await rig.post(**form))
    finally:
        form["files"]["photo"][1].close()
    first, paid = rig.legs
    assert first.body == paid.body and len(first.body) > 100_000
    assert framing(first) == framing(paid) == ([str(len(first.body))], [])
    assert b'filename="photo.png"' in paid.body and b"hello" in paid.body


@kinds("client", "attach")
async def test_the_boundary_of_a_form_does_not_make_another_operation(
    rig: Rig, tmp_path: Path
) -> None:
    """Contract 2: multipart boundaries are ignored, so the repeat shows the same proof."""
    answers = iter([Reply(status=503), served()])
    rig.sells(paid=lambda leg: play(next(answers), leg))
    for _ in range(2):
        form = files(tmp_path)
        await rig.post(**form)
        form["files"]["photo"][1].close()
    boundaries = {leg.header("content-type") for leg in rig.legs}
    assert len(boundaries) == 2, "the family drew the same boundary twice"
    assert len(rig.proofs) == 2 and len(set(rig.proofs)) == 1
    assert len(rig.payer.payments()) == 1


@kinds("client", "attach")
async def test_another_form_is_another_operation(rig: Rig) -> None:
    """Only the boundary is ignored, not what the form says."""
    rig.sells(paid=Reply(status=503))
    for content in (b"one", b"two"):
        await rig.post(files={"file": ("a", content)})
    assert len(set(rig.proofs)) == 2


class Unseekable(io.RawIOBase):
    """A pipe."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False

    def readinto(self, buffer: Any) -> int:
        size = min(len(buffer), len(self._data))
        buffer[:size], self._data = self._data[:size], self._data[size:]
        return size


def one_shots(rig: Rig, tmp_path: Path) -> Iterator[dict[str, Any]]:
    """Every body that cannot be sent twice, or of which that cannot be known."""
    path = tmp_path / "upload"
    path.write_bytes(b"file body")
    yield {"content": rig.body([b"one", b"two"])}
    if rig.kind.sync:
        yield {"content": path.open("rb")}
        yield {"content": io.BytesIO(b"in memory, but a file")}
        yield {"content": [b"a list", b"of bytes"]}
    yield {"files": {"pipe": ("pipe", Unseekable(b"pipe"))}}


@kinds()
async def test_a_body_that_can_be_sent_once_is_refused_before_anything_is_reserved(
    rig: Rig, tmp_path: Path
) -> None:
    """Fact 3.1: an open file would replay empty, after the proof had gone."""
    rig.sells()
    for body in one_shots(rig, tmp_path):
        with pytest.raises(BodyNotReplayable) as caught:
            await rig.post(**body)
        assert caught.value.reason == "body" and caught.value.response.status_code == 402
        if hasattr(body.get("content"), "close") and not hasattr(body["content"], "send"):
            body["content"].close()
    assert rig.proofs == [] and rig.payer.payments() == [] and rig.all_closed()
    assert "reserved" not in {event.kind for event in rig.events}


@kinds()
async def test_a_body_that_can_be_sent_once_reaches_a_free_endpoint_unbuffered(rig: Rig) -> None:
    """Fact 3.2: each piece is on the wire before the next one is made."""
    rig.on("/free", Reply(body=b"thanks"))
    seen: list[int] = []

    def pieces() -> Iterator[bytes]:
        for number in range(4):
            yield b"%d" % number
            seen.append(len(rig.legs[0].chunks))

    response = await rig.post(SHOP + "/free", content=rig.body(pieces()))
    assert response.content == b"thanks"
    assert seen == [1, 2, 3, 4] and rig.legs[0].body == b"0123"
    assert framing(rig.legs[0]) == ([], ["chunked"])


@kinds("transport", "attach", colours=["sync", "asyncio"])
async def test_a_streamed_body_reaches_a_socket_before_it_ends(rig: Rig) -> None:
    """The same, through the family's own transport: the server has read the start in time."""
    seller = rig.seller()
    url = seller.on("/free", lambda hit: Reply(body=b"%d" % len(hit.body)))
    rig.client = rig.make_client(inner=None)
    started: list[int] = []

    def pieces() -> Iterator[bytes]:
        yield b"x" * 10
        seller.wait_for(seller.open_connections)
        started.append(seller.open_connections())
        yield b"y" * 10

    response = await rig.post(url, content=rig.body(pieces()))
    assert (response.content, started) == (b"20", [1])


@kinds("client", "attach")
async def test_a_streamed_request_that_is_read_first_is_replayed_with_one_framing_header(
    rig: Rig,
) -> None:
    """Fact 3.4: a caller may read the request; its chunked framing must not be doubled."""
    rig.sells()
    request = rig.client.build_request("POST", URL, content=rig.body([b"one", b"two"]))
    assert request.headers["transfer-encoding"] == "chunked"
    await rig.wait(request.read() if rig.kind.sync else request.aread())
    rig.paid(await rig.send(request))
    for leg in rig.legs:
        assert leg.body == b"onetwo"
        lengths, codings = framing(leg)
        assert len(lengths) + len(codings) == 1


@kinds("transport", "attach")
async def test_different_bodies_are_different_operations(rig: Rig) -> None:
    """Contract 2: method, URL, service and body; an open proof is not shown for another body."""
    rig.sells(paid=Reply(status=503))
    await rig.post(json={"a": 1})
    await rig.post(json={"a": 2})
    await rig.call("PUT", json={"a": 1})
    await rig.post(URL + "?q=1", json={"a": 1})
    await rig.post(json={"a": 1}, headers={"X-Other": "header"})
    assert len(rig.proofs) == 5 and len(set(rig.proofs)) == 4
    assert [json.loads(leg.body)["a"] for leg in rig.legs if leg.proofs] == [1, 2, 1, 1, 1]
