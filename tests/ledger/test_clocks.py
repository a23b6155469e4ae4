"""One operation has one live proof, by every clock that is at hand; and what is paid stays paid."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.ledger.kit import (
    DAY,
    NOW,
    SECOND,
    SERVICE,
    WIDE,
    Store,
    at,
    end,
    held,
    proof,
    refusal,
    reserved,
    state_of,
    used,
    want,
)
from x402_mask import PaymentRefused
from x402_mask._ledger.audit import verify
from x402_mask._ledger.ledger import Ledger
from x402_mask._ledger.records import OpenPayment, Reserved
from x402_mask._policy.clocks import DAY_US, Clocks, dead_at

OPERATION = "one operation"
UNTIL = NOW // SECOND + 300
DEAD = dead_at(UNTIL) + 1


def lost(ledger: Ledger, **changed: Any) -> str:
    """A payment whose answer was lost; its proof is valid until ``UNTIL``."""
    made, _ = held(ledger, operation=OPERATION, valid_before=UNTIL, **changed)
    ledger.finish(made.id, end("unknown"), now_us=NOW)
    return made.id


def proven(ledger: Ledger) -> str:
    """A payment that the chain has settled, and whose answer was lost."""
    made = lost(ledger)
    assert ledger.resolve(made, "settled", transaction="0x" + "ab" * 32, note="", now_us=DEAD)
    return made


def view(ledger: Ledger, now_us: int, **more: Any) -> Any:
    return ledger.view(OPERATION, SERVICE, now_us=now_us, **more)


# --- the seller's clock ---------------------------------------------------------------------------


def test_a_seller_whose_clock_is_behind_ours_keeps_the_proof_alive(ledger: Ledger) -> None:
    made, early = lost(ledger), DEAD - 1
    seen = view(ledger, DEAD, seller_us=early)
    assert (seen.twin.row.id, seen.twin.busy, seen.twin.by) == (made, False, "seller")
    assert [row.id for row in seen.lapsed] == [made]
    answer = ledger.reserve(want(operation=OPERATION, at=DEAD, seller_us=early))
    assert isinstance(answer, OpenPayment) and answer.row.id == made
    assert ledger.claim(made, now_us=DEAD) is None
    assert ledger.claim(made, now_us=DEAD, seller_us=early) is not None


def test_for_a_day_by_our_clock_and_no_longer(ledger: Ledger) -> None:
    made = lost(ledger)
    last = DEAD - 1 + DAY
    assert view(ledger, last, seller_us=0).twin.by == "seller"
    assert view(ledger, last + 1, seller_us=0).twin is None
    assert ledger.claim(made, now_us=last + 1, seller_us=0) is None
    again = want(operation=OPERATION, at=last + 1, seller_us=0)
    assert isinstance(ledger.reserve(again), Reserved)


def test_a_seller_whose_clock_is_ahead_ends_nothing(ledger: Ledger) -> None:
    lost(ledger)
    seen = view(ledger, DEAD - 1, seller_us=DEAD + DAY)
    assert seen.twin.by == "ours" and seen.lapsed == ()


def test_what_only_the_chain_has_alive_is_claimed_by_its_word(ledger: Ledger) -> None:
    made = lost(ledger)
    assert ledger.claim(made, now_us=DEAD + DAY, by_chain=True) is not None
    assert ledger.claim(made, now_us=DEAD + DAY, by_chain=True) is None, "in flight"
    ledger.finish(made, end(), now_us=DEAD + DAY)
    assert ledger.claim(made, now_us=DEAD + DAY, by_chain=True) is None, "delivered"


def test_what_is_carried_is_waited_for_even_when_it_has_expired(ledger: Ledger) -> None:
    """By those who share its key: an answer may take longer than a proof lives."""
    made, _ = held(ledger, operation=OPERATION, valid_before=UNTIL)
    twin = view(ledger, DEAD).twin
    assert twin.row.id == made.id and twin.busy
    answer = ledger.reserve(want(operation=OPERATION, at=DEAD, keyed=True))
    assert isinstance(answer, OpenPayment) and answer.busy
    assert isinstance(ledger.reserve(want(operation=OPERATION, at=DEAD)), Reserved)


# --- the database's -------------------------------------------------------------------------------


@pytest.fixture
def slow(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> Ledger:
    """A ledger whose database has its own clock, an hour behind ours."""
    monkeypatch.setattr(type(ledger), "_database_us", lambda *_: DEAD - 3600 * SECOND)
    return ledger


def test_a_database_whose_clock_is_behind_keeps_the_proof_alive(slow: Ledger) -> None:
    made = lost(slow)
    assert view(slow, DEAD).twin.by == "database"
    assert view(slow, DEAD + 9 * DAY).twin.by == "database", "for as long as it takes"
    answer = slow.reserve(want(operation=OPERATION, at=DEAD))
    assert isinstance(answer, OpenPayment) and answer.row.id == made
    assert slow.claim(made, now_us=DEAD) is not None


def test_a_database_that_has_it_alive_frees_nothing(slow: Ledger) -> None:
    made = lost(slow)
    assert not slow.resolve(made, "void", transaction=None, note="unused", now_us=DEAD)
    assert state_of(slow, made) == "held" and used(slow, WIDE) == 1000


def test_the_server_itself_is_asked(store: Store) -> None:
    """PostgreSQL only: the other ledgers have no clock but ours."""
    ledger = store.ledger
    with ledger._transaction(5.0, write=False) as db:
        told = ledger._database_us(db)
    if store.kind != "postgres":
        assert told is None
        return
    assert told is not None and told > at("2026-01-01 00:00")
    made, _ = held(ledger, operation=OPERATION, valid_before=told // SECOND + 300)
    ledger.finish(made.id, end("unknown"), now_us=NOW)
    ahead = told + 9 * DAY
    assert view(ledger, ahead).twin.by == "database"
    assert store.again().claim(made.id, now_us=ahead) is not None


# --- one function ---------------------------------------------------------------------------------


def test_each_clock_must_be_past_the_end_and_its_margin() -> None:
    early, late = DEAD - 1, DEAD
    for ours in (early, late):
        for database in (early, late, None):
            for seller in (early, late, None):
                alive = Clocks(ours, seller, lambda database=database: database).alive_by(UNTIL)
                wanted = {ours: "ours", database: "database", seller: "seller"}
                assert (alive is None) is (early not in wanted)
                first = [
                    n
                    for t, n in ((ours, "ours"), (database, "database"), (seller, "seller"))
                    if t == early
                ]
                assert alive == (first[0] if first else None)


def test_a_proof_that_never_expires_is_alive() -> None:
    assert Clocks(1 << 60).alive_by(None) == "ours"


def test_the_database_is_asked_only_where_it_matters_and_once() -> None:
    asked: list[int] = []

    def ask() -> int:
        asked.append(1)
        return DEAD

    clocks = Clocks(DEAD - 1, None, ask)
    assert clocks.alive_by(UNTIL) == "ours" and not asked
    clocks = Clocks(DEAD, None, ask)
    assert clocks.alive_by(UNTIL) is None and clocks.alive_by(UNTIL - 1) is None
    assert len(asked) == 1


# --- freed by what a chain says -------------------------------------------------------------------


def test_nothing_is_void_before_it_has_expired_by_our_clock(ledger: Ledger) -> None:
    made = lost(ledger)
    for state in ("held", "settled"):
        assert not ledger.resolve(made, "void", transaction=None, note="unused", now_us=DEAD - 1)
        assert state_of(ledger, made) == state and used(ledger, WIDE) == 1000
        ledger.finish(made, end("settled", delivered=False), now_us=NOW)
    assert ledger.resolve(made, "void", transaction=None, note="unused", now_us=DEAD)
    assert used(ledger, WIDE) == 0


# --- paid before ----------------------------------------------------------------------------------


def test_what_is_proven_settled_is_not_reserved_again(ledger: Ledger) -> None:
    made = proven(ledger)
    assert [row.id for row in view(ledger, DEAD).paid] == [made]
    error = refusal(ledger, want(operation=OPERATION, at=DEAD))
    assert isinstance(error, PaymentRefused) and error.reason == "paid_before"
    assert error.payment_id == made and made in str(error) and not error.at_risk
    assert used(ledger, WIDE) == 1000


def test_while_its_proof_is_alive_it_is_presented_instead(ledger: Ledger) -> None:
    made = proven(ledger)
    assert view(ledger, DEAD - 1).paid == ()
    assert view(ledger, DEAD, seller_us=DEAD - 1).paid == ()
    assert view(ledger, DEAD, seller_us=DEAD - 1).twin.row.id == made


def test_a_day_after_the_first_refusal_it_is_a_new_purchase(store: Store) -> None:
    """Without a key; the day is that of the first refusal, for everybody on the ledger."""
    ledger, first = store.ledger, DEAD + 3 * DAY
    made = proven(ledger)
    ledger.refuse_again([made], now_us=first)
    other = ledger if store.kind == "memory" else store.again()
    other.refuse_again([made], now_us=first + DAY // 2)
    last = first + DAY_US
    for one in (ledger, other):
        assert [row.id for row in view(one, last).paid] == [made]
        assert view(one, last + 1).paid == ()
        assert [row.id for row in view(one, last + 1, keyed=True).paid] == [made], "for ever"
    keyed = want(operation=OPERATION, at=last + 1, keyed=True)
    assert getattr(refusal(ledger, keyed), "reason", None) == "paid_before"
    assert isinstance(ledger.reserve(replace(keyed, keyed=False)), Reserved)
    report = verify(ledger)
    assert report.ok, report.problems
    assert [row["kind"] for row in ledger.history()].count("paid_before") == 1


def test_a_first_refusal_that_somebody_moved_is_found(store: Store) -> None:
    if store.kind == "memory":
        return  # nobody else can write to it
    made = proven(store.ledger)
    store.ledger.refuse_again([made], now_us=DEAD)
    store.sql("UPDATE payments SET again=?", DEAD - DAY)
    assert any("again" in problem for problem in verify(store.ledger).problems)


@pytest.mark.parametrize("state", ["a claim", "delivered", "void", "held"])
def test_only_what_is_proven_and_was_not_delivered_counts(ledger: Ledger, state: str) -> None:
    made = lost(ledger)
    if state == "a claim":
        ledger.finish(made, end("settled", delivered=False), now_us=NOW)
    elif state == "delivered":
        ledger.finish(made, end(), now_us=NOW)
        assert ledger.resolve(made, "settled", transaction=None, note="", now_us=DEAD)
    elif state == "void":
        assert ledger.resolve(made, "void", transaction=None, note="", now_us=DEAD)
    assert view(ledger, DEAD).paid == ()
    assert isinstance(ledger.reserve(want(operation=OPERATION, at=DEAD)), Reserved)


def test_a_reservation_says_nothing_of_another_operation(ledger: Ledger) -> None:
    proven(ledger)
    made = reserved(ledger, at=DEAD)
    ledger.hold(made.id, proof(), now_us=DEAD)
    assert state_of(ledger, made.id) == "held"
