"""A PostgreSQL server whose connection breaks at a commit, or at any other statement."""

from __future__ import annotations

import socket
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from typing import Literal, Self

_NAME = ".s.PGSQL.5432"
_COMMIT = b"COMMIT\0"

Cut = Literal["before", "after", "silence"]


class Proxy:
    """Relays the connections to a server's socket, and cuts one off at its next ``COMMIT``.

    Attributes:
        cut: ``"before"`` loses the commit, ``"after"`` loses the answer to it, ``"silence"`` loses
            it and hangs up on nobody until :meth:`hang_up`; ``None`` none of these.
        at: cut the statement of this number instead, counted from 1 in :attr:`asked`.
        asked: how many statements were sent since it was set to 0; a new connection is one, too.
        down: refuse new connections; set by a cut when ``stays_down``.
    """

    def __init__(self, folder: Path, name: str = _NAME) -> None:
        self._server = str(folder / name)
        self._scratch = tempfile.TemporaryDirectory(
            prefix="x402-pg-cut-", ignore_cleanup_errors=True
        )
        self.folder = Path(self._scratch.name)
        self.cut: Cut | None = None
        self.at: int | None = None
        self.asked = 0
        self.stays_down = False
        self.down = False
        self.cuts = 0
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(str(self.folder / _NAME))
        self._listening.listen(32)
        self._open: set[socket.socket] = set()
        self._silent: list[tuple[socket.socket, socket.socket]] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            if self.down:
                client.close()
                continue
            server = socket.socket(socket.AF_UNIX)
            self._open |= {client, server}
            try:
                server.connect(self._server)
            except OSError:  # a server that was killed, or is starting
                client.close()
                server.close()
                continue
            dead = threading.Event()
            for source, target in ((client, server), (server, client)):
                threading.Thread(
                    target=self._relay, args=(source, target, dead, source is client), daemon=True
                ).start()

    def _relay(
        self, source: socket.socket, target: socket.socket, dead: threading.Event, asks: bool
    ) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                if dead.is_set():
                    break  # the answer to the commit: it is done, and nobody hears of it
                self.asked += asks
                here = data.endswith(_COMMIT) if self.at is None else self.asked == self.at
                if asks and self.cut is not None and here:
                    cut, self.cut = self.cut, None
                    self.cuts += 1
                    if cut == "silence":
                        self._silent.append((source, target))
                        return
                    self.down = self.stays_down
                    dead.set()
                    if cut == "before":
                        break
                target.sendall(data)
                if asks and dead.is_set():
                    return  # the other direction hangs up when the server has answered
        for side in (source, target):
            with suppress(OSError):
                side.shutdown(socket.SHUT_RDWR)

    def hang_up(self) -> None:
        """End the connections that fell silent."""
        while self._silent:
            for side in self._silent.pop():
                with suppress(OSError):
                    side.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        with suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        for side in self._open:
            side.close()
        self._scratch.cleanup()
