"""Golden vectors, bit for bit, and eth-account as an independent opinion (EIP-712, EIP-3009)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from eth_account import Account
from eth_account.messages import _hash_eip191_message, encode_typed_data
from hypothesis import given
from hypothesis import strategies as st

from x402_mask import Asset, Cap, MemoryLedger, Payer, Wallet
from x402_mask._crypto.eip712 import (
    TRANSFER_TYPES,
    asset_domain,
    checksum,
    domain_separator,
    keccak,
    transfer_digest,
    typed_data_digest,
)
from x402_mask._payer import buyer_of
from x402_mask._policy.offers import Choice, choose
from x402_mask._schemes.exact_eip3009 import Authorization, ExactEip3009
from x402_mask._schemes.scheme import Moment
from x402_mask._wallets.local import checked_signature
from x402_mask._wire.assets import EIP3009_ASSETS
from x402_mask._wire.x402 import read_challenge

VECTORS = Path(__file__).parents[2] / "fixtures" / "vectors"
FILES = [json.loads(path.read_text()) for path in sorted(VECTORS.glob("*.json"))]
ALL = [pytest.param(v, f["signer"], id=v["id"]) for f in FILES for v in f["vectors"]]
TYPED = [p for p in ALL if "typed_data" in p.values[0]]
EXACT = [p for p in ALL if str(p.id).startswith("exact-eip3009")]
CLOCK = next(f["clock"] for f in FILES if "clock" in f)


def raw(text: str) -> bytes:
    """Bytes of 0x-prefixed hex."""
    return bytes.fromhex(text.removeprefix("0x"))


def test_the_vectors_are_all_there() -> None:
    """Seven signing vectors and four of the receipts; a lost file must not pass unseen."""
    assert (len(ALL), len(TYPED), len(EXACT)) == (11, 8, 2)


@pytest.mark.parametrize(("vector", "signer"), TYPED)
def test_digests_and_signatures_of_the_general_encoder(vector: Any, signer: Any) -> None:
    """Nested structs, short integers, domains with and without a version or a contract."""
    typed = vector["typed_data"]
    digest = typed_data_digest(typed["domain"], typed["types"], typed["message"])
    assert "0x" + digest.hex() == vector["digest"]
    if vector["signature"] is None:
        return
    wallet = Wallet.from_key(signer["private_key"])
    assert wallet.address == signer["address"]
    signature = wallet.sign_typed_data(typed["domain"], typed["types"], typed["message"])
    assert "0x" + signature.hex() == vector["signature"]
    assert checked_signature(raw(vector["signature"]), digest, wallet.address) == signature


@pytest.mark.parametrize(("vector", "signer"), EXACT)
def test_exact_payloads_from_the_challenge_on(vector: Any, signer: Any) -> None:
    """The whole way: read, choose, authorize, sign; by the short cut."""
    inputs = vector["inputs"]
    document = {"x402Version": inputs["x402Version"], "accepts": [inputs["requirements"]]}
    challenge = read_challenge([], json.dumps(document).encode())
    assert challenge is not None
    wallet = Wallet.from_key(signer["private_key"])
    payer = Payer(
        wallet,
        caps=[Cap(1, per="day")],
        origins=["https://api.example.com"],
        ledger=MemoryLedger(),
        networks=["eip155:8453", "eip155:84532"],
    )
    choice = choose(buyer_of(payer).settings.policy, challenge, {})
    made = ExactEip3009().prepare(
        choice, payer=wallet.address, moment=Moment(CLOCK, CLOCK, 300), nonce=raw(inputs["nonce"])
    )
    assert "0x" + made.digest.hex() == vector["digest"]
    assert json.loads(made.payload(wallet.sign_digest(made.digest))) == vector["payload"]
    domain, types, message = made.typed_data()
    assert typed_data_digest(domain, types, message) == made.digest
    assert wallet.sign_typed_data(domain, types, message).hex() == vector["signature"][2:]


def test_the_eip191_vector_is_signed_alike() -> None:
    """The digest is given: signing alone must agree."""
    (vector, signer) = next(
        (v, f["signer"]) for f in FILES for v in f["vectors"] if "eip191" in v["id"]
    )
    text = vector["message"].encode()
    digest = keccak(b"\x19Ethereum Signed Message:\n%d" % len(text) + text)
    assert "0x" + digest.hex() == vector["digest"]
    signature = Wallet.from_key(signer["private_key"]).sign_digest(digest)
    assert "0x" + signature.hex() == vector["signature"]


def test_the_type_hash_is_that_of_eip_3009() -> None:
    """Computed from the fields it stands for."""
    fields = ",".join(
        f"{f['type']} {f['name']}" for f in TRANSFER_TYPES["TransferWithAuthorization"]
    )
    made = keccak(f"TransferWithAuthorization({fields})".encode())
    assert made.hex() == "7c7c6cdb67a18743f49ec6fa9b35f50d52ed05cbed4cc592e13b44501c1a2267"


def test_usdc_on_base_has_the_separator_that_its_contract_answers() -> None:
    """Read from the contract itself (``DOMAIN_SEPARATOR()``)."""
    (usdc,) = (asset for asset in EIP3009_ASSETS if asset.network == "eip155:8453")
    assert domain_separator(asset_domain(usdc)).hex() == (
        "02fa7265e7c5d81118673727957699e4d68f74cd74b7db77da710fe8a2c7834f"
    )


# --- against eth-account, on random input

addresses = st.binary(min_size=20, max_size=20).map(lambda b: checksum("0x" + b.hex()))
uint256 = st.integers(0, 2**256 - 1)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
keys = st.integers(1, 2**255).map(lambda n: n.to_bytes(32, "big"))
assets = st.builds(
    Asset,
    network=st.integers(1, 2**40).map(lambda n: f"eip155:{n}"),
    address=addresses,
    decimals=st.integers(0, 36),
    name=texts,
    version=texts,
)


def theirs(domain: Any, types: Any, message: Any) -> bytes:
    """The digest that eth-account makes."""
    return bytes(_hash_eip191_message(encode_typed_data(domain, types, message)))


@given(assets, addresses, addresses, uint256, uint256, uint256, st.binary(min_size=32, max_size=32))
def test_short_cut_general_encoder_and_eth_account_agree(
    asset: Asset, payer: str, pay_to: str, amount: int, after: int, before: int, nonce: bytes
) -> None:
    """Any token, any transfer."""
    made = Authorization(
        asset=asset,
        payer=payer,
        pay_to=pay_to,
        amount=amount,
        valid_after=after,
        valid_before=before,
        nonce=nonce,
    )
    domain, types, message = made.typed_data()
    assert (
        made.digest == typed_data_digest(domain, types, message) == theirs(domain, types, message)
    )
    assert made.digest == transfer_digest(
        asset, payer=payer, pay_to=pay_to, amount=amount, after=after, before=before, nonce=nonce
    )


TREE = {
    "Order": [
        {"name": "who", "type": "Person"},
        {"name": "lines", "type": "Line[]"},
        {"name": "pair", "type": "uint16[2]"},
        {"name": "memo", "type": "bytes"},
        {"name": "tag", "type": "bytes4"},
        {"name": "delta", "type": "int64"},
        {"name": "final", "type": "bool"},
    ],
    "Line": [{"name": "text", "type": "string"}, {"name": "by", "type": "Person"}],
    "Person": [{"name": "name", "type": "string"}, {"name": "wallet", "type": "address"}],
}
people = st.fixed_dictionaries({"name": texts, "wallet": addresses})
orders = st.fixed_dictionaries(
    {
        "who": people,
        "lines": st.lists(st.fixed_dictionaries({"text": texts, "by": people}), max_size=3),
        "pair": st.lists(st.integers(0, 65535), min_size=2, max_size=2),
        "memo": st.binary(max_size=40),
        "tag": st.binary(min_size=4, max_size=4),
        "delta": st.integers(-(2**63), 2**63 - 1),
        "final": st.booleans(),
    }
)
domains = st.fixed_dictionaries(
    {"name": texts},
    optional={
        "version": texts,
        "chainId": uint256,
        "verifyingContract": addresses,
        "salt": st.binary(min_size=32, max_size=32),
    },
)


@given(domains, orders)
def test_the_general_encoder_agrees_with_eth_account(domain: Any, order: Any) -> None:
    """Structs in structs, arrays, bytes, signed integers, any domain."""
    assert typed_data_digest(domain, TREE, order) == theirs(domain, TREE, order)
    with_domain = {**TREE, "EIP712Domain": [{"name": "name", "type": "string"}]}
    assert typed_data_digest(domain, with_domain, order) == typed_data_digest(domain, TREE, order)


def test_referenced_types_are_sorted() -> None:
    """EIP-712, ``encodeType``: the primary type first, the others by name."""
    names = ["Zebra", "Apple", "Mango", "Beta", "Yak", "Cello", "Xylo"]
    types = {"Main": [{"name": n.lower(), "type": n} for n in names]}
    types |= {n: [{"name": "v", "type": "uint8"}] for n in names}
    message = {n.lower(): {"v": at} for at, n in enumerate(names)}
    assert typed_data_digest({"name": "x"}, types, message) == theirs({"name": "x"}, types, message)


@given(keys, st.binary(min_size=32, max_size=32))
def test_signatures_are_those_of_eth_account(key: bytes, digest: bytes) -> None:
    """Deterministic (RFC 6979), low s, v 27 or 28."""
    account = Account.from_key(key)
    wallet = Wallet.from_key(key)
    assert wallet.address == account.address
    signature = wallet.sign_digest(digest)
    assert signature == bytes(account.unsafe_sign_hash(digest).signature)
    assert signature[64] in (27, 28)


@given(st.binary(max_size=300))
def test_keccak_is_keccak(data: bytes) -> None:
    """Not the SHA-3 of NIST."""
    from eth_utils import keccak as known

    assert keccak(data) == known(data)
    assert checksum("0x" + keccak(data)[:20].hex()) == _checksum(keccak(data)[:20])


def _checksum(address: bytes) -> str:
    from eth_utils import to_checksum_address

    return str(to_checksum_address(address))


BAD_TYPED_DATA: list[Any] = [
    ({"A": [{"name": "x", "type": "uint8"}]}, {"x": 256}),
    ({"A": [{"name": "x", "type": "uint8"}]}, {"x": -1}),
    ({"A": [{"name": "x", "type": "int8"}]}, {"x": 128}),
    ({"A": [{"name": "x", "type": "int8"}]}, {"x": -129}),
    ({"A": [{"name": "x", "type": "bytes4"}]}, {"x": b"12345"}),
    ({"A": [{"name": "x", "type": "address"}]}, {"x": "0x1234"}),
    ({"A": [{"name": "x", "type": "fixed128x18"}]}, {"x": 1}),
    ({"A": [{"name": "x", "type": "Nowhere"}]}, {"x": 1}),
    ({"A": [{"name": "x", "type": "A"}]}, {"x": 1}),
    ({"A": [], "B": []}, {}),
]


@pytest.mark.parametrize(("types", "message"), BAD_TYPED_DATA)
def test_what_does_not_fit_its_type_is_refused(types: Any, message: Any) -> None:
    """Nothing is cut to size, and no primary type is guessed."""
    with pytest.raises(ValueError, match=r"."):
        typed_data_digest({"name": "x"}, types, message)


def test_the_chosen_offer_is_what_is_signed() -> None:
    """Invariant 3: chain, asset, payee, amount and expiry of the decision, nothing else."""
    (usdc,) = (asset for asset in EIP3009_ASSETS if asset.network == "eip155:8453")
    document = {
        "x402Version": 2,
        "accepts": [
            {
                "scheme": "exact",
                "network": "eip155:8453",
                "amount": "12345",
                "asset": usdc.address,
                "payTo": "0x209693Bc6afc0C5328bA36FaF03C514EF312287C",
                "maxTimeoutSeconds": 3600,
                "extra": {"name": "USD Coin", "version": "2"},
            }
        ],
    }
    challenge = read_challenge([], json.dumps(document).encode())
    assert challenge is not None
    choice = Choice(
        offer=challenge.offers[0],
        scheme="exact-eip3009",
        form="v2",
        asset=usdc,
        micro=12345,
        validity_s=300,
        skipped=(),
    )
    made = ExactEip3009().prepare(
        choice, payer="0x" + "11" * 20, moment=Moment(1000.9, 1000.9, 300), nonce=b"n" * 32
    )
    assert (made.asset, made.amount, made.pay_to) == (usdc, 12345, choice.offer.pay_to)
    assert (made.valid_after, made.valid_before) == (0, 1300)
