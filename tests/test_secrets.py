"""A secret in the wrong variable, or under the wrong key of the file, is printed by nothing."""

from __future__ import annotations

import contextlib
import json
import logging
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from x402_mask import Payer
from x402_mask._config import _READERS, VARIABLES, from_config, read

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


VALUES = [*_READERS, "ledger", "wallet"]
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
    for text in (secret, f"{secret} = 1", f"a = {secret}", f"[{secret}]", f"a = '{secret}",
                 f"{json.dumps(secret)} = 1", f"a = 1\n{json.dumps(secret)} = 1\n" * 2):  # fmt: skip
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
        assert again.look("", "x", now_us=2, wait_s=5).paused
