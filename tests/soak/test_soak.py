"""The long forms: minutes each, run by ``make soak``.

``X402_MASK_SOAK_SEED`` chooses other random numbers.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.faults import bazaar, flows, killing, lines, test_cuts
from tests.support.chain import Chain
from tests.support.seller import Seller
from tests.transport.kit import Kind

SEED = int(os.environ.get("X402_MASK_SOAK_SEED", "402"))


@pytest.mark.timeout(1500)
def test_a_thousand_kills(
    seller: Seller, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a real disk: what sellers can collect <= the ledger <= the cap, after every kill."""
    report = killing.soak(seller, tmp_path / "ledger.db", 1000, SEED, most_s=1400)
    with capsys.disabled():
        print(f"\n1000 kills: {report}")
    assert report.distinct > 1000 and report.represented > 300


@pytest.mark.chain
@pytest.mark.timeout(1700)
def test_ten_thousand_operations_on_a_chain(
    own_chain: Chain, fast_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """After reconciliation the ledger equals the chain, payment by payment and to the unit."""
    report = bazaar.run(own_chain, fast_path / "ledger.db", 10_000, SEED, most_s=1600)
    with capsys.disabled():
        print(f"\n10000 operations: {report}")
    assert report.settled == report.moved > 0


@pytest.mark.timeout(600)
@pytest.mark.parametrize("answer", test_cuts.ANSWERS)
@pytest.mark.parametrize("by", ["same-payer", "new-payer", "new-ledger"])
@pytest.mark.parametrize(
    ("kind", "how"),
    [
        *((kind, how) for kind in test_cuts.SYNC for how in ("fault", "bug", "interrupt")),
        *(
            (kind, how)
            for kind in test_cuts.ASYNC
            for how in ("fault", "cancel", "cancelled-error")
        ),
    ],
)
def test_every_cut_of_every_kind(
    seller: Seller, fast_path: Path, kind: str, how: str, by: str, answer: str
) -> None:
    """Each plug point, each fault, each way to go on, each answer of the seller."""
    found = test_cuts.run_all(seller, fast_path, kind, how, by=by, answer=answer)
    assert not found, "\n".join(found)


@pytest.mark.filterwarnings("ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("kind", "trial"), [*((kind, lines.Trial) for kind in lines.KINDS), *flows.FLOWS], ids=str
)
def test_interrupted_at_every_line(
    kind: Kind, trial: type[lines.Trial], fast_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """At each line that a paid call executes in the library: Ctrl-C, memory that ran out, its end.

    Its end is a cancellation, or ``SystemExit`` where nothing is async.
    """
    count = lines.lines_of(trial, kind, fast_path)
    strikes, found, struck = lines.strikes_of(kind), list[str](), 0
    for one in lines.interrupted(
        kind, fast_path, range(1, count + 1), trial=trial, strikes=strikes, ledgers="file"
    ):
        found += one.found
        struck += bool(one.trial.lines.where)
    with capsys.disabled():
        print(f"\n{kind}, {trial.__name__}: {count} lines, {struck} strikes, {len(found)} faults")
    assert not found, "\n".join(found)
    assert struck > count


@pytest.mark.filterwarnings("ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.timeout(1800)
def test_memory_runs_out_at_every_line_of_a_ledgers_thread(
    fast_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Which writes what an async call wants written down."""
    (kind,) = (kind for kind in lines.KINDS if str(kind) == "httpx-asyncio-transport")
    count = lines.lines_of(lines.Trial, kind, fast_path, threads=True)
    found = lines.faults(
        lines.interrupted(
            kind,
            fast_path,
            range(1, count + 1),
            strikes=(MemoryError,),
            ledgers="file",
            threads=True,
        )
    )
    with capsys.disabled():
        print(f"\na ledger's thread: {count} lines, {len(found)} faults")
    assert not found, "\n".join(found)
