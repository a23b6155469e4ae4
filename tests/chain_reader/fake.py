"""A chain in a few lines and a JSON-RPC node that can lie about it, on a real loopback socket."""

# ruff: noqa: N802 - methods are named as in JSON-RPC
from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler
from typing import Any

from tests.support.loopback import Handler, HttpServer
from x402_mask._chain.authorizations import Authorization

USED = "0x98de503528ee59b575ef0c0a2576a82497bfc029a5685b209e9ec333479b10a5"
CANCELED = "0x1cdd46ff242716cdaa72d159d339a485b3438398348d68f09d7c8c0a59353d81"
TRANSFER = "0xddf252ad1be2c89b69c2b068fc378daa952ba7f163c4a11628f55a4df523b3ef"

NETWORK = "eip155:8453"
GENESIS_S = 1_700_000_000
BLOCK_S = 2
TOKEN = "0x" + "A5" * 20
PAYER = "0x" + "b1" * 20
PAYEE = "0x" + "C2" * 20
OTHER = "0x" + "d3" * 20
NONCE = "0x" + "E4" * 32


def word(value: str | int) -> str:
    """Return an address or integer as a 32-byte word."""
    number = int(value, 16) if isinstance(value, str) else value
    return f"0x{number:064x}"


def at(block: int) -> int:
    """Return the time of a block of `Chain`, Unix seconds."""
    return GENESIS_S + BLOCK_S * block


def authorization(signed_block: int = 1000, **changes: Any) -> Authorization:
    """Return an authorization signed at the time of a block and valid for 60 s (30 blocks)."""
    signed = at(signed_block)
    made = Authorization(
        network=NETWORK,
        asset=TOKEN,
        payer=PAYER,
        pay_to=PAYEE,
        amount=12_345,
        nonce=NONCE,
        valid_before=signed + 60,
        signed_at=signed,
    )
    return replace(made, **changes)


@dataclass(frozen=True)
class Event:
    """A log of one transaction."""

    topics: tuple[str, ...]
    data: str = "0x"
    address: str = TOKEN


def used(a: Authorization, nonce: str | None = None) -> Event:
    return Event((USED, word(a.payer), nonce or a.nonce))


def canceled(a: Authorization) -> Event:
    return Event((CANCELED, word(a.payer), a.nonce))


def moved(a: Authorization, **changes: Any) -> Event:
    a = replace(a, **changes)
    return Event((TRANSFER, word(a.payer), word(a.pay_to)), word(a.amount), a.asset)


@dataclass
class Transaction:
    block: int
    events: tuple[Event, ...]
    ok: bool = True


@dataclass
class Chain:
    """An honest chain: blocks are computed from their numbers, so millions cost nothing."""

    height: int = 1100
    chain_id: int = 8453
    fork: str = ""
    transactions: dict[str, Transaction] = field(default_factory=dict)

    def add(self, block: int, *events: Event, ok: bool = True) -> str:
        """Put a transaction into *block* and return its hash."""
        key = f"{block}{events}{len(self.transactions)}"
        name = "0x" + hashlib.sha256(key.encode()).hexdigest()
        self.transactions[name] = Transaction(block, events, ok)
        return name

    def block_hash(self, number: int) -> str:
        return "0x" + hashlib.sha256(f"block {self.fork} {number}".encode()).hexdigest()

    # -- JSON-RPC ----------------------------------------------------------------------------

    def eth_chainId(self) -> str:
        return hex(self.chain_id)

    def eth_blockNumber(self) -> str:
        return hex(self.height)

    def eth_getBlockByNumber(self, number: str, full: bool) -> dict[str, Any] | None:
        assert full is False
        n = int(number, 16)
        if n > self.height:
            return None
        return {
            "number": hex(n),
            "hash": self.block_hash(n),
            "timestamp": hex(at(n)),
            "transactions": [],
        }

    def eth_call(self, call: dict[str, str], block: Any) -> str:
        if isinstance(block, dict):
            assert block["requireCanonical"] is True
            numbers = range(max(0, self.height - 300), self.height + 1)
            found = [n for n in numbers if self.block_hash(n) == block["blockHash"]]
            if not found:
                raise Refusal(-32001, "header not found")
            number = found[0]
        else:
            number = int(block, 16)
        selector, payer, nonce = call["data"][:10], call["data"][10:74], call["data"][74:]
        assert selector == "0xe94a0102" and call["to"] == TOKEN.lower()
        key = ("0x" + payer, "0x" + nonce)
        return word(int(any(key == k for k in self._burnt(number))))

    def _burnt(self, upto: int) -> Iterator[tuple[str, str]]:
        for t in self.transactions.values():
            for e in t.events:
                if t.ok and t.block <= upto and e.topics[0] in (USED, CANCELED):
                    yield e.topics[1], e.topics[2].lower()

    def eth_getLogs(self, wanted: dict[str, Any]) -> list[dict[str, Any]]:
        first, last = int(wanted["fromBlock"], 16), int(wanted["toBlock"], 16)
        kinds, payer, nonce = wanted["topics"]
        return [
            log
            for name, t in self.transactions.items()
            if t.ok and first <= t.block <= min(last, self.height)
            for log in self._logs(name)
            if log["address"] == wanted["address"]
            and log["topics"][0] in kinds
            and log["topics"][1:] == [payer, nonce]
        ]

    def eth_getTransactionReceipt(self, name: str) -> dict[str, Any] | None:
        t = self.transactions.get(name)
        if t is None or t.block > self.height:
            return None
        return {
            "transactionHash": name,
            "blockNumber": hex(t.block),
            "blockHash": self.block_hash(t.block),
            "status": hex(int(t.ok)),
            "logs": self._logs(name) if t.ok else [],
        }

    def _logs(self, name: str) -> list[dict[str, Any]]:
        t = self.transactions[name]
        return [
            {
                "address": e.address.lower(),
                "topics": [topic.lower() for topic in e.topics],
                "data": e.data,
                "transactionHash": name,
                "blockNumber": hex(t.block),
                "blockHash": self.block_hash(t.block),
                "logIndex": hex(i),
                "removed": False,
            }
            for i, e in enumerate(t.events)
        ]


class Refusal(Exception):
    """The node answers with this JSON-RPC error."""

    def __init__(self, code: Any, message: Any) -> None:
        super().__init__(code, message)
        self.error = {"code": code, "message": message}


Lie = Callable[[list[Any], Any], Any]
"""Takes the parameters and the true result; returns what is answered, or raises `Refusal`."""


class Node(HttpServer):
    """A node serving a `Chain`.

    ``lies`` maps methods to a `Lie`; ``raw``, when set, writes the whole HTTP answer instead (it
    gets the socket's handler and what would have been the body).  ``calls`` records all calls.
    """

    def __init__(self, chain: Chain) -> None:
        self.chain = chain
        self.lies: dict[str, Lie] = {}
        self.raw: Callable[[BaseHTTPRequestHandler, bytes], None] | None = None
        self.calls: list[tuple[str, list[Any]]] = []
        self.targets: list[str] = []
        self.logins: list[str | None] = []
        super().__init__(_handler(self))

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Return the JSON-RPC answer to *request*, lies included."""
        method, params = request["method"], request["params"]
        self.calls.append((method, params))
        head = {"jsonrpc": "2.0", "id": request["id"]}
        try:
            lie = self.lies.get(method)
            try:
                truth = getattr(self.chain, method)(*params)
            except Refusal:
                if lie is None:
                    raise
                truth = None
            return head | {"result": truth if lie is None else lie(params, truth)}
        except Refusal as refusal:
            return head | {"error": refusal.error}


def _handler(node: Node) -> type[BaseHTTPRequestHandler]:
    class Asked(Handler):
        def do_POST(self) -> None:
            node.targets.append(self.path)
            node.logins.append(self.headers.get("Authorization"))
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            body = json.dumps(node.answer(request)).encode()
            try:
                (node.raw or send)(self, body)
            except OSError:
                self.close_connection = True  # the reader hung up, as it should on a bad answer

    return Asked


def send(
    handler: BaseHTTPRequestHandler,
    body: bytes,
    *,
    status: int = 200,
    headers: Mapping[str, str] | None = None,
) -> None:
    """Answer as a well-behaved server."""
    handler.send_response(status)
    for name, value in (headers or {}).items():
        handler.send_header(name.replace("_", "-"), value)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


@contextmanager
def nodes(*chains: Chain) -> Iterator[list[Node]]:
    """Serve several chains."""
    with ExitStack() as stack:
        yield [stack.enter_context(Node(chain)) for chain in chains]
