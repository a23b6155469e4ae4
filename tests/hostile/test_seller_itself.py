"""The scripted seller tells the truth about what reached it."""

from __future__ import annotations

import secrets
import socket
import time
from typing import Any

import httpx
import pytest
from eth_account import Account

from tests.hostile.kit import KEY
from tests.support.seller import (
    BASE,
    PAYEE,
    USDC,
    Reply,
    Seller,
    Token,
    encode,
    offer,
    sequence,
    served,
    v2_header,
)

_FIELDS = [
    ("from", "address"),
    ("to", "address"),
    ("value", "uint256"),
    ("validAfter", "uint256"),
    ("validBefore", "uint256"),
    ("nonce", "bytes32"),
]
_TYPES = {"TransferWithAuthorization": [{"name": n, "type": t} for n, t in _FIELDS]}


def signed(value: int = 1000, token: Token = USDC, name: str = "", nonce: str = "") -> str:
    """A payment header made by hand."""
    account = Account.from_key(KEY)
    message: dict[str, Any] = {
        "from": account.address,
        "to": PAYEE,
        "value": value,
        "validAfter": 0,
        "validBefore": int(time.time()) + 60,
        "nonce": nonce or "0x" + secrets.token_hex(32),
    }
    domain = {
        "name": name or token.name,
        "version": token.version,
        "chainId": token.chain_id,
        "verifyingContract": token.address,
    }
    signature = account.sign_typed_data(domain, _TYPES, message).signature
    texts = {key: str(item) for key, item in message.items()}
    payload = {"authorization": texts, "signature": "0x" + bytes(signature).hex()}
    accepted = offer(str(value), token=token)
    return encode({"x402Version": 2, "accepted": accepted, "payload": payload})


def test_distinct_valid_authorizations_are_counted_once() -> None:
    """A repeated proof is one authorization; another nonce is another."""
    with Seller() as seller:
        url = seller.sells()
        first, second = signed(), signed(2000)
        for raw in (first, first, second):
            httpx.get(url, headers={"PAYMENT-SIGNATURE": raw})
        assert sorted(one.value for one in seller.authorizations()) == [1000, 2000]
        assert seller.totals()[PAYEE, USDC.address] == 3000
        assert {one.network for one in seller.authorizations()} == {BASE}


def test_a_signature_that_fits_no_token_is_not_collectable() -> None:
    """A forged message or a made-up domain counts nothing."""
    with Seller() as seller:
        url = seller.sells()
        httpx.get(url, headers={"PAYMENT-SIGNATURE": signed(name="Not USDC")})
        httpx.get(url, headers={"X-PAYMENT": "garbage"})
        assert seller.authorizations() == []
        assert len(seller.proofs()) == 2


def test_requests_are_recorded_as_they_stood_on_the_wire() -> None:
    """Order, case and repeats of headers, chunked and sized bodies."""
    with Seller() as seller:
        url = seller.on("/x", Reply(body=b"ok"))
        headers = [("X-D", "a"), ("x-d", "b")]
        httpx.post(url, headers=headers, content=b"sized")
        httpx.post(url, content=(part for part in (b"chun", b"ked")))
        assert [h for h in seller.hits[0].headers if h[0].lower() == "x-d"] == headers
        assert [hit.body for hit in seller.hits] == [b"sized", b"chunked"]


def test_drops_resets_and_cuts_reach_the_client() -> None:
    """Each way to break a connection is a different error at the buyer."""
    with Seller() as seller:
        dropped = seller.on("/drop", Reply(drop=True))
        reset = seller.on("/reset", Reply(reset=True))
        cut = seller.on("/cut", Reply(body=b"x" * 100, cut=10))
        with pytest.raises(httpx.RemoteProtocolError):
            httpx.get(dropped)
        with pytest.raises(httpx.NetworkError):
            httpx.get(reset)
        with pytest.raises(httpx.RemoteProtocolError):
            httpx.get(cut)


def test_streams_repeat_headers_and_scripts_run_in_order() -> None:
    """Two challenges in one head, a lazy chunked body, one answer after another."""
    with Seller() as seller:
        double = Reply(status=402, headers=[*v2_header(offer()).headers] * 2)
        stream = Reply(body=iter([b"a", b"b"]), framing="chunked")
        url = seller.on("/x", sequence(double, stream, served()))
        assert len(httpx.get(url).headers.get_list("payment-required")) == 2
        assert httpx.get(url).content == b"ab"
        settled = httpx.get(url, headers={"PAYMENT-SIGNATURE": signed()})
        assert settled.headers["payment-response"]


def test_a_closed_seller_refuses_connections() -> None:
    """Nothing listens after ``close``."""
    seller = Seller()
    seller.close()
    port = int(seller.origin.rpartition(":")[2])
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", port), timeout=1)


@pytest.mark.parametrize(
    "cut",
    [
        b"PO",
        b"POST /paid HTTP/1.1",
        b"POST /paid HTTP/1.1\r\nconte",
        b"POST /paid HTTP/1.1\r\nContent-Length: ",
        b"POST /paid HTTP/1.1\r\nContent-Length: 5\r\n",
        b"POST /paid HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1",
    ],
)
def test_a_client_that_goes_away_in_mid_request_is_no_error(
    cut: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread of the seller's that died of it would be counted against whatever test runs then."""
    died: list[Any] = []
    monkeypatch.setattr("threading.excepthook", died.append)
    with Seller() as seller:
        with socket.create_connection(("127.0.0.1", httpx.URL(seller.origin).port)) as client:
            client.sendall(cut)
        seller.wait_for(lambda: not seller.open_connections())
        assert httpx.get(seller.sells(offer())).status_code == 402
    assert died == [] and seller.errors == []
