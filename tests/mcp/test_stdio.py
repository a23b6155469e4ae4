"""A seller on stdio: its origin is ``mcp:<name>``, listed like any other."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path

import anyio
import pytest
from mcp import ClientSession, StdioServerParameters, stdio_client

from tests.mcp.kit import payer_of, run
from x402_mask import Cap, CapExceeded, OriginRefused, SQLiteLedger
from x402_mask._services import Services, origin_of, parse_origins, path_of, tool_url
from x402_mask.mcp import PaidSession, receipt_of

SCRIPT = Path(__file__).with_name("shop_script.py")


@asynccontextmanager
async def shop() -> AsyncIterator[ClientSession]:
    server = StdioServerParameters(command=sys.executable, args=[str(SCRIPT)])
    with anyio.fail_after(30):
        async with stdio_client(server) as streams, ClientSession(*streams) as session:
            await session.initialize()
            yield session


def test_a_tool_that_is_sold_on_stdio(tmp_path: Path) -> None:
    """Paid under its own cap, written down under its own origin; not a cent for an unlisted one."""
    ledger = SQLiteLedger(tmp_path / "ledger.db")
    caps = [Cap("0.10", per="day", service="cut-out")]

    async def scenario() -> None:
        async with shop() as session:
            stranger = payer_of("mcp:other", "https://shop.example", caps=caps, ledger=ledger)
            with pytest.raises(OriginRefused, match="mcp:shop"):
                await PaidSession(session, stranger, "mcp:shop").call_tool("cut_out")
            paid = PaidSession(session, payer_of("mcp:shop", caps=caps, ledger=ledger), "mcp:shop")
            result = await paid.call_tool("cut_out", {"of": "a cat"})
            assert not result.is_error
            receipt = receipt_of(result)
            assert receipt is not None
            assert (receipt.origin, receipt.service) == ("mcp:shop", "cut-out")
            assert (receipt.outcome, receipt.usd) == ("settled", Decimal("0.10"))
            with pytest.raises(CapExceeded):
                await paid.call_tool("cut_out", {"of": "a dog"})

    run(scenario)
    (payment,) = payer_of("mcp:shop", caps=caps, ledger=ledger).payments()
    assert (payment.origin, payment.service, payment.state) == ("mcp:shop", "cut-out", "settled")
    ledger.close()


PLACES = {
    "mcp:shop": ("mcp:shop", ""),
    "mcp:shop/api/tools/x": ("mcp:shop", "/api/tools/x"),
    "mcp:my.Shop-2/": ("mcp:my.Shop-2", "/"),
}


@pytest.mark.parametrize(("url", "place"), PLACES.items())
def test_places_on_stdio(url: str, place: tuple[str, str]) -> None:
    assert (origin_of(url), path_of(url)) == place


@pytest.mark.parametrize("odd", ["mcp:", "mcp:a b", "mcp://shop", "mcp:shop/x", "mcp:a@b", "mcp:-"])
def test_what_names_no_server(odd: str) -> None:
    with pytest.raises(ValueError, match=r"mcp:|URL"):
        parse_origins([odd])


TOOLS = {
    ("https://shop.example/mcp", "mask_refinement"): "mask-refinement",
    ("https://shop.example", "aliyun_imageseg_refine_mask"): "mask-refinement",
    ("mcp:shop", "mask-refinement"): "mask-refinement",
    ("mcp:shop", "a/b"): "mcp:shop",
    ("mcp:shop", "../../x"): "mcp:shop",
    ("mcp:shop", "%2e%2e"): "mcp:shop",
    ("mcp:shop", "_hidden"): "mcp:shop",
    ("https://shop.example/mcp", "a/b"): "tools of the shop",
    ("https://shop.example", "tool with spaces"): "https://shop.example",
    ("https://shop.example", ""): "https://shop.example",
}


@pytest.mark.parametrize(("place", "tool"), TOOLS)
def test_the_service_of_a_tool(place: str, tool: str) -> None:
    """Contract 7: its id with dashes; what is no id is the endpoint's, by the owner's patterns."""
    services = Services({"tools of the shop": "https://shop.example/mcp"})
    assert services.name(tool_url(place, tool)) == TOOLS[place, tool]
    assert origin_of(tool_url(place, tool)) == origin_of(place)
    assert services.canonical("mcp:shop") == "mcp:shop"
    assert services.canonical("mcp:shop/api/tools/x") == "x"
