"""A fast seller on loopback, in a process of its own: answers 402, or the content to any proof.

It checks nothing, so that what is measured is the buyer.  ``POST /free`` costs nothing.
"""

from __future__ import annotations

import asyncio
import base64
import json
import sys

OFFER = {
    "scheme": "exact",
    "network": "eip155:8453",
    "amount": "200000",
    "asset": "0x833589fCD6eDb6E08f4c7C32D4f71b54bdA02913",
    "payTo": "0x209693Bc6afc0C5328bA36FaF03C514EF312287C",
    "maxTimeoutSeconds": 300,
    "extra": {"name": "USD Coin", "version": "2"},
}
CHALLENGE = {
    "x402Version": 2,
    "error": "Payment required",
    "resource": {"url": "https://seller.example/x", "description": "", "mimeType": ""},
    "accepts": [OFFER],
}
SETTLED = {"success": True, "transaction": "0x" + "ab" * 32, "network": "eip155:8453"}
PROOFS = (b"payment-signature:", b"x-payment:", b"x-bare-proof:")


def _encoded(document: object) -> bytes:
    return base64.b64encode(json.dumps(document).encode())


def _answer(status: bytes, headers: bytes, body: bytes) -> bytes:
    head = b"HTTP/1.1 %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\n%s\r\n"
    return head % (status, len(body), headers) + body


REQUIRED = _answer(
    b"402 Payment Required", b"payment-required: " + _encoded(CHALLENGE) + b"\r\n", b"{}"
)
PAID = _answer(b"200 OK", b"payment-response: " + _encoded(SETTLED) + b"\r\n", b'{"ok":true}')
FREE = _answer(b"200 OK", b"", b'{"ok":true}')


class Seller(asyncio.Protocol):
    def __init__(self) -> None:
        self.buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            head = self.buffer[:end].lower()
            length = 0
            if (at := head.find(b"content-length: ")) >= 0:
                length = int(head[at + 16 :].split(b"\r\n", 1)[0])
            if len(self.buffer) < end + 4 + length:
                return
            self.buffer = self.buffer[end + 4 + length :]
            self.transport.write(self._choose(head))  # type: ignore[attr-defined]

    def _choose(self, head: bytes) -> bytes:
        if b" /free " in head.split(b"\r\n", 1)[0]:
            return FREE
        return PAID if any(name in head for name in PROOFS) else REQUIRED


async def main() -> None:
    server = await asyncio.get_running_loop().create_server(Seller, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)  # until our parent goes


if __name__ == "__main__":
    asyncio.run(main())
