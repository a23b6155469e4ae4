"""The HTTP side of a tool call: one client per payment, bounded, to the call's own origin."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.mcp.kit import colours, run
from tests.support.seller import Hit, Reply, Seller
from x402_mask import TokenFlowError
from x402_mask._flow.effects import Fetch
from x402_mask.mcp._market import Market
from x402_mask.mcp._session import _request


@colours
def test_requests_of_one_payment(backend: str) -> None:
    """Headers, proof and body go out; cookies stay; redirects are answers; long bodies are none."""
    sent: list[int] = []

    def endless() -> Iterator[bytes]:
        for number in range(1_000):
            sent.append(number)
            yield b"x" * 65_536

    def answer(hit: Hit) -> Reply:
        if hit.path == "/long":
            return Reply(body=endless(), framing="chunked")
        if hit.path == "/moved":
            return Reply(status=307, headers=[("Location", "https://other.example/")])
        told = {"proof": hit.header("payment-signature"), "cookie": hit.header("cookie")}
        headers = [("Set-Cookie", "client=7"), ("Date", "Sun, 22 Nov 2026 12:00:00 GMT")]
        return Reply(status=201, headers=headers, body=json.dumps(told).encode())

    async def scenario() -> None:
        with Seller() as seller:
            for path in ("/api/payments", "/long", "/moved"):
                seller.on(path, answer)
            market = Market(seller.origin)
            assert not market.open
            proof = ("PAYMENT-SIGNATURE", "cHJvb2Y=")
            first = await market.fetch(
                Fetch(
                    method="POST",
                    path="/api/payments",
                    headers={"X-A": "1"},
                    content=b"{}",
                    proof=proof,
                )
            )
            assert (first.status, first.url) == (201, f"{seller.origin}/api/payments")
            assert json.loads(first.body or b"") == {"proof": proof[1], "cookie": None}
            assert first.headers["set-cookie"] == ["client=7"] and first.date == 1795348800
            second = await market.fetch(Fetch(method="GET", path="/api/payments"))
            assert json.loads(second.body or b"") == {"proof": None, "cookie": "client=7"}
            if backend == "asyncio":  # trio warns of generators that httpx leaves unfinished
                assert (await market.fetch(Fetch(method="GET", path="/long"))).body is None
                assert len(sent) < 1_000
            assert (await market.fetch(Fetch(method="GET", path="/moved"))).status == 307
            assert market.open
            await market.aclose()
            kinds = [hit.header("content-type") for hit in seller.hits[:2]]
            assert kinds == ["application/json", None]
            assert {hit.header("accept-encoding") for hit in seller.hits} == {"gzip, deflate"}
            assert [hit.header("x-a") for hit in seller.hits] == [
                "1",
                *[None] * (len(seller.hits) - 1),
            ]

    run(scenario, backend)


def test_a_server_on_stdio_sells_no_tokens() -> None:
    async def scenario() -> None:
        market = Market("mcp:shop")
        with pytest.raises(TokenFlowError, match="no HTTP origin") as caught:
            await market.fetch(Fetch(method="POST", path="/api/payments", content=b"{}"))
        assert caught.value.at_risk is False
        await market.aclose()

    run(scenario)


def test_a_token_is_an_argument() -> None:
    """And neither the caller's own arguments nor ``_meta`` are touched by it."""
    given = {"a": 1}
    request = _request("thing", given, None, ("X-Payment-Token", "secret"), {})
    assert request.params.arguments == {"a": 1, "paymentToken": "secret"}
    assert request.params.meta is None and given == {"a": 1}
