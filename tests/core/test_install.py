"""What works without what an installation may lack, and what is said where it does not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

import x402_mask
from tests.support.seller import Seller

ROOT = Path(__file__).parents[2]

LACKING = """
import sys

class Lacking:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {names!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Lacking())
"""


def without(*names: str, run: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run Python as where these are not installed; every warning is an error."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", LACKING.format(names=set(names)) + run],
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
        env={**os.environ, **env},
    )


PAID = """
import os, sys
from x402_mask import Cap, Client, MemoryLedger, Payer, Wallet, receipt_of
wallet = Wallet.from_key("11" * 32)
with Payer(wallet, caps=[Cap("1", per="day")], origins=[os.environ["SELLER"]],
           ledger=MemoryLedger()) as payer, Client(payer) as client:
    response = client.get(os.environ["SELLER"] + "/paid")
    print(response.status_code, receipt_of(response).outcome)
loaded = {name.partition(".")[0] for name in sys.modules}
print(sorted(loaded & {"coincurve", "click", "rich", "web3", "eth_account", "pygments"}))
"""


@pytest.mark.parametrize("lacking", [("coincurve",), ("coincurve", "click", "rich"), ()])
def test_a_paid_call_needs_neither(lacking: tuple[str, ...]) -> None:
    """And no chain library is loaded before a chain is asked."""
    with Seller() as seller:
        seller.sells()
        done = without(*lacking, run=PAID, SELLER=seller.origin)
        assert done.returncode == 0, done.stderr
        outcome, loaded = done.stdout.splitlines()
        assert outcome == "200 settled"
        assert not set(json.loads(loaded.replace("'", '"'))) & {"web3", "eth_account", *lacking}
        (one,) = seller.authorizations()
        assert one.value == 1000


COMMAND = "from x402_mask.cli import main; main({0!r})"


@pytest.mark.parametrize("lacking", [("click",), ("rich",), ("click", "rich")])
def test_the_command_line_says_what_to_install(lacking: tuple[str, ...]) -> None:
    done = without(*lacking, run=COMMAND.format(["spend"]))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"x402-mask: the command line needs {' and '.join(lacking)}: pip install 'x402-mask[cli]'\n"
    )
    done = without(*lacking, run=COMMAND.format(["spend", "--json"]))
    assert (done.returncode, done.stderr) == (1, "")
    error = json.loads(done.stdout)["error"]
    assert error["code"] == "missing_extra" and error["exit_code"] == 1
    assert "x402-mask[cli]" in error["message"]


@pytest.mark.parametrize(
    ("lacking", "wanted", "extra"),
    [
        ("httpx2", "import x402_mask.httpx2", "httpx2"),
        ("httpx2", "from x402_mask.httpx2 import AsyncClient", "httpx2"),
        ("mcp", "import x402_mask.mcp", "mcp"),
        ("mcp", "import x402_mask; x402_mask.mcp", "mcp"),
        ("psycopg", "from x402_mask import PostgresLedger; PostgresLedger('dbname=x')", "postgres"),
        ("starlette", "import x402_mask.sandbox", "sandbox"),
        ("uvicorn", "from x402_mask.sandbox import Sandbox", "sandbox"),
        ("numpy", "import x402_mask.sandbox", "sandbox"),
        ("PIL", "import x402_mask.sandbox", "sandbox"),
    ],
)
def test_a_missing_extra_names_itself(lacking: str, wanted: str, extra: str) -> None:
    done = without(lacking, run=wanted)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1
    assert lacking in last and f"pip install 'x402-mask[{extra}]'" in last, done.stderr
    assert last.startswith(("ModuleNotFoundError", "ImportError"))


def test_another_lack_is_not_taken_for_it() -> None:
    """A part of httpx2 that is broken is not mended by installing it."""
    done = without("httpcore2", run="import x402_mask.httpx2; import httpx2; httpx2.Client()")
    assert done.returncode == 1
    assert "x402-mask[" not in done.stderr


OLD = """
import os, sys
folder = sys.argv[1] if len(sys.argv) > 1 else os.environ["OLD"]
sys.path.insert(0, folder)
"""


def test_an_mcp_of_the_first_version_is_said_to_be_one(tmp_path: Path) -> None:
    """Its package is there, and lacks what is needed."""
    package = tmp_path / "mcp"
    for part in (package, package / "server"):
        part.mkdir()
        (part / "__init__.py").write_text("")
    (package / "__init__.py").write_text("class McpError(Exception): pass\n")
    (package / "server" / "stdio.py").write_text("")
    (package / "types.py").write_text("")
    done = without(run=OLD + "import x402_mask.mcp", OLD=str(tmp_path))
    last = done.stderr.strip().splitlines()[-1]
    assert "needs version 2 of mcp" in last and "pip install 'x402-mask[mcp]'" in last
    run = OLD + "from x402_mask.sandbox import Sandbox\nwith Sandbox(): print('served')"
    done = without(run=run, OLD=str(tmp_path))
    assert (done.returncode, done.stdout) == (0, "served\n"), done.stderr
    env = {"OLD": str(tmp_path), "X402_MASK_ORIGINS": "https://shop.example"}
    done = without(run=OLD + COMMAND.format(["mcp"]), **env)
    assert done.returncode == 1 and "needs version 2 of mcp" in done.stderr
    assert "Traceback" not in done.stderr and done.stderr.count("\n") == 1


def test_the_version_is_written_once() -> None:
    """In the package; what builds it reads it there."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    assert "version" not in project["project"] and project["project"]["dynamic"] == ["version"]
    assert project["tool"]["hatch"]["version"]["path"] == "x402_mask/__init__.py"
    assert version("x402-mask") == x402_mask.__version__
