"""The owner's questions and orders: spend, payees, reconcile, pause, resume."""

from __future__ import annotations

import textwrap
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from x402_mask._money import usd
from x402_mask._payer import buyer_of
from x402_mask._text.printable import clean
from x402_mask._text.values import moment, money
from x402_mask.agent._stops import stops_of
from x402_mask.cli._faults import DONE, FAILED
from x402_mask.cli._session import Session, common, mistake
from x402_mask.cli._show import (
    Line,
    checksummed,
    console,
    count,
    listing,
    put,
    say,
    short_hash,
    short_id,
    show,
    show_caps,
    show_line,
    table,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from x402_mask._ledger.ledger import Ledger
    from x402_mask._models import Resolved
    from x402_mask._policy.caps import Limit


def _now_us() -> int:
    return time.time_ns() // 1000


# --- spend ----------------------------------------------------------------------------------------


@click.command()
@common
def spend(session: Session) -> None:
    """Show how far each cap is used: settled, held and left."""
    with session.payer() as payer:
        caps = payer.spend()
        stops, place = stops_of(payer.ledger), place_of(payer.ledger)
        full = full_lines(payer.ledger, buyer_of(payer).limits)
    if session.as_json:
        put({"ledger": place, "caps": caps, **stops})
        return
    show_caps(caps)
    for part in textwrap.wrap(f"on the ledger {clean(place, 400)}", console().width):
        show_line(part)
    for line in [*stop_lines(stops), *full]:
        say(line, style="yellow")


def place_of(ledger: Ledger) -> str:
    """Which ledger it is that is spoken of: its file, or a name for its database."""
    return str(getattr(ledger, "path", ledger))


def full_lines(ledger: Ledger, limits: Sequence[Limit]) -> list[str]:
    """Why caps are fuller than the payments on the ledger make them: an accepted loss."""
    from x402_mask._ledger.restore import standing
    from x402_mask._policy.caps import NOTHING, as_datetime

    if ledger.head_file is None:
        return []
    lines = []
    for at, micro in standing(ledger).restores.items():
        if not any(x.restored(NOTHING, {at: micro}, _now_us()).total for x in limits):
            continue
        what = "caps are full" if micro is None else f"{money(usd(micro))} counts against caps"
        until = " until their windows have passed, or `x402-mask ledger accept --spent USD` is said"
        lines.append(
            f"{what} since a loss was accepted at {moment(as_datetime(at))}"
            f"{until if micro is None else ''}"
        )
    return lines


def stop_lines(stops: dict[str, Any]) -> list[str]:
    """The same in words."""
    lines = ["paused: nothing is paid until `x402-mask resume`"] if stops["paused"] else []
    for origin, until in stops["breakers"].items():
        lines.append(f"breaker open: {origin} is not paid until {moment(until)}")
    return lines


# --- payees ---------------------------------------------------------------------------------------


@click.group(invoke_without_command=True)
@common
@click.pass_context
def payees(ctx: click.Context, session: Session) -> None:
    """Show which addresses each origin named for which service; `accept` trusts another one."""
    if ctx.invoked_subcommand is not None:
        return
    ledger = session.ledger()
    try:
        found = [(o, service, checksummed(a), t) for o, service, a, t in ledger.payees()]
    finally:
        ledger.close()
    if session.as_json:
        names = ("origin", "service", "address", "trusted")
        put({"payees": [dict(zip(names, row, strict=True)) for row in found]})
        return
    if not found:
        say("no payee is known on this ledger")
        return
    rows = [(o or "every origin", s, address, "yes" if t else "no") for o, s, address, t in found]
    show(table("payees", ("origin", "service", "address", "trusted"), rows))


@payees.command()
@click.argument("service")
@click.argument("address")
@click.option("--origin", help="Where it is trusted; default: the one that named a new payee.")
@common
def accept(session: Session, service: str, address: str, origin: str | None) -> None:
    """Trust ADDRESS as a payee of SERVICE, where payees = "pin" refused the change."""
    with session.payer() as payer:
        try:
            payer.accept_payee(service, address, origin)
            name = buyer_of(payer).settings.services.canonical(service)
        except ValueError as exc:
            raise mistake(exc) from exc
    address = checksummed(address)
    if session.as_json:
        put({"service": name, "address": address, "trusted": True})
    else:
        say(f"{name}: {address} is trusted from now on")


# --- reconcile ------------------------------------------------------------------------------------


@click.command()
@click.option(
    "--watch",
    is_flag=False,
    flag_value=60.0,
    default=None,
    metavar="[SECONDS]",
    type=click.FloatRange(1, 86400),
    help="Do it again every so many seconds (60), until stopped.",
)
@common
def reconcile(session: Session, watch: float | None) -> int:
    """Ask the chain about every payment whose end is not proven.

    Exits with 1 where it could not be asked about one.
    """
    if watch is not None and session.as_json:
        raise click.UsageError("--json prints one document; --watch would never end it")
    with session.payer() as payer:
        while True:
            unanswered = _show_resolved(session, payer.reconcile())
            if watch is None:
                return FAILED if unanswered else DONE
            time.sleep(watch)


def _show_resolved(session: Session, found: Sequence[Resolved]) -> int:
    """What was found, and about how many payments the chain could not be asked."""
    unanswered = [one.payment_id for one in found if not one.answered]
    if session.as_json:
        put({"resolved": found, "unanswered": unanswered})
    elif found:
        columns = ("state", "payment", "transaction")
        listing(columns, [_resolved_line(one) for one in found], cut=1)
    else:
        say(f"{moment(datetime.now(UTC))} every payment is resolved")
    if unanswered:
        advice = "" if session.settings().values.get("rpc") else " (no rpc: set X402_MASK_RPC)"
        told = f"the chain could not be asked about {count(len(unanswered), 'payment')}{advice}"
        say(f"{moment(datetime.now(UTC))} {told}", style="yellow")
    return len(unanswered)


def _resolved_line(one: Resolved) -> Line:
    transaction = one.transaction or ""
    return Line(
        whole=(one.state, one.payment_id, transaction),
        short=(one.state, short_id(one.payment_id), short_hash(transaction)),
        note=one.detail,
    )


# --- pause ----------------------------------------------------------------------------------------


@click.command()
@common
def pause(session: Session) -> None:
    """Refuse every payment, in every process on this ledger, until `resume`."""
    _set_paused(session, True)


@click.command()
@common
def resume(session: Session) -> None:
    """End a pause."""
    _set_paused(session, False)


def _set_paused(session: Session, paused: bool) -> None:
    ledger = session.ledger()
    try:
        ledger.set_paused(paused, now_us=_now_us())
    finally:
        ledger.close()
    if session.as_json:
        put({"paused": paused})
    else:
        say("paused: nothing is paid until `x402-mask resume`" if paused else "resumed")
