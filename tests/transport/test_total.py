"""``total_timeout``: a seller that is never done with its headers is not waited for for ever."""

from __future__ import annotations

import contextvars
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.support.loopback import Listener
from tests.support.seller import offer, read_request, v2_header
from tests.transport.kit import Kind, Rig, kinds
from x402_mask import ApprovalDenied, receipt_of

TOTAL_S = 0.4
SOON_S = 8.0
"""Far below what any of these sellers would take, on a machine with much else to do."""

some = pytest.mark.parametrize(
    "kind",
    [
        Kind("httpx", "sync", "transport"),
        Kind("httpx2", "sync", "client"),
        Kind("httpx", "asyncio", "client"),
        Kind("httpx2", "trio", "transport"),
    ],
    ids=str,
)
"""Every family, colour and place of the bound; each of these tests waits for real."""

Answering = Callable[[socket.socket, Any], None]


class Slow(Listener):
    """Answers every request by a function that may take its time."""

    def __init__(self, answer: Answering) -> None:
        self.answer = answer
        self.asked: list[Any] = []
        super().__init__()

    def serve(self, connection: socket.socket) -> None:
        file = connection.makefile("rb")
        while (hit := read_request(file, 0)) is not None:
            self.asked.append(hit)
            self.answer(connection, hit)


def drip(connection: socket.socket, _hit: Any) -> None:
    """A header line now and then, and no end."""
    connection.sendall(b"HTTP/1.1 200 OK\r\n")
    while True:
        connection.sendall(b"x-more: to come\r\n")
        time.sleep(0.2)


def processing(connection: socket.socket, _hit: Any) -> None:
    """One interim answer after another."""
    while True:
        connection.sendall(b"HTTP/1.1 102 Processing\r\n\r\n")
        time.sleep(0.2)


def flood(connection: socket.socket, _hit: Any) -> None:
    """The same as fast as it goes: there is always something to read."""
    while True:
        connection.sendall(b"HTTP/1.1 103 Early Hints\r\n\r\n" * 500)


def silence(connection: socket.socket, _hit: Any) -> None:
    """Nothing."""
    time.sleep(30)


def ok(connection: socket.socket, body: bytes = b"done") -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body)


def unpaid(connection: socket.socket) -> None:
    asked = v2_header(offer())
    lines = "".join(f"{name}: {value}\r\n" for name, value in asked.headers)
    connection.sendall(f"HTTP/1.1 402 Pay\r\n{lines}content-length: 0\r\n\r\n".encode())


def paywalled(then: Answering) -> Answering:
    """Asks for money, and answers who pays so."""

    def answer(connection: socket.socket, hit: Any) -> None:
        if hit.proofs:
            then(connection, hit)
        else:
            unpaid(connection)

    return answer


@pytest.fixture
def slow() -> Iterator[Callable[[Answering], Slow]]:
    made: list[Slow] = []

    def make(answer: Answering) -> Slow:
        made.append(Slow(answer).__enter__())
        return made[-1]

    yield make
    for one in made:
        one.__exit__(None, None, None)


def bounded(rig: Rig, origin: str, seconds: float | None = TOTAL_S, **options: Any) -> Any:
    """A client of this kind, which has the bound itself or whose transport has it."""
    rig.payer = rig.make_payer(origins=[origin])
    if rig.kind.plug == "client":
        return rig.make_client(inner=None, total_timeout=seconds, **options)
    own = rig.lib.HTTPTransport if rig.kind.sync else rig.lib.AsyncHTTPTransport
    paying = rig.mask.PaymentTransport if rig.kind.sync else rig.mask.AsyncPaymentTransport
    paid = paying(rig.payer, own(**options), total_timeout=seconds)
    client = rig.plain(transport=paid)
    rig._clients.append(client)
    return client


async def ended(rig: Rig, url: str) -> BaseException:
    """The time-out that a call to *url* ends in, and soon."""
    began = time.monotonic()
    with pytest.raises(rig.lib.TimeoutException, match="total_timeout=") as caught:
        await rig.get(url)
    assert time.monotonic() - began < SOON_S
    assert caught.value.request is not None
    return caught.value


@some
@pytest.mark.parametrize("answer", [drip, processing, flood], ids=lambda one: one.__name__)
async def test_headers_that_never_end(rig: Rig, slow: Any, answer: Answering) -> None:
    seller = slow(answer)
    rig.client = bounded(rig, seller.origin)
    await ended(rig, seller.origin + "/paid")
    await ended(rig, seller.origin)  # and the client is of use all the same
    assert rig.payer.payments() == []


@some
async def test_after_a_proof_has_left_its_payment_is_named_and_held(rig: Rig, slow: Any) -> None:
    seller = slow(paywalled(drip))
    rig.client = bounded(rig, seller.origin, 2.0)
    error = await ended(rig, seller.origin + "/paid")
    (payment,) = rig.payer.payments()
    assert payment.state == "held"
    assert any(payment.payment_id in note for note in error.__notes__)
    await ended(rig, seller.origin + "/paid")
    (again,) = rig.payer.payments()  # the same bytes: no second proof
    assert again.payment_id == payment.payment_id
    proofs = {proof.raw for hit in seller.asked for proof in hit.proofs}
    assert len(proofs) == 1


@some
async def test_a_connection_that_is_used_again_is_bounded_too(rig: Rig, slow: Any) -> None:
    first = [True]

    def answer(connection: socket.socket, hit: Any) -> None:
        if first:
            first.clear()
            ok(connection)
        else:
            drip(connection, hit)

    seller = slow(answer)
    rig.client = bounded(rig, seller.origin)
    assert (await rig.get(seller.origin)).content == b"done"
    await ended(rig, seller.origin)


@kinds("client", libs=("httpx",))
async def test_redirects_count_for_the_same_bound(rig: Rig, slow: Any) -> None:
    def answer(connection: socket.socket, _hit: Any) -> None:
        time.sleep(0.1)
        connection.sendall(b"HTTP/1.1 302 Found\r\nlocation: /on\r\ncontent-length: 0\r\n\r\n")

    seller = slow(answer)
    rig.client = bounded(rig, seller.origin)
    rig.client.follow_redirects = True
    await ended(rig, seller.origin)


@some
async def test_a_402_whose_body_trickles(rig: Rig, slow: Any) -> None:
    def answer(connection: socket.socket, _hit: Any) -> None:
        connection.sendall(b"HTTP/1.1 402 Pay\r\ncontent-length: 5000\r\n\r\n{")
        for _ in range(20):
            time.sleep(0.4)
            connection.sendall(b" ")

    seller = slow(answer)
    rig.client = bounded(rig, seller.origin)
    await ended(rig, seller.origin)


@some
async def test_the_body_of_an_answer_takes_its_time(rig: Rig, slow: Any) -> None:
    """What is bounded ends with the headers: an answer that is being read is no endless one."""

    def answer(connection: socket.socket, _hit: Any) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n")
        for part in b"done":
            time.sleep(0.8)
            connection.sendall(bytes((part,)))

    seller = slow(paywalled(answer))
    rig.client = bounded(rig, seller.origin, 2.0)
    response = await rig.get(seller.origin + "/paid")
    assert response.content == b"done" and receipt_of(response)
    assert response.request.extensions["timeout"]["read"] in (5.0, 60.0)


@some
async def test_a_handshake_that_never_ends(rig: Rig) -> None:
    """TLS: each byte of a record that is to be long, and none of them late."""

    class Handshake(Listener):
        def serve(self, connection: socket.socket) -> None:
            connection.recv(100)
            connection.sendall(b"\x16\x03\x03\x3f\xff")
            while True:
                connection.sendall(b"\x02")
                time.sleep(0.2)

    with Handshake() as server:
        origin = f"https://127.0.0.1:{server.port}"
        rig.client = bounded(rig, origin)
        await ended(rig, origin)


@kinds("client", libs=("httpx",), colours=("sync",))
async def test_a_transport_around_another_is_looked_into(rig: Rig, slow: Any) -> None:
    class Around(rig.lib.BaseTransport):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            self.wrapped = rig.lib.HTTPTransport()

        def handle_request(self, request: Any) -> Any:
            return self.wrapped.handle_request(request)

    seller = slow(drip)
    rig.payer = rig.make_payer(origins=[seller.origin])
    around = Around()
    rig.client = rig.make_client(inner=around, total_timeout=TOTAL_S)
    await ended(rig, seller.origin)
    around.wrapped.close()


@some
async def test_no_bound_is_the_default_and_only_seconds_are_one(rig: Rig, slow: Any) -> None:
    seller = slow(lambda connection, _hit: ok(connection))
    rig.client = bounded(rig, seller.origin, None)
    assert (await rig.get(seller.origin)).content == b"done"
    for wrong in (True, "3", object()):
        with pytest.raises(TypeError, match="total_timeout"):
            bounded(rig, seller.origin, wrong)  # type: ignore[arg-type]
    for wrong in (0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="total_timeout"):
            bounded(rig, seller.origin, wrong)


@kinds("client", libs=("httpx",), colours=("sync",))
async def test_what_a_call_leaves_behind_is_not_bound_by_it(rig: Rig, slow: Any) -> None:
    """A call made later, in the context of one that is over, has time of its own."""
    seller = slow(lambda connection, _hit: ok(connection))
    kept: list[contextvars.Context] = []
    rig.client = bounded(rig, seller.origin, 0.3)
    rig.client.event_hooks = {"request": [lambda _: kept.append(contextvars.copy_context())]}
    await rig.get(seller.origin)
    time.sleep(0.4)  # noqa: ASYNC251  # the sync colour
    other = bounded(rig, seller.origin, None)
    assert kept[0].run(other.get, seller.origin).content == b"done"


@some
async def test_an_owner_who_does_not_answer(rig: Rig) -> None:
    """Whoever approves is asked in a thread, and a yes that comes too late is none."""
    late, said = threading.Event(), threading.Event()

    def approve(quote: object) -> bool:
        late.wait(SOON_S + 5)
        said.set()
        return True

    rig.payer, url = rig.make_payer(approve=approve), rig.sells()
    if rig.kind.plug == "client":
        client = rig.make_client(total_timeout=TOTAL_S)
    else:
        paying = rig.mask.PaymentTransport if rig.kind.sync else rig.mask.AsyncPaymentTransport
        client = rig.plain(transport=paying(rig.payer, rig.wire, total_timeout=TOTAL_S))
    begun = time.monotonic()
    with pytest.raises(ApprovalDenied, match="ReadTimeout"):
        await rig.wait(client.get(url))
    assert time.monotonic() - begun < SOON_S
    late.set()
    assert said.wait(SOON_S)
    assert rig.proofs == [] and rig.payer.payments() == []
