"""Arguments are checked before they are paid for, as a body is over HTTP."""

from __future__ import annotations

import pytest

from tests.mcp.kit import over_http, payer_of, run
from x402_mask import InputRefused
from x402_mask.mcp import PaidSession, receipt_of
from x402_mask.sandbox import Sandbox


def test_arguments_that_the_service_would_refuse() -> None:
    """The challenge names the fields: what lacks one is not paid for, and nothing is signed."""
    with Sandbox() as box:
        payer = payer_of(box.url)
        good = {
            n: f"{box.url}/static/{f}.png"
            for n, f in (("ImageURL", "photo"), ("MaskImageURL", "mask"))
        }

        async def scenario() -> None:
            async with over_http(box.url) as session:
                paid = PaidSession(session, payer, box.url)
                with pytest.raises(InputRefused):
                    await paid.call_tool("mask_refinement", {**good, "ImageURL": 7})
                assert payer.payments() == [] and not box.book.settlements
                assert receipt_of(await paid.call_tool("mask_refinement", good)) is not None

        run(scenario)
