"""Known dollar tokens and network names.

The table is the default table of PyPI x402 2.25.0 and npm @x402/evm 2.27.0 (September 2026); where
they differ, the token contract's own ``name()`` decides.  A seller never adds to it; an owner does,
with ``Payer(assets=[Asset(...)])``.
"""

from __future__ import annotations

from typing import Final

from x402_mask._models import Asset

BASE: Final = "eip155:8453"

EIP3009_ASSETS: Final = (
    Asset("eip155:8453", "0x833589fCD6eDb6E08f4c7C32D4f71b54bdA02913", 6, "USD Coin", "2"),
    Asset("eip155:84532", "0x036CbD53842c5426634e7929541eC2318f3dCF7e", 6, "USDC", "2"),
    Asset("eip155:1", "0xA0b86991c6218b36c1d19D4a2e9Eb0cE3606eB48", 6, "USD Coin", "2"),
    Asset("eip155:43114", "0xB97EF9Ef8734C71904D8002F8b6Bc66Dd9c48a6E", 6, "USD Coin", "2"),
    Asset("eip155:143", "0x754704Bc059F8C67012fEd69BC8A327a5aafb603", 6, "USDC", "2"),
    Asset("eip155:10143", "0x534b2f3A21130d7a60830c2Df862319e593943A3", 6, "USDC", "2"),
    Asset("eip155:988", "0x779Ded0c9e1022225f8E0630b35a9b54bE713736", 6, "USDT0", "1"),
    Asset("eip155:2201", "0x78Cf24370174180738C5B8E352B6D14c83a6c9A9", 6, "USDT0", "1"),
    Asset("eip155:137", "0x3c499c542cEF5E3811e1192ce70d8cC03d5c3359", 6, "USD Coin", "2"),
    Asset("eip155:42161", "0xaf88d065e77c8cC2239327C5EDb3A432268e5831", 6, "USD Coin", "2"),
    Asset("eip155:421614", "0x75faf114eafb1BDbe2F0316DF893fd58CE46AA4d", 6, "USD Coin", "2"),
    Asset("eip155:36900", "0x9cb8142aEBBcdc60AF7c97Af897A67A8f3CA71C2", 6, "USDC.e", "2"),
    Asset("eip155:190415", "0x401eCb1D350407f13ba348573E5630B83638E30D", 6, "Bridged USDC", "2"),
    Asset("eip155:181228", "0x401eCb1D350407f13ba348573E5630B83638E30D", 6, "Bridged USDC", "2"),
    Asset("eip155:50", "0xfA2958CB79b0491CC627c1557F441eF849Ca8eb1", 6, "USDC", "2"),
    Asset("eip155:51", "0xb5AB69F7bBada22B28e79C8FFAECe55eF1c771D4", 6, "USDC", "2"),
    Asset("eip155:14", "0xe7cd86e13AC4309349F30B3435a9d337750fC82D", 6, "USD₮0", "1"),
    Asset("eip155:42220", "0xcebA9300f2b948710d2653dD7B07f33A8B32118C", 6, "USDC", "2"),
    Asset("eip155:42220", "0x48065fbBE25f71C9282ddf5e1cD6D6A887483D5e", 6, "Tether USD", "1"),
    Asset(
        "eip155:42220", "0xD2ab3C9A02DBBAB236BfEC45D1d755DF4267F771", 6, "Tether America USD", "1"
    ),
    Asset("eip155:11142220", "0x01C5C0122039549AD1493B8220cABEdD739BC44E", 6, "USDC", "2"),
    Asset("eip155:1329", "0xe15fC38F6D8c56aF07bbCBe3BAf5708A2Bf42392", 6, "USDC", "2"),
    Asset("eip155:1328", "0x4fCF1784B31630811181f670Aea7A7bEF803eaED", 6, "USDC", "2"),
    Asset("eip155:5042", "0x3600000000000000000000000000000000000000", 6, "USDC", "2"),
    Asset("eip155:5042002", "0x3600000000000000000000000000000000000000", 6, "USDC", "2"),
)
"""Tokens that can be paid by EIP-3009 ``transferWithAuthorization``."""

PERMIT2_ASSETS: Final = (
    Asset("eip155:4326", "0xFAfDdbb3FC7688494971a79cc65DCa3EF82079E7", 18, "MegaUSD", "1"),
    Asset("eip155:31612", "0xdD468A1DDc392dcdbEf6db6e34E89AA338F9F186", 18, "Mezo USD", "1"),
    Asset("eip155:31611", "0x118917a40FAF1CD7a13dB0Ef56C86De7973Ac503", 18, "Mezo USD", "1"),
    Asset("eip155:723487", "0x33ad9e4BD16B69B5BFdED37D8B5D9fF9aba014Fb", 6, "Stable Coin", "1"),
    Asset("eip155:72344", "0x33ad9e4BD16B69B5BFdED37D8B5D9fF9aba014Fb", 6, "Stable Coin", "1"),
    Asset("eip155:38833", "0xA5b8BF902b2844dA17d4506cc827F7F1681735E7", 6, "USDC", "1"),
)
"""Known tokens that would need Permit2, which this library does not sign: recognised, refused."""

KNOWN_ASSETS: Final = (*EIP3009_ASSETS, *PERMIT2_ASSETS)

NETWORK_NAMES: Final = {
    "abstract": "eip155:2741",
    "abstract-testnet": "eip155:11124",
    "avalanche": "eip155:43114",
    "avalanche-fuji": "eip155:43113",
    "base": "eip155:8453",
    "base-sepolia": "eip155:84532",
    "celo": "eip155:42220",
    "educhain": "eip155:41923",
    "ethereum": "eip155:1",
    "flare": "eip155:14",
    "iotex": "eip155:4689",
    "megaeth": "eip155:4326",
    "monad": "eip155:143",
    "monad-testnet": "eip155:10143",
    "peaq": "eip155:3338",
    "polygon": "eip155:137",
    "polygon-amoy": "eip155:80002",
    "sei": "eip155:1329",
    "sei-testnet": "eip155:1328",
    "sepolia": "eip155:11155111",
    "skale-base-sepolia": "eip155:324705682",
    "stable": "eip155:988",
    "stable-testnet": "eip155:2201",
    "story": "eip155:1514",
    "solana": "solana:5eykt4UsFv8P8NJdTREpY1vzqKqZKvdp",
    "solana-devnet": "solana:EtWTRABZaYq6iMfeYKouRu166VU2xqa1",
    "solana-testnet": "solana:4uhcVJyU9pJkvQyS88uRDiswHXSCkY3z",
}
"""Version 1 network names to CAIP-2."""

DISPUTED_NAMES: Final = frozenset({"educhain", "skale-base-sepolia", "story"})
"""Names that PyPI x402 and npm @x402/evm map to different chains: an owner must list the name."""


def caip2(name: str) -> str:
    """The CAIP-2 form of a network that may be written as a version 1 name."""
    return NETWORK_NAMES.get(name, name)


def default_assets(networks: frozenset[str]) -> tuple[Asset, ...]:
    """The registry's tokens on *networks*."""
    return tuple(asset for asset in EIP3009_ASSETS if asset.network in networks)
