"""A scheme as a stranger would write it: a tally, signed for a payee who takes what is due.

Offers call it ``tally``.  It shares nothing with EIP-3009: another message in another domain, keys
of its own, and a seller that may take less than was signed.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Final

from x402_mask._chain.rpc import Endpoint, Header
from x402_mask._chain.verdicts import Evidence, Settled, Unused
from x402_mask._crypto.eip712 import typed_data_digest
from x402_mask._ledger.records import Row
from x402_mask._models import Asset, Offer
from x402_mask._policy.offers import Choice, Objection
from x402_mask._schemes.scheme import Moment
from x402_mask._wire.x402 import Settlement

TYPES: Final = {
    "Tally": [
        {"name": "from", "type": "address"},
        {"name": "to", "type": "address"},
        {"name": "most", "type": "uint256"},
        {"name": "until", "type": "uint256"},
        {"name": "mark", "type": "string"},
    ]
}
_PREFIX: Final = "tally:"


def domain_of(chain_id: int) -> dict[str, Any]:
    """The domain that tallies are signed in."""
    return {"name": "Tally", "version": "1", "chainId": chain_id}


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """One tally, not yet signed."""

    asset: Asset
    payer: str
    pay_to: str
    most: int
    valid_before: int
    mark: str

    @property
    def key(self) -> str:
        """The mark, told from the keys of other schemes."""
        return _PREFIX + self.mark

    @property
    def message(self) -> dict[str, Any]:
        """What is signed."""
        return {
            "from": self.payer,
            "to": self.pay_to,
            "most": self.most,
            "until": self.valid_before,
            "mark": self.mark,
        }

    @property
    def digest(self) -> bytes:
        """The 32 bytes to be signed."""
        return typed_data_digest(*self.typed_data())

    def typed_data(self) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        """Domain, types and message."""
        return domain_of(self.asset.chain_id), dict(TYPES), self.message

    def payload(self, signature: bytes) -> str:
        """The payload, as its sellers read it."""
        return json.dumps({"tally": self.message, "seal": signature.hex()})


class MadeUp:
    """The scheme.  ``more`` and ``longer`` make it one that does what it must not."""

    name: Final = "tally"
    payload_bytes: Final = 800

    def __init__(self, scheme_id: str = "tally", *, more: int = 0, longer: int = 0) -> None:
        self.id = scheme_id
        self._more, self._longer = more, longer

    def fits(self, offer: Offer, asset: Asset, payer: str | None) -> Objection | None:
        """Sellers that want their tallies in wax are not served."""
        if "wax" in offer.extra:
            return Objection("transfer_method", "the offer demands wax")
        return None

    def prepare(self, choice: Choice, *, payer: str, moment: Moment, nonce: bytes) -> Tally:
        """A tally for what is due at most."""
        return Tally(
            asset=choice.asset,
            payer=payer,
            pay_to=choice.offer.pay_to,
            most=choice.offer.amount + self._more,
            valid_before=int(moment.now) + choice.validity_s + self._longer,
            mark=nonce[:8].hex(),
        )

    def evidence_key(self, key: str) -> str | None:
        """The mark."""
        return key.removeprefix(_PREFIX) if key.startswith(_PREFIX) else None

    def settlement_fault(self, settlement: Settlement, most: int) -> str | None:
        """A payee may take less than was signed."""
        taken = most if settlement.amount is None else settlement.amount
        return None if taken <= most else "more was taken than was signed"


@dataclass(frozen=True, slots=True, kw_only=True)
class TallyQuestion:
    """Whether a tally was cashed: a chain of tallies keeps them by their marks, as transactions."""

    network: str
    mark: str
    most: int
    valid_before: int
    transaction: str | None
    time_out_s: float | None = field(default=None, compare=False)

    async def judge(self, endpoint: Endpoint, top: Header, lag_s: int) -> Evidence:
        """By the receipt at its mark; a tally that is out of date was not cashed."""
        receipt = await endpoint.receipt(transaction_of(self.mark))
        if receipt is not None and receipt.block <= top.number:
            return Settled(transaction=receipt.transaction, block=receipt.block, amount=self.most)
        if top.time <= self.valid_before + lag_s:
            raise endpoint.error("not out of date yet")
        return Unused(block=top.number, block_time=top.time)

    async def glance(self, endpoint: Endpoint, transaction: str) -> Evidence:
        """By the receipt of its own transaction and no other."""
        receipt = await endpoint.receipt(transaction)
        if receipt is None or transaction != transaction_of(self.mark):
            raise endpoint.error("not cashed by that")
        return Settled(transaction=transaction, block=receipt.block, amount=self.most)


def transaction_of(mark: str) -> str:
    """Where a tally is cashed."""
    return f"0x{mark:0<64}"


def tally_question(row: Row, mark: str, time_out_s: float | None) -> TallyQuestion:
    """What is asked about a payment by tally."""
    return TallyQuestion(
        network=str(row.network),
        mark=mark,
        most=int(row.amount),
        valid_before=row.valid_before or 0,
        transaction=row.trans,
        time_out_s=time_out_s,
    )
