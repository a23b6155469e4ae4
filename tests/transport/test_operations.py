"""One operation, one live proof (contract 2): keys, twins, repeats, in both colours."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import anyio

from tests.support.seller import Reply, offer, play, served, v2_header
from tests.transport.kit import URL, Leg, Rig, kinds
from x402_mask import PaymentRefused, receipt_of

PLUGS = ("client", "attach")


def keyed(key: str, **kw: Any) -> dict[str, Any]:
    """Arguments of a call with an operation key."""
    return {"extensions": {"x402_mask": {"operation": key}}, **kw}


class Gate:
    """Holds paid legs until it is opened, in any colour."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.arrived = threading.Event()
        self.opened = threading.Event()
        rig.on(URL, self.script)
        rig.before_answer = self.before_answer

    def script(self, leg: Leg) -> Reply:
        if not leg.proofs:
            return v2_header(offer())
        self.arrived.set()
        if self.rig.kind.sync:
            assert self.opened.wait(5)
        return served()(leg)

    async def before_answer(self, leg: Leg) -> None:
        if leg.proofs:
            await until(self.opened.is_set)


async def until(ready: Callable[[], object]) -> None:
    """Wait, in any loop, for what a thread or another loop may do; 5 s at most."""
    with anyio.fail_after(5):
        while not ready():  # noqa: ASYNC110  # threads do it as well
            await anyio.sleep(0.002)


async def together(
    rig: Rig, gate: Gate, calls: list[dict[str, Any]], ready: Callable[[list[Any]], object]
) -> list[Any]:
    """Start the calls one after another, open the gate once *ready*; what came of them."""
    if rig.kind.sync:
        return _together_in_threads(rig, gate, calls, ready)
    found: list[Any] = [None] * len(calls)

    async def one(index: int) -> None:
        try:
            found[index] = await rig.get(**calls[index])
        except Exception as error:
            found[index] = error

    async with anyio.create_task_group() as group:
        for index in range(len(calls)):
            group.start_soon(one, index)
            await until(gate.arrived.is_set)
        await until(lambda: ready(found))
        gate.opened.set()
    return found


def _together_in_threads(rig: Rig, gate: Gate, calls: list[Any], ready: Any) -> list[Any]:
    found: list[Any] = [None] * len(calls)

    def one(index: int) -> None:
        try:
            found[index] = rig.client.get(URL, **calls[index])
        except Exception as error:
            found[index] = error

    assert rig.client
    with ThreadPoolExecutor(len(calls)) as pool:
        for index in range(len(calls)):
            pool.submit(one, index)
            assert gate.arrived.wait(5)
        deadline = time.monotonic() + 5
        while not ready(found) and time.monotonic() < deadline:
            time.sleep(0.002)
        gate.opened.set()
    return found


def after(seconds: float) -> Callable[[list[Any]], bool]:
    """Ready after so many seconds."""
    end = time.monotonic() + seconds
    return lambda found: time.monotonic() >= end


def shown(rig: Rig, count: int) -> Callable[[list[Any]], bool]:
    """Ready when so many proofs are on the wire at once."""
    return lambda found: len(rig.proofs) == count


@kinds(*PLUGS)
async def test_the_later_of_two_calls_with_one_key_waits(rig: Rig) -> None:
    """Then it is a purchase of its own, as the first was delivered."""
    gate = Gate(rig)
    found = await together(rig, gate, [keyed("k"), keyed("k")], after(0.12))
    receipts = [rig.paid(response) for response in found]
    assert len({receipt.payment_id for receipt in receipts}) == 2
    first, second = [leg for leg in rig.legs if leg.proofs]
    assert second.began - first.began >= 0.05, "the second did not wait for the first"


@kinds(*PLUGS)
async def test_waiting_ends_with_the_callers_own_timeout(rig: Rig) -> None:
    """A refusal that names the payment that is in the way; nothing signed."""
    gate = Gate(rig)
    impatient = keyed("k", timeout=rig.lib.Timeout(5.0, read=0.1))
    found = await together(rig, gate, [keyed("k"), impatient], lambda found: found[1])
    receipt = rig.paid(found[0])
    assert isinstance(found[1], PaymentRefused) and found[1].reason == "in_flight"
    assert found[1].payment_id == receipt.payment_id and found[1].at_risk is False
    assert len(rig.proofs) == 1 and len(rig.payer.payments()) == 1


@kinds(*PLUGS)
async def test_identical_calls_without_a_key_do_not_wait(rig: Rig) -> None:
    """At the same time they are separate purchases."""
    gate = Gate(rig)
    found = await together(rig, gate, [{}, {}, {}], shown(rig, 3))
    receipts = [rig.paid(response) for response in found]
    assert len({receipt.payment_id for receipt in receipts}) == 3
    assert len(set(rig.proofs)) == 3


@kinds(*PLUGS)
async def test_different_keys_do_not_wait_for_each_other(rig: Rig) -> None:
    """Nor does a key wait for a call without one."""
    gate = Gate(rig)
    found = await together(rig, gate, [keyed("a"), keyed("b"), {}], shown(rig, 3))
    assert len({rig.paid(response).payment_id for response in found}) == 3


@kinds()
async def test_a_key_names_the_operation_whatever_the_call_looks_like(rig: Rig) -> None:
    """The same key shows the same proof, whatever the body; another key is another purchase."""
    answers = iter([Reply(status=503), Reply(status=503), served(), Reply(status=503)])
    rig.sells(paid=lambda leg: play(next(answers), leg))
    await rig.post(json={"a": 1}, **keyed("k"))
    await rig.post(json={"a": 2}, **keyed("other"))
    response = await rig.post(json={"a": 3}, **keyed("k"))
    receipt = rig.paid(response)
    assert len(rig.proofs) == 3 and len(set(rig.proofs)) == 2
    await rig.post(json={"a": 3}, **keyed("k"))
    assert len(set(rig.proofs)) == 3, "after a delivery the same key is a new purchase"
    assert receipt.payment_id in {p.payment_id for p in rig.payer.payments()}


@kinds(*PLUGS)
async def test_an_open_proof_is_shown_again_whatever_the_price_is_now(rig: Rig) -> None:
    """Contract 2: the same bytes, whatever the seller claimed; nothing new is counted."""
    answers = iter([Reply(status=402, body=b"what proof?"), served()])
    rig.sells(paid=lambda leg: play(next(answers), leg))
    rejected = await rig.get()
    receipt = receipt_of(rejected)
    assert receipt is not None and receipt.outcome == "rejected"
    rig.on(URL, lambda leg: play(next(answers), leg) if leg.proofs else v2_header(offer("9000")))
    again = rig.paid(await rig.get())
    assert again.payment_id == receipt.payment_id and again.amount == 1000
    assert len(set(rig.proofs)) == 1
    assert (rig.payer.spend()[0].settled, rig.payer.spend()[0].held) == (again.usd, 0)


@kinds()
async def test_a_known_price_is_paid_with_the_first_request(rig: Rig) -> None:
    """Preemption: one leg, the same receipt; cookies, bodies and the caller's request as ever."""
    rig.payer = rig.make_payer(preempt=True)
    rig.sells()
    rig.paid(await rig.post(json={"n": 1}))
    request = rig.client.build_request("POST", URL, json={"n": 2})
    before = request.headers.raw
    rig.paid(await rig.send(request))
    assert [bool(leg.proofs) for leg in rig.legs] == [False, True, True]
    assert rig.legs[2].body == request.content and request.headers.raw == before
    assert len(set(rig.proofs)) == 2 and rig.states() == ["settled", "settled"]


@kinds()
async def test_a_body_that_can_be_sent_once_is_not_preempted(rig: Rig) -> None:
    """It is sent unpaid, whole: the seller may not ask this time."""
    rig.payer = rig.make_payer(preempt=True)
    rig.sells()
    rig.paid(await rig.post(json={"n": 1}))
    rig.on(URL, Reply(body=b"free today"))
    response = await rig.post(content=rig.body([b"one", b"two"]))
    assert response.content == b"free today" and rig.legs[2].body == b"onetwo"
    assert not rig.legs[2].proofs and len(rig.legs) == 3


@kinds()
async def test_a_preempted_proof_that_is_rejected_is_handed_back(rig: Rig) -> None:
    """Never followed by a second signature; the 402 can be read in full."""
    rig.payer = rig.make_payer(preempt=True)
    rig.sells()
    rig.paid(await rig.get())
    rig.on(URL, Reply(status=402, headers=v2_header(offer("5000")).headers, body=b"dearer now"))
    async with rig.stream("GET", URL + "?n=2") as response:
        receipt = receipt_of(response)
        assert receipt is not None and receipt.outcome == "rejected" and receipt.amount == 1000
        assert b"".join(await rig.chunks(response, "raw")) == b"dearer now"
    assert len(rig.legs) == 3 and len(set(rig.proofs)) == 2 and rig.all_closed()
    assert rig.states() == ["held", "settled"]


@kinds("client", "attach")
async def test_a_transaction_that_was_told_stays_known(rig: Rig) -> None:
    """Settled and not delivered; shown again, the seller only says that it will not take it."""
    answers = iter([served(b"", status=500), v2_header(offer())])
    rig.sells(paid=lambda leg: play(next(answers), leg))
    first, again = receipt_of(await rig.get()), receipt_of(await rig.get())
    assert first is not None and first.outcome == "settled" and first.transaction is not None
    assert again is not None and again.transaction == first.transaction
    assert rig.states() == ["settled"] and len(set(rig.proofs)) == 1
