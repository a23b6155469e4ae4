"""What the wallet has to pay with is said before a seller says it, and what to fund a new one with."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.cli.conftest import ADDRESS, Cli
from tests.support.seller import USDC, Hit, Reply, Seller, offer, v2_header

BASE = "eip155:8453"


def chain(balance: object, chain_id: int = 8453) -> Any:
    """An RPC endpoint that knows one balance."""

    def answer(hit: Hit) -> Reply:
        asked = json.loads(hit.body)
        found: object = hex(chain_id)
        if asked["method"] == "eth_call":
            call, block = asked["params"]
            assert call["to"].lower() == USDC.address.lower() and block == "latest"
            assert call["data"] == "0x70a08231" + "0" * 24 + ADDRESS[2:].lower()
            found = f"0x{balance:064x}" if isinstance(balance, int) else balance
        document = {"jsonrpc": "2.0", "id": asked["id"], "result": found}
        return Reply(
            headers=[("Content-Type", "application/json")], body=json.dumps(document).encode()
        )

    return answer


@pytest.fixture
def rpc(seller: Seller) -> dict[str, str]:
    return {"X402_MASK_RPC": f"{BASE}={seller.origin}/rpc?key=sesame"}


@pytest.mark.parametrize(
    ("balance", "status", "told"),
    [
        (5_000_000, "ok", "has $5.00 in USD Coin on base (eip155:8453)"),
        (1, "ok", "has $0.000001 in USD Coin"),
        (0, "warn", "has $0.00 in USD Coin on base (eip155:8453)"),
        ("0x", "warn", "an unknown amount of USD Coin"),
        ("sesame", "warn", "an unknown amount of USD Coin"),
    ],
)
def test_doctor_reads_the_balance(
    cli: Cli, seller: Seller, rpc: dict[str, str], balance: object, status: str, told: str
) -> None:
    seller.on("/rpc", chain(balance))
    done = cli("doctor", "--json", **rpc)
    (found,) = [c for c in done.document["checks"] if c["name"] == "balance"]
    assert found["status"] == status and told in found["detail"]
    assert "sesame" not in done.text + done.err
    if balance == 0:
        assert "send it USD Coin on base" in found["advice"] and ADDRESS in found["detail"]


def test_doctor_asks_no_chain_that_it_cannot(cli: Cli, seller: Seller) -> None:
    checks = cli("doctor", "--json").document["checks"]
    assert not [check for check in checks if check["name"] == "balance"]


@pytest.mark.parametrize(
    ("balance", "told"),
    [
        (5_000_000, "the wallet has $5.00 in USD Coin on base (eip155:8453)"),
        (
            99_999,
            "the wallet has $0.099999 in USD Coin on base (eip155:8453), too little: " + ADDRESS,
        ),
        ("0x", "an unknown amount of USD Coin"),
    ],
)
def test_quote_reads_the_balance(
    cli: Cli, seller: Seller, rpc: dict[str, str], balance: object, told: str
) -> None:
    seller.on("/rpc", chain(balance))
    seller.on("/api/tools/thing", v2_header(offer("100000")))
    done = cli("quote", "thing", **rpc)
    assert done.code == 0 and told in done.words
    document = cli("quote", "thing", "--json", **rpc).document
    amount = balance if isinstance(balance, int) else None
    assert document["balance"]["amount"] == amount
    assert "balance" in cli("quote", "thing", "--json").document
    assert cli("quote", "thing", "--json").document["balance"] is None


def test_an_endpoint_of_another_chain_is_not_asked_for_it(
    cli: Cli, seller: Seller, rpc: dict[str, str]
) -> None:
    seller.on("/rpc", chain(5_000_000, chain_id=1))
    seller.on("/api/tools/thing", v2_header(offer("100000")))
    assert "an unknown amount" in cli("quote", "thing", **rpc).words


def test_what_to_fund_a_new_wallet_with(bare: Cli) -> None:
    locked = bare.having(X402_MASK_KEYSTORE_PASSWORD="correct horse")
    said = locked("wallet", "new", "--path", "a.json").words
    assert f"USD Coin ({USDC.address}) on base ({BASE})" in said
    (fund,) = locked("wallet", "new", "--path", "b.json", "--json").document["fund"]
    assert fund == {"network": BASE, "asset": USDC.address, "name": "USD Coin"}
    (bare.home / "s.toml").write_text('networks = ["base-sepolia", "eip155:137"]')
    said = locked("wallet", "new", "--path", "c.json", "--config", "s.toml").words
    for word in ("on base-sepolia (eip155:84532)", "on polygon (eip155:137)"):
        assert word in said
    assert locked("wallet", "new", "--path", "d.json", X402_MASK_CAPS="nonsense").code == 0
