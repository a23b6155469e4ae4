"""A JSON-RPC endpoint in front of the real chain, which can lie, fail and lose answers."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from typing import Any

from tests.support.chain import Chain
from tests.support.loopback import Handler, HttpServer

Lie = Callable[[list[Any], Any], Any]
"""Takes the parameters and the chain's answer ``{"result": ...}``; returns what is answered."""


class Lost(Exception):
    """The chain did it, and the answer never arrives."""


class Proxy(HttpServer):
    """An endpoint that hands on to a chain; ``lies`` maps methods to a `Lie`, ``calls`` records."""

    def __init__(self, chain: Chain) -> None:
        self.chain = chain
        self.lies: dict[str, Lie] = {}
        self.calls: list[tuple[str, list[Any]]] = []
        self._lock = threading.Lock()
        super().__init__(_handler(self))

    @property
    def sent(self) -> list[str]:
        """The raw transactions that came here."""
        return [params[0] for method, params in self.calls if method == "eth_sendRawTransaction"]

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        method, params = request["method"], request["params"]
        with self._lock:  # the chain's client is not shared by threads
            self.calls.append((method, params))
            told = self.chain.w3.provider.make_request(method, params)
        answer = {name: told[name] for name in ("result", "error") if name in told}
        if method in self.lies:
            answer = self.lies[method](params, answer)
        return {"jsonrpc": "2.0", "id": request["id"], **answer}


def _handler(proxy: Proxy) -> type[BaseHTTPRequestHandler]:
    class Asked(Handler):
        def do_POST(self) -> None:  # noqa: N802 - the base's name
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            try:
                body = json.dumps(proxy.answer(request)).encode()
            except Lost:
                self.close_connection = True
                return
            with suppress(OSError):
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

    return Asked
