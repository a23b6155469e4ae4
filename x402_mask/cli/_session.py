"""What the commands share: options, settings, the wallet and the payer."""

from __future__ import annotations

import functools
import os
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

import click

from x402_mask._settings import sources
from x402_mask.cli._faults import USAGE, Failure, Money

if TYPE_CHECKING:
    from collections.abc import Callable
    from decimal import Decimal
    from pathlib import Path

    from x402_mask._ledger.ledger import Ledger
    from x402_mask._payer import Payer
    from x402_mask._settings.sources import Configuration
    from x402_mask._wallets.local import Wallet

PASSWORD: Final = "X402_MASK_KEYSTORE_PASSWORD"  # noqa: S105  # the name of a variable


def default_keystore() -> Path:
    """Where ``wallet new`` puts a keystore, and where the commands look for one."""
    from platformdirs import user_data_path

    return user_data_path("x402-mask", appauthor=False).absolute() / "keystore.json"


@dataclass(slots=True)
class Session:
    """One run of the command line."""

    as_json: bool = False
    debug: bool = False
    config: str | None = None
    money: Money = field(default_factory=Money)
    _settings: Configuration | None = field(default=None, repr=False)

    def settings(self) -> Configuration:
        """The owner's settings; the keystore in its usual place serves where none is named."""
        if self._settings is None:
            environ = dict(os.environ)
            try:
                settings = sources.read(environ, config=self.config)
            except OSError as exc:
                message = f"--config {self.config}: {exc.strerror}"
                raise Failure(message, USAGE, code="config") from exc
            except ValueError as exc:
                raise mistake(exc) from exc
            self._settings = _with_default_wallet(settings, environ)
        return self._settings

    def ledger(self) -> Ledger:
        """The ledger alone: for what needs no wallet, no caps and no origins."""
        try:
            return self.settings().open_ledger()
        except ValueError as exc:
            raise mistake(exc) from exc

    def payer(self, *, signs: bool = False, **more: Any) -> Payer:
        """The configured payer.  Unless it *signs*, no keystore is opened and no password asked."""
        from x402_mask._payer import Payer

        settings = self.settings()
        try:
            settings.require()
            wallet = self.wallet() if signs else watched(settings)
            arguments = settings.arguments(given=("wallet",))
            more.setdefault("on_event", self.money.watch)
            # the command line reads refusals as errors, whatever programs were told to do
            return Payer(wallet, **{**arguments, "on_refusal": "raise", **more})
        except (ValueError, TypeError) as exc:
            raise mistake(exc) from exc

    def wallet(self) -> Wallet | None:
        """The wallet, opened; asks for the password where a person can answer."""
        source = self.settings().wallet
        if source is None:
            return None
        try:
            if not isinstance(source, sources.KeystoreSource):
                return source.open()
            asks = source.password is None and source.is_there
            return source.open(ask_password(f"Password of {source.path}") if asks else None)
        except ValueError as exc:
            raise mistake(exc) from exc

    def origin(self, base_url: str | None) -> str:
        """The configured origin that *base_url* names, or the first http(s) one of them.

        Raises:
            Failure: there is none, or none is configured.
            OriginRefused: *base_url* is not configured; nothing is to be sent there.
        """
        from x402_mask._services import origin_of
        from x402_mask.errors import OriginRefused

        wanted = None if base_url is None else _typed_origin(base_url)
        self._require()
        listed = [origin_of(origin) for origin in self.settings().values["origins"]]
        if wanted is None:
            found = [origin for origin in listed if not origin.startswith("mcp:")]
            if not found:
                raise Failure("no http(s) origin is configured: set X402_MASK_ORIGINS", USAGE)
            return found[0]
        if wanted not in listed:
            raise OriginRefused(
                f"{wanted} is not among the configured origins (X402_MASK_ORIGINS):"
                " nothing was sent there"
            )
        return wanted

    def _require(self) -> None:
        try:
            self.settings().require()
        except ValueError as exc:
            raise mistake(exc) from exc


def _typed_origin(text: str) -> str:
    from x402_mask._services import origin_of

    try:
        origin = origin_of(text)
    except ValueError as exc:
        raise click.BadParameter(str(exc), param_hint="--base-url") from exc
    if text.rstrip("/").lower() != origin or origin.startswith("mcp:"):
        raise click.BadParameter(
            f"an origin is scheme://host[:port], nothing more: {text!r}", param_hint="--base-url"
        )
    return origin


def mistake(exc: Exception) -> Failure:
    """A mistake in the settings."""
    text = str(exc)
    if isinstance(exc, OSError) and exc.filename is not None:
        text = f"{exc.filename}: {exc.strerror}"
    return Failure(text, USAGE, code="config")


def _with_default_wallet(settings: Configuration, environ: dict[str, str]) -> Configuration:
    from dataclasses import replace

    path = default_keystore()
    if settings.wallet is not None or not path.is_file():
        return settings
    source = sources.KeystoreSource(
        where="the default keystore",
        path=path,
        password_name=PASSWORD,
        password=environ.get(PASSWORD),
    )
    return replace(settings, wallet=source)


class _Watched:
    """The address of a wallet that stays closed: enough for questions, not for payments."""

    def __init__(self, address: str) -> None:
        self.address = address

    def sign_typed_data(self, domain: object, types: object, message: object) -> bytes:  # noqa: ARG002
        raise RuntimeError("this command does not sign")


def watched(settings: Configuration) -> object | None:
    """The configured wallet's address, without opening it."""
    if settings.wallet is None:
        return None
    address = settings.wallet.claimed_address
    return None if address is None else _Watched(address)


def ask_password(prompt: str, *, confirm: bool = False) -> str:
    """A password from a person.

    Raises:
        Failure: nobody is there to be asked.
    """
    if not sys.stdin.isatty():
        raise Failure(f"{prompt}: nobody can be asked here; set {PASSWORD}", USAGE, code="config")
    answer: str = click.prompt(
        prompt,
        hide_input=True,
        confirmation_prompt=confirm,
        err=True,
        default="",
        show_default=False,
    )
    return answer


# --- options --------------------------------------------------------------------------------------


def _set(name: Literal["as_json", "debug", "config"]) -> Callable[..., None]:
    def callback(ctx: click.Context, _param: click.Parameter, value: Any) -> None:
        if value:
            setattr(ctx.ensure_object(Session), name, value)

    return callback


def common(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options that every command has, and the session as its first argument."""
    return _with_options(function, hides_json=False)


def serving(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same for a server, which prints no document: it refuses ``--json``, and lists it not."""
    return _with_options(function, hides_json=True)


def _with_options(function: Callable[..., Any], *, hides_json: bool) -> Callable[..., Any]:
    @click.pass_obj
    @functools.wraps(function)
    def with_session(session: Session, *args: Any, **kwargs: Any) -> Any:
        return function(session, *args, **kwargs)

    for option in (
        click.option(
            "--debug",
            is_flag=True,
            expose_value=False,
            is_eager=True,
            callback=_set("debug"),
            help="Show the traceback of a failure.",
        ),
        click.option(
            "--config",
            metavar="FILE",
            expose_value=False,
            is_eager=True,
            callback=_set("config"),
            help="A TOML file, instead of X402_MASK_CONFIG.",
        ),
        click.option(
            "--json",
            is_flag=True,
            expose_value=False,
            is_eager=True,
            callback=_set("as_json"),
            hidden=hides_json,
            help="Print one JSON document and nothing else.",
        ),
    ):
        with_session = option(with_session)
    return with_session


def usd_option(_ctx: click.Context, _param: click.Parameter, value: str | None) -> Decimal | None:
    """An amount of USD, exact, of at most six decimals and not below 0."""
    from x402_mask._money import parse_usd, usd

    if value is None:
        return None
    try:
        micro = parse_usd(value.removeprefix("$"))
    except ValueError as exc:
        raise click.BadParameter(str(exc)) from exc
    if micro < 0:
        raise click.BadParameter(f"{value} is below 0")
    return usd(micro)
