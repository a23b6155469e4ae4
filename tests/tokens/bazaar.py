"""A marketplace that sells payment tokens, written from the public documents of Server402.

It keeps books of its own: payments it made, money that really moved (a proof once for its nonce, a
balance, the owner's other rail), tokens it gave and calls that were paid with them.  What it says
can be scripted, step by step, before or after it has done what was asked.
"""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from tests.support.seller import (
    PAYEE,
    TRANSACTION,
    Hit,
    Reply,
    Seller,
    authorization_of,
    challenge,
    encode,
    in_body,
    in_header,
    offer,
    offer_server402,
    offer_v1,
    settlement,
)

PRICE: Final = 200_000
"""Atomic USDC, and micro-USD: 20 cents."""
SERVICE: Final = "mask-refinement"
PAYMENTS: Final = "/api/payments"
GOODS: Final = {"code": "200", "data": {"url": "done"}, "requestId": "r1"}

Json = dict[str, Any]
Step = Callable[[Hit], Reply | None]
After = Callable[[Hit, Reply], Reply]

FORMS: Final = ("server402", "v2-header", "v2-body", "v1-body")


def terms(form: str, amount: int = PRICE, **changes: Any) -> Reply:
    """A 402 that asks for *amount*, in one of ``FORMS``."""
    match form:
        case "server402":
            document = challenge(offer_server402(str(amount), **changes), version=None)
            return in_body({**document, "error": "payment required"})
        case "v2-header":
            return in_header(challenge(offer(str(amount), **changes)))
        case "v2-body":
            return in_body(challenge(offer(str(amount), **changes)))
        case _:
            return in_body(challenge(offer_v1(str(amount), **changes), version=1))


@dataclass(slots=True)
class Sale:
    """A payment in the marketplace's own books."""

    id: str
    service: str
    calls: int
    status: str = "pending"
    way: str | None = None
    token: str | None = field(default=None, repr=False)
    polled: int = 0
    expires: float | None = None


class _Everything(dict[str, Any]):
    """Every path is answered by one function."""

    def __init__(self, script: Callable[[Hit], Reply]) -> None:
        super().__init__()
        self._script = script

    def get(self, key: str, default: Any = None) -> Any:  # type: ignore[override]
        return self._script


class Bazaar(Seller):
    """The marketplace.

    Attributes:
        form: how the tool's 402 looks; ``asks`` how the payments endpoint asks for x402: ``None``,
            ``"object"`` (``accepts`` inside the payment object), or one of ``FORMS`` in a 402.
        paid_at: a balance pays: ``"creation"``, a number of polls, or never.
        token_late: polls for which a paid payment does not show its token.
        before, after: by step (``create``, ``prove``, ``poll``, ``tool``, ``redeem``, ``sign``):
            what to answer instead of doing anything, or in place of the honest answer.
        shape: what becomes of every payment object.
    """

    def __init__(self) -> None:
        super().__init__()
        self._scripts = _Everything(self._route)
        self.form = "server402"
        self.asks: str | None = None
        self.paid_at: str | int | None = None
        self.token_late = 0
        self.calls = 1
        self.price = PRICE
        self.shape: Callable[[Json], Any] = lambda document: document
        self.extra: Json = {}
        self.before: dict[str, Step] = {}
        self.after: dict[str, After] = {}
        self.sales: dict[str, Sale] = {}
        self.moved: list[tuple[str, int]] = []
        self.nonces: dict[str, str] = {}
        self.served = 0
        self._books = threading.RLock()

    def url(self, service: str = SERVICE) -> str:
        """A tool of the marketplace."""
        return f"{self.origin}/api/tools/{service}"

    # --- what an honest auditor would ask

    @property
    def bought(self) -> list[Sale]:
        """Payments that money moved for."""
        return [sale for sale in self.sales.values() if sale.way is not None]

    @property
    def worth(self) -> int:
        """Micro-USD that moved."""
        return sum(micro for _, micro in self.moved)

    def steps(self) -> list[str]:
        """What was asked, in order, in words."""
        return [self._step(hit) for hit in list(self.hits)]

    def at_market(self) -> list[Hit]:
        """Requests to the payments endpoint."""
        return [hit for hit in list(self.hits) if hit.path.startswith(PAYMENTS)]

    # --- what its owner does

    def pay(self, payment_id: str, way: str) -> None:
        """Money came in for a payment by some rail."""
        with self._books:
            sale = self.sales[payment_id]
            self.moved.append((way, self.price))
            if sale.way is None:
                sale.way, sale.status = way, "paid"
                sale.token = "tok_" + secrets.token_urlsafe(24)

    # --- answering

    def _route(self, hit: Hit) -> Reply:
        step = self._step(hit)
        with self._books:
            scripted = self.before[step](hit) if step in self.before else None
            reply = scripted or getattr(self, f"_{step}")(hit)
            return self.after[step](hit, reply) if step in self.after else reply

    @staticmethod
    def _step(hit: Hit) -> str:
        signed = hit.values("payment-signature") or hit.values("x-payment")
        if hit.path == PAYMENTS and hit.method == "POST":
            return "prove" if signed else "create"
        if hit.path.startswith(f"{PAYMENTS}/") and hit.method == "GET":
            return "poll"
        if hit.path.startswith("/api/tools/"):
            return "redeem" if hit.values("x-payment-token") else "sign" if signed else "tool"
        return "lost"

    def _lost(self, hit: Hit) -> Reply:
        return Reply(status=404, body=b'{"error": "no such page"}')

    def _tool(self, hit: Hit) -> Reply:
        return terms(self.form, self.price)

    def _sign(self, hit: Hit) -> Reply:
        """A tool called with a signature."""
        if not self._collect(hit):
            return terms(self.form, self.price)
        return self._goods([settlement(hit)])

    def _goods(self, headers: list[tuple[str, str]]) -> Reply:
        self.served += 1
        return Reply(
            headers=[("Content-Type", "application/json"), *headers],
            body=json.dumps(GOODS).encode(),
        )

    def _redeem(self, hit: Hit) -> Reply:
        token, service = hit.header("x-payment-token"), hit.path.rpartition("/")[2]
        found = [s for s in self.sales.values() if s.token is not None and s.token == token]
        if not found or found[0].service != service:
            return terms(self.form, self.price)
        sale = found[0]
        if sale.expires is not None and time.time() >= sale.expires:
            sale.status = "expired"
        if sale.status != "paid":
            return terms(self.form, self.price)
        if sale.calls > 0:
            sale.calls -= 1
            sale.status = "exhausted" if sale.calls == 0 else "paid"
        return self._goods([])

    def _create(self, hit: Hit) -> Reply:
        wanted = json.loads(hit.body)
        sale = self._new(wanted["serviceId"])
        if self.paid_at == "creation":
            self.pay(sale.id, "balance")
        if self.asks is None or sale.status == "paid":
            return self._said(sale, 201)
        if self.asks == "object":
            return self._said(sale, 201, accepts=[offer_server402(str(self.price))])
        return terms(self.asks, self.price)

    def _prove(self, hit: Hit) -> Reply:
        """A proof at the payments endpoint: the same bytes always stand for the same payment."""
        nonce = self._collect(hit)
        if not nonce:
            return terms(self.asks if self.asks in FORMS else "server402", self.price)
        if nonce not in self.nonces:
            sale = self._new(json.loads(hit.body)["serviceId"])
            self.nonces[nonce] = sale.id
            sale.way, sale.status = "x402", "paid"
            sale.token = "tok_" + secrets.token_urlsafe(24)
        reply = self._said(self.sales[self.nonces[nonce]], 200)
        return Reply(
            status=reply.status, headers=[*reply.headers, settlement(hit)], body=reply.body
        )

    def _collect(self, hit: Hit) -> str | None:
        """Take the money of a proof, once; its nonce, or ``None`` if it is worth nothing."""
        found = authorization_of(self.origin, hit.proofs[0])
        if found is None or found.to != PAYEE or found.value != self.price:
            return None
        if found.valid_before < time.time():
            return None
        if ("x402 " + found.nonce, self.price) not in self.moved:
            self.moved.append(("x402 " + found.nonce, self.price))
        return found.nonce

    def _poll(self, hit: Hit) -> Reply:
        sale = self.sales.get(hit.path.rpartition("/")[2])
        if sale is None:
            return Reply(status=404, body=b'{"error": "no such payment"}')
        sale.polled += 1
        if isinstance(self.paid_at, int) and sale.polled >= self.paid_at and sale.way is None:
            self.pay(sale.id, "balance")
        return self._said(sale, 200)

    def _new(self, service: str) -> Sale:
        service = {"aliyun-imageseg-refine-mask": SERVICE}.get(service, service)
        sale = Sale(id="pay_" + secrets.token_hex(8), service=service, calls=self.calls)
        self.sales[sale.id] = sale
        return sale

    def document(self, sale: Sale) -> Json:
        """The payment object, as far as its schema is known."""
        paid = sale.way is not None
        said: Json = {
            "amountCents": self.price // 10_000,
            "billingMode": "per_call",
            "clientId": "client_1",
            "currency": "USD",
            "expiresAt": _date(sale.expires if sale.expires is not None else time.time() + 600),
            "internalServiceId": None,
            "maxCalls": self.calls,
            "paidAt": _date(time.time()) if paid else None,
            "payTo": PAYEE,
            "paymentId": sale.id,
            "provider": "x402_facilitator",
            "providerId": "x402-base-usdc",
            "remainingCalls": sale.calls,
            "serviceId": sale.service,
            "status": sale.status,
        }
        if paid and sale.status == "paid" and sale.polled >= self.token_late:
            said["token"] = sale.token
        return {**said, **self.extra}

    def _said(self, sale: Sale, status: int, **more: Any) -> Reply:
        body = self.shape({**self.document(sale), **more})
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return Reply(status=status, headers=[("Content-Type", "application/json")], body=data)


def _date(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")


# --- things for a script to say -------------------------------------------------------------------


def lost(hit: Hit, reply: Reply) -> Reply:
    """The answer never arrives, though everything was done."""
    return Reply(drop=True)


def once(step: Callable[..., Any], otherwise: Callable[..., Any]) -> Callable[..., Any]:
    """*step* the first time, then *otherwise*."""
    done = threading.Event()

    def script(*args: Any) -> Any:
        if done.is_set():
            return otherwise(*args)
        done.set()
        return step(*args)

    return script


def answered(hit: Hit, reply: Reply) -> Reply:
    """The honest answer."""
    return reply


def nothing(hit: Hit) -> None:
    """Nothing instead of the honest answer."""


def saying(document: Mapping[str, Any] | bytes, status: int = 200, **reply: Any) -> Step:
    """Always answer this."""
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    return lambda hit: Reply(status=status, body=body, **reply)


__all__ = [
    "FORMS",
    "GOODS",
    "PAYMENTS",
    "PRICE",
    "SERVICE",
    "TRANSACTION",
    "Bazaar",
    "Sale",
    "answered",
    "encode",
    "lost",
    "nothing",
    "once",
    "saying",
    "terms",
]
