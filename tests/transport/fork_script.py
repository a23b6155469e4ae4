"""Pays before and after a fork, in parent and child; prints what came of it.  Run by a test."""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.support.seller import offer
from tests.transport.kit import Kind, Rig
from x402_mask import Cap, CapExceeded, SQLiteLedger


def main(path: str) -> None:
    """A cap of two payments: one of the parent, one of the child."""
    rig = Rig(Kind("httpx", "sync", "client"))
    rig.payer = rig.make_payer(ledger=SQLiteLedger(path), caps=[Cap("0.002", per="total")])
    rig.sells(offer("1000"))
    rig.paid(rig.client.get("https://shop.example/paid?by=parent"))
    print(rig.states()[0], flush=True)
    child = os.fork()
    if child == 0:
        rig.paid(rig.client.get("https://shop.example/paid?by=child"))
        print("child", rig.states()[0], flush=True)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    try:
        rig.client.get("https://shop.example/paid?by=parent")
    except CapExceeded as refused:
        print(refused.reason, flush=True)
    sys.exit(status)


if __name__ == "__main__":
    main(sys.argv[1])
