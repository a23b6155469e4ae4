"""Paying over MCP: a client session whose tool calls pay what they are asked, within the caps.

Needs the official SDK: ``pip install 'x402-mask[mcp]'``.

::

    async with streamable_http_client("https://x402vip.com/mcp") as streams:
        async with ClientSession(*streams) as session:
            await session.initialize()
            paid = PaidSession(session, payer, "https://x402vip.com")
            result = await paid.call_tool("mask_refinement", {...})
            print(receipt_of(result))

Source: x402 specification v2, ``transports-v2/mcp.md``.
"""

from __future__ import annotations

try:
    import mcp
except ModuleNotFoundError as exc:
    from x402_mask._system.extras import missing

    raise missing(exc, __name__, "mcp", {"mcp"}) from None
if not hasattr(mcp, "MCPError"):
    raise ImportError(
        "x402_mask.mcp needs version 2 of mcp, and an older one is installed:"
        " pip install 'x402-mask[mcp]'"
    )

from x402_mask.mcp._session import PaidSession, Result, receipt_of

__all__ = ["PaidSession", "Result", "receipt_of"]
