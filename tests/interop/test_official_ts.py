"""The official TypeScript sellers, v2 and v1, are paid on a real chain."""

from __future__ import annotations

import httpx
import pytest

from tests.support.buyers import (
    MODES,
    Books,
    Wanted,
    assert_standard_answers,
    buy,
    official_buy,
    receipts_of,
    standard_basket,
)
from tests.support.chain import Chain
from tests.support.fixtures import PayerFor
from tests.support.official_py import FacilitatorServer
from tests.support.official_ts import ExpressSeller

pytestmark = [pytest.mark.chain, pytest.mark.timeout(60, func_only=True)]


def test_the_seller_speaks_its_version(express: ExpressSeller) -> None:
    """Version 2 asks in the header, version 1 in the body."""
    with httpx.Client(trust_env=False) as client:
        answer = client.get(f"{express.url}/paid")
    assert answer.status_code == 402
    assert ("payment-required" in answer.headers) == (express.version == 2)
    assert answer.json().get("x402Version") == (1 if express.version == 1 else None)


def test_the_official_client_pays(
    chain: Chain, express: ExpressSeller, facilitator: FacilitatorServer
) -> None:
    """If this fails, the rig is broken, not the library."""
    wallet = chain.account(ether=0, usdc=1_000_000)
    books, seen = Books(chain, wallet, express.pay_to), len(facilitator.calls)

    assert_standard_answers(official_buy(wallet, standard_basket(express.url)))

    books.assert_only_moved([200_000] * 3)
    calls = [("/verify", express.version), ("/settle", express.version)]
    assert facilitator.calls[seen:] == calls * 3


@pytest.mark.parametrize("mode", MODES)
def test_the_library_pays(
    chain: Chain, express: ExpressSeller, payer_for: PayerFor, mode: str
) -> None:
    """Every route, by every plug point; receipts, ledger and caps agree with the chain."""
    wallet = chain.account(ether=0, usdc=5_000_000)
    payer = payer_for(wallet, express.url)
    books = Books(chain, wallet, express.pay_to)

    answers = buy(mode, payer, standard_basket(express.url))

    assert_standard_answers(answers)
    receipts = receipts_of(answers)
    assert [r.service for r in receipts] == [express.url, "mask-refinement", express.url]
    books.assert_agree(payer, receipts, [200_000] * 3)


def test_an_empty_wallet_is_rejected_and_held(
    chain: Chain, express: ExpressSeller, payer_for: PayerFor
) -> None:
    """The seller says no on the chain's word; the proof is out, so the money stays held."""
    wallet = chain.account(ether=0)
    payer = payer_for(wallet, express.url)

    (answer,) = buy("client", payer, [Wanted("GET", f"{express.url}/paid")])

    assert answer.status_code == 402
    assert [receipt.outcome for receipt in receipts_of([answer])] == ["rejected"]
    assert chain.transfers(sender=wallet.address) == []
    assert [payment.state for payment in payer.payments()] == ["held"]
