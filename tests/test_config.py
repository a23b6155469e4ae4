"""Configuration from environment variables and TOML files."""

from __future__ import annotations

import inspect
import json
import os
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from eth_account import Account

from x402_mask import Asset, Cap, Payer, SQLiteLedger, Wallet
from x402_mask._payer import buyer_of
from x402_mask._settings.ledger_place import open_ledger
from x402_mask._settings.sources import Configuration, from_config, from_env, mistaken, read
from x402_mask._settings.words import READERS, parse_cap, parse_caps, parse_rpc, parse_span

KEY = "11" * 32
ADDRESS = "0x19E7E376E7C213B7E7e7e46cc70A5dD086DAff2A"
PASSWORD = "correct horse"
ENV = {"X402_MASK_CAPS": "0.25/call,5/day", "X402_MASK_ORIGINS": "https://x402vip.com"}
USDC = "0x833589fCD6eDb6E08f4c7C32D4f71b54bdA02913"


def write(path: Path, text: str, *, mode: int = 0o600) -> Path:
    path.write_text(text, encoding="utf-8")
    path.chmod(mode)
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Where a file of settings goes."""
    return tmp_path / "settings.toml"


@pytest.fixture(scope="module")
def keystore(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("keys") / "k.json"
    made = Account.encrypt("0x" + KEY, PASSWORD, kdf="pbkdf2", iterations=1000)
    path.write_text(json.dumps(made))
    return path


# --- caps -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "cap"),
    [
        ("0.25/call", Cap("0.25", per="call")),
        ("5/day", Cap(5, per="day")),
        ("$5/hour", Cap(5, per="hour")),
        (" 100 / month ", Cap(100, per="month")),
        ("0.000001/total", Cap("0.000001", per="total")),
        ("2/day@mask-refinement", Cap(2, per="day", service="mask-refinement")),
        ("2/day@https://h/", Cap(2, per="day", service="https://h/")),
        ("2/day@*", Cap(2, per="day")),
        ("5/36h", Cap(5, per=timedelta(hours=36))),
        ("1/30min", Cap(1, per=timedelta(minutes=30))),
        ("2/7d@x", Cap(2, per=timedelta(days=7), service="x")),
        ("2/2w", Cap(2, per=timedelta(weeks=2))),
        ("2/90s", Cap(2, per=timedelta(seconds=90))),
    ],
)
def test_a_cap(text: str, cap: Cap) -> None:
    assert parse_cap(text) == cap


def test_several_caps_in_order() -> None:
    caps = parse_caps("0.25/call, 5/day,2/day@mask-refinement,")
    assert [str(cap) for cap in caps] == [
        "$0.25/call on all services",
        "$5.00/day on all services",
        "$2.00/day on mask-refinement",
    ]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "names no cap"),
        (" , ", "names no cap"),
        ("5", "not USD/PER"),
        ("5/", "is not call, hour"),
        ("/day", "not a USD amount"),
        ("5/day@", "not USD/PER"),
        ("5/daily", "is not call, hour"),
        ("5/0h", "is not call, hour"),
        ("5/1.5h", "is not call, hour"),
        ("5/-1h", "is not call, hour"),
        ("5/30m", "minutes or months"),
        ("5/999999999d", "is not call, hour"),
        ("0/day", "above 0"),
        ("-5/day", "above 0"),
        ("0.0000001/day", "six decimals"),
        ("NaN/day", "not a USD amount"),
        ("Infinity/day", "not a USD amount"),
        ("5 USD/day", "not a USD amount"),
        ("5/day;1/call", "is not call, hour"),
    ],
)
def test_not_caps(text: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        parse_caps(text)
    if text.strip(", "):
        with pytest.raises(ValueError, match=r"^X402_MASK_CAPS: "):
            from_env({**ENV, "X402_MASK_CAPS": text})


@pytest.mark.parametrize(
    ("text", "seconds"), [("5m", 300), ("5min", 300), ("90s", 90), ("1h", 3600), ("2 d", 172800)]
)
def test_a_span(text: str, seconds: int) -> None:
    assert parse_span(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize("text", ["", "5", "m", "5y", "0m", "5.5m", "-5m", "٥m", "99999w"])
def test_not_a_span(text: str) -> None:
    with pytest.raises(ValueError, match=r"length of time|ten years"):
        parse_span(text)


# --- the other variables --------------------------------------------------------------------------


def test_origins_keep_their_order() -> None:
    found = from_env({**ENV, "X402_MASK_ORIGINS": " https://b.example, https://a.example ,"})
    assert found["origins"] == ["https://b.example", "https://a.example"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("http://shop.example", "only loopback"),
        ("shop.example", "scheme://host"),
        ("ftp://shop.example", "not an http"),
        ("https://h/path", "nothing more"),
        ("https://u:p@h", "nothing more"),
        (",", "empty"),
    ],
)
def test_not_origins(text: str, told: str) -> None:
    with pytest.raises(ValueError, match=f"^X402_MASK_ORIGINS: .*{told}"):
        from_env({**ENV, "X402_MASK_ORIGINS": text})


def test_several_endpoints_of_a_network_must_agree() -> None:
    text = (
        "eip155:8453=https://one/?key=a=b,c, eip155:8453 = https://two,base-sepolia=https://three"
    )
    assert parse_rpc(text) == {
        "eip155:8453": ["https://one/?key=a=b,c", "https://two"],
        "eip155:84532": ["https://three"],
    }
    with Payer(None, **_payer(from_env({**ENV, "X402_MASK_RPC": text}))) as payer:
        assert buyer_of(payer).chain_knows("eip155:84532")


@pytest.mark.parametrize(
    "text",
    [
        "https://sesame.example/key",
        "eip155:8453",
        "eip155:8453=sesame",
        "eip155:8453=ws://sesame",
        "solana:1=https://sesame",
        "8453=https://sesame",
        "eip155:0=https://sesame",
        "eip155:8453=https://ok,x=https://sesame",
    ],
)
def test_not_endpoints_and_their_urls_are_never_quoted(text: str) -> None:
    with pytest.raises(ValueError, match=r"^X402_MASK_RPC: ") as caught:
        from_env({**ENV, "X402_MASK_RPC": text})
    assert "sesame" not in str(caught.value)


def test_a_ledger_is_a_path_or_a_dsn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    ledger = from_env({**ENV, "X402_MASK_LEDGER": "~/money.db"})["ledger"]
    assert isinstance(ledger, SQLiteLedger)
    assert ledger.path == tmp_path / "money.db"
    assert "ledger" not in from_env(ENV)
    with pytest.raises(ValueError, match="not mysql://") as caught:
        open_ledger("mysql://u:sesame@h/db")
    assert "sesame" not in str(caught.value)


@pytest.mark.parametrize(
    "dsn",
    [
        "postgresql://u:sesame@127.0.0.1:1/db",
        "host=127.0.0.1 port=1 password=sesame",
        " user = me password = 'ses ame'",
        "dbname=money",
        "sslmode=require host=h",
        "keepalives=1 password=sesame",
    ],
)
def test_a_dsn_opens_a_postgres_ledger(dsn: str, file: Path) -> None:
    pytest.importorskip("psycopg")
    from x402_mask import PostgresLedger

    write(file, f'ledger = "{dsn}"')
    assert read({"X402_MASK_CONFIG": str(file)}).ledger == dsn.strip()
    ledger = open_ledger(dsn)
    try:
        assert isinstance(ledger, PostgresLedger)
        assert "sesame" not in repr(ledger)
    finally:
        ledger.close()


def test_what_may_hold_a_password_is_never_a_path(file: Path) -> None:
    """A file of that name would show it to everybody."""
    text = "no such keyword = 1 password=sesame"
    with pytest.raises(ValueError, match="not a PostgreSQL connection string") as caught:
        open_ledger(text)
    assert "sesame" not in str(caught.value)
    ordinary = open_ledger(str(file.parent / "host" / "port=1.db"))
    assert isinstance(ordinary, SQLiteLedger)


def test_without_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    from x402_mask._ledger import postgres as _postgres

    monkeypatch.setattr(_postgres, "postgres_pool", None)
    with pytest.raises(ValueError, match=r"pip install 'x402-mask\[postgres\]'"):
        open_ledger("postgresql://h/db")


# --- what is missing ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["CAPS", "ORIGINS"])
@pytest.mark.parametrize("value", ["", None])
def test_caps_and_origins_are_needed(name: str, value: str | None) -> None:
    env = {k: v for k, v in {**ENV, f"X402_MASK_{name}": value}.items() if v is not None}
    with pytest.raises(ValueError, match=f"no {name.lower()} are configured: set X402_MASK_{name}"):
        from_env(env)


def test_what_the_caller_has_is_neither_needed_nor_opened() -> None:
    assert from_env({}, given=("caps", "origins", "wallet")) == {}
    env = {"X402_MASK_PRIVATE_KEY": "nonsense", "X402_MASK_LEDGER": "mysql://h"}
    assert from_env(env, given=("caps", "origins", "wallet", "ledger")) == {}


def test_there_is_no_built_in_origin_and_no_wallet() -> None:
    assert from_env(ENV) == {
        "caps": [Cap("0.25", per="call"), Cap(5, per="day")],
        "origins": ["https://x402vip.com"],
        "wallet": None,
    }


# --- wallets --------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [KEY, "0x" + KEY, f" 0x{KEY}\n"])
def test_a_private_key(key: str) -> None:
    wallet = from_env({**ENV, "X402_MASK_PRIVATE_KEY": key})["wallet"]
    assert isinstance(wallet, Wallet)
    assert wallet.address == ADDRESS


@pytest.mark.parametrize("key", ["sesame", "0x1234", "00" * 32, "ff" * 32, KEY + "00"])
def test_not_a_private_key(key: str) -> None:
    with pytest.raises(ValueError, match=r"^X402_MASK_PRIVATE_KEY is not a private key") as caught:
        from_env({**ENV, "X402_MASK_PRIVATE_KEY": key})
    assert key not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_a_keystore(keystore: Path) -> None:
    env = {**ENV, "X402_MASK_KEYSTORE": str(keystore), "X402_MASK_KEYSTORE_PASSWORD": PASSWORD}
    assert from_env(env)["wallet"].address == ADDRESS
    source = read(env).wallet
    assert source is not None
    assert source.claimed_address == ADDRESS


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"X402_MASK_KEYSTORE_PASSWORD": "sesame"}, "X402_MASK_KEYSTORE: the password is wrong"),
        ({"X402_MASK_KEYSTORE_PASSWORD": None}, "set X402_MASK_KEYSTORE_PASSWORD"),
        ({"X402_MASK_KEYSTORE": "/no/such/file"}, "X402_MASK_KEYSTORE: there is no keystore"),
        ({"X402_MASK_KEYSTORE": __file__}, "not a V3 keystore"),
    ],
)
def test_not_a_keystore(keystore: Path, change: dict[str, str | None], told: str) -> None:
    env = {**ENV, "X402_MASK_KEYSTORE": str(keystore), "X402_MASK_KEYSTORE_PASSWORD": PASSWORD}
    with pytest.raises(ValueError, match=told) as caught:
        from_env({k: v for k, v in {**env, **change}.items() if v is not None})
    assert "sesame" not in str(caught.value)
    assert PASSWORD not in str(caught.value)


def test_secrets_are_in_no_repr(file: Path, keystore: Path) -> None:
    env = {
        **ENV,
        "X402_MASK_PRIVATE_KEY": KEY,
        "X402_MASK_LEDGER": "postgresql://u:sesame@h/db",
    }
    found = read(env)
    assert KEY not in repr(found)
    assert "sesame" not in repr(found)
    write(file, f'wallet = {{keystore = "{keystore}", password_env = "PW"}}')
    assert "hidden" not in repr(read({"X402_MASK_CONFIG": str(file), "PW": "hidden"}))


# --- the file -------------------------------------------------------------------------------------

FULL = f"""
caps = ["0.25/call", "5/day@mask-refinement", "5/36h"]
origins = ["https://b.example", "https://a.example"]
token_origins = ["https://a.example"]
balance_origins = ["https://b.example"]
ledger = "money.db"
networks = ["eip155:8453", "base-sepolia"]
payees = "pin"
prefer = ["x402"]
max_validity = "2m"
on_refusal = "return"
preempt = true
resign = "never"
breaker_after = 3
breaker_for = 90
max_gas_wei = 2000000000000000
validate_input = false
allow_above_catalog = true

[wallet]
private_key_env = "MY_KEY"

[[assets]]
network = "base"
address = "{USDC}"
decimals = 6
name = "USD Coin"
version = "2"

[services]
weather = "https://a.example/weather/*"

[rpc]
"eip155:8453" = ["https://one", "https://two"]
base-sepolia = "https://three"
"""


def _payer(found: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in found.items() if name != "wallet"}


def test_every_key_of_a_file(file: Path) -> None:
    write(file, FULL)
    found = from_config(file, {"MY_KEY": KEY})
    assert found["wallet"].address == ADDRESS
    assert found["ledger"].path == file.parent / "money.db"
    del found["wallet"], found["ledger"]
    assert found == {
        "caps": [
            Cap("0.25", per="call"),
            Cap(5, per="day", service="mask-refinement"),
            Cap(5, per=timedelta(hours=36)),
        ],
        "origins": ["https://b.example", "https://a.example"],
        "token_origins": ["https://a.example"],
        "balance_origins": ["https://b.example"],
        "networks": ["eip155:8453", "base-sepolia"],
        "assets": [Asset("eip155:8453", USDC, 6, "USD Coin", "2")],
        "payees": "pin",
        "prefer": ["x402"],
        "services": {"weather": "https://a.example/weather/*"},
        "max_validity": timedelta(minutes=2),
        "rpc": {"eip155:8453": ["https://one", "https://two"], "eip155:84532": ["https://three"]},
        "on_refusal": "return",
        "preempt": True,
        "resign": "never",
        "breaker_after": 3,
        "breaker_for": timedelta(seconds=90),
        "max_gas_wei": 2 * 10**15,
        "validate_input": False,
        "allow_above_catalog": True,
    }


def test_a_file_has_a_key_for_each_keyword_of_a_payer() -> None:
    names = set(inspect.signature(Payer).parameters)
    code = {"approve", "on_event", "clock", "settle_payment"}
    assert set(READERS) == names - {"wallet", "ledger"} - code


def test_a_payer_from_a_file_and_from_the_environment(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    write(file, FULL)
    with Payer.from_config(file) as payer:
        assert payer.address == ADDRESS
        assert buyer_of(payer).settings.returns_refusals
        assert str(buyer_of(payer).limits[1].cap) == "$5.00/day on mask-refinement"
    for name in list(os.environ):
        if name.startswith("X402_MASK_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("X402_MASK_CONFIG", str(file))
    monkeypatch.setenv("X402_MASK_CAPS", "7/total")
    with Payer.from_env(preempt=False) as payer:
        assert buyer_of(payer).settings.preempt is False
        assert [limit.cap.limit for limit in buyer_of(payer).limits] == [Decimal("7.00")]
        assert [spend.left for spend in payer.spend()] == [Decimal("7.00")]


def test_variables_override_the_file(file: Path, tmp_path: Path) -> None:
    write(file, FULL)  # its wallet's variable is not set, and is not needed
    env = {
        "X402_MASK_CONFIG": str(file),
        "X402_MASK_CAPS": "1/call",
        "X402_MASK_ORIGINS": "https://c.example",
        "X402_MASK_RPC": "eip155:1=https://four",
        "X402_MASK_LEDGER": str(tmp_path / "other.db"),
        "X402_MASK_PRIVATE_KEY": KEY,
        "MY_KEY": "22" * 32,
    }
    found = from_env(env)
    assert found["caps"] == [Cap(1, per="call")]
    assert found["origins"] == ["https://c.example"]
    assert found["rpc"] == {"eip155:1": ["https://four"]}
    assert found["ledger"].path == tmp_path / "other.db"
    assert found["wallet"].address == ADDRESS
    assert found["resign"] == "never"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("cap = []", "unknown key 'cap'; did you mean caps"),
        ("orgins = []", "unknown key 'orgins'; did you mean origins"),
        ("zzz = 1", r"unknown key 'zzz' \(known: wallet, ledger, caps"),
        ("approve = true", "unknown key 'approve'"),
        ("caps = 5", "caps: is a list of text"),
        ("caps = '5/dy'", "caps: 'dy' is not call, hour"),
        ("caps = ''", "caps: names no cap"),
        ("caps = [5.0]", "caps: each item is text, not float"),
        ("caps = ['']", "caps: each item is text, not empty"),
        ("caps = []", "caps: is empty"),
        ("caps = ['5/dy']", "caps: 'dy' is not call, hour"),
        ("origins = ['http://a.example']", "origins: only loopback"),
        ("origins = []", "origins: origins is empty"),
        ("networks = 'base'", "networks: is a list of text"),
        ("assets = ['USDC']", "assets: is a list of tables"),
        ("assets = 'USDC'", "assets: is a list of tables"),
        ("[[assets]]\nnetwork = 'base'", "assets: an asset has no address"),
        ("[[assets]]\nnetwrk = 'base'", "assets: unknown key 'netwrk'; did you mean network"),
        ("payees = 'all'", 'payees: is "pin" or a list'),
        ("prefer = 1", "prefer: is a list of text"),
        ("services = ['x']", "services: is a table"),
        ("[services]\nx = 'not a url'", "services: not an http"),
        ("[services]\nx = 1", "services: x is text, not int"),
        ("max_validity = '5'", "max_validity: '5' is not a length of time"),
        ("max_validity = 0", "max_validity: is seconds"),
        ("max_validity = true", "max_validity: is seconds"),
        ("max_validity = 1.5", "max_validity: is seconds"),
        ("rpc = 'http://h'", "rpc: is a table"),
        ("[rpc]\n'8453' = 'http://h'", "rpc: '8453' is not an EVM network"),
        ("[rpc]\nbase = 1", "rpc: the endpoint of base is not"),
        ("[rpc]\nbase = []", "rpc: base has no endpoint"),
        ("on_refusal = 'ignore'", "on_refusal: is one of raise, return"),
        ("preempt = 'yes'", "preempt: is true or false"),
        ("resign = true", "resign: is one of expired, never"),
        ("breaker_after = 0", "breaker_after: is a number of bad ends above 0"),
        ("breaker_after = true", "breaker_after: is a number of bad ends above 0"),
        ("breaker_for = 'long'", "breaker_for: 'long' is not a length of time"),
        ("max_gas_wei = 0", "max_gas_wei: is wei above 0"),
        ("max_gas_wei = 0.001", "max_gas_wei: is wei above 0"),
        ("max_gas_wei = true", "max_gas_wei: is wei above 0"),
        ("ledger = 5", "ledger: it is text, not int"),
        ("wallet = 'k.json'", "wallet: is a table"),
        ("wallet = {}", "wallet: has one of keystore"),
        ("wallet = {keystore = 'k', private_key_env = 'K'}", "wallet: has one of keystore"),
        ("wallet = {keystore = 'k', password = 'x'}", "wallet: a password does not belong"),
        ("wallet = {mnemonic = 'test test'}", "wallet: a mnemonic does not belong"),
        ("wallet = {private_key_env = 'K', password_env = 'P'}", "belongs to a keystore"),
        ("wallet = {keystor = 'k'}", "wallet: unknown key 'keystor'; did you mean keystore"),
        ("wallet = {keystore = 5}", "wallet: keystore is text, not int"),
        ("wallet = {private_key_env = 'UNSET'}", "wallet: the variable UNSET is not set"),
        (f"wallet = {{private_key_env = '{KEY}'}}", "is the name of a variable, not a key"),
        (f"wallet = {{private_key_env = '0x{KEY}'}}", "is the name of a variable, not a key"),
        ("caps = [\n= 5]", "not TOML: .*line 2"),
    ],
)
def test_not_settings(file: Path, text: str, told: str) -> None:
    write(file, text)
    with pytest.raises(ValueError, match=told) as caught:
        from_config(file, {})
    assert str(caught.value).startswith(str(file))
    assert KEY not in str(caught.value)
    with pytest.raises(ValueError, match=told):
        read({"X402_MASK_CONFIG": str(file)})


def test_caps_may_be_one_text_as_in_the_environment(file: Path) -> None:
    write(file, 'caps = "0.25/call,5/day@thing"')
    found = from_config(file, {}, given=("origins", "wallet"))["caps"]
    assert found == [Cap("0.25", per="call"), Cap(5, per="day", service="thing")]


def test_the_example_in_the_documentation_is_read(file: Path, keystore: Path) -> None:
    doc = inspect.getdoc(from_config) or ""
    example = doc.partition("::\n")[2].partition("Environment variables")[0]
    write(file, inspect.cleandoc(example))
    (file.parent / "agent.json").write_bytes(keystore.read_bytes())
    found = from_config(file, {"AGENT_PASSWORD": PASSWORD})
    assert found["wallet"].address == ADDRESS
    assert found["ledger"].path == file.parent / "ledger.db"
    assert found["rpc"] == {"eip155:8453": ["https://base.example"]}
    assert len(found["caps"]) == 3
    with Payer(**found):
        pass


def test_a_breaker_can_be_switched_off(file: Path) -> None:
    write(file, "breaker_after = false")
    assert from_config(file, {}, given=("caps", "origins"))["breaker_after"] is None


def test_a_key_in_a_file_is_for_the_owner_alone(file: Path) -> None:
    text = f'caps = ["5/day"]\norigins = ["https://h"]\nwallet = {{private_key = "{KEY}"}}'
    write(file, text)
    assert from_config(file, {})["wallet"].address == ADDRESS
    for mode in (0o640, 0o604, 0o620, 0o644):
        write(file, text, mode=mode)
        with pytest.raises(ValueError, match=f"chmod 600 {file}") as caught:
            from_config(file, {})
        assert KEY not in str(caught.value)
    write(file, text.replace(KEY, "sesame"))
    with pytest.raises(ValueError, match=r"wallet\.private_key is not a private key") as caught:
        from_config(file, {})
    assert "sesame" not in str(caught.value)


def test_a_keystore_is_beside_its_file(file: Path, keystore: Path) -> None:
    (file.parent / "keys").mkdir()
    (file.parent / "keys" / "k.json").write_bytes(keystore.read_bytes())
    write(file, 'wallet = {keystore = "keys/k.json", password_env = "PW"}', mode=0o644)
    given = ("caps", "origins")
    assert from_config(file, {"PW": PASSWORD}, given=given)["wallet"].address == ADDRESS
    with pytest.raises(ValueError, match="wallet needs a password: set PW"):
        from_config(file, {"X402_MASK_KEYSTORE_PASSWORD": PASSWORD}, given=given)
    write(file, 'wallet = {keystore = "keys/k.json"}')
    found = from_config(file, {"X402_MASK_KEYSTORE_PASSWORD": PASSWORD}, given=given)
    assert found["wallet"].address == ADDRESS


def test_a_file_that_cannot_be_read(file: Path) -> None:
    with pytest.raises(FileNotFoundError):
        from_config(file)
    with pytest.raises(ValueError, match=r"X402_MASK_CONFIG: .*No such file"):
        from_env({"X402_MASK_CONFIG": str(file)})
    with pytest.raises(FileNotFoundError):
        read({"X402_MASK_CONFIG": "unread"}, config=str(file))
    file.write_bytes(b"caps = ['\xff']")
    with pytest.raises(ValueError, match="not UTF-8"):
        from_config(file, {})
    file.write_bytes(b"#" * (2 << 20))
    with pytest.raises(ValueError, match="larger than"):
        from_config(file, {})


def test_reading_opens_nothing(tmp_path: Path) -> None:
    env = {
        "X402_MASK_KEYSTORE": str(tmp_path / "missing.json"),
        "X402_MASK_LEDGER": str(tmp_path / "missing.db"),
    }
    found = read(env)
    assert isinstance(found, Configuration)
    assert found.wallet is not None
    assert found.wallet.claimed_address is None
    assert list(tmp_path.iterdir()) == []


def test_variables_that_nobody_reads() -> None:
    env = {"X402_MASK_CAP": "1", "X402_MASK_LEDGER_KEY": "k", "X402_MASK_REQUIRE_NODE": "1", **ENV}
    assert list(mistaken(env)) == [("X402_MASK_CAP", "X402_MASK_CAPS")]


# --- values as people paste them ------------------------------------------------------------------

SECRETS = ("X402_MASK_PRIVATE_KEY", "X402_MASK_KEYSTORE", "X402_MASK_LEDGER", "X402_MASK_CONFIG")


@pytest.mark.parametrize("name", [*SECRETS, "X402_MASK_CAPS", "X402_MASK_ORIGINS", "X402_MASK_RPC"])
@pytest.mark.parametrize("marks", ['"{}"', "'{}'", "`{}`", "“{}”", '"{}', '{}"', ' "{}"\n'])
def test_a_value_that_is_still_quoted_is_refused_by_its_name(name: str, marks: str) -> None:
    """As ``docker --env-file`` leaves it; nothing of it is printed."""
    with pytest.raises(ValueError, match=f"^{name}: is still in quotation marks") as caught:
        from_env({**ENV, name: marks.format("postgresql://u:sesame@h/db")})
    assert "sesame" not in str(caught.value)


def test_blanks_and_newlines_at_the_ends_are_not_meant(tmp_path: Path, keystore: Path) -> None:
    """A value from a file ends with a newline, one from a manifest begins with a blank."""
    plain = {
        **ENV,
        "X402_MASK_KEYSTORE": str(keystore),
        "X402_MASK_KEYSTORE_PASSWORD": PASSWORD,
        "X402_MASK_LEDGER": str(tmp_path / "money.db"),
        "X402_MASK_RPC": "eip155:8453=https://rpc.example",
    }
    padded = {name: f" {text}\r\n" for name, text in plain.items()}
    padded["X402_MASK_KEYSTORE_PASSWORD"] = PASSWORD + "\n"  # its blanks are its own
    want, found = from_env(plain), from_env(padded)
    assert found["ledger"].path == want["ledger"].path == tmp_path / "money.db"
    assert found["wallet"].address == want["wallet"].address == ADDRESS
    assert all(found[name] == want[name] for name in ("caps", "origins", "rpc"))
    assert "ledger" not in from_env({**ENV, "X402_MASK_LEDGER": " \n"})
    keyed = {"X402_MASK_KEYSTORE": f" {keystore}\n", "X402_MASK_KEYSTORE_PASSWORD": PASSWORD + "\n"}
    assert Wallet.from_env(keyed).address == ADDRESS
    assert Wallet.from_env({"X402_MASK_PRIVATE_KEY": f"\t0x{KEY}\n"}).address == ADDRESS


@pytest.mark.parametrize(
    "text",
    [
        "file:/tmp/l.db?mode=rwc",
        "user:sesame@db.internal/spend",
        "sesame@db",
        "db.internal:5432/x",
        "postgresql:host/sesame",
        "//user:sesame@h/db",
        "psql postgresql://u:sesame@h/db",
        "postgresql+psycopg://u:sesame@h/db",
        "POSTGRESQL://u:sesame@h/db",
        "pg//u:sesame@h/db",
        "postgresql://u:sesame@[bad",
        "jdbc:postgresql://h/db?user=sesame",
        "/data\n/sesame",
        "/x/postgresql://u:sesame@h/db",
        "hots=db password=sesame",
        "Server=db;Pwd=sesame",
    ],
)
@pytest.mark.parametrize("where", ["variable", "file"])
def test_a_dsn_with_a_mistake_is_no_new_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, text: str
) -> None:
    """Each host would have its own, in a directory that is called by the password."""
    monkeypatch.chdir(tmp_path)
    file = write(tmp_path / "s.toml", f"ledger = {json.dumps(text)}")
    env = {"X402_MASK_LEDGER": text} if where == "variable" else {"X402_MASK_CONFIG": str(file)}
    name = "X402_MASK_LEDGER" if where == "variable" else f"{file}: ledger"
    with pytest.raises(ValueError, match=f"^{name}: ") as caught:
        from_env({**ENV, **env})
    assert "sesame" not in str(caught.value)
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(
    ("key", "text", "told"),
    [
        ("wallet", "{keystore = '\"k.json\"'}", "wallet.keystore: is still in quotation marks"),
        ("wallet", "{keystore = 'https://sesame@h/k'}", "wallet.keystore: is a URL"),
        ("wallet", "{keystore = '~no-such-user/k.json'}", "wallet.keystore: begins with ~"),
        ("ledger", "'\"money.db\"'", "ledger: is still in quotation marks"),
        ("ledger", "'~no-such-user/l.db'", "ledger: begins with ~"),
    ],
)
def test_a_path_in_the_file_is_read_or_refused_by_its_key(
    file: Path, key: str, text: str, told: str
) -> None:
    write(file, f"{key} = {text}")
    with pytest.raises(ValueError, match=f"{file}: {told}") as caught:
        from_env({**ENV, "X402_MASK_CONFIG": str(file)})
    assert "sesame" not in str(caught.value)


def test_every_path_is_fixed_when_it_is_read(
    tmp_path: Path, keystore: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside the file that names it, else in the directory of that moment."""
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        folder.mkdir()
    (here / "k.json").write_text(keystore.read_text())
    write(here / "s.toml", 'ledger = "l.db"\nwallet = {keystore = "k.json"}')
    monkeypatch.chdir(here)
    by_file = read({"X402_MASK_CONFIG": "s.toml", "X402_MASK_KEYSTORE_PASSWORD": PASSWORD})
    by_option = read({}, config="s.toml")
    by_name = read({"X402_MASK_LEDGER": "l.db", "X402_MASK_KEYSTORE": "k.json"})
    payer = Payer.from_config(
        "s.toml", wallet=None, caps=[Cap(1, per="day")], origins=["https://h"]
    )
    monkeypatch.chdir(there)
    assert by_file.path == by_option.path == here / "s.toml"
    for found in (by_file, by_option, by_name):
        assert found.ledger == str(here / "l.db")
        assert found.wallet is not None and found.wallet.path == here / "k.json"  # type: ignore[union-attr]
    assert by_file.wallet is not None and by_file.wallet.open().address == ADDRESS
    assert payer.ledger.path == here / "l.db"  # type: ignore[attr-defined]


def test_a_quoted_password_is_said_to_be_quoted(keystore: Path) -> None:
    env = {"X402_MASK_KEYSTORE": str(keystore), "X402_MASK_KEYSTORE_PASSWORD": f'"{PASSWORD}"'}
    with pytest.raises(ValueError, match="X402_MASK_KEYSTORE_PASSWORD is still in quotation marks"):
        from_env({**ENV, **env})
