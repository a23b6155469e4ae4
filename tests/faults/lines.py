"""A paid call interrupted at any line that the library executes, then made again.

One exception comes at one line, as a signal or a failed allocation may.  The seller counts the
distinct signatures that it holds, each of which it could still collect.
"""

from __future__ import annotations

import asyncio
import shutil
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, ClassVar, Final, Literal, Self

import httpx

import x402_mask
from tests.transport.kit import Kind, Rig, run
from x402_mask import Cap, MemoryLedger, Payer, SQLiteLedger
from x402_mask._drive import perform
from x402_mask._ledger.audit import verify
from x402_mask.errors import PaymentError

KINDS: Final = tuple(
    Kind("httpx", colour, plug)
    for colour in ("sync", "asyncio")
    for plug in ("transport", "client", "auth", "attach")
)
STRIKES: Final = (KeyboardInterrupt, MemoryError)
"""One that is no ``Exception``, and one that is."""
PRICE: Final = 1000
_HERE: Final = str(Path(x402_mask.__file__).parent)
_UNSEEN: Final = ("streams.py:close", "streams.py:aclose")
"""Functions of which an interruption before their first step cannot be seen by anybody: they are
called when the whole answer was read."""


def strikes_of(kind: Kind) -> tuple[type[BaseException], ...]:
    """All that may come at any line of a call of this colour."""
    return (*STRIKES, SystemExit if kind.sync else asyncio.CancelledError)


class Lines:
    """Raises at the *at*-th line that this thread executes in the library.

    Args:
        at: that line; none where it is 0.
        strike: what is raised.
        threads: of the threads that are begun meanwhile, and not of this one.
    """

    within = _HERE

    def __init__(
        self, at: int, strike: type[BaseException] = KeyboardInterrupt, *, threads: bool = False
    ) -> None:
        self.at, self.strike, self.count, self.where = at, strike, 0, ""
        self._threads, self._over = threads, False
        # Kept for as long as this is: sys.settrace() below drops what else refers to it, perhaps
        # in a finalizer of the garbage that is found while Python 3.11 makes the frame of a call
        # to be traced.  It then calls what it no longer holds a reference to, which ends in
        # "'traceback' object is not callable" where that memory was used again, or worse.
        self._hook = self._enter

    def __enter__(self) -> Self:
        if self._threads:
            perform._pools.clear()  # threads that run are not traced
            threading.settrace(self._hook)
        else:
            sys.settrace(self._hook)
        return self

    def __exit__(self, *exc: object) -> None:
        self._over = True  # for threads that go on
        sys.settrace(None)
        threading.settrace(None)  # type: ignore[arg-type]

    def _enter(self, frame: FrameType, *_: Any) -> Any:
        return self._line if frame.f_code.co_filename.startswith(self.within) else None

    def _line(self, frame: FrameType, event: str, _: Any) -> Any:
        if event == "line" and not self._over:
            self.count += 1
            if self.count == self.at:
                file, code = Path(frame.f_code.co_filename).name, frame.f_code
                self.where = f"{file}:{code.co_name}:{frame.f_lineno}"
                sys.settrace(None)
                raise self.strike("injected")
        return self._line


class TheirLines(Lines):
    """Lines of the HTTP library, which is between the caller and what was paid."""

    within = str(Path(httpx.__file__).parent)


@dataclass
class Trial:
    """One call that is interrupted, and what comes after it.

    A kind of call says in ``prepare`` what there is to buy, in ``made`` how it is made, and in
    ``taken`` how often the seller could collect the price.
    """

    kind: Kind
    lines: Lines
    directory: Path | None = None
    """Where the ledger is; in memory where there is none."""
    first: object = None
    rig: Rig = field(init=False)

    price: ClassVar[int] = PRICE
    before: ClassVar[int] = 0
    """How many payments were made and delivered before the call."""

    def __post_init__(self) -> None:
        self.rig = Rig(self.kind)
        ledger = MemoryLedger() if self.directory is None else SQLiteLedger(self.file)
        self.rig.payer = self.payer_on(ledger)
        self.prepare()

    @property
    def file(self) -> Path:
        """The ledger's, where it has one."""
        assert self.directory is not None
        return self.directory / "ledger.db"

    def payer_on(self, ledger: MemoryLedger | SQLiteLedger) -> Payer:
        """A buyer who may pay for many calls."""
        return self.rig.make_payer(ledger=ledger, caps=[Cap("5", per="total")])

    def prepare(self) -> None:
        """Set up the shop."""
        self.url = self.rig.sells()

    async def made(self) -> object:
        """The call, by a client of its own: the status of its answer, which is read."""
        response = await self.rig.wait(self.rig.make_client().post(self.url, json={"image": 1}))
        await self.rig.read(response)
        return response.status_code

    async def call(self) -> object:
        """The status, or the exception's class."""
        try:
            return await self.made()
        except BaseException as failure:  # that is the point
            return type(failure)

    async def interrupted(self) -> None:
        """The first call."""
        with self.lines:
            self.first = await self.call()

    def __call__(self) -> list[str]:
        """Make the call, and the identical one; what is wrong after that."""
        with suppress(*strikes_of(self.kind)):  # asyncio raises it once more
            run(self.kind.colour, self.interrupted)
        self.lines.__exit__()
        found = self._afterwards()
        self.rig.payer.close()
        return [f"{self.lines.strike.__name__} at {self.lines.where}: {text}" for text in found]

    def _afterwards(self) -> list[str]:
        payer, found = self.rig.payer, list[str]()
        left = self.taken()
        spent = elsewhere(lambda: payer.spend()[0])
        if spent is None:
            return ["the ledger is of no use to another thread"]
        if (spent.settled + spent.held) * 10**6 < left * self.price:
            found.append(f"{left} times the price is out, counted: {spent.settled + spent.held}")
        delivered = [p for p in payer.payments() if p.outcome == "settled" and not p.open]
        if self.first != 200 and len(delivered) > self.before:
            found.append("recorded as delivered, for whoever comes after this process")
        again = run(self.kind.colour, self.call)
        if again != 200:
            found.append(f"the identical call: {again}")
        if self.first != 200 and self.taken() > 1:
            found.append(f"{self.taken()} times the price for one operation")
        spent = payer.spend()[0]
        if (spent.settled + spent.held) * 10**6 < self.taken() * self.price:
            found.append(f"{self.taken()} times the price is out in the end, counted: {spent}")
        report = verify(payer.ledger)
        if not report.ok:
            found.append(f"audit: {report.problems[:1]}")
        return found if self.first == 200 or not self._is_unseen() else []

    def _is_unseen(self) -> bool:
        return self.lines.where.rpartition(":")[0] in _UNSEEN

    def taken(self) -> int:
        """How often the seller could collect the price."""
        return len(set(self.rig.proofs))


class UntilItReturns(Trial):
    """What comes after the client has returned is the caller's affair."""

    async def made(self) -> object:
        response = await self.rig.wait(self.rig.make_client().post(self.url, json={"image": 1}))
        sys.settrace(None)
        return response.status_code


def elsewhere(work: Any) -> Any:
    """What *work* returns in another thread within five seconds; ``None`` if it does not."""
    found: list[Any] = []

    def run_it() -> None:
        with suppress(PaymentError):
            found.append(work())

    thread = threading.Thread(target=run_it, daemon=True)
    thread.start()
    thread.join(5)
    return found[0] if found else None


def lines_of(
    trial: type[Trial],
    kind: Kind,
    directory: Path,
    lines: type[Lines] = Lines,
    *,
    threads: bool = False,
) -> int:
    """How many lines a call executes that nothing interrupts, when all is loaded."""
    counts = []
    for on_disk in (True, False, True, False):
        quiet = tried(trial, kind, directory, lines(0, threads=threads), on_disk=on_disk)
        assert quiet.found == [] and quiet.trial.first == 200, quiet.found
        counts.append(quiet.trial.lines.count)
    return max(counts[2:])


@dataclass
class Tried:
    """A trial, and what was wrong."""

    trial: Trial
    found: list[str]


def tried(trial: type[Trial], kind: Kind, directory: Path, lines: Lines, *, on_disk: bool) -> Tried:
    """One trial, in a directory of its own."""
    own = Path(tempfile.mkdtemp(dir=directory))
    one = trial(kind, lines, own if on_disk else None)
    found = one()
    shutil.rmtree(own, ignore_errors=True)
    return Tried(one, found)


def interrupted(
    kind: Kind,
    directory: Path,
    at: Iterable[int],
    *,
    trial: type[Trial] = Trial,
    strikes: Iterable[type[BaseException]] = STRIKES,
    lines: type[Lines] = Lines,
    ledgers: Literal["either", "both", "file"] = "either",
    threads: bool = False,
) -> Iterator[Tried]:
    """Every trial of interrupting at each of these lines.

    *ledgers*: a file and memory in turn, both each time, or a file each time.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
        for turn, number in enumerate(at):
            for strike in strikes:
                for on_disk in {"both": (True, False), "file": (True,)}.get(
                    ledgers, (turn % 2 == 0,)
                ):
                    tracer = lines(number, strike, threads=threads)
                    yield tried(trial, kind, directory, tracer, on_disk=on_disk)


def faults(trials: Iterable[Tried]) -> list[str]:
    """What was wrong in any of them."""
    return [text for one in trials for text in one.found]
