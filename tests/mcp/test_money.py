"""Money over MCP: one signature whatever the seller says, caps, lost answers, shared operations."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
import threading
import time
from collections import Counter
from decimal import Decimal
from typing import Any

import anyio
import httpx
import pytest
from mcp import Client, ClientSession, MCPError
from mcp.types import CallToolResult, InputRequiredResult

from tests.mcp.kit import (
    ORIGIN,
    Heard,
    Shop,
    asks,
    colours,
    connected,
    document,
    made,
    payer_of,
    run,
    said,
)
from tests.support.seller import TRANSACTION
from x402_mask import Cap, CapExceeded, InputRefused, MemoryLedger, PaymentRefused
from x402_mask._payer import buyer_of
from x402_mask._policy.catalog_cache import CatalogEntry
from x402_mask.httpx import AsyncPaymentTransport
from x402_mask.mcp import PaidSession, receipt_of

FAILED = {"success": False, "errorReason": "insufficient_funds", "transaction": ""}
AFTER: dict[str, Any] = {
    "settlement failure in the challenge's shape": asks(
        {**document(), "x402/payment-response": FAILED}
    ),
    "the challenge again": asks(document()),
    "a dearer challenge": asks(document("200000")),
    "a challenge without isError": asks(document(), is_error=False),
    "a challenge that claims settlement": asks(
        document(), meta={"x402/payment-response": {"success": True, "transaction": TRANSACTION}}
    ),
    "an error of 402": MCPError(402, "again", document()),
}


@pytest.mark.parametrize("kind", AFTER)
def test_after_a_proof_no_challenge_is_new(kind: str) -> None:
    """Hostile seller 55: one signature, the answer handed back, the money held; then the same bytes."""
    shop, payer = Shop(asks(document()), AFTER[kind]), payer_of()

    async def scenario() -> None:
        async with connected(shop) as session:
            paid = PaidSession(session, payer, ORIGIN)
            for _ in range(2):
                if isinstance(AFTER[kind], MCPError):
                    with pytest.raises(MCPError, match="again") as caught:
                        await paid.call_tool("make_thing")
                    assert any("rejected" in note for note in caught.value.__notes__)
                    continue
                result = await paid.call_tool("make_thing")
                assert result.structured_content == AFTER[kind].structured_content
                receipt = receipt_of(result)
                assert receipt is not None and receipt.outcome == "rejected"

    run(scenario)
    first, second = shop.proofs
    assert first == second and len(shop.authorizations) == 1
    (payment,) = payer.payments()
    assert (payment.state, payment.open) == ("held", True)
    if kind.startswith("settlement failure"):
        assert "insufficient_funds" in payment.note


UNKNOWN: dict[str, tuple[CallToolResult, str]] = {
    "a fault": (said("Internal Server Error", is_error=True), "held"),
    "a fault with the receipt": (
        said("Internal Server Error", is_error=True, meta=made().meta),
        "settled",
    ),
    "an error of the tool": (said("the mask is too large", is_error=True), "held"),
}


@pytest.mark.parametrize("kind", UNKNOWN)
def test_an_error_after_a_proof_leaves_the_operation_open(kind: str) -> None:
    """The result is the caller's; the identical call presents the same bytes."""
    answer, state = UNKNOWN[kind]
    shop, payer = Shop(asks(document()), answer), payer_of()

    async def scenario() -> None:
        async with connected(shop) as session:
            paid = PaidSession(session, payer, ORIGIN)
            result = await paid.call_tool("make_thing", {"n": 1})
            assert result.is_error and result.content == answer.content
            (payment,) = payer.payments()
            assert (payment.state, payment.open) == (state, True)
            await paid.call_tool("make_thing", {"n": 2})  # other input is another operation,
            await paid.call_tool("make_other", {"n": 1})  # and so is another tool
            shop.paid = made()
            assert not (await paid.call_tool("make_thing", {"n": 1})).is_error

    run(scenario)
    assert len(shop.proofs) == 4 and shop.proofs[3] == shop.proofs[0]
    assert len(shop.authorizations) == len(payer.payments()) == 3


RECEIPTS: dict[str, Any] = {
    "no receipt": said('{"made": "it"}', {"made": "it"}),
    "success false": made(success=False),
    "another amount": made(amount="5000000"),
    "another network": made(network="eip155:1"),
    "no transaction": made(transaction=""),
    "garbage": said("", {"made": "it"}, meta={"x402/payment-response": "settled, trust me"}),
    "a list": said("", {"made": "it"}, meta={"x402/payment-response": [1]}),
}


@pytest.mark.parametrize("kind", RECEIPTS)
def test_a_receipt_that_proves_nothing(kind: str) -> None:
    """The goods are the caller's, the money stays held, and it is never called settled."""
    shop, payer = Shop(asks(document()), RECEIPTS[kind]), payer_of()

    async def scenario() -> CallToolResult:
        async with connected(shop) as session:
            return await PaidSession(session, payer, ORIGIN).call_tool("make_thing")

    result = run(scenario)
    receipt = receipt_of(result)
    assert receipt is not None and receipt.outcome == "unknown" and receipt.transaction is None
    assert [(p.state, p.open) for p in payer.payments()] == [("held", False)]


@colours
def test_a_result_that_breaks_the_tools_schema_is_not_lost(backend: str) -> None:
    """What was paid for is handed back; what was free is refused, as the session itself does."""
    shop, payer = Shop(asks(document(), is_error=False)), payer_of()
    shop.output_schema = {"type": "object", "required": ["promised"]}

    async def scenario() -> None:
        async with connected(shop) as session:
            paid = PaidSession(session, payer, ORIGIN)
            result = await paid.call_tool("make_thing")
            assert receipt_of(result) is not None
            shop.unpaid = said("", {"made": "it"})
            with pytest.raises(RuntimeError, match="promised"):
                await paid.call_tool("make_thing")

    run(scenario, backend)
    assert len(shop.proofs) == 1


@colours
@pytest.mark.parametrize("how", ["time-out", "cancelled"])
def test_a_lost_answer_is_asked_for_with_the_same_bytes(backend: str, how: str) -> None:
    """Time-out and cancellation, once the proof has left."""
    left = anyio.Event
    arrived: list[Any] = []

    async def never(_call: Heard) -> CallToolResult:
        arrived[0].set()
        await anyio.sleep(30)
        raise AssertionError("nobody waits for this")

    shop, payer = Shop(asks(document()), never), payer_of()

    async def scenario() -> None:
        arrived.append(left())
        async with connected(shop) as session:
            paid = PaidSession(session, payer, ORIGIN)
            if how == "time-out":
                with pytest.raises(MCPError, match="timed out") as caught:
                    await paid.call_tool("make_thing", read_timeout_seconds=0.3)
                (payment,) = payer.payments()
                assert payment.payment_id in caught.value.__notes__[0]
            else:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(paid.call_tool, "make_thing")
                    await arrived[0].wait()
                    tasks.cancel_scope.cancel()
            (payment,) = payer.payments()
            assert (payment.state, payment.open) == ("held", True)
            shop.paid = made()
            assert receipt_of(await paid.call_tool("make_thing")) is not None

    run(scenario, backend)
    first, second = shop.proofs
    assert first == second
    assert [(p.state, p.open) for p in payer.payments()] == [("settled", False)]


class _SlowToHold(MemoryLedger):
    """A ledger that takes its time to store a proof, and is asked in a thread."""

    inline = False

    def reserve(self, *args: Any, **more: Any) -> Any:
        self.holding.set()
        time.sleep(0.2)
        return super().reserve(*args, **more)


def test_a_call_that_is_cancelled_while_its_proof_is_stored() -> None:
    """The proof is stored and does not leave: its money is given back, and a new call pays."""
    shop, ledger = Shop(asks(document())), _SlowToHold()
    payer = payer_of(ledger=ledger)

    async def scenario() -> None:
        async with connected(shop) as session:
            ledger.holding = threading.Event()
            paid = PaidSession(session, payer, ORIGIN)
            task = asyncio.create_task(paid.call_tool("make_thing"))
            assert await asyncio.to_thread(ledger.holding.wait, 10)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert shop.proofs == []
            assert [(p.state, p.open) for p in payer.payments()] == [("released", False)]
            assert receipt_of(await paid.call_tool("make_thing")) is not None

    run(scenario)
    assert len(shop.authorizations) == 1
    assert sorted(p.state for p in payer.payments()) == ["released", "settled"]


class _Closed:
    """Drives a coroutine until *arrived*, then closes it, as an interpreter that ends does."""

    def __init__(self, coroutine: Any, arrived: anyio.Event) -> None:
        self.coroutine, self.arrived = coroutine, arrived

    def __await__(self) -> Any:
        steps = self.coroutine.__await__()
        waits_for = next(steps)
        while not self.arrived.is_set():
            yield waits_for
            waits_for = next(steps)
        steps.close()


@pytest.mark.parametrize("inline", [True, False])
def test_a_call_that_is_closed_in_the_middle(inline: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A coroutine that may not wait any more still writes down that a proof has left."""
    monkeypatch.setattr(MemoryLedger, "inline", inline)  # else it is asked in a thread
    shop, payer = Shop(asks(document())), payer_of()
    asked = ClientSession.send_request

    async def scenario() -> None:
        arrived = anyio.Event()

        async def send(session: Any, request: Any, *args: Any, **more: Any) -> Any:
            if request.params.meta is None or "x402/payment" not in request.params.meta:
                return await asked(session, request, *args, **more)
            shop.calls.append(Heard(tool="", arguments={}, meta=dict(request.params.meta)))
            arrived.set()
            await anyio.sleep(30)
            raise AssertionError("nobody waits for this")

        async with connected(shop) as session:
            paid = PaidSession(session, payer, ORIGIN)
            monkeypatch.setattr(ClientSession, "send_request", send)
            await _Closed(paid.call_tool("make_thing"), arrived)
            (payment,) = payer.payments()
            assert (payment.state, payment.open) == ("held", True)
            assert "Abandoned" in payment.note
            monkeypatch.setattr(ClientSession, "send_request", asked)
            assert receipt_of(await paid.call_tool("make_thing")) is not None

    run(scenario)
    assert len(shop.authorizations) == 1 and shop.proofs[0] == shop.proofs[1]


def test_a_seller_that_loses_the_connection() -> None:
    """Before the proof nothing was paid; after it the note says what to look for."""
    shop, payer = Shop(MCPError(-32603, "gone")), payer_of()

    async def scenario() -> None:
        async with connected(shop) as session:
            paid = PaidSession(session, payer, ORIGIN)
            with pytest.raises(MCPError, match="gone") as early:
                await paid.call_tool("make_thing")
            assert not hasattr(early.value, "__notes__") and payer.payments() == []
            shop.unpaid, shop.paid = asks(document()), MCPError(-32603, "gone")
            with pytest.raises(MCPError, match="gone") as late:
                await paid.call_tool("make_thing")
            assert payer.payments()[0].payment_id in late.value.__notes__[0]

    run(scenario)


@colours
def test_twenty_at_once_and_budget_for_three(backend: str) -> None:
    """Hostile seller 48, over MCP: the fourth is refused before it is signed."""
    shop = Shop(asks(document()))
    payer = payer_of(caps=[Cap("0.35", per="day")])
    ends: Counter[str] = Counter()

    async def one(paid: PaidSession, number: int) -> None:
        try:
            await paid.call_tool("make_thing", {"n": number})
            ends["paid"] += 1
        except CapExceeded as refusal:
            ends["refused"] += refusal.response.structured_content["x402Version"] == 2

    async def scenario() -> None:
        async with connected(shop) as session, anyio.create_task_group() as tasks:
            paid = PaidSession(session, payer, ORIGIN)
            for number in range(20):
                tasks.start_soon(one, paid, number)

    run(scenario, backend)
    assert ends == {"paid": 3, "refused": 17}
    assert len(shop.authorizations) == len(shop.proofs) == 3
    assert payer.spend()[0].left == Decimal("0.05")


def test_refusals_sign_nothing() -> None:
    """Too dear, without a cap, paused, not approved: the answer comes with the refusal."""
    shop = Shop(asks(document("900000")))

    async def scenario() -> None:
        async with connected(shop) as session:
            for payer, reason in (
                (payer_of(), "cap"),
                (payer_of(caps=[Cap("9", per="day", service="other")]), "no_cap"),
                (payer_of(caps=[Cap("9", per="day")], approve=lambda _: False), "approval"),
            ):
                with pytest.raises(PaymentRefused) as caught:
                    await PaidSession(session, payer, ORIGIN).call_tool("make_thing")
                assert caught.value.reason == reason
                assert caught.value.response.is_error
            quiet = payer_of(on_refusal="return")
            result = await PaidSession(session, quiet, ORIGIN).call_tool("make_thing")
            assert result.meta is not None
            refusal = result.meta["x402_mask_refusal"]
            assert isinstance(refusal, CapExceeded) and refusal.response is result

    run(scenario)
    assert shop.proofs == []


def test_caps_are_shared_with_http() -> None:
    """Tool ``make_thing`` at an origin is its ``/api/tools/make-thing``: one service, one budget."""
    shop = Shop(asks(document()))
    payer = payer_of(caps=[Cap("0.15", per="day", service="make-thing")])

    def answer(_request: httpx.Request) -> httpx.Response:
        return httpx.Response(402, json=document())

    async def scenario() -> None:
        async with connected(shop) as session:
            await PaidSession(session, payer, f"{ORIGIN}/mcp").call_tool("make_thing")
        transport = AsyncPaymentTransport(payer, httpx.MockTransport(answer))
        async with httpx.AsyncClient(transport=transport) as client:
            with pytest.raises(CapExceeded):
                await client.post(f"{ORIGIN}/api/tools/make-thing", json={})

    run(scenario)
    assert [p.service for p in payer.payments()] == ["make-thing"]


@colours
def test_an_operation_that_two_callers_share(backend: str) -> None:
    """An explicit key: the later call waits, and what follows the answer is a new purchase."""
    shop, payer = Shop(asks(document())), payer_of()

    async def scenario() -> None:
        async with connected(shop) as session:
            paid = PaidSession(session, payer, ORIGIN)
            lose = [said("Internal Server Error", is_error=True)]
            shop.paid = lambda _call: lose.pop() if lose else made()
            for number in (1, 2):
                await paid.call_tool("make_thing", {"n": number}, operation="order 7")
            await paid.call_tool("make_thing", {"n": 3}, operation="order 8")

    run(scenario, backend)
    assert len(shop.proofs) == 3 and len(shop.authorizations) == 2
    with pytest.raises(TypeError, match="operation"):
        run(lambda: PaidSession(Any, payer, ORIGIN).call_tool("x", operation=7))  # type: ignore[arg-type, call-overload]


def test_the_callers_own_proof_and_meta_pass_through() -> None:
    """A caller that pays itself is not paid for; other ``_meta`` stays beside the proof."""
    shop, payer = Shop(asks(document()), asks(document())), payer_of()

    async def scenario() -> None:
        async with connected(shop) as session:
            paid = PaidSession(session, payer, ORIGIN)
            await paid.call_tool("make_thing", meta={"x402/payment": {"my": "own"}})
            await paid.call_tool("make_thing", {"paymentToken": "mine"})
            assert payer.payments() == []
            await paid.call_tool("make_thing", meta={"trace": "t1"})

    run(scenario)
    assert [call.meta.get("trace") for call in shop.calls] == [None, None, "t1", "t1"]
    assert len(payer.payments()) == 1


def test_a_tool_that_wants_more_once_it_is_paid() -> None:
    """Nothing was delivered: the answer to its questions goes with the same bytes."""
    more = InputRequiredResult(request_state="size?")
    shop, payer = Shop(asks(document()), more), payer_of()

    async def scenario() -> None:
        async with connected(shop, "auto") as session:
            paid = PaidSession(session, payer, ORIGIN)
            with pytest.raises(RuntimeError, match="allow_input_required") as caught:
                await paid.call_tool("make_thing")
            (payment,) = payer.payments()
            assert payment.payment_id in caught.value.__notes__[0] and payment.open
            asked = await paid.call_tool("make_thing", allow_input_required=True)
            assert isinstance(asked, InputRequiredResult) and receipt_of(asked) is not None
            shop.paid = made()
            last = await paid.call_tool("make_thing", request_state=asked.request_state)
            assert receipt_of(last) is not None

    run(scenario)
    assert len(shop.proofs) == 3 and len(shop.authorizations) == 1
    assert [(p.state, p.open) for p in payer.payments()] == [("settled", False)]


def test_a_price_that_is_known_is_paid_with_the_first_request() -> None:
    shop, payer = Shop(asks(document())), payer_of(preempt=True)

    async def scenario() -> None:
        async with connected(shop) as session:
            paid = PaidSession(session, payer, ORIGIN)
            for number in range(3):
                await paid.call_tool("make_thing", {"n": number})

    run(scenario)
    assert [call.paid for call in shop.calls] == [False, True, True, True]


def test_a_receipt_cannot_be_forged() -> None:
    """What a seller writes under our key is dropped."""
    shop = Shop(said("", {"made": "it"}, meta={"x402_mask": {"usd": "0"}, "own": 1}))

    async def scenario() -> CallToolResult:
        async with connected(shop) as session:
            return await PaidSession(session, payer_of(), ORIGIN).call_tool("make_thing")

    result = run(scenario)
    assert result.meta is not None and receipt_of(result) is None
    assert "x402_mask" not in result.meta and result.meta["own"] == 1


def test_the_session_is_still_the_session() -> None:
    """Everything else is delegated, and a result can be written down with its receipt."""
    shop = Shop(asks(document()))

    async def scenario() -> CallToolResult:
        async with connected(shop) as session:
            paid = PaidSession(session, payer_of(), ORIGIN)
            assert [tool.name for tool in (await paid.list_tools()).tools] == ["make_thing"]
            with contextlib.suppress(AttributeError):
                paid.no_such_thing  # noqa: B018
                raise AssertionError("it has everything")
            return await paid.call_tool("make_thing")

    written = json.loads(run(scenario).model_dump_json())
    assert written["meta"]["x402_mask"]["usd"] == "0.10"


def test_a_client_does_as_well_as_its_session() -> None:
    shop = Shop(asks(document()))

    async def scenario() -> CallToolResult:
        async with Client(shop.server()) as client:
            return await PaidSession(client, payer_of(), ORIGIN).call_tool("make_thing")

    assert receipt_of(run(scenario)) is not None


_IMPORTS = """
import sys
import x402_mask
assert not [name for name in sys.modules if name.partition(".")[0] in ("mcp", "pydantic")]
sys.modules["mcp"] = None
try:
    x402_mask.mcp
except ImportError as exc:
    assert "pip install 'x402-mask[mcp]'" in str(exc), exc
else:
    raise SystemExit("imported without the SDK")
del sys.modules["mcp"]
assert x402_mask.mcp.PaidSession
"""


def test_the_sdk_is_imported_when_it_is_asked_for() -> None:
    """Not by ``import x402_mask``; and where it is missing, the error says what to install."""
    done = subprocess.run(
        [sys.executable, "-c", _IMPORTS], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr


def test_what_is_no_origin() -> None:
    for odd in ("shop.example", "mcp:", "mcp:a b", "ftp://shop.example", ""):
        with pytest.raises(ValueError, match="URL"):
            PaidSession(None, payer_of(), odd)  # type: ignore[arg-type]


def test_arguments_that_the_catalog_says_are_wrong_are_not_paid_for() -> None:
    """A marketplace settles first: bad arguments would cost the price all the same."""
    shop, payer = Shop(asks(document())), payer_of()
    schema = '{"type": "object", "required": ["ImageURL"]}'
    entry = CatalogEntry(
        service="make-thing", micro=None, schema=schema, names=frozenset(), at=buyer_of(payer).now()
    )
    buyer_of(payer).learn(ORIGIN, entry)

    async def scenario() -> None:
        async with connected(shop) as session:
            paid = PaidSession(session, payer, ORIGIN)
            for arguments in (None, {"imageurl": "x"}):
                with pytest.raises(InputRefused, match="'ImageURL' is required"):
                    await paid.call_tool("make_thing", arguments)
            assert shop.proofs == [] and payer.payments() == []
            assert receipt_of(await paid.call_tool("make_thing", {"ImageURL": "x"})) is not None

    run(scenario)
    assert len(shop.authorizations) == 1
