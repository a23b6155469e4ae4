"""``doctor``: is everything in place to pay?  Signs nothing and spends nothing."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Final, Literal
from urllib.parse import urlsplit

import click
import httpx

from x402_mask._drive.clients import around
from x402_mask._flow.reasons import network_told
from x402_mask._policy.clocks import SKEW_IGNORED_S, SKEW_MAX_S
from x402_mask._settings import sources
from x402_mask._text.printable import clean
from x402_mask._text.settings import on_command_line
from x402_mask._text.values import moment, money
from x402_mask.agent._stops import stops_of
from x402_mask.cli._answer import bounded, told
from x402_mask.cli._faults import DONE, FAILED, Failure
from x402_mask.cli._funds import all_funds
from x402_mask.cli._owner import full_lines, place_of, stop_lines
from x402_mask.cli._parse import parse
from x402_mask.cli._session import Session, common
from x402_mask.cli._show import count, put, show
from x402_mask.errors import LedgerError, PaymentError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from x402_mask._ledger.ledger import Ledger
    from x402_mask._models import Quote
    from x402_mask._settings.sources import Configuration

_TIMEOUT_S: Final = 5.0
_RPC_BYTES_MAX: Final = 1 << 16
_STYLES: Final = {"ok": "green", "warn": "yellow", "fail": "bold red"}
_SERVICE: Final = "mask-refinement"
_PICTURES: Final = {
    "ImageURL": "https://example.com/photo.png",
    "MaskImageURL": "https://example.com/mask.png",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One line: what was looked at, how it is, and what to do."""

    name: str
    status: Literal["ok", "warn", "fail"]
    detail: str
    advice: str = ""


def _ok(name: str, detail: str) -> Check:
    return Check(name=name, status="ok", detail=detail)


def _warn(name: str, detail: str, advice: str = "") -> Check:
    return Check(name=name, status="warn", detail=detail, advice=advice)


def _fail(name: str, detail: str, advice: str = "") -> Check:
    return Check(name=name, status="fail", detail=detail, advice=advice)


@click.command()
@common
def doctor(session: Session) -> int:
    """Check settings, wallet, ledger, clock, origins and the price, without paying.

    Exits with 1 if something fails.
    """
    checks = []
    for check in _checks(session):
        checks.append(check)
        if not session.as_json:
            _show(check)
    good = all(check.status != "fail" for check in checks)
    if session.as_json:
        put({"ok": good, "checks": checks})
    return DONE if good else FAILED


def _show(check: Check) -> None:
    from rich.text import Text

    line = Text.assemble(
        (f"{check.status:<5}", _STYLES[check.status]),
        f"{clean(check.name, 60):<12} ",
        clean(check.detail, 400),
    )
    if check.advice:
        line.append(f"\n{'':<18} → {clean(check.advice, 400)}")
    show(line)


def _checks(session: Session) -> Iterator[Check]:
    try:
        settings = session.settings()
    except Failure as exc:
        yield _fail("settings", str(exc))
        return
    yield from _settings_checks(settings)
    yield from _wallet_checks(settings)
    yield from _ledger_checks(session)
    yield from _rpc_checks(settings)
    for origin in settings.values.get("origins", []):
        yield from _origin_checks(origin)
    if "origins" in settings.values and "caps" in settings.values:
        yield _price_check(session)
        yield from _balance_checks(session)


# --- settings and wallet --------------------------------------------------------------------------


def _settings_checks(settings: Configuration) -> Iterator[Check]:
    if settings.path is not None:
        yield _ok("settings", f"read from {settings.path} and the environment")
    for name, meant in sources.mistaken(os.environ):
        yield _warn("settings", f"nobody reads {name}", f"did you mean {meant}?")
    caps = settings.values.get("caps")
    if caps is None:
        yield _fail("caps", "none are configured", 'set X402_MASK_CAPS, such as "0.25/call,5/day"')
    else:
        yield _ok("caps", ", ".join(map(str, caps)))
    origins = settings.values.get("origins")
    if origins is None:
        yield _fail("origins", "none are configured", "set X402_MASK_ORIGINS to whom may be paid")
    else:
        yield _ok("origins", ", ".join(origins))


def _wallet_checks(settings: Configuration) -> Iterator[Check]:
    source = settings.wallet
    if source is None:
        yield _warn("wallet", "none is configured", "`x402-mask wallet new` makes one")
        return
    if isinstance(source, sources.KeystoreSource):
        yield from _keystore_checks(source)
        if source.password is None:
            return
    try:
        yield _ok("wallet", f"{source.open().address} from {source.where}")
    except ValueError as exc:
        yield _fail("wallet", str(exc))


def _keystore_checks(source: sources.KeystoreSource) -> Iterator[Check]:
    if not source.is_there:
        if source.password is None:
            yield _fail("wallet", f"{source.where}: {source.not_there}")
        return
    if os.name == "posix" and source.path.stat().st_mode & 0o077:
        yield _warn("wallet", f"others may read {source.path}", f"chmod 600 {source.path}")
    if source.password is None:
        claimed = source.claimed_address or "a keystore that names no address"
        yield _warn(
            "wallet",
            f"{claimed} from {source.path}, not opened",
            f"set {source.password_told} to have it opened here; commands that pay ask for it",
        )


# --- ledger ---------------------------------------------------------------------------------------


def _ledger_checks(session: Session) -> Iterator[Check]:
    try:
        ledger = session.ledger()
    except Failure as exc:
        yield _fail("ledger", str(exc))
        return
    try:
        yield from _ledger_lines(ledger)
        yield from _past_lines(session, ledger)
        yield from _cap_lines(session, ledger)
    except LedgerError as exc:
        yield _fail("ledger", str(exc))
    finally:
        ledger.close()


def _ledger_lines(ledger: Ledger) -> Iterator[Check]:
    ledger.sweep(now_us=time.time_ns() // 1000)  # fails where the ledger cannot be written
    yield _ok("ledger", f"{place_of(ledger)} can be read and written")
    yield _history_check(ledger)
    held = ledger.payments(state="held", limit=1000)
    if held:
        total = money(sum((payment.usd for payment in held), start=held[0].usd * 0))
        are, its = ("is", "its") if len(held) == 1 else ("are", "their")
        yield _warn(
            "ledger",
            f"{count(len(held), 'payment')} ({total}) {are} held: nobody knows {its} end",
            "`x402-mask payments --state held` says what each waits for",
        )
    for line in stop_lines(stops_of(ledger)):
        yield _warn("ledger", line)


def _cap_lines(session: Session, ledger: Ledger) -> Iterator[Check]:
    """Caps that bind nothing, perhaps because their service is spelled wrong."""
    from x402_mask._flow.cap_names import said
    from x402_mask._policy.caps import compile_caps
    from x402_mask._services import Services

    values = session.settings().values
    services = Services(values.get("services"))
    limits = compile_caps(values.get("caps", ()), services.canonical)
    for limit in ledger.unnamed(limits):
        yield _warn(
            "caps",
            said(limit),
            "is it spelled as calls name it? `x402-mask payments` shows the names of what was paid",
        )


def _past_lines(session: Session, ledger: Ledger) -> Iterator[Check]:
    """Whether rows may have been lost, and what counts for those that were."""
    from x402_mask._ledger.restore import standing
    from x402_mask._policy.caps import as_datetime, compile_caps
    from x402_mask._services import Services

    at = standing(ledger).headless
    if at is not None:
        yield _warn(
            "ledger",
            f"its head file was missing and was made anew at {moment(as_datetime(at))}: whether"
            " the last rows were lost then, nobody can say",
            "`x402-mask ledger accept` ends this, and counts what may have been spent",
        )
    values = session.settings().values
    limits = compile_caps(values.get("caps", ()), Services(values.get("services")).canonical)
    for line in full_lines(ledger, limits):
        yield _warn("ledger", line)


def _history_check(ledger: Ledger) -> Check:
    """Whether the ledger still says what was written to it."""
    from x402_mask._ledger.audit import verify

    report = verify(ledger)
    if report.ok:
        unknown = "".join(f"; not known: {clean(what, 160)}" for what in report.unknown[:3])
        told = f"{count(report.rows, 'row')}, and everything is as it was written{unknown}"
        return _ok("history", told)
    told = "; ".join(clean(problem, 120) for problem in report.problems[:3])
    more = f" (and {len(report.problems) - 3} more)" if len(report.problems) > 3 else ""
    return _fail(
        "history",
        f"{told}{more}",
        "somebody or something changed the ledger; `x402-mask payments --export jsonl` ends with"
        " every problem, the chain and a backup tell what is true",
    )


# --- chain ----------------------------------------------------------------------------------------


def _rpc_checks(settings: Configuration) -> Iterator[Check]:
    for network, urls in settings.values.get("rpc", {}).items():
        for url in urls:
            yield _rpc_check(network, url)


def _rpc_check(network: str, url: str) -> Check:
    """Whether an endpoint serves the chain it should; its URL may carry a key and is not shown."""
    host, name = urlsplit(url).hostname, f"rpc {network}"
    asked = {"jsonrpc": "2.0", "id": 1, "method": "eth_chainId", "params": []}
    try:
        with httpx.Client(timeout=_TIMEOUT_S) as client:
            request = client.build_request("POST", url, json=asked)
            response = bounded(client.send(request, stream=True), _RPC_BYTES_MAX)
            found = int(parse(response.content)["result"], 16)
    except httpx.HTTPError as exc:
        return _fail(name, f"{host} cannot be asked: {type(exc).__name__}")
    except (ValueError, KeyError, TypeError, httpx.InvalidURL):
        return _fail(name, f"{host} does not answer as an Ethereum RPC endpoint")
    if f"eip155:{found}" != network:
        return _fail(name, f"{host} serves eip155:{found}", "no payment can be proven there")
    return _ok(name, f"{host} serves it")


def _balance_checks(session: Session) -> Iterator[Check]:
    """What there is to pay with, where an RPC can be asked."""
    try:
        with session.payer() as payer:
            for found in all_funds(payer):
                if found.usd is None:
                    yield _warn("balance", found.line)
                elif found.lacks(None):
                    where = network_told(found.asset.network)
                    yield _warn(
                        "balance",
                        f"{payer.address} has {found.line}",
                        f"send it {found.asset.name} on {where} to pay with",
                    )
                else:
                    yield _ok("balance", f"{payer.address} has {found.line}")
    except Failure as exc:
        yield _fail("balance", str(exc))


# --- origins --------------------------------------------------------------------------------------


def _origin_checks(origin: str) -> Iterator[Check]:
    if not origin.startswith(("http://", "https://")):
        return
    try:
        with httpx.Client(timeout=_TIMEOUT_S, mounts=around([origin])) as client:
            response = client.send(client.build_request("GET", origin), stream=True)
            response.close()
    except httpx.HTTPError as exc:
        what = f"{origin} cannot be reached: {type(exc).__name__}: {exc}"
        yield _fail("origin", what, "check the address, the network and the proxy variables")
        return
    yield _ok("origin", f"{origin} answers (HTTP {response.status_code})")
    yield _clock_check(origin, response.headers.get("date"))


def _clock_check(origin: str, date: str | None) -> Check:
    try:
        skew = parsedate_to_datetime(date or "").timestamp() - time.time()
    except (ValueError, OverflowError):
        return _warn("clock", f"{origin} names no time to compare this clock with")
    if abs(skew) <= SKEW_IGNORED_S:
        return _ok("clock", f"agrees with {origin}")
    seconds = f"{skew:+.0f} s from that of {origin}"
    if abs(skew) <= SKEW_MAX_S:
        return _warn("clock", f"is {seconds}; signatures follow the seller's", "set this clock")
    return _fail("clock", f"is {seconds}; such offers are refused", "set this clock")


def _price_check(session: Session) -> Check:
    """What mask-refinement costs at the first origin; the request is sent without any payment."""
    url = ""
    try:
        origin = session.origin(None)
        url, mounts = f"{origin}/api/tools/{_SERVICE}", around([origin])
        with session.payer() as payer, httpx.Client(timeout=_TIMEOUT_S, mounts=mounts) as client:
            request = client.build_request("POST", url, json=_PICTURES)
            response = bounded(client.send(request, stream=True))
            quote = payer.quote(response)
    except (Failure, PaymentError) as exc:
        return _fail("price", str(exc))
    except httpx.HTTPError as exc:
        return _fail("price", f"{url} cannot be reached: {type(exc).__name__}")
    if quote is None:
        return _warn("price", f"{url} asks for no payment: {told(response)}")
    return _priced(quote)


def _priced(quote: Quote) -> Check:
    price = f"{_SERVICE} costs {money(quote.usd)}" if quote.usd is not None else _SERVICE
    if quote.refusal is not None:
        return _warn("price", f"{price} and would be refused: {on_command_line(quote.refusal)}")
    return _ok("price", f"{price}, paid to {quote.pay_to} on {quote.network}")
