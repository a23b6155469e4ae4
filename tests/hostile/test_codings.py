"""What an HTTP client offers to read depends on what else is installed; what is paid does not."""

from __future__ import annotations

import gzip
import json
import logging
import sys
import zlib
from collections.abc import Callable
from importlib import import_module
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.hostile.kit import Kind, World, every_kind, receipt
from tests.support.seller import Reply, challenge, offer_v1, paywall, served
from x402_mask._wire import codings as _codings
from x402_mask._wire.x402 import CHALLENGE_BYTES_MAX

PACKERS: dict[str, tuple[str, str]] = {
    "brotli": ("br", "compress"),
    "brotlicffi": ("br", "compress"),
    "zstandard": ("zstd", "compress"),
    "backports.zstd": ("zstd", "compress"),
    "compression.zstd": ("zstd", "compress"),
}


@pytest.fixture(params=PACKERS)
def packed(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> tuple[str, Callable[[bytes], bytes]]:
    """A coding and its packer, where only this package is installed for it."""
    coding, name = PACKERS[request.param]
    module = pytest.importorskip(request.param)
    for other, (same, _) in PACKERS.items():
        if same == coding and other != request.param:
            monkeypatch.setitem(sys.modules, other, None)
    return coding, getattr(module, name)


def test_a_coding_is_undone_within_its_bounds(packed: Any) -> None:
    """Whole, nested and in several frames; not what is cut off, no such thing, or longer."""
    coding, pack = packed
    data, most = b'{"a": 1}' * 50, b"0" * CHALLENGE_BYTES_MAX
    assert _codings.decode(pack(data), coding.upper()) == data
    assert _codings.decode(pack(gzip.compress(data)), f"gzip, {coding}") == data
    assert _codings.decode(gzip.compress(pack(pack(data))), f"{coding},{coding} , gzip") == data
    assert _codings.decode(pack(most), coding) == most
    assert _codings.decode(pack(b""), coding) == b""
    for bad in (pack(most + b"0"), pack(b"0" * 50_000_000), pack(data)[:-3], b"no such thing"):
        assert _codings.decode(bad, coding) is None
    if coding == "zstd":
        assert _codings.decode(pack(data) + pack(data), coding) == data + data
        assert _codings.decode(pack(most) + pack(b"0"), coding) is None
        assert _codings.decode(pack(data) + pack(data)[:-2], coding) is None


def test_a_coding_is_undone_by_an_older_package(packed: Any, monkeypatch: Any) -> None:
    """Before 1.2 a brotli decoder cannot be told when to stop."""
    coding, pack = packed
    if coding != "br":
        pytest.skip("brotli only")
    module = import_module("brotli" if sys.modules.get("brotli") else "brotlicffi")

    class Old:
        def __init__(self) -> None:
            inner = decoder()
            self.process, self.is_finished = inner.process, inner.is_finished

    decoder = module.Decompressor
    monkeypatch.setattr(module, "Decompressor", Old)
    data = b'{"a": 1}' * 50
    assert _codings.decode(pack(data), "br") == data
    assert _codings.decode(pack(b"0" * 50_000_000), "br") is None
    assert _codings.decode(pack(data)[:-3], "br") is None


@given(data=st.binary(max_size=300))
def test_noise_in_any_coding(data: bytes) -> None:
    for coding in ("br", "zstd", "gzip", "deflate"):
        found = _codings.decode(data, coding)
        assert found is None or len(found) <= CHALLENGE_BYTES_MAX


def test_what_no_package_reads_is_said(monkeypatch: Any, caplog: pytest.LogCaptureFixture) -> None:
    for name in PACKERS:
        monkeypatch.setitem(sys.modules, name, None)
    with caplog.at_level(logging.WARNING, "x402_mask"):
        assert _codings.decode(b"x", "br") is None
        assert _codings.decode(b"x", "zstd") is None
        assert _codings.decode(b"x", ", ".join(["gzip"] * 5)) is None
    said = [record.getMessage() for record in caplog.records]
    assert ["coding br" in said[0], "coding zstd" in said[1], "5 codings" in said[2]] == [True] * 3


def offered(accepted: str) -> dict[str, Callable[[bytes], bytes]]:
    """Packers for every coding in an ``Accept-Encoding``."""
    known: dict[str, Any] = {"gzip": gzip.compress, "deflate": zlib.compress}
    for name, (coding, pack) in PACKERS.items():
        if coding in accepted and coding not in known:
            try:
                known[coding] = getattr(import_module(name), pack)
            except ImportError:
                continue
    names = [part.partition(";")[0].strip() for part in accepted.split(",")]
    return {name: known[name] for name in names if name != "identity"}


@every_kind()
def test_every_coding_that_the_client_offers_is_read(world: World, kind: Kind) -> None:
    """A seller that packs its challenge is paid, in each coding that it was asked for."""
    seller = world.seller()
    plain = json.dumps(challenge(offer_v1(), version=1)).encode()
    used: list[str] = []

    def unpaid(hit: Any) -> Reply:
        packers = offered(hit.header("accept-encoding") or "")
        used.append(hit.target.partition("?")[2] or ",".join(packers))
        coding = hit.target.partition("?")[2] or "gzip"
        headers = [("Content-Encoding", coding), ("Content-Type", "application/json")]
        return Reply(status=402, headers=headers, body=packers[coding](plain))

    url = seller.on("/paid", paywall(unpaid, served()))
    buyer = world.buyer(kind)
    assert receipt(buyer.get(url)).outcome == "settled"
    codings = used[0].split(",")
    assert {"gzip", "deflate"} <= set(codings)
    for coding in codings:
        assert receipt(buyer.get(f"{url}?{coding}")).outcome == "settled", coding
