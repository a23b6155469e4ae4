"""The services on sale, as the marketplace describes them.

Key names and values are Server402's (catalog search, pages of June 2026), its irregularities
included: one service has null tags and no schemas, and a search for an exact id also finds others.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

PROVIDER_ID = "x402-base-usdc"
PROVIDER = "x402_facilitator"

Json = dict[str, Any]

PAYMENT_REQUEST_SCHEMA: Json = {
    "properties": {
        "providerId": {"description": "Optional payment provider.", "type": "string"},
        "serviceId": {
            "description": "Canonical service id; legacy ids are accepted.",
            "type": "string",
        },
    },
    "required": ["serviceId"],
    "type": "object",
}
PAYMENT_RESPONSE_SCHEMA: Json = {
    "properties": {
        "amountCents": {"type": "integer"},
        "billingMode": {"type": "string"},
        "clientId": {"type": "string"},
        "currency": {"type": "string"},
        "expiresAt": {"format": "date-time", "type": "string"},
        "internalServiceId": {"type": "string"},
        "maxCalls": {"type": "integer"},
        "paidAt": {"format": "date-time", "type": "string"},
        "payTo": {"type": "string"},
        "paymentId": {"type": "string"},
        "provider": {"type": "string"},
        "providerId": {"type": "string"},
        "remainingCalls": {"type": "integer"},
        "serviceId": {"type": "string"},
        "status": {"type": "string"},
        "token": {"type": "string"},
    },
    "type": "object",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """One thing on sale; *cents* is its list price in USD cents."""

    id: str
    name: str
    description: str
    method: Literal["GET", "POST"]
    cents: int
    policy_id: str
    legacy_id: str | None = None
    tags: list[str] | None = None
    words: tuple[str, ...] = ()
    """What a search finds it by, besides its id and name."""
    calls: int
    """How often it was called, which is what search results are ordered by."""
    input_schema: Json | None = None
    output_schema: Json | None = None
    example_request: Json | None = None
    example_response: Json | None = None
    about: Json = field(default_factory=dict)
    """Catalog keys that not every service has, such as ``category``."""

    @property
    def endpoint(self) -> str:
        """The path it is called at."""
        return f"/api/tools/{self.id}"

    @property
    def legacy_endpoint(self) -> str | None:
        """An older path that names the same service."""
        return f"/api/tools/{self.legacy_id}" if self.legacy_id else None

    @property
    def tool_name(self) -> str:
        """The MCP tool and the OpenAPI operation."""
        return self.id.replace("-", "_")


_IMAGE_URL = {"description": "Public http(s) URL of an image.", "format": "uri", "type": "string"}

MASK_REFINEMENT = Service(
    id="mask-refinement",
    name="Mask refinement",
    description="Refine a coarse segmentation mask so that it follows the edges of the picture.",
    method="POST",
    cents=20,
    policy_id="image-api",
    legacy_id="aliyun-imageseg-refine-mask",
    tags=["image", "segmentation", "mask"],
    words=("image", "segmentation", "matting", "cutout", "edge", "picture"),
    calls=31,
    input_schema={
        "additionalProperties": False,
        "properties": {"ImageURL": _IMAGE_URL, "MaskImageURL": _IMAGE_URL},
        "required": ["ImageURL", "MaskImageURL"],
        "type": "object",
    },
    output_schema={
        "properties": {
            "code": {"type": "string"},
            "content": {"type": "string"},
            "data": {"type": "object"},
            "message": {"type": "string"},
            "requestId": {"type": "string"},
        },
        "required": ["requestId", "data"],
        "type": "object",
    },
    example_request={
        "ImageURL": "https://example.com/photo.png",
        "MaskImageURL": "https://example.com/mask.png",
    },
    example_response={
        "code": "200",
        "content": "mask refined",
        "data": {"ImageURL": "https://example.com/refined.png"},
        "message": "success",
        "requestId": "0f8fad5b-d9cb-469f-a165-70867728950e",
    },
    about={
        "category": "image",
        "displayName": "Mask refinement",
        "keywords": ["mask", "refine", "segmentation"],
        "limitations": ["Binary upload is not offered.", "Parameter names are case-sensitive."],
        "useCases": ["Clean the outline of a cut-out."],
        "inputTypes": ["image_url"],
        "outputTypes": ["image_url"],
    },
)

RANDOM_UUID = Service(
    id="random-uuid",
    name="Random UUID",
    description="Return a random version 4 UUID.",
    method="GET",
    cents=5,
    policy_id="tiny-api",
    tags=["utility"],
    words=("identifier", "mask", "name"),
    calls=950,
    input_schema={"properties": {}, "type": "object"},
    output_schema={
        "properties": {"uuid": {"format": "uuid", "type": "string"}},
        "required": ["uuid"],
        "type": "object",
    },
    example_request={},
    example_response={"uuid": "0f8fad5b-d9cb-469f-a165-70867728950e"},
    about={"category": "utility", "useCases": ["Name the file of a mask-refinement result."]},
)

TIMESTAMP = Service(
    id="timestamp",
    name="Timestamp",
    description="Return the current time.",
    method="GET",
    cents=3,
    policy_id="metered-time",
    words=("time", "clock", "date"),
    calls=12044,
)

SERVICES = (MASK_REFINEMENT, RANDOM_UUID, TIMESTAMP)


def find(service_id: str) -> Service | None:
    """The service of that canonical or legacy id."""
    return next((s for s in SERVICES if service_id in (s.id, s.legacy_id)), None)


def search(query: str) -> list[Service]:
    """The services any word of *query* fits, most called first; all of them for no query."""
    words = set(query.lower().replace("-", " ").split())
    found = [s for s in SERVICES if not words or words & set(_searchable(s).split())]
    return sorted(found, key=lambda service: -service.calls)


def _searchable(service: Service) -> str:
    return " ".join((service.id, service.name, *service.words)).lower().replace("-", " ")


def payment_flow(url: str) -> Json:
    """How to buy a token, with *url* as the place to create the payment."""
    return {
        "type": "http-402",
        "createPayment": {
            "method": "POST",
            "url": url,
            "bodySchema": PAYMENT_REQUEST_SCHEMA,
            "responseSchema": PAYMENT_RESPONSE_SCHEMA,
        },
    }


def item(service: Service, cents: int, generated_at: str) -> Json:
    """*service* as an item of a catalog search; keys a service does not have are left out."""
    schemas = {
        "inputSchema": service.input_schema,
        "outputSchema": service.output_schema,
        "exampleRequest": service.example_request,
        "exampleResponse": service.example_response,
    }
    legacy = {"legacyEndpoint": service.legacy_endpoint} if service.legacy_endpoint else {}
    internal = {"internalServiceId": service.legacy_id} if service.legacy_id else {}
    return {
        "id": service.id,
        "canonicalId": service.id,
        **internal,
        "name": service.name,
        "description": service.description,
        "descriptionForModel": service.description,
        **service.about,
        "tags": service.tags,
        "method": service.method,
        "endpoint": service.endpoint,
        **legacy,
        "endpointAliases": list(legacy.values()),
        **{key: value for key, value in schemas.items() if value is not None},
        "pricing": _pricing(service, cents),
        "payment": {"providerId": PROVIDER_ID, "provider": PROVIDER},
        "quality": _quality(service, generated_at),
        "discovery": {
            "toolName": service.tool_name,
            "searchText": _searchable(service),
            "aliases": [service.legacy_id] if service.legacy_id else [],
            "localeHints": ["en"],
            "paymentFlow": payment_flow("/api/payments"),
        },
    }


def _pricing(service: Service, cents: int) -> Json:
    return {
        "amountCents": cents,
        "currency": "USD",
        "policyId": service.policy_id,
        "settleMode": "settle_first",
        "billingMode": "per_call",
        "maxCalls": 1,
        "allowReuse": False,
        "bindClient": True,
    }


def _quality(service: Service, at: str) -> Json:
    return {
        "qualityScore": 90,
        "healthStatus": "healthy",
        "healthCheckedAt": at,
        "latencyMs": 120,
        "successRate": 1,
        "callCount": service.calls,
        "executionCount": service.calls,
        "successCount": service.calls,
        "errorCount": 0,
        "paymentRequireds": service.calls * 2,
        "lastCallAt": at,
    }
