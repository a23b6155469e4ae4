"""The marketplace's token desk: creating, showing and redeeming payments."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import anyio.to_thread
from eth_utils.address import to_checksum_address
from eth_utils.crypto import keccak

from x402_mask.sandbox import catalog
from x402_mask.sandbox.book import Book, Payment

if TYPE_CHECKING:
    from starlette.requests import Request

    from x402_mask.sandbox.catalog import Json, Service
    from x402_mask.sandbox.chain import Chain
    from x402_mask.sandbox.challenge import Tariff
    from x402_mask.sandbox.faults import Faults
    from x402_mask.sandbox.settings import SandboxSettings

SOMEBODY_ELSE = to_checksum_address(keccak(text="x402_mask sandbox other payee")[-20:])


class TokenRefused(Exception):
    """A token that buys nothing; *payment* is what to show of it, if anything."""

    def __init__(self, error: str, payment: Payment | None = None) -> None:
        super().__init__(error)
        self.error = error
        self.payment = payment


def client_id(request: Request, settings: SandboxSettings) -> str:
    """Whom a token is bound to."""
    if settings.bind_client == "off":
        return "anyone"
    parts = [request.client.host if request.client else ""]
    if settings.bind_client == "user-agent":
        parts.append(request.headers.get("user-agent", ""))
    return "client_" + hashlib.sha256("|".join(parts).encode()).hexdigest()[:16]


def date_time(unix: float) -> str:
    """Unix seconds as an RFC 3339 date-time in UTC."""
    moment = datetime.fromtimestamp(unix, UTC).isoformat(timespec="milliseconds")
    return moment.replace("+00:00", "Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenDesk:
    """Marketplace payments, with the faults that are switched on."""

    settings: SandboxSettings
    book: Book
    tariff: Tariff
    faults: Faults
    chain: Chain | None
    claimed: set[str]
    """Transactions that already paid for a payment."""

    async def create(self, service: Service, client: str) -> Payment:
        """A new pending payment, or a paid one where a balance pays at once."""
        cents, pay_to = self.tariff.cents(service), self.settings.pay_to
        if self.faults.take("price-changed"):
            cents *= 2
        if self.faults.take("payee-differs"):
            pay_to = SOMEBODY_ELSE
        payment = await self._open(service, client, cents, pay_to)
        if self.settings.auto_paid is True:
            self.book.mark_paid(payment.payment_id)
        return payment

    async def buy(self, service: Service, client: str, payment_id: str | None) -> Payment:
        """The payment that a settled proof pays: the client's pending one, or a new one."""
        payment = self._pay_pending(service, client, payment_id)
        if payment is None:
            cents = self.tariff.cents(service)
            payment = await self._open(service, client, cents, self.settings.pay_to)
            payment.paid_at = self.settings.clock()
        return payment

    def _pay_pending(self, service: Service, client: str, payment_id: str | None) -> Payment | None:
        now = self.settings.clock()
        wanted = (service.id, client, self.tariff.cents(service), self.settings.pay_to)
        with self.book.alone():  # two proofs must not pay the same payment
            for payment in reversed(self.book.payments):
                terms = (payment.amount_cents, payment.pay_to)
                fits = (payment.service, payment.client_id, *terms) == wanted
                named = payment_id in (None, payment.payment_id)
                if fits and named and payment.state(now) == "pending":
                    payment.paid_at = now
                    return payment
        return None

    async def _open(self, service: Service, client: str, cents: int, pay_to: str) -> Payment:
        good_for = service.id
        if self.faults.take("token-for-other-service"):
            good_for = next(s.id for s in catalog.SERVICES if s.id != service.id)
        height = None
        if self.chain is not None and self.settings.watch_transfers:
            height = await anyio.to_thread.run_sync(self.chain.height)
        return self.book.open(
            Payment(
                payment_id=f"pay_{secrets.token_hex(12)}",
                service=service.id,
                token_service=good_for,
                amount_cents=cents,
                pay_to=pay_to,
                client_id=client,
                provider_id=catalog.PROVIDER_ID,
                expires_at=self.settings.clock() + self.settings.payment_ttl,
                block=height,
                remaining=self.settings.calls_per_payment,
            )
        )

    async def read(self, payment: Payment) -> None:
        """Note that the payment was asked for, and let it be paid by balance or transfer."""
        with self.book.alone():
            payment.reads += 1
            after = self.settings.auto_paid
            due = after is not False and after is not True and payment.reads >= after
            if due and payment.state(self.settings.clock()) == "pending":
                self.book.mark_paid(payment.payment_id)
        if payment.block is not None and payment.state(self.settings.clock()) == "pending":
            await self._watch(payment, payment.block)

    async def _watch(self, payment: Payment, first_block: int) -> None:
        assert self.chain is not None  # a payment has a block only where a chain is watched
        amount = payment.amount_cents * 10 ** (self.settings.decimals - 2)
        seen = await anyio.to_thread.run_sync(
            self.chain.transfers, payment.pay_to, amount, first_block
        )
        with self.book.alone():
            fresh = [transaction for transaction in seen if transaction not in self.claimed]
            if fresh and payment.state(self.settings.clock()) == "pending":
                self.claimed.add(fresh[0])
                self.book.mark_paid(payment.payment_id)

    def show(self, payment: Payment) -> Json:
        """The payment object, with its token if it is paid and this build returns one."""
        state = payment.state(self.settings.clock())
        if state != "pending" and self.faults.take("poll-never-ends"):
            state = "pending"
        service = catalog.find(payment.service)
        assert service is not None  # payments are only opened for services on sale
        document: Json = {
            "amountCents": payment.amount_cents,
            "billingMode": "per_call",
            "clientId": payment.client_id,
            "currency": "USD",
            "expiresAt": date_time(payment.expires_at),
            "internalServiceId": service.legacy_id or service.id,
            "maxCalls": self.settings.calls_per_payment,
            "paidAt": None if payment.paid_at is None else date_time(payment.paid_at),
            "payTo": payment.pay_to,
            "paymentId": payment.payment_id,
            "provider": catalog.PROVIDER,
            "providerId": payment.provider_id,
            "remainingCalls": payment.remaining,
            "serviceId": payment.service,
            "status": state,
        }
        if state == "pending":
            document["paidAt"] = None
        return document | (self._token(payment) if state == "paid" else {})

    def _token(self, payment: Payment) -> Json:
        if self.settings.build == "newer" or self.faults.take("token-missing"):
            return {}
        if self.faults.take("token-null"):
            return {"token": None}
        return {"token": payment.token}

    def redeem(self, token: str, service: Service, client: str) -> None:
        """Use up *token* for one call of *service*; raises `TokenRefused`."""
        with self.book.alone():
            payment = self.book.by_token(token)
            if payment is None:
                raise TokenRefused("payment token is unknown")
            if payment.token_service != service.id:
                raise TokenRefused("payment token is for another service")
            if payment.client_id != client:
                raise TokenRefused("payment token belongs to another client")
            self._spoil(payment)
            state = payment.state(self.settings.clock())
            if state != "paid":
                raise TokenRefused(f"payment {state}", payment)
            payment.remaining -= 1

    def _spoil(self, payment: Payment) -> None:
        if self.faults.take("402-after-token"):
            raise TokenRefused("payment required")
        if self.faults.take("expired-token"):
            payment.expires_at = self.settings.clock()
        if self.faults.take("exhausted-token"):
            payment.remaining = 0
