"""A paid tool call interrupted at any line of the library, and arguments that are too much."""

from __future__ import annotations

import asyncio
import sys
import time
from typing import Any

import pytest

from tests.faults.lines import Lines
from tests.mcp.kit import ORIGIN, Shop, asks, connected, document, payer_of
from x402_mask import MemoryLedger, PaymentRefused
from x402_mask.mcp import PaidSession, receipt_of
from x402_mask.mcp._weight import weight

pytestmark = pytest.mark.timeout(200)

STRIDE = 61


def interrupted(at: int) -> tuple[Lines, list[str]]:
    """One call interrupted there, and the identical one; what is wrong."""
    shop, payer = Shop(asks(document())), payer_of(ledger=MemoryLedger())
    lines, found = Lines(at, MemoryError), list[str]()

    async def scenario() -> None:
        async with connected(shop) as session:
            paid = PaidSession(session, payer, ORIGIN)
            first: Any = None
            with lines:
                try:
                    first = await paid.call_tool("make_thing", {"a": 1})
                except MemoryError:
                    pass
                finally:
                    sys.settrace(None)
            if first is None and any(
                p.outcome == "settled" and not p.open for p in payer.payments()
            ):
                found.append("recorded as delivered")
            again = await paid.call_tool("make_thing", {"a": 1})
            if receipt_of(again) is None:
                found.append("the identical call is not paid")
            if first is None and len(shop.authorizations) > 1:
                found.append(f"{len(shop.authorizations)} live signatures")

    asyncio.run(scenario())
    return lines, [f"{lines.where}: {text}" for text in found]


def test_a_tool_call_interrupted_at_any_line() -> None:
    """An identical call shows the same proof, unless the first one's caller has the result."""
    for _ in range(2):
        lines, found = interrupted(0)
        assert not found
    assert lines.count > 400
    for at in range(7, lines.count, STRIDE):
        found += interrupted(at)[1]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "arguments",
    [
        {"picture": "x" * (30 << 20)},
        {"numbers": [0] * (5 << 20)},
        {"x" * (9 << 20): 1},
        {"deep": [[{"a": ["y" * (1 << 20)] * 10}]]},
    ],
    ids=["text", "numbers", "name", "shared"],
)
def test_too_many_arguments_are_refused_early(arguments: dict[str, Any]) -> None:
    """Before anything is sent, and without writing them out."""
    shop, payer = Shop(asks(document())), payer_of()

    async def scenario() -> float:
        async with connected(shop) as session:
            begun = time.perf_counter()
            with pytest.raises(PaymentRefused, match="8 MiB") as caught:
                await PaidSession(session, payer, ORIGIN).call_tool("make_thing", arguments)
            assert caught.value.reason == "too_large"
            return time.perf_counter() - begun

    assert asyncio.run(scenario()) < 0.5
    assert shop.calls == []


def test_a_picture_as_text_is_paid_for() -> None:
    shop, payer = Shop(asks(document())), payer_of()

    async def scenario() -> Any:
        async with connected(shop) as session:
            paid = PaidSession(session, payer, ORIGIN)
            return await paid.call_tool("make_thing", {"picture": "x" * (2 << 20)})

    assert receipt_of(asyncio.run(scenario())) is not None


def test_what_weighs_how_much() -> None:
    assert weight({"a": [1, 2]}, 10**6) == 4 * 64 + 1
    assert weight({"a": "b" * 100}, 10**6) == 2 * 64 + 101
    cycle: list[Any] = []
    cycle.append(cycle)
    assert weight(cycle, 10**6) > 10**6
