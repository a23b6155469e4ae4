"""The owner's settings as this program names them, in the words of a library that says keywords."""

from __future__ import annotations

import re
from typing import Final

_FILE: Final = "in the settings file"
_SETTINGS: Final = (
    (r"payer\.accept_payee\(\) allows it", "`x402-mask payees accept` allows it"),
    (
        r"payer\.accept_payee\('([^'\s]+)', '(\w+)', '([^'\s]+)'\)",
        r"x402-mask payees accept \1 \2 --origin \3",
    ),
    (r"\borigins=", "X402_MASK_ORIGINS (origins)"),
    (
        r"add a Cap for it, or one on '\*'",
        "add one to X402_MASK_CAPS (caps), or one on all services",
    ),
    (r"Raise that Cap to allow it", "Raise it in X402_MASK_CAPS (caps) to allow it"),
    (r"\brpc=", "X402_MASK_RPC (rpc)"),
    (r"\b(validate_input|allow_above_catalog)=(True|False)", rf"\1 = \2 {_FILE}"),
    (r"\bresign='never'", f'resign = "never" {_FILE}'),
    (
        r"\b(networks|assets|payees|prefer|token_origins|balance_origins|breaker_after)=",
        rf"\1 {_FILE}",
    ),
    (r"\bmax_gas_wei=(\w+)", rf"max_gas_wei (\1) {_FILE}"),
)
_PATTERNS: Final = tuple((re.compile(found), said) for found, said in _SETTINGS)
_TRUTHS: Final = re.compile(r" = (True|False) in the settings")

_UNREAD: Final = re.compile(r"((?:validate_input|allow_above_catalog) = \w+ in the settings file)")


def in_settings(words: object) -> str:
    """A sentence of the library, with the owner's variables, file and commands for keywords."""
    text = str(words)
    for pattern, said in _PATTERNS:
        text = pattern.sub(said, text)
    return _TRUTHS.sub(lambda found: found[0].lower(), text)


def on_command_line(words: object) -> str:
    """The same for a person at this program, whose flag leaves a catalog out of it."""
    return _UNREAD.sub(r"--no-check (where only the catalog says so), or \1,", in_settings(words))
