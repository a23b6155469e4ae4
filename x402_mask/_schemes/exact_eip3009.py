"""Scheme ``exact`` by EIP-3009: what is signed, and the payload that carries it.

Sources: EIP-3009; x402 ``schemes/exact/scheme_exact_evm.md``; PyPI x402 2.25.0 for ``validAfter``
(``0`` in version 2, ten minutes ago in version 1).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from x402_mask._crypto.eip712 import TRANSFER_TYPES, asset_domain, transfer_digest
from x402_mask._policy.offers import VALIDITY_MIN_S, Objection, payee_fault
from x402_mask._schemes.demands import Signs, demand
from x402_mask._wire.x402 import shown
from x402_mask.errors import OfferRefused

if TYPE_CHECKING:
    from x402_mask._models import Asset, Offer
    from x402_mask._policy.offers import Choice
    from x402_mask._schemes.scheme import Moment
    from x402_mask._wire.x402 import Settlement

V1_BACKDATE_S: Final = 600

_SIGNS: Final = Signs(
    told="EIP-3009 TransferWithAuthorization",
    primary="TransferWithAuthorization",
    methods=frozenset({"eip3009"}),
    types=TRANSFER_TYPES,
    domain=asset_domain,
)
_HASH: Final = re.compile("0x[0-9a-fA-F]{1,64}")
_NONCE: Final = re.compile("0x[0-9a-fA-F]{64}")


class Authorization(NamedTuple):
    """One EIP-3009 ``TransferWithAuthorization``, not yet signed.  ``amount`` is atomic units."""

    asset: Asset
    payer: str
    pay_to: str
    amount: int
    valid_after: int
    valid_before: int
    nonce: bytes

    @property
    def key(self) -> str:
        """The nonce, which a payer uses once."""
        return "0x" + self.nonce.hex()

    @property
    def most(self) -> int:
        """What it moves, which is exactly its amount."""
        return self.amount

    @property
    def digest(self) -> bytes:
        """The 32 bytes to be signed."""
        return transfer_digest(
            self.asset,
            payer=self.payer,
            pay_to=self.pay_to,
            amount=self.amount,
            after=self.valid_after,
            before=self.valid_before,
            nonce=self.nonce,
        )

    def typed_data(self) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        """Domain, types and message, for an external signer."""
        message = {
            "from": self.payer,
            "to": self.pay_to,
            "value": self.amount,
            "validAfter": self.valid_after,
            "validBefore": self.valid_before,
            "nonce": self.nonce,
        }
        return asset_domain(self.asset), dict(TRANSFER_TYPES), message

    def payload(self, signature: bytes) -> str:
        """The scheme's payload as JSON, numbers as decimal text; nothing in it needs escaping."""
        return (
            f'{{"authorization":{{"from":"{self.payer}","to":"{self.pay_to}",'
            f'"value":"{self.amount}","validAfter":"{self.valid_after}",'
            f'"validBefore":"{self.valid_before}","nonce":"0x{self.nonce.hex()}"}},'
            f'"signature":"0x{signature.hex()}"}}'
        )


class ExactEip3009:
    """The scheme: offers of ``exact`` that ask for no other signature than this one."""

    __slots__ = ()

    id = "exact-eip3009"
    name = "exact"
    payload_bytes = 640  # three numbers, four hex texts, names

    def fits(self, offer: Offer, asset: Asset, payer: str | None) -> Objection | None:
        """What the offer demands that this is not, or why nobody should ever pay its payee."""
        found = demand(_SIGNS, offer, asset)
        if found is None:
            fault = payee_fault(offer.pay_to, payer=payer, asset=offer.asset)
            found = None if fault is None else Objection("payee", fault)
        return found

    def prepare(self, choice: Choice, *, payer: str, moment: Moment, nonce: bytes) -> Authorization:
        """The authorization for *choice*.

        It lives for the validity agreed, by the seller's clock, and never longer than the owner's
        limit by ours, whatever the seller's clock says.

        Raises:
            OfferRefused: the two clocks leave less than ten seconds.
        """
        now, seller = int(moment.now), int(moment.seller)
        before = min(seller + choice.validity_s, now + moment.life_max_s)
        if before - seller < VALIDITY_MIN_S:
            raise OfferRefused(
                f"this machine's clock is {moment.seller - moment.now:+.0f} s from the seller's,"
                " which leaves no valid time; set the clock",
                reason="clock",
            )
        return Authorization(
            asset=choice.asset,
            payer=payer,
            pay_to=choice.offer.pay_to,
            amount=choice.offer.amount,
            valid_after=now - V1_BACKDATE_S if choice.form == "v1" else 0,
            valid_before=before,
            nonce=nonce,
        )

    def evidence_key(self, key: str) -> str | None:
        """The nonce: 0x and 64 hex digits."""
        return key if _NONCE.fullmatch(key) else None

    def settlement_fault(self, settlement: Settlement, most: int) -> str | None:
        """It names another amount, or no transaction."""
        if settlement.amount is not None and settlement.amount != most:
            return "the settlement names another amount"
        named = settlement.transaction
        if named is None or not _HASH.fullmatch(named):
            return f"the settlement names no transaction ({shown(named, 20)})"
        return None
