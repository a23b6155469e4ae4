"""Signing without coincurve: the same signatures, by OpenSSL and by hand."""

from __future__ import annotations

import secrets
import sys
import time

import coincurve
import pytest
from eth_account import Account
from hypothesis import given, settings
from hypothesis import strategies as st

from x402_mask import SignerError, Wallet
from x402_mask._crypto import secp256k1
from x402_mask._crypto.secp256k1 import ORDER, key_pair, recovered

KEY = bytes.fromhex("c0ffee" + "5a" * 29)
keys = st.integers(1, ORDER - 1).map(lambda number: number.to_bytes(32, "big"))
digests = st.one_of(
    st.binary(min_size=32, max_size=32),
    st.sampled_from([bytes(32), b"\xff" * 32, ORDER.to_bytes(32, "big")]),
)


@pytest.fixture
def lacking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "coincurve", None)


@settings(max_examples=40, deadline=None)
@given(key=keys, digest=digests)
def test_both_ways_sign_alike(key: bytes, digest: bytes) -> None:
    """Deterministic (RFC 6979), low s, and the recovery bit that leads to the key."""
    sign, public = secp256k1._openssl_pair(key)
    theirs, known = key_pair(key)
    assert public == known
    signature = sign(digest)
    assert signature == theirs(digest)
    assert int.from_bytes(signature[32:64], "big") <= ORDER // 2
    assert secp256k1._recovered(signature, digest) == public


@settings(max_examples=40, deadline=None)
@given(signature=st.binary(min_size=64, max_size=64), parity=st.integers(0, 1), digest=digests)
def test_both_ways_recover_alike(signature: bytes, parity: int, digest: bytes) -> None:
    """Whatever the bytes are: the same key, or none."""
    made = signature + bytes((parity,))
    assert secp256k1._recovered(made, digest) == recovered(made, digest)


EDGES = [0, 1, 2, ORDER - 1, ORDER, 2**256 - 1]


@pytest.mark.parametrize("r", EDGES)
@pytest.mark.parametrize("s", EDGES)
def test_the_edges_recover_alike(r: int, s: int) -> None:
    for digest in (bytes(32), b"\xff" * 32, b"\x01" * 32):
        for parity in (0, 1, 4, 255):
            made = r.to_bytes(32, "big") + s.to_bytes(32, "big") + bytes((parity,))
            assert secp256k1._recovered(made, digest) == recovered(made, digest)
    assert secp256k1._recovered(b"\x01" * 64, bytes(32)) == b""
    assert secp256k1._recovered(b"\x01" * 65, bytes(31)) == b""


def test_the_sums_of_points() -> None:
    """Where the formulas have to be told apart: the same point, its opposite, infinity."""
    g = secp256k1._GENERATOR
    minus = (g[0], secp256k1._FIELD - g[1])
    for a, b, q in [
        (1, 1, g),
        (1, 1, minus),
        (5, ORDER - 5, g),
        (0, 0, g),
        (0, 7, g),
        (3, 0, minus),
        (ORDER - 1, 2, g),
        (2**255, 2**255 + 1, g),
    ]:
        n = (a + (b if q == g else -b)) % ORDER
        found = secp256k1._sum_of(a, g, b, q)
        if n == 0:
            assert found is None
            continue
        x, y = coincurve.PrivateKey(n.to_bytes(32, "big")).public_key.point()
        assert found == (x, y)


def test_a_wallet_without_coincurve(lacking: None) -> None:
    """Every way in, and what it signs is what anybody checks."""
    wallet, digest = Wallet.from_key(KEY), secrets.token_bytes(32)
    assert wallet.address == Account.from_key(KEY).address
    assert wallet.sign_checked(digest) == wallet.sign_digest(digest)
    signature = wallet.sign_digest(digest)
    assert Account._recover_hash(digest, signature=signature) == wallet.address
    assert signature[64] in (27, 28)
    Wallet.create().sign_checked(digest)
    for wrong in (bytes(32), ORDER.to_bytes(32, "big"), b"\x01"):
        with pytest.raises(ValueError, match="private key"):
            Wallet.from_key(wrong)


def test_a_spoiled_signature_is_not_handed_out(
    lacking: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cryptography.hazmat.primitives.asymmetric import utils

    wallet = Wallet.from_key(KEY)
    monkeypatch.setattr(utils, "decode_dss_signature", lambda _: (5, 7))
    for sign in (wallet.sign_digest, wallet.sign_checked):
        with pytest.raises(SignerError, match="not its own"):
            sign(b"\x01" * 32)


def test_an_openssl_that_cannot_be_deterministic(
    lacking: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then its nonces are random: other bytes each time, as good as the others."""
    from cryptography.hazmat.primitives.asymmetric import ec

    ecdsa = ec.ECDSA

    def older(algorithm: object) -> ec.ECDSA:
        return ecdsa(algorithm)  # type: ignore[arg-type]

    monkeypatch.setattr(ec, "ECDSA", older)
    wallet = Wallet.from_key(KEY)
    made = {wallet.sign_checked(b"\x01" * 32) for _ in range(4)}
    assert len(made) == 4


def test_it_takes_milliseconds(lacking: None) -> None:
    """The best of some: 7 ms to sign, 5 more to check, on a machine with nothing else to do."""
    wallet, best = Wallet.from_key(KEY), 9.9
    for _ in range(10):
        began = time.perf_counter()
        wallet.sign_checked(b"\x01" * 32)
        best = min(best, time.perf_counter() - began)
    assert best < 0.2
