"""What only a ledger behind a network can suffer: lost connections, dead servers, leases, secrets."""

from __future__ import annotations

import asyncio
import gc
import itertools
import logging
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.ledger.conftest import KEY
from tests.ledger.kit import (
    NOW,
    SERVICE,
    WIDE,
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
from tests.support.postgres import Postgres
from x402_mask import Cap, LedgerError, PostgresLedger
from x402_mask._drive.perform import AsyncPerformer
from x402_mask._flow.effects import Record
from x402_mask._ledger.audit import verify
from x402_mask._ledger.records import OpenPayment
from x402_mask._ledger.schema import SCHEMA_VERSION

psycopg = pytest.importorskip("psycopg")

SECRET = "s3cret-and-l0ng"


@pytest.fixture
def ledger(dsn: str) -> Iterator[PostgresLedger]:
    """Return a new ledger."""
    made = PostgresLedger(dsn, key=KEY)
    yield made
    made.close()


@pytest.fixture
def admin(dsn: str) -> Iterator[Any]:
    """Return a connection of the database's owner."""
    with psycopg.connect(f"{dsn} options=-csearch_path=x402_mask", autocommit=True) as raw:
        yield raw


@pytest.fixture
def proxied(dsn: str, postgres: Postgres) -> Iterator[tuple[PostgresLedger, Proxy]]:
    """Return a ledger behind a connection that can be cut."""
    with Proxy(postgres.folder) as proxy:
        made = PostgresLedger(dsn.replace(str(postgres.folder), str(proxy.folder)), key=KEY)
        yield made, proxy
        made.close()


# --- connections ----------------------------------------------------------------------------------


def test_a_commit_that_was_done_before_the_connection_broke_is_a_success(
    proxied: tuple[PostgresLedger, Proxy], dsn: str
) -> None:
    """Was it written?  It was: the proof may leave."""
    ledger, proxy = proxied
    made = reserved(ledger)
    proxy.cut = "after"
    ledger.hold(made.id, proof(), now_us=NOW)
    assert proxy.cuts == 1
    assert state_of(PostgresLedger(dsn, key=KEY), made.id) == "held"
    ledger.finish(made.id, end(), now_us=NOW)
    assert verify(ledger).problems == []


def test_a_commit_that_never_arrived_is_an_error(proxied: tuple[PostgresLedger, Proxy]) -> None:
    """Was it written?  It was not: nothing may leave, and the money is given back."""
    ledger, proxy = proxied
    made = reserved(ledger)
    proxy.cut = "before"
    with pytest.raises(LedgerError, match="lost before it committed; nothing was written"):
        ledger.hold(made.id, proof(), now_us=NOW)
    assert proxy.cuts == 1
    assert state_of(ledger, made.id) == "reserved"
    ledger.release(made.id, "never sent", now_us=NOW)
    assert used(ledger, WIDE) == 0
    assert verify(ledger).problems == []


@pytest.mark.parametrize("cut", ["before", "after"])
def test_a_commit_that_nobody_can_be_asked_about_counts_if_it_was_done(
    proxied: tuple[PostgresLedger, Proxy], dsn: str, cut: Cut
) -> None:
    ledger, proxy = proxied
    made = reserved(ledger)
    proxy.cut, proxy.stays_down = cut, True
    started = time.monotonic()
    with pytest.raises(LedgerError, match="cannot be asked whether it committed"):
        ledger.hold(made.id, proof(), now_us=NOW, wait_s=0.5)
    assert time.monotonic() - started < 8
    direct = PostgresLedger(dsn, key=KEY)
    assert state_of(direct, made.id) == ("reserved" if cut == "before" else "held")
    assert used(direct, WIDE) == 1000

    proxy.down = False
    if cut == "after":  # it is on the ledger, so it is not given back
        with pytest.raises(LedgerError, match="is held, not reserved"):
            ledger.release(made.id, "never sent", now_us=NOW)
    assert used(ledger, WIDE) == 1000
    direct.close()


def test_a_lost_answer_to_a_reservation_is_found_again(
    proxied: tuple[PostgresLedger, Proxy],
) -> None:
    ledger, proxy = proxied
    cap = Cap("0.001", per="total")
    reserved(ledger, Cap(1, per="day"))  # the lease and the counters are there
    ledger.spend(limits(cap), now_us=NOW)
    wanted = want(Cap(1, per="day"))
    proxy.cut = "after"
    assert not isinstance(ledger.reserve(wanted), OpenPayment)
    assert proxy.cuts == 1
    ledger.hold(wanted.id, proof(), now_us=NOW)


def test_an_end_cut_off_in_its_commit_is_written_later(
    proxied: tuple[PostgresLedger, Proxy],
) -> None:
    ledger, proxy = proxied
    made, _ = held(ledger)
    proxy.cut = "before"
    with pytest.raises(LedgerError):
        ledger.finish(made.id, end(), now_us=NOW)
    assert state_of(ledger, made.id) == "held"
    reserved(ledger)
    assert state_of(ledger, made.id) == "settled"


def test_a_connection_lost_between_two_calls_is_not_noticed(
    ledger: PostgresLedger, admin: Any
) -> None:
    made = reserved(ledger)
    for _ in range(3):
        cut_off(admin)
        ledger.payments()
        cut_off(admin)
        reserved(ledger)
    ledger.hold(made.id, proof(), now_us=NOW)
    assert used(ledger, WIDE) == 4000


def cut_off(admin: Any) -> None:
    """End every other connection to the database."""
    admin.execute(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )


@pytest.mark.parametrize("method", ["_check_caps", "_insert", "_write"])
def test_a_connection_lost_in_the_middle_of_a_call_writes_nothing(
    ledger: PostgresLedger, admin: Any, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    reserved(ledger)
    whole: Callable[..., Any] = getattr(ledger, method)

    def cut(*args: Any) -> Any:
        answer = whole(*args)
        cut_off(admin)
        return answer

    monkeypatch.setattr(ledger, method, cut)
    assert type(refusal(ledger, want())) is LedgerError
    monkeypatch.undo()
    assert used(ledger, WIDE) == 1000
    assert len(ledger.payments()) == 1
    reserved(ledger)
    assert verify(ledger).problems == []


def test_a_server_that_stops_answering_is_given_up(
    ledger: PostgresLedger, admin: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A backend stopped in mid-statement would otherwise keep the caller for ever."""
    monkeypatch.setattr("x402_mask._ledger.postgres_pool.ANSWER_S", 0.5)
    reserved(ledger)
    ledger.close()
    stopped: list[int] = []

    def stop(*args: Any) -> Any:
        db = args[0]
        ((pid,),) = db.all("SELECT pg_backend_pid()")
        stopped.append(pid)
        os.kill(pid, signal.SIGSTOP)
        return insert(*args)

    insert = ledger._insert
    monkeypatch.setattr(ledger, "_insert", stop)
    started = time.monotonic()
    try:
        assert "no answer within 0.5 s" in str(refusal(ledger, want()))
        assert time.monotonic() - started < 10
    finally:
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)
    monkeypatch.undo()
    reserved(ledger)
    assert used(ledger, WIDE) == 2000


def test_a_process_stopped_inside_of_a_call_does_not_keep_the_others_out(
    ledger: PostgresLedger, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server ends its transaction; when it goes on, it has written nothing."""
    monkeypatch.setattr("x402_mask._ledger.postgres._IDLE_MS", 300)
    other = PostgresLedger(dsn, key=KEY)
    insert = ledger._insert

    def dream(*args: Any) -> Any:
        time.sleep(1)
        return insert(*args)

    reserved(ledger)
    monkeypatch.setattr(ledger, "_insert", dream)
    sleeper = threading.Thread(target=lambda: failures.append(refusal(ledger, want())))
    failures: list[Any] = []
    sleeper.start()
    time.sleep(0.1)
    reserved(other)
    sleeper.join(10)
    assert type(failures[0]) is LedgerError
    assert used(other, WIDE) == 2000
    other.close()


def test_threads_share_few_connections(ledger: PostgresLedger, admin: Any) -> None:
    reserved(ledger)
    counts: list[int] = []

    def look(number: int) -> None:
        for _ in range(5):
            ledger.view("", SERVICE, now_us=NOW)
            reserved(ledger)
        if number == 0:
            sql = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
            counts.append(admin.execute(sql).fetchone()[0] - 1)

    assert together(24, look) == [None] * 24
    assert 1 <= counts[0] <= 8
    ledger.close()
    sql = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
    deadline = time.monotonic() + 5
    while admin.execute(sql).fetchone()[0] > 1 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert admin.execute(sql).fetchone()[0] == 1


# --- servers --------------------------------------------------------------------------------------


@pytest.mark.timeout(90)
def test_a_killed_server_loses_nothing_that_was_acknowledged(own_postgres: Postgres) -> None:
    """... in the middle of the work of four threads, and the ledger finds it again by itself."""
    ledger = PostgresLedger(own_postgres.database(), key=KEY)
    known: dict[str, str] = {}
    stop = threading.Event()

    def pay(_: int) -> None:
        while not stop.is_set():
            made = want()
            try:
                ledger.reserve(made)
                known[made.id] = "reserved"
                ledger.hold(made.id, proof(), now_us=NOW)
                known[made.id] = "held"
                ledger.finish(made.id, end(), now_us=NOW)
                known[made.id] = "settled"
            except LedgerError:
                time.sleep(0.05)

    def disturb() -> None:
        for wanted in (12, 24):
            until = time.monotonic() + 30  # a busy machine takes its time
            while len(known) < wanted and time.monotonic() < until:
                time.sleep(0.05)
            own_postgres.kill()
            own_postgres.start()
        time.sleep(0.5)
        stop.set()

    disturber = threading.Thread(target=disturb)
    disturber.start()
    together(4, pay)
    disturber.join(60)
    found = {p.payment_id: p.state for p in ledger.payments(limit=100_000)}
    order = ["reserved", "held", "settled"]
    assert len(known) > 20
    for payment, state in known.items():
        assert order.index(found[payment]) >= order.index(state)
    assert used(ledger, WIDE) == 1000 * len(found)
    assert verify(ledger).problems == []
    ledger.close()


@pytest.mark.timeout(60)
def test_a_restart_is_waited_for_and_a_server_that_is_gone_is_an_error(
    own_postgres: Postgres,
) -> None:
    ledger = PostgresLedger(own_postgres.database(), key=KEY)
    made = reserved(ledger)
    own_postgres.shut_down()
    started = time.monotonic()
    with pytest.raises(LedgerError, match="the ledger's database failed"):
        ledger.hold(made.id, proof(), now_us=NOW, wait_s=1)
    assert 0.8 < time.monotonic() - started < 6

    waiting = threading.Thread(target=lambda: ledger.hold(made.id, proof(), now_us=NOW))
    waiting.start()
    own_postgres.start()
    waiting.join(20)
    assert state_of(ledger, made.id) == "held"
    ledger.close()


def test_every_commit_is_synchronous_whatever_the_servers_default(
    ledger: PostgresLedger, admin: Any, dsn: str
) -> None:
    database = admin.execute("SELECT current_database()").fetchone()[0]
    admin.execute(f"ALTER DATABASE {database} SET synchronous_commit = off")
    admin.execute(f"ALTER DATABASE {database} SET default_transaction_isolation = serializable")
    admin.execute(f"ALTER DATABASE {database} SET default_transaction_read_only = on")
    try:
        reserved(ledger)
        for durable in (True, False):
            with ledger._transaction(5, durable=durable) as db:
                assert db.one("SHOW synchronous_commit") == ("on",)
                assert db.one("SHOW transaction_isolation") == ("read committed",)
        other = PostgresLedger(dsn, key=KEY)
        cap = Cap("0.03", per="total")
        done = together(16, lambda n: [try_one((ledger, other)[n % 2], cap) for _ in range(4)])
        assert sum(map(sum, done)) == 29
        other.close()
    finally:
        admin.execute("SET default_transaction_read_only = off")
        admin.execute(f"ALTER DATABASE {database} RESET ALL")


def try_one(ledger: PostgresLedger, cap: Cap) -> bool:
    """Whether one more payment fits."""
    from x402_mask import CapExceeded

    try:
        ledger.reserve(want(cap))
    except CapExceeded:
        return False
    return True


# --- leases ---------------------------------------------------------------------------------------


@pytest.fixture
def short_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make leases last three quarters of a second."""
    monkeypatch.setattr("x402_mask._ledger.postgres.LEASE_S", 0.75)
    monkeypatch.setattr("x402_mask._ledger.postgres.BEAT_S", 0.1)


@pytest.mark.usefixtures("short_lease")
def test_a_lease_is_renewed_while_calls_are_in_flight(ledger: PostgresLedger, admin: Any) -> None:
    sql = "SELECT count(*) FROM owners WHERE until > clock_timestamp()"
    ledger.payments()
    assert admin.execute(sql).fetchone() == (0,)  # who only looks needs no lease
    made, _ = held(ledger)
    for _ in range(4):
        time.sleep(0.4)
        assert admin.execute(sql).fetchone() == (1,)
    for payment in list(ledger._flying):  # those of other tests on this database, too
        ledger._flying.pop(payment)
    time.sleep(2)
    assert admin.execute(sql).fetchone() == (0,)
    assert ledger._heart._thread is None
    made = reserved(ledger)
    assert admin.execute(sql).fetchone() == (1,)
    ledger.release(made.id, "", now_us=NOW)


@pytest.mark.usefixtures("short_lease")
def test_a_process_that_cannot_renew_its_lease_is_dead_to_the_others(
    ledger: PostgresLedger, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """... its reservation is given back, and when it goes on it sends nothing."""
    from x402_mask._ledger import core

    made = reserved(ledger)
    ledger._heart.stop()
    time.sleep(1)
    monkeypatch.setattr(core, "_selves", {})  # as in another process
    other = PostgresLedger(dsn, key=KEY)
    assert other.sweep(now_us=NOW) == [made.id]
    other.close()
    monkeypatch.undo()
    with pytest.raises(LedgerError, match="released, not reserved"):
        ledger.hold(made.id, proof(), now_us=NOW)


def test_a_reservation_without_a_lease_is_not_made(
    ledger: PostgresLedger, admin: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger.payments()
    admin.execute("ALTER TABLE owners RENAME TO owners_elsewhere")
    assert "a table of the schema x402_mask is gone" in str(refusal(ledger, want()))
    admin.execute("ALTER TABLE owners_elsewhere RENAME TO owners")
    assert ledger.payments() == []


@pytest.mark.usefixtures("short_lease")
@pytest.mark.parametrize("closed", [True, False])
def test_a_ledger_that_is_dropped_leaves_no_thread_and_no_connection(
    dsn: str, admin: Any, closed: bool
) -> None:
    ledger = PostgresLedger(dsn, key=KEY)
    reserved(ledger)
    heart = ledger._heart._thread
    assert heart is not None
    assert heart.is_alive()
    if closed:
        ledger.close()
    del ledger
    gc.collect()
    heart.join(5)
    assert not heart.is_alive()
    sql = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
    deadline = time.monotonic() + 5
    while admin.execute(sql).fetchone()[0] > 1 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert admin.execute(sql).fetchone()[0] == 1


# --- tables and keys ------------------------------------------------------------------------------


@pytest.mark.parametrize("named", ["x", "", "0", None])
def test_a_ledger_that_names_no_schema_is_refused(dsn: str, admin: Any, named: Any) -> None:
    """In words, and by an error that a paid call may raise."""
    PostgresLedger(dsn, key=KEY).payments()
    if named is None:
        admin.execute("DELETE FROM meta WHERE name='schema'")
    else:
        admin.execute("UPDATE meta SET value=%s WHERE name='schema'", [named])
    said = str(refusal(PostgresLedger(dsn, key=KEY), want()))
    assert "is not a ledger of x402_mask" in said


def test_an_older_program_refuses_a_newer_ledger(dsn: str, admin: Any) -> None:
    PostgresLedger(dsn, key=KEY).payments()
    admin.execute(f"UPDATE meta SET value='{SCHEMA_VERSION + 1}' WHERE name='schema'")
    ledger = PostgresLedger(dsn, key=KEY)
    said = str(refusal(ledger, want()))
    assert f"newer x402_mask (schema {SCHEMA_VERSION + 1}" in said
    assert "upgrade this program" in said


def test_a_schema_of_something_else_is_left_alone(dsn: str, admin: Any) -> None:
    admin.execute("CREATE SCHEMA x402_mask")
    admin.execute("CREATE TABLE x402_mask.meta (name TEXT, value TEXT)")
    assert "is not a ledger of x402_mask" in str(refusal(PostgresLedger(dsn, key=KEY), want()))


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1", "UTF8"])
def test_a_database_may_have_any_encoding(postgres: Postgres, encoding: str) -> None:
    """What it answers is text all the same."""
    name = f"encoded_{encoding.lower()}"
    with psycopg.connect(postgres.dsn(), autocommit=True) as raw:
        raw.execute(
            f"CREATE DATABASE {name} ENCODING '{encoding}' TEMPLATE template0"  # type: ignore[arg-type]
            " LC_COLLATE 'C' LC_CTYPE 'C'"
        )
    for dsn in (postgres.dsn(name), postgres.dsn(name) + " client_encoding=SQL_ASCII"):
        ledger = PostgresLedger(dsn, key=KEY)
        made, _ = held(ledger)
        assert ledger.payments()[0].payment_id == made.id
        assert verify(ledger).problems == []
        ledger.close()


def test_an_emptied_database_is_not_a_new_budget(
    ledger: PostgresLedger, admin: Any, dsn: str
) -> None:
    reserved(ledger)
    ledger.close()
    admin.execute("DROP SCHEMA x402_mask CASCADE")
    again = PostgresLedger(dsn, key=KEY)
    assert "is empty or gone, but" in str(refusal(again, want()))
    again.head_file.path.unlink()
    reserved(again)
    again.close()


def test_a_role_that_owns_only_the_schema_is_enough(dsn: str, admin: Any) -> None:
    database = admin.execute("SELECT current_database()").fetchone()[0]
    admin.execute("DROP ROLE IF EXISTS buyer")
    admin.execute("CREATE ROLE buyer LOGIN")
    mine = dsn.replace("user=postgres", "user=buyer")
    try:
        assert "CREATE on the database" in str(refusal(PostgresLedger(mine, key=KEY), want()))
        admin.execute("CREATE SCHEMA x402_mask AUTHORIZATION buyer")
        ledger = PostgresLedger(mine, key=KEY)
        held(ledger)
        assert verify(ledger).ok
        ledger.close()
    finally:
        admin.execute("DROP SCHEMA IF EXISTS x402_mask CASCADE")
        admin.execute(f"REVOKE ALL ON DATABASE {database} FROM buyer")
        admin.execute("DROP ROLE buyer")


def test_every_host_needs_the_same_key(
    dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By default in a file; elsewhere by argument or environment."""
    first = PostgresLedger(dsn)
    made, sent = held(first)
    first.finish(made.id, end("unknown"), now_us=NOW)
    key = first.key_path.read_text("ascii").strip()
    assert first.key_path.stat().st_mode & 0o777 == 0o600

    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "another host"))
    elsewhere = PostgresLedger(dsn)
    said = str(refusal(elsewhere, want()))
    assert "no key for this ledger is known here: every host needs the key" in said
    assert "X402_MASK_LEDGER_KEY" in said
    assert not elsewhere.key_path.exists()  # a key of its own would only hide what is missing
    assert "this is another key" in str(refusal(PostgresLedger(dsn, key="00" * 32), want()))

    monkeypatch.setenv("X402_MASK_LEDGER_KEY", key)
    assert elsewhere.claim(made.id, now_us=NOW) == sent
    elsewhere.finish(made.id, end("unknown"), now_us=NOW)
    other = PostgresLedger(dsn, key=bytes.fromhex(key))
    assert other.claim(made.id, now_us=NOW) == sent
    monkeypatch.setenv("X402_MASK_LEDGER_KEY", "nonsense")
    assert "X402_MASK_LEDGER_KEY is not 64 hex digits" in str(refusal(PostgresLedger(dsn), want()))
    for opened in (first, elsewhere, other):
        opened.close()


@pytest.mark.parametrize("key", [b"short", "xyz", "ab" * 31, b""])
def test_a_key_has_32_bytes(key: Any) -> None:
    with pytest.raises(ValueError, match="32 bytes, or 64 hex digits"):
        PostgresLedger("dbname=x", key=key)


# --- secrets --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dsn",
    [
        f"host=127.0.0.1 port=1 user=u password={SECRET} connect_timeout=2",
        f"postgresql://u:{SECRET}@127.0.0.1:1/db?sslpassword={SECRET}",
    ],
)
def test_no_password_is_ever_shown(dsn: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    ledger = PostgresLedger(dsn, key=KEY)
    assert SECRET not in repr(ledger)
    with pytest.raises(LedgerError) as caught:
        ledger.reserve(want(), wait_s=1)
    told = "".join(traceback.format_exception(caught.value))
    assert "the ledger's database failed" in told
    assert SECRET not in told
    assert KEY not in told
    assert SECRET not in repr(caught.value.__context__)
    assert SECRET not in caplog.text
    assert SECRET not in repr(vars(ledger))
    with pytest.raises(TypeError):
        __import__("pickle").dumps(ledger)


@pytest.mark.parametrize(
    "dsn", [f"postgresql://u:{SECRET}@[bad", f"host=x {SECRET}", f"{SECRET}=1"]
)
def test_a_dsn_that_cannot_be_read_is_not_shown(dsn: str) -> None:
    with pytest.raises(ValueError, match="not a PostgreSQL connection string") as caught:
        PostgresLedger(dsn)
    assert SECRET not in "".join(traceback.format_exception(caught.value))


def test_the_names_of_the_head_files_do_not_depend_on_the_password() -> None:
    plain, secret, other = (
        PostgresLedger(f"host=h dbname={name} {rest}").head_file.path
        for name, rest in (("a", ""), ("a", f"password={SECRET}"), ("b", ""))
    )
    assert plain == secret != other
    assert plain.name.startswith("postgres-")


def test_without_psycopg_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("x402_mask._ledger.postgres.postgres_pool", None)
    with pytest.raises(ImportError, match=r"x402-mask\[postgres\]"):
        PostgresLedger("dbname=x")


# --- event loops ----------------------------------------------------------------------------------


def test_the_event_loop_never_waits_for_the_database(ledger: PostgresLedger, dsn: str) -> None:
    """Not even for a lock that another host keeps."""
    from x402_mask._ledger.postgres import _LOCK

    reserved(ledger)
    ticks: list[float] = []

    async def tick() -> None:
        while True:
            ticks.append(time.monotonic())
            await asyncio.sleep(0.01)

    async def main() -> None:
        ticking = asyncio.ensure_future(tick())
        with psycopg.connect(dsn) as raw:
            raw.execute(f"SELECT pg_advisory_xact_lock({_LOCK})")
            performer = AsyncPerformer(ledger)
            wanted = want()
            call = performer.perform(Record(lambda s: ledger.reserve(wanted, wait_s=s)))
            paying = asyncio.ensure_future(call)
            await asyncio.sleep(0.5)
            assert not paying.done()
            raw.rollback()
            await paying
        ticking.cancel()

    asyncio.run(main())
    assert not PostgresLedger.inline and not PostgresLedger.brief
    gaps = [later - earlier for earlier, later in itertools.pairwise(ticks)]
    assert max(gaps) < 0.3
    assert len(ledger.payments()) == 2
