"""Install the pinned npm packages of ``node/package.json`` once, into an ignored cache."""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

HERE = Path(__file__).parent / "node"
CACHE = Path(__file__).parents[2] / ".cache" / "node"
INSTALL_S = 300.0
FLAGS = (
    "--no-package-lock",
    "--ignore-scripts",
    "--legacy-peer-deps",
    "--no-audit",
    "--no-fund",
    "--loglevel=error",
    "--fetch-retries=2",
    "--fetch-retry-mintimeout=1000",
    "--fetch-retry-maxtimeout=3000",
    "--fetch-timeout=60000",
)


class Unavailable(Exception):
    """What the rig needs is not on this machine; the message is one line."""


# One attempt a session: without a network every further one would cost the same minute.
_refused: dict[str, str] = {}


def node() -> str:
    """Return the path of ``node``; raise `Unavailable` where there is none."""
    for name in ("node", "npm"):
        if shutil.which(name) is None:
            raise Unavailable(f"{name} is not installed")
    return str(shutil.which("node"))


def packages(wanted: Literal["chain", "sellers"]) -> Path:
    """Return the ``node_modules`` of *wanted*, installed on first use.

    Safe for several test processes at once: one installs, the others wait. An installation that
    was cut short leaves nothing behind under the final name.

    Raises:
        Unavailable: no Node, or the packages could not be fetched.
    """
    node()
    if wanted in _refused:
        raise Unavailable(_refused[wanted])
    manifest = (HERE / "package.json").read_bytes()
    home = CACHE / f"{wanted}-{hashlib.sha256(manifest).hexdigest()[:12]}"
    modules = home / "node_modules"
    if modules.is_dir():
        return modules
    CACHE.mkdir(parents=True, exist_ok=True)
    (CACHE.parent / ".gitignore").write_text("*\n")
    with locked(CACHE / f"{wanted}.lock"):
        if not modules.is_dir():
            try:
                _install(manifest, home, wanted)
            except Unavailable as failure:
                _refused[wanted] = str(failure)
                raise
    return modules


def _install(manifest: bytes, home: Path, wanted: str) -> None:
    npm = str(shutil.which("npm"))
    with tempfile.TemporaryDirectory(dir=CACHE, prefix=f"{wanted}-partial-") as scratch:
        Path(scratch, "package.json").write_bytes(manifest)
        omit = ("--omit=dev",) if wanted == "chain" else ()
        try:
            done = subprocess.run(
                [npm, "install", *FLAGS, *omit],
                cwd=scratch,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=INSTALL_S,
                check=False,
            )
        except subprocess.TimeoutExpired as exc:
            raise Unavailable(f"npm install took more than {INSTALL_S:.0f} s") from exc
        if done.returncode:
            lines = done.stdout.splitlines() or ["no output"]
            raise Unavailable(f"npm install failed: {lines[0][:200]}")
        home.mkdir(exist_ok=True)
        Path(scratch, "node_modules").rename(home / "node_modules")


@contextmanager
def locked(path: Path) -> Iterator[None]:
    with path.open("w") as handle:
        deadline = time.monotonic() + INSTALL_S + 30
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise Unavailable(f"another process still installs: {path.name}") from None
                time.sleep(0.2)
        yield
