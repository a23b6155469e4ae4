"""The judge of x402 proofs: scheme ``exact`` by EIP-3009, versions 1 and 2.

It shares no code with the paying side: signatures are recovered with eth-account. Reason codes are
those of the official Python facilitator (x402 2.25, ``mechanisms/evm/constants.py``).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from eth_account import Account
from eth_account.messages import encode_typed_data
from eth_keys.exceptions import BadSignature
from eth_utils.exceptions import ValidationError

if TYPE_CHECKING:
    from x402_mask.sandbox.settings import SandboxSettings

HEADER_BYTES_MAX = 32 * 1024  # an EIP-3009 proof with its echo is some 3 kB
HALF_ORDER = 0x7FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF5D576E7357A4501DDFE92F46681B20A0

_TYPES = {
    "TransferWithAuthorization": [
        {"name": "from", "type": "address"},
        {"name": "to", "type": "address"},
        {"name": "value", "type": "uint256"},
        {"name": "validAfter", "type": "uint256"},
        {"name": "validBefore", "type": "uint256"},
        {"name": "nonce", "type": "bytes32"},
    ]
}
_ADDRESS = re.compile(r"0x[0-9a-fA-F]{40}")
_NUMBER = re.compile(r"0|[1-9][0-9]{0,77}")
_NONCE = re.compile(r"0x[0-9a-fA-F]{64}")
_SIGNATURE = re.compile(r"0x[0-9a-fA-F]{130}")


class Rejected(Exception):
    """A proof that does not pay; *reason* is the code for the wire, *detail* is for people."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True, slots=True, kw_only=True)
class Authorization:
    """An EIP-3009 ``TransferWithAuthorization`` as it came, with its signature (r, s, v)."""

    payer: str
    pay_to: str
    value: int
    valid_after: int
    valid_before: int
    nonce: str
    signature: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """A decoded proof header; *accepted* is ``None`` in version 1."""

    scheme: Any
    network: Any
    accepted: dict[str, Any] | None
    extensions: dict[str, Any]
    authorization: Authorization
    digest: str
    """Names these bytes: the same digest is the same proof."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What must be paid: the live offer and extensions as sent, and the amount they mean."""

    offer: dict[str, Any]
    extensions: dict[str, Any]
    amount: int


def read_proof(header: str, version: int) -> Proof:
    """Decode a ``PAYMENT-SIGNATURE`` (2) or ``X-PAYMENT`` (1) header; raises `Rejected`."""
    document = _decode(header)
    if type(document.get("x402Version")) is not int or document["x402Version"] != version:
        raise Rejected("invalid_x402_version", f"x402Version must be the number {version}")
    accepted = document.get("accepted") if version == 2 else None
    if version == 2 and not isinstance(accepted, dict):
        raise Rejected("invalid_payload", "accepted is missing")
    extensions = document.get("extensions", {})
    if not isinstance(extensions, dict):
        raise Rejected("invalid_payload", "extensions is not an object")
    terms = document if accepted is None else accepted
    canonical = json.dumps(document, sort_keys=True).encode()
    return Proof(
        scheme=terms.get("scheme"),
        network=terms.get("network"),
        accepted=accepted,
        extensions=extensions,
        authorization=_read_authorization(document.get("payload")),
        digest=hashlib.sha256(canonical).hexdigest(),
    )


def _decode(header: str) -> dict[str, Any]:
    if len(header) > HEADER_BYTES_MAX:
        raise Rejected("invalid_payload", "the proof header is too long")
    try:
        document = json.loads(base64.b64decode(header, validate=True).decode())
    except (binascii.Error, ValueError, RecursionError):
        raise Rejected("invalid_payload", "the proof header is not base64 of JSON") from None
    if not isinstance(document, dict):
        raise Rejected("invalid_payload", "the proof is not an object")
    return document


def _read_authorization(payload: Any) -> Authorization:
    if not isinstance(payload, dict) or not isinstance(payload.get("authorization"), dict):
        raise Rejected("invalid_payload", "payload.authorization is missing")
    fields = payload["authorization"]
    numbers = {
        name: int(_text(fields, name, _NUMBER)) for name in ("value", "validAfter", "validBefore")
    }
    if max(numbers.values()) >= 2**256:
        raise Rejected("invalid_payload", "a number is larger than a uint256")
    return Authorization(
        payer=_text(fields, "from", _ADDRESS),
        pay_to=_text(fields, "to", _ADDRESS),
        value=numbers["value"],
        valid_after=numbers["validAfter"],
        valid_before=numbers["validBefore"],
        nonce=_text(fields, "nonce", _NONCE).lower(),
        signature=bytes.fromhex(_text(payload, "signature", _SIGNATURE)[2:]),
    )


def _text(source: dict[str, Any], name: str, form: re.Pattern[str]) -> str:
    value = source.get(name)
    if not isinstance(value, str) or form.fullmatch(value) is None:
        raise Rejected("invalid_payload", f"{name} is missing or malformed")
    return value


def check_proof(proof: Proof, terms: Terms, settings: SandboxSettings) -> None:
    """Raise `Rejected` unless *proof* pays *terms* now; balance and nonce are the book's part."""
    if proof.scheme != "exact":
        raise Rejected("unsupported_scheme")
    if proof.network != settings.network_on_wire:
        raise Rejected("network_mismatch")
    if proof.accepted is not None and proof.accepted != terms.offer:
        raise Rejected("No matching payment requirements", _difference(proof.accepted, terms.offer))
    _check_echo(proof.extensions, terms.extensions)
    _check_authorization(proof.authorization, terms.amount, settings)


def _difference(accepted: dict[str, Any], offer: dict[str, Any]) -> str:
    names = sorted(accepted.keys() | offer.keys())
    return "differs in: " + ", ".join(n for n in names if accepted.get(n) != offer.get(n))


def _check_echo(sent: dict[str, Any], advertised: dict[str, Any]) -> None:
    """As the official servers do: only the keys the client sends are compared."""
    for key in sent.keys() & advertised.keys():
        info = sent[key].get("info") if isinstance(sent[key], dict) else None
        wanted = advertised[key]["info"]
        if not isinstance(info, dict) or any(info.get(n) != wanted[n] for n in wanted):
            raise Rejected("extension_echo_mismatch", key)


def _check_authorization(paid: Authorization, amount: int, settings: SandboxSettings) -> None:
    now = settings.clock()
    if recover(paid, settings) != paid.payer.lower():
        raise Rejected("invalid_exact_evm_payload_signature")
    if paid.pay_to.lower() != settings.pay_to.lower():
        raise Rejected("invalid_exact_evm_payload_recipient_mismatch")
    if paid.value != amount:
        raise Rejected("invalid_exact_evm_payload_authorization_value_mismatch")
    if paid.valid_before < now + settings.min_validity:
        raise Rejected("invalid_exact_evm_payload_authorization_valid_before")
    if paid.valid_after > now:
        raise Rejected("invalid_exact_evm_payload_authorization_valid_after")


def recover(paid: Authorization, settings: SandboxSettings) -> str | None:
    """The lower-case address that signed, or ``None`` where no token would accept the signature."""
    s, v = int.from_bytes(paid.signature[32:64]), paid.signature[64]
    if v not in (27, 28) or s > HALF_ORDER:  # as the token's own ECRecover library demands
        return None
    message = encode_typed_data(
        domain_data={
            "name": settings.asset_name,
            "version": settings.asset_version,
            "chainId": settings.chain_id,
            "verifyingContract": settings.asset,
        },
        message_types=_TYPES,
        message_data={
            "from": paid.payer,
            "to": paid.pay_to,
            "value": paid.value,
            "validAfter": paid.valid_after,
            "validBefore": paid.valid_before,
            "nonce": bytes.fromhex(paid.nonce[2:]),
        },
    )
    try:
        signer: str = Account.recover_message(message, signature=paid.signature)
    except (BadSignature, ValidationError, ValueError):  # an impossible r or s
        return None
    return signer.lower()
