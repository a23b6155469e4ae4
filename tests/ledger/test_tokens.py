"""Marketplace payments and tokens on every kind of ledger: stages, calls left, schema, audit."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from typing import Any

import pytest

from tests.ledger.kit import NOW, ORIGIN, SECOND, SERVICE, WIDE, Store, end, proof, reserved, used
from x402_mask import LedgerError, MemoryLedger, SQLiteLedger
from x402_mask._ledger.audit import verify
from x402_mask._ledger.ledger import Ledger
from x402_mask._ledger.purchases import Asked, Bought
from x402_mask._ledger.records import OpenPayment
from x402_mask._money import UNLIMITED

TOKEN = "tok_secret_0123456789"


def bought(**changed: Any) -> Bought:
    """A token for one call that a balance paid."""
    return Bought(**{"token": TOKEN, "calls": 1, "until": None, "settled": True, **changed})


def asked(ledger: Ledger, **changed: Any) -> Any:
    """A reservation for whose payment the marketplace was asked."""
    made = reserved(ledger, route="token", **changed)
    ledger.ask_payment(made.id, now_us=NOW)
    return made


def with_token(ledger: Ledger, now_us: int = NOW, **changed: Any) -> Any:
    """A payment that brought a token, whose first call was delivered."""
    made = asked(ledger)
    ledger.note_created(made.id, "pay_m", None, now_us=NOW)
    ledger.store_token(made.id, bought(**changed), now_us=now_us)
    ledger.finish(made.id, end(), now_us=NOW)
    return made


def idle(ledger: Ledger, made: Any) -> Any:
    """The purchase, once its call has ended."""
    ledger.let_go(made.id, now_us=NOW)
    view = ledger.view(made.operation, SERVICE, now_us=NOW)
    assert view.twin is not None
    return view.twin


def stage(ledger: Ledger, made: Any) -> tuple[Any, ...]:
    """Where a purchase stands, as an identical call finds it."""
    assert idle(ledger, made).busy is False
    found = ledger.claim_purchase(made.id, None, now_us=NOW)
    assert found is not None
    ledger.let_go(made.id, now_us=NOW)
    return found.stage, found.way, found.remote, found.token


def test_the_stages_of_a_purchase(ledger: Ledger) -> None:
    made = asked(ledger)
    assert stage(ledger, made) == ("asked", None, None, None)
    ledger.note_created(made.id, "pay_m", 7 * SECOND, now_us=NOW)
    assert stage(ledger, made) == ("created", None, "pay_m", None)
    sent = proof()
    ledger.hold_purchase(made.id, "x402", sent, now_us=NOW)
    assert stage(ledger, made) == ("paying", "x402", "pay_m", None)
    found = ledger.claim_purchase(made.id, None, now_us=NOW)
    assert found is not None and found.proof == sent and found.until == 7 * SECOND
    assert found.row.state == "held" and used(ledger, WIDE) == 1000
    ledger.let_go(made.id, now_us=NOW)
    ledger.store_token(made.id, bought(), now_us=NOW)
    assert stage(ledger, made) == ("bought", "x402", "pay_m", TOKEN)
    (payment,) = ledger.payments()
    assert payment.state == "settled" and payment.route == "token"
    ledger.finish(made.id, end(), now_us=NOW)
    assert ledger.view(made.operation, SERVICE, now_us=NOW).twin is None
    assert verify(ledger).ok


def test_a_busy_purchase_is_not_claimed_twice(ledger: Ledger) -> None:
    made = asked(ledger)
    twin = ledger.view(made.operation, SERVICE, now_us=NOW).twin
    assert twin is not None and twin.busy
    assert ledger.claim_purchase(made.id, None, now_us=NOW) is None
    idle(ledger, made)
    assert ledger.claim_purchase(made.id, "carrier", now_us=NOW) is not None
    assert ledger.claim_purchase(made.id, "other", now_us=NOW) is None


@pytest.mark.parametrize("way", ["x402", "settle", "balance"])
def test_a_paid_purchase_is_never_given_back(ledger: Ledger, way: Any) -> None:
    made = asked(ledger)
    ledger.hold_purchase(made.id, way, proof() if way == "x402" else None, now_us=NOW)
    with pytest.raises(LedgerError):
        ledger.release(made.id, "no", now_us=NOW)
    with pytest.raises(LedgerError):
        ledger.hold_purchase(made.id, way, None, now_us=NOW)
    idle(ledger, made)
    assert ledger.sweep(now_us=NOW) == [] and used(ledger, WIDE) == 1000


def test_an_interrupted_purchase_stays_reserved(ledger: Ledger) -> None:
    """Its call is gone: it counts, sweeping leaves it, and an identical call finds it."""
    made = asked(ledger)
    assert idle(ledger, made).busy is False
    assert ledger.sweep(now_us=NOW) == []
    (payment,) = ledger.payments()
    assert payment.state == "reserved" and "identical call" in payment.note
    again = reserved_again(ledger, made)
    assert isinstance(again, OpenPayment) and again.row.id == made.id


@pytest.mark.parametrize("way", ["balance", "x402", "bought"])
def test_what_was_asked_for_and_lost(ledger: Ledger, way: Any) -> None:
    """If a balance pays after all, it may have paid what was lost as well; else it cost nothing."""
    made = asked(ledger)
    for _ in range(2):
        ledger.ask_anew(made.id, now_us=NOW)  # what was asked for before was never heard of
    ledger.note_created(made.id, "pay_m", None, now_us=NOW)
    ledger.ask_anew(made.id, now_us=NOW)  # the one before came to nothing, which was heard
    ledger.note_created(made.id, "pay_n", None, now_us=NOW)
    if way == "bought":
        ledger.store_token(made.id, bought(), now_us=NOW)
    else:
        ledger.hold_purchase(made.id, way, proof() if way == "x402" else None, now_us=NOW)
    lost = 0 if way == "x402" else 2
    assert used(ledger, WIDE) == 1000 * (1 + lost)
    others = [row for row in ledger.payments() if row.payment_id != made.id]
    assert [(row.state, row.open, made.id in row.note) for row in others] == [
        ("held", False, True)
    ] * lost
    assert verify(ledger).ok and idle(ledger, made).row.id == made.id


def test_a_dead_process_leaves_its_purchases_open(shared: Store) -> None:
    """Sweeping gives back what was never asked for, and no more."""
    plain, made = reserved(shared.ledger), asked(shared.ledger)
    bare = reserved(shared.ledger, route="token")
    for payment in (plain, made, bare):
        shared.ledger._flying.pop(payment.id)
    shared.sql("UPDATE payments SET flight='gone-1-1'")
    assert sorted(shared.again().sweep(now_us=NOW)) == sorted([plain.id, bare.id])
    assert used(shared.ledger, WIDE) == 1000
    assert idle(shared.ledger, made).row.id == made.id
    assert verify(shared.ledger).ok


def reserved_again(ledger: Ledger, made: Any) -> Any:
    """What an identical call's reservation is answered."""
    from dataclasses import replace

    from x402_mask._ledger.records import new_payment_id

    return ledger.reserve(replace(made, id=new_payment_id(NOW)))


def test_an_unpaid_payment_is_taken_over_once(ledger: Ledger) -> None:
    first = asked(ledger, operation="op")
    ledger.note_created(first.id, "pay_m", None, now_us=NOW)

    def taken_up(**changed: Any) -> Asked:
        one = reserved(ledger, route="token", **{"operation": "op", **changed})
        return ledger.ask_payment(one.id, now_us=NOW + 5)

    new = Asked(remote=None, at=NOW + 5, purse=None)
    assert taken_up() == new  # not while it is reserved
    ledger.release(first.id, "unpaid", now_us=NOW)
    assert taken_up(operation="other") == new
    assert taken_up(origin="https://other.example") == new
    assert taken_up() == Asked(remote="pay_m", at=NOW, purse=None)
    assert taken_up() == new
    assert verify(ledger).ok


def test_one_that_asked_for_a_signature_is_not_taken_over(ledger: Ledger) -> None:
    """Only creating it anew asks for it again."""
    first = asked(ledger, operation="op")
    ledger.note_created(first.id, "pay_m", None, way="x402", now_us=NOW)
    ledger.release(first.id, "unpaid", now_us=NOW)
    second = reserved(ledger, route="token", operation="op")
    assert ledger.ask_payment(second.id, now_us=NOW).remote is None


@pytest.mark.parametrize("purse", ["account", "balance"])
def test_whose_balance_may_pay_goes_with_the_payment(ledger: Ledger, purse: Any) -> None:
    """Whoever takes it over, with an account or without; an account is the stronger suspicion."""
    first = reserved(ledger, route="token", operation="op")
    assert ledger.ask_payment(first.id, purse=purse, now_us=NOW).purse == purse
    ledger.note_created(first.id, "pay_m", None, now_us=NOW)
    ledger.release(first.id, "unpaid", now_us=NOW)
    second = reserved(ledger, route="token", operation="op")
    assert ledger.ask_payment(second.id, now_us=NOW) == Asked("pay_m", NOW, purse=purse)
    assert ledger.ask_anew(second.id, now_us=NOW).purse is None
    assert ledger.ask_anew(second.id, purse=purse, now_us=NOW).purse == purse
    ledger.note_created(second.id, "pay_n", None, now_us=NOW)
    ledger.release(second.id, "unpaid", now_us=NOW)
    third = reserved(ledger, route="token", operation="op")
    assert ledger.ask_payment(third.id, purse="account", now_us=NOW).purse == "account"


@pytest.mark.parametrize(("calls", "uses"), [(0, 0), (1, 0), (2, 1), (4, 3), (UNLIMITED, 9)])
def test_calls_are_counted(ledger: Ledger, calls: int, uses: int) -> None:
    made = with_token(ledger, calls=calls)
    for _ in range(uses):
        taken = ledger.take_token(ORIGIN, SERVICE, now_us=NOW)
        assert taken is not None and (taken.token, taken.row.id) == (TOKEN, made.id)
        assert TOKEN not in repr(taken)
    if calls != UNLIMITED:
        assert ledger.take_token(ORIGIN, SERVICE, now_us=NOW) is None
        assert ledger.held_tokens(now_us=NOW) == frozenset()
    else:
        assert ledger.held_tokens(now_us=NOW) == {(ORIGIN, SERVICE)}
    assert verify(ledger).ok


def test_threads_share_the_calls_that_are_left(store: Store) -> None:
    """Each with its own ledger object: every call is taken once."""
    with_token(store.ledger, calls=9)
    ledgers = [store.again() for _ in range(4)]

    def take(number: int) -> int:
        ledger = ledgers[number % 4]
        return sum(ledger.take_token(ORIGIN, SERVICE, now_us=NOW) is not None for _ in range(3))

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(take, range(8))) == 8
    assert verify(store.ledger).ok


def test_a_call_that_comes_back(ledger: Ledger) -> None:
    made = with_token(ledger, calls=2)
    for _ in range(2):
        assert ledger.take_token(ORIGIN, SERVICE, now_us=NOW) is not None
        assert ledger.take_token(ORIGIN, SERVICE, now_us=NOW) is None
        ledger.return_call(made.id, now_us=NOW)
    ledger.drop_token(made.id, "refused", now_us=NOW)
    ledger.return_call(made.id, now_us=NOW)
    assert ledger.take_token(ORIGIN, SERVICE, now_us=NOW) is None
    assert verify(ledger).ok


def test_which_token_is_taken(ledger: Ledger) -> None:
    """Of this origin and service, not expired, not dropped, the oldest first; none while paused."""
    soon = with_token(ledger, calls=9, until=NOW + 5)
    assert ledger.take_token(ORIGIN, "timestamp", now_us=NOW) is None
    assert ledger.take_token("https://other.example", SERVICE, now_us=NOW) is None
    assert ledger.take_token(ORIGIN, SERVICE, now_us=NOW + 4) is not None
    assert ledger.take_token(ORIGIN, SERVICE, now_us=NOW + 5) is None
    later = with_token(ledger, NOW + 1, calls=9)
    taken = ledger.take_token(ORIGIN, SERVICE, now_us=NOW)
    assert taken is not None and taken.row.id == soon.id
    ledger.drop_token(soon.id, "refused", now_us=NOW)
    taken = ledger.take_token(ORIGIN, SERVICE, now_us=NOW)
    assert taken is not None and taken.row.id == later.id
    ledger.set_paused(True, now_us=NOW)
    assert ledger.take_token(ORIGIN, SERVICE, now_us=NOW) is None
    assert ledger.held_tokens(now_us=NOW) == {(ORIGIN, SERVICE)}


def test_whether_a_token_would_do(ledger: Ledger) -> None:
    def would_do(shop: str | None = ORIGIN, service: str = SERVICE, now_us: int = NOW) -> bool:
        return ledger.view("", service, shop, now_us=now_us).token

    assert not would_do()
    made = with_token(ledger, calls=2, until=NOW + SECOND)
    assert would_do()
    assert not (would_do(None) or would_do("https://other.example") or would_do(service="other"))
    assert not would_do(now_us=NOW + SECOND)
    ledger.take_token(ORIGIN, SERVICE, now_us=NOW)
    assert not would_do()
    ledger.return_call(made.id, now_us=NOW)
    assert would_do()
    ledger.drop_token(made.id, "refused", now_us=NOW)
    assert not would_do()


def test_a_spent_token_is_there_for_an_answer_that_broke_off(ledger: Ledger) -> None:
    made = with_token(ledger)
    assert ledger.take_token(ORIGIN, SERVICE, now_us=NOW) is None
    ledger.reopen(made.id, now_us=NOW)
    assert stage(ledger, made)[::3] == ("bought", TOKEN)
    ledger.drop_token(made.id, "refused", now_us=NOW)
    assert ledger.view(made.operation, SERVICE, now_us=NOW).twin is not None
    ledger.give_up(made.id, "refused", now_us=NOW)
    assert ledger.view(made.operation, SERVICE, now_us=NOW).twin is None
    assert used(ledger, WIDE) == 1000 and verify(ledger).ok


def test_given_up(ledger: Ledger) -> None:
    made = asked(ledger)
    ledger.hold_purchase(made.id, "settle", None, now_us=NOW)
    ledger.give_up(made.id, "expired", now_us=NOW)
    ledger.let_go(made.id, now_us=NOW)
    assert ledger.view(made.operation, SERVICE, now_us=NOW).twin is None
    assert used(ledger, WIDE) == 1000 and verify(ledger).ok


def test_another_ledger_object_goes_on(shared: Store) -> None:
    made = asked(shared.ledger)
    shared.ledger.note_created(made.id, "pay_m", None, now_us=NOW)
    shared.ledger.hold_purchase(made.id, "x402", sent := proof(), now_us=NOW)
    shared.ledger.store_token(made.id, bought(calls=3), now_us=NOW)
    shared.ledger.let_go(made.id, now_us=NOW)
    other = shared.again()
    other.sweep(now_us=NOW)
    found = other.claim_purchase(made.id, None, now_us=NOW)
    assert found is not None and (found.token, found.proof) == (TOKEN, sent)
    taken = other.take_token(ORIGIN, SERVICE, now_us=NOW)
    assert taken is not None and taken.token == TOKEN
    texts = [str(shared.sql(f"SELECT * FROM {table}")) for table in ("tokens", "history")]
    assert all(TOKEN not in text and sent.value not in text for text in texts)


def test_a_token_cannot_pass_for_another(shared: Store) -> None:
    """What is sealed is bound to its payment: swapped rows are not opened."""
    one = with_token(shared.ledger, calls=5)
    two = with_token(shared.ledger, NOW + 1, calls=5)
    shared.sql(
        "UPDATE tokens SET sealed=(SELECT sealed FROM tokens AS t WHERE t.payment=?)"
        " WHERE payment=?",
        *(two.id, one.id),
    )
    with pytest.raises(LedgerError):
        shared.ledger.take_token(ORIGIN, SERVICE, now_us=NOW)


@pytest.mark.parametrize(
    "edit",
    ["state='released'", "micro=1", "pay_to='0x00'", "route='x402'", "delivered=0", "trans='0x1'"],
)
def test_an_edited_purchase_is_detected(shared: Store, edit: str) -> None:
    made = with_token(shared.ledger, calls=3)
    shared.ledger.take_token(ORIGIN, SERVICE, now_us=NOW)
    assert verify(shared.ledger).ok
    shared.sql(f"UPDATE payments SET {edit} WHERE id=?", made.id)
    report = verify(shared.again())
    assert not report.ok and any(made.id in problem for problem in report.problems)


@pytest.mark.parametrize(
    "edit",
    [
        "UPDATE purchases SET stage='closed'",
        "UPDATE purchases SET remote='pay_other'",
        "UPDATE purchases SET stage='asked', remote=NULL",
        "DELETE FROM purchases",
        "UPDATE purchases SET payment='pay_x'",
        "UPDATE tokens SET sealed=NULL",
        "UPDATE tokens SET origin='https://evil.example'",
        "UPDATE tokens SET service='other'",
        "UPDATE tokens SET digest='00'",
        "DELETE FROM tokens",
        "UPDATE tokens SET sealed=(SELECT mac FROM history WHERE seq=1)",
    ],
)
def test_an_edited_step_of_a_purchase_is_detected(shared: Store, edit: str) -> None:
    """So that nobody makes the buyer buy again, or forget what it holds."""
    with_token(shared.ledger, calls=3)
    assert verify(shared.ledger).problems == []
    shared.sql(edit)
    report = verify(shared.again())
    assert not report.ok and any(
        "purchase of" in said or "token of" in said for said in report.problems
    )


def test_the_audit_follows_a_purchase_through_all_its_steps(ledger: Ledger) -> None:
    """Created, given back, taken up by another call, asked for anew, paid, dropped, closed."""
    first = asked(ledger)
    ledger.note_created(first.id, "pay_m", None, now_us=NOW)
    ledger.release(first.id, "nobody paid", now_us=NOW)
    assert verify(ledger).problems == []
    second = reserved(ledger, operation=first.operation)
    assert ledger.ask_payment(second.id, now_us=NOW).remote == "pay_m"
    assert verify(ledger).problems == []
    ledger.ask_anew(second.id, purse="account", now_us=NOW)
    assert verify(ledger).problems == []
    ledger.note_created(second.id, "pay_n", None, now_us=NOW)
    ledger.note_created(second.id, "pay_o", None, now_us=NOW)
    ledger.hold_purchase(second.id, "x402", proof(), now_us=NOW)
    ledger.note_created(second.id, "pay_p", None, now_us=NOW)
    ledger.store_token(second.id, bought(calls=3), now_us=NOW)
    assert verify(ledger).problems == []
    ledger.drop_token(second.id, "refused", now_us=NOW)
    ledger.give_up(second.id, "refused", now_us=NOW)
    assert verify(ledger).problems == []


def test_token_steps_are_in_the_history(ledger: Ledger) -> None:
    made = with_token(ledger, calls=2)
    ledger.take_token(ORIGIN, SERVICE, now_us=NOW)
    ledger.drop_token(made.id, "refused", now_us=NOW)
    rows = [row for row in ledger.history() if row["payment_id"] == made.id]
    kinds = [
        "reserved",
        "asked",
        "created",
        "held",
        "bought",
        "settled",
        "token_used",
        "token_dropped",
    ]
    assert [row["kind"] for row in rows] == kinds
    assert TOKEN not in str(rows)


def test_the_token_is_not_in_the_files(tmp_path: Any) -> None:
    with closing(SQLiteLedger(tmp_path / "l.db")) as ledger:
        made = with_token(ledger, calls=3)
        ledger.take_token(ORIGIN, SERVICE, now_us=NOW)
        ledger.drop_token(made.id, "refused", now_us=NOW)
    for file in tmp_path.iterdir():
        assert TOKEN.encode() not in file.read_bytes()


# --- the audit of purchases -----------------------------------------------------------------------


def unpaid(ledger: Ledger, remote: str, way: Any = None, **changed: Any) -> Any:
    """A purchase that was named and never paid; its reservation was given back."""
    made = asked(ledger, **changed)
    ledger.note_created(made.id, remote, None, way=way, now_us=NOW)
    ledger.release(made.id, "unpaid", now_us=NOW)
    return made


@pytest.mark.parametrize(
    "ways", [(None, None, None), ("x402", None), (None, "x402"), ("x402",) * 3]
)
def test_one_name_for_several_payments_accuses_nobody(ledger: Ledger, ways: Any) -> None:
    """A marketplace may call them all the same; only one of them is gone on with."""
    first = unpaid(ledger, "p1", ways[0])
    for way in ways[1:]:
        unpaid(ledger, "p1", way, operation=first.operation)
        assert verify(ledger).problems == []
    asked(ledger, operation=first.operation)
    report = verify(ledger)
    assert report.problems == [] and report.unknown == []


@pytest.mark.parametrize("ways", [(None, None), ("x402", None), (None, "x402")])
def test_what_an_older_program_did_not_write_down_is_named(
    ledger: Ledger, ways: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """... and not held against anybody; a purchase that it could not have touched still is."""
    from x402_mask._ledger import purchases as _tokenbook

    def untold(*args: Any) -> Asked | None:
        found = taken_over(*args)
        return None if found is None else Asked(found.remote, found.at, found.purse)

    taken_over = _tokenbook._taken_over
    monkeypatch.setattr(_tokenbook, "_taken_over", untold)
    for way in ways:  # at once, so that the second takes over nothing
        made = reserved(ledger, route="token", operation="o")
        ledger.ask_payment(made.id, now_us=NOW)
        ledger.note_created(made.id, "p1", None, way=way, now_us=NOW)
    for payment in ledger.payments():
        ledger.release(payment.payment_id, "unpaid", now_us=NOW)
    asked(ledger, operation="o")
    report = verify(ledger)
    assert report.problems == []
    (sentence,) = report.unknown
    assert "did not write that down" in sentence
    elsewhere = unpaid(ledger, "p2")
    with ledger._transaction(5) as db:
        db.run("UPDATE purchases SET stage='closed' WHERE payment=?", elsewhere.id)
    assert len(verify(ledger).problems) == 1


@pytest.mark.parametrize("seed", range(12))
def test_no_life_of_a_marketplace_buyer_is_called_tampering(seed: int) -> None:
    """Whatever is done in whatever order, as far as the ledger lets it be done."""
    purse: tuple[Any, ...] = (None, "account", "balance")
    rng = random.Random(seed)
    ledger, made = MemoryLedger(), []

    def one() -> Any:
        return rng.choice(made).id

    def remote() -> str:
        return rng.choice(("p1", "p2"))

    def way() -> Any:
        return rng.choice((None, "x402", "transfer", "settle", "account", "balance"))

    def start() -> None:
        operation = rng.choice(("o1", "o2"))
        with suppress(AssertionError):  # it may be open already
            made.append(reserved(ledger, route="token", operation=operation))
            ledger.ask_payment(made[-1].id, purse=rng.choice(purse), now_us=NOW)

    moves: list[Any] = [
        start,
        lambda: ledger.ask_payment(one(), purse=rng.choice(purse), now_us=NOW),
        lambda: ledger.note_created(one(), remote(), None, way=way(), now_us=NOW),
        lambda: ledger.release(one(), "unpaid", now_us=NOW),
        lambda: ledger.hold_purchase(one(), "x402", proof(), now_us=NOW),
        lambda: ledger.hold_purchase(one(), rng.choice(("settle", "balance")), None, now_us=NOW),
        lambda: ledger.ask_anew(one(), now_us=NOW),
        lambda: ledger.store_token(one(), bought(calls=rng.choice((1, 3, -1))), now_us=NOW),
        lambda: ledger.finish(one(), end(rng.choice(("settled", "unknown"))), now_us=NOW),
        lambda: ledger.let_go(one(), now_us=NOW),
        lambda: ledger.claim_purchase(one(), None, now_us=NOW),
        lambda: ledger.take_token(ORIGIN, SERVICE, now_us=NOW),
        lambda: ledger.return_call(one(), now_us=NOW),
        lambda: ledger.drop_token(one(), "spent", now_us=NOW),
        lambda: ledger.give_up(one(), "lost", now_us=NOW),
        lambda: ledger.reopen(one(), now_us=NOW),
        lambda: ledger.sweep(now_us=NOW),
    ]
    start()
    for _ in range(150):
        with suppress(LedgerError):
            rng.choice(moves)()
        report = verify(ledger)
        assert report.problems == [] and report.unknown == []
