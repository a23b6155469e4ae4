"""The README tells the truth: its code runs, and its commands exist."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from eth_account import Account

from x402_mask import Payer, Wallet
from x402_mask._payer import buyer_of
from x402_mask._settings.sources import from_config
from x402_mask.sandbox import Sandbox

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")
KEY = "0x" + "11" * 32


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def test_the_example_pays_a_real_seller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The one Python block, with the local marketplace in the place of the real one."""
    (code,) = blocks("python")
    monkeypatch.setenv("X402_MASK_PRIVATE_KEY", KEY)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    with Sandbox() as sandbox:
        local = code.replace("https://x402vip.com", sandbox.url)
        for name in ("photo", "mask"):
            local = local.replace(
                f"https://example.com/{name}.png", f"{sandbox.url}/static/{name}.png"
            )
        space: dict[str, object] = {}
        exec(compile(local, "README.md", "exec"), space)
        space["payer"].close()  # type: ignore[attr-defined]
    printed = capsys.readouterr().out
    assert "'code': '200'" in printed
    assert "outcome='settled'" in printed
    assert "Decimal('0.20')" in printed


def test_the_example_of_a_file_is_read(tmp_path: Path) -> None:
    """The one TOML block makes a payer; a variable wins over it."""
    (text,) = blocks("toml")
    (tmp_path / "settings.toml").write_text(text)
    keystore = Account.encrypt(KEY, "secret", kdf="pbkdf2", iterations=1000)
    (tmp_path / "agent.json").write_text(json.dumps(keystore))
    environ = {
        "AGENT_PASSWORD": "secret",
        "X402_MASK_CONFIG": str(tmp_path / "settings.toml"),
        "X402_MASK_CAPS": "7/total",
    }
    with Payer.from_env(environ) as payer:
        assert payer.address == Wallet.from_key(KEY).address
        assert [str(limit.cap) for limit in buyer_of(payer).limits] == [
            "$7.00/total on all services"
        ]
        assert buyer_of(payer).settings.policy.pin
        assert buyer_of(payer).chain_knows("eip155:8453")
    found = from_config(tmp_path / "settings.toml", environ)
    assert len(found["caps"]) == 3
    assert found["ledger"].path == tmp_path / "ledger.db"


def test_every_make_target_exists() -> None:
    """What the README tells to type, the Makefile knows."""
    makefile = (ROOT / "Makefile").read_text("utf-8")
    for target in set(re.findall(r"(?:^|`)make ([a-z]+)", README, re.MULTILINE)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_every_command_exists() -> None:
    """What the README tells to type, ``x402-mask`` knows."""
    (shell,) = [block for block in blocks("sh") if "x402-mask sandbox" in block]
    commands = {line.split()[1] for line in shell.splitlines() if line.startswith("x402-mask")}
    commands |= {"payments", "payees", "reconcile", "pause", "resume"}
    shown = subprocess.run(
        [sys.executable, "-m", "x402_mask", "--help"],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    ).stdout
    for command in commands:
        assert re.search(rf"^ +{command} ", shown, re.MULTILINE), command


def test_every_environment_variable_is_read() -> None:
    """No variable is promised that the code does not know."""
    source = "".join(path.read_text("utf-8") for path in (ROOT / "x402_mask").rglob("*.py"))
    for name in set(re.findall(r"X402_MASK_[A-Z_]+", README)):
        assert name in source, name
