"""The marketplace's documents: discovery, guide, catalog, OpenAPI and the pages of a service."""

from __future__ import annotations

import html
import json
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import TYPE_CHECKING

from x402_mask.sandbox import catalog
from x402_mask.sandbox.settings import BASE_USDC, SandboxSettings

if TYPE_CHECKING:
    from x402_mask.sandbox.catalog import Json, Service
    from x402_mask.sandbox.challenge import Tariff

SYNONYMS = MappingProxyType({"mask": ["segmentation", "matting"], "time": ["clock", "date"]})
NAME = "Server402 sandbox"
PURPOSE = "A local marketplace of paid APIs to build and test buyers against."


class Pages:
    """Writes the documents for a sandbox seen at a base URL."""

    def __init__(self, settings: SandboxSettings, tariff: Tariff) -> None:
        self._settings = settings
        self._tariff = tariff

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._settings.clock(), UTC)

    def discovery(self, base: str) -> Json:
        """``/.well-known/server402.json``; here ``createPayment`` is a string."""
        providers = [catalog.PROVIDER]
        if self._settings.build == "newer":
            providers.append("x402_xiao_wallet")
        return {
            "schemaVersion": "server402.discovery.v1",
            "name": NAME,
            "description": PURPOSE,
            "language": "en",
            "audience": ["agents", "developers"],
            "baseUrl": base,
            "catalogUrl": f"{base}/api/catalog",
            "searchUrl": f"{base}/api/catalog/search",
            "openapiUrl": f"{base}/api/catalog/openapi.json",
            "openaiFunctionsUrl": f"{base}/api/catalog/openai-functions.json",
            "servicesUrl": f"{base}/services",
            "agentGuideUrl": f"{base}/ai.txt",
            "apisJsonUrl": f"{base}/apis.json",
            "apiCatalogUrl": f"{base}/.well-known/api-catalog",
            "auditUrl": f"{base}/api/discovery/audit",
            "mcp": {
                "transport": "streamable_http",
                "url": f"{base}/mcp",
                "protocolVersion": "2025-06-18",
            },
            "payment": {
                "type": "http-402",
                "paymentHeader": "X-Payment-Token",
                "createPayment": f"{base}/api/payments",
                "verifyPayment": f"{base}/api/payments/{{paymentId}}",
                "providers": providers,
                "flow": catalog.payment_flow(f"{base}/api/payments"),
            },
        }

    def guide(self, base: str) -> Json:
        """``/api/agent-guide``; here ``createPayment`` is an object."""
        return {
            "schemaVersion": "server402.agent-guide.v1",
            "name": NAME,
            "purpose": PURPOSE,
            "endpoints": {
                "apiCatalog": f"{base}/.well-known/api-catalog",
                "apisJson": f"{base}/apis.json",
                "audit": f"{base}/api/discovery/audit",
                "catalog": f"{base}/api/catalog",
                "discovery": f"{base}/.well-known/server402.json",
                "llms": f"{base}/llms.txt",
                "mcp": f"{base}/mcp",
                "openaiFunctions": f"{base}/api/catalog/openai-functions.json",
                "openapi": f"{base}/openapi.json",
                "payments": f"{base}/api/payments",
                "search": f"{base}/api/catalog/search",
                "sitemap": f"{base}/sitemap.xml",
            },
            "workflow": [
                "Search the catalog for a service.",
                "Read its schemas, its pricing and discovery.paymentFlow.",
                "Call it without payment and read the 402, or create a payment directly.",
                "Pay, then retry with X-Payment-Token or PAYMENT-SIGNATURE; in MCP, paymentToken.",
            ],
            "payment": catalog.payment_flow(f"{base}/api/payments"),
        }

    def search(self, query: str) -> Json:
        """``/api/catalog/search``; ``total`` counts matches."""
        found = catalog.search(query)
        at = self._now()
        written = at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        envelope: Json = {"schemaVersion": "server402.catalog.search.v1", "generatedAt": written}
        if self._settings.build == "newer":
            beijing = (at + timedelta(hours=8)).strftime("%Y-%m-%d %H:%M:%S")
            envelope |= {"generatedAtBeijing": beijing, "timezone": "Asia/Shanghai"}
        expanded = [term for word, terms in SYNONYMS.items() if word in query for term in terms]
        return (
            envelope
            | {"query": query}
            | ({"expandedTerms": expanded} if expanded else {})
            | {
                "filters": {"limit": 10},
                "total": len(found),
                "services": [catalog.item(s, self._tariff.cents(s), written) for s in found[:10]],
            }
        )

    def openapi(self, base: str) -> Json:
        """``/openapi.json``; its 402 example is the attested placeholder, not an offer."""
        schemes = {
            "PaymentToken": {"in": "header", "name": "X-Payment-Token", "type": "apiKey"},
            "X402PaymentSignature": {"in": "header", "name": "PAYMENT-SIGNATURE", "type": "apiKey"},
        }
        return {
            "openapi": "3.1.0",
            "info": {"title": NAME, "version": "1"},
            "servers": [{"url": base}],
            "paths": {s.endpoint: {s.method.lower(): _operation(s)} for s in catalog.SERVICES},
            "components": {"securitySchemes": schemes},
        }

    def service_text(self, service: Service, base: str) -> str:
        """``/services/<id>/llms.txt``."""
        cents = self._tariff.cents(service)
        schema = service.input_schema or {"type": "object"}
        lines = [
            f"# {service.name}",
            "",
            f"> {service.description}",
            "",
            f"- Id: {service.id}",
            f"- Endpoint: {service.method} {base}{service.endpoint}",
            f"- Price: USD {cents // 100}.{cents % 100:02d} per call",
            f"- MCP tool: {service.tool_name}",
            f"- Input schema: {json.dumps(schema)}",
            "",
            self._how_to_pay(),
        ]
        return "\n".join(lines) + "\n"

    def _how_to_pay(self) -> str:
        if self._settings.build == "newer":
            return (
                "Call the endpoint once to get a 402 with accepts[], or create a payment with "
                "POST /api/payments. Pay Base USDC with PAYMENT-SIGNATURE, then retry the same "
                "request."
            )
        return (
            "Call without payment and receive 402, or create a payment with POST /api/payments "
            "and serviceId; pay, then retry with the returned token in X-Payment-Token, or with "
            "PAYMENT-SIGNATURE."
        )

    def service_page(self, service: Service, base: str) -> str:
        """``/services/<id>``: the text of `service_text`, as a page."""
        text = html.escape(self.service_text(service, base))
        return _page(service.name, f"<pre>{text}</pre>")

    def services_page(self) -> str:
        """``/services``."""
        links = (f'<li><a href="/services/{s.id}">{s.name}</a></li>' for s in catalog.SERVICES)
        return _page(NAME, f"<ul>{''.join(links)}</ul>")

    def guide_text(self, base: str) -> str:
        """``/ai.txt`` and ``/llms.txt``."""
        guide = self.guide(base)
        steps = (f"{number}. {step}" for number, step in enumerate(guide["workflow"], 1))
        services = (f"- {base}/services/{s.id}/llms.txt" for s in catalog.SERVICES)
        return "\n".join([f"# {NAME}", "", PURPOSE, "", *steps, "", *services]) + "\n"


def _page(title: str, content: str) -> str:
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
        f"<h1>{title}</h1>{content}</html>"
    )


def _operation(service: Service) -> Json:
    operation: Json = {
        "operationId": service.tool_name,
        "summary": service.description,
        "security": [{"PaymentToken": []}, {"X402PaymentSignature": []}],
        "responses": {
            "200": {
                "description": "OK",
                "content": _json_content(service.output_schema or {"type": "object"}),
            },
            "402": {
                "description": "Payment required",
                "content": {"application/json": {"example": _example_402(service)}},
            },
        },
    }
    if service.method == "POST":
        schema = service.input_schema or {"type": "object"}
        operation["requestBody"] = {"required": True, "content": _json_content(schema)}
    return operation


def _json_content(schema: Json) -> Json:
    return {"application/json": {"schema": schema}}


def _example_402(service: Service) -> Json:
    offer = {
        "amount": "10000",
        "asset": BASE_USDC,
        "maxTimeoutSeconds": 300,
        "network": "eip155:8453",
        "outputSchema": service.output_schema or {"type": "object"},
        "payTo": "0xMerchantAddress",
        "scheme": "exact",
    }
    extensions = {"bazaar": {"description": service.description}}
    return {"accepts": [offer], "error": "payment required", "extensions": extensions}
