"""One purchase at one seller, left open in one way or another."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

from tests.faults import jobs
from tests.support.faults import NO_TLS, sums
from tests.support.seller import (
    Answer,
    Reply,
    Seller,
    challenge,
    distinct,
    in_header,
    offer,
    paywall,
    sequence,
    served,
    v2_header,
)
from x402_mask import Client, Payer, SQLiteLedger

PRICE = 1000
SECONDS = 60
MARGIN = 30
SILENCE = Reply(delay=2.0, drop=True)


def again(error: str, **more: Any) -> Reply:
    """A 402 after the proof, with a challenge that says why."""
    return in_header({**challenge(offer(str(PRICE))), "error": error, **more})


def failed_settlement(status: int, reason: str) -> Any:
    """An answer whose settlement header says that it failed."""
    return served(status=status, changes={"success": False, "errorReason": reason})


WAYS: dict[str, Answer] = {
    "dropped": Reply(drop=True),
    "reset": Reply(reset=True),
    "cut-head": Reply(status=503, length=10, cut=0),
    "silence": SILENCE,
    "400": Reply(status=400),
    "401": Reply(status=401),
    "404": Reply(status=404),
    "409": Reply(status=409, body=b"conflict"),
    "429": Reply(status=429, headers=[("Retry-After", "1")]),
    "500": Reply(status=500),
    "503": Reply(status=503),
    "302": Reply(status=302, headers=[("Location", "/elsewhere")]),
    "303-settled": served(status=303, headers=[("Location", "/elsewhere")]),
    "500-settled": served(status=500),
    "402": v2_header(offer(str(PRICE))),
    "402-bare": Reply(status=402),
    "402-nonce-used": again("invalid_transaction_state: nonce already used"),
    "402-pending": again("settlement_pending"),
    "402-not-settled": failed_settlement(402, "nonce_already_used"),
}


@dataclass
class Deal:
    """One operation at one seller, on one ledger file."""

    seller: Seller
    directory: Path
    first: Answer = field(default_factory=served)
    prices: int = 1
    ahead: float = 0.0

    def __post_init__(self) -> None:
        self.path = self.directory / "ledger.db"
        self.url = self.seller.on(
            "/paid", paywall(v2_header(offer(str(PRICE))), sequence(self.first, served()))
        )
        self.seller.on("/elsewhere", Reply(body=b"else"))

    @property
    def limit(self) -> str:
        """What the cap allows, USD."""
        return str(Decimal(self.prices * PRICE) / 10**6)

    def payer(self, **options: Any) -> Payer:
        """A payer on a ledger object of its own."""
        options.setdefault("clock", lambda: time.time() + self.ahead)
        return jobs.payer_on(SQLiteLedger(self.path), self.seller.origin, self.limit, **options)

    def call(self, payer: Payer, timeout: float = 0.5, **options: Any) -> str:
        """Call; the status or the error's name."""
        with Client(payer, timeout=timeout, verify=NO_TLS) as client:
            try:
                return str(client.get(self.url, **options).status_code)
            except Exception as error:
                return type(error).__name__

    def proofs(self) -> tuple[int, int]:
        """How many proofs were shown, and how many different ones."""
        shown = self.seller.proofs()
        return len(shown), len(distinct(shown))

    def check(self, shown: int, different: int) -> None:
        """So many proofs were shown; they are on the ledger, and within the cap."""
        assert self.proofs() == (shown, different)
        collectable = sum(one.usd_micro for one in self.seller.authorizations())
        assert len(self.seller.authorizations()) == different
        on_file = sums(self.path)
        assert collectable == on_file.counted <= self.prices * PRICE
        assert on_file.reserved == 0


def opened(seller: Seller, path: Path, way: str, **options: Any) -> tuple[Deal, Payer]:
    """An operation left open in this way, and the payer that did."""
    deal = Deal(seller, path, WAYS[way], **options)
    payer = deal.payer()
    assert deal.call(payer) != "200"
    deal.check(1, 1)
    return deal, payer
