"""Which route is taken, why not the others, and what ends a call before anything is posted."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import httpx
import pytest

from tests.support.seller import (
    OTHER_PAYEE,
    PAYEE,
    Reply,
    offer_server402,
)
from tests.tokens.bazaar import (
    FORMS,
    PRICE,
    SERVICE,
    Bazaar,
    answered,
    lost,
    once,
    saying,
    terms,
)
from tests.tokens.shop import USD, WALLET, assert_sound, call, counted, made, payer, states
from x402_mask import (
    ApprovalDenied,
    Cap,
    CapExceeded,
    OfferRefused,
    Paused,
    Payer,
    PaymentError,
    PaymentRefused,
    TokenFlowError,
    receipt_of,
)

ORDERS = [
    (None, WALLET, "x402"),
    (None, None, "token"),
    (("token", "x402"), WALLET, "token"),
    (("token", "held-token"), WALLET, "token"),
    (("x402",), WALLET, "x402"),
    (("x402", "token"), None, "token"),
    (("token",), None, "token"),
]


def quoted(buyer: Payer, bazaar: Bazaar) -> Any:
    """What a call would cost and how it would be paid."""
    import httpx

    from tests.tokens.shop import NO_TLS

    with httpx.Client(verify=NO_TLS, trust_env=False) as client:
        return buyer.quote(client.post(bazaar.url(), json={"picture": "a"}))


@pytest.mark.parametrize(("prefer", "wallet", "route"), ORDERS)
@pytest.mark.parametrize("colour", ["client", "async-attach"])
def test_the_first_possible_route_is_taken(
    bazaar: Bazaar, prefer: Any, wallet: Any, route: str, colour: str
) -> None:
    bazaar.paid_at = "creation"
    options = {} if prefer is None else {"prefer": prefer}
    buyer = payer(bazaar, wallet=wallet, **options)
    before = quoted(buyer, bazaar)
    assert (before.route, before.usd, before.refusal) == (route, USD, None)
    receipt = receipt_of(call(colour, buyer, bazaar.url()))
    assert receipt is not None and receipt.route == route
    assert buyer.payments()[0].route == route
    if wallet is None and (prefer or ("x402",))[0] == "x402":
        assert any("x402" in why and "no wallet" in why for why in before.skipped)
    row = next(row for row in buyer.ledger.history() if row["kind"] == "reserved")
    assert row["route"] == route and list(before.skipped) == row["skipped"]
    assert_sound(buyer, bazaar)


def test_an_unpaid_token_gives_way_to_a_signature(bazaar: Bazaar) -> None:
    """The preferred route turned out impossible: nothing of it counts, and the next one pays."""
    buyer = payer(bazaar, wallet=WALLET, prefer=("token", "x402"), poll_unpaid=0.02)
    bazaar.extra = {"payTo": None}
    receipt = receipt_of(call("client", buyer, bazaar.url()))
    assert receipt is not None and receipt.route == "x402"
    assert states(buyer) == ["released", "settled"] and counted(buyer) == USD
    assert_sound(buyer, bazaar)
    reserved = [row for row in buyer.ledger.history() if row["kind"] == "reserved"]
    assert any(why.startswith("token:") for why in reserved[1]["skipped"])


def test_a_resumed_token_that_nobody_pays_gives_way_too(bazaar: Bazaar) -> None:
    """The answer to creating it was lost; the identical call finds that nobody pays it."""
    bazaar.extra = {"payTo": None}
    bazaar.after["create"] = once(lost, answered)
    buyer = payer(bazaar, wallet=WALLET, prefer=("token", "x402"), poll_unpaid=0.02)
    with pytest.raises(Exception, match=r"disconnected|closed"):
        call("client", buyer, bazaar.url())
    receipt = receipt_of(call("client", buyer, bazaar.url()))
    assert receipt is not None and receipt.route == "x402"
    assert states(buyer) == ["released", "settled"] and bazaar.steps().count("create") == 2
    assert_sound(buyer, bazaar)
    alone = payer(bazaar, prefer=("token",), poll_unpaid=0.02)
    bazaar.after["poll"] = once(lost, answered)
    for expected in (httpx.RemoteProtocolError, TokenFlowError, TokenFlowError):
        with pytest.raises(expected):
            call("client", alone, bazaar.url())
    assert counted(alone) == 0


@pytest.mark.parametrize("prefer", [("x402", "token"), ("token", "x402")])
def test_no_route_is_possible(bazaar: Bazaar, prefer: Any) -> None:
    """Not a token seller, and no wallet: the first route's own error."""
    bazaar.form = "v2-header"
    with pytest.raises(PaymentRefused) as caught:
        call("client", payer(bazaar, prefer=prefer), bazaar.url())
    assert caught.value.reason == ("no_wallet" if prefer[0] == "x402" else "no_offer")
    assert not caught.value.at_risk and bazaar.at_market() == []


def test_only_held_tokens_and_none_is_held(bazaar: Bazaar) -> None:
    with pytest.raises(PaymentRefused, match="held") as caught:
        call("client", payer(bazaar, wallet=WALLET, prefer=("held-token",)), bazaar.url())
    assert caught.value.reason == "no_offer" and bazaar.at_market() == []


def test_the_token_flow_error_stands_where_nothing_else_is_possible(bazaar: Bazaar) -> None:
    with pytest.raises(TokenFlowError) as caught:
        call("client", payer(bazaar, poll_unpaid=0.02), bazaar.url())
    assert not caught.value.at_risk


# --- who sells tokens -----------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["v2-header", "v2-body", "v1-body"])
@pytest.mark.parametrize("listed", [False, True])
def test_tokens_where_the_owner_says_so(bazaar: Bazaar, form: str, listed: bool) -> None:
    """A 402 without the Server402 shape is asked for tokens on ``token_origins`` alone."""
    bazaar.form, bazaar.paid_at = form, "creation"
    buyer = payer(bazaar, token_origins=[bazaar.origin] if listed else [])
    if listed:
        receipt = receipt_of(call("client", buyer, bazaar.url()))
        assert receipt is not None and receipt.route == "token"
        return
    with pytest.raises(PaymentRefused) as caught:
        call("client", buyer, bazaar.url())
    assert caught.value.reason == "no_wallet" and bazaar.at_market() == []


@pytest.mark.parametrize("path", ["/paid", "/api/tools", "/api/tools/", "/api/tools/a/b", "/api"])
def test_tokens_are_for_tools(bazaar: Bazaar, path: str) -> None:
    bazaar.paid_at = "creation"
    for step in ("tool", "lost"):
        bazaar.before[step] = lambda hit: terms("server402")
    buyer = payer(bazaar, token_origins=[bazaar.origin])
    with pytest.raises(PaymentRefused):
        call("client", buyer, bazaar.origin + path)
    assert bazaar.at_market() == [] and buyer.payments() == []


@pytest.mark.parametrize("name", ["token_origins", "balance_origins"])
def test_marketplaces_are_among_the_origins(bazaar: Bazaar, name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} names .* not in origins"):
        payer(bazaar, **{name: ["https://elsewhere.example"]})


@pytest.mark.parametrize(
    "wrong",
    [
        {"settle_payment": 7},
        {"poll_unpaid": -1},
        {"poll_paid": "10"},
        {"poll_paid": float("nan")},
        {"token_origins": "https://x402vip.com"},
        {"balance_origins": "https://x402vip.com"},
    ],
)
def test_unsound_options(bazaar: Bazaar, wrong: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        payer(bazaar, **wrong)


def test_an_async_settle_payment_needs_an_async_client(bazaar: Bazaar) -> None:
    async def settle(document: Any) -> None: ...

    with pytest.raises(TypeError, match="settle_payment"):
        made("client", payer(bazaar, settle_payment=settle))


# --- refusals end the call, and nothing is posted -------------------------------------------------


def nothing_posted(bazaar: Bazaar, expected: type[PaymentError], **options: Any) -> Any:
    """The refusal of a call in which no other route is tried."""
    bazaar.paid_at = "creation"
    paused = options.pop("paused", False)
    for prefer in (("held-token", "token", "x402"), ("token",), ("x402", "token")):
        buyer = payer(bazaar, prefer=prefer, **options)
        if paused:
            buyer.pause()
        with pytest.raises(expected) as caught:
            call("client", buyer, bazaar.url())
        assert bazaar.at_market() == [] and not bazaar.proofs()
        assert counted(buyer) == 0 and caught.value.at_risk is False
        assert set(states(buyer)) <= {"released"}
    return caught.value


def test_a_cap(bazaar: Bazaar) -> None:
    error = nothing_posted(bazaar, CapExceeded, wallet=WALLET, caps=[Cap("0.19", per="call")])
    assert (error.wanted, error.left) == (USD, Decimal("0.19"))
    assert error.quote is not None


def test_no_cap(bazaar: Bazaar) -> None:
    caps = [Cap("1", per="day", service="timestamp")]
    assert nothing_posted(bazaar, PaymentRefused, wallet=WALLET, caps=caps).reason == "no_cap"


@pytest.mark.parametrize("wallet", [None, WALLET])
def test_an_approval_that_is_denied(bazaar: Bazaar, wallet: Any) -> None:
    asked: list[Any] = []
    nothing_posted(bazaar, ApprovalDenied, wallet=wallet, approve=asked.append)
    assert len(asked) == 3  # one call each


def test_a_pause(bazaar: Bazaar) -> None:
    nothing_posted(bazaar, Paused, wallet=WALLET, paused=True)


@pytest.mark.parametrize("wallet", [None, WALLET])
@pytest.mark.parametrize(
    ("entry", "options", "reason"),
    [
        ({"payTo": OTHER_PAYEE}, {"payees": [PAYEE]}, "payee"),
        ({"payTo": "0xMerchantAddress"}, {}, "payee"),
        ({"asset": OTHER_PAYEE}, {}, "asset"),
        ({"maxTimeoutSeconds": 3}, {}, "validity"),
        ({"amount": "0"}, {}, "price"),
        ({"amount": "2e5"}, {}, "price"),
        ({"extra": {"name": "Fake"}}, {}, "domain"),
    ],
)
def test_an_offer_that_may_not_be_paid(
    bazaar: Bazaar, entry: Any, options: Any, reason: str, wallet: Any
) -> None:
    """Policy is asked about the live offer whatever the route."""
    bazaar.before["tool"] = saying(
        {"accepts": [{**offer_server402(str(PRICE)), **entry}], "paymentId": "p", "amountCents": 1},
        402,
    )
    buyer = payer(bazaar, wallet=wallet, prefer=("token", "x402"), **options)
    with pytest.raises(OfferRefused) as caught:
        call("client", buyer, bazaar.url())
    assert caught.value.reason == reason
    assert bazaar.at_market() == [] and buyer.payments() == []


SOLANA = "solana:5eykt4UsFv8P8NJdTREpY1vzqKqZKvdp"
FOREIGN = [
    {"network": "eip155:137"},
    {"network": SOLANA, "amount": PRICE, "payTo": None},
    {"scheme": "upto", "amount": "0.2"},
    {"scheme": "xiao", "network": "xiao:1"},
]


@pytest.mark.parametrize("wallet", [None, WALLET])
@pytest.mark.parametrize("order", [("x402", "token"), ("token", "x402")])
@pytest.mark.parametrize("entry", FOREIGN, ids=repr)
def test_a_foreign_offer_does_not_end_a_call_that_a_token_can_pay(
    bazaar: Bazaar, entry: Any, order: Any, wallet: Any
) -> None:
    """The payment object beside it names the price; that is reserved, and what is bought."""
    entries = [{**offer_server402(str(PRICE)), **entry}]
    bazaar.before["tool"] = saying(
        {"accepts": entries, "paymentId": "p", "amountCents": PRICE // 10_000}, 402
    )
    bazaar.paid_at = "creation"
    buyer = payer(bazaar, wallet=wallet, prefer=order)
    quote = quoted(buyer, bazaar)
    assert (quote.route, quote.usd, quote.refusal) == ("token", USD, None)
    receipt = receipt_of(call("client", buyer, bazaar.url()))
    assert receipt is not None and (receipt.route, receipt.usd) == ("token", USD)
    assert_sound(buyer, bazaar)


@pytest.mark.parametrize("entry", FOREIGN, ids=repr)
def test_nor_one_at_the_payments_endpoint(bazaar: Bazaar, entry: Any) -> None:
    """A wallet cannot sign it; the owner's other rail pays the payment all the same."""
    bazaar.extra = {"accepts": [{**offer_server402(str(PRICE)), **entry}], "x402Version": 2}
    paid: list[Any] = []

    def settle(document: Any) -> None:
        paid.append(document.payment_id)
        bazaar.pay(document.payment_id, "settle")

    buyer = payer(bazaar, wallet=WALLET, prefer=("token",), settle_payment=settle)
    assert call("client", buyer, bazaar.url()).status_code == 200
    assert len(paid) == 1 and "prove" not in bazaar.steps() and "sign" not in bazaar.steps()
    assert_sound(buyer, bazaar)


def test_a_changed_payee_is_refused_on_the_token_route_too(bazaar: Bazaar) -> None:
    bazaar.paid_at = "creation"
    buyer = payer(bazaar, payees="pin")
    assert call("client", buyer, bazaar.url()).status_code == 200
    bazaar.hits.clear()
    bazaar.before["tool"] = lambda hit: terms("server402", PRICE, payTo=OTHER_PAYEE)
    with pytest.raises(OfferRefused) as caught:
        call("client", buyer, bazaar.url())
    assert caught.value.reason == "payee" and bazaar.at_market() == []


# --- the seller cannot steer ----------------------------------------------------------------------


def test_a_dear_offer_beside_the_live_one_changes_nothing(bazaar: Bazaar) -> None:
    bazaar.before["tool"] = saying(
        {"accepts": [offer_server402("900000"), offer_server402(str(PRICE))], "error": "pay"}, 402
    )
    bazaar.paid_at = "creation"
    receipt = receipt_of(call("client", payer(bazaar), bazaar.url()))
    assert receipt is not None and receipt.usd == USD


def test_a_dearer_marketplace_is_refused(bazaar: Bazaar) -> None:
    """Ten times the live price at the marketplace: nothing is signed, and no other route tried."""
    bazaar.asks, bazaar.extra = "object", {"amountCents": 200}
    buyer = payer(bazaar, wallet=WALLET, prefer=("token", "x402"))
    with pytest.raises(PaymentRefused) as caught:
        call("client", buyer, bazaar.url())
    assert caught.value.reason == "price" and not bazaar.proofs()
    assert states(buyer) == ["released"]


def test_a_price_without_an_offer_is_the_price(bazaar: Bazaar) -> None:
    """No entry of ``accepts`` can be paid by anybody here; the payment object names the price."""
    guarantee = {**offer_server402("1"), "scheme": "x402-guarantee"}
    bazaar.before["tool"] = saying(
        {"accepts": [guarantee], "payment": {"paymentId": "p", "amountCents": 20}}, 402
    )
    settled: list[str] = []

    def settle(document: Any) -> None:
        settled.append(document.payment_id)
        bazaar.pay(document.payment_id, "xiao")

    buyer = payer(bazaar, settle_payment=settle)
    receipt = receipt_of(call("client", buyer, bazaar.url()))
    assert receipt is not None and (receipt.usd, receipt.amount) == (USD, PRICE)
    assert (receipt.asset, receipt.network, receipt.pay_to) == (None, None, None)
    assert len(settled) == 1 and counted(buyer) == USD
    assert_sound(buyer, bazaar)


@pytest.mark.parametrize(
    "payment",
    [
        {},
        {"amountCents": 20},
        {"paymentId": "p"},
        {"paymentId": "p", "amountCents": 0},
        {"paymentId": "p", "amountCents": -3},
        {"paymentId": "p", "amountCents": 20, "currency": "XIAO"},
        {"paymentId": "../p", "amountCents": 20},
        "x",
        None,
    ],
)
def test_no_price_at_all(bazaar: Bazaar, payment: Any) -> None:
    bazaar.before["tool"] = saying({"accepts": [], "payment": payment}, 402)
    with pytest.raises(PaymentRefused) as caught:
        call("client", payer(bazaar), bazaar.url())
    assert caught.value.at_risk is False and bazaar.at_market() == []


def test_a_402_that_is_not_a_challenge_is_handed_back(bazaar: Bazaar) -> None:
    bazaar.before["tool"] = saying({"error": "quota"}, 402)
    buyer = payer(bazaar, token_origins=[bazaar.origin])
    answer = call("client", buyer, bazaar.url())
    assert answer.status_code == 402 and json.loads(answer.content) == {"error": "quota"}
    assert bazaar.at_market() == []


def test_a_price_that_rises_between_the_402_and_a_resumed_call(bazaar: Bazaar) -> None:
    """The reservation is for the old price; the identical call decides by the new one."""
    bazaar.after["create"] = lambda hit, reply: Reply(drop=True)
    caps = [Cap("0.3", per="total")]
    buyer = payer(bazaar, wallet=WALLET, prefer=("token",), caps=caps, poll_unpaid=0.05)
    with pytest.raises(Exception, match=r"disconnected|closed"):
        call("client", buyer, bazaar.url())
    assert buyer.reconcile() == []  # it may be paid: nobody gives it back unasked
    assert states(buyer) == ["reserved"] and counted(buyer) == USD
    bazaar.after.clear()
    bazaar.price = 400_000
    with pytest.raises(CapExceeded):
        call("client", buyer, bazaar.url())
    assert counted(buyer) == 0
    bazaar.price, bazaar.paid_at = 300_000, "creation"
    receipt = receipt_of(call("client", buyer, bazaar.url()))
    assert receipt is not None and receipt.usd == Decimal("0.3")
    assert_sound(buyer, bazaar)


def test_the_service_is_the_callers_url(bazaar: Bazaar) -> None:
    """Whatever the 402 calls itself, the token is asked for what was called."""
    bazaar.paid_at = "creation"
    other = f"{bazaar.origin}/api/tools/timestamp"
    bazaar.before["tool"] = saying(
        {"accepts": [offer_server402(str(PRICE))], "resource": other, "serviceId": "timestamp"}, 402
    )
    receipt = receipt_of(call("client", payer(bazaar), bazaar.url()))
    assert receipt is not None and receipt.service == SERVICE
    assert [sale.service for sale in bazaar.sales.values()] == [SERVICE]


@pytest.mark.parametrize("form", FORMS)
def test_a_wallet_signs_as_before(bazaar: Bazaar, form: str) -> None:
    """x402 at a tool path is paid directly, whatever the 402 looks like."""
    bazaar.form = form
    buyer = payer(bazaar, wallet=WALLET, token_origins=[bazaar.origin])
    receipt = receipt_of(call("client", buyer, bazaar.url()))
    assert receipt is not None and receipt.route == "x402"
    assert bazaar.steps() == ["tool", "sign"]
