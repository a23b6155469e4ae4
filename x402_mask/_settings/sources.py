"""The owner's settings, read from environment variables or a TOML file.

Nothing is built in: no origin, no cap, no wallet.  What cannot be read is a ``ValueError`` that
names the variable or the key, and never quotes a secret (keys, passwords, URLs that may carry an
API key).
"""

from __future__ import annotations

import difflib
import json
import os
import re
import tomllib
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from x402_mask._crypto.eip712 import checksum
from x402_mask._settings.ledger_place import fixed_ledger, open_ledger
from x402_mask._settings.words import (
    READERS,
    as_text,
    check_keys,
    origins_text,
    parse_caps,
    parse_rpc,
)
from x402_mask._system.owner_text import (
    fixed,
    plain,
    quoted,
    told_name,
    told_path,
    variable,
)
from x402_mask._wallets.local import Wallet

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping
    from pathlib import Path

    from x402_mask._ledger.ledger import Ledger

VARIABLES: Final = (
    "X402_MASK_PRIVATE_KEY",
    "X402_MASK_KEYSTORE",
    "X402_MASK_KEYSTORE_PASSWORD",
    "X402_MASK_CAPS",
    "X402_MASK_ORIGINS",
    "X402_MASK_LEDGER",
    "X402_MASK_RPC",
    "X402_MASK_CONFIG",
)
"""Every variable that is read here."""

_ELSEWHERE: Final = ("X402_MASK_LEDGER_KEY", "X402_MASK_FACILITATOR_KEY")

_TOML_PLACE: Final = re.compile(r"at (line [0-9]+, column [0-9]+|end of document)")
_FILE_BYTES_MAX: Final = 1 << 20
_MISSING: Final = {
    "caps": 'set X402_MASK_CAPS, such as "0.25/call,5/day", or caps in the file X402_MASK_CONFIG',
    "origins": "set X402_MASK_ORIGINS to the sellers that may be paid, such as"
    ' "https://host", or origins in the file X402_MASK_CONFIG',
}


# --- what is configured, before anything is opened ------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class KeySource:
    """A private key, and where it was said."""

    where: str
    key: str = field(repr=False)

    @property
    def claimed_address(self) -> str | None:
        """The address of the key."""
        return self.open().address

    def open(self) -> Wallet:
        """The wallet.

        Raises:
            ValueError: not a private key.
        """
        try:
            return Wallet.from_key(self.key)
        except ValueError:
            raise ValueError(f"{self.where} is not a private key (32 bytes in hex)") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class KeystoreSource:
    """A V3 keystore file, and where its password is said."""

    where: str
    path: Path
    password_name: str
    password: str | None = field(repr=False)

    @property
    def claimed_address(self) -> str | None:
        """The address that the file names; nobody has checked it against the key."""
        try:
            document = json.loads(self.path.read_text("utf-8-sig"))
        except (OSError, ValueError):
            return None
        named = document.get("address") if isinstance(document, dict) else None
        if not isinstance(named, str) or not re.fullmatch(r"(0x)?[0-9a-fA-F]{40}", named):
            return None
        return checksum("0x" + named.removeprefix("0x"))

    @property
    def is_there(self) -> bool:
        """Whether the path is that of a file; if not, it may be a secret in the wrong place."""
        return os.path.isfile(self.path)  # noqa: PTH113  # is_file() raises for long names

    @property
    def not_there(self) -> str:
        """What to say where no file is."""
        return f"there is no keystore {told_path(self.path, 'at the path that it names')}"

    @property
    def password_told(self) -> str:
        """Where the password belongs, for a message."""
        return told_name(self.password_name, "the variable that password_env names")

    def open(self, password: str | None = None) -> Wallet:
        """The wallet; *password* where none is configured.

        Raises:
            ValueError: there is no password, it is wrong, or the file is not a keystore.
        """
        secret = password if password is not None else self.password
        if not self.is_there:
            raise ValueError(f"{self.where}: {self.not_there}")
        if secret is None:
            raise ValueError(f"{self.where} needs a password: set {self.password_told}")
        try:
            return Wallet.from_keystore(self.path, secret)
        except OSError as exc:
            raise ValueError(f"{self.where}: {self.path}: {exc.strerror}") from None
        except ValueError as exc:
            hint = f"; {self.password_told} is still in quotation marks" if quoted(secret) else ""
            raise ValueError(f"{self.where}: {exc} ({self.path}){hint}") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """What was configured.  ``values`` are keywords of ``Payer``, without wallet and ledger."""

    values: Mapping[str, Any]
    wallet: KeySource | KeystoreSource | None = None
    ledger: str | None = field(default=None, repr=False)
    ledger_from: str = "ledger"
    path: Path | None = None

    def arguments(self, given: Collection[str] = ()) -> dict[str, Any]:
        """Keyword arguments for ``Payer``, except those *given* by the caller.

        Raises:
            ValueError: something needed is missing, or the wallet cannot be opened.
        """
        self.require(given)
        found = {name: value for name, value in self.values.items() if name not in given}
        if "wallet" not in given:
            found["wallet"] = None if self.wallet is None else self.wallet.open()
        if "ledger" not in given and self.ledger is not None:
            found["ledger"] = self.open_ledger()
        return found

    def open_ledger(self) -> Ledger:
        """The ledger that is named, or else the user's own.

        Raises:
            ValueError: what is named is none; its place in the settings is said.
        """
        if self.ledger is None:
            from x402_mask._ledger.sqlite import SQLiteLedger  # noqa: PLC0415

            return SQLiteLedger()
        with _naming(self.ledger_from):
            return open_ledger(self.ledger)

    def require(self, given: Collection[str] = ()) -> None:
        """Refuse settings without caps or origins.

        Raises:
            ValueError: they are missing and not *given*.
        """
        for name, advice in _MISSING.items():
            if name not in self.values and name not in given:
                raise ValueError(f"no {name} are configured: {advice}")


def from_env(
    environ: Mapping[str, str] | None = None, *, given: Collection[str] = ()
) -> dict[str, Any]:
    """Keyword arguments for ``Payer`` from environment variables, over a file they may name.

    Args:
        environ: instead of ``os.environ``.
        given: keywords that the caller has, which are then neither needed nor opened.

    Raises:
        OSError: the file X402_MASK_CONFIG cannot be read.
        ValueError: a variable is missing or wrong; its name is said, its secret is not.
    """
    return read(environ).arguments(given)


def from_config(
    path: str | os.PathLike[str],
    environ: Mapping[str, str] | None = None,
    *,
    given: Collection[str] = (),
) -> dict[str, Any]:
    """Keyword arguments for ``Payer`` from a TOML file; *environ* only serves ``*_env`` keys.

    A file has keys for the keywords of ``Payer``, besides ``wallet`` and ``ledger``::

        caps = "0.25/call,5/day,2/day@mask-refinement"  # or a list of such texts
        origins = ["https://x402vip.com"]
        ledger = "ledger.db"  # beside this file; or a DSN of PostgreSQL
        payees = "pin"
        max_validity = "2m"

        [wallet]
        keystore = "agent.json"  # beside this file
        password_env = "AGENT_PASSWORD"  # the name of a variable, never the password

        [rpc]
        "eip155:8453" = "https://base.example"

    Environment variables win over a file that X402_MASK_CONFIG names (:func:`from_env`), as on the
    command line; here the file is read alone.

    Raises:
        OSError: the file cannot be read.
        ValueError: something in it is unknown, missing or wrong.
    """
    env = os.environ if environ is None else environ
    with _naming("the path of the settings"):
        file = fixed(path)
    return _read_file(file, env).arguments(given)


def read(environ: Mapping[str, str] | None = None, *, config: str | None = None) -> Configuration:
    """The settings of the environment, and of the file that it names.  Opens no wallet, no ledger.

    Args:
        environ: instead of ``os.environ``.
        config: a file, instead of the one that X402_MASK_CONFIG names.

    Raises:
        OSError: *config* cannot be read.
        ValueError: something is wrong, or the file that is named there cannot be read.
    """
    env = os.environ if environ is None else environ
    base = _named_file(env) if config is None else _file_at(config, "--config", env)
    named = env.get("X402_MASK_LEDGER", "").strip()
    return Configuration(
        values={**base.values, **_values(env)},
        wallet=_wallet_of(env) or base.wallet,
        ledger=fixed_ledger(named) if named else base.ledger,
        ledger_from="X402_MASK_LEDGER" if named else base.ledger_from,
        path=base.path,
    )


def _file_at(path: str, name: str, env: Mapping[str, str]) -> Configuration:
    with _naming(name):
        file = fixed(path)
    return _read_file(file, env)


def _named_file(env: Mapping[str, str]) -> Configuration:
    named = variable(env, "X402_MASK_CONFIG")
    if named is None:
        return Configuration(values={})
    try:
        return _file_at(named, "X402_MASK_CONFIG", env)
    except OSError as exc:
        which = told_path(named, "the file that it names")
        raise ValueError(f"X402_MASK_CONFIG: {which}: {exc.strerror}") from None


def _values(env: Mapping[str, str]) -> dict[str, Any]:
    readers: dict[str, tuple[str, Callable[[str], Any]]] = {
        "caps": ("X402_MASK_CAPS", parse_caps),
        "origins": ("X402_MASK_ORIGINS", origins_text),
        "rpc": ("X402_MASK_RPC", parse_rpc),
    }
    found = {}
    for name, (called, reader) in readers.items():
        text = variable(env, called)
        if text is not None:
            with _naming(called):
                found[name] = reader(text)
    return found


def _wallet_of(env: Mapping[str, str]) -> KeySource | KeystoreSource | None:
    if key := variable(env, "X402_MASK_PRIVATE_KEY"):
        return KeySource(where="X402_MASK_PRIVATE_KEY", key=key)
    if path := variable(env, "X402_MASK_KEYSTORE"):
        with _naming("X402_MASK_KEYSTORE"):
            file = fixed(path)
        return _keystore(file, env, where="X402_MASK_KEYSTORE")
    return None


def _keystore(
    path: Path, env: Mapping[str, str], *, where: str, password_name: str | None = None
) -> KeystoreSource:
    password_name = password_name or "X402_MASK_KEYSTORE_PASSWORD"
    password = env.get(password_name)  # blanks and quotation marks may be part of it
    return KeystoreSource(
        where=where,
        path=path,
        password_name=password_name,
        password=None if password is None else password.strip("\r\n"),
    )


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """Put the name of what is being read in front of what is wrong with it."""
    try:
        yield
    except (ValueError, TypeError) as exc:
        raise ValueError(f"{name}: {exc}") from None


# --- the file -------------------------------------------------------------------------------------


def _read_file(path: Path, env: Mapping[str, str]) -> Configuration:
    with path.open("rb") as file:
        mode = os.fstat(file.fileno()).st_mode
        data = file.read(_FILE_BYTES_MAX + 1)
    if len(data) > _FILE_BYTES_MAX:
        raise ValueError(f"{path}: larger than {_FILE_BYTES_MAX} bytes")
    try:
        document = tomllib.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise ValueError(f"{path}: not UTF-8 text") from None
    except tomllib.TOMLDecodeError as exc:
        found = _TOML_PLACE.search(str(exc))
        where = found[0] if found else "near its end"
        raise ValueError(f"{path}: not TOML: what stands {where} cannot be read") from None
    with _naming(str(path)):
        check_keys(document, ("wallet", "ledger", *READERS))
    shared = os.name == "posix" and bool(mode & 0o077)
    values = {}
    for name, reader in READERS.items():
        if name in document:
            with _naming(f"{path}: {name}"):
                values[name] = reader(document[name])
    return Configuration(
        values=values,
        wallet=_wallet_table(document.get("wallet"), path, env, shared=shared),
        ledger=_ledger_text(document.get("ledger"), path),
        ledger_from=f"{path}: ledger",
        path=path,
    )


def _wallet_table(
    table: object, path: Path, env: Mapping[str, str], *, shared: bool
) -> KeySource | KeystoreSource | None:
    where = f"{path}: wallet"
    if table is None:
        return None
    with _naming(where):
        texts = _wallet_texts(table)
    if "keystore" in texts:
        with _naming(f"{where}.keystore"):
            file = fixed(plain(texts["keystore"]), path.parent)
        name = texts.get("password_env")
        return _keystore(file, env, where=where, password_name=name)
    if "private_key" in texts:
        return _key_in_file(texts["private_key"], path, shared=shared)
    return _key_in_variable(texts["private_key_env"], where, env)


def _wallet_texts(table: object) -> dict[str, str]:
    if not isinstance(table, dict):
        raise TypeError('is a table, such as {keystore = "...", password_env = "..."}')
    for secret in ("password", "mnemonic"):
        if secret in table:
            raise ValueError(f"a {secret} does not belong in the file: use password_env")
    check_keys(table, ("keystore", "password_env", "private_key_env", "private_key"))
    kinds = [name for name in ("keystore", "private_key_env", "private_key") if name in table]
    if len(kinds) != 1:
        raise ValueError("has one of keystore, private_key_env and private_key")
    if "password_env" in table and "keystore" not in table:
        raise ValueError("password_env belongs to a keystore")
    return {name: as_text(value, name) for name, value in table.items()}


def _key_in_file(key: str, path: Path, *, shared: bool) -> KeySource:
    if shared:
        raise ValueError(
            f"{path} holds a private key and others may read it: `chmod 600 {path}`, or better use"
            " private_key_env or a keystore"
        )
    return KeySource(where=f"{path}: wallet.private_key", key=key)


def _key_in_variable(name: str, where: str, env: Mapping[str, str]) -> KeySource:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) or re.fullmatch(r"[0-9a-fA-F]{64}", name):
        raise ValueError(f"{where}: private_key_env is the name of a variable, not a key")
    key = variable(env, name)
    if key is None:
        which = told_name(name, "that private_key_env names")
        raise ValueError(f"{where}: the variable {which} is not set")
    return KeySource(where=name, key=key)


def _ledger_text(value: object, path: Path) -> str | None:
    if value is None:
        return None
    with _naming(f"{path}: ledger"):
        return fixed_ledger(as_text(value, "it"), path.parent)


def mistaken(environ: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Variables that look like ours and are read by nobody, and what may have been meant."""
    for name in sorted(environ):
        if name.startswith("X402_MASK_") and name not in (*VARIABLES, *_ELSEWHERE):
            close = difflib.get_close_matches(name, VARIABLES, n=1, cutoff=0.85)
            if close:
                yield name, close[0]
