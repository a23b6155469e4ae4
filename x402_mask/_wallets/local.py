"""The wallet, and how a signature is asked for and checked.

A signer is a :class:`Wallet`, an eth-account ``LocalAccount``, or any object with ``.address`` and
``sign_typed_data(domain, types, message)``, sync or async.  Whatever it returns is recovered and
compared with its address before it is used.
"""

from __future__ import annotations

import functools
import inspect
import json
import os
import re
import secrets
import sys
from typing import TYPE_CHECKING, Any, Final, NoReturn, Protocol, runtime_checkable

from x402_mask._crypto.eip712 import checksum, keccak, typed_data_digest
from x402_mask._crypto.secp256k1 import ORDER, key_pair, recovered
from x402_mask._system.owner_text import fixed, variable
from x402_mask.errors import SignerError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_ADDRESS: Final = re.compile(r"0x[0-9a-fA-F]{40}")
MNEMONIC_PATH: Final = "m/44'/60'/0'/0/0"


@runtime_checkable
class Signer(Protocol):
    """What can sign: a wallet here, a hardware wallet, or a service elsewhere."""

    @property
    def address(self) -> str:
        """The address that its signatures recover to."""
        ...

    def sign_typed_data(self, domain: Any, types: Any, message: Any) -> Any:
        """Sign EIP-712 typed data; may be a coroutine function.

        Returns:
            65 bytes ``r || s || v``, the same as hex, or an object with ``.signature``.
        """


class Wallet:
    """A private key held in this process.  It cannot be printed, pickled or copied."""

    __slots__ = ("__sign", "_address", "_public_key")

    def __init__(self, key: bytes) -> None:
        """Use ``Wallet.from_key`` and its siblings."""
        if not 0 < int.from_bytes(key, "big") < ORDER or len(key) != 32:
            raise ValueError("not a secp256k1 private key")
        self.__sign, self._public_key = key_pair(key)
        self._address = _address_of(self._public_key)

    @property
    def address(self) -> str:
        """The EIP-55 address of this wallet."""
        return self._address

    @classmethod
    def create(cls) -> Wallet:
        """A new wallet with a random key, which exists nowhere else."""
        return cls((secrets.randbelow(ORDER - 1) + 1).to_bytes(32, "big"))

    @classmethod
    def from_key(cls, key: bytes | str) -> Wallet:
        """A wallet from 32 bytes, or their hex with or without ``0x``.

        Raises:
            TypeError: *key* is neither bytes nor str.
            ValueError: it is not a secp256k1 private key.
        """
        if isinstance(key, str):
            try:
                key = bytes.fromhex(key.strip().removeprefix("0x").removeprefix("0X"))
            except ValueError:
                raise ValueError("not a private key in hex") from None
        if not isinstance(key, (bytes, bytearray)):
            raise TypeError(f"a private key is bytes or str, not {type(key).__name__}")
        return cls(bytes(key))

    @classmethod
    def from_keystore(
        cls, keystore: str | os.PathLike[str] | Mapping[str, Any], password: str
    ) -> Wallet:
        """A wallet from a V3 keystore, by path or already parsed (Web3 Secret Storage).

        Where *password* does not open it, it is tried without the blanks and newlines at its ends.

        Raises:
            OSError: the file cannot be read.
            ValueError: not a keystore, or the wrong password.
        """
        from eth_account import Account  # half a second to import

        if isinstance(keystore, (str, os.PathLike)):
            keystore = _read_keystore(_named(keystore))
        told = ""
        for secret in dict.fromkeys((password, password.strip("\r\n"), password.strip())):
            try:
                return cls(bytes(Account.decrypt(dict(keystore), secret)))
            except (ValueError, KeyError, TypeError, AttributeError, NotImplementedError) as exc:
                told = "the password is wrong" if "MAC" in str(exc) else "not a V3 keystore"
        raise ValueError(told)

    @classmethod
    def from_mnemonic(
        cls, words: str, *, passphrase: str = "", path: str = MNEMONIC_PATH
    ) -> Wallet:
        """A wallet from a BIP-39 mnemonic and a BIP-44 path.

        Raises:
            ValueError: not a mnemonic, or not a path.
        """
        from eth_account import Account
        from eth_account.hdaccount import (
            ETHEREUM_DEFAULT_PATH,
        )

        assert ETHEREUM_DEFAULT_PATH == MNEMONIC_PATH
        Account.enable_unaudited_hdwallet_features()
        plain = " ".join(words.split())  # a file of them ends with a newline
        try:
            account = Account.from_mnemonic(plain, passphrase=passphrase, account_path=path)
        except Exception:  # noqa: BLE001  # its errors may quote the words
            raise ValueError("not a BIP-39 mnemonic, or not a derivation path") from None
        return cls(bytes(account.key))

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Wallet:
        """A wallet from ``X402_MASK_PRIVATE_KEY``, or ``X402_MASK_KEYSTORE`` and its password.

        Raises:
            ValueError: neither is set, or what is set is not a wallet.
        """
        env = os.environ if environ is None else environ
        if key := variable(env, "X402_MASK_PRIVATE_KEY"):
            try:
                return cls.from_key(key)
            except ValueError as exc:
                raise ValueError(f"X402_MASK_PRIVATE_KEY: {exc}") from None
        if path := variable(env, "X402_MASK_KEYSTORE"):
            password = env.get("X402_MASK_KEYSTORE_PASSWORD", "").strip("\r\n")
            try:
                return cls.from_keystore(path, password)
            except ValueError as exc:
                raise ValueError(f"X402_MASK_KEYSTORE: {exc}") from None
        raise ValueError("set X402_MASK_PRIVATE_KEY, or X402_MASK_KEYSTORE and its password")

    def sign_digest(self, digest: bytes) -> bytes:
        """Sign 32 bytes: ``r || s || v`` with v 27 or 28, low s.

        Deterministic (RFC 6979), but for an OpenSSL before 3.2 where there is no coincurve.
        """
        if len(digest) != 32:
            raise ValueError("a digest has 32 bytes")
        signature = self.__sign(digest)
        return signature[:64] + bytes((signature[64] + 27,))

    def sign_checked(self, digest: bytes) -> bytes:
        """:meth:`sign_digest`, and the signature is proven to recover to this wallet's key.

        Raises:
            SignerError: it does not, as when a fault in the machine spoiled it.
        """
        signature = self.__sign(digest)
        if recovered(signature, digest) != self._public_key:
            raise SignerError("the wallet returned a signature that is not its own")
        return signature[:64] + bytes((signature[64] + 27,))

    def sign_typed_data(
        self, domain: Mapping[str, Any], types: Mapping[str, Any], message: Mapping[str, Any]
    ) -> bytes:
        """Sign EIP-712 typed data: 65 bytes ``r || s || v``."""
        return self.sign_digest(typed_data_digest(domain, types, message))

    def __repr__(self) -> str:
        return f"Wallet({self.address})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Wallet cannot be pickled or copied")


def write_keystore(key: bytes, path: Path, password: str) -> str:
    """Write a V3 keystore (scrypt) that only the owner can read; its address is returned.

    Raises:
        FileExistsError: *path* exists; a keystore is never overwritten.
    """
    from eth_account import Account

    keystore = Account.encrypt(key, password, kdf="scrypt")
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(keystore, file)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        path.unlink()  # half a keystore would stand in the way of a whole one
        raise
    return Wallet(key).address


def _named(keystore: str | os.PathLike[str]) -> Path:
    try:
        return fixed(keystore)
    except ValueError as exc:
        raise ValueError(f"the path of a keystore {exc}") from None


def _read_keystore(path: Path) -> Mapping[str, Any]:
    if path.stat().st_size > 65536:
        raise ValueError(f"{path.name} is not a V3 keystore")
    try:
        document = json.loads(path.read_text("utf-8-sig"))
    except (ValueError, RecursionError):
        raise ValueError(f"{path.name} is not a V3 keystore") from None
    if isinstance(document, dict):
        return document
    raise ValueError(f"{path.name} is not a V3 keystore")


def _address_of(public_key: bytes) -> str:
    return checksum("0x" + keccak(public_key[1:])[12:].hex())


def as_signer(wallet: object) -> Signer:
    """*wallet* as a signer; an eth-account ``LocalAccount`` becomes a fast :class:`Wallet`.

    Raises:
        TypeError: it has no ``address`` and ``sign_typed_data``.
        ValueError: its address is not one.
    """
    if isinstance(wallet, Wallet):
        return wallet
    accounts = sys.modules.get(
        "eth_account.signers.local"
    )  # where there is an account, there it is
    if type(wallet) is getattr(accounts, "LocalAccount", None):  # which may be half imported yet
        return Wallet.from_key(bytes(getattr(wallet, "key")))  # noqa: B009  # no stubs to check
    address = getattr(wallet, "address", None)
    if not callable(getattr(wallet, "sign_typed_data", None)) or not isinstance(address, str):
        raise TypeError("a wallet has .address and sign_typed_data(domain, types, message)")
    if not _ADDRESS.fullmatch(address):
        raise ValueError("a wallet's .address is 0x and 40 hex digits")
    return wallet  # type: ignore[return-value]  # checked just above


def is_async(function: object) -> bool:
    """Whether calling *function* gives an awaitable, as far as can be told without calling."""
    while isinstance(function, functools.partial):
        function = function.func
    call = getattr(function, "__call__", None)  # noqa: B004  # a callable object's method
    kinds = (inspect.iscoroutinefunction, inspect.isasyncgenfunction)
    return any(is_kind(one) for is_kind in kinds for one in (function, call))


def checked_signature(returned: object, digest: bytes, address: str) -> bytes:
    """65 bytes ``r || s || v`` with low s, proven to be *address*'s signature of *digest*.

    Raises:
        SignerError: anything else was returned.
    """
    signature = _as_bytes(getattr(returned, "signature", returned))
    if len(signature) != 65:
        raise SignerError(f"the wallet returned {len(signature)} bytes, not a 65-byte signature")
    r, s, v = signature[:32], int.from_bytes(signature[32:64], "big"), signature[64]
    parity = v - 27 if v >= 27 else v
    if ORDER // 2 < s < ORDER:  # tokens accept low s only (EIP-2)
        s, parity = ORDER - s, 1 - parity
    compact = r + s.to_bytes(32, "big")
    if parity not in (0, 1) or _recover(compact + bytes((parity,)), digest) != address.lower():
        raise SignerError("the wallet returned a signature that is not its own")
    return compact + bytes((parity + 27,))


def _as_bytes(value: object) -> bytes:
    try:
        if isinstance(value, str):
            return bytes.fromhex(value.removeprefix("0x"))
        if isinstance(value, (bytes, bytearray)):
            return bytes(value)
    except ValueError:
        pass
    raise SignerError("the wallet returned something that is not a signature")


def _recover(signature: bytes, digest: bytes) -> str:
    public_key = recovered(signature, digest)
    return "0x" + keccak(public_key[1:])[12:].hex() if public_key else ""
