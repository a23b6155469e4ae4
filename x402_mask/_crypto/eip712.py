"""EIP-712 digests: a small general encoder, and a short cut for EIP-3009.

The general encoder checks what external signers return; the short cut hashes the one struct this
library signs with constants that are computed once.  Sources: EIP-712, EIP-3009.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    from x402_mask._models import Asset

TRANSFER_TYPES: Final[dict[str, list[dict[str, str]]]] = {
    "TransferWithAuthorization": [
        {"name": "from", "type": "address"},
        {"name": "to", "type": "address"},
        {"name": "value", "type": "uint256"},
        {"name": "validAfter", "type": "uint256"},
        {"name": "validBefore", "type": "uint256"},
        {"name": "nonce", "type": "bytes32"},
    ]
}

_DOMAIN_FIELDS: Final = (
    ("name", "string"),
    ("version", "string"),
    ("chainId", "uint256"),
    ("verifyingContract", "address"),
    ("salt", "bytes32"),
)


def keccak(data: bytes) -> bytes:
    """Keccak-256, the hash of Ethereum (not NIST SHA-3)."""
    digest: bytes = _hasher()(digest_bits=256, data=data).digest()
    return digest


@lru_cache(maxsize=1)
def _hasher() -> Any:
    from Crypto.Hash import keccak as library  # loads a C library

    return library.new


def typed_data_digest(
    domain: Mapping[str, Any], types: Mapping[str, Any], message: Mapping[str, Any]
) -> bytes:
    """The 32 bytes that a wallet signs for this typed data (EIP-712).

    Raises:
        ValueError: a value does not fit its type, or no single primary type can be found.
    """
    structs = {name: fields for name, fields in types.items() if name != "EIP712Domain"}
    return _final(domain_separator(domain), _struct(_primary(structs), message, structs))


def domain_separator(domain: Mapping[str, Any]) -> bytes:
    """``hashStruct`` of the domain, with exactly the fields that it has."""
    fields = [{"name": n, "type": t} for n, t in _DOMAIN_FIELDS if n in domain]
    return _struct("EIP712Domain", domain, {"EIP712Domain": fields})


def transfer_digest(
    asset: Asset, *, payer: str, pay_to: str, amount: int, after: int, before: int, nonce: bytes
) -> bytes:
    """The digest of one EIP-3009 ``TransferWithAuthorization``."""
    words = b"".join(
        (
            _TRANSFER_TYPE_HASH,
            _party(payer),
            _party(pay_to),
            amount.to_bytes(32, "big"),
            after.to_bytes(32, "big"),
            before.to_bytes(32, "big"),
            nonce,
        )
    )
    return _final(_separator(asset), keccak(words))


@lru_cache(maxsize=256)
def _party(address: str) -> bytes:
    """An address that comes again and again, as a word."""
    return _address(address)


@lru_cache(maxsize=256)
def checksum(address: str) -> str:
    """The EIP-55 spelling of a well-formed address."""
    bare = address[2:].lower()
    digest = keccak(bare.encode("ascii")).hex()
    return "0x" + "".join(
        char.upper() if int(digest[at], 16) > 7 else char for at, char in enumerate(bare)
    )


def asset_domain(asset: Asset) -> dict[str, Any]:
    """The EIP-712 domain of a token, from the registry or the owner, never from a seller."""
    return {
        "name": asset.name,
        "version": asset.version,
        "chainId": asset.chain_id,
        "verifyingContract": asset.address,
    }


@lru_cache(maxsize=256)
def _separator(asset: Asset) -> bytes:
    return domain_separator(asset_domain(asset))


def _final(separator: bytes, struct: bytes) -> bytes:
    return keccak(b"\x19\x01" + separator + struct)


def _primary(types: Mapping[str, Any]) -> str:
    used = {_base(f["type"]) for fields in types.values() for f in fields}
    roots = [name for name in types if name not in used]
    if len(roots) != 1:
        raise ValueError("the typed data has no single primary type")
    return roots[0]


def _base(kind: str) -> str:
    return kind.partition("[")[0]


def _struct(name: str, value: Mapping[str, Any], types: Mapping[str, Any]) -> bytes:
    fields = types[name]
    words = [_value(f["type"], value[f["name"]], types) for f in fields]
    return keccak(keccak(_signature(name, types).encode()) + b"".join(words))


def _signature(name: str, types: Mapping[str, Any]) -> str:
    found = {name}
    queue = [name]
    while queue:
        for f in types[queue.pop()]:
            base = _base(f["type"])
            if base in types and base not in found:
                found.add(base)
                queue.append(base)
    order = [name, *sorted(found - {name})]
    return "".join(f"{n}({','.join(f['type'] + ' ' + f['name'] for f in types[n])})" for n in order)


def _value(kind: str, value: Any, types: Mapping[str, Any]) -> bytes:
    if kind.endswith("]"):
        inner = kind[: kind.rindex("[")]
        return keccak(b"".join(_value(inner, item, types) for item in value))
    if kind in types:
        return _struct(kind, value, types)
    if kind == "string":
        return keccak(value.encode("utf-8"))
    if kind == "bytes":
        return keccak(_raw(value))
    if kind == "address":
        return _address(value)
    if kind == "bool":
        return int(bool(value)).to_bytes(32, "big")
    if kind.startswith("bytes"):
        return _raw(value, int(kind[5:])).ljust(32, b"\0")
    if kind.startswith(("uint", "int")):
        return _integer(kind, int(value))
    raise ValueError(f"unknown EIP-712 type {kind!r}")


def _integer(kind: str, value: int) -> bytes:
    signed = kind.startswith("int")
    bits = int(kind[3 if signed else 4 :] or 256)
    low, high = (-(1 << bits - 1), 1 << bits - 1) if signed else (0, 1 << bits)
    if not low <= value < high:
        raise ValueError(f"{kind} out of range")
    return value.to_bytes(32, "big", signed=signed)


def _raw(value: Any, size: int | None = None) -> bytes:
    data = bytes.fromhex(value.removeprefix("0x")) if isinstance(value, str) else bytes(value)
    if size is not None and len(data) != size:
        raise ValueError(f"expected {size} bytes")
    return data


def _address(value: str) -> bytes:
    return _raw(value, 20).rjust(32, b"\0")


_TRANSFER_TYPE_HASH: Final = bytes.fromhex(
    "7c7c6cdb67a18743f49ec6fa9b35f50d52ed05cbed4cc592e13b44501c1a2267"
)
"""``TRANSFER_WITH_AUTHORIZATION_TYPEHASH`` of EIP-3009."""
