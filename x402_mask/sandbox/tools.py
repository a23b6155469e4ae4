"""The services as MCP tools at ``/mcp``, over streamable HTTP by the official SDK's server.

A tool call is put to the same counter as an HTTP call, and the answer is told as MCP tells it:
the proof comes in ``_meta["x402/payment"]``, a token in the argument ``paymentToken``, and the
settlement goes back in ``_meta["x402/payment-response"]`` (x402 ``transports-v2/mcp.md``).
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

import anyio
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from x402_mask.sandbox import catalog
from x402_mask.sandbox.cashier import HANG_UP, HangUp
from x402_mask.sandbox.challenge import encode_header
from x402_mask.sandbox.payments import client_id

if TYPE_CHECKING:
    from mcp.server.context import ServerRequestContext
    from mcp.server.lowlevel import Server
    from mcp.types import (
        CallToolRequestParams,
        CallToolResult,
        ListToolsResult,
        PaginatedRequestParams,
    )
    from starlette.responses import Response
    from starlette.types import Receive, Scope, Send

    from x402_mask.sandbox.catalog import Json, Service
    from x402_mask.sandbox.challenge import Tariff
    from x402_mask.sandbox.payments import TokenDesk
    from x402_mask.sandbox.settings import SandboxSettings

PATH: Final = "/mcp"
PAYMENT: Final = "x402/payment"
SETTLEMENT: Final = "x402/payment-response"
TOKEN: Final = "paymentToken"  # noqa: S105  # an argument's name
RESOURCE: Final = "x402_mask.sandbox.resource"
"""ASGI scope key: what a request that came by MCP is about."""

_TOKEN_SCHEMA: Final = {"description": "A paid payment's token.", "type": "string"}


class Counter(Protocol):
    """Where a call is paid for; the shop, as far as tools need it."""

    @property
    def settings(self) -> SandboxSettings:
        """What the sandbox was told."""
        raise NotImplementedError

    @property
    def tariff(self) -> Tariff:
        """What asks to be paid."""
        raise NotImplementedError

    @property
    def desk(self) -> TokenDesk:
        """Where tokens are had."""
        raise NotImplementedError

    async def sell(self, request: Request, service: Service, header: str, body: bytes) -> Response:
        """Perform for a proof, or say why it does not pay."""
        raise NotImplementedError

    async def redeem(self, request: Request, service: Service, token: str, body: bytes) -> Response:
        """Perform for a token, or say why it buys nothing."""
        raise NotImplementedError


def tools_route(counter: Counter) -> Route:
    """The route of the MCP endpoint; without the ``mcp`` extra it says what is missing."""
    try:
        import mcp

        served = hasattr(mcp, "MCPError")  # which its first version lacks
        return Route(PATH, _Endpoint(_server(counter))) if served else _nothing()
    except ModuleNotFoundError as missing:
        if (missing.name or "").partition(".")[0] != "mcp":
            raise
        return _nothing()


def _nothing() -> Route:
    return Route(PATH, _absent, methods=["GET", "POST", "DELETE"])


async def _absent(_request: Request) -> Response:
    return PlainTextResponse("no tools here: pip install 'x402-mask[mcp]'\n", status_code=404)


class _Endpoint:
    """Each request is a session of its own, so that the application needs no lifespan."""

    def __init__(self, server: Server[Any]) -> None:
        self._server = server

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        from mcp.server.streamable_http_manager import StreamableHTTPSessionManager

        manager = StreamableHTTPSessionManager(self._server, stateless=True)
        async with manager.run():
            await manager.handle_request(scope, receive, send)


def _server(counter: Counter) -> Server[Any]:
    from mcp.server.lowlevel import Server

    tools = _Tools(counter)
    return Server(
        "x402_mask sandbox", version="1", on_list_tools=tools.listed, on_call_tool=tools.call
    )


@dataclass(frozen=True, slots=True)
class _Tools:
    counter: Counter

    async def listed(
        self, _context: ServerRequestContext[Any], _params: PaginatedRequestParams | None
    ) -> ListToolsResult:
        """Every service as a tool."""
        from mcp.types import ListToolsResult, Tool

        return ListToolsResult(
            tools=[
                Tool(name=s.tool_name, description=s.description, input_schema=_schema(s))
                for s in catalog.SERVICES
            ]
        )

    async def call(
        self, context: ServerRequestContext[Any], params: CallToolRequestParams
    ) -> CallToolResult:
        """Challenge, or take a proof or a token and perform."""
        service = next((s for s in catalog.SERVICES if s.tool_name == params.name), None)
        arguments = dict(params.arguments or {})
        token = arguments.pop(TOKEN, None)
        proof: Any = dict(params.meta or {}).get(PAYMENT)
        if service is None:
            return _told({"error": f"there is no tool {params.name[:64]!r}"}, is_error=True)
        if token is not None and proof is not None:
            return _told({"error": "send one proof of payment, not several"}, is_error=True)
        request, body = _request(context, params.name), json.dumps(arguments).encode()
        if token is not None:
            response = await self.counter.redeem(request, service, str(token), body)
        elif proof is not None:
            response = await self.counter.sell(request, service, encode_header(proof), body)
        else:
            url = f"mcp://tool/{params.name}"
            response = self.counter.tariff.challenge(service, url, "payment required")
            if self.counter.settings.mcp_challenge == "payment":
                return await self._payment(request, service)
        return await self._translated(request, params.name, service, response)

    async def _payment(self, request: Request, service: Service) -> CallToolResult:
        """A marketplace's own 402: a payment object, to be paid before the tool is called again."""
        client = client_id(request, self.counter.settings)
        document = self.counter.desk.show(await self.counter.desk.create(service, client))
        document["error"] = "payment required"
        if self.counter.settings.payments_ask == "accepts":
            document |= self.counter.tariff.document(service, request.scope[RESOURCE], "unpaid")
        return _told(document, is_error=True)

    async def _translated(
        self, request: Request, tool: str, service: Service, response: Response
    ) -> CallToolResult:
        """An HTTP answer as MCP tells it."""
        if isinstance(response, HangUp):
            await _hang_up(request)
        document, told = _document(response), _settlement(response)
        if response.status_code == 402 and told is not None:  # settling was tried, and failed
            url = f"mcp://tool/{tool}"
            reason = f"Payment settlement failed: {told.get('errorReason')}"
            again = self.counter.tariff.document(service, url, reason)
            return _told({**again, SETTLEMENT: told}, is_error=True)
        if response.status_code == 402:
            return self._challenge(tool, document)
        meta = None if told is None else {SETTLEMENT: told}
        if response.status_code >= 500:
            return _said("Internal Server Error", None, is_error=True, meta=meta)
        return _told(document, is_error=response.status_code >= 400, meta=meta)

    def _challenge(self, tool: str, document: Json) -> CallToolResult:
        from mcp import MCPError

        error = {"code": 402, "message": "payment required", "data": document}
        match self.counter.settings.mcp_challenge:
            case "text":
                return _said(json.dumps(document), None, is_error=True)
            case "wrapped":
                return _told({"x402/error": error}, is_error=True)
            case "prefixed":
                text = f"Error executing tool {tool}: {json.dumps(document)}"
                return _said(text, None, is_error=True)
            case "error":
                raise MCPError(402, "payment required", document)
            case "structured" | "payment":
                return _told(document, is_error=True)


def _schema(service: Service) -> Json:
    """The service's input, and where a token goes."""
    schema = service.input_schema or {"type": "object"}
    return {**schema, "properties": {**schema.get("properties", {}), TOKEN: _TOKEN_SCHEMA}}


def _request(context: ServerRequestContext[Any], tool: str) -> Request:
    """The HTTP request the call came by, as a request for the tool."""
    came = context.request
    assert isinstance(came, Request)  # this server is only mounted on HTTP
    return Request({**came.scope, RESOURCE: f"mcp://tool/{tool}"}, came.receive)


async def _hang_up(request: Request) -> None:
    cut = request.scope.get("extensions", {}).get(HANG_UP)
    if cut is None:
        raise RuntimeError("this ASGI server offers no way to cut a connection")
    cut()
    await anyio.sleep_forever()  # until the server notices that nobody listens


def _document(response: Response) -> Json:
    """The JSON of an answer; a challenge that went into the header is in its body for MCP."""
    found: Json = json.loads(bytes(response.body) or b"{}")
    header = response.headers.get("PAYMENT-REQUIRED")
    return found if header is None else {**json.loads(base64.b64decode(header)), **found}


def _settlement(response: Response) -> Json | None:
    for name in ("PAYMENT-RESPONSE", "X-PAYMENT-RESPONSE"):
        if name in response.headers:
            told: Json = json.loads(base64.b64decode(response.headers[name]))
            return told
    return None


def _told(document: Json, *, is_error: bool, meta: Json | None = None) -> CallToolResult:
    return _said(json.dumps(document), document, is_error=is_error, meta=meta)


def _said(
    text: str, structured: Json | None, *, is_error: bool, meta: Json | None = None
) -> CallToolResult:
    from mcp.types import CallToolResult, TextContent

    return CallToolResult(
        content=[TextContent(type="text", text=text)],
        structured_content=structured,
        is_error=is_error,
        _meta=meta,
    )
