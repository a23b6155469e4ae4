"""What the wallet has to pay with, where there is an RPC to ask, and what to fund it with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from x402_mask._flow.reasons import network_told
from x402_mask._payer import buyer_of
from x402_mask._text.values import money
from x402_mask.cli._faults import Failure

if TYPE_CHECKING:
    from collections.abc import Iterator
    from decimal import Decimal

    from x402_mask._models import Asset
    from x402_mask._payer import Payer
    from x402_mask.cli._session import Session


@dataclass(frozen=True, slots=True, kw_only=True)
class Funds:
    """What the wallet has of one asset; ``usd`` is ``None`` where nobody could say, for ``why``."""

    asset: Asset
    amount: int | None = None
    usd: Decimal | None = None
    why: str = ""

    @property
    def line(self) -> str:
        """In one line."""
        where = f"{self.asset.name} on {network_told(self.asset.network)}"
        if self.usd is None:
            return f"an unknown amount of {where} ({self.why})"
        return f"{money(self.usd)} in {where}"

    def lacks(self, price: Decimal | None) -> bool:
        """Whether it is known not to do for *price*, or for anything."""
        return self.usd is not None and (self.usd == 0 or (price is not None and self.usd < price))


def funds(payer: Payer, asset: Asset) -> Funds | None:
    """What the wallet has of *asset*; ``None`` without a wallet, or an RPC for its network."""
    from x402_mask._chain.balances import balance_of
    from x402_mask._chain.rpc import EndpointError
    from x402_mask._money import usd

    buyer = buyer_of(payer)
    if payer.address is None or not buyer.chain_knows(asset.network):
        return None
    try:
        amount = balance_of(buyer.chain(), asset, payer.address)
    except EndpointError as error:
        return Funds(asset=asset, why=str(error))
    # rounded down: what is there to spend
    return Funds(asset=asset, amount=amount, usd=usd(amount * 10**6 // 10**asset.decimals))


def all_funds(payer: Payer) -> Iterator[Funds]:
    """What the wallet has of each asset that may be paid with, as far as anybody can be asked."""
    for asset in buyer_of(payer).settings.policy.assets.values():
        found = funds(payer, asset)
        if found is not None:
            yield found


def needed(session: Session) -> list[Asset]:
    """The assets that a wallet of these settings may pay with; of Base, where nothing is set."""
    from x402_mask._wire.assets import BASE, caip2, default_assets

    try:
        values = session.settings().values
    except Failure:  # a wallet can be made before the settings are right
        values = {}
    networks = frozenset(caip2(name) for name in values.get("networks") or (BASE,))
    return list(values.get("assets") or default_assets(networks))


def what_to_fund(assets: list[Asset]) -> str:
    """What to send the wallet, and where: anything else would be lost to it."""
    named = [f"{a.name} ({a.address}) on {network_told(a.network)}" for a in assets]
    which = " or ".join(named) if named else "a token of assets="
    return f"send it a little {which}: no other token or network pays, and no gas is needed"
