"""Rows 36 to 39: bodies, streams, sizes, and what the retry must keep."""

from __future__ import annotations

import gzip
import io
import threading
import time
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest

from tests.hostile.kit import (
    ASYNC,
    CORE,
    EVERY,
    PAIR,
    SYNC,
    TRIO,
    Kind,
    World,
    attempt,
    every_kind,
    one_shot,
    receipt,
)
from tests.support.seller import (
    PROOF_HEADERS,
    Hit,
    Reply,
    Seller,
    challenge,
    encode,
    in_body,
    offer,
    offer_v1,
    paywall,
    sequence,
    served,
    v1_body,
    v2_header,
)
from x402_mask import BodyNotReplayable, Cap, CapExceeded, ChallengeError, Payer, PaymentError

MIB = 1 << 20
CHUNK = b"x" * 65536
HTTPX2 = (Kind("httpx2", "sync", "client"), Kind("httpx2", "asyncio", "attach"))
FEW = (*PAIR, *HTTPX2, TRIO[0])
MEASURED = (*PAIR, HTTPX2[0])

# httpx leaves its generators to the collector when a stream is closed early; only trio says so.
pytestmark = pytest.mark.filterwarnings("ignore:Async generator:ResourceWarning")


class Unseekable:
    """A file that can be read and nothing else, like a pipe."""

    def __init__(self, data: bytes) -> None:
        self._inner = io.BytesIO(data)

    def read(self, size: int = -1) -> bytes:
        """The next bytes."""
        return self._inner.read(size)


# --- row 36


@every_kind(*EVERY)
def test_a_one_shot_body_is_refused_before_anything_is_reserved(world: World, kind: Kind) -> None:
    """Row 36: a generator cannot be sent twice; that is known before money is touched."""
    seller = world.seller()
    url = seller.sells()
    world.refused(
        world.buyer(kind), url, BodyNotReplayable, content=one_shot(kind, b"a" * 1000, b"b")
    )
    assert len(seller.hits) == 1 and seller.hits[0].complete
    assert not world.in_state("reserved", "held", "released", "settled")


@pytest.mark.parametrize("how", ["open-file", "bytesio", "unseekable"])
@every_kind(*SYNC, *HTTPX2[:1])
def test_an_open_file_is_never_replayed_empty(
    world: World, kind: Kind, how: str, tmp_path: Path
) -> None:
    """Row 36: the second iteration of a file is empty without an error."""
    seller = world.seller()
    path = tmp_path / "upload.bin"
    path.write_bytes(b"u" * 5000)
    url = seller.sells()
    with path.open("rb") as handle:
        makers: dict[str, Callable[[], Any]] = {
            "open-file": lambda: handle,
            "bytesio": lambda: io.BytesIO(b"u" * 5000),
            "unseekable": lambda: iter([b"u" * 5000]),
        }
        buyer = world.buyer(kind)
        outcome = attempt(buyer, url, "POST", content=makers[how]())
    if isinstance(outcome, BodyNotReplayable):
        assert outcome.at_risk is False and world.signer.calls == 0
        assert not world.in_state("reserved", "held")
        return
    assert outcome.status_code == 200
    assert [hit.body for hit in seller.hits] == [b"u" * 5000] * 2


def test_a_form_with_a_pipe_in_it_is_refused(world: World, kind: Kind) -> None:
    """Row 36: a multipart file that cannot be rewound would be replayed shorter, without an error."""
    seller = world.seller()
    url = seller.sells()
    files = {"image": ("a.png", Unseekable(b"p" * 5000), "image/png")}
    buyer = world.buyer(kind)
    outcome = attempt(buyer, url, "POST", files=files)
    if isinstance(outcome, BodyNotReplayable):
        assert outcome.at_risk is False
        assert world.signer.calls == 0 and not world.in_state("reserved", "held")
        return
    assert seller.hits[0].body == seller.hits[1].body, "the retry was shorter than the request"


def framing(hit: Hit) -> list[str]:
    """The headers that say where the body ends."""
    return [
        n.lower() for n, _ in hit.headers if n.lower() in {"content-length", "transfer-encoding"}
    ]


BODIES: dict[str, Callable[[], dict[str, Any]]] = {
    "bytes": lambda: {"content": b"b" * 70_000},
    "json": lambda: {"json": {"ImageURL": "https://a.example/x.png", "n": [1, 2]}},
    "form": lambda: {"data": {"a": "1", "b": ["2", "3"]}},
    "empty": lambda: {"content": b""},
    "multipart-bytes": lambda: {"files": {"f": ("a.bin", b"f" * 100_000)}},
    "multipart-file": lambda: {
        "files": [("f", ("a.bin", io.BytesIO(b"f" * 100_000))), ("g", ("b.bin", b"g"))],
        "data": {"k": "v"},
    },
}


@pytest.mark.parametrize("body", BODIES)
@every_kind(*FEW)
def test_a_body_that_can_be_sent_again_is_sent_exactly_again(
    world: World, kind: Kind, body: str
) -> None:
    """Rows 36 and 39: same bytes, one framing header, whatever made the body."""
    seller = world.seller()
    response = world.buyer(kind).post(seller.sells(), **BODIES[body]())
    assert response.status_code == 200
    first, second = seller.hits
    assert first.body == second.body and second.complete
    assert framing(first) == framing(second) == ["content-length"]


def test_a_real_file_in_a_form_is_sent_exactly_again(
    world: World, kind: Kind, tmp_path: Path
) -> None:
    """Rows 36 and 39: an open file on disk, larger than one chunk, rewound for the retry."""
    seller = world.seller()
    path = tmp_path / "picture.png"
    path.write_bytes(bytes(range(256)) * 1000)
    with path.open("rb") as handle:
        response = world.buyer(kind).post(seller.sells(), files={"image": handle})
    assert response.status_code == 200
    first, second = seller.hits
    assert path.read_bytes() in first.body and first.body == second.body
    assert framing(second) == ["content-length"]


@every_kind(*FEW)
def test_a_free_endpoint_takes_a_stream_as_always(world: World, kind: Kind) -> None:
    """Row 36: nothing is buffered or refused where nothing is to be paid."""
    seller = world.seller()
    url = seller.on("/free", Reply(body=b"thanks"))
    response = world.buyer(kind).post(url, content=one_shot(kind, b"a", b"b", b"c"))
    assert response.content == b"thanks" and seller.hits[0].body == b"abc"
    assert framing(seller.hits[0]) == ["transfer-encoding"]


@every_kind(CORE[1], SYNC[0])
def test_the_request_body_is_sent_while_it_is_made(world: World, kind: Kind) -> None:
    """Row 36: an unpaid upload is not read into memory first."""
    seller = world.seller()
    url = seller.on("/free", Reply(body=b"thanks"))
    parts = [CHUNK] * 512
    tracemalloc.start()
    try:
        world.buyer(kind).post(url, content=one_shot(kind, *parts))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    size = sum(map(len, parts))
    assert len(seller.hits[0].body) == size
    # The seller of this test keeps the body, once in parts and once joined.
    assert peak < 2.6 * size


# --- row 37


def in_two_parts(gate: threading.Event, seen: list[bool]) -> Iterator[bytes]:
    """A first part at once; the rest only when the buyer has seen it."""
    yield b"first"
    seen.append(gate.wait(3))
    yield b"last"


@pytest.mark.parametrize("status", [200, 402, 500])
@every_kind(*FEW)
def test_a_paid_answer_that_streams_still_streams(world: World, kind: Kind, status: int) -> None:
    """Row 37: the receipt comes from the headers; the body is the caller's to read."""
    seller = world.seller()
    gate, seen = threading.Event(), list[bool]()
    paid = served(in_two_parts(gate, seen), status=status, framing="chunked")
    url = seller.sells(paid=paid)
    streamed = world.buyer(kind).stream("GET", url, on_chunk=lambda chunk: gate.set())
    assert streamed.body == b"firstlast" and seen == [True]
    assert streamed.consumed_at_first is False
    assert receipt(streamed.response).outcome == ("rejected" if status == 402 else "settled")


@pytest.mark.parametrize("status", [200, 404, 500])
@every_kind(*FEW)
def test_an_unpaid_answer_that_streams_still_streams(world: World, kind: Kind, status: int) -> None:
    """Row 37: whatever is not a 402 is handed back unread."""
    seller = world.seller()
    gate, seen = threading.Event(), list[bool]()
    url = seller.on("/free", Reply(status=status, body=in_two_parts(gate, seen), framing="chunked"))
    streamed = world.buyer(kind).stream("GET", url, on_chunk=lambda chunk: gate.set())
    assert streamed.body == b"firstlast" and seen == [True]
    assert streamed.consumed_at_first is False
    assert "x402_mask" not in streamed.response.extensions


def test_a_compressed_paid_answer_is_decoded_once(world: World, kind: Kind) -> None:
    """Row 37: content coding is the client's business."""
    seller = world.seller()
    paid = served(gzip.compress(b"goods" * 100), headers=[("Content-Encoding", "gzip")])
    assert world.buyer(kind).get(seller.sells(paid=paid)).content == b"goods" * 100


# --- row 38


def endless(seller: Seller, mebibytes: int) -> Iterator[bytes]:
    """So much body, made while it is sent."""
    for _ in range(mebibytes * 16):
        yield CHUNK


def peak_of(job: Callable[[], Any]) -> tuple[Any, int]:
    """What the job returned, and the most memory Python held above its start."""
    tracemalloc.start()
    try:
        start = tracemalloc.get_traced_memory()[0]
        result = job()
        return result, tracemalloc.get_traced_memory()[1] - start
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("framed", ["length", "chunked", "close"])
@every_kind(*MEASURED)
def test_a_402_of_100_mib_is_handed_back_still_streaming(
    world: World, kind: Kind, framed: str
) -> None:
    """Row 38: 64 KiB are read to see what it is; the rest stays on the wire."""
    seller = world.seller()
    length = 100 * MIB if framed == "length" else None
    reply = Reply(status=402, body=endless(seller, 100), framing=framed, length=length)
    url = seller.on("/big", reply)
    buyer = world.buyer(kind)
    streamed, peak = peak_of(lambda: buyer.stream("GET", url, seller=seller, take=MIB))
    assert streamed.response.status_code == 402 and len(streamed.body) >= MIB
    assert set(streamed.body) == {ord("x")}
    assert seller.sent_bytes < 40 * MIB and streamed.sent_at_first < 40 * MIB
    assert peak < 12 * MIB, f"{peak / MIB:.0f} MiB were held"
    assert world.signer.calls == 0


@pytest.mark.parametrize("size", [0, 65_536, 65_537, 300_000])
@every_kind(*FEW)
def test_a_402_that_is_no_challenge_is_readable_in_full(
    world: World, kind: Kind, size: int
) -> None:
    """Row 38 and 40: on both sides of the limit the caller gets every byte, decoded or raw."""
    seller = world.seller()
    body = bytes(i % 251 for i in range(size))
    url = seller.on("/big", Reply(status=402, body=body, headers=[("X-Quota", "1")]))
    buyer = world.buyer(kind)
    response = buyer.get(url)
    assert response.content == body and response.headers["x-quota"] == "1"
    assert buyer.stream("GET", url, raw=True).body == body
    assert buyer.stream("GET", url, raw=False).body == body


@pytest.mark.parametrize("claim", [True, False], ids=["challenge", "noise"])
@every_kind(*FEW)
def test_a_challenge_larger_than_the_limit_is_handed_back(
    world: World, kind: Kind, claim: bool
) -> None:
    """Row 38: over 64 KiB without a header is handed back, also when it looks like a challenge."""
    seller = world.seller()
    filler = "x" * 200_000
    document = challenge(offer(), padding=filler) if claim else {"padding": filler}
    reply = in_body(document)
    url = seller.on("/big", paywall(reply, served()))
    response = world.buyer(kind).get(url)
    assert response.status_code == 402 and response.content == reply.body
    assert world.signer.calls == 0 and len(seller.hits) == 1


@cache
def bomb_of(coding: str) -> bytes:
    """50 KB that decode to 50 MB and begin like a challenge."""
    inner = b'{"x402Version":1,"accepts":[],"padding":"' + b"0" * (50 * MIB)
    bomb = zlib.compress(inner, 9) if coding == "deflate" else gzip.compress(inner)
    return gzip.compress(bomb) if coding == "gzip, gzip" else bomb


@pytest.mark.parametrize("coding", ["gzip", "deflate", "gzip, gzip"])
@every_kind(*MEASURED)
def test_a_compressed_bomb_is_bounded_in_memory_and_time(
    world: World, kind: Kind, coding: str
) -> None:
    """Row 38: 50 KB that decode to 50 MB; never decoded as a whole to find out what it is."""
    seller = world.seller()
    headers = [("Content-Encoding", coding), ("Content-Type", "application/json")]
    url = seller.on("/bomb", Reply(status=402, headers=headers, body=bomb_of(coding)))
    buyer = world.buyer(kind)
    began = time.monotonic()

    def job() -> Any:
        try:
            return buyer.stream("GET", url, take=0)
        except ChallengeError as error:
            return error

    result, peak = peak_of(job)
    assert time.monotonic() - began < 3
    assert peak < 8 * MIB, f"{peak / MIB:.0f} MiB were held"
    assert world.signer.calls == 0
    if not isinstance(result, ChallengeError):
        assert result.response.status_code == 402


@pytest.mark.parametrize("coding", ["gzip", "deflate", "identity", "GZIP"])
@every_kind(*FEW)
def test_an_honest_compressed_challenge_is_read(world: World, kind: Kind, coding: str) -> None:
    """Row 38: bounded decoding is decoding."""
    seller = world.seller()
    plain = v1_body(offer_v1())
    assert isinstance(plain.body, bytes)
    coders: dict[str, Callable[[bytes], bytes]] = {
        "gzip": gzip.compress,
        "deflate": zlib.compress,
        "identity": bytes,
    }
    body = coders[coding.lower()](plain.body)
    reply = Reply(status=402, headers=[*plain.headers, ("Content-Encoding", coding)], body=body)
    url = seller.on("/paid", paywall(reply, served()))
    assert world.buyer(kind).get(url).status_code == 200


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd", "snake"])
def test_a_coding_that_is_a_lie_does_not_break_the_buyer(
    world: World, kind: Kind, coding: str
) -> None:
    """Row 38: a body that is not what ``Content-Encoding`` says: handed back or a clear error."""
    seller = world.seller()
    plain = v1_body(offer_v1())
    headers = [*plain.headers, ("Content-Encoding", coding)]
    url = seller.on("/paid", paywall(Reply(status=402, headers=headers, body=plain.body), served()))
    buyer = world.buyer(kind)
    try:
        streamed = buyer.stream("GET", url, raw=True)
    except ChallengeError:
        assert seller.proofs() == []
        assert world.signer.calls == 0
        return
    paid = streamed.response.status_code == 200
    assert paid or streamed.body == plain.body
    assert len(seller.authorizations()) == world.signer.calls == int(paid)


@every_kind(*FEW)
def test_a_header_alone_decides_whatever_the_body(world: World, kind: Kind) -> None:
    """Row 38: with ``PAYMENT-REQUIRED`` the body is not read: 100 MiB or a bomb cost nothing."""
    seller = world.seller()
    head = v2_header(offer()).headers
    big = Reply(status=402, headers=head, body=endless(seller, 100), framing="chunked")
    coding = [*head, ("Content-Encoding", "gzip")]
    bomb = Reply(status=402, headers=coding, body=bomb_of("gzip"))
    urls = [
        seller.on("/big", paywall(big, served())),
        seller.on("/bomb", paywall(bomb, served())),
    ]
    buyer = world.buyer(kind)
    for url in urls:
        response, peak = peak_of(partial(buyer.get, url))
        assert response.status_code == 200 and peak < 12 * MIB
    assert seller.sent_bytes < 40 * MIB


@pytest.mark.parametrize("body", ["breaks-off", "never-comes"])
@every_kind(*MEASURED)
def test_a_header_decides_although_its_body_fails(world: World, kind: Kind, body: str) -> None:
    """Row 38: "header alone if present": what happens to the body after it costs no payment."""
    seller = world.seller()
    head = v2_header(offer()).headers

    def stall() -> Iterator[bytes]:
        yield b"x"
        seller.pause(5)

    def ask(hit: Hit) -> Reply:
        if body == "breaks-off":
            return Reply(status=402, headers=head, body=b"x" * 100, length=5000, cut=100)
        return Reply(status=402, headers=head, body=stall(), framing="chunked")

    url = seller.on("/paid", paywall(ask, served()))
    assert world.buyer(kind).get(url, timeout=1.0).status_code == 200


@pytest.mark.parametrize("broken", ["cut", "short", "reset"])
def test_a_402_that_breaks_off_is_not_paid(world: World, kind: Kind, broken: str) -> None:
    """Row 38: half a challenge is an error of the network, not an offer."""
    seller = world.seller()
    plain = v1_body(offer_v1())
    assert isinstance(plain.body, bytes)
    replies = {
        "cut": Reply(status=402, headers=plain.headers, body=plain.body, cut=30),
        "short": Reply(
            status=402, headers=plain.headers, body=plain.body, length=9999, cut=len(plain.body)
        ),
        "reset": Reply(reset=True),
    }
    url = seller.on("/paid", paywall(replies[broken], served()))
    buyer = world.buyer(kind)
    with pytest.raises((buyer.lib.TransportError, PaymentError)):
        buyer.get(url)
    assert world.signer.calls == 0 and world.counted() == 0
    assert seller.proofs() == []


# --- row 39


def without(hit: Hit, *names: str) -> list[tuple[str, str]]:
    """The headers of a request, except these."""
    dropped = {name.lower() for name in names}
    return sorted(item for item in hit.headers if item[0].lower() not in dropped)


@every_kind(*EVERY)
def test_the_retry_differs_from_the_request_by_the_proof_alone(world: World, kind: Kind) -> None:
    """Row 39: repeated headers stay repeated, letter case stays, nothing is folded or added."""
    seller = world.seller()
    url = seller.sells() + "?a=1&a=2&b=%2F"
    headers = [("X-D", "a"), ("X-D", "b"), ("x-MiXeD", "Q"), ("Cookie", "a=1"), ("Accept", "x/y")]
    response = world.buyer(kind).post(url, headers=headers, content=b"body")
    assert response.status_code == 200
    first, second = seller.hits
    assert without(first) == without(second, *PROOF_HEADERS, "cache-control")
    assert second.values("cache-control") == ["no-store, no-cache"]  # any cache on the way
    assert (first.method, first.target) == (second.method, second.target)
    assert [v for n, v in second.headers if n == "X-D"] == ["a", "b"]


@every_kind(*EVERY)
def test_cookies_of_the_402_go_with_the_retry(world: World, kind: Kind) -> None:
    """Row 39: a seller that binds the challenge to a session gets its cookie back."""
    seller = world.seller()
    asked = v2_header(offer())
    cookies = [("Set-Cookie", "session=s3; Path=/"), ("Set-Cookie", "other=o; Path=/elsewhere")]
    reply = Reply(status=402, headers=[*asked.headers, *cookies], body=b"{}")
    url = seller.on("/paid", paywall(reply, served()))
    response = world.buyer(kind, cookies={"mine": "m1"}).get(url)
    assert response.status_code == 200
    (paid,) = seller.paid_hits()
    sent = paid.header("cookie") or ""
    assert "session=s3" in sent and "mine=m1" in sent and "other=o" not in sent


@every_kind(*(kind for kind in EVERY if kind.colour != "trio"))
def test_hooks_time_outs_and_extensions_of_the_caller_survive(world: World, kind: Kind) -> None:
    """Row 39: a request hook's header is on both legs; trace events are seen for both."""
    seller = world.seller()
    traced: list[str] = []
    sync = kind.colour == "sync"

    def hook(request: Any) -> None:
        request.headers["X-Hook"] = "1"

    async def ahook(request: Any) -> None:
        hook(request)

    def trace(name: str, info: Any) -> None:
        traced.append(name)

    async def atrace(name: str, info: Any) -> None:
        traced.append(name)

    buyer = world.buyer(kind, event_hooks={"request": [hook if sync else ahook]})
    response = buyer.get(seller.sells(), extensions={"trace": trace if sync else atrace})
    assert response.status_code == 200
    assert [hit.header("x-hook") for hit in seller.hits] == ["1", "1"]
    assert traced.count("http11.send_request_headers.started") == 2


@every_kind(*(kind for kind in EVERY if kind.plug == "attach" and kind.colour != "trio"))
def test_response_hooks_do_not_see_a_402_that_is_then_paid(world: World, kind: Kind) -> None:
    """Contract 1: a hook that raises for status does not break the payment."""
    seller = world.seller()
    statuses: list[int] = []

    def hook(response: Any) -> None:
        statuses.append(response.status_code)
        response.raise_for_status()

    async def ahook(response: Any) -> None:
        hook(response)

    hooks = {"response": [hook if kind.colour == "sync" else ahook]}
    assert world.buyer(kind, event_hooks=hooks).get(seller.sells()).status_code == 200
    assert statuses == [200]


# --- connections


POOLED = tuple(
    kind for kind in EVERY if kind.plug in {"client", "attach"} and kind.colour != "trio"
)


@every_kind(*POOLED)
def test_a_pool_of_one_never_runs_dry(world: World, kind: Kind) -> None:
    """Facts 3.7: thirty calls, paid, refused, unreadable, rejected, free, streamed: no leak."""
    seller = world.seller()
    lib: Any = __import__(kind.lib)
    payer = world.payer(Cap("0.01", per="call"))
    buyer = world.buyer(kind, payer, limits=lib.Limits(max_connections=1), timeout=lib.Timeout(3.0))
    fat = Reply(status=402, headers=v2_header(offer()).headers, body=b"x" * 300_000)
    urls = {
        "paid": seller.sells(),
        "refused": seller.sells(offer("900000"), path="/dear"),
        "unreadable": seller.on("/odd", Reply(status=402, headers=[("PAYMENT-REQUIRED", "!")])),
        "unreadable-body": seller.on("/oddb", in_body('{"x402Version":1,"accepts":[')),
        "rejected": seller.on("/never", v2_header(offer())),
        "quota": seller.on("/quota", Reply(status=402, body=b"over quota")),
        "free": seller.on("/free", Reply(body=b"free")),
        "fat": seller.on("/fat", paywall(fat, served())),
        "fat-refused": seller.on(
            "/fatr",
            Reply(status=402, headers=v2_header(offer("900000")).headers, body=b"x" * 300_000),
        ),
        "big-quota": seller.on("/bigq", Reply(status=402, body=b"x" * 300_000)),
    }
    kept: list[PaymentError] = []
    for name, url in [*urls.items()] * 3:
        try:
            response = buyer.get(url)
        except PaymentError as error:
            kept.append(error)
            assert name in {"refused", "unreadable", "unreadable-body", "fat-refused"}
        else:
            assert response.status_code == (200 if name in {"paid", "free", "fat"} else 402)
    assert len(kept) == 12
    seller.wait_for(lambda: seller.open_connections() <= 1)  # it sees an end a moment later
    assert all(error.response.status_code == 402 for error in kept)


@every_kind(*POOLED)
def test_a_pool_of_one_survives_one_shot_bodies_and_streams(world: World, kind: Kind) -> None:
    """Facts 3.7: the 402 is closed on the way out of every error."""
    seller = world.seller()
    lib: Any = __import__(kind.lib)
    buyer = world.buyer(
        kind, world.payer(Cap("0.01", per="call")), limits=lib.Limits(max_connections=1)
    )
    url = seller.sells()
    dear = seller.sells(offer("900000"), path="/dear")
    for _ in range(5):
        with pytest.raises(BodyNotReplayable):
            buyer.post(url, content=one_shot(kind, b"a"))
        with pytest.raises(CapExceeded):
            buyer.stream("GET", dear)
        assert buyer.stream("GET", url, take=1).response.status_code == 200
        assert buyer.get(url).status_code == 200


@every_kind(*ASYNC, *SYNC)
def test_cookies_and_caching_headers_of_the_paid_answer_are_untouched(
    world: World, kind: Kind
) -> None:
    """Row 39: the answer is the seller's, header by header."""
    seller = world.seller()
    headers = [("Set-Cookie", "a=1"), ("Set-Cookie", "b=2"), ("Cache-Control", "private, no-store")]
    url = seller.on(
        "/paid", paywall(v2_header(offer()), sequence(served(headers=headers, status=201)))
    )
    response = world.buyer(kind).get(url)
    assert response.status_code == 201
    assert response.headers.get_list("set-cookie") == ["a=1", "b=2"]
    assert response.headers["cache-control"] == "private, no-store"
    assert response.headers["payment-response"] and response.request.method == "GET"


def test_an_oversized_header_is_an_error_and_not_a_payment(world: World, kind: Kind) -> None:
    """Row 38: a challenge header of 80 KB is not read by halves."""
    seller = world.seller()
    value = encode(challenge(offer(), padding="x" * 60_000))
    reply = Reply(status=402, headers=[("PAYMENT-REQUIRED", value)], body=b"{}")
    url = seller.on("/paid", paywall(reply, served()))
    buyer = world.buyer(kind)
    try:
        assert buyer.get(url).status_code in (200, 402)
    except (ChallengeError, buyer.lib.TransportError):
        assert world.signer.calls == 0


# --- row 38 again: time


def wait_for_a_trickle(world: World, url: str, payer: Payer, kind: Kind) -> float:
    """Seconds until a 402 that drips is handed back, or given up."""
    buyer = world.buyer(kind, payer)
    began = time.monotonic()
    try:
        streamed = buyer.stream("GET", url, take=0, timeout=1.0)
    except buyer.lib.TransportError:
        return time.monotonic() - began
    assert streamed.response.status_code == 402
    return time.monotonic() - began


@pytest.fixture(scope="module", autouse=True)
def trickling(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Future[float]]]:
    """Three colours that wait for a dripping 402 while the other tests of this file run."""
    world = World(tmp_path_factory.mktemp("trickle"))
    seller = world.seller()

    def drip() -> Iterator[bytes]:
        for _ in range(400):
            yield b" "
            seller.pause(0.1)

    url = seller.on("/slow", lambda hit: Reply(status=402, body=drip(), framing="chunked"))
    payer = world.payer()
    kinds = (CORE[0], CORE[3], Kind("httpx2", "sync", "client"))
    with ThreadPoolExecutor(3) as pool:
        yield [pool.submit(wait_for_a_trickle, world, url, payer, kind) for kind in kinds]
    assert world.signer.calls == 0
    world.close()


def test_a_402_that_trickles_is_bounded_in_time(trickling: list[Future[float]]) -> None:
    """Row 38: a byte now and then, so that no read ever times out."""
    assert max(waiting.result(20) for waiting in trickling) < 20
