"""One operation, one live proof: who may present it, and when a new one may be made."""

from __future__ import annotations

from typing import Any

import pytest

from tests.ledger.kit import (
    DEAD,
    NOW,
    SECOND,
    SERVICE,
    WIDE,
    Store,
    end,
    held,
    limits,
    proof,
    refusal,
    reserved,
    state_of,
    together,
    used,
    want,
)
from x402_mask import Cap, LedgerError
from x402_mask._ledger.ledger import Ledger
from x402_mask._ledger.records import OpenPayment, Reserved

OPERATION = "an operation"


def open_payment(ledger: Ledger, **changed: Any) -> str:
    """A payment whose call ended without a 2xx."""
    made, _ = held(ledger, operation=OPERATION, **changed)
    ledger.finish(made.id, end("unknown"), now_us=NOW)
    return made.id


def twin(ledger: Ledger, now_us: int = NOW) -> OpenPayment | None:
    """What the ledger knows of the operation."""
    return ledger.view(OPERATION, SERVICE, now_us=now_us).twin


@pytest.mark.parametrize("keyed", [False, True])
def test_an_open_operation_is_not_signed_again(ledger: Ledger, keyed: bool) -> None:
    made = open_payment(ledger)
    answer = ledger.reserve(want(operation=OPERATION, keyed=keyed))
    assert isinstance(answer, OpenPayment)
    assert (answer.row.id, answer.busy) == (made, False)
    assert len(ledger.payments()) == 1
    assert used(ledger, WIDE) == 1000


def test_identical_calls_in_flight_are_separate_purchases(ledger: Ledger) -> None:
    first, _ = held(ledger, operation=OPERATION)
    seen = twin(ledger)
    assert seen is not None
    assert (seen.row.id, seen.busy) == (first.id, True)
    assert isinstance(ledger.reserve(want(operation=OPERATION)), Reserved)
    assert ledger.claim(first.id, now_us=NOW) is None


@pytest.mark.parametrize("stage", ["reserved", "held"])
def test_unless_they_share_a_key(ledger: Ledger, stage: str) -> None:
    """Then the later waits, from the reservation of the earlier on."""
    first = reserved(ledger, operation=OPERATION, keyed=True)
    if stage == "held":
        ledger.hold(first.id, proof(), now_us=NOW)
    answer = ledger.reserve(want(operation=OPERATION, keyed=True))
    assert isinstance(answer, OpenPayment)
    assert (answer.row.id, answer.busy) == (first.id, True)
    assert len(ledger.payments()) == 1


def test_a_finished_call_is_in_flight_until_its_end_is_written(ledger: Ledger) -> None:
    """Otherwise an identical call could present its proof a moment before it is known delivered."""
    seen = []
    made, _ = held(ledger, operation=OPERATION)

    def finishing(*args: Any, **kwargs: Any) -> Any:
        seen.append(made.id in ledger._flying)
        return write(*args, **kwargs)

    write, ledger._finish = ledger._finish, finishing  # type: ignore[method-assign]
    ledger.finish(made.id, end(), now_us=NOW)
    assert seen == [True]
    assert made.id not in ledger._flying
    assert twin(ledger) is None


def test_after_a_2xx_an_identical_call_is_a_new_purchase(ledger: Ledger) -> None:
    """... even if the money of the last is still held."""
    made, _ = held(ledger, operation=OPERATION)
    ledger.finish(made.id, end("unknown", delivered=True), now_us=NOW)
    assert state_of(ledger, made.id) == "held"
    assert twin(ledger) is None
    assert isinstance(ledger.reserve(want(operation=OPERATION)), Reserved)


def test_a_settled_payment_without_a_2xx_stays_open(ledger: Ledger) -> None:
    made, _ = held(ledger, operation=OPERATION)
    ledger.finish(made.id, end("settled", delivered=False), now_us=NOW)
    seen = twin(ledger)
    assert seen is not None
    assert not seen.busy
    assert ledger.claim(made.id, now_us=NOW) is not None


@pytest.mark.parametrize("end_of", ["void", "released"])
def test_what_cannot_move_money_any_more_is_not_open(ledger: Ledger, end_of: str) -> None:
    if end_of == "void":
        made = open_payment(ledger)
        assert ledger.resolve(made, "void", transaction=None, note="", now_us=DEAD)
    else:
        ledger.release(reserved(ledger, operation=OPERATION).id, "", now_us=NOW)
    assert twin(ledger) is None
    assert isinstance(ledger.reserve(want(operation=OPERATION)), Reserved)


def test_an_expired_proof_may_be_followed_by_a_new_one(ledger: Ledger) -> None:
    """... which is then the one that counts as open; the expired one still counts its money."""
    old = open_payment(ledger)
    later = NOW + 400 * SECOND
    new = reserved(ledger, operation=OPERATION, at=later)
    ledger.hold(new.id, proof(valid_before=later // SECOND + 300), now_us=later)
    ledger.finish(new.id, end("unknown"), now_us=later)
    seen = twin(ledger, later)
    assert seen is not None
    assert seen.row.id == new.id
    assert [r.id for r in ledger.view(OPERATION, SERVICE, now_us=later).lapsed] == [old]
    assert used(ledger, WIDE) == 2000


def test_a_proof_without_an_expiry_stays_open(ledger: Ledger) -> None:
    made = reserved(ledger, operation=OPERATION)
    ledger.hold(made.id, proof(valid_before=None), now_us=NOW)
    ledger.finish(made.id, end("unknown"), now_us=NOW)
    seen = twin(ledger, NOW + 10**15)
    assert seen is not None
    assert not seen.busy


def test_the_eldest_idle_proof_is_presented_first(ledger: Ledger) -> None:
    """Two calls in flight at once both lost their answer: both proofs are live."""
    made = [held(ledger, operation=OPERATION)[0].id for _ in range(3)]
    for payment in made[1:]:
        ledger.finish(payment, end("unknown"), now_us=NOW)
    for expected in made[1:]:
        seen = twin(ledger)
        assert seen is not None
        assert (seen.row.id, seen.busy) == (expected, False)
        assert ledger.claim(expected, now_us=NOW) is not None
    seen = twin(ledger)
    assert seen is not None
    assert seen.busy


def test_other_operations_are_not_twins(ledger: Ledger) -> None:
    open_payment(ledger)
    assert ledger.view("another", SERVICE, now_us=NOW).twin is None
    assert isinstance(ledger.reserve(want(operation="another")), Reserved)


def test_a_call_reconciled_in_flight_is_still_in_flight(ledger: Ledger) -> None:
    """The chain may know of the settlement before the seller's answer arrives."""
    made, _ = held(ledger, operation=OPERATION)
    assert ledger.resolve(made.id, "settled", transaction="0x1", note="", now_us=NOW)
    seen = twin(ledger)
    assert seen is not None
    assert seen.busy
    ledger.finish(made.id, end(), now_us=NOW)
    assert twin(ledger) is None
    assert state_of(ledger, made.id) == "settled"


# --- claims ---------------------------------------------------------------------------------------


def test_one_of_many_threads_gets_an_open_proof(ledger: Ledger) -> None:
    made = open_payment(ledger)
    answers = together(12, lambda _: ledger.claim(made, now_us=NOW))
    assert sum(answer is not None for answer in answers) == 1
    assert [row["kind"] for row in ledger.history()].count("represented") == 1


def test_one_of_many_processes_gets_an_open_proof(shared: Store) -> None:
    made = open_payment(shared.ledger)
    workers = [shared.worker("claim", made, str(NOW)) for _ in range(4)]
    try:
        for worker in workers:
            assert worker.line() == "ready"
        for worker in workers:
            worker.go()
        answers = [worker.line() for worker in workers]
    finally:
        for worker in workers:
            worker.__exit__()
    assert sum(answer is not None for answer in answers) == 1


def test_a_claimed_proof_is_idle_again_when_its_call_ends(ledger: Ledger) -> None:
    made = open_payment(ledger)
    for _ in range(3):
        assert ledger.claim(made, now_us=NOW) is not None
        assert ledger.claim(made, now_us=NOW) is None
        ledger.finish(made, end("rejected"), now_us=NOW)
    assert [row["kind"] for row in ledger.history()].count("represented") == 3


def test_another_ledger_on_the_same_data_sees_who_is_in_flight(shared: Store) -> None:
    made, _ = held(shared.ledger, operation=OPERATION)
    other = shared.again()
    seen = twin(other)
    assert seen is not None
    assert seen.busy
    assert other.claim(made.id, now_us=NOW) is None
    shared.ledger.finish(made.id, end("unknown"), now_us=NOW)
    assert other.claim(made.id, now_us=NOW) is not None
    assert shared.ledger.claim(made.id, now_us=NOW) is None


# --- the dead -------------------------------------------------------------------------------------


def test_a_killed_process_lets_go_of_its_proof(shared: Store) -> None:
    """... and the same bytes are presented again, by whoever calls next."""
    with shared.worker("hold", OPERATION) as worker:
        made, value = worker.line()
        seen = twin(shared.ledger)
        assert seen is not None
        assert seen.busy
        worker.kill()
        shared.bury()
        seen = twin(shared.ledger)
        assert seen is not None
        assert (seen.row.id, seen.busy) == (made, False)
        assert isinstance(shared.ledger.reserve(want(operation=OPERATION)), OpenPayment)
        taken = shared.ledger.claim(made, now_us=NOW)
        assert taken is not None
        assert taken.value == value


def test_a_reservation_of_a_killed_process_makes_room_again(shared: Store) -> None:
    """Killed between reservation and stored proof: nothing left, so nothing is owed."""
    cap = Cap("0.001", per="total")
    with shared.worker("reserve") as worker:
        made = worker.line()
        assert isinstance(refusal(shared.ledger, want(cap)), Exception)
        assert shared.ledger.sweep(now_us=NOW) == []
        worker.kill()
        shared.bury()
        mine = reserved(shared.ledger, cap)
    assert state_of(shared.ledger, made) == "released"
    assert used(shared.ledger, cap) == 1000
    assert shared.ledger.sweep(now_us=NOW) == []
    assert state_of(shared.ledger, mine.id) == "reserved"


def test_sweeping_touches_neither_the_living_nor_what_was_signed(shared: Store) -> None:
    with shared.worker("hold", OPERATION) as signed, shared.worker("reserve") as dying:
        kept, gone = signed.line()[0], dying.line()
        mine = reserved(shared.ledger)
        signed.kill()
        dying.kill()
        shared.bury()
        assert shared.again().sweep(now_us=NOW) == [gone]
    assert state_of(shared.ledger, kept) == "held"
    assert state_of(shared.ledger, mine.id) == "reserved"


def test_whoever_was_swept_sends_nothing(shared: Store) -> None:
    """A process that only seemed dead finds its reservation gone, and does not sign."""
    made = reserved(shared.ledger)
    shared.ledger._flying.clear()  # as if the call had been forgotten
    assert shared.ledger.sweep(now_us=NOW) == [made.id]
    with pytest.raises(LedgerError, match="released, not reserved"):
        shared.ledger.hold(made.id, proof(), now_us=NOW)
    assert shared.ledger.unresolved(["eip155:8453"]) == []
    (spend,) = shared.ledger.spend(limits(WIDE), now_us=NOW)
    assert spend.held == 0
