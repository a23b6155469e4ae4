"""Run a helper program that cannot outlive the tests."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

# The guardian ends its one child when the tests end, however they end: then nobody holds the other
# end of its pipe. SIGTERM does the same, for a pipe that a forked test process still holds open;
# the SIGINT of a terminal does not reach the new session. os.read, because a buffered reader is
# locked while it waits and so would spoil the exit.
_GUARDIAN = """
import os, signal, subprocess, sys, threading

child, ended = None, False

def end(*_):
    global ended
    ended = True
    if child is not None:
        child.terminate()

def watch():
    os.read(0, 1)
    end()
    try:
        child.wait(5)
    except subprocess.TimeoutExpired:
        child.kill()

signal.signal(signal.SIGTERM, end)
child = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
if ended:
    child.terminate()
threading.Thread(target=watch, daemon=True).start()
child.wait()
"""


class Child:
    """A running program, known ready because a line of its output matched.

    Attributes:
        ready: the match, e.g. with the port the program listens on.
        log: the file its output goes to.
    """

    def __init__(
        self,
        command: list[str],
        ready: str,
        *,
        cwd: Path | None = None,
        env: dict[str, str] | None = None,
        timeout_s: float = 60.0,
    ) -> None:
        """Start *command* and wait for the pattern *ready* in its output.

        Raises:
            RuntimeError: it said nothing of the kind within *timeout_s*; the output is quoted.
        """
        self._scratch = tempfile.TemporaryDirectory(
            prefix="x402-mask-child-", ignore_cleanup_errors=True
        )
        self.log = Path(self._scratch.name, "log")
        with self.log.open("wb") as out:
            self._guardian = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _GUARDIAN, *command],
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=subprocess.STDOUT,
                cwd=cwd or self._scratch.name,
                env=env,
                start_new_session=True,
            )
        try:
            self.ready = self._wait(re.compile(ready), time.monotonic() + timeout_s)
        except BaseException:
            self.stop()
            raise

    def _wait(self, pattern: re.Pattern[str], deadline: float) -> re.Match[str]:
        while time.monotonic() < deadline and self._guardian.poll() is None:
            if found := pattern.search(self.log.read_text(errors="replace")):
                return found
            time.sleep(0.01)
        raise RuntimeError(f"not ready in time, last output: {self.tail()}")

    def tail(self, characters: int = 2000) -> str:
        """Return the end of the program's output."""
        return self.log.read_text(errors="replace")[-characters:]

    def stop(self) -> None:
        """End the program and wait for it; harmless when it has ended."""
        if self._guardian.stdin is not None:
            self._guardian.stdin.close()
        self._guardian.terminate()
        try:
            self._guardian.wait(15)
        except subprocess.TimeoutExpired:
            self._guardian.kill()
            self._guardian.wait(5)
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
