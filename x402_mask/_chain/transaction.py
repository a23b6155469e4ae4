"""One ERC-20 ``transfer`` as a signed transaction: written here, read back before it counts.

What is signed is decided in one place and checked in another: the bytes are decoded again, and
their signer recovered by eth-account, so that a slip of the encoder cannot move money elsewhere.

Sources: EIP-20 (``transfer``), EIP-155 (chain id in legacy signatures), EIP-1559 (type 2),
EIP-2718 (typed envelopes).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import rlp

from x402_mask._crypto.eip712 import keccak
from x402_mask._ledger.transfers import SignedTransfer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from x402_mask._ledger.transfers import Terms
    from x402_mask._wallets.local import Wallet

TRANSFER_SELECTOR: Final = "a9059cbb"
TRANSFER_ABI: Final[list[Mapping[str, Any]]] = [
    {
        "type": "function",
        "name": "transfer",
        "stateMutability": "nonpayable",
        "inputs": [{"name": "to", "type": "address"}, {"name": "value", "type": "uint256"}],
        "outputs": [{"name": "", "type": "bool"}],
    }
]
_TYPE_2: Final = 2
_SIGNATURE_BYTES: Final = 68
"""Of a type 2 transaction: parity, and r and s with a length byte each, and one to spare."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fees:
    """Wei for one unit of gas: at most ``max_fee`` in all, of which ``tip`` for the block's maker.

    ``tip`` is ``None`` on a chain without a base fee, where ``max_fee`` is the gas price.
    """

    max_fee: int
    tip: int | None

    def bumped(self, market: Fees) -> Fees:
        """Fees that replace these: an eighth more, which every node accepts, or the market's."""
        if self.tip is None or market.tip is None:
            return Fees(max_fee=max(_eighth_more(self.max_fee), market.max_fee), tip=self.tip)
        return Fees(
            max_fee=max(_eighth_more(self.max_fee), market.max_fee),
            tip=max(_eighth_more(self.tip), market.tip),
        )


def _eighth_more(wei: int) -> int:
    return wei + max(1, -(-wei // 8))


@dataclass(frozen=True, slots=True, kw_only=True)
class Transaction:
    """A transaction's fields; ``fees`` in wei for one unit of ``gas``."""

    chain_id: int
    nonce: int
    fees: Fees
    gas: int
    to: bytes
    value: int
    data: bytes

    @property
    def max_gas_wei(self) -> int:
        """The most that its execution can cost, in wei."""
        return self.gas * self.fees.max_fee

    def unsigned(self) -> bytes:
        """What is hashed and signed."""
        if self.fees.tip is None:
            legacy: bytes = rlp.encode([*self._legacy(), self.chain_id, 0, 0])
            return legacy
        typed: bytes = rlp.encode(self._typed())
        return bytes((_TYPE_2,)) + typed

    def signed(self, signature: bytes) -> bytes:
        """The bytes to broadcast; *signature* is ``r || s || v`` with v 27 or 28."""
        r, s = (int.from_bytes(part, "big") for part in (signature[:32], signature[32:64]))
        parity = signature[64] - 27
        if self.fees.tip is None:
            legacy: bytes = rlp.encode([*self._legacy(), self.chain_id * 2 + 35 + parity, r, s])
            return legacy
        typed: bytes = rlp.encode([*self._typed(), parity, r, s])
        return bytes((_TYPE_2,)) + typed

    def stand_in(self) -> bytes:
        """Bytes as long as the signed ones, and worth nothing: to ask what their length costs."""
        return self.unsigned() + b"\xff" * _SIGNATURE_BYTES

    def _legacy(self) -> list[Any]:
        return [self.nonce, self.fees.max_fee, self.gas, self.to, self.value, self.data]

    def _typed(self) -> list[Any]:
        fees = (self.fees.tip, self.fees.max_fee)
        return [self.chain_id, self.nonce, *fees, self.gas, self.to, self.value, self.data, []]


def read(raw: bytes) -> Transaction:
    """The fields of signed bytes.

    Raises:
        ValueError: neither a type 2 transaction without an access list, nor a legacy one.
    """
    typed = raw[:1] == bytes((_TYPE_2,))
    try:
        fields = rlp.decode(raw[1:] if typed else raw, strict=True)
    except rlp.exceptions.RLPException:
        raise ValueError("not a transaction") from None
    if typed and len(fields) == 12 and fields[8] == [] and _are_bytes([*fields[:8], *fields[9:]]):
        chain, nonce, tip, fee, gas = map(_number, fields[:5])
        fees, rest = Fees(max_fee=fee, tip=tip), fields[5:8]
    elif not typed and len(fields) == 9 and _are_bytes(fields):
        nonce, fee, gas = map(_number, fields[:3])
        chain, fees, rest = (_number(fields[6]) - 35) // 2, Fees(max_fee=fee, tip=None), fields[3:6]
    else:
        raise ValueError("not a transaction of a kind that is made here")
    return Transaction(
        chain_id=chain,
        nonce=nonce,
        fees=fees,
        gas=gas,
        to=rest[0],
        value=_number(rest[1]),
        data=rest[2],
    )


def _are_bytes(fields: list[Any]) -> bool:
    return all(isinstance(item, bytes) for item in fields)


def _number(field: bytes) -> int:
    return int.from_bytes(field, "big")


def sign(
    wallet: Wallet, terms: Terms, made: Transaction, *, besides_wei: int, first_block: int
) -> SignedTransfer:
    """Sign, and check what was signed; *besides_wei* is what it may cost besides its gas.

    Raises:
        ValueError: it would not do what the terms say.
    """
    raw = made.signed(wallet.sign_digest(keccak(made.unsigned())))
    signed = SignedTransfer(
        terms=terms,
        nonce=made.nonce,
        hash="0x" + keccak(raw).hex(),
        raw="0x" + raw.hex(),
        max_gas_wei=made.max_gas_wei + besides_wei,
        first_block=first_block,
    )
    if checked(signed) != made:
        raise ValueError("the signed transaction is not what was to be signed")
    return signed


def checked(signed: SignedTransfer) -> Transaction:
    """The fields of a transfer whose bytes do exactly what its terms say.

    Raises:
        ValueError: they do something else, or somebody else signed them.
    """
    from eth_account import Account

    raw, terms = bytes.fromhex(signed.raw[2:]), signed.terms
    found = read(raw)
    wanted = (terms.chain_id, signed.nonce, 0, bytes.fromhex(terms.asset[2:]), calldata(terms))
    if (found.chain_id, found.nonce, found.value, found.to, found.data) != wanted:
        raise ValueError("the transaction does something else than its terms say")
    if found.max_gas_wei > signed.max_gas_wei or "0x" + keccak(raw).hex() != signed.hash:
        raise ValueError("the transaction is not the one that was named")
    if str(Account.recover_transaction(raw)).lower() != terms.payer.lower():
        raise ValueError("somebody else signed the transaction")
    return found


def calldata(terms: Terms) -> bytes:
    """``transfer(payTo, amount)``, written word by word; held against web3's codec."""
    return bytes.fromhex(f"{TRANSFER_SELECTOR}{terms.pay_to[2:].lower():0>64}{terms.amount:064x}")
