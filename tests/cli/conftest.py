"""Run the command line with nothing configured but what a test says, as a process or within this one."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from eth_account import Account

from tests.support.seller import Answer, Seller, offer, paywall, served, v2_header
from x402_mask.cli._app import run
from x402_mask.sandbox import Sandbox

KEY = "0x" + "11" * 32
ADDRESS = "0x19E7E376E7C213B7E7e7e46cc70A5dD086DAff2A"
TIMEOUT_S = 90.0


# What runs in the background, as tests may, hands down that SIGINT is ignored.
_LISTENING = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from x402_mask.cli import main
main(sys.argv[1:])
"""


def quick_keystore(password: str) -> Any:
    """A V3 keystore of ``KEY`` that takes no second to open."""
    return Account.encrypt(KEY, password, kdf="pbkdf2", iterations=1000)


@dataclass(frozen=True, slots=True)
class Done:
    """How a command ended."""

    code: int
    out: bytes
    err: str

    @property
    def document(self) -> Any:
        """The one JSON document on stdout; anything beside it is an error."""
        return json.loads(self.out)

    @property
    def text(self) -> str:
        return self.out.decode()

    @property
    def words(self) -> str:
        """Both streams, every run of white space as one space."""
        return " ".join((self.text + " " + self.err).split())


@dataclass(frozen=True, slots=True)
class Cli:
    """The command line in a home of its own."""

    home: Path
    env: dict[str, str]

    def having(self, **env: str | None) -> Cli:
        """The same with some variables set, or not set (``None``)."""
        merged = {**self.env, **env}
        return replace(self, env={name: text for name, text in merged.items() if text is not None})

    def alone(self, *args: str, stdin: str = "", **env: str | None) -> Done:
        """Run one command in a process of its own."""
        return self.run(["-m", "x402_mask", *args], stdin=stdin, **env)

    def __call__(self, *args: str, stdin: str = "", **env: str | None) -> Done:
        """Run one command in this process, which is a hundred times as quick."""
        out = io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True)
        err = io.StringIO()
        given = io.TextIOWrapper(io.BytesIO(stdin.encode()), "utf-8")
        with (
            pytest.MonkeyPatch.context() as patch,
            contextlib.chdir(self.home),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            patch.setattr(os, "environ", self.having(**env).env)
            patch.setattr(sys, "stdin", given)
            code = run(args)
        assert "--debug" in args or "Traceback" not in err.getvalue(), err.getvalue()
        written = out.buffer
        assert isinstance(written, io.BytesIO)
        return Done(code, written.getvalue(), err.getvalue())

    def run(
        self, args: list[str], *, stdin: str = "", stdout: Any = subprocess.PIPE, **env: str | None
    ) -> Done:
        """Run Python so."""
        done = subprocess.run(
            [sys.executable, *args],
            input=stdin.encode(),
            stdout=stdout,
            stderr=subprocess.PIPE,
            timeout=TIMEOUT_S,
            cwd=self.home,
            env=self.having(**env).env,
            check=False,
        )
        err = done.stderr.decode()
        assert "--debug" in args or "Traceback" not in err, err
        return Done(done.returncode, done.stdout or b"", err)

    def interrupted(self, ready: Callable[[], object], *args: str) -> Done:
        """Run, and press Ctrl-C once *ready* returns."""
        process = subprocess.Popen(
            [sys.executable, "-c", _LISTENING, *args],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=self.home,
            env=self.env,
            start_new_session=True,
        )
        try:
            ready()
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=TIMEOUT_S)
        finally:
            process.kill()
            process.wait()
        return Done(process.returncode, out, err.decode())


@pytest.fixture
def bare(tmp_path: Path) -> Cli:
    """Nothing is configured."""
    home = tmp_path / "home"
    home.mkdir()
    env = {
        "HOME": str(home),
        "XDG_DATA_HOME": str(home / "data"),
        "PATH": os.environ.get("PATH", ""),
        "PYTHONWARNINGS": "error",
    }
    return Cli(home, env)


@pytest.fixture
def seller() -> Iterator[Seller]:
    with Seller() as made:
        yield made
        assert made.errors == []


@pytest.fixture
def cli(bare: Cli, seller: Seller) -> Cli:
    """A wallet, caps and one origin: the scripted seller."""
    return bare.having(
        X402_MASK_PRIVATE_KEY=KEY,
        X402_MASK_CAPS="0.25/call,1/day",
        X402_MASK_ORIGINS=seller.origin,
    )


Sells = Callable[..., None]


@pytest.fixture
def sells(seller: Seller) -> Sells:
    """Sell the service ``thing`` for ten cents; *paid* is what a proof gets."""

    def sell(paid: Answer | None = None, *, amount: str = "100000", **changes: Any) -> None:
        unpaid = v2_header(offer(amount, **changes))
        answer = served(b'{"made": "it"}') if paid is None else paid
        seller.on("/api/tools/thing", paywall(unpaid, answer))

    return sell


@pytest.fixture(scope="session")
def marketplace() -> Iterator[Sandbox]:
    with Sandbox() as sandbox:
        yield sandbox


@pytest.fixture
def shopper(bare: Cli, marketplace: Sandbox) -> Cli:
    """A wallet, caps and one origin: the sandbox."""
    return bare.having(
        X402_MASK_PRIVATE_KEY=KEY,
        X402_MASK_CAPS="0.25/call,1/day",
        X402_MASK_ORIGINS=marketplace.url,
    )
