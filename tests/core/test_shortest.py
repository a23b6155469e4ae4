"""The shortest validity that policy accepts can really be paid."""

from __future__ import annotations

from datetime import timedelta

import httpx
import pytest

from tests.test_preempt import Seller, World
from x402_mask import Cap, MemoryLedger, OfferRefused, Payer, Wallet
from x402_mask._payer import buyer_of


class Brief(Seller):
    """Its offers are valid for so many seconds."""

    seconds = 10

    def offer(self) -> dict[str, object]:
        return {**super().offer(), "maxTimeoutSeconds": self.seconds}


@pytest.mark.parametrize(("seconds", "paid"), [(10, True), (9, False)])
def test_ten_seconds_are_enough(seconds: int, paid: bool) -> None:
    """With a clock that runs: signing takes longer than nothing."""
    world = World(preempt=False)
    world.seller = seller = Brief()
    seller.seconds = seconds
    ticks = iter(range(10_000))
    buyer_of(world.payer)._clock = lambda: 1_700_000_000 + next(ticks) / 1000
    world.client._transport.inner = httpx.MockTransport(seller)  # type: ignore[attr-defined]
    if paid:
        assert world.call("a").status_code == 200
    else:
        with pytest.raises(OfferRefused):
            world.call("a")


def test_the_environment_need_not_hold_what_is_given() -> None:
    """``Payer.from_env(caps=...)``: an override replaces a variable that is not set."""
    payer = Payer.from_env(
        {"X402_MASK_ORIGINS": "https://seller.example"},
        wallet=Wallet.create(),
        caps=[Cap("1", per="day")],
        ledger=MemoryLedger(),
        max_validity=timedelta(seconds=10),
    )
    assert payer.spend()[0].limit == 1
