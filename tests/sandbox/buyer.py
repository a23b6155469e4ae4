"""A buyer that shares no code with the library: httpx, eth-account and what the wire facts say."""

from __future__ import annotations

import base64
import json
import secrets
import time
from typing import Any, Self

import httpx
from eth_account import Account
from eth_account.signers.local import LocalAccount

USDC = "0x833589fCD6eDb6E08f4c7C32D4f71b54bdA02913"
NETWORK = "eip155:8453"
MASK = "/api/tools/mask-refinement"
LEGACY = "/api/tools/aliyun-imageseg-refine-mask"
TYPES = {
    "TransferWithAuthorization": [
        {"name": "from", "type": "address"},
        {"name": "to", "type": "address"},
        {"name": "value", "type": "uint256"},
        {"name": "validAfter", "type": "uint256"},
        {"name": "validBefore", "type": "uint256"},
        {"name": "nonce", "type": "bytes32"},
    ]
}

Json = dict[str, Any]


def encode(document: Any) -> str:
    return base64.b64encode(json.dumps(document).encode()).decode()


def decode(header: str) -> Json:
    document: Json = json.loads(base64.b64decode(header, validate=True))
    return document


def receipt(response: httpx.Response) -> Json:
    return decode(response.headers["PAYMENT-RESPONSE"])


class Buyer:
    """One wallet and one connection pool; *url* is the sandbox."""

    def __init__(self, url: str, **headers: str) -> None:
        self.wallet: LocalAccount = Account.create()
        self.http = httpx.Client(base_url=url, timeout=10, headers=headers, trust_env=False)
        self.pictures = {
            "ImageURL": f"{url}/static/photo.png",
            "MaskImageURL": f"{url}/static/mask.png",
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()

    @property
    def address(self) -> str:
        return str(self.wallet.address)

    def call(self, path: str = MASK, *, body: Any = None, **headers: str) -> httpx.Response:
        if path in (MASK, LEGACY):
            return self.http.post(path, json=body or self.pictures, headers=headers)
        return self.http.get(path, headers=headers)

    def offer(self, path: str = MASK) -> Json:
        response = self.call(path)
        assert response.status_code == 402
        return challenge_of(response)

    def authorize(self, offer: Json, *, domain: Json | None = None, **changes: Any) -> Json:
        """A signed EIP-3009 payload for *offer*; *changes* go into what is signed."""
        now = int(time.time())
        message = {
            "from": self.address,
            "to": offer["payTo"],
            "value": int(offer.get("amount") or offer["maxAmountRequired"]),
            "validAfter": 0,
            "validBefore": now + 60,
            "nonce": "0x" + secrets.token_hex(32),
        } | changes
        usdc = {"name": "USD Coin", "version": "2", "chainId": 8453, "verifyingContract": USDC}
        signed = self.wallet.sign_typed_data(usdc | (domain or {}), TYPES, message)
        wire = {k: str(v) if isinstance(v, int) else v for k, v in message.items()}
        return {"authorization": wire, "signature": "0x" + signed.signature.hex()}

    def proof(self, challenge: Json, payload: Json | None = None) -> Json:
        offer = challenge["accepts"][0]
        proof = {
            "x402Version": 2,
            "accepted": offer,
            "payload": payload or self.authorize(offer),
            "extensions": challenge.get("extensions", {}),
        }
        return proof | ({"resource": challenge["resource"]} if "resource" in challenge else {})

    def pay(self, path: str = MASK, **changes: Any) -> httpx.Response:
        """Ask, sign, and call again; *changes* go into the authorization."""
        challenge = self.offer(path)
        payload = self.authorize(challenge["accepts"][0], **changes)
        return self.show(self.proof(challenge, payload), path)

    def show(self, proof: Json, path: str = MASK) -> httpx.Response:
        return self.call(path, **{"PAYMENT-SIGNATURE": encode(proof)})

    def create_payment(self, **more: Any) -> httpx.Response:
        body = {"serviceId": "mask-refinement"} | more
        return self.http.post("/api/payments", json=body)

    def read_payment(self, payment_id: str) -> httpx.Response:
        return self.http.get(f"/api/payments/{payment_id}")

    def token(self, token: str, path: str = MASK) -> httpx.Response:
        return self.call(path, **{"X-Payment-Token": token})


def challenge_of(response: httpx.Response) -> Json:
    if "PAYMENT-REQUIRED" in response.headers:
        return decode(response.headers["PAYMENT-REQUIRED"])
    document: Json = response.json()
    return document
