"""A connection that breaks at any statement of any call, before it or with the answer lost.

The same promise as for a file: the call went well and is on the ledger, or it failed and is not;
and when nobody can say, what was written counts.  Nothing is left locked.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.ledger.conftest import KEY
from tests.ledger.kit import NOW, SECOND, SERVICE, end, limits, proof, state_of, used, want
from tests.ledger.proxy import Cut, Proxy
from tests.ledger.test_tokens import bought
from tests.support.postgres import Postgres
from x402_mask import Cap, LedgerError, PostgresLedger
from x402_mask._ledger.audit import verify
from x402_mask._ledger.ledger import Ledger

psycopg = pytest.importorskip("psycopg")
pytestmark = pytest.mark.timeout(180)

CAP = Cap(1000, per="total")
Call = Callable[[Ledger, Any], Any]


@pytest.fixture(scope="module")
def wire(postgres: Postgres) -> Iterator[tuple[PostgresLedger, Proxy, PostgresLedger]]:
    """Return a ledger behind a connection that can be cut, and one on the same data that is not."""
    dsn = postgres.database()
    with Proxy(postgres.folder) as proxy:
        cut = PostgresLedger(dsn.replace(str(postgres.folder), str(proxy.folder)), key=KEY)
        whole = PostgresLedger(dsn, key=KEY)
        yield cut, proxy, whole
        cut.close()
        whole.close()


def none(ledger: Ledger, made: Any) -> None:
    """Nothing has happened before."""


def reserve(ledger: Ledger, made: Any) -> Any:
    """Reserve."""
    return ledger.reserve(made)


def reserve_with_proof(ledger: Ledger, made: Any) -> Any:
    """Reserve and hold in one step."""
    return ledger.reserve(made, prove=proof)


def hold(ledger: Ledger, made: Any) -> Any:
    """Store a proof."""
    return ledger.hold(made.id, proof(), now_us=NOW)


def finish(ledger: Ledger, made: Any) -> Any:
    """Write down the end of a call."""
    return ledger.finish(made.id, end(), now_us=NOW)


def lose(ledger: Ledger, made: Any) -> Any:
    """Write down an end that leaves it open."""
    return ledger.finish(made.id, end("unknown"), now_us=NOW)


def release(ledger: Ledger, made: Any) -> Any:
    """Give it back."""
    return ledger.release(made.id, "never sent", now_us=NOW)


def claim(ledger: Ledger, made: Any) -> Any:
    """Take an open proof in hand."""
    return ledger.claim(made.id, now_us=NOW)


def resolve(ledger: Ledger, made: Any) -> Any:
    """Write down what the chain proved."""
    return ledger.resolve(made.id, "void", transaction=None, note="", now_us=NOW + 600 * SECOND)


def ask(ledger: Ledger, made: Any) -> Any:
    """Ask the marketplace for a payment."""
    return ledger.ask_payment(made.id, now_us=NOW)


def store(ledger: Ledger, made: Any) -> Any:
    """Store the token that it gave."""
    return ledger.store_token(made.id, bought(calls=2), now_us=NOW)


def look(ledger: Ledger, made: Any) -> Any:
    """Look before a decision."""
    return ledger.view(made.operation, SERVICE, now_us=NOW)


def room(ledger: Ledger, made: Any) -> Any:
    """Ask what is left."""
    return ledger.spend(limits(CAP), now_us=NOW)


STORIES: dict[str, tuple[tuple[Call, ...], Call, dict[str, Any], tuple[str | None, str | None]]] = {
    "reserve": ((none,), reserve, {}, (None, "reserved")),
    "reserve with a proof": ((none,), reserve_with_proof, {}, (None, "held")),
    "hold": ((reserve,), hold, {}, ("reserved", "held")),
    "finish": ((reserve, hold), finish, {}, ("held", "settled")),
    "release": ((reserve,), release, {}, ("reserved", "released")),
    "claim": ((reserve, hold, lose), claim, {}, ("held", "held")),
    "resolve": ((reserve, hold, lose), resolve, {}, ("held", "void")),
    "ask": ((reserve,), ask, {"route": "token"}, ("reserved", "reserved")),
    "store": ((reserve, ask), store, {"route": "token"}, ("reserved", "settled")),
    "view": ((reserve,), look, {}, ("reserved", "reserved")),
    "spend": ((reserve,), room, {}, ("reserved", "reserved")),
}


def state(ledger: Ledger, payment_id: str) -> str | None:
    """The state of a payment, if it is there."""
    try:
        return state_of(ledger, payment_id)
    except StopIteration:
        return None


@pytest.mark.parametrize("cut", ["before", "after"])
@pytest.mark.parametrize("story", STORIES)
def test_a_call_cut_at_any_statement(
    wire: tuple[PostgresLedger, Proxy, PostgresLedger], story: str, cut: Cut
) -> None:
    """Every statement in turn, until the call asks no more of them."""
    ledger, proxy, whole = wire
    before, call, fields, (was, becomes) = STORIES[story]
    wrong = []
    for at in itertools.count(1):
        made = want(CAP, **fields)
        for step in before:
            step(ledger, made)
        ledger.is_paused()  # the connection is there, and whole
        proxy.at, proxy.cut, proxy.asked = at, cut, 0
        try:
            call(ledger, made)
            failure = None
        except LedgerError as exc:
            failure = str(exc)
        finally:
            missed, proxy.at, proxy.cut = proxy.cut is not None, None, None
        found = state(whole, made.id)
        good = found == becomes if failure is None else found in (was, becomes)
        if not good or (failure and "nothing was written" in failure and found != was):
            wrong.append(f"{at}: {failure}: {found}")
        ledger.let_go(made.id, now_us=NOW)
        began = time.monotonic()
        whole.reserve(want(CAP), wait_s=5)
        if time.monotonic() - began > 4:
            wrong.append(f"{at}: the lock was left behind")
        if missed:
            break
    assert not wrong, "\n".join(wrong)
    assert at > 3
    payments = whole.payments(limit=100_000)
    counted = [p for p in payments if p.state in ("reserved", "held", "settled")]
    assert used(whole, CAP) == 1000 * len(counted)
    assert verify(whole).problems == []


def test_every_statement_lost_without_a_word(
    wire: tuple[PostgresLedger, Proxy, PostgresLedger], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody hangs up: the server is only silent, and is given up after a while."""
    ledger, proxy, whole = wire
    monkeypatch.setattr("x402_mask._ledger.postgres_pool.ANSWER_S", 0.3)
    ledger.close()
    for at in range(2, 30, 3):
        made = want(CAP)
        ledger.is_paused()
        proxy.at, proxy.cut, proxy.asked = at, "silence", 0
        try:
            ledger.reserve(made, prove=proof, wait_s=1)
            assert state(whole, made.id) == "held"
        except LedgerError:
            assert state(whole, made.id) is None
        finally:
            missed, proxy.at, proxy.cut = proxy.cut is not None, None, None
        proxy.hang_up()  # as keepalive would: what the server still waits for is over
        whole.reserve(want(CAP), wait_s=5)
        if missed:
            break
    assert verify(whole).problems == []
