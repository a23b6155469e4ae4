"""The frozen records that users meet.  Data only; nothing here does anything."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, Literal

from x402_mask._money import micro_usd, parse_usd, span, usd
from x402_mask._services import ALIASES

if TYPE_CHECKING:
    from collections.abc import Mapping
    from decimal import Decimal

    from x402_mask.errors import PaymentRefused

Route = Literal["x402", "token", "held-token"]
Outcome = Literal["settled", "unknown", "rejected"]
State = Literal["reserved", "held", "settled", "released", "void"]

_ADDRESS: Final = re.compile(r"0x[0-9a-fA-F]{40}")
_NETWORK: Final = re.compile(r"eip155:[1-9][0-9]{0,18}")
_CALENDARS: Final = ("hour", "day", "month")


@dataclass(frozen=True, slots=True)
class Asset:
    """A token worth one US dollar that may be paid with, and its EIP-712 domain.

    Args:
        network: CAIP-2, ``eip155:<chain id>``.
        address: the token contract.
        decimals: of one token; its atomic unit is ``10 ** -decimals`` USD.
        name: ``name`` of the token's EIP-712 domain.
        version: ``version`` of the token's EIP-712 domain.
    """

    network: str
    address: str
    decimals: int
    name: str
    version: str

    def __post_init__(self) -> None:
        if not _NETWORK.fullmatch(self.network):
            raise ValueError(f"not an EVM network in CAIP-2 form: {self.network!r}")
        if not _ADDRESS.fullmatch(self.address):
            raise ValueError(f"not a token address: {self.address!r}")
        if type(self.decimals) is not int or not 0 <= self.decimals <= 36:
            raise ValueError(f"decimals out of range: {self.decimals!r}")
        if {type(self.name), type(self.version)} != {str}:
            raise TypeError("an asset's name and version are strings")

    @property
    def chain_id(self) -> int:
        """The EVM chain id."""
        return int(self.network.partition(":")[2])

    def micro_usd(self, amount: int) -> int:
        """Micro-USD of *amount* atomic units, rounded up."""
        return micro_usd(amount, self.decimals)


@dataclass(frozen=True, slots=True, init=False)
class Cap:
    """The most that may be spent on a service in a window.

    Args:
        limit: USD as ``str``, ``Decimal`` or ``int``; above 0, at most six decimals.
        per: ``"call"``, ``"hour"``, ``"day"``, ``"month"`` (UTC calendar), ``"total"``, or a
            ``timedelta`` (rolling).
        service: a service, one of its aliases, or ``"*"`` for all services together.  A built-in
            alias becomes the service's own name here, any other in the payer.

    Raises:
        TypeError: *limit* is a float, or an argument has the wrong type.
        ValueError: anything else that is not a cap.
    """

    limit: Decimal
    per: str | timedelta
    service: str

    def __init__(
        self, limit: str | Decimal | int, *, per: str | timedelta, service: str = "*"
    ) -> None:
        micro = parse_usd(limit)
        if micro <= 0:
            raise ValueError("a cap's limit is above 0")
        if isinstance(per, timedelta):
            if per <= timedelta(0):
                raise ValueError("a rolling window is longer than 0")
        elif not isinstance(per, str):
            raise TypeError(f"per is a str or a timedelta, not {type(per).__name__}")
        elif per not in ("call", "total", *_CALENDARS):
            raise ValueError(f"per is call, hour, day, month, total or a timedelta, not {per!r}")
        if not isinstance(service, str):
            raise TypeError(f"service is a str, not {type(service).__name__}")
        if not service.strip():
            raise ValueError("a cap's service is a name or '*'")
        object.__setattr__(self, "limit", usd(micro))
        object.__setattr__(self, "per", per)
        object.__setattr__(self, "service", ALIASES.get(service, service))

    @property
    def micro(self) -> int:
        """The limit in micro-USD."""
        return parse_usd(self.limit)

    def __str__(self) -> str:
        scope = "all services" if self.service == "*" else self.service
        return f"${self.limit}/{span(self.per)} on {scope}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """One entry of a challenge's ``accepts`` that could be parsed.

    ``amount`` is atomic units of the token at ``asset``; ``max_timeout_s`` is the seller's
    validity in seconds; ``raw`` is the entry as received.
    """

    scheme: str
    network: str
    asset: str
    amount: int
    pay_to: str
    max_timeout_s: int
    index: int = 0
    extra: Mapping[str, Any] = field(default_factory=dict, repr=False)
    raw: Mapping[str, Any] = field(default_factory=dict, repr=False)

    __hash__ = None  # type: ignore[assignment]  # holds mappings


@dataclass(frozen=True, slots=True, kw_only=True)
class Quote:
    """What a 402 would cost, and whether policy would allow it.  Nothing was signed.

    ``usd`` is the price in USD, ``amount`` the same in atomic units of ``asset``. ``refusal`` is
    the error that paying would raise, or ``None``. ``skipped`` says why each other way of paying,
    and each other offer, was not taken.  ``caps`` are the spends that apply, before this payment.
    """

    service: str
    origin: str
    method: str
    url: str
    route: Route | None
    usd: Decimal | None
    amount: int | None
    asset: Asset | None
    network: str | None
    pay_to: str | None
    payer: str | None
    offer: Offer | None = None
    skipped: tuple[str, ...] = ()
    caps: tuple[Spend, ...] = ()
    refusal: PaymentRefused | None = None

    __hash__ = None  # type: ignore[assignment]  # holds an Offer

    @property
    def allowed(self) -> bool:
        """Whether policy and caps would allow this payment now."""
        return self.refusal is None


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """What was paid for one response.

    ``usd`` is USD, ``amount`` atomic units.  ``outcome`` is the seller's claim: ``settled`` (it
    reported a settlement that agrees with what was signed; with an ``rpc`` it was seen on chain),
    ``unknown``, or ``rejected`` (it answered 402 again; the money is held all the same).
    ``reason`` is why it refused, in its own words, shortened, and what they mean where that is
    known: not to be trusted, and nothing that a program or an agent should follow.
    """

    payment_id: str
    service: str
    origin: str
    route: Route
    usd: Decimal
    amount: int
    asset: str | None
    network: str | None
    payer: str | None
    pay_to: str | None
    outcome: Outcome
    transaction: str | None
    at: datetime
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Payment:
    """One row of the ledger.  ``usd`` is USD, ``amount`` atomic units of ``asset``.

    ``note`` says what a held payment waits for, or why it ended as it did; ``proof_digest`` is
    the SHA-256 of the proof that was presented, never the proof itself.  ``reason`` is why the
    seller refused it last, as on a :class:`Receipt`.
    """

    payment_id: str
    state: State
    service: str
    origin: str
    route: Route
    usd: Decimal
    amount: int
    asset: str | None
    network: str | None
    payer: str | None
    pay_to: str | None
    nonce: str | None
    valid_before: datetime | None
    operation: str
    open: bool
    outcome: Outcome | None
    transaction: str | None
    proof_digest: str | None
    note: str
    at: datetime
    updated_at: datetime
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Spend:
    """How far one cap is used.  All amounts are USD; ``held`` is reserved plus held."""

    service: str
    per: str | timedelta
    limit: Decimal
    settled: Decimal
    held: Decimal
    left: Decimal
    resets_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened, as ``on_event`` sees it.

    ``kind`` is one of ``challenge``, ``quote``, ``refused``, ``reserved``, ``sent``,
    ``represented``, ``settled``, ``held``, ``rejected``, ``released``, ``payee_changed``,
    ``breaker_open``, ``ledger_failed``, ``reconciled``, ``schema_ignored``, ``token_asked``,
    ``bought``, ``token_used``, ``token_dropped``.  ``detail`` holds no secret.
    """

    kind: str
    service: str = ""
    origin: str = ""
    payment_id: str | None = None
    usd: Decimal | None = None
    detail: Mapping[str, Any] = field(default_factory=dict)

    __hash__ = None  # type: ignore[assignment]  # holds a mapping


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    """One held payment that ``reconcile()`` looked at, and what became of it.

    ``answered`` is false where the chain could not be asked: there is no RPC, or none that works.
    """

    payment_id: str
    state: State
    transaction: str | None
    detail: str
    answered: bool = True
