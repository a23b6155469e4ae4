"""The marketplace's documents and their traps."""

from __future__ import annotations

from typing import Any

import pytest

from tests.sandbox.buyer import Buyer
from tests.sandbox.conftest import Open
from x402_mask.sandbox import Sandbox


def get(buyer: Buyer, path: str) -> Any:
    response = buyer.http.get(path)
    assert response.status_code == 200
    return response.json()


def search(buyer: Buyer, query: str) -> Any:
    return get(buyer, f"/api/catalog/search?q={query}")


def test_discovery(shop: Sandbox, buyer: Buyer) -> None:
    document = get(buyer, "/.well-known/server402.json")
    assert document["schemaVersion"] == "server402.discovery.v1"
    assert list(document)[:6] == [
        *("schemaVersion", "name", "description"),
        *("language", "audience", "baseUrl"),
    ]
    assert document["baseUrl"] == shop.url
    payment = document["payment"]
    assert payment["createPayment"] == f"{shop.url}/api/payments", "here it is a string"
    assert payment["flow"]["createPayment"]["url"] == f"{shop.url}/api/payments"
    assert payment["verifyPayment"] == f"{shop.url}/api/payments/{{paymentId}}"
    assert (payment["paymentHeader"], payment["type"]) == ("X-Payment-Token", "http-402")


@pytest.mark.parametrize(
    ("build", "providers"),
    [("older", ["x402_facilitator"]), ("newer", ["x402_facilitator", "x402_xiao_wallet"])],
)
def test_the_builds_differ(opened: Open, build: str, providers: list[str]) -> None:
    _, buyer = opened(build=build)
    assert get(buyer, "/.well-known/server402.json")["payment"]["providers"] == providers
    envelope = search(buyer, "mask")
    assert ("generatedAtBeijing" in envelope) == (build == "newer")
    text = buyer.http.get("/services/mask-refinement/llms.txt").text
    assert ("returned token" in text) == (build == "older")
    assert "USD 0.20" in text


def test_the_guide_and_the_plain_texts(buyer: Buyer) -> None:
    guide = get(buyer, "/api/agent-guide")
    assert guide["schemaVersion"] == "server402.agent-guide.v1"
    assert guide["payment"]["createPayment"]["method"] == "POST"
    assert guide["endpoints"]["openapi"].endswith("/openapi.json")
    for path in ("/ai.txt", "/llms.txt", "/services", "/services/timestamp"):
        assert "timestamp" in buyer.http.get(path).text
    assert buyer.http.get("/services/none").status_code == 404


def test_search_items_have_the_documented_keys(buyer: Buyer) -> None:
    found = search(buyer, "mask-refinement")
    assert found["schemaVersion"] == "server402.catalog.search.v1"
    assert found["expandedTerms"]
    item = next(s for s in found["services"] if s["id"] == "mask-refinement")
    documented = """id canonicalId internalServiceId name displayName description
        descriptionForModel category keywords useCases limitations tags method endpoint
        legacyEndpoint endpointAliases inputTypes outputTypes inputSchema outputSchema
        exampleRequest exampleResponse pricing payment quality discovery"""
    assert set(item) == set(documented.split())
    assert item["inputSchema"]["required"] == ["ImageURL", "MaskImageURL"]
    assert item["pricing"] == {
        "amountCents": 20,
        "currency": "USD",
        "policyId": "image-api",
        "settleMode": "settle_first",
        "billingMode": "per_call",
        "maxCalls": 1,
        "allowReuse": False,
        "bindClient": True,
    }
    assert item["payment"] == {"providerId": "x402-base-usdc", "provider": "x402_facilitator"}
    assert item["legacyEndpoint"] == "/api/tools/aliyun-imageseg-refine-mask"
    create = item["discovery"]["paymentFlow"]["createPayment"]
    assert create["url"] == "/api/payments", "here it is relative"


def test_the_first_hit_is_a_trap(buyer: Buyer) -> None:
    found = search(buyer, "mask-refinement")
    assert [s["id"] for s in found["services"]] == ["random-uuid", "mask-refinement"]
    assert found["total"] == 2


def test_one_service_has_null_tags_and_no_schemas(buyer: Buyer) -> None:
    (item,) = search(buyer, "clock")["services"]
    assert (item["id"], item["tags"]) == ("timestamp", None)
    assert not {"category", "keywords", "inputSchema", "exampleRequest"} & set(item)


def test_an_empty_and_a_vain_search(buyer: Buyer) -> None:
    assert search(buyer, "")["total"] == get(buyer, "/api/catalog")["total"] == 3
    vain = search(buyer, "weather")
    assert (vain["total"], vain["services"], "expandedTerms" in vain) == (0, [], False)


def test_openapi_has_the_attested_placeholder(buyer: Buyer) -> None:
    document = get(buyer, "/openapi.json")
    assert document == get(buyer, "/api/catalog/openapi.json")
    operation = document["paths"]["/api/tools/mask-refinement"]["post"]
    assert operation["operationId"] == "mask_refinement"
    example = operation["responses"]["402"]["content"]["application/json"]["example"]
    assert example["accepts"][0]["payTo"] == "0xMerchantAddress"
    assert set(document["components"]["securitySchemes"]) == {
        "PaymentToken",
        "X402PaymentSignature",
    }


def test_wrong_methods_and_unknown_services(buyer: Buyer) -> None:
    wrong = buyer.http.get("/api/tools/mask-refinement")
    assert (wrong.status_code, wrong.headers["Allow"]) == (405, "POST")
    assert buyer.http.post("/api/tools/timestamp").status_code == 405
    unknown = buyer.http.post("/api/tools/none")
    assert (unknown.status_code, "error" in unknown.json()) == (404, True)
    large = buyer.http.post("/api/tools/mask-refinement", content=b"x" * 65_537)
    assert large.status_code == 413


def test_prices_shown_are_the_live_ones(opened: Open) -> None:
    _, buyer = opened(price_cents={"timestamp": 9})
    (item,) = search(buyer, "clock")["services"]
    assert item["pricing"]["amountCents"] == 9
    assert buyer.offer("/api/tools/timestamp")["accepts"][0]["amount"] == "90000"
