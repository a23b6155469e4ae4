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
    import mcp  # noqa: F401  # only to see whether it is there
except ModuleNotFoundError as exc:
    if exc.name != "mcp":
        raise
    raise ImportError("x402_mask.mcp needs the MCP SDK: pip install 'x402-mask[mcp]'") from None

from x402_mask.mcp._session import PaidSession, Result, receipt_of

__all__ = ["PaidSession", "Result", "receipt_of"]
