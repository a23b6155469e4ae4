"""The sandbox as an ASGI application."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from x402_mask.sandbox import catalog
from x402_mask.sandbox.book import Book, Settlement
from x402_mask.sandbox.cashier import Cashier
from x402_mask.sandbox.chain import Chain, SettlementFailed
from x402_mask.sandbox.challenge import NO_STORE, SortedJSON, Tariff, settlement_header
from x402_mask.sandbox.faults import Faults
from x402_mask.sandbox.pages import Pages
from x402_mask.sandbox.payments import TokenDesk, TokenRefused, client_id
from x402_mask.sandbox.pictures import Pictures
from x402_mask.sandbox.replays import Answer, Conflict, Replays
from x402_mask.sandbox.services import perform
from x402_mask.sandbox.settings import SandboxSettings
from x402_mask.sandbox.tools import RESOURCE, tools_route
from x402_mask.sandbox.verify import Proof, Rejected, read_proof

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from starlette.requests import Request

    from x402_mask.sandbox.catalog import Service

BODY_BYTES_MAX = 64 * 1024


def create_app(settings: SandboxSettings | None = None) -> Starlette:
    """Build the marketplace; ``app.state`` has its ``settings``, ``book`` and ``faults``."""
    shop = _Shop.of(settings or SandboxSettings())
    return _starlette(shop)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shop:
    settings: SandboxSettings
    book: Book
    faults: Faults
    tariff: Tariff
    cashier: Cashier
    desk: TokenDesk
    pages: Pages
    pictures: Pictures
    replays: Replays

    @classmethod
    def of(cls, settings: SandboxSettings) -> _Shop:
        book = Book(
            payee=settings.pay_to, default_balance=settings.default_balance, clock=settings.clock
        )
        faults, tariff = Faults(settings.faults), Tariff(settings)
        chain = Chain(settings) if settings.rpc is not None else None
        common: dict[str, Any] = {
            "settings": settings,
            "book": book,
            "tariff": tariff,
            "faults": faults,
        }
        return cls(
            **common,
            cashier=Cashier(**common, chain=chain, unfinished={}),
            desk=TokenDesk(**common, chain=chain, claimed=set()),
            pages=Pages(settings, tariff),
            pictures=Pictures(settings),
            replays=Replays(),
        )

    # -- calling a service

    async def call(self, request: Request) -> Response:
        """``/api/tools/<id>``: challenge, or take a proof or a token and perform."""
        service = _service(request.path_params["service"])
        if request.method != service.method:
            raise HTTPException(405, f"use {service.method}", {"Allow": service.method})
        body = await _body(request)
        proof, token = self._proof_header(request), request.headers.get("X-Payment-Token")
        if proof is not None and token is not None:
            raise HTTPException(400, "send one proof of payment, not several")
        if token is not None:
            return await self.redeem(request, service, token, body)
        if proof is not None:
            return await self.sell(request, service, proof, body)
        return self.tariff.challenge(service, _url(request))

    def _proof_header(self, request: Request) -> str | None:
        name = "X-PAYMENT" if self.settings.challenge == "v1" else "PAYMENT-SIGNATURE"
        found = request.headers.getlist(name)
        if len(found) > 1:
            raise HTTPException(400, "send one proof of payment, not several")
        return found[0] if found else None

    async def _perform(self, request: Request, service: Service, body: bytes) -> Response:
        return await perform(service, body, _base(request), self.pictures, self.settings.clock)

    async def redeem(self, request: Request, service: Service, token: str, body: bytes) -> Response:
        """Perform for a token, or say why it buys nothing."""
        try:
            self.desk.redeem(token, service, client_id(request, self.settings))
        except TokenRefused as refused:
            shown = {} if refused.payment is None else {"payment": self.desk.show(refused.payment)}
            return self.tariff.challenge(service, _url(request), refused.error, **shown)
        return self.cashier.deliver(await self._perform(request, service, body), None)

    async def sell(self, request: Request, service: Service, header: str, body: bytes) -> Response:
        """Perform for a proof, or say why it does not pay."""

        async def sell(proof: Proof) -> Answer:
            settlement = await self.cashier.take(proof, service, _url(request))
            return await self._perform(request, service, body), settlement

        return await self._accept(request, service, header, sell, self._identifier)

    def _identifier(self, proof: Proof) -> str | None:
        """The key an answer is kept under, if the buyer may and did name one."""
        mode = self.settings.payment_identifier
        given = proof.extensions.get("payment-identifier")
        info = given.get("info") if isinstance(given, dict) else None
        identifier = info.get("id") if isinstance(info, dict) else None
        if mode == "off" or (mode == "optional" and identifier is None):
            return None
        if not isinstance(identifier, str) or not _is_identifier(identifier):
            raise HTTPException(400, "payment-identifier needs an id of 16 to 128 [A-Za-z0-9_-]")
        return identifier

    async def _accept(
        self,
        request: Request,
        service: Service,
        header: str,
        produce: Callable[[Proof], Awaitable[Answer]],
        key_of: Callable[[Proof], str | None],
    ) -> Response:
        """Take the proof in *header*, and answer with what *produce* makes of it."""
        try:
            proof = read_proof(header, 1 if self.settings.challenge == "v1" else 2)
            key = key_of(proof)
            if key is None:
                return self.cashier.deliver(*await produce(proof))
            digest = f"{service.id} {proof.digest}"
            answer, new = await self.replays.once(key, digest, lambda: produce(proof))
        except Rejected as rejected:
            more = {"detail": rejected.detail} if rejected.detail else {}
            return self.tariff.challenge(service, _url(request), rejected.reason, **more)
        except SettlementFailed as failed:
            return self.cashier.failure(failed)
        except Conflict:
            raise HTTPException(409, "payment-identifier was used with another proof") from None
        return self.cashier.deliver(*answer) if new else self._again(*answer)

    def _again(self, response: Response, settlement: Settlement) -> Response:
        receipt = self.cashier.receipt(settlement)
        response.headers.update(settlement_header(self.settings, receipt))
        return response

    # -- marketplace payments

    async def create_payment(self, request: Request) -> Response:
        """``POST /api/payments``."""
        wanted = _payment_request(await _body(request))
        service = _service(wanted["serviceId"])
        asks = self.settings.payments_ask
        header = self._proof_header(request) if asks != "nothing" else None
        if header is not None:
            return await self._sell_payment(request, service, header, wanted.get("paymentId"))
        if asks == "402":
            return self.tariff.challenge(service, _url(request))
        payment = await self.desk.create(service, client_id(request, self.settings))
        document = self.desk.show(payment)
        if asks == "accepts" and document["status"] == "pending":
            document |= self.tariff.document(service, _url(request), "payment required")
        return SortedJSON(document, status_code=201, headers=NO_STORE)

    async def _sell_payment(
        self, request: Request, service: Service, header: str, payment_id: str | None
    ) -> Response:
        client = client_id(request, self.settings)

        async def sell(proof: Proof) -> Answer:
            settlement = await self.cashier.take(proof, service, _url(request))
            payment = await self.desk.buy(service, client, payment_id)
            return SortedJSON(self.desk.show(payment), status_code=201), settlement

        # The same proof names the same payment, so a buyer that lost the answer can resume.
        return await self._accept(
            request, service, header, sell, lambda proof: f"payment of {proof.digest}"
        )

    async def read_payment(self, request: Request) -> Response:
        """``GET /api/payments/<id>``."""
        payment = self.book.payment(request.path_params["payment"])
        if payment is None:
            raise HTTPException(404, "there is no such payment")
        if payment.client_id != client_id(request, self.settings):
            raise HTTPException(403, "the payment belongs to another client")
        await self.desk.read(payment)
        document, headers = self.desk.show(payment), dict(NO_STORE)
        if document["status"] == "pending" and self.settings.retry_after is not None:
            headers["Retry-After"] = str(self.settings.retry_after)
        return SortedJSON(document, headers=headers)

    # -- documents

    def documents(self) -> list[Route]:
        pages = self.pages
        return [
            _json("/.well-known/server402.json", lambda r: pages.discovery(_base(r))),
            _json("/api/agent-guide", lambda r: pages.guide(_base(r))),
            _json("/api/catalog", lambda _: pages.search("")),
            _json("/api/catalog/search", lambda r: pages.search(r.query_params.get("q", ""))),
            _json("/api/catalog/openapi.json", lambda r: pages.openapi(_base(r))),
            _json("/openapi.json", lambda r: pages.openapi(_base(r))),
            _text("/ai.txt", lambda r: pages.guide_text(_base(r))),
            _text("/llms.txt", lambda r: pages.guide_text(_base(r))),
            _text("/services/{service}/llms.txt", self._service_text),
            _html("/services/{service}", self._service_page),
            _html("/services", lambda _: pages.services_page()),
        ]

    def _service_text(self, request: Request) -> str:
        return self.pages.service_text(_service(request.path_params["service"]), _base(request))

    def _service_page(self, request: Request) -> str:
        return self.pages.service_page(_service(request.path_params["service"]), _base(request))

    async def picture(self, request: Request) -> Response:
        """``/static/<path>``."""
        picture = self.pictures.get(request.path_params["path"])
        if picture is None:
            raise HTTPException(404, "there is no such picture")
        return Response(picture, media_type="image/png")


def _starlette(shop: _Shop) -> Starlette:
    routes = [
        Route("/api/tools/{service}", shop.call, methods=["GET", "POST"]),
        Route("/api/payments", shop.create_payment, methods=["POST"]),
        Route("/api/payments/{payment}", shop.read_payment, methods=["GET"]),
        Route("/static/{path:path}", shop.picture, methods=["GET"]),
        tools_route(shop),
        *shop.documents(),
    ]
    app = Starlette(routes=routes, exception_handlers={HTTPException: _say})
    app.state.settings = shop.settings
    app.state.book = shop.book
    app.state.faults = shop.faults
    return app


async def _say(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # Starlette calls it for nothing else
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)


def _base(request: Request) -> str:
    return str(request.base_url).rstrip("/")


def _url(request: Request) -> str:
    named: str | None = request.scope.get(RESOURCE)  # what is called there, where it is no URL
    return named or str(request.url.replace(query="", fragment=""))


def _service(service_id: str) -> Service:
    service = catalog.find(service_id)
    if service is None:
        raise HTTPException(404, f"there is no service {service_id[:64]!r}")
    return service


async def _body(request: Request) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > BODY_BYTES_MAX:
            raise HTTPException(413, f"the body is larger than {BODY_BYTES_MAX} bytes")
    return bytes(body)


def _payment_request(body: bytes) -> dict[str, Any]:
    try:
        wanted = json.loads(body)
    except (ValueError, RecursionError):
        raise HTTPException(400, "the body is not JSON") from None
    if not isinstance(wanted, dict) or not isinstance(wanted.get("serviceId"), str):
        raise HTTPException(400, "serviceId is required: a string")
    if wanted.get("providerId", catalog.PROVIDER_ID) != catalog.PROVIDER_ID:
        raise HTTPException(400, f"providerId must be {catalog.PROVIDER_ID}")
    return wanted


def _is_identifier(text: str) -> bool:
    return 16 <= len(text) <= 128 and all(c.isascii() and (c.isalnum() or c in "_-") for c in text)


def _json(path: str, write: Callable[[Request], dict[str, Any]]) -> Route:
    async def endpoint(request: Request) -> Response:
        return JSONResponse(write(request))

    return Route(path, endpoint, methods=["GET"])


def _text(path: str, write: Callable[[Request], str]) -> Route:
    async def endpoint(request: Request) -> Response:
        return PlainTextResponse(write(request))

    return Route(path, endpoint, methods=["GET"])


def _html(path: str, write: Callable[[Request], str]) -> Route:
    async def endpoint(request: Request) -> Response:
        return HTMLResponse(write(request))

    return Route(path, endpoint, methods=["GET"])
