"""``demo``, ``sandbox``, ``doctor``, completion, help, and what happens when things are missing."""

from __future__ import annotations

import ast
import io
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import click
import httpx
import pytest
from PIL import Image

from tests.cli.conftest import ADDRESS, KEY, TIMEOUT_S, Cli, Sells, quick_keystore
from tests.support.process import Child
from tests.support.seller import PAYEE, Reply, Seller, offer, v2_header
from x402_mask.cli._app import app
from x402_mask.sandbox import Sandbox

COMMANDS = (
    "demo",
    "call",
    "quote",
    "wallet",
    "spend",
    "payments",
    "payees",
    "reconcile",
    "pause",
    "resume",
    "sandbox",
    "doctor",
    "completion",
)

# --- demo -----------------------------------------------------------------------------------------


def test_demo_shows_the_conversation_and_a_refusal(bare: Cli) -> None:
    began = time.monotonic()
    done = bare.alone("demo")
    assert time.monotonic() - began < 30
    assert done.code == 0
    story = (
        "POST /api/tools/mask-refinement",
        "402 Payment Required",
        "the price is $0.20",
        "reserved $0.20",
        "signed",
        "with PAYMENT-SIGNATURE",
        "200 OK",
        "settled",
        "second purchase",
        "402 Payment Required",
        "refused: cap",
        "receipt",
        "caps",
    )
    at = 0
    for step in story:
        at = done.text.index(step, at)
    assert "would exceed the cap $0.30/day on mask-refinement: $0.10 left" in done.words
    assert "next: `x402-mask sandbox`" in done.words
    picture = Image.open(io.BytesIO((bare.home / "demo-out" / "refined-mask.png").read_bytes()))
    assert picture.format == "PNG"
    assert picture.getextrema() == (0, 255)
    assert not (bare.home / "data").exists()  # the user's own ledger is not touched


def test_demo_as_a_document(bare: Cli) -> None:
    done = bare("demo", "--json", "--output", "deep/er/mask.png")
    assert done.code == 0
    document = done.document
    assert document["receipt"]["outcome"] == "settled"
    assert document["caps"][1]["settled"] == "0.20"
    assert "would exceed the cap" in document["refused"]
    assert (bare.home / "deep/er/mask.png").stat().st_size > 0
    assert done.err == ""
    story = document["conversation"]
    assert {type(step["ms"]) for step in story} == {int}
    assert {step["who"] for step in story} == {"request", "answer", "payer", "ledger", "wallet", ""}


def test_demo_where_only_ascii_can_be_shown(bare: Cli) -> None:
    done = bare.alone("demo", PYTHONIOENCODING="ascii")
    assert done.code == 0
    assert done.out.isascii()
    assert "-> request" in done.text
    assert "<- answer" in done.text
    assert "\\u" not in done.text + done.err


def test_demo_to_a_place_that_cannot_be_made(bare: Cli) -> None:
    (bare.home / "file").write_text("")
    assert bare("demo", "--output", "file/mask.png").code == 2


def test_demo_ignores_what_is_configured(bare: Cli) -> None:
    env = {
        "X402_MASK_CAPS": "nonsense",
        "X402_MASK_CONFIG": "gone.toml",
        "HTTP_PROXY": "http://127.0.0.1:1",
        "http_proxy": "http://127.0.0.1:1",
    }
    assert bare.alone("demo", **env).code == 0


@pytest.mark.parametrize("missing", ["starlette", "uvicorn", "numpy", "PIL"])
@pytest.mark.parametrize("command", ["demo", "sandbox"])
def test_without_the_extra(bare: Cli, missing: str, command: str) -> None:
    program = (
        f"import sys; sys.modules[{missing!r}] = None\n"
        f"from x402_mask.cli import main; main([{command!r}])"
    )
    done = bare.run(["-c", program])
    assert done.code == 1
    assert "pip install 'x402-mask[sandbox]'" in done.err
    assert missing in done.err


# --- sandbox --------------------------------------------------------------------------------------


def _serve(cli: Cli, *args: str) -> Child:
    command = [sys.executable, "-m", "x402_mask", "sandbox", "--port", "0", *args]
    ready = r"money at (http://\S+);(?s:.*)Started server"
    return Child(command, ready, cwd=cli.home, env=cli.env)


def test_sandbox_serves_and_can_be_paid(cli: Cli) -> None:
    with _serve(cli) as child:
        url = child.ready[1]
        done = cli("call", "timestamp", "--method", "GET", "--json", X402_MASK_ORIGINS=url)
        assert done.code == 0
        assert done.document["receipt"]["usd"] == "0.03"


def test_sandbox_says_how_to_call_it(bare: Cli) -> None:
    """Every line that is to be typed works as it is."""
    with _serve(bare) as child:
        text = child.log.read_text()
        exports = dict(re.findall(r"(X402_MASK_(?:ORIGINS|CAPS|LEDGER))=(\S+)", text))
        cli = bare.having(**exports, X402_MASK_PRIVATE_KEY=KEY)
        calls = [
            line.partition("#")[0]
            for line in text.splitlines()
            if line.startswith("x402-mask call")
        ]
        assert len(calls) == 2
        for line in calls:
            assert cli(*line.split()[1:]).code == 0, line


def test_sandbox_misbehaves_on_demand(cli: Cli) -> None:
    with _serve(cli, "--faults", "500-after-settle=1,no-receipt=1", "--build", "newer") as child:
        env = {"X402_MASK_ORIGINS": child.ready[1]}
        assert cli("call", "timestamp", "--method", "GET", **env).code == 4
    with _serve(cli, "--faults", "500-after-settle", "--challenge", "v1") as child:
        env = {"X402_MASK_ORIGINS": child.ready[1], "X402_MASK_LEDGER": "other.db"}
        assert cli("call", "timestamp", "--method", "GET", **env).code == 5


def test_sandbox_usage(bare: Cli) -> None:
    assert "drop-after-settle" in bare("sandbox", "--faults", "help").text
    assert "drop-after-settle" in bare("sandbox", "--faults", "help", "--json").document["faults"]
    done = bare("sandbox", "--faults", "bogus")
    assert done.code == 2
    assert "unknown fault 'bogus'" in done.err
    done = bare("sandbox", "--rpc", "http://127.0.0.1:1")
    assert done.code == 2
    assert "set X402_MASK_FACILITATOR_KEY" in done.err
    secret = "0x" + "zz" * 32
    env = {"X402_MASK_FACILITATOR_KEY": secret}
    done = bare("sandbox", "--rpc", "http://127.0.0.1:1", **env)
    assert done.code == 2
    assert "zz" not in done.err
    assert bare("sandbox", "--pay-to", "0x12").code == 2
    assert bare("sandbox", "--port", "70000").code == 2
    assert bare("sandbox", "--json").code == 2


def test_sandbox_on_a_port_that_is_taken(bare: Cli) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = bare.alone("sandbox", "--port", port)
    assert done.code == 1
    assert f"cannot listen on 127.0.0.1:{port}" in done.err


# --- doctor ---------------------------------------------------------------------------------------

Checks = dict[str, list[dict[str, str]]]


def examine(cli: Cli, code: int | None = None, **env: str | None) -> Checks:
    done = cli("doctor", "--json", **env)
    document = done.document
    assert done.code == (0 if document["ok"] else 1)
    if code is not None:
        assert done.code == code, document
    found: Checks = {}
    for check in document["checks"]:
        assert check["status"] in ("ok", "warn", "fail")
        found.setdefault(check["name"], []).append(check)
    return found


def status(checks: Checks, name: str) -> str:
    return " ".join(check["status"] for check in checks[name])


def test_doctor_when_all_is_well(shopper: Cli, marketplace: Sandbox) -> None:
    before = len(marketplace.book.settlements)
    checks = examine(shopper, 0)
    for name in ("caps", "origins", "wallet", "ledger", "history", "origin", "clock", "price"):
        assert status(checks, name) == "ok", checks[name]
    assert ADDRESS in checks["wallet"][0]["detail"]
    assert "mask-refinement costs $0.20" in checks["price"][0]["detail"]
    assert marketplace.pay_to in checks["price"][0]["detail"]
    assert len(marketplace.book.settlements) == before
    done = shopper.alone("doctor")
    assert done.code == 0
    assert "mask-refinement costs $0.20" in done.words
    assert done.text.count("ok ") >= 8


def test_doctor_with_nothing_configured(bare: Cli) -> None:
    checks = examine(bare, 1)
    assert status(checks, "caps") == "fail"
    assert "X402_MASK_CAPS" in checks["caps"][0]["advice"]
    assert status(checks, "origins") == "fail"
    assert status(checks, "wallet") == "warn"
    assert "wallet new" in bare("doctor").words


def test_doctor_with_settings_that_cannot_be_read(bare: Cli) -> None:
    checks = examine(bare, 1, X402_MASK_CAPS="x")
    assert status(checks, "settings") == "fail"
    assert bare("doctor", X402_MASK_CAPS="x").code == 1


def test_doctor_sees_a_misspelt_variable(cli: Cli) -> None:
    checks = examine(cli, X402_MASK_LEDGR="x")
    assert "X402_MASK_LEDGR" in checks["settings"][0]["detail"]
    assert "X402_MASK_LEDGER" in checks["settings"][0]["advice"]


def test_doctor_and_the_wallet(cli: Cli) -> None:
    assert status(examine(cli, 1, X402_MASK_PRIVATE_KEY="0x12"), "wallet") == "fail"
    env: dict[str, str | None] = {
        "X402_MASK_PRIVATE_KEY": None,
        "X402_MASK_KEYSTORE": str(cli.home / "k.json"),
    }
    assert status(examine(cli, 1, **env), "wallet") == "fail"
    password = {"X402_MASK_KEYSTORE_PASSWORD": "pass"}
    (cli.home / "k.json").write_text(json.dumps(quick_keystore("pass")))
    (cli.home / "k.json").chmod(0o600)
    checks = examine(cli, **env)
    assert status(checks, "wallet") == "warn"
    assert f"{ADDRESS} from" in checks["wallet"][0]["detail"]
    assert status(examine(cli, **env, **password), "wallet") == "ok"
    wrong = {"X402_MASK_KEYSTORE_PASSWORD": "wrong"}
    assert status(examine(cli, 1, **env, **wrong), "wallet") == "fail"
    (cli.home / "k.json").chmod(0o644)
    checks = examine(cli, **env, **password)
    assert status(checks, "wallet") == "warn ok"
    assert "chmod 600" in checks["wallet"][0]["advice"]


def test_doctor_and_the_ledger(cli: Cli, seller: Seller, sells: Sells) -> None:
    (cli.home / "c.toml").write_text("breaker_after = 1\n")
    cli = cli.having(X402_MASK_CONFIG="c.toml")
    sells(Reply(status=500))
    assert cli("call", "thing").code == 4
    assert cli("pause").code == 0
    checks = examine(cli)
    told = " ".join(check["detail"] for check in checks["ledger"])
    assert "1 payment ($0.10) is held: nobody knows its end" in told
    assert "paused" in told
    assert f"breaker open: {seller.origin}" in told
    assert status(checks, "ledger") == "ok warn warn warn"


def test_doctor_and_caps_that_bind_nothing(cli: Cli, sells: Sells) -> None:
    """Until a call has named their service, in whatever spelling."""
    cli, line = cli.having(X402_MASK_CAPS="5/day,1/day@thnig,2/call@Thing"), "has ever named"
    said = [check["detail"] for check in cli("doctor", "--json").document["checks"]]
    assert [one.split("'")[1] for one in said if line in one] == ["thnig", "Thing"]
    sells()
    assert cli("call", "thing", "n=1").code == 0
    checks = [c for c in cli("doctor", "--json").document["checks"] if line in c["detail"]]
    assert [(c["name"], c["status"]) for c in checks] == [("caps", "warn")]
    assert "'thnig'" in checks[0]["detail"] and "spelled" in checks[0]["advice"]


def test_doctor_and_a_damaged_ledger(cli: Cli) -> None:
    (cli.home / "broken.db").write_bytes(b"not a database" * 1000)
    checks = examine(cli, 1, X402_MASK_LEDGER="broken.db")
    assert status(checks, "ledger") == "fail"
    assert "damaged" in checks["ledger"][0]["detail"]


def test_doctor_and_an_edited_history(cli: Cli, sells: Sells) -> None:
    import sqlite3

    sells()
    env = {"X402_MASK_LEDGER": str(cli.home / "l.db")}
    assert cli("call", "thing", **env).code == 0
    assert status(examine(cli, **env), "history") == "ok"
    with sqlite3.connect(cli.home / "l.db") as db:
        db.execute("UPDATE history SET data = replace(data, '100000', '100001')")
    db.close()
    assert status(examine(cli, 1, **env), "history") == "fail"


@pytest.mark.parametrize(
    ("ahead", "expected"), [(0, "ok"), (5, "ok"), (120, "warn"), (-120, "warn"), (3600, "fail")]
)
def test_doctor_and_the_clock(cli: Cli, seller: Seller, ahead: int, expected: str) -> None:
    seller.on(
        "/", lambda _: Reply(headers=[("Date", formatdate(time.time() + ahead, usegmt=True))])
    )
    checks = examine(cli)
    assert status(checks, "clock") == expected
    if expected != "ok":
        assert (
            f"{ahead:+d} s" in checks["clock"][0]["detail"]
            or "s from" in checks["clock"][0]["detail"]
        )
        assert "set this clock" in checks["clock"][0]["advice"]


@pytest.mark.parametrize("date", [None, "yesterday", "Sun, 06 Nov 99999 08:49:37 GMT"])
def test_doctor_without_a_time_to_compare_with(cli: Cli, seller: Seller, date: str | None) -> None:
    seller.on("/", Reply(headers=[] if date is None else [("Date", date)]))
    assert status(examine(cli), "clock") == "warn"


def test_doctor_and_an_origin_that_is_down(cli: Cli, seller: Seller) -> None:
    seller.close()
    checks = examine(cli, 1)
    assert status(checks, "origin") == "fail"
    assert status(checks, "price") == "fail"


def test_doctor_and_the_price(cli: Cli, seller: Seller) -> None:
    assert status(examine(cli), "price") == "warn"  # 404: not sold here
    path = "/api/tools/mask-refinement"
    seller.on(path, v2_header(offer("200000")))
    checks = examine(cli)
    assert status(checks, "price") == "ok"
    assert PAYEE in checks["price"][0]["detail"]
    seller.on(path, v2_header(offer("260000")))
    checks = examine(cli)
    assert status(checks, "price") == "warn"
    assert "$0.26 and would be refused" in checks["price"][0]["detail"]
    seller.on(path, Reply(status=402, headers=[("PAYMENT-REQUIRED", "!!")]))
    assert status(examine(cli, 1), "price") == "fail"
    assert seller.proofs() == []


@pytest.fixture
def endpoint(seller: Seller) -> str:
    return seller.origin + "/rpc?key=sesame"


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"jsonrpc": "2.0", "id": 1, "result": "0x2105"}, "ok"),
        ({"jsonrpc": "2.0", "id": 1, "result": "0x1"}, "fail"),
        ({"jsonrpc": "2.0", "id": 1, "error": {"code": 1}}, "fail"),
        ("nonsense", "fail"),
        ([], "fail"),
    ],
)
def test_doctor_and_the_rpc(
    cli: Cli, seller: Seller, endpoint: str, body: Any, expected: str
) -> None:
    seller.on("/rpc", Reply(body=json.dumps(body).encode()))
    done = cli("doctor", "--json", X402_MASK_RPC=f"eip155:8453={endpoint}")
    assert "sesame" not in done.words
    found = [c["status"] for c in done.document["checks"] if c["name"] == "rpc eip155:8453"]
    assert found == [expected]


# --- help, completion, start-up -------------------------------------------------------------------


def test_help_names_every_command_and_exit_code(bare: Cli) -> None:
    done = bare("--help")
    assert done.code == 0
    for command in COMMANDS:
        assert re.search(rf"^  {command} ", done.text, re.MULTILINE), command
    assert "4 outcome unknown" in done.words
    assert bare().code == 2
    assert bare("-h").text == done.text


def _commands(group: click.Group = app, *before: str) -> Iterator[tuple[tuple[str, ...], str]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from _commands(command, *before, name)
        if not isinstance(command, click.Group) or command.invoke_without_command:
            yield (*before, name), command.get_help(click.Context(command, info_name=name))


def test_json_is_listed_where_it_works() -> None:
    """And where it does not, it is refused in so many words.  The README names those."""
    without = {" ".join(names) for names, told in _commands() if "--json" not in told}
    assert without == {"sandbox", "mcp", "completion"}
    readme = (Path(__file__).parents[2] / "README.md").read_text("utf-8")
    named = re.search(r"`--json`, except (.*?)\.", " ".join(readme.split()))
    assert named is not None
    assert set(re.findall("`(.*?)`", named[1])) == without


@pytest.mark.parametrize("command", ["sandbox", "mcp", "completion bash"])
def test_json_is_refused_where_it_cannot_work(cli: Cli, command: str) -> None:
    done = cli(*command.split(), "--json")
    assert done.code == 2
    assert "--json" in done.document["error"]["message"]


@pytest.mark.parametrize("missing", ["mcp", "mcp.server.stdio"])
def test_without_the_extra_for_agents(cli: Cli, missing: str) -> None:
    program = (
        f"import sys; sys.modules[{missing!r}] = None\n"
        "from x402_mask.cli import main; main(['mcp'])"
    )
    done = cli.run(["-c", program])
    assert done.code == 1
    assert "pip install 'x402-mask[mcp]'" in done.err


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(bare: Cli, command: str) -> None:
    done = bare(command, "--help")
    assert done.code == 0
    assert "Usage: x402-mask " + command in done.text


def test_help_is_quick_and_loads_nothing_heavy(bare: Cli) -> None:
    program = (
        "import sys\nfrom x402_mask.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: print(sorted(sys.modules), file=sys.stderr)"
    )
    loaded = set(ast.literal_eval(bare.run(["-c", program]).err))
    heavy = {"web3", "eth_account", "starlette", "uvicorn", "numpy", "PIL", "sqlite3"}
    assert loaded & heavy == set()
    best = min(_seconds(bare) for _ in range(5))
    assert best < 0.4 * _slowness()


def _seconds(cli: Cli) -> float:
    began = time.perf_counter()
    cli.alone("--help")
    return time.perf_counter() - began


def _slowness() -> float:
    """How much slower than usual this machine starts Python just now, at least 1."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import httpx"], check=True, timeout=TIMEOUT_S)
    return max(1.0, (time.perf_counter() - began) / 0.2)


def test_version(bare: Cli) -> None:
    from importlib.metadata import version

    assert bare.alone("--version").text.strip() == f"x402-mask, version {version('x402-mask')}"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(bare: Cli, shell: str) -> None:
    done = bare("completion", shell)
    assert done.code == 0
    assert "_X402_MASK_COMPLETE" in done.text
    assert "x402-mask" in done.text
    assert bare("completion", "tcsh").code == 2


def test_completion_completes(bare: Cli) -> None:
    env = {
        "_X402_MASK_COMPLETE": "bash_complete",
        "COMP_WORDS": "x402-mask pay",
        "COMP_CWORD": "1",
    }
    assert bare.alone(**env).text.splitlines() == ["plain,payments", "plain,payees"]


def test_a_script_in_bash_completes(bare: Cli) -> None:
    bin_dir = Path(sys.executable).parent
    if not (bin_dir / "x402-mask").exists():
        pytest.skip("the x402-mask program is not installed beside this Python")
    script = (
        'eval "$(x402-mask completion bash)"; COMP_WORDS=(x402-mask quo); COMP_CWORD=1;'
        ' _x402_mask_completion x402-mask; echo "${COMPREPLY[@]}"'
    )
    env = {**bare.env, "PATH": f"{bin_dir}{os.pathsep}{bare.env['PATH']}"}
    done = subprocess.run(
        ["bash", "--norc", "-c", script],
        capture_output=True,
        timeout=TIMEOUT_S,
        env=env,
        cwd=bare.home,
        check=False,
    )
    assert done.stdout.decode().split() == ["quote"]


@pytest.mark.parametrize("arguments", [("cll",), ("wallet", "burn"), ("mcp",), ("--bogus",)])
def test_an_unknown_command(bare: Cli, arguments: tuple[str, ...]) -> None:
    assert bare(*arguments).code == 2
    error = bare(*arguments, "--json").document["error"]
    assert (error["code"], error["exit_code"]) == ("usage", 2)


def test_a_reader_that_left(shopper: Cli, marketplace: Sandbox) -> None:
    """``x402-mask call ... | true``: the exit code never says "nothing paid" of a paid call."""
    for command, expected in ((["spend"], 1), (["call", "timestamp", "--method", "GET"], 5)):
        out, into = os.pipe()
        os.close(out)
        try:
            done = shopper.run(["-m", "x402_mask", *command], stdout=into)
        finally:
            os.close(into)
        assert done.code == expected, done
        assert "Exception ignored" not in done.err
        assert "internal error" not in done.err


def test_the_sandbox_of_these_tests_is_alive(marketplace: Sandbox) -> None:
    assert httpx.get(f"{marketplace.url}/services", timeout=10, trust_env=False).status_code == 200
