"""What a seller says cannot act on the terminal that shows it."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

import pytest
from rich.cells import cell_len

from tests.cli.conftest import TIMEOUT_S, Cli, Sells
from tests.support.seller import (
    Reply,
    Seller,
    challenge,
    encode,
    in_header,
    offer,
    paywall,
    served,
    settlement,
    v2_header,
)
from x402_mask._text.printable import clean
from x402_mask.cli._parse import parse

TITLE = "\x1b]0;owned\x07"
EVIL = f"{TITLE}\x1b[2J\x1b[31mred\x1b[0m\x9b1mC1\x9d0;c1\x9c\x1bPdcs\x1b\\\b\b\r\u202egnp\u200b\x00end"
PLAIN_SGR = re.compile(rb"\x1b\[[0-9;]*m")


def in_terminal(cli: Cli, *args: str, term: str = "dumb", columns: int = 200) -> tuple[int, bytes]:
    """Run in a pseudo-terminal and return all that it would be sent."""
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "x402_mask", *args],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        cwd=cli.home,
        env={**cli.env, "TERM": term, "COLUMNS": str(columns)},
        start_new_session=True,
    )
    os.close(slave)
    sent = bytearray()
    until = time.monotonic() + TIMEOUT_S
    try:
        while time.monotonic() < until:
            ready, _, _ = select.select([master], [], [], 0.2)
            try:
                chunk = os.read(master, 65536) if ready else b""
            except OSError:  # Linux: the other end was closed
                break
            if ready and not chunk:
                break
            sent += chunk
        return process.wait(timeout=5), bytes(sent)
    finally:
        process.kill()
        process.wait()
        os.close(master)


def harmless(sent: bytes) -> None:
    """Nothing but text, and the colours that we set ourselves."""
    text = PLAIN_SGR.sub(b"", sent).decode("utf-8", "strict")
    hidden = {c for c in text if not c.isprintable() and c not in "\r\n\t"}
    assert hidden == set()
    assert "\u202e" not in text
    assert "\r" not in text.replace("\r\n", "\n")  # the terminal driver adds those
    assert b"\x1b[31mred" not in sent
    assert b"owned\x07" not in sent


def evil_json() -> bytes:
    return json.dumps({"made": EVIL, EVIL: [EVIL]}).encode()


@pytest.mark.parametrize("term", ["dumb", "xterm-256color"])
def test_a_paid_answer(cli: Cli, sells: Sells, term: str) -> None:
    sells(served(evil_json()))
    code, sent = in_terminal(cli, "call", "thing", term=term)
    assert code == 0
    harmless(sent)
    assert b"red" in sent
    assert b"paid $0.10" in sent


@pytest.mark.parametrize("body", [EVIL.encode(), evil_json(), b"\xff\xfe\x1b[2J"])
@pytest.mark.parametrize("status", [200, 400])
def test_a_free_answer_and_an_error(cli: Cli, seller: Seller, body: bytes, status: int) -> None:
    headers = [("Content-Type", "text/\x9b31mx")]
    seller.on("/api/tools/thing", Reply(status=status, body=body, headers=headers))
    _, sent = in_terminal(cli, "call", "thing")
    harmless(sent)


@pytest.mark.parametrize("field", ["error", "message"])
def test_an_error_message(cli: Cli, sells: Sells, field: str) -> None:
    sells(Reply(status=500, body=json.dumps({field: EVIL}).encode()))
    code, sent = in_terminal(cli, "call", "thing")
    assert code == 4
    harmless(sent)
    assert b"red" in sent


def test_where_a_redirect_leads(cli: Cli, seller: Seller) -> None:
    for location in ("/x?\x9b31m\x9d0;owned\x9cy", "/\x1b[2J", "http://\x9b31m/", "http://[/"):
        answer = Reply(status=302, headers=[("Location", location)])
        seller.on("/api/tools/thing", answer)
        code, sent = in_terminal(cli, "call", "thing")
        assert code == 1
        harmless(sent)
        assert b"internal error" not in sent
    seller.on("/api/tools/thing", Reply(status=302, headers=[("Location", "/elsewhere")]))
    assert b"to /elsewhere (redirects are not followed)" in in_terminal(cli, "call", "thing")[1]


@pytest.mark.parametrize(
    "changes",
    [
        {"scheme": EVIL},
        {"network": EVIL},
        {"asset": EVIL},
        {"payTo": EVIL},
        {"extra": {"name": EVIL, "version": EVIL}},
        {"extra": {"name": "USD Coin", "version": "2", "assetTransferMethod": EVIL}},
    ],
    ids=lambda changes: next(iter(changes)),
)
@pytest.mark.parametrize("command", ["call", "quote"])
def test_a_refused_offer(
    cli: Cli, seller: Seller, changes: dict[str, object], command: str
) -> None:
    seller.on("/api/tools/thing", v2_header(offer(**changes)))
    code, sent = in_terminal(cli, command, "thing")
    assert code == 3
    harmless(sent)


def test_a_challenge_full_of_it(cli: Cli, seller: Seller) -> None:
    document = challenge(offer("100000", description=EVIL, mimeType=EVIL), error=EVIL)
    document["resource"] = {"url": EVIL, "description": EVIL}
    seller.on("/api/tools/thing", paywall(in_header(document), served(b"ok")))
    for command in ("quote", "call"):
        code, sent = in_terminal(cli, command, "thing")
        assert code == 0
        harmless(sent)


def test_what_the_ledger_remembers(cli: Cli, sells: Sells) -> None:
    def failed(hit: object) -> Reply:
        name, _ = settlement(hit)  # type: ignore[arg-type]
        claim = {"success": False, "errorReason": EVIL, "transaction": EVIL, "network": EVIL}
        return Reply(status=500, headers=[(name, encode(claim))])

    sells(failed)
    assert in_terminal(cli, "call", "thing")[0] == 4
    shown = "payments", "payments --state held", "payments --export csv", "reconcile", "doctor"
    for command in shown:
        _, sent = in_terminal(cli, *command.split())
        harmless(sent)
        assert b"pay_" in sent or command == "doctor"


def test_json_is_ascii_in_a_terminal_too(cli: Cli, sells: Sells) -> None:
    sells(served(evil_json()))
    code, sent = in_terminal(cli, "call", "thing", "--json")
    assert code == 0
    assert json.loads(sent)["body"] == json.loads(evil_json())
    assert sent.isascii()
    assert b"\x1b" not in sent


def test_a_long_answer_is_cut_in_the_terminal_and_kept_whole(cli: Cli, sells: Sells) -> None:
    body = ("word " * 20_000).encode()
    sells(served(body, headers=[("Content-Type", "text/plain")]))
    code, sent = in_terminal(cli, "call", "thing")
    assert code == 0
    assert len(sent) < 30_000
    assert b"all 100000 bytes are in" in sent
    [kept] = cli.home.glob("thing-*.txt")
    assert kept.read_bytes() == body


def test_binary_goes_to_a_file_that_the_seller_cannot_name(cli: Cli, sells: Sells) -> None:
    picture = b"\x89PNG\r\n\x1a\n" + bytes(range(256))
    sells(
        served(picture, headers=[("Content-Type", "image/png"), ("Content-Disposition", "x=../y")])
    )
    code, sent = in_terminal(cli, "call", "thing")
    assert code == 0
    harmless(sent)
    [kept] = cli.home.glob("thing-*")
    assert kept.suffix == ".png"
    assert kept.read_bytes() == picture
    sells(served(picture, headers=[("Content-Type", "../../etc/passwd")]))
    assert in_terminal(cli, "call", "thing", "n=2")[0] == 0
    assert {file.suffix for file in cli.home.glob("thing-*")} == {".png", ".bin"}


def test_a_password_is_asked_for_and_not_echoed(cli: Cli, tmp_path: Path) -> None:
    master, slave = pty.openpty()
    env = {**cli.env, "TERM": "dumb"}
    env.pop("X402_MASK_PRIVATE_KEY")
    process = subprocess.Popen(
        [sys.executable, "-m", "x402_mask", "wallet", "new", "--path", str(tmp_path / "k.json")],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        cwd=cli.home,
        env=env,
        start_new_session=True,
    )
    os.close(slave)
    sent = bytearray()
    try:
        for expected in (b"New password", b"Repeat"):
            until = time.monotonic() + TIMEOUT_S
            while expected not in sent and time.monotonic() < until:
                if select.select([master], [], [], 0.2)[0]:
                    sent += os.read(master, 65536)
            assert expected in sent
            time.sleep(0.2)  # the prompt turns the echo off just before it reads
            os.write(master, b"hidden horse\n")
        assert process.wait(timeout=TIMEOUT_S) == 0
    finally:
        process.kill()
        process.wait()
        os.close(master)
    assert b"hidden horse" not in sent
    assert (tmp_path / "k.json").exists()


# --- what fits ------------------------------------------------------------------------------------


def _bought(cli: Cli, sells: Sells) -> list[dict[str, str]]:
    """Three settled payments and one that is held."""
    sells()
    for number in range(3):
        assert cli("call", "thing", f"n={number}").code == 0
    sells(Reply(status=500))
    assert cli("call", "thing", "n=3").code == 4
    found: list[dict[str, str]] = cli("payments", "--json").document["payments"]
    return found


def _lines(sent: bytes) -> list[str]:
    return PLAIN_SGR.sub(b"", sent).decode().replace("\r", "").splitlines()


@pytest.mark.parametrize("columns", [60, 80, 100, 200])
def test_every_payment_is_on_one_line_that_fits(cli: Cli, sells: Sells, columns: int) -> None:
    payments = _bought(cli, sells)
    code, sent = in_terminal(cli, "payments", term="xterm", columns=columns)
    lines = _lines(sent)
    assert code == 0
    assert max(map(cell_len, lines)) <= columns
    assert lines[0].split()[:3] == ["at", "(UTC)", "state"]
    rows = [line for line in lines[1:] if not line.startswith(" ")]
    assert len(rows) == len(payments)
    for row, payment in zip(rows, payments, strict=True):
        assert row.startswith(f"{datetime.fromisoformat(payment['at']):%m-%d %H:%M}  ")
        assert all(text in row for text in (payment["state"], "$0.10", "thing"))
        wanted = payment["payment_id"] if columns == 200 else payment["payment_id"][-8:]
        assert wanted in row
        assert columns != 80 or payment["state"] != "settled" or "0xabab…abab" in row
    assert "may be collected until" in " ".join(lines)


def test_payments_fit_a_pipe_and_a_long_service_gives_way(cli: Cli, seller: Seller) -> None:
    name = "a-service-with-" + "x" * 80
    seller.on(f"/api/tools/{name}", paywall(v2_header(offer("100000")), served(b"ok")))
    assert cli("call", name).code == 0
    heads, row = cli("payments").text.splitlines()
    assert cell_len(row) == 80
    assert "a-service-with-x" in row
    assert "…" in row
    assert heads.split()[-1] == "transaction"


@pytest.mark.parametrize("columns", [40, 60, 80])
def test_spend_fits(cli: Cli, sells: Sells, columns: int) -> None:
    _bought(cli, sells)
    cli = cli.having(X402_MASK_CAPS="0.25/call,1000/month,2/day@thing,5/36h@mask-refinement")
    code, sent = in_terminal(cli, "spend", term="xterm", columns=columns)
    lines = _lines(sent)
    assert code == 0
    assert max(map(cell_len, lines)) <= columns
    words = " ".join(" ".join(lines).split())
    for told in ("all services", "month", "$1000.00", "mask-refinement", "36h", "$0.30", "$999.60"):
        assert told in words
    if columns < 80:
        assert "thing, $2.00 per day settled $0.30, held $0.10, left $1.60, more at" in words


def test_spend_is_a_table_in_an_ordinary_terminal(cli: Cli) -> None:
    cli = cli.having(X402_MASK_CAPS="0.25/call,5/day,2/36h@mask-refinement")
    _, sent = in_terminal(cli, "spend", term="xterm", columns=80)
    [row] = [line.split() for line in _lines(sent) if "mask-refinement" in line]
    assert row[:6] == ["mask-refinement", "36h", "$2.00", "$0.00", "$0.00", "$2.00"]


@pytest.mark.parametrize("columns", [80, 200])
def test_what_reconcile_says_fits(cli: Cli, sells: Sells, columns: int) -> None:
    _bought(cli, sells)
    _, sent = in_terminal(cli, "reconcile", term="xterm", columns=columns)
    lines = _lines(sent)
    shown = [line for line in lines if line.startswith(("state", "held", " "))]
    assert max(map(cell_len, shown)) <= columns
    assert "no rpc for its network" in " ".join(lines)


# --- the cleaner itself ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (EVIL, "redC1gnpend"),
        ("plain text, Grüße, 你好, USD₮0", "plain text, Grüße, 你好, USD₮0"),
        ("a\nb\tc", "a b c"),
        ("\x1b]8;;http://evil\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x1b]0;never ends", ""),
        ("\x1b[38;5;1", "38;5;1"),
        ("\x1b", ""),
        ("\x1b(B\x1b=x", "x"),
        ("\ud800\ue000\U000e0041x", "x"),
        ("x\u2028y\u2029z", "xyz"),
    ],
)
def test_clean(text: str, shown: str) -> None:
    assert clean(text).replace("[", "") == shown


def test_clean_caps_the_length_and_keeps_lines_if_asked() -> None:
    assert clean("x" * 1000, 10) == "x" * 9 + "…"
    assert clean("a\nb\r\n\tc", lines=True) == "a\nb\n\tc"


def test_clean_takes_no_time_over_anything() -> None:
    began = time.perf_counter()
    for text in ("\x1b[" * 500_000, "\x1b]" * 500_000, "\x1b[0" * 300_000, "\x9b;;" * 300_000):
        clean(text, 20_000, lines=True)
    assert time.perf_counter() - began < 5


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 50_000, '"\\' + "[" * 500, "NaN", ""])
def test_parse_refuses_what_could_end_the_process(text: str) -> None:
    with pytest.raises(ValueError):
        parse(text)


def test_parse_reads_everything_else() -> None:
    deep = "[" * 200 + "]" * 200
    assert parse(deep) == json.loads(deep)
    assert parse('{"a": "[[[[\\"[[[["}') == {"a": '[[[["[[[['}
    assert parse('"' + "[" * 500 + '"') == "[" * 500
    assert parse(b'[1.5, null, "\xc3\xa4"]') == [1.5, None, "ä"]
