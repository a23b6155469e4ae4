"""Short names for what can go wrong, stable for programs and agents."""

from __future__ import annotations

from typing import Final

from x402_mask.errors import (
    ChallengeError,
    LedgerError,
    PaymentError,
    PaymentRefused,
    SignerError,
    TokenFlowError,
)

_CODES: Final[tuple[tuple[type[PaymentError], str], ...]] = (
    (PaymentRefused, "refused"),
    (ChallengeError, "challenge"),
    (SignerError, "signer"),
    (TokenFlowError, "token_flow"),
    (LedgerError, "ledger"),
    (PaymentError, "payment"),
)


def code_of(error: PaymentError) -> str:
    """The name of its kind, such as ``refused``."""
    return next(name for kind, name in _CODES if isinstance(error, kind))
