"""Programs that use SDKs, and the seller that they talk to."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import pypi
from tests.support.npm import Unavailable
from tests.support.seller import Answer, Seller, offer, paywall, served, v2_header

ROOT = Path(__file__).parents[2]
PROGRAM_S = 60

KEEP = ("Cache-Control", "public, max-age=60")
WORDS = "Paid answer"
CHAT = {
    "id": "c1",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "choices": [
        {"index": 0, "message": {"role": "assistant", "content": WORDS}, "finish_reason": "stop"}
    ],
    "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3},
}
MESSAGE = {
    "id": "m1",
    "type": "message",
    "role": "assistant",
    "model": "m",
    "stop_reason": "end_turn",
    "stop_sequence": None,
    "content": [{"type": "text", "text": WORDS}],
    "usage": {"input_tokens": 1, "output_tokens": 2},
}


@pytest.fixture(scope="session")
def sdks() -> Callable[[str], str]:
    """Where a set of packages is; skips where it cannot be fetched."""

    def find(name: str) -> str:
        try:
            return str(pypi.packages(name))
        except Unavailable as missing:
            pytest.skip(str(missing))

    return find


def answers(document: dict[str, Any]) -> Answer:
    return served(json.dumps(document).encode(), headers=[("Content-Type", "application/json")])


@pytest.fixture(scope="module")
def seller() -> Iterator[Seller]:
    """A model that is paid by the call, behind the paths of each SDK."""
    with Seller() as running:
        for path in ("/v1/chat/completions", "/openai/v1/chat/completions"):
            running.sells(path=path, paid=answers(CHAT))
        running.sells(path="/v1/messages", paid=answers(MESSAGE))
        running.sells(path="/paid")
        unpaid = v2_header(offer())
        unpaid.headers.append(KEEP)
        running.on("/cached", paywall(unpaid, served(headers=[KEEP])))
        yield running


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """Run a program to its end, and return what it saw."""
    home = str(tmp_path_factory.mktemp("home"))

    def run(asked: object, *paths: str) -> Any:
        done = subprocess.run(
            [sys.executable, "-m", "tests.sdks.program", json.dumps(asked), *paths],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=PROGRAM_S,
            check=False,
            env={
                "PATH": os.environ["PATH"],
                "HOME": home,
                "NO_PROXY": "*",
                "PYTHONPATH": str(ROOT),
                "PYTHONDONTWRITEBYTECODE": "1",
            },
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout.splitlines()[-1])

    return run
