"""Running the sandbox: in a thread for tests and demos, or in the foreground for the CLI."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from x402_mask.sandbox.app import create_app
from x402_mask.sandbox.cashier import HANG_UP
from x402_mask.sandbox.settings import SandboxSettings

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable
    from types import TracebackType

    from starlette.types import ASGIApp, Receive, Scope, Send

    from x402_mask.sandbox.book import Book
    from x402_mask.sandbox.faults import Faults

START_SECONDS_MAX = 10.0
STOP_SECONDS_MAX = 10.0


class Sandbox:
    """A marketplace on a loopback port, served by a thread of its own.

    Usable as a context manager; *overrides* are fields of `SandboxSettings`. Raises ``OSError`` if
    the port is taken.
    """

    def __init__(
        self,
        settings: SandboxSettings | None = None,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        **overrides: Any,
    ) -> None:
        self.settings = replace(settings or SandboxSettings(), **overrides)
        app = create_app(self.settings)
        self.book: Book = app.state.book
        self.faults: Faults = app.state.faults
        self._socket = _listen(host, port)
        self._server = uvicorn.Server(_config(app, "warning"))
        self._thread = threading.Thread(
            target=self._server.run, args=([self._socket],), name="x402-mask-sandbox", daemon=True
        )
        self.url = f"http://{_authority(self._socket)}"
        self._thread.start()
        self._await_start()

    @property
    def pay_to(self) -> str:
        """The address that is paid."""
        return self.settings.pay_to

    def _await_start(self) -> None:
        deadline = time.monotonic() + START_SECONDS_MAX
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() > deadline:
                self.close()
                raise RuntimeError("the sandbox did not start")
            time.sleep(0.005)

    def close(self) -> None:
        """Stop serving; requests in progress get a second to finish."""
        self._server.should_exit = True
        self._thread.join(STOP_SECONDS_MAX)
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def run(host: str = "127.0.0.1", port: int = 8402, settings: SandboxSettings | None = None) -> None:
    """Serve in the foreground until interrupted. Raises ``OSError`` if the port is taken.

    Beyond loopback, set ``fetch_remote=False``: whoever pays may name the URLs it reads.
    """
    app = create_app(settings)
    # uvicorn shuts down in order, then raises the interrupt again.
    with _listen(host, port) as listening, suppress(KeyboardInterrupt):
        uvicorn.Server(_config(app, "info")).run([listening])


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=512)


def _authority(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _config(app: ASGIApp, log_level: str) -> uvicorn.Config:
    lines = _Lines(app)
    return uvicorn.Config(
        lines,
        http=lines.protocol(),
        loop="asyncio",
        ws="none",
        lifespan="off",
        log_level=log_level,
        server_header=False,
        timeout_graceful_shutdown=1,
    )


class _Lines:
    """Gives the application a way to cut the connection a request came by."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._open: dict[Any, Callable[[], None]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        cut = self._open.get(scope.get("client"))
        if cut is not None:
            scope.setdefault("extensions", {})[HANG_UP] = cut
        await self._app(scope, receive, send)

    def protocol(self) -> type[asyncio.Protocol]:
        """An HTTP protocol that registers its connections here."""
        opened = self._open

        class Protocol(H11Protocol):
            def connection_made(self, transport: Any) -> None:
                super().connection_made(transport)
                if self.client is not None:
                    opened[self.client] = transport.abort

            def connection_lost(self, exc: Exception | None) -> None:
                super().connection_lost(exc)
                if self.client is not None:
                    opened.pop(self.client, None)

        return Protocol
