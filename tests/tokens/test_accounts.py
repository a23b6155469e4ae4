"""Marketplaces where an account's balance pays a payment by its being made (contract 6.4a).

Nothing but the answer tells that it did: where that is lost, no other payment may be created.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.faults import sums
from tests.support.seller import Reply
from tests.tokens.bazaar import PAYMENTS, PRICE, Bazaar
from tests.tokens.shop import NO_TLS, WALLET, payer
from x402_mask import AsyncClient, Cap, Client, Payer, SQLiteLedger
from x402_mask._ledger.audit import verify
from x402_mask._ledger.records import Busy
from x402_mask._payer import buyer_of
from x402_mask.errors import LedgerError, PaymentRefused, TokenFlowError
from x402_mask.httpx import PaymentTransport

ACCOUNT = {"X-Api-Key": "an account"}
CANNOT_TELL = "a balance may have paid"


class Shop:
    """A marketplace, its buyers' ledger, and a clock that can be put forward."""

    def __init__(self, bazaar: Bazaar, path: Path) -> None:
        self.bazaar, self.ledger, self.late = bazaar, SQLiteLedger(path), 0.0
        bazaar.paid_at = "creation"

    def buyer(self, **options: Any) -> Payer:
        """A buyer with an account, on the one ledger."""
        options.setdefault("marketplace_headers", ACCOUNT)
        return payer(
            self.bazaar,
            ledger=self.ledger,
            clock=lambda: time.time() + self.late,
            poll_unpaid=0.05,
            **options,
        )

    def ask(self, buyer: Payer, number: int = 1) -> str:
        """Make a call; its status, or the error's name."""
        with Client(buyer, timeout=5, verify=NO_TLS) as client:
            try:
                return str(client.get(self.bazaar.url(), params={"n": number}).status_code)
            except Exception as error:
                return type(error).__name__

    def lose_the_answer(self, buyer: Payer, number: int = 1) -> None:
        """The payment is made and paid, and the buyer does not hear of it."""
        self.bazaar.after["create"] = lambda _hit, _reply: Reply(drop=True)
        assert self.ask(buyer, number) == "RemoteProtocolError"
        self.bazaar.after.clear()

    def leave_unpaid(self, buyer: Payer) -> None:
        """A payment whose id is known, and which nobody has paid yet; the buyer was cut off."""
        self.bazaar.paid_at = None
        self.bazaar.before["poll"] = lambda _hit: Reply(drop=True)
        assert self.ask(buyer) == "RemoteProtocolError"
        self.bazaar.before.clear()
        self.bazaar.paid_at = "creation"

    @property
    def charged(self) -> int:
        """How often a price was taken, from whatever purse."""
        return len(self.bazaar.moved)

    @property
    def counted(self) -> int:
        """How many prices the ledger counts."""
        return sums(self.ledger.path).counted // PRICE


@pytest.fixture
def shop(bazaar: Bazaar, tmp_path: Path) -> Iterator[Shop]:
    """Return a marketplace that charges accounts at creation."""
    opened = Shop(bazaar, tmp_path / "ledger.db")
    yield opened
    assert opened.charged <= opened.counted
    assert verify(opened.ledger).problems == []
    opened.ledger.close()


def test_an_account_is_charged_once(shop: Shop) -> None:
    """For as long as a proof would live; then it stays counted, and another may be bought."""
    buyer = shop.buyer()
    shop.lose_the_answer(buyer)
    with Client(buyer, timeout=5, verify=NO_TLS) as client:
        for _ in range(2):
            with pytest.raises(TokenFlowError, match=CANNOT_TELL) as caught:
                client.get(shop.bazaar.url(), params={"n": 1})
            assert caught.value.at_risk and caught.value.payment_id
    assert (shop.charged, shop.counted) == (1, 1)
    shop.late = buyer_of(buyer).settings.policy.max_validity_s + 31
    assert shop.ask(buyer) == "200"
    assert sorted(row.state for row in buyer.payments()) == ["held", "settled"]


def test_nor_twice_where_nothing_may_be_signed_again(shop: Shop) -> None:
    buyer = shop.buyer(resign="never")
    shop.lose_the_answer(buyer)
    shop.late = buyer_of(buyer).settings.policy.max_validity_s + 31
    with Client(buyer, timeout=5, verify=NO_TLS) as client:
        for _ in range(2):
            with pytest.raises(PaymentRefused) as caught:
                client.get(shop.bazaar.url(), params={"n": 1})
            assert caught.value.reason == "resign"
    assert (shop.charged, shop.counted) == (1, 1)


@pytest.mark.parametrize("status", [200, 303, 408, 409, 499, 500, 502])
def test_an_answer_that_cannot_be_read(shop: Shop, status: int) -> None:
    """Of a proxy, say, behind which the account was charged."""
    shop.bazaar.after["create"] = lambda _hit, _reply: Reply(status=status, body=b"<html>")
    assert [shop.ask(shop.buyer()) for _ in range(3)] == ["TokenFlowError"] * 3
    assert (shop.charged, shop.counted) == (1, 1)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422, 429])
def test_a_refusal_charges_no_account(shop: Shop, status: int) -> None:
    """What was reserved is given back."""
    shop.bazaar.before["create"] = lambda _hit: Reply(status=status, body=b"no")
    assert shop.ask(shop.buyer()) == "TokenFlowError"
    assert shop.counted == 0
    shop.bazaar.before.clear()
    assert shop.ask(shop.buyer()) == "200"


@pytest.mark.parametrize("purse", ["wallet", "settle_payment"])
def test_a_balance_that_nothing_but_its_owner_names(shop: Shop, purse: str) -> None:
    """The marketplace knows it by the address, say; the buyer could pay in another way, too."""
    able: dict[str, Any] = {"wallet": WALLET} if purse == "wallet" else {purse: _forbidden}
    named = {"marketplace_headers": None, "prefer": ("token",), **able}
    buyer = shop.buyer(**named, balance_origins=[shop.bazaar.origin])
    shop.lose_the_answer(buyer)
    assert [shop.ask(buyer) for _ in range(2)] == ["TokenFlowError"] * 2
    assert shop.ask(shop.buyer(**named)) == "TokenFlowError"  # another worker, who does not say so
    assert (shop.charged, shop.counted) == (1, 1)
    shop.late = buyer_of(buyer).settings.policy.max_validity_s + 31
    assert shop.ask(buyer) == "200"
    assert (shop.charged, shop.counted) == (2, 2)


@pytest.mark.parametrize("lost", [1, 3])
def test_what_nobody_could_tell_counts_once_it_is_known(shop: Shop, lost: int) -> None:
    """Nothing names a balance, and making a payment was taken to cost nothing."""
    named = {"marketplace_headers": None, "wallet": WALLET, "prefer": ("token",)}
    buyer = shop.buyer(**named, caps=[Cap("0.45", per="total")])
    for _ in range(lost):
        shop.lose_the_answer(buyer)
    assert shop.ask(buyer) == "200"
    assert shop.charged == shop.counted == lost + 1
    assert sorted(row.state for row in buyer.payments()) == [*["held"] * lost, "settled"]
    assert [row.open for row in buyer.payments()] == [False] * (lost + 1)
    assert shop.ask(buyer) == "CapExceeded" and shop.charged == lost + 1


def test_what_was_lost_and_paid_by_us_costs_one_price(shop: Shop) -> None:
    """There making a payment did cost nothing, as was assumed."""
    shop.bazaar.paid_at, shop.bazaar.asks = None, "server402"
    buyer = shop.buyer(marketplace_headers=None, wallet=WALLET, prefer=("token",))
    for _ in range(2):
        shop.lose_the_answer(buyer)
    assert shop.ask(buyer) == "200"
    assert (shop.charged, shop.counted) == (1, 1)


def test_a_balance_elsewhere_is_no_balance_here(shop: Shop) -> None:
    """Only the origin that is named is looked at so."""
    shop.bazaar.paid_at, shop.bazaar.asks = None, "server402"
    elsewhere = "https://elsewhere.example"
    buyer = Payer(
        WALLET,
        caps=[Cap("2", per="total")],
        origins=[shop.bazaar.origin, elsewhere],
        ledger=shop.ledger,
        prefer=("token",),
        balance_origins=[elsewhere],
        poll_unpaid=0.05,
    )
    shop.lose_the_answer(buyer)
    assert shop.ask(buyer) == "200"
    assert (shop.charged, shop.counted) == (1, 1)


def _forbidden(document: Any) -> None:
    raise AssertionError("a balance has paid")


@pytest.mark.parametrize(
    ("options", "follows"),
    [({}, "asks for it again .*balance_origins="), ({"balance_origins": True}, "no other for now")],
)
def test_the_caller_is_told_what_follows(shop: Shop, options: Any, follows: str) -> None:
    """Who has a balance there learns how to say so."""
    named = {name: [shop.bazaar.origin] for name in options}
    buyer = shop.buyer(wallet=WALLET, prefer=("token",), marketplace_headers=None, **named)
    shop.bazaar.paid_at = None
    shop.bazaar.after["create"] = lambda _hit, _reply: Reply(drop=True)
    client = Client(buyer, timeout=5, verify=NO_TLS)
    with client, pytest.raises(httpx.RemoteProtocolError) as caught:
        client.get(shop.bazaar.url())
    assert re.search(follows, "".join(caught.value.__notes__))


def test_a_balance_that_has_paid_once_is_expected_to_pay_again(shop: Shop) -> None:
    """However the marketplace knows whom to charge: nothing in the request tells."""
    buyer = shop.buyer(marketplace_headers=None)
    assert shop.ask(buyer, 1) == "200"
    shop.lose_the_answer(buyer, 2)
    assert shop.ask(buyer, 2) == "TokenFlowError"
    assert (shop.charged, shop.counted) == (2, 2)


@pytest.mark.parametrize("wallet", [None, WALLET])
def test_what_counts_is_how_it_was_asked_for(shop: Shop, wallet: Any) -> None:
    """Another worker, with a wallet or with no account, must not pay for it again."""
    shop.lose_the_answer(shop.buyer())
    shop.bazaar.paid_at, shop.bazaar.asks = None, "server402"
    other = shop.buyer(marketplace_headers=None, wallet=wallet, prefer=("token",))
    assert shop.ask(other) == "TokenFlowError"
    assert (shop.charged, shop.counted) == (1, 1)


@pytest.mark.parametrize("wallet", [None, WALLET])
def test_nor_where_its_id_is_known_and_it_cannot_be_read(shop: Shop, wallet: Any) -> None:
    """The account pays meanwhile; another worker is not told what became of it."""
    shop.leave_unpaid(shop.buyer())
    [sale] = shop.bazaar.sales.values()
    shop.bazaar.pay(sale.id, "balance")
    shop.bazaar.before["poll"] = lambda _hit: Reply(status=403, body=b"not yours")
    shop.bazaar.paid_at, shop.bazaar.asks = None, "server402"
    other = shop.buyer(marketplace_headers=None, wallet=wallet, prefer=("token",))
    assert shop.ask(other) == "TokenFlowError"
    assert (shop.charged, shop.counted) == (1, 1)
    shop.bazaar.before.clear()
    assert shop.ask(other) == "200"
    assert (shop.charged, shop.counted) == (1, 1)


def test_one_given_back_unpaid_and_taken_up_too_late(shop: Shop) -> None:
    """Its balance paid in the meantime, and it can no longer be read: it counts."""
    buyer = shop.buyer()
    shop.bazaar.paid_at = None
    assert shop.ask(buyer) == "TokenFlowError" and shop.counted == 0
    [sale] = shop.bazaar.sales.values()
    shop.bazaar.pay(sale.id, "balance")
    shop.bazaar.before["poll"] = lambda _hit: Reply(status=500, body=b"")
    shop.late, shop.bazaar.paid_at = 700, "creation"
    assert shop.ask(buyer) == "200"
    assert (shop.charged, shop.counted) == (2, 2)


def test_an_id_that_could_not_be_written_down(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """The payment is made, and its account will pay: the reservation is not given back."""
    buyer = shop.buyer()
    shop.bazaar.paid_at = None

    def locked(*args: Any, **named: Any) -> None:
        raise LedgerError("the ledger was locked for 5 s")

    with monkeypatch.context() as patch:
        patch.setattr(SQLiteLedger, "note_created", locked)
        assert shop.ask(buyer) == "LedgerError"
    [sale] = shop.bazaar.sales.values()
    shop.bazaar.pay(sale.id, "balance")
    assert shop.ask(buyer) == "TokenFlowError"
    assert (shop.charged, shop.counted) == (1, 1)


def test_a_price_that_changed_after_the_account_had_paid(shop: Shop) -> None:
    """What was paid is read before anything is decided anew."""
    buyer = shop.buyer(wallet=WALLET, prefer=("token",))
    shop.leave_unpaid(buyer)
    [sale] = shop.bazaar.sales.values()
    shop.bazaar.pay(sale.id, "balance")
    shop.bazaar.price = 5_000_000
    assert shop.ask(buyer) == "TokenFlowError"  # paid, but not at the price that was reserved
    assert (shop.charged, shop.counted) == (1, 1)


@pytest.mark.parametrize("headers", [ACCOUNT, None])
def test_a_price_that_changed_after_an_answer_was_lost(shop: Shop, headers: Any) -> None:
    """An account, or for a buyer without a wallet any balance, may have paid: it stays reserved."""
    buyer = shop.buyer(marketplace_headers=headers)
    shop.lose_the_answer(buyer)
    shop.bazaar.price = 400_000
    assert [shop.ask(buyer) for _ in range(2)] == ["TokenFlowError"] * 2
    assert (shop.charged, shop.counted) == (1, 1)


def test_a_suspicion_does_not_mark_the_origin(shop: Shop) -> None:
    """A key is not yet a balance: payers without one go on as before."""
    buyer = shop.buyer()
    shop.lose_the_answer(buyer)
    shop.late = buyer_of(buyer).settings.policy.max_validity_s + 31
    shop.bazaar.paid_at, shop.bazaar.asks = None, "server402"
    other = shop.buyer(marketplace_headers=None, wallet=WALLET, prefer=("token",))
    assert shop.ask(other) == "200"  # the one that was lost is counted by this
    shop.lose_the_answer(other, 2)
    assert shop.ask(other, 2) == "200"
    assert (shop.charged, shop.counted) == (3, 3)


def test_the_time_counts_from_the_request(shop: Shop) -> None:
    """Not from the reservation, under which an earlier payment came to nothing."""
    buyer = shop.buyer()
    shop.leave_unpaid(buyer)
    shop.late = 700  # the payment has expired
    shop.lose_the_answer(buyer)
    assert shop.ask(buyer) == "TokenFlowError"
    assert (shop.charged, shop.counted) == (1, 1)


@pytest.mark.parametrize("status", [404, 410])
def test_a_payment_that_is_gone_is_asked_for_anew(shop: Shop, status: int) -> None:
    buyer = shop.buyer()
    shop.leave_unpaid(buyer)
    shop.bazaar.before["poll"] = lambda _hit: Reply(status=status, body=b"gone")
    assert shop.ask(buyer) == "200"
    assert (shop.charged, shop.counted) == (1, 1)


def test_a_payment_that_can_no_longer_be_read_is_given_up_in_the_end(shop: Shop) -> None:
    """It may have been paid: it is counted, and another one bought."""
    buyer = shop.buyer()
    shop.leave_unpaid(buyer)
    shop.bazaar.before["poll"] = lambda _hit: Reply(status=403, body=b"no")
    assert shop.ask(buyer) == "TokenFlowError"
    shop.late = 700
    assert shop.ask(buyer) == "200"
    assert (shop.charged, shop.counted) == (1, 2)


def test_nothing_left_for_a_payment_asked_for_anew(shop: Shop) -> None:
    """No connection: the account cannot have been charged."""
    buyer, down = shop.buyer(), [True]
    shop.leave_unpaid(buyer)
    shop.bazaar.sales.clear()

    class Line(httpx.HTTPTransport):
        def handle_request(self, request: httpx.Request) -> httpx.Response:
            if down[0] and request.method == "POST" and request.url.path == PAYMENTS:
                raise httpx.ConnectError("refused", request=request)
            return super().handle_request(request)

    transport = PaymentTransport(buyer, Line(verify=NO_TLS))
    with httpx.Client(transport=transport, trust_env=False, timeout=5) as client:
        with pytest.raises(httpx.ConnectError):
            client.get(shop.bazaar.url(), params={"n": 1})
        assert shop.counted == 0
        down[0] = False
        assert client.get(shop.bazaar.url(), params={"n": 1}).status_code == 200


def test_a_cancellation_before_anything_left(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the ledger writes that a payment will be asked for."""
    real, cancel = SQLiteLedger.ask_payment, []

    def cancelled(ledger: SQLiteLedger, *args: Any, wait_s: float, **named: Any) -> Any:
        if wait_s == 0:
            raise Busy
        cancel[0]()
        time.sleep(0.05)
        return real(ledger, *args, wait_s=wait_s, **named)

    async def call() -> None:
        loop = asyncio.get_running_loop()
        async with AsyncClient(shop.buyer(), timeout=5, verify=NO_TLS) as client:
            task = asyncio.ensure_future(client.get(shop.bazaar.url(), params={"n": 1}))
            cancel.append(lambda: loop.call_soon_threadsafe(task.cancel))
            with pytest.raises(asyncio.CancelledError):
                await task

    with monkeypatch.context() as patch:
        patch.setattr(SQLiteLedger, "ask_payment", cancelled)
        asyncio.run(call())
    assert (shop.charged, shop.counted) == (0, 0)
    assert shop.ask(shop.buyer()) == "200"


def test_how_a_forgotten_payment_was_to_be_paid_is_forgotten(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the next one, which a balance may pay, were created again for a signature."""
    buyer = shop.buyer(wallet=WALLET, prefer=("token",))
    shop.bazaar.paid_at, shop.bazaar.asks = None, "object"

    def cut(*args: Any, **named: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(SQLiteLedger, "hold_purchase", cut)
        with pytest.raises(KeyboardInterrupt):
            shop.ask(buyer)
    shop.bazaar.asks = None  # from now on nothing but a balance pays
    polled = []

    def second_is_lost(_hit: Any) -> Reply | None:
        polled.append(1)
        return Reply(drop=True) if len(polled) == 2 else None

    shop.bazaar.before["poll"] = second_is_lost
    assert shop.ask(buyer) == "RemoteProtocolError"
    made = len(shop.bazaar.sales)
    shop.ask(buyer)
    assert len(shop.bazaar.sales) == made
