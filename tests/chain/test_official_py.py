"""The official Python seller works here: the official Python client can pay it.

If these fail, the rig is broken and what it says about the library means nothing.
"""

from __future__ import annotations

import httpx
import pytest

from tests.support.buyers import (
    Books,
    Wanted,
    assert_standard_answers,
    official_buy,
    refinement,
    standard_basket,
)
from tests.support.chain import Chain
from tests.support.official_py import FacilitatorServer, OfficialSeller
from x402_mask.sandbox import Sandbox

pytestmark = [pytest.mark.chain, pytest.mark.timeout(60, func_only=True)]


def test_the_official_client_pays_the_official_seller(chain: Chain, seller: OfficialSeller) -> None:
    """Every paid route costs its price on chain, the free one nothing."""
    wallet = chain.account(ether=0, usdc=1_000_000)
    books = Books(chain, wallet, seller.pay_to)

    assert_standard_answers(official_buy(wallet, standard_basket(seller.url)))

    assert seller.amount == 200_000
    books.assert_only_moved([200_000] * 3)
    assert len(seller.proofs) == 3


@pytest.mark.parametrize("sandbox", ["v2-header", "v1"], indirect=True)
def test_the_official_client_pays_our_sandbox(chain: Chain, sandbox: Sandbox) -> None:
    """Our seller is a seller to others too, in the shapes that the official client knows."""
    wallet = chain.account(ether=0, usdc=1_000_000)
    books = Books(chain, wallet, sandbox.pay_to)

    (answer,) = official_buy(wallet, [refinement(sandbox.url)])

    assert answer.status_code == 200
    assert "ImageURL" in answer.json()["data"]
    books.assert_only_moved([200_000])
    (settled,) = sandbox.book.settlements
    assert (settled.amount, settled.transaction) == books.moved()[0]


def test_an_unpaid_request_is_asked_to_pay(chain: Chain, seller: OfficialSeller) -> None:
    """The 402 is that of version 2: header, empty body."""
    with httpx.Client(trust_env=False) as client:
        answer = client.get(f"{seller.url}/paid")
    assert (answer.status_code, answer.json()) == (402, {})
    assert "payment-required" in answer.headers


def test_an_empty_wallet_gets_nothing(chain: Chain, seller: OfficialSeller) -> None:
    """The seller judges by the chain, not by the signature alone."""
    wallet = chain.account(ether=0)
    (answer,) = official_buy(wallet, [Wanted("GET", f"{seller.url}/paid")])
    assert answer.status_code == 402
    assert chain.transfers(to=seller.pay_to) == []


def test_a_failing_handler_is_not_settled(chain: Chain, seller: OfficialSeller) -> None:
    """A 503 after the proof was verified moves nothing."""
    seller.faults = 1
    wallet = chain.account(ether=0, usdc=1_000_000)
    (answer,) = official_buy(wallet, [Wanted("GET", f"{seller.url}/flaky")])
    assert answer.status_code == 503
    assert len(seller.proofs) == 1
    assert chain.balance(wallet.address) == 1_000_000


def test_the_facilitator_over_http_speaks_both_versions(chain: Chain) -> None:
    """What the TypeScript sellers are pointed at offers v1 on ``base`` and v2 on Base's CAIP-2."""
    with FacilitatorServer(chain) as facilitator, httpx.Client(trust_env=False) as client:
        kinds = client.get(f"{facilitator.url}/supported").json()["kinds"]
    assert {"x402Version": 2, "scheme": "exact", "network": "eip155:8453"} in kinds
    assert {"x402Version": 1, "scheme": "exact", "network": "base"} in kinds
