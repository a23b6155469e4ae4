"""After reconciliation the ledger equals the chain, whatever went wrong before."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults import bazaar
from tests.support.chain import Chain


@pytest.mark.chain
@pytest.mark.timeout(90)
def test_the_ledger_equals_the_chain(own_chain: Chain, fast_path: Path) -> None:
    """The short form of the soak: 150 random operations."""
    report = bazaar.run(own_chain, fast_path / "ledger.db", 150, seed=1, most_s=80)
    print(report)
    assert report.settled > 0 and report.cuts > 20 and report.restarts > 5
    assert {"settled", "void"} <= set(report.states) <= {"settled", "void", "released"}
    assert report.settled_late > 3 and report.cancelled > 1
