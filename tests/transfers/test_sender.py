"""A payment by on-chain transfer, on the real chain: it is paid once, whatever goes wrong."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from typing import Any

import pytest
from eth_account import Account
from web3 import Web3

from tests.ledger.kit import together
from tests.support.chain import NETWORK, USDC, Chain
from tests.transfers.conftest import BuyerFor
from tests.transfers.kit import MARGIN, MAX_GAS_WEI, PRICE, Buyer
from tests.transfers.proxy import Lost, Proxy
from x402_mask import LedgerError, SQLiteLedger, TokenFlowError, Wallet
from x402_mask._chain.receipts import Displaced, Paid, Reverted
from x402_mask._chain.verdicts import Unknown
from x402_mask._ledger.transfers import Terms

pytestmark = [pytest.mark.chain, pytest.mark.timeout(60, func_only=True)]

BLACKLIST = "blacklist(address)"


def refusal(buyer: Buyer, terms: Terms | None = None, wait_s: float = 0) -> str:
    """Why nothing is prepared; nothing is stored or used up by it."""
    terms = terms or buyer.reserve()
    with pytest.raises(TokenFlowError) as caught:
        buyer.sender.prepare(terms, wait_s)
    assert caught.value.at_risk is False
    assert buyer.ledger.transfer_of(terms.payment_id) is None
    assert buyer.state(terms.payment_id) == "reserved"
    return str(caught.value)


def send_other(buyer: Buyer, nonce: int | None = None, **fields: Any) -> str:
    """A transaction of the same account, made by another program."""
    w3 = buyer.chain.w3
    plain = {
        "chainId": 8453,
        "nonce": buyer.nonce() if nonce is None else nonce,
        "gas": 100_000,
        "to": buyer.account.address,
        "value": 0,
        "maxFeePerGas": 10**12,
        "maxPriorityFeePerGas": 10**11,
    }
    signed = buyer.account.sign_transaction({**plain, **fields})
    sent = str(Web3.to_hex(w3.eth.send_raw_transaction(signed.raw_transaction)))
    if buyer.chain._mining:
        buyer.chain._mined(sent)
    return sent


def admin(chain: Chain, function: str, *args: Any) -> None:
    chain._confirm(chain.usdc.functions[function](*args).transact({"from": chain._admin}))


# --- the usual way --------------------------------------------------------------------------------


def test_the_payee_gets_exactly_the_amount(chain: Chain, buyer: BuyerFor) -> None:
    b = buyer()
    had, ether = chain.balance(b.account.address), b.ether()
    for number in range(2):
        sent = b.hold()
        carried = b.sender.carry(sent.terms.payment_id, 10)
        assert (carried.state, carried.transaction) == ("mined", sent.hash)
        assert b.stored(sent.terms.payment_id).state == "mined"
        assert sent.nonce == number
    assert b.paid() == [PRICE, PRICE]
    assert chain.balance(b.account.address) == had - 2 * PRICE
    assert chain.balance(b.pay_to) == 2 * PRICE
    assert 0 < b.spent_wei(ether) <= 2 * sent.max_gas_wei <= 2 * MAX_GAS_WEI


def test_nothing_signed_leaves_before_it_is_stored(buyer: BuyerFor, proxy: Proxy) -> None:
    b = buyer(urls=[proxy.url])
    signed = b.sender.prepare(b.reserve())
    told = json.dumps(proxy.calls)
    signature = signed.raw[-100:]
    assert not proxy.sent and signed.hash not in told and signature not in told
    assert b.nonce() == 0 and b.paid() == []


def test_it_is_carried_by_whoever_finds_it(chain: Chain, buyer: BuyerFor, tmp_path: Any) -> None:
    """Killed between storing and sending: another process sends the same bytes, twice at once."""
    first = buyer(SQLiteLedger(tmp_path / "ledger.db"))
    sent = first.hold()
    first.close()
    others = [
        buyer(SQLiteLedger(tmp_path / "ledger.db"), account=first.account, pay_to=first.pay_to)
        for _ in range(2)
    ]
    carried = together(2, lambda n: others[n].sender.carry(sent.terms.payment_id, 10))
    assert {(each.state, each.transaction) for each in carried} == {("mined", sent.hash)}
    assert others[0].sender.carry(sent.terms.payment_id, 0).state == "mined"
    assert first.paid() == [PRICE] and first.nonce() == 1


def test_what_may_not_be_carried(buyer: BuyerFor) -> None:
    b = buyer()
    with pytest.raises(LedgerError, match="no stored transfer"):
        b.sender.carry(b.reserve().payment_id, 0)
    sent = b.hold()
    b.ledger.resolve(sent.terms.payment_id, "void", transaction=None, note="", now_us=0)
    carried = b.sender.carry(sent.terms.payment_id, 0)
    assert carried.state == "pending" and "the payment is void" in carried.detail
    assert b.paid() == [] and b.nonce() == 0


def test_what_was_stored_is_read_again_before_it_is_sent(buyer: BuyerFor) -> None:
    """A ledger could be restored from anywhere: bytes that do something else stay here."""
    b = buyer()
    terms = b.reserve()
    other = b.sender.prepare(replace(terms, pay_to=Account.create().address))
    made = replace(other, terms=terms)
    assert b.ledger.hold_transfer(terms.payment_id, made, now_us=b.now_us())
    with pytest.raises(LedgerError, match="does something else"):
        b.sender.carry(terms.payment_id, 0)
    assert b.nonce() == 0


# --- refused, and nothing stored ------------------------------------------------------------------


def test_dearer_than_max_gas_wei(buyer: BuyerFor) -> None:
    b = buyer(max_gas_wei=10_000)
    assert "more than max_gas_wei=10000; raise it" in refusal(b)


def test_no_coin_for_gas(buyer: BuyerFor) -> None:
    b = buyer(ether=0)
    assert f"{b.account.address} has 0 wei" in refusal(b)


def test_too_little_of_the_token(buyer: BuyerFor) -> None:
    b = buyer(usdc=PRICE - 1)
    assert "transfer amount exceeds balance" in refusal(b)


def test_payments_by_transfer_that_are_not_wanted(buyer: BuyerFor) -> None:
    assert "max_gas_wei=None" in refusal(buyer(max_gas_wei=None))


def test_a_wallet_that_signs_typed_data_only(chain: Chain, buyer: BuyerFor) -> None:
    account = chain.account()

    class Remote:
        address = account.address

        def sign_typed_data(self, *args: Any) -> bytes:
            raise AssertionError("not asked")

    b = buyer(account=account, signer=Remote())
    assert b.sender.possible(NETWORK) is not None
    assert "needs a Wallet" in refusal(b)


def test_another_wallet(buyer: BuyerFor) -> None:
    assert "this wallet is not" in refusal(buyer(signer=Wallet.create()))


def test_another_network(buyer: BuyerFor) -> None:
    b = buyer()
    terms = replace(b.reserve(), network="eip155:1")
    assert "no rpc= is given for eip155:1" in refusal(b, terms)
    assert b.sender.possible(NETWORK) is None


def test_an_endpoint_of_another_chain(buyer: BuyerFor, proxy: Proxy) -> None:
    b = buyer(urls=[proxy.url])
    sent = b.hold()
    proxy.lies["eth_chainId"] = lambda params, told: {"result": "0x1"}
    assert "serves chain 1" in refusal(b, replace(sent.terms, payment_id=b.reserve().payment_id))
    carried = b.sender.carry(sent.terms.payment_id, 0)
    assert carried.state == "pending" and "serves chain 1" in carried.detail
    assert not proxy.sent and b.nonce() == 0


@pytest.mark.parametrize("method", ["eth_getTransactionCount", "eth_estimateGas"])
@pytest.mark.parametrize(
    "answer",
    [{"error": {"code": -32000, "message": "no"}}, {"result": "x"}, {"result": "0x" + "f" * 60}],
    ids=["error", "garbage", "huge"],
)
def test_an_endpoint_that_fails(
    buyer: BuyerFor, proxy: Proxy, method: str, answer: dict[str, Any]
) -> None:
    b = buyer(urls=[proxy.url])
    proxy.lies[method] = lambda params, told: answer
    assert "no on-chain transfer was made" in refusal(b)


def test_endpoints_that_disagree_on_the_nonce(chain: Chain, buyer: BuyerFor, proxy: Proxy) -> None:
    b = buyer(urls=[chain.url, proxy.url])
    proxy.lies["eth_getTransactionCount"] = lambda params, told: {"result": "0x5"}
    assert "nonces 0 to 5" in refusal(b)


def test_a_nonce_that_was_used_before(buyer: BuyerFor, proxy: Proxy) -> None:
    """An endpoint that lags, or a chain that was reset."""
    b = buyer(urls=[proxy.url])
    b.sender.carry(b.hold().terms.payment_id, 10)
    proxy.lies["eth_getTransactionCount"] = lambda params, told: {"result": "0x0"}
    assert "says nonce 0, but 0 was used" in refusal(b)


def test_transactions_of_another_program_under_way(chain: Chain, buyer: BuyerFor) -> None:
    b = buyer()
    with chain.mining_paused():
        send_other(b)
        assert "a wallet of its own" in refusal(b)
    b.sender.carry(b.hold().terms.payment_id, 10)
    assert b.paid() == [PRICE]


# --- what the layer below costs -------------------------------------------------------------------


def test_the_layer_below_counts(buyer: BuyerFor, proxy: Proxy) -> None:
    """On OP Stack chains; the endpoint is asked with bytes that nobody signed."""
    oracle = "0x420000000000000000000000000000000000000f"
    fee = 10**14

    def lie(params: list[Any], told: Any) -> Any:
        assert params[0]["data"].startswith(Web3.to_hex(Web3.keccak(text="getL1Fee(bytes)")[:4]))
        assert params[0]["to"].lower() == oracle
        return {"result": f"0x{fee:064x}"}

    proxy.lies["eth_call"] = lie
    b = buyer(urls=[proxy.url])
    assert b.sender.prepare(b.reserve()).max_gas_wei > 2 * fee
    other = buyer(urls=[proxy.url], max_gas_wei=2 * fee)
    assert "more than max_gas_wei" in refusal(other)


def test_a_chain_without_a_base_fee(buyer: BuyerFor, proxy: Proxy) -> None:
    def lie(params: list[Any], told: Any) -> Any:
        told["result"].pop("baseFeePerGas")
        return told

    proxy.lies["eth_getBlockByNumber"] = lie
    b = buyer(urls=[proxy.url])
    sent = b.hold()
    assert not sent.raw.startswith("0x02")
    assert b.sender.carry(sent.terms.payment_id, 10).state == "mined"
    assert b.paid() == [PRICE]


# --- sent, and not known how it went --------------------------------------------------------------


def test_a_lost_answer(buyer: BuyerFor, proxy: Proxy) -> None:
    """The broadcast arrived, its answer did not."""

    def lie(params: list[Any], told: Any) -> Any:
        raise Lost

    proxy.lies["eth_sendRawTransaction"] = lie
    b = buyer(urls=[proxy.url])
    sent = b.hold()
    assert b.sender.carry(sent.terms.payment_id, 10).state == "mined"
    assert b.paid() == [PRICE]
    assert set(proxy.sent) == {sent.raw}


def test_every_endpoint_gets_it(chain: Chain, buyer: BuyerFor, proxy: Proxy) -> None:
    b = buyer(urls=[proxy.url, chain.url])
    proxy.lies["eth_sendRawTransaction"] = lambda params, told: {
        "error": {"code": -32000, "message": "too busy"}
    }
    assert b.sender.carry(b.hold().terms.payment_id, 10).state == "mined"
    assert b.paid() == [PRICE]


@pytest.mark.parametrize("first", [0, 1], ids=["honest-last", "honest-first"])
def test_endpoints_that_disagree_prove_nothing(
    chain: Chain, buyer: BuyerFor, proxy: Proxy, first: int
) -> None:
    b = buyer(urls=[proxy.url, chain.url][:: 1 - 2 * first])
    proxy.lies["eth_getTransactionReceipt"] = lambda params, told: {"result": None}
    sent = b.hold()
    carried = b.sender.carry(sent.terms.payment_id, 0.5)
    assert carried.state == "pending" and "disagree" in carried.detail
    chain.mine(MARGIN)
    assert isinstance(b.sender.evidence(b.stored(sent.terms.payment_id)), Unknown)
    del proxy.lies["eth_getTransactionReceipt"]
    assert b.sender.carry(sent.terms.payment_id, 0).state == "mined"
    assert b.paid() == [PRICE]


def _failed(receipt: Any) -> Any:
    return receipt | {"status": "0x0"}


def _without_logs(receipt: Any) -> Any:
    return receipt | {"logs": []}


def _failed_without_logs(receipt: Any) -> Any:
    return receipt | {"status": "0x0", "logs": []}


def _less(receipt: Any) -> Any:
    return receipt | {"logs": [log | {"data": f"0x{1:064x}"} for log in receipt["logs"]]}


def _missing(receipt: Any) -> Any:
    return None


@pytest.mark.parametrize(
    "lie",
    [_failed, _without_logs, _failed_without_logs, _less, _missing],
    ids=lambda lie: lie.__name__.strip("_"),
)
def test_one_lie_frees_no_money(chain: Chain, buyer: BuyerFor, proxy: Proxy, lie: Any) -> None:
    """A receipt that is wrong, on an endpoint that is honest in all else."""
    b = buyer(urls=[proxy.url])
    sent = b.hold()
    b.sender.carry(sent.terms.payment_id, 0)
    chain.mine(MARGIN)
    proxy.lies["eth_getTransactionReceipt"] = lambda params, told: (
        {"result": lie(told["result"])} if params[0] == sent.hash else told
    )
    assert isinstance(b.sender.evidence(b.stored(sent.terms.payment_id)), Unknown)
    assert b.sender.carry(sent.terms.payment_id, 0).state == "pending"
    assert b.paid() == [PRICE]


def test_a_consistent_liar_does_not_convince_beside_an_honest_endpoint(
    chain: Chain, buyer: BuyerFor, proxy: Proxy
) -> None:
    b = buyer(urls=[proxy.url, chain.url])
    sent = b.hold()
    b.sender.carry(sent.terms.payment_id, 0)
    chain.mine(MARGIN)
    proxy.lies["eth_getTransactionReceipt"] = lambda params, told: {
        "result": _failed_without_logs(told["result"])
    }
    proxy.lies["eth_getLogs"] = lambda params, told: {"result": []}
    verdict = b.sender.evidence(b.stored(sent.terms.payment_id))
    assert isinstance(verdict, Unknown) and "disagree" in verdict.reason


def test_an_endpoint_that_has_forgotten(chain: Chain, buyer: BuyerFor, proxy: Proxy) -> None:
    """Neither receipts nor logs of those days are left, and it says so of none."""
    b = buyer(urls=[proxy.url])
    sent = b.hold()
    b.sender.carry(sent.terms.payment_id, 0)
    chain.mine(MARGIN)
    proxy.lies["eth_getTransactionReceipt"] = lambda params, told: {"result": None}
    proxy.lies["eth_getLogs"] = lambda params, told: {"result": []}
    verdict = b.sender.evidence(b.stored(sent.terms.payment_id))
    assert isinstance(verdict, Unknown) and "has no receipts of block" in verdict.reason


def test_a_block_that_was_replaced(chain: Chain, buyer: BuyerFor) -> None:
    """The transfer is no longer on the chain: the same bytes are sent again."""
    b = buyer()
    sent = b.hold()
    before = chain.snapshot()
    assert b.sender.carry(sent.terms.payment_id, 10).state == "mined"
    chain.revert(before)
    assert b.paid() == [] and b.nonce() == 0
    with chain.mining_paused():
        assert b.sender.carry(sent.terms.payment_id, 0).state == "pending"
        assert b.stored(sent.terms.payment_id).state == "open"
        chain.rpc("anvil_dropTransaction", sent.hash)
    assert b.paid() == []
    b.hold()  # the next one waits for it
    assert b.stored(sent.terms.payment_id).state == "mined"
    assert b.paid() == [PRICE] and b.nonce() == 1


# --- stuck ----------------------------------------------------------------------------------------


def test_a_stuck_one_is_replaced_and_one_lands(chain: Chain, buyer: BuyerFor, proxy: Proxy) -> None:
    b = buyer(urls=[proxy.url])
    ether = b.ether()
    sent = b.hold()
    with chain.mining_paused():
        assert b.sender.carry(sent.terms.payment_id, 0).state == "pending"
        assert len(b.stored(sent.terms.payment_id).attempts) == 1
        for count in (2, 3):
            b.clock[0] += 30
            assert b.sender.carry(sent.terms.payment_id, 0).state == "pending"
            assert len(b.stored(sent.terms.payment_id).attempts) == count
    stored = b.stored(sent.terms.payment_id)
    assert {each.nonce for each in stored.attempts} == {sent.nonce}
    assert proxy.sent == [each.raw for each in stored.attempts]
    assert sent.max_gas_wei < stored.last.max_gas_wei <= MAX_GAS_WEI
    carried = b.sender.carry(sent.terms.payment_id, 10)
    assert (carried.state, carried.transaction) == ("mined", stored.last.hash)
    assert b.paid() == [PRICE] and b.spent_wei(ether) <= MAX_GAS_WEI


def test_two_carriers_replace_it_once(chain: Chain, buyer: BuyerFor) -> None:
    b = buyer()
    sent = b.hold()
    with chain.mining_paused():
        b.sender.carry(sent.terms.payment_id, 0)
        b.clock[0] += 30
        together(2, lambda n: b.sender.carry(sent.terms.payment_id, 0))
    assert len(b.stored(sent.terms.payment_id).attempts) == 2
    assert b.sender.carry(sent.terms.payment_id, 10).state == "mined"
    assert b.paid() == [PRICE]


def test_a_replacement_stays_within_max_gas_wei(
    chain: Chain, buyer: BuyerFor, proxy: Proxy
) -> None:
    first = buyer(urls=[proxy.url])
    sent = first.hold()
    limit = sent.max_gas_wei + sent.max_gas_wei // 16
    b = Buyer.make(
        chain,
        first.ledger,
        account=first.account,
        urls=[proxy.url],
        max_gas_wei=limit,
        stuck_s=-1,
    )
    with chain.mining_paused():
        carried = b.sender.carry(sent.terms.payment_id, 0)
    assert f"more than max_gas_wei={limit}; raise that" in carried.detail
    assert len(first.stored(sent.terms.payment_id).attempts) == 1
    assert set(proxy.sent) == {sent.raw}
    assert b.sender.carry(sent.terms.payment_id, 10).state == "mined"
    b.reader.close()


def test_the_base_fee_rose(chain: Chain, buyer: BuyerFor) -> None:
    """The first attempt pays less than blocks cost by now."""
    b = buyer(stuck_s=0)
    sent = b.hold()
    base = int(chain.w3.eth.get_block("latest")["baseFeePerGas"])
    before = chain.snapshot()
    try:
        chain.rpc("anvil_setNextBlockBaseFeePerGas", hex(base * 4))
        chain.rpc("evm_mine")
        chain.rpc("anvil_setNextBlockBaseFeePerGas", hex(base * 4))
        carried = b.sender.carry(sent.terms.payment_id, 10)
        stored = b.stored(sent.terms.payment_id)
        assert carried.state == "mined" and carried.transaction == stored.last.hash != sent.hash
        assert b.paid() == [PRICE]
    finally:
        chain.revert(before)


def test_a_stuck_one_without_its_wallet(chain: Chain, buyer: BuyerFor) -> None:
    first = buyer()
    sent = first.hold()
    b = Buyer.make(chain, first.ledger, account=first.account, signer=Wallet.create(), stuck_s=-1)
    carried = b.sender.carry(sent.terms.payment_id, 0)
    assert carried.state == "pending" and "the wallet that could replace it" in carried.detail
    assert b.sender.carry(sent.terms.payment_id, 10).state == "mined"
    b.reader.close()


# --- one after the other --------------------------------------------------------------------------


def test_the_next_one_carries_the_one_before(buyer: BuyerFor) -> None:
    """Nobody sent it: its buyer died.  It is approved and counted, so it is sent."""
    b = buyer()
    first = b.hold()
    second = b.hold()
    assert b.stored(first.terms.payment_id).state == "mined"
    assert (first.nonce, second.nonce) == (0, 1)
    assert b.paid() == [PRICE]


def test_the_next_one_waits_for_a_stuck_one(chain: Chain, buyer: BuyerFor) -> None:
    b = buyer()
    first = b.hold()
    with chain.mining_paused():
        said = refusal(b)
    assert f"the transfer of payment {first.terms.payment_id} is still under way" in said


def test_two_that_prepare_at_once(buyer: BuyerFor, tmp_path: Any) -> None:
    """Both have the same nonce; the ledger stores one, the other prepares again."""
    first = buyer(SQLiteLedger(tmp_path / "ledger.db"))
    second = buyer(SQLiteLedger(tmp_path / "ledger.db"), account=first.account, pay_to=first.pay_to)
    buyers = [first, second]

    def pay(n: int) -> list[bool]:
        b, tries = buyers[n], []
        terms = b.reserve()
        while not any(tries):
            signed = b.sender.prepare(terms)
            tries.append(b.ledger.hold_transfer(terms.payment_id, signed, now_us=b.now_us()))
        assert b.sender.carry(terms.payment_id, 10).state == "mined"
        return tries

    tries = together(2, pay)
    assert all(isinstance(each, list) for each in tries), tries
    assert first.paid() == [PRICE, PRICE] and first.nonce() == 2


# --- the nonce is used, and nothing was paid ------------------------------------------------------


def test_a_displaced_one_is_void_only_at_depth(chain: Chain, buyer: BuyerFor, proxy: Proxy) -> None:
    b = buyer(urls=[proxy.url])
    sent = b.hold()
    send_other(b, sent.nonce)
    carried = b.sender.carry(sent.terms.payment_id, 0)
    assert carried.state == "pending" and "another transaction used its nonce" in carried.detail
    assert b.stored(sent.terms.payment_id).state == "open"
    chain.mine(MARGIN)
    assert isinstance(b.sender.evidence(b.stored(sent.terms.payment_id)), Displaced)
    assert b.sender.carry(sent.terms.payment_id, 0).state == "displaced"
    assert b.paid() == [] and not proxy.sent
    proxy.lies["eth_getTransactionCount"] = lambda params, told: {"result": "0x0"}
    assert b.sender.carry(sent.terms.payment_id, 0).state == "displaced"  # what is proven stays
    assert not proxy.sent
    proxy.lies.clear()
    again = b.hold()  # the address is free
    assert b.sender.carry(again.terms.payment_id, 10).state == "mined"
    assert b.paid() == [PRICE]


def test_a_wallet_program_that_sped_it_up_paid(chain: Chain, buyer: BuyerFor) -> None:
    """Same nonce, same call, signed by another program: the money moved."""
    b = buyer()
    sent = b.hold()
    call = chain.usdc.encode_abi("transfer", args=[b.pay_to, PRICE])
    other = send_other(b, sent.nonce, to=USDC, data=call)
    chain.mine(MARGIN)
    assert b.sender.evidence(b.stored(sent.terms.payment_id)) == Paid(
        transaction=other, block=chain.block() - MARGIN
    )
    carried = b.sender.carry(sent.terms.payment_id, 0)
    assert (carried.state, carried.transaction) == ("mined", other)
    assert b.paid() == [PRICE]


def test_another_program_paid_something_else(chain: Chain, buyer: BuyerFor) -> None:
    """To the same payee, at our nonce: ours can never be mined, and the address is free."""
    b = buyer()
    sent = b.hold()
    call = chain.usdc.encode_abi("transfer", args=[b.pay_to, PRICE - 1])
    send_other(b, sent.nonce, to=USDC, data=call)
    assert b.sender.carry(sent.terms.payment_id, 0).state == "pending"
    chain.mine(MARGIN)
    assert isinstance(b.sender.evidence(b.stored(sent.terms.payment_id)), Displaced)
    assert b.sender.carry(sent.terms.payment_id, 0).state == "displaced"
    again = b.hold()
    assert b.sender.carry(again.terms.payment_id, 10).state == "mined"
    assert b.paid() == [PRICE - 1, PRICE]


def test_earlier_payments_to_the_same_payee_are_not_taken_for_it(
    chain: Chain, buyer: BuyerFor
) -> None:
    b = buyer()
    b.sender.carry(b.hold().terms.payment_id, 10)
    sent = b.hold()
    send_other(b, sent.nonce)
    chain.mine(MARGIN)
    assert isinstance(b.sender.evidence(b.stored(sent.terms.payment_id)), Displaced)


def test_a_reverted_one_moves_nothing_and_is_not_paid_again(chain: Chain, buyer: BuyerFor) -> None:
    b = buyer()
    sent = b.hold()
    admin(chain, BLACKLIST, b.account.address)
    carried = b.sender.carry(sent.terms.payment_id, 0.5)
    assert (carried.state, carried.transaction) == ("pending", sent.hash)
    assert "reverted, not proven yet" in carried.detail
    chain.mine(MARGIN)
    assert isinstance(b.sender.evidence(b.stored(sent.terms.payment_id)), Reverted)
    carried = b.sender.carry(sent.terms.payment_id, 0)
    assert (carried.state, carried.transaction) == ("failed", sent.hash)
    assert b.paid() == [] and b.nonce() == 1
    assert "Blacklistable" in refusal(b)


# --- cut anywhere ---------------------------------------------------------------------------------


class Cut(BaseException):
    """The process ends here."""


class Cutter:
    """Raises `Cut` instead of the n-th step."""

    def __init__(self, at: int) -> None:
        self.at, self.steps = at, 0

    def wrap(self, target: Any, name: str) -> None:
        real = getattr(target, name)

        def step(*args: Any, **kwargs: Any) -> Any:
            self.steps += 1
            if self.steps == self.at:
                raise Cut
            return real(*args, **kwargs)

        setattr(target, name, step)


def pay(b: Buyer, terms: Terms) -> str:
    """As the conversation does it: prepare, store, carry."""
    if b.ledger.transfer_of(terms.payment_id) is None:
        signed = b.sender.prepare(terms)
        assert b.ledger.hold_transfer(terms.payment_id, signed, now_us=b.now_us())
    return b.sender.carry(terms.payment_id, 10).state


def test_killed_at_any_step_it_is_paid_once(chain: Chain, buyer: BuyerFor, tmp_path: Any) -> None:
    account, at, whole = chain.account(ether=1, usdc=50_000_000), 8, False  # reads only, before
    while not whole:
        at += 1
        path = tmp_path / f"{at}.db"
        b = buyer(SQLiteLedger(path), account=account)
        terms, cutter = b.reserve(), Cutter(at)
        cutter.wrap(b.reader, "ask")
        for name in ("standing", "transfer_of", "hold_transfer", "close_transfer"):
            cutter.wrap(b.ledger, name)
        try:
            whole = pay(b, terms) == "mined"
        except Cut:
            b.close()
            again = buyer(SQLiteLedger(path), account=account, pay_to=b.pay_to)
            assert pay(again, terms) == "mined"
        assert b.paid() == [PRICE], f"cut at step {at}"
    assert at > 16


# --- a storm --------------------------------------------------------------------------------------


class Storm:
    """Every answer may be lost, refused, or be the one to the same question a while ago."""

    def __init__(self, seed: int) -> None:
        self.dice, self.old = random.Random(seed), dict[str, Any]()

    def lie(self, method: str) -> Any:
        def told(params: list[Any], truth: Any) -> Any:
            key = json.dumps([method, params])
            past = self.old.setdefault(key, truth)
            cast = self.dice.random()
            if cast < 0.05:
                raise Lost
            if cast < 0.1:
                return {"error": {"code": -32000, "message": "no"}}
            if cast < 0.2 and method != "eth_sendRawTransaction":
                return past
            return truth

        return told


METHODS = (
    "eth_sendRawTransaction",
    "eth_getTransactionReceipt",
    "eth_getTransactionCount",
    "eth_blockNumber",
    "eth_estimateGas",
    "eth_getBlockByNumber",
    "eth_getLogs",
)


@pytest.mark.parametrize("seed", range(3))
def test_through_a_storm_each_is_paid_once(
    chain: Chain, buyer: BuyerFor, proxy: Proxy, seed: int
) -> None:
    storm = Storm(seed)
    proxy.lies = {method: storm.lie(method) for method in METHODS}
    b, held = buyer(urls=[proxy.url]), dict[str, int]()
    for number in range(8):
        terms = b.reserve(PRICE + number)
        try:
            signed = b.sender.prepare(terms, 0.3)
        except TokenFlowError:
            continue
        if b.ledger.hold_transfer(terms.payment_id, signed, now_us=b.now_us()):
            held[terms.payment_id] = terms.amount
            assert b.sender.carry(terms.payment_id, 0.3).state in ("mined", "pending")
        chain.mine(MARGIN)
        b.clock[0] += 25
    proxy.lies = {}
    assert {b.sender.carry(name, 10).state for name in held} == {"mined"}
    assert sorted(b.paid()) == sorted(held.values()) and len(held) >= 3
