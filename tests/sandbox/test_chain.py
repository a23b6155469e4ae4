"""Settlement on a real chain: the sandbox believes receipts, and sends each proof once."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from web3 import Web3

from tests.sandbox.buyer import Buyer, receipt
from tests.sandbox.conftest import Open
from tests.support.chain import USDC, Chain
from tests.support.fixtures import chain, own_chain, pytest_terminal_summary
from x402_mask.sandbox import Sandbox

__all__ = ["chain", "own_chain", "pytest_terminal_summary"]

USED = "invalid_exact_evm_nonce_already_used"


@pytest.fixture
def market(chain: Chain, opened: Open) -> Open:
    """Opens a sandbox on the chain, with a payee of its own and a buyer who owns 1 USDC."""

    def open_(on: Chain = chain, **settings: Any) -> tuple[Sandbox, Buyer]:
        shop, buyer = opened(
            rpc=on.url,
            facilitator_key=Web3.to_hex(on.account().key),
            pay_to=on.account().address,
            **settings,
        )
        on.mint(buyer.address, 1_000_000)
        return shop, buyer

    return open_


def test_money_moves_on_the_chain_and_the_receipt_names_it(chain: Chain, market: Open) -> None:
    shop, buyer = market()
    response = buyer.pay()
    assert response.status_code == 200, response.text
    told = receipt(response)
    assert (told["success"], told["amount"]) == (True, "200000")
    assert chain.succeeded(told["transaction"])
    assert (chain.balance(buyer.address), chain.balance(shop.pay_to)) == (800_000, 200_000)
    assert [s.transaction for s in shop.book.settlements] == [told["transaction"]]


def test_the_chain_keeps_nonces_and_balances(chain: Chain, market: Open) -> None:
    shop, buyer = market()
    proof = buyer.proof(buyer.offer())
    assert buyer.show(proof).status_code == 200
    assert buyer.show(proof).json()["error"] == USED
    foreign = buyer.proof(buyer.offer())
    payload = foreign["payload"]
    chain.transfer_with_authorization(payload["authorization"], payload["signature"])
    assert buyer.show(foreign).json()["error"] == USED, "somebody else settled it"
    with Buyer(shop.url) as poor:
        assert poor.pay().json()["error"] == "invalid_exact_evm_insufficient_balance"
    assert len(shop.book.settlements) == 1


def test_a_settlement_the_chain_would_refuse_is_not_sent(chain: Chain, market: Open) -> None:
    shop, buyer = market(clock=lambda: time.time() - 1000)
    response = buyer.pay(validBefore=int(time.time()) - 500)
    assert response.json()["error"] == "invalid_exact_evm_transaction_simulation_failed"
    assert chain.transfers(to=shop.pay_to) == []


def test_a_settlement_not_mined_in_time_is_pending_and_sent_once(
    own_chain: Chain, market: Open
) -> None:
    shop, buyer = market(own_chain, settle_timeout=0.3)
    proof = buyer.proof(buyer.offer())
    with own_chain.mining_paused():
        first, second = buyer.show(proof), buyer.show(proof)
    for pending in (first, second):
        assert pending.status_code == 402
        assert receipt(pending)["errorReason"] == "settlement_pending"
    assert receipt(first)["transaction"] == receipt(second)["transaction"]
    assert shop.book.settlements == []
    done = buyer.show(proof)
    assert done.status_code == 200
    assert receipt(done)["transaction"] == receipt(first)["transaction"]
    assert own_chain.balance(shop.pay_to) == 200_000


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("0x60006000fd", "transaction_failed"),
        ("0x00", "invalid_exact_evm_transfer_event_mismatch"),
    ],
    ids=["reverts", "does-nothing"],
)
def test_only_a_receipt_with_its_transfer_is_success(
    own_chain: Chain, market: Open, code: str, reason: str
) -> None:
    """The token turns bad between simulation and block."""
    shop, buyer = market(own_chain, settle_timeout=0.3)
    proof = buyer.proof(buyer.offer())
    with own_chain.mining_paused():
        pending = receipt(buyer.show(proof))
        own_chain.rpc("anvil_setCode", USDC, code)
    failed = buyer.show(proof)
    assert (failed.status_code, failed.json()) == (402, {})
    told = receipt(failed)
    assert (told["success"], told["errorReason"]) == (False, reason)
    assert told["transaction"] == pending["transaction"]
    assert shop.book.settlements == []


def test_one_proof_shown_at_once_is_settled_once(chain: Chain, market: Open) -> None:
    shop, buyer = market()
    proof = buyer.proof(buyer.offer())
    with ThreadPoolExecutor(5) as pool:
        responses = list(pool.map(buyer.show, [proof] * 5))
    assert sorted(r.status_code for r in responses) == [200, 402, 402, 402, 402]
    reasons = {r.json()["error"] for r in responses if r.status_code == 402}
    assert reasons <= {"duplicate_settlement", USED}
    assert chain.balance(shop.pay_to) == 200_000


def test_many_proofs_at_once_each_settle(chain: Chain, market: Open) -> None:
    shop, buyer = market()
    path = "/api/tools/timestamp"
    challenge = buyer.offer(path)
    proofs = [buyer.proof(challenge) for _ in range(6)]
    with ThreadPoolExecutor(6) as pool:
        responses = list(pool.map(lambda proof: buyer.show(proof, path), proofs))
    assert [r.status_code for r in responses] == [200] * 6
    assert chain.balance(shop.pay_to) == 180_000


def test_a_chain_that_does_not_answer_is_an_unknown_outcome(opened: Open) -> None:
    shop, buyer = opened(rpc="http://127.0.0.1:9", facilitator_key="0x" + "1" * 64)
    response = buyer.pay()
    assert (response.status_code, response.json()) == (402, {})
    told = receipt(response)
    assert (told["success"], told["errorReason"]) == (False, "unexpected_settle_error")
    assert told["transaction"] == ""
    assert shop.book.settlements == []


def test_a_transfer_pays_one_payment(chain: Chain, market: Open) -> None:
    shop, buyer = market(watch_transfers=True)
    first, second = (buyer.create_payment().json()["paymentId"] for _ in range(2))
    assert buyer.pay().status_code == 200, "a settled call of the same price pays no payment"
    assert buyer.read_payment(first).json()["status"] == "pending"
    gift = buyer.authorize({"payTo": shop.pay_to, "amount": "199999"})
    chain.transfer_with_authorization(gift["authorization"], gift["signature"])
    assert buyer.read_payment(first).json()["status"] == "pending", "the amount must be exact"
    exact = buyer.authorize({"payTo": shop.pay_to, "amount": "200000"})
    chain.transfer_with_authorization(exact["authorization"], exact["signature"])
    payment = buyer.read_payment(first).json()
    assert payment["status"] == "paid"
    assert buyer.read_payment(second).json()["status"] == "pending", "it is spent"
    assert buyer.token(payment["token"]).status_code == 200
