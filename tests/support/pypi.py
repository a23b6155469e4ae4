"""Install SDKs that tests import, once, into an ignored cache: beside this environment, not in it."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from tests.support.npm import INSTALL_S, Unavailable, locked

CACHE: Final = Path(__file__).parents[2] / ".cache" / "sdks"
SETS: Final = {
    "openai2": ("openai==2.54.0",),  # on httpx; the rest would not take it beside openai 3
    "sdks": ("openai==3.57.0", "anthropic==2.14.0", "groq==1.7.0", "hishel[async]==2.0.0"),
}
_UNREACHABLE: Final = ("Retrying (", "Network is unreachable", "Temporary failure in name")
_refused: dict[str, str] = {}


def packages(wanted: str) -> Path:
    """Return a directory for the end of ``sys.path`` that has the packages of a set.

    Safe for several test processes at once: one installs, the others wait.

    Raises:
        Unavailable: there is no pip, or the registry cannot be reached.
    """
    if wanted in _refused:
        raise Unavailable(_refused[wanted])
    named = "\n".join([sys.version, *SETS[wanted]])
    home = CACHE / f"{wanted}-{hashlib.sha256(named.encode()).hexdigest()[:12]}"
    if home.is_dir():
        return home
    CACHE.mkdir(parents=True, exist_ok=True)
    (CACHE.parent / ".gitignore").write_text("*\n")
    with locked(CACHE / f"{wanted}.lock"):
        if not home.is_dir():
            try:
                _install(SETS[wanted], home)
            except Unavailable as failure:
                _refused[wanted] = str(failure)
                raise
    return home


def _install(wanted: tuple[str, ...], home: Path) -> None:
    with tempfile.TemporaryDirectory(dir=CACHE, prefix="partial-") as scratch:
        target = Path(scratch, "packages")
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-input", "--retries=1"]
        options = ["--disable-pip-version-check", "--timeout=30", f"--target={target}"]
        try:
            done = subprocess.run(
                [*command, *options, *wanted],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=INSTALL_S,
                check=False,
            )
        except subprocess.TimeoutExpired as exc:
            raise Unavailable(f"pip install took more than {INSTALL_S:.0f} s") from exc
        if done.returncode == 0:
            target.rename(home)
            return
        if "No module named pip" in done.stdout:
            raise Unavailable("there is no pip in this environment")
        for line in done.stdout.splitlines():
            if any(sign in line for sign in _UNREACHABLE):
                raise Unavailable(f"the package registry cannot be reached: {line.strip()[:200]}")
        raise AssertionError(done.stdout[-2000:])
