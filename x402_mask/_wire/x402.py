"""Headers and bodies to records, and back.  The only module that knows names on the wire.

Sources: x402 specification v2 (``transports-v2/http.md``) and v1 (``transports-v1/http.md``), PyPI
x402 2.25.0, npm @x402/core 2.27.0, and the public documents of Server402.
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, Literal

from x402_mask._models import Offer
from x402_mask._wire import strict_json
from x402_mask._wire.assets import NETWORK_NAMES, caip2
from x402_mask.errors import ChallengeError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

CHALLENGE_BYTES_MAX: Final = 64 * 1024
"""Most of a challenge that is read.  nginx buffers 32 KiB of headers, h11 100 KiB of one event, and
the longest challenge seen in the wild (bazaar schemas included) is below 10 KiB."""

_KNOWN_BYTES_MAX: Final = 16 * 1024  # times 32 bounds what is remembered

OFFERS_MAX: Final = 64
"""Most entries of ``accepts``.  Sellers list one to five."""

PROOF_BYTES_MAX: Final = 12 * 1024
"""Longest header line of a proof.  Node answers 431 where all headers together pass 16 KiB, nginx
allows 8 KiB for one line by default, and what a seller refuses unread holds the money."""

_ID_LENGTH: Final = 36
_CATALOG: Final = "bazaar"

TIMEOUT_DEFAULT_S: Final = 60
"""``maxTimeoutSeconds`` where a body leaves it out; the packages' own default is 60 to 300."""

REQUIRED_HEADER: Final = "payment-required"
SIGNATURE_HEADER: Final = "PAYMENT-SIGNATURE"
V1_HEADER: Final = "X-PAYMENT"
TOKEN_HEADER: Final = "X-Payment-Token"  # noqa: S105  # a header's name
PROOF_HEADERS: Final = (SIGNATURE_HEADER, V1_HEADER, TOKEN_HEADER, "SIGN-IN-WITH-X")
"""Headers that are worth money or identity: never sent to another origin."""

REASON_MAX: Final = 200
"""Characters of a seller's reason that are kept."""

_SETTLEMENT_HEADERS: Final = ("payment-response", "x-payment-response")
_BASE64: Final = re.compile(r"[A-Za-z0-9+/_-]+={0,2}")  # base64url too: nobody means another text
_AMOUNT: Final = re.compile(r"[0-9]{1,78}", re.ASCII)
_UINT256_MAX: Final = 2**256 - 1

Form = Literal["v2", "v1", "server402"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Skipped:
    """An offer that was not taken: its place in ``accepts``, a reason code, and words.

    ``scheme``, ``network`` and ``asset`` are the offer's own, where it could not be read as a whole
    and these could.  ``new_payee`` is whom it names, where others are pinned.
    """

    index: int
    reason: str
    detail: str
    scheme: str | None = None
    network: str | None = None
    asset: str | None = None
    new_payee: str | None = None

    def __str__(self) -> str:
        return f"offer {self.index}: {self.detail}"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Challenge:
    """What a 402 said.  ``document`` is the JSON object as read, ``text`` as it was written."""

    form: Form
    offers: tuple[Offer, ...]
    skipped: tuple[Skipped, ...]
    document: Mapping[str, Any]
    text: str = field(repr=False)
    rival: Challenge | None = None
    """The body's own challenge, where the header decided."""

    @property
    def extensions(self) -> Mapping[str, Any]:
        """Advertised extensions; empty when there are none or they are not an object."""
        found = self.document.get("extensions")
        return found if isinstance(found, dict) else {}

    def form_of(self, offer: Offer) -> Form:
        """The version that *offer* is made in: each its own, where the challenge names none."""
        unsaid = self.form == "server402" and _is_worded_as_v1([offer.raw])
        return "v1" if unsaid else self.form


@dataclass(frozen=True, slots=True, kw_only=True)
class Settlement:
    """What the seller's side says happened: a claim."""

    success: bool
    transaction: str | None
    network: str | None
    payer: str | None
    amount: int | None
    error: str | None
    garbled: bool = False


def shown(text: object, limit: int = 80) -> str:
    """Seller text, made safe and short enough for a message."""
    line = ascii(str(text))[1:-1]
    return line if len(line) <= limit else line[: limit - 3] + "..."


# --- challenges ---------------------------------------------------------------------------------


def read_challenge(headers: Sequence[str], body: bytes | None) -> Challenge | None:
    """The challenge of a 402, or ``None`` if the 402 is not about x402.

    Args:
        headers: every ``PAYMENT-REQUIRED`` header, in order.
        body: the decoded body, or ``None`` if it is too long or cannot be decoded.

    Raises:
        ChallengeError: it claims to be a challenge and cannot be read.
    """
    if len(headers) > 1:
        raise ChallengeError("the 402 carries more than one PAYMENT-REQUIRED header")
    if not headers:
        return _body_challenge(body) if body else None
    known = len(headers[0]) <= _KNOWN_BYTES_MAX
    found = _known_challenge(headers[0]) if known else _header_challenge(headers[0])
    return _with_rival(found, body)


def _header_challenge(header: str) -> Challenge:
    text = _decode_header(header)
    return _read_document(_parse(text, "PAYMENT-REQUIRED header"), text, in_header=True)


_known_challenge = lru_cache(maxsize=32)(_header_challenge)
"""Sellers say the same to every caller: what was read once is not read again."""


def _with_rival(found: Challenge, body: bytes | None) -> Challenge:
    try:
        rival = _body_challenge(body) if body else None
    except ChallengeError:  # the header decides: what else the body is does not matter
        rival = None
    return found if rival is None else replace(found, rival=rival)


def _decode_header(text: str) -> str:
    text = text.strip()
    if len(text) > CHALLENGE_BYTES_MAX:
        raise ChallengeError("the PAYMENT-REQUIRED header is longer than 64 KiB")
    if not _BASE64.fullmatch(text):
        raise ChallengeError("the PAYMENT-REQUIRED header is not base64")
    return _header_text(_unbase64(text))


def _header_text(data: bytes) -> str:
    """The JSON in a header.  JavaScript's ``btoa`` of a text makes Latin-1, not UTF-8.

    What is beyond ASCII is escaped then: the echo is the same text to whoever decodes it, either
    way.
    """
    try:
        return strict_json.as_text(data)
    except UnicodeDecodeError:
        text = data.decode("latin-1")
        return "".join(char if char.isascii() else f"\\u{ord(char):04x}" for char in text)


def _unbase64(text: str) -> bytes:
    plain = text.rstrip("=").replace("-", "+").replace("_", "/")
    try:
        return base64.b64decode(plain + "=" * (-len(plain) % 4))
    except (binascii.Error, ValueError):
        raise ChallengeError("the PAYMENT-REQUIRED header is not base64") from None


def _parse(text: str, where: str) -> Any:
    try:
        return strict_json.loads(text)
    except strict_json.BadJSON as exc:
        raise ChallengeError(f"the 402's {where} is not usable JSON: {exc}") from None


def _body_challenge(body: bytes) -> Challenge | None:
    if not _claims(body):
        return None
    try:
        text = strict_json.as_text(body)
    except UnicodeDecodeError:
        raise ChallengeError("the 402's body is not UTF-8") from None
    document = _parse(text, "body")
    if "accepts" not in document and "x402Version" not in document:
        return None
    return _read_document(document, text, in_header=False)


def _claims(body: bytes) -> bool:
    start = body[:64].lstrip(b"\xef\xbb\xbf \t\r\n")
    return start.startswith(b"{") and (b'"accepts"' in body or b'"x402Version"' in body)


def nested_in(body: bytes | None) -> str | None:
    """The key of a body under which a challenge stands, one level down, where nobody reads it."""
    words = (b'"accepts"', b'"x402Version"', b'"payTo"')
    if body is None or not any(word in body for word in words):
        return None
    try:
        document = strict_json.loads(body)
    except strict_json.BadJSON:
        return None
    members = document.items() if isinstance(document, dict) else ()
    return next((name for name, value in members if _is_challenge(value)), None)


def _is_challenge(value: object) -> bool:
    if isinstance(value, dict):
        return "accepts" in value or "x402Version" in value
    first = value[0] if isinstance(value, list) and value else None
    return isinstance(first, dict) and {"scheme", "network", "payTo"} <= first.keys()


def _read_document(document: Any, text: str, *, in_header: bool) -> Challenge:
    if not isinstance(document, dict):
        raise ChallengeError("the payment challenge is not a JSON object")
    form = _form(document, in_header=in_header)
    accepts = document.get("accepts")
    if not isinstance(accepts, list):
        raise ChallengeError("the payment challenge has no list of offers (accepts)")
    if len(accepts) > OFFERS_MAX:
        raise ChallengeError(f"the payment challenge lists more than {OFFERS_MAX} offers")
    read = [_read_offer(index, entry, form) for index, entry in enumerate(accepts)]
    return Challenge(
        form=form,
        offers=tuple(item for item in read if isinstance(item, Offer)),
        skipped=tuple(item for item in read if isinstance(item, Skipped)),
        document=document,
        text=text,
    )


def _form(document: Mapping[str, Any], *, in_header: bool) -> Form:
    version = document.get("x402Version")
    if version is None and in_header:
        return "v2"
    if version is None:
        return "v1" if _is_worded_as_v1(document.get("accepts")) else "server402"
    if type(version) in (int, str) and str(version) in ("1", "2"):
        return "v1" if str(version) == "1" else "v2"
    raise ChallengeError(f"unknown x402Version {shown(version, 20)}")


def _is_worded_as_v1(accepts: object) -> bool:
    """Whether all offers of a challenge without a version are in the words of version 1.

    ``maxAmountRequired`` is no other version's; a chain's name and a resource as text, together.
    """
    listed = accepts if isinstance(accepts, list) else []
    entries = [entry for entry in listed if isinstance(entry, dict)]
    return bool(entries) and all(
        ("maxAmountRequired" in entry and "amount" not in entry)
        or (isinstance(entry.get("resource"), str) and entry.get("network") in NETWORK_NAMES)
        for entry in entries
    )


def _read_offer(index: int, entry: object, form: Form) -> Offer | Skipped:
    if not isinstance(entry, dict):
        return Skipped(index=index, reason="scheme", detail="not an object")
    names = ("scheme", "network", "asset", "payTo")
    texts = {name: found for name in names if (found := _named(entry.get(name))) is not None}

    def skipped(reason: str, detail: str) -> Skipped:
        read = {name: texts.get(name) for name in names[:3]}
        return Skipped(index=index, reason=reason, detail=detail, **read)

    for name in names:
        if name not in texts:
            reason = {"payTo": "payee"}.get(name, name)
            return skipped(reason, f"{name} is missing or not text")
    amount = _read_amount(entry, form)
    if isinstance(amount, str):
        return skipped("price", amount)
    timeout = _read_timeout(entry.get("maxTimeoutSeconds"))
    if timeout is None:
        return skipped("validity", "maxTimeoutSeconds is not a number")
    extra = _read_extra(entry.get("extra"))
    if extra is None:
        return skipped("domain", "extra is not an object")
    return Offer(
        scheme=texts["scheme"],
        network=caip2(texts["network"]),
        asset=texts["asset"],
        amount=amount,
        pay_to=texts["payTo"],
        max_timeout_s=timeout,
        index=index,
        extra=extra,
        raw=entry,
    )


def _named(value: object) -> str | None:
    return value if isinstance(value, str) and 0 < len(value) <= 256 else None


def _read_amount(entry: Mapping[str, Any], form: Form) -> int | str:
    """The amount, or what is wrong with it."""
    names = ("maxAmountRequired", "amount") if form == "v1" else ("amount", "maxAmountRequired")
    given = {name: entry[name] for name in names if entry.get(name) is not None}
    if not given:
        return f"{names[0]} is missing"
    (name, text), *others = given.items()
    if any(value != text for _, value in others):
        return f"{names[0]} and {names[1]} are not the same"
    if isinstance(text, (int, float)) and not isinstance(text, bool):
        return f"{name} is a JSON number, x402 wants text: an integer in atomic units"
    if not isinstance(text, str) or not _AMOUNT.fullmatch(text):
        return f"{name} is not a positive integer"
    amount = int(text)
    return amount if 0 < amount <= _UINT256_MAX else f"{name} is not a positive integer in range"


def _read_timeout(value: object) -> int | None:
    if value is None:
        return TIMEOUT_DEFAULT_S
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return int(value) if isinstance(value, int) or value.is_integer() else None


def _read_extra(value: object) -> Mapping[str, Any] | None:
    if isinstance(value, str):  # seen in version 1: a JSON text inside the JSON
        try:
            value = strict_json.loads(value) if value else {}
        except strict_json.BadJSON:
            return None
    if value is None:
        return {}
    return value if isinstance(value, dict) else None


# --- proofs -------------------------------------------------------------------------------------


def proof_header(
    challenge: Challenge, offer: Offer, payload: str, payment_id: str, *, payload_bytes: int = 0
) -> tuple[str, str]:
    """Name and value of the header that presents *payload*, which is JSON.

    What is repeated is what goes beside *payload_bytes*, the most that a payload of its kind has,
    so that this is known before there is one.

    ``accepted``, ``resource`` and ``extensions`` go back to the letter as received; the one
    addition is the ``id`` of ``payment-identifier``, where the seller advertises it.
    """
    if challenge.form_of(offer) == "v1":
        message = {"x402Version": 1, "scheme": offer.scheme, "network": offer.raw["network"]}
        return V1_HEADER, _encode({**_texts(message), "payload": payload})
    fields = _repeated(challenge, offer, payment_id, max(len(payload), payload_bytes))
    return SIGNATURE_HEADER, _encode({**fields, "payload": payload})


def is_too_large(challenge: Challenge, offer: Offer, payload_bytes: int) -> bool:
    """Whether the header that would pay *offer* is longer than servers take, whatever is left out.

    Known before anything is signed: all but the payload, of *payload_bytes* at most, is what the
    challenge said.
    """
    if challenge.form_of(offer) == "v1" or len(challenge.text) * 4 < PROOF_BYTES_MAX // 2:
        return False
    fields = _repeated(challenge, offer, "-" * _ID_LENGTH, payload_bytes)
    return _line_bytes(fields, payload_bytes) > PROOF_BYTES_MAX


def _repeated(
    challenge: Challenge, offer: Offer, payment_id: str, payload_bytes: int
) -> dict[str, str]:
    """What a proof repeats of the challenge.

    The echo of the seller's catalog entry, often its longest part, is left out where the header
    would become too long: servers let it pass (PyPI x402 2.25.0, npm @x402/core 2.27.0).
    """
    said, accepts = _as_written(challenge.text)
    fields = {"x402Version": "2", "accepted": accepts[offer.index]}
    if challenge.document.get("resource") is not None:
        fields["resource"] = said["resource"]
    if not challenge.extensions:
        return fields
    echo = _echo(said["extensions"], challenge.extensions, payment_id)
    whole = {**fields, "extensions": echo}
    if _CATALOG not in challenge.extensions or _line_bytes(whole, payload_bytes) <= PROOF_BYTES_MAX:
        return whole
    others = strict_json.members(echo)
    del others[_CATALOG]
    return {**fields, "extensions": _object(others)} if others else fields


def _line_bytes(fields: Mapping[str, str], payload_bytes: int) -> int:
    """Bytes of the header line that carries *fields* and a payload."""
    plain = len(_object({**fields, "payload": ""}).encode()) + payload_bytes
    return len(SIGNATURE_HEADER) + len(": \r\n") + -(-plain // 3) * 4


@lru_cache(maxsize=32)
def _as_written(text: str) -> tuple[Mapping[str, str], Sequence[str]]:
    """The members of a challenge and the elements of its ``accepts``, to the letter."""
    said = strict_json.members(text)
    return said, strict_json.elements(said["accepts"])


def _echo(text: str, extensions: Mapping[str, Any], payment_id: str) -> str:
    entry = extensions.get("payment-identifier")
    if not isinstance(entry, dict):
        return text
    known = strict_json.members(text)
    inside = strict_json.members(known["payment-identifier"])
    info = strict_json.members(inside["info"]) if isinstance(entry.get("info"), dict) else {}
    inside["info"] = _object({**info, "id": strict_json.dumps(payment_id)})
    return _object({**known, "payment-identifier": _object(inside)})


def _texts(message: Mapping[str, Any]) -> dict[str, str]:
    return {name: strict_json.dumps(value) for name, value in message.items()}


def _object(fields: Mapping[str, str]) -> str:
    """A JSON object of members that are JSON already."""
    return (
        "{" + ",".join(f"{strict_json.dumps(name)}:{text}" for name, text in fields.items()) + "}"
    )


def _encode(fields: Mapping[str, str]) -> str:
    return base64.b64encode(_object(fields).encode()).decode("ascii")


# --- settlements --------------------------------------------------------------------------------


def read_settlement(get_list: Mapping[str, Sequence[str]]) -> Settlement | None:
    """The settlement a response claims, or ``None`` where it says nothing.

    Never raises: what cannot be read is a ``Settlement`` with ``garbled=True``.
    """
    for name in _SETTLEMENT_HEADERS:
        values = get_list.get(name, ())
        if values:
            return _settlement(values)
    return None


def error_of(header: str) -> object:
    """The ``error`` of a challenge in a header; ``None`` where there is none to be read."""
    try:
        document = strict_json.loads(_decode_header(header))
    except (strict_json.BadJSON, ChallengeError):
        return None
    return document.get("error") if isinstance(document, dict) else None


SETTLEMENT_HEADERS: Final = _SETTLEMENT_HEADERS

_GARBLED: Final = Settlement(
    success=False, transaction=None, network=None, payer=None, amount=None, error=None, garbled=True
)


def _settlement(values: Sequence[str]) -> Settlement:
    text = values[0].strip()
    if len(values) > 1 or len(text) > CHALLENGE_BYTES_MAX or not _BASE64.fullmatch(text):
        return _GARBLED
    try:
        document = strict_json.loads(_header_text(_unbase64(text)))
    except (strict_json.BadJSON, ChallengeError):
        return _GARBLED
    if not isinstance(document, dict):
        return _GARBLED
    return _read_settlement(document)


def _read_settlement(document: Mapping[str, Any]) -> Settlement:
    texts: dict[str, str | None] = {}
    for name in ("transaction", "network", "payer"):
        value = document.get(name)
        if value is not None and not isinstance(value, str):
            return _GARBLED
        texts[name] = value or None
    try:
        amount = _settled_amount(document.get("amount"))
    except ValueError:
        return _GARBLED
    error = document.get("errorReason") or document.get("error")
    return Settlement(
        success=document.get("success") is True,
        transaction=texts["transaction"],
        network=caip2(texts["network"]) if texts["network"] else None,
        payer=texts["payer"],
        amount=amount,
        error=shown(error, REASON_MAX) if error else None,
    )


def _settled_amount(value: object) -> int | None:
    """The amount of a settlement, which some sellers write as a number.

    Raises:
        ValueError: it is none.
    """
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    if value is None or (isinstance(value, str) and _AMOUNT.fullmatch(value)):
        return None if value is None else int(value)
    raise ValueError("not an amount")
