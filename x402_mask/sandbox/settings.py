"""What a sandbox can be told: how it asks, how it is paid, how it misbehaves."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from eth_account import Account
from eth_utils.address import is_checksum_address, to_checksum_address
from eth_utils.crypto import keccak
from eth_utils.exceptions import ValidationError

from x402_mask.sandbox.faults import check_faults

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

BASE_USDC = "0x833589fCD6eDb6E08f4c7C32D4f71b54bdA02913"

# Derived from words, so nobody holds its key: a real proof shown here by mistake enriches no one.
NOBODY = to_checksum_address(keccak(text="x402_mask sandbox payee")[-20:])

V1_NETWORKS: Mapping[int, str] = MappingProxyType(
    {1: "ethereum", 137: "polygon", 8453: "base", 43114: "avalanche", 84532: "base-sepolia"}
)

Build = Literal["older", "newer"]
ChallengeForm = Literal["attested", "v2-header", "v2-body", "v1"]
MCPChallenge = Literal["structured", "text", "wrapped", "prefixed", "error", "payment"]
PaymentsAsk = Literal["nothing", "402", "accepts"]
ClientBinding = Literal["off", "ip", "user-agent"]
IdentifierMode = Literal["off", "optional", "required"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxSettings:
    """Everything a sandbox can be told; the defaults are the attested Server402.

    Money is in atomic units of the asset (1 USDC = 1_000_000) unless a name ends in ``_cents``;
    times are in seconds. Raises ``ValueError`` for values that cannot work.
    """

    build: Build = "older"
    """``older`` hands out tokens; ``newer`` returns none and names a second provider."""
    challenge: ChallengeForm = "attested"
    """The shape of a 402; ``v1`` takes ``X-PAYMENT``, the others ``PAYMENT-SIGNATURE``."""
    mcp_challenge: MCPChallenge = "structured"
    """Where a 402 stands over MCP: ``structuredContent``, ``text`` alone, ``wrapped`` in
    ``x402/error``, ``prefixed`` text, a JSON-RPC ``error``, or a marketplace ``payment`` object."""
    faults: Mapping[str, bool | int] = field(default_factory=dict)
    """Named misbehaviour, see `x402_mask.sandbox.faults`; a number means: that many times."""
    price_cents: Mapping[str, int] = field(default_factory=dict)
    """Prices by service id, over the catalog's own."""

    pay_to: str = NOBODY
    """The payee, checksummed."""
    asset: str = BASE_USDC
    """The token contract, checksummed."""
    asset_name: str = "USD Coin"
    """The token's EIP-712 domain name."""
    asset_version: str = "2"
    """The token's EIP-712 domain version."""
    decimals: int = 6
    """The token's decimals, at least 2."""
    chain_id: int = 8453
    max_timeout: int = 300
    """``maxTimeoutSeconds`` of every offer."""
    min_validity: int = 6
    """Seconds a proof must still be valid when it arrives (official facilitators: 6)."""
    default_balance: int = 10_000_000
    """What a wallet the book does not know owns."""
    payment_identifier: IdentifierMode = "off"
    """Whether the ``payment-identifier`` extension is offered, and whether it is needed."""

    payments_ask: PaymentsAsk = "nothing"
    """How ``POST /api/payments`` can be paid by x402: it answers ``402``, or lists ``accepts``."""
    auto_paid: bool | int = False
    """A balance pays the payment: ``True`` at once, a number at that many reads of it."""
    bind_client: ClientBinding = "ip"
    """What a token is bound to besides its service; ``user-agent`` means address and agent."""
    calls_per_payment: int = 1
    """``maxCalls`` of a payment; a token that is good for more than one may be used again."""
    payment_ttl: int = 600
    """Seconds until a payment, paid or not, expires."""
    retry_after: int | None = None
    """``Retry-After`` of an unpaid payment."""

    rpc: str | None = None
    """Settle on the chain behind this URL instead of in the embedded book."""
    facilitator_key: str | None = field(default=None, repr=False)
    """Private key that sends (and pays the gas of) settlements; needed with ``rpc``."""
    settle_timeout: float = 30.0
    """Seconds to wait for a receipt before answering ``settlement_pending``."""
    watch_transfers: bool = False
    """A payment also counts as paid when a matching ``Transfer`` is seen behind ``rpc``."""

    slow_settle: float = 2.0
    """Seconds the fault ``slow-settle`` takes."""
    fetch_remote: bool = True
    """Whether pictures may come from other http(s) URLs than the sandbox's own."""
    fetch_bytes_max: int = 8 * 1024 * 1024
    fetch_timeout: float = 10.0
    clock: Callable[[], float] = time.time
    """Unix seconds."""

    def __post_init__(self) -> None:
        check_faults(self.faults)
        for name in ("pay_to", "asset"):
            if not is_checksum_address(getattr(self, name)):
                raise ValueError(f"{name} is not a checksummed address")
        if self.challenge == "v1" and self.chain_id not in V1_NETWORKS:
            raise ValueError(f"x402 v1 has no name for chain {self.chain_id}")
        if self.challenge == "v1" and self.payment_identifier != "off":
            raise ValueError("x402 v1 has no payment-identifier")
        if self.calls_per_payment < 1:
            raise ValueError("a payment is good for at least one call")
        if self.decimals < 2 or min(self.price_cents.values(), default=0) < 0:
            raise ValueError(
                "prices are whole cents, at least 0, of a token with 2 or more decimals"
            )
        self._check_chain()

    def _check_chain(self) -> None:
        if self.watch_transfers and self.rpc is None:
            raise ValueError("watch_transfers needs an rpc")
        if self.rpc is not None and self.facilitator_key is None:
            raise ValueError("rpc needs a facilitator_key to send settlements with")
        if self.facilitator_key is not None:
            try:
                Account.from_key(self.facilitator_key)
            except (TypeError, ValueError, ValidationError):
                # from None: the library's own message may quote the key.
                raise ValueError("facilitator_key is not a private key") from None

    @property
    def network(self) -> str:
        """The CAIP-2 name of the chain."""
        return f"eip155:{self.chain_id}"

    @property
    def network_on_wire(self) -> str:
        """The network's name in the chosen challenge form."""
        return V1_NETWORKS[self.chain_id] if self.challenge == "v1" else self.network

    def __reduce__(self) -> tuple[Any, ...]:
        if self.facilitator_key is not None:
            raise TypeError("settings that hold a private key cannot be pickled")
        return _rebuild, ({f.name: getattr(self, f.name) for f in fields(self)},)


def _rebuild(values: dict[str, Any]) -> SandboxSettings:
    return SandboxSettings(**values)
