"""What is signed is exactly the transfer, as other people's libraries read it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from eth_account import Account
from eth_account.typed_transactions import TypedTransaction
from hexbytes import HexBytes
from web3 import Web3

from x402_mask import Wallet
from x402_mask._chain.transaction import (
    TRANSFER_ABI,
    Fees,
    Transaction,
    calldata,
    checked,
    read,
    sign,
)
from x402_mask._ledger.transfers import SignedTransfer, Terms

KEY = "0x" + "4c" * 32
OTHER = "0x" + "4d" * 32
ACCOUNT = Account.from_key(KEY)
TERMS = Terms(
    payment_id="pay_1",
    network="eip155:8453",
    asset="0x" + "A5" * 20,
    payer=ACCOUNT.address,
    pay_to="0x" + "0b" * 20,
    amount=250_000,
)
MADE = Transaction(
    chain_id=8453,
    nonce=7,
    fees=Fees(max_fee=2 * 10**9 + 1, tip=3),
    gas=70_001,
    to=bytes.fromhex("a5" * 20),
    value=0,
    data=calldata(TERMS),
)
LEGACY = replace(MADE, fees=Fees(max_fee=5, tip=None))


def signed(made: Transaction = MADE, key: str = KEY, terms: Terms = TERMS) -> SignedTransfer:
    return sign(Wallet.from_key(key), terms, made, besides_wei=11, first_block=1)


@pytest.mark.parametrize("nonce", [0, 7, 200, 2**40])
def test_it_is_what_eth_account_signs(nonce: int) -> None:
    made = replace(MADE, nonce=nonce)
    fields: dict[str, Any] = {
        "type": 2,
        "chainId": 8453,
        "nonce": nonce,
        "maxFeePerGas": made.fees.max_fee,
        "maxPriorityFeePerGas": 3,
        "gas": 70_001,
        "to": Web3.to_checksum_address(TERMS.asset),
        "value": 0,
        "data": made.data,
    }
    theirs = ACCOUNT.sign_transaction(fields)
    ours = signed(made)
    assert ours.raw == theirs.raw_transaction.to_0x_hex()
    assert ours.hash == theirs.hash.to_0x_hex()
    assert ours.max_gas_wei == 70_001 * (2 * 10**9 + 1) + 11
    again = TypedTransaction.from_bytes(HexBytes(ours.raw)).as_dict()
    assert {name: again[name] for name in fields if name not in ("to", "data")} == {
        name: value for name, value in fields.items() if name not in ("to", "data")
    }


@pytest.mark.parametrize("nonce", [0, 7])
def test_a_legacy_one_is_what_eth_account_signs(nonce: int) -> None:
    fields = {
        "chainId": 8453,
        "nonce": nonce,
        "gasPrice": 5,
        "gas": 70_001,
        "to": Web3.to_checksum_address(TERMS.asset),
        "value": 0,
        "data": LEGACY.data,
    }
    theirs = ACCOUNT.sign_transaction(fields)
    ours = signed(replace(LEGACY, nonce=nonce))
    assert (ours.raw, ours.hash) == (theirs.raw_transaction.to_0x_hex(), theirs.hash.to_0x_hex())


def test_the_call_is_what_web3_encodes() -> None:
    contract = Web3().eth.contract(abi=TRANSFER_ABI)
    for amount in (1, 250_000, 2**256 - 1):
        terms = replace(TERMS, amount=amount)
        args = [Web3.to_checksum_address(terms.pay_to), amount]
        assert "0x" + calldata(terms).hex() == contract.encode_abi("transfer", args=args)


@pytest.mark.parametrize("made", [MADE, LEGACY], ids=["type-2", "legacy"])
def test_what_was_signed_is_read_again(made: Transaction) -> None:
    assert checked(signed(made)) == made == read(bytes.fromhex(signed(made).raw[2:]))
    assert len(made.stand_in()) >= len(made.signed(b"\xff" * 64 + b"\x1c"))


@pytest.mark.parametrize("plain", [MADE, LEGACY], ids=["type-2", "legacy"])
@pytest.mark.parametrize(
    "change",
    [
        {"chain_id": 1},
        {"to": b"\x01" * 20},
        {"value": 1},
        {"data": calldata(replace(TERMS, amount=250_001))},
        {"data": calldata(replace(TERMS, pay_to="0x" + "0c" * 20))},
        {"data": calldata(TERMS) + b"\0"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_transaction_that_does_something_else_is_not_signed(
    plain: Transaction, change: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match="something else"):
        signed(replace(plain, **change))


def test_nobody_else_signs_it() -> None:
    with pytest.raises(ValueError, match="somebody else"):
        signed(key=OTHER)


@pytest.mark.parametrize(
    "change",
    [{"nonce": 8}, {"hash": "0x" + "00" * 32}, {"max_gas_wei": 1}],
    ids=lambda change: next(iter(change)),
)
def test_what_was_stored_with_other_facts_is_not_sent(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"something else|not the one"):
        checked(replace(signed(), **change))


@pytest.mark.parametrize("raw", ["0x02", "0x02c0", "0xc0", "0x00", "0x01c0", "0x02c101"])
def test_bytes_that_are_no_transfer(raw: str) -> None:
    with pytest.raises(ValueError, match="not a transaction"):
        read(bytes.fromhex(raw[2:]))


@pytest.mark.parametrize("wei", [0, 1, 7, 8, 10**9])
def test_a_replacement_is_dearer_by_an_eighth(wei: int) -> None:
    """What nodes want: 10 % in geth, 12.5 % in some others; and more than nothing."""
    old = Fees(max_fee=wei + 100, tip=wei)
    new = old.bumped(Fees(max_fee=1, tip=1))
    assert new.tip is not None and new.tip > wei and new.tip * 8 >= wei * 9
    assert new.max_fee * 8 >= old.max_fee * 9
    assert old.bumped(Fees(max_fee=10**12, tip=10**11)) == Fees(max_fee=10**12, tip=10**11)
    assert replace(old, tip=None).bumped(Fees(max_fee=1, tip=None)).max_fee * 8 >= old.max_fee * 9


def test_it_does_not_show_what_is_worth_money() -> None:
    made = signed()
    assert made.raw not in repr(made) and made.raw[2:] not in repr(made)


@pytest.mark.parametrize(
    "change",
    [
        {"network": "base"},
        {"asset": "0x12"},
        {"payer": "0x" + "g" * 40},
        {"pay_to": "0xMerchantAddress"},
        {"amount": 0},
        {"amount": True},
        {"amount": 2**256},
    ],
    ids=str,
)
def test_terms_that_cannot_be(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        replace(TERMS, **change)
