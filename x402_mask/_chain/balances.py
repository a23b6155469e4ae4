"""What a wallet has, by what the chain says now: ERC-20 ``balanceOf``, asked of every endpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from x402_mask._chain.rpc import HASH, address_word, each, hex_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from x402_mask._chain.reader import ChainReader
    from x402_mask._chain.rpc import Endpoint
    from x402_mask._models import Asset

_BALANCE_OF: Final = "0x70a08231"  # balanceOf(address), ERC-20
_TIME_OUT_S: Final = 5.0


def balance_of(chain: ChainReader, asset: Asset, owner: str) -> int:
    """Atomic units of *asset* that *owner* has: the least that any endpoint says.  Blocks briefly.

    Raises:
        EndpointError: nobody answered, or not as a token would.
    """

    async def ask(endpoints: Sequence[Endpoint]) -> int:
        return min(await each(endpoints, lambda endpoint: _balance(endpoint, asset, owner)))

    return chain.ask(asset.network, ask, _TIME_OUT_S)


async def _balance(endpoint: Endpoint, asset: Asset, owner: str) -> int:
    await endpoint.check_chain()
    data = _BALANCE_OF + address_word(owner).removeprefix("0x")
    raw = await endpoint.call("eth_call", {"to": asset.address, "data": data}, "latest")
    return int(hex_of(raw, HASH, endpoint), 16)
