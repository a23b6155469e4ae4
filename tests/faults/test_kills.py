"""A buyer killed under load: what sellers can collect is on the ledger, within the cap."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults import jobs, killing
from tests.faults.deals import Deal
from tests.faults.processes import Process
from tests.support.seller import Seller, offer, paywall, served, v2_header


@pytest.mark.timeout(60)
def test_thirty_kills(seller: Seller, fast_path: Path) -> None:
    """The short form of the soak."""
    report = killing.soak(seller, fast_path / "ledger.db", 30, seed=1, most_s=50)
    print(report)
    assert report.distinct > 60 and report.represented > 10


def test_killed_while_the_ledger_is_made(seller: Seller, fast_path: Path) -> None:
    """At lines all over the making of file, key and tables, and of the first call's entries."""
    url = seller.sells(offer("1000"))

    def killed(number: int, at: int) -> int:
        arguments = (fast_path / str(number) / "ledger.db", url, seller.origin, "0.001", at)
        with Process(jobs.first_call, *arguments) as process:
            return -9 if process.ended() == -9 else int(process.heard())

    lines = killed(0, 0)
    assert lines > 200
    for number in range(1, 25):
        # Most of the first 150 lines make the ledger.
        at = number * 6 if number < 20 else lines * (number - 15) // 10
        assert killed(number, at) == -9
        deal = Deal(seller, fast_path / str(number))
        before = len(seller.authorizations())
        outcome = deal.call(deal.payer(), timeout=5)
        assert outcome in ("200", "CapExceeded"), f"line {at}"
        assert killing.counted(deal.path) == 1000, f"line {at}"
        assert outcome == "200" or len(seller.authorizations()) == before > 0


def test_killed_while_another_makes_the_ledger(seller: Seller, fast_path: Path) -> None:
    """Eight processes begin at once on a new ledger: one key, one set of tables, all can buy."""
    seller.on("/paid", paywall(v2_header(offer("1000")), served()))
    path = fast_path / "new" / "ledger.db"
    arguments = (path, f"{seller.origin}/paid", seller.origin, "0.008")
    crowd = [Process(jobs.plain_call, *arguments) for _ in range(8)]
    try:
        assert [one.heard() for one in crowd] == ["200"] * 8
    finally:
        for one in crowd:
            one.close()
    assert len(seller.authorizations()) == 8 and killing.counted(path) == 8000


def test_a_disk_that_is_full(seller: Seller, fast_path: Path) -> None:
    """Full at any moment of a call, the making of the ledger included: one price, one proof."""
    url, outcomes = seller.sells(offer("1000")), set()
    for room in range(4096, 190_000, 24_000):
        path = fast_path / str(room) / "ledger.db"
        before = len(seller.authorizations())
        with Process(jobs.cramped_call, path, url, seller.origin, "0.001", room) as process:
            outcomes.add(outcome := process.heard())
        assert outcome in ("200", "LedgerError"), f"{room} bytes"
        deal = Deal(seller, path.parent)
        again = deal.call(deal.payer(), timeout=5)
        # An end that could not be written leaves the operation open: the same bytes again.
        assert again == "200" or outcome == "200", f"{room} bytes: {outcome}, {again}"
        assert len(seller.authorizations()) - before == 1, f"{room} bytes"
        assert killing.counted(path) == 1000, f"{room} bytes"
    assert outcomes == {"200", "LedgerError"}
