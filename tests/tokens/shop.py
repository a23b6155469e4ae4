"""Buyers of every plug point behind one face, and the checks that every purchase must stand."""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from decimal import Decimal
from importlib import import_module
from typing import Any

import anyio

from tests.tokens.bazaar import PRICE, Bazaar
from x402_mask import Cap, MemoryLedger, Payer, Wallet
from x402_mask._ledger.audit import verify

WALLET = Wallet.from_key("0x" + "11" * 32)
NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""For loopback; a context that loads the certificate store costs 30 ms each time."""
USD = Decimal(PRICE) / 10**6

SYNC = ("client", "attach", "transport", "auth")
ASYNC = ("async-client", "async-attach", "async-transport", "trio-client", "trio-attach")
FAMILY2 = ("httpx2:client", "httpx2:async-attach")
COLOURS = (*SYNC, *ASYNC, *FAMILY2)


def payer(bazaar: Bazaar, **options: Any) -> Payer:
    """A buyer at the marketplace, who waits for nothing long."""
    options.setdefault("ledger", MemoryLedger())
    options.setdefault("caps", [Cap("2", per="total")])
    options.setdefault("poll_unpaid", 0.5)
    options.setdefault("poll_paid", 1.0)
    wallet = options.pop("wallet", None)
    return Payer(wallet, origins=[bazaar.origin], **options)


def made(colour: str, buyer: Payer, **options: Any) -> Any:
    """A client of this colour."""
    family, _, colour = colour.rpartition(":")
    library = import_module(family or "httpx")
    ours = import_module(f"x402_mask.{family}" if family else "x402_mask.httpx")
    options = {"verify": NO_TLS, "trust_env": False, "timeout": 10, **options}
    style = colour.rpartition("-")[2]
    prefix = "Async" if "-" in colour else ""
    if style == "client":
        return getattr(ours, f"{prefix}Client")(buyer, **options)
    if style == "transport":
        inner = getattr(library, f"{prefix}HTTPTransport")(verify=NO_TLS, trust_env=False)
        options["transport"] = getattr(ours, f"{prefix}PaymentTransport")(buyer, inner)
        del options["verify"], options["trust_env"]
    client = getattr(library, f"{prefix}Client")(**options)
    if style == "auth":
        client.auth = ours.PaymentAuth(buyer)
    return ours.attach(client, buyer) if style == "attach" else client


def call(
    colour: str, buyer: Payer, url: str, times: int = 1, *, client: Any = None, **request: Any
) -> Any:
    """Call *url* and read the answers; the last one, or a list where *times* is more than one."""
    options = client or {}
    if "-" in colour:
        backend = "trio" if "trio" in colour else "asyncio"
        found = anyio.run(_acall, colour, buyer, url, times, options, request, backend=backend)
    else:
        with made(colour, buyer, **options) as opened:
            found = [opened.request("POST", url, **_body(request)) for _ in range(times)]
    return found[0] if times == 1 else found


async def _acall(
    colour: str, buyer: Payer, url: str, times: int, options: Any, request: Any
) -> list[Any]:
    async with made(colour, buyer, **options) as opened:
        return [await opened.request("POST", url, **_body(request)) for _ in range(times)]


def _body(request: dict[str, Any]) -> dict[str, Any]:
    return request if "content" in request else {"json": {"picture": "a"}, **request}


def counted(buyer: Payer) -> Decimal:
    """USD that counts against the first cap."""
    spend = buyer.spend()[0]
    return spend.settled + spend.held


def assert_sound(buyer: Payer, bazaar: Bazaar) -> None:
    """What moved is counted, the counters are the payments, and the history says the same."""
    states = ("reserved", "held", "settled")
    assert counted(buyer) == sum(p.usd for p in buyer.payments() if p.state in states)
    assert bazaar.worth <= counted(buyer) * 10**6 <= buyer.spend()[0].limit * 10**6
    report = verify(buyer.ledger)
    assert report.ok, report.problems
    assert not bazaar.errors, bazaar.errors


def states(buyer: Payer) -> list[str]:
    """The states of all payments, oldest first."""
    return [payment.state for payment in reversed(buyer.payments())]


def routes(receipts: Sequence[Any]) -> list[tuple[str, Decimal]]:
    """Route and price of each receipt."""
    return [(receipt.route, receipt.usd) for receipt in receipts]
