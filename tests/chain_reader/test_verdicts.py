"""What an honest chain proves, and what it does not."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from web3 import Web3

from tests.chain_reader.conftest import Ask
from tests.chain_reader.fake import (
    BLOCK_S,
    CANCELED,
    GENESIS_S,
    NONCE,
    OTHER,
    PAYEE,
    PAYER,
    TOKEN,
    TRANSFER,
    USED,
    Chain,
    Node,
    Refusal,
    at,
    authorization,
    canceled,
    moved,
    nodes,
    used,
)
from x402_mask._chain.authorizations import Authorization
from x402_mask._chain.reader import ChainReader
from x402_mask._chain.verdicts import Canceled, Settled, Unknown, Unused

A = authorization()
SETTLED_AT = 1010  # 20 s after the signature, 40 s before validBefore
PAST = 1031  # the first block later than validBefore

pytestmark = pytest.mark.timeout(60)


def settle(chain: Chain, block: int = SETTLED_AT, a: Authorization = A) -> str:
    return chain.add(block, used(a), moved(a))


def reason(answer: object) -> str:
    assert isinstance(answer, Unknown), answer
    return answer.reason


def test_words_are_what_web3_encodes() -> None:
    """The constants and the call are checked against an independent codec."""
    abi = [
        {
            "type": "function",
            "name": "authorizationState",
            "stateMutability": "view",
            "inputs": [
                {"name": "authorizer", "type": "address"},
                {"name": "nonce", "type": "bytes32"},
            ],
            "outputs": [{"name": "", "type": "bool"}],
        }
    ]
    contract = Web3().eth.contract(address=Web3.to_checksum_address(TOKEN), abi=abi)
    encoded = contract.encode_abi("authorizationState", [Web3.to_checksum_address(PAYER), NONCE])
    with Node(Chain()) as node, _reader(node) as made:
        made.evidence(A)
        (call, _block) = next(params for method, params in node.calls if method == "eth_call")
    assert call["data"] == encoded.lower()
    for topic, signature in (
        (USED, "AuthorizationUsed(address,bytes32)"),
        (CANCELED, "AuthorizationCanceled(address,bytes32)"),
        (TRANSFER, "Transfer(address,address,uint256)"),
    ):
        assert topic == Web3.to_hex(Web3.keccak(text=signature))


def _reader(node: Node) -> Any:
    from contextlib import closing

    clock = lambda: float(at(node.chain.height))  # noqa: E731
    return closing(ChainReader({A.network: node.url}, clock=clock))


def test_web3_is_not_imported() -> None:
    code = "import sys, x402_mask._chain.authorizations, x402_mask._chain.reader; sys.exit('web3' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0


@pytest.mark.parametrize("hinted", [False, True])
def test_settled(node: Node, reader: Ask, hinted: bool) -> None:
    tx = settle(node.chain)
    a = replace(A, transaction=tx if hinted else None)
    answer = reader(node).evidence(a)
    assert answer == Settled(transaction=tx, block=SETTLED_AT, amount=A.amount)
    methods = [method for method, _ in node.calls]
    assert ("eth_getLogs" in methods) is not hinted


@pytest.mark.parametrize(
    "hint", ["0x" + "77" * 32, "0x1", "", "not hex", "0x" + "77" * 32 + "\n", "ü" * 66]
)
def test_a_wrong_hint_changes_nothing(node: Node, reader: Ask, hint: str) -> None:
    tx = settle(node.chain)
    answer = reader(node).evidence(replace(A, transaction=hint))
    assert answer == Settled(transaction=tx, block=SETTLED_AT, amount=A.amount)


def test_a_hint_to_somebody_elses_payment_settles_nothing(node: Node, reader: Ask) -> None:
    """The seller names a real transfer of the same amount that used another authorization."""
    other = node.chain.add(SETTLED_AT, used(A, nonce="0x" + "01" * 32), moved(A))
    a = replace(A, transaction=other)
    assert isinstance(reader(node).evidence(a), Unused)
    assert "does not use this authorization" in reason(reader(node).seen(a))


def test_canceled(node: Node, reader: Ask) -> None:
    tx = node.chain.add(SETTLED_AT, canceled(A))
    assert reader(node).evidence(A) == Canceled(transaction=tx, block=SETTLED_AT)


@pytest.mark.parametrize("late", [PAST, 1050, 1090])
def test_canceled_after_it_had_expired(node: Node, reader: Ask, late: int) -> None:
    tx = node.chain.add(late, canceled(A))
    assert reader(node).evidence(A) == Canceled(transaction=tx, block=late)


def test_canceled_much_later(node: Node, reader: Ask) -> None:
    node.chain.height = 50_000
    tx = node.chain.add(40_000, canceled(A))
    assert reader(node).evidence(A) == Canceled(transaction=tx, block=40_000)


def test_unused(node: Node, reader: Ask) -> None:
    answer = reader(node).evidence(A)
    assert answer == Unused(block=1095, block_time=at(1095))


@pytest.mark.parametrize("margin", [0, 1, 12])
def test_unused_only_when_a_block_past_valid_before_has_the_margin_on_top(
    node: Node, reader: Ask, margin: int
) -> None:
    """A block that carries exactly validBefore is not past it."""
    made = reader(node, margin_blocks=margin)
    assert at(PAST - 1) == A.valid_before
    node.chain.height = PAST - 1 + margin
    waiting = made.evidence(A)
    assert "not expired yet" in reason(waiting)
    assert isinstance(waiting, Unknown) and waiting.answered
    node.chain.height += 1
    assert made.evidence(A) == Unused(block=PAST, block_time=A.valid_before + BLOCK_S)


def test_a_confirmed_block_from_the_future_is_a_lie(node: Node, reader: Ask) -> None:
    """By our clock: an endpoint that is alone, or all of them, cannot make time pass."""
    top_s = at(node.chain.height - 5)
    made = reader(node, clock=lambda: top_s - 61.0)
    assert "ahead of this machine's clock" in reason(made.evidence(A))
    answer = made.evidence(A)
    assert isinstance(answer, Unknown) and not answer.answered and answer.past is None
    assert isinstance(reader(node, clock=lambda: top_s - 59.0).evidence(A), Unused)


@pytest.mark.parametrize("late", [0, 30, 600])
def test_the_margin_grows_by_what_the_chain_lags(node: Node, reader: Ask, late: int) -> None:
    """Blocks that are late when they come: the one that is believed must be past by as much."""
    ordinary = 180  # seconds that a confirmed block is old at most, where nothing lags
    for block in range(PAST - 3, PAST + late // BLOCK_S + 3):
        node.chain.height = block + 5
        now = float(at(block) + ordinary + late)
        answer = reader(node, clock=lambda now=now: now).evidence(A)
        if block >= PAST + late // BLOCK_S:
            assert isinstance(answer, Unused)
        else:
            assert isinstance(answer, Unknown) and answer.past is False
            assert ("lags" in answer.reason) is (late > 0)


@pytest.mark.parametrize("margin", [0, 1, 12])
def test_settled_only_with_the_margin_on_top(node: Node, reader: Ask, margin: int) -> None:
    made = reader(node, margin_blocks=margin)
    tx = settle(node.chain)
    node.chain.height = SETTLED_AT + margin - 1
    if margin:
        assert "not expired yet" in reason(made.evidence(replace(A, transaction=tx)))
    node.chain.height += 1
    assert isinstance(made.evidence(replace(A, transaction=tx)), Settled)
    assert isinstance(made.evidence(A), Settled)


def test_a_chain_with_fewer_blocks_than_the_margin(node: Node, reader: Ask) -> None:
    node.chain.height = 4
    assert "too few for a margin of 5" in reason(reader(node).evidence(A))
    node.chain.height = 5
    assert "not expired yet" in reason(reader(node).evidence(A))


def test_a_chain_younger_than_the_signature(node: Node, reader: Ask) -> None:
    """A test chain that began after it was signed: genesis is the lower end of the search."""
    a = authorization(-10)
    tx = settle(node.chain, 0, a)
    assert reader(node).evidence(a) == Settled(transaction=tx, block=0, amount=a.amount)


def test_a_clock_that_is_slow_does_not_hide_what_was_paid(node: Node, reader: Ask) -> None:
    """To an endpoint that lies about time nothing is freed; that money has gone frees nothing."""
    tx = settle(node.chain)
    made = reader(node, clock=lambda: 0.0)
    found = made.evidence(A)
    assert isinstance(found, Settled) and found.transaction == tx
    assert found.past is None, "by which time is not known"


def test_a_signature_from_the_chains_future(node: Node, reader: Ask) -> None:
    """Our clock is ahead: settled 55 minutes "before" it was signed."""
    node.chain.height = 4000
    a = authorization(3000)
    tx = settle(node.chain, 3000 - 55 * 30, a)
    assert reader(node).evidence(a) == Settled(transaction=tx, block=1350, amount=a.amount)


def test_an_event_long_before_the_signature_is_not_ours(node: Node, reader: Ask) -> None:
    node.chain.height = 9000
    a = authorization(8000)
    settle(node.chain, 8000 - 61 * 30 - 64, a)
    assert "was not found" in reason(reader(node).evidence(a))


@pytest.mark.parametrize(
    "changes",
    [{"amount": 12_344}, {"amount": 12_346}, {"pay_to": OTHER}, {"payer": OTHER}, {"asset": OTHER}],
    ids=str,
)
@pytest.mark.parametrize("hinted", [False, True])
def test_another_transfer_is_a_loud_unknown(
    node: Node, reader: Ask, changes: dict[str, Any], hinted: bool
) -> None:
    tx = node.chain.add(SETTLED_AT, used(A), moved(A, **changes))
    a = replace(A, transaction=tx if hinted else None)
    for answer in (reader(node).evidence(a), *([reader(node).seen(a)] if hinted else [])):
        assert "PAYMENT MISMATCH" in reason(answer)
        assert tx in reason(answer)


def test_used_without_any_transfer(node: Node, reader: Ask) -> None:
    node.chain.add(SETTLED_AT, used(A))
    assert "PAYMENT MISMATCH" in reason(reader(node).evidence(A))


def test_a_transfer_without_the_nonce_proves_nothing(node: Node, reader: Ask) -> None:
    """A token that does not revert on a used nonce: the second transaction moved nothing of ours."""
    other = node.chain.add(SETTLED_AT, moved(A))
    assert isinstance(reader(node).evidence(replace(A, transaction=other)), Unused)


def test_a_second_use_that_moved_nothing_is_harmless(node: Node, reader: Ask) -> None:
    node.chain.add(SETTLED_AT - 1, used(A))
    tx = settle(node.chain)
    node.chain.add(SETTLED_AT + 1, used(A))
    assert reader(node).evidence(A) == Settled(transaction=tx, block=SETTLED_AT, amount=A.amount)


@pytest.mark.parametrize("second", [A.amount, 7])
def test_a_second_use_that_moved_money_is_unknown(node: Node, reader: Ask, second: int) -> None:
    settle(node.chain)
    node.chain.add(SETTLED_AT + 1, used(A), moved(A, amount=second))
    assert "PAYMENT MISMATCH" in reason(reader(node).evidence(A))


def test_used_and_canceled_is_a_contradiction(node: Node, reader: Ask) -> None:
    settle(node.chain)
    node.chain.add(SETTLED_AT + 1, canceled(A))
    assert "contradiction" in reason(reader(node).evidence(A))


def test_a_failed_transaction_is_no_payment(node: Node, reader: Ask) -> None:
    tx = node.chain.add(SETTLED_AT, used(A), moved(A), ok=False)
    assert "failed" in reason(reader(node).seen(replace(A, transaction=tx)))
    assert isinstance(reader(node).evidence(replace(A, transaction=tx)), Unused)


def test_a_batch_of_one_payer(node: Node, reader: Ask) -> None:
    """Each use in a batch goes with the transfer after it, not with any that fits."""
    second = replace(A, nonce="0x" + "02" * 32, amount=777)
    third = replace(A, nonce="0x" + "03" * 32, amount=12_345)
    batch = (moved(A, payer=OTHER), used(A), moved(A), used(second), moved(second), used(third))
    tx = node.chain.add(SETTLED_AT, *batch, moved(third, pay_to=OTHER))
    made = reader(node)
    for a in (A, second):
        expected = Settled(transaction=tx, block=SETTLED_AT, amount=a.amount)
        assert made.evidence(a) == expected
        assert made.seen(replace(a, transaction=tx)) == expected
    assert "PAYMENT MISMATCH" in reason(made.evidence(third))


def test_a_transfer_before_the_use_counts_too(node: Node, reader: Ask) -> None:
    tx = node.chain.add(SETTLED_AT, moved(A), used(A))
    assert reader(node).evidence(A) == Settled(transaction=tx, block=SETTLED_AT, amount=A.amount)


def test_letter_case_does_not_matter(node: Node, reader: Ask) -> None:
    tx = settle(node.chain)
    a = replace(
        A,
        asset=TOKEN.lower(),
        payer=PAYER.upper().replace("X", "x"),
        pay_to=PAYEE.lower(),
        nonce=NONCE.lower(),
        transaction=tx.upper().replace("X", "x"),
    )
    expected = Settled(transaction=tx, block=SETTLED_AT, amount=A.amount)
    assert reader(node).evidence(a) == expected
    node.lies["eth_getTransactionReceipt"] = lambda params, _: node.chain.eth_getTransactionReceipt(
        params[0].lower()
    )
    assert reader(node).seen(a) == expected


def test_amounts_up_to_the_largest(node: Node, reader: Ask) -> None:
    for index, amount in enumerate((0, 1, 2**256 - 1)):
        a = replace(A, amount=amount, nonce=f"0x{index + 1:064x}")
        tx = settle(node.chain, a=a)
        assert reader(node).evidence(a) == Settled(transaction=tx, block=SETTLED_AT, amount=amount)


# -- search ---------------------------------------------------------------------------------------


def test_a_long_chain_takes_few_calls(node: Node, reader: Ask) -> None:
    """40 million blocks: bisection, one range of logs; every range within the span."""
    signed = 39_000_000
    node.chain.height = 40_000_000
    a = authorization(signed)
    tx = settle(node.chain, signed + 10, a)
    answer = reader(node).evidence(a)
    assert answer == Settled(transaction=tx, block=signed + 10, amount=a.amount)
    assert len(node.calls) <= 20
    spans = [_span(params[0]) for method, params in node.calls if method == "eth_getLogs"]
    wanted = 60 + 30  # two minutes before, and the validity
    assert len(spans) == 1
    assert wanted < spans[0] <= wanted + 2 * 64


@pytest.mark.parametrize(
    "time_of",
    [
        pytest.param(lambda n: GENESIS_S + n // 100, id="a hundred blocks a second"),
        pytest.param(lambda n: GENESIS_S + n + 10**9 * (n > 9_990_000), id="a pause of decades"),
        pytest.param(lambda n: GENESIS_S + n**3 // 10**13, id="ever slower"),
    ],
)
def test_uneven_block_times_take_few_calls_too(
    node: Node, reader: Ask, time_of: Callable[[int], int]
) -> None:
    node.chain.height = 10_000_000
    block = 5_000_000
    signed = time_of(block)
    node.lies["eth_getBlockByNumber"] = lambda params, truth: (
        truth | {"timestamp": hex(time_of(int(params[0], 16)))}
    )
    a = replace(A, signed_at=signed, valid_before=signed + 60)
    tx = settle(node.chain, block + 1, a)
    clock = lambda: float(time_of(node.chain.height))  # noqa: E731
    answer = reader(node, block_span=1_000_000, clock=clock).evidence(a)
    assert answer == Settled(transaction=tx, block=block + 1, amount=a.amount)
    assert len(node.calls) <= 60


def _span(wanted: dict[str, str]) -> int:
    return int(wanted["toBlock"], 16) - int(wanted["fromBlock"], 16) + 1


@pytest.mark.parametrize("served", [1, 7, 10, 50])
def test_an_endpoint_that_serves_only_short_ranges(node: Node, reader: Ask, served: int) -> None:
    def refuse_wide(params: list[Any], truth: Any) -> Any:
        if _span(params[0]) > served:
            raise Refusal(-32005, f"only {served} blocks at a time")
        return truth

    tx = settle(node.chain)
    node.lies["eth_getLogs"] = refuse_wide
    assert reader(node).evidence(A) == Settled(transaction=tx, block=SETTLED_AT, amount=A.amount)


def test_block_span_is_kept(node: Node, reader: Ask) -> None:
    node.chain.height = 3000
    reader(node, block_span=13).evidence(A)
    ranges = [
        (int(p[0]["fromBlock"], 16), int(p[0]["toBlock"], 16))
        for method, p in node.calls
        if method == "eth_getLogs"
    ]
    assert all(last - first + 1 <= 13 for first, last in ranges)
    assert [first for first, _ in ranges[1:]] == [last + 1 for _, last in ranges[:-1]]
    assert ranges[0][0] <= 940
    assert ranges[-1][1] >= PAST


def test_a_missing_event_is_searched_for_in_bounds(node: Node, reader: Ask) -> None:
    """State says used, no log anywhere: a bounded number of calls, then Unknown."""
    node.chain.height = 40_000_000
    node.lies["eth_call"] = lambda *_: "0x" + "0" * 63 + "1"
    assert "was not found" in reason(reader(node).evidence(A))
    assert len(node.calls) < 80
    node.calls.clear()
    assert "more than 400 calls" in reason(reader(node, block_span=1).evidence(A))
    assert len(node.calls) <= 400


def test_a_node_without_calls_by_block_hash(node: Node, reader: Ask) -> None:
    """EIP-1898 is not everywhere; the call by number is protected by comparing the hash again."""

    def by_number_only(params: list[Any], truth: Any) -> Any:
        if isinstance(params[1], dict):
            raise Refusal(-32602, "invalid argument 1")
        return truth

    node.lies["eth_call"] = by_number_only
    assert isinstance(reader(node).evidence(A), Unused)
    tx = settle(node.chain)
    assert reader(node).evidence(A) == Settled(transaction=tx, block=SETTLED_AT, amount=A.amount)


# -- several endpoints ----------------------------------------------------------------------------


def test_endpoints_at_different_heights_agree_on_the_common_past(reader: Ask) -> None:
    ahead, behind = Chain(height=1100), Chain(height=1040)
    with nodes(ahead, behind) as both:
        made = reader(*both)
        assert made.evidence(A) == Unused(block=1035, block_time=at(1035))
        tx = settle(ahead)
        assert settle(behind) == tx
        assert made.evidence(A) == Settled(transaction=tx, block=SETTLED_AT, amount=A.amount)


def test_a_lagging_endpoint_holds_the_answer_back(reader: Ask) -> None:
    ahead, behind = Chain(height=1100), Chain(height=PAST + 4)
    with nodes(ahead, behind) as both:
        made = reader(*both)
        assert "not expired yet" in reason(made.evidence(A))
        behind.height += 1
        assert isinstance(made.evidence(A), Unused)


def test_endpoints_that_disagree(reader: Ask) -> None:
    honest, blind = Chain(), Chain()
    tx = settle(honest)
    with nodes(honest, blind) as both:
        made = reader(*both)
        for urls in (both, both[::-1]):
            made = reader(*urls)
            answer = made.evidence(A)
            assert isinstance(answer, Unknown) and not answer.answered
            said = reason(answer)
            assert "endpoints disagree" in said and "Settled" in said and "Unused" in said
            assert "endpoints disagree" in reason(made.seen(replace(A, transaction=tx)))


def test_endpoints_on_different_forks(reader: Ask) -> None:
    with nodes(Chain(), Chain(fork="other")) as both:
        assert "disagree on block 1095" in reason(reader(*both).evidence(A))


def test_the_same_url_twice_is_one_endpoint(node: Node, reader: Ask) -> None:
    reader(node, node).evidence(A)
    assert [method for method, _ in node.calls].count("eth_chainId") == 1


# -- seen ----------------------------------------------------------------------------------------


def test_seen_needs_no_confirmation(node: Node, reader: Ask) -> None:
    tx = settle(node.chain)
    node.chain.height = SETTLED_AT
    answer = reader(node).seen(replace(A, transaction=tx))
    assert answer == Settled(transaction=tx, block=SETTLED_AT, amount=A.amount)
    assert sorted(method for method, _ in node.calls) == [
        "eth_chainId",
        "eth_getTransactionReceipt",
    ]


def test_seen_says_what_it_misses(node: Node, reader: Ask) -> None:
    made = reader(node)
    assert reason(made.seen(A)) == "no transaction is named"
    assert reason(made.seen(replace(A, transaction="0x12"))) == "no transaction is named"
    assert not node.calls
    assert "not on chain yet" in reason(made.seen(replace(A, transaction="0x" + "99" * 32)))
    tx = node.chain.add(SETTLED_AT, canceled(A))
    assert "does not use" in reason(made.seen(replace(A, transaction=tx)))


def test_unknown_networks(node: Node, reader: Ask) -> None:
    a = replace(A, network="eip155:1", transaction="0x" + "99" * 32)
    for answer in (reader(node).evidence(a), reader(node).seen(a)):
        assert "no RPC endpoint is configured for eip155:1" in reason(answer)
    assert reader(node).networks == {"eip155:8453"}


# -- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"asset": "0x12"},
        {"payer": "b1" * 20},
        {"pay_to": "merchant"},
        {"pay_to": PAYEE + "\n"},
        {"nonce": "0x" + "0" * 63},
        {"nonce": "0x" + "g" * 64},
        {"amount": -1},
        {"amount": 2**256},
        {"amount": 1.0},
        {"amount": True},
        {"valid_before": -1},
        {"signed_at": 1.5},
    ],
    ids=json.dumps,
)
def test_an_authorization_that_nobody_signed(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(changes))):
        replace(A, **changes)


@pytest.mark.parametrize(
    "endpoints",
    [
        {"base": "http://127.0.0.1"},
        {"eip155:0": "http://127.0.0.1"},
        {"solana:5eykt4UsFv8P8NJdTREpY1vzqKqZKvdp": "http://127.0.0.1"},
        {"eip155:1": []},
        {"eip155:1": ""},
        {"eip155:1": "127.0.0.1:8545/hunter2secret"},
        {"eip155:1": "ws://127.0.0.1/hunter2secret"},
        {"eip155:1": "http:///hunter2secret"},
        {"eip155:1": "http://127.0.0.1:port/hunter2secret"},
        {"eip155:1": ["http://127.0.0.1", "file:///hunter2secret"]},
        {"eip155:1": "http://rpc.example/hunter2secret"},
        {"eip155:1": ["https://rpc.example", "http://10.0.0.1/hunter2secret"]},
        {"eip155:1": "http://localhost.example/hunter2secret"},
    ],
    ids=json.dumps,
)
def test_endpoints_that_cannot_be_asked(endpoints: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"eip155|network") as caught:
        ChainReader(endpoints)
    assert "hunter2secret" not in repr(caught.value)


@pytest.mark.parametrize(
    "options",
    [{"margin_blocks": -1}, {"block_span": 0}, {"time_out_s": 0}, {"time_out_s": float("nan")}],
    ids=str,
)
def test_options_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="needed"):
        ChainReader({}, **options)
