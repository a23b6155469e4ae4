"""After a restore: the owner accepts that rows are lost, and says what to count for them."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from x402_mask import _sums
from x402_mask._book import WAIT_S
from x402_mask._head import Mark
from x402_mask._past import accepted_losses, last_row
from x402_mask._schema import meta, set_meta

if TYPE_CHECKING:
    from collections.abc import Mapping

    from x402_mask._ledger import Ledger
    from x402_mask._past import Loss, Past
    from x402_mask._rows import Db


class Standing(NamedTuple):
    """What an owner should know of the past of a ledger.

    ``loss``: rows that are known to be missing.  ``headless``: when a missing head was last made
    anew, so that nobody can say, if that was not accepted since (microseconds).  ``restores``: what
    counts for accepted losses, by their time: micro-USD, or ``None`` where every cap is full.
    ``wrong``: what is wrong with the counters, which an acceptance adds up anew from the payments
    that are there.
    """

    loss: Loss | None
    headless: int | None
    restores: dict[int, int | None]
    wrong: str | None = None


def standing(ledger: Ledger) -> Standing:
    """What is to be accepted, and what was.

    Raises:
        LedgerError: the ledger cannot be opened, or is gone.
    """
    past = _past(ledger)
    with past.leniently(), ledger._transaction(WAIT_S, write=False) as db:  # noqa: SLF001
        return _standing(db, past)


def accept(ledger: Ledger, micro: int | None, *, now_us: int) -> Standing:
    """Accept what is lost, durably and for every process on the ledger; returns what was.

    Args:
        ledger: one that is kept somewhere.
        micro: micro-USD that may have been spent by the rows that are lost, counted now against
            every cap, in place of caps that were full; ``None``: every cap is full until its window
            has passed, a ``"total"`` until this is said with an amount.
        now_us: the time, microseconds.

    Raises:
        LedgerError: the ledger cannot be opened or written.
    """
    past = _past(ledger)
    with past.leniently():
        with ledger._transaction(WAIT_S, durable=True) as db:  # noqa: SLF001
            found = _standing(db, past)
            if past.wrong is not None:
                _sums.begin_anew(db)
            mark = _accept(ledger, db, found.loss, micro, now_us)
        past.accepted(mark)
    return found


def counted(before: Mapping[int, int | None], at: int, micro: int | None) -> dict[int, int | None]:
    """What counts after an acceptance, where it was *before*: an amount goes for full caps."""
    kept = {t: m for t, m in before.items() if m is not None or micro is None}
    return {**kept, at: micro}


def _accept(ledger: Ledger, db: Db, loss: Loss | None, micro: int | None, now_us: int) -> Mark:
    if micro is not None:
        db.run("DELETE FROM restores WHERE micro IS NULL")
    db.run(
        "INSERT INTO restores (at, micro) VALUES (?, ?) ON CONFLICT (at) DO UPDATE SET micro=?",
        now_us, micro, micro,
    )  # fmt: skip
    here = last_row(db)
    lost = accepted_losses(db, here.era)
    if loss is not None:
        known = loss.known
        lost.append({"ledger": known.ledger, "seq": known.seq, "before": here.seq + 1})
    missing = 0 if loss is None else loss.missing
    ledger._write(  # noqa: SLF001
        db, now_us, None, "accepted", {"missing": missing, "lost": lost, "micro": micro}
    )
    set_meta(db, "headless", "")
    assert ledger.head_file is not None
    assert ledger.head_file.pending is not None
    seq, mac = ledger.head_file.pending
    set_meta(db, "accepted", str(seq))
    return Mark(seq, mac, meta(db, "id") or "", seq)


def _standing(db: Db, past: Past) -> Standing:
    headless = meta(db, "headless")
    return Standing(
        loss=past.loss,
        headless=int(headless) if headless else None,
        restores=dict(db.all("SELECT at, micro FROM restores ORDER BY at")),
        wrong=past.wrong,
    )


def _past(ledger: Ledger) -> Past:
    past = ledger.past
    if past is None:
        raise TypeError("a ledger in memory has no past")
    return past
