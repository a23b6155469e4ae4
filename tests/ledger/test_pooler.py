"""A ledger behind PgBouncer, which lends a server's connection for one transaction at a time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.ledger.conftest import KEY
from tests.ledger.kit import (
    NOW,
    WIDE,
    Worker,
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
from tests.ledger.proxy import Cut, Proxy
from tests.ledger.worker import TOTAL
from tests.support.pgbouncer import MISSING, Pooler, binary
from tests.support.postgres import Postgres
from x402_mask import Cap, CapExceeded, LedgerError, PostgresLedger
from x402_mask._ledger.audit import verify

psycopg = pytest.importorskip("psycopg")
pytestmark = [
    pytest.mark.skipif(binary() is None, reason=MISSING),
    pytest.mark.timeout(120),
]


@pytest.fixture(scope="module")
def pooler(postgres: Postgres) -> Iterator[Pooler]:
    """Return a pooler with three connections to each database."""
    with Pooler(postgres) as made:
        yield made


@pytest.fixture
def pooled(pooler: Pooler, dsn: str) -> str:
    """Return the way to a new database through the pooler."""
    return pooler.dsn(dsn)


Opener = Callable[[str], PostgresLedger]


@pytest.fixture
def on() -> Iterator[Opener]:
    """Open ledgers; they are closed when the test is over."""
    opened: list[PostgresLedger] = []

    def ledger(dsn: str) -> PostgresLedger:
        opened.append(PostgresLedger(dsn, key=KEY))
        return opened[-1]

    yield ledger
    for made in opened:
        made.close()


def whole(ledger: PostgresLedger, cap: Cap) -> str:
    """A payment from its reservation to its end, with looks and waits between; its id."""
    made = reserved(ledger, cap)
    ledger.view(made.operation, made.service, now_us=NOW)
    ledger.hold(made.id, proof(), now_us=NOW)
    ledger.spend(limits(cap), now_us=NOW)
    assert not ledger.is_paused()
    ledger.finish(made.id, end(transaction="0x1"), now_us=NOW)
    assert state_of(ledger, made.id) == "settled"
    return made.id


def test_many_clients_share_three_connections(pooled: str, on: Opener) -> None:
    """More threads, of more ledgers, than there are connections; all in the same statements."""
    ledgers, cap = [on(pooled) for _ in range(3)], Cap(1, per="day")
    found = together(12, lambda n: [whole(ledgers[n % 3], cap) for _ in range(8)])
    assert [len(some) for some in found] == [8] * 12
    assert used(ledgers[0], cap) == 96_000
    assert verify(ledgers[0]).problems == []


def test_clients_with_other_habits_never_hear_each_others_answers(pooled: str, on: Opener) -> None:
    """Each asks the same few questions, in its own order: what one prepared another would run."""
    cap = Cap(1, per="total")

    def live(number: int) -> list[Any]:
        ledger, heard = on(pooled), []
        for step in range(24):
            what = (step * (number + 1) + number) % 5
            if what == 0:
                ledger.set_paused(False, now_us=NOW)
            elif what == 1:
                heard.append(ledger.is_paused())
            elif what == 2:
                heard.extend(p.state != "settled" for p in ledger.payments(limit=5))
            elif what == 3:
                heard.append([s.limit for s in ledger.spend(limits(cap), now_us=NOW)] != [1])
            else:
                made, _ = held(ledger, cap)
                ledger.finish(made.id, end(), now_us=NOW)
        return heard

    answers = together(6, live)
    assert not [answer for answer in answers if isinstance(answer, Exception)], answers
    ledger = on(pooled)
    assert used(ledger, cap) == 1000 * len(ledger.payments(limit=1000))
    assert verify(ledger).problems == []


def test_a_cap_is_used_in_full_by_processes_and_never_passed(pooled: str, on: Opener) -> None:
    spec = {"postgres": pooled, "key": KEY}
    workers = [Worker(spec, "race", "2") for _ in range(3)]
    for worker in workers:
        assert worker.line() == "ready"
    for worker in workers:
        worker.go()
    done = [count for worker in workers for count in worker.line()]
    for worker in workers:
        worker.go()
        worker.process.wait(20)
        with worker:
            pass
    assert sum(done) == 400
    ledger = on(pooled)
    assert used(ledger, TOTAL, time.time_ns() // 1000) == 400_000
    assert verify(ledger).problems == []


def test_a_call_that_stops_inside_its_transaction_gives_the_connection_back(
    pooled: str, on: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing that a failed call had set or locked is met by the next one on that connection."""
    ledger, other = on(pooled), on(pooled)
    reserved(ledger)

    def fail(*args: object) -> None:
        raise KeyboardInterrupt

    for _ in range(6):
        monkeypatch.setattr(ledger, "_insert", fail)
        with pytest.raises(KeyboardInterrupt):
            ledger.reserve(want())
        monkeypatch.undo()
        whole(other, WIDE)
        whole(ledger, WIDE)
    assert used(other, WIDE) == 13_000
    assert verify(other).problems == []


def test_nothing_of_a_transaction_stays_behind_on_its_connection(
    pooler: Pooler, dsn: str, on: Opener
) -> None:
    """What the server's connections say of themselves, to whoever gets them next."""
    pooled = pooler.dsn(dsn)
    whole(on(pooled), WIDE)
    for _ in range(6):
        with psycopg.connect(pooled, autocommit=True, prepare_threshold=None) as raw:
            path, sync, locks, statements = raw.execute(
                "SELECT current_setting('search_path'), current_setting('synchronous_commit'),"
                " (SELECT count(*) FROM pg_locks WHERE locktype='advisory'),"
                " (SELECT count(*) FROM pg_prepared_statements)"
            ).fetchone()
        assert ("x402_mask" in path, sync, locks, statements) == (False, "on", 0, 0)


@pytest.mark.parametrize("cut", ["before", "after"])
def test_a_commit_cut_off_between_client_and_pooler_is_looked_up(
    pooler: Pooler, dsn: str, on: Opener, cut: Cut
) -> None:
    with Proxy(pooler.folder, pooler.socket) as proxy:
        ledger = on(f"{dsn.replace(str(pooler._server.folder), str(proxy.folder))}")
        made = reserved(ledger)
        proxy.cut = cut
        if cut == "after":
            ledger.hold(made.id, proof(), now_us=NOW)
        else:
            with pytest.raises(LedgerError, match="nothing was written"):
                ledger.hold(made.id, proof(), now_us=NOW)
        assert proxy.cuts == 1
        assert state_of(ledger, made.id) == ("held" if cut == "after" else "reserved")
        assert verify(ledger).problems == []


def test_a_pooler_that_is_killed_and_started_again_is_waited_for(
    postgres: Postgres, dsn: str, on: Opener
) -> None:
    with Pooler(postgres) as pooler:
        ledger = on(pooler.dsn(dsn))
        made = reserved(ledger)
        pooler.kill()
        waiting = threading.Thread(target=lambda: ledger.hold(made.id, proof(), now_us=NOW))
        waiting.start()
        time.sleep(0.3)
        pooler.start()
        waiting.join(20)
        assert state_of(ledger, made.id) == "held"


def test_a_server_killed_behind_the_pooler_loses_nothing(
    own_postgres: Postgres, on: Opener
) -> None:
    with Pooler(own_postgres) as pooler:
        ledger = on(pooler.dsn(own_postgres.database()))
        made, _ = held(ledger)
        own_postgres.kill()
        with pytest.raises(LedgerError, match="the ledger's database"):
            ledger.finish(made.id, end(), now_us=NOW, wait_s=0.5)
        own_postgres.start()
        reserved(ledger)  # waits for it, and writes down what could not be written before
        assert state_of(ledger, made.id) == "settled"
        assert used(ledger, WIDE) == 2000
        assert verify(ledger).problems == []


def test_a_pooler_that_lends_for_a_statement_is_refused_in_words(
    postgres: Postgres, dsn: str, on: Opener
) -> None:
    """It would spread one transaction over several connections; nothing is paid through it."""
    with Pooler(postgres, "statement") as pooler:
        ledger = on(pooler.dsn(dsn))
        failure = refusal(ledger, want())
        assert isinstance(failure, LedgerError)
        assert "transaction" in str(failure)
        assert not isinstance(failure, CapExceeded)
