"""Whether a ledger still has the rows that it is known to have had.

An older copy put back, a log file deleted after a kill, another file at the same path: each would
give caps room that was used up.  What is known comes from the head file and from what this very
object saw; an owner may accept a loss (``_ledger.restore``), for all hosts and processes.
"""

from __future__ import annotations

import logging
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from x402_mask._ledger import sums as _sums
from x402_mask._ledger.damage import damage_said
from x402_mask._ledger.head import HeadFile, Mark
from x402_mask._ledger.schema import meta
from x402_mask._wire import strict_json
from x402_mask.errors import LedgerError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from x402_mask._ledger.head import Head
    from x402_mask._ledger.key import LedgerKey
    from x402_mask._ledger.records import Db

log = logging.getLogger("x402_mask")

_DIGITS: Final = 19
"""More than any number has that the ledger wrote."""

_ADVICE: Final = (
    "Nothing is paid from it. Put the newest copy back, or after a restore run"
    " `x402-mask ledger accept`"
)


class Loss(NamedTuple):
    """Rows that were there and are not: ``known`` is the last of them.

    ``here`` is the last row that is there; ``another``: it is one of another ledger.
    """

    known: Mark
    here: Mark
    another: bool = False

    @property
    def missing(self) -> int:
        """How many rows are missing, at least."""
        return self.known.seq if self.another else max(1, self.known.seq - self.here.seq)

    def said(self, name: str) -> str:
        """The loss in words, about the ledger called *name*."""
        if self.another:
            return f"{name} is another ledger than the one that was used here before"
        if self.known.seq > self.here.seq:
            are = "row is" if self.missing == 1 else "rows are"
            return f"{name} is older than itself: {self.missing} {are} missing from its history"
        return f"{name} is an older copy that went on to be used: row {self.known.seq} is another"


class Memory(NamedTuple):
    """The last row that this object saw, and what the head file says."""

    known: Mark | None
    head: Head | None


# How it is told.  A mark is the number of a row and its keyed hash.  A database *has* a mark if its
# row of that number has that hash; as rows are chained, it then has all rows before.  Three marks
# are known, and tell different things if the database does not have them:
#
#   mark           kept by      was it synced?  so, if it is missing,
#   known          this object  perhaps         the file under a running process is an older copy
#   head.durable   the head     yes             it is an older copy, or another: no power cut was it
#   head.last      the head     perhaps         perhaps that was a power cut
#
#   missing                            the ledger
#   none                               goes on
#   only head.last                     goes on, with a warning, and the head forgets it: such a row
#                                      freed, settled or only reserved, as one that lets money move
#                                      is synced before it does
#   known or head.durable              is refused until the owner accepts the loss
#   the same, and accepted             goes on; if it was head.durable, the head begins anew
#
# Marks are read before the database is (remember, then judge): rows come all the time, and one that
# came in between is no contradiction, while a mark that is newer than what was read would be one.
# As a file can be replaced while it is open, the first row of each transaction asks again, which is
# nearly always a comparison in memory (goes_on).
#
# An acceptance is a row of history itself, so that every process and host learns of it.  Its number
# is the *era* of the marks after it, and it excuses only marks of eras before it: a second loss has
# to be accepted again.


class Past:
    """What one ledger object knows of its ledger's past, and holds against what it opens."""

    def __init__(self, head: HeadFile) -> None:
        self.head = head
        self.ledger = ""
        self.era = 0
        self.loss: Loss | None = None
        self.wrong: str | None = None
        """What is wrong with the counters, found when the ledger was opened."""
        self.key: LedgerKey | None = None
        """The key of what is open: whoever opens it says so before it is judged."""
        self._known: Mark | None = None
        self._synced: Mark | None = None
        """The last durable row of the head that was found to be one before :attr:`_known`."""
        self._lenience = _Lenience()

    @property
    def lenient(self) -> bool:
        """Whether this thread reads or accepts what is lost, rather than paying."""
        return self._lenience.depth > 0

    @contextmanager
    def leniently(self) -> Iterator[None]:
        """In this thread, open the ledger whatever it has lost: to audit it, or to accept it."""
        self._lenience.depth += 1
        try:
            yield
        finally:
            self._lenience.depth -= 1

    def forked(self) -> None:
        """In a child: nothing open is shared with the parent."""
        self.head = HeadFile(self.head.path)

    @property
    def has_rows(self) -> bool:
        """Whether this object has seen rows of history."""
        return self._known is not None and self._known.seq > 0

    def refuse_to_forget(self, name: str) -> None:
        """Only the owner may swap a ledger for an empty one: that is a whole new budget.

        Raises:
            LedgerError: the ledger is known to have had rows.
        """
        head = self.head.read()
        if head is None and not self.has_rows:
            return
        said = f"{name} is empty or gone, but "
        said += "was in use just now" if head is None else f"{self.head.path.name} knows of"
        said += "" if head is None else f" {head.last.seq} entries"
        raise LedgerError(
            f"{said}: restore it from a backup, then run `x402-mask ledger accept`. To begin again"
            f" with every cap unused, remove {self.head.path.name} too"
        )

    def remember(self) -> Memory:
        """What is known now: to be asked before a transaction begins, as rows come all the time.

        Raises:
            LedgerError: the head file cannot be read.
        """
        return Memory(self._known, self.head.read())

    def judge(self, db: Db, memory: Memory, name: str) -> None:
        """Compare what was opened with what was known before.

        Raises:
            LedgerError: it is older, or another, and nobody accepted that.
        """
        known, head = memory
        here = last_row(db)
        durable = None if head is None else head.durable
        lost = [m for m in (known, durable) if m is not None and not _has(db, m)]
        pardoned = [m for m in lost if self._is_accepted(db, here, m)]
        self.loss = None
        if len(pardoned) < len(lost):
            self._lost(max([*lost, *([] if head is None else [head.last])]), here, name)
            return
        if durable in pardoned:
            self.head.write(_accepting(db, here), durable=True, anew=True)
        elif head is not None and not _has(db, head.last):
            self._cut(head.last, here, name)
        self.ledger, self.era = here.ledger, here.era
        if known is None or known in pardoned or here.seq > known.seq:
            self._known = here

    def _lost(self, known: Mark, here: Mark, name: str) -> None:
        another = bool(known.ledger) and known.ledger != here.ledger
        self.loss = Loss(known, here, another)
        self.ledger, self.era = here.ledger, here.era
        if not self.lenient:
            raise LedgerError(f"{self.loss.said(name)}. {_ADVICE}")

    def _is_accepted(self, db: Db, here: Mark, mark: Mark) -> bool:
        """Whether the owner accepted that the row of *mark* is lost; not a row written later."""
        assert self.key is not None
        with damage_said:
            return any(
                lost["ledger"] == mark.ledger
                and mark.seq <= lost["seq"]
                and (mark.ledger != here.ledger or mark.era < lost["before"])
                for lost in accepted_losses(db, here.era, self.key)
            )

    def _cut(self, last: Mark, here: Mark, name: str) -> None:
        """Rows that were not synced are gone: a power cut may do so, and it frees no money."""
        log.warning(
            "%s has lost its last rows, up to row %d, which were not yet synced to the disk, as by"
            " a power cut; what they freed or settled counts again",
            name,
            last.seq,
        )
        self.head.lose(here.seq)

    def audited(self, db: Db, key: LedgerKey) -> bool:
        """Whether the counters are as they were written, and so many that newer ones will do.

        Raises:
            LedgerError: they are not.
        """
        self.wrong = None
        try:
            with damage_said:
                return _sums.check(db, key)
        except LedgerError as exc:
            self.wrong = str(exc)
            if not self.lenient:
                raise
        return False

    @property
    def unfit(self) -> bool:
        """Whether nobody may pay from what was opened: whoever reads it was let in."""
        return self.loss is not None or self.wrong is not None

    def goes_on(self, db: Db, seq: int, mac: bytes, name: str) -> None:
        """The open transaction is about to append the first row after this one, the last.

        An older copy may have been written over the file, or the log, that is open, which no look
        at their names shows.  What was synced by whoever else keeps the head is asked for, too.

        Raises:
            LedgerError: rows that were there are not, and nobody accepted that.
        """
        if self.lenient or self.head.pending is not None:
            return
        known, durable = self._known, self.head.durable()
        if known is not None and (known.seq, known.mac) == (seq, mac) and durable == self._synced:
            return  # as nearly always: the chain binds the rows before
        here: Mark | None = None
        for mark in {known, durable} - {None}:
            assert mark is not None
            there = mark.mac == mac if mark.seq == seq else mark.seq < seq and _has(db, mark)
            if there or mark.seq == 0:
                continue
            here = last_row(db)
            if not self._is_accepted(db, here, mark):
                self._lost(mark, here, name)
        if here is not None:  # accepted meanwhile, by another process
            self.ledger, self.era = here.ledger, here.era
        else:
            self._synced = durable

    def moved(self, seq: int, mac: bytes) -> None:
        """A row was appended in the open transaction."""
        self.head.moved(seq, mac)

    def committed(self, *, durable: bool) -> None:
        """The open transaction was committed, and synced if *durable*."""
        pending = self.head.pending
        if pending is None:
            return
        self.head.forget()
        mark = Mark(*pending, self.ledger, self.era)
        self.head.write(mark, durable=durable)
        self._known = mark
        if durable:
            self._synced = mark

    def accepted(self, mark: Mark) -> None:
        """The owner accepted the loss by the row *mark*, which was committed and synced."""
        self.head.write(mark, durable=True, anew=True)
        self._known, self.loss, self.ledger, self.era = mark, None, mark.ledger, mark.era
        self.wrong = None


class _Lenience(threading.local):
    depth = 0


def accepted_losses(db: Db, era: int, key: LedgerKey) -> list[dict[str, Any]]:
    """What the owner has accepted up to the row *era*: the last row that was lost each time.

    ``before`` is the row of the acceptance: what was written after it is no part of the loss.  Only
    a row that was chained with *key* counts: whoever edits another into one accepts nothing.
    """
    sql = "SELECT seq, at, payment, kind, data, mac, sums FROM history WHERE seq IN (?, ?)"
    rows = {row[0]: row[1:] for row in db.all(sql, era - 1, era)}
    if era not in rows or rows[era][2] != "accepted" or not _sums.is_linked(key, era, rows):
        return []
    return list(strict_json.loads(rows[era][3])["lost"])


def last_row(db: Db) -> Mark:
    """The last row that is there."""
    seq, mac = db.one("SELECT seq, mac FROM history ORDER BY seq DESC LIMIT 1") or (0, b"")
    return Mark(_int(seq), _bytes(mac), meta(db, "id") or "", _int(meta(db, "accepted") or 0))


def _has(db: Db, mark: Mark) -> bool:
    """Whether the row of *mark* is there, as it was; its keyed chain tells it from any other."""
    if mark.seq == 0:
        return True
    found = db.one("SELECT mac FROM history WHERE seq=?", mark.seq)
    return found is not None and _bytes(found[0]) == mark.mac


def _accepting(db: Db, here: Mark) -> Mark:
    """The row by which the owner accepted a loss last; it was synced."""
    found = db.one("SELECT mac FROM history WHERE seq=?", here.era)
    return here if found is None else Mark(here.era, _bytes(found[0]), here.ledger, here.era)


def _int(value: Any) -> int:
    """A number; 0 for what somebody wrote instead of one, which the audit names."""
    text = str(value)
    return int(text) if len(text) < _DIGITS and text.isascii() and text.isdigit() else 0


def _bytes(value: Any) -> bytes:
    return bytes(value) if isinstance(value, (bytes, memoryview)) else b""
