"""secp256k1: signing and recovering, by coincurve where it is installed, else by cryptography.

coincurve wraps libsecp256k1, and takes some 0.1 ms for both.  Where it cannot be installed, OpenSSL
signs, and which of the possible public keys made a signature is worked out here, in some 5 ms: that
needs no secret.  Sources: SEC 1 (4.1.6), SEC 2, RFC 6979, EIP-2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from x402_mask.errors import SignerError

if TYPE_CHECKING:
    from collections.abc import Callable

    from cryptography.hazmat.primitives.asymmetric import ec

ORDER: Final = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
"""Order of secp256k1 (SEC 2)."""
_FIELD: Final = 2**256 - 2**32 - 977
_GENERATOR: Final = (
    0x79BE667EF9DCBBAC55A06295CE870B07029BFCDB2DCE28D959F2815B16F81798,
    0x483ADA7726A3C4655DA4FBFC0E1108A8FD17B448A68554199C47D08FFB10D4B8,
)

_Point = tuple[int, int, int]
"""X, Y, Z of Jacobian coordinates; Z is 0 at infinity."""


def key_pair(key: bytes) -> tuple[Callable[[bytes], bytes], bytes]:
    """What signs with *key*, and its public key, uncompressed.

    It gives ``r || s || parity`` of a digest, with low s.

    Raises:
        SignerError: (by what signs) a fault in the machine spoiled the signature.
    """
    try:
        from coincurve import PrivateKey  # loads a C library
    except ImportError:
        return _openssl_pair(key)
    secret = PrivateKey(key)

    def sign(digest: bytes) -> bytes:
        signature: bytes = secret.sign_recoverable(digest, hasher=None)
        return signature

    public: bytes = secret.public_key.format(compressed=False)
    return sign, public


def recovered(signature: bytes, digest: bytes) -> bytes:
    """The public key, uncompressed, that made ``r || s || parity``; empty if none could have."""
    try:
        from coincurve import PublicKey  # loads a C library
    except ImportError:
        return _recovered(signature, digest)
    try:
        key = PublicKey.from_signature_and_message(signature, digest, hasher=None)
    except Exception:  # noqa: BLE001  # whatever libsecp256k1 says, it is not a signature
        return b""
    found: bytes = key.format(compressed=False)
    return found


# --- without libsecp256k1 -------------------------------------------------------------------------


def _openssl_pair(key: bytes) -> tuple[Callable[[bytes], bytes], bytes]:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec, utils

    secret = ec.derive_private_key(int.from_bytes(key, "big"), ec.SECP256K1())
    public = secret.public_key().public_bytes(
        serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint
    )
    algorithm = _deterministic()

    point = int.from_bytes(public[1:33], "big"), int.from_bytes(public[33:], "big")

    def sign(digest: bytes) -> bytes:
        r, s = utils.decode_dss_signature(secret.sign(digest, algorithm))
        s = min(s, ORDER - s)  # tokens accept low s only (EIP-2)
        inverse = pow(s, -1, ORDER)
        of_nonce = _sum_of(int.from_bytes(digest, "big") * inverse, _GENERATOR, r * inverse, point)
        if of_nonce is None or of_nonce[0] != r:
            raise SignerError("the wallet made a signature that is not its own")
        return r.to_bytes(32, "big") + s.to_bytes(32, "big") + bytes((of_nonce[1] & 1,))

    return sign, public


def _deterministic() -> ec.ECDSA:
    """ECDSA over a digest: deterministic (RFC 6979) where this OpenSSL can, else random."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec, utils

    digest = utils.Prehashed(hashes.SHA256())  # of 32 bytes, whatever made them
    try:
        return ec.ECDSA(digest, deterministic_signing=True)
    except (TypeError, UnsupportedAlgorithm):
        return ec.ECDSA(digest)


def _recovered(signature: bytes, digest: bytes) -> bytes:
    """The public key by hand; every number here is public."""
    if len(signature) != 65 or len(digest) != 32:
        return b""
    r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:64], "big")
    parity = signature[64]
    if not (0 < r < ORDER and 0 < s < ORDER and parity in (0, 1)):
        return b""  # parity 2 and 3, an r past the order, is met by nobody and paid by no token
    y = pow(r * r * r + 7, (_FIELD + 1) // 4, _FIELD)
    if (y * y - r * r * r - 7) % _FIELD:
        return b""
    if y % 2 != parity:
        y = _FIELD - y
    inverse = pow(r, -1, ORDER)
    found = _sum_of(-int.from_bytes(digest, "big") * inverse, _GENERATOR, s * inverse, (r, y))
    if found is None:
        return b""
    return b"\x04" + found[0].to_bytes(32, "big") + found[1].to_bytes(32, "big")


def _sum_of(a: int, p: tuple[int, int], b: int, q: tuple[int, int]) -> tuple[int, int] | None:
    """``a*p + b*q``, both at once, bit by bit; ``None`` at infinity."""
    a, b = a % ORDER, b % ORDER
    first, second = (*p, 1), (*q, 1)
    both = _added(first, second)
    total: _Point = (0, 1, 0)
    for bit in range(255, -1, -1):
        total = _doubled(total)
        which = (a >> bit & 1) + (b >> bit & 1) * 2
        if which:
            total = _added(total, (first, second, both)[which - 1])
    x, y, z = total
    if z == 0:
        return None
    inverse = pow(z, -1, _FIELD)
    square = inverse * inverse % _FIELD
    return x * square % _FIELD, y * square * inverse % _FIELD


def _doubled(point: _Point) -> _Point:
    x, y, z = point
    if z == 0:
        return point
    square = y * y % _FIELD
    s = 4 * x * square % _FIELD
    m = 3 * x * x % _FIELD
    new = (m * m - 2 * s) % _FIELD
    return new, (m * (s - new) - 8 * square * square) % _FIELD, 2 * y * z % _FIELD


def _added(p: _Point, q: _Point) -> _Point:
    if p[2] == 0:
        return q
    if q[2] == 0:
        return p
    p2, q2 = p[2] * p[2] % _FIELD, q[2] * q[2] % _FIELD
    u, v = p[0] * q2 % _FIELD, q[0] * p2 % _FIELD
    s, t = p[1] * q2 * q[2] % _FIELD, q[1] * p2 * p[2] % _FIELD
    if u == v:
        return _doubled(p) if s == t else (0, 1, 0)
    h, r = (v - u) % _FIELD, (t - s) % _FIELD
    h2 = h * h % _FIELD
    h3, uh2 = h2 * h % _FIELD, u * h2 % _FIELD
    x = (r * r - h3 - 2 * uh2) % _FIELD
    return x, (r * (uh2 - x) - s * h3) % _FIELD, h * p[2] * q[2] % _FIELD
