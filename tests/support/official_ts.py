"""The official TypeScript sellers, run by Node against a facilitator served over HTTP."""

from __future__ import annotations

import os
from decimal import Decimal
from typing import Literal

from tests.support.chain import NETWORK, Chain
from tests.support.npm import HERE, node, packages
from tests.support.official_py import FacilitatorServer
from tests.support.process import Child


class ExpressSeller(Child):
    """`@x402/express` (version 2) or `x402-express` (version 1), without ``/flaky``.

    Attributes:
        url: its origin.
        version: of the protocol.
        pay_to: a fresh address that receives the money.
        amount: the price in atomic units.
    """

    def __init__(
        self,
        chain: Chain,
        facilitator: FacilitatorServer,
        version: Literal[1, 2],
        price: str = "0.20",
    ) -> None:
        """Sell every paid route for *price* USD, settled through *facilitator*.

        Raises:
            Unavailable: there is no Node, or the packages could not be fetched.
        """
        self.version = version
        self.pay_to = chain.account().address
        self.amount = int(Decimal(price) * 10**6)
        modules = packages("sellers")
        settings = {
            "FACILITATOR": facilitator.url,
            "PAY_TO": self.pay_to,
            "PRICE": price,
            "NETWORK": NETWORK,
            "VERSION": str(version),
        }
        # Evaluated rather than run as a file: its imports then resolve from the working directory.
        program = (HERE / "express.mjs").read_text()
        super().__init__(
            [node(), "--input-type=module", "--eval", program],
            ready=r"port (\d+)\.",
            cwd=modules.parent,
            env=os.environ | settings,
            timeout_s=60,
        )
        self.url = f"http://127.0.0.1:{self.ready.group(1)}"
