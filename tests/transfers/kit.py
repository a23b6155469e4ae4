"""A buyer with a wallet on the real chain, who pays by on-chain transfers."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from eth_account import Account
from eth_account.signers.local import LocalAccount

from tests.ledger.kit import reserved, state_of
from tests.support.chain import NETWORK, USDC, Chain
from x402_mask import Wallet
from x402_mask._chain.reader import ChainReader
from x402_mask._chain.sender import TransferSender
from x402_mask._ledger.ledger import Ledger
from x402_mask._ledger.transfers import SignedTransfer, StoredTransfer, Terms

PRICE = 250_000
MARGIN = 3
"""Blocks that must lie on a block before it proves anything here."""
MAX_GAS_WEI = 10**15
"""As a payer has it by default."""


@dataclass
class Buyer:
    """``clock`` is added to the time, in seconds."""

    chain: Chain
    ledger: Ledger
    account: LocalAccount
    pay_to: str
    reader: ChainReader
    sender: TransferSender
    clock: list[float] = field(default_factory=lambda: [0.0])

    @classmethod
    def make(
        cls,
        chain: Chain,
        ledger: Ledger,
        *,
        account: LocalAccount | None = None,
        urls: Sequence[str] | None = None,
        ether: int = 1,
        usdc: int = 5_000_000,
        pay_to: str | None = None,
        max_gas_wei: int | None = MAX_GAS_WEI,
        signer: object = None,
        stuck_s: float = 20.0,
    ) -> Self:
        account = account or chain.account(ether=ether, usdc=usdc)
        reader = ChainReader({NETWORK: urls or [chain.url]}, margin_blocks=MARGIN)
        clock = [0.0]
        sender = TransferSender(
            lambda: reader,
            ledger,
            signer=signer or Wallet.from_key(account.key),
            max_gas_wei=max_gas_wei,
            now_us=lambda: int((time.time() + clock[0]) * 1e6),
            stuck_s=stuck_s,
        )
        return cls(
            chain, ledger, account, pay_to or Account.create().address, reader, sender, clock
        )

    def reserve(self, amount: int = PRICE, **changed: Any) -> Terms:
        """Reserve a payment, and tell what its transfer is to do."""
        made = reserved(
            self.ledger,
            network=NETWORK,
            asset=USDC,
            payer=self.account.address,
            pay_to=self.pay_to,
            amount=amount,
            micro=amount,
            route="token",
            **changed,
        )
        return Terms(
            payment_id=made.id,
            network=NETWORK,
            asset=USDC,
            payer=self.account.address,
            pay_to=self.pay_to,
            amount=amount,
        )

    def hold(self, terms: Terms | None = None) -> SignedTransfer:
        """Prepare and store a transfer; nothing is sent."""
        signed = self.sender.prepare(terms or self.reserve())
        assert self.ledger.hold_transfer(signed.terms.payment_id, signed, now_us=self.now_us())
        return signed

    def now_us(self) -> int:
        return int((time.time() + self.clock[0]) * 1e6)

    def stored(self, payment_id: str) -> StoredTransfer:
        found = self.ledger.transfer_of(payment_id)
        assert found is not None
        return found

    def paid(self) -> list[int]:
        """What reached the payee, by the chain."""
        moved = self.chain.transfers(sender=self.account.address, to=self.pay_to)
        return [each.value for each in moved]

    def spent_wei(self, before: int) -> int:
        return before - self.ether()

    def ether(self) -> int:
        return int(self.chain.w3.eth.get_balance(self.account.address))

    def state(self, payment_id: str) -> str:
        return state_of(self.ledger, payment_id)

    def nonce(self) -> int:
        return int(self.chain.w3.eth.get_transaction_count(self.account.address))

    def close(self) -> None:
        self.reader.close()
        self.ledger.close()
