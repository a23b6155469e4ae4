"""What became of payments by transfer: only the chain's proof settles or frees them."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.chain import NETWORK, Chain
from tests.transfers.conftest import BuyerFor
from tests.transfers.kit import PRICE, Buyer
from tests.transfers.test_sender import BLACKLIST, admin, send_other
from x402_mask import Cap, MemoryLedger, Payer, Resolved, Wallet
from x402_mask._ledger.audit import verify
from x402_mask._ledger.records import Result
from x402_mask._payer import buyer_of

pytestmark = [pytest.mark.chain, pytest.mark.timeout(60, func_only=True)]

DEEP = 13


def payer_of(b: Buyer) -> Payer:
    return Payer(
        Wallet.from_key(b.account.key),
        caps=[Cap("5", per="total")],
        origins=["https://h.example"],
        ledger=b.ledger,
        rpc={NETWORK: b.chain.url},
    )


def reconciled(b: Buyer) -> Resolved:
    with payer_of(b) as payer:
        (found,) = payer.reconcile()
    report = verify(b.ledger)
    assert report.ok, report.problems
    return found


def test_what_was_paid_is_settled_at_depth(chain: Chain, buyer: BuyerFor) -> None:
    chain.mine(DEEP)  # a chain that is younger than the margin proves nothing
    b = buyer()
    sent = b.hold()
    b.sender.carry(sent.terms.payment_id, 10)
    early = reconciled(b)
    assert early.state == "held" and "not confirmed yet" in early.detail
    chain.mine(DEEP)
    found = reconciled(b)
    assert (found.state, found.transaction) == ("settled", sent.hash)
    with payer_of(b) as payer:
        (payment,) = payer.payments()
        assert (payment.state, payment.transaction) == ("settled", sent.hash)
        assert payer.spend()[0].settled == payment.usd
        assert payer.reconcile() == []


def test_a_claim_is_checked(chain: Chain, buyer: BuyerFor) -> None:
    """The marketplace said it was settled; the transfer was displaced."""
    b = buyer()
    sent = b.hold()
    end = Result(outcome="settled", delivered=True)
    b.ledger.finish(sent.terms.payment_id, end, now_us=b.now_us())
    send_other(b, sent.nonce)
    chain.mine(DEEP)
    assert reconciled(b).state == "void"


@pytest.mark.parametrize("how", ["displaced", "reverted"])
def test_what_moved_nothing_is_void_at_depth(chain: Chain, buyer: BuyerFor, how: str) -> None:
    b = buyer()
    sent = b.hold()
    if how == "displaced":
        send_other(b, sent.nonce)
    else:
        admin(chain, BLACKLIST, b.account.address)
        b.sender.carry(sent.terms.payment_id, 0)
    assert reconciled(b).state == "held"
    chain.mine(DEEP)
    found = reconciled(b)
    assert found.state == "void" and ("nonce 0" in found.detail or "reverted" in found.detail)
    with payer_of(b) as payer:
        assert payer.spend()[0].held == payer.spend()[0].settled == 0
    assert b.paid() == []


def test_what_was_never_sent_stays_held_and_unsent(chain: Chain, buyer: BuyerFor) -> None:
    """Asking must not move money; an identical call, or the next transfer, carries it on."""
    b = buyer()
    sent = b.hold()
    chain.mine(DEEP)
    found = reconciled(b)
    assert found.state == "held" and "nonce 0 is unused" in found.detail
    assert b.nonce() == 0
    assert b.sender.carry(sent.terms.payment_id, 10).state == "mined"
    assert b.paid() == [PRICE]


def test_a_chain_that_cannot_be_asked_is_told_apart(chain: Chain, buyer: BuyerFor) -> None:
    b = buyer()
    b.hold()
    chain.mine(DEEP)
    assert reconciled(b).answered
    with Payer(
        Wallet.from_key(b.account.key),
        caps=[Cap("5", per="total")],
        origins=["https://h.example"],
        ledger=b.ledger,
        rpc={NETWORK: "http://127.0.0.1:1"},
    ) as payer:
        (found,) = payer.reconcile()
    assert not found.answered and found.state == "held"


@pytest.mark.parametrize(
    ("wei", "error"),
    [(0, ValueError), (-1, ValueError), (1e15, TypeError), (True, TypeError), ("1", TypeError)],
)
def test_a_limit_that_is_none(wei: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="max_gas_wei"):
        Payer(
            None,
            caps=[Cap("5", per="total")],
            origins=["https://h.example"],
            ledger=MemoryLedger(),
            max_gas_wei=wei,
        )


def test_a_payer_allows_a_thousandth_of_an_ether() -> None:
    with Payer(
        None, caps=[Cap("5", per="total")], origins=["https://h.example"], ledger=MemoryLedger()
    ) as payer:
        assert buyer_of(payer).settings.max_gas_wei == 10**15
        assert buyer_of(payer).transfer_sender().possible(NETWORK) is not None
