"""The owner's questions and orders: spend, payments, payees, reconcile, pause, resume."""

from __future__ import annotations

import io
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import click

from x402_mask.cli._faults import Failure
from x402_mask.cli._session import Session, common, mistake
from x402_mask.cli._show import caps_table, clean, moment, money, plain, put, say, show, table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from x402_mask._ledger import Ledger
    from x402_mask._models import Payment, Resolved

Form = Literal["csv", "jsonl"]

_STATES: Final = ("reserved", "held", "settled", "released", "void")


def _now_us() -> int:
    return time.time_ns() // 1000


# --- spend ----------------------------------------------------------------------------------------


@click.command()
@common
def spend(session: Session) -> None:
    """Show how far each cap is used: settled, held and left."""
    with session.payer() as payer:
        caps = payer.spend()
        stops = stops_of(payer.ledger)
    if session.as_json:
        put({"caps": caps, **stops})
        return
    show(caps_table(caps))
    for line in stop_lines(stops):
        say(line, style="yellow")


def stops_of(ledger: Ledger) -> dict[str, Any]:
    """What keeps payments from being made on this ledger: a pause, open breakers."""
    from x402_mask._windows import as_datetime

    breakers = ledger.breakers(now_us=_now_us())
    return {
        "paused": ledger.is_paused(),
        "breakers": {origin: as_datetime(until) for origin, until in breakers.items()},
    }


def stop_lines(stops: dict[str, Any]) -> list[str]:
    """The same in words."""
    lines = ["paused: nothing is paid until `x402-mask resume`"] if stops["paused"] else []
    for origin, until in stops["breakers"].items():
        lines.append(f"breaker open: {origin} is not paid until {moment(until)}")
    return lines


# --- payments -------------------------------------------------------------------------------------


@click.command()
@click.option("--state", type=click.Choice(_STATES), help="Only payments in this state.")
@click.option("--service", help="Only payments for this service.")
@click.option("--limit", type=click.IntRange(1, 1_000_000), default=100, show_default=True)
@click.option(
    "--export",
    "form",
    type=click.Choice(["csv", "jsonl"]),
    help="Every payment, the whole history, and whether it is as it was written.",
)
@click.option("--output", type=click.Path(dir_okay=False), metavar="FILE", help="For --export.")
@common
def payments(
    session: Session,
    state: str | None,
    service: str | None,
    limit: int,
    form: Form | None,
    output: str | None,
) -> None:
    """Show the payments on the ledger, newest first, and what each held one waits for."""
    if form is None and output is not None:
        raise click.UsageError("--output goes with --export")
    if form is not None and (state, service) != (None, None):
        raise click.UsageError("--export writes everything: no --state, no --service")
    ledger = session.ledger()
    try:
        if form is not None:
            _export(session, ledger, form, output)
            return
        found = ledger.payments(service=_canonical(session, service), state=state, limit=limit)
    finally:
        ledger.close()
    known = session.settings().values.get("rpc", {})
    waits = [waits_for(payment, known) for payment in found]
    if session.as_json:
        rows = [{**plain(p), "waits_for": w} for p, w in zip(found, waits, strict=True)]
        put({"payments": rows})
        return
    _show_payments(found, waits)


def _canonical(session: Session, service: str | None) -> str | None:
    from x402_mask._services import Services

    if service is None:
        return None
    try:
        return Services(session.settings().values.get("services")).canonical(service)
    except ValueError as exc:
        raise click.BadParameter(str(exc), param_hint="--service") from exc


def _show_payments(found: Sequence[Payment], waits: Sequence[str | None]) -> None:
    rows = [
        (moment(p.at), p.payment_id, p.state, p.service, money(p.usd), p.transaction, w or p.note)
        for p, w in zip(found, waits, strict=True)
    ]
    columns = ("at", "payment", "state", "service", ">usd", "transaction", "waits for / note")
    show(table("payments", columns, [[cell or "" for cell in row] for row in rows]))
    if not found:
        say("no such payments on this ledger")


def waits_for(payment: Payment, rpc: dict[str, Any]) -> str | None:
    """What a payment without an end waits for; ``None`` for the others."""
    if payment.state not in ("reserved", "held"):
        return None
    if payment.state == "reserved" or payment.valid_before is None:
        return payment.note
    if datetime.now(UTC) <= payment.valid_before:
        waits = f"may be collected until {moment(payment.valid_before)}"
        if payment.open:
            waits += "; the same call presents it again"
    elif payment.network in rpc:
        waits = f"expired {moment(payment.valid_before)}; `x402-mask reconcile` asks the chain"
    else:
        waits = (
            f"expired {moment(payment.valid_before)}; only the chain can tell its end: set"
            f" X402_MASK_RPC for {payment.network} and run `x402-mask reconcile`"
        )
    return f"{waits} ({payment.note})" if payment.note else waits


def _export(session: Session, ledger: Ledger, form: Form, output: str | None) -> None:
    """Write the history to a file or to stdout; with ``--json`` only to a file."""
    from x402_mask._audit import export

    if output is None and session.as_json:
        raise click.UsageError("--export with --json needs --output")
    if output is None:
        _export_here(ledger, form)
        return
    try:
        with Path(output).open("w", encoding="utf-8", newline="") as file:
            rows = export(ledger, form, file)
    except OSError as exc:
        raise Failure(f"cannot write {output}: {exc.strerror}") from exc
    if session.as_json:
        put({"output": output, "records": rows})
    else:
        say(f"{rows} records in {output}")


def _export_here(ledger: Ledger, form: Form) -> None:
    """To stdout; what sellers said in it must not act on a terminal."""
    from x402_mask._audit import export

    if not sys.stdout.isatty():
        export(ledger, form, sys.stdout)
        sys.stdout.flush()
        return
    text = io.StringIO()
    export(ledger, form, text)
    click.echo(clean(text.getvalue(), 1 << 30, lines=True), nl=False)


# --- payees ---------------------------------------------------------------------------------------


@click.group(invoke_without_command=True)
@common
@click.pass_context
def payees(ctx: click.Context, session: Session) -> None:
    """Show which addresses were paid for which service; `accept` trusts another one."""
    if ctx.invoked_subcommand is not None:
        return
    ledger = session.ledger()
    try:
        found = ledger.payees()
    finally:
        ledger.close()
    if session.as_json:
        names = ("service", "address", "trusted")
        put({"payees": [dict(zip(names, row, strict=True)) for row in found]})
        return
    rows = [(service, address, "yes" if trusted else "no") for service, address, trusted in found]
    show(table("payees", ("service", "address", "trusted"), rows))


@payees.command()
@click.argument("service")
@click.argument("address")
@common
def accept(session: Session, service: str, address: str) -> None:
    """Trust ADDRESS as a payee of SERVICE, where payees = "pin" refused the change."""
    with session.payer() as payer:
        try:
            payer.accept_payee(service, address)
            name = payer.services.canonical(service)
        except ValueError as exc:
            raise mistake(exc) from exc
    if session.as_json:
        put({"service": name, "address": address.lower(), "trusted": True})
    else:
        say(f"{name}: {address.lower()} is trusted from now on")


# --- reconcile ------------------------------------------------------------------------------------


@click.command()
@click.option(
    "--watch", is_flag=False, flag_value=60.0, default=None, metavar="[SECONDS]",
    type=click.FloatRange(1, 86400), help="Do it again every so many seconds (60), until stopped.",
)  # fmt: skip
@common
def reconcile(session: Session, watch: float | None) -> None:
    """Ask the chain about every payment whose end is not proven."""
    if watch is not None and session.as_json:
        raise click.UsageError("--json prints one document; --watch would never end it")
    with session.payer() as payer:
        if not session.settings().values.get("rpc"):
            say("no rpc is configured (X402_MASK_RPC): the chain cannot be asked", style="yellow")
        while True:
            _show_resolved(session, payer.reconcile())
            if watch is None:
                return
            time.sleep(watch)


def _show_resolved(session: Session, found: Sequence[Resolved]) -> None:
    if session.as_json:
        put({"resolved": found})
        return
    if not found:
        say(f"{moment(datetime.now(UTC))} every payment is resolved")
        return
    columns = ("payment", "state", "transaction", "why")
    rows = [(r.payment_id, r.state, r.transaction or "", r.detail) for r in found]
    show(table(f"reconciled {moment(datetime.now(UTC))}", columns, rows))


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
