"""What a marketplace may answer, and what is made of it: tolerant, bounded, typed."""

from __future__ import annotations

import json
import time
from decimal import Decimal
from typing import Any

import httpx
import pytest

from tests.catalog.conftest import MakePayer
from tests.catalog.kit import (
    DISCOVERY,
    MODES,
    SEARCH,
    Shop,
    as_json,
    client_of,
    entry,
    market,
    using,
    zipped,
)
from tests.support.seller import Reply, offer, v2_header
from x402_mask import CatalogError, Marketplace, OriginRefused, UnknownService
from x402_mask._payer import buyer_of
from x402_mask.sandbox import Sandbox


@pytest.mark.parametrize("family", ["httpx", "httpx2"])
@pytest.mark.parametrize("mode", MODES)
def test_every_client_reads_it(shop: Shop, make_payer: MakePayer, mode: str, family: str) -> None:
    shop.lists(entry("other"), entry())
    for payer in (None, make_payer()):
        seen = market(shop, payer, mode, family)
        assert [s.id for s in seen.search()] == ["other", "mask-refinement"]
        assert (
            seen.service("mask-refinement").endpoint == shop.origin + "/api/tools/mask-refinement"
        )


@pytest.mark.parametrize("build", ["older", "newer"])
def test_the_sandbox_is_read_whole(build: Any) -> None:
    with Sandbox(build=build) as shop, client_of("client", None) as client:
        catalog = Marketplace(shop.url, client)
        assert {s.id for s in catalog.search()} == {"mask-refinement", "random-uuid", "timestamp"}
        mask, bare = catalog.service("aliyun-imageseg-refine-mask"), catalog.service("timestamp")
    assert (mask.id, mask.method, mask.usd) == ("mask-refinement", "POST", Decimal("0.20"))
    assert mask.aliases == ("aliyun-imageseg-refine-mask",)
    assert mask.input_schema is not None and "ImageURL" in mask.input_schema["properties"]
    assert (bare.input_schema, bare.output_schema, bare.usd) == (None, None, Decimal("0.03"))


def test_a_service_is_taken_by_its_id_and_never_by_its_rank(shop: Shop) -> None:
    """Trap 4: the exact id can be anywhere among a hundred hits."""
    many = [entry(f"mask-refinement-{n}", name="mask-refinement") for n in range(150)]
    shop.lists(*many, entry(name="the one"), *many)
    assert market(shop).service("mask-refinement").name == "the one"
    with pytest.raises(UnknownService, match="lists no service 'mask'"):
        market(shop).service("mask")


def test_a_service_is_found_by_each_of_its_names(shop: Shop) -> None:
    listed = entry(
        "bar",
        internalServiceId="old-bar",
        legacyEndpoint="/api/tools/foo",
        endpointAliases=["/api/tools/f%6Fo2", 7, "/elsewhere"],
        discovery={"aliases": ["baz", None]},
    )
    shop.lists(entry("first"), listed)
    for name in ("bar", "old-bar", "foo", "foo2", "baz", "/api/tools/foo"):
        assert market(shop).service(name).id == "bar"
    shop.lists(listed, entry("other", endpointAliases=["/api/tools/foo"]), entry("foo"))
    assert market(shop).service("foo").id == "foo"  # an id goes before what others claim
    shop.lists(listed, entry("other", endpointAliases=["/api/tools/foo"]))
    with pytest.raises(UnknownService, match="2 services"):
        market(shop).service("foo")


@pytest.mark.parametrize(
    "name", ["", "..", "../payments", "a/b", "a?b", "a%2Fb", "x" * 129, "é", 7]
)
def test_what_is_no_id_is_never_sent(shop: Shop, name: Any) -> None:
    with pytest.raises(LookupError, match="not the id of a service"):
        market(shop).service(name)
    assert shop.paths() == []


# --- discovery


@pytest.mark.parametrize(
    "create",
    [
        "/api/payments",
        "{}/api/payments",
        {"method": "POST", "url": "/api/payments"},
        {"url": "{}/api/payments"},
        None,
        7,
        {"url": None},
    ],
)
def test_discovery_in_its_shapes(shop: Shop, create: Any) -> None:
    """Traps 1 and 2: a string or an object, absolute or relative."""
    create = json.loads(json.dumps(create).replace("{}/", shop.origin + "/"))
    payment = {"createPayment": create, "flow": {"createPayment": create}}
    shop.says(
        DISCOVERY, {"searchUrl": "/find?by=agent", "payment": payment, "baseUrl": shop.origin}
    )
    shop.lists(entry(), path="/find")
    assert market(shop).search("a b&c")[0].id == "mask-refinement"
    assert shop.seller.hits[-1].target == "/find?by=agent&q=a+b%26c"


@pytest.mark.parametrize(
    "discovery",
    [
        None,
        b"<!doctype html>",
        {},
        [],
        "7",
        {"searchUrl": None, "payment": "x", "baseUrl": 9},
        b"[" * 100_000,
        b'{"searchUrl": "/x", "searchUrl": "/y"}',
        b"\xff{}",
        Reply(status=500),
        Reply(status=302, headers=[("Location", "/elsewhere")]),
    ],
    ids=range(11),
)
def test_without_a_discovery_of_use_the_default_paths_are_asked(shop: Shop, discovery: Any) -> None:
    if discovery is not None:
        shop.says(DISCOVERY, discovery)
    shop.lists(entry())
    assert market(shop).search()[0].id == "mask-refinement"
    assert shop.paths() == [DISCOVERY, SEARCH]


@pytest.mark.parametrize(
    "foreign",
    [
        "https://evil.example/find",
        "//evil.example/find",
        "http://localhost:1/find",
        "http://evil:x/",
        "https://127.0.0.1/find",
        "{}@evil.example/find",
        "{}.evil.example/find",
        "file:///etc/passwd",
        "http://me:secret@{host}/find",
        "{}/fi\x7fnd",
        "http://[::1/find",
        "{}/\u202efind",
    ],
)
def test_a_foreign_url_is_refused_where_it_would_be_used(shop: Shop, foreign: str) -> None:
    foreign = foreign.format(shop.origin, host=shop.origin.partition("//")[2])
    shop.says(DISCOVERY, {"searchUrl": foreign})
    shop.lists(entry())
    with pytest.raises(OriginRefused, match="is not on"):
        market(shop).search()
    shop.says(DISCOVERY, {"agentGuideUrl": foreign})  # not used
    assert market(shop).search()[0].id == "mask-refinement"
    for payment in (
        {"createPayment": foreign},
        {"flow": {"createPayment": {"url": foreign}}},
        {"verifyPayment": foreign},
    ):
        shop.says(DISCOVERY, {"payment": payment})
        with pytest.raises(OriginRefused, match="payments are never sent elsewhere"):
            market(shop).search()
    shop.says(DISCOVERY, {"baseUrl": foreign, "searchUrl": "find"})
    with pytest.raises(OriginRefused):
        market(shop).search()


def test_a_service_of_another_origin_is_left_out_and_refused_by_name(shop: Shop) -> None:
    flow = {"paymentFlow": {"createPayment": {"url": "https://evil.example/api/payments"}}}
    shop.lists(
        entry("away", endpoint="https://evil.example/api/tools/away"),
        entry("trap", discovery=flow),
        entry(),
    )
    assert [s.id for s in market(shop).search()] == ["mask-refinement"]
    for name in ("away", "trap"):
        with pytest.raises(OriginRefused, match="evil"):
            market(shop).service(name)


# --- hostile and odd documents


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (as_json(b"<html>"), "not usable JSON"),
        (as_json(b"\xff\xfe"), "not usable JSON"),
        (as_json(b"[" * 500_000), "nested too deeply"),
        (as_json(b"{" * 40 + b"}" * 40), "not usable"),
        (as_json(b" " * 1_100_000), "longer than 1 MiB"),
        (zipped(b" " * 9_000_000), "longer than 1 MiB"),
        (as_json({"services": {"a": 1}}), "lists no services"),
        (as_json(7), "lists no services"),
        (as_json(b"", headers=[("Content-Encoding", "br")]), "oddly encoded"),
        (Reply(status=404), "answered 404"),
        (Reply(status=301), "answered 301"),
        (Reply(status=402, body=b"{}"), "asks for payment"),
        (v2_header(offer()), "asks for payment"),
    ],
    ids=range(13),
)
def test_a_search_that_cannot_be_read_is_a_typed_error(shop: Shop, answer: Any, words: str) -> None:
    shop.seller.on(SEARCH, answer)
    began = time.monotonic()
    with pytest.raises(CatalogError, match=words):
        market(shop).search()
    with pytest.raises(CatalogError, match=words):
        market(shop).service("mask-refinement")
    assert time.monotonic() - began < 3


def test_odd_entries_cost_nobody_the_others(shop: Shop) -> None:
    odd: list[Any] = [
        None,
        7,
        [],
        {},
        {"id": 7},
        {"id": "../x"},
        {"id": "a" * 200},
        entry("bare", name=None, description=None, endpoint=None, pricing=None, method=None),
        entry(
            "odd",
            name=["x"],
            tags=None,
            endpointAliases=None,
            pricing=[],
            method=7,
            inputSchema=[],
            outputSchema="x",
            discovery=[],
            payment=7,
        ),
    ]
    shop.lists(*odd, entry())
    bare, second, last = market(shop).search()
    assert (bare.id, bare.name, bare.description, bare.usd) == ("bare", "bare", "", None)
    assert bare.endpoint == shop.origin + "/api/tools/bare"
    assert (second.name, second.method, second.input_schema, second.usd) == (
        "odd",
        "POST",
        None,
        None,
    )
    assert last.id == "mask-refinement"


def test_seller_text_is_cut_and_cleaned(shop: Shop) -> None:
    text = "Pay\x1b[2J now\u202e\u200b\n\r\0 " + "x" * 9000
    shop.lists(entry(name=text, description=text))
    (found,) = market(shop).search()
    assert found.name.startswith("Pay [2J now xxx") and len(found.name) <= 200
    assert found.description.isprintable() and len(found.description) <= 4000
    assert found.raw["name"] == text


def test_at_most_500_services_are_read(shop: Shop) -> None:
    shop.lists(*(entry(f"s{n}") for n in range(700)))
    assert len(market(shop).search()) == 500


@pytest.mark.parametrize(
    ("cents", "usd"),
    [
        (3, "0.03"),
        ("5", "0.05"),
        (0.1, "0.001"),
        ("0.10", "0.0010"),
        (0, "0.00"),
        (20.0, "0.200"),
        (-3, None),
        ("-3", None),
        (True, None),
        (None, None),
        ("1e9", None),
        (1e300, None),
        ([], None),
        ("٣", None),
        ("9" * 13, None),
        ("1e-999999", None),
        ("1e9999", None),
        ("NaN", None),
        ("free", None),
        ("Infinity", None),
        (10**30, None),
    ],
)
def test_prices(shop: Shop, cents: Any, usd: str | None) -> None:
    shop.lists(entry(pricing={"amountCents": cents, "currency": "USD"}))
    found = market(shop).search()[0].usd
    assert found == (None if usd is None else Decimal(usd))
    shop.lists(entry(pricing={"amountCents": cents, "currency": "EUR"}))
    assert market(shop).search()[0].usd is None


# --- where else a service may be described


def test_a_service_that_search_does_not_list_is_found_in_openapi(shop: Shop) -> None:
    shop.lists(entry("other"))
    schema = {"$ref": "#/components/schemas/In"}
    body = {"content": {"application/json": {"schema": schema}}}
    paths = {
        "/api/tools/rare": {"post": {"operationId": "rare", "requestBody": body}},
        "/v2/odd": {"parameters": [], "get": {"operationId": "odd_one", "summary": "Odd"}},
    }
    shop.says("/api/catalog/openapi.json", {"paths": paths, "components": {"schemas": {"In": {}}}})
    rare, odd = market(shop).service("rare"), market(shop).service("odd-one")
    assert (rare.method, rare.usd) == ("POST", None)
    assert rare.input_schema == {**schema, "components": {"schemas": {"In": {}}}}
    assert (odd.method, odd.endpoint, odd.name) == ("GET", shop.origin + "/v2/odd", "Odd")


def test_a_service_may_have_a_page_of_its_own_only(shop: Shop) -> None:
    text = (
        f"# Rare\n\n> A rare one.\n- Endpoint: POST {shop.origin}/api/tools/rare\n- Price: USD 0.001 per call\n"
        '- Input schema: {"type": "object"}\n'
    )
    shop.says("/services/rare/llms.txt", as_json(text))
    found = market(shop).service("rare")
    assert (found.name, found.description, found.method) == ("Rare", "A rare one.", "POST")
    assert (found.usd, found.input_schema) == (Decimal("0.001"), {"type": "object"})
    shop.says("/services/rare/llms.txt", as_json("hello"))
    with pytest.raises(UnknownService):
        market(shop).service("rare")


@pytest.mark.parametrize(
    "page",
    [
        "{0}",
        '{{"service": {0}}}',
        '{{"data": {0}}}',
        '<html><script>x</script><SCRIPT type="application/json" id="s">{0}</script></html>',
        "<script type=application/ld+json>[</script><script type='application/ld+json'>{0}</script>",
    ],
)
def test_a_service_may_be_described_on_its_page(shop: Shop, page: str) -> None:
    """As JSON, or in the JSON that a page carries; of another service nothing is taken."""
    schema = {"type": "object", "required": ["ImageURL"]}
    for service, listed in (("rare", True), ("other", False)):
        text = page.format(json.dumps(entry(service, inputSchema=schema)))
        shop.says("/services/rare", Reply(body=text.encode()))
        if listed:
            found = market(shop).service("rare")
            assert (found.id, found.usd, found.input_schema) == ("rare", Decimal("0.2"), schema)
        else:
            with pytest.raises(UnknownService, match="lists no service 'rare'"):
                market(shop).service("rare")


def test_a_page_of_a_legacy_name_describes_the_service(shop: Shop) -> None:
    """However deep the page's schema is: the service is known."""
    deep: Any = {}
    for _ in range(40):
        deep = {"properties": {"a": deep}}
    legacy = "aliyun-imageseg-refine-mask"
    text = f"<script type=application/json>{json.dumps(entry(inputSchema=deep))}</script>"
    shop.says(f"/services/{legacy}", Reply(body=text.encode()))
    assert market(shop).service(legacy).id == "mask-refinement"


def test_one_deep_schema_hides_no_other_service(shop: Shop) -> None:
    """It is of no use by itself; the catalog around it is."""
    deep: Any = {"type": "object"}
    for _ in range(40):
        deep = {"type": "object", "properties": {"a": deep}}
    shop.lists(entry("odd", inputSchema=deep), entry("mask-refinement"))
    assert [service.id for service in market(shop).search()] == ["odd", "mask-refinement"]
    assert market(shop).service("mask-refinement").id == "mask-refinement"


def test_what_cannot_be_read_is_named_where_nothing_is_found(shop: Shop) -> None:
    shop.says("/api/catalog", as_json({"services": []}))
    with pytest.raises(UnknownService, match=r"lists no service 'rare', and .*answered 404"):
        market(shop).service("rare")


@pytest.mark.parametrize("schema", [[], "object", True, 7])
def test_a_schema_that_is_no_object_is_ignored_and_said_so(
    shop: Shop, schema: Any, caplog: pytest.LogCaptureFixture
) -> None:
    shop.lists(entry(inputSchema=schema))
    assert market(shop).service("mask-refinement").input_schema is None
    assert "no object is ignored" in caplog.text


@pytest.mark.parametrize(
    ("template", "target"),
    [
        ("/find?q={query}&limit=5", "/find?q=a%20%26%20b&limit=5"),
        ("/find{?q,limit}", "/find?q=a+%26+b"),
        ("/find?x=1{&query}", "/find?x=1&query=a+%26+b"),
        ("/find?s={searchTerms}&limit={limit}", "/find?s=a%20%26%20b&limit="),
    ],
)
def test_a_search_url_may_be_a_template(shop: Shop, template: str, target: str) -> None:
    shop.says(DISCOVERY, as_json({"searchUrl": template}))
    shop.says("/find", as_json({"services": [entry()]}))
    assert len(market(shop).search("a & b")) == 1
    assert shop.seller.hits[-1].target == target


@pytest.mark.parametrize(
    "page",
    [
        "<script " * 4000,
        "<script type=application/json " * 1000,
        "<script>" * 4000,
        '<script type="application/json">' * 900,
        "<script " * 2000 + "type=application/json " * 760,
    ],
    ids=range(5),
)
def test_a_page_is_read_in_no_time(shop: Shop, page: str) -> None:
    """However it is made up to keep a reader busy."""
    shop.says("/services/rare", Reply(body=page.encode()))
    began = time.process_time()
    with pytest.raises(UnknownService):
        market(shop).service("rare")
    assert time.process_time() - began < 1


def test_asking_for_a_service_takes_a_few_requests_at_most(shop: Shop) -> None:
    shop.lists(entry("other"))
    with pytest.raises(UnknownService):
        market(shop).service("nowhere")
    assert len(shop.paths()) == 7


@pytest.mark.parametrize("mode", MODES)
def test_a_glance_takes_one_request(shop: Shop, mode: str) -> None:
    shop.lists(entry(pricing={"amountCents": 20, "currency": "USD"}))
    origin = shop.origin
    found = using(mode, None, lambda c: Marketplace(origin, c).glance("mask-refinement"))
    assert found.usd == Decimal("0.20")
    with pytest.raises(UnknownService):
        using(mode, None, lambda client: Marketplace(origin, client).glance("nowhere"))
    with pytest.raises(UnknownService):
        using(mode, None, lambda client: Marketplace(origin, client).glance("../x"))
    assert shop.paths() == [SEARCH, SEARCH]


# --- money


@pytest.mark.parametrize("mode", MODES)
def test_a_catalog_is_never_paid_for(shop: Shop, make_payer: MakePayer, mode: str) -> None:
    """Nor is a proof shown to it, though the client pays and carries one by default."""
    payer = make_payer(preempt=True)
    for path in (DISCOVERY, SEARCH):
        shop.seller.sells(path=path)
    with pytest.raises(CatalogError, match="asks for payment"):
        market(shop, payer, mode).search()
    assert payer.payments() == [] and buyer_of(payer).settings.signer.calls == 0  # type: ignore[union-attr]
    assert shop.seller.proofs() == []


def test_a_proof_among_the_default_headers_stays_at_home(shop: Shop) -> None:
    shop.lists(entry())
    with client_of("client", None, headers={"X-Payment-Token": "secret", "X-Mine": "1"}) as client:
        Marketplace(shop.origin, client).search()
    assert shop.seller.proofs() == []
    assert shop.seller.hits[0].header("x-mine") == "1"


def test_what_a_hook_has_read_is_read_all_the_same(shop: Shop) -> None:
    shop.lists(entry())
    hooks = {"response": [lambda response: response.read()]}
    with client_of("client", None, event_hooks=hooks) as client:
        assert len(Marketplace(shop.origin, client).search()) == 1


def test_a_catalog_that_trickles_is_not_waited_for(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    def drops() -> Any:
        for _ in range(100):
            shop.seller.pause(0.05)
            yield b" "

    monkeypatch.setattr("x402_mask.marketplace.client.DOCUMENT_S", 0.2)
    began = time.monotonic()
    for mode in ("client", "async-client"):
        shop.seller.on(SEARCH, Reply(body=drops(), framing="chunked"))
        with pytest.raises(CatalogError, match="slow"):
            market(shop, None, mode).search()
    assert time.monotonic() - began < 4


def test_how_long_a_document_may_take_is_the_callers_to_say(shop: Shop) -> None:
    def drops() -> Any:
        for _ in range(100):
            shop.seller.pause(0.05)
            yield b" "

    shop.seller.on(SEARCH, Reply(body=drops(), framing="chunked"))
    began = time.monotonic()
    with client_of("client", None) as client, pytest.raises(CatalogError, match="slow"):
        Marketplace(shop.origin, client, seconds=0.2).glance("x")
    assert time.monotonic() - began < 4


@pytest.mark.parametrize("family", ["httpx", "httpx2"])
def test_no_redirect_is_followed(shop: Shop, make_payer: MakePayer, family: str) -> None:
    shop.says("/away", {"services": [entry()]})
    for path in (DISCOVERY, SEARCH):
        shop.seller.on(path, Reply(status=302, headers=[("Location", "/away")]))
    payer = make_payer()
    client = client_of("attach", payer, family, follow_redirects=True)
    with client, pytest.raises(CatalogError, match="answered 302"):
        Marketplace(shop.origin, client).search()
    assert shop.paths() == [DISCOVERY, SEARCH]


def test_what_is_not_a_marketplace(shop: Shop) -> None:
    with httpx.Client() as client:
        for origin in ("http://shop.example", "ftp://x", "", "https://a/b", "https://u@a", "mcp:a"):
            with pytest.raises(ValueError):
                Marketplace(origin, client)
    with pytest.raises(TypeError, match="takes an httpx or httpx2 client"):
        Marketplace(shop.origin, 7)  # type: ignore[type-var]
