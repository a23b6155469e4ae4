"""A paid call cut at every point of its way, then repeated: one proof, one price, nothing stuck.

The cap is exactly one price.  So whatever was cut, the repeated call can only succeed if what the
first one reserved was given back, or its very proof is presented again; and a second purchase, which
would be a second live signature, shows as a refusal.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from tests.faults import jobs
from tests.faults.processes import Process
from tests.support.faults import (
    Bug,
    Cancelling,
    CutSQLite,
    Points,
    Strike,
    fault,
    raising,
    rows,
    sums,
)
from tests.support.seller import (
    Answer,
    Reply,
    Seller,
    authorization_of,
    offer,
    paywall,
    sequence,
    served,
    v2_header,
)
from x402_mask import Client, Payer, SQLiteLedger

PRICE = 1000
CAP = "0.001"
SYNC = ("client", "attach")
ASYNC = ("async-client", "async-attach", "async-threads")
ANSWERS: dict[str, Callable[[], Answer]] = {
    "delivered": served,
    "failed-once": lambda: sequence(Reply(status=503), served()),
    "lost-once": lambda: sequence(Reply(drop=True), served()),
    "sent-ahead": served,
}
"""What the seller does with a proof; "sent-ahead": a purchase before makes the proof go first."""

_numbers = iter(range(1, 1_000_000))


def strikes(how: str) -> Strike:
    """The strike of that name."""
    ways: dict[str, Callable[[], Strike]] = {
        "fault": lambda: fault,
        "bug": lambda: raising(lambda: Bug("injected")),
        "interrupt": lambda: raising(KeyboardInterrupt),
        "cancel": Cancelling,
        "cancelled-error": lambda: raising(asyncio.CancelledError),
    }
    return ways[how]()


@dataclass
class Trial:
    """One call that is cut, and the identical calls after it."""

    seller: Seller
    directory: Path
    kind: str
    answer: str = "delivered"

    def __post_init__(self) -> None:
        number = next(_numbers)
        self.path = self.directory / f"ledger-{number}.db"
        self.url = self.seller.on(
            f"/paid/{number}", paywall(v2_header(offer(str(PRICE))), ANSWERS[self.answer]())
        )
        self.points = Points()
        self.outcomes: list[str] = []
        self.purchases = 2 if self.answer == "sent-ahead" else 1

    @property
    def cap(self) -> str:
        """What the cap allows, USD: one price for each purchase."""
        return str(Decimal(CAP) * self.purchases)

    def _payer(self, ledger: Any) -> Payer:
        ahead = self.answer == "sent-ahead"
        return jobs.payer_on(ledger, self.seller.origin, self.cap, preempt=ahead)

    def cut(self, how: str, *at: int, lines: jobs.Lines | None = None) -> None:
        """Make the first call, cut at these points (or at a line)."""
        strike = strikes(how)
        self.points = Points(*at, strike=strike)
        brief = self.kind != "async-threads"
        self.ledger = CutSQLite(self.path, self.points, brief=brief)
        self.payer = self._payer(self.ledger)
        if self.answer == "sent-ahead":
            self._buy_before()
        cancelling = strike if isinstance(strike, Cancelling) else None
        with lines or nullcontext():
            outcome = jobs.cut_call(self.payer, self.kind, self.url, self.points, cancelling)
        self.points.armed = False
        self.outcomes.append(outcome)

    def _buy_before(self) -> None:
        self.points.armed = False
        with Client(self.payer, timeout=5, verify=jobs.NO_TLS) as client:
            assert client.get(self.url).status_code == 200
        self.points.armed = True

    def repeat(self, by: str) -> None:
        """Make the identical call again until it was answered well, or refused."""
        if by == "new-payer":
            self.payer = self._payer(self.ledger)
        elif by == "new-ledger":
            self.payer = self._payer(SQLiteLedger(self.path))
        with Client(self.payer, timeout=5, verify=jobs.NO_TLS) as client:
            for _ in range(3):
                try:
                    self.outcomes.append(str(client.get(self.url).status_code))
                except Exception as error:
                    self.outcomes.append(type(error).__name__)
                if self.outcomes[-1] not in ("503", "RemoteProtocolError"):
                    break

    def faults(self, *, maybe_delivered: bool = False) -> list[str]:
        """What is wrong after all that."""
        hits = [hit for hit in list(self.seller.hits) if self.url.endswith(hit.path)]
        proofs = {proof.raw: proof for hit in hits for proof in hit.proofs}
        live = [authorization_of(self.seller.origin, proof) for proof in proofs.values()]
        first, last = self.outcomes[0], self.outcomes[-1]
        expected = {"CapExceeded"} if first == "200" else {"200"}
        if maybe_delivered:
            expected = {"200", "CapExceeded"}
        found = []
        if last not in expected:
            found.append(f"repeated: {last}, not {expected}")
        worth = [one.value for one in live if one is not None]
        if worth != [PRICE] * self.purchases or len(live) != self.purchases:
            found.append(f"{len(live)} proofs at the seller")
        return found + self._ledger_faults()

    def _ledger_faults(self) -> list[str]:
        self.payer.reconcile()
        found, on_file = [], sums(self.path)
        unwritten = any(name.startswith("ledger:finish") for name in self.points.struck)
        everything = PRICE * self.purchases
        if (on_file.counted, on_file.reserved) != (everything, 0):
            found.append(f"on the ledger: {on_file}")
        if on_file.settled != everything and not unwritten:
            found.append(f"not settled: {on_file}")
        spend, payments = self.payer.spend()[0], self.payer.payments()
        counted = sum(p.usd for p in payments if p.state in ("reserved", "held", "settled"))
        if spend.settled + spend.held != counted or spend.left != Decimal(self.cap) - counted:
            found.append(f"spend() {spend} is not payments() {counted}")
        numbers = [seq for (seq,) in rows(self.path, "SELECT seq FROM history ORDER BY seq")]
        if numbers != list(range(1, len(numbers) + 1)):
            found.append("the history has holes")
        return found


def points_of(seller: Seller, directory: Path, kind: str, answer: str) -> list[str]:
    """The points of a call that nothing cuts."""
    trial = Trial(seller, directory, kind, answer)
    trial.cut("fault")
    assert len(trial.points.names) > 15
    return trial.points.names


def run_all(
    seller: Seller,
    directory: Path,
    kind: str,
    how: str,
    *,
    by: str = "same-payer",
    answer: str = "delivered",
    at: Sequence[tuple[int, ...]] | None = None,
) -> list[str]:
    """Cut at every point in turn (or at these); every fault found, by point."""
    names = points_of(seller, directory, kind, answer)
    found = []
    for places in at if at is not None else [(n,) for n in range(1, len(names) + 1)]:
        trial = Trial(seller, directory, kind, answer)
        trial.cut(how, *places)
        trial.repeat(by)
        late = min(places) > names.index("ledger:finish:begun")
        if wrong := trial.faults(maybe_delivered=len(trial.points.struck) > 1 and late):
            found.append(f"{places} {trial.points.struck} -> {trial.outcomes}: {'; '.join(wrong)}")
    return found


def test_what_is_cut(seller: Seller, fast_path: Path) -> None:
    """There are points around every effect, ledger transaction and send of a call."""
    names = points_of(seller, fast_path, "client", "delivered")
    for part in ("view", "reserve", "finish"):
        for moment in ("enter", "begun", "commit", "committed", "leave"):
            assert f"ledger:{part}:{moment}" in names
    for moment in ("before", "after"):
        assert {f"send:{leg}:{moment}" for leg in ("unpaid", "paid")} <= set(names)
        assert names.count(f"effect:Record:{moment}") == 3
        assert {f"effect:{name}:{moment}" for name in ("ReadBody", "Fingerprint")} <= set(names)
    ahead = points_of(seller, fast_path, "client", "sent-ahead")
    assert "send:paid:before" in ahead and "send:unpaid:before" not in ahead
    for kind in (*SYNC, *ASYNC):
        assert len(points_of(seller, fast_path, kind, "delivered")) >= len(names)


@pytest.mark.parametrize(
    ("kind", "how", "by"),
    [
        ("client", "fault", "same-payer"),
        ("client", "fault", "new-ledger"),
        ("client", "interrupt", "new-payer"),
        ("attach", "interrupt", "same-payer"),
        ("attach", "fault", "new-payer"),
    ],
)
def test_a_sync_call_cut_anywhere(
    seller: Seller, fast_path: Path, kind: str, how: str, by: str
) -> None:
    """Exceptions and Ctrl-C at every point."""
    found = run_all(seller, fast_path, kind, how, by=by)
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("kind", "how"),
    [
        ("async-client", "fault"),
        ("async-client", "cancel"),
        ("async-attach", "cancelled-error"),
        ("async-threads", "cancel"),
        ("async-threads", "fault"),
    ],
)
def test_an_async_call_cut_anywhere(seller: Seller, fast_path: Path, kind: str, how: str) -> None:
    """Exceptions and cancellations at every point, the loop waiting a moment for the ledger, and not at all."""
    found = run_all(seller, fast_path, kind, how)
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("answer", "kind", "how"),
    [
        ("failed-once", "client", "interrupt"),
        ("lost-once", "client", "fault"),
        ("sent-ahead", "client", "interrupt"),
        ("sent-ahead", "async-client", "cancel"),
    ],
)
def test_another_kind_of_call_cut_anywhere(
    seller: Seller, fast_path: Path, answer: str, kind: str, how: str
) -> None:
    """The seller fails on top of it, or the proof goes with the first request: as before."""
    found = run_all(seller, fast_path, kind, how, answer=answer)
    assert not found, "\n".join(found)


@pytest.mark.parametrize("how", ["fault", "interrupt"])
def test_two_cuts(seller: Seller, fast_path: Path, how: str) -> None:
    """The way out of the first fault is cut as well."""
    count = len(points_of(seller, fast_path, "client", "delivered"))
    pairs = [(n, n + more) for n in range(count // 2, count + 1, 2) for more in range(1, 4)]
    found = run_all(seller, fast_path, "client", how, at=pairs)
    assert not found, "\n".join(found)


@pytest.mark.parametrize("kind", ["client", "async-client"])
def test_a_process_killed_anywhere(seller: Seller, fast_path: Path, kind: str) -> None:
    """SIGKILL at every point; the identical call is made by another process."""
    names = points_of(seller, fast_path, kind, "delivered")
    found = []
    for at, name in list(enumerate(names, start=1))[:: 1 if kind == "client" else 3]:
        trial = Trial(seller, fast_path, kind)
        arguments = (trial.path, kind, trial.url, seller.origin, CAP, at)
        with Process(jobs.killed_call, *arguments) as victim:
            assert victim.heard() == name
            assert victim.ended() == -9
        trial.outcomes.append("killed")
        trial.ledger = CutSQLite(trial.path, Points())
        trial.repeat("new-payer")
        # Once that is on the ledger nobody can tell whether the answer was handed over.
        ended = at > names.index("ledger:finish:commit") + 1
        if wrong := trial.faults(maybe_delivered=ended):
            found.append(f"{at} {name} -> {trial.outcomes}: {'; '.join(wrong)}")
    assert not found, "\n".join(found)


def test_the_proof_is_synced_before_it_leaves(seller: Seller, fast_path: Path) -> None:
    """The transaction that stores a proof is committed with ``synchronous=FULL``."""
    path, modes = fast_path / "l.db", []

    class Watched(CutSQLite):
        def _committed_or_not(self, wait_s: float, *, write: bool, durable: bool) -> Any:
            modes.append((self._name(), durable))
            return super()._committed_or_not(wait_s, write=write, durable=durable)

    ledger = Watched(path, Points())
    begin, levels = ledger._begin, []

    def begun(db: Any, *args: Any, **kw: Any) -> None:
        begin(db, *args, **kw)
        levels.append(db.raw.execute("PRAGMA synchronous").fetchone()[0])

    ledger._begin = begun  # type: ignore[method-assign]
    url = seller.sells()
    with Client(jobs.payer_on(ledger, seller.origin, CAP), verify=jobs.NO_TLS) as client:
        assert client.get(url).status_code == 200
    by_name = dict(zip([name for name, _ in modes], levels[-len(modes) :], strict=True))
    assert ("reserve", True) in modes and by_name["reserve"] == 2
