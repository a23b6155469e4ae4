"""A small MCP server on stdio that sells one tool by x402, as its operator might write it."""

from __future__ import annotations

import json
import sys
from typing import Any

import anyio
from mcp.server.lowlevel import Server
from mcp.server.stdio import stdio_server
from mcp.types import CallToolResult, ListToolsResult, TextContent, Tool

OFFER = {
    "scheme": "exact",
    "network": "eip155:8453",
    "amount": "100000",
    "maxTimeoutSeconds": 60,
    "asset": "0x833589fCD6eDb6E08f4c7C32D4f71b54bdA02913",
    "payTo": "0x209693Bc6afc0C5328bA36FaF03C514EF312287C",
    "extra": {"name": "USD Coin", "version": "2"},
}
CHALLENGE = {
    "x402Version": 2,
    "error": "payment required",
    "accepts": [OFFER],
    "resource": {"url": "mcp://tool/cut_out"},
}


async def tools(_context: Any, _params: Any) -> ListToolsResult:
    return ListToolsResult(tools=[Tool(name="cut_out", input_schema={"type": "object"})])


async def call(_context: Any, params: Any) -> CallToolResult:
    payment = dict(params.meta or {}).get("x402/payment")
    if payment is None or payment["accepted"] != OFFER:
        text = TextContent(type="text", text=json.dumps(CHALLENGE))
        return CallToolResult(content=[text], structured_content=CHALLENGE, is_error=True)
    print("a stray line on stdout", payment["payload"]["authorization"]["nonce"])
    told = {"success": True, "transaction": "0x" + "cd" * 32, "network": "eip155:8453"}
    return CallToolResult(
        content=[TextContent(type="text", text=json.dumps(params.arguments))],
        _meta={"x402/payment-response": told},
    )


async def main() -> None:
    server: Server[Any] = Server("shop", on_list_tools=tools, on_call_tool=call)
    async with stdio_server() as (read, write):
        await server.run(read, write, server.create_initialization_options())


if __name__ == "__main__":
    anyio.run(main)
    sys.exit(0)
