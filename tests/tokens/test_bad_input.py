"""What a marketplace may say wrongly: a typed error says what, and money never moves twice."""

from __future__ import annotations

import gzip
import json
import time
from email.utils import formatdate
from typing import Any

import pytest

from tests.support.seller import OTHER_PAYEE, PAYEE, Hit, Reply, offer_server402
from tests.tokens.bazaar import (
    PAYMENTS,
    PRICE,
    SERVICE,
    Bazaar,
    answered,
    lost,
    nothing,
    once,
    saying,
)
from tests.tokens.shop import USD, WALLET, assert_sound, call, counted, payer, states
from x402_mask import (
    Cap,
    ChallengeError,
    Payer,
    PaymentError,
    PaymentRefused,
    TermsRefused,
    TokenFlowError,
    receipt_of,
)
from x402_mask._flow.tokens import purchase

TOKEN_ONLY: dict[str, Any] = {"prefer": ("held-token", "token")}


def refused(bazaar: Bazaar, colour: str = "client", **options: Any) -> PaymentError:
    """The error of a call for which nothing moved."""
    buyer = payer(bazaar, **{**TOKEN_ONLY, "poll_unpaid": 0.05, **options})
    with pytest.raises(PaymentError) as caught:
        call(colour, buyer, bazaar.url())
    assert caught.value.at_risk is False, caught.value
    assert counted(buyer) == 0 and set(states(buyer)) <= {"released"}
    assert bazaar.moved == [] and "redeem" not in bazaar.steps()
    assert caught.value.response.status_code == 402
    assert_sound(buyer, bazaar)
    return caught.value


def paid_once(bazaar: Bazaar, buyer: Payer, times: int = 3) -> None:
    """Identical calls fail, and say that money may have moved: it did, and once."""
    for _ in range(times):
        with pytest.raises(TokenFlowError) as caught:
            call("client", buyer, bazaar.url())
        assert caught.value.at_risk
    assert len(bazaar.moved) == 1
    assert_sound(buyer, bazaar)


# --- terms ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("amountCents", 21, "price"),
        ("amountCents", 2000, "price"),
        ("amountCents", 0, "price"),
        ("amountCents", 19.5, "price"),
        ("currency", "EUR", "price"),
        ("serviceId", "timestamp", "service"),
        ("serviceId", "x://y", "service"),
        ("serviceId", "http://[", "service"),
        ("serviceId", "*", "service"),
        ("service_id", "timestamp", "service"),
        ("payTo", OTHER_PAYEE, "payee"),
        ("payTo", "0xMerchantAddress", "payee"),
    ],
)
@pytest.mark.parametrize("way", ["x402", "settle"])
def test_other_terms_than_the_live_offer(
    bazaar: Bazaar, field: str, value: Any, reason: str, way: str
) -> None:
    """The payment object is not for this service, price or payee: nothing is signed or settled."""
    settled: list[Any] = []
    bazaar.extra = {field: value}
    bazaar.asks = "object" if way == "x402" else None
    error = refused(bazaar, wallet=WALLET if way == "x402" else None, settle_payment=settled.append)
    assert isinstance(error, TermsRefused) and error.reason == reason
    assert isinstance(error, TokenFlowError) and error.quote is not None
    assert settled == [] and "prove" not in bazaar.steps()


@pytest.mark.parametrize(
    ("wallet", "paid_at"), [(None, "creation"), (None, 2), (WALLET, "creation")]
)
def test_a_payee_that_nobody_here_pays(bazaar: Bazaar, wallet: Any, paid_at: Any) -> None:
    """A balance pays: whom the payment object names does not matter."""
    bazaar.extra, bazaar.paid_at = {"payTo": "0xMerchantAddress"}, paid_at
    buyer = payer(bazaar, wallet=wallet, **TOKEN_ONLY)
    assert call("client", buyer, bazaar.url()).status_code == 200
    assert counted(buyer) == USD
    assert_sound(buyer, bazaar)


def test_another_payee_ends_the_call_before_it_waits(bazaar: Bazaar) -> None:
    """A wallet might pay it: no balance is waited for, and no other route is tried."""
    bazaar.extra = {"payTo": OTHER_PAYEE}
    error = refused(bazaar, wallet=WALLET, prefer=("token", "x402"), poll_unpaid=60)
    assert isinstance(error, TermsRefused) and error.reason == "payee"
    assert "poll" not in bazaar.steps() and "sign" not in bazaar.steps()


@pytest.mark.parametrize("payee", [PAYEE.lower(), None])
def test_the_same_payee_in_other_letters(bazaar: Bazaar, payee: Any) -> None:
    bazaar.asks, bazaar.extra = "object", {"payTo": payee}
    buyer = payer(bazaar, wallet=WALLET, **TOKEN_ONLY)
    assert call("client", buyer, bazaar.url()).status_code == 200


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"amount": "300000"}, "price"),
        ({"amount": "100000"}, "price"),
        ({"payTo": OTHER_PAYEE}, "payee"),
        ({"network": "eip155:137"}, "price"),
        ({"asset": OTHER_PAYEE}, "price"),
        ({"maxTimeoutSeconds": 5}, "validity"),
        ({"extra": {"name": "Not USDC", "version": "2"}}, "domain"),
        ({"scheme": "upto"}, "scheme"),
    ],
)
def test_the_payments_endpoint_asks_for_something_else(
    bazaar: Bazaar, changes: dict[str, Any], reason: str
) -> None:
    """Only the live offer is signed, wherever it is asked for."""
    entry = {**offer_server402(str(PRICE)), **changes}
    bazaar.before["create"] = saying({"error": "pay", "accepts": [entry]}, 402)
    assert getattr(refused(bazaar, wallet=WALLET), "reason", None) == reason


def test_the_live_offer_among_others_is_the_one_signed(bazaar: Bazaar) -> None:
    cheaper, live = offer_server402("1", payTo=OTHER_PAYEE), offer_server402(str(PRICE))
    bazaar.before["create"] = saying({"accepts": [cheaper, live]}, 402)
    buyer = payer(bazaar, wallet=WALLET, **TOKEN_ONLY)
    assert call("client", buyer, bazaar.url()).status_code == 200
    (authorization,) = bazaar.authorizations()
    assert (authorization.to, authorization.value) == (PAYEE, PRICE)


def test_paid_already_on_other_terms(bazaar: Bazaar) -> None:
    """A balance paid for another service: it counts, and the error says that money may be gone."""
    bazaar.paid_at, bazaar.extra = "creation", {"serviceId": "timestamp"}
    buyer = payer(bazaar)
    with pytest.raises(TokenFlowError, match="timestamp") as caught:
        call("client", buyer, bazaar.url())
    assert caught.value.at_risk is True
    assert counted(buyer) == USD and bazaar.served == 0
    assert_sound(buyer, bazaar)


def test_paid_already_beside_offers_that_cannot_be_read(bazaar: Bazaar) -> None:
    """What is paid is paid: nobody looks at what else it would have cost."""
    bazaar.paid_at, bazaar.extra = "creation", {"accepts": [7] * 100, "x402Version": 99}
    buyer = payer(bazaar, wallet=WALLET, **TOKEN_ONLY)
    assert call("client", buyer, bazaar.url()).status_code == 200
    assert_sound(buyer, bazaar)


def test_offers_that_cannot_be_read(bazaar: Bazaar) -> None:
    bazaar.extra = {"accepts": [7] * 100}
    assert isinstance(refused(bazaar, wallet=WALLET), ChallengeError)


@pytest.mark.parametrize("status", ["expired", "exhausted"])
@pytest.mark.parametrize("released", [False, True])
def test_a_balance_paid_and_its_token_is_lost(bazaar: Bazaar, status: str, released: bool) -> None:
    """Nobody was there to take the token: that payment counts, and so does the next."""
    buyer = payer(bazaar, poll_unpaid=0.02)
    if not released:
        bazaar.before["poll"] = once(lambda hit: Reply(drop=True), nothing)
    with pytest.raises(Exception, match=r"disconnected|closed|balance"):
        call("client", buyer, bazaar.url())
    assert states(buyer) == ["released" if released else "reserved"]
    (first,) = bazaar.sales.values()
    bazaar.pay(first.id, "balance")
    first.status, bazaar.paid_at = status, "creation"
    assert call("client", buyer, bazaar.url()).status_code == 200
    assert len(bazaar.moved) == 2 and counted(buyer) == 2 * USD
    assert states(buyer)[-2:] == ["settled", "settled"]
    assert_sound(buyer, bazaar)


def test_a_payment_that_expired_unpaid_counts_nothing(bazaar: Bazaar) -> None:
    buyer = payer(bazaar, poll_unpaid=0.02)
    with pytest.raises(TokenFlowError):
        call("client", buyer, bazaar.url())
    next(iter(bazaar.sales.values())).status = "expired"
    bazaar.paid_at = "creation"
    assert call("client", buyer, bazaar.url()).status_code == 200
    assert len(bazaar.sales) == 2 and counted(buyer) == USD
    assert_sound(buyer, bazaar)


def test_a_sub_cent_price(bazaar: Bazaar) -> None:
    """Whole cents cannot hold it: the live offer is the price."""
    bazaar.price, bazaar.paid_at = 1000, "creation"
    buyer = payer(bazaar)
    receipt = receipt_of(call("client", buyer, bazaar.url()))
    assert receipt is not None and receipt.amount == 1000
    assert (
        str(receipt.usd) == "0.001"
        and bazaar.document(next(iter(bazaar.sales.values())))["amountCents"] == 0
    )
    assert_sound(buyer, bazaar)


def test_terms_that_change_before_a_resumed_purchase(bazaar: Bazaar) -> None:
    """The answer to creating was lost; then the tool names another payee: policy decides anew."""
    bazaar.asks = "server402"
    bazaar.after["create"] = once(lost, answered)
    buyer = payer(bazaar, wallet=WALLET, payees="pin", **TOKEN_ONLY)
    with pytest.raises(Exception, match=r"disconnected|closed") as caught:
        call("client", buyer, bazaar.url())
    assert not isinstance(caught.value, PaymentError)
    moved = [offer_server402(str(PRICE), payTo=OTHER_PAYEE)]
    bazaar.before["tool"] = bazaar.before["create"] = saying({"accepts": moved}, 402)
    with pytest.raises(PaymentError) as again:
        call("client", buyer, bazaar.url())
    assert getattr(again.value, "reason", None) == "payee"
    assert bazaar.authorizations() == [] and counted(buyer) == 0
    bazaar.before.clear()
    assert call("client", buyer, bazaar.url()).status_code == 200
    assert_sound(buyer, bazaar)


def test_a_pinned_payee_without_a_live_offer(bazaar: Bazaar) -> None:
    """Where the tool names a price and no payee, the payments endpoint cannot bring in its own."""
    bazaar.asks = "server402"
    bazaar.before["tool"] = saying(
        {"accepts": [], "payment": {"paymentId": "p", "amountCents": 20}}, 402
    )
    error = refused(bazaar, wallet=WALLET, payees="pin")
    assert getattr(error, "reason", None) == "payee"
    buyer = payer(bazaar, wallet=WALLET, payees="pin")
    buyer.accept_payee(SERVICE, PAYEE, bazaar.origin)
    assert call("client", buyer, bazaar.url()).status_code == 200


# --- answers that are no payment ------------------------------------------------------------------

BOMB = gzip.compress(b" " * (8 << 20))
GARBAGE: dict[str, Reply] = {
    "empty": Reply(status=201),
    "not json": Reply(status=200, body=b"<html>"),
    "used up": Reply(status=201, body=b'{"status": "exhausted"}'),
    "no id": Reply(status=201, body=b'{"status": "pending", "token": "t"}'),
    "paid, they say, and refuse": Reply(status=403, body=b'{"status": "paid", "token": "t"}'),
    "bad id": Reply(status=201, body=b'{"paymentId": "../../admin", "status": "pending"}'),
    "encoded": Reply(status=201, body=b'{"paymentId": "%2e%2e", "status": "pending"}'),
    "long id": Reply(status=201, body=json.dumps({"paymentId": "x" * 10_000}).encode()),
    "long": Reply(status=201, body=json.dumps({"paymentId": "p", "x": "y" * 70_000}).encode()),
    "bomb": Reply(status=201, body=BOMB, headers=[("Content-Encoding", "gzip")]),
    "coding": Reply(status=201, body=b"{}", headers=[("Content-Encoding", "br")]),
    "server error": Reply(status=500, body=b"oops"),
    "unauthorized": Reply(status=401, body=b'{"error": "key"}'),
    "402 of nothing": Reply(status=402, body=b'{"error": "no"}'),
    "negative": Reply(status=201, body=b'{"paymentId": "p", "amountCents": -20}'),
    "boolean": Reply(status=201, body=b'{"paymentId": "p", "amountCents": true}'),
    "expired": Reply(status=201, body=b'{"paymentId": "p", "status": "EXPIRED"}'),
    "elsewhere": Reply(status=307, headers=[("Location", "/elsewhere")]),
    "see other": Reply(status=303, headers=[("Location", "/elsewhere")]),
}


UNPAID = (
    "bad id",
    "encoded",
    "no id",
    "paid, they say, and refuse",
    "unauthorized",
    "402 of nothing",
    "negative",
    "boolean",
    "expired",
    "elsewhere",
)


@pytest.mark.parametrize("name", GARBAGE)
@pytest.mark.parametrize("colour", ["client", "async-attach"])
def test_no_payment_to_be_had(bazaar: Bazaar, name: str, colour: str) -> None:
    """Nothing was paid for; the reservation goes back."""
    bazaar.before["create"] = lambda hit: GARBAGE[name]
    error = refused(bazaar, colour, wallet=None if name in UNPAID else WALLET)
    assert isinstance(error, TokenFlowError), error
    assert len(str(error)) < 300


@pytest.mark.parametrize("name", sorted({*GARBAGE} - {*UNPAID}))
def test_an_answer_that_says_nothing(bazaar: Bazaar, name: str) -> None:
    """Only a balance can pay here, and may have done so: no other payment is created."""
    bazaar.paid_at = "creation"
    bazaar.after["create"] = lambda hit, reply: GARBAGE[name]
    paid_once(bazaar, payer(bazaar, **TOKEN_ONLY))


PAID_ODDLY: dict[str, dict[str, Any]] = {
    "no id": {"paymentId": None},
    "an id that is none": {"paymentId": "../../admin"},
    "no price": {"amountCents": "twenty"},
    "a negative price": {"amountCents": -20},
    "another price": {"amountCents": 2000},
    "another currency": {"currency": "EUR"},
    "another service": {"serviceId": "timestamp"},
    "no token": {"token": None},
}


@pytest.mark.parametrize("name", PAID_ODDLY)
@pytest.mark.parametrize("wallet", [None, WALLET])
def test_a_payment_made_and_paid_that_is_odd(bazaar: Bazaar, name: str, wallet: Any) -> None:
    """What says that it is paid counts, whatever is wrong with it; and no other is made."""
    bazaar.paid_at, bazaar.extra = "creation", PAID_ODDLY[name]
    paid_once(bazaar, payer(bazaar, wallet=wallet, poll_unpaid=0.05, **TOKEN_ONLY))


@pytest.mark.parametrize("name", sorted({*PAID_ODDLY} - {"no id", "an id that is none"}))
@pytest.mark.parametrize("wallet", [None, WALLET])
def test_a_payment_that_is_odd_once_it_is_paid(bazaar: Bazaar, name: str, wallet: Any) -> None:
    """The same of what is read later."""
    bazaar.paid_at = 1
    bazaar.shape = lambda said: {**said, **(PAID_ODDLY[name] if said["status"] == "paid" else {})}
    paid_once(bazaar, payer(bazaar, wallet=wallet, poll_unpaid=0.05, **TOKEN_ONLY))


@pytest.mark.parametrize("wallet", [None, WALLET])
def test_an_answer_about_a_known_payment_without_its_id(bazaar: Bazaar, wallet: Any) -> None:
    """It is about the one that was asked for, unpaid or paid."""
    bazaar.after["poll"] = lambda hit, reply: Reply(
        body=json.dumps({**json.loads(bytes(reply.body)), "paymentId": None}).encode()
    )
    buyer = payer(bazaar, wallet=wallet, poll_unpaid=0.05, **TOKEN_ONLY)
    with pytest.raises(TokenFlowError) as caught:
        call("client", buyer, bazaar.url())
    assert not caught.value.at_risk and counted(buyer) == 0
    bazaar.paid_at = 1
    assert call("client", buyer, bazaar.url()).status_code == 200
    assert len(bazaar.sales) == 1
    assert_sound(buyer, bazaar)


@pytest.mark.parametrize(
    "said",
    [
        '{"status": "paid", "paymentId": "p", "tok',
        '{"status": "paid", "paymentId": "p", "amountCents": Infinity}',
    ],
)
def test_what_says_paid_and_cannot_be_read(bazaar: Bazaar, said: str) -> None:
    """Then no other route is tried, and nothing else is paid, wallet or not."""
    bazaar.paid_at = "creation"
    bazaar.after["create"] = lambda hit, reply: Reply(body=said.encode())
    paid_once(bazaar, payer(bazaar, wallet=WALLET, prefer=("token", "x402")))
    assert bazaar.authorizations() == []


@pytest.mark.parametrize("wallet", [None, WALLET])
def test_polls_that_say_nothing_while_a_balance_pays(bazaar: Bazaar, wallet: Any) -> None:
    """Whether it paid is not known: the reservation stays, and the payment is gone on with."""
    bazaar.paid_at = 1
    bazaar.after["poll"] = lambda hit, reply: Reply(status=500, body=b"oops")
    buyer = payer(bazaar, wallet=wallet, poll_unpaid=0.05, **TOKEN_ONLY)
    paid_once(bazaar, buyer)
    bazaar.after.clear()
    assert call("client", buyer, bazaar.url()).status_code == 200
    assert len(bazaar.moved) == 1 and len(bazaar.sales) == 1
    assert_sound(buyer, bazaar)


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("status", [403, 404, 410])
def test_polls_that_deny_what_a_balance_paid(bazaar: Bazaar, status: int, named: bool) -> None:
    """A replica that lags, or another account's: it is not paid again by another route."""
    bazaar.after["create"] = lambda hit, reply: (bazaar.pay(*_unpaid(bazaar)), reply)[1]
    bazaar.after["poll"] = lambda hit, reply: Reply(status=status, body=b"gone")
    options: dict[str, Any] = {"balance_origins": [bazaar.origin]} if named else {}
    buyer = payer(bazaar, wallet=WALLET, prefer=("token", "x402"), poll_unpaid=0.05, **options)
    with pytest.raises(TokenFlowError) as caught:
        call("client", buyer, bazaar.url())
    assert caught.value.at_risk and states(buyer) == ["reserved"]
    assert len(bazaar.moved) == 1 and bazaar.authorizations() == []
    assert_sound(buyer, bazaar)


def _unpaid(bazaar: Bazaar) -> tuple[str, str]:
    (sale,) = bazaar.sales.values()
    return sale.id, "balance"


@pytest.mark.parametrize("answer", [Reply(drop=True), Reply(status=500, body=b"oops")])
@pytest.mark.parametrize("wallet", [None, WALLET])
def test_an_unpaid_payment_that_cannot_be_read_later(
    bazaar: Bazaar, answer: Reply, wallet: Any
) -> None:
    """Only a balance can pay it, and may have done so: no other payment is created."""
    buyer = payer(bazaar, wallet=wallet, poll_unpaid=0.02, **TOKEN_ONLY)
    with pytest.raises(TokenFlowError):
        call("client", buyer, bazaar.url())
    (sale,) = bazaar.sales.values()
    bazaar.pay(sale.id, "balance")
    bazaar.paid_at, bazaar.before["poll"] = "creation", lambda hit: answer
    for _ in range(2):
        with pytest.raises(Exception, match=r"disconnected|closed|answered 500"):
            call("client", buyer, bazaar.url())
    assert counted(buyer) == USD
    bazaar.before.clear()
    assert call("client", buyer, bazaar.url()).status_code == 200
    assert len(bazaar.moved) == 1
    assert_sound(buyer, bazaar)


def test_garbage_instead_of_a_poll_is_waited_out(bazaar: Bazaar) -> None:
    """One bad answer among good ones ends nothing."""
    bazaar.paid_at = 1
    bad = [
        Reply(status=500),
        Reply(status=429, headers=[("Retry-After", "0")]),
        Reply(body=b"["),
        Reply(body=b'{"paymentId": "another", "status": "paid", "token": "stolen"}'),
        Reply(body=BOMB, headers=[("Content-Encoding", "gzip")]),
    ]
    bazaar.before["poll"] = lambda hit: bad.pop() if bad else None
    buyer = payer(bazaar, poll_unpaid=3)
    assert call("client", buyer, bazaar.url()).status_code == 200
    assert not any("stolen" in str(hit.headers) for hit in bazaar.hits)
    assert_sound(buyer, bazaar)


@pytest.mark.parametrize("status", ["pending", "processing", "PAYED", "", None, 7])
def test_a_poll_that_never_ends(bazaar: Bazaar, status: Any) -> None:
    """Unknown words are not *paid*; the wait is bounded."""
    bazaar.extra = {"status": status}
    began = time.monotonic()
    refused(bazaar, poll_unpaid=0.2)
    assert time.monotonic() - began < 3


@pytest.mark.parametrize("status", ["expired", "EXHAUSTED"])
def test_a_terminal_status_ends_the_wait(bazaar: Bazaar, status: str) -> None:
    bazaar.after["poll"] = lambda hit, reply: Reply(
        body=json.dumps({"paymentId": hit.path.rpartition("/")[2], "status": status}).encode()
    )
    began = time.monotonic()
    refused(bazaar, poll_unpaid=30)
    assert time.monotonic() - began < 5 and bazaar.steps().count("poll") == 1


def test_a_terminal_status_of_what_a_balance_paid(bazaar: Bazaar) -> None:
    """Paid and gone between two polls: it counts, and the error says that money moved."""
    said = {"status": "exhausted", "paidAt": "2026-06-24T00:00:00Z"}
    bazaar.after["poll"] = lambda hit, reply: Reply(
        body=json.dumps({**said, "paymentId": hit.path.rpartition("/")[2]}).encode()
    )
    buyer = payer(bazaar, poll_unpaid=30)
    with pytest.raises(TokenFlowError, match="exhausted") as caught:
        call("client", buyer, bazaar.url())
    assert caught.value.at_risk and counted(buyer) == USD and states(buyer) == ["settled"]
    assert_sound(buyer, bazaar)


def test_a_payment_that_expires_ends_the_wait(bazaar: Bazaar) -> None:
    bazaar.extra = {"expiresAt": time.time() + 0.3}
    bazaar.shape = lambda said: {**said, "expiresAt": _iso(time.time() + 0.3)}
    began = time.monotonic()
    refused(bazaar, poll_unpaid=30)
    # each answer moves the end a little: the marketplace decides, within poll_unpaid
    assert time.monotonic() - began < 30


def test_an_end_that_stands_still_ends_the_wait(bazaar: Bazaar) -> None:
    until = _iso(time.time() + 0.3)
    bazaar.shape = lambda said: {**said, "expiresAt": until}
    began = time.monotonic()
    refused(bazaar, poll_unpaid=30)
    assert time.monotonic() - began < 5


def _iso(seconds: float) -> str:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(seconds, UTC).isoformat()


@pytest.mark.parametrize(
    "value",
    [
        "0",
        "1e9",
        "-1",
        "99999999",
        "x" * 5000,
        "",
        formatdate(time.time() + 3600, usegmt=True),
        formatdate(time.time() - 3600),
        "Mon, 99 Foo 2026 99:99:99 GMT",
        ",",
    ],
)
def test_retry_after(bazaar: Bazaar, value: str) -> None:
    """Honoured within the bound, whatever it says."""
    bazaar.after["poll"] = lambda hit, reply: Reply(
        headers=[("Retry-After", value)], body=reply.body
    )
    began = time.monotonic()
    refused(bazaar, poll_unpaid=0.2)
    assert time.monotonic() - began < 4


def test_retry_after_is_waited_for(bazaar: Bazaar) -> None:
    bazaar.paid_at = 2
    bazaar.after["poll"] = lambda hit, reply: Reply(headers=[("Retry-After", "1")], body=reply.body)
    began = time.monotonic()
    assert call("client", payer(bazaar, poll_unpaid=5), bazaar.url()).status_code == 200
    assert 1 <= time.monotonic() - began < 4


# --- redirects and foreign places -----------------------------------------------------------------


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("step", ["create", "prove", "poll"])
@pytest.mark.parametrize("colour", ["client", "attach", "async-attach"])
def test_a_payments_endpoint_that_redirects(
    bazaar: Bazaar, code: int, step: str, colour: str
) -> None:
    """Nothing secret goes to the other origin, and nothing is paid there or paid twice."""
    with Bazaar() as other:
        target = f"{other.origin}{PAYMENTS}"
        bazaar.asks = None if step == "poll" else "server402"
        bazaar.before[step] = lambda hit: Reply(status=code, headers=[("Location", target)])
        secrets = {"X-Api-Key": "sesame", "Cookie": "a=b"}
        buyer = payer(
            bazaar, wallet=WALLET, marketplace_headers=secrets, poll_unpaid=0.05, **TOKEN_ONLY
        )
        options = {"client": {"follow_redirects": True, "cookies": {"session": "s"}}}
        with pytest.raises(PaymentError) as caught:
            call(colour, buyer, bazaar.url(), **options)
        sent_on = step == "create" and code in (307, 308)  # else it may have been done, and paid
        at_risk = not sent_on or colour != "client"  # which alone sees the code
        assert caught.value.at_risk is at_risk
        for hit in other.hits:
            said = str(hit.headers).lower() + hit.body.decode()
            assert not hit.proofs and "sesame" not in said and "a=b" not in said
            assert "session" not in said
        assert len({proof.raw for proof in bazaar.proofs()}) == (step == "prove")
        assert other.moved == []
        assert counted(buyer) == (USD if at_risk else 0)
        if step == "prove":
            bazaar.before.clear()
            assert call(colour, buyer, bazaar.url(), **options).status_code == 200
            assert len(bazaar.moved) == 1
        assert_sound(buyer, bazaar)


def test_a_foreign_payments_url_is_ignored(bazaar: Bazaar) -> None:
    with Bazaar() as other:
        bazaar.paid_at = 2
        links = {
            "paymentUrl": other.origin,
            "createPayment": {"url": f"{other.origin}{PAYMENTS}"},
            "verifyPayment": f"{other.origin}/x",
        }
        bazaar.extra = links
        bazaar.after["tool"] = lambda hit, reply: Reply(
            status=402, body=json.dumps({**json.loads(bytes(reply.body)), **links}).encode()
        )
        assert call("client", payer(bazaar), bazaar.url()).status_code == 200
        assert other.hits == []


# --- lies after the money moved -------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"success": False},
        {"amount": "1"},
        {"payer": OTHER_PAYEE},
        {"network": "eip155:1"},
        {"transaction": ""},
    ],
)
def test_a_settlement_that_does_not_agree(bazaar: Bazaar, changes: dict[str, Any]) -> None:
    """The token is used and the answer handed back; the payment is not called settled."""
    from tests.support.seller import settlement

    bazaar.asks = "server402"
    bazaar.after["prove"] = lambda hit, reply: Reply(
        body=reply.body, headers=[settlement(hit, **changes)]
    )
    buyer = payer(bazaar, wallet=WALLET, **TOKEN_ONLY)
    answer = call("client", buyer, bazaar.url())
    receipt = receipt_of(answer)
    assert answer.status_code == 200 and receipt is not None
    assert (receipt.outcome, receipt.transaction) == ("unknown", None)
    assert states(buyer) == ["held"] and counted(buyer) == USD
    assert_sound(buyer, bazaar)


@pytest.mark.parametrize(
    "reply",
    [
        Reply(status=402, body=b'{"error": "again"}'),
        Reply(status=500, body=b"oops"),
        Reply(drop=True),
        Reply(reset=True),
        Reply(status=200, body=b"{"),
        Reply(status=200, body=b'{"paymentId": "x/../y", "status": "paid"}'),
    ],
)
@pytest.mark.parametrize("processed", [False, True])
def test_a_proof_whose_answer_says_nothing(bazaar: Bazaar, reply: Reply, processed: bool) -> None:
    """Held; the identical call shows the same bytes, and one token is bought."""
    bazaar.asks = "server402"
    if processed:
        bazaar.after["prove"] = once(lambda hit, honest: reply, answered)
    else:
        bazaar.before["prove"] = once(lambda hit: reply, nothing)
    buyer = payer(bazaar, wallet=WALLET, **TOKEN_ONLY)
    with pytest.raises(Exception) as caught:
        call("client", buyer, bazaar.url())
    if isinstance(caught.value, PaymentError):
        assert caught.value.at_risk is True
    assert states(buyer) == ["held"]
    assert call("client", buyer, bazaar.url()).status_code == 200
    assert len({proof.raw for proof in bazaar.proofs() if proof.header != "x-payment-token"}) == 1
    assert len(bazaar.moved) == len(bazaar.bought) == 1
    assert_sound(buyer, bazaar)


@pytest.mark.parametrize("resign", ["expired", "never"])
def test_a_proof_that_expires_unheard(bazaar: Bazaar, resign: Any) -> None:
    """While it lives the same bytes; then, if the owner allows it, a new one: both count."""
    late = [0.0]
    bazaar.asks = "server402"
    bazaar.before["prove"] = lambda hit: Reply(status=503, body=b"busy")
    buyer = payer(
        bazaar, wallet=WALLET, resign=resign, clock=lambda: time.time() + late[0], **TOKEN_ONLY
    )
    for seconds in (0, 100, 325):  # 300 s, and 30 s of margin
        late[0] = seconds
        with pytest.raises(TokenFlowError) as caught:
            call("client", buyer, bazaar.url())
        assert caught.value.at_risk and counted(buyer) == USD
    assert len({proof.raw for proof in bazaar.proofs()}) == 1
    late[0] = 335
    bazaar.before.clear()
    if resign == "never":
        with pytest.raises(PaymentRefused) as refusal:
            call("client", buyer, bazaar.url())
        assert refusal.value.reason == "resign" and counted(buyer) == USD
        return
    assert call("client", buyer, bazaar.url()).status_code == 200
    assert len({proof.raw for proof in bazaar.proofs() if proof.header != "x-payment-token"}) == 2
    assert states(buyer) == ["held", "settled"] and counted(buyer) == 2 * USD
    assert_sound(buyer, bazaar)


def test_a_payment_that_names_no_end_dies_with_its_proof(bazaar: Bazaar) -> None:
    """Else a seller could keep an operation for ever: it counts, and another is bought."""
    late, slow = [0.0], [True]
    bazaar.asks = "server402"
    bazaar.shape = lambda said: {
        **said,
        "expiresAt": None,
        **({"status": "pending", "token": None} if slow[0] else {}),
    }
    buyer = payer(
        bazaar, wallet=WALLET, poll_paid=0.02, clock=lambda: time.time() + late[0], **TOKEN_ONLY
    )
    with pytest.raises(TokenFlowError):
        call("client", buyer, bazaar.url())
    bazaar.before["poll"] = lambda hit: Reply(
        body=json.dumps({"paymentId": hit.path.rpartition("/")[2], "status": "pending"}).encode()
    )
    slow[0], late[0] = False, 335
    assert call("client", buyer, bazaar.url()).status_code == 200
    assert len(bazaar.moved) == 2 and counted(buyer) == 2 * USD
    assert_sound(buyer, bazaar)


@pytest.mark.parametrize("ends", ["paid", "past"])
@pytest.mark.parametrize("way", ["server402", "object"])
def test_a_proof_that_was_taken_and_is_not_paid_yet(bazaar: Bazaar, ends: str, way: str) -> None:
    """Its proof is dead; but until the payment is, what was paid may bring its token."""
    late, slow = [0.0], [True]
    bazaar.asks = way
    bazaar.shape = lambda said: {**said, "status": "pending", "token": None} if slow[0] else said
    buyer = payer(
        bazaar, wallet=WALLET, poll_paid=0.02, clock=lambda: time.time() + late[0], **TOKEN_ONLY
    )
    for seconds in (0, 335, 600):
        late[0] = seconds
        with pytest.raises(TokenFlowError) as caught:
            call("client", buyer, bazaar.url())
        assert caught.value.at_risk and counted(buyer) == USD
    assert len(bazaar.moved) == bazaar.steps().count("prove") == 1  # a dead proof is not shown
    slow[0], late[0] = False, 600 if ends == "paid" else 100_000
    if ends == "past":
        old = {sale.id: {"status": "pending"} for sale in bazaar.sales.values()}
        fresh = {"expiresAt": None}
        bazaar.shape = lambda said: {**said, **old.get(said["paymentId"], fresh)}
    assert call("client", buyer, bazaar.url()).status_code == 200
    assert len(bazaar.moved) == (1 if ends == "paid" else 2)
    assert counted(buyer) == USD * len(bazaar.moved)
    assert_sound(buyer, bazaar)


def test_a_proof_that_was_taken_unheard_brings_its_token_even_late(bazaar: Bazaar) -> None:
    """The marketplace knows the payment: it is asked before the proof is given up."""
    late = [0.0]
    bazaar.asks = "object"
    bazaar.after["prove"] = lost
    buyer = payer(bazaar, wallet=WALLET, clock=lambda: time.time() + late[0], **TOKEN_ONLY)
    with pytest.raises(Exception, match=r"disconnected|closed"):
        call("client", buyer, bazaar.url())
    first, second = bazaar.sales.values()
    bazaar.sales[first.id] = second  # as a marketplace does that pays the payment it made
    second.id = first.id
    late[0] = 335
    assert call("client", buyer, bazaar.url()).status_code == 200
    assert len(bazaar.moved) == 1 and counted(buyer) == USD
    assert states(buyer) == ["settled"]


def test_settle_payment_is_called_once(bazaar: Bazaar) -> None:
    """It failed, and may have paid all the same: it is never called again for this payment."""
    called = []

    def settle(document: Any) -> None:
        called.append(document.payment_id)
        raise OSError("secret of the rail")

    buyer = payer(bazaar, settle_payment=settle, poll_paid=0.05)
    for _ in range(2):
        with pytest.raises(TokenFlowError) as caught:
            call("client", buyer, bazaar.url())
        assert caught.value.at_risk and "secret" not in str(caught.value)
    assert len(called) == 1 and counted(buyer) == USD
    bazaar.pay(called[0], "settle")
    assert call("client", buyer, bazaar.url()).status_code == 200
    assert len(bazaar.sales) == 1 and states(buyer) == ["settled"]
    assert_sound(buyer, bazaar)


def test_paid_and_then_expired_says_the_marketplace(bazaar: Bazaar) -> None:
    """It is asked again: until the operation's proof is dead, nothing is bought twice."""
    buyer = payer(
        bazaar,
        settle_payment=lambda d: bazaar.pay(d.payment_id, "settle"),
        caps=[Cap("0.4", per="total")],
    )
    bazaar.after["poll"] = once(
        lambda hit, reply: Reply(
            body=json.dumps(
                {"paymentId": hit.path.rpartition("/")[2], "status": "expired"}
            ).encode()
        ),
        answered,
    )
    with pytest.raises(TokenFlowError, match="expired") as caught:
        call("client", buyer, bazaar.url())
    assert caught.value.at_risk and counted(buyer) == USD
    assert call("client", buyer, bazaar.url()).status_code == 200
    assert counted(buyer) == USD and len(bazaar.sales) == 1
    assert_sound(buyer, bazaar)


def test_polls_of_what_was_paid_are_bounded(bazaar: Bazaar) -> None:
    buyer = payer(bazaar, settle_payment=lambda document: None, poll_paid=0.2)
    began = time.monotonic()
    with pytest.raises(TokenFlowError) as caught:
        call("client", buyer, bazaar.url())
    assert time.monotonic() - began < 3 and caught.value.at_risk
    assert counted(buyer) == USD


def test_the_first_wait_is_short() -> None:
    """Guards the fixture that shortens it: the product has a bounded growth."""
    assert 1 < purchase._GROWTH <= 2 and purchase._DELAY_MAX_S <= 10


def test_hit_of_nothing(bazaar: Bazaar) -> None:
    """A tool that asks, and a marketplace that is not there."""
    bazaar.before["create"] = lambda hit: Reply(status=404, body=b"no such page")
    assert isinstance(refused(bazaar), TokenFlowError)
    assert all(isinstance(hit, Hit) for hit in bazaar.hits)
