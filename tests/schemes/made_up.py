"""A scheme as a stranger would write it: a tally, signed for a payee who takes what is due.

Offers call it ``tally``.  It shares nothing with EIP-3009: another message in another domain, keys
of its own, and a seller that may take less than was signed.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final

from x402_mask._crypto.eip712 import typed_data_digest
from x402_mask._models import Asset, Offer
from x402_mask._policy.offers import Choice, Objection
from x402_mask._schemes.scheme import Moment

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
