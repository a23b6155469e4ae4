"""The wallet: every way to make one, every way it could leak, and what foreign signers return."""

from __future__ import annotations

import copy
import gc
import json
import logging
import os
import pickle
import stat
import traceback
from pathlib import Path
from typing import Any

import pytest
from eth_account import Account
from hypothesis import given, settings
from hypothesis import strategies as st

from x402_mask import Cap, MemoryLedger, Payer, SignerError, Wallet
from x402_mask._payer import buyer_of
from x402_mask._wallets.local import Signer, as_signer, checked_signature, is_async, write_keystore

KEY = bytes.fromhex("c0ffee" + "5a" * 29)
ADDRESS = Account.from_key(KEY).address
WORDS = "test test test test test test test test test test test junk"
ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
keys = st.integers(1, ORDER - 1).map(lambda number: number.to_bytes(32, "big"))
digests = st.binary(min_size=32, max_size=32)


@pytest.mark.parametrize(
    "written",
    [KEY, bytearray(KEY), KEY.hex(), "0x" + KEY.hex(), "0X" + KEY.hex().upper(), f" {KEY.hex()}\n"],
)
def test_from_key(written: Any) -> None:
    """Contract 1: bytes, or hex with or without ``0x``."""
    assert Wallet.from_key(written).address == ADDRESS


BAD_KEYS = [
    "",
    "0x",
    "zz" * 32,
    KEY.hex()[:-1],
    KEY.hex() + "00",
    b"",
    KEY[:31],
    KEY + b"\0",
    b"\0" * 32,
    ORDER.to_bytes(32, "big"),
    b"\xff" * 32,
    "0" * 64,
]


@pytest.mark.parametrize("written", BAD_KEYS)
def test_bad_keys(written: Any) -> None:
    """A ``ValueError`` that does not quote what may be a mistyped key."""
    with pytest.raises(ValueError, match="key") as caught:
        Wallet.from_key(written)
    told = "".join(traceback.format_exception(caught.value))
    assert len(str(caught.value)) < 60 and KEY.hex()[:40] not in told.replace(repr(written), "")
    for wrong in (None, 7, 0.5, ["a"]):
        with pytest.raises(TypeError):
            Wallet.from_key(wrong)  # type: ignore[arg-type]


def test_create_is_random_and_usable() -> None:
    """Two are never alike."""
    made = {Wallet.create().address for _ in range(5)}
    assert len(made) == 5


def test_from_mnemonic() -> None:
    """BIP-39 and BIP-44; the well-known test words."""
    assert Wallet.from_mnemonic(WORDS).address == "0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266"
    second = Wallet.from_mnemonic(WORDS, path="m/44'/60'/0'/0/1")
    assert second.address == "0x70997970C51812dc3A010C7d01b50e0d17dc79C8"
    assert Wallet.from_mnemonic(WORDS, passphrase="x").address != second.address
    for words, path in (("not a mnemonic", "m/44'/60'/0'/0/0"), (WORDS, "nowhere"), ("", "m/0")):
        with pytest.raises(ValueError, match="mnemonic") as caught:
            Wallet.from_mnemonic(words, path=path)
        assert "junk" not in "".join(traceback.format_exception(caught.value)).replace(words, "")


@pytest.fixture(scope="module")
def keystore(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A V3 keystore (scrypt), cheap enough for tests."""
    path = tmp_path_factory.mktemp("keystore") / "key.json"
    path.write_text(json.dumps(Account.encrypt(KEY, "secret", kdf="scrypt", iterations=4)))
    return path


def test_from_keystore(keystore: Path) -> None:
    """By path, text path, or already parsed."""
    for given_as in (keystore, str(keystore), json.loads(keystore.read_text())):
        assert Wallet.from_keystore(given_as, "secret").address == ADDRESS
    with pytest.raises(ValueError, match="password is wrong"):
        Wallet.from_keystore(keystore, "Secret")
    with pytest.raises(OSError, match="No such file"):
        Wallet.from_keystore(keystore.with_name("none.json"), "secret")


BAD_KEYSTORES = [
    b"",
    b"[]",
    b"null",
    b"{}",
    b"\xff",
    b"{",
    b'{"version": 3}',
    b'{"version": 4}',
    b'{"version": 3, "crypto": {"kdf": "scrypt"}}',
    b"[" * 30000,
    b" " * 70000,
    b'{"version": 3, "crypto": 7}',
    b'{"version": 3, "crypto": {"kdf": "md5"}}',
]


@pytest.mark.parametrize("content", BAD_KEYSTORES, ids=range(len(BAD_KEYSTORES)))
def test_bad_keystores(content: bytes, tmp_path: Path) -> None:
    """A clear ``ValueError``, whatever is in the file."""
    path = tmp_path / "wallet.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="V3 keystore"):
        Wallet.from_keystore(path, "secret")


def test_write_keystore(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the owner can read it; it is never overwritten."""
    real = Account.encrypt
    monkeypatch.setattr(
        Account, "encrypt", lambda key, password, kdf: real(key, password, kdf, iterations=4)
    )
    path = tmp_path / "key.json"
    assert write_keystore(KEY, path, "secret") == ADDRESS
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert Wallet.from_keystore(path, "secret").address == ADDRESS
    assert json.loads(path.read_text())["crypto"]["kdf"] == "scrypt"
    with pytest.raises(FileExistsError):
        write_keystore(KEY, path, "other")
    assert KEY.hex() not in path.read_text()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_keystore(KEY, tmp_path / "half.json", "secret")
    assert not (tmp_path / "half.json").exists()


def test_from_env(keystore: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Contract 9."""
    assert Wallet.from_env({"X402_MASK_PRIVATE_KEY": KEY.hex()}).address == ADDRESS
    with_store = {"X402_MASK_KEYSTORE": str(keystore), "X402_MASK_KEYSTORE_PASSWORD": "secret"}
    assert Wallet.from_env(with_store).address == ADDRESS
    monkeypatch.setenv("X402_MASK_PRIVATE_KEY", KEY.hex())
    assert Wallet.from_env().address == ADDRESS
    for empty in ({}, {"X402_MASK_PRIVATE_KEY": ""}, {"X402_MASK_KEYSTORE_PASSWORD": "x"}):
        with pytest.raises(ValueError, match="X402_MASK_PRIVATE_KEY"):
            Wallet.from_env(empty)
    with pytest.raises(ValueError, match="password"):
        Wallet.from_env({"X402_MASK_KEYSTORE": str(keystore)})


# --- leaks


def shows(text: str | bytes) -> bool:
    """Whether the key, or most of it, is in there."""
    data = text.encode() if isinstance(text, str) else text
    number = str(int.from_bytes(KEY, "big")).encode()
    forms = (
        KEY,
        KEY[:16],
        KEY.hex().encode()[:32],
        KEY.hex().upper().encode()[:32],
        repr(KEY)[2:40].encode(),
        number[:40],
    )
    return any(form in data for form in forms)


def test_a_wallet_shows_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """``repr``, ``str``, ``format``, ``vars``, ``dir``, logging, and each attribute it has."""
    wallet = Wallet.from_key(KEY)
    assert shows(KEY) and shows(KEY.hex()) and shows(repr(KEY)), "the search itself is blind"
    texts = [
        repr(wallet),
        str(wallet),
        f"{wallet}",
        f"{wallet!r}",
        f"{wallet!s:>60}",
        repr([wallet]),
    ]
    texts += [repr(getattr(wallet, name, "")) for name in dir(wallet)]
    assert not hasattr(wallet, "__dict__")
    with pytest.raises(TypeError):
        vars(wallet)
    logging.getLogger("x").warning("%s %r %s", wallet, wallet, {"wallet": wallet})
    payer = Payer(
        wallet, caps=[Cap(1, per="day")], origins=["https://a.example"], ledger=MemoryLedger()
    )
    texts += [caplog.text, repr(payer), repr(vars(buyer_of(payer)))]
    assert not any(shows(text) for text in texts)
    assert ADDRESS in repr(wallet) and ADDRESS in repr(payer)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_wallet_cannot_be_pickled_or_copied(protocol: int) -> None:
    """Nor what holds it."""
    wallet = Wallet.from_key(KEY)
    payer = Payer(
        wallet, caps=[Cap(1, per="day")], origins=["https://a.example"], ledger=MemoryLedger()
    )
    for held in (wallet, [wallet], {"w": wallet}, payer):
        with pytest.raises(TypeError, match="pickled"):
            pickle.dumps(held, protocol)
        with pytest.raises(TypeError, match="pickled"):
            copy.deepcopy(held)
    with pytest.raises(TypeError, match="pickled"):
        copy.copy(wallet)


def test_the_key_is_in_no_traceback() -> None:
    """An error inside the wallet shows lines and names, not values."""
    wallet = Wallet.from_key(KEY)
    with pytest.raises(ValueError, match="32 bytes") as caught:
        wallet.sign_digest(b"short")
    assert not shows("".join(traceback.format_exception(caught.value)))


def test_no_python_object_holds_the_key_afterwards() -> None:
    """It lives in the C library's own memory: the wallet keeps neither bytes nor text of it."""
    wallet = Wallet.from_key(bytes.fromhex(KEY.hex()))
    reachable = gc.get_referents(wallet)
    for one in reachable:
        reachable_next = gc.get_referents(one)
        assert not any(isinstance(x, (bytes, str)) and shows(x) for x in [one, *reachable_next])


# --- what foreign signers return


@given(keys, digests)
def test_every_honest_spelling_of_a_signature(key: bytes, digest: bytes) -> None:
    """V 0, 1, 27, 28; bytes, hex, an object; high s is turned into low s (EIP-2)."""
    wallet = Wallet.from_key(key)
    made = wallet.sign_digest(digest)
    r, s, v = made[:32], int.from_bytes(made[32:64], "big"), made[64]
    assert v in (27, 28) and 0 < s <= ORDER // 2
    high = r + (ORDER - s).to_bytes(32, "big")

    class Signed:
        signature = made

    for returned in (
        made,
        bytearray(made),
        made.hex(),
        "0x" + made.hex(),
        Signed(),
        made[:64] + bytes([v - 27]),
        high + bytes([55 - v]),
        high + bytes([28 - v]),
    ):
        assert checked_signature(returned, digest, wallet.address) == made
    assert checked_signature(made, digest, wallet.address.lower()) == made


@given(keys, digests, st.data())
def test_any_other_signature_is_refused(key: bytes, digest: bytes, data: st.DataObject) -> None:
    """One bit, another key, another digest: a ``SignerError``, nothing else."""
    wallet = Wallet.from_key(key)
    made = bytearray(wallet.sign_digest(digest))
    at = data.draw(st.integers(0, 63))
    made[at] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(SignerError):
        checked_signature(bytes(made), digest, wallet.address)
    made = bytearray(wallet.sign_digest(digest))
    made[64] = data.draw(st.integers(0, 255).filter(lambda v: v not in (made[64], made[64] - 27)))
    with pytest.raises(SignerError):
        checked_signature(bytes(made), digest, wallet.address)
    other = bytes([digest[0] ^ 1]) + digest[1:]
    with pytest.raises(SignerError):
        checked_signature(wallet.sign_digest(digest), other, wallet.address)


@settings(max_examples=300)
@given(st.binary(max_size=70) | st.text(max_size=140) | st.integers() | st.none())
def test_noise_is_no_signature(returned: Any) -> None:
    """Whatever a signer returns."""
    with pytest.raises(SignerError):
        checked_signature(returned, b"d" * 32, ADDRESS)


EDGES = [0, 1, ORDER // 2, ORDER // 2 + 1, ORDER - 1, ORDER, ORDER + 1, 2**256 - 1]


@pytest.mark.parametrize("s", EDGES)
@pytest.mark.parametrize("r", [0, 1, ORDER, 2**256 - 1])
def test_numbers_at_the_edges(r: int, s: int) -> None:
    """Zero, the order, and what lies beyond it."""
    for v in (0, 1, 27, 28):
        returned = r.to_bytes(32, "big") + s.to_bytes(32, "big") + bytes([v])
        with pytest.raises(SignerError):
            checked_signature(returned, b"d" * 32, ADDRESS)


# --- what is accepted as a wallet


class Minimal:
    """By the contract's words."""

    address = ADDRESS

    def sign_typed_data(self, domain: Any, types: Any, message: Any) -> Any:
        raise AssertionError


class Coroutine(Minimal):
    async def sign_typed_data(self, domain: Any, types: Any, message: Any) -> Any:
        raise AssertionError


class Called:
    async def __call__(self, quote: Any) -> bool:
        raise AssertionError


def test_as_signer() -> None:
    """Contract 1."""
    wallet = Wallet.from_key(KEY)
    assert as_signer(wallet) is wallet
    account = as_signer(Account.from_key(KEY))
    assert isinstance(account, Wallet) and account.address == ADDRESS
    minimal = Minimal()
    assert as_signer(minimal) is minimal and isinstance(minimal, Signer)
    assert isinstance(wallet, Signer)

    class NoAddress:
        def sign_typed_data(self, *args: Any) -> None: ...

    class OddAddress(Minimal):
        address = "alice"

    class NumberAddress(Minimal):
        address = 7  # type: ignore[assignment]

    class NoMethod:
        address = ADDRESS

    with pytest.raises(ValueError, match="40 hex digits"):
        as_signer(OddAddress())
    for wrong in (NoAddress(), NumberAddress(), NoMethod(), KEY, KEY.hex(), object()):
        with pytest.raises(TypeError, match="wallet"):
            as_signer(wrong)


def test_is_async() -> None:
    """Functions, methods, callable objects and partials."""
    from functools import partial

    async def later(a: int = 0) -> None: ...

    assert is_async(later) and is_async(partial(later, 1)) and is_async(Called())
    assert is_async(Coroutine().sign_typed_data)
    assert not is_async(Minimal().sign_typed_data) and not is_async(print) and not is_async(7)


@pytest.mark.skipif(os.name != "posix", reason="umask")
def test_keystores_are_private_whatever_the_umask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wide umask does not widen it."""
    real = Account.encrypt
    monkeypatch.setattr(
        Account, "encrypt", lambda key, password, kdf: real(key, password, kdf, iterations=4)
    )
    before = os.umask(0)
    try:
        write_keystore(KEY, tmp_path / "k.json", "secret")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "k.json").stat().st_mode) == 0o600


# --- as files and variables give them


WORDS = "test test test test test test test test test test test junk"


@pytest.mark.parametrize("ends", ["{}\n", " {}", "{}\r\n", "\t{} \n"])
def test_words_with_a_last_newline(ends: str) -> None:
    assert Wallet.from_mnemonic(ends.format(WORDS)).address == Wallet.from_mnemonic(WORDS).address
    assert (
        Wallet.from_mnemonic(WORDS.replace(" ", "\n")).address
        == Wallet.from_mnemonic(WORDS).address
    )


@pytest.mark.parametrize("password", ["horse", " horse ", "horse\n"])
@pytest.mark.parametrize("ends", ["{}", "{}\n", "{}\r\n"])
def test_a_password_with_a_last_newline(password: str, ends: str) -> None:
    """Tried as it is first: blanks may be part of it."""
    from eth_account import Account

    made = Account.encrypt("0x" + "11" * 32, password, kdf="pbkdf2", iterations=1)
    if password.endswith("\n") and ends != "{}":
        return
    assert Wallet.from_keystore(made, ends.format(password)).address
    padded = Account.encrypt("0x" + "11" * 32, "horse", kdf="pbkdf2", iterations=1)
    assert Wallet.from_keystore(padded, f" {ends.format('horse')}").address
    with pytest.raises(ValueError, match="the password is wrong"):
        Wallet.from_keystore(made, "cow\n")
