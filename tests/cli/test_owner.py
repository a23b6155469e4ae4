"""``quote``, ``spend``, ``payments``, ``payees``, ``pause`` and ``reconcile``."""

from __future__ import annotations

import contextlib
import csv
import json
import sqlite3
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from tests.cli.conftest import ADDRESS, Cli, Sells
from tests.support.seller import OTHER_PAYEE, PAYEE, TRANSACTION, Reply, Seller
from x402_mask import Payment
from x402_mask.cli._payments import waits_for
from x402_mask.sandbox import Sandbox

# --- quote ----------------------------------------------------------------------------------------


def test_quote_says_the_price_and_sends_no_proof(cli: Cli, seller: Seller, sells: Sells) -> None:
    sells()
    done = cli("quote", "thing", "a=b")
    assert done.code == 0
    for told in ("$0.10", "100000 units", "eip155:8453", PAYEE, ADDRESS, "$0.25", "$1.00"):
        assert told in done.text
    document = cli("quote", "thing", "a=b", "--json").document
    assert (document["usd"], document["allowed"], document["refusal"]) == ("0.10", True, None)
    assert document["asset"]["decimals"] == 6
    assert "raw" not in str(document)
    assert seller.proofs() == []
    assert cli("payments", "--json").document == {"payments": []}


def test_quote_of_what_would_be_refused(cli: Cli, seller: Seller, sells: Sells) -> None:
    sells(amount="260000")
    done = cli("quote", "thing")
    assert done.code == 3
    assert "would be refused (cap)" in done.err
    document = cli("quote", "thing", "--json").document
    assert (document["allowed"], document["refusal"]["reason"]) == (False, "cap")
    assert seller.proofs() == []


def test_quote_opens_no_keystore(cli: Cli, sells: Sells) -> None:
    sells()
    (cli.home / "k.json").write_text(f'{{"address": "{ADDRESS[2:].lower()}"}}')
    env = {"X402_MASK_PRIVATE_KEY": None, "X402_MASK_KEYSTORE": "k.json"}
    done = cli("quote", "thing", "--json", **env)
    assert done.code == 0
    assert done.document["payer"] == ADDRESS


def test_quote_of_what_is_free_or_missing(cli: Cli, seller: Seller) -> None:
    seller.on("/api/tools/thing", Reply(body=b"free"))
    assert cli("quote", "thing", "--json").document["usd"] == "0.00"
    assert "asks for no payment (HTTP 200)" in cli("quote", "thing").err
    done = cli("quote", "other", "--json")
    assert done.code == 1
    assert "404 Status: no such page" in done.document["error"]["message"]


def test_quote_of_a_402_that_never_ends(cli: Cli, seller: Seller) -> None:
    def for_ever() -> bytes:
        return b"x" * 65536

    endless = iter(for_ever, None)
    seller.on("/api/tools/thing", Reply(status=402, body=endless, framing="chunked"))
    began = time.monotonic()
    assert cli.alone("quote", "thing").code == 1
    assert time.monotonic() - began < 20
    assert seller.sent_bytes < 32 << 20


# --- spend and payments ---------------------------------------------------------------------------


def test_spend_keeps_settled_held_and_left_apart(cli: Cli, sells: Sells) -> None:
    sells()
    assert cli("call", "thing", "n=1").code == 0
    sells(Reply(status=500))
    assert cli("call", "thing", "n=2").code == 4
    env = {"X402_MASK_CAPS": "0.25/call,1/day,2/day@thing,5/36h,1/30min@other"}
    document = cli("spend", "--json", **env).document
    rows = [
        tuple(cap[name] for name in ("service", "per", "limit", "settled", "held", "left"))
        for cap in document["caps"]
    ]
    assert rows == [
        ("*", "call", "0.25", "0.00", "0.00", "0.25"),
        ("*", "day", "1.00", "0.10", "0.10", "0.80"),
        ("thing", "day", "2.00", "0.10", "0.10", "1.80"),
        ("*", "36h", "5.00", "0.10", "0.10", "4.80"),
        ("other", "30min", "1.00", "0.00", "0.00", "1.00"),
    ]
    assert (document["paused"], document["breakers"]) == (False, {})
    text = cli("spend", **env).text
    assert "all services" in text
    assert "36h" in text


def test_spend_shows_a_pause_and_an_open_breaker(cli: Cli, seller: Seller, sells: Sells) -> None:
    sells(Reply(status=500))
    (cli.home / "c.toml").write_text("breaker_after = 1\n")
    cli = cli.having(X402_MASK_CONFIG="c.toml")
    assert cli("call", "thing", "n=1").code == 4
    assert cli("pause").code == 0
    document = cli("spend", "--json").document
    assert document["paused"] is True
    assert list(document["breakers"]) == [seller.origin]
    words = cli("spend").words
    assert "paused: nothing is paid" in words
    assert f"breaker open: {seller.origin}" in words
    assert cli("resume").code == 0
    done = cli("call", "thing", "n=2", "--json")
    assert (done.code, done.document["error"]["reason"]) == (3, "breaker")


def test_payments_say_what_each_held_one_waits_for(cli: Cli, sells: Sells) -> None:
    sells()
    assert cli("call", "thing", "n=1").code == 0
    sells(Reply(status=500))
    assert cli("call", "thing", "n=2").code == 4
    newest, oldest = cli("payments", "--json").document["payments"]
    assert (oldest["state"], oldest["transaction"]) == ("settled", TRANSACTION)
    assert oldest["waits_for"] is None
    assert newest["state"] == "held"
    assert "may be collected until" in newest["waits_for"]
    assert "the same call presents it again" in newest["waits_for"]
    assert "HTTP 500" in newest["waits_for"]
    words = cli("payments").words
    assert f"pay_…{newest['payment_id'][-8:]}" in words
    assert "may be collected until" in words
    assert "HTTP 200" not in words


def test_a_held_payment_that_has_expired_waits_for_the_chain() -> None:
    now = datetime.now(UTC)
    held = Payment(
        payment_id="pay_1",
        state="held",
        service="thing",
        origin="https://host",
        route="x402",
        usd=Decimal("0.10"),
        amount=100_000,
        asset=None,
        network="eip155:8453",
        payer=None,
        pay_to=None,
        nonce="0x1",
        valid_before=now - timedelta(seconds=1),
        operation="",
        open=True,
        outcome="unknown",
        transaction=None,
        proof_digest=None,
        note="HTTP 500",
        at=now,
        updated_at=now,
    )
    without = waits_for(held, {})
    assert without is not None
    assert "set X402_MASK_RPC for eip155:8453" in without
    assert without.endswith("(HTTP 500)")
    with_rpc = waits_for(held, {"eip155:8453": ["http://127.0.0.1:1"]})
    assert with_rpc is not None
    assert "`x402-mask reconcile` asks the chain" in with_rpc
    assert waits_for(replace(held, state="settled"), {}) is None
    reserved = replace(held, state="reserved", valid_before=None, note="in flight")
    assert waits_for(reserved, {}) == "in flight"


def test_payments_are_filtered(cli: Cli, seller: Seller, sells: Sells) -> None:
    sells()
    for number in range(3):
        assert cli("call", "thing", f"n={number}").code == 0
    assert len(cli("payments", "--limit", "2", "--json").document["payments"]) == 2
    assert len(cli("payments", "--state", "settled", "--json").document["payments"]) == 3
    assert cli("payments", "--state", "held", "--json").document["payments"] == []
    path = "/api/tools/thing"
    assert len(cli("payments", "--service", path, "--json").document["payments"]) == 3
    assert cli("payments", "--service", "other", "--json").document["payments"] == []
    done = cli("payments", "--service", "other")
    assert (done.out, done.err) == (b"", "no such payments on this ledger\n")
    done = cli("payees", X402_MASK_LEDGER="empty.db")
    assert (done.out, done.err) == (b"", "no payee is known on this ledger\n")
    assert cli("payments", "--state", "lost").code == 2
    assert cli("payments", "--limit", "0").code == 2
    assert cli("payments", "--output", "x").code == 2


def test_an_alias_is_canonical(shopper: Cli, marketplace: Sandbox) -> None:
    url = marketplace.url
    pictures = (f"ImageURL={url}/static/photo.png", f"MaskImageURL={url}/static/mask.png")
    alias = "aliyun-imageseg-refine-mask"
    assert shopper("call", alias, *pictures, "--json").document["receipt"]["service"] == (
        "mask-refinement"
    )
    found = shopper("payments", "--service", alias, "--json").document["payments"]
    assert [payment["service"] for payment in found] == ["mask-refinement"]


def test_looking_and_pausing_need_no_wallet_no_caps_and_no_origin(bare: Cli) -> None:
    assert bare.alone("payments", "--json").document == {"payments": []}
    assert bare.alone("payees", "--json").document == {"payees": []}
    assert bare.alone("pause", "--json").document == {"paused": True}
    assert bare.alone("resume", "--json").document == {"paused": False}
    assert bare.alone("resume").words == "resumed"


# --- payees ---------------------------------------------------------------------------------------


def test_a_pinned_payee_is_changed_by_the_owner_only(
    cli: Cli, seller: Seller, sells: Sells
) -> None:
    (cli.home / "c.toml").write_text('payees = "pin"\n')
    cli = cli.having(X402_MASK_CONFIG="c.toml")
    sells()
    assert cli("call", "thing", "n=1").code == 0
    sells(payTo=OTHER_PAYEE)
    done = cli("call", "thing", "n=2", "--json")
    assert (done.code, done.document["error"]["reason"]) == (3, "payee")
    assert cli("payees", "accept", "thing", "0x1234").code == 2
    told = cli("payees", "accept", "thing", OTHER_PAYEE, "--json").document
    assert told == {"service": "thing", "address": OTHER_PAYEE, "trusted": True}
    done = cli("payees", "accept", "thing", OTHER_PAYEE)  # no origin has a change that is refused
    assert done.code == 2 and "name the origin" in done.err
    again = cli("payees", "accept", "thing", OTHER_PAYEE.lower(), "--origin", seller.origin)
    assert again.code == 0 and OTHER_PAYEE in again.err
    assert cli("payees", "accept", "thing", OTHER_PAYEE, "--origin", "https://x.example").code == 2
    assert cli("call", "thing", "n=2").code == 0
    found = cli("payees", "--json").document["payees"]
    assert {payee["address"]: payee["trusted"] for payee in found} == {
        PAYEE: True,
        OTHER_PAYEE: True,
    }
    assert PAYEE in cli("payees").text
    assert seller.totals()[OTHER_PAYEE, "0x833589fCD6eDb6E08f4c7C32D4f71b54bdA02913"] == 100_000


# --- reconcile ------------------------------------------------------------------------------------


def test_reconcile_without_an_rpc_says_so(cli: Cli, sells: Sells) -> None:
    sells(Reply(status=500))
    assert cli("call", "thing").code == 4
    done = cli("reconcile")
    assert done.code == 1
    assert "could not be asked about 1 payment (no rpc: set X402_MASK_RPC)" in done.err
    assert "every payment is resolved" not in done.err
    assert "no rpc for its network" in done.text
    done = cli("reconcile", "--json")
    [row] = done.document["resolved"]
    assert (done.code, row["state"]) == (1, "held")
    assert done.document["unanswered"] == [row["payment_id"]]


def test_reconcile_with_nothing_to_do(cli: Cli) -> None:
    done = cli("reconcile")
    assert (done.code, done.out) == (0, b"")
    assert "every payment is resolved" in done.err
    assert "rpc" not in done.err
    assert cli("reconcile", "--json").document == {"resolved": [], "unanswered": []}


def test_reconcile_with_an_rpc_that_is_down_frees_nothing(cli: Cli, sells: Sells) -> None:
    sells(Reply(status=500))
    assert cli("call", "thing").code == 4
    rpc = {"X402_MASK_RPC": "eip155:8453=http://127.0.0.1:1"}
    done = cli("reconcile", "--json", **rpc)
    [row] = done.document["resolved"]
    assert (done.code, row["state"]) == (1, "held")
    assert "127.0.0.1" in row["detail"]
    assert done.document["unanswered"] == [row["payment_id"]]


def test_reconcile_watches_until_it_is_stopped(cli: Cli) -> None:
    done = cli.interrupted(lambda: time.sleep(4), "reconcile", "--watch", "1")
    assert done.code == 1
    assert done.err.count("every payment is resolved") >= 2
    assert "interrupted" in done.err
    assert cli("reconcile", "--watch", "--json").code == 2


@pytest.mark.parametrize("command", ["spend", "payments", "reconcile", "payees", "pause"])
def test_no_question_opens_the_keystore(cli: Cli, command: str) -> None:
    (cli.home / "k.json").write_text("{}")
    done = cli(command, X402_MASK_PRIVATE_KEY=None, X402_MASK_KEYSTORE="k.json")
    assert done.code == 0


# --- export ---------------------------------------------------------------------------------------


def test_export_of_everything(cli: Cli, sells: Sells) -> None:
    sells()
    assert cli.alone("call", "thing").code == 0
    lines = [
        json.loads(line) for line in cli.alone("payments", "--export", "jsonl").out.splitlines()
    ]
    assert [line["usd"] for line in lines if line["record"] == "payment"] == ["0.10"]
    assert {line["record"] for line in lines} == {"payment", "history", "verification"}
    assert lines[-1]["ok"] is True
    done = cli.alone("payments", "--export", "csv", "--output", "out.csv", "--json")
    assert done.document == {"output": "out.csv", "records": len(lines)}
    rows = list(csv.DictReader((cli.home / "out.csv").read_text().splitlines()))
    assert len(rows) == len(lines)
    assert rows[0]["usd"] == "0.10"
    assert (
        f"{len(lines)} records in out.csv"
        in cli.alone("payments", "--export", "csv", "--output", "out.csv").err
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ("--export", "xml"),
        ("--export", "csv", "--json"),
        ("--export", "csv", "--state", "held"),
        ("--export", "csv", "--service", "thing"),
    ],
)
def test_export_usage(cli: Cli, arguments: tuple[str, ...]) -> None:
    assert cli("payments", *arguments).code == 2


def test_export_to_a_place_that_cannot_be_written(cli: Cli) -> None:
    done = cli("payments", "--export", "csv", "--output", "no/where.csv")
    assert done.code == 2
    assert "cannot write" in done.err and "No such file" in done.err
    if Path("/dev/full").exists():
        done = cli("payments", "--export", "csv", "--output", "/dev/full")
        assert done.code == 1
        assert "cannot write /dev/full: No space left" in done.err


def test_export_of_a_history_that_was_changed(cli: Cli, sells: Sells) -> None:
    """It is written all the same, and nobody can miss that it is not to be believed."""
    sells()
    cli = cli.having(X402_MASK_LEDGER=str(cli.home / "l.db"))
    assert cli("call", "thing").code == 0
    with contextlib.closing(sqlite3.connect(cli.home / "l.db")) as db, db:
        db.execute("UPDATE history SET data = replace(data, '100000', '100001')")
    for output in (("--output", "out.jsonl"), ()):
        done = cli("payments", "--export", "jsonl", *output)
        assert done.code == 1
        assert "THE AUDIT FAILED" in done.err
        written = (cli.home / "out.jsonl").read_text() if output else done.text
        assert json.loads(written.splitlines()[-1])["ok"] is False
    document = cli("payments", "--export", "csv", "--output", "out.csv", "--json").document
    assert (document["error"]["code"], document["output"]) == ("audit", "out.csv")
    assert document["records"] == len(written.splitlines())
    assert document["problems"]


# --- which ledger ---------------------------------------------------------------------------------


def test_spend_and_doctor_say_which_ledger_they_speak_of(cli: Cli) -> None:
    place = str(cli.home / "money" / "l.db")
    env = {"X402_MASK_LEDGER": " money/l.db\n"}
    (cli.home / "money").mkdir()
    assert cli("spend", "--json", **env).document["ledger"] == place
    assert f"on the ledger {place}" in cli("spend", COLUMNS="400", **env).words
    assert f"{place} can be read and written" in cli("doctor", COLUMNS="400", **env).words


def test_a_quoted_dsn_is_a_mistake_in_the_settings(cli: Cli) -> None:
    env = {"X402_MASK_LEDGER": '"postgresql://u:sesame@h/db"'}
    for command in ("spend", "pause", "payments"):
        done = cli(command, **env)
        assert done.code == 2
        assert "X402_MASK_LEDGER: is still in quotation marks: take them off" in done.words
        assert "sesame" not in done.words
    assert "X402_MASK_LEDGER: is still in quotation marks" in cli("doctor", **env).words
