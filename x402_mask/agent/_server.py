"""The agent's tools as an MCP server, on stdio or any other transport."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from mcp import MCPError
from mcp.server.lowlevel import Server
from mcp.server.stdio import stdio_server
from mcp.types import INVALID_PARAMS, CallToolResult, ListToolsResult, TextContent, Tool

from x402_mask import __version__
from x402_mask.agent._tools import INSTRUCTIONS, SCHEMAS, Agent

if TYPE_CHECKING:
    from mcp.server.context import ServerRequestContext
    from mcp.types import CallToolRequestParams, PaginatedRequestParams

    from x402_mask._payer import Payer


async def serve(payer: Payer, origin: str) -> None:
    """Serve *origin* to whoever is at stdin and stdout, until it goes away."""
    agent = Agent(payer, origin)
    server = server_of(agent)
    try:
        async with stdio_server() as (read, write):
            await server.run(read, write, server.create_initialization_options())
    finally:
        await agent.aclose()


def server_of(agent: Agent) -> Server[Any]:
    """The agent's tools as an MCP server, for any transport."""
    tools = _Tools(agent)
    return Server(
        "x402-mask",
        version=__version__,
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
        if params.name not in SCHEMAS:
            raise MCPError(INVALID_PARAMS, "there is no such tool")
        document, failed = await self._agent.answer(params.name, params.arguments or {})
        text = TextContent(type="text", text=json.dumps(document))
        return CallToolResult(content=[text], structured_content=document, is_error=failed)
