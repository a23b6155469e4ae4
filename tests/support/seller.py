"""A loopback seller that can be scripted down to the byte.

It speaks HTTP/1.1 on a real socket with its own responder, so that it can do what a well behaved
server library will not: repeat headers, stream without end, lie about lengths, drop or reset.

It also keeps the books of an adversary. Every proof that reaches it is decoded and its signature
recovered; :meth:`Seller.authorizations` is what it could collect on chain, each nonce once, whatever
the client believes it has paid.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import json
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, BinaryIO, Final

from eth_account import Account
from eth_account.messages import encode_typed_data

from tests.support.loopback import CutShort, Listener

BASE: Final = "eip155:8453"
BASE_SEPOLIA: Final = "eip155:84532"
PAYEE: Final = "0x209693Bc6afc0C5328bA36FaF03C514EF312287C"
OTHER_PAYEE: Final = "0x70997970C51812dc3A010C7d01b50e0d17dc79C8"
TRANSACTION: Final = "0x" + "ab" * 32
PROOF_HEADERS: Final = ("payment-signature", "x-payment", "x-payment-token", "sign-in-with-x")

_IDLE_S: Final = 20.0
_V1_NETWORKS: Final = {"base": BASE, "base-sepolia": BASE_SEPOLIA, "ethereum": "eip155:1"}
_TRANSFER: Final = {
    "TransferWithAuthorization": [
        {"name": "from", "type": "address"},
        {"name": "to", "type": "address"},
        {"name": "value", "type": "uint256"},
        {"name": "validAfter", "type": "uint256"},
        {"name": "validBefore", "type": "uint256"},
        {"name": "nonce", "type": "bytes32"},
    ]
}

Headers = list[tuple[str, str]]
Json = dict[str, Any]


# --- what the seller knows about tokens -----------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """One token contract and the EIP-712 domain it really has."""

    network: str
    address: str
    decimals: int
    name: str
    version: str

    @property
    def chain_id(self) -> int:
        """The EIP-155 number of the network."""
        return int(self.network.partition(":")[2])


USDC: Final = Token(
    network=BASE,
    address="0x833589fCD6eDb6E08f4c7C32D4f71b54bdA02913",
    decimals=6,
    name="USD Coin",
    version="2",
)
USDC_SEPOLIA: Final = Token(
    network=BASE_SEPOLIA,
    address="0x036CbD53842c5426634e7929541eC2318f3dCF7e",
    decimals=6,
    name="USDC",
    version="2",
)
USDC_ETHEREUM: Final = Token(
    network="eip155:1",
    address="0xA0b86991c6218b36c1d19D4a2e9Eb0cE3606eB48",
    decimals=6,
    name="USD Coin",
    version="2",
)
USDC_CELO: Final = Token(
    network="eip155:42220",
    address="0xcebA9300f2b948710d2653dD7B07f33A8B32118C",
    decimals=6,
    name="USDC",
    version="2",
)
WIDE_USD: Final = Token(
    network=BASE,
    address="0x4200000000000000000000000000000000000042",
    decimals=18,
    name="Wide USD",
    version="1",
)
TOKENS: Final = (USDC, USDC_SEPOLIA, USDC_ETHEREUM, USDC_CELO, WIDE_USD)


# --- proofs ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Authorization:
    """A transfer the seller may execute on chain until ``valid_before``."""

    origin: str
    network: str
    asset: str
    payer: str
    to: str
    value: int
    valid_after: int
    valid_before: int
    nonce: str
    usd_micro: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """A payment header as it arrived, and the JSON in it where there is any."""

    header: str
    raw: str
    document: Json | None

    @property
    def accepted(self) -> Json:
        """The offer the buyer says it accepted (empty in version 1)."""
        found = (self.document or {}).get("accepted")
        return found if isinstance(found, dict) else {}

    @property
    def authorization(self) -> Json:
        """The EIP-3009 message, or an empty object."""
        payload = (self.document or {}).get("payload")
        found = payload.get("authorization") if isinstance(payload, dict) else None
        return found if isinstance(found, dict) else {}

    @property
    def network(self) -> str:
        """The network named by the proof, as it was spelt."""
        return str((self.document or {}).get("network") or self.accepted.get("network") or "")


def decode_proof(header: str, raw: str) -> Proof:
    """Read one payment header; a token, or anything unreadable, has no document."""
    document: Any = None
    with contextlib.suppress(binascii.Error, ValueError):
        document = json.loads(base64.b64decode(raw, validate=True))
    return Proof(header=header, raw=raw, document=document if isinstance(document, dict) else None)


def _claimed_token(proof: Proof) -> Token | None:
    """The domain the seller itself put into its offer, should the buyer have believed it."""
    extra = proof.accepted.get("extra")
    if not isinstance(extra, dict):
        return None
    try:
        return Token(
            network=str(proof.accepted["network"]),
            address=str(extra.get("verifyingContract") or proof.accepted["asset"]),
            decimals=6,
            name=str(extra["name"]),
            version=str(extra["version"]),
        )
    except KeyError:
        return None


def _recovers(token: Token, message: Json, signature: str) -> bool:
    domain = {
        "name": token.name,
        "version": token.version,
        "chainId": token.chain_id,
        "verifyingContract": token.address,
    }
    numbers = {k: int(message[k]) for k in ("value", "validAfter", "validBefore")}
    try:
        signable = encode_typed_data(domain, _TRANSFER, {**message, **numbers})
        signer = Account.recover_message(signable, signature=signature)
    except Exception:
        return False
    return str(signer).lower() == str(message["from"]).lower()


@lru_cache(maxsize=4096)
def _recovered(raw: str) -> tuple[Token, Json] | None:
    """The token and message a header's signature is valid for; the same bytes are judged once."""
    proof = decode_proof("", raw)
    message = proof.authorization
    payload = (proof.document or {}).get("payload")
    signature = payload.get("signature") if isinstance(payload, dict) else None
    if not message or not isinstance(signature, str):
        return None
    claimed = _claimed_token(proof)
    named = str(proof.accepted.get("asset") or "").lower()
    tokens = sorted(TOKENS, key=lambda token: token.address.lower() != named)
    for token in [*tokens, *([claimed] if claimed else [])]:
        if _recovers(token, message, signature):
            return token, message
    return None


def authorization_of(origin: str, proof: Proof) -> Authorization | None:
    """What this proof lets a seller take: the signature must fit a token we could execute it on."""
    found = _recovered(proof.raw)
    if found is None:
        return None
    token, message = found
    value = int(message["value"])
    return Authorization(
        origin=origin,
        network=token.network,
        asset=token.address,
        payer=str(message["from"]),
        to=str(message["to"]),
        value=value,
        valid_after=int(message["validAfter"]),
        valid_before=int(message["validBefore"]),
        nonce=str(message["nonce"]).lower(),
        usd_micro=-(-value * 10**6 // 10**token.decimals),
    )


# --- requests and replies -------------------------------------------------------------------------


@dataclass(slots=True, kw_only=True)
class Hit:
    """One request as it stood on the wire."""

    method: str
    target: str
    headers: Headers
    body: bytes
    connection: int
    began: float
    ended: float | None = None
    complete: bool = True

    @property
    def path(self) -> str:
        """The target without its query."""
        return self.target.partition("?")[0]

    def values(self, name: str) -> list[str]:
        """Every value sent under this header name, in order."""
        return [value for key, value in self.headers if key.lower() == name.lower()]

    def header(self, name: str) -> str | None:
        """The only value of this header; two are an error."""
        found = self.values(name)
        assert len(found) <= 1, f"{name} was sent {len(found)} times"
        return found[0] if found else None

    @property
    def proofs(self) -> list[Proof]:
        """Every payment header of the request."""
        return [
            decode_proof(name.lower(), value)
            for name, value in self.headers
            if name.lower() in PROOF_HEADERS
        ]

    @property
    def proof(self) -> Proof:
        """The one payment header of the request."""
        found = self.proofs
        assert len(found) == 1, f"expected one payment header, got {[p.header for p in found]}"
        return found[0]


Body = bytes | Iterable[bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What to write back.

    ``framing`` is ``length``, ``chunked`` or ``close`` (end of connection ends the body); ``length``
    overrides the announced size; ``cut`` drops the connection after so many body bytes; ``drop`` and
    ``reset`` answer nothing at all, politely or with a TCP reset; ``delay`` waits before the head.
    """

    status: int = 200
    headers: Headers = field(default_factory=list)
    body: Body = b""
    framing: str = "length"
    length: int | None = None
    delay: float = 0.0
    cut: int | None = None
    drop: bool = False
    reset: bool = False


Script = Callable[[Hit], Reply]
Answer = Reply | Script


def play(answer: Answer, hit: Hit) -> Reply:
    """A reply, or what the function makes of this request."""
    return answer if isinstance(answer, Reply) else answer(hit)


def sequence(*answers: Answer) -> Script:
    """One answer after another; the last is repeated."""
    lock = threading.Lock()
    position = 0

    def script(hit: Hit) -> Reply:
        nonlocal position
        with lock:
            chosen = answers[min(position, len(answers) - 1)]
            position += 1
        return play(chosen, hit)

    return script


def paywall(unpaid: Answer, paid: Answer) -> Script:
    """Answer ``paid`` to a request that carries any payment header, else ``unpaid``."""
    return lambda hit: play(paid if hit.proofs else unpaid, hit)


# --- challenges and settlements -------------------------------------------------------------------


def encode(document: object) -> str:
    """Base64 of compact UTF-8 JSON, as the headers want it."""
    text = document if isinstance(document, str) else json.dumps(document, ensure_ascii=False)
    return base64.b64encode(text.encode()).decode("ascii")


def offer(amount: object = "1000", *, token: Token = USDC, **changes: Any) -> Json:
    """One version 2 entry of ``accepts``; a change to ``None`` leaves the key out."""
    entry: Json = {
        "scheme": "exact",
        "network": token.network,
        "amount": amount,
        "asset": token.address,
        "payTo": PAYEE,
        "maxTimeoutSeconds": 60,
        "extra": {"name": token.name, "version": token.version},
    }
    entry.update(changes)
    return {key: value for key, value in entry.items() if value is not None}


def offer_v1(amount: object = "1000", *, network: str = "base", **changes: Any) -> Json:
    """One version 1 entry of ``accepts``."""
    entry = offer(None, network=network, **changes)
    return {
        **entry,
        "maxAmountRequired": amount,
        "resource": "http://seller.invalid/paid",
        "description": "",
        "mimeType": "application/json",
    }


def offer_server402(amount: object = "1000", **changes: Any) -> Json:
    """One entry as the marketplace documents it: no ``extra``, an ``outputSchema``."""
    entry = offer(amount, extra=None, maxTimeoutSeconds=300, **changes)
    return {**entry, "outputSchema": {"type": "object", "properties": {"data": {}}}}


def challenge(*offers: Any, version: object = 2, **more: Any) -> Json:
    """The document of a challenge; ``version=None`` leaves the version out."""
    document: Json = {} if version is None else {"x402Version": version}
    document["error"] = "Payment required"
    if version == 2:
        document["resource"] = {"url": "http://seller.invalid/paid"}
    return {**document, "accepts": list(offers), **more}


def in_header(document: object, **reply: Any) -> Reply:
    """A 402 whose challenge is in ``PAYMENT-REQUIRED``."""
    headers = [("PAYMENT-REQUIRED", encode(document)), *reply.pop("headers", [])]
    body = reply.pop("body", b"{}")
    return Reply(status=402, headers=headers, body=body, **reply)


def in_body(document: object, **reply: Any) -> Reply:
    """A 402 whose challenge is its JSON body."""
    headers = [("Content-Type", "application/json"), *reply.pop("headers", [])]
    text = document if isinstance(document, str) else json.dumps(document)
    return Reply(status=402, headers=headers, body=text.encode(), **reply)


def v2_header(*offers: Any, **more: Any) -> Reply:
    """Version 2 as the specification has it."""
    return in_header(challenge(*offers, **more))


def v2_body(*offers: Any, **more: Any) -> Reply:
    """Version 2 in the body alone."""
    return in_body(challenge(*offers, **more))


def v1_body(*offers: Any, **more: Any) -> Reply:
    """Version 1."""
    return in_body(challenge(*offers, version=1, **more))


def server402_body(*offers: Any, **more: Any) -> Reply:
    """The marketplace: a version 2 entry in a body that names no version."""
    return in_body({**challenge(*offers, version=None, **more), "error": "payment required"})


def settlement(hit: Hit, **changes: Any) -> tuple[str, str]:
    """An honest settlement header for the proof in this request, with some fields changed."""
    proof = hit.proofs[0]
    document: Json = {
        "success": True,
        "transaction": TRANSACTION,
        "network": proof.network,
        "payer": proof.authorization.get("from", ""),
        **changes,
    }
    name = "X-PAYMENT-RESPONSE" if proof.header == "x-payment" else "PAYMENT-RESPONSE"
    return name, encode({key: value for key, value in document.items() if value is not None})


def served(
    body: Body = b"goods", *, status: int = 200, changes: Json | None = None, **reply: Any
) -> Script:
    """Deliver, with an honest settlement header (or one with ``changes``)."""
    extra = reply.pop("headers", [])

    def script(hit: Hit) -> Reply:
        headers = [settlement(hit, **(changes or {})), *extra]
        return Reply(status=status, headers=headers, body=body, **reply)

    return script


# --- the server -----------------------------------------------------------------------------------


class Seller(Listener):
    """A scripted seller on ``http://127.0.0.1:<port>`` with one thread per connection."""

    idle_s = _IDLE_S
    join_s = 0.0  # a script may wait for its test

    def __init__(self) -> None:
        self.hits: list[Hit] = []
        self.errors: list[BaseException] = []
        self.sent_bytes = 0
        self._scripts: dict[str, Answer] = {}
        super().__init__()

    def on(self, path: str, answer: Answer) -> str:
        """Answer requests to ``path`` so; returns the full URL."""
        self._scripts[path] = answer
        return self.origin + path

    def sells(self, *offers: Any, path: str = "/paid", paid: Answer | None = None) -> str:
        """Ask for payment in a version 2 header and deliver to whoever shows a proof."""
        return self.on(path, paywall(v2_header(*(offers or (offer(),))), paid or served()))

    # --- what an adversary holds

    def proofs(self) -> list[Proof]:
        """Every payment header that arrived, repeats included."""
        return [proof for hit in list(self.hits) for proof in hit.proofs]

    def authorizations(self) -> list[Authorization]:
        """The distinct, valid authorizations that arrived, by nonce."""
        found: dict[str, Authorization] = {}
        for proof in self.proofs():
            if (one := authorization_of(self.origin, proof)) is not None:
                found.setdefault(one.nonce, one)
        return list(found.values())

    def totals(self) -> Counter[tuple[str, str]]:
        """Atomic units collectable by (payee, asset)."""
        sums: Counter[tuple[str, str]] = Counter()
        for one in self.authorizations():
            sums[one.to, one.asset] += one.value
        return sums

    def paid_hits(self) -> list[Hit]:
        """The requests that carried a payment header."""
        return [hit for hit in list(self.hits) if hit.proofs]

    def wait_for(self, ready: Callable[[], object], seconds: float = 5.0) -> None:
        """Block until ``ready()`` is true; fail after ``seconds``."""
        deadline = time.monotonic() + seconds
        while not ready():
            assert time.monotonic() < deadline, "the seller waited in vain"
            time.sleep(0.005)

    def pause(self, seconds: float) -> None:
        """Sleep, but wake at once when the seller closes."""
        self._closing.wait(seconds)

    # --- sockets

    def serve_numbered(self, connection: socket.socket, number: int) -> None:
        """Answer the requests of one connection."""
        with connection.makefile("rb") as reader:
            while (hit := read_request(reader, number)) is not None:
                self.hits.append(hit)
                if not self._answer(connection, hit):
                    return

    def _answer(self, connection: socket.socket, hit: Hit) -> bool:
        """Write the reply; false when the connection must end."""
        try:
            answer = self._scripts.get(hit.path, Reply(status=404, body=b"no such page"))
            reply = play(answer, hit)
        except Exception as error:
            self.errors.append(error)
            reply = Reply(status=500, body=b"the seller's script failed")
        self.pause(reply.delay)
        if reply.reset:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if reply.reset or reply.drop or self._closing.is_set():
            return False
        try:
            return self._write(connection, reply)
        finally:
            hit.ended = time.monotonic()

    def _write(self, connection: socket.socket, reply: Reply) -> bool:
        connection.sendall(head_of(reply))
        pieces = [reply.body] if isinstance(reply.body, bytes) else reply.body
        sent = 0
        for piece in pieces:
            if self._closing.is_set():
                return False
            part = piece if reply.cut is None else piece[: max(0, reply.cut - sent)]
            if part:
                framed = b"%x\r\n%b\r\n" % (len(part), part)
                connection.sendall(framed if reply.framing == "chunked" else part)
            sent += len(part)
            self.sent_bytes += len(part)
            if reply.cut is not None and sent >= reply.cut:
                return False
        if reply.framing == "chunked":
            connection.sendall(b"0\r\n\r\n")
        return reply.framing != "close"


def head_of(reply: Reply) -> bytes:
    """Status line, headers and framing of a reply."""
    lines = [f"HTTP/1.1 {reply.status} Status"]
    lines += [f"{name}: {value}" for name, value in reply.headers]
    if reply.framing == "chunked":
        lines.append("Transfer-Encoding: chunked")
    elif reply.framing == "close":
        lines.append("Connection: close")
    else:
        assert reply.length is not None or isinstance(reply.body, bytes), "length of what?"
        size = len(reply.body) if isinstance(reply.body, bytes) else 0
        lines.append(f"Content-Length: {size if reply.length is None else reply.length}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def _line(reader: BinaryIO, most: int) -> bytes:
    line = reader.readline(most)
    if line and not line.endswith(b"\n"):
        raise CutShort
    return line


def read_request(reader: BinaryIO, connection: int) -> Hit | None:
    """Read one request; ``None`` when the client has closed the connection.

    Raises:
        CutShort: it did so within the head.
    """
    line = _line(reader, 65536)
    if not line.strip():
        return None
    method, target, _ = line.decode("latin-1").split(" ", 2)
    headers: Headers = []
    while (line := _line(reader, 1 << 20)) not in (b"\r\n", b"\n"):
        if not line:
            raise CutShort
        name, _, value = line.decode("latin-1").partition(":")
        headers.append((name, value.strip()))
    hit = Hit(
        method=method,
        target=target,
        headers=headers,
        body=b"",
        connection=connection,
        began=time.monotonic(),
    )
    hit.body, hit.complete = _read_body(reader, hit)
    return hit


def _read_body(reader: BinaryIO, hit: Hit) -> tuple[bytes, bool]:
    if any("chunked" in value.lower() for value in hit.values("transfer-encoding")):
        return _read_chunks(reader)
    size = int((hit.values("content-length") or ["0"])[0])
    body = reader.read(size)
    return body, len(body) == size


def _read_chunks(reader: BinaryIO) -> tuple[bytes, bool]:
    parts: list[bytes] = []
    while (line := reader.readline(64)).strip() and line.endswith(b"\n"):
        size = int(line.split(b";")[0], 16)
        part = reader.read(size)
        reader.readline(4)
        if size == 0:
            return b"".join(parts), True
        if len(part) < size:
            break
        parts.append(part)
    return b"".join(parts), False


def distinct(raws: Sequence[Proof]) -> set[str]:
    """The different byte strings among some proofs."""
    return {proof.raw for proof in raws}
