"""Random lives of a ledger, beside a model that is nothing but a list of payments.

The model knows the contract, not the code: a window is a span of time between two datetimes, and a
rolling one may forget up to a hundredth late.
"""

from __future__ import annotations

import tempfile
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.ledger.conftest import KEY, clear
from tests.ledger.kit import DAY, DEAD, HOUR, NOW, SECOND, end, limits, proof, want
from x402_mask import Cap, LedgerError, MemoryLedger, PaymentRefused, PostgresLedger, SQLiteLedger
from x402_mask._ledger import sqlite_wal
from x402_mask._ledger.audit import verify
from x402_mask._ledger.ledger import Ledger
from x402_mask._ledger.records import Reserved

SERVICES = ("a", "b")
PERS: tuple[Any, ...] = (
    "hour",
    "day",
    "month",
    "total",
    "call",
    timedelta(minutes=10),
    timedelta(days=2),
)
COUNTED = ("reserved", "held", "settled")
JUMPS = (0, 1, SECOND, 17 * 60 * SECOND, HOUR, DAY, 20 * DAY, -SECOND, -HOUR, -DAY)

caps = st.builds(
    Cap,
    st.integers(1, 40).map(lambda n: f"0.0{n:02d}"),
    per=st.sampled_from(PERS),
    service=st.sampled_from(("*", *SERVICES)),
)


@dataclass
class Entry:
    """One payment, as the model knows it."""

    id: str
    at: int
    service: str
    micro: int
    state: str = "reserved"
    seen: bool = False
    delivered: bool = False


def _moment(at: int) -> datetime:
    return datetime.fromtimestamp(0, UTC) + timedelta(microseconds=at)


def window(per: Any, now: int) -> tuple[int, int]:
    """From when on a payment must count at *now*, and from when on it may."""
    if per == "total":
        return -(10**18), -(10**18)
    if isinstance(per, timedelta):
        span = per // timedelta(microseconds=1)
        return now - span, now - span - span // 100
    start = _moment(now).replace(minute=0, second=0, microsecond=0)
    if per != "hour":
        start = start.replace(hour=0)
    if per == "month":
        start = start.replace(day=1)
    first = (start - datetime.fromtimestamp(0, UTC)) // timedelta(microseconds=1)
    return first, first


class Life(RuleBasedStateMachine):
    """Reserve, hold, finish, release, resolve, in any order, with any caps, on a clock that jumps."""

    ledger: Ledger
    kind: ClassVar[str] = "memory"

    def __init__(self) -> None:
        super().__init__()
        self.ledger = self.opened()
        self.now = NOW
        self.caps: list[Cap] = []
        self.entries: list[Entry] = []

    def opened(self) -> Ledger:
        """A new ledger."""
        return MemoryLedger()

    # --- the model

    def counted(self, cap: Cap, now: int) -> tuple[int, int]:
        """What must count against *cap*, and what may."""
        if cap.per == "call":
            return 0, 0
        must, may = window(cap.per, now)
        mine = [e for e in self.entries if e.state in COUNTED and cap.service in ("*", e.service)]
        return sum(e.micro for e in mine if e.at >= must), sum(e.micro for e in mine if e.at >= may)

    def any_of(self, data: Any, *states: str) -> Entry | None:
        """Some payment, mostly in one of *states*."""
        fitting = [e for e in self.entries if e.state in states] or self.entries
        return data.draw(st.sampled_from(fitting)) if fitting else None

    # --- what may happen

    @initialize(first=st.lists(caps, min_size=1, max_size=3))
    def begin(self, first: list[Cap]) -> None:
        """Set the first caps."""
        self.caps = first

    @precondition(lambda self: len(self.caps) < 6)
    @rule(cap=caps)
    def add_cap(self, cap: Cap) -> None:
        """A cap that comes later counts what is there."""
        self.caps.append(cap)

    @precondition(lambda self: len(self.caps) > 1)
    @rule(data=st.data())
    def drop_cap(self, data: Any) -> None:
        """A cap that goes is forgotten, but not what was counted."""
        self.caps.remove(data.draw(st.sampled_from(self.caps)))

    @rule(jump=st.sampled_from(JUMPS))
    def wait(self, jump: int) -> None:
        """Time passes, or goes back."""
        self.now += jump

    @rule(micro=st.integers(1, 12_000), service=st.sampled_from(SERVICES))
    def reserve(self, micro: int, service: str) -> None:
        """Allowed if it must fit, refused if it cannot."""
        made = want(*self.caps, micro=micro, service=service, at=self.now)
        applying = [cap for cap in self.caps if cap.service in ("*", service)]
        room = [(cap, *self.counted(cap, self.now)) for cap in applying]
        must_fit = bool(applying) and all(may + micro <= cap.micro for cap, _, may in room)
        can_fit = bool(applying) and all(must + micro <= cap.micro for cap, must, _ in room)
        answer: object
        try:
            answer = self.ledger.reserve(made)
        except PaymentRefused as refusal:
            answer = refusal
        if isinstance(answer, PaymentRefused):
            assert not must_fit
            assert answer.reason == ("cap" if applying else "no_cap")
            return
        assert isinstance(answer, Reserved)
        assert can_fit
        self.entries.append(Entry(made.id, self.now, service, micro))

    @rule(data=st.data())
    def hold(self, data: Any) -> None:
        """Only what is reserved can be held."""
        entry = self.any_of(data, "reserved")
        if entry is None:
            return
        try:
            self.ledger.hold(entry.id, proof(), now_us=self.now)
        except LedgerError:
            assert entry.state != "reserved"
        else:
            assert entry.state == "reserved"
            entry.state = "held"

    @rule(data=st.data())
    def release(self, data: Any) -> None:
        """Only what never left comes back."""
        entry = self.any_of(data, "reserved")
        if entry is None:
            return
        try:
            self.ledger.release(entry.id, "", now_us=self.now)
        except LedgerError:
            assert entry.state != "reserved"
        else:
            assert entry.state == "reserved"
            entry.state = "released"

    @rule(data=st.data(), outcome=st.sampled_from(("settled", "unknown", "rejected")))
    def finish(self, data: Any, outcome: str) -> None:
        """A call ends; what ended by proof already stays as it is."""
        entry = self.any_of(data, "held", "settled")
        if entry is None:
            return
        self.ledger.finish(entry.id, end(outcome), now_us=self.now)
        if entry.state == "reserved":
            entry.state = "released"
        elif entry.state in ("held", "settled"):
            entry.delivered = entry.delivered or outcome == "settled"
            entry.state = "settled" if outcome == "settled" else entry.state

    @rule(data=st.data(), state=st.sampled_from(("settled", "void")))
    def resolve(self, data: Any, state: Any) -> None:
        """The chain speaks, and what it has said once stays."""
        entry = self.any_of(data, "held", "settled")
        if entry is None:
            return
        possible = entry.state in ("held", "settled") and not entry.seen
        possible = possible and (state == "settled" or self.now >= DEAD)
        done = self.ledger.resolve(entry.id, state, transaction=None, note="", now_us=self.now)
        assert done == possible
        if done:
            entry.state, entry.seen = state, True

    @rule(data=st.data())
    def claim(self, data: Any) -> None:
        """Presenting again moves nothing."""
        entry = self.any_of(data, "held", "settled")
        if entry is not None:
            with suppress(LedgerError):
                self.ledger.claim(entry.id, now_us=self.now)

    @rule()
    def sweep(self) -> None:
        """Everybody is alive: nothing is swept."""
        assert self.ledger.sweep(now_us=self.now) == []

    # --- what is always so

    @invariant()
    def counts(self) -> None:
        """Every cap shows what the payments add up to."""
        for spend, cap in zip(
            self.ledger.spend(limits(*self.caps), now_us=self.now), self.caps, strict=True
        ):
            must, may = self.counted(cap, self.now)
            shown = int((spend.settled + spend.held) * SECOND)
            assert must <= shown <= may, (cap, must, shown, may)
            assert spend.left == max(cap.limit - spend.settled - spend.held, 0)

    def teardown(self) -> None:
        """The rows are the model's, and the history agrees with them."""
        found = [(p.payment_id, p.state, p.service) for p in self.ledger.payments(limit=1000)]
        assert found == [(e.id, e.state, e.service) for e in reversed(self.entries)]
        assert verify(self.ledger).problems == []
        self.ledger.close()


class FileLife(Life):
    """... in a file."""

    def opened(self) -> Ledger:
        """A new file."""
        self.folder = tempfile.TemporaryDirectory(
            prefix="x402-mask-model-", ignore_cleanup_errors=True
        )
        return SQLiteLedger(Path(self.folder.name, "ledger.db"))

    def teardown(self) -> None:
        """Forget the file."""
        try:
            super().teardown()
        finally:
            sqlite_wal.finish(10)
            self.folder.cleanup()


def _run(machine: type[Life], examples: int, steps: int) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_any_life_in_memory() -> None:
    _run(Life, 60, 40)


def test_any_life_in_a_file() -> None:
    _run(FileLife, 12, 30)


def test_any_life_in_postgres(dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class PostgresLife(Life):
        """... in PostgreSQL."""

        def opened(self) -> Ledger:
            """A new schema."""
            clear(dsn)
            (tmp_path / "data").mkdir(exist_ok=True)
            ledger = PostgresLedger(dsn, key=KEY)
            assert ledger.head_file.path.is_relative_to(tmp_path)
            ledger.head_file.path.unlink(missing_ok=True)
            return ledger

    _run(PostgresLife, 5, 25)
