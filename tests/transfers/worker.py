"""A process that pays by transfers from a shared wallet on a shared ledger: ``worker SPEC JOB``.

It answers in lines of JSON; ``hold`` stays until told or killed, its transfer stored and not sent.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from tests.ledger.kit import reserved
from tests.support.chain import NETWORK, USDC
from x402_mask import Cap, Payer, SQLiteLedger, TokenFlowError, Wallet
from x402_mask._ledger.transfers import Terms
from x402_mask._payer import buyer_of


def say(value: Any) -> None:
    print(json.dumps(value), flush=True)


def stored(payer: Payer, pay_to: str, amount: int) -> str:
    """Reserve, prepare and store; again where another process was first."""
    assert payer.address is not None
    made = reserved(
        payer.ledger,
        network=NETWORK,
        asset=USDC,
        payer=payer.address,
        pay_to=pay_to,
        amount=amount,
        micro=amount,
        route="token",
    )
    terms = Terms(
        payment_id=made.id,
        network=NETWORK,
        asset=USDC,
        payer=payer.address,
        pay_to=pay_to,
        amount=amount,
    )
    for _ in range(20):
        try:
            signed = buyer_of(payer).transfer_sender().prepare(terms, 20)
        except TokenFlowError as refused:
            if "cannot send on" in str(refused):  # not its turn yet
                continue
            raise
        if payer.ledger.hold_transfer(made.id, signed, now_us=buyer_of(payer).now_us()):
            return made.id
    raise AssertionError("never its turn")


def main(spec: dict[str, Any], job: str) -> None:
    with Payer(
        Wallet.from_key(spec["key"]),
        caps=[Cap("5", per="total")],
        origins=["https://h.example"],
        ledger=SQLiteLedger(spec["ledger"]),
        rpc={NETWORK: spec["url"]},
    ) as payer:
        say("ready")
        sys.stdin.readline()
        payment_id = stored(payer, spec["pay_to"], spec["amount"])
        if job == "hold":
            say(payment_id)
            sys.stdin.readline()
        say([payment_id, buyer_of(payer).transfer_sender().carry(payment_id, 20).state])


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), sys.argv[2])
