"""Cancelled at every await, closed in the middle: no money is lost and nothing stays in flight.

Facts 2.1 and 3.7.  A call is stepped by hand; at its n-th suspension its own scope is cancelled (or
the coroutine closed).  Whatever n is, afterwards the ledger is consistent and the same call, made
again, is delivered: with the same proof if one had been stored.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Generator
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from tests.support.seller import Reply, offer, paywall, served, v2_header
from tests.transport.kit import SHOP, URL, Rig, kinds
from tests.transport.test_owner import AsyncSigner, Signer
from x402_mask import Cap, MemoryLedger, SQLiteLedger
from x402_mask._ledger.records import Busy

ASYNC = ("asyncio", "trio")
MOST_AWAITS = 200


class Stepped:
    """Awaits a coroutine and calls *at* right before its n-th suspension."""

    def __init__(self, call: Any, number: int, at: Callable[[], object]) -> None:
        self.call, self.number, self.at = call, number, at
        self.count = 0

    def __await__(self) -> Generator[Any, Any, Any]:
        steps = self.call.__await__()
        send: Callable[[], Any] = lambda: steps.send(None)  # noqa: E731
        while True:
            try:
                wanted = send()
            except StopIteration as stop:
                return stop.value
            self.count += 1
            if self.count == self.number:
                self.at()
            try:
                value = yield wanted
            except BaseException as error:
                failure = error
                send = lambda: steps.throw(failure)  # noqa: B023, E731
            else:
                send = lambda: steps.send(value)  # noqa: B023, E731


class Contended(MemoryLedger):
    """A ledger that is never free at once: every write goes to a thread."""

    def _transaction(self, wait_s: float, **options: Any) -> Any:
        if wait_s == 0 and options.get("write", True):
            raise Busy
        return super()._transaction(wait_s, **options)


async def approve(quote: object) -> bool:
    await anyio.lowlevel.checkpoint()
    return True


SETUPS: dict[str, Callable[[], dict[str, Any]]] = {
    "plain": dict,
    "owned": lambda: {"wallet": Signer(), "approve": approve},
    "async": lambda: {"wallet": AsyncSigner()},
    "contended": lambda: {"ledger": Contended()},
}


RELEASES = {"owned": {"released"}, "async": {"released"}, "contended": {"released"}}
"""Where something is awaited between reservation and proof."""


async def stepped(rig: Rig, number: int, native: bool) -> int | None:
    """Cancel a call at its n-th suspension; how many there were if it got through."""
    call = rig.client.get(URL)
    if native:
        task = asyncio.current_task()
        assert task is not None
        inner = asyncio.ensure_future(_awaited(call, number))
        try:
            return await inner
        except asyncio.CancelledError:
            return None
    with anyio.CancelScope() as scope:
        one = Stepped(call, number, scope.cancel)
        await one
        return one.count
    return None


async def _awaited(call: Awaitable[Any], number: int) -> int:
    task = asyncio.current_task()
    assert task is not None
    one = Stepped(call, number, task.cancel)
    await one
    return one.count


def settle_down(rig: Rig) -> None:
    """What holds after any cancellation."""
    assert rig.all_closed(), "a response was left open"
    rows = rig.payer.payments()
    assert len(rows) <= 1
    for row in rows:
        assert row.state in ("held", "settled", "released"), f"stuck: {row.state}"
        assert "in flight" not in row.note, "nobody carries this call any more"
    reached = len(set(rig.proofs))
    assert reached <= sum(row.state in ("held", "settled") for row in rows)
    held = sum(row.usd for row in rows if row.state in ("held", "settled"))
    assert 5 - rig.payer.spend()[0].left == held


async def try_at(
    rig: Rig, number: int, native: bool, options: dict[str, Any], seen: set[str]
) -> bool:
    """One call, cancelled at its n-th suspension, then the same call in peace."""
    rig.legs.clear()
    rig.bodies.clear()
    rig.payer = rig.make_payer(**options)
    rig.client = rig.make_client(limits=rig.lib.Limits(max_connections=1))
    finished = await stepped(rig, number, native)
    settle_down(rig)
    seen.update(rig.states() or ["none"])
    before = [(row.payment_id, row.open) for row in rig.payer.payments() if row.state == "held"]
    known = set(rig.proofs)
    receipt = rig.paid(await rig.get())
    if before and before[0][1]:
        assert receipt.payment_id == before[0][0], "an open proof was not shown again"
        assert not known or set(rig.proofs) == known
    assert "reserved" not in rig.states()
    return finished is not None


@pytest.mark.parametrize("setup", SETUPS)
@pytest.mark.parametrize("native", [False, True], ids=["scope", "task"])
@kinds("client", "attach", colours=ASYNC)
async def test_cancelled_at_every_await(rig: Rig, setup: str, native: bool) -> None:
    """The ledger is right whenever a caller gives up."""
    if native and rig.kind.colour == "trio":
        return  # trio has scopes only
    rig.on(URL, paywall(v2_header(offer()), served()))
    seen: set[str] = set()
    for number in range(1, MOST_AWAITS):
        if await try_at(rig, number, native, SETUPS[setup](), seen):
            assert seen >= ({"none", "held", "settled"} | RELEASES.get(setup, set()))
            return
    raise AssertionError("a call that never ends")


@pytest.mark.parametrize("setup", ["plain", "owned", "async"])
@kinds("transport", colours=["asyncio"])
async def test_closed_at_every_await(rig: Rig, setup: str) -> None:
    """A coroutine that is thrown away (``close``, or the collector) can no longer wait for anything.

    Its answer cannot be closed for it, but the books are straight and the proof can be shown again.
    A ledger that is contended just then keeps the reservation until this process ends: safe, and
    nothing else can be done by who may not wait.
    """
    rig.on(URL, paywall(v2_header(offer()), served()))
    rig.bodies_wait = False  # Python 3.11 cannot close a coroutine that waits for a generator
    seen: set[str] = set()
    for number in range(1, MOST_AWAITS):
        rig.legs.clear()
        rig.payer = rig.make_payer(**SETUPS[setup]())
        rig.client = rig.make_client()
        await rig.get("https://shop.example/free")
        assert rig.payer.spend()  # the ledger is open, so it is free at once
        request = rig.client.build_request("GET", URL)
        steps = rig.client._transport.handle_async_request(request).__await__()
        ended = await _Through(steps, number) < number
        steps.close()
        rig.bodies.clear()
        settle_down(rig)
        seen.update(rig.states() or ["none"])
        if ended:
            break
        known = set(rig.proofs)
        rig.paid(await rig.get())
        assert not known or set(rig.proofs) == known
    assert seen >= {"none", "held", "settled"} | RELEASES.get(setup, set())


TOOL = SHOP + "/api/tools/thing"
"""A call that looks for a held token first, and so at the ledger before the wire."""

ENDS: dict[str, Callable[[Rig], dict[str, Any]]] = {
    "free": lambda rig: rig.on(TOOL, Reply(body=b"free")) and {},
    "redirect": lambda rig: rig.on(TOOL, Reply(status=307, headers=[("Location", "/free")])) and {},
    "refused": lambda rig: rig.sells(url=TOOL) and {"caps": [Cap("0.0001", per="call")]},
    "returned": lambda rig: (
        rig.sells(url=TOOL) and {"caps": [Cap("0.0001", per="call")], "on_refusal": "return"}
    ),
    "paid": lambda rig: rig.sells(url=TOOL) and {},
}


@pytest.mark.parametrize("key", [None, "order 1"])
@pytest.mark.parametrize("end", ENDS)
@kinds(colours=["asyncio"])
async def test_no_cancellation_is_lost(rig: Rig, end: str, key: str | None, tmp_path: Path) -> None:
    """However the call would have ended: who cancelled it would go on waiting for its end."""
    options = ENDS[end](rig)
    rig.on("/free", Reply(body=b"free"))
    rig.bodies_wait = False
    extensions = {"x402_mask": {"operation": key}} if key else {}
    for number in range(1, MOST_AWAITS):
        unopened = SQLiteLedger(tmp_path / f"{number}.db")
        ledger = unopened if end in ("free", "redirect") else Contended()
        rig.payer = rig.make_payer(ledger=ledger, **options)
        rig.client = rig.make_client(follow_redirects=True)
        one = Stepped(
            rig.client.get(TOOL, extensions=dict(extensions)),
            number,
            lambda: asyncio.current_task().cancel(),  # type: ignore[union-attr]
        )
        task = asyncio.ensure_future(_count(one))
        await asyncio.wait({task})
        if one.count < number:
            assert number > 1
            return
        assert task.cancelled(), f"at {number}: {task}"
        assert rig.all_closed()
    raise AssertionError("a call that never ends")


async def _count(one: Stepped) -> None:
    await one


@pytest.mark.parametrize("end", [LookupError, KeyboardInterrupt, None])
@pytest.mark.parametrize("by", ["hook", "auth"])
@kinds("client", "attach")
async def test_what_comes_after_the_payment_loses_its_answer(
    rig: Rig, by: str, end: type[BaseException] | None
) -> None:
    """A hook of the caller's, or its auth, raises or is cancelled: nobody was handed the answer."""
    if end is None and rig.kind.sync:
        return

    def fail(response: Any) -> None:
        if response.status_code == 200 and armed:
            armed.clear()
            if end is None:
                scope.cancel()
            else:
                raise end

    async def afail(response: Any) -> None:
        fail(response)
        await anyio.lowlevel.checkpoint()

    class Auth(rig.lib.Auth):  # type: ignore[misc]
        def sync_auth_flow(self, request: Any) -> Any:
            fail((yield request))

        async def async_auth_flow(self, request: Any) -> Any:
            await afail((yield request))

    armed, scope = [1], anyio.CancelScope() if not rig.kind.sync else None
    hooks = {"response": [fail if rig.kind.sync else afail]}
    options: dict[str, Any] = {"event_hooks": hooks} if by == "hook" else {"auth": Auth()}
    rig.sells()
    rig.client = rig.make_client(**options)
    if end is None:
        with scope:
            await rig.get()
        assert scope.cancelled_caught
    else:
        with pytest.raises(end):
            await rig.get()
    (row,) = rig.payer.payments()
    assert row.open and row.state in ("held", "settled")
    rig.paid(await rig.get())
    assert len(set(rig.proofs)) == 1 and len(rig.proofs) == 2
    rig.paid(await rig.get())
    assert len(set(rig.proofs)) == 2, "what was handed over is not taken back"


class _Through:
    """Awaits the first *number* suspensions of some steps, then stops with them suspended."""

    def __init__(self, steps: Any, number: int) -> None:
        self.steps, self.number, self.count = steps, number, 0

    def __await__(self) -> Generator[Any, Any, int]:
        value: Any = None
        while True:
            try:
                wanted = self.steps.send(value)
            except StopIteration:
                return self.count
            self.count += 1
            if self.count == self.number:
                return self.count
            value = yield wanted


@kinds("client", "attach", "auth", "transport", colours=ASYNC)
async def test_a_cancelled_paid_leg_is_held_and_shown_again(rig: Rig) -> None:
    """Fact 2.1: the plain case, with the note that names the payment."""
    waiting = anyio.Event()

    async def hang(leg: Any) -> None:
        if leg.proofs and not waiting.is_set():
            waiting.set()
            await anyio.sleep(10)

    rig.sells()
    rig.before_answer = hang
    async with anyio.create_task_group() as group:
        group.start_soon(rig.get)
        await waiting.wait()
        (row,) = rig.payer.payments()
        assert (row.state, row.note) == ("held", "in flight")
        group.cancel_scope.cancel()
    (row,) = rig.payer.payments()
    assert (row.state, row.open, row.outcome) == ("held", True, "unknown")
    assert "Cancelled" in row.note
    rig.paid(await rig.get())
    assert len(rig.proofs) == 2 and len(set(rig.proofs)) == 1


@kinds(colours=ASYNC)
async def test_a_timeout_around_a_call_is_a_cancellation(rig: Rig) -> None:
    """``move_on_after``: the money is held, and the pool of the client is free again."""

    async def hang(leg: Any) -> None:
        if leg.proofs:
            scope.deadline = anyio.current_time() + 0.02
            await anyio.sleep(10)

    rig.sells()
    rig.before_answer = hang
    with anyio.move_on_after(5) as scope:
        await rig.get()
    assert scope.cancelled_caught and rig.states() == ["held"]
    rig.before_answer = None
    rig.paid(await rig.get())
    assert len(set(rig.proofs)) == 1


@kinds("transport", "attach", colours=["sync"])
async def test_an_interrupt_at_any_point_keeps_the_books(rig: Rig) -> None:
    """Control-C in a sync program: during the signature, and on the wire."""

    class Interrupted(Signer):
        armed = True

        def sign_typed_data(self, domain: Any, types: Any, message: Any) -> Any:
            if self.armed:
                self.armed = False
                raise KeyboardInterrupt
            return self.sign(domain, types, message)

    interrupts = iter([KeyboardInterrupt()])

    def on_the_wire(leg: Any) -> Any:
        for interrupt in interrupts:
            raise interrupt
        return served()(leg)

    rig.payer = rig.make_payer(wallet=Interrupted())
    rig.sells(paid=on_the_wire)
    with pytest.raises(KeyboardInterrupt):
        await rig.get()
    assert rig.states() == ["released"] and rig.all_closed()
    with pytest.raises(KeyboardInterrupt) as caught:
        await rig.get()
    assert rig.states() == ["held", "released"]
    if rig.kind.plug == "transport":
        assert "x402_mask" in caught.value.__notes__[0]
    rig.paid(await rig.get())
    assert rig.states() == ["settled", "released"] and len(set(rig.proofs)) == 1


def test_the_stepper_steps() -> None:
    """It cancels where it says: without that no test here could fail."""

    async def job(done: list[int]) -> None:
        for number in range(5):
            await anyio.lowlevel.checkpoint()
            done.append(number)

    async def main(number: int) -> list[int]:
        done: list[int] = []
        with anyio.CancelScope() as scope:
            await Stepped(job(done), number, scope.cancel)
        return done

    for backend in ASYNC:
        lengths = [len(anyio.run(main, number, backend=backend)) for number in range(1, 8)]
        assert lengths[0] <= 1 and lengths == sorted(lengths) and lengths[-1] == 5


def test_threads_of_the_ledger_do_not_pile_up() -> None:
    """Waiting writers have a few threads of their own."""
    names = [thread.name for thread in threading.enumerate()]
    assert sum(name.startswith("x402-mask-ledger") for name in names) <= 8
