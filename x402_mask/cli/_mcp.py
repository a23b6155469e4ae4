"""``mcp``: the configured marketplace for agents, as an MCP server on stdio."""

from __future__ import annotations

import click

from x402_mask.cli._faults import Failure
from x402_mask.cli._session import Session, serving
from x402_mask.cli._show import say


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
        from x402_mask.agent._server import serve
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
        anyio.run(serve, payer, origin)
