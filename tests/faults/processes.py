"""Processes that start in milliseconds: forked from a server that has imported everything."""

from __future__ import annotations

import ctypes
import multiprocessing
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Self

_JOBS = "tests.faults.jobs"
_PR_SET_PDEATHSIG = 1
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload([_JOBS])


class Process:
    """A job running in a process of its own, which can be killed at any instant."""

    def __init__(self, job: Callable[..., Any], *arguments: Any) -> None:
        """Start ``job(tell, *arguments)``; what it tells can be read with :meth:`heard`."""
        self._ours, theirs = _context.Pipe(duplex=False)
        self._process = _context.Process(target=_run, args=(theirs, job, arguments), daemon=True)
        self._process.start()
        theirs.close()

    def heard(self, seconds: float = 20.0) -> Any:
        """The next thing the job told.

        Raises:
            EOFError: it ended, or was killed, without telling more.
            TimeoutError: it told nothing in time.
        """
        if not self._ours.poll(seconds):
            raise TimeoutError("the job told nothing")
        return self._ours.recv()

    def ended(self, seconds: float = 20.0) -> int:
        """Wait for the end; the exit code, negative for a signal."""
        self._process.join(seconds)
        code = self._process.exitcode
        if code is None:
            raise TimeoutError("the job did not end")
        return code

    @property
    def running(self) -> bool:
        """Whether it still runs."""
        return self._process.is_alive()

    def kill(self) -> None:
        """SIGKILL, and wait until it is dead."""
        self._process.kill()
        self.ended()

    def close(self) -> None:
        """End it if need be, and free what it used."""
        if self._process.is_alive():
            self._process.kill()
        self._process.join(10)
        self._ours.close()
        with suppress(ValueError):
            self._process.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _run(pipe: Any, job: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    if sys.platform == "linux":  # die with the server, which dies with the tests
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with suppress(BrokenPipeError):
        job(pipe.send, *arguments)
        pipe.send(("done", time.time()))
