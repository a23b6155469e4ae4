"""A ledger of a million payments is as quick as a new one: nothing on the way reads them all."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from tests.ledger.kit import NOW, SERVICE, end, held, limits, proof, refusal, reserved, want
from x402_mask import Cap, SQLiteLedger
from x402_mask._ledger.records import Breaker, new_payment_id

CAPS = (Cap(1, per="day"), Cap(1, per=timedelta(hours=1), service=SERVICE), Cap("0.1", per="call"))
BREAKER = Breaker(failures=3, seconds=60)


@pytest.fixture
def said(tmp_path: Path) -> dict[str, list[str]]:
    """Return the SQL of every step of a payment's life, with its values."""
    ledger = SQLiteLedger(tmp_path / "ledger.db")
    ledger.spend(limits(*CAPS), now_us=NOW)
    reserved(ledger, *CAPS)
    assert ledger._db is not None
    statements: list[str] = []
    ledger._db.raw.set_trace_callback(statements.append)
    found = {}

    def step(name: str) -> None:
        found[name] = [s for s in statements if s.startswith(("SELECT", "UPDATE", "DELETE"))]
        statements.clear()

    made, _ = held(ledger, *CAPS)
    step("reserve and hold")
    ledger.finish(made.id, end("unknown"), BREAKER, now_us=NOW)
    step("finish")
    ledger.view(made.operation, SERVICE, now_us=NOW)
    step("view")
    ledger.claim(made.id, now_us=NOW)
    step("claim")
    ledger.resolve(made.id, "settled", transaction=None, note="", now_us=NOW)
    step("resolve")
    refusal(ledger, want(*CAPS, micro=990_000), BREAKER)
    refusal(ledger, want(Cap("0.001", per="total")))
    statements[:] = [s for s in statements if "INSERT INTO counters" not in s]
    step("refuse and sweep")
    ledger.release(reserved(ledger, *CAPS).id, "", now_us=NOW)
    step("release")
    ledger.spend(limits(*CAPS), now_us=NOW)
    step("spend")
    ledger.note_refusal({}, now_us=NOW, wait_s=5)
    step("note a refusal")
    ledger.payments()
    ledger.payments(state="held")
    step("list")
    ledger._db.raw.set_trace_callback(None)
    plans = {
        name: [
            row[3]
            for statement in steps
            for row in ledger._db.raw.execute("EXPLAIN QUERY PLAN " + statement)
        ]
        for name, steps in found.items()
    }
    ledger.close()
    return plans


def test_no_step_of_a_payment_reads_a_table_that_grows(said: dict[str, list[str]]) -> None:
    assert len(said) == 10
    listing = said.pop("list")
    grown = [line for line in listing if line.startswith("SCAN payments")]
    assert grown == ["SCAN payments", "SCAN payments USING INDEX payments_held"]  # from the newest
    for name, plan in said.items():
        assert plan, name
        for line in plan:
            if line.startswith(("SCAN payments", "SCAN counters")):
                assert line == "SCAN payments USING INDEX payments_reserved", name


def test_a_new_cap_reads_an_index_and_not_the_payments(tmp_path: Path) -> None:
    ledger = SQLiteLedger(tmp_path / "ledger.db")
    reserved(ledger)
    assert ledger._db is not None
    statements: list[str] = []
    ledger._db.raw.set_trace_callback(statements.append)
    for per in ("hour", "month", "day", timedelta(hours=2)):
        ledger.spend(limits(Cap(1, per=per), Cap(1, per=per, service=SERVICE)), now_us=NOW)
    ledger._db.raw.set_trace_callback(None)
    plans = [
        row[3]
        for statement in statements
        if "FROM payments" in statement
        for row in ledger._db.raw.execute("EXPLAIN QUERY PLAN " + statement)
        if "payments" in row[3]
    ]
    assert plans == ["SCAN payments USING COVERING INDEX payments_summed"] * 8
    ledger.close()


def test_names_of_payments_are_new_and_in_the_order_of_time() -> None:
    names = [new_payment_id(NOW + n * 1000) for n in range(1000)]
    assert names == sorted(names)
    assert len(set(names)) == 1000
    assert len({new_payment_id(NOW) for _ in range(1000)}) == 1000
    assert {len(name) for name in names} == {36}
    assert len(new_payment_id(-1)) == len(new_payment_id(2**70)) == 36


def test_the_proof_of_a_payment_does_not_slow_the_others_down(tmp_path: Path) -> None:
    """A large proof is stored with its payment and read with it only."""
    ledger = SQLiteLedger(tmp_path / "ledger.db")
    made = reserved(ledger)
    ledger.hold(made.id, proof(value="x" * 2_000_000), now_us=NOW)
    reserved(ledger)
    assert len(ledger.payments()) == 2
    ledger.close()
