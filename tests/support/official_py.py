"""The official Python x402 packages as the other side: a seller, and a facilitator over HTTP."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from decimal import Decimal
from types import TracebackType
from typing import Any, Self

import uvicorn
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

CHUNKS = 5
PAID_ROUTES = ("GET /paid", "POST /api/tools/mask-refinement", "GET /stream", "GET /flaky")


class ServedApp:
    """An ASGI application on a free loopback port, run by uvicorn in a thread."""

    def __init__(self, app: Any) -> None:
        """Serve *app*; returns once it accepts connections.

        Raises:
            RuntimeError: it did not within ten seconds.
        """
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        config = uvicorn.Config(app, log_level="warning", access_log=False, lifespan="off")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._socket]}, daemon=True
        )
        self._thread.start()
        deadline = time.monotonic() + 60  # on a machine with much else to do
        while not self._server.started:
            if time.monotonic() > deadline or not self._thread.is_alive():
                raise RuntimeError("uvicorn did not start")
            time.sleep(0.005)

    def close(self) -> None:
        """Stop serving and wait for the thread."""
        self._server.should_exit = True
        self._server.force_exit = True
        self._thread.join(10)
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


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
