"""``call`` and ``quote``: one service of a marketplace, paid or only asked for its price."""

from __future__ import annotations

import contextlib
import functools
import json
import re
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import click

from x402_mask._system.owner_text import secret_like
from x402_mask._text.printable import clean
from x402_mask._text.settings import on_command_line
from x402_mask._text.values import money, plain
from x402_mask._wire.unpacking import ACCEPTED
from x402_mask.cli import _answer
from x402_mask.cli._faults import (
    DONE,
    FAILED,
    REFUSED,
    Failure,
    of_lost_answer,
    quote_document,
)
from x402_mask.cli._funds import funds
from x402_mask.cli._paid import Paid, payment_of
from x402_mask.cli._parse import parse
from x402_mask.cli._session import Session, common, usd_option
from x402_mask.cli._show import facts, put, say, show, show_caps
from x402_mask.errors import OriginRefused, PaymentRefused

if TYPE_CHECKING:
    from collections.abc import Callable
    from decimal import Decimal

    import httpx

    from x402_mask._models import Quote
    from x402_mask._payer import Payer

_HEAD: Final = 2
"""Time-outs until the answer begins."""
_WHOLE: Final = 10
"""Time-outs for all of it."""
_CATALOG_S: Final = 3.0
"""Longest wait for the catalog, which a call does not need."""
_SERVICE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


# --- what is asked --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One call as the user typed it."""

    service: str
    method: str | None
    fields: tuple[tuple[str, Any], ...]
    base_url: str | None
    timeout: float

    def parts(self, session: Session) -> dict[str, Any]:
        """Method, URL and content.  Fields are a JSON body, or the query of a GET."""
        url = f"{session.origin(self.base_url)}/api/tools/{self.service}"
        if self.method == "GET":
            query = [(name, _query_text(name, value)) for name, value in self.fields]
            return {"method": "GET", "url": url, "params": query or None}
        return {"method": self.method or "POST", "url": url, "json": dict(self.fields)}

    @property
    def bounds(self) -> dict[str, Any]:
        """For the client: five seconds to connect, as long as asked to read, and no endless heads.

        Only codings are offered that are undone here, in bounds.
        """
        import httpx

        return {
            "timeout": httpx.Timeout(min(5.0, self.timeout), read=self.timeout),
            "total_timeout": self.timeout * _HEAD,
            "headers": {"accept-encoding": ACCEPTED},
        }


def _query_text(name: str, value: Any) -> str:
    if isinstance(value, (dict, list)):
        raise click.BadParameter(f"{name}: a query holds text, numbers, true, false and null")
    return value if isinstance(value, str) else json.dumps(value)


def _service(_ctx: click.Context, _param: click.Parameter, value: str) -> str:
    if secret_like(value):  # nothing of it is sent anywhere
        raise click.BadParameter("that is a private key or its words, not a service id")
    if not _SERVICE.fullmatch(value):
        hint = "; --base-url names the seller" if "/" in value else ""
        raise click.BadParameter(f"{clean(value, 60)!r} is not a service id{hint}")
    return value


def _fields(
    _ctx: click.Context, _param: click.Parameter, pairs: tuple[str, ...]
) -> tuple[tuple[str, Any], ...]:
    found: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        raw = name.endswith(":")
        name = name.removesuffix(":")
        if not equals or not name:
            raise click.BadParameter(f"{clean(pair, 60)!r} is not KEY=VALUE or KEY:=JSON")
        if name in found:
            raise click.BadParameter(f"{clean(name, 60)} is given twice")
        found[name] = _json_value(name, text) if raw else text
    return tuple(found.items())


def _json_value(name: str, text: str) -> Any:
    try:
        return parse(text)
    except ValueError:
        raise click.BadParameter(f"{clean(name, 60)}:= is not followed by JSON") from None


def _asking(function: Callable[..., Any]) -> Callable[..., Any]:
    """The arguments of both commands, given to them as one :class:`Asked`."""

    @functools.wraps(function)
    def command(session: Session, **options: Any) -> Any:
        asked = Asked(
            service=options.pop("service"),
            method=options.pop("method"),
            fields=options.pop("pairs"),
            base_url=options.pop("base_url"),
            timeout=options.pop("timeout"),
        )
        return function(session, asked, **options)

    wrapped: Callable[..., Any] = common(command)
    for option in (
        click.option(
            "--timeout",
            type=click.FloatRange(0, 3600, min_open=True),
            default=60.0,
            show_default=True,
            metavar="SECONDS",
            help="Longest silence of the seller; twice that until its answer begins, and ten times"
            " that for all of it.",
        ),
        click.option(
            "--method",
            type=click.Choice(["GET", "POST"], case_sensitive=False),
            help="GET sends the fields as a query.  [default: POST; GET where the seller says so]",
        ),
        click.option(
            "--base-url", metavar="ORIGIN", help="Another configured origin than the first."
        ),
        click.argument("pairs", metavar="[KEY=VALUE | KEY:=JSON]...", nargs=-1, callback=_fields),
        click.argument("service", callback=_service),
    ):
        wrapped = option(wrapped)
    return wrapped


# --- call -----------------------------------------------------------------------------------------


@click.command(no_args_is_help=True)
@click.option(
    "--max-price", metavar="USD", callback=usd_option, help="Refuse to pay more for this call."
)
@click.option(
    "--output", type=click.Path(dir_okay=False), metavar="FILE", help="Write the answer there."
)
@click.option(
    "--no-check",
    is_flag=True,
    help="Do not read the seller's catalog first (one GET more): what it says of the service's"
    " fields, price and method is then not known.",
)
@_asking
def call(
    session: Session, asked: Asked, max_price: Decimal | None, output: str | None, no_check: bool
) -> int:
    """Call a service of the first configured origin, and pay for it within the caps.

    KEY=VALUE sends text, KEY:=JSON any JSON value. The answer goes to stdout, the receipt to
    stderr. A command that was not answered presents the same payment again when it is repeated.

    The seller's catalog is read first, if it can be: fields that the service does not take, and
    a price above the catalog's, are then refused before anything is paid.
    """
    from x402_mask.httpx import Client, receipt_of

    asked.parts(session)  # mistakes are said before a wallet is opened
    until = time.monotonic() + asked.timeout * _WHOLE
    approve = None if max_price is None else _at_most(max_price)
    with contextlib.ExitStack() as stack:
        target = stack.enter_context(_answer.Target.open(output))
        payer = stack.enter_context(session.payer(signs=True, approve=approve))
        client = stack.enter_context(Client(payer, **asked.bounds))
        asked = asked if no_check else _looked_up(session, payer, asked)
        response = _sent(session, client, asked, payer)
        stack.callback(response.close)
        paid = Paid.of(payer, receipt_of(response))
        return _answer.Answer(session, response, paid, asked.service, until).deliver(target)


def _looked_up(session: Session, payer: Payer, asked: Asked) -> Asked:
    """What is asked, by the method of the catalog; its price and schema are the payer's to keep.

    A catalog that cannot be read is no reason not to call.
    """
    import httpx

    from x402_mask.httpx import Client
    from x402_mask.marketplace.client import Marketplace
    from x402_mask.marketplace.documents import CatalogError

    origin = session.origin(asked.base_url)
    patience = min(_CATALOG_S, asked.timeout)
    try:
        with Client(payer, timeout=patience, total_timeout=patience) as client:
            market = Marketplace(origin, client, payer=payer, seconds=patience)
            found = market.glance(asked.service)
    except (httpx.HTTPError, CatalogError, OriginRefused):
        return asked
    return replace(asked, method="GET") if (asked.method, found.method) == (None, "GET") else asked


def _sent(
    session: Session, client: httpx.Client, asked: Asked, payer: Payer | None = None
) -> httpx.Response:
    """The answer; where no method was named, GET is tried after a 405 that no money was paid for.

    A held token moves no money, and its call was given back with the 405.
    """
    from x402_mask.httpx import receipt_of

    request = client.build_request(
        **asked.parts(session), extensions={"x402_mask": {"pay": payer is not None}}
    )
    response = _sent_once(session, client, request, payer)
    receipt = receipt_of(response)
    unpaid = receipt is None or receipt.route == "held-token"
    if asked.method is None and response.status_code == 405 and unpaid:
        allowed = response.headers.get("allow", "")
        if "GET" in {name.strip().upper() for name in allowed.split(",")}:
            response.close()
            return _sent(session, client, replace(asked, method="GET"), payer)
    return response


def _sent_once(
    session: Session, client: httpx.Client, request: httpx.Request, payer: Payer | None
) -> httpx.Response:
    import httpx

    try:
        return client.send(request, stream=True)
    except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as exc:  # the last: odd redirects
        if payer is not None:
            session.money.look(payment_of(payer, session.money.payment_id))
        raise of_lost_answer(exc, str(request.url), session.money) from exc


def _at_most(limit: Decimal) -> Callable[[Quote], bool]:
    def approve(quote: Quote) -> bool:
        if quote.usd is not None and quote.usd <= limit:
            return True
        raise PaymentRefused(  # a limit of this command's, and no word of the owner's to keep
            f"{quote.service} costs {money(quote.usd)}, which is above --max-price {limit}",
            reason="approval",
            quote=quote,
        )

    return approve


# --- quote ----------------------------------------------------------------------------------------


@click.command(no_args_is_help=True)
@_asking
def quote(session: Session, asked: Asked) -> int:
    """Say what a call would cost and whether the caps allow it. Signs and spends nothing.

    Exits with 3 where the call would be refused.
    """
    from x402_mask.httpx import Client

    asked.parts(session)
    with session.payer() as payer:
        with Client(payer, **asked.bounds) as client:
            response = _answer.bounded(_sent(session, client, asked))
        found = payer.quote(response)
        asset = None if found is None else found.asset
        balance = None if asset is None else funds(payer, asset)
    if found is None:
        return _no_price(session, response)
    if session.as_json:
        known = None if balance is None else {"amount": balance.amount, "usd": plain(balance.usd)}
        put({**quote_document(found), "balance": known})
    else:
        show(quote_table(found))
        if balance is not None:
            poor = balance.lacks(found.usd)
            short = f", too little: {found.payer} needs more" if poor else ""
            say(f"the wallet has {balance.line}{short}", style="red" if poor else "")
        if found.caps:
            show_caps(found.caps, "caps that apply, before this payment")
        if found.refusal is not None:
            why = clean(on_command_line(found.refusal))
            say(f"would be refused ({found.refusal.reason}): {why}", style="red")
    return DONE if found.allowed else REFUSED


def _no_price(session: Session, response: httpx.Response) -> int:
    if not response.is_success:
        raise Failure(
            f"{clean(response.url)} asks for no payment: {_answer.told(response)}",
            FAILED,
            code="seller",
            more={"status": response.status_code},
        )
    if session.as_json:
        put({"status": response.status_code, "usd": "0.00", "allowed": True})
    else:
        say(f"{clean(response.url)} asks for no payment (HTTP {response.status_code})")
    return DONE


def quote_table(quote: Quote) -> Any:
    """A quote for people."""
    asset = quote.asset
    return facts(
        "quote",
        {
            "service": quote.service,
            "call": f"{quote.method} {quote.url}",
            "price": None if quote.usd is None else money(quote.usd),
            "route": quote.route,
            "amount": None if quote.amount is None else f"{quote.amount} units",
            "asset": None if asset is None else f"{asset.name} {asset.address}",
            "network": quote.network,
            "payee": quote.pay_to,
            "payer": quote.payer or "no wallet",
            "not taken": "; ".join(quote.skipped) or None,
            "allowed": "yes" if quote.allowed else "no",
        },
    )
