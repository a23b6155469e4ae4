"""``ledger``: look after the ledger itself; accept what a restore has lost."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from x402_mask._money import parse_usd
from x402_mask._text.values import moment, money
from x402_mask.cli._faults import FAILED, Failure
from x402_mask.cli._owner import place_of
from x402_mask.cli._session import Session, common, usd_option
from x402_mask.cli._show import count, put, say

if TYPE_CHECKING:
    from decimal import Decimal

    from x402_mask._ledger.restore import Standing


@click.group()
def ledger() -> None:
    """Look after the ledger itself."""


@ledger.command()
@click.option(
    "--spent",
    metavar="USD",
    callback=usd_option,
    help="What may have been spent by the rows that are lost: it counts against every cap from now"
    " on, in place of full caps. Without it every cap is full until its window has passed.",
)
@click.option("--yes", is_flag=True, help="Do not ask.")
@common
def accept(session: Session, spent: Decimal | None, yes: bool) -> None:
    """Accept what a restored ledger has lost, once no newer copy is to be had.

    Until then nothing is paid from a ledger that is older than its head file knows, or another,
    nor from one whose counters were changed: they are then added up anew from its payments.
    """
    from x402_mask._ledger.restore import accept as accept_loss
    from x402_mask._ledger.restore import standing

    opened = session.ledger()
    try:
        place, found = place_of(opened), standing(opened)
        told = _told(place, found)
        needed = bool(told) or spent is not None
        if needed and not yes:
            _ask(told, spent)
        if needed:
            micro = None if spent is None else parse_usd(spent)
            accept_loss(opened, micro, now_us=time.time_ns() // 1000)
    finally:
        opened.close()
    if session.as_json:
        put(_document(place, found, spent, accepted=needed))
        return
    for line in [*told, _ending(spent, accepted=needed)]:
        say(line)


def _told(place: str, found: Standing) -> list[str]:
    """What there is to accept."""
    from x402_mask._policy.caps import as_datetime

    lines = [] if found.wrong is None else [f"{place}: {found.wrong}"]
    if found.loss is not None:
        lines.append(f"{found.loss.said(place)} ({count(found.loss.missing, 'row')} missing)")
    if found.headless is not None:
        lines.append(
            f"the head file of {place} was made anew at {moment(as_datetime(found.headless))}:"
            " whether rows were lost before, nobody can say"
        )
    return lines


def _ask(told: list[str], spent: Decimal | None) -> None:
    for line in told:
        say(line, style="yellow")
    what = (
        "count every cap as full until its window has passed (--spent USD says how much instead)"
        if spent is None
        else f"count {money(spent)} against every cap from now on"
    )
    if not click.confirm(f"Go on with this ledger, and {what}?", err=True):
        raise Failure("not accepted: nothing was changed", FAILED)


def _ending(spent: Decimal | None, *, accepted: bool) -> str:
    if not accepted:
        return "nothing is known to be missing: there is nothing to accept"
    if spent is not None:
        return f"accepted: {money(spent)} counts against every cap from now on"
    return (
        "accepted: every cap is full until its window has passed; one per total stays full until"
        " `x402-mask ledger accept --spent USD` says how much"
    )


def _document(
    place: str, found: Standing, spent: Decimal | None, *, accepted: bool
) -> dict[str, Any]:
    from x402_mask._policy.caps import as_datetime

    return {
        "ledger": place,
        "accepted": accepted,
        "missing": 0 if found.loss is None else found.loss.missing,
        "another": found.loss is not None and found.loss.another,
        "wrong": found.wrong,
        "head_made": None if found.headless is None else as_datetime(found.headless),
        "spent": spent,
    }
