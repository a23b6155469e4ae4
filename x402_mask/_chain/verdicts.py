"""What a chain can prove about a signature, and the question that it is asked.

Any fault, delay or contradiction is :class:`Unknown`, so that money is never freed by doubt.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from x402_mask._chain.rpc import Endpoint, Header


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """The nonce was used, and its transaction moved exactly ``amount`` from payer to payee.

    ``past`` is whether ``validBefore`` is past in a confirmed block, as far as that is known.
    """

    transaction: str
    block: int
    amount: int
    past: bool | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Canceled:
    """The payer cancelled the authorization; it can never move money."""

    transaction: str
    block: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Unused:
    """Unused in confirmed ``block``, whose time (Unix seconds) is past ``validBefore``."""

    block: int
    block_time: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Unknown:
    """Nothing is proven; ``reason`` says why, for people.

    ``answered`` is whether the chain was asked, and only proves nothing yet.  ``past`` is whether
    ``validBefore`` is past in a confirmed block, as far as that is known.
    """

    reason: str
    answered: bool = field(default=True, compare=False, repr=False)
    past: bool | None = field(default=None, compare=False, repr=False)


Evidence = Settled | Canceled | Unused | Unknown


class Question(Protocol):
    """What is asked of a chain about one thing that was signed.

    ``network`` is CAIP-2.  Nobody can take anything from ``valid_before`` on, Unix seconds.
    ``transaction`` is a hint, such as a seller's claim.  ``time_out_s`` bounds the whole question.
    """

    @property
    def network(self) -> str: ...
    @property
    def valid_before(self) -> int: ...
    @property
    def transaction(self) -> str | None: ...
    @property
    def time_out_s(self) -> float | None: ...

    async def judge(self, endpoint: Endpoint, top: Header, lag_s: int) -> Evidence:
        """One endpoint's evidence as of the confirmed block ``top`` of a chain that lags so much.

        Raises:
            EndpointError: it cannot be believed.
        """
        ...

    async def glance(self, endpoint: Endpoint, transaction: str) -> Evidence:
        """Whether *transaction* pays, at whatever depth.

        Raises:
            EndpointError: the endpoint cannot be believed.
        """
        ...
