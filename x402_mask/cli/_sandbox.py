"""``sandbox``: a marketplace of one's own to build against."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Any, Final

import click

from x402_mask._services import is_loopback
from x402_mask.cli._faults import USAGE, Failure
from x402_mask.cli._session import Session, serving
from x402_mask.cli._show import put, say

if TYPE_CHECKING:
    from types import ModuleType

_KEY: Final = "X402_MASK_FACILITATOR_KEY"


def sandbox_package() -> ModuleType:
    """The sandbox, or one sentence on how to install what it needs."""
    try:
        import x402_mask.sandbox as package
    except ModuleNotFoundError as exc:
        if "x402-mask[sandbox]" not in str(exc):
            raise
        raise Failure(str(exc), code="missing_extra") from None
    return package


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8402,
    show_default=True,
    help="0 takes a free one.",
)
@click.option(
    "--rpc",
    metavar="URL",
    help=f"Settle on this chain; {_KEY} holds the key that sends and pays gas.",
)
@click.option("--pay-to", metavar="ADDRESS", help="Who is paid; by default nobody's address.")
@click.option(
    "--faults", metavar="NAME[=TIMES],...", default="", help="Misbehave; `--faults help` lists how."
)
@click.option(
    "--build",
    type=click.Choice(["older", "newer"]),
    default="older",
    show_default=True,
    help="Which build of the marketplace to be: the newer hands out no tokens.",
)
@click.option(
    "--challenge",
    type=click.Choice(["attested", "v2-header", "v2-body", "v1"]),
    default="attested",
    show_default=True,
    help="The shape of a 402.",
)
@click.option(
    "--payments-ask",
    type=click.Choice(["nothing", "402", "accepts"]),
    default="nothing",
    show_default=True,
    help="How POST /api/payments asks to be paid by x402.",
)
@click.option(
    "--auto-paid/--no-auto-paid", default=False, help="A balance pays every payment at once."
)
@click.option(
    "--calls-per-payment",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="How many calls a token is good for.",
)
@click.option(
    "--watch-transfers/--no-watch-transfers",
    default=False,
    help="With --rpc: a matching transfer on chain pays a payment.",
)
@click.option(
    "--mcp-challenge",
    type=click.Choice(["structured", "text", "wrapped", "prefixed", "error", "payment"]),
    default="structured",
    show_default=True,
    help="Where a 402 stands in a tool's answer at /mcp.",
)
@serving
def sandbox(session: Session, host: str, port: int, faults: str, **options: Any) -> None:
    """Serve a local marketplace that takes play money, until interrupted."""
    package = sandbox_package()
    if faults == "help":
        _list_faults(session, package)
        return
    settings = _settings(package, faults, fetch_remote=is_loopback(host), **options)
    if session.as_json:
        raise click.UsageError("--json prints one document, and a server prints none")
    try:
        port = port or _free_port(host)
        _welcome(host, port)
        package.run(host, port, settings)
    except OSError as exc:
        raise Failure(f"cannot listen on {host}:{port}: {exc.strerror or exc}") from exc


def _free_port(host: str) -> int:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as listening:
        return int(listening.getsockname()[1])


def _welcome(host: str, port: int) -> None:
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    if not is_loopback(host):
        say(
            f"other machines can reach {host}; pictures are only taken from the sandbox's own",
            style="yellow",
        )
    say(f"a marketplace with play money at {url}; to pay it:")
    say(f"export X402_MASK_ORIGINS={url} X402_MASK_CAPS=0.25/call,5/day")
    say("export X402_MASK_LEDGER=play.db X402_MASK_PRIVATE_KEY=0x$(openssl rand -hex 32)")
    say("x402-mask call random-uuid")
    say(
        f"x402-mask call mask-refinement ImageURL={url}/static/photo.png"
        f" MaskImageURL={url}/static/mask.png   # pages: {url}/services"
    )


def _settings(package: ModuleType, faults: str, **options: Any) -> Any:
    try:
        return package.SandboxSettings(
            faults=package.parse_faults(faults),
            facilitator_key=os.environ.get(_KEY) if options["rpc"] else None,
            **{name: value for name, value in options.items() if value is not None},
        )
    except ValueError as exc:
        hint = f" (set {_KEY})" if "facilitator_key" in str(exc) else ""
        raise Failure(f"{exc}{hint}", USAGE) from exc


def _list_faults(session: Session, package: ModuleType) -> None:
    names = sorted(package.FAULTS)
    if session.as_json:
        put({"faults": names})
    else:
        click.echo("\n".join(names))
