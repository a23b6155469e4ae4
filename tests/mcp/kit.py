"""A seller of tools that can be scripted, on the official SDK's server, and what it could collect."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import anyio
import pytest
from mcp import Client, ClientSession
from mcp.client.streamable_http import streamable_http_client
from mcp.server.lowlevel import Server
from mcp.types import CallToolResult, InputRequiredResult, ListToolsResult, TextContent, Tool

from tests.support.seller import TRANSACTION, Authorization, authorization_of, decode_proof, offer
from x402_mask import Cap, MemoryLedger, Payer, Wallet

KEY = "11" * 32
ORIGIN = "https://shop.example"
BUDGET = (Cap("0.25", per="call"), Cap("1", per="day"))

Json = dict[str, Any]


def payer_of(*origins: str, caps: Any = BUDGET, wallet: Any = None, **more: Any) -> Payer:
    more.setdefault("ledger", MemoryLedger())
    return Payer(wallet or Wallet.from_key(KEY), caps=caps, origins=origins or (ORIGIN,), **more)


def document(amount: str = "100000", **changes: Any) -> Json:
    """A version 2 challenge of ten cents."""
    about = {"url": "mcp://tool/make_thing", "mimeType": "application/json"}
    return {
        "x402Version": 2,
        "error": "Payment required",
        "resource": about,
        "accepts": [offer(amount)],
        **changes,
    }


def said(
    text: str, structured: Any = None, *, is_error: bool = False, meta: Json | None = None
) -> CallToolResult:
    return CallToolResult(
        content=[TextContent(type="text", text=text)],
        structured_content=structured,
        is_error=is_error,
        _meta=meta,
    )


def asks(challenge: Json, **more: Any) -> CallToolResult:
    """A challenge as the specification has it: structured, repeated as text, an error."""
    return said(json.dumps(challenge), challenge, **{"is_error": True, **more})


def made(**changes: Any) -> CallToolResult:
    """What was bought, with its settlement."""
    told = {"success": True, "transaction": TRANSACTION, "network": "eip155:8453", **changes}
    return said('{"made": "it"}', {"made": "it"}, meta={"x402/payment-response": told})


Answer = CallToolResult | InputRequiredResult | Exception | Callable[["Heard"], Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """One tools/call as it stood on the wire."""

    tool: str
    arguments: Json
    meta: Json

    @property
    def payment(self) -> Any:
        return self.meta.get("x402/payment")

    @property
    def paid(self) -> bool:
        return self.payment is not None or "paymentToken" in self.arguments


@dataclass(slots=True)
class Shop:
    """Answers as scripted; remembers every call, and every authorization it was handed."""

    unpaid: Answer
    paid: Answer = field(default_factory=made)
    calls: list[Heard] = field(default_factory=list)
    output_schema: Json | None = None

    @property
    def proofs(self) -> list[Any]:
        return [call.payment for call in self.calls if call.payment is not None]

    @property
    def authorizations(self) -> dict[str, Authorization]:
        """What could be collected, each nonce once."""
        found = (authorization_of(ORIGIN, decode_proof("", encoded(p))) for p in self.proofs)
        return {one.nonce: one for one in found if one is not None}

    def server(self) -> Server[Any]:
        return Server("shop", on_list_tools=self._list, on_call_tool=self._call)

    async def _list(self, _context: Any, _params: Any) -> ListToolsResult:
        schema = {"type": "object"}
        names = sorted({"make_thing", *(call.tool for call in self.calls)})
        return ListToolsResult(
            tools=[
                Tool(name=n, input_schema=schema, output_schema=self.output_schema) for n in names
            ]
        )

    async def _call(self, _context: Any, params: Any) -> CallToolResult | InputRequiredResult:
        call = Heard(
            tool=params.name, arguments=dict(params.arguments or {}), meta=dict(params.meta or {})
        )
        self.calls.append(call)
        answer = self.paid if call.paid else self.unpaid
        if callable(answer):
            answer = answer(call)
        if isinstance(answer, Awaitable):
            answer = await answer
        if isinstance(answer, Exception):
            raise answer
        assert isinstance(answer, (CallToolResult, InputRequiredResult))
        return answer


def encoded(payment: Any) -> str:
    return base64.b64encode(json.dumps(payment).encode()).decode()


@asynccontextmanager
async def connected(shop: Shop, mode: str = "legacy") -> AsyncIterator[ClientSession]:
    """A real client session on a real server, in this process."""
    with anyio.fail_after(20):
        async with Client(shop.server(), mode=mode) as client:
            yield client.session


@asynccontextmanager
async def over_http(url: str) -> AsyncIterator[ClientSession]:
    """A real client session over streamable HTTP."""
    with anyio.fail_after(30):
        async with (
            streamable_http_client(f"{url}/mcp") as streams,
            ClientSession(*streams) as session,
        ):
            await session.initialize()
            yield session


def run(scenario: Callable[[], Awaitable[Any]], backend: str = "asyncio") -> Any:
    return anyio.run(scenario, backend=backend)


colours = pytest.mark.parametrize("backend", ["asyncio", "trio"])
