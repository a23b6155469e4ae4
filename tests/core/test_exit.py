"""A program that ends without closing anything says nothing about it, whatever still holds it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.seller import Seller

BUY = """
import asyncio, os, sys, threading
from x402_mask import AsyncClient, Cap, Client, MemoryLedger, Payer, SQLiteLedger, Wallet
seller = os.environ["SELLER"]

def payer(ledger=None):
    return Payer(Wallet.from_key("11" * 32), caps=[Cap("1", per="day")], origins=[seller],
                 ledger=ledger or SQLiteLedger())

def bought(payer):
    with Client(payer) as client:
        assert client.get(seller + "/paid").status_code == 200
    return payer

async def bought_async(payer):
    async with AsyncClient(payer) as client:
        assert (await client.get(seller + "/paid")).status_code == 200
    return payer
"""
ENDS = {
    "a global": "kept = bought(payer())",
    "in memory": "kept = bought(payer(MemoryLedger()))",
    "async": "kept = asyncio.run(bought_async(payer()))",
    "a cycle": "class Kept: pass\nkept = Kept(); kept.kept = kept; kept.payer = bought(payer())",
    "of another module": "sys.kept = bought(payer())",
    "sys.exit": "def end():\n    kept = bought(payer())\n    sys.exit(0)\nend()",
    "a thread": "kept = []\nthread = threading.Thread(target=lambda: kept.append(bought(payer())))\n"
    "thread.start(); thread.join()",
    "dropped": "bought(payer()); bought(payer())",
}


@pytest.mark.parametrize("how", ENDS)
def test_nothing_is_said_at_the_end(how: str, tmp_path: Path) -> None:
    """Python 3.13 and newer warn of every database connection that is left open."""
    with Seller() as seller:
        seller.sells()
        done = subprocess.run(
            [sys.executable, "-X", "dev", "-W", "error::ResourceWarning", "-c", BUY + ENDS[how]],
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
            cwd=tmp_path,
            env={
                **os.environ,
                "HOME": str(tmp_path),
                "XDG_DATA_HOME": str(tmp_path / "data"),
                "SELLER": seller.origin,
            },
        )
    said = [line for line in done.stderr.splitlines() if "seconds" not in line]  # of a slow loop
    assert (done.returncode, done.stdout, said) == (0, "", [])
