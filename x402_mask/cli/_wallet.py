"""``wallet``: keystores.  A private key is never an argument and is never printed."""

from __future__ import annotations

import os
import secrets
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from x402_mask._settings import sources
from x402_mask._system.owner_text import fixed
from x402_mask.cli._faults import USAGE, Failure
from x402_mask.cli._funds import needed, what_to_fund
from x402_mask.cli._session import PASSWORD, Session, ask_password, common, default_keystore
from x402_mask.cli._show import facts, put, say, show

if TYPE_CHECKING:
    from collections.abc import Callable

_SECRET_MAX: Final = 64 << 10
_PATH: Final = click.option(
    "--path",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="The new keystore; by default keystore.json in the user's data directory.",
)


@click.group()
def wallet() -> None:
    """Make, show or import the wallet that pays."""


@wallet.command()
@_PATH
@common
def new(session: Session, path: Path | None) -> None:
    """Make a wallet: a new key in a V3 keystore, encrypted with a password."""
    target = _target(path)
    _write(session, target, lambda: secrets.token_bytes(32))


@wallet.command("import")
@click.option("--mnemonic", is_flag=True, help="Ask for BIP-39 words instead of a private key.")
@click.option(
    "--keystore",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Copy this keystore instead.",
)
@_PATH
@common
def import_(session: Session, mnemonic: bool, keystore: Path | None, path: Path | None) -> None:
    """Put a key you have into a keystore.

    The key is asked for, or read from standard input; it is never an argument, which other users
    of this machine and the shell's history could read.
    """
    if mnemonic and keystore is not None:
        raise click.UsageError("--mnemonic and --keystore exclude each other")
    target = _target(path)
    if keystore is not None:
        _copy(session, keystore, target)
        return
    name = "BIP-39 words" if mnemonic else "private key"
    secret = _secret(name)
    _write(session, target, lambda: _words_key(secret) if mnemonic else _hex_key(secret))


@wallet.command("show")
@common
def show_(session: Session) -> None:
    """Show the address of the configured wallet, and where it comes from."""
    source = session.settings().wallet
    if source is None:
        raise Failure(
            "no wallet is configured: `x402-mask wallet new` makes one, or set"
            " X402_MASK_PRIVATE_KEY or X402_MASK_KEYSTORE",
            code="no_wallet",
        )
    try:
        address = source.claimed_address or source.open().address
    except ValueError as exc:
        raise Failure(str(exc), USAGE, code="config") from exc
    path = source.path if isinstance(source, sources.KeystoreSource) else None
    told = {"address": address, "from": source.where, "keystore": path and str(path)}
    _tell(session, told, "wallet")


def _tell(session: Session, told: dict[str, Any], title: str) -> None:
    if session.as_json:
        put(told)
    else:
        show(facts(title, told))


def _target(path: Path | None) -> Path:
    """Where the keystore goes; known to be free before anything is asked."""
    try:
        target = default_keystore() if path is None else fixed(path)
    except ValueError as exc:
        raise Failure(f"--path {exc}", USAGE) from None
    if target.exists():
        raise Failure(
            f"{target} exists, and a keystore is never overwritten: choose another --path", USAGE
        )
    return target


def _secret(name: str) -> str:
    if sys.stdin.isatty():
        typed: str = click.prompt(name, hide_input=True, err=True)
        return typed.strip()
    return sys.stdin.read(_SECRET_MAX).removeprefix("\ufeff").strip()  # a file saved on Windows


def _hex_key(text: str) -> bytes:
    from x402_mask._wallets.local import Wallet

    Wallet.from_key(text)
    return bytes.fromhex(text.removeprefix("0x").removeprefix("0X"))


def _words_key(words: str) -> bytes:
    from eth_account import Account

    from x402_mask._wallets.local import MNEMONIC_PATH, Wallet

    Wallet.from_mnemonic(words)  # says what is wrong without quoting the words
    return bytes(Account.from_mnemonic(" ".join(words.split()), account_path=MNEMONIC_PATH).key)


def _password(target: Path) -> str:
    given = os.environ.get(PASSWORD)
    if given is None:
        password = ask_password(f"New password for {target}", confirm=True)
    else:
        password = given.strip()
    if not password:
        raise Failure("an empty password protects nothing: choose one", USAGE)
    return password


def _write(session: Session, target: Path, make: Callable[[], bytes]) -> None:
    from x402_mask._wallets.local import write_keystore

    try:
        key = make()
    except ValueError as exc:
        raise Failure(str(exc), USAGE) from None
    password = _password(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        address = write_keystore(key, target, password)
    except OSError as exc:
        raise Failure(f"cannot write {target}: {exc.strerror}") from exc
    _made(session, address, target)


def _copy(session: Session, keystore: Path, target: Path) -> None:
    """Copy a keystore as it is, once its password has been seen to open it."""
    source = sources.KeystoreSource(
        where="--keystore",
        path=keystore,
        password_name=PASSWORD,
        password=os.environ.get(PASSWORD),
    )
    given = None if source.password is not None else ask_password(f"Password of {keystore}")
    try:
        address = source.open(given).address
    except ValueError as exc:
        raise Failure(str(exc), USAGE) from None
    try:
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(keystore.read_bytes())
            file.flush()
            os.fsync(file.fileno())
    except OSError as exc:
        raise Failure(f"cannot write {target}: {exc.strerror}") from exc
    _made(session, address, target)


def _made(session: Session, address: str, target: Path) -> None:
    told: dict[str, Any] = {"address": address, "keystore": str(target)}
    assets = needed(session)
    if session.as_json:
        fund = [{"network": a.network, "asset": a.address, "name": a.name} for a in assets]
        put({**told, "fund": fund})
        return
    _tell(session, told, "wallet")
    found = target == default_keystore()
    say("x402-mask finds it there; Python code and agents do with:" if found else "use it with:")
    say(f"export X402_MASK_KEYSTORE={shlex.quote(str(target.absolute()))}")
    say(what_to_fund(assets))
    say(f"keep {target.name} and its password: both are needed")
