"""Rows that no ledger wrote raise a ``LedgerError``, whichever they are and whatever is asked."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.ledger.kit import (
    NOW,
    ORIGIN,
    PAYEE,
    SERVICE,
    Store,
    end,
    held,
    in_state,
    limits,
    proof,
    reserved,
    sqlite_store,
    want,
)
from tests.ledger.test_tokens import asked, with_token
from x402_mask import Cap, LedgerError, PaymentError, PostgresLedger
from x402_mask._ledger import sqlite_wal
from x402_mask._ledger.audit import export, verify
from x402_mask._ledger.ledger import Ledger
from x402_mask._ledger.payees import NoOrigin
from x402_mask._ledger.records import Breaker
from x402_mask._ledger.restore import standing

CAP = Cap(1, per="day")
OPERATION = "one operation"

JUNK = (
    "NULL",
    "'x'",
    "x'00ff'",
    "1.5",
    "-1",
    "9223372036854775807",
    "CAST(x'ff41' AS TEXT)",
    "'{\"a\": 1}'",
)
TABLES = (
    "payments",
    "history",
    "counters",
    "meters",
    "payees",
    "breakers",
    "purchases",
    "tokens",
    "meta",
    "denials",
)


def lived(ledger: Ledger) -> None:
    """Something in every table."""
    held(ledger, CAP, operation=OPERATION, valid_before=2**40)
    for state in ("settled", "void"):
        in_state(ledger, state, CAP)
    failed, _ = held(ledger, CAP)
    ledger.finish(failed.id, end("unknown"), Breaker(failures=2, seconds=9), now_us=NOW)
    with_token(ledger, calls=3)
    asked(ledger)
    ledger.set_paused(True, now_us=NOW)
    ledger.set_paused(False, now_us=NOW)
    ledger.note_refusal({"reason": "cap"}, now_us=NOW, wait_s=5)


def questions(ledger: Ledger) -> Iterator[Callable[[], Any]]:
    """Everything that a program may ask of a ledger; what it answers is used."""
    breaker = Breaker(failures=2, seconds=9)
    for payment in _ids(ledger):
        yield lambda payment=payment: ledger.claim(payment, now_us=NOW)
        yield lambda payment=payment: ledger.hold(payment, proof(), now_us=NOW)
        yield lambda payment=payment: ledger.finish(payment, end(), breaker, now_us=NOW)
        yield lambda payment=payment: ledger.claim_purchase(payment, None, now_us=NOW)
    yield lambda: repr(ledger.view(OPERATION, SERVICE, ORIGIN, now_us=NOW).twin)
    yield lambda: ledger.reserve(want(CAP, operation=OPERATION), breaker)
    yield lambda: ledger.reserve(want(CAP, pay_to="0x" + "ef" * 20), breaker)
    yield lambda: [row.expired(NOW) for row in ledger.unresolved(["eip155:8453"])]
    yield lambda: [(p.usd, p.at, p.valid_before) for p in ledger.payments()]
    yield lambda: [s.left + 1 for s in ledger.spend(limits(CAP), now_us=NOW)]
    yield ledger.history
    yield ledger.payees
    yield lambda: [until + 1 for until in ledger.breakers(now_us=NOW).values()]
    yield lambda: ledger.take_token(ORIGIN, SERVICE, now_us=NOW)
    yield lambda: ledger.held_tokens(now_us=NOW)
    yield lambda: ledger.sweep(now_us=NOW)
    yield ledger.is_paused
    yield lambda: ledger.note_refusal({"reason": "cap"}, now_us=NOW, wait_s=5)


def _ids(ledger: Ledger) -> list[str]:
    past = ledger._past
    assert past is not None
    try:
        with past.leniently(), ledger._transaction(5, write=False) as db:
            return [str(i) for (i,) in db.all("SELECT id FROM payments ORDER BY seq LIMIT 2")]
    except LedgerError:
        return []


def failures(ledger: Ledger) -> list[str]:
    """What is raised besides the errors that a paid call may raise."""
    found = []
    for ask in questions(ledger):
        try:
            ask()
        except PaymentError:
            pass
        except Exception as exc:
            found.append(f"{type(exc).__name__}: {exc}")
    return found


def columns(store: Store, table: str) -> list[str]:
    """Their names."""
    return [name for (name,) in store.sql("SELECT name FROM pragma_table_info(?)", table)]


@pytest.mark.parametrize("reading", ["opened anew", "open before"])
@pytest.mark.parametrize("table", TABLES)
def test_whatever_is_wrong_in_a_file(tmp_path: Path, table: str, reading: str) -> None:
    """Every column of every table, and values that cannot be there."""
    first = sqlite_store(tmp_path / "first.db")
    lived(first.ledger)
    first.ledger.close()
    sqlite_wal.finish(20)
    wrong = []
    for column in columns(first, table):
        for number, junk in enumerate(JUNK):
            folder = tmp_path / f"{column}{number}"
            folder.mkdir()
            for name in ("first.db", "first.db.key", "first.db.head"):
                shutil.copy(tmp_path / name, folder / name)
            store = sqlite_store(folder / "first.db")
            if reading == "open before":
                store.ledger.is_paused()
            with closing(store.raw()) as raw:
                try:
                    raw.execute(f"UPDATE {table} SET {column}={junk}")
                except Exception:  # SQLite refuses that
                    continue
            wrong += [f"{table}.{column}={junk}: {f}" for f in failures(store.ledger)]
            wrong += audited(store.ledger, f"{table}.{column}={junk}", tmp_path)
            store.ledger.close()
            shutil.rmtree(folder)
    assert not wrong, f"{len(wrong)}:\n" + "\n".join(wrong[:40])


def audited(ledger: Ledger, what: str, tmp_path: Path) -> list[str]:
    """Reports must not stumble either."""
    found = []
    for ask in (verify, standing):
        try:
            ask(ledger)
        except LedgerError:
            pass
        except Exception as exc:
            found.append(f"{what}: {ask.__name__}: {type(exc).__name__}: {exc}")
    try:
        with (tmp_path / "out").open("w") as out:
            export(ledger, "jsonl", out)
    except LedgerError:
        pass
    except Exception as exc:
        found.append(f"{what}: export: {type(exc).__name__}: {exc}")
    return found


TEXTS = (
    "UPDATE payments SET state='x'",
    "UPDATE payments SET amount='x'",
    "UPDATE payments SET route='x'",
    "UPDATE payments SET also='x'",
    "UPDATE payments SET proof='\\x00'",
    "UPDATE payments SET micro=-1",
    "UPDATE history SET data='x'",
    "UPDATE history SET data='[]'",
    "UPDATE history SET sums='x'",
    "UPDATE history SET sums='1:zz'",
    "UPDATE meters SET unit='x' WHERE unit='total'",
    "UPDATE counters SET unit='x' WHERE unit='total'",
    "UPDATE purchases SET stage='x'",
    "UPDATE tokens SET sealed='\\x00'",
    "UPDATE meta SET value='x'",
    "UPDATE payments SET valid_before=9223372036854775807",
    "UPDATE payments SET at=-9223372036854775808",
)


@pytest.mark.parametrize("shared", ["postgres"], indirect=True)
@pytest.mark.parametrize("statement", TEXTS)
def test_whatever_is_wrong_in_a_database_with_types(shared: Store, statement: str) -> None:
    lived(shared.ledger)
    shared.sql(statement)
    assert failures(shared.ledger) == []
    again = shared.again()
    assert isinstance(again, PostgresLedger)
    assert failures(again) == []


def test_what_the_caller_did_wrong_is_not_called_damage(ledger: Ledger) -> None:
    reserved(ledger, pay_to=PAYEE)
    with pytest.raises(NoOrigin, match="name the origin"):
        ledger.accept_payee(SERVICE, PAYEE, now_us=NOW)
    assert issubclass(NoOrigin, ValueError)
