"""The embedded book: who owns what, which nonces are used, which payments exist.

It stands in for the chain. With an ``rpc`` the chain keeps balances and nonces, and the book only
lists what was settled. Every method may be called from any thread.
"""

from __future__ import annotations

import secrets
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from eth_utils.address import to_checksum_address
from eth_utils.crypto import keccak

from x402_mask.sandbox.verify import Authorization, Rejected

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

State = Literal["pending", "paid", "expired", "exhausted"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settlement:
    """Money that moved: *amount* atomic units, at Unix second *at*."""

    service: str
    payer: str
    pay_to: str
    amount: int
    nonce: str
    transaction: str
    network: str
    at: float


@dataclass(slots=True, kw_only=True)
class Payment:
    """A marketplace payment and the token it buys; times are Unix seconds."""

    payment_id: str
    service: str
    token_service: str
    amount_cents: int
    pay_to: str
    client_id: str
    provider_id: str
    expires_at: float
    block: int | None = None
    """The chain's height when the payment was created, where a chain is watched."""
    paid_at: float | None = None
    remaining: int = 1
    reads: int = 0
    token: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)

    def state(self, now: float) -> State:
        """The payment's status word at *now*."""
        if self.remaining == 0:
            return "exhausted"
        if now >= self.expires_at:
            return "expired"
        return "pending" if self.paid_at is None else "paid"


class Book:
    """Balances, used nonces, settlements and marketplace payments."""

    def __init__(self, *, payee: str, default_balance: int, clock: Callable[[], float]) -> None:
        self._default = default_balance
        self._clock = clock
        self._balances: dict[str, int] = {payee.lower(): 0}
        self._nonces: set[tuple[str, str]] = set()
        self._settlements: list[Settlement] = []
        self._payments: dict[str, Payment] = {}
        self._tokens: dict[str, Payment] = {}
        self._lock = threading.RLock()

    # -- money

    def fund(self, address: str, amount: int) -> None:
        """Set the balance of *address* to *amount* atomic units."""
        if amount < 0:
            raise ValueError("a balance is at least 0")
        with self._lock:
            self._balances[address.lower()] = amount

    def balance(self, address: str) -> int:
        """What *address* owns, in atomic units."""
        with self._lock:
            return self._balances.get(address.lower(), self._default)

    @property
    def settlements(self) -> list[Settlement]:
        """Everything that was settled, oldest first."""
        with self._lock:
            return list(self._settlements)

    def used(self, payer: str, nonce: str) -> bool:
        """Whether *payer* has spent the EIP-3009 *nonce* here."""
        with self._lock:
            return (payer.lower(), nonce.lower()) in self._nonces

    def settle(self, authorization: Authorization, service: str, network: str) -> Settlement:
        """Move the money once, or raise `Rejected` when the nonce is used or the balance short."""
        payer, pay_to = authorization.payer.lower(), authorization.pay_to.lower()
        with self._lock:
            if self.used(payer, authorization.nonce):
                raise Rejected("invalid_exact_evm_nonce_already_used")
            if self.balance(payer) < authorization.value:
                raise Rejected("invalid_exact_evm_insufficient_balance")
            self._balances[payer] = self.balance(payer) - authorization.value
            self._balances[pay_to] = self.balance(pay_to) + authorization.value
            transaction = "0x" + keccak(text=f"{payer} {authorization.nonce}").hex()
            return self.record(authorization, service, network, transaction)

    def record(
        self, authorization: Authorization, service: str, network: str, transaction: str
    ) -> Settlement:
        """List a settlement that happened, here or on chain."""
        settlement = Settlement(
            service=service,
            payer=to_checksum_address(authorization.payer),
            pay_to=to_checksum_address(authorization.pay_to),
            amount=authorization.value,
            nonce=authorization.nonce,
            transaction=transaction,
            network=network,
            at=self._clock(),
        )
        with self._lock:
            self._nonces.add((authorization.payer.lower(), authorization.nonce.lower()))
            self._settlements.append(settlement)
        return settlement

    # -- marketplace payments

    def open(self, payment: Payment) -> Payment:
        """Put a new payment on the book."""
        with self._lock:
            self._payments[payment.payment_id] = payment
            self._tokens[payment.token] = payment
        return payment

    def payment(self, payment_id: str) -> Payment | None:
        """The payment of that id, if there is one."""
        with self._lock:
            return self._payments.get(payment_id)

    @property
    def payments(self) -> list[Payment]:
        """Every marketplace payment, oldest first."""
        with self._lock:
            return list(self._payments.values())

    def by_token(self, token: str) -> Payment | None:
        """The payment that *token* belongs to, if there is one."""
        with self._lock:
            return self._tokens.get(token)

    def mark_paid(self, payment_id: str) -> None:
        """Say that a payment was paid by some other rail.

        Raises ``KeyError`` if there is none, ``ValueError`` if it is not pending.
        """
        with self._lock:
            payment = self._payments[payment_id]
            state = payment.state(self._clock())
            if state != "pending":
                raise ValueError(f"payment {payment_id} is {state}")
            payment.paid_at = self._clock()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the book while several of its records are read and changed together."""
        with self._lock:
            yield
