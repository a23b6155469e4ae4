"""Reading a marketplace's documents: what is on sale, at what price, with which input.

Everything read here is seller text.  It is bounded, cleaned for display, and decides nothing by
itself: see ``_policy.catalog_cache`` for what a payer does with it.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar, overload

from x402_mask._drive.clients import AsyncClient, SyncClient, is_async
from x402_mask._drive.gathered import Gathered
from x402_mask._payer import buyer_of, payer_of
from x402_mask._policy.catalog_cache import CatalogEntry
from x402_mask._policy.schemas import SCHEMA_BYTES_MAX, text_of
from x402_mask._services import ALIASES, parse_origins, tool_of
from x402_mask._wire.x402 import PROOF_HEADERS
from x402_mask.errors import OriginRefused
from x402_mask.marketplace.documents import (
    DOCUMENT_BYTES_MAX,
    CatalogError,
    CatalogService,
    Json,
    Page,
    Site,
    UnknownService,
    item_in_list,
    known_page,
    listed_items,
    most_micro,
    page_of,
    path_of,
    service_of,
    service_pages,
    wanted_name,
)

if TYPE_CHECKING:
    from collections.abc import Coroutine, Generator

    from x402_mask._payer import Payer

log = logging.getLogger("x402_mask")
DOCUMENT_S: Final = 30.0
_AT_ONCE: Final = 64 * 1024
"""Bytes of a document that an event loop reads itself."""
_HEADERS: Final = {"accept": "application/json, text/plain", "accept-encoding": "gzip, deflate"}

C_co = TypeVar("C_co", bound=SyncClient | AsyncClient, covariant=True)
T = TypeVar("T")


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
        self._site: Site | None = None

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

    def _run(self, reading: Generator[str, Page, T]) -> Any:
        return self._drive_async(reading) if self._async else self._drive(reading)

    def _drive(self, reading: Generator[str, Page, T]) -> T:
        try:
            url = next(reading)
            while True:
                url = reading.send(self._fetch(url))
        except StopIteration as stop:
            found: T = stop.value
            return found

    async def _drive_async(self, reading: Generator[str, Page, T]) -> T:
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

    def _fetch(self, url: str) -> Page:
        response = self._client.send(self._request(url), stream=True, follow_redirects=False)
        try:
            if response.status_code != 200 or response.is_stream_consumed:
                return known_page(url, response)
            gathered = Gathered(self._seconds, DOCUMENT_BYTES_MAX)
            for chunk in response.iter_raw():
                if not gathered.add(chunk):
                    break
            else:
                gathered.complete = True
            return page_of(url, response, gathered)
        finally:
            response.close()

    async def _fetch_async(self, url: str) -> Page:
        response = await self._client.send(self._request(url), stream=True, follow_redirects=False)
        try:
            if response.status_code != 200 or response.is_stream_consumed:
                return known_page(url, response)
            gathered = Gathered(self._seconds, DOCUMENT_BYTES_MAX)
            async for chunk in response.aiter_raw():
                if not gathered.add(chunk):
                    break
            else:
                gathered.complete = True
            return page_of(url, response, gathered)
        finally:
            await response.aclose()

    def _request(self, url: str) -> Any:
        unpaid = {"x402_mask": {"pay": False}}
        request = self._client.build_request("GET", url, headers=_HEADERS, extensions=unpaid)
        for name in PROOF_HEADERS:
            request.headers.pop(name, None)
        return request

    # --- reading

    def _discover(self) -> Generator[str, Page, Site]:
        if self._site is None:
            page = yield self.origin + "/.well-known/server402.json"
            try:
                document = page.document()
            except CatalogError as exc:
                log.debug("no discovery at %s: %s", self.origin, exc)
                document = {}
            self._site = Site.read(self.origin, document if isinstance(document, dict) else {})
        return self._site

    def _search(self, q: str) -> Generator[str, Page, list[CatalogService]]:
        site = yield from self._discover()
        items = listed_items((yield site.searching(q)))
        return [one for one in (self._listed(site, item) for item in items) if one is not None]

    def _listed(self, site: Site, item: Json) -> CatalogService | None:
        try:
            found = service_of(site, item)
        except OriginRefused as exc:
            log.warning("a service is left out: %s", exc)
            return None
        return None if found is None else self._remembered(found)

    def _glance(self, text: object) -> Generator[str, Page, CatalogService]:
        wanted = wanted_name(text)
        site = self._site or Site.read(self.origin, {})
        item = item_in_list((yield site.searching(wanted)), wanted)
        found = None if item is None else service_of(site, item)
        if found is None:
            raise UnknownService(f"the search of {self.origin} lists no service {wanted!r}")
        return self._remembered(found)

    def _service(self, text: object) -> Generator[str, Page, CatalogService]:
        wanted = wanted_name(text)
        site = yield from self._discover()
        failures: list[CatalogError] = []
        known = False
        for url, find in service_pages(site, wanted):
            page = yield site.own(url)
            try:
                item = find(page, wanted)
            except UnknownService:
                raise
            except CatalogError as exc:
                failures.append(exc)
                continue
            known = True
            found = None if item is None else service_of(site, item)
            if found is not None:
                return self._remembered(found)
        if not known:
            raise failures[0]
        unread = f", and a document cannot be read: {failures[0]}" if failures else ""
        raise UnknownService(f"{self.origin} lists no service {wanted!r}{unread}")

    def _remembered(self, service: CatalogService) -> CatalogService:
        payer, tool = self._payer, tool_of(path_of(service.endpoint))
        if payer is None or tool is None:  # another path names the service by the owner's patterns
            return service
        buyer = buyer_of(payer)
        schema = text_of(service.input_schema) or ""
        names = (service.id, service.canonical_id, *service.aliases)
        entry = CatalogEntry(
            service=tool,
            micro=most_micro(service),
            schema=schema[: SCHEMA_BYTES_MAX + 1],  # as much as tells that it is too long
            names=frozenset(ALIASES.get(name, name) for name in names),
            at=buyer.now(),
        )
        buyer.learn(self.origin, entry)
        return service


def _step(reading: Generator[str, Page, Any], page: Page | None) -> tuple[str | None, Any]:
    """The next URL; none where the reading is done, and what it came to."""
    try:
        return (next(reading) if page is None else reading.send(page)), None
    except StopIteration as stop:
        return None, stop.value
