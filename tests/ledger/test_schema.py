"""Ledgers of older programs are brought up to date, and newer ones are refused."""

from __future__ import annotations

import json
import threading

import pytest

from tests.ledger.kit import (
    DAY,
    NOW,
    ORIGIN,
    SERVICE,
    WIDE,
    Store,
    end,
    proof,
    refusal,
    reserved,
    used,
    want,
)
from tests.ledger.test_tokens import with_token
from x402_mask import Cap, LedgerError, OfferRefused
from x402_mask._ledger import sums as _sums
from x402_mask._ledger.audit import verify
from x402_mask._ledger.ledger import Ledger
from x402_mask._ledger.schema import SCHEMA_VERSION
from x402_mask._wire import strict_json

OLDER = range(1, SCHEMA_VERSION)
PAYEE = "0x" + "ab" * 20
OTHER = "0x" + "cd" * 20

SECOND_PAYEES = (
    "CREATE TABLE payees (service TEXT NOT NULL, payee TEXT NOT NULL, trusted INTEGER NOT NULL,"
    " at BIGINT NOT NULL, PRIMARY KEY (service, payee))"
)


def as_before(store: Store, version: int) -> None:
    """Make a ledger what an older schema had; its payees are those of every origin."""
    tell_no_origins(store.ledger)
    store.ledger.close()
    store.sql("DROP INDEX payments_summed")
    store.sql("CREATE INDEX payments_counted ON payments (at, service, state, micro)")
    for table, column in (
        ("payments", "also"),
        ("payments", "again"),
        ("payments", "reason"),
        ("meters", "summed"),
        ("history", "sums"),
    ):
        store.sql(f"ALTER TABLE {table} DROP COLUMN {column}")
    pins = store.sql("SELECT service, payee, trusted, at FROM payees")
    for statement in ("DROP TABLE payees", SECOND_PAYEES, "DROP TABLE denials"):
        store.sql(statement)
    for service, payee, trusted, at in pins:
        store.sql(f"INSERT INTO payees VALUES ('{service}', '{payee}', {trusted}, {at})")
    store.sql("DELETE FROM meta WHERE name='id'")
    for table in ("tokens", "purchases", "transfers") if version == 1 else ():
        store.sql(f"DROP TABLE {table}")
    if store.kind == "sqlite":
        store.sql(f"PRAGMA user_version={version}")
    else:
        store.sql(f"UPDATE meta SET value='{version}' WHERE name='schema'")


def tell_no_origins(ledger: Ledger) -> None:
    """Write the history as an older program did, which knew payees by their service only."""
    ledger_key, before, seq = ledger._ledger_key(), b"", 0
    past = ledger._past
    assert past is not None
    with past.leniently(), ledger._transaction(5) as db:
        rows = db.all("SELECT seq, at, payment, kind, data FROM history ORDER BY seq")
        for seq, at, payment, kind, text in rows:
            data = strict_json.loads(text)
            for name in {"reserved": ["payee"], "payee": ["origin"]}.get(kind, []):
                del data[name]
            told = strict_json.dumps(data)
            before = ledger_key.link(before, _sums.record(seq, at, payment, kind, told, None))
            db.run("UPDATE history SET data=?, mac=?, sums=NULL WHERE seq=?", told, before, seq)
            ledger._moved_head(seq, before)
    if seq:  # the head as those programs wrote it
        record = json.dumps({"seq": seq, "mac": before.hex()}).ljust(128)
        past.head.close()
        past.head.path.write_text(record, "ascii")


def version_of(store: Store) -> int:
    """Which schema a ledger says it has."""
    if store.kind == "sqlite":
        return int(store.sql("PRAGMA user_version")[0][0])
    return int(store.sql("SELECT value FROM meta WHERE name='schema'")[0][0])


@pytest.mark.parametrize("version", OLDER)
def test_a_ledger_of_an_older_schema_is_migrated(shared: Store, version: int) -> None:
    """Payments, history and pins stay; what came later can be done then."""
    old = reserved(shared.ledger)
    shared.ledger.hold(old.id, proof(), now_us=NOW)
    shared.ledger.finish(old.id, end(), now_us=NOW)
    shared.ledger.accept_payee(SERVICE, PAYEE, ORIGIN, now_us=NOW)
    pins = [("", *pin[1:]) for pin in shared.ledger.payees()]
    shared.ledger.close()
    as_before(shared, version)
    assert version_of(shared) == version
    ledger = shared.again()
    assert used(ledger, WIDE) == 1000
    assert version_of(shared) == SCHEMA_VERSION
    assert ledger.payees() == pins
    with_token(ledger, calls=2)
    assert ledger.take_token(ORIGIN, SERVICE, now_us=NOW) is not None
    assert used(ledger, WIDE) == 2000 and verify(ledger).ok
    assert len(shared.again().payments()) == 2


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("Resize", "resize"),
        ("resize.", "resize"),
        ("Größe", "grösse"),
        ("Aliyun-ImageSeg-Refine-Mask", "mask-refinement"),
    ],
)
@pytest.mark.parametrize("version", OLDER)
def test_a_cap_in_another_spelling_counts_on_after_a_migration(
    shared: Store, version: int, name: str, key: str
) -> None:
    """An older program kept a counter for each spelling of a name, and none counts less now."""
    plain, spelled = Cap(1, per="day", service=key), Cap(1, per="day", service=name)
    for service in (name, key):
        reserved(shared.ledger, WIDE, service=service)
    as_before(shared, version)
    for scope in (name, key):
        shared.sql(f"INSERT INTO meters VALUES ('{scope}', 'day')")
        shared.sql(f"INSERT INTO counters VALUES ('{scope}', 'day', {NOW // DAY}, 0, 1000)")
    ledger = shared.again()
    assert used(ledger, plain) == used(ledger, spelled) == 2000
    reserved(ledger, WIDE, plain, service=key)
    reserved(ledger, WIDE, spelled, service=name)
    assert used(ledger, plain) == used(ledger, spelled) == 4000
    ledger.close()
    assert used(shared.again(), Cap(1, per="month", service=key)) == 4000
    assert verify(ledger).problems == []


def test_pins_of_an_older_program_hold_at_every_origin(shared: Store) -> None:
    """Until a payee is accepted at one: from then on that origin has pins of its own."""
    reserved(shared.ledger, pay_to=PAYEE)
    reserved(shared.ledger, pay_to=OTHER)
    shared.ledger.close()
    as_before(shared, 2)
    ledger, elsewhere = shared.again(), "https://elsewhere.example"
    for origin in (ORIGIN, elsewhere):
        reserved(ledger, pin_payee=True, pay_to=PAYEE, origin=origin)
        refused = want(pin_payee=True, pay_to=OTHER, origin=origin)
        assert isinstance(refusal(ledger, refused), OfferRefused)
    payee = (ORIGIN, SERVICE, OTHER)
    ledger.note_refusal({"reason": "payee"}, payee, now_us=NOW, wait_s=5)
    assert ledger.accept_payee(SERVICE, OTHER, now_us=NOW) == ORIGIN
    reserved(ledger, pin_payee=True, pay_to=OTHER)
    assert isinstance(refusal(ledger, want(pin_payee=True, pay_to=PAYEE)), OfferRefused)
    reserved(ledger, pin_payee=True, pay_to=PAYEE, origin=elsewhere)
    assert verify(ledger).problems == []


def test_a_migrated_ledger_has_the_tables_of_a_new_one(shared: Store) -> None:
    """Column for column, in the same order, and an id of its own."""

    def described() -> object:
        tables = ("payments", "payees", "denials", "purchases", "tokens", "transfers", "meta")
        ask = (
            "SELECT name FROM pragma_table_info('{}')"
            if shared.kind == "sqlite"
            else (
                "SELECT column_name FROM information_schema.columns WHERE table_name='{}'"
                " AND table_schema='x402_mask' ORDER BY ordinal_position"
            )
        )
        return [shared.sql(ask.format(table)) for table in tables]

    reserved(shared.ledger)
    new, ids = described(), "SELECT value FROM meta WHERE name='id'"
    first = shared.sql(ids)
    shared.ledger.close()
    as_before(shared, 1)
    reserved(shared.again())
    assert described() == new
    assert len(shared.sql(ids)) == 1 and shared.sql(ids) != first


def test_an_older_program_refuses_a_newer_schema(
    shared: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    from x402_mask._ledger import postgres
    from x402_mask._ledger import schema as _schema
    from x402_mask._ledger import sqlite as _sqlite

    with_token(shared.ledger)
    shared.ledger.close()
    for module in (_schema, postgres, _sqlite):
        monkeypatch.setattr(module, "SCHEMA_VERSION", 1)
    with pytest.raises(LedgerError, match="newer x402_mask"):
        shared.again().payments()


@pytest.mark.parametrize("version", OLDER)
def test_programs_migrate_at_once(shared: Store, version: int) -> None:
    """Several open a ledger of an older schema: one migrates, all go on."""
    reserved(shared.ledger)
    shared.ledger.close()
    as_before(shared, version)
    ledgers, failures = [shared.again() for _ in range(4)], []

    def use(ledger: Ledger) -> None:
        try:
            with_token(ledger)
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=use, args=(ledger,)) for ledger in ledgers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert not failures, failures
    assert len(shared.ledger.payments()) == 5 and verify(shared.ledger).ok
