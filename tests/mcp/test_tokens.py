"""The marketplace's tokens over MCP: bought over HTTP, spent as the argument ``paymentToken``."""

from __future__ import annotations

from typing import Any

import pytest

from tests.mcp.kit import Shop, asks, connected, document, over_http, payer_of, run
from x402_mask import Cap, MemoryLedger, Payer, PaymentError, TokenFlowError, Wallet
from x402_mask.mcp import PaidSession, receipt_of
from x402_mask.sandbox import Sandbox

TOKENS = ("held-token", "token")


def payer_for(box: Sandbox, wallet: Wallet | None) -> Payer:
    return Payer(
        wallet,
        caps=[Cap("1", per="day")],
        origins=[box.url],
        ledger=MemoryLedger(),
        prefer=TOKENS,
        poll_unpaid=1,
    )


CASES: dict[str, Any] = {
    "by a balance, at once": (False, {"auto_paid": True}),
    "by a balance, later": (False, {"auto_paid": 1}),
    "by x402, asked with a 402": (True, {"payments_ask": "402"}),
    "by x402, from its offers": (True, {"payments_ask": "accepts"}),
    "challenged by an error": (False, {"auto_paid": True, "mcp_challenge": "error"}),
    "challenged in text": (False, {"auto_paid": True, "mcp_challenge": "prefixed"}),
}


@pytest.mark.parametrize("case", CASES)
def test_a_token_is_bought_and_spent(case: str) -> None:
    """One payment per call, each token used up, no x402 proof for the tool itself."""
    signs, settings = CASES[case]
    with Sandbox(**settings) as box:
        payer = payer_for(box, Wallet.from_key("11" * 32) if signs else None)

        async def scenario() -> None:
            async with over_http(box.url) as session:
                paid = PaidSession(session, payer, box.url)
                for _ in range(2):
                    result = await paid.call_tool("random_uuid", {})
                    assert not result.is_error and "uuid" in result.structured_content
                    receipt = receipt_of(result)
                    assert receipt is not None
                    assert (receipt.route, str(receipt.usd)) == ("token", "0.05")

        run(scenario)
        assert [payment.remaining for payment in box.book.payments] == [0, 0]
        assert [(p.state, p.route) for p in payer.payments()] == [("settled", "token")] * 2
        assert len(box.book.settlements) == (2 if signs else 0)


def test_a_token_that_nobody_pays_for() -> None:
    """Nothing moved: said so, and the reservation is given back."""
    with Sandbox() as box:
        payer = payer_for(box, None)

        async def scenario() -> None:
            async with over_http(box.url) as session:
                with pytest.raises(PaymentError) as caught:
                    await PaidSession(session, payer, box.url).call_tool("random_uuid", {})
                assert caught.value.at_risk is False and caught.value.response.is_error

        run(scenario)
        assert payer.spend()[0].left == 1


def test_a_server_on_stdio_sells_no_tokens() -> None:
    """It has no HTTP origin to buy them at; a signature would do, if the owner prefers one."""
    asked = {k: v for k, v in document().items() if k not in ("x402Version", "resource")}
    shop = Shop(asks(asked))

    async def scenario() -> None:
        async with connected(shop) as session:
            only = payer_of("mcp:shop", prefer=("token",))
            with pytest.raises(TokenFlowError, match="no HTTP origin") as caught:
                await PaidSession(session, only, "mcp:shop").call_tool("make_thing")
            assert caught.value.at_risk is False
            both = payer_of("mcp:shop", prefer=("token", "x402"))
            result = await PaidSession(session, both, "mcp:shop").call_tool("make_thing")
            receipt = receipt_of(result)
            assert receipt is not None and receipt.route == "x402"

    run(scenario)
