"""What the caller gets back: untouched, streaming, readable (facts 2.12, 3.3, 3.6, 3.8)."""

from __future__ import annotations

import gzip
import json
import pickle
import tracemalloc
import zlib
from functools import cache, partial
from typing import Any

import pytest

from tests.support.seller import Reply, challenge, encode, offer, served, v2_body, v2_header
from tests.transport.kit import SHOP, URL, Rig, kinds
from x402_mask import (
    CapExceeded,
    ChallengeError,
    OfferRefused,
    OriginRefused,
    PaymentError,
    receipt_of,
)

JSON = ("Content-Type", "application/json")
LEFT_OVER = pytest.mark.filterwarnings("ignore:Async generator:ResourceWarning")
"""Trio tells of every async generator that is not read to its end; the family's own never are."""
PARTS = [b"one\n", b"two\n", b"three\n"]
HOW = {
    "raw": PARTS,
    "bytes": PARTS,
    "text": ["one\n", "two\n", "three\n"],
    "lines": ["one", "two", "three"],
}


@kinds()
async def test_what_is_not_402_is_handed_back_untouched(rig: Rig) -> None:
    """Contract 2.1."""
    for status in (200, 204, 304, 404, 500):
        rig.bodies.clear()
        rig.on(URL, Reply(status=status, headers=[("X-Two", "a"), ("X-Two", "b")], body=PARTS))
        async with rig.stream("GET") as response:
            assert response.status_code == status and not response.is_stream_consumed
            assert response.headers.get_list("x-two") == ["a", "b"]
            (body,) = rig.bodies
            assert body.taken == 0, "the body was read before the caller asked for it"
            taken: list[int] = []
            assert await rig.chunks(response, watch=partial(_watch, rig, taken)) == PARTS
            assert taken == [1, 2, 3]
        assert receipt_of(response) is None and rig.all_closed()
    assert rig.payer.payments() == [] and rig.events == []


@kinds()
async def test_what_is_raised_for_a_paid_answer_names_the_payment(rig: Rig) -> None:
    """Contract 2: in a note; an answer that cost nothing, and one that is none, say nothing."""
    for status in (402, 404, 500):
        rig.sells(paid=served(b"sorry", status=status))
        response = await rig.call("GET", json={"n": status})
        receipt = receipt_of(response)
        assert response.content == b"sorry" and receipt is not None
        with pytest.raises(rig.lib.HTTPStatusError) as caught:
            response.raise_for_status()
        (note,) = caught.value.__notes__
        assert receipt.payment_id in note and f"${receipt.usd}" in note
        assert caught.value.response is response and isinstance(response, rig.lib.Response)
        again = pickle.loads(pickle.dumps(response))
        assert (again.status_code, again.content) == (status, b"sorry")
        with pytest.raises(rig.lib.HTTPStatusError):
            again.raise_for_status()
    rig.on(URL, Reply(status=500))
    with pytest.raises(rig.lib.HTTPStatusError) as caught:
        (await rig.call("GET", json={"n": 0})).raise_for_status()
    assert not hasattr(caught.value, "__notes__")
    rig.sells()
    response = await rig.call("GET", json={"n": 1})
    assert response.raise_for_status() is response and type(response) is rig.lib.Response


@kinds()
async def test_a_paid_answer_streams(rig: Rig) -> None:
    """Fact 2.12."""
    rig.sells(paid=served(PARTS, framing="chunked"))
    for how, expected in HOW.items():
        rig.bodies.clear()
        async with rig.stream("GET") as response:
            assert not response.is_stream_consumed and rig.bodies[1].taken == 0
            assert receipt_of(response) is not None, "the receipt is there before the body"
            taken: list[int] = []
            watched = partial(_watch, rig, taken)
            assert await rig.chunks(response, how, watch=watched) == expected
            assert taken[:2] == [1, 2]
        assert rig.all_closed()
        rig.paid(response)


def _watch(rig: Rig, taken: list[int], _: int) -> None:
    taken.append(rig.bodies[-1].taken)


NOT_CHALLENGES: dict[str, Reply] = {
    "empty": Reply(status=402),
    "text": Reply(status=402, body=b"pay at the door"),
    "json": Reply(status=402, headers=[JSON], body=b'{"detail": "no credit"}'),
    "html": Reply(status=402, body=b"<html>pay</html>", headers=[("Content-Type", "text/html")]),
    "binary": Reply(status=402, body=bytes(range(256))),
}


@kinds()
async def test_a_402_that_is_no_challenge_is_handed_back_readable(rig: Rig) -> None:
    """Fact 3.8: by every way of reading, as if nobody had looked."""
    for expected in NOT_CHALLENGES.values():
        rig.on(URL, expected)
        response = await rig.get()
        assert (response.status_code, response.content) == (402, expected.body)
        assert response.extensions.get("x402_mask") is None
        for how in ("raw", "bytes"):
            async with rig.stream("GET") as response:
                assert not response.is_stream_consumed
                assert b"".join(await rig.chunks(response, how)) == expected.body
        async with rig.stream("GET") as response:
            assert await rig.read(response) == expected.body
    assert rig.all_closed()


CODINGS: dict[str, Any] = {
    "gzip": gzip.compress,
    "x-gzip": gzip.compress,
    "deflate": zlib.compress,
}


@kinds()
async def test_a_compressed_402_is_handed_back_intact(rig: Rig) -> None:
    """Fact 3.8: raw bytes stay compressed, everything else decodes them."""
    plain = b'{"detail": "no credit"}' * 20
    for coding in ("gzip", "deflate"):
        packed = CODINGS[coding](plain)
        rig.on(URL, Reply(status=402, headers=[("Content-Encoding", coding), JSON], body=packed))
        async with rig.stream("GET") as response:
            assert b"".join(await rig.chunks(response, "raw")) == packed
        async with rig.stream("GET") as response:
            assert b"".join(await rig.chunks(response, "bytes")) == plain
        assert (await rig.get()).text == plain.decode()


@pytest.mark.parametrize("coding", CODINGS)
@kinds("transport", "attach")
async def test_a_compressed_challenge_is_read_and_paid(rig: Rig, coding: str) -> None:
    """Contract 2: a body is a body, however it travels."""
    asked = v2_body(offer())
    assert isinstance(asked.body, bytes)
    packed = Reply(
        status=402,
        headers=[("Content-Encoding", coding), JSON],
        body=CODINGS[coding](asked.body),
    )
    rig.on(URL, lambda leg: served()(leg) if leg.proofs else packed)
    rig.paid(await rig.get())


def pieces(count: int, size: int = 16 * 1024) -> list[bytes]:
    return [b"%07d\n" % number * (size // 8) for number in range(count)]


@kinds()
async def test_a_long_402_is_handed_back_with_the_rest_still_streaming(rig: Rig) -> None:
    """Contract 2.2: 64 KiB are looked at, no more."""
    chunks = [b'{"accepts": [', *pieces(20)]
    rig.on(URL, Reply(status=402, headers=[JSON], body=chunks, framing="chunked"))
    async with rig.stream("GET") as response:
        assert response.status_code == 402 and not response.is_stream_consumed
        taken = rig.bodies[0].taken
        assert 64 * 1024 < sum(map(len, chunks[:taken])) < 64 * 1024 + 2 * 16 * 1024
        assert b"".join(await rig.chunks(response, "raw")) == b"".join(chunks)
    assert rig.all_closed()


@cache
def make_bomb() -> bytes:
    """48 KB that become 50 MB."""
    bomb = gzip.compress(b"0" * 50_000_000)
    assert len(bomb) < 64 * 1024
    return bomb


@kinds()
async def test_a_bomb_costs_nothing(rig: Rig) -> None:
    """Fact 3.3: with the header nothing is decoded but within the limit; without, it is no 402."""
    bomb = make_bomb()
    coded = [("Content-Encoding", "gzip")]
    rig.sells(paid=served())
    asked = v2_header(offer())
    with_header = Reply(status=402, headers=[*asked.headers, *coded], body=bomb)
    rig.on(URL, lambda leg: served()(leg) if leg.proofs else with_header)
    tracemalloc.start()
    try:
        rig.paid(await rig.get())
        rig.on(URL, Reply(status=402, headers=coded, body=bomb))
        async with rig.stream("GET") as response:
            assert response.status_code == 402
            assert b"".join(await rig.chunks(response, "raw")) == bomb
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()


@kinds()
async def test_a_402_whose_body_breaks_off_raises_what_the_transport_raised(rig: Rig) -> None:
    """Contract 2.5: network exceptions pass unchanged; nothing is reserved, nothing leaks."""
    broken = [b'{"x402Version": 2,', rig.lib.ReadError("cut")]
    rig.on(URL, Reply(status=402, body=broken, framing="chunked"))
    with pytest.raises(rig.lib.ReadError, match="cut"):
        await rig.get()
    assert rig.all_closed() and rig.payer.payments() == []
    asked = v2_header(offer()).headers
    cut = Reply(status=402, headers=asked, body=broken, framing="chunked")
    rig.on(URL, lambda leg: served()(leg) if leg.proofs else cut)
    rig.paid(await rig.get())  # with the header, the body does not matter
    assert rig.all_closed()


@kinds()
async def test_two_challenge_headers_are_malformed(rig: Rig) -> None:
    """Fact 3.6: httpx would join them with a comma."""
    header = ("PAYMENT-REQUIRED", encode(challenge(offer())))
    rig.on(URL, Reply(status=402, headers=[header, header], body=b"{}"))
    with pytest.raises(ChallengeError) as caught:
        await rig.get()
    assert caught.value.at_risk is False and caught.value.response.content == b"{}"
    assert rig.proofs == [] and rig.all_closed()


ERRORS: dict[str, tuple[Reply, type[PaymentError]]] = {
    "cap": (v2_header(offer("999000000"), detail="dear"), CapExceeded),
    "offer": (v2_header(offer(scheme="upto")), OfferRefused),
    "malformed": (Reply(status=402, headers=[("PAYMENT-REQUIRED", "!")]), ChallengeError),
}


@kinds()
async def test_every_error_carries_the_402_with_a_readable_body(rig: Rig) -> None:
    """Contract 2.4: detached from its connection; what cannot be decoded is there as it came."""
    body = b'{"for": "people"}' * 3
    for coding, sent in (("", body), ("gzip", gzip.compress(body)), ("br", body)):
        for asked, kind in ERRORS.values():
            headers = [*asked.headers, *([("Content-Encoding", coding)] if coding else [])]
            rig.on(URL, Reply(status=402, headers=headers, body=sent))
            with pytest.raises(kind) as caught:
                await rig.get()
            response = caught.value.response
            assert isinstance(response, rig.lib.Response)
            assert (response.status_code, response.content) == (402, body)
            assert str(response.request.url) == URL and response.headers["payment-required"]
            assert not isinstance(caught.value, rig.lib.HTTPError)
            assert rig.all_closed()


@LEFT_OVER
@kinds()
async def test_a_long_refused_402_keeps_its_start(rig: Rig) -> None:
    """Contract 2.4: the connection is given back, so only what was looked at is there."""
    chunks = pieces(20)
    asked = v2_header(offer("999000000"))
    rig.on(URL, Reply(status=402, headers=asked.headers, body=chunks, framing="chunked"))
    with pytest.raises(CapExceeded) as caught:
        await rig.get()
    content = caught.value.response.content
    assert 64 * 1024 < len(content) < 100 * 1024 and b"".join(chunks).startswith(content)
    assert rig.all_closed()


@kinds()
async def test_refusals_can_be_returned(rig: Rig) -> None:
    """Contract 2.4: ``on_refusal="return"`` hands the 402 back, with the error in its extensions."""
    rig.payer = rig.make_payer(on_refusal="return", origins=[SHOP])
    for url, (asked, kind) in ((SHOP + "/" + name, case) for name, case in ERRORS.items()):
        rig.on(url, Reply(status=402, headers=asked.headers, body=b'{"a": 1}'))
        async with rig.stream("GET", url) as response:
            refusal = response.extensions["x402_mask_refusal"]
            assert type(refusal) is kind and refusal.response is response
            assert b"".join(await rig.chunks(response, "raw")) == b'{"a": 1}'
    rig.sells(url="https://else.example/paid")
    response = await rig.get("https://else.example/paid")
    assert isinstance(response.extensions["x402_mask_refusal"], OriginRefused)
    assert rig.proofs == [] and rig.all_closed()


@kinds()
async def test_an_answer_of_any_status_is_handed_back_after_payment(rig: Rig) -> None:
    """Contract 2.5, with what happened to the money."""
    for status in (200, 201, 400, 402, 404, 409, 500, 503):
        url = f"{SHOP}/{status}"
        rig.sells(url=url, paid=Reply(status=status, body=b"answer %d" % status))
        response = await rig.get(url)
        assert (response.status_code, response.content) == (status, b"answer %d" % status)
        receipt = receipt_of(response)
        assert receipt is not None
        assert receipt.outcome == ("rejected" if status == 402 else "unknown")
        rows = [p for p in rig.payer.payments() if p.payment_id == receipt.payment_id]
        assert [(p.state, p.open) for p in rows] == [("held", not 200 <= status < 300)]


@LEFT_OVER
@kinds("client")
async def test_a_quote_reads_no_more_than_a_challenge(rig: Rig) -> None:
    """Contract 1: ``quote`` sends a request unpaid, over the family's own transport."""
    shop = rig.seller()
    asked = v2_header(offer())
    url = shop.on(
        "/paid",
        Reply(status=402, headers=asked.headers, body=pieces(400)[:1] * 400, framing="chunked"),
    )
    payer = rig.make_payer()
    quote = await ask(rig, payer, rig.lib.Request("GET", url))
    assert quote.allowed and quote.amount == 1000 and quote.method == "GET"
    assert shop.sent_bytes < 400 * 16 * 1024
    free = shop.on("/free", Reply(body=b"free"))
    assert await ask(rig, payer, rig.lib.Request("GET", free)) is None
    plain = shop.on("/plain", Reply(status=402, body=b"pay"))
    assert await ask(rig, payer, rig.lib.Request("GET", plain)) is None
    assert payer.payments() == [] and shop.proofs() == []


async def ask(rig: Rig, payer: Any, asked: Any) -> Any:
    """Quote in the colour of the rig."""
    return payer.quote(asked) if rig.kind.sync else await payer.aquote(asked)


@kinds("client")
async def test_a_response_is_quoted_without_io(rig: Rig) -> None:
    """Contract 1: judged as it is: read, unread or not a 402."""
    payer = rig.payer
    request = rig.lib.Request("POST", URL)
    asked = v2_body(offer("2000"))
    read = rig.lib.Response(402, content=asked.body, request=request)
    quote = await ask(rig, payer, read)
    assert (quote.amount, quote.service, quote.method) == (2000, SHOP, "POST")
    headers = v2_header(offer("3000")).headers
    unread = rig.lib.Response(402, headers=headers, stream=rig.body([b"x"]), request=request)
    assert (await ask(rig, payer, unread)).amount == 3000
    assert not unread.is_stream_consumed
    long = rig.lib.Response(402, content=b" " * 70_000 + (asked.body or b""), request=request)
    assert await ask(rig, payer, long) is None
    assert await ask(rig, payer, rig.lib.Response(200, request=request)) is None
    refused = await ask(
        rig,
        payer,
        rig.lib.Response(402, headers=v2_header(offer(scheme="upto")).headers, request=request),
    )
    assert not refused.allowed and refused.refusal.reason == "scheme"
    with pytest.raises(ChallengeError):
        await ask(
            rig, payer, rig.lib.Response(402, headers={"PAYMENT-REQUIRED": "!"}, request=request)
        )
    with pytest.raises(TypeError, match="httpx"):
        await ask(rig, payer, "https://shop.example")
    assert rig.legs == []


@kinds("client", "attach")
async def test_a_password_in_the_url_is_not_shown(rig: Rig) -> None:
    """Secrets never in a repr, an approval, an error or the ledger."""
    shown: list[Any] = []
    rig.payer = rig.make_payer(approve=lambda quote: bool(shown.append(quote)) or True)
    rig.sells()
    rig.paid(await rig.get("https://me:s3cret@shop.example/paid?x=1"))
    (quote,) = shown
    assert quote.url == URL + "?x=1"
    assert "s3cret" not in repr(shown) + repr(rig.events) + repr(rig.payer.payments())
    assert "s3cret" not in json.dumps(rig.payer.ledger.history())
