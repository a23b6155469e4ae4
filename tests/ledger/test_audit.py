"""An edited, deleted or added row is found, wherever it is, and so is a history that lost its end."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from datetime import timedelta
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
from x402_mask import Cap, LedgerError
from x402_mask._ledger.audit import _FIELDS, AuditReport, export, verify
from x402_mask._ledger.ledger import Ledger
from x402_mask._ledger.records import Breaker

CAPS = (Cap(1, per="day"), Cap(1, per=timedelta(hours=1), service=SERVICE), Cap(1, per="call"))
OTHER = "0x" + "cd" * 20


def lived(ledger: Ledger) -> str:
    """A ledger on which everything has happened that can; returns a payment that is held."""
    for state in ("reserved", "held", "settled", "seen", "released", "void"):
        in_state(ledger, state, *CAPS, pay_to=PAYEE)
    made, _ = held(ledger, *CAPS, pay_to=OTHER)
    ledger.finish(
        made.id, end("unknown", note="HTTP 500"), Breaker(failures=1, seconds=9), now_us=NOW
    )
    ledger.claim(made.id, now_us=NOW)
    ledger.finish(made.id, end("rejected", transaction="0x9"), now_us=NOW)
    lost = in_state(ledger, "settled", *CAPS)
    ledger.reopen(lost.id, now_us=NOW)
    ledger.accept_payee(SERVICE, OTHER, now_us=NOW)
    ledger.accept_payee("elsewhere", OTHER, ORIGIN, now_us=NOW)
    ledger.note_refusal({"reason": "payee"}, (ORIGIN, "Dear", OTHER), now_us=NOW, wait_s=5)
    ledger.set_paused(True, now_us=NOW)
    ledger.set_paused(False, now_us=NOW)
    ledger.note_refusal({"reason": "cap"}, now_us=NOW, wait_s=5)
    interrupted = reserved(ledger, *CAPS, service="Resize", also=("resize", "tools"))
    ledger.let_go(interrupted.id, now_us=NOW)
    forgotten = reserved(ledger, *CAPS)
    ledger._flying.pop(forgotten.id)
    ledger.sweep(now_us=NOW)
    ledger.spend(limits(Cap(1, per="month"), Cap(1, per="total", service="new")), now_us=NOW)
    return made.id


def test_a_ledger_as_it_was_written_is_sound(ledger: Ledger) -> None:
    assert verify(ledger) == AuditReport(ok=True, rows=0, problems=[])
    lived(ledger)
    report = verify(ledger)
    assert report.problems == []
    assert report.ok
    assert report.rows == len(ledger.history()) > 25


def test_auditing_changes_nothing(shared: Store) -> None:
    lived(shared.ledger)
    tables = ("payments", "history", "counters", "payees", "meta", "meters", "breakers")
    before = [shared.sql(f"SELECT * FROM {table}") for table in tables]
    verify(shared.ledger)
    assert [shared.sql(f"SELECT * FROM {table}") for table in tables] == before


TAMPERED: dict[str, tuple[str, str]] = {
    # history
    "an edited row": ("UPDATE history SET data='{}' WHERE seq=3", "row 3 .* not as it was written"),
    "an amount in the history": (
        "UPDATE history SET data=replace(data, '\"micro\":1000', '\"micro\":1') WHERE seq=1",
        "row 1 .* not as it was written",
    ),
    "an edited time": ("UPDATE history SET at=at+1 WHERE seq=2", "row 2 .* not as it was written"),
    "an edited kind": ("UPDATE history SET kind='refused' WHERE seq=2", "row 2 .* not as it was"),
    "an edited sum": ("UPDATE history SET sums='0:0' WHERE seq=2", "row 2 .* not as it was"),
    "an edited link": (
        (
            "UPDATE history SET mac=proof FROM (SELECT proof FROM payments"
            " WHERE proof IS NOT NULL LIMIT 1) AS other WHERE seq=2"
        ),
        "row 3 .* not as",
    ),
    "a deleted row": ("DELETE FROM history WHERE seq=5", "row 5 is missing from the history"),
    "deleted rows": ("DELETE FROM history WHERE seq BETWEEN 5 AND 8", "rows 5 to 8 are missing"),
    "the first row": ("DELETE FROM history WHERE seq=1", "row 1 is missing"),
    "the last row": (
        "DELETE FROM history WHERE seq=(SELECT max(seq) FROM history)",
        "missing from the end",
    ),
    "everything": ("DELETE FROM history", "rows 1 to .* are missing from the end"),
    "closed ranks": (
        (
            "DELETE FROM history WHERE seq=7;"
            "UPDATE history SET seq=-seq WHERE seq>7; UPDATE history SET seq=-seq-1 WHERE seq<0"
        ),
        "row 7 .* not as it was written",
    ),
    "an added row": (
        "INSERT INTO history SELECT 10000, at, payment, kind, data, mac, sums FROM history WHERE seq=4",
        "row 10000 .* not as it was written",
    ),
    "a row before the first": (
        "INSERT INTO history SELECT -5, at, payment, kind, data, mac, sums FROM history WHERE seq=4",
        "row -5 was added",
    ),
    # payments
    "a payment made cheap": ("UPDATE payments SET micro=1 WHERE seq=2", "has micro 1, its history"),
    "a payment set free": (
        "UPDATE payments SET state='released' WHERE seq=2",
        "has state 'released', .* says 'held'",
    ),
    "a payment moved back": ("UPDATE payments SET at=at-86400000000 WHERE seq=2", "has at "),
    "another payee": (f"UPDATE payments SET pay_to='{OTHER}' WHERE seq=2", "has pay_to"),
    "another operation": ("UPDATE payments SET operation='x' WHERE seq=2", "has operation 'x'"),
    "closed again": ("UPDATE payments SET delivered=1 WHERE seq=2", "has delivered 1"),
    "expired early": ("UPDATE payments SET valid_before=1 WHERE seq=2", "has valid_before 1"),
    "another header": ("UPDATE payments SET header='X' WHERE seq=2", "has header 'X'"),
    "another nonce": ("UPDATE payments SET nonce='0x0' WHERE seq=2", "has nonce '0x0'"),
    "another transaction": ("UPDATE payments SET trans='0x0' WHERE seq=3", "has trans '0x0'"),
    "said to be seen": ("UPDATE payments SET seen=1 WHERE seq=3", "has seen 1"),
    "another digest": ("UPDATE payments SET proof_digest='00' WHERE seq=2", "proof_digest '00'"),
    "a proof thrown away": (
        "UPDATE payments SET proof=NULL WHERE seq=2",
        "does not hold the proof",
    ),
    "a proof put in": (
        "UPDATE payments SET proof=(SELECT proof FROM payments WHERE seq=3) WHERE seq=2",
        "does not hold the proof",
    ),
    "a deleted payment": ("DELETE FROM payments WHERE seq=2", "not among the payments"),
    "an added payment": (
        (
            "INSERT INTO payments (id, at, updated, state, service, origin, route, micro, amount,"
            " operation) SELECT 'pay_new', at, updated, state, service, origin, route, micro, amount,"
            " operation FROM payments WHERE seq=1"
        ),
        "payment pay_new is not in the history",
    ),
    # counters
    "an emptied counter": (
        "UPDATE counters SET held=0, settled=0",
        r"says settled 0 and held 0 micro-USD, the payments",
    ),
    "a counter moved": ("UPDATE counters SET bucket=bucket-1", "the payments add up to 0 and 0"),
    "a deleted counter": ("DELETE FROM counters", "the counter .* says settled 0 and held 0"),
    "an added counter": (
        "INSERT INTO counters SELECT scope, unit, 7, 1, 0 FROM meters LIMIT 1",
        "/7 says settled 1",
    ),
    "a stopped counter": ("DELETE FROM meters", "no longer kept up"),
    "an absurd counter": ("INSERT INTO meters VALUES ('*', 'x', 1)", "none that a cap could use"),
    # rules
    "a trusted payee": ("UPDATE payees SET trusted=1-trusted", "is seen but not trusted, by the"),
    "a payee forgotten": ("DELETE FROM payees", "is unknown, by the history trusted"),
    "a payee put in": (
        "INSERT INTO payees VALUES ('o', 's', '0xbad', 1, 1)",
        "0xbad of s at o is trusted, by the .* unknown",
    ),
    "a pause put on": (
        "UPDATE meta SET value='1' WHERE name='paused'",
        "is paused, by the history",
    ),
}


SAMPLE = ("an edited row", "deleted rows", "the last row", "a payment set free", "a trusted payee")


@pytest.mark.parametrize(
    ("shared", "what"),
    [("sqlite", what) for what in TAMPERED] + [("postgres", what) for what in SAMPLE],
    indirect=["shared"],
)
def test_tampering_is_found(shared: Store, what: str) -> None:
    lived(shared.ledger)
    assert verify(shared.ledger).ok
    statement, sentence = TAMPERED[what]
    for part in statement.split(";"):
        shared.sql(part)
    report = verify(shared.ledger)
    assert not report.ok
    assert any(_matches(sentence, problem) for problem in report.problems), report.problems


def _matches(pattern: str, text: str) -> bool:
    import re

    return re.search(pattern, text) is not None


def test_whoever_has_no_key_cannot_chain_a_row(tmp_path: Path) -> None:
    """Even with this code at hand: a change chained with another key is as visible as any."""
    store = sqlite_store(tmp_path / "ledger.db")
    payment = lived(store.ledger)
    from x402_mask._ledger.key import LedgerKey

    forger = LedgerKey(b"f" * 32)
    (before,), (data,) = (
        store.sql("SELECT mac FROM history WHERE seq=4")[0],
        store.sql("SELECT data FROM history WHERE seq=5")[0],
    )
    mac = forger.link(before, json.dumps([5, NOW, payment, "held", data]).encode())
    store.sql("UPDATE history SET payment=?, kind='held', mac=? WHERE seq=5", payment, mac)
    assert any("row 5" in problem for problem in verify(store.ledger).problems)
    store.ledger.close()


def test_a_restored_backup_is_not_taken_for_the_present(tmp_path: Path) -> None:
    """Rows and tables agree with each other; only the head kept outside knows of more."""
    path = tmp_path / "ledger.db"
    store = sqlite_store(path)
    in_state(store.ledger, "settled")
    store.ledger.close()
    backup = path.read_bytes()
    in_state(store.ledger, "held")
    store.ledger.close()
    path.write_bytes(backup)

    (problem,) = verify(store.again()).problems
    assert problem.startswith("rows 4 to 5 are missing from the end of the history")


def test_a_rewritten_end_is_found_by_the_head(tmp_path: Path) -> None:
    """A backup that went on to be used has another row where the head was."""
    path = tmp_path / "ledger.db"
    store = sqlite_store(path)
    head = store.ledger.head_file
    assert head is not None
    reserved(store.ledger)
    store.ledger.close()
    backup = path.read_bytes()
    reserved(store.ledger)
    store.ledger.close()
    known = head.path.read_bytes()
    path.write_bytes(backup)
    head.path.unlink()  # else nothing would be paid from it
    elsewhere = store.again()
    reserved(elsewhere)
    elsewhere.close()
    head.path.write_bytes(known)

    assert verify(store.again()).problems == [
        "history row 2 is not the one that the head file knows"
    ]


@pytest.mark.parametrize("content", [None, b"", b"{}", b'{"seq":"x","mac":"zz"}'])
def test_a_head_file_that_cannot_be_read_is_said(tmp_path: Path, content: bytes | None) -> None:
    store = sqlite_store(tmp_path / "ledger.db")
    assert store.ledger.head_file is not None
    reserved(store.ledger)
    store.ledger.close()
    path = store.ledger.head_file.path
    path.unlink() if content is None else path.write_bytes(content)
    (problem,) = verify(store.ledger).problems
    assert "head file is missing" in problem
    store.ledger.close()


def test_the_head_follows_commits_and_not_what_was_rolled_back(shared: Store) -> None:
    ledger, cap = shared.ledger, Cap("0.001", per="total")
    head = ledger.head_file
    assert head is not None
    made = reserved(ledger, cap)
    found = head.read()
    assert found is not None
    assert found.last[:2] == (1, bytes(shared.sql("SELECT mac FROM history")[0][0]))
    forgotten = reserved(ledger)
    ledger._flying.pop(forgotten.id)
    with pytest.raises(Exception, match="cap"):
        ledger.reserve(want(Cap("0.0001", per="total")))  # sweeps, then refuses: rolled back
    found = head.read()
    assert found is not None
    assert found.last.seq == 2
    ledger.hold(made.id, proof(), now_us=NOW)
    found = head.read()
    assert found is not None
    assert found.last.seq == 3
    assert found.durable == found.last


def test_a_ruined_ledger_makes_a_short_report(tmp_path: Path) -> None:
    store = sqlite_store(tmp_path / "ledger.db")
    for _ in range(120):
        held(store.ledger)
    store.sql("UPDATE history SET at=at+1")
    store.sql("DELETE FROM payments")
    report = verify(store.ledger)
    assert len(report.problems) == 201
    assert report.problems[-1].startswith("and ")
    store.ledger.close()


JUNK: tuple[str, ...] = (
    "UPDATE history SET data='not json' WHERE seq=2",
    "UPDATE history SET data='[1]' WHERE seq=2",
    "UPDATE history SET payment=NULL WHERE seq=2",
    "UPDATE history SET at='soon' WHERE seq=1",
    "UPDATE history SET mac='text' WHERE seq=2",
    "UPDATE history SET seq='text' WHERE seq=2",
    "UPDATE history SET kind=x'00ff' WHERE seq=2",
    'UPDATE history SET data=replace(data, \'"micro":1000\', \'"micro":"x"\') WHERE seq=1',
    'UPDATE history SET data=replace(data, \'"pay_to":"\', \'"pay_to":5,"x":"\') WHERE seq=1',
    "UPDATE payments SET at='x', micro='x', proof='x', id=x'00' WHERE seq=2",
    "UPDATE counters SET held='x', bucket='y'",
    "UPDATE payees SET service=NULL",
    "UPDATE meta SET value=x'01' WHERE name='paused'",
)


@pytest.mark.parametrize("statement", JUNK)
def test_what_no_ledger_writes_is_reported_and_can_be_exported(
    tmp_path: Path, statement: str
) -> None:
    """SQLite stores anything anywhere: an audit must not stumble over it."""
    store = sqlite_store(tmp_path / "ledger.db")
    lived(store.ledger)
    try:
        store.sql(statement)
    except Exception as refused:
        pytest.skip(f"SQLite refuses that: {refused}")
    assert verify(store.ledger).problems
    for form in ("csv", "jsonl"):
        out = io.StringIO()
        assert export(store.ledger, form, out) > 20  # type: ignore[arg-type]
    store.ledger.close()


# --- export ---------------------------------------------------------------------------------------


def read_lines(text: str) -> list[dict[str, Any]]:
    """JSON lines."""
    return [json.loads(line) for line in text.splitlines()]


def read_csv(text: str) -> list[dict[str, Any]]:
    """A table; what is empty is left out."""
    rows = csv.DictReader(io.StringIO(text))
    return [{name: value for name, value in row.items() if value} for row in rows]


@pytest.mark.parametrize(("form", "read"), [("jsonl", read_lines), ("csv", read_csv)])
def test_an_export_holds_everything_but_the_proofs(
    ledger: Ledger, form: Any, read: Callable[[str], list[dict[str, Any]]]
) -> None:
    made, sent = held(ledger, micro=123, amount=10**30)
    ledger.finish(made.id, end(transaction="0x5", note="=HYPERLINK()"), now_us=NOW)
    out = io.StringIO()
    count = export(ledger, form, out)

    records = read(out.getvalue())
    assert len(records) == count == 1 + 3 + 1
    assert [r["record"] for r in records] == ["payment"] + ["history"] * 3 + ["verification"]
    payment = records[0]
    assert (payment["payment_id"], payment["usd"]) == (made.id, "0.000123")
    assert (payment["amount"], payment["state"]) == (str(10**30), "settled")
    assert payment["at"] == "2026-05-15T12:30:00+00:00"
    assert payment["note"] == ("'" if form == "csv" else "") + "=HYPERLINK()"
    assert [r["kind"] for r in records[1:4]] == ["reserved", "held", "settled"]
    assert json.loads(records[1]["data"])["micro"] == 123
    assert str(records[-1]["ok"]) == "True"
    assert sent.value not in out.getvalue()
    assert all(set(record) <= set(_FIELDS) for record in records)


def test_an_export_of_a_tampered_ledger_says_so(shared: Store) -> None:
    lived(shared.ledger)
    shared.sql("UPDATE payments SET micro=1 WHERE seq=2")
    out = io.StringIO()
    export(shared.ledger, "jsonl", out)
    last = json.loads(out.getvalue().splitlines()[-1])
    assert not last["ok"]
    assert "has micro 1" in last["problems"][0]


def test_an_unknown_format_is_an_error(ledger: Ledger) -> None:
    with pytest.raises(ValueError, match="csv or jsonl"):
        export(ledger, "xlsx", io.StringIO())  # type: ignore[arg-type]


def test_a_ledger_without_its_key_cannot_be_audited(tmp_path: Path) -> None:
    store = sqlite_store(tmp_path / "ledger.db")
    reserved(store.ledger)
    store.ledger.close()
    (tmp_path / "ledger.db.key").unlink()
    with pytest.raises(LedgerError, match="key"):
        verify(store.again())
