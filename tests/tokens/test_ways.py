"""Every way to pay, in every colour: receipts, books, counters and history agree."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from tests.support.deciding import decide
from tests.support.seller import PAYEE, TRANSACTION, USDC
from tests.tokens.bazaar import FORMS, GOODS, PRICE, SERVICE, Bazaar, nothing, once, saying
from tests.tokens.shop import COLOURS, USD, WALLET, assert_sound, call, counted, payer, states
from x402_mask import Cap, Payer, PaymentRefused, TokenFlowError, receipt_of
from x402_mask._chain.verdicts import Settled, Unknown
from x402_mask._payer import buyer_of

SETTLED = ("token", USD, "settled")


def arranged(bazaar: Bazaar, way: str, colour: str, **options: Any) -> Payer:
    """A marketplace and a buyer for one way of paying."""
    options["prefer"] = ("held-token", "token")
    if way == "at-creation":
        bazaar.paid_at = "creation"
    elif way == "balance":
        bazaar.paid_at = 2
    elif way.startswith("x402"):
        options["wallet"] = WALLET
        bazaar.asks = "object" if way == "x402-object" else way.removeprefix("x402-")
    elif way == "settle":

        def settle(document: Any) -> None:
            assert document.usd == USD and document.service == SERVICE
            assert document.pay_to == PAYEE and document.origin == bazaar.origin
            assert document["paymentId"] == document.payment_id
            bazaar.pay(document.payment_id, "settle")

        async def asettle(document: Any) -> None:
            settle(document)

        options["settle_payment"] = asettle if "async" in colour or "trio" in colour else settle
    return payer(bazaar, **options)


WAYS = ("at-creation", "balance", "x402-object", "settle", *(f"x402-{form}" for form in FORMS))


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("way", WAYS)
def test_a_token_is_bought(bazaar: Bazaar, way: str, colour: str) -> None:
    """One reservation, one payment, one token, and it is told so everywhere."""
    asked = []
    buyer = arranged(bazaar, way, colour)
    decide(buyer, approve=lambda quote: asked.append(quote) or True)
    answer = call(colour, buyer, bazaar.url())
    assert answer.status_code == 200 and answer.json() == GOODS
    receipt = receipt_of(answer)
    assert receipt is not None
    assert (receipt.route, receipt.usd, receipt.outcome) == SETTLED
    assert receipt.amount == PRICE and receipt.service == SERVICE
    assert receipt.origin == bazaar.origin and receipt.pay_to == PAYEE
    assert str(receipt.asset).lower() == USDC.address.lower()
    assert receipt.transaction == (TRANSACTION if way.startswith("x402") else None)
    assert len(bazaar.bought) == len(bazaar.moved) == 1 and bazaar.worth == PRICE
    assert bazaar.bought[0].status == "exhausted" and bazaar.served == 1
    (payment,) = buyer.payments()
    assert payment.payment_id == receipt.payment_id
    assert (payment.route, payment.state, payment.usd) == ("token", "settled", USD)
    spend = buyer.spend()[0]
    assert (spend.settled, spend.held) == (USD, 0)
    assert len(asked) == 1
    assert (asked[0].route, asked[0].usd, asked[0].refusal) == ("token", USD, None)
    assert_sound(buyer, bazaar)


@pytest.mark.parametrize("colour", COLOURS)
def test_a_held_token_is_used_first(bazaar: Bazaar, colour: str) -> None:
    """It is sent with the first request and moves no money."""
    bazaar.paid_at, bazaar.calls = "creation", 3
    buyer = payer(bazaar, prefer=("held-token", "token"))
    answers = call(colour, buyer, bazaar.url(), 3)
    receipts = [receipt_of(answer) for answer in answers]
    assert [answer.status_code for answer in answers] == [200] * 3
    assert [(r.route, r.usd, r.amount, r.outcome) for r in receipts if r is not None] == [
        ("token", USD, PRICE, "settled"),
        ("held-token", Decimal(0), 0, "settled"),
        ("held-token", Decimal(0), 0, "settled"),
    ]
    assert len({r.payment_id for r in receipts if r is not None}) == 1
    assert bazaar.steps() == ["tool", "create", "redeem", "redeem", "redeem"]
    assert counted(buyer) == USD
    assert_sound(buyer, bazaar)


@pytest.mark.parametrize("colour", COLOURS)
def test_nobody_pays(bazaar: Bazaar, colour: str) -> None:
    """Nothing moved, the reservation is released, and nothing counts."""
    buyer = payer(bazaar, poll_unpaid=0.05)
    with pytest.raises(TokenFlowError) as caught:
        call(colour, buyer, bazaar.url())
    error = caught.value
    assert error.at_risk is False and error.payment_id is not None
    assert error.response.status_code == 402 and b"accepts" in error.response.content
    assert states(buyer) == ["released"] and counted(buyer) == 0
    assert bazaar.moved == [] and "redeem" not in bazaar.steps()
    assert_sound(buyer, bazaar)


@pytest.mark.parametrize("colour", ["client", "attach", "async-client", "trio-attach"])
def test_nobody_pays_and_the_402_is_wanted(bazaar: Bazaar, colour: str) -> None:
    """With ``on_refusal="return"`` the tool's own 402 is handed back, readable."""
    buyer = payer(bazaar, poll_unpaid=0.05, on_refusal="return")
    answer = call(colour, buyer, bazaar.url())
    assert answer.status_code == 402 and answer.json()["accepts"]
    assert isinstance(answer.extensions["x402_mask_refusal"], TokenFlowError)
    assert str(answer.request.url) == bazaar.url()
    assert receipt_of(answer) is None


@pytest.mark.parametrize("colour", ["client", "async-attach"])
def test_an_unpaid_payment_is_taken_up_again(bazaar: Bazaar, colour: str) -> None:
    """The identical call goes on with the payment that was made, and makes no second one."""
    buyer = payer(bazaar, poll_unpaid=0.05)
    with pytest.raises(TokenFlowError):
        call(colour, buyer, bazaar.url())
    (sale,) = bazaar.sales.values()
    bazaar.pay(sale.id, "balance")
    answer = call(colour, buyer, bazaar.url())
    assert answer.status_code == 200 and len(bazaar.sales) == 1
    assert states(buyer) == ["released", "settled"] and counted(buyer) == USD
    assert bazaar.steps().count("create") == 1
    assert_sound(buyer, bazaar)


def test_a_late_token_is_waited_for(bazaar: Bazaar) -> None:
    """Paid, and the token comes later."""
    bazaar.paid_at, bazaar.token_late = "creation", 3
    buyer = payer(bazaar)
    assert call("client", buyer, bazaar.url()).status_code == 200
    assert bazaar.steps().count("poll") == 3
    assert_sound(buyer, bazaar)


@pytest.mark.parametrize("way", ["x402-server402", "x402-object", "settle", "at-creation"])
def test_paid_and_no_token_comes(bazaar: Bazaar, way: str) -> None:
    """The money counts, the error says so, and the identical call asks again and pays nothing."""
    buyer = arranged(bazaar, way, "client")
    decide(buyer, poll_paid_s=0.1, poll_unpaid_s=0.1)
    bazaar.token_late = 10**6
    with pytest.raises(TokenFlowError) as caught:
        call("client", buyer, bazaar.url())
    assert caught.value.at_risk is True
    assert counted(buyer) == USD and len(bazaar.moved) == 1
    bazaar.token_late = 0
    answer = call("client", buyer, bazaar.url())
    assert answer.status_code == 200 and len(bazaar.moved) == 1
    receipt = receipt_of(answer)
    assert receipt is not None and receipt.payment_id == caught.value.payment_id
    assert states(buyer) == ["settled"]
    assert_sound(buyer, bazaar)


@pytest.mark.parametrize("way", ["x402-server402", "settle", "at-creation", "balance"])
def test_it_is_polled_for_no_longer_than_its_caller_waits_for_anything(
    bazaar: Bazaar, way: str
) -> None:
    """Its read time-out: ``poll_paid`` and ``poll_unpaid`` bound those who wait for longer."""
    buyer = arranged(bazaar, way, "client", poll_paid=600, poll_unpaid=600)
    bazaar.token_late = 10**6
    begun = time.monotonic()
    with pytest.raises(TokenFlowError) as caught:
        call("client", buyer, bazaar.url(), timeout=1)
    assert caught.value.at_risk is True
    assert time.monotonic() - begun < 10, "with what asks and answers besides"


@pytest.mark.parametrize("way", ["x402-server402", "settle", "at-creation"])
@pytest.mark.parametrize("ends", [True, False])
def test_paid_and_no_token_ever_comes(bazaar: Bazaar, way: str, ends: bool) -> None:
    """Contract 2: once the proof is dead, and the payment's own time is up, it may be bought anew."""
    late = [0.0]
    buyer = arranged(bazaar, way, "client", clock=lambda: time.time() + late[0])
    decide(buyer, poll_paid_s=0.05, poll_unpaid_s=0.05)
    end, seen = _at(400) if ends else None, set[str]()

    def barren(said: dict[str, Any]) -> dict[str, Any]:
        seen.add(said["paymentId"])
        if len(seen) == 1:
            return {**said, "token": None, "expiresAt": end}
        return {**said, "expiresAt": _at(late[0] + 600)}

    bazaar.shape = barren
    for seconds in (0, 300, *([380] if ends else [])):
        late[0] = seconds
        with pytest.raises(TokenFlowError) as caught:
            call("client", buyer, bazaar.url())
        assert caught.value.at_risk and len(bazaar.moved) == 1
    late[0] = 432
    answer = call("client", buyer, bazaar.url())
    assert answer.status_code == 200 and len(bazaar.moved) == 2
    assert states(buyer) == ["settled", "settled"] and counted(buyer) == 2 * USD
    assert_sound(buyer, bazaar)


@pytest.mark.parametrize("way", ["x402-server402", "settle", "at-creation"])
@pytest.mark.parametrize("ends", [True, False])
def test_one_bad_answer_gives_up_nothing_that_was_paid(
    bazaar: Bazaar, way: str, ends: bool
) -> None:
    """The proof is dead, and the token is there by now: a poll that fails is asked again."""
    late = [0.0]
    buyer = arranged(bazaar, way, "client", clock=lambda: time.time() + late[0])
    decide(buyer, poll_paid_s=0.1, poll_unpaid_s=0.1)
    bazaar.token_late = 10**6
    bazaar.shape = lambda said: {**said, "expiresAt": _at(3600) if ends else None}
    with pytest.raises(TokenFlowError):
        call("client", buyer, bazaar.url())
    late[0], bazaar.token_late = 340, 0
    bazaar.before["poll"] = once(saying(b"busy", 503), nothing)
    assert call("client", buyer, bazaar.url()).status_code == 200
    assert len(bazaar.moved) == 1 and states(buyer) == ["settled"]
    assert_sound(buyer, bazaar)


@pytest.mark.parametrize("way", ["x402-server402", "settle"])
def test_what_the_marketplace_calls_over_is_over(bazaar: Bazaar, way: str) -> None:
    """Though its own end is far: once the proof is dead, it may be bought anew."""
    late = [0.0]
    buyer = arranged(bazaar, way, "client", clock=lambda: time.time() + late[0])
    decide(buyer, poll_paid_s=0.1, poll_unpaid_s=0.1)
    first: list[str] = []

    def over(said: dict[str, Any]) -> dict[str, Any]:
        first[:] = first or [said["paymentId"]]
        paid = said["paymentId"] == first[0] and said["status"] == "paid"
        said = {**said, "expiresAt": _at(3600)}
        return {**said, "status": "exhausted", "token": None} if paid else said

    bazaar.shape = over
    for late[0] in (0, 300):
        with pytest.raises(TokenFlowError, match="exhausted"):
            call("client", buyer, bazaar.url())
    late[0] = 340
    assert call("client", buyer, bazaar.url()).status_code == 200
    assert len(bazaar.moved) == 2 and counted(buyer) == 2 * USD


class ToldChain:
    """A chain that says what it is told to; no endpoint is asked."""

    networks = frozenset({"eip155:8453"})

    def __init__(self, said: Any) -> None:
        self.said = said

    def evidence(self, _authorization: Any) -> Any:
        return self.said

    def seen(self, _authorization: Any, **_: Any) -> Unknown:
        return Unknown(reason="not yet")

    def close(self) -> None:
        """Nothing is open."""


def asking(bazaar: Bazaar, late: list[float], said: Any) -> Payer:
    """A buyer who was left without a token, and asks this chain once its proof has expired."""
    buyer = arranged(
        bazaar,
        "x402-server402",
        "client",
        clock=lambda: time.time() + late[0],
        rpc={"eip155:8453": "http://127.0.0.1:1"},
        caps=[Cap(10, per="total")],
    )
    decide(buyer, poll_paid_s=0.05, poll_unpaid_s=0.05)
    buyer_of(buyer)._chain = ToldChain(said)  # type: ignore[assignment]
    bazaar.token_late = 10**6
    with pytest.raises(TokenFlowError):
        call("client", buyer, bazaar.url())
    return buyer


def test_what_the_chain_proves_paid_buys_no_second_token_by_itself(bazaar: Bazaar) -> None:
    """For a day from when that was first said, if there is no key; with one it never does."""
    late, moved = [0.0], "0x" + "ab" * 32
    buyer = asking(bazaar, late, Settled(transaction=moved, block=1, amount=PRICE))
    for late[0] in (700, 20 * 3600):
        with pytest.raises(PaymentRefused) as caught:
            call("client", buyer, bazaar.url())
        (payment,) = buyer.payments()
        assert caught.value.reason == "paid_before" and not caught.value.at_risk
        assert caught.value.payment_id == payment.payment_id
        assert (payment.state, payment.transaction) == ("settled", moved)
    bazaar.token_late, late[0] = 0, 700 + 25 * 3600
    assert call("client", buyer, bazaar.url()).status_code == 200
    assert_sound(buyer, bazaar)


def test_a_purchase_whose_proof_the_chain_has_alive_shows_it_again(bazaar: Bazaar) -> None:
    """By the time of its own blocks: those lag, and it could still be settled."""
    late = [0.0]
    buyer = asking(bazaar, late, Unknown(reason="not expired yet", past=False))
    late[0] = 700
    for _ in range(2):
        with pytest.raises(TokenFlowError):
            call("client", buyer, bazaar.url())
    assert len(bazaar.authorizations()) == 1 and len(buyer.payments()) == 1
    assert_sound(buyer, bazaar)


def _at(seconds: float) -> str:
    return datetime.fromtimestamp(time.time() + seconds, UTC).isoformat()


def test_the_alias_buys_the_canonical_service(bazaar: Bazaar) -> None:
    """A legacy path is the same service, at the cap and at the marketplace."""
    bazaar.paid_at, bazaar.calls = "creation", 2
    bazaar.before["redeem"] = lambda hit: bazaar._goods([])
    buyer = payer(bazaar)
    answer = call("client", buyer, bazaar.url("aliyun-imageseg-refine-mask"))
    assert answer.status_code == 200
    assert [sale.service for sale in bazaar.sales.values()] == [SERVICE]
    (payment,) = buyer.payments(service=SERVICE)
    assert payment.service == SERVICE


def test_a_quote_tells_the_route(bazaar: Bazaar) -> None:
    """What a call would begin with, and why the other routes are not taken."""
    bazaar.paid_at, bazaar.calls = "creation", 2
    buyer = payer(bazaar)
    answer = call(
        "client", payer(bazaar, on_refusal="return", approve=lambda q: False), bazaar.url()
    )
    quote = buyer.quote(answer)
    assert quote is not None
    assert (quote.route, quote.usd, quote.refusal) == ("token", USD, None)
    assert any("x402" in why and "wallet" in why for why in quote.skipped)
    call("client", buyer, bazaar.url())
    quote = buyer.quote(answer)
    assert quote is not None and (quote.route, quote.usd) == ("held-token", 0)
    rich = payer(bazaar, wallet=WALLET)
    quote = rich.quote(answer)
    assert quote is not None and (quote.route, quote.usd) == ("x402", USD)
