"""Every way an operation can stay open, then the identical call: the same bytes, one live proof."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import pytest

from tests.faults import jobs
from tests.faults.deals import MARGIN, PRICE, SECONDS, SILENCE, WAYS, Deal, opened
from tests.faults.processes import Process
from tests.support.faults import NO_TLS
from tests.support.seller import (
    Answer,
    Hit,
    Reply,
    Seller,
    challenge,
    encode,
    in_header,
    offer,
    paywall,
    sequence,
    served,
    v2_header,
)
from x402_mask import (
    AsyncClient,
    CapExceeded,
    Client,
    PaymentRefused,
    SQLiteLedger,
    receipt_of,
)


@pytest.fixture
def deal(seller: Seller, fast_path: Path) -> Deal:
    """An operation whose seller delivers at once."""
    return Deal(seller, fast_path)


# --- the identical call ---------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
def test_the_same_bytes_by_the_same_payer_and_by_another(
    seller: Seller, fast_path: Path, way: str
) -> None:
    """However it stayed open; a third call, after the 2xx, is a purchase that no longer fits."""
    deal, payer = opened(seller, fast_path, way)
    (held,) = payer.payments()
    assert held.open and held.state in ("held", "settled")
    other = deal.payer()
    assert deal.call(other) == "200"
    deal.check(2, 1)
    (payment,) = payer.payments()
    assert (payment.payment_id, payment.state, payment.open) == (held.payment_id, "settled", False)
    assert deal.call(payer) == "CapExceeded"
    assert deal.call(other) == "CapExceeded"
    deal.check(2, 1)


@pytest.mark.parametrize("way", ["dropped", "503", "402-nonce-used", "silence"])
def test_the_same_bytes_by_another_process(seller: Seller, fast_path: Path, way: str) -> None:
    """While the one that opened it still runs."""
    deal, _ = opened(seller, fast_path, way)
    arguments = (deal.path, deal.url, seller.origin, deal.limit)
    with Process(jobs.plain_call, *arguments) as process:
        assert process.heard() == "200"
    deal.check(2, 1)


def test_the_same_bytes_after_the_process_was_killed(seller: Seller, fast_path: Path) -> None:
    """SIGKILL while the seller had the proof."""
    deal = Deal(seller, fast_path, SILENCE)
    with Process(jobs.plain_call, deal.path, deal.url, seller.origin, deal.limit) as victim:
        seller.wait_for(seller.paid_hits, 10)
        victim.kill()
    deal.check(1, 1)
    assert deal.call(deal.payer()) == "200"
    deal.check(2, 1)


@pytest.mark.parametrize("when", [0.0, 0.05, 0.2])
def test_the_same_bytes_after_a_cancelled_task(
    seller: Seller, fast_path: Path, when: float
) -> None:
    """Cancelled while the seller had the proof, twice in a row."""
    deal = Deal(seller, fast_path, sequence(SILENCE, SILENCE, served()))
    payer = deal.payer()

    async def cancelled(client: httpx.AsyncClient, count: int) -> None:
        task = asyncio.ensure_future(client.get(deal.url))
        ready = partial(seller.wait_for, lambda: len(seller.paid_hits()) >= count)
        await asyncio.to_thread(ready)
        await asyncio.sleep(when)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    async def main() -> int:
        async with AsyncClient(payer, timeout=5, verify=NO_TLS) as client:
            await cancelled(client, 1)
            await cancelled(client, 2)
            return (await client.get(deal.url)).status_code

    deal.url = seller.on(
        "/paid", paywall(v2_header(offer(str(PRICE))), sequence(SILENCE, SILENCE, served()))
    )
    assert asyncio.run(asyncio.wait_for(main(), 10)) == 200
    deal.check(3, 1)


BODIES: dict[str, Reply] = {
    "dropped": Reply(body=b"0123456789", length=10, cut=5),
    "chunks": Reply(body=[b"01234", b"56789"], framing="chunked", cut=5),
}


@pytest.mark.parametrize("colour", ["sync", "async"])
@pytest.mark.parametrize("body", BODIES)
def test_the_same_bytes_after_a_body_that_broke_off(
    seller: Seller, fast_path: Path, body: str, colour: str
) -> None:
    """The head said 200, the caller got an error: nothing was handed over."""
    deal = Deal(seller, fast_path, BODIES[body])
    payer = deal.payer()
    if colour == "sync":
        assert deal.call(payer) == "RemoteProtocolError"
    else:

        async def main() -> None:
            async with AsyncClient(payer, timeout=5, verify=NO_TLS) as client:
                await client.get(deal.url)

        with pytest.raises(httpx.RemoteProtocolError):
            asyncio.run(main())
    assert deal.call(payer) == "200"
    deal.check(2, 1)


def test_a_stream_that_its_caller_leaves_early_was_handed_over(
    seller: Seller, fast_path: Path
) -> None:
    """Reading only the start of a 2xx is the caller's choice: the next call is a purchase."""
    deal = Deal(seller, fast_path, Reply(body=[b"x" * 1000] * 100, framing="chunked"), prices=2)
    payer = deal.payer()
    with Client(payer, timeout=5, verify=NO_TLS) as client, client.stream("GET", deal.url) as it:
        next(it.iter_raw())
    assert deal.call(payer) == "200"
    deal.check(2, 2)


def test_a_cancelled_body_was_not_handed_over(seller: Seller, fast_path: Path) -> None:
    """A time-out of the caller while the body trickles in."""

    def trickle() -> Iterator[bytes]:
        yield b"x"
        seller.pause(1.5)
        yield b"y"

    deal = Deal(seller, fast_path, Reply(body=trickle(), framing="chunked"))
    payer = deal.payer()

    async def main() -> None:
        async with AsyncClient(payer, timeout=5, verify=NO_TLS) as client:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.4):
                    await client.get(deal.url)

    asyncio.run(main())
    assert deal.call(payer) == "200"
    deal.check(2, 1)


class Locker:
    """Another program that holds a ledger's lock."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.held: sqlite3.Connection | None = None

    def hold(self) -> None:
        """Take the lock, once."""
        if self.held is None:
            self.held = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)
            self.held.execute("BEGIN IMMEDIATE")

    def release(self) -> None:
        """Let it go."""
        assert self.held is not None
        self.held.execute("ROLLBACK")
        self.held.close()


def test_cancelled_while_the_end_cannot_be_written(
    seller: Seller, fast_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another program holds the ledger's lock when the 2xx comes, and the caller gives up."""
    monkeypatch.setattr("x402_mask._drive.perform.WAIT_S", 0.4)
    deal = Deal(seller, fast_path)
    locker = Locker(deal.path)

    def delivered(hit: Hit) -> Reply:
        locker.hold()
        return served()(hit)

    deal.url = seller.on("/paid", paywall(v2_header(offer(str(PRICE))), delivered))
    payer = deal.payer()

    async def main() -> None:
        async with AsyncClient(payer, timeout=5, verify=NO_TLS) as client:
            task = asyncio.ensure_future(client.get(deal.url))
            await asyncio.to_thread(partial(seller.wait_for, lambda: locker.held))
            await asyncio.sleep(0.1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(main())
    locker.release()
    assert deal.call(payer) == "200"
    deal.check(2, 1)


@pytest.mark.parametrize("colour", ["sync", "async"])
def test_a_body_that_breaks_off_while_the_ledger_is_locked(
    seller: Seller, fast_path: Path, monkeypatch: pytest.MonkeyPatch, colour: str
) -> None:
    """The caller gets the network's own error, and the operation is open all the same."""
    monkeypatch.setattr("x402_mask._drive.perform.WAIT_S", 0.3)
    monkeypatch.setattr("x402_mask._drive.exchange.WAIT_S", 0.3)
    deal = Deal(seller, fast_path)
    locker = Locker(deal.path)

    def broken() -> Iterator[bytes]:
        yield b"01234"
        seller.pause(0.2)
        locker.hold()
        yield b"5"

    answers = sequence(Reply(body=broken(), framing="chunked", cut=6), served())
    deal.url = seller.on("/paid", paywall(v2_header(offer(str(PRICE))), answers))
    payer = deal.payer()
    if colour == "sync":
        outcome = deal.call(payer, timeout=5)
    else:

        async def main() -> None:
            async with AsyncClient(payer, timeout=5, verify=NO_TLS) as client:
                await client.get(deal.url)

        with pytest.raises(httpx.RemoteProtocolError) as caught:
            asyncio.run(main())
        outcome = type(caught.value).__name__
    locker.release()
    assert outcome == "RemoteProtocolError"
    assert deal.call(payer) == "200"
    deal.check(2, 1)


# --- after expiry ---------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["dropped", "503", "402", "402-pending", "500-settled"])
def test_a_new_proof_only_after_expiry_and_only_if_both_fit(
    seller: Seller, fast_path: Path, way: str
) -> None:
    """Until ``validBefore`` + 30 s the same bytes; then a new signature on top of the held one."""
    deal, payer = opened(seller, fast_path, way, prices=2)
    seller.on("/paid", paywall(v2_header(offer(str(PRICE))), Reply(status=503)))
    deal.ahead = SECONDS + MARGIN - 3
    assert deal.call(payer) == "503"
    deal.check(2, 1)
    deal.ahead = SECONDS + MARGIN + 2
    assert deal.call(payer) == "503"
    deal.check(3, 2)
    deal.ahead = 2 * (SECONDS + MARGIN) + 10
    assert deal.call(payer) == "CapExceeded"
    deal.check(3, 2)


def test_a_cap_for_one_forbids_a_second_proof(seller: Seller, fast_path: Path) -> None:
    """Expired is not void: without a chain the first may have been used."""
    deal, payer = opened(seller, fast_path, "dropped")
    deal.ahead = 10 * SECONDS
    assert deal.call(payer) == "CapExceeded"
    assert payer.reconcile()[0].state == "held"
    deal.check(1, 1)


@pytest.mark.parametrize("way", ["dropped", "500-settled"])
def test_resign_never(seller: Seller, fast_path: Path, way: str) -> None:
    """The owner forbids a second signature for ever."""
    deal = Deal(seller, fast_path, WAYS[way], prices=10)
    payer = deal.payer(resign="never")
    deal.call(payer)
    deal.ahead = 10 * SECONDS
    with (
        Client(payer, timeout=2, verify=NO_TLS) as client,
        pytest.raises(PaymentRefused) as caught,
    ):
        client.get(deal.url)
    assert caught.value.reason == "resign"
    assert caught.value.payment_id == payer.payments()[0].payment_id
    deal.check(1, 1)


@pytest.mark.parametrize("jump", [-3600, -86400, 3600, 86400])
def test_a_clock_that_jumps_frees_nothing(seller: Seller, fast_path: Path, jump: int) -> None:
    """Back: the proof stays open. Forth: a second one only within the cap."""
    deal, payer = opened(seller, fast_path, "503")
    deal.ahead = jump
    assert deal.call(payer) == ("200" if jump < 0 else "CapExceeded")
    deal.check(2 if jump < 0 else 1, 1)


# --- loops that try again -------------------------------------------------------------------------


class Retrying(httpx.BaseTransport):
    """What retry libraries do: send the same request again after an error or a 5xx."""

    def __init__(self, inner: httpx.BaseTransport, times: int = 4) -> None:
        self.inner, self.times = inner, times

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send until it works."""
        for left in range(self.times, 0, -1):
            try:
                response = self.inner.handle_request(request)
            except httpx.TransportError:
                if left == 1:
                    raise
                continue
            if response.status_code < 500 or left == 1:
                return response
            response.read()
            response.close()
        raise AssertionError

    def close(self) -> None:
        """Close what is wrapped."""
        self.inner.close()


def stumbling() -> Answer:
    """A seller that delivers at the fourth proof."""
    return sequence(WAYS["dropped"], WAYS["503"], WAYS["reset"], served())


@pytest.mark.parametrize("where", ["outside", "inside", "loop"])
def test_a_retry_library_pays_once(seller: Seller, fast_path: Path, where: str) -> None:
    """Around the payment, within it, and as a loop around the client."""
    from x402_mask import PaymentTransport

    deal = Deal(seller, fast_path)
    deal.url = seller.on("/paid", paywall(v2_header(offer(str(PRICE))), stumbling()))
    payer, plain = deal.payer(), httpx.HTTPTransport(verify=NO_TLS, trust_env=False)
    if where == "loop":
        outcomes = [deal.call(payer) for _ in range(4)]
        assert outcomes == ["RemoteProtocolError", "503", "ReadError", "200"]
    else:
        transport: httpx.BaseTransport = (
            Retrying(PaymentTransport(payer, plain))
            if where == "outside"
            else PaymentTransport(payer, Retrying(plain))
        )
        with httpx.Client(transport=transport, timeout=5) as client:
            assert client.get(deal.url).status_code == 200
    deal.check(4, 1)


def test_a_retry_library_does_not_repeat_a_refusal(seller: Seller, fast_path: Path) -> None:
    """A refusal is no transport error."""
    from x402_mask import PaymentTransport

    deal = Deal(seller, fast_path)
    deal.prices = 0
    payer = jobs.payer_on(SQLiteLedger(deal.path), seller.origin, "0.000001")
    transport = Retrying(PaymentTransport(payer, httpx.HTTPTransport(verify=NO_TLS)))
    with httpx.Client(transport=transport) as client, pytest.raises(CapExceeded):
        client.get(deal.url)
    assert len(seller.hits) == 1


# --- the same key ---------------------------------------------------------------------------------

KEYED: dict[str, Any] = {"extensions": {"x402_mask": {"operation": "order-7"}}}


def in_thread(call: Callable[[], str]) -> tuple[Thread, list[str]]:
    """Make a call in a thread; its outcome will be in the list."""
    outcomes: list[str] = []
    thread = Thread(target=lambda: outcomes.append(call()))
    thread.start()
    return thread, outcomes


@pytest.mark.parametrize("first", ["200", "503"])
def test_a_shared_key_waits_for_the_call_in_flight(
    seller: Seller, fast_path: Path, first: str
) -> None:
    """Then it is a purchase of its own, or shows the same bytes."""
    slow = served(delay=0.4) if first == "200" else Reply(status=503, delay=0.4)
    deal = Deal(seller, fast_path, slow, prices=2)
    thread, outcomes = in_thread(lambda: deal.call(deal.payer(), 3, **KEYED))
    seller.wait_for(seller.paid_hits)
    assert deal.call(deal.payer(), 3, **KEYED) == "200"
    thread.join(5)
    assert outcomes == [first]
    deal.check(2, 2 if first == "200" else 1)


def test_a_shared_key_waits_no_longer_than_its_own_time_out(
    seller: Seller, fast_path: Path
) -> None:
    """Refused as in flight, nothing signed."""
    deal = Deal(seller, fast_path, served(delay=1.5), prices=2)
    thread, outcomes = in_thread(lambda: deal.call(deal.payer(), 4, **KEYED))
    seller.wait_for(seller.paid_hits)
    payer, began = deal.payer(), time.monotonic()
    with (
        Client(payer, timeout=0.3, verify=NO_TLS) as client,
        pytest.raises(PaymentRefused) as caught,
    ):
        client.get(deal.url, **KEYED)
    assert caught.value.reason == "in_flight" and time.monotonic() - began < 1.2
    assert caught.value.payment_id == payer.payments()[0].payment_id
    thread.join(5)
    assert outcomes == ["200"]
    deal.check(1, 1)


def test_a_shared_key_takes_over_from_a_killed_process(seller: Seller, fast_path: Path) -> None:
    """It waits while the other lives, and presents its proof once it is dead."""
    deal = Deal(seller, fast_path, Reply(delay=8, drop=True))
    arguments = (deal.path, deal.url, seller.origin, deal.limit, KEYED)
    with Process(jobs.keyed_call, *arguments) as victim:
        seller.wait_for(seller.paid_hits, 10)
        thread, outcomes = in_thread(lambda: deal.call(deal.payer(), 6, **KEYED))
        time.sleep(0.3)
        assert not outcomes and len(seller.proofs()) == 1
        victim.kill()
    thread.join(6)
    assert outcomes == ["200"]
    deal.check(2, 1)


def test_identical_calls_in_flight_are_purchases_of_their_own(
    seller: Seller, fast_path: Path
) -> None:
    """Without a key; and when both failed, both proofs are shown again, one call each."""
    deal = Deal(seller, fast_path, prices=2)
    slow = Reply(status=503, delay=0.3)
    deal.url = seller.on(
        "/paid", paywall(v2_header(offer(str(PRICE))), sequence(slow, slow, served()))
    )
    payer = deal.payer()
    threads = [in_thread(lambda: deal.call(payer, 3)) for _ in range(2)]
    for thread, _ in threads:
        thread.join(5)
    assert [outcomes for _, outcomes in threads] == [["503"], ["503"]]
    deal.check(2, 2)
    assert [deal.call(payer) for _ in range(3)] == ["200", "200", "CapExceeded"]
    deal.check(4, 2)


# --- claims of the seller -------------------------------------------------------------------------


def test_nonce_already_used_is_a_claim(seller: Seller, fast_path: Path) -> None:
    """Held without a chain, receipt ``rejected``, the operation open."""
    deal = Deal(seller, fast_path, WAYS["402-nonce-used"])
    payer = deal.payer()
    with Client(payer, timeout=2, verify=NO_TLS) as client:
        answer = client.get(deal.url)
    receipt = receipt_of(answer)
    assert receipt is not None and (receipt.outcome, receipt.transaction) == ("rejected", None)
    (payment,) = payer.payments()
    assert (payment.state, payment.open) == ("held", True)


def test_the_identifier_belongs_to_the_stored_proof(seller: Seller, fast_path: Path) -> None:
    """``payment-identifier``: the same id with the same bytes; after a 409 as well."""
    extension = {"payment-identifier": {"info": {"required": True}, "schema": {}}}
    asked = in_header({**challenge(offer(str(PRICE))), "extensions": extension})
    deal = Deal(seller, fast_path)
    answers = sequence(Reply(drop=True), Reply(status=409), served())
    deal.url = seller.on("/paid", paywall(asked, answers))
    payer = deal.payer()
    assert [deal.call(payer) for _ in range(3)] == ["RemoteProtocolError", "409", "200"]
    deal.check(3, 1)
    (shown,) = {proof.raw: proof for proof in seller.proofs()}.values()
    document: Any = shown.document
    assert (
        document["extensions"]["payment-identifier"]["info"]["id"] == payer.payments()[0].payment_id
    )


def test_a_settlement_that_does_not_add_up_is_held(seller: Seller, fast_path: Path) -> None:
    """Another amount, payer or network, garbage, success without a transaction: never settled."""
    lies: list[Any] = [
        {"amount": str(PRICE + 1)},
        {"payer": "0x" + "12" * 20},
        {"network": "eip155:1"},
        {"transaction": ""},
        {"transaction": "0xnothex"},
        {"success": "true"},
        {"success": None},
    ]
    garbled = Reply(headers=[("PAYMENT-RESPONSE", "%%%")])
    twice = Reply(headers=[("PAYMENT-RESPONSE", encode({"success": True}))] * 2)
    answers = [*(served(changes=lie) for lie in lies), garbled, twice]
    deal = Deal(seller, fast_path, prices=len(answers))
    deal.url = seller.on("/paid", paywall(v2_header(offer(str(PRICE))), sequence(*answers)))
    payer = deal.payer()
    assert [deal.call(payer) for _ in answers] == ["200"] * len(answers)
    assert {payment.state for payment in payer.payments()} == {"held"}
    deal.check(len(answers), len(answers))


def test_what_a_seller_collects_is_what_the_helpers_say(seller: Seller, deal: Deal) -> None:
    """The independent reader of proofs and this ledger agree on amount and payee."""
    assert deal.call(deal.payer()) == "200"
    (one,) = seller.authorizations()
    (payment,) = deal.payer().payments()
    assert (one.value, one.to, one.nonce) == (payment.amount, payment.pay_to, payment.nonce)
    assert payment.valid_before is not None
    assert one.valid_before == payment.valid_before.timestamp()
