"""After a restore: the owner accepts that rows are lost, and says what to count for them."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from x402_mask._ledger import sums
from x402_mask._ledger.damage import whole
from x402_mask._ledger.head import Mark
from x402_mask._ledger.past import accepted_losses, last_row
from x402_mask._ledger.schema import meta, set_meta
from x402_mask._ledger.waiting import WAIT_S
from x402_mask._wire import strict_json

if TYPE_CHECKING:
    from collections.abc import Mapping

    from x402_mask._ledger.ledger import Ledger
    from x402_mask._ledger.past import Loss, Past
    from x402_mask._ledger.records import Db


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
                sums.set_restores(db, {}, _replayed(db))
                sums.begin_anew(db)
            mark = _accept(ledger, db, found.loss, micro, now_us)
        past.accepted(mark)
    return found


def counted(before: Mapping[int, int | None], at: int, micro: int | None) -> dict[int, int | None]:
    """What counts after an acceptance, where it was *before*: an amount goes for full caps."""
    kept = {t: m for t, m in before.items() if m is not None or micro is None}
    return {**kept, at: micro}


def _accept(ledger: Ledger, db: Db, loss: Loss | None, micro: int | None, now_us: int) -> Mark:
    before = sums.restores(db)
    sums.set_restores(db, before, counted(before, now_us, micro))
    here = last_row(db)
    lost = accepted_losses(db, here.era, ledger._ledger_key())  # noqa: SLF001
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


def _replayed(db: Db) -> dict[int, int | None]:
    """What counts for accepted losses, as the history tells it."""
    found: dict[int, int | None] = {}
    for at, data in db.all("SELECT at, data FROM history WHERE kind='accepted' ORDER BY seq"):
        found = counted(found, whole(at), strict_json.loads(data)["micro"])
    return found


def _standing(db: Db, past: Past) -> Standing:
    headless = meta(db, "headless")
    return Standing(
        loss=past.loss,
        headless=int(headless) if headless else None,
        restores=_stored(db, past),
        wrong=past.wrong,
    )


def _stored(db: Db, past: Past) -> dict[int, int | None]:
    """What counts for accepted losses; where it was changed the history says better."""
    return sums.restores(db) if past.wrong is None else _replayed(db)


def _past(ledger: Ledger) -> Past:
    past = ledger.past
    if past is None:
        raise TypeError("a ledger in memory has no past")
    return past
