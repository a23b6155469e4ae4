"""The sandbox's ``/mcp`` over streamable HTTP: every form of a 402, every fault, tokens."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from decimal import Decimal
from typing import Any, get_args

import anyio
import click
import httpx
import pytest
from mcp import Client, ClientSession, MCPError

from tests.mcp.kit import over_http, payer_of, run
from tests.sandbox.buyer import Buyer
from x402_mask import Cap, CapExceeded, Payer
from x402_mask.cli._sandbox import sandbox as command
from x402_mask.mcp import PaidSession, receipt_of
from x402_mask.sandbox import Sandbox
from x402_mask.sandbox.settings import MCPChallenge

PAID_FORMS = ("structured", "text", "wrapped", "prefixed", "error")
CHALLENGES = ("attested", "v2-header", "v2-body", "v1")


def buy(box: Sandbox, payer: Payer, *tools: str, **arguments: Any) -> list[Any]:
    """Results of calling the tools one after another in one session; errors as they came."""

    async def scenario() -> list[Any]:
        found: list[Any] = []
        async with over_http(box.url) as session:
            paid = PaidSession(session, payer, box.url)
            for tool in tools:
                try:
                    found.append(await paid.call_tool(tool, arguments, read_timeout_seconds=10))
                except MCPError as error:
                    found.append(error)
        return found

    results: list[Any] = run(scenario)
    return results


@pytest.mark.parametrize(("form", "challenge"), [*itertools.product(PAID_FORMS, CHALLENGES)])
def test_every_form(form: Any, challenge: Any) -> None:
    """The book of the sandbox and our ledger agree."""
    with Sandbox(mcp_challenge=form, challenge=challenge) as box:
        payer = payer_of(box.url)
        (result,) = buy(box, payer, "random_uuid")
        assert not result.is_error and len(result.structured_content["uuid"]) == 36
        receipt = receipt_of(result)
        assert receipt is not None
        assert (receipt.outcome, receipt.amount, receipt.service) == (
            "settled",
            50_000,
            "random-uuid",
        )
        (settled,) = box.book.settlements
        assert (settled.amount, settled.transaction) == (50_000, receipt.transaction)
        assert result.meta["x402/payment-response"]["success"] is True
        assert payer.spend()[1].settled == Decimal("0.05")


@pytest.fixture(scope="module")
def box() -> Iterator[Sandbox]:
    with Sandbox(payment_identifier="optional", challenge="v2-body") as made:
        yield made


@pytest.fixture
def faulty(box: Sandbox) -> Iterator[Sandbox]:
    yield box
    box.faults.clear()


def test_mask_refinement(box: Sandbox) -> None:
    """The service itself, by its tool: arguments go through, the cap of the service counts."""
    pictures = {
        n: f"{box.url}/static/{f}.png" for n, f in (("ImageURL", "photo"), ("MaskImageURL", "mask"))
    }
    payer = payer_of(box.url, caps=[Cap("0.20", per="day", service="mask-refinement")])
    (result,) = buy(box, payer, "mask_refinement", **pictures)
    assert result.structured_content["code"] == "200"

    async def again() -> None:
        async with over_http(box.url) as session:
            with pytest.raises(CapExceeded):
                await PaidSession(session, payer, box.url).call_tool("mask_refinement", pictures)

    run(again)


def test_the_tools(box: Sandbox) -> None:
    """Every service of the catalog, with its schema and a place for a token."""

    async def scenario() -> Any:
        async with over_http(box.url) as session:
            return (await session.list_tools()).tools

    tools = {tool.name: tool.input_schema for tool in run(scenario)}
    assert set(tools) == {"mask_refinement", "random_uuid", "timestamp"}
    schema = tools["mask_refinement"]
    assert set(schema["properties"]) == {"ImageURL", "MaskImageURL", "paymentToken"}
    assert schema["required"] == ["ImageURL", "MaskImageURL"]


LOST = {"drop-after-settle": "SSE stream ended", "500-after-settle": "Internal Server Error"}


@pytest.mark.parametrize("fault", LOST)
def test_a_lost_answer_costs_once(faulty: Sandbox, fault: str) -> None:
    """The same proof again gets the answer it bought, and the book has one settlement."""
    payer, before = payer_of(faulty.url), len(faulty.book.settlements)
    faulty.faults.set(fault, 1)
    lost, found = buy(faulty, payer, "random_uuid", "random_uuid")
    assert LOST[fault] in (str(lost) if isinstance(lost, MCPError) else lost.content[0].text)
    first, second = receipt_of(lost) if not isinstance(lost, MCPError) else None, receipt_of(found)
    assert second is not None and second.outcome == "settled" and not found.is_error
    assert first is None or first.payment_id == second.payment_id
    assert len(faulty.book.settlements) - before == 1
    assert len(payer.payments()) == 1


def test_a_connection_that_takes_the_session_with_it(faulty: Sandbox) -> None:
    """In protocol 2026-07-28 a cut answer ends the SDK's client; a new one gets what was bought."""
    payer, before = payer_of(faulty.url), len(faulty.book.settlements)

    async def once() -> Any:
        with anyio.fail_after(30):
            async with Client(f"{faulty.url}/mcp") as client:
                assert client.session.protocol_version == "2026-07-28"
                return await PaidSession(client, payer, faulty.url).call_tool("random_uuid")

    faulty.faults.set("drop-after-settle", 1)
    with pytest.raises(ExceptionGroup, match="TaskGroup"):
        run(once)
    assert [(p.state, p.open) for p in payer.payments()] == [("held", True)]
    receipt = receipt_of(run(once))
    assert receipt is not None and receipt.outcome == "settled"
    assert len(faulty.book.settlements) - before == len(payer.payments()) == 1


DOUBTED = {
    "no-receipt": ("unknown", False),
    "success-false": ("unknown", False),
    "wrong-amount-receipt": ("unknown", False),
    "settlement-pending": ("rejected", True),
    "price-changed": ("rejected", True),
}


@pytest.mark.parametrize("fault", DOUBTED)
def test_doubtful_settlements_stay_held(faulty: Sandbox, fault: str) -> None:
    outcome, is_error = DOUBTED[fault]
    payer = payer_of(faulty.url)
    faulty.faults.set(fault, 1)
    (result,) = buy(faulty, payer, "timestamp")
    receipt = receipt_of(result)
    assert receipt is not None and receipt.outcome == outcome and result.is_error is is_error
    assert [(p.state, p.open) for p in payer.payments()] == [("held", is_error)]


def test_a_pending_settlement_is_shown_again(faulty: Sandbox) -> None:
    """The second call presents the same proof, which is then honoured."""
    payer, before = payer_of(faulty.url), len(faulty.book.settlements)
    faulty.faults.set("settlement-pending", 1)
    pending, done = buy(faulty, payer, "timestamp", "timestamp")
    told = pending.structured_content["x402/payment-response"]
    assert (told["success"], told["errorReason"]) == (False, "settlement_pending")
    assert "unix" in done.structured_content
    assert len(faulty.book.settlements) - before == 1
    assert [p.state for p in payer.payments()] == ["settled"]


def test_twenty_at_once_and_budget_for_three(box: Sandbox) -> None:
    """Over one connection pool, with the seller's book as witness."""
    payer, before = payer_of(box.url, caps=[Cap("0.15", per="day")]), len(box.book.settlements)
    refused: list[CapExceeded] = []

    async def one(paid: PaidSession, number: int) -> None:
        try:
            await paid.call_tool("random_uuid", {}, operation=f"call {number}")
        except CapExceeded as refusal:
            refused.append(refusal)

    async def scenario() -> None:
        async with over_http(box.url) as session, anyio.create_task_group() as tasks:
            for number in range(20):
                tasks.start_soon(one, PaidSession(session, payer, box.url), number)

    run(scenario)
    assert len(refused) == 17
    assert len(box.book.settlements) - before == 3


# --- tokens, by hand: buying them is the marketplace's HTTP side ----------------------------------


def call(box: Sandbox, tool: str, **arguments: Any) -> Any:
    async def scenario() -> Any:
        async with over_http(box.url) as session:
            return await ClientSession.call_tool(session, tool, arguments)

    return run(scenario)


def token_for(box: Sandbox) -> str:
    with Buyer(box.url) as buyer:
        made = buyer.http.post("/api/payments", json={"serviceId": "random-uuid"}).json()
        box.book.mark_paid(made["paymentId"])
        token: str = buyer.http.get(f"/api/payments/{made['paymentId']}").json()["token"]
        return token


def test_a_token_buys_one_call(faulty: Sandbox) -> None:
    """As the argument ``paymentToken``; spent, foreign or expired ones are challenged."""
    token = token_for(faulty)
    other = call(faulty, "timestamp", paymentToken=token)
    assert other.is_error and "another service" in other.structured_content["error"]
    faulty.faults.set("402-after-token", 1)
    assert call(faulty, "random_uuid", paymentToken=token).is_error
    good = call(faulty, "random_uuid", paymentToken=token)
    assert not good.is_error and len(good.structured_content["uuid"]) == 36
    assert not good.meta
    spent = call(faulty, "random_uuid", paymentToken=token)
    assert spent.is_error and spent.structured_content["payment"]["status"] == "exhausted"
    for fault, status in (("expired-token", "expired"), ("exhausted-token", "exhausted")):
        fresh = token_for(faulty)
        faulty.faults.set(fault, 1)
        told = call(faulty, "random_uuid", paymentToken=fresh).structured_content
        assert told["payment"]["status"] == status and told["accepts"]
    assert call(faulty, "random_uuid", paymentToken="pay_tok_guess").is_error
    faulty.faults.set("500-after-settle", 1)
    broken = call(faulty, "random_uuid", paymentToken=token_for(faulty))
    assert broken.is_error and broken.content[0].text == "Internal Server Error"


@pytest.mark.parametrize("ask", ["nothing", "accepts"])
def test_a_payment_object_as_challenge(ask: Any) -> None:
    """A marketplace's own form names the payment to pay: by a signature, or for a token."""
    with Sandbox(mcp_challenge="payment", payments_ask=ask, auto_paid=2) as box:
        told = call(box, "random_uuid").structured_content
        assert told["paymentId"].startswith("pay_") and told["status"] == "pending"
        assert ("accepts" in told) is (ask == "accepts")
        payer = payer_of(box.url)
        (result,) = buy(box, payer, "random_uuid")
        receipt = receipt_of(result)
        assert receipt is not None
        assert receipt.route == ("x402" if ask == "accepts" else "token")
        assert [p.state for p in payer.payments()] == ["settled"]
        assert not result.is_error


def test_what_the_desk_will_not_take(box: Sandbox) -> None:
    """Two proofs, a proof that is none, an unknown tool: never an exception of the server."""

    async def scenario() -> Any:
        async with over_http(box.url) as session:
            proof = {"x402/payment": {"x402Version": 2}}
            return [
                await session.call_tool("timestamp", {"paymentToken": "t"}, meta=proof),
                await session.call_tool("timestamp", {}, meta=proof),
                await session.call_tool("timestamp", {}, meta={"x402/payment": "text"}),
                await session.call_tool("no_such_tool", {}),
            ]

    both, thin, text, unknown = run(scenario)
    assert "not several" in both.content[0].text
    assert thin.structured_content["error"] == "invalid_payload"
    assert thin.structured_content["resource"]["url"] == "mcp://tool/timestamp"
    assert text.structured_content["error"] == "invalid_payload"
    assert "no tool" in unknown.content[0].text


def test_a_sandbox_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """It sells over HTTP as ever, and says what its MCP endpoint would need."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "mcp"]:
        monkeypatch.setitem(sys.modules, name, None)
    with Sandbox() as box, httpx.Client(base_url=box.url, trust_env=False) as client:
        answer = client.post("/mcp", json={})
        assert answer.status_code == 404 and "x402-mask[mcp]" in answer.text
        assert client.get("/api/tools/timestamp").status_code == 402


def test_every_form_can_be_asked_for_on_the_command_line() -> None:
    (option,) = (param for param in command.params if param.name == "mcp_challenge")
    assert isinstance(option.type, click.Choice)
    assert tuple(option.type.choices) == get_args(MCPChallenge) == (*PAID_FORMS, "payment")


def test_discovery_names_the_endpoint(box: Sandbox) -> None:
    with httpx.Client(trust_env=False) as client:
        told = client.get(f"{box.url}/.well-known/server402.json").json()["mcp"]
    assert told["url"] == f"{box.url}/mcp" and told["transport"] == "streamable_http"
