"""Processes that share a wallet and a ledger, one of them killed at the worst moment."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.ledger.kit import Worker
from tests.support.chain import Chain
from tests.transfers.conftest import BuyerFor
from tests.transfers.kit import PRICE
from x402_mask import SQLiteLedger

pytestmark = [pytest.mark.chain, pytest.mark.timeout(100, func_only=True)]


def test_one_is_killed_and_the_others_pay(chain: Chain, buyer: BuyerFor, tmp_path: Path) -> None:
    """The killed one's transfer was stored and not sent: who comes next sends it, once."""
    b = buyer(SQLiteLedger(tmp_path / "ledger.db"))
    spec = {
        "ledger": str(tmp_path / "ledger.db"),
        "url": chain.url,
        "key": b.account.key.hex(),
        "pay_to": b.pay_to,
        "amount": PRICE,
    }
    with ExitStack() as stack:
        workers = [
            stack.enter_context(Worker(spec, job, module="tests.transfers.worker"))
            for job in ("hold", "pay", "pay")
        ]
        assert {worker.line() for worker in workers} == {"ready"}
        workers[0].go()
        killed = workers[0].line()
        workers[0].kill()
        assert b.paid() == []
        for worker in workers[1:]:
            worker.go()
        answers = [worker.line() for worker in workers[1:]]
    assert [state for _, state in answers] == ["mined", "mined"]
    assert b.paid() == [PRICE] * 3 and b.nonce() == 3
    stored = [b.stored(payment_id) for payment_id in (killed, *(name for name, _ in answers))]
    assert sorted(each.nonce for each in stored) == [0, 1, 2] and stored[0].nonce == 0
    assert {len(each.attempts) for each in stored} == {1}
