"""What a 402 says, in the four shapes it comes in, and what a settlement header says."""

from __future__ import annotations

import base64
import json
import threading
from typing import TYPE_CHECKING, Any

from starlette.responses import JSONResponse, Response

from x402_mask.sandbox.verify import Terms

if TYPE_CHECKING:
    from collections.abc import Mapping

    from x402_mask.sandbox.catalog import Json, Service
    from x402_mask.sandbox.settings import SandboxSettings

NO_STORE = {"Cache-Control": "no-store"}


class SortedJSON(JSONResponse):
    """JSON with sorted keys, as the marketplace writes its own documents."""

    def render(self, content: Any) -> bytes:
        """Write the body."""
        return json.dumps(content, sort_keys=True, ensure_ascii=False).encode()


def encode_header(document: Json) -> str:
    """Base64 of JSON, as every x402 header is written."""
    return base64.b64encode(json.dumps(document, separators=(",", ":")).encode()).decode()


class Tariff:
    """The live prices, and the offers and challenges made of them."""

    def __init__(self, settings: SandboxSettings) -> None:
        self._settings = settings
        self._rises: dict[str, int] = {}
        self._lock = threading.Lock()

    def _list_price(self, service: Service) -> int:
        return self._settings.price_cents.get(service.id, service.cents)

    def cents(self, service: Service) -> int:
        """The live price in USD cents."""
        return self._list_price(service) * (1 + self._rises.get(service.id, 0))

    def rise(self, service: Service) -> None:
        """Make the live price dearer by the list price."""
        with self._lock:
            self._rises[service.id] = self._rises.get(service.id, 0) + 1

    def terms(self, service: Service, url: str) -> Terms:
        """The live offer for *service* at *url*."""
        amount = self.cents(service) * 10 ** (self._settings.decimals - 2)
        v1 = self._settings.challenge == "v1"
        offer = self._v1_offer if v1 else self._offer
        return Terms(
            offer=offer(service, amount, url),
            extensions={} if v1 else _extensions(service, self._settings),
            amount=amount,
        )

    def _offer(self, service: Service, amount: int, _url: str) -> Json:
        offer: Json = {
            "scheme": "exact",
            "network": self._settings.network,
            "amount": str(amount),
            "asset": self._settings.asset,
            "payTo": self._settings.pay_to,
            "maxTimeoutSeconds": self._settings.max_timeout,
        }
        if self._settings.challenge == "attested":
            return offer | {"outputSchema": _schema(service)}
        return offer | {"extra": self._domain()}

    def _v1_offer(self, service: Service, amount: int, url: str) -> Json:
        return {
            "scheme": "exact",
            "network": self._settings.network_on_wire,
            "maxAmountRequired": str(amount),
            "resource": url,
            "description": service.description,
            "mimeType": "application/json",
            "outputSchema": _schema(service),
            "payTo": self._settings.pay_to,
            "maxTimeoutSeconds": self._settings.max_timeout,
            "asset": self._settings.asset,
            "extra": self._domain(),
        }

    def _domain(self) -> Json:
        return {"name": self._settings.asset_name, "version": self._settings.asset_version}

    def document(self, service: Service, url: str, error: str) -> Json:
        """The challenge as a document, in the chosen shape."""
        terms = self.terms(service, url)
        base: Json = {"error": error, "accepts": [terms.offer]}
        match self._settings.challenge:
            case "attested":
                return base | {"extensions": terms.extensions}
            case "v1":
                return {"x402Version": 1} | base
            case "v2-header" | "v2-body":
                about = {
                    "url": url,
                    "description": service.description,
                    "mimeType": "application/json",
                }
                more = {"resource": about, "extensions": terms.extensions}
                return {"x402Version": 2} | base | more

    def challenge(
        self, service: Service, url: str, error: str = "payment required", **more: Any
    ) -> Response:
        """The 402 that asks for *service* to be paid; *more* goes into the body."""
        document = self.document(service, url, error)
        if self._settings.challenge == "v2-header":
            headers = NO_STORE | {"PAYMENT-REQUIRED": encode_header(document)}
            return SortedJSON(more, status_code=402, headers=headers)
        return SortedJSON(document | more, status_code=402, headers=NO_STORE)


def _schema(service: Service) -> Json:
    source: Json = {"type": "http", "method": service.method, "discoverable": True}
    if service.method == "POST":
        properties = (service.input_schema or {}).get("properties", {})
        source |= {"bodyType": "json", "bodyFields": properties}
    return {"input": source, "output": service.output_schema or {"type": "object"}}


def _extensions(service: Service, settings: SandboxSettings) -> dict[str, Json]:
    source: Json = {"type": "http", "method": service.method}
    if service.method == "POST":
        source |= {"bodyType": "json", "body": service.example_request or {}}
    output = {"type": "json", "example": service.example_response or {}}
    extensions: dict[str, Json] = {
        "bazaar": {
            "description": service.description,
            "info": {"input": source, "output": output},
            "schema": {"type": "object"},
        }
    }
    if settings.payment_identifier != "off":
        schema = {
            "type": "object",
            "properties": {
                "required": {"type": "boolean"},
                "id": {"type": "string", "pattern": "^[A-Za-z0-9_-]{16,128}$"},
            },
        }
        required = settings.payment_identifier == "required"
        extensions["payment-identifier"] = {"info": {"required": required}, "schema": schema}
    return extensions


def settlement_header(settings: SandboxSettings, content: Json) -> Mapping[str, str]:
    """The header that tells how settlement went, by the name the chosen shape uses."""
    name = "X-PAYMENT-RESPONSE" if settings.challenge == "v1" else "PAYMENT-RESPONSE"
    return {name: encode_header(content)}
