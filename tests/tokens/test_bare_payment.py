"""A 402 that is a payment object and lists no offers: the marketplace's documents name this form."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import httpx
import pytest

from tests.support.seller import OTHER_PAYEE, PAYEE, Reply, Seller, offer_server402
from tests.tokens.bazaar import SERVICE, Bazaar
from tests.tokens.shop import NO_TLS, WALLET
from x402_mask import (
    ApprovalDenied,
    Cap,
    Client,
    MemoryLedger,
    OfferRefused,
    Payer,
    PaymentTransport,
    TermsRefused,
    TokenFlowError,
    Wallet,
    attach,
    receipt_of,
)
from x402_mask._ledger.audit import verify

OFFER = offer_server402("200000")
WRAPPED = {
    "bare": lambda found: found,
    "payment": lambda found: {"error": "payment required", "payment": found},
    "data": lambda found: {"data": {"payment": found}},
}


def bare(wrap: str, **changes: Any) -> Any:
    """The answer to a call without a token."""
    found = {
        "paymentId": "pay_of_the_402",
        "serviceId": "mask-refinement",
        "status": "pending",
        "amountCents": 20,
        "currency": "USD",
        **changes,
    }
    return Reply(
        status=402,
        headers=[("Content-Type", "application/json")],
        body=json.dumps(WRAPPED[wrap](found)).encode(),
    )


def payer_of(bazaar: Bazaar, **options: Any) -> Payer:
    """A payer of one dollar."""
    chosen: dict[str, Any] = {
        "wallet": None,
        "caps": [Cap(1, per="day")],
        "origins": [bazaar.origin],
        "ledger": MemoryLedger(),
    }
    return Payer(**chosen | options)


@pytest.mark.parametrize("wrap", WRAPPED)
@pytest.mark.parametrize("wallet", [None, Wallet.from_key("11" * 32)])
def test_the_price_in_it_is_reserved(bazaar: Bazaar, wrap: str, wallet: Wallet | None) -> None:
    """And a token is bought, with a wallet or without."""
    bazaar.before["tool"] = lambda _: bare(wrap)
    bazaar.paid_at = "creation"
    payer = payer_of(bazaar, wallet=wallet)
    with Client(payer) as client:
        quote = payer.quote(client.build_request("POST", bazaar.url(), json={}))
        assert quote is not None and (quote.route, quote.usd) == ("token", Decimal("0.20"))
        response = client.post(bazaar.url(), json={})
    receipt = receipt_of(response)
    assert response.status_code == 200
    assert receipt is not None and (receipt.route, receipt.usd) == ("token", Decimal("0.20"))
    assert payer.spend()[0].settled == Decimal("0.20")


@pytest.mark.parametrize("cents", [None, 0, -5, "many", True])
def test_without_a_price_nothing_is_asked_for(bazaar: Bazaar, cents: Any) -> None:
    """What cannot be reserved cannot be bought."""
    bazaar.before["tool"] = lambda _: bare("bare", amountCents=cents)
    with Client(payer_of(bazaar)) as client, pytest.raises(OfferRefused):
        client.post(bazaar.url(), json={})
    assert bazaar.at_market() == []


def test_elsewhere_it_is_handed_back() -> None:
    """A quota that happens to speak of payments is no challenge."""
    with Seller() as seller:
        seller.on("/quota", bare("bare"))
        caps = [Cap(1, per="day")]
        payer = Payer(None, caps=caps, origins=[seller.origin], ledger=MemoryLedger())
        with Client(payer) as client:
            response = client.get(f"{seller.origin}/quota")
    assert (response.status_code, receipt_of(response)) == (402, None)
    assert response.json()["paymentId"] == "pay_of_the_402"


@pytest.mark.parametrize("second", [True, False])
def test_what_only_the_payments_endpoint_names_is_approved_there(
    bazaar: Bazaar, second: bool
) -> None:
    """The owner saw a price; before anything is signed it is asked about asset and payee."""
    bazaar.before["tool"] = lambda _: bare("bare")
    bazaar.asks = "server402"
    asked: list[Any] = []

    def approve(quote: Any) -> bool:
        asked.append((quote.usd, quote.pay_to))
        return second or len(asked) == 1

    payer = payer_of(bazaar, wallet=Wallet.from_key("11" * 32), approve=approve)
    with Client(payer) as client:
        if second:
            assert client.post(bazaar.url(), json={}).status_code == 200
        else:
            with pytest.raises(ApprovalDenied):
                client.post(bazaar.url(), json={})
    price = Decimal("0.20")
    assert asked == [(price, None), (price, PAYEE)]
    assert len(bazaar.moved) == second
    (payment,) = payer.payments()
    assert payment.state == ("settled" if second else "released")
    network = (payment.network, payment.pay_to)
    assert network == (("eip155:8453", PAYEE) if second else (None, None))
    terms = [row["pay_to"] for row in payer.ledger.history() if row["kind"] == "paying"]
    assert terms == [PAYEE] * second


@pytest.mark.parametrize("wrap", WRAPPED)
def test_what_only_the_payments_endpoint_names_is_on_the_ledger(bazaar: Bazaar, wrap: str) -> None:
    """Network, asset, amount and payee: the receipt tells them, and a chain can be asked."""
    bazaar.before["tool"] = lambda _: bare(wrap)
    bazaar.asks = "server402"
    payer = payer_of(bazaar, wallet=Wallet.from_key("11" * 32))
    with Client(payer) as client:
        receipt = receipt_of(client.post(bazaar.url(), json={}))
    (payment,) = payer.payments()
    (signed,) = bazaar.authorizations()
    assert receipt is not None and (receipt.outcome, payment.state) == ("settled", "settled")
    for told in (receipt, payment):
        assert (told.network, told.asset, told.pay_to, told.amount) == (
            "eip155:8453",
            OFFER["asset"],
            signed.to,
            signed.value,
        )
    assert verify(payer.ledger).problems == []


@pytest.mark.parametrize(
    ("way", "other"),
    [
        ("x402", "tool"),
        ("object", "tool"),
        ("object", "payment"),
        ("settle", "tool"),
        ("settle", "payment"),
    ],
)
def test_two_payees_where_the_402_is_a_payment(bazaar: Bazaar, way: str, other: str) -> None:
    """Contract 6.3: whom its payment names is whom the payment that is made names, and its offer."""
    bazaar.asks = {"x402": "server402", "object": "object"}.get(way)
    theirs = {"tool": PAYEE, "payment": PAYEE, other: OTHER_PAYEE}
    bazaar.before["tool"] = lambda _: bare("bare", payTo=theirs["tool"])
    bazaar.extra = {"payTo": theirs["payment"]}
    called: list[Any] = []
    settle, wallet = (called.append, None) if way == "settle" else (None, WALLET)
    payer = payer_of(bazaar, wallet=wallet, settle_payment=settle)
    with Client(payer) as client, pytest.raises(TermsRefused) as caught:
        client.post(bazaar.url(), json={})
    assert caught.value.reason == "payee" and not caught.value.at_risk
    assert called == [] and bazaar.moved == [] and payer.spend()[0].left == 1


def test_a_payment_and_its_own_offer_name_two_payees(bazaar: Bazaar) -> None:
    """Where the 402 names none, they must agree with each other."""
    bazaar.before["tool"] = lambda _: bare("bare")
    bazaar.asks, bazaar.extra = "object", {"payTo": OTHER_PAYEE}
    payer = payer_of(bazaar, wallet=WALLET)
    with Client(payer) as client, pytest.raises(TermsRefused) as caught:
        client.post(bazaar.url(), json={})
    assert caught.value.reason == "payee" and bazaar.authorizations() == []


@pytest.mark.parametrize("theirs", [PAYEE, OTHER_PAYEE, None])
def test_the_first_payee_is_pinned(bazaar: Bazaar, theirs: Any) -> None:
    """``pin`` refuses a change; the first is trusted where the 402 and the offer name it."""
    bazaar.asks = "server402"
    bazaar.before["tool"] = lambda _: bare("bare", payTo=theirs)
    payer = payer_of(bazaar, wallet=WALLET, payees="pin")
    with Client(payer) as client:
        if theirs == PAYEE:
            for number in range(2):
                answer = client.post(bazaar.url(), json={"n": number})
                assert answer.status_code == 200
            assert payer.ledger.payees() == [(bazaar.origin, SERVICE, PAYEE.lower(), True)]
            return
        with pytest.raises(TermsRefused) as caught:
            client.post(bazaar.url(), json={})
    assert caught.value.reason == "payee" and bazaar.moved == []


# --- what an audit found


@pytest.mark.parametrize("way", ["x402", "settle"])
def test_a_payment_whose_time_is_past_is_not_paid(bazaar: Bazaar, way: str) -> None:
    """Contract 6.5, row 52: within ``expiresAt``."""
    bazaar.asks = "object" if way == "x402" else None
    bazaar.shape = lambda found: {**found, "expiresAt": "2020-01-01T00:00:00Z"}
    called: list[Any] = []
    payer = payer_of(
        bazaar,
        wallet=Wallet.from_key("11" * 32) if way == "x402" else None,
        prefer=("token",),
        settle_payment=called.append if way == "settle" else None,
    )
    with Client(payer) as client, pytest.raises(TokenFlowError) as caught:
        client.post(bazaar.url(), json={})
    assert not caught.value.at_risk and called == [] and bazaar.moved == []
    assert payer.spend()[0].left == 1


@pytest.mark.parametrize(
    ("pay_to", "options"),
    [
        ("0x" + "0" * 40, {}),
        ("0x" + "33" * 20, {"payees": [PAYEE]}),
        ("xiao:shop", {"payees": [PAYEE]}),
    ],
)
def test_a_payee_that_only_the_payment_names(
    bazaar: Bazaar, pay_to: str, options: dict[str, Any]
) -> None:
    """Contract 1: never zero; a list allows those addresses only."""
    bazaar.before["tool"] = lambda _: bare("bare")
    bazaar.shape = lambda found: {**found, "payTo": pay_to}
    called: list[Any] = []
    payer = payer_of(bazaar, settle_payment=called.append, **options)
    with Client(payer) as client, pytest.raises(OfferRefused) as caught:
        client.post(bazaar.url(), json={})
    assert caught.value.reason == "payee" and called == [] and payer.spend()[0].left == 1


def test_another_rail_has_another_payee(bazaar: Bazaar) -> None:
    """``settle_payment`` may pay whom the live offer, an address on a chain, cannot name."""
    bazaar.shape = lambda found: {**found, "payTo": "xiao:shop"}
    payer = payer_of(
        bazaar, settle_payment=lambda document: bazaar.pay(document.payment_id, "settle")
    )
    with Client(payer) as client:
        assert client.post(bazaar.url(), json={}).status_code == 200


def test_a_contradiction_is_not_taken_the_second_time(bazaar: Bazaar) -> None:
    """A balance paid another price: it is held, and its token is not used."""
    bazaar.paid_at = "creation"
    bazaar.shape = lambda found: {**found, "amountCents": 500}
    payer = payer_of(bazaar)
    for _ in range(2):
        with Client(payer) as client, pytest.raises(TokenFlowError, match="500 cents") as caught:
            client.post(bazaar.url(), json={})
        assert caught.value.at_risk
    assert [p.state for p in payer.payments()] == ["held"] and bazaar.served == 0


@pytest.mark.parametrize("way", ["client", "attach"])
@pytest.mark.parametrize("name", ["ConnectError", "ConnectTimeout", "PoolTimeout"])
def test_a_creation_that_never_left_is_given_back(bazaar: Bazaar, name: str, way: str) -> None:
    """And the error is httpx's own; one that may have left stays reserved."""

    class Broken(httpx.HTTPTransport):
        def handle_request(self, request: httpx.Request) -> httpx.Response:
            if request.url.path == "/api/payments":
                raise getattr(httpx, name)("no", request=request)
            return super().handle_request(request)

    payer = payer_of(bazaar)
    inner = Broken(verify=NO_TLS)
    made = httpx.Client(transport=PaymentTransport(payer, inner) if way == "client" else inner)
    client = made if way == "client" else attach(made, payer)
    with client, pytest.raises(getattr(httpx, name)):
        client.post(bazaar.url(), json={})
    assert [p.state for p in payer.payments()] == ["released"] and payer.spend()[0].left == 1


def test_calls_left_on_a_refused_token_buy_nothing_new(bazaar: Bazaar) -> None:
    """The token is dropped for others; its own operation keeps to it while its proof lives."""
    bazaar.calls = 3
    bazaar.asks = "server402"
    bazaar.before["redeem"] = lambda _: Reply(status=402, body=b"{}")
    payer = payer_of(bazaar, wallet=Wallet.from_key("11" * 32), prefer=("held-token", "token"))
    with Client(payer) as client:
        statuses = [client.post(bazaar.url(), json={"n": 1}).status_code for _ in range(3)]
        assert statuses == [402] * 3 and len(bazaar.moved) == 1
        assert client.post(bazaar.url(), json={"n": 2}).status_code == 402
    assert len(bazaar.moved) == 2  # another operation buys its own
    assert len(payer.payments()) == 2
