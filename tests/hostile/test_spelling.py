"""A cap on one service is not passed by calling it at another spelling of its path."""

from __future__ import annotations

import httpx
import pytest

from tests.hostile.kit import Kind, World
from tests.support.seller import offer
from x402_mask import Cap, CapExceeded, PaymentRefused

PATH = "/api/tools/mask-refinement"
SPELLED = [
    "/API/tools/Mask-Refinement",
    "//api/tools/mask-refinement",
    "/api/tools/x/%2e%2e/mask-refinement",
    "/api/tools/mask-refinement;v=1",
    "/api/tools/mask-refinement%20",
    "/api%2ftools%2fmask-refinement",
    "/api/tools/Aliyun-ImageSeg-Refine-Mask",
    "/api/tools/mask%252Drefinement",
]
OWN = Cap("0.001", per="day", service="mask-refinement")


def test_every_spelling_is_counted_together(world: World, kind: Kind) -> None:
    """Whichever comes first; the receipt and the ledger name the service as the URL does."""
    seller = world.seller()
    for path in (PATH, *SPELLED):
        seller.sells(offer("1000"), path=path)
    buyer = world.buyer(kind, world.payer(OWN, Cap(1, per="day")))
    first = buyer.get(seller.origin + SPELLED[0])
    assert first.status_code == 200 and first.extensions["x402_mask"].service == seller.origin
    for path in (PATH, *SPELLED[1:]):
        error = world.refused(buyer, seller.origin + path, CapExceeded)
        assert error.cap == OWN and error.quote is not None
    assert [row.service for row in world.payers[-1].payments()] == [seller.origin]


@pytest.mark.parametrize("path", [path for path in SPELLED if "%2f" not in path])
def test_a_cap_that_a_spelling_adds_allows_nothing(world: World, kind: Kind, path: str) -> None:
    """Where only the service's own cap is set, its own name is called or nothing is paid."""
    seller = world.seller()
    for one in (PATH, path):
        seller.sells(offer("1000"), path=one)
    buyer = world.buyer(kind, world.payer(OWN, wide=False))
    assert world.refused(buyer, seller.origin + path, PaymentRefused).reason == "no_cap"
    assert buyer.get(seller.origin + PATH).status_code == 200


def test_a_quote_shows_the_caps_of_every_reading(world: World, kind: Kind) -> None:
    """What would refuse the payment is in the quote of it."""
    seller = world.seller()
    for path in (PATH, SPELLED[3]):
        seller.sells(offer("1000"), path=path)
    payer = world.payer(OWN)
    world.buyer(kind, payer).get(seller.origin + PATH)
    quote = payer.quote(httpx.Request("GET", seller.origin + SPELLED[3]))
    assert quote is not None and isinstance(quote.refusal, CapExceeded)
    assert [spend.service for spend in quote.caps][:1] == ["mask-refinement"]
