"""A secret in the wrong variable, or under the wrong key of the file, is printed by nothing."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import pickle
import pprint
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from x402_mask import Payer
from x402_mask._payer import buyer_of
from x402_mask._settings.sources import VARIABLES, from_config, read
from x402_mask._settings.words import READERS

HEX = "4c0883a69102937d6231471b5dbb6204fe5129617082792ae468d01a3f362318"
SECRETS = {
    "hex": HEX,
    "hex with 0x": "0x" + HEX,
    "words": "legal winner thank year wave sausage worth useful legal winner thank yellow",
    "solana": "4wBqpZM9xaSheZzJSMawUKKwhdpChKbZ5eu5ky4Vigw" * 2,
    "keypair": json.dumps(list(range(100, 164))),
    "password": "hunter2-sesame",
    "phrase": "correct horse battery sesame",
    "with a slash": "sesame/horse",
    "with an at": "5/sesame@horse",
    "with equals": "sesame=horse",
    "dsn": "postgresql://user:sesame@db.internal/spend",
    "url": "https://rpc.example/v2/sesame-horse",
    "userinfo": "https://sesame:horse@h.example",
    "long": "sesame" * 100,
    "keystore": json.dumps({"crypto": {"cipher": "sesame"}, "version": 3}),
}
GOOD = {"X402_MASK_CAPS": "5/day", "X402_MASK_ORIGINS": "https://shop.example"}


def pieces(secret: str) -> Iterator[str]:
    """What must not be seen of a secret: it, and each part of it that says something."""
    yield secret
    for mark in ("/", "@", "=", ":", " ", '"', ","):
        yield from (part for part in secret.split(mark) if len(part) > 5)
    yield "sesame" if "sesame" in secret else secret


KNOWN = ("https", "postgresql", "//rpc", "cipher", "crypto", "version", "example", "internal")


def unseen(secret: str, said: str) -> None:
    for piece in pieces(secret):
        if not any(piece.startswith(word) or word in piece for word in KNOWN):
            assert piece not in said, f"{piece} is in {said}"


def everything_said(call: Any) -> str:
    """What an exception shows, its causes and its traceback included."""
    try:
        made = call()
    except (ValueError, OSError, TypeError) as error:
        return "".join(traceback.format_exception(error))
    if isinstance(made, Payer):
        with made:
            return repr(made)
    return ""


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))


@pytest.mark.parametrize("secret", SECRETS.values(), ids=SECRETS)
@pytest.mark.parametrize("name", VARIABLES)
def test_in_a_variable(name: str, secret: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "x402_mask")
    env = {**GOOD, name: secret}
    if name == "X402_MASK_KEYSTORE_PASSWORD":
        env["X402_MASK_KEYSTORE"] = __file__
    unseen(secret, everything_said(lambda: Payer.from_env(env)) + caplog.text)


VALUES = [*READERS, "ledger", "wallet"]
NESTED = {
    "wallet": ["keystore", "password_env", "private_key_env", "private_key", "other"],
    "rpc": ["eip155:8453"],
    "services": ["thing"],
    "marketplace_headers": ["X-Key"],
}


def documents(key: str, secret: str) -> Iterator[str]:
    """The file with the secret under *key*, in each way that TOML has."""
    text = json.dumps(secret)
    yield f"{key} = {text}"
    yield f"{key} = [{text}]"
    yield f"[{key}]\n{text} = {text}"
    yield f"[{key}]\n{text} = 'https://x'"
    yield f"[[{key}]]\n{text} = {text}"
    yield f"[[{key}]]\nnetwork={text}\naddress={text}\ndecimals=6\nname={text}\nversion={text}"
    for name in NESTED.get(key, []):
        yield f"[{key}]\n{json.dumps(name)} = {text}"
        yield f"[{key}]\nkeystore = 'k.json'\n{json.dumps(name)} = {text}"


def without(document: str, key: str) -> str:
    """The rest of the file, but for what is written already."""
    rest = {"caps": '["5/day"]', "origins": '["https://shop.example"]'}
    return "\n".join(f"{k} = {v}" for k, v in rest.items() if k != key) + "\n" + document


@pytest.mark.parametrize("secret", SECRETS.values(), ids=SECRETS)
@pytest.mark.parametrize("key", VALUES)
def test_under_a_key_of_the_file(key: str, secret: str, tmp_path: Path) -> None:
    file = tmp_path / "s.toml"
    for document in documents(key, secret):
        file.write_text(without(document, key))
        file.chmod(0o600)
        if key == "provider_id":  # any text is one: it is what the marketplace is asked for
            continue
        said = everything_said(lambda: Payer.from_config(file))
        said += everything_said(lambda: read({"X402_MASK_CONFIG": str(file)}).arguments())
        unseen(secret, said)


@pytest.mark.parametrize("secret", SECRETS.values(), ids=SECRETS)
def test_in_a_file_that_is_no_settings(secret: str, tmp_path: Path) -> None:
    file = tmp_path / "s.toml"
    for text in (
        secret,
        f"{secret} = 1",
        f"a = {secret}",
        f"[{secret}]",
        f"a = '{secret}",
        f"{json.dumps(secret)} = 1",
        f"a = 1\n{json.dumps(secret)} = 1\n" * 2,
    ):
        file.write_text(text)
        unseen(secret, everything_said(lambda: from_config(file, {})))


# --- a byte order mark, a last newline ------------------------------------------------------------


def test_a_byte_order_mark_is_not_part_of_a_file(tmp_path: Path) -> None:
    """Notepad and PowerShell begin a file with one."""
    from eth_account import Account

    from x402_mask import SQLiteLedger

    mark = b"\xef\xbb\xbf"
    keystore = tmp_path / "k.json"
    made = Account.encrypt("0x" + HEX, "horse", kdf="pbkdf2", iterations=1000)
    keystore.write_bytes(mark + json.dumps(made).encode())
    file = tmp_path / "s.toml"
    file.write_bytes(
        mark + b'caps = ["5/day"]\r\norigins = ["https://shop.example"]\r\n'
        b'ledger = "l.db"\r\nwallet = {keystore = "k.json", password_env = "PW"}\r\n'
    )
    found = from_config(file, {"PW": "horse"})
    address = Account.from_key("0x" + HEX).address
    assert found["wallet"].address == address
    wallet = read({"X402_MASK_CONFIG": str(file)}).wallet
    assert wallet is not None and wallet.claimed_address == address
    ledger = SQLiteLedger(tmp_path / "x.db")
    ledger.set_paused(True, now_us=1)
    ledger.close()
    key = next(tmp_path.glob("*.key"))
    key.write_bytes(mark + key.read_bytes())
    again = SQLiteLedger(tmp_path / "x.db")
    with contextlib.closing(again):
        assert again.view("", "x", now_us=2, wait_s=5).paused


PASSWORDS = (
    "hunter2",
    "sesame",
    "Tr0ub4dor&3",
    "correct horse battery staple",
    "c2VzYW1lb3Blbg",
    "p4ss.word",
    "c2VzYW1l/b3Blbg+Zz9",
    "deadbeef" * 4,
    "sesame/horse",
    "c2VzYW1lb3Blbg==",
    "sesame@db.example/x",
)
PLACES = (
    "l.db",
    "ledger.sqlite3",
    "./ledger",
    "../ledger",
    "~/ledger",
    "here/ledger",
    "old",
    "a/l.DB",
)


@pytest.mark.parametrize("where", ["variable", "file"])
@pytest.mark.parametrize("secret", PASSWORDS)
def test_a_word_that_may_be_a_password_is_no_ledger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, secret: str
) -> None:
    """It is refused by the name of its variable or key, and shown nowhere; nothing is made."""
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "s.toml"
    file.write_text(f"ledger = {json.dumps(secret)}\n" if where == "file" else "")
    env = {"X402_MASK_CONFIG": str(file), "X402_MASK_PRIVATE_KEY": HEX}
    env |= {"X402_MASK_CAPS": "1/day", "X402_MASK_ORIGINS": "https://a.example"}
    env |= {"X402_MASK_LEDGER": secret} if where == "variable" else {}
    with pytest.raises(
        ValueError, match="X402_MASK_LEDGER" if where == "variable" else "ledger"
    ) as e:
        Payer.from_env(env)
    unseen(secret, str(e.value))
    assert [found.name for found in tmp_path.iterdir()] == ["s.toml"]


@pytest.mark.parametrize("path", PLACES)
def test_what_honest_people_write_is_a_ledger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    """A name that ends as a database does, one with ./, one whose directory or file is there."""
    (tmp_path / "here").mkdir()
    (tmp_path / "old").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    env = {"X402_MASK_CAPS": "1/day", "X402_MASK_ORIGINS": "https://a.example"}
    with Payer.from_env({**env, "X402_MASK_PRIVATE_KEY": HEX, "X402_MASK_LEDGER": path}) as payer:
        assert str(tmp_path.parent) in str(getattr(payer.ledger, "path", ""))


def _shown(found: object) -> Iterator[str]:
    """Every way in which a program prints things."""
    yield repr(found)
    yield str(found)
    yield pprint.pformat(found)
    with contextlib.suppress(TypeError):
        yield repr(vars(found))
        yield pprint.pformat(vars(found))
    with contextlib.suppress(Exception):  # most of it is not for pickling
        yield repr(pickle.dumps(found))
    if dataclasses.is_dataclass(found) and not isinstance(found, type):
        with contextlib.suppress(TypeError):
            yield repr(dataclasses.asdict(found))


@pytest.mark.parametrize("source", ["keywords", "environment", "file"])
def test_nothing_of_a_payer_shows_a_secret(tmp_path: Path, source: str) -> None:
    """Neither the payer nor what hangs on it, printed in whichever way."""
    rpc, token = "https://rpc.example/v2/sesame-key", "Bearer sesame-token"
    env = {"X402_MASK_PRIVATE_KEY": HEX, "X402_MASK_CAPS": "1/day"}
    env |= {"X402_MASK_ORIGINS": "https://a.example", "X402_MASK_LEDGER": str(tmp_path / "l.db")}
    more: dict[str, Any] = {}
    if source == "file":
        file = tmp_path / "s.toml"
        file.write_text(
            f'rpc = {{"eip155:8453" = "{rpc}"}}\nmarketplace_headers = {{Authorization = "{token}"}}\n'
        )
        env["X402_MASK_CONFIG"] = str(file)
        settings = read(env)
        for text in (repr(settings), str(settings), *_shown(settings.values)):
            assert "sesame" not in text and HEX not in text
    elif source == "environment":
        env["X402_MASK_RPC"] = f"eip155:8453={rpc}"
        more = {"marketplace_headers": {"Authorization": token}}
    else:
        more = {"rpc": {"eip155:8453": [rpc]}, "marketplace_headers": {"Authorization": token}}
    with Payer.from_env(env, **more) as payer:
        buyer_of(payer).chain()
        assert buyer_of(payer).settings.marketplace_headers["Authorization"] == token
        buyer = buyer_of(payer)
        for part in (payer, buyer, *vars(buyer).values(), *vars(payer.ledger).values()):
            for text in _shown(part):
                assert "sesame" not in text and HEX not in text, type(part)
