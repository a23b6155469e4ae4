"""The chain is asked: what it proves frees and settles; what lies, lags or contradicts does not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from tests.faults.bazaar import MARGIN_BLOCKS, Blocks
from tests.faults.deals import MARGIN, PRICE, SECONDS, WAYS, Deal
from tests.support.chain import NETWORK, Chain
from tests.support.faults import NO_TLS, Lie, LyingRpc, rows, sums
from tests.support.fixtures import needed
from tests.support.seller import (
    Answer,
    Hit,
    Reply,
    Seller,
    offer,
    paywall,
    sequence,
    served,
    v2_header,
)
from x402_mask import Client, Payer, PaymentRefused, Wallet

pytestmark = pytest.mark.chain
FALSE = "0x" + "0" * 64


@pytest.fixture(scope="module")
def blocks() -> Iterator[Blocks]:
    """A chain for this module, whose time moves only when it is told to."""
    with needed(Chain.start) as chain:
        driven = Blocks(chain)
        yield driven
        driven.close()


class OnChain(Deal):
    """A deal whose payer keeps the chain's time and asks it."""

    blocks: Blocks
    stack: ExitStack

    def payer(self, *urls: str, **options: Any) -> Payer:
        """A payer that asks these endpoints, by default the honest one."""
        with self.blocks.mined_at_once() as chain:
            if not hasattr(self, "account"):
                self.account = chain.account(usdc=10**6)
        options.setdefault("clock", lambda: float(self.blocks.now) + self.ahead)
        options.setdefault("rpc", {NETWORK: list(urls) or self.blocks.chain.url})
        made = super().payer(wallet=Wallet.from_key(bytes(self.account.key)), **options)
        self.stack.callback(made.close)
        return made

    def settle(self) -> str:
        """Take the money of the only proof that was shown."""
        transaction = self.blocks.submit(self.seller.proofs()[0])
        self.blocks.mine()
        assert self.blocks.chain.succeeded(transaction) is True
        return transaction

    def expire(self) -> None:
        """Go past the proof's end and margin, by the clock and by the chain."""
        self.blocks.until(self.blocks.now + SECONDS + MARGIN + 5)
        self.blocks.mine(MARGIN_BLOCKS + 2)


@pytest.fixture
def open_deal(
    seller: Seller, fast_path: Path, blocks: Blocks
) -> Iterator[Callable[..., tuple[OnChain, Payer]]]:
    """Make a deal whose first answer was lost."""
    with ExitStack() as stack:

        def make(
            *urls: str, first: Answer = WAYS["dropped"], **options: Any
        ) -> tuple[OnChain, Payer]:
            deal = OnChain(seller, fast_path, first, **options)
            deal.blocks, deal.stack = blocks, stack
            payer = deal.payer(*urls)
            assert deal.call(payer, timeout=5) != "200"
            deal.check(1, 1)
            return deal, payer

        yield make


Opener = Callable[..., tuple[OnChain, Payer]]


def states(payer: Payer) -> list[tuple[str, str | None]]:
    """State and transaction of each payment, oldest first."""
    return [(p.state, p.transaction) for p in reversed(payer.payments())]


# --- after expiry the chain is asked first --------------------------------------------------------


def test_an_unused_proof_is_void_and_makes_room(open_deal: Opener) -> None:
    """A cap for one: the identical call asks the chain, which frees the first, and signs anew."""
    deal, payer = open_deal()
    deal.expire()
    assert deal.call(payer, timeout=5) == "200"
    assert len(deal.seller.authorizations()) == 2
    assert [state for state, _ in states(payer)] == ["void", "held"]
    assert sums(deal.path).counted == PRICE
    old, new = sorted(deal.seller.authorizations(), key=lambda one: one.valid_before)
    assert old.valid_before + MARGIN < new.valid_before - SECONDS + 1, "two at a time"


def test_a_used_proof_is_settled_and_not_paid_for_again(open_deal: Opener) -> None:
    """A cap for two: the chain proves that the first was taken, so nothing new is signed.

    An identical call buys again a day after that was first said; one with a key of its own at once.
    """
    deal, payer = open_deal(prices=3)
    transaction = deal.settle()
    deal.expire()
    for _ in range(2):
        with Client(payer, verify=NO_TLS) as client, pytest.raises(PaymentRefused) as caught:
            client.get(deal.url)
        (payment,) = payer.payments()
        refused = (caught.value.reason, caught.value.payment_id, caught.value.at_risk)
        assert refused == ("paid_before", payment.payment_id, False)
    assert states(payer) == [("settled", transaction)]
    deal.check(1, 1)
    keyed = {"extensions": {"x402_mask": {"operation": "another"}}}
    assert deal.call(payer, timeout=5, **keyed) == "200"
    deal.ahead = 25 * 3600
    assert deal.call(payer, timeout=5) == "200"
    assert len(deal.seller.authorizations()) == 3


def test_a_key_whose_payment_is_proven_settled_never_pays_again(open_deal: Opener) -> None:
    """However long ago that was first said."""
    deal, payer = open_deal(prices=3)
    keyed = {"extensions": {"x402_mask": {"operation": "once"}}}
    answers = sequence(WAYS["dropped"], served())
    deal.url = deal.seller.on("/keyed", paywall(v2_header(offer(str(PRICE))), answers))
    assert deal.call(payer, timeout=5, **keyed) != "200"
    transaction = deal.blocks.submit(deal.seller.proofs()[-1])
    deal.blocks.mine()
    deal.expire()
    for late in (0, 25 * 3600, 250 * 3600):
        deal.ahead = late
        assert deal.call(payer, timeout=5, **keyed) == "PaymentRefused"
    assert ("settled", transaction) in states(payer)
    assert len(deal.seller.authorizations()) == 2


def test_expired_by_the_clock_is_not_expired_on_chain(open_deal: Opener) -> None:
    """The buyer's clock runs ahead: the chain has the proof alive, so the same bytes go again."""
    deal, payer = open_deal(prices=2)
    deal.ahead = SECONDS + MARGIN + 5
    assert deal.call(payer, timeout=5) == "200"
    assert states(payer) == [("held", None)]
    deal.check(2, 1)


def test_a_clock_that_steps_within_a_call(open_deal: Opener) -> None:
    """Wherever it does: the chain has the proof alive, and so nothing new is signed."""
    deal, _ = open_deal(prices=9)
    deal.blocks.mine(MARGIN_BLOCKS + 2)
    failing = paywall(v2_header(offer(str(PRICE))), Reply(status=503))
    deal.url, steps = deal.seller.on("/stepping", failing), range(12)
    for step in steps:
        looks = iter(range(1000))

        def clock(step: int = step, looks: Iterator[int] = looks) -> float:
            ahead = SECONDS + MARGIN + 5 if next(looks) >= step else 0
            return float(deal.blocks.now) + (ahead if step else 0)

        assert deal.call(deal.payer(clock=clock), timeout=5) == "503"
    assert len(deal.seller.authorizations()) == 2, "of the deal's first call, and of these"


def test_a_proof_that_another_call_lost_while_the_owner_thought(open_deal: Opener) -> None:
    """It was signed, taken and expired meanwhile: the chain is asked before anything is signed."""
    deal, _ = open_deal(prices=9)
    lost = sequence(WAYS["dropped"], served())
    deal.url = deal.seller.on("/slow", paywall(v2_header(offer(str(PRICE))), lost))
    keyed = {"extensions": {"x402_mask": {"operation": "once"}}}

    def think(_: object) -> bool:
        assert deal.call(deal.payer(), timeout=5, **keyed) != "200"
        deal.blocks.submit(deal.seller.proofs()[-1])
        deal.blocks.mine()
        deal.expire()
        return True

    thoughts = [think]
    payer = deal.payer(approve=lambda quote: thoughts.pop()(quote) if thoughts else True)
    with Client(payer, verify=NO_TLS) as client, pytest.raises(PaymentRefused) as caught:
        client.get(deal.url, **keyed)
    assert caught.value.reason == "paid_before"
    assert len(deal.seller.authorizations()) == 2, "of the deal's first call, and of the other"


def test_expired_but_not_deep_enough(open_deal: Opener) -> None:
    """The block past ``validBefore`` could still be replaced."""
    deal, payer = open_deal(prices=2)
    deal.blocks.until(deal.blocks.now + SECONDS + MARGIN + 5)
    deal.blocks.mine(MARGIN_BLOCKS - 1)
    assert [answer.state for answer in payer.reconcile()] == ["held"]
    assert deal.call(payer, timeout=5) == "200"
    deal.check(2, 1)


def test_a_dead_endpoint_frees_nothing(open_deal: Opener) -> None:
    """Nobody listens there."""
    deal, _ = open_deal("http://127.0.0.1:9")
    deal.expire()
    payer = deal.payer("http://127.0.0.1:9")
    assert deal.call(payer, timeout=5) == "CapExceeded"
    (answer,) = payer.reconcile()
    assert answer.state == "held" and answer.detail
    deal.check(1, 1)


def test_the_same_bytes_although_they_were_used(open_deal: Opener) -> None:
    """Settled on chain, not delivered: the operation stays open until it expires."""
    deal, payer = open_deal()
    transaction = deal.settle()
    deal.blocks.mine(MARGIN_BLOCKS + 1)
    (answer,) = payer.reconcile()
    assert (answer.state, answer.transaction) == ("settled", transaction)
    (payment,) = payer.payments()
    assert payment.open
    assert deal.call(payer, timeout=5) == "200"
    deal.check(2, 1)


def test_a_cancelled_proof_is_void_once_it_has_expired(open_deal: Opener) -> None:
    """It can never be used; but an endpoint that lies could say so of one that is alive."""
    deal, payer = open_deal()
    (payment,) = payer.payments()
    with deal.blocks.mined_at_once() as chain:
        cancelled = chain.cancel_authorization(deal.account, str(payment.nonce))
    assert [answer.state for answer in payer.reconcile()] == ["held"], "not deep enough yet"
    deal.blocks.mine(MARGIN_BLOCKS + 1)
    (answer,) = payer.reconcile()
    assert answer.state == "held" and "by this machine's clock" in answer.detail
    assert "cancelled on chain" in answer.detail and sums(deal.path).counted == PRICE
    deal.expire()
    (answer,) = payer.reconcile()
    assert (answer.state, answer.transaction) == ("void", cancelled)
    assert sums(deal.path).counted == 0
    assert deal.call(payer, timeout=5) == "200"
    assert len(deal.seller.authorizations()) == 2 and sums(deal.path).counted == PRICE


# --- what a seller says is checked ----------------------------------------------------------------


def test_a_settlement_is_believed_when_it_is_seen(open_deal: Opener, blocks: Blocks) -> None:
    """Told before it is mined: held; mined: settled, with the right transaction."""
    told: list[str] = []

    def script(hit: Hit) -> Reply:
        told.append(blocks.submit(hit.proof))
        if len(told) > 1:
            blocks.mine()
        return served(changes={"transaction": told[-1]})(hit)

    deal, _ = open_deal(prices=3)
    deal.url = deal.seller.on("/told", paywall(v2_header(offer(str(PRICE))), script))
    payer = deal.payer()
    assert deal.call(payer, timeout=5) == "200"
    assert states(payer)[1][0] == "held"
    blocks.mine()
    assert deal.call(payer, timeout=5) == "200"
    assert states(payer)[2] == ("settled", told[1])
    deal.expire()
    payer.reconcile()
    assert states(payer) == [("void", None), ("settled", told[0]), ("settled", told[1])]


def test_a_settlement_that_a_reorganisation_takes_back(open_deal: Opener, blocks: Blocks) -> None:
    """Seen at depth 0, then gone: the ledger follows the chain once that is confirmed."""
    snapshots: list[str] = []

    def script(hit: Hit) -> Reply:
        snapshots.append(blocks.chain.snapshot())
        transaction = blocks.submit(hit.proof)
        blocks.mine()
        return served(changes={"transaction": transaction})(hit)

    deal, _ = open_deal(prices=2)
    deal.url = deal.seller.on("/told", paywall(v2_header(offer(str(PRICE))), script))
    payer = deal.payer()
    assert deal.call(payer, timeout=5) == "200"
    assert states(payer)[1][0] == "settled"
    blocks.chain.revert(snapshots[0])
    blocks.rpc("anvil_dropAllTransactions")
    deal.expire()
    payer.reconcile()
    nonce = str(payer.payments()[0].nonce)
    assert not blocks.chain.authorization_state(deal.account.address, nonce)
    assert [state for state, _ in states(payer)] == ["void", "void"]


# --- endpoints that cannot be trusted -------------------------------------------------------------


def unused(method: str, params: list[Any], truth: Any) -> Any:
    """Says that nothing was ever used, consistently."""
    if method == "eth_call":
        return FALSE
    if method == "eth_getLogs":
        return []
    return None if method == "eth_getTransactionReceipt" else truth


def state_only(method: str, params: list[Any], truth: Any) -> Any:
    """Says unused, but shows the event."""
    return FALSE if method == "eth_call" else truth


def logs_only(method: str, params: list[Any], truth: Any) -> Any:
    """Says used, but hides the event and the receipt."""
    if method == "eth_getLogs":
        return []
    return b'{"jsonrpc":"2.0","id":0,"result":null}' if "Receipt" in method else truth


def behind(method: str, params: list[Any], truth: Any) -> Any:
    """Is a thousand blocks behind."""
    if method == "eth_blockNumber":
        return hex(max(0, int(truth, 16) - 1000))
    return truth


def in_the_future(method: str, params: list[Any], truth: Any) -> Any:
    """Every block is an hour later than it is, and nothing was used."""
    if method == "eth_getBlockByNumber" and truth:
        return {**truth, "timestamp": hex(int(truth["timestamp"], 16) + 3600)}
    return unused(method, params, truth)


def other_chain(method: str, params: list[Any], truth: Any) -> Any:
    """Serves a test chain, where nothing was used."""
    return "0x14a34" if method == "eth_chainId" else unused(method, params, truth)


def other_receipt(method: str, params: list[Any], truth: Any) -> Any:
    """The receipt is of a transaction that failed."""
    if method == "eth_getTransactionReceipt" and truth:
        return {**truth, "status": "0x0", "logs": []}
    return truth


def other_amount(method: str, params: list[Any], truth: Any) -> Any:
    """The transfer moved another amount."""
    if method == "eth_getTransactionReceipt" and truth:
        logs = [{**log, "data": "0x" + f"{1:064x}"} for log in truth["logs"]]
        return {**truth, "logs": logs}
    return truth


def removed(method: str, params: list[Any], truth: Any) -> Any:
    """Every log was removed by a reorganisation."""
    if method == "eth_getLogs":
        return [{**log, "removed": True} for log in truth]
    return truth


def garbage(body: bytes) -> Lie:
    """Answers this, whatever the question."""
    return lambda method, params, truth: body


def garbage_for(wanted: str, result: Any) -> Lie:
    """Answers one method with this."""
    return lambda method, params, truth: result if method == wanted else truth


SINGLE: dict[str, Lie] = {
    "state-only": state_only,
    "logs-only": logs_only,
    "behind": behind,
    "other-chain": other_chain,
    "other-receipt": other_receipt,
    "other-amount": other_amount,
    "removed": removed,
    "empty": garbage(b""),
    "html": garbage(b"<html>rate limited</html>"),
    "array": garbage(b"[]"),
    "null": garbage(b"null"),
    "deep": garbage(b"[" * 100_000),
    "error": garbage(b'{"jsonrpc":"2.0","id":1,"error":{"code":-32005,"message":"limit"}}'),
    "other-id": garbage(b'{"jsonrpc":"2.0","id":99999,"result":"0x0"}'),
    "hangs-up": lambda method, params, truth: None,
    "short-word": garbage_for("eth_call", "0x"),
    "two": garbage_for("eth_call", "0x" + f"{2:064x}"),
    "text-number": garbage_for("eth_blockNumber", "latest"),
    "negative": garbage_for("eth_blockNumber", "-0x1"),
    "huge-number": garbage_for("eth_blockNumber", "0x" + "f" * 64),
    "block-of-lists": garbage_for("eth_getBlockByNumber", [[]]),
    "logs-of-text": garbage_for("eth_getLogs", ["x"]),
}
"""What one endpoint alone must not free a used authorization with."""

PAIRED: dict[str, Lie] = {"unused": unused, "in-the-future": in_the_future, "behind": behind}
"""Consistent lies: one endpoint alone would be believed, two must agree."""


def doubted(deal: OnChain, payer: Payer) -> None:
    """Nothing was freed, nothing called settled; it says why; and nothing more can be bought."""
    answers = payer.reconcile()
    assert [(answer.state, answer.transaction) for answer in answers] == [("held", None)]
    assert answers[0].detail
    assert states(payer) == [("held", None)]
    (spend,) = payer.spend()
    assert (spend.held, spend.left) == (spend.limit, 0)
    assert deal.call(payer, timeout=5) == "CapExceeded"
    deal.check(1, 1)


@pytest.mark.parametrize("lie", SINGLE)
def test_one_endpoint_that_contradicts_itself(open_deal: Opener, blocks: Blocks, lie: str) -> None:
    """The money moved; no lie frees it; and when it is honest again, it is found settled."""
    with LyingRpc(blocks.chain.url) as endpoint:
        deal, payer = open_deal(endpoint.url)
        transaction = deal.settle()
        deal.expire()
        endpoint.lie = SINGLE[lie]
        doubted(deal, payer)
        endpoint.lie = lambda method, params, truth: truth
        (answer,) = payer.reconcile()
        assert (answer.state, answer.transaction) == ("settled", transaction)


@pytest.mark.parametrize("lie", PAIRED)
@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("used", [True, False])
def test_two_endpoints_that_disagree(
    open_deal: Opener, blocks: Blocks, lie: str, order: int, used: bool
) -> None:
    """One honest, one consistent liar: neither settled nor void, in whatever order."""
    with LyingRpc(blocks.chain.url) as endpoint:
        urls = [blocks.chain.url, endpoint.url][::order]
        deal, payer = open_deal(*urls)
        transaction = deal.settle() if used else None
        deal.expire()
        if used or lie != "unused":  # else it is no lie
            endpoint.lie = PAIRED[lie]
            doubted(deal, payer)
        endpoint.lie = lambda method, params, truth: truth
        (answer,) = payer.reconcile()
        assert (answer.state, answer.transaction) == ("settled" if used else "void", transaction)


@pytest.mark.parametrize("urls", ["one", "two"])
def test_a_settlement_that_never_was_is_not_believed(
    open_deal: Opener, blocks: Blocks, urls: str
) -> None:
    """A transaction that paid somebody else, shown as ours by one endpoint of two, or by the seller."""
    with LyingRpc(blocks.chain.url) as endpoint:
        deal, payer = open_deal(*([endpoint.url, blocks.chain.url] if urls == "two" else []))
        with blocks.mined_at_once() as chain:
            other = chain.account(usdc=PRICE)
            signed = chain.sign_transfer(other, deal.seller.authorizations()[0].to, PRICE)
            paid = chain.transfer_with_authorization(signed.authorization, signed.signature)
        claim = served(changes={"transaction": paid})
        deal.seller.on("/paid", paywall(v2_header(offer(str(PRICE))), claim))
        truth = blocks.rpc("eth_getTransactionReceipt", paid)
        payee = "0x" + "0" * 24 + deal.account.address[2:].lower()
        forged = [
            {**log, "topics": [topic if n != 1 else payee for n, topic in enumerate(log["topics"])]}
            for log in truth["logs"]
        ]
        endpoint.lie = garbage_for("eth_getTransactionReceipt", {**truth, "logs": forged})
        assert deal.call(payer, timeout=5) == "200"
        assert states(payer) == [("held", None)]


# --- what reconcile() says is what it did ---------------------------------------------------------


def test_the_audit_of_a_reconciliation(open_deal: Opener) -> None:
    """The answer, the rows, the events and the history say the same, once."""
    deal, payer = open_deal(prices=4)
    deal.seller.on("/paid", paywall(v2_header(offer(str(PRICE))), Reply(status=503)))
    transaction = deal.settle()
    urls = [
        deal.seller.on(f"/more/{n}", paywall(v2_header(offer(str(PRICE))), Reply(status=503)))
        for n in range(2)
    ]
    for deal.url in urls:
        assert deal.call(payer, timeout=5) == "503"
    deal.expire()
    events: list[Any] = []
    observer = deal.payer(on_event=events.append)
    answers = observer.reconcile()
    assert [answer.state for answer in answers] == ["settled", "void", "void"]
    assert [answer.transaction for answer in answers] == [transaction, None, None]
    ids = [payment.payment_id for payment in reversed(payer.payments())]
    assert [answer.payment_id for answer in answers] == ids
    assert states(payer) == [("settled", transaction), ("void", None), ("void", None)]
    seen = [(e.payment_id, e.detail["state"]) for e in events if e.kind == "reconciled"]
    assert seen == list(zip(ids, ["settled", "void", "void"], strict=True))
    sql = "SELECT payment, data FROM history WHERE kind='reconciled' ORDER BY seq"
    assert [payment for payment, _ in rows(deal.path, sql)] == ids
    (spend,) = payer.spend()
    assert (spend.settled * 10**6, spend.held) == (PRICE, 0)
    assert observer.reconcile() == payer.reconcile() == []


def test_two_reconcile_at_once(open_deal: Opener) -> None:
    """Each payment changes once, and counts once."""
    deal, first = open_deal(prices=6)
    answer = paywall(v2_header(offer(str(PRICE))), Reply(status=503))
    for number in range(5):
        deal.url = deal.seller.on(f"/more/{number}", answer)
        assert deal.call(first, timeout=5) == "503"
    deal.settle()
    deal.expire()
    second = deal.payer()
    threads = [Thread(target=payer.reconcile) for payer in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    (spend,) = first.spend()
    assert (spend.settled * 10**6, spend.held) == (PRICE, 0)
    sql = "SELECT payment, COUNT(*) FROM history WHERE kind='reconciled' GROUP BY payment"
    assert [times for _, times in rows(deal.path, sql)] == [1] * 6


def test_a_call_in_flight_is_not_voided_under_its_caller(open_deal: Opener, blocks: Blocks) -> None:
    """Reconciling while a seller is slow: its settlement is still written down."""
    told: list[str] = []

    def slow(hit: Hit) -> Reply:
        told.append(blocks.submit(hit.proof))
        blocks.mine(MARGIN_BLOCKS + 1)
        answers.extend(other.reconcile())
        return served(changes={"transaction": told[0]})(hit)

    answers: list[Any] = []
    deal, _ = open_deal(prices=2)
    other = deal.payer()
    deal.url = deal.seller.on("/slow", paywall(v2_header(offer(str(PRICE))), slow))
    payer = deal.payer()
    assert deal.call(payer, timeout=10) == "200"
    assert [answer.state for answer in answers] == ["held", "settled"]
    assert states(payer)[1] == ("settled", told[0])
    assert not payer.payments()[0].open
