"""A marketplace that is scripted document by document, and ways to ask it."""

from __future__ import annotations

import gzip
import json
from importlib import import_module
from typing import Any

import anyio
from eth_account import Account

from tests.support.seller import (
    Answer,
    Json,
    Reply,
    Seller,
    offer,
    paywall,
    served,
    server402_body,
)
from x402_mask import Marketplace, Payer

MODES = ("client", "attach", "auth", "async-client", "async-attach", "async-auth")
SEARCH = "/api/catalog/search"
DISCOVERY = "/.well-known/server402.json"


class Signer:
    """An external wallet that counts what it is asked for."""

    def __init__(self) -> None:
        self._account: Any = Account.from_key("0x" + "11" * 32)
        self.address: str = self._account.address
        self.calls = 0

    def sign_typed_data(self, domain: Any, types: Any, message: Any) -> bytes:
        self.calls += 1
        return bytes(self._account.sign_typed_data(domain, types, message).signature)


def entry(service: str = "mask-refinement", /, **changes: Any) -> Json:
    """An entry of the catalog; a change to ``None`` leaves the key out."""
    plain: Json = {
        "id": service,
        "canonicalId": service,
        "name": service.title(),
        "description": "Does things.",
        "tags": None,
        "method": "POST",
        "endpoint": f"/api/tools/{service}",
        "endpointAliases": [],
        "pricing": {"amountCents": 20, "currency": "USD"},
        **changes,
    }
    return {key: value for key, value in plain.items() if value is not None}


def as_json(document: Any, **reply: Any) -> Reply:
    """A JSON answer; text and bytes go as they are."""
    text = document if isinstance(document, (str, bytes)) else json.dumps(document)
    body = text.encode() if isinstance(text, str) else text
    return Reply(
        headers=[("Content-Type", "application/json"), *reply.pop("headers", [])],
        body=body,
        **reply,
    )


def zipped(body: bytes) -> Reply:
    """A gzip answer."""
    return as_json(gzip.compress(body), headers=[("Content-Encoding", "gzip")])


class Shop:
    """A marketplace on a loopback socket."""

    def __init__(self, seller: Seller) -> None:
        self.seller = seller
        self.origin = seller.origin

    def lists(self, *items: Any, path: str = SEARCH, **envelope: Any) -> None:
        """What a search finds."""
        self.seller.on(path, as_json({"services": list(items), "total": len(items), **envelope}))

    def says(self, path: str, answer: Any) -> None:
        """Serve a document, or a reply."""
        self.seller.on(path, answer if isinstance(answer, Reply) else as_json(answer))

    def sells(
        self,
        name: str = "mask-refinement",
        *,
        amount: str = "200000",
        paid: Answer | None = None,
        schema: Any = None,
        **more: Any,
    ) -> str:
        """Sell a service by the Server402 challenge, with *schema* as its ``outputSchema``."""
        asked = offer(amount, extra=None, outputSchema=schema)
        unpaid = server402_body(asked, **more)
        return self.seller.on(f"/api/tools/{name}", paywall(unpaid, paid or served(b"{}")))

    def paths(self) -> list[str]:
        """What was asked for, in order."""
        return [hit.path for hit in self.seller.hits]


def client_of(mode: str, payer: Payer | None, family: str = "httpx", **options: Any) -> Any:
    """A client of a family, plain or paying."""
    library = import_module(family)
    ours = import_module("x402_mask" if family == "httpx" else f"x402_mask.{family}")
    colour = "AsyncClient" if mode.startswith("async") else "Client"
    options = {"trust_env": False, "timeout": 10, **options}
    if payer is None:
        return getattr(library, colour)(**options)
    if mode.endswith("client"):
        return getattr(ours, colour)(payer, **options)
    if mode.endswith("attach"):
        return ours.attach(getattr(library, colour)(**options), payer)
    return getattr(library, colour)(auth=ours.PaymentAuth(payer), **options)


def using(mode: str, payer: Payer | None, function: Any, family: str = "httpx") -> Any:
    """What *function* makes of a client, awaited where it must be."""
    if not mode.startswith("async"):
        with client_of(mode, payer, family) as client:
            return function(client)

    async def later() -> Any:
        async with client_of(mode, payer, family) as client:
            return await function(client)

    return anyio.run(later)


def market(
    shop: Shop, payer: Payer | None = None, mode: str = "client", family: str = "httpx"
) -> _Market:
    """The shop's catalog as its clients see it."""
    return _Market(shop, payer, mode, family)


class _Market:
    """``search`` and ``service`` in a mode, each on a client of its own."""

    def __init__(self, shop: Shop, payer: Payer | None, mode: str, family: str) -> None:
        self._how = (mode, payer)
        self._family = family
        self._origin = shop.origin

    def search(self, q: str = "x") -> Any:
        return using(*self._how, lambda c: Marketplace(self._origin, c).search(q), self._family)

    def service(self, name: str) -> Any:
        return using(*self._how, lambda c: Marketplace(self._origin, c).service(name), self._family)
