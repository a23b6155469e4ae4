"""``payments``: what is on the ledger, for people and, whole, for programs and auditors."""

from __future__ import annotations

import io
import re
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import click

from x402_mask._text.printable import clean
from x402_mask._text.values import moment, money, plain
from x402_mask.cli._faults import USAGE, Failure
from x402_mask.cli._session import Session, common
from x402_mask.cli._show import Line, count, listing, put, say, short_hash, short_id, when

if TYPE_CHECKING:
    from collections.abc import Sequence

    from x402_mask._ledger.audit import AuditReport
    from x402_mask._ledger.ledger import Ledger
    from x402_mask._models import Payment

Form = Literal["csv", "jsonl"]

_ORDINARY: Final = re.compile(r"HTTP 2[0-9]{2}")
"""The note of a payment that nothing is to be said of."""
_STATES: Final = ("reserved", "held", "settled", "released", "void")


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
    """Show the payments on the ledger, newest first, and what each held one waits for.

    Ids and hashes are shortened to the width of the terminal; --json and --export have them whole.
    """
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
    if not found:
        say("no such payments on this ledger")
        return
    columns = ("at (UTC)", "state", ">usd", "service", "payment", "transaction")
    lines = [_line(payment, w) for payment, w in zip(found, waits, strict=True)]
    listing(columns, lines, cut=columns.index("service"))


def _line(payment: Payment, waits: str | None) -> Line:
    head = (when(payment.at), payment.state, money(payment.usd), payment.service)
    transaction = payment.transaction or ""
    return Line(
        whole=(*head, payment.payment_id, transaction),
        short=(*head, short_id(payment.payment_id), short_hash(transaction)),
        note=waits or ("" if _ORDINARY.fullmatch(payment.note) else payment.note),
    )


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
    """Write the history to a file or to stdout; with ``--json`` only to a file.

    Raises:
        Failure: it was written, and it is not what the ledger once was.
    """
    if output is None and session.as_json:
        raise click.UsageError("--export with --json needs --output")
    if output is None:
        _check(_export_here(ledger, form), {})
        return
    rows, report = _export_to(ledger, form, Path(output).expanduser())
    told = {"output": output, "records": rows}
    _check(report, told)
    if session.as_json:
        put(told)
    else:
        say(f"{count(rows, 'record')} in {output}")


def _export_to(ledger: Ledger, form: Form, output: Path) -> tuple[int, AuditReport]:
    from x402_mask._ledger.audit import export_audited

    try:
        file = output.open("w", encoding="utf-8", newline="")
    except OSError as exc:
        raise Failure(f"cannot write {output}: {exc.strerror}", USAGE) from exc
    try:
        with file:
            return export_audited(ledger, form, file)
    except OSError as exc:
        raise Failure(f"cannot write {output}: {exc.strerror}") from exc


def _export_here(ledger: Ledger, form: Form) -> AuditReport:
    """To stdout; what sellers said in it must not act on a terminal."""
    from x402_mask._ledger.audit import export_audited

    if not sys.stdout.isatty():
        _, report = export_audited(ledger, form, sys.stdout)
        sys.stdout.flush()
        return report
    text = io.StringIO()
    _, report = export_audited(ledger, form, text)
    click.echo(clean(text.getvalue(), 1 << 30, lines=True), nl=False)
    return report


def _check(report: AuditReport, told: dict[str, Any]) -> None:
    """An export that fails its audit must not look like one that passes."""
    if report.ok:
        return
    where = f"{count(told['records'], 'record')} in {told['output']}, but " if told else ""
    found = "; ".join(clean(problem, 160) for problem in report.problems[:3])
    raise Failure(
        f"{where}THE AUDIT FAILED: somebody or something changed this ledger"
        f" ({count(len(report.problems), 'problem')}): {found}",
        code="audit",
        more={**told, "problems": report.problems},
    )
