"""A refusal on the command line names what its owner can turn there, not a keyword of Python."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from tests.cli.conftest import Cli
from tests.support.seller import (
    OTHER_PAYEE,
    PAYEE,
    Reply,
    Seller,
    offer,
    paywall,
    served,
    v2_header,
)
from x402_mask._text.settings import in_settings, on_command_line

PYTHON = re.compile(r"\b\w+=\S*|payer\.|\bTrue\b|\bFalse\b|\bCap\b|\bNone\b")
SCHEMA = {"type": "object", "required": ["a"]}


def lists(seller: Seller, **entry: object) -> None:
    """What the seller's catalog says of its service."""
    listed = {"id": "thing", "endpoint": "/api/tools/thing", **entry}
    seller.on("/api/catalog/search", Reply(body=json.dumps({"services": [listed]}).encode()))


def by(payee: str) -> Any:
    """A 402 that names this payee."""
    return paywall(v2_header(offer("100000", payTo=payee)), served(b"{}"))


CASES: dict[str, tuple[dict[str, str], str]] = {
    "cap": ({"X402_MASK_CAPS": "0.01/call"}, "X402_MASK_CAPS"),
    "no_cap": ({"X402_MASK_CAPS": "1/day@other"}, "X402_MASK_CAPS"),
    "input": ({}, "--no-check"),
    "catalog_price": ({}, "--no-check"),
    "network": ({}, "networks in the settings file"),
    "asset": ({}, "assets in the settings file"),
    "payee": ({}, "x402-mask payees accept"),
    "paused": ({}, "x402-mask resume"),
}


def arrange(reason: str, cli: Cli, seller: Seller) -> None:
    """Bring about that a call of ``thing`` is refused for this reason."""
    told = {"network": "eip155:1"} if reason == "network" else {}
    told |= {"asset": "0x" + "12" * 20} if reason == "asset" else {}
    seller.on("/api/tools/thing", paywall(v2_header(offer("100000", **told)), served(b"{}")))
    if reason == "input":
        lists(seller, inputSchema=SCHEMA)
    if reason == "catalog_price":
        lists(seller, pricing={"amountCents": 9, "currency": "USD"})
    if reason == "paused":
        assert cli("pause").code == 0
    if reason == "payee":
        (cli.home / "s.toml").write_text('payees = "pin"\n')
        seller.on("/api/tools/thing", by(PAYEE))
        assert cli("call", "thing", X402_MASK_CONFIG="s.toml").code == 0
        seller.on("/api/tools/thing", by(OTHER_PAYEE))


@pytest.mark.parametrize("reason", CASES)
def test_a_refused_call_names_what_can_be_turned_here(
    cli: Cli, seller: Seller, reason: str
) -> None:
    """In words and in JSON, by ``call`` and, where it is foretold, by ``quote``."""
    env, knob = CASES[reason]
    if reason == "payee":
        env = {"X402_MASK_CONFIG": "s.toml"}
    arrange(reason, cli, seller)
    asked = len(seller.proofs())
    for command in ("call", "quote"):
        if command == "quote" and reason in ("input", "catalog_price"):
            continue  # which only reads the seller's catalog
        done = cli(command, "thing", "--json", **env)
        found = done.document
        told = found["error"] if command == "call" else found["refusal"]
        assert (done.code, told["reason"]) == (3, reason), done.words
        assert not PYTHON.search(told["message"]), told
        words = cli(command, "thing", **env).words
        assert knob in told["message"] and knob in words
        assert not re.search(r"payer\.|=True|=False", words)
    assert len(seller.proofs()) == asked


def test_what_it_says_to_type_works(cli: Cli, seller: Seller) -> None:
    """The command that a refused change of payee names is one that is there, and accepts it."""
    env = {"X402_MASK_CONFIG": "s.toml"}
    arrange("payee", cli, seller)
    assert cli("call", "thing", **env).code == 3
    said = in_settings(f"payer.accept_payee('thing', {OTHER_PAYEE!r}, {seller.origin!r})")
    program, *typed = said.split()
    assert program == "x402-mask"
    assert cli(*typed, **env).code == 0
    assert cli("call", "thing", **env).code == 0


@pytest.mark.parametrize(
    "said",
    [
        "https://a.example asks for payment and is not in origins=",
        "network eip155:1 is not in networks=",
        "asset 0x12 is not a token this library knows (assets=)",
        "payee 0x12 is not in payees=",
        "payee 0x12 is new here; payer.accept_payee() allows it",
        "https://a.example failed 20 payments in a row; refused until 2026 (breaker_after=)",
        "the proof of this operation has expired (pay_1) and resign='never'",
        "prefer= allows tokens that are held only, and none is held here",
        "a.example does not sell payment tokens for this call (token_origins=)",
        "thing would refuse this request: it; validate_input=False pays for it all the same",
        "$1 is asked, the catalog's price is $2; allow_above_catalog=True pays it",
        "a now names the payee 0x1; if that is right: payer.accept_payee('a', '0x1', 'https://a.b')",
        "no cap names the service 'a'; add a Cap for it, or one on '*'",
        "$1 would exceed the cap $1/day on a: $0 left. Raise that Cap to allow it",
    ],
)
def test_every_sentence_of_the_library(said: str) -> None:
    """None keeps a keyword of Python; an agent is told of no flag."""
    for told in (in_settings(said), on_command_line(said)):
        assert not PYTHON.search(told.replace('resign = "never"', "")), told
    assert "--no-check" not in in_settings(said)
