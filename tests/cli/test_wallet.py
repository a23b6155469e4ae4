"""``wallet``: keystores are made, imported and shown, and no key ever comes out."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from eth_account import Account

from tests.cli.conftest import ADDRESS, KEY, Cli, Done, Sells, quick_keystore

PASSWORD = "correct horse"
WORDS = "test test test test test test test test test test test junk"
FIRST = "0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266"


@pytest.fixture
def locked(bare: Cli) -> Cli:
    return bare.having(X402_MASK_KEYSTORE_PASSWORD=PASSWORD)


def _home(cli: Cli) -> Path:
    return cli.home / "data" / "x402-mask" / "keystore.json"


def _key(path: Path, password: str = PASSWORD) -> bytes:
    return bytes(Account.decrypt(json.loads(path.read_text()), password))


def _silent(done: Done, key: bytes) -> None:
    """Neither stream holds the key or the password."""
    everything = (done.text + done.err).lower()
    assert key.hex() not in everything
    assert PASSWORD not in everything


def test_new_makes_a_keystore_that_only_its_password_opens(locked: Cli) -> None:
    done = locked.alone("wallet", "new", "--json")
    path = _home(locked)
    assert done.code == 0
    assert done.document["keystore"] == str(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o077 == 0
    document = json.loads(path.read_text())
    assert (document["version"], document["crypto"]["kdf"]) == (3, "scrypt")
    key = _key(path)
    assert Account.from_key(key).address == done.document["address"]
    with pytest.raises(ValueError, match="MAC"):
        _key(path, "wrong")
    _silent(done, key)


def test_two_new_wallets_differ(locked: Cli) -> None:
    one = locked("wallet", "new", "--path", "one.json", "--json").document["address"]
    two = locked("wallet", "new", "--path", "two.json", "--json").document["address"]
    assert one != two


def test_a_keystore_is_never_overwritten(locked: Cli) -> None:
    assert locked("wallet", "new").code == 0
    before = _home(locked).read_bytes()
    done = locked("wallet", "new")
    assert done.code == 2
    assert "never overwritten" in done.err
    assert locked("wallet", "import", stdin=KEY).code == 2
    assert _home(locked).read_bytes() == before


def test_a_password_is_needed(bare: Cli) -> None:
    done = bare("wallet", "new")
    assert done.code == 2
    assert "set X402_MASK_KEYSTORE_PASSWORD" in done.err
    done = bare("wallet", "new", X402_MASK_KEYSTORE_PASSWORD="")
    assert done.code == 2
    assert "an empty password protects nothing" in done.err
    assert not _home(bare).exists()


@pytest.mark.parametrize("text", [KEY, KEY[2:] + "\n", "  " + KEY.upper().replace("X", "x")])
def test_import_of_a_key(locked: Cli, text: str) -> None:
    done = locked("wallet", "import", stdin=text)
    assert done.code == 0
    assert ADDRESS in done.text
    assert _key(_home(locked)) == bytes.fromhex(KEY[2:])
    _silent(done, bytes.fromhex(KEY[2:]))


def test_import_of_words(locked: Cli) -> None:
    done = locked("wallet", "import", "--mnemonic", stdin=WORDS + "\n")
    assert done.code == 0
    assert FIRST in done.text
    assert Account.from_key(_key(_home(locked))).address == FIRST
    assert "junk" not in done.words


def test_import_of_a_keystore(locked: Cli) -> None:
    (locked.home / "other.json").write_text(json.dumps(quick_keystore(PASSWORD)))
    done = locked("wallet", "import", "--keystore", "other.json", "--json")
    assert done.code == 0
    assert done.document["address"] == ADDRESS
    assert _key(_home(locked)) == bytes.fromhex(KEY[2:])
    assert _home(locked).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("arguments", "stdin", "told"),
    [
        ((), "0x1234", "not a secp256k1 private key"),
        ((), "deadbeefsecret", "not a private key in hex"),
        ((), "0" * 64, "not a secp256k1 private key"),
        (("--mnemonic",), "correct horse battery staple", "not a BIP-39 mnemonic"),
        (("--mnemonic", "--keystore", "k.json"), "", "exclude each other"),
        (("--keystore", "k.json"), "", "not a V3 keystore"),
    ],
)
def test_import_of_something_else(
    locked: Cli, arguments: tuple[str, ...], stdin: str, told: str
) -> None:
    (locked.home / "k.json").write_text("{}")
    done = locked("wallet", "import", *arguments, stdin=stdin)
    assert done.code == 2
    assert told in done.err
    assert "deadbeefsecret" not in done.err
    assert not _home(locked).exists()


def test_import_of_a_keystore_with_the_wrong_password(locked: Cli) -> None:
    (locked.home / "other.json").write_text(json.dumps(quick_keystore("another")))
    done = locked("wallet", "import", "--keystore", "other.json")
    assert done.code == 2
    assert "the password is wrong" in done.err
    assert not _home(locked).exists()


@pytest.mark.parametrize("typed", [KEY, KEY[2:], KEY + "00", KEY[:-1], f"--{KEY}", f"a{KEY}"])
def test_a_key_is_no_argument_and_is_not_echoed(locked: Cli, typed: str) -> None:
    for arguments in (
        ("wallet", "import", typed),
        ("wallet", "import", "--keystore", typed),
        ("--debug", "wallet", "import", typed),
        ("wallet", "import", "--json", typed),
        ("call", "thing", typed),
        ("call", typed + "/x"),
        ("--config", typed, "--debug", "spend"),
        (typed,),
    ):
        done = locked(*arguments)
        assert done.code == 2
        assert "1" * 40 not in done.text + done.err
        assert "***" in done.text + done.err or "private key or its words" in done.err


def test_words_are_no_argument_and_are_not_echoed(locked: Cli) -> None:
    done = locked("wallet", "import", "--mnemonic", *WORDS.split())
    assert done.code == 2
    assert "junk" not in done.words


def test_a_mistake_in_an_import_is_one_of_usage(locked: Cli) -> None:
    error = locked("wallet", "import", "--json", stdin="0x12").document["error"]
    assert (error["code"], error["exit_code"]) == ("usage", 2)


def test_where_python_finds_the_wallet(locked: Cli) -> None:
    line = f"export X402_MASK_KEYSTORE={_home(locked)}"
    assert line in locked("wallet", "new").err.splitlines()
    done = locked("wallet", "import", "--path", "an other.json", stdin=KEY)
    assert f"export X402_MASK_KEYSTORE='{locked.home / 'an other.json'}'" in done.err.splitlines()
    assert locked("wallet", "new", "--path", "third.json", "--json").err == ""


def test_show_says_where_the_wallet_comes_from(locked: Cli, bare: Cli) -> None:
    done = bare("wallet", "show", "--json")
    assert done.code == 1
    assert "no wallet is configured" in done.document["error"]["message"]
    env = {"X402_MASK_PRIVATE_KEY": KEY}
    told = bare("wallet", "show", "--json", **env)
    assert told.document["address"] == ADDRESS
    assert told.document["from"] == "X402_MASK_PRIVATE_KEY"
    _silent(told, bytes.fromhex(KEY[2:]))
    address = locked("wallet", "new", "--json").document["address"]
    shown = bare("wallet", "show", "--json").document
    assert (shown["address"], shown["keystore"]) == (address, str(_home(locked)))
    assert bare("wallet", "show", X402_MASK_PRIVATE_KEY="0x12").code == 2


def test_the_keystore_in_its_usual_place_pays(cli: Cli, sells: Sells) -> None:
    sells()
    unset = {"X402_MASK_PRIVATE_KEY": None}
    assert cli("call", "thing", "--json", **unset).document["error"]["reason"] == "no_wallet"
    env = {**unset, "X402_MASK_KEYSTORE_PASSWORD": PASSWORD}
    _home(cli).parent.mkdir(parents=True, exist_ok=True)
    _home(cli).write_text(json.dumps(quick_keystore(PASSWORD)))
    done = cli("call", "thing", "--json", **env)
    assert done.code == 0
    assert done.document["receipt"]["payer"] == ADDRESS
    wrong = {**unset, "X402_MASK_KEYSTORE_PASSWORD": "wrong"}
    done = cli("call", "thing", "n=2", **wrong)
    assert done.code == 2
    assert "the password is wrong" in done.err


def test_a_directory_that_cannot_be_written(locked: Cli) -> None:
    if os.geteuid() == 0:
        (locked.home / "file").write_text("")
        path = "file/keystore.json"
    else:
        (locked.home / "shut").mkdir(mode=0o500)
        path = "shut/keystore.json"
    done = locked("wallet", "new", "--path", path)
    assert done.code in (1, 2)
    assert "cannot write" in done.err
