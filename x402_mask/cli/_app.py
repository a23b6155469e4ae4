"""The command group, and the one place where failures become exit codes."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import traceback
from typing import TYPE_CHECKING

import click

from x402_mask._text.printable import clean
from x402_mask.cli._call import call, quote
from x402_mask.cli._completion import completion
from x402_mask.cli._demo import demo
from x402_mask.cli._doctor import doctor
from x402_mask.cli._faults import DONE, FAILED, USAGE, Failure, Money, of_payment_error
from x402_mask.cli._ledger import ledger
from x402_mask.cli._mcp import mcp_server
from x402_mask.cli._owner import pause, payees, reconcile, resume, spend
from x402_mask.cli._payments import payments
from x402_mask.cli._sandbox import sandbox
from x402_mask.cli._session import Session
from x402_mask.cli._show import put, say
from x402_mask.cli._typed import without_secrets
from x402_mask.cli._wallet import wallet
from x402_mask.errors import PaymentError

if TYPE_CHECKING:
    from collections.abc import Sequence

NAME = "x402-mask"


class _Group(click.Group):
    """Commands in the order of the day: try, use, look, stop, check."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(self.commands)


@click.group(
    NAME,
    cls=_Group,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 done, 1 failed and nothing paid, 2 usage, 3 refused and nothing paid,"
    " 4 outcome unknown (money may have moved), 5 paid but the seller failed.",
)
@click.option("--debug", is_flag=True, help="Show the traceback of a failure.")
@click.option("--config", metavar="FILE", help="A TOML file, instead of X402_MASK_CONFIG.")
@click.version_option(package_name="x402-mask", prog_name=NAME)
@click.pass_obj
def app(session: Session, debug: bool, config: str | None) -> None:
    """Pay HTTP 402 answers within the caps you set."""
    session.debug = session.debug or debug
    session.config = session.config or config


for _command in (
    demo,
    call,
    quote,
    wallet,
    spend,
    payments,
    payees,
    reconcile,
    pause,
    resume,
    ledger,
    sandbox,
    mcp_server,
    doctor,
    completion,
):
    app.add_command(_command)


class _Warnings(logging.Handler):
    """The library's warnings on stderr, but for those of money: a command says those itself."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.module != "_journal":
            with contextlib.suppress(OSError):
                sys.stderr.write(self.format(record) + "\n")


_warnings = _Warnings(logging.WARNING)


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code; nothing escapes."""
    session = Session()
    logging.getLogger("x402_mask").addHandler(_warnings)  # once, however often
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="x402_mask.ascii")  # registered by _show
    try:
        code = app.main(list(arguments), NAME, standalone_mode=False, obj=session)
        sys.stdout.flush()
    except BaseException as exc:  # noqa: BLE001  # the last place: each becomes an exit code
        return _ended(exc, session, arguments)
    return code if isinstance(code, int) else DONE


def _ended(exc: BaseException, session: Session, arguments: Sequence[str]) -> int:
    failure = _failure(exc, session.money)
    usage = failure.exit_code == USAGE
    if session.debug or "--debug" in arguments:
        told = "".join(traceback.format_exception(exc))
        sys.stderr.write(without_secrets(told, arguments, usage=usage))
    if isinstance(exc, (BrokenPipeError, SystemExit)):  # rich makes the second of the first
        _forget_stdout()
        return session.money.exit_code()
    failure.args = (without_secrets(str(failure), arguments, usage=usage),)
    as_json = session.as_json or "--json" in arguments
    try:
        _report(failure, exc, as_json=as_json)
        sys.stdout.flush()
    except OSError:  # nobody listens any more; the exit code still tells
        _forget_stdout()
    return failure.exit_code


def _failure(exc: BaseException, money: Money) -> Failure:
    if isinstance(exc, Failure):
        return exc
    if isinstance(exc, click.UsageError):
        return Failure(exc.format_message(), USAGE)
    if isinstance(exc, click.ClickException):
        return _with_money(exc.format_message(), "failed", money)
    if isinstance(exc, (KeyboardInterrupt, click.Abort)):
        return _with_money("interrupted", "interrupted", money)
    if isinstance(exc, PaymentError):
        return of_payment_error(exc, money)
    if isinstance(exc, OSError):
        where = f"{exc.filename}: " if exc.filename is not None else ""
        return _with_money(f"{where}{exc.strerror or exc}", "failed", money)
    what = f"internal error, {type(exc).__name__}: {exc}; please report it, with --debug's output"
    return _with_money(what, "internal", money)


def _with_money(message: str, code: str, money: Money) -> Failure:
    told = {
        "none": "nothing was paid",
        "unknown": f"payment {money.payment_id} was sent and its outcome is not known;"
        " `x402-mask payments` shows its state",
        "settled": f"payment {money.payment_id} was settled",
    }[money.state]
    return Failure(
        f"{message}; {told}",
        money.exit_code(FAILED),
        code=code,
        at_risk=money.state == "unknown",
        payment_id=money.payment_id,
    )


def _report(failure: Failure, exc: BaseException, *, as_json: bool) -> None:
    if as_json:
        put(failure.document)
        return
    if isinstance(exc, click.exceptions.NoArgsIsHelpError):
        click.echo(failure, err=True)
        return
    if isinstance(exc, click.UsageError) and exc.ctx is not None:
        click.echo(exc.ctx.get_usage(), err=True)
    say(f"x402-mask: {clean(failure, 2000)}", style="bold red")


def _forget_stdout() -> None:
    """Keep the interpreter from failing again, on a pipe nobody reads, when it exits."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
