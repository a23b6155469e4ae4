"""Tokens bought from the sandbox on a real chain: balances equal the receipts, to the unit."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from web3 import Web3

from tests.support.buyers import Books, buy, receipts_of, refinement
from tests.support.chain import NETWORK, Chain
from tests.support.fixtures import PayerFor
from x402_mask import Payment
from x402_mask.sandbox import Sandbox

pytestmark = [pytest.mark.chain, pytest.mark.timeout(90, func_only=True)]

USDC_5 = 5_000_000
MODES = ("client", "attach", "async-client", "async-attach", "trio-client")
PRICE = 200_000


def shop(chain: Chain, **settings: Any) -> Sandbox:
    """A marketplace that settles on the chain, with a payee of its own."""
    chosen: dict[str, Any] = {
        "rpc": chain.url,
        "facilitator_key": Web3.to_hex(chain.account().key),
        "pay_to": chain.account().address,
    }
    return Sandbox(**chosen | settings)


def agrees(books: Books, payments: list[Payment], amounts: list[int]) -> None:
    """Check that what moved is what the ledger says was settled by token purchases."""
    books.assert_only_moved(amounts)
    assert [(p.route, p.state, p.amount) for p in payments] == [
        ("token", "settled", amount) for amount in amounts
    ]
    assert [p.transaction for p in reversed(payments)] == [tx for _, tx in books.moved()]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("asks", ["402", "accepts"])
def test_a_token_bought_by_x402(chain: Chain, payer_for: PayerFor, mode: str, asks: str) -> None:
    """The proof goes to the payments endpoint, and settles once per call."""
    with shop(chain, payments_ask=asks) as market:
        wallet = chain.account(ether=0, usdc=USDC_5)
        rpc = {NETWORK: chain.url}
        payer = payer_for(wallet, market.url, prefer=("held-token", "token"), rpc=rpc)
        books = Books(chain, wallet, market.pay_to)

        answers = buy(mode, payer, [refinement(market.url)] * 2)

    assert [answer.status_code for answer in answers] == [200, 200]
    receipts = receipts_of(answers)
    assert [(r.route, r.usd, r.outcome) for r in receipts] == [
        ("token", Decimal("0.20"), "settled")
    ] * 2
    assert [(r.amount, r.transaction) for r in receipts] == books.moved()
    agrees(books, payer.payments(), [PRICE] * 2)


@pytest.mark.parametrize("mode", MODES)
def test_a_token_bought_by_a_transfer(chain: Chain, payer_for: PayerFor, mode: str) -> None:
    """The wallet itself sends USDC to the payee, and the marketplace sees it."""
    with shop(chain, watch_transfers=True) as market:
        wallet = chain.account(ether=1, usdc=USDC_5)
        rpc = {NETWORK: chain.url}
        payer = payer_for(wallet, market.url, prefer=("token",), rpc=rpc)
        books = Books(chain, wallet, market.pay_to)

        answers = buy(mode, payer, [refinement(market.url)] * 2)

    assert [answer.status_code for answer in answers] == [200, 200]
    receipts = receipts_of(answers)
    assert [(r.amount, r.transaction) for r in receipts] == books.moved()
    agrees(books, payer.payments(), [PRICE] * 2)
    spent = 10**18 - chain.w3.eth.get_balance(wallet.address)
    assert 0 < spent <= 2 * 10**15


@pytest.mark.parametrize("mode", ["client", "async-client"])
@pytest.mark.parametrize("paid", [True, 2])
def test_a_token_paid_already(
    chain: Chain, payer_for: PayerFor, mode: str, paid: bool | int
) -> None:
    """A balance pays it: it counts in full, and nothing moves on chain."""
    with shop(chain, auto_paid=paid) as market:
        wallet = chain.account(ether=0, usdc=USDC_5)
        payer = payer_for(wallet, market.url, prefer=("token",))
        books = Books(chain, wallet, market.pay_to)

        answers = buy(mode, payer, [refinement(market.url)])

    assert answers[0].status_code == 200
    (receipt,) = receipts_of(answers)
    assert (receipt.route, receipt.usd) == ("token", Decimal("0.20"))
    books.assert_only_moved([])
    assert payer.spend()[0].settled == Decimal("0.20")


def test_no_ether_for_gas_moves_nothing(chain: Chain, payer_for: PayerFor) -> None:
    """And the error says what is missing."""
    from x402_mask import TokenFlowError

    with shop(chain, watch_transfers=True) as market:
        wallet = chain.account(ether=0, usdc=USDC_5)
        payer = payer_for(wallet, market.url, prefer=("token",), rpc={NETWORK: chain.url})
        books = Books(chain, wallet, market.pay_to)

        with pytest.raises(TokenFlowError, match="gas") as caught:
            buy("client", payer, [refinement(market.url)])

    assert not caught.value.at_risk
    books.assert_only_moved([])
    assert payer.spend()[0].left == 5
