"""A JSON-RPC endpoint in front of the real chain, which can lie, fail and lose answers."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

from tests.support.chain import Chain

Lie = Callable[[list[Any], Any], Any]
"""Takes the parameters and the chain's answer ``{"result": ...}``; returns what is answered."""


class Lost(Exception):
    """The chain did it, and the answer never arrives."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


class Proxy:
    """An endpoint that hands on to a chain; ``lies`` maps methods to a `Lie`, ``calls`` records."""

    def __init__(self, chain: Chain) -> None:
        self.chain = chain
        self.lies: dict[str, Lie] = {}
        self.calls: list[tuple[str, list[Any]]] = []
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), _handler(self))
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        )
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

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

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)


def _handler(proxy: Proxy) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 20
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
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

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            pass

    return Handler
