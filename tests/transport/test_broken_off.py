"""A paid answer that breaks off was not delivered: the proof is shown again, nothing is paid twice."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from tests.support.seller import Reply, served
from tests.transport.kit import SHOP, URL, Leg, Rig, kinds
from x402_mask import receipt_of

ASYNC = ("asyncio", "trio")


@kinds()
async def test_an_answer_that_breaks_off_is_asked_for_again(rig: Rig) -> None:
    """Contract 2: open until a 2xx was handed to the caller, whole."""
    halves = iter([rig.lib.ReadError("cut"), b" and half"])

    def answer(leg: Leg) -> Reply:
        return served([b"half", next(halves)], framing="chunked")(leg)

    rig.sells(paid=answer)
    with pytest.raises(rig.lib.ReadError, match="cut") as caught:
        await rig.get()
    (row,) = rig.payer.payments()
    assert [row.payment_id in note for note in caught.value.__notes__] == [True]
    assert (row.state, row.open) == ("settled", True), "the seller was paid, the caller got half"
    response = await rig.get()
    assert response.content == b"half and half"
    assert rig.paid(response).payment_id == row.payment_id
    assert len(rig.proofs) == 2 and len(set(rig.proofs)) == 1 and rig.all_closed()


@pytest.mark.parametrize("status", [402, 500])
@kinds()
async def test_an_error_that_breaks_off_names_the_payment(rig: Rig, status: int) -> None:
    """Contract 2.5, though nothing was delivered that could be lost."""
    parts = [b"half", rig.lib.ReadError("cut")]
    rig.sells(paid=lambda leg: Reply(status=status, body=list(parts), framing="chunked"))
    with pytest.raises(rig.lib.ReadError, match="cut") as caught:
        await rig.get()
    (row,) = rig.payer.payments()
    assert [row.payment_id in note for note in caught.value.__notes__] == [True]
    assert (row.state, row.open) == ("held", True)


@kinds()
async def test_an_answer_that_the_caller_leaves_half_read_was_delivered(rig: Rig) -> None:
    """It wanted no more; the same call again is a new purchase."""
    rig.sells(paid=served([b"one", b"two"], framing="chunked"))
    async with rig.stream("GET") as response:
        assert receipt_of(response) is not None
    (row,) = rig.payer.payments()
    assert (row.state, row.open) == ("settled", False)
    rig.paid(await rig.get())
    assert len(set(rig.proofs)) == 2


@kinds(colours=["sync", "asyncio"])
async def test_an_answer_that_the_caller_stops_reading_was_delivered(rig: Rig) -> None:
    """In the middle of its iteration: that is not a failure."""
    rig.sells(paid=served([b"one", b"two"], framing="chunked"))
    async with rig.stream("GET") as response:
        if rig.kind.sync:
            chunks = response.iter_raw()
            assert next(chunks) == b"one"
            chunks.close()
        else:
            later = response.aiter_raw()
            assert await anext(later) == b"one"
            await later.aclose()
    assert [(row.state, row.open) for row in rig.payer.payments()] == [("settled", False)]
    assert rig.all_closed()


@pytest.mark.parametrize("number", [0, 1])
@kinds()
async def test_a_402_or_an_answer_that_cannot_be_closed(rig: Rig, number: int) -> None:
    """A socket that fails at the very end; after the proof was stored in both cases."""
    rig.sells(paid=served([b"goods"], framing="chunked"))
    rig.fail_closing = (number, rig.lib.CloseError("cut"))
    with pytest.raises(rig.lib.CloseError, match="cut"):
        await rig.get()
    rig.fail_closing = (-1, LookupError())
    (row,) = rig.payer.payments()
    assert (row.state, row.open) == (("held", "settled")[number], True)
    assert "in flight" not in row.note
    assert rig.paid(await rig.get()).payment_id == row.payment_id
    assert len(set(rig.proofs)) == 1


@kinds("client", "attach", colours=ASYNC)
async def test_a_caller_cancelled_while_reading_was_not_served(rig: Rig) -> None:
    """Reading is part of the call."""
    reading = anyio.Event()

    class Endless:
        def __iter__(self) -> Any:
            yield b"first"
            reading.set()
            while not rig.calm:
                yield b"more"

    rig.sells(paid=served(Endless(), framing="chunked"))
    async with anyio.create_task_group() as group:
        group.start_soon(rig.get)
        await reading.wait()
        group.cancel_scope.cancel()
    rig.calm = True
    (row,) = rig.payer.payments()
    assert (row.state, row.open) == ("settled", True)
    rig.paid(await rig.get())
    assert len(set(rig.proofs)) == 1


@kinds()
async def test_a_ledger_that_breaks_while_a_failure_is_written_down(rig: Rig) -> None:
    """What is worse than the failure is what the caller hears; the money stays held."""

    def broken(*args: Any, **kw: Any) -> Any:
        raise MemoryError("no ledger")

    def fail(leg: Leg) -> Reply:
        raise rig.lib.ReadTimeout("slow")

    rig.sells(paid=fail)
    ledger, real = rig.payer.ledger, rig.payer.ledger.finish
    ledger.finish = broken  # type: ignore[method-assign]
    with pytest.raises(MemoryError, match="no ledger"):
        await rig.get()
    ledger.finish = real  # type: ignore[method-assign]
    (row,) = rig.payer.payments()
    assert row.state == "held" and "in flight" not in row.note
    rig.sells()
    assert rig.paid(await rig.get()).payment_id == row.payment_id
    assert len(set(rig.proofs)) == 1


# --- the corners of an async auth flow


@kinds("auth", "attach", colours=ASYNC)
async def test_an_inner_auth_may_ask_what_is_not_http(rig: Rig) -> None:
    """Nothing but http(s) is paid; the rest of the flow is."""
    lib = rig.lib

    class Cached(lib.Auth):  # type: ignore[misc]
        def auth_flow(self, request: Any) -> Any:
            cached = yield lib.Request("GET", "cache://shop/token")
            request.headers["Authorization"] = cached.headers["x-token"]
            yield request

    rig.on("cache://shop/token", Reply(status=402, headers=[("X-Token", "t")]))
    rig.sells()
    rig.client = rig.make_client(auth=Cached())
    rig.paid(await rig.get())
    assert [leg.header("authorization") for leg in rig.legs] == [None, "t", "t"]


@kinds("auth", colours=["asyncio"])
async def test_an_auth_flow_is_an_async_generator(rig: Rig) -> None:
    """Stepped, thrown into and closed by hand, as a test client or another library might."""
    rig.sells()
    auth = rig.mask.PaymentAuth(rig.payer)

    def start() -> Any:
        return auth.async_auth_flow(rig.lib.Request("GET", URL))

    flow = start()
    assert await flow.__anext__() is not None
    with pytest.raises(LookupError):
        await flow.athrow(LookupError("x"))
    await flow.aclose()
    flow = start()
    await flow.__anext__()
    await flow.aclose()
    await flow.aclose()
    flow = start()
    await flow.__anext__()
    try:
        raise LookupError("while closing")
    except LookupError:
        await flow.aclose()
    await start().aclose()
    assert rig.payer.payments() == []


@kinds("auth", colours=["asyncio"])
async def test_an_auth_flow_that_fails_while_it_is_closed_says_so(rig: Rig) -> None:
    """A ledger that breaks just then is not hidden behind the time-out."""
    rig.sells()
    request = rig.lib.Request("GET", URL)
    flow = rig.mask.PaymentAuth(rig.payer).async_auth_flow(request)
    paid = await flow.asend(None)
    response = rig.answered(rig.arrived(paid))
    response.request = paid
    assert (await flow.asend(response)).headers["payment-signature"]

    def broken(*args: Any, **kw: Any) -> Any:
        raise MemoryError("no ledger")

    real, rig.payer.ledger.finish = rig.payer.ledger.finish, broken  # type: ignore[method-assign]
    with pytest.raises(MemoryError, match="no ledger"):
        try:
            raise TimeoutError
        except TimeoutError:
            await flow.aclose()
    rig.payer.ledger.finish = real  # type: ignore[method-assign]
    assert [row.state for row in rig.payer.payments()] == ["held"]
    assert "in flight" not in rig.payer.payments()[0].note


@kinds("attach", colours=["sync", "asyncio"])
async def test_hooks_can_be_found_among_the_wrapped_ones(rig: Rig) -> None:
    """By their own names, in sets too; two wraps of one hook are alike."""
    rig.on("/free", Reply())
    mine = rig.hook(lambda response: None)
    rig.client.event_hooks["response"].append(mine)
    await rig.get(SHOP + "/free")
    (wrapped,) = rig.client.event_hooks["response"]
    assert wrapped is not mine and wrapped == mine and hash(wrapped) == hash(mine)
    assert mine in rig.client.event_hooks["response"] and wrapped != print


@kinds("attach", colours=["sync", "asyncio"])
async def test_a_client_that_is_gone_leaves_nothing_behind(rig: Rig) -> None:
    """The guard of a client holds no reference to it."""
    import gc
    import weakref

    client = rig.mask.attach(rig.plain(transport=rig.wire), rig.payer)
    auth, hooks = client.auth, client.event_hooks["request"]
    gone = weakref.ref(client)
    await rig.shut(client)
    del client
    gc.collect()
    assert gone() is None
    auth._prepare()
    await rig.wait(hooks[0](rig.lib.Request("GET", URL)))


@kinds("client", "attach")
async def test_refusals_are_not_delivered_answers(rig: Rig) -> None:
    """A 402 that breaks off while it is read by its caller has nothing to do with money."""
    rig.on(
        URL, Reply(status=402, body=[b"x" * 70_000, rig.lib.ReadError("cut")], framing="chunked")
    )
    with pytest.raises(rig.lib.ReadError):
        await rig.get()
    assert rig.payer.payments() == [] and rig.all_closed()


@kinds("client")
async def test_an_answer_that_the_callers_own_hook_loses_is_asked_for_again(rig: Rig) -> None:
    """Between the transport and whoever called the client nothing is handed over."""
    losing = iter([True])

    def lose(response: Any) -> None:
        if response.status_code == 200 and next(losing, False):
            raise ZeroDivisionError

    client = rig.make_client(event_hooks={"response": [rig.hook(lose)]})
    rig.sells()
    with pytest.raises(ZeroDivisionError):
        await rig.wait(client.get(URL))
    assert [p.open for p in rig.payer.payments()] == [True]
    response = await rig.wait(client.get(URL))
    assert rig.paid(response) and len(set(rig.proofs)) == 1


@kinds("client")
async def test_a_request_that_cannot_be_sent_again_leaves_what_it_bought(rig: Rig) -> None:
    """A failure of a second sending is not one of the first, which its caller has."""
    failing = iter([False, True])

    def fail(_request: Any) -> None:
        if next(failing, False):
            raise ZeroDivisionError

    client = rig.make_client(event_hooks={"request": [rig.hook(fail)]})
    rig.sells()
    request = client.build_request("GET", URL)
    rig.paid(await rig.wait(client.send(request)))
    with pytest.raises(ZeroDivisionError):
        await rig.wait(client.send(request))
    assert [p.open for p in rig.payer.payments()] == [False]
