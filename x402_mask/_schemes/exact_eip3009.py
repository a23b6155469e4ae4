"""Scheme ``exact`` by EIP-3009: what is signed, and the payload that carries it.

Sources: EIP-3009; x402 ``schemes/exact/scheme_exact_evm.md``; PyPI x402 2.25.0 for ``validAfter``
(``0`` in version 2, ten minutes ago in version 1).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from x402_mask._crypto.eip712 import TRANSFER_TYPES, asset_domain, transfer_digest
from x402_mask._policy.offers import VALIDITY_MIN_S
from x402_mask.errors import OfferRefused

if TYPE_CHECKING:
    from x402_mask._models import Asset
    from x402_mask._policy.offers import Choice

V1_BACKDATE_S: Final = 600


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


def authorize(
    choice: Choice,
    *,
    payer: str,
    now: float,
    seller_now: float,
    cap_s: int,
    nonce: bytes,
    backdate: bool,
) -> Authorization:
    """The authorization for *choice*.

    It lives for the validity agreed, by the seller's clock, and never longer than *cap_s* seconds
    by ours, whatever the seller's clock says.

    Raises:
        OfferRefused: the two clocks leave less than ten seconds.
    """
    before = min(int(seller_now) + choice.validity_s, int(now) + cap_s)
    if before - int(seller_now) < VALIDITY_MIN_S:
        raise OfferRefused(
            f"this machine's clock is {seller_now - now:+.0f} s from the seller's, which leaves"
            " no valid time; set the clock",
            reason="clock",
        )
    return Authorization(
        asset=choice.asset,
        payer=payer,
        pay_to=choice.offer.pay_to,
        amount=choice.offer.amount,
        valid_after=int(now) - V1_BACKDATE_S if backdate else 0,
        valid_before=before,
        nonce=nonce,
    )
