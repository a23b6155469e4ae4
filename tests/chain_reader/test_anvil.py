"""Evidence against the truth of a real chain with Circle's USDC, told independently by web3."""

from __future__ import annotations

import random
import secrets
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace

import pytest
from eth_account.signers.local import LocalAccount
from web3 import Web3
from web3.exceptions import Web3RPCError
from web3.logs import DISCARD

from tests.support.chain import NETWORK, USDC, Chain, Signed
from tests.support.fixtures import needed
from x402_mask._chain.authorizations import Authorization
from x402_mask._chain.reader import ChainReader
from x402_mask._chain.verdicts import Canceled, Evidence, Settled, Unknown, Unused

pytestmark = pytest.mark.timeout(300)

GAS = 200_000


@pytest.fixture(scope="module")
def moving_chain() -> Iterator[Chain]:
    """Return a chain whose clock these tests move, only forward."""
    with needed(Chain.start) as started:
        yield started


def read(chain: Chain, margin: int = 1) -> closing[ChainReader]:
    """Return a reader that asks the same chain at two addresses, which must agree."""
    urls = [chain.url, chain.url.replace("127.0.0.1", "localhost")]
    clock = lambda: float(chain.now())  # noqa: E731  # its time is moved by these tests
    return closing(ChainReader({NETWORK: urls}, margin_blocks=margin, clock=clock))


@dataclass
class Operation:
    """An authorization, and the transactions that tried to use it."""

    payer: LocalAccount
    signed: Signed
    signed_at: int
    transactions: list[str] = field(default_factory=list)

    @property
    def nonce(self) -> str:
        return self.signed.authorization["nonce"]

    @property
    def valid_before(self) -> int:
        return int(self.signed.authorization["validBefore"])

    def authorization(self, transaction: str | None = None) -> Authorization:
        fields = self.signed.authorization
        return Authorization(
            network=NETWORK,
            asset=USDC,
            payer=fields["from"],
            pay_to=fields["to"],
            amount=int(fields["value"]),
            nonce=self.nonce,
            valid_before=self.valid_before,
            signed_at=self.signed_at,
            transaction=transaction,
        )

    def settle(self, chain: Chain) -> str:
        """Submit it, come what may: expired and repeated ones fail on the chain."""
        sent = self.signed.authorization, self.signed.signature
        tx = chain.transfer_with_authorization(*sent, gas=GAS)
        self.transactions.append(tx)
        return tx


def sign(
    chain: Chain, payer: LocalAccount, amount: int, *, valid_s: int = 60, ahead_s: int = 0
) -> Operation:
    """Sign at the chain's time, told by a clock that is ``ahead_s`` ahead of it."""
    now = chain.now()
    payee = Web3.to_checksum_address("0x" + secrets.token_hex(20))
    signed = chain.sign_transfer(payer, payee, amount, valid_before=now + valid_s)
    return Operation(payer, signed, now + ahead_s)


def test_the_four_answers(moving_chain: Chain) -> None:
    """Used, cancelled, unused past its time, unused before it."""
    chain = moving_chain
    payer = chain.account(usdc=10_000)
    with read(chain) as reader:
        used, cancelled, unused = (sign(chain, payer, amount) for amount in (1, 2, 3))
        tx = used.settle(chain)
        assert chain.succeeded(tx)
        seen = reader.seen(used.authorization(tx))
        assert isinstance(seen, Settled) and seen.transaction == tx and seen.amount == 1
        early = reader.evidence(used.authorization(tx))
        assert isinstance(early, Unknown), "no block on top yet"
        cancel_tx = chain.cancel_authorization(payer, cancelled.nonce)
        chain.mine()
        assert reader.evidence(used.authorization()) == seen
        found = reader.evidence(cancelled.authorization())
        assert isinstance(found, Canceled) and found.transaction == cancel_tx
        assert "not expired yet" in str(reader.evidence(unused.authorization()))
        chain.set_next_timestamp(unused.valid_before)
        chain.mine()
        with read(chain, margin=0) as hasty:
            assert chain.now() == unused.valid_before
            assert "not expired yet" in str(hasty.evidence(unused.authorization()))
        chain.increase_time(2)
        chain.mine()
        answer = reader.evidence(unused.authorization())
        assert isinstance(answer, Unused) and answer.block_time > unused.valid_before
        assert answer.block == chain.block() - 1
    assert chain.balance(used.signed.authorization["to"]) == 1


def test_logs_mean_what_web3_says(moving_chain: Chain) -> None:
    """web3's own decoding of the same receipt names the same payment."""
    chain = moving_chain
    operation = sign(chain, chain.account(usdc=500), 123)
    tx = operation.settle(chain)
    chain.mine()
    receipt = chain.w3.eth.get_transaction_receipt(Web3.to_bytes(hexstr=tx))
    (use,) = chain.usdc.events.AuthorizationUsed().process_receipt(receipt, errors=DISCARD)
    (move,) = chain.usdc.events.Transfer().process_receipt(receipt, errors=DISCARD)
    a = operation.authorization()
    assert (use["args"]["authorizer"], Web3.to_hex(use["args"]["nonce"])) == (a.payer, a.nonce)
    assert tuple(move["args"].values()) == (a.payer, a.pay_to, a.amount)
    with read(chain) as reader:
        for claim in (a, replace(a, amount=124), replace(a, pay_to=a.payer)):
            answer = reader.evidence(claim)
            if claim is a:
                assert answer == Settled(transaction=tx, block=receipt["blockNumber"], amount=123)
            else:
                assert "PAYMENT MISMATCH" in str(answer)


def test_a_reverted_chain(own_chain: Chain) -> None:
    """What was settled is undone; the same reader forgets it and finds the second settlement."""
    chain = own_chain
    operation = sign(chain, chain.account(usdc=500), 100)
    before = chain.snapshot()
    with read(chain) as reader:
        first = operation.settle(chain)
        chain.mine()
        assert isinstance(reader.evidence(operation.authorization(first)), Settled)
        chain.revert(before)
        assert "not on chain yet" in str(reader.seen(operation.authorization(first)))
        assert isinstance(reader.evidence(operation.authorization(first)), Unknown)
        chain.mine(3)
        operation.settle(chain)
        chain.mine()
        answer = reader.evidence(operation.authorization(first))
        assert isinstance(answer, Settled) and answer.block == chain.block() - 1


def test_a_reorganised_chain(own_chain: Chain) -> None:
    """Anvil replaces the last blocks with empty ones of other hashes."""
    chain = own_chain
    operation = sign(chain, chain.account(usdc=500), 100, valid_s=600)
    chain.mine()
    with read(chain, margin=0) as reader:
        tx = operation.settle(chain)
        assert isinstance(reader.evidence(operation.authorization(tx)), Settled)
        try:
            chain.rpc("anvil_reorg", 1, [])
        except (RuntimeError, Web3RPCError) as error:
            pytest.skip(f"this anvil cannot reorganise: {error}")
        assert not chain.authorization_state(operation.payer.address, operation.nonce)
        assert "not expired yet" in str(reader.evidence(operation.authorization(tx)))
        chain.increase_time(601)
        assert isinstance(reader.evidence(operation.authorization(tx)), Unused)


def test_a_long_chain(own_chain: Chain) -> None:
    """Hundreds of blocks of two seconds before and after: found without the hint."""
    chain = own_chain
    payer = chain.account(usdc=500)
    for _ in range(3):
        chain.rpc("anvil_mine", hex(100), "0x2")
    used, unused = sign(chain, payer, 7), sign(chain, payer, 8)
    tx = used.settle(chain)
    for _ in range(3):
        chain.rpc("anvil_mine", hex(100), "0x2")
    with read(chain, margin=12) as reader:
        answer = reader.evidence(used.authorization())
        assert isinstance(answer, Settled) and answer.transaction == tx
        assert isinstance(reader.evidence(unused.authorization()), Unused)


@pytest.mark.parametrize("seed", range(3))
def test_random_histories(moving_chain: Chain, seed: int) -> None:
    """Whatever happened to each authorization, evidence says what web3 reads from all events."""
    check_random_history(moving_chain, seed, operations=40)


# -- random histories ------------------------------------------------------------------------------


def check_random_history(chain: Chain, seed: int, operations: int) -> dict[str, int]:
    """Play a random history; compare evidence with the truth for every authorization.

    Returns how often each answer was given.
    """
    rng = random.Random(seed)
    margin = rng.choice([0, 1, 3])
    played = _play(chain, rng, operations)
    chain.mine(rng.randrange(1, 6))
    counts: dict[str, int] = {}
    with read(chain, margin) as reader:
        truths = _truths(chain, played, chain.block() - margin)
        for operation, truth in zip(played, truths, strict=True):
            a = operation.authorization(_hint(rng, operation, played))
            answer = reader.evidence(a)
            kind = type(answer).__name__
            counts[kind] = counts.get(kind, 0) + 1
            if truth is None:
                assert "not expired yet" in str(answer), (a, answer)
            else:
                assert answer == truth, a
            seen = reader.seen(a)
            if isinstance(seen, Settled):
                assert chain.authorization_state(a.payer, a.nonce)
                assert seen.transaction in operation.transactions
    _check_totals(chain, played)
    return counts


def _play(chain: Chain, rng: random.Random, count: int) -> list[Operation]:
    payers = [chain.account(usdc=10**9) for _ in range(3)]
    made: list[Operation] = []
    for _ in range(count):
        valid_s = rng.choice([5, 20, 60, 300, 3600, 90_000])
        ahead_s = rng.choice([-20, 0, 0, 0, 90, 3000])
        amount = rng.choice([0, 1, 1000, rng.randrange(1, 10**6)])
        payer = rng.choice(payers)
        made.append(sign(chain, payer, amount, valid_s=valid_s, ahead_s=ahead_s))
        for _ in range(rng.randrange(3)):
            _happen(chain, rng, rng.choice(made[-10:]))
    return made


def _happen(chain: Chain, rng: random.Random, operation: Operation) -> None:
    """Something happens to an authorization, or time passes."""
    match rng.randrange(8):
        case 0 | 1 | 2:
            operation.settle(chain)
        case 3 if operation.valid_before - 1 > chain.now():
            chain.set_next_timestamp(operation.valid_before - rng.randrange(2))
            operation.settle(chain)  # the last second, or one too late
        case 4:
            with chain.mining_paused():
                operation.settle(chain)
                operation.settle(chain)  # two in one block: one of them fails
        case 5 if not chain.authorization_state(operation.payer.address, operation.nonce):
            chain.cancel_authorization(operation.payer, operation.nonce)
        case 6:
            chain.mine(rng.randrange(1, 4))
        case _:
            chain.increase_time(rng.randrange(1, 40))


def _hint(rng: random.Random, operation: Operation, others: list[Operation]) -> str | None:
    """What a seller might claim."""
    everything = [tx for other in others for tx in other.transactions]
    own = operation.transactions
    return rng.choice([None, "0x" + "77" * 32, *own[:3], *own[-1:], *rng.sample(everything, 1)])


def _truths(chain: Chain, operations: list[Operation], top: int) -> list[Evidence | None]:
    """What web3 reads from all events up to block *top*; `None` is "not expired yet"."""
    events = chain.usdc.events
    found: dict[tuple[str, str], tuple[bool, str, int]] = {}
    for is_use, event in (
        (True, events.AuthorizationUsed()),
        (False, events.AuthorizationCanceled()),
    ):
        for log in event.get_logs(from_block=0, to_block=top):
            key = (log["args"]["authorizer"], Web3.to_hex(log["args"]["nonce"]))
            assert key not in found
            found[key] = (is_use, Web3.to_hex(log["transactionHash"]), log["blockNumber"])
    top_time = chain.w3.eth.get_block(top)["timestamp"]
    return [_truth(operation, found, top, top_time) for operation in operations]


def _truth(
    operation: Operation,
    found: dict[tuple[str, str], tuple[bool, str, int]],
    top: int,
    top_time: int,
) -> Evidence | None:
    event = found.get((operation.payer.address, operation.nonce))
    if event is not None:
        is_use, tx, block = event
        amount = int(operation.signed.authorization["value"])
        if is_use:
            return Settled(transaction=tx, block=block, amount=amount)
        return Canceled(transaction=tx, block=block)
    if top_time > operation.valid_before:
        return Unused(block=top, block_time=top_time)
    return None


def _check_totals(chain: Chain, operations: list[Operation]) -> None:
    """Each payee is of one authorization only, so its balance is the amount or nothing."""
    with read(chain, margin=0) as reader:
        for operation in operations:
            answer = reader.evidence(operation.authorization())
            settled = answer.amount if isinstance(answer, Settled) else 0
            assert chain.balance(operation.signed.authorization["to"]) == settled
