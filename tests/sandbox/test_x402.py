"""Paying by signature: the four challenge forms, every rejection, every fault of settlement."""

from __future__ import annotations

import time
from typing import Any

import httpx
import pytest
from eth_account import Account

from tests.sandbox.buyer import (
    MASK,
    NETWORK,
    USDC,
    Buyer,
    Json,
    challenge_of,
    decode,
    encode,
    receipt,
)
from tests.sandbox.conftest import Open
from x402_mask.sandbox import Sandbox

N = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141


# -- the challenge and the happy path, form by form


def test_the_attested_challenge_has_exactly_the_documented_shape(
    shop: Sandbox, buyer: Buyer
) -> None:
    response = buyer.call()
    assert response.status_code == 402
    assert "PAYMENT-REQUIRED" not in response.headers
    document = response.json()
    assert list(document) == ["accepts", "error", "extensions"]
    assert document["error"] == "payment required"
    offer = document["accepts"][0]
    assert offer.pop("outputSchema")["input"]["method"] == "POST"
    assert offer == {
        "amount": "200000",
        "asset": USDC,
        "maxTimeoutSeconds": 300,
        "network": NETWORK,
        "payTo": shop.pay_to,
        "scheme": "exact",
    }
    assert next(iter(document["extensions"]["bazaar"])) == "description"


def test_paying_the_attested_challenge_moves_the_money_and_delivers(
    shop: Sandbox, buyer: Buyer
) -> None:
    response = buyer.pay()
    assert response.status_code == 200
    told = receipt(response)
    assert told == {
        "success": True,
        "transaction": told["transaction"],
        "network": NETWORK,
        "payer": buyer.address,
        "amount": "200000",
    }
    assert len(bytes.fromhex(told["transaction"][2:])) == 32
    assert shop.book.balance(buyer.address) == 9_800_000
    assert shop.book.balance(shop.pay_to) == 200_000
    (settled,) = shop.book.settlements
    assert (settled.service, settled.amount) == ("mask-refinement", 200_000)
    assert (settled.payer, settled.transaction) == (buyer.address, told["transaction"])


def test_v2_in_the_header(opened: Open) -> None:
    _, buyer = opened(challenge="v2-header")
    response = buyer.call()
    assert response.json() == {}
    challenge = challenge_of(response)
    assert challenge["x402Version"] == 2
    assert challenge["resource"]["url"] == str(buyer.http.base_url.join(MASK))
    assert challenge["accepts"][0]["extra"] == {"name": "USD Coin", "version": "2"}
    assert receipt(buyer.show(buyer.proof(challenge)))["success"]


def test_v2_in_the_body(opened: Open) -> None:
    _, buyer = opened(challenge="v2-body")
    response = buyer.call()
    assert "PAYMENT-REQUIRED" not in response.headers
    assert response.json()["x402Version"] == 2
    assert receipt(buyer.show(buyer.proof(response.json())))["success"]


def test_v1(opened: Open) -> None:
    shop, buyer = opened(challenge="v1")
    challenge = buyer.offer()
    assert (challenge["x402Version"], "extensions" in challenge) == (1, False)
    offer = challenge["accepts"][0]
    assert (offer["network"], offer["maxAmountRequired"]) == ("base", "200000")
    proof = {"x402Version": 1, "scheme": "exact", "network": "base"}
    response = buyer.call(**{"X-PAYMENT": encode(proof | {"payload": buyer.authorize(offer)})})
    assert response.status_code == 200
    told = decode(response.headers["X-PAYMENT-RESPONSE"])
    assert (told["success"], told["network"]) == (True, "base")
    assert len(shop.book.settlements) == 1
    wrong = proof | {"network": NETWORK, "payload": buyer.authorize(offer)}
    refused = buyer.call(**{"X-PAYMENT": encode(wrong)})
    assert (refused.status_code, refused.json()["error"]) == (402, "network_mismatch")


@pytest.mark.parametrize("form", ["attested", "v2-header", "v2-body"])
def test_a_v1_header_is_no_proof_in_version_2(opened: Open, form: str) -> None:
    shop, buyer = opened(challenge=form)
    proof = encode(buyer.proof(buyer.offer()))
    assert buyer.call(**{"X-PAYMENT": proof}).status_code == 402
    assert shop.book.settlements == []


@pytest.mark.parametrize(
    ("path", "amount"),
    [
        ("/api/tools/timestamp", "30000"),
        ("/api/tools/random-uuid", "50000"),
        ("/api/tools/aliyun-imageseg-refine-mask", "200000"),
    ],
)
def test_other_services_and_the_legacy_alias(buyer: Buyer, path: str, amount: str) -> None:
    challenge = buyer.offer(path)
    assert challenge["accepts"][0]["amount"] == amount
    paid = buyer.show(buyer.proof(challenge), path)
    assert paid.status_code == 200
    assert set(paid.json()) & {"isoTime", "uuid", "data"}


def test_prices_and_balances_can_be_set(opened: Open) -> None:
    shop, buyer = opened(price_cents={"timestamp": 7}, default_balance=100_000)
    assert receipt(buyer.pay("/api/tools/timestamp"))["amount"] == "70000"
    assert shop.book.balance(buyer.address) == 30_000
    assert buyer.pay("/api/tools/timestamp").status_code == 402
    shop.book.fund(buyer.address, 70_000)
    assert buyer.pay("/api/tools/timestamp").status_code == 200


# -- rejections: nothing is settled, the challenge comes again with the reason


def refused(shop: Sandbox, response: httpx.Response, reason: str) -> None:
    assert (response.status_code, response.json()["error"]) == (402, reason)
    assert response.json()["accepts"]
    assert "PAYMENT-RESPONSE" not in response.headers
    assert shop.book.settlements == []


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"domain": {"name": "USDC"}}, "invalid_exact_evm_payload_signature"),
        ({"domain": {"version": "1"}}, "invalid_exact_evm_payload_signature"),
        ({"domain": {"chainId": 1}}, "invalid_exact_evm_payload_signature"),
        (
            {"domain": {"verifyingContract": "0x" + "11" * 20}},
            "invalid_exact_evm_payload_signature",
        ),
        ({"from": "0x" + "22" * 20}, "invalid_exact_evm_payload_signature"),
        ({"to": "0x" + "33" * 20}, "invalid_exact_evm_payload_recipient_mismatch"),
        ({"value": 199_999}, "invalid_exact_evm_payload_authorization_value_mismatch"),
        ({"value": 200_001}, "invalid_exact_evm_payload_authorization_value_mismatch"),
    ],
)
def test_a_wrong_authorization(shop: Sandbox, buyer: Buyer, change: Json, reason: str) -> None:
    refused(shop, buyer.pay(**change), reason)


def test_validity_is_judged_by_the_clock_with_six_seconds_left(opened: Open) -> None:
    now = 1_800_000_000
    shop, buyer = opened(clock=lambda: now)
    before, after = "authorization_valid_before", "authorization_valid_after"
    cases: list[tuple[Json, str]] = [
        ({"validBefore": now + 5}, before),
        ({"validBefore": now - 100}, before),
        ({"validBefore": now + 60, "validAfter": now + 1}, after),
    ]
    for change, part in cases:
        refused(shop, buyer.pay(**change), f"invalid_exact_evm_payload_{part}")
    assert buyer.pay(validBefore=now + 6, validAfter=now).status_code == 200


def test_a_balance_too_small(shop: Sandbox, buyer: Buyer) -> None:
    shop.book.fund(buyer.address, 199_999)
    refused(shop, buyer.pay(), "invalid_exact_evm_insufficient_balance")
    assert shop.book.balance(buyer.address) == 199_999


def test_a_nonce_pays_once(shop: Sandbox, buyer: Buyer) -> None:
    proof = buyer.proof(buyer.offer())
    assert buyer.show(proof).status_code == 200
    again = buyer.show(proof)
    assert again.json()["error"] == "invalid_exact_evm_nonce_already_used"
    nonce = proof["payload"]["authorization"]["nonce"]
    assert buyer.pay(nonce=nonce).status_code == 402
    assert len(shop.book.settlements) == 1
    with Buyer(shop.url) as other:
        assert other.pay(nonce=nonce).status_code == 200, "nonces are per payer"


@pytest.mark.parametrize("name", ["scheme", "network", "asset", "amount", "payTo", "outputSchema"])
def test_the_accepted_offer_must_be_the_live_one(shop: Sandbox, buyer: Buyer, name: str) -> None:
    challenge = buyer.offer()
    proof = buyer.proof(challenge)
    proof["accepted"] = challenge["accepts"][0] | {name: "other"}
    reasons = {"scheme": "unsupported_scheme", "network": "network_mismatch"}
    response = buyer.show(proof)
    refused(shop, response, reasons.get(name, "No matching payment requirements"))
    if name not in reasons:
        assert response.json()["detail"] == f"differs in: {name}"


def test_the_echo_may_add_nothing_and_drop_nothing(shop: Sandbox, buyer: Buyer) -> None:
    proof = buyer.proof(buyer.offer())
    extra = {"name": "USD Coin", "version": "2"}
    added = proof | {"accepted": proof["accepted"] | {"extra": extra}}
    refused(shop, buyer.show(added), "No matching payment requirements")
    dropped = {k: v for k, v in proof["accepted"].items() if k != "outputSchema"}
    refused(shop, buyer.show(proof | {"accepted": dropped}), "No matching payment requirements")


def test_extensions_may_be_left_out_but_not_changed(shop: Sandbox, buyer: Buyer) -> None:
    proof = buyer.proof(buyer.offer())
    changed: Json = {"bazaar": {"info": {"input": {}}}}
    refused(shop, buyer.show(proof | {"extensions": changed}), "extension_echo_mismatch")
    refused(shop, buyer.show(proof | {"extensions": {"bazaar": 1}}), "extension_echo_mismatch")
    assert buyer.show(proof | {"extensions": {}}).status_code == 200


@pytest.mark.parametrize("version", [1, 3, "2", True, None])
def test_the_version_must_be_two(shop: Sandbox, buyer: Buyer, version: Any) -> None:
    proof = buyer.proof(buyer.offer()) | {"x402Version": version}
    refused(shop, buyer.show(proof), "invalid_x402_version")


def test_a_header_too_long(shop: Sandbox, buyer: Buyer) -> None:
    proof = buyer.proof(buyer.offer())
    refused(shop, buyer.show(proof | {"padding": "x" * 25_000}), "invalid_payload")
    assert buyer.show(proof | {"padding": "x" * 15_000}).status_code == 200


def _altered(proof: Json, **fields: Any) -> Json:
    payload = proof["payload"]
    return proof | {"payload": payload | {"authorization": payload["authorization"] | fields}}


@pytest.mark.parametrize(
    "header",
    ["", "?", "e30", encode([]), encode("x"), encode({})],
    ids=["empty", "not-base64", "unpadded", "list", "string", "object"],
)
def test_a_header_that_is_no_proof(shop: Sandbox, buyer: Buyer, header: str) -> None:
    response = buyer.call(**{"PAYMENT-SIGNATURE": header})
    assert response.status_code == 402
    assert response.json()["error"] in {"invalid_payload", "invalid_x402_version"}
    assert shop.book.settlements == []


@pytest.mark.parametrize(
    "fields",
    [
        {"value": 200_000},
        {"value": "2e5"},
        {"value": "0200000"},
        {"value": "-1"},
        {"value": "٢٠٠٠٠٠"},
        {"validBefore": str(2**256)},
        {"nonce": "0x12"},
        {"nonce": None},
        {"from": "me"},
    ],
    ids=str,
)
def test_a_malformed_authorization(shop: Sandbox, buyer: Buyer, fields: Json) -> None:
    proof = _altered(buyer.proof(buyer.offer()), **fields)
    refused(shop, buyer.show(proof), "invalid_payload")


@pytest.mark.parametrize("missing", ["accepted", "payload"])
def test_a_proof_with_a_part_missing(shop: Sandbox, buyer: Buyer, missing: str) -> None:
    proof = buyer.proof(buyer.offer())
    del proof[missing]
    refused(shop, buyer.show(proof), "invalid_payload")


def test_signatures_no_token_would_take(shop: Sandbox, buyer: Buyer) -> None:
    proof = buyer.proof(buyer.offer())
    signature = bytes.fromhex(proof["payload"]["signature"][2:])
    r, s, v = signature[:32], int.from_bytes(signature[32:64]), signature[64]
    high_s = r + (N - s).to_bytes(32) + bytes([55 - v])
    for bad in (high_s, signature[:64] + bytes([v - 27]), bytes(64) + bytes([27])):
        altered = proof | {"payload": proof["payload"] | {"signature": "0x" + bad.hex()}}
        refused(shop, buyer.show(altered), "invalid_exact_evm_payload_signature")
    short = proof | {"payload": proof["payload"] | {"signature": "0x" + signature[:64].hex()}}
    refused(shop, buyer.show(short), "invalid_payload")


def test_only_one_proof_at_a_time(shop: Sandbox, buyer: Buyer) -> None:
    proof = encode(buyer.proof(buyer.offer()))
    both = [("PAYMENT-SIGNATURE", proof), ("X-Payment-Token", "x")]
    twice = [("PAYMENT-SIGNATURE", proof), ("PAYMENT-SIGNATURE", proof)]
    for headers in (both, twice):
        response = buyer.http.post(MASK, json=buyer.pictures, headers=headers)
        assert response.status_code == 400
    assert shop.book.settlements == []


# -- payment-identifier


def identified(buyer: Buyer, identifier: Any) -> Json:
    challenge = buyer.offer()
    proof = buyer.proof(challenge)
    given = challenge["extensions"]["payment-identifier"]
    named = given | {"info": given["info"] | {"id": identifier}}
    return proof | {"extensions": challenge["extensions"] | {"payment-identifier": named}}


def test_same_id_and_proof_get_the_same_answer(opened: Open) -> None:
    shop, buyer = opened(payment_identifier="optional")
    proof = identified(buyer, "pay_" + "0" * 32)
    first, second = buyer.show(proof), buyer.show(proof)
    assert (first.status_code, first.content) == (200, second.content)
    assert receipt(first) == receipt(second)
    assert len(shop.book.settlements) == 1
    assert buyer.pay().status_code == 200, "without an id each proof is new"


def test_same_id_with_another_proof_is_a_conflict(opened: Open) -> None:
    shop, buyer = opened(payment_identifier="required")
    assert buyer.show(identified(buyer, "a" * 16)).status_code == 200
    assert buyer.show(identified(buyer, "a" * 16)).status_code == 409
    assert len(shop.book.settlements) == 1


@pytest.mark.parametrize("identifier", [None, "short", "ü" * 20, "x" * 129, 7])
def test_a_required_id_must_be_there_and_sound(opened: Open, identifier: Any) -> None:
    shop, buyer = opened(payment_identifier="required")
    assert buyer.offer()["extensions"]["payment-identifier"]["info"] == {"required": True}
    assert buyer.show(identified(buyer, identifier)).status_code == 400
    assert buyer.pay().status_code == 400
    proof = buyer.proof(buyer.offer())
    odd = proof | {"extensions": {"payment-identifier": {"info": identifier}}}
    assert buyer.show(odd).status_code == 400
    assert shop.book.settlements == []


def test_an_id_is_free_again_after_a_rejected_proof(opened: Open) -> None:
    shop, buyer = opened(payment_identifier="optional")
    shop.book.fund(buyer.address, 0)
    assert buyer.show(identified(buyer, "b" * 16)).status_code == 402
    shop.book.fund(buyer.address, 200_000)
    assert buyer.show(identified(buyer, "b" * 16)).status_code == 200


def test_a_lost_answer_is_given_again_to_the_same_id(opened: Open) -> None:
    shop, buyer = opened(payment_identifier="optional", faults={"drop-after-settle": 1})
    proof = identified(buyer, "c" * 16)
    with pytest.raises(httpx.RemoteProtocolError):
        buyer.show(proof)
    again = buyer.show(proof)
    assert (again.status_code, receipt(again)["success"]) == (200, True)
    assert len(shop.book.settlements) == 1


# -- faults of settlement


def test_slow_settle_settles_before_it_waits(opened: Open) -> None:
    shop, buyer = opened(faults={"slow-settle": 1}, slow_settle=1.0)
    proof = buyer.proof(buyer.offer())
    with pytest.raises(httpx.ReadTimeout):
        buyer.http.post(
            MASK,
            json=buyer.pictures,
            headers={"PAYMENT-SIGNATURE": encode(proof)},
            timeout=httpx.Timeout(5, read=0.3),
        )
    assert len(shop.book.settlements) == 1
    started = time.monotonic()
    assert buyer.pay().status_code == 200
    assert time.monotonic() - started < 1, "it was to be slow once"


def test_drop_after_settle_cuts_the_connection(opened: Open) -> None:
    shop, buyer = opened(faults={"drop-after-settle": True})
    for count in (1, 2):
        with pytest.raises(httpx.RemoteProtocolError, match="without sending a response"):
            buyer.pay()
        assert len(shop.book.settlements) == count


def test_500_after_settle_has_the_receipt_unless_told_otherwise(opened: Open) -> None:
    shop, buyer = opened(faults={"500-after-settle": True})
    response = buyer.pay()
    assert (response.status_code, receipt(response)["success"]) == (500, True)
    shop.faults.set("no-receipt")
    response = buyer.pay()
    assert response.status_code == 500
    assert "PAYMENT-RESPONSE" not in response.headers
    assert len(shop.book.settlements) == 2


def test_no_receipt(opened: Open) -> None:
    shop, buyer = opened(faults={"no-receipt": 1})
    first, second = buyer.pay(), buyer.pay()
    assert (first.status_code, "PAYMENT-RESPONSE" in first.headers) == (200, False)
    assert receipt(second)["success"]
    assert len(shop.book.settlements) == 2


def test_success_false_lies_about_a_settlement(opened: Open) -> None:
    shop, buyer = opened(faults={"success-false": True})
    response = buyer.pay()
    assert (response.status_code, receipt(response)["success"]) == (200, False)
    assert len(shop.book.settlements) == 1


def test_wrong_amount_receipt_claims_fifty_times_as_much(opened: Open) -> None:
    shop, buyer = opened(faults={"wrong-amount-receipt": True})
    assert receipt(buyer.pay())["amount"] == "10000000"
    assert shop.book.settlements[0].amount == 200_000


def test_settlement_pending_is_honoured_when_shown_again(opened: Open) -> None:
    shop, buyer = opened(faults={"settlement-pending": 1})
    proof = buyer.proof(buyer.offer())
    pending = buyer.show(proof)
    assert (pending.status_code, pending.json()) == (402, {})
    told = receipt(pending)
    assert (told["success"], told["errorReason"]) == (False, "settlement_pending")
    done = buyer.show(proof)
    assert done.status_code == 200
    assert receipt(done)["transaction"] == told["transaction"]
    assert len(shop.book.settlements) == 1
    assert buyer.show(proof).json()["error"] == "invalid_exact_evm_nonce_already_used"


def test_price_changed_refuses_the_proof_of_the_old_price(opened: Open) -> None:
    shop, buyer = opened(faults={"price-changed": 1})
    response = buyer.pay()
    refused(shop, response, "No matching payment requirements")
    assert response.json()["accepts"][0]["amount"] == "400000"
    assert receipt(buyer.pay())["amount"] == "400000"


# -- the judge against a reference


def test_an_official_client_pays_it(opened: Open) -> None:
    """PyPI x402 signs and encodes on its own; the judge must agree."""
    from x402 import x402ClientSync
    from x402.http.x402_http_client import x402HTTPClientSync
    from x402.mechanisms.evm.exact import register_exact_evm_client
    from x402.mechanisms.evm.signers import EthAccountSigner

    shop, buyer = opened(challenge="v2-header")
    client = x402ClientSync()
    register_exact_evm_client(client, EthAccountSigner(Account.create()))
    http = x402HTTPClientSync(client)
    response = buyer.call()
    headers, _ = http.handle_402_response(
        dict(response.headers), response.content, request_url=str(response.url)
    )
    paid = buyer.call(**headers)
    assert paid.status_code == 200, paid.text
    assert shop.book.settlements[0].amount == 200_000
