"""Why a seller refused a proof: its own words, kept short, and what they mean where that is known.

Codes differ between packages and are not stable: they are known by their families (PyPI x402
2.25.0, npm @x402/core 2.27.0, x402 specification v2).  What a seller says is a claim, never acted
upon: nothing is signed anew because of it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from x402_mask._money import usd
from x402_mask._wire import strict_json
from x402_mask._wire.assets import KNOWN_ASSETS, NETWORK_NAMES
from x402_mask._wire.x402 import REASON_MAX, REQUIRED_HEADER, error_of, read_settlement, shown

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from x402_mask._ledger.records import Row

_FAMILIES: Final[tuple[tuple[str, str], ...]] = (
    (r"insufficient.{0,9}(balance|funds)|not enough (balance|funds)", "{wallet} lacks {sum}"),
    (
        r"nonce.{0,9}(already.?)?used|already.{0,9}used|permit2_invalid_nonce|duplicate_settlement",
        "paid before: this very authorization was used already, or cancelled",
    ),
    (r"settlement_pending", "it is on its way, and not confirmed yet"),
    (r"allowance_required|insufficient.allowance", "{wallet} has given no allowance for it"),
    (
        r"valid_before|deadline_expired|authorization.{0,9}expired",
        "too late, by the seller's clock: compare it with this machine's",
    ),
    (
        r"valid_after|not_yet_valid|payment_too_early",
        "too early, by the seller's clock: compare it with this machine's",
    ),
    (r"no matching payment requirements", "the seller's terms have changed meanwhile"),
    (
        r"unexpected_(verify|settle)_error|transaction_failed|invalid_transaction_state",
        "the seller's side failed; the money may have moved",
    ),
)
_KNOWN: Final = tuple((re.compile(words, re.IGNORECASE), told) for words, told in _FAMILIES)
_NO_REASON: Final = re.compile(
    r"(payment|(x-payment|payment-signature) header is) required[.!]?", re.IGNORECASE
)
"""What every challenge says, whether a proof came or not."""
BODY_BYTES_MAX: Final = 16 * 1024


def in_headers(headers: Mapping[str, Sequence[str]]) -> str | None:
    """The reason in a failed settlement, or else in a new challenge, as the seller wrote it."""
    settlement = read_settlement(headers)
    if settlement is not None and not settlement.success and settlement.error:
        return settlement.error
    values = headers.get(REQUIRED_HEADER, ())
    return _short(error_of(values[0])) if len(values) == 1 else None


def in_body(body: bytes | None) -> str | None:
    """The reason in a body, where version 1 has it, and others as they like."""
    if not body or len(body) > BODY_BYTES_MAX:
        return None
    try:
        document = strict_json.loads(body)
    except strict_json.BadJSON:
        return None
    return _short(_said(document)) if isinstance(document, dict) else None


def _said(document: Mapping[str, Any]) -> object:
    for name in ("errorReason", "invalidReason", "error", "reason", "message", "detail"):
        value = document.get(name)
        if isinstance(value, dict):
            value = _said(value) or value.get("code")
        if isinstance(value, str) and value.strip():
            return value
    return None


def _short(said: object) -> str | None:
    if isinstance(said, str) and _NO_REASON.fullmatch(said.strip()):
        return None
    return shown(said.strip(), REASON_MAX) if isinstance(said, str) and said.strip() else None


def explained(said: str, row: Row) -> str:
    """The seller's words, and in brackets what they mean for the payment in *row*."""
    meaning = next((told for known, told in _KNOWN if known.search(said)), None)
    if meaning is None:
        return said
    return f"{said} ({meaning.format(wallet=f'the wallet {row.payer}', sum=_sum(row))})"


def _sum(row: Row) -> str:
    """What a payment needs, and where: in the token's own name where it is known."""
    same = (row.network, (row.asset or "").lower())
    names = [one.name for one in KNOWN_ASSETS if (one.network, one.address.lower()) == same]
    token = f"{names[0]}, {row.asset}," if names else f"the token {row.asset}"
    return f"${usd(row.micro)} in {token} on {network_told(row.network or '')}"


def network_told(network: str) -> str:
    """A network by its CAIP-2 name, and the one that people know it by."""
    name = next((name for name, known in NETWORK_NAMES.items() if known == network), None)
    return network if name is None else f"{name} ({network})"
