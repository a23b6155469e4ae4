"""A secret in the wrong variable is printed by no command."""

from __future__ import annotations

import re

import pytest

from tests.cli.conftest import Cli
from tests.test_secrets import HEX, SECRETS, unseen


@pytest.mark.parametrize(
    "name", ["X402_MASK_KEYSTORE", "X402_MASK_CONFIG", "X402_MASK_CAPS", "X402_MASK_LEDGER"]
)
@pytest.mark.parametrize("command", ["spend", "doctor", "wallet show", "call thing", "quote thing"])
def test_a_secret_in_the_wrong_variable(cli: Cli, name: str, command: str) -> None:
    for secret in (HEX, "hunter2", "hunter2-sesame/horse", "c2VzYW1l/b3Blbg+Zz9"):
        done = cli("--debug", *command.split(), **{name: secret})
        unseen(secret, done.text + done.err)


TYPED = [
    *(SECRETS[name] for name in SECRETS if name not in ("keystore", "with equals")),
    HEX[:-1],
    "0x" + HEX + "00",
    SECRETS["words"].replace(" ", ","),
    "Bearer 0123456789abcdef",
    "sk-proj-abcDEF0123456789",
    "host=db password=sesame",
    "h://user:sesame@db",
    "sesame?horse",
]
KEYS = (HEX, "0x" + HEX, HEX[:-1], "0x" + HEX + "00", SECRETS["solana"])
PLACES = [
    "{}",
    "--{}",
    "spend {}",
    "spend --nothing={}",
    "--config {} spend",
    "wallet import {}",
    "wallet import --keystore {}",
    "payees accept thing {}",
    "payees accept {} 0x12",
    "call {}",
    "call thing {}",
    "call thing --base-url {}",
    "call thing --max-price {}",
    "call thing --method {}",
    "payments --state {}",
    "ledger accept --spent {}",
    "quote thing a {}",
    "payments --limit={}",
]


@pytest.mark.parametrize("place", PLACES)
def test_a_secret_that_was_typed_in_the_wrong_place(cli: Cli, place: str) -> None:
    for secret in TYPED:
        if place == "call {}" and re.fullmatch(r"[\w.-]{1,128}", secret) and secret not in KEYS:
            continue  # that is the name of a service
        for more in ((), ("--json",), ("--debug",)):
            typed = [part.format(secret) for part in place.split()]
            done = cli(*more[:1], *typed) if more == ("--debug",) else cli(*typed, *more)
            assert done.code != 0
            unseen(secret, done.text + done.err)


def test_a_key_is_the_name_of_no_service_and_no_file(cli: Cli) -> None:
    for typed in (("call", HEX), ("quote", "0x" + HEX), ("wallet", "new", "--path", HEX)):
        done = cli(*typed)
        assert done.code == 2 and "private key" in done.err, done.err


@pytest.mark.parametrize(
    ("typed", "shown"),
    [
        (("spned",), "spned"),
        (("call", "thing", "--max-price", "a lot"), "--max-price"),
        (("call", "thing", "--base-url", "https://elsewhere.example"), "https://elsewhere.example"),
        (("--config", "mine.toml", "spend"), "mine.toml"),
        (("--config", "/nowhere/mine", "spend"), "/nowhere/mine"),
        (("call", "thing", "ImageURL"), "ImageURL"),
        (("payees", "accept", "thing", "0x12"), "0x12"),
    ],
)
def test_an_honest_mistake_is_shown(cli: Cli, typed: tuple[str, ...], shown: str) -> None:
    done = cli(*typed, X402_MASK_ORIGINS="https://shop.example", X402_MASK_CAPS="1/day")
    assert shown in done.text + done.err and done.code in (1, 2, 3)
