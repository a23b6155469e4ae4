"""A tool call cancelled at every await: nothing is paid twice, and no cancellation is lost."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.mcp.kit import ORIGIN, Shop, asks, connected, document, made, payer_of
from tests.transport.test_cancel import MOST_AWAITS, Contended, Stepped
from x402_mask import Cap
from x402_mask.mcp import PaidSession, receipt_of

CAPS: dict[str, tuple[Cap, ...]] = {
    "paid": (Cap("0.20", per="day"),),
    "refused": (Cap("0.01", per="day"),),
    "returned": (Cap("0.01", per="day"),),
    "free": (Cap("1", per="day"),),
}


async def cancelled(end: str, number: int, ledger: type[Any]) -> bool:
    """Whether the call had so many awaits; what must hold is checked."""
    shop = Shop(made() if end == "free" else asks(document()))
    answered = "return" if end == "returned" else "raise"
    payer = payer_of(ledger=ledger(), caps=CAPS[end], on_refusal=answered)
    async with connected(shop) as session:
        paid = PaidSession(session, payer, ORIGIN)
        one = Stepped(
            paid.call_tool("make_thing", {"a": 1}),
            number,
            lambda: asyncio.current_task().cancel(),  # type: ignore[union-attr]
        )
        task = asyncio.ensure_future(_awaited(one))
        await asyncio.wait({task})
        if one.count < number:
            return False
        assert task.cancelled(), f"at {number}: {task}"
        if end == "paid":
            again = await paid.call_tool("make_thing", {"a": 1})
            assert receipt_of(again) is not None, f"at {number}: the identical call is not paid"
            assert len(shop.authorizations) == 1, f"at {number}: two live signatures"
            left = payer.spend()[0].left
            assert left == payer.spend()[0].limit / 2, f"at {number}: {left} left"
    return True


async def _awaited(one: Stepped) -> Any:
    return await one


@pytest.mark.parametrize("end", CAPS)
def test_cancelled_at_every_await(end: str) -> None:
    async def every() -> int:
        for number in range(1, MOST_AWAITS):
            if not await cancelled(end, number, Contended):
                return number
        raise AssertionError("a call that never ends")

    assert asyncio.run(every()) > (4 if end == "paid" else 1)
