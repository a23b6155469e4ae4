"""Many processes and threads on one cap of one ledger: used in full, never passed."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.faults import jobs
from tests.faults.processes import Process
from tests.support.faults import sums
from tests.support.seller import Reply, Seller, offer, paywall, sequence, served, v2_header
from x402_mask import Cap, SQLiteLedger

PROCESSES, THREADS = 8, 8
PRICE = 1000
ROOM = 150


def race(seller: Seller, path: Path, urls: list[str], cap: Cap) -> Counter[str]:
    """Let all of them buy until each was refused; what came out, summed up."""
    with ExitStack() as stack:
        crowd = [
            stack.enter_context(Process(jobs.racing_calls, path, urls, seller.origin, cap, THREADS))
            for _ in range(PROCESSES)
        ]
        assert [one.heard() for one in crowd] == ["ready"] * PROCESSES
        outcomes: Counter[str] = sum((one.heard(60) for one in crowd), Counter())
        assert [one.ended() for one in crowd] == [0] * PROCESSES
    return outcomes


def check(seller: Seller, path: Path, expected: int) -> None:
    """The seller, the file and the library count the same, which is the cap in full."""
    collectable = seller.authorizations()
    assert len(collectable) == expected
    assert sum(one.usd_micro for one in collectable) == expected * PRICE == sums(path).counted
    assert sums(path).reserved == 0
    spend = jobs.payer_on(SQLiteLedger(path), seller.origin, "0.15").spend()[0]
    assert spend.left == 0 and spend.settled + spend.held == spend.limit


@pytest.mark.parametrize("per", ["total", "day"])
def test_a_cap_is_used_in_full_and_never_passed(seller: Seller, fast_path: Path, per: str) -> None:
    """8 processes with 8 threads each, money for 150 calls, counted by the seller."""
    path = fast_path / "ledger.db"
    url = seller.sells(offer(str(PRICE)))
    outcomes = race(seller, path, [url], Cap("0.15", per=per))
    refused = PROCESSES * THREADS * 2
    assert outcomes == {"200": ROOM, "CapExceeded": refused}
    check(seller, path, ROOM)
    assert sums(path).settled == ROOM * PRICE


def test_a_cap_is_not_passed_by_a_seller_that_fails(seller: Seller, fast_path: Path) -> None:
    """Different services share it; every third answer is a 503, whose proof is shown again."""
    path = fast_path / "ledger.db"
    failing = sequence(*([served(), Reply(status=503), served()] * 2000))
    urls = [
        seller.on(f"/api/tools/{number}", paywall(v2_header(offer(str(PRICE))), failing))
        for number in range(5)
    ]
    outcomes = race(seller, path, urls, Cap("0.15", per="total"))
    assert set(outcomes) == {"200", "503", "CapExceeded"}
    check(seller, path, ROOM)
