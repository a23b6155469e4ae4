"""Endpoints that lie, lag or answer garbage: money is never freed by doubt."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.chain_reader.conftest import Ask
from tests.chain_reader.fake import (
    BLOCK_S,
    CANCELED,
    NETWORK,
    OTHER,
    TRANSFER,
    USED,
    Chain,
    Lie,
    Node,
    Refusal,
    at,
    authorization,
    canceled,
    moved,
    nodes,
    used,
    word,
)
from x402_mask._chain.authorizations import Authorization
from x402_mask._chain.reader import ChainReader
from x402_mask._chain.verdicts import Canceled, Evidence, Settled, Unknown, Unused

A = authorization()
pytestmark = pytest.mark.timeout(120)

YES, NO = word(1), word(0)
GARBAGE: list[Any] = [
    None,
    True,
    0,
    -1,
    1.5,
    "",
    "0x",
    "0xzz",
    "0x-1",
    " 0x1",
    "0x1\n",
    "１",
    [],
    {},
    [[]],
    "0x" + "f" * 65,
]


def always(value: Any) -> Lie:
    return lambda _params, _truth: copy.deepcopy(value)


def changed(**fields: Any) -> Lie:
    """Change fields of an object, or of every object in a list."""

    def lie(_params: list[Any], truth: Any) -> Any:
        if isinstance(truth, list):
            return [item | fields for item in truth]
        return truth if truth is None else truth | fields

    return lie


def in_logs(**fields: Any) -> Lie:
    """Change fields of every log of a receipt."""
    return lambda _, truth: truth | {"logs": [log | fields for log in truth["logs"]]}


def doubled(_params: list[Any], truth: list[Any]) -> list[Any]:
    return truth * 20


def refuse(_params: list[Any], _truth: Any) -> Any:
    raise Refusal(-32000, "no")


@dataclass
class Case:
    """Three things that can be true of an authorization."""

    chain: Chain
    a: Authorization
    truth: Evidence


def _settled(hinted: bool) -> Case:
    chain = Chain()
    tx = chain.add(1010, used(A), moved(A))
    a = replace(A, transaction=tx if hinted else None)
    return Case(chain, a, Settled(transaction=tx, block=1010, amount=A.amount))


def _canceled() -> Case:
    chain = Chain()
    tx = chain.add(1010, canceled(A))
    return Case(chain, A, Canceled(transaction=tx, block=1010))


CASES: dict[str, Callable[[], Case]] = {
    "settled": lambda: _settled(False),
    "hinted": lambda: _settled(True),
    "canceled": _canceled,
    "unused": lambda: Case(Chain(), A, Unused(block=1095, block_time=at(1095))),
}

LOG: dict[str, Any] = {
    "address": OTHER,
    "topics": [USED, word(OTHER), A.nonce.lower()],
    "blockNumber": hex(5),
    "blockHash": "0x" + "11" * 32,
    "transactionHash": "0x" + "22" * 32,
    "removed": True,
}

LIES: list[tuple[str, str, str, Lie, str]] = [
    # name, what is true, method, lie, and what the reason says
    ("another chain", "unused", "eth_chainId", always("0x1"), "serves chain 1, not 8453"),
    ("another chain", "hinted", "eth_chainId", always("0x1"), "serves chain 1, not 8453"),
    ("head beyond blocks", "unused", "eth_blockNumber", always("0xffffff"), "lags"),
    ("no blocks", "unused", "eth_getBlockByNumber", always(None), "lags"),
    ("another block", "unused", "eth_getBlockByNumber", changed(number="0x7"), "block 7 for"),
    ("not a bool", "unused", "eth_call", always(word(2)), "neither true nor false"),
    ("short bool", "unused", "eth_call", always("0x0"), "garbage"),
    ("no contract", "unused", "eth_call", always("0x"), "garbage"),
    ("two words", "unused", "eth_call", always(NO + NO[2:]), "garbage"),
    ("call refused", "unused", "eth_call", refuse, "refused eth_call"),
    ("logs refused", "unused", "eth_getLogs", refuse, "refused eth_getLogs"),
    ("used by state only", "unused", "eth_call", always(YES), "was not found"),
    ("unused by state only", "settled", "eth_call", always(NO), "contradiction"),
    ("unused by state only", "canceled", "eth_call", always(NO), "contradiction"),
    ("logs hidden", "settled", "eth_getLogs", always([]), "was not found"),
    ("logs of a replaced block", "settled", "eth_getLogs", changed(removed=True), "was not found"),
    ("logs oddly removed", "settled", "eth_getLogs", changed(removed=None), "was not found"),
    ("log of another token", "settled", "eth_getLogs", changed(address=OTHER), "not asked for"),
    ("log of another block", "settled", "eth_getLogs", changed(blockNumber="0x1"), "not asked for"),
    (
        "log of another event",
        "settled",
        "eth_getLogs",
        changed(topics=[TRANSFER, *LOG["topics"][1:]]),
        "not asked for",
    ),
    ("log of another payer", "settled", "eth_getLogs", changed(topics=LOG["topics"]), "not asked"),
    ("too few topics", "settled", "eth_getLogs", changed(topics=[USED]), "not asked for"),
    (
        "cancelled as used",
        "canceled",
        "eth_getLogs",
        changed(topics=[USED, word(A.payer), A.nonce.lower()]),
        "missing from its transaction",
    ),
    (
        "used as cancelled",
        "settled",
        "eth_getLogs",
        changed(topics=[CANCELED, word(A.payer), A.nonce.lower()]),
        "missing from its transaction",
    ),
    ("log without a block", "settled", "eth_getLogs", changed(blockHash=None), "garbage"),
    (
        "log of another fork",
        "settled",
        "eth_getLogs",
        changed(blockHash=LOG["blockHash"]),
        "missing from its transaction",
    ),
    (
        "log of another transaction",
        "settled",
        "eth_getLogs",
        changed(transactionHash=LOG["transactionHash"]),
        "has not succeeded",
    ),
    ("a log twenty times", "settled", "eth_getLogs", doubled, "more events"),
    ("a cancellation twice", "canceled", "eth_getLogs", lambda _, t: t * 2, "contradiction"),
    ("a million logs", "settled", "eth_getLogs", lambda _, t: t * 100_000, "bytes"),
    ("no receipt", "settled", "eth_getTransactionReceipt", always(None), "has not succeeded"),
    ("no receipt", "canceled", "eth_getTransactionReceipt", always(None), "has not succeeded"),
    ("failed", "settled", "eth_getTransactionReceipt", changed(status="0x0"), "not succeeded"),
    ("failed", "canceled", "eth_getTransactionReceipt", changed(status="0x0"), "not succeeded"),
    ("odd status", "settled", "eth_getTransactionReceipt", changed(status="0x2"), "not succeeded"),
    ("no status", "settled", "eth_getTransactionReceipt", changed(status=None), "garbage"),
    (
        "unconfirmed receipt",
        "settled",
        "eth_getTransactionReceipt",
        lambda _, t: t | {"blockNumber": hex(1099), "logs": []},
        "not succeeded",
    ),
    (
        "pending receipt",
        "settled",
        "eth_getTransactionReceipt",
        changed(blockNumber=None),
        "garbage",
    ),
    (
        "another receipt",
        "hinted",
        "eth_getTransactionReceipt",
        changed(transactionHash=LOG["transactionHash"], logs=[]),
        "another transaction's receipt",
    ),
    (
        "replaced block",
        "settled",
        "eth_getTransactionReceipt",
        lambda _, t: (
            t
            | {
                "blockHash": LOG["blockHash"],
                "logs": [g | {"blockHash": LOG["blockHash"]} for g in t["logs"]],
            }
        ),
        "missing from its transaction",
    ),
    (
        "replaced block",
        "hinted",
        "eth_getTransactionReceipt",
        lambda _, t: (
            t
            | {
                "blockHash": LOG["blockHash"],
                "logs": [g | {"blockHash": LOG["blockHash"]} for g in t["logs"]],
            }
        ),
        "was replaced",
    ),
    (
        "log from elsewhere",
        "hinted",
        "eth_getTransactionReceipt",
        in_logs(blockHash=LOG["blockHash"]),
        "another place",
    ),
    (
        "log from elsewhere",
        "hinted",
        "eth_getTransactionReceipt",
        in_logs(transactionHash=LOG["transactionHash"]),
        "another place",
    ),
    ("removed log", "hinted", "eth_getTransactionReceipt", in_logs(removed=True), "another place"),
    (
        "receipt without logs",
        "settled",
        "eth_getTransactionReceipt",
        changed(logs=[]),
        "missing from its transaction",
    ),
    ("odd data", "settled", "eth_getTransactionReceipt", in_logs(data="0xg"), "garbage"),
    ("odd data", "settled", "eth_getTransactionReceipt", in_logs(data=None), "garbage"),
    (
        "short data",
        "settled",
        "eth_getTransactionReceipt",
        lambda _, t: t | {"logs": [t["logs"][0], t["logs"][1] | {"data": hex(A.amount)}]},
        "PAYMENT MISMATCH",
    ),
]


@pytest.mark.parametrize(
    ("true", "method", "lie", "said"),
    [pytest.param(*row[1:], id=f"{row[1]}: {row[0]} {i}") for i, row in enumerate(LIES)],
)
def test_a_lie_is_found_out(reader: Ask, true: str, method: str, lie: Lie, said: str) -> None:
    """Without the lie the truth, with it Unknown; beside an honest endpoint never a third."""
    case = CASES[true]()
    with nodes(case.chain, case.chain) as (honest, liar):
        assert reader(liar).evidence(case.a) == case.truth
        liar.lies[method] = lie
        answer = reader(liar).evidence(case.a)
        assert isinstance(answer, Unknown), answer
        assert said in answer.reason
        answer = reader(honest, liar).evidence(case.a)
        assert answer == case.truth or isinstance(answer, Unknown)


@pytest.mark.parametrize("true", ["settled", "canceled"])
def test_logs_and_receipt_of_a_replaced_block(reader: Ask, true: str) -> None:
    """They agree with each other, but not with the chain."""
    case = CASES[true]()
    with Node(case.chain) as node:
        other = {"blockHash": LOG["blockHash"]}
        node.lies["eth_getLogs"] = changed(**other)
        node.lies["eth_getTransactionReceipt"] = lambda _, truth: (
            truth | other | {"logs": [log | other for log in truth["logs"]]}
        )
        answer = reader(node).evidence(case.a)
        assert isinstance(answer, Unknown)
        assert "in a block that was replaced" in answer.reason


@pytest.mark.parametrize("hinted", [False, True])
def test_state_of_the_head_instead_of_the_confirmed_block(
    node: Node, reader: Ask, hinted: bool
) -> None:
    """A node that ignores which block it was asked about: the margin holds all the same."""
    node.chain.height = 1012
    tx = node.chain.add(1010, used(A), moved(A))
    a = replace(A, transaction=tx if hinted else None)
    node.lies["eth_call"] = always(YES)
    answer = reader(node).evidence(a)
    assert isinstance(answer, Unknown)
    assert "was not found" in answer.reason
    node.chain.height = 1015
    assert isinstance(reader(node).evidence(a), Settled)


def test_a_failed_transaction_with_logs_is_not_seen(node: Node, reader: Ask) -> None:
    tx = node.chain.add(1010, used(A), moved(A))
    node.lies["eth_getTransactionReceipt"] = changed(status="0x0")
    answer = reader(node).seen(replace(A, transaction=tx))
    assert isinstance(answer, Unknown)
    assert "failed" in answer.reason


@pytest.mark.parametrize(
    "method", ["eth_chainId", "eth_blockNumber", "eth_getBlockByNumber", "eth_call", "eth_getLogs"]
)
@pytest.mark.parametrize("value", GARBAGE, ids=repr)
def test_garbage_frees_nothing(node: Node, reader: Ask, method: str, value: Any) -> None:
    if method == "eth_getLogs" and value == []:
        pytest.skip("the true answer")
    node.lies[method] = always(value)
    assert isinstance(reader(node).evidence(A), Unknown)


@pytest.mark.parametrize("field", ["hash", "number", "timestamp"])
@pytest.mark.parametrize("value", GARBAGE, ids=repr)
def test_garbage_in_a_header(node: Node, reader: Ask, field: str, value: Any) -> None:
    node.lies["eth_getBlockByNumber"] = changed(**{field: value})
    assert isinstance(reader(node).evidence(A), Unknown)


def test_times_that_fall(node: Node, reader: Ask) -> None:
    """Would hide the blocks in which the event is."""

    def lie(params: list[Any], truth: Any) -> Any:
        number = int(params[0], 16)
        return truth if number > 1090 else truth | {"timestamp": hex(at(1100) + 5000 - number)}

    node.lies["eth_getBlockByNumber"] = lie
    answer = reader(node).evidence(A)
    assert isinstance(answer, Unknown) and "times fall" in answer.reason


def test_many_blocks_of_one_second(node: Node, reader: Ask) -> None:
    """Equal times are allowed: some chains have several blocks a second."""
    tx = node.chain.add(1010, used(A), moved(A))
    node.lies["eth_getBlockByNumber"] = lambda params, truth: (
        truth | {"timestamp": hex(at(int(params[0], 16) // 10 * 10))}
    )
    assert reader(node).evidence(A) == Settled(transaction=tx, block=1010, amount=A.amount)


@pytest.mark.parametrize("true", ["settled", "hinted", "canceled", "unused"])
def test_a_reorganisation_meanwhile(reader: Ask, true: str) -> None:
    """The confirmed block is replaced after the state was read: nothing is concluded."""
    case = CASES[true]()
    with Node(case.chain) as node:

        def reorganise(params: list[Any], truth: Any) -> Any:
            node.chain.fork = "new"
            return truth

        node.lies["eth_call"] = reorganise
        answer = reader(node).evidence(case.a)
        assert isinstance(answer, Unknown)
        assert "replaced" in answer.reason or "missing from" in answer.reason
        assert reader(node).evidence(case.a) == case.truth, "the new fork says the same"


def test_a_payment_that_a_reorganisation_undoes(reader: Ask) -> None:
    chain = Chain(height=1010)
    tx = chain.add(1010, used(A), moved(A))
    a = replace(A, transaction=tx)
    with Node(chain) as node:
        made = reader(node)
        assert isinstance(made.seen(a), Settled)
        assert "not expired" in str(made.evidence(a))
        chain.fork, chain.transactions, chain.height = "new", {}, 1050
        assert isinstance(made.seen(a), Unknown)
        assert isinstance(made.evidence(a), Unused)


def test_the_future_frees_nothing_unless_all_say_so(reader: Ask) -> None:
    """One endpoint pretends that time has passed."""
    with nodes(Chain(height=1010), Chain(height=1010)) as (honest, liar):
        liar.lies["eth_getBlockByNumber"] = lambda params, truth: (
            truth | {"timestamp": hex(at(int(params[0], 16)) + 90 * BLOCK_S)}
        )
        for pair in ((honest, liar), (liar, honest)):
            answer = reader(*pair).evidence(A)
            assert isinstance(answer, Unknown) and "disagree" in answer.reason


# -- fuzz ------------------------------------------------------------------------------------------

METHODS = sorted(name for name in vars(Chain) if name.startswith("eth_"))
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-(2**80), 2**80)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
    | st.sampled_from(["0x", "0x0", "0x1", NO, YES, USED, CANCELED, A.nonce, "0x" + "ff" * 40])
    | st.integers(0, 2**70).map(hex)
)
JSON = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.text(max_size=4) | st.sampled_from(["logs", "hash"]), inner, max_size=4
        )
    ),
    max_leaves=12,
)


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[Node, Node, ChainReader, ChainReader]]:
    """Return an honest node and a liar, and readers of the liar alone and of both."""
    with (
        nodes(Chain(), Chain()) as (honest, liar),
        closing(ChainReader({NETWORK: liar.url}, margin_blocks=5)) as alone,
        closing(ChainReader({NETWORK: [honest.url, liar.url]}, margin_blocks=5)) as both,
    ):
        yield honest, liar, alone, both


FUZZ = settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@FUZZ
@given(true=st.sampled_from(sorted(CASES)), method=st.sampled_from(METHODS), value=JSON)
def test_any_json_as_any_answer(
    pair: tuple[Node, Node, ChainReader, ChainReader], true: str, method: str, value: Any
) -> None:
    honest, liar, alone, both = pair
    case = CASES[true]()
    honest.chain = liar.chain = case.chain
    liar.lies = {method: always(value)}
    assert isinstance(alone.evidence(case.a), Evidence)
    answer = both.evidence(case.a)
    assert answer == case.truth or isinstance(answer, Unknown)
    hinted = replace(case.a, transaction=getattr(case.truth, "transaction", None))
    seen = both.seen(hinted)
    assert seen == case.truth or isinstance(seen, Unknown)


@FUZZ
@given(
    true=st.sampled_from(sorted(CASES)),
    method=st.sampled_from(METHODS),
    value=LEAVES,
    seed=st.integers(0, 2**32),
)
def test_one_changed_leaf_in_any_answer(
    pair: tuple[Node, Node, ChainReader, ChainReader],
    true: str,
    method: str,
    value: Any,
    seed: int,
) -> None:
    """Nearly true answers: one value somewhere inside is another."""
    honest, liar, _alone, both = pair
    case = CASES[true]()
    honest.chain = liar.chain = case.chain
    rng = random.Random(seed)
    liar.lies = {method: lambda _params, truth: _mutated(truth, value, rng)}
    answer = both.evidence(case.a)
    assert answer == case.truth or isinstance(answer, Unknown)


def _mutated(truth: Any, value: Any, rng: random.Random) -> Any:
    if isinstance(truth, dict) and truth and rng.random() < 0.9:
        key = rng.choice(sorted(truth))
        return truth | {key: _mutated(truth[key], value, rng)}
    if isinstance(truth, list) and truth and rng.random() < 0.9:
        index = rng.randrange(len(truth))
        return [*truth[:index], _mutated(truth[index], value, rng), *truth[index + 1 :]]
    return value
