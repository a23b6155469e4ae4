"""What a marketplace's documents say is on sale: read tolerantly, bounded, cleaned for display.

Sources: the public documents of Server402 (discovery, catalog search, OpenAPI and service pages of
June 2026), which differ among themselves; so default paths stand in for what is missing.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass, field
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, unquote, urlencode, urljoin, urlsplit

from x402_mask._services import ALIASES, origin_of, service_id
from x402_mask._wire import strict_json
from x402_mask._wire.x402 import shown
from x402_mask.errors import OriginRefused

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from x402_mask._drive.gathered import Gathered

log = logging.getLogger("x402_mask")

DOCUMENT_BYTES_MAX: Final = 1 << 20

SERVICES_MAX: Final = 500
"""Most services of one document that are read.  The marketplace has 116, and lists 10 at a time."""

_NAME_MAX, _DESCRIPTION_MAX, _URL_MAX, _QUERY_MAX = 200, 4000, 2048, 500
_TEXT_BYTES: Final = 32 * 1024
_DEPTH_MAX: Final = 100
"""Deepest nesting of a document: one service's schema, unusable by itself, hides no other."""
_ALIASES_MAX: Final = 16
_METHODS: Final = ("GET", "POST", "PUT", "PATCH", "DELETE")
_CENTS: Final = re.compile(r"[0-9]{1,12}(\.[0-9]{1,12})?", re.ASCII)
_MICRO_PER_CENT: Final = 10_000
_TEMPLATE: Final = re.compile(r"\{([?&]?[A-Za-z_,]{1,100})\}")
_QUERY_NAMES: Final = ("q", "query", "searchTerms")
_SCRIPT: Final = re.compile(r"<script\b([^<>]{0,300})>([^<]*)</script", re.IGNORECASE)
_JSON_TYPE: Final = re.compile(r"application/(?:ld\+)?json\b", re.IGNORECASE)
_SCRIPTS_MAX: Final = 20
_LINE: Final = re.compile(r"[\s*#>-]*(endpoint|price|input schema) *:\**(.*)", re.IGNORECASE)
_PRICE: Final = re.compile(r"(?:USD|\$) ?([0-9]{1,9}(?:\.[0-9]{1,6})?)\b", re.ASCII)
Json = dict[str, Any]


class CatalogError(Exception):
    """A document of the marketplace could not be read; nothing was bought."""


class UnknownService(CatalogError, LookupError):
    """The marketplace lists no service of that id, or several that claim it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogService:
    """One service, as its marketplace describes it: seller text, **not to be trusted**.

    ``usd`` is the list price in USD (the live offer decides what is paid), ``None`` where none is
    stated; ``endpoint`` an absolute URL on the marketplace's own origin; ``aliases`` other ids that
    its paths and ids name.  ``name`` and ``description`` are cut to 200 and 4,000 characters, and
    hold no control characters; ``raw`` is the entry as received.
    """

    id: str
    canonical_id: str
    name: str
    description: str
    method: str
    endpoint: str
    aliases: tuple[str, ...]
    usd: Decimal | None
    input_schema: Mapping[str, Any] | None = field(repr=False)
    output_schema: Mapping[str, Any] | None = field(repr=False)
    raw: Mapping[str, Any] = field(repr=False)

    __hash__ = None  # type: ignore[assignment]  # holds mappings


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """What a URL gave; ``body`` is ``None`` where it is too long, or not there."""

    url: str
    status: int
    body: bytes | None

    def document(self) -> Any:
        """The JSON in it.

        Raises:
            CatalogError: there is none that can be read.
        """
        try:
            return strict_json.loads(self.content(), _DEPTH_MAX)
        except strict_json.BadJSON as exc:
            raise CatalogError(f"{shown(self.url)} is not usable JSON: {exc}") from None

    def content(self) -> bytes:
        """What is there.

        Raises:
            CatalogError: nothing that can be read.
        """
        if self.status == 402:
            raise CatalogError(f"{shown(self.url)} asks for payment; a catalog is never paid for")
        if self.status != 200:
            raise CatalogError(f"{shown(self.url)} answered {self.status}")
        if self.body is None:
            raise CatalogError(f"{shown(self.url)} is longer than 1 MiB, slow, or oddly encoded")
        return self.body


def wanted_name(text: object) -> str:
    """What is looked for, as an id.

    Raises:
        UnknownService: it can be none.
    """
    wanted = service_id(text) if isinstance(text, str) else None
    if wanted is None:
        raise UnknownService(f"{shown(text)} is not the id of a service")
    return wanted


def known_page(url: str, response: Any) -> Page:
    """A page without a body of use, or whose body a hook of the client has read already."""
    content: bytes = response.content if response.status_code == 200 else b""
    body = content if len(content) <= DOCUMENT_BYTES_MAX else None
    return Page(url=url, status=response.status_code, body=body)


def page_of(url: str, response: Any, gathered: Gathered) -> Page:
    """What was read of an answer."""
    body = gathered.decoded(response.headers.get("content-encoding", ""))
    return Page(url=url, status=response.status_code, body=body)


# --- where things are -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """Where the marketplace says that its documents are; checked when they are used."""

    origin: str
    base: str
    urls: Mapping[str, str]

    @classmethod
    def read(cls, origin: str, document: Json) -> Site:
        """From a discovery document, or from nothing.

        Raises:
            OriginRefused: payments would go to another origin.
        """
        base = document.get("baseUrl")
        site = cls(
            origin=origin,
            base=base if isinstance(base, str) and base else origin,
            urls={k: v for k, v in document.items() if k.endswith("Url") and isinstance(v, str)},
        )
        site.check_payments(document.get("payment"))
        return site

    def at(self, name: str, path: str) -> str:
        """The URL of that name, or the default path."""
        return self.urls.get(name) or self.origin + path

    def searching(self, q: str) -> str:
        """The URL of a search."""
        url = self.own(self.at("searchUrl", "/api/catalog/search"))
        bare = url.partition("#")[0]
        if _TEMPLATE.search(bare):
            return _TEMPLATE.sub(lambda found: _filled(found[1], q[:_QUERY_MAX]), bare)
        return f"{bare}{'&' if '?' in bare else '?'}{urlencode({'q': q[:_QUERY_MAX]})}"

    def own(self, url: str) -> str:
        """*url* made absolute.

        Raises:
            OriginRefused: it is not on the marketplace's own origin.
        """
        try:
            joined = urljoin(self.base.rstrip("/") + "/", url.strip()[:_URL_MAX])
            plain = "@" not in urlsplit(joined).netloc and joined.isprintable()
            same = plain and origin_of(joined) == self.origin
        except ValueError:
            joined, same = url, False
        if not same:
            raise OriginRefused(f"{shown(joined)} is not on {self.origin}, which names it")
        return joined

    def check_payments(self, payment: object) -> None:
        """Raises ``OriginRefused`` if any of the URLs for payments is another origin's."""
        for url in _payment_urls(payment):
            try:
                self.own(url)
            except OriginRefused as exc:
                raise OriginRefused(f"payments are never sent elsewhere: {exc}") from None


def _filled(variables: str, q: str) -> str:
    """A variable of a URL template (RFC 6570): the query where it is named so, else nothing."""
    names = variables.lstrip("?&").split(",")
    name: str | None = next((name for name in _QUERY_NAMES if name in names), None)
    if variables[0] in "?&":
        return "" if name is None else f"{variables[0]}{urlencode([(name, q)])}"
    return "" if name is None else quote(q, safe="")


def _payment_urls(payment: object) -> Iterator[str]:
    """Every URL in ``payment``, whose parts are strings in some documents, objects in others."""
    if not isinstance(payment, dict):
        return
    for part in ("createPayment", "verifyPayment", "url"):
        value = payment.get(part)
        url = value.get("url") if isinstance(value, dict) else value
        if isinstance(url, str):
            yield url
    for part in ("flow", "paymentFlow"):
        yield from _payment_urls(payment.get(part))


def service_pages(site: Site, wanted: str) -> Iterator[tuple[str, Any]]:
    """Where a service may be described, best first, and how to find it there."""
    yield site.searching(wanted), item_in_list
    yield site.at("catalogUrl", "/api/catalog"), item_in_list
    defaults = ("/openapi.json", "/api/catalog/openapi.json")
    named = site.at("openapiUrl", defaults[0])
    for url in dict.fromkeys((named, *(site.origin + path for path in defaults))):
        yield url, _in_openapi
    own = f"{site.at('servicesUrl', '/services').rstrip('/')}/{wanted}"
    yield f"{own}/llms.txt", _in_text
    yield own, _in_page


# --- finding one ----------------------------------------------------------------------------------


def listed_items(page: Page) -> list[Json]:
    """The services that a document lists."""
    document = page.document()
    if isinstance(document, dict):
        lists = (document.get(name) for name in ("services", "items", "results"))
        document = next((one for one in lists if isinstance(one, list)), None)
    if not isinstance(document, list):
        raise CatalogError(f"{shown(page.url)} lists no services")
    return [item for item in document[:SERVICES_MAX] if isinstance(item, dict)]


def item_in_list(page: Page, wanted: str) -> Json | None:
    """The service *wanted* in a list, by any of its names."""
    items = listed_items(page)
    for key in ("canonicalId", "id", "internalServiceId"):
        for name in (wanted, ALIASES.get(wanted)):
            found = next((item for item in items if name and item.get(key) == name), None)
            if found is not None:
                return found
    claiming = [item for item in items if wanted in (*_aliases(item), *_words(item))]
    if len(claiming) > 1:
        raise UnknownService(f"{len(claiming)} services of {shown(page.url)} claim {wanted!r}")
    return claiming[0] if claiming else None


def _in_openapi(page: Page, wanted: str) -> Json | None:
    document = page.document()
    paths = document.get("paths") if isinstance(document, dict) else None
    if not isinstance(paths, dict):
        raise CatalogError(f"{shown(page.url)} has no paths")
    names = {wanted, ALIASES.get(wanted, wanted)}
    operations = [
        (path, method, about[method.lower()])
        for path, about in paths.items()
        for method in _METHODS
        if isinstance(about, dict) and isinstance(about.get(method.lower()), dict)
    ]
    for path, method, operation in operations:
        if path in {f"/api/tools/{name}" for name in names}:
            return _from_openapi(document, path, method, operation, wanted)
    ids = {name.replace("-", "_") for name in names}
    for path, method, operation in operations:
        if operation.get("operationId") in ids:
            return _from_openapi(document, path, method, operation, wanted)
    return None


def _from_openapi(document: Json, path: str, method: str, operation: Json, wanted: str) -> Json:
    """An operation in the shape of a catalog entry; OpenAPI states no price."""
    shared = {"components": {"schemas": _at(document, "components", "schemas")}}
    asked = _at(operation, "requestBody", "content", "application/json", "schema")
    given = _at(operation, "responses", "200", "content", "application/json", "schema")
    return {
        "id": wanted,
        "name": operation.get("summary"),
        "description": operation.get("description") or operation.get("summary"),
        "method": method,
        "endpoint": path,
        "inputSchema": {**asked, **shared} if isinstance(asked, dict) else None,
        "outputSchema": given,
    }


def _in_text(page: Page, wanted: str) -> Json | None:
    """The few lines of a service's ``llms.txt`` that are known."""
    found: Json = {"id": wanted}
    text = page.content()[:_TEXT_BYTES].decode("utf-8", "replace")
    for line in text.splitlines():
        if line.startswith("> "):
            found.setdefault("description", line[2:])
        elif line.startswith("# "):
            found.setdefault("name", line[2:])
        if known := _LINE.fullmatch(line):
            found.update(_from_line(known[1].lower(), known[2].strip()))
    return found if "endpoint" in found else None


def _in_page(page: Page, wanted: str) -> Json | None:
    """A service's own page: JSON, or HTML that carries some."""
    try:
        documents = [page.document()]
    except CatalogError:
        text = page.content()[:_TEXT_BYTES].decode("utf-8", "replace")
        scripts = [body for about, body in _SCRIPT.findall(text) if _JSON_TYPE.search(about)]
        documents = [_loaded(body) for body in scripts[:_SCRIPTS_MAX]]
    names = {wanted, ALIASES.get(wanted)}
    for document in documents:
        places: list[Any] = [document, _at(document, "service"), _at(document, "data")]
        for place in filter(lambda place: isinstance(place, dict), places):
            entry: Json = place
            if not names.isdisjoint(_aliases(entry)):
                return entry
    return None


def _loaded(text: str) -> Any:
    try:
        return strict_json.loads(text, _DEPTH_MAX)
    except strict_json.BadJSON:
        return None


def _from_line(name: str, text: str) -> Json:
    if name == "endpoint":
        method, _, url = text.partition(" ")
        return {"method": method, "endpoint": url} if url else {"endpoint": text}
    if name == "price":
        price = _PRICE.search(text)
        return {"pricing": {"amountCents": str(Decimal(price[1]) * 100)}} if price else {}
    try:
        return {"inputSchema": strict_json.loads(text)}
    except strict_json.BadJSON:
        return {}


def _at(document: Any, *steps: str) -> Any:
    for step in steps:
        document = document.get(step) if isinstance(document, dict) else None
    return document


# --- one entry ------------------------------------------------------------------------------------


def service_of(site: Site, item: Json) -> CatalogService | None:
    """The entry as a record, ``None`` if it names no service.

    Raises:
        OriginRefused: its endpoint, or where it is paid, is on another origin.
    """
    ids = [item.get(key) for key in ("id", "canonicalId")]
    known = [i for i in ids if isinstance(i, str) and service_id(i) == i]
    if not known:
        return None
    site.check_payments(_at(item, "discovery", "paymentFlow"))
    site.check_payments(item.get("payment"))
    endpoint = item.get("endpoint")
    method = str(item.get("method")).upper()
    own, canonical = known[0], known[-1]
    return CatalogService(
        id=own,
        canonical_id=canonical,
        name=_clean(item.get("displayName") or item.get("name"), _NAME_MAX) or own,
        description=_clean(item.get("description"), _DESCRIPTION_MAX),
        method=method if method in _METHODS else "POST",
        endpoint=site.own(
            endpoint if isinstance(endpoint, str) and endpoint else f"/api/tools/{canonical}"
        ),
        aliases=tuple(name for name in _aliases(item) if name != own),
        usd=_usd(item.get("pricing")),
        input_schema=_schema(item.get("inputSchema")),
        output_schema=_schema(item.get("outputSchema")),
        raw=item,
    )


def _aliases(item: Json) -> list[str]:
    """Every id that the entry's ids and paths name, the built-in legacy ids as they are."""
    listed = item.get("endpointAliases")
    paths = [item.get("endpoint"), item.get("legacyEndpoint")]
    paths += listed[:_ALIASES_MAX] if isinstance(listed, list) else []
    texts = [item.get("id"), item.get("canonicalId"), item.get("internalServiceId"), *paths]
    found = (service_id(path_of(text)) for text in texts if isinstance(text, str))
    return list(dict.fromkeys(name for name in found if name is not None))


def _words(item: Json) -> list[object]:
    """Other names in the entry's ``discovery``; words to search by are among them."""
    aliases = _at(item, "discovery", "aliases")
    return aliases[:_ALIASES_MAX] if isinstance(aliases, list) else []


def path_of(text: str) -> str:
    """The path of a URL, decoded; empty where there is none."""
    try:
        return unquote(urlsplit(text[:_URL_MAX]).path)
    except ValueError:
        return ""


def _schema(value: object) -> Json | None:
    if value is not None and not isinstance(value, dict):
        log.warning("a schema that is no object is ignored: %s", shown(value, 60))
    return value if isinstance(value, dict) else None


def _clean(text: object, limit: int) -> str:
    """Seller text on one line, without what a terminal or a reader could be misled by."""
    if not isinstance(text, str):
        return ""
    kept = "".join(c if c.isprintable() else " " for c in text[:limit])
    return " ".join(kept.split())


def _usd(pricing: object) -> Decimal | None:
    """USD of ``pricing.amountCents``: an integer, or a number or text of more precision."""
    if not isinstance(pricing, dict) or pricing.get("currency", "USD") not in ("USD", "USDC", None):
        return None
    cents = pricing.get("amountCents")
    if isinstance(cents, bool) or not isinstance(cents, (int, float, str)):
        return None
    try:
        text = (
            cents if isinstance(cents, str) else strict_json.dumps(cents)
        )  # never the binary number
    except ValueError:
        return None
    return Decimal(text).scaleb(-2) if _CENTS.fullmatch(text) else None


def most_micro(service: CatalogService) -> int | None:
    """The most that the list price can mean, in micro-USD.

    Zero whole cents are what prices below a cent are rounded to, so they mean up to a cent.
    """
    if service.usd is None:
        return None
    if service.usd == 0:
        return _MICRO_PER_CENT
    return int((service.usd * 1_000_000).to_integral_value("ROUND_CEILING"))
