"""Nobody but the owner accepts a loss, or takes back what counts for one."""

from __future__ import annotations

import json

import pytest

from tests.ledger.kit import NOW, Store, held, limits, refusal, reserved, used, want
from x402_mask import Cap, CapExceeded, LedgerError
from x402_mask._ledger.audit import verify
from x402_mask._ledger.key import LedgerKey
from x402_mask._ledger.past import accepted_losses
from x402_mask._ledger.restore import accept, standing
from x402_mask._ledger.sums import restores

CAP = Cap("0.005", per="day")

CHANGED = {
    "gone": "DELETE FROM restores",
    "less": "UPDATE restores SET micro=1 WHERE micro IS NOT NULL",
    "an amount in place of full caps": "UPDATE restores SET micro=0 WHERE micro IS NULL",
    "below nothing": f"INSERT INTO restores (at, micro) VALUES ({NOW}, -5000)",
    "one more": f"INSERT INTO restores (at, micro) VALUES ({NOW}, 1)",
    "long ago": "UPDATE restores SET at=at-100000000000",
}


def lost(store: Store, micro: int | None) -> None:
    """A ledger whose owner has accepted that rows are lost."""
    held(store.ledger, CAP)
    accept(store.ledger, micro, now_us=NOW - 1)
    store.ledger.close()


@pytest.mark.parametrize("micro", [None, 4000], ids=["full", "an amount"])
@pytest.mark.parametrize("what", CHANGED)
def test_what_counts_for_a_loss_is_found_changed(
    shared: Store, what: str, micro: int | None
) -> None:
    """... when the ledger is opened; accepting that counts what the history says."""
    lost(shared, micro)
    before = shared.sql("SELECT at, micro FROM restores")
    shared.sql(CHANGED[what])
    if shared.sql("SELECT at, micro FROM restores") == before:
        pytest.skip("changes nothing of this")
    ledger = shared.again()
    error = refusal(ledger, want(CAP))
    assert type(error) is LedgerError
    assert "`x402-mask ledger accept`" in str(error)
    assert standing(ledger).restores == {NOW - 1: micro}
    assert not verify(ledger).ok

    accept(ledger, 1000, now_us=NOW)
    for one in (ledger, shared.again()):
        assert verify(one).problems == []
        assert used(one, CAP) == 2000 + (micro or 0)
    if micro:
        assert type(refusal(ledger, want(CAP))) is CapExceeded
    else:
        reserved(ledger, CAP)


def test_no_counter_below_nothing_makes_room_while_the_ledger_runs(shared: Store) -> None:
    ledger = shared.ledger
    held(ledger, CAP)
    for statement in (
        f"INSERT INTO restores (at, micro) VALUES ({NOW}, -900)",
        "UPDATE counters SET held=-900",
        "UPDATE counters SET settled=-900",
    ):
        shared.sql(statement)
        assert type(refusal(ledger, want(CAP))) is LedgerError
        with pytest.raises(LedgerError):
            ledger.spend(limits(CAP), now_us=NOW)
        shared.sql("DELETE FROM restores")
        shared.sql("UPDATE counters SET held=1000, settled=0")
    reserved(ledger, CAP)


def test_an_acceptance_that_was_not_chained_accepts_nothing(shared: Store) -> None:
    """Whoever can write the database, and has no key, edits a row into one."""
    ledger = shared.ledger
    held(ledger, CAP)
    rows = shared.sql("SELECT * FROM history")
    held(ledger, CAP)
    ledger.close()
    shared.sql("DELETE FROM history WHERE seq > ?", len(rows))
    ((name,),) = shared.sql("SELECT value FROM meta WHERE name='id'")
    forged = {"missing": 1, "micro": 0, "lost": [{"ledger": name, "seq": 10**6, "before": 10**6}]}
    shared.sql("UPDATE history SET kind='accepted', data=? WHERE seq=1", json.dumps(forged))
    shared.sql("INSERT INTO meta (name, value) VALUES ('accepted', '1')")
    for one in (ledger, shared.again()):
        error = refusal(one, want(CAP))
        assert type(error) is LedgerError
        assert "older than itself" in str(error)


@pytest.mark.parametrize("era", ["9" * 5000, "1e5", "-1", "\N{DIGIT ONE}\N{SUPERSCRIPT TWO}", "x"])
def test_a_row_of_acceptance_that_is_none_is_read_as_none(shared: Store, era: str) -> None:
    ledger = shared.ledger
    held(ledger, CAP)
    ledger.close()
    shared.sql("INSERT INTO meta (name, value) VALUES ('accepted', ?)", era)
    for one in (ledger, shared.again()):
        held(one, CAP)


def test_several_acceptances_are_in_the_sum(shared: Store) -> None:
    ledger = shared.ledger
    held(ledger, CAP)
    for number, micro in enumerate((None, 3, None, 5, 7)):
        accept(ledger, micro, now_us=NOW + number)
    with ledger._transaction(5, write=False) as db:
        assert restores(db) == {NOW + 1: 3, NOW + 3: 5, NOW + 4: 7}
    assert verify(ledger).problems == []
    held(shared.again(), CAP)
    with ledger._transaction(5, write=False) as db:
        (seq,) = db.one("SELECT MAX(seq) FROM history WHERE kind='accepted'") or (0,)
        assert accepted_losses(db, seq, LedgerKey(b"\1" * 32)) == []


@pytest.mark.parametrize("sealed", [12, 10**9, "text", 1.5])
def test_a_number_in_place_of_a_proof_is_no_proof(sealed: object) -> None:
    """Bytes of a number are as many zeros, which may be more than there is memory for."""
    with pytest.raises(LedgerError):
        LedgerKey(b"\1" * 32).open(sealed, "x")  # type: ignore[arg-type]
