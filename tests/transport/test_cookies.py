"""What a seller sets with its 402 goes with the paid leg, as much of it as a client must keep."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import pytest

from tests.support.seller import offer, v2_header
from tests.transport.kit import LIBS, SHOP
from x402_mask import Cap, MemoryLedger, Payer, Wallet


@pytest.mark.parametrize("lib", LIBS)
@pytest.mark.parametrize("many", [1, 50, 3000])
def test_the_first_cookies_are_carried_and_no_more(lib: str, many: int) -> None:
    """To read thousands keeps an event loop for a quarter of a second."""
    family = pytest.importorskip(lib)
    ours = pytest.importorskip(f"x402_mask.{lib}")
    set_by_seller = [("set-cookie", f"c{n}=v; Path=/") for n in range(many)]
    long = ("set-cookie", "long=" + "v" * 5000)
    sent: list[dict[str, str]] = []

    def shop(request: Any) -> Any:
        if "payment-signature" not in request.headers:
            headers = [*v2_header(offer()).headers, long, *set_by_seller]
            return family.Response(402, headers=headers)
        parts = request.headers["cookie"].split("; ")
        sent.append(dict(part.split("=") for part in parts))
        return family.Response(200)

    payer = Payer(
        Wallet.from_key(b"\1" * 32),
        caps=[Cap(1, per="call")],
        origins=[SHOP],
        ledger=MemoryLedger(),
    )
    inner = family.MockTransport(shop)
    with closing(payer), family.Client(transport=ours.PaymentTransport(payer, inner)) as client:
        assert client.get(f"{SHOP}/x", headers={"cookie": "mine=1; c0=old"}).status_code == 200
    (cookies,) = sent
    assert cookies["mine"] == "1" and cookies["c0"] == "v" and "long" not in cookies
    assert 1 + min(many, 49) == len(cookies)
