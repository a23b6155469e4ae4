"""A buyer killed under load: what sellers can collect is on the ledger, within the cap."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults import killing
from tests.support.seller import Seller


@pytest.mark.timeout(60)
def test_thirty_kills(seller: Seller, fast_path: Path) -> None:
    """The short form of the soak."""
    report = killing.soak(seller, fast_path / "ledger.db", 30, seed=1, most_s=50)
    print(report)
    assert report.distinct > 60 and report.represented > 10
