"""The real PgBouncer between the ledger and the server, lending connections by the transaction.

It is a system package (Debian: ``pgbouncer``), not one of Python's: tests that need it are skipped
where it is not installed, with that reason.
"""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support.postgres import Postgres
from tests.support.process import Child

_PORT = 6432
_READY = r"\[(\d+)\] LOG process up: PgBouncer"


class Pooler:
    """A running PgBouncer in front of *server*, in its folder; reachable by a socket there.

    ``connections`` is how many it opens to each database.
    """

    def __init__(self, server: Postgres, mode: str = "transaction", connections: int = 3) -> None:
        self._server = server
        self.folder = server.folder / f"pooler-{mode}-{os.urandom(4).hex()}"
        self.folder.mkdir()
        users, settings = self.folder / "users", self.folder / "settings"
        users.write_text('"postgres" ""\n')
        settings.write_text(
            f"[databases]\n* = host={server.folder} user=postgres\n"
            f"[pgbouncer]\nlisten_addr =\nlisten_port = {_PORT}\nunix_socket_dir = {self.folder}\n"
            f"auth_type = any\nauth_file = {users}\npool_mode = {mode}\n"
            f"default_pool_size = {connections}\nserver_login_retry = 0.2\n"
        )
        if os.geteuid() == 0:
            for file in (self.folder, users, settings):
                shutil.chown(file, *server.owner)
        self._child: Child | None = None
        self.start()

    def start(self) -> None:
        """Start it, and wait until it takes connections."""
        program = binary()
        assert program is not None
        command = self._server.as_owner(program, str(self.folder / "settings"))
        self._child = Child(command, _READY, cwd=self.folder)

    def dsn(self, dsn: str) -> str:
        """How to come to the database of *dsn* through it."""
        return dsn.replace(str(self._server.folder), str(self.folder)) + f" port={_PORT}"

    @property
    def socket(self) -> str:
        """The name of its socket in :attr:`folder`."""
        return f".s.PGSQL.{_PORT}"

    def kill(self) -> None:
        """End it as ``kill -9`` does."""
        assert self._child is not None
        os.kill(int(self._child.ready[1]), signal.SIGKILL)
        self.stop()

    def stop(self) -> None:
        """End it."""
        if self._child is not None:
            self._child.stop()
            self._child = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


def binary() -> Path | None:
    """The program, where it is installed; Debian puts it where only root looks."""
    found = shutil.which(
        "pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin"
    )
    return None if found is None else Path(found)


MISSING = "PgBouncer is not installed (Debian: apt-get install pgbouncer)"
