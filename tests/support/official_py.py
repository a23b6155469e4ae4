"""The official Python x402 packages as the other side: a seller, and a facilitator over HTTP."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from decimal import Decimal
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from web3 import Web3
from x402 import x402Facilitator, x402ResourceServer
from x402.http.middleware.fastapi import payment_middleware
from x402.http.types import PaymentOption, RouteConfig
from x402.mechanisms.evm import FacilitatorWeb3Signer
from x402.mechanisms.evm.exact import (
    register_exact_evm_facilitator,
    register_exact_evm_server,
)
from x402.schemas.helpers import parse_payment_payload, parse_payment_requirements

from tests.support.chain import NETWORK, Chain
from tests.support.loopback import ServedApp

CHUNKS = 5
PAID_ROUTES = ("GET /paid", "POST /api/tools/mask-refinement", "GET /stream", "GET /flaky")


def official_facilitator(chain: Chain) -> x402Facilitator:
    """Return the official facilitator for v1 and v2, settling on *chain* from its own account."""
    # Its own account, because the official signer counts nonces in memory.
    signer = FacilitatorWeb3Signer(Web3.to_hex(chain.account().key), chain.url)
    return register_exact_evm_facilitator(x402Facilitator(), signer, NETWORK)


class OfficialSeller(ServedApp):
    """The official FastAPI seller with the official facilitator in its own process.

    Sells ``GET /paid`` (JSON), ``POST /api/tools/mask-refinement`` (echoes the JSON it was sent),
    ``GET /stream`` (`CHUNKS` chunks) and ``GET /flaky``, which fails with a 503 as many times as
    `faults` says, after the proof was verified, before it is settled. ``GET /free`` costs nothing.

    Attributes:
        url: its origin.
        pay_to: a fresh address that receives the money.
        amount: the price in atomic units.
        faults: how many more times ``/flaky`` fails.
        proofs: (path, ``PAYMENT-SIGNATURE``) of every request that carried one, oldest first.
    """

    def __init__(self, chain: Chain, price: str = "0.20", max_timeout_s: int = 60) -> None:
        """Sell every paid route for *price* USD, in USDC on *chain*."""
        self.pay_to = chain.account().address
        self.amount = int(Decimal(price) * 10**6)
        self.faults = 0
        self.proofs: list[tuple[str, str]] = []
        server = register_exact_evm_server(x402ResourceServer(official_facilitator(chain)), NETWORK)
        option = PaymentOption("exact", self.pay_to, f"${price}", NETWORK, max_timeout_s)
        routes = {route: RouteConfig(option, mime_type="application/json") for route in PAID_ROUTES}
        app = _shop()
        app.get("/flaky")(self._flaky)
        app.middleware("http")(payment_middleware(routes, server))
        app.middleware("http")(self._note)
        super().__init__(app)

    async def _flaky(self) -> JSONResponse:
        if self.faults:
            self.faults -= 1
            return JSONResponse({"error": "try again"}, 503)
        return JSONResponse({"flaky": "content"})

    async def _note(
        self, request: Request, call_next: Callable[[Request], Awaitable[Response]]
    ) -> Response:
        if proof := request.headers.get("payment-signature"):
            self.proofs.append((request.url.path, proof))
        return await call_next(request)


def _shop() -> FastAPI:
    app = FastAPI()

    @app.get("/paid")
    async def paid() -> dict[str, str]:
        return {"paid": "content"}

    @app.get("/free")
    async def free() -> dict[str, str]:
        return {"free": "content"}

    @app.post("/api/tools/mask-refinement")
    async def tool(request: Request) -> dict[str, Any]:
        return {"echo": await request.json()}

    @app.get("/stream")
    async def stream() -> StreamingResponse:
        return StreamingResponse(_chunks(), media_type="text/plain")

    return app


async def _chunks() -> AsyncIterator[str]:
    for number in range(CHUNKS):
        yield f"chunk {number}\n"


class FacilitatorServer(ServedApp):
    """The official facilitator behind ``/supported``, ``/verify`` and ``/settle``, for v1 and v2.

    Attributes:
        calls: (path, x402 version) of every POST, oldest first.
    """

    def __init__(self, chain: Chain) -> None:
        """Settle on *chain*."""
        self.calls: list[tuple[str, int]] = []
        self._facilitator = official_facilitator(chain)
        app = FastAPI()
        app.get("/supported")(self._supported)
        app.post("/verify")(self._judge)
        app.post("/settle")(self._judge)
        super().__init__(app)

    async def _supported(self) -> JSONResponse:
        return JSONResponse(_wire(self._facilitator.get_supported()))

    async def _judge(self, request: Request) -> JSONResponse:
        body = json.loads(await request.body())
        payload = parse_payment_payload(body["paymentPayload"])
        version = payload.x402_version
        wanted = parse_payment_requirements(version, body["paymentRequirements"])
        self.calls.append((request.url.path, version))
        settling = request.url.path == "/settle"
        act = self._facilitator.settle if settling else self._facilitator.verify
        return JSONResponse(_wire(await act(payload, wanted)))


def _wire(model: Any) -> Any:
    """Return what the official wire models send: camel case, nothing null."""
    return model.model_dump(mode="json", by_alias=True, exclude_none=True)
