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
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, get_args

from x402_mask._models import Asset, Cap, Route
from x402_mask._money import parse_usd
from x402_mask._policy.offers import payee_fault
from x402_mask._services import Services, parse_origins
from x402_mask._system.owner_text import (
    LIBPQ,
    Unshown,
    can_be_sent,
    fixed,
    maybe_secret,
    plain,
    quoted,
    secret_like,
    told,
    told_name,
    told_path,
    variable,
)
from x402_mask._wallets.local import Wallet
from x402_mask._wire.assets import caip2

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
_SPAN: Final = re.compile(r"([1-9][0-9]{0,8}) ?([a-z]+)")
_UNITS: Final = {"s": 1, "min": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_SPAN_MAX: Final = timedelta(days=3660)
_URL_SCHEME: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
_ANCHORED: Final = re.compile(r"/(?!/)|[\\~]|\.\.?[/\\]|[A-Za-z]:[/\\]")
"""How a path begins that can be nothing else."""
_UNLIKELY: Final = re.compile(r"[:@=?*|<>\"'`;]|//")
"""What other names of files are refused for: it is part of a DSN that cannot be read."""
_RPC_ITEM: Final = re.compile(r",(?=\s*[A-Za-z0-9:-]+\s*=)")
_RPC_NETWORK: Final = re.compile(r"eip155:[1-9][0-9]{0,18}")
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
        from x402_mask._crypto.eip712 import checksum  # noqa: PLC0415

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
class Settings:
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


def read(environ: Mapping[str, str] | None = None, *, config: str | None = None) -> Settings:
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
    return Settings(
        values={**base.values, **_values(env)},
        wallet=_wallet_of(env) or base.wallet,
        ledger=_fixed_ledger(named) if named else base.ledger,
        ledger_from="X402_MASK_LEDGER" if named else base.ledger_from,
        path=base.path,
    )


def _file_at(path: str, name: str, env: Mapping[str, str]) -> Settings:
    with _naming(name):
        file = fixed(path)
    return _read_file(file, env)


def _named_file(env: Mapping[str, str]) -> Settings:
    named = variable(env, "X402_MASK_CONFIG")
    if named is None:
        return Settings(values={})
    try:
        return _file_at(named, "X402_MASK_CONFIG", env)
    except OSError as exc:
        which = told_path(named, "the file that it names")
        raise ValueError(f"X402_MASK_CONFIG: {which}: {exc.strerror}") from None


def _values(env: Mapping[str, str]) -> dict[str, Any]:
    readers: dict[str, tuple[str, Callable[[str], Any]]] = {
        "caps": ("X402_MASK_CAPS", parse_caps),
        "origins": ("X402_MASK_ORIGINS", _origins_text),
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


def _kind(exc: Exception) -> str:
    """What is wrong, without what was written: our messages put that behind a colon."""
    return str(exc).partition(": ")[0]


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """Put the name of what is being read in front of what is wrong with it."""
    try:
        yield
    except (ValueError, TypeError) as exc:
        raise ValueError(f"{name}: {exc}") from None


# --- the languages of the variables ---------------------------------------------------------------


def parse_caps(text: str) -> list[Cap]:
    """Caps from ``"0.25/call,5/day,2/day@mask-refinement,1/36h"``.

    Raises:
        ValueError: not that language, or no cap at all.
    """
    found = _parse_caps([part for part in text.split(",") if part.strip()])
    if not found:
        raise ValueError('names no cap; write such as "0.25/call,5/day"')
    return found


def _parse_caps(texts: list[str]) -> list[Cap]:
    found = []
    for number, text in enumerate(texts, 1):
        try:
            found.append(parse_cap(text))
        except ValueError as exc:
            which = f"cap {number}: " if len(texts) > 1 else ""
            raise ValueError(f"{which}{exc}") from None
    return found


def parse_cap(text: str) -> Cap:
    """One cap: ``USD/PER`` or ``USD/PER@SERVICE``.

    ``PER`` is call, hour, day, month, total, or a rolling span such as 30min, 36h, 7d, 2w.

    Raises:
        ValueError: not that language; what was written is not quoted.
    """
    what, at, service = text.strip().partition("@")
    limit, slash, per = what.partition("/")
    if not slash or (at and not service.strip()) or secret_like(service):
        raise ValueError("it is not USD/PER or USD/PER@SERVICE, such as 0.25/call")
    amount = limit.strip().removeprefix("$")
    try:
        parse_usd(amount)
    except ValueError as exc:
        raise ValueError(f"{_kind(exc)}: {told(amount, 'what stands before /')}") from None
    return Cap(amount, per=_per(per.strip()), service=service.strip() or "*")


def _per(text: str) -> str | timedelta:
    if text in ("call", "hour", "day", "month", "total"):
        return text
    if re.fullmatch(r"[0-9]+ ?m", text):
        raise ValueError(f"{told(text)} may mean minutes or months; write such as 30min or 30d")
    try:
        return parse_span(text)
    except ValueError:
        raise ValueError(
            f"{told(text)} is not call, hour, day, month, total, or a span such as 30min, 36h, 7d"
        ) from None


def parse_span(text: str) -> timedelta:
    """A length of time: a number and s, min (or m), h, d or w.

    Raises:
        ValueError: not that, or longer than ten years.
    """
    found = _SPAN.fullmatch(text.strip())
    unit = _UNITS.get("min" if found[2] == "m" else found[2]) if found else None
    if found is None or unit is None:
        raise ValueError(f"{told(text)} is not a length of time such as 90s, 30min, 36h, 7d")
    seconds = int(found[1]) * unit
    if seconds > _SPAN_MAX.total_seconds():
        raise ValueError(f"{told(text)} is longer than ten years")
    return timedelta(seconds=seconds)


def _origins_text(text: str) -> list[str]:
    return _origins([part.strip() for part in text.split(",") if part.strip()])


def parse_rpc(text: str) -> dict[str, list[str]]:
    """Endpoints from ``"eip155:8453=https://one,eip155:8453=https://two"``.

    Endpoints of the same network must agree.

    Raises:
        ValueError: not that language; URLs are not quoted, they may carry a key.
    """
    found: dict[str, list[str]] = Unshown()
    for number, item in enumerate(_RPC_ITEM.split(text), 1):
        name, equals, url = (part.strip() for part in item.partition("="))
        if not equals:
            raise ValueError(f"endpoint {number} is not NETWORK=URL, such as eip155:8453=https://h")
        network = _rpc_network(name)
        found.setdefault(network, []).append(_rpc_url(name, url))
    return found


def _rpc_network(name: str) -> str:
    if _RPC_NETWORK.fullmatch(caip2(name)) is None:
        raise ValueError(f"{told(name)} is not an EVM network in CAIP-2 form, such as eip155:8453")
    return caip2(name)


def _rpc_url(network: str, url: object) -> str:
    if not isinstance(url, str) or not url.startswith(("http://", "https://")):
        raise ValueError(f"the endpoint of {network} is not an http(s) URL")
    from x402_mask._chain.rpc import endpoints_of  # noqa: PLC0415  # brings httpx

    endpoints_of(_rpc_network(network), url)
    return url


# --- the file -------------------------------------------------------------------------------------


def _read_file(path: Path, env: Mapping[str, str]) -> Settings:
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
        _check_keys(document, ("wallet", "ledger", *_READERS))
    shared = os.name == "posix" and bool(mode & 0o077)
    values = {}
    for name, reader in _READERS.items():
        if name in document:
            with _naming(f"{path}: {name}"):
                values[name] = reader(document[name])
    return Settings(
        values=values,
        wallet=_wallet_table(document.get("wallet"), path, env, shared=shared),
        ledger=_ledger_text(document.get("ledger"), path),
        ledger_from=f"{path}: ledger",
        path=path,
    )


def _check_keys(table: Mapping[str, object], known: Collection[str]) -> None:
    for name in table:
        if name not in known:
            called = told_name(name, "")
            which = repr(called) if called else "(not shown: it may be a secret)"
            raise ValueError(f"unknown key {which}{_meant(name, known)}")


def _meant(name: str, known: Collection[str]) -> str:
    close = difflib.get_close_matches(name, known, n=3)
    return f"; did you mean {' or '.join(close)}?" if close else f" (known: {', '.join(known)})"


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
    _check_keys(table, ("keystore", "password_env", "private_key_env", "private_key"))
    kinds = [name for name in ("keystore", "private_key_env", "private_key") if name in table]
    if len(kinds) != 1:
        raise ValueError("has one of keystore, private_key_env and private_key")
    if "password_env" in table and "keystore" not in table:
        raise ValueError("password_env belongs to a keystore")
    return {name: _text(value, name) for name, value in table.items()}


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
        return _fixed_ledger(_text(value, "it"), path.parent)


def _fixed_ledger(text: str, base: Path | None = None) -> str:
    """What *text* names, whatever becomes of the process's directory before it is opened.

    Where it names nothing, it stays as it is: whoever opens it is told so.
    """
    try:
        return _ledger_place(text, base)
    except ValueError:
        return text


def _ledger_place(text: str, base: Path | None = None) -> str:
    """The DSN or the absolute path that *text* names.

    A path that might as well be a DSN with a mistake in it is refused: on each host it would be
    another budget, under a directory that is called by the password.
    """
    text = plain(text)
    scheme = _URL_SCHEME.match(text)
    if scheme is not None and scheme[1] not in ("postgres", "postgresql"):
        raise ValueError(f"a ledger is a path or a postgresql:// URL, not {scheme[1]}://")
    if scheme is not None or LIBPQ.match(text):
        return text
    if "://" in text or not (_ANCHORED.match(text) or _UNLIKELY.search(text) is None):
        raise ValueError(
            "is neither a path nor a DSN that can be read; a path begins with / or ./,"
            " a DSN with postgresql://"
        )
    found = fixed(text, base)
    if not _ANCHORED.match(text) and maybe_secret(text, found):
        raise ValueError(
            "might be a password in the wrong place, so it is not taken for a path: a path begins"
            " with / or ./, or it ends as a database does, such as in .db"
        )
    return str(found)


def _is_path(ledger: str) -> bool:
    return not (_URL_SCHEME.match(ledger) or LIBPQ.match(ledger))


def open_ledger(where: str) -> Ledger:
    """The ledger at a path or a PostgreSQL DSN, which is a URL or begins with a keyword of libpq.

    A SQLite file is only opened when it is used.

    Raises:
        ValueError: neither can be read in it, or the driver of PostgreSQL is not installed.
    """
    place = _ledger_place(where)
    if _is_path(place):
        from x402_mask._ledger.sqlite import SQLiteLedger  # noqa: PLC0415

        return SQLiteLedger(place)
    from x402_mask._ledger.postgres import PostgresLedger  # noqa: PLC0415  # its driver is an extra

    try:
        return PostgresLedger(place)
    except ImportError as exc:
        raise ValueError(str(exc)) from None


# --- what each key of the file holds --------------------------------------------------------------


def _text(value: object, name: str) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"{name} is text, not {'empty' if value == '' else type(value).__name__}")
    return value


def _texts(value: object) -> list[str]:
    if not isinstance(value, list):
        raise TypeError(f"is a list of text, not {type(value).__name__}")
    return [_text(item, "each item") for item in value]


def _origins(value: object) -> list[str]:
    found = _texts(value)
    try:
        parse_origins(found)
    except ValueError as exc:
        raise ValueError(_kind(exc) if found else str(exc)) from None
    return found


def _some_origins(value: object) -> list[str]:
    return _origins(value) if _texts(value) else []


def _networks(value: object) -> list[str]:
    return [_network(name) for name in _texts(value)]


def _network(name: str) -> str:
    if caip2(name) == name:  # no name of version 1
        return _rpc_network(name)
    return name


def _prefer(value: object) -> list[str]:
    found = _texts(value)
    if not set(found) <= set(get_args(Route)):
        raise ValueError(f"orders some of {', '.join(get_args(Route))}")
    return found


def _caps(value: object) -> list[Cap]:
    if isinstance(value, str):
        return parse_caps(value)
    found = _parse_caps(_texts(value))
    if not found:
        raise ValueError('is empty; write such as ["0.25/call", "5/day"]')
    return found


def _assets(value: object) -> list[Asset]:
    if not isinstance(value, list):
        raise TypeError("is a list of tables ([[assets]])")
    return [_asset(item) for item in value]


def _asset(table: object) -> Asset:
    names = ("network", "address", "decimals", "name", "version")
    if not isinstance(table, dict):
        raise TypeError("is a list of tables ([[assets]])")
    _check_keys(table, names)
    for name in names:
        if name not in table:
            raise ValueError(f"an asset has no {name}")
    for name in ("network", "address", "name", "version"):
        _text(table[name], name)
    try:
        return Asset(**{**table, "network": caip2(table["network"])})
    except ValueError as exc:
        raise ValueError(_kind(exc)) from None


def _payees(value: object) -> str | list[str]:
    if isinstance(value, str):
        if value != "pin":
            raise ValueError('is "pin" or a list of addresses')
        return value
    found = _texts(value)
    for number, payee in enumerate(found, 1):
        if payee_fault(payee, payer=None, asset="") is not None:
            raise ValueError(f"payee {number} is not an address that can be paid")
    return found


def _services(value: object) -> dict[str, str]:
    if not isinstance(value, dict):
        raise TypeError("is a table of name = URL pattern")
    found = {name: _text(pattern, told_name(name, "a pattern")) for name, pattern in value.items()}
    try:
        Services(found)
    except ValueError as exc:
        raise ValueError(_kind(exc)) from None
    return found


def _headers(value: object) -> dict[str, str]:
    if not isinstance(value, dict):
        raise TypeError("is a table of header = value")
    found = {name: _text(text, told_name(name, "a header")) for name, text in value.items()}
    for name, text in found.items():
        if not can_be_sent(name, text):
            raise ValueError(f"{told_name(name, 'a header')} cannot be sent in a header")
    return Unshown(found)


def _word(value: object) -> str:
    return _text(value, "it")


def _rpc(value: object) -> dict[str, list[str]]:
    if not isinstance(value, dict):
        raise TypeError("is a table of network = URL, or a list of URLs that must agree")
    found: dict[str, list[str]] = Unshown()
    for name, urls in value.items():
        several = urls if isinstance(urls, list) else [urls]
        if not several:
            raise ValueError(f"{told_name(name, 'a network')} has no endpoint")
        network = _rpc_network(name)
        found[network] = [_rpc_url(name, url) for url in several]
    return found


def _span(value: object) -> timedelta:
    if isinstance(value, str):
        return parse_span(value)
    if type(value) is not int or not 0 < value <= _SPAN_MAX.total_seconds():
        raise ValueError('is seconds, or a length of time such as "5m"')
    return timedelta(seconds=value)


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise TypeError("is true or false")
    return value


def _one_of(*allowed: str) -> Callable[[object], str]:
    def reader(value: object) -> str:
        if value not in allowed:
            raise ValueError(f"is one of {', '.join(allowed)}")
        return str(value)

    return reader


def _breaker_after(value: object) -> int | None:
    if value is False:
        return None
    if type(value) is not int or value < 1:
        raise ValueError("is a number of bad ends above 0, or false for never")
    return value


def _max_gas_wei(value: object) -> int | None:
    if value is False:
        return None
    if type(value) is not int or value < 1:
        raise ValueError("is wei above 0, or false for no on-chain transfers")
    return value


_READERS: Final[Mapping[str, Callable[[object], Any]]] = {
    "caps": _caps,
    "origins": _origins,
    "networks": _networks,
    "assets": _assets,
    "payees": _payees,
    "prefer": _prefer,
    "services": _services,
    "max_validity": _span,
    "rpc": _rpc,
    "on_refusal": _one_of("raise", "return"),
    "preempt": _flag,
    "resign": _one_of("expired", "never"),
    "breaker_after": _breaker_after,
    "breaker_for": _span,
    "token_origins": _some_origins,
    "balance_origins": _some_origins,
    "poll_unpaid": _span,
    "poll_paid": _span,
    "marketplace_headers": _headers,
    "provider_id": _word,
    "max_gas_wei": _max_gas_wei,
    "validate_input": _flag,
    "allow_above_catalog": _flag,
}
"""Every key of the file besides ``wallet`` and ``ledger``: keywords of ``Payer``."""


def mistaken(environ: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Variables that look like ours and are read by nobody, and what may have been meant."""
    for name in sorted(environ):
        if name.startswith("X402_MASK_") and name not in (*VARIABLES, *_ELSEWHERE):
            close = difflib.get_close_matches(name, VARIABLES, n=1, cutoff=0.85)
            if close:
                yield name, close[0]
