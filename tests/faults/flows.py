"""Calls of more than one step, to be interrupted at any line: paid by tokens, and of MCP tools.

The marketplace gives what a token is for as often as it is shown: an answer that was lost can be had
again.  So whatever was interrupted, an identical call ends well, and one price is taken.
"""

from __future__ import annotations

from functools import cache
from typing import Any, ClassVar, Final

from tests.faults.lines import Trial
from tests.mcp.kit import Shop, asks, connected, document, made
from tests.tokens.bazaar import PRICE, SERVICE, Bazaar
from tests.transport.kit import SHOP, Kind, run
from x402_mask import Cap, MemoryLedger, Payer, SQLiteLedger
from x402_mask._flow.tokens import purchase
from x402_mask.mcp import PaidSession

PREFER: Final = ("held-token", "token")
CLIENTS: Final = (Kind("httpx", "sync", "client"), Kind("httpx", "asyncio", "client"))
TOOL: Final = Kind("httpx", "asyncio", "mcp")
"""MCP has no sync client."""


@cache
def _market() -> Bazaar:
    """One for all trials: its socket serves those that do not go by memory."""
    return Bazaar()


def market(calls: int) -> Bazaar:
    """A marketplace with empty books, whose tokens are good for so many calls."""
    found = _market()
    found.sales, found.moved, found.nonces, found.served = {}, [], {}, 0
    found.asks, found.calls = "server402", calls
    found.before = {"redeem": lambda _hit: found._goods([])}
    found.hits.clear()
    return found


class Buying(Trial):
    """A call for which a token is bought."""

    price: ClassVar[int] = PRICE
    calls: ClassVar[int] = 1

    def payer_on(self, ledger: MemoryLedger | SQLiteLedger) -> Payer:
        return self.rig.make_payer(
            ledger=ledger,
            caps=[Cap("5", per="total")],
            prefer=PREFER,
            poll_unpaid=0.5,
            poll_paid=1.0,
        )

    def prepare(self) -> None:
        purchase._FIRST_DELAY_S = 0.01  # type: ignore[misc]
        self.market = market(self.calls)
        self.rig._routes = self.market._scripts
        self.url = f"{SHOP}/api/tools/{SERVICE}"

    def taken(self) -> int:
        return max(len(self.market.moved), len(self.market.bought))


class Holding(Buying):
    """A call that is paid for by a token which an earlier one bought."""

    calls: ClassVar[int] = 9
    before: ClassVar[int] = 1

    def prepare(self) -> None:
        super().prepare()
        assert run(self.kind.colour, self.call) == 200


class Tool(Trial):
    """A call of a tool over MCP, by a proof of its own."""

    price: ClassVar[int] = 100_000
    prefer: ClassVar[tuple[str, ...]] = ("x402",)

    def payer_on(self, ledger: MemoryLedger | SQLiteLedger) -> Payer:
        self.market = market(1)
        return self.rig.make_payer(
            ledger=ledger,
            caps=[Cap("5", per="total")],
            origins=[self.market.origin],
            prefer=self.prefer,
            poll_unpaid=0.5,
            poll_paid=1.0,
        )

    def prepare(self) -> None:
        self.shop = Shop(asks(document()))

    async def made(self) -> object:
        async with connected(self.shop) as session:
            try:
                paid = PaidSession(session, self.rig.payer, self.market.origin)
                result: Any = await paid.call_tool("mask_refinement", {"picture": "a"})
            except BaseException as failure:  # the session ends as it would without
                return type(failure)
            assert not result.is_error  # no line of ours: its caller has it by now
            return 200

    def taken(self) -> int:
        return len(self.shop.authorizations)


class BuyingTool(Tool):
    """A call of a tool for which a token is bought, over HTTP."""

    price: ClassVar[int] = PRICE
    prefer: ClassVar[tuple[str, ...]] = PREFER
    calls: ClassVar[int] = 1

    def prepare(self) -> None:
        purchase._FIRST_DELAY_S = 0.01  # type: ignore[misc]
        self.market = market(self.calls)
        known = {
            k: v for k, v in document(str(PRICE)).items() if k not in ("x402Version", "resource")
        }
        self.shop = Shop(asks(known), made())

    def taken(self) -> int:
        return max(len(self.market.moved), len(self.market.bought))


class HoldingTool(BuyingTool):
    """A call of a tool that is paid for by a token which an earlier one bought."""

    calls: ClassVar[int] = 9
    before: ClassVar[int] = 1

    def prepare(self) -> None:
        super().prepare()
        assert run(self.kind.colour, self.call) == 200


FLOWS: Final = (
    *((kind, trial) for kind in CLIENTS for trial in (Buying, Holding)),
    *((TOOL, trial) for trial in (Tool, BuyingTool, HoldingTool)),
)
