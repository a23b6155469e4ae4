"""A secret in the wrong variable is printed by no command."""

from __future__ import annotations

import pytest

from tests.cli.conftest import Cli
from tests.test_secrets import HEX, unseen


@pytest.mark.parametrize(
    "name", ["X402_MASK_KEYSTORE", "X402_MASK_CONFIG", "X402_MASK_CAPS", "X402_MASK_LEDGER"]
)
@pytest.mark.parametrize("command", ["spend", "doctor", "wallet show", "call thing", "quote thing"])
def test_a_secret_in_the_wrong_variable(cli: Cli, name: str, command: str) -> None:
    for secret in (HEX, "hunter2-sesame/horse"):
        if name == "X402_MASK_LEDGER" and secret != HEX:
            continue  # that is a path
        done = cli("--debug", *command.split(), **{name: secret})
        unseen(secret, done.text + done.err)
