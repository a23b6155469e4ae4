"""The life of one payment: every legal move, every illegal one, and what becomes of its proof."""

from __future__ import annotations

from typing import Any

import pytest

from tests.ledger.kit import (
    DEAD,
    NOW,
    ORIGIN,
    PAYEE,
    SECOND,
    SERVICE,
    WIDE,
    Store,
    end,
    held,
    in_state,
    limits,
    proof,
    refusal,
    reserved,
    state_of,
    used,
    want,
)
from x402_mask import Cap, LedgerError, Payment
from x402_mask._ledger.audit import verify
from x402_mask._ledger.key import digest
from x402_mask._ledger.ledger import Ledger
from x402_mask._ledger.records import Proof, Reserved
from x402_mask._models import State
from x402_mask._policy.caps import as_datetime
from x402_mask._policy.clocks import EXPIRY_MARGIN_S

STATES = ("reserved", "held", "settled", "seen", "released", "void")
LATER = DEAD + 60 * SECOND

# What each move makes of each state; None: refused, and nothing changes.
MOVES: dict[str, dict[str, str | None]] = {
    "hold": {"reserved": "held"},
    "release": {"reserved": "released"},
    "settle": {"reserved": "released", "held": "settled", "settled": "settled", "seen": "settled"},
    "unknown": {"reserved": "released", "held": "held", "settled": "settled", "seen": "settled"},
    "prove": {"held": "settled", "settled": "settled"},
    "disprove": {"held": "void", "settled": "void"},
}


def do(ledger: Ledger, move: str, payment: str) -> bool:
    """Try one move; whether the ledger took it."""
    try:
        if move == "hold":
            ledger.hold(payment, proof(), now_us=LATER)
        elif move == "release":
            ledger.release(payment, "", now_us=LATER)
        elif move in ("settle", "unknown"):
            outcome = "settled" if move == "settle" else "unknown"
            ledger.finish(payment, end(outcome), now_us=LATER)
        else:
            state: State = "settled" if move == "prove" else "void"
            return ledger.resolve(payment, state, transaction=None, note="", now_us=LATER)
    except LedgerError as error:
        return payment not in str(error)
    return True


@pytest.mark.parametrize("state", STATES)
def test_only_these_moves_are_possible(ledger: Ledger, state: str) -> None:
    """... and an impossible one changes neither the payment nor any counter nor its history."""
    for move, outcomes in MOVES.items():
        cap = Cap(1, per="day", service=move)
        made = in_state(ledger, state, cap, service=move)
        before = (ledger.payments(limit=1), used(ledger, cap), len(ledger.history()))
        expected = outcomes.get(state)

        taken = do(ledger, move, made.id)

        after = (ledger.payments(limit=1), used(ledger, cap), len(ledger.history()))
        if expected is None:
            assert after == before, move
            assert not taken or move in ("settle", "unknown")  # an end too late is no error
            continue
        assert taken, move
        assert after[0][0].state == expected, move
        assert after[0][0].updated_at == as_datetime(LATER)
        assert after[1] == (1000 if expected in ("reserved", "held", "settled") else 0)
        assert after[2] == before[2] + 1


def test_a_payment_of_another_ledger_is_named(ledger: Ledger) -> None:
    for move in MOVES:
        assert not do(ledger, move, "pay_unknown"), move
        assert ledger.payments(service=move) == []
        reserved(ledger, service=move)  # an end that belongs nowhere blocks nothing


@pytest.mark.parametrize("state", ["reserved", "held", "released"])
def test_a_chain_proves_settled_or_void(ledger: Ledger, state: Any) -> None:
    made = in_state(ledger, "held")
    with pytest.raises(ValueError, match="settled or void"):
        ledger.resolve(made.id, state, transaction=None, note="", now_us=NOW)
    assert state_of(ledger, made.id) == "held"


def test_a_payment_tells_its_whole_story(ledger: Ledger) -> None:
    made, sent = held(ledger, Cap(1, per="day"), micro=1234, amount=5678)
    tx = "0x" + "42" * 32
    ledger.finish(made.id, end(transaction=tx, note="HTTP 200"), now_us=LATER)
    assert sent.nonce is not None
    assert ledger.payments() == [
        Payment(
            payment_id=made.id,
            state="settled",
            service=SERVICE,
            origin=ORIGIN,
            route="x402",
            usd=made.limits[0].cap.limit * 0 + made.micro * made.limits[0].cap.limit / 10**6,
            amount=5678,
            asset=made.asset,
            network=made.network,
            payer=made.payer,
            pay_to=PAYEE,
            nonce=sent.nonce,
            valid_before=as_datetime((sent.valid_before or 0) * SECOND),
            operation=made.operation,
            open=False,
            outcome="settled",
            transaction=tx,
            proof_digest=digest(sent.value),
            note="HTTP 200",
            at=as_datetime(NOW),
            updated_at=as_datetime(LATER),
        )
    ]
    assert [row["kind"] for row in ledger.history()] == ["reserved", "held", "settled"]


def test_an_amount_may_be_larger_than_any_database_integer(ledger: Ledger) -> None:
    made = reserved(ledger, amount=2**256 - 1)
    assert ledger.payments()[0].amount == 2**256 - 1
    assert ledger.view(made.operation, SERVICE, now_us=NOW).twin is not None


def test_the_transaction_of_the_first_claim_stays_until_the_chain_speaks(ledger: Ledger) -> None:
    made, _ = held(ledger)
    ledger.finish(made.id, end("unknown", transaction="0xa"), now_us=NOW)
    ledger.finish(made.id, end("settled", transaction="0xb"), now_us=NOW)
    assert ledger.payments()[0].transaction == "0xa"
    assert ledger.resolve(made.id, "settled", transaction="0xc", note="", now_us=NOW)
    assert ledger.payments()[0].transaction == "0xc"


def test_what_was_seen_on_chain_is_not_freed_by_a_lying_endpoint(ledger: Ledger) -> None:
    made = in_state(ledger, "seen")
    assert not ledger.resolve(made.id, "void", transaction=None, note="", now_us=LATER)
    assert used(ledger, WIDE) == 1000
    assert ledger.unresolved(["eip155:8453"]) == []


def test_a_claim_that_the_chain_disproves_is_void(ledger: Ledger) -> None:
    made = in_state(ledger, "settled")
    assert [row.id for row in ledger.unresolved(["eip155:8453"])] == [made.id]
    assert ledger.resolve(made.id, "void", transaction=None, note="unused", now_us=LATER)
    assert used(ledger, WIDE) == 0
    assert ledger.unresolved(["eip155:8453"]) == []


def test_the_unresolved_come_oldest_first(ledger: Ledger) -> None:
    made = {state: in_state(ledger, state).id for state in STATES}
    more = in_state(ledger, "held").id
    no_nonce = reserved(ledger)
    ledger.hold(no_nonce.id, proof(nonce=None), now_us=NOW)
    ledger.finish(no_nonce.id, end(), now_us=NOW)
    assert [row.id for row in ledger.unresolved(["eip155:8453"])] == [
        made["held"],
        made["settled"],
        more,
    ]


def test_notes_can_hold_whatever_a_seller_says(ledger: Ledger) -> None:
    """Text that a database cannot store must not cost the end of a payment."""
    made, _ = held(ledger)
    ledger.finish(made.id, end(note="bad \0 \ud800 '; DROP", transaction="0x\0"), now_us=NOW)
    found = ledger.payments()[0]
    assert (found.state, found.note, found.transaction) == ("settled", "bad ? ? '; DROP", "0x?")
    long = in_state(ledger, "held")
    ledger.finish(long.id, end("unknown", note="n" * 100_000), now_us=NOW)
    assert len(ledger.payments()[0].note) <= 1000


# --- proofs ---------------------------------------------------------------------------------------


def test_a_stored_proof_comes_back_to_the_byte(ledger: Ledger) -> None:
    made, sent = held(ledger)
    ledger.finish(made.id, end("unknown"), now_us=NOW)
    assert ledger.claim(made.id, now_us=NOW) == sent


def test_a_proof_is_not_printed() -> None:
    assert proof().value not in repr(proof(value="worth money"))
    assert "worth money" not in repr(Proof(header="h", value="worth money"))


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        ("reserved", "its proof is not stored yet"),
        ("settled", "it was delivered"),
        ("released", "it never left"),
        ("void", "it is worth nothing"),
    ],
)
def test_what_is_not_open_cannot_be_claimed(ledger: Ledger, state: str, reason: str) -> None:
    made = in_state(ledger, state)
    assert ledger.claim(made.id, now_us=NOW) is None, reason
    assert [row for row in ledger.history() if row["kind"] == "represented"] == []


def test_a_proof_is_open_until_its_margin_has_passed(ledger: Ledger) -> None:
    made, _ = held(ledger, valid_before=NOW // SECOND)
    ledger.finish(made.id, end("unknown"), now_us=NOW)
    last = (NOW // SECOND + EXPIRY_MARGIN_S) * SECOND

    view = ledger.view(made.operation, SERVICE, now_us=last)
    assert view.twin is not None
    assert view.twin.row.id == made.id
    assert view.lapsed == ()
    view = ledger.view(made.operation, SERVICE, now_us=last + 1)
    assert view.twin is None
    assert [row.id for row in view.lapsed] == [made.id]
    assert ledger.claim(made.id, now_us=last + 1) is None
    assert ledger.claim(made.id, now_us=last) is not None


def test_an_answer_that_got_lost_after_all_reopens_the_operation(ledger: Ledger) -> None:
    made = in_state(ledger, "settled")
    assert ledger.view(made.operation, SERVICE, now_us=NOW).twin is None
    ledger.reopen(made.id, now_us=NOW)
    twin = ledger.view(made.operation, SERVICE, now_us=NOW).twin
    assert twin is not None
    assert not twin.busy
    assert used(ledger, WIDE) == 1000


# --- an end that could not be written -------------------------------------------------------------


def test_an_end_that_could_not_be_written_is_written_with_the_next_call(store: Store) -> None:
    ledger = store.ledger
    made, _ = held(ledger)
    with store.locked(), pytest.raises(LedgerError, match="locked"):
        ledger.finish(made.id, end(), now_us=NOW, wait_s=0.05)
    assert state_of(ledger, made.id) == "held"

    reserved(ledger)
    assert state_of(ledger, made.id) == "settled"
    assert ledger.view(made.operation, SERVICE, now_us=NOW).twin is None


def test_a_refusal_does_not_lose_an_end_that_is_still_to_be_written(store: Store) -> None:
    ledger, cap = store.ledger, Cap("0.001", per="total")
    made, _ = held(ledger, cap)
    with store.locked(), pytest.raises(LedgerError):
        ledger.finish(made.id, end(), now_us=NOW, wait_s=0.05)

    refusal(ledger, want(cap))
    ledger.sweep(now_us=NOW)
    assert state_of(ledger, made.id) == "settled"
    (spend,) = ledger.spend(limits(cap), now_us=NOW)
    assert spend.held == 0


def test_until_then_an_identical_call_takes_the_proof_up_again(store: Store) -> None:
    """The answer was lost with the ledger: the operation is open, and nothing new is signed."""
    ledger = store.ledger
    made, _ = held(ledger)
    with store.locked(), pytest.raises(LedgerError):
        ledger.finish(made.id, end("unknown"), now_us=NOW, wait_s=0.05)
    twin = ledger.view(made.operation, SERVICE, now_us=NOW).twin
    assert twin is not None
    assert not twin.busy
    assert ledger.claim(made.id, now_us=NOW) is not None


def test_an_interrupted_call_puts_its_payment_down(ledger: Ledger) -> None:
    made, _ = held(ledger)
    early = reserved(ledger)
    ledger.let_go(made.id, now_us=NOW)
    ledger.let_go(early.id, now_us=NOW)
    twin = ledger.view(made.operation, SERVICE, now_us=NOW).twin
    assert twin is not None
    assert not twin.busy
    ledger.sweep(now_us=NOW)
    assert state_of(ledger, made.id) == "held"
    assert state_of(ledger, early.id) == "released"


def test_a_proof_made_with_its_reservation_is_held_at_once(ledger: Ledger) -> None:
    """One transaction for both, as if it had been reserved and then held."""
    made, sent = want(), proof()
    answer = ledger.reserve(made, prove=lambda: sent)
    assert isinstance(answer, Reserved) and answer.proof == sent
    (row,) = ledger.payments()
    assert (row.state, row.open, row.note) == ("held", True, "in flight")
    assert (row.nonce, row.proof_digest) == (sent.nonce, digest(sent.value))
    assert [entry["kind"] for entry in ledger.history()] == ["reserved", "held"]
    assert used(ledger, WIDE) == 1000 and verify(ledger).problems == []
    ledger.let_go(made.id, now_us=NOW)
    assert ledger.claim(made.id, now_us=NOW) == sent


def test_a_proof_that_cannot_be_made_reserves_nothing(ledger: Ledger) -> None:
    """Whatever signing raises, nothing was written."""

    def spoiled() -> Proof:
        raise ZeroDivisionError

    made = want()
    with pytest.raises(ZeroDivisionError):
        ledger.reserve(made, prove=spoiled)
    assert ledger.payments() == [] and ledger.history() == [] and used(ledger, WIDE) == 0
    assert isinstance(ledger.reserve(made), Reserved)


def test_only_its_carrier_gives_back_an_unsent_proof(ledger: Ledger) -> None:
    """It alone knows that nobody else ever had it; and once it is put down, nobody does."""
    mine, other = want(), want()
    for made in (mine, other):
        ledger.reserve(made, prove=proof)
    with pytest.raises(LedgerError, match="is held, not reserved"):
        ledger.release(mine.id, "", now_us=NOW)
    ledger.release(mine.id, "cancelled", unsent=True, now_us=NOW)
    assert state_of(ledger, mine.id) == "released" and used(ledger, WIDE) == 1000
    assert ledger.claim(mine.id, now_us=NOW) is None
    (gone,) = ledger.payments(state="released")  # nobody could ever collect what is not counted
    assert (gone.payment_id, gone.proof_digest, gone.nonce) == (mine.id, None, None)
    ledger.let_go(other.id, now_us=NOW)
    with pytest.raises(LedgerError, match="is held, not reserved"):
        ledger.release(other.id, "", unsent=True, now_us=NOW)
    assert state_of(ledger, other.id) == "held" and verify(ledger).problems == []
