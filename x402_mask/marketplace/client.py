"""Reading a marketplace's documents: what is on sale, at what price, with which input.

Everything read here is seller text.  It is bounded, cleaned for display, and decides nothing by
itself: see ``_policy.catalog_cache`` for what a payer does with it.

Sources: the public documents of Server402 (discovery, catalog search, OpenAPI and service pages of
June 2026), which differ among themselves; so default paths stand in for what is missing.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass, field
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar, overload
from urllib.parse import quote, unquote, urlencode, urljoin, urlsplit

from x402_mask._drive.clients import AsyncClient, SyncClient, is_async
from x402_mask._drive.gathered import Gathered
from x402_mask._payer import buyer_of, payer_of
from x402_mask._policy.catalog_cache import Terms
from x402_mask._policy.schemas import SCHEMA_BYTES_MAX, text_of
from x402_mask._services import ALIASES, origin_of, parse_origins, service_id, tool_of
from x402_mask._wire import strict_json
from x402_mask._wire.x402 import PROOF_HEADERS, shown
from x402_mask.errors import OriginRefused

if TYPE_CHECKING:
    from collections.abc import Coroutine, Generator, Iterator, Mapping

    from x402_mask._payer import Payer

log = logging.getLogger("x402_mask")

DOCUMENT_BYTES_MAX: Final = 1 << 20
DOCUMENT_S: Final = 30.0
_AT_ONCE: Final = 64 * 1024
"""Bytes of a document that an event loop reads itself."""

SERVICES_MAX: Final = 500
"""Most services of one document that are read.  The marketplace has 116, and lists 10 at a time."""

_NAME_MAX, _DESCRIPTION_MAX, _URL_MAX, _QUERY_MAX = 200, 4000, 2048, 500
_TEXT_BYTES: Final = 32 * 1024
_DEPTH_MAX: Final = 100
"""Deepest nesting of a document: one service's schema, unusable by itself, hides no other."""
_ALIASES_MAX: Final = 16
_METHODS: Final = ("GET", "POST", "PUT", "PATCH", "DELETE")
_HEADERS: Final = {"accept": "application/json, text/plain", "accept-encoding": "gzip, deflate"}
_CENTS: Final = re.compile(r"[0-9]{1,12}(\.[0-9]{1,12})?", re.ASCII)
_MICRO_PER_CENT: Final = 10_000
_TEMPLATE: Final = re.compile(r"\{([?&]?[A-Za-z_,]{1,100})\}")
_QUERY_NAMES: Final = ("q", "query", "searchTerms")
_SCRIPT: Final = re.compile(r"<script\b([^<>]{0,300})>([^<]*)</script", re.IGNORECASE)
_JSON_TYPE: Final = re.compile(r"application/(?:ld\+)?json\b", re.IGNORECASE)
_SCRIPTS_MAX: Final = 20
_LINE: Final = re.compile(r"[\s*#>-]*(endpoint|price|input schema) *:\**(.*)", re.IGNORECASE)
_PRICE: Final = re.compile(r"(?:USD|\$) ?([0-9]{1,9}(?:\.[0-9]{1,6})?)\b", re.ASCII)

C_co = TypeVar("C_co", bound=SyncClient | AsyncClient, covariant=True)
T = TypeVar("T")
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
class _Page:
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


class Marketplace(Generic[C_co]):
    """The catalog of one marketplace, read through the client that is given.

    With a sync client the methods return what they found, with an async one an awaitable of it.
    Nothing here is ever paid for, and no proof is sent: requests carry
    ``extensions={"x402_mask": {"pay": False}}`` and follow no redirect.  What is read through a
    client that pays (or with *payer*) is remembered by its payer, if the origin is one of its own:
    input is then validated before paying, a dearer offer is refused, and caps count a service under
    all of its names.

    Args:
        origin: ``https://host``; plain http is for loopback only.
        client: an httpx or httpx2 client, sync or async.
        payer: remembers what is read, where the client does not know its payer.
        seconds: the longest that one document is read, 30 by default.

    Raises:
        TypeError, ValueError: not an origin, or not a client.
    """

    def __init__(
        self,
        origin: str,
        client: C_co,
        *,
        payer: Payer | None = None,
        seconds: float | None = None,
    ) -> None:
        (self.origin,) = parse_origins([origin])
        if self.origin.startswith("mcp:"):
            raise ValueError(f"a marketplace is an http(s) origin, not {origin!r}")
        self._client: Any = client
        self._async = is_async(client)
        self._payer = payer_of(client) if payer is None else payer
        self._seconds = DOCUMENT_S if seconds is None else seconds
        self._site: _Site | None = None

    def __repr__(self) -> str:
        return f"<Marketplace {self.origin}>"

    @overload
    def search(self: Marketplace[SyncClient], q: str = "") -> list[CatalogService]: ...
    @overload
    def search(
        self: Marketplace[AsyncClient], q: str = ""
    ) -> Coroutine[Any, Any, list[CatalogService]]: ...
    def search(self, q: str = "") -> Any:
        """Services that the marketplace finds for *q*, in its order; useless entries left out.

        Raises:
            CatalogError: the answer cannot be read.
            OriginRefused: discovery sends searches or payments to another origin.
        """
        return self._run(self._search(q))

    @overload
    def service(self: Marketplace[SyncClient], id: str) -> CatalogService: ...
    @overload
    def service(
        self: Marketplace[AsyncClient],
        id: str,
    ) -> Coroutine[Any, Any, CatalogService]: ...
    def service(self, id: str) -> Any:  # noqa: A002
        """The service of that id, legacy id or alias: never merely the first hit of a search.

        Where search does not list it, the whole catalog, OpenAPI and its own page are asked.

        Raises:
            UnknownService: there is none (a ``LookupError``).
            CatalogError: no document could be read.
            OriginRefused: the service, or a document needed, is on another origin.
        """
        return self._run(self._service(id))

    @overload
    def glance(self: Marketplace[SyncClient], id: str) -> CatalogService: ...
    @overload
    def glance(
        self: Marketplace[AsyncClient],
        id: str,
    ) -> Coroutine[Any, Any, CatalogService]: ...
    def glance(self, id: str) -> Any:  # noqa: A002
        """The same where one request is to be enough: as the search in its usual place lists it.

        Raises:
            UnknownService: it is not listed there (a ``LookupError``).
            CatalogError: the answer cannot be read.
            OriginRefused: the service is on another origin.
        """
        return self._run(self._glance(id))

    # --- fetching, in either colour

    def _run(self, reading: Generator[str, _Page, T]) -> Any:
        return self._drive_async(reading) if self._async else self._drive(reading)

    def _drive(self, reading: Generator[str, _Page, T]) -> T:
        try:
            url = next(reading)
            while True:
                url = reading.send(self._fetch(url))
        except StopIteration as stop:
            found: T = stop.value
            return found

    async def _drive_async(self, reading: Generator[str, _Page, T]) -> T:
        from anyio import to_thread  # noqa: PLC0415

        url, found = _step(reading, None)
        while url is not None:
            page = await self._fetch_async(url)
            if len(page.body or b"") <= _AT_ONCE:
                url, found = _step(reading, page)
            else:
                url, found = await to_thread.run_sync(_step, reading, page)
        answer: T = found
        return answer

    def _fetch(self, url: str) -> _Page:
        response = self._client.send(self._request(url), stream=True, follow_redirects=False)
        try:
            if response.status_code != 200 or response.is_stream_consumed:
                return _known_page(url, response)
            gathered = Gathered(self._seconds, DOCUMENT_BYTES_MAX)
            for chunk in response.iter_raw():
                if not gathered.add(chunk):
                    break
            else:
                gathered.complete = True
            return _page(url, response, gathered)
        finally:
            response.close()

    async def _fetch_async(self, url: str) -> _Page:
        response = await self._client.send(self._request(url), stream=True, follow_redirects=False)
        try:
            if response.status_code != 200 or response.is_stream_consumed:
                return _known_page(url, response)
            gathered = Gathered(self._seconds, DOCUMENT_BYTES_MAX)
            async for chunk in response.aiter_raw():
                if not gathered.add(chunk):
                    break
            else:
                gathered.complete = True
            return _page(url, response, gathered)
        finally:
            await response.aclose()

    def _request(self, url: str) -> Any:
        unpaid = {"x402_mask": {"pay": False}}
        request = self._client.build_request("GET", url, headers=_HEADERS, extensions=unpaid)
        for name in PROOF_HEADERS:
            request.headers.pop(name, None)
        return request

    # --- reading

    def _discover(self) -> Generator[str, _Page, _Site]:
        if self._site is None:
            page = yield self.origin + "/.well-known/server402.json"
            try:
                document = page.document()
            except CatalogError as exc:
                log.debug("no discovery at %s: %s", self.origin, exc)
                document = {}
            self._site = _Site.read(self.origin, document if isinstance(document, dict) else {})
        return self._site

    def _search(self, q: str) -> Generator[str, _Page, list[CatalogService]]:
        site = yield from self._discover()
        items = _items((yield site.searching(q)))
        return [one for one in (self._listed(site, item) for item in items) if one is not None]

    def _listed(self, site: _Site, item: Json) -> CatalogService | None:
        try:
            found = _read(site, item)
        except OriginRefused as exc:
            log.warning("a service is left out: %s", exc)
            return None
        return None if found is None else self._remembered(found)

    def _glance(self, text: object) -> Generator[str, _Page, CatalogService]:
        wanted = _wanted(text)
        site = self._site or _Site.read(self.origin, {})
        item = _in_list((yield site.searching(wanted)), wanted)
        found = None if item is None else _read(site, item)
        if found is None:
            raise UnknownService(f"the search of {self.origin} lists no service {wanted!r}")
        return self._remembered(found)

    def _service(self, text: object) -> Generator[str, _Page, CatalogService]:
        wanted = _wanted(text)
        site = yield from self._discover()
        failures: list[CatalogError] = []
        known = False
        for url, find in _places(site, wanted):
            page = yield site.own(url)
            try:
                item = find(page, wanted)
            except UnknownService:
                raise
            except CatalogError as exc:
                failures.append(exc)
                continue
            known = True
            found = None if item is None else _read(site, item)
            if found is not None:
                return self._remembered(found)
        if not known:
            raise failures[0]
        unread = f", and a document cannot be read: {failures[0]}" if failures else ""
        raise UnknownService(f"{self.origin} lists no service {wanted!r}{unread}")

    def _remembered(self, service: CatalogService) -> CatalogService:
        payer, tool = self._payer, tool_of(_path(service.endpoint))
        if payer is None or tool is None:  # another path names the service by the owner's patterns
            return service
        buyer = buyer_of(payer)
        schema = text_of(service.input_schema) or ""
        names = (service.id, service.canonical_id, *service.aliases)
        terms = Terms(
            service=tool,
            micro=_most(service),
            schema=schema[: SCHEMA_BYTES_MAX + 1],  # as much as tells that it is too long
            names=frozenset(ALIASES.get(name, name) for name in names),
            at=buyer.now(),
        )
        buyer.learn(self.origin, terms)
        return service


def _step(reading: Generator[str, _Page, Any], page: _Page | None) -> tuple[str | None, Any]:
    """The next URL; none where the reading is done, and what it came to."""
    try:
        return (next(reading) if page is None else reading.send(page)), None
    except StopIteration as stop:
        return None, stop.value


def _wanted(text: object) -> str:
    wanted = service_id(text) if isinstance(text, str) else None
    if wanted is None:
        raise UnknownService(f"{shown(text)} is not the id of a service")
    return wanted


def _known_page(url: str, response: Any) -> _Page:
    """A page without a body of use, or whose body a hook of the client has read already."""
    content: bytes = response.content if response.status_code == 200 else b""
    body = content if len(content) <= DOCUMENT_BYTES_MAX else None
    return _Page(url=url, status=response.status_code, body=body)


def _page(url: str, response: Any, gathered: Gathered) -> _Page:
    body = gathered.decoded(response.headers.get("content-encoding", ""))
    return _Page(url=url, status=response.status_code, body=body)


# --- where things are -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Site:
    """Where the marketplace says that its documents are; checked when they are used."""

    origin: str
    base: str
    urls: Mapping[str, str]

    @classmethod
    def read(cls, origin: str, document: Json) -> _Site:
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


def _places(site: _Site, wanted: str) -> Iterator[tuple[str, Any]]:
    """Where a service may be described, best first, and how to find it there."""
    yield site.searching(wanted), _in_list
    yield site.at("catalogUrl", "/api/catalog"), _in_list
    defaults = ("/openapi.json", "/api/catalog/openapi.json")
    named = site.at("openapiUrl", defaults[0])
    for url in dict.fromkeys((named, *(site.origin + path for path in defaults))):
        yield url, _in_openapi
    own = f"{site.at('servicesUrl', '/services').rstrip('/')}/{wanted}"
    yield f"{own}/llms.txt", _in_text
    yield own, _in_page


# --- finding one ----------------------------------------------------------------------------------


def _items(page: _Page) -> list[Json]:
    document = page.document()
    if isinstance(document, dict):
        lists = (document.get(name) for name in ("services", "items", "results"))
        document = next((one for one in lists if isinstance(one, list)), None)
    if not isinstance(document, list):
        raise CatalogError(f"{shown(page.url)} lists no services")
    return [item for item in document[:SERVICES_MAX] if isinstance(item, dict)]


def _in_list(page: _Page, wanted: str) -> Json | None:
    items = _items(page)
    for key in ("canonicalId", "id", "internalServiceId"):
        for name in (wanted, ALIASES.get(wanted)):
            found = next((item for item in items if name and item.get(key) == name), None)
            if found is not None:
                return found
    claiming = [item for item in items if wanted in (*_aliases(item), *_words(item))]
    if len(claiming) > 1:
        raise UnknownService(f"{len(claiming)} services of {shown(page.url)} claim {wanted!r}")
    return claiming[0] if claiming else None


def _in_openapi(page: _Page, wanted: str) -> Json | None:
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


def _in_text(page: _Page, wanted: str) -> Json | None:
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


def _in_page(page: _Page, wanted: str) -> Json | None:
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


def _read(site: _Site, item: Json) -> CatalogService | None:
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
    found = (service_id(_path(text)) for text in texts if isinstance(text, str))
    return list(dict.fromkeys(name for name in found if name is not None))


def _words(item: Json) -> list[object]:
    """Other names in the entry's ``discovery``; words to search by are among them."""
    aliases = _at(item, "discovery", "aliases")
    return aliases[:_ALIASES_MAX] if isinstance(aliases, list) else []


def _path(text: str) -> str:
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


def _most(service: CatalogService) -> int | None:
    """The most that the list price can mean, in micro-USD.

    Zero whole cents are what prices below a cent are rounded to, so they mean up to a cent.
    """
    if service.usd is None:
        return None
    if service.usd == 0:
        return _MICRO_PER_CENT
    return int((service.usd * 1_000_000).to_integral_value("ROUND_CEILING"))
