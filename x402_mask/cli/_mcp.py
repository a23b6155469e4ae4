"""``mcp``: the configured marketplace for agents, as an MCP server on stdio."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from x402_mask.cli._faults import Failure
from x402_mask.cli._session import Session, serving
from x402_mask.cli._show import say

if TYPE_CHECKING:
    from mcp.server.context import ServerRequestContext
    from mcp.server.lowlevel import Server
    from mcp.types import (
        CallToolRequestParams,
        CallToolResult,
        ListToolsResult,
        PaginatedRequestParams,
    )

    from x402_mask._payer import Payer
    from x402_mask.cli._agent import Agent


@click.command("mcp")
@serving
def mcp_server(session: Session) -> None:
    """Serve the first configured origin to an agent, as an MCP server on stdio.

    Wallet, caps and origins are the configured ones; no tool changes them.
    """
    if session.as_json:
        raise click.UsageError("--json prints one document, and a server prints none")
    try:
        import mcp.server.stdio  # noqa: F401  # only to see whether it is there, and new enough

        import x402_mask.mcp  # noqa: F401
    except ImportError as exc:
        if (exc.name or "mcp").partition(".")[0] != "mcp":
            raise
        told = "x402-mask[mcp]" in str(exc)
        message = str(exc) if told else "the MCP server needs mcp: pip install 'x402-mask[mcp]'"
        raise Failure(message, code="missing_extra") from None
    import sys

    import anyio

    origin = session.origin(None)
    if sys.stdin.isatty():
        say(f"an MCP server for {origin}: it talks to an agent on stdin and stdout")
    with session.payer(signs=True, on_event=None) as payer:
        anyio.run(_serve, payer, origin)


async def _serve(payer: Payer, origin: str) -> None:
    from mcp.server.stdio import stdio_server

    from x402_mask.cli._agent import Agent

    agent = Agent(payer, origin)
    server = server_of(agent)
    try:
        async with stdio_server() as (read, write):
            await server.run(read, write, server.create_initialization_options())
    finally:
        await agent.aclose()


def server_of(agent: Agent) -> Server[Any]:
    """The agent's tools as an MCP server, for any transport."""
    from importlib.metadata import version

    from mcp.server.lowlevel import Server

    from x402_mask.cli._agent import INSTRUCTIONS

    tools = _Tools(agent)
    return Server(
        "x402-mask",
        version=version("x402-mask"),
        instructions=INSTRUCTIONS,
        on_list_tools=tools.listed,
        on_call_tool=tools.call,
    )


class _Tools:
    """The agent's tools in the SDK's terms."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent

    async def listed(
        self, _context: ServerRequestContext[Any], _params: PaginatedRequestParams | None
    ) -> ListToolsResult:
        """Every tool."""
        from mcp.types import ListToolsResult, Tool

        from x402_mask.cli._agent import SCHEMAS

        return ListToolsResult(
            tools=[
                Tool(name=name, description=description, input_schema=schema)
                for name, (description, schema) in SCHEMAS.items()
            ]
        )

    async def call(
        self, _context: ServerRequestContext[Any], params: CallToolRequestParams
    ) -> CallToolResult:
        """One tool call; a refusal is an answer."""
        import json

        from mcp import MCPError
        from mcp.types import INVALID_PARAMS, CallToolResult, TextContent

        from x402_mask.cli._agent import SCHEMAS

        if params.name not in SCHEMAS:
            raise MCPError(INVALID_PARAMS, "there is no such tool")
        document, failed = await self._agent.answer(params.name, params.arguments or {})
        text = TextContent(type="text", text=json.dumps(document))
        return CallToolResult(content=[text], structured_content=document, is_error=failed)
