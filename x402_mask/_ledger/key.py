"""The ledger's own key: stored proofs are encrypted with it, history is chained with it.

The key lives in a file beside the database that only the owner can read, so that whoever reads the
database alone (a backup, a dump, a stray grant) can neither use a stored proof nor rewrite history.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import secrets
from typing import TYPE_CHECKING, Final

from x402_mask._ledger.private_files import keep_private
from x402_mask.errors import LedgerError

if TYPE_CHECKING:
    from pathlib import Path

    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

_KEY_BYTES: Final = 32
_NONCE_BYTES: Final = 12
_NUMBERS_MAX: Final = 256


class LedgerKey:
    """Encrypts, decrypts and chains with keys derived from one secret (HKDF-like, by HMAC)."""

    __slots__ = (
        "_cipher",
        "_inner",
        "_numbers",
        "_outer",
        "_proof_key",
        "_sum_inner",
        "_sum_outer",
        "key_id",
    )

    def __init__(self, key: bytes) -> None:
        if len(key) != _KEY_BYTES:
            raise LedgerError("a ledger key has 32 bytes")
        self._proof_key = hmac.digest(key, b"x402_mask proof v1", "sha256")
        chain_key = hmac.digest(key, b"x402_mask history v1", "sha256")
        self._inner, self._outer = (_keyed(chain_key, pad) for pad in (0x36, 0x5C))
        sum_key = hmac.digest(key, b"x402_mask sums v1", "sha256")
        self._sum_inner, self._sum_outer = (_keyed(sum_key, pad) for pad in (0x36, 0x5C))
        self.key_id = hmac.digest(key, b"x402_mask id v1", "sha256")[:8].hex()
        self._numbers: dict[bytes, int] = {}  # what a counter is now is what it was, next time
        self._cipher: AESGCM | None = None  # made when needed: OpenSSL is slow to load

    def __repr__(self) -> str:
        return f"LedgerKey({self.key_id})"

    def seal(self, text: str, label: str) -> bytes:
        """Encrypt *text* (AES-256-GCM), bound to *label*."""
        nonce = secrets.token_bytes(_NONCE_BYTES)
        return nonce + self._aead().encrypt(nonce, text.encode(), label.encode())

    def open(self, sealed: bytes, label: str) -> str:
        """Decrypt what :meth:`seal` made for the same *label*.

        Raises:
            LedgerError: it was made with another key, or altered.
        """
        from cryptography.exceptions import InvalidTag  # noqa: PLC0415

        if not isinstance(sealed, bytes):  # a number that SQLite stored would be as many zeros
            raise LedgerError("a stored proof is no bytes: the ledger is damaged, restore a backup")
        try:
            plain = self._aead().decrypt(
                sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], label.encode()
            )
        except (InvalidTag, ValueError):
            raise LedgerError("a stored proof cannot be decrypted with this ledger's key") from None
        return plain.decode()

    def link(self, previous: bytes, record: bytes) -> bytes:
        """The next value of the history chain: HMAC-SHA-256 over the last value and *record*."""
        inner, outer = self._inner.copy(), self._outer.copy()
        inner.update(previous + record)
        outer.update(inner.digest())
        return outer.digest()

    def number(self, record: bytes) -> int:
        """A keyed hash (HMAC-SHA-256) of *record*, as an integer to be added up."""
        found = self._numbers.get(record)
        if found is None:
            inner, outer = self._sum_inner.copy(), self._sum_outer.copy()
            inner.update(record)
            outer.update(inner.digest())
            if len(self._numbers) >= _NUMBERS_MAX:
                self._numbers.clear()
            found = self._numbers[record] = int.from_bytes(outer.digest())
        return found

    def _aead(self) -> AESGCM:
        if self._cipher is None:
            from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # noqa: PLC0415

            self._cipher = AESGCM(self._proof_key)
        return self._cipher


def _keyed(key: bytes, pad: int) -> hashlib._Hash:
    """One half of an HMAC-SHA-256 (RFC 2104), ready to be copied: keying it costs most of it."""
    return hashlib.sha256(bytes(byte ^ pad for byte in key.ljust(64, b"\0")))


def data_path() -> Path:
    """Where this user's ledgers and their keys live by default."""
    from platformdirs import user_data_path  # noqa: PLC0415

    return user_data_path("x402-mask", appauthor=False).absolute()


def digest(text: str) -> str:
    """The SHA-256 of a proof, in hex: names it without being worth anything."""
    return hashlib.sha256(text.encode()).hexdigest()


def load_key(path: Path, *, create: bool) -> bytes | None:
    """The 32-byte key in *path*; made there if *create* and there is none.

    Two processes that start at once end with the same key: the file appears whole, by a link.

    One that others may read is made its owner's alone.

    Raises:
        LedgerError: the file is not a key, or a link, or cannot be read or made.
    """
    try:
        return _read_key(path)
    except FileNotFoundError:
        if not create:
            return None
    except OSError as exc:
        raise LedgerError(f"cannot read the ledger key {path.name}: {exc.strerror}") from exc
    try:
        return _make_key(path)
    except OSError as exc:
        raise LedgerError(f"cannot make the ledger key {path.name}: {exc.strerror}") from exc


def _read_key(path: Path) -> bytes:
    keep_private(path)
    try:
        key = bytes.fromhex(path.read_text("utf-8-sig").strip())
    except ValueError:
        key = b""
    if len(key) != _KEY_BYTES:
        raise LedgerError(f"{path.name} is not a ledger key; restore it from a backup")
    return key


def _make_key(path: Path) -> bytes:
    draft = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(secrets.token_bytes(_KEY_BYTES).hex() + "\n")
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):  # another process was first: its key is the key
            os.link(draft, path)
    finally:
        draft.unlink(missing_ok=True)
    sync_directory(path.parent)
    return _read_key(path)


def sync_directory(path: Path) -> None:
    """Make new names in *path* survive a power cut, where the system can."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:  # Windows cannot open a directory, and needs no such call
        return
    try:
        os.fsync(descriptor)
    except OSError:
        pass
    finally:
        os.close(descriptor)
