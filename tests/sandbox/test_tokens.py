"""Paying by token: creating, paying, polling and redeeming marketplace payments."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

import httpx
import pytest

from tests.sandbox.buyer import Buyer, Json, encode, receipt
from tests.sandbox.conftest import Open
from x402_mask.sandbox import Sandbox


class Clock:
    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


def paid(shop: Sandbox, buyer: Buyer) -> Json:
    """A payment that some other rail paid."""
    payment_id = buyer.create_payment().json()["paymentId"]
    shop.book.mark_paid(payment_id)
    document: Json = buyer.read_payment(payment_id).json()
    return document


def test_a_pending_payment_has_the_documented_keys(shop: Sandbox, buyer: Buyer) -> None:
    response = buyer.create_payment()
    assert response.status_code == 201
    payment = response.json()
    assert list(payment) == sorted(payment)
    expires = datetime.fromisoformat(payment.pop("expiresAt"))
    assert 590 < expires.timestamp() - shop.settings.clock() <= 600
    assert payment.pop("paymentId").startswith("pay_")
    assert payment.pop("clientId").startswith("client_")
    assert payment == {
        "amountCents": 20,
        "billingMode": "per_call",
        "currency": "USD",
        "internalServiceId": "aliyun-imageseg-refine-mask",
        "maxCalls": 1,
        "paidAt": None,
        "payTo": shop.pay_to,
        "provider": "x402_facilitator",
        "providerId": "x402-base-usdc",
        "remainingCalls": 1,
        "serviceId": "mask-refinement",
        "status": "pending",
    }


def test_each_post_creates_another_payment(buyer: Buyer) -> None:
    ids = {buyer.create_payment().json()["paymentId"] for _ in range(3)}
    assert len(ids) == 3


def test_a_paid_token_buys_one_call(shop: Sandbox, buyer: Buyer) -> None:
    payment = paid(shop, buyer)
    assert (payment["status"], payment["paidAt"] is None) == ("paid", False)
    response = buyer.token(payment["token"])
    assert response.status_code == 200
    assert response.json()["code"] == "200"
    again = buyer.token(payment["token"])
    assert again.status_code == 402
    assert again.json()["error"] == "payment exhausted"
    assert again.json()["accepts"]
    shown = again.json()["payment"]
    assert (shown["status"], shown["remainingCalls"]) == ("exhausted", 0)
    assert "token" not in shown
    assert shop.book.settlements == []


def test_an_unpaid_token_cannot_exist_but_a_guess_buys_nothing(buyer: Buyer) -> None:
    assert "token" not in buyer.create_payment().json()
    response = buyer.token("guess")
    assert (response.status_code, response.json()["error"]) == (402, "payment token is unknown")


def test_the_token_is_in_no_repr(shop: Sandbox, buyer: Buyer) -> None:
    token = paid(shop, buyer)["token"]
    assert token not in repr(shop.book.payments)


def test_a_token_is_for_its_service(shop: Sandbox, buyer: Buyer) -> None:
    payment = paid(shop, buyer)
    response = buyer.token(payment["token"], "/api/tools/timestamp")
    assert response.json()["error"] == "payment token is for another service"
    assert buyer.token(payment["token"]).status_code == 200


@pytest.mark.parametrize(("binding", "status"), [("user-agent", 402), ("ip", 200), ("off", 200)])
def test_a_token_is_for_its_client(opened: Open, binding: str, status: int) -> None:
    shop, buyer = opened(bind_client=binding)
    payment = paid(shop, buyer)
    with Buyer(shop.url, **{"User-Agent": "someone else"}) as other:
        read = other.read_payment(payment["paymentId"])
        assert read.status_code == (403 if status == 402 else 200)
        assert other.token(payment["token"]).status_code == status


def test_payments_and_tokens_expire(opened: Open) -> None:
    clock = Clock()
    shop, buyer = opened(clock=clock, payment_ttl=60)
    bought, pending = paid(shop, buyer), buyer.create_payment().json()
    clock.now += 60
    assert buyer.read_payment(pending["paymentId"]).json()["status"] == "expired"
    with pytest.raises(ValueError, match="expired"):
        shop.book.mark_paid(pending["paymentId"])
    response = buyer.token(bought["token"])
    assert (response.status_code, response.json()["error"]) == (402, "payment expired")
    assert response.json()["payment"]["status"] == "expired"


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({}, 400),
        ({"serviceId": 7}, 400),
        ([], 400),
        ({"serviceId": "mask-refinement", "providerId": "other"}, 400),
        ({"serviceId": "unknown"}, 404),
        ({"serviceId": "aliyun-imageseg-refine-mask", "providerId": "x402-base-usdc"}, 201),
    ],
)
def test_the_request_is_checked(buyer: Buyer, body: Any, status: int) -> None:
    response = buyer.http.post("/api/payments", json=body)
    assert response.status_code == status
    if status != 201:
        assert isinstance(response.json()["error"], str)
    else:
        assert response.json()["serviceId"] == "mask-refinement"


def test_what_is_not_json_or_not_there(buyer: Buyer) -> None:
    assert buyer.http.post("/api/payments", content=b"{").status_code == 400
    assert buyer.read_payment("pay_none").status_code == 404
    assert buyer.http.get("/api/payments").status_code == 405
    assert buyer.http.post("/api/payments", content=b"x" * 70_000).status_code == 413


def test_a_pending_payment_says_when_to_ask_again(opened: Open) -> None:
    shop, buyer = opened(retry_after=3)
    payment_id = buyer.create_payment().json()["paymentId"]
    assert buyer.read_payment(payment_id).headers["Retry-After"] == "3"
    shop.book.mark_paid(payment_id)
    assert "Retry-After" not in buyer.read_payment(payment_id).headers


# -- ways to be paid


def test_the_newer_build_returns_no_token(opened: Open) -> None:
    _, buyer = opened(build="newer", auto_paid=True)
    payment = buyer.create_payment().json()
    assert (payment["status"], "token" in payment) == ("paid", False)
    assert "token" not in buyer.read_payment(payment["paymentId"]).json()
    assert buyer.pay().status_code == 200


def test_a_balance_pays_at_once(opened: Open) -> None:
    _, buyer = opened(auto_paid=True)
    payment = buyer.create_payment().json()
    assert payment["status"] == "paid"
    assert buyer.token(payment["token"]).status_code == 200


def test_a_balance_pays_after_some_reads(opened: Open) -> None:
    _, buyer = opened(auto_paid=3)
    payment_id = buyer.create_payment().json()["paymentId"]
    states = [buyer.read_payment(payment_id).json()["status"] for _ in range(4)]
    assert states == ["pending", "pending", "paid", "paid"]


def pay_payment(buyer: Buyer, challenge: Json, **body: Any) -> tuple[httpx.Response, Json]:
    proof = buyer.proof(challenge)
    body = {"serviceId": "mask-refinement"} | body
    header = {"PAYMENT-SIGNATURE": encode(proof)}
    return buyer.http.post("/api/payments", json=body, headers=header), proof


def test_the_payments_endpoint_can_ask_for_x402(opened: Open) -> None:
    shop, buyer = opened(payments_ask="402")
    asked = buyer.create_payment()
    assert (asked.status_code, asked.json()["accepts"][0]["amount"]) == (402, "200000")
    response, proof = pay_payment(buyer, asked.json())
    assert (response.status_code, response.json()["status"]) == (201, "paid")
    assert receipt(response)["success"]
    again = buyer.http.post(
        "/api/payments",
        json={"serviceId": "mask-refinement"},
        headers={"PAYMENT-SIGNATURE": encode(proof)},
    )
    assert again.json()["paymentId"] == response.json()["paymentId"], "the same proof resumes"
    assert len(shop.book.settlements) == 1
    assert buyer.token(response.json()["token"]).status_code == 200


def test_the_payment_can_list_what_it_accepts(opened: Open) -> None:
    shop, buyer = opened(payments_ask="accepts")
    older, newer = buyer.create_payment().json(), buyer.create_payment().json()
    assert older["status"] == "pending"
    response, _ = pay_payment(buyer, older, paymentId=older["paymentId"])
    assert response.json()["paymentId"] == older["paymentId"]
    response, _ = pay_payment(buyer, newer)
    assert response.json()["paymentId"] == newer["paymentId"]
    response, _ = pay_payment(buyer, newer)
    assert response.json()["paymentId"] not in (older["paymentId"], newer["paymentId"])
    assert len(shop.book.settlements) == 3


def test_a_proof_pays_no_payment_of_other_terms(opened: Open) -> None:
    faults = {"price-changed": 1, "payee-differs": 1}
    _, buyer = opened(payments_ask="accepts", faults=faults)
    other = buyer.create_payment().json()
    response, _ = pay_payment(buyer, other, paymentId=other["paymentId"])
    assert response.json()["paymentId"] != other["paymentId"]
    assert buyer.read_payment(other["paymentId"]).json()["status"] == "pending"


def test_a_wrong_proof_buys_no_payment(opened: Open) -> None:
    shop, buyer = opened(payments_ask="402")
    challenge = buyer.create_payment().json()
    shop.book.fund(buyer.address, 0)
    response, _ = pay_payment(buyer, challenge)
    assert (response.status_code, shop.book.payments) == (402, [])


def test_a_proof_is_ignored_where_none_was_asked_for(shop: Sandbox, buyer: Buyer) -> None:
    response, _ = pay_payment(buyer, buyer.offer())
    assert (response.json()["status"], shop.book.settlements) == ("pending", [])


def test_a_lost_answer_of_the_payments_endpoint_is_resumed(opened: Open) -> None:
    shop, buyer = opened(payments_ask="402", faults={"drop-after-settle": 1})
    challenge = buyer.create_payment().json()
    proof = buyer.proof(challenge)
    send: Callable[[], httpx.Response] = lambda: buyer.http.post(  # noqa: E731
        "/api/payments",
        json={"serviceId": "mask-refinement"},
        headers={"PAYMENT-SIGNATURE": encode(proof)},
    )
    with pytest.raises(httpx.RemoteProtocolError):
        send()
    (payment,) = shop.book.payments
    assert send().json()["paymentId"] == payment.payment_id
    assert len(shop.book.settlements) == 1


# -- faults


def test_token_missing_and_null(opened: Open) -> None:
    shop, buyer = opened(faults={"token-missing": 1})
    payment = paid(shop, buyer)
    assert (payment["status"], "token" in payment) == ("paid", False)
    assert buyer.read_payment(payment["paymentId"]).json()["token"], "it comes late"
    shop.faults.set("token-null")
    assert paid(shop, buyer)["token"] is None


def test_token_for_other_service(opened: Open) -> None:
    shop, buyer = opened(faults={"token-for-other-service": 1})
    payment = paid(shop, buyer)
    assert payment["serviceId"] == "mask-refinement"
    assert buyer.token(payment["token"]).status_code == 402
    assert buyer.token(payment["token"], "/api/tools/random-uuid").status_code == 200


def test_price_changed_and_payee_differs(opened: Open) -> None:
    shop, buyer = opened(faults={"price-changed": 1, "payee-differs": 1})
    payment = buyer.create_payment().json()
    offer = buyer.offer()["accepts"][0]
    assert (payment["amountCents"], offer["amount"]) == (40, "200000")
    assert payment["payTo"] != offer["payTo"] == shop.pay_to
    assert buyer.create_payment().json()["amountCents"] == 20


def test_poll_never_ends(opened: Open) -> None:
    clock = Clock()
    shop, buyer = opened(faults={"poll-never-ends": True}, clock=clock)
    payment = paid(shop, buyer)
    assert (payment["status"], payment["paidAt"], "token" in payment) == ("pending", None, False)
    clock.now += 10_000
    assert buyer.read_payment(payment["paymentId"]).json()["status"] == "pending"


@pytest.mark.parametrize("state", ["expired", "exhausted"])
def test_a_good_token_is_lost(opened: Open, state: str) -> None:
    shop, buyer = opened()
    payment = paid(shop, buyer)
    shop.faults.set(f"{state}-token", 1)
    response = buyer.token(payment["token"])
    assert (response.status_code, response.json()["payment"]["status"]) == (402, state)
    assert buyer.token(payment["token"]).status_code == 402, "and stays lost"


def test_402_after_token_keeps_the_token_good(opened: Open) -> None:
    shop, buyer = opened(faults={"402-after-token": 1})
    payment = paid(shop, buyer)
    response = buyer.token(payment["token"])
    assert (response.status_code, response.json()["error"]) == (402, "payment required")
    assert "payment" not in response.json()
    assert buyer.token(payment["token"]).status_code == 200


def test_a_token_is_taken_before_the_answer_is_lost(opened: Open) -> None:
    shop, buyer = opened(faults={"drop-after-settle": 1})
    payment = paid(shop, buyer)
    with pytest.raises(httpx.RemoteProtocolError):
        buyer.token(payment["token"])
    assert buyer.token(payment["token"]).json()["error"] == "payment exhausted"


def test_a_payment_may_be_good_for_several_calls(opened: Open) -> None:
    shop, buyer = opened(calls_per_payment=2)
    payment = paid(shop, buyer)
    assert (payment["maxCalls"], payment["remainingCalls"]) == (2, 2)
    assert [buyer.token(payment["token"]).status_code for _ in range(3)] == [200, 200, 402]
    with pytest.raises(ValueError, match="at least one"):
        Sandbox(calls_per_payment=0)
