"""The official Python package's MCP seller (PyPI x402 2.25.0) is paid, and fails as it does."""

from __future__ import annotations

from typing import Any

import pytest
from mcp.types import CallToolResult
from x402 import x402ResourceServer
from x402.mcp.server_async import PaymentWrapperConfig, create_payment_wrapper
from x402.mechanisms.evm.exact import register_exact_evm_server
from x402.schemas import (
    PaymentRequirements,
    ResourceConfig,
    SettleResponse,
    SupportedKind,
    SupportedResponse,
    VerifyResponse,
)

from tests.mcp.kit import ORIGIN, Heard, Shop, connected, encoded, payer_of, run
from tests.support.seller import BASE, PAYEE, TRANSACTION, authorization_of, decode_proof
from x402_mask.mcp import PaidSession, receipt_of


class Facilitator:
    """Verifies by recovering the signature; settles, or says that it could not."""

    def __init__(self, failure: str | None) -> None:
        self.failure = failure

    def get_supported(self) -> SupportedResponse:
        kind = SupportedKind(x402_version=2, scheme="exact", network=BASE)
        return SupportedResponse(kinds=[kind])

    async def verify(self, payload: Any, requirements: PaymentRequirements) -> VerifyResponse:
        proof = decode_proof("", encoded(payload.model_dump(by_alias=True, exclude_none=True)))
        found = authorization_of(ORIGIN, proof)
        good = found is not None and str(found.value) == requirements.amount
        return VerifyResponse(is_valid=good, payer=None if found is None else found.payer)

    async def settle(self, payload: Any, _requirements: PaymentRequirements) -> SettleResponse:
        if self.failure is not None:
            return SettleResponse(
                success=False, error_reason=self.failure, transaction="", network=BASE
            )
        payer = payload.payload["authorization"]["from"]
        return SettleResponse(success=True, transaction=TRANSACTION, network=BASE, payer=payer)


def seller(failure: str | None = None, *, broken: bool = False) -> Shop:
    """A shop whose one tool is wrapped by the official package."""
    server = register_exact_evm_server(x402ResourceServer(Facilitator(failure)), BASE)
    server.initialize()
    accepts = server.build_payment_requirements(
        ResourceConfig(scheme="exact", network=BASE, pay_to=PAYEE, price="$0.10")
    )

    async def handler(arguments: dict[str, Any], _context: Any) -> dict[str, Any]:
        if broken:
            return {"content": [{"type": "text", "text": "it broke"}], "isError": True}
        return {"content": [{"type": "text", "text": f"made {arguments['n']}"}]}

    wrapped: Any = create_payment_wrapper(server, PaymentWrapperConfig(accepts=accepts))(handler)

    async def answer(call: Heard) -> CallToolResult:
        told = await wrapped(call.arguments, {"_meta": call.meta, "toolName": call.tool})
        return CallToolResult(
            content=told.content,
            structured_content=told.structured_content,
            is_error=told.is_error,
            _meta=told.meta,
        )

    return Shop(answer, answer)


CASES = {
    "served": (None, False, "settled", "made 1"),
    "settlement failed": ("insufficient_funds", False, "rejected", "insufficient_funds"),
    "the handler failed": (None, True, "unknown", "it broke"),
}


@pytest.mark.parametrize("case", CASES)
def test_the_official_seller(case: str) -> None:
    failure, broken, outcome, text = CASES[case]
    shop, payer = seller(failure, broken=broken), payer_of()

    async def scenario() -> list[CallToolResult]:
        async with connected(shop) as session:
            paid = PaidSession(session, payer, ORIGIN)
            return [await paid.call_tool("make_thing", {"n": 1}) for _ in range(2)]

    results = run(scenario)
    for result in results:
        receipt = receipt_of(result)
        assert receipt is not None and receipt.outcome == outcome
        assert text in result.content[0].text
    assert len(shop.proofs) == 2
    assert len(shop.authorizations) == (2 if case == "served" else 1)
