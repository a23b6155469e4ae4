"""A paid call interrupted at any line that the library executes, then made again.

One exception comes at one line, as a signal or a failed allocation may.  The seller counts the
distinct signatures that it holds, each of which it could still collect.
"""

from __future__ import annotations

import sys
import threading
import warnings
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Final, Self

import httpx

import x402_mask
from tests.transport.kit import Kind, Rig, run
from x402_mask import Cap, MemoryLedger, SQLiteLedger
from x402_mask._audit import verify
from x402_mask.errors import PaymentError

KINDS: Final = tuple(
    Kind("httpx", colour, plug)
    for colour in ("sync", "asyncio")
    for plug in ("transport", "client", "auth", "attach")
)
STRIKES: Final = (KeyboardInterrupt, MemoryError)
PRICE: Final = 1000
_HERE: Final = str(Path(x402_mask.__file__).parent)
_UNSEEN: Final = ("_streams.py:close", "_streams.py:aclose")
"""Functions of which an interruption before their first step cannot be seen by anybody: they are
called when the whole answer was read."""


class Lines:
    """Raises at the *at*-th line that this thread executes in the library."""

    within = _HERE

    def __init__(self, at: int, strike: type[BaseException] = KeyboardInterrupt) -> None:
        self.at, self.strike, self.count, self.where = at, strike, 0, ""

    def __enter__(self) -> Self:
        sys.settrace(self._enter)
        return self

    def __exit__(self, *exc: object) -> None:
        sys.settrace(None)

    def _enter(self, frame: FrameType, *_: Any) -> Any:
        return self._line if frame.f_code.co_filename.startswith(self.within) else None

    def _line(self, frame: FrameType, event: str, _: Any) -> Any:
        if event == "line":
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
    """One call that is interrupted, and what comes after it."""

    kind: Kind
    directory: Path
    number: int
    lines: Lines
    first: object = None
    rig: Rig = field(init=False)

    def __post_init__(self) -> None:
        self.rig = Rig(self.kind)
        path = self.directory / f"{self.lines.strike.__name__}-{self.lines.at}-{self.number}.db"
        ledger = SQLiteLedger(path) if self.number % 2 else MemoryLedger()
        self.rig.payer = self.rig.make_payer(ledger=ledger, caps=[Cap("5", per="total")])
        self.prepare()

    def prepare(self) -> None:
        """Set up the shop."""
        self.url = self.rig.sells()

    async def call(self) -> object:
        """Call with a client of its own: the status, or the exception's class."""
        client = self.rig.make_client()
        try:
            response = await self.rig.wait(client.post(self.url, json={"image": 1}))
            await self.rig.read(response)
        except BaseException as failure:  # that is the point
            return type(failure)
        return response.status_code

    async def interrupted(self) -> None:
        """The first call."""
        with self.lines:
            self.first = await self.call()

    def __call__(self) -> list[str]:
        """Make the call, and the identical one; what is wrong after that."""
        with suppress(*STRIKES):  # asyncio raises it once more
            run(self.kind.colour, self.interrupted)
        sys.settrace(None)
        found = self._afterwards()
        self.rig.payer.close()
        return [f"{self.lines.strike.__name__} at {self.lines.where}: {text}" for text in found]

    def _afterwards(self) -> list[str]:
        payer, found = self.rig.payer, list[str]()
        left = self.held_by_seller()
        spent = elsewhere(lambda: payer.spend()[0])
        if spent is None:
            return ["the ledger is of no use to another thread"]
        if (spent.settled + spent.held) * 10**6 < left * PRICE:
            found.append(f"{left} signatures out, counted: {spent.settled + spent.held}")
        delivered = [p for p in payer.payments() if p.outcome == "settled" and not p.open]
        if self.first != 200 and delivered:
            found.append("recorded as delivered, for whoever comes after this process")
        again = run(self.kind.colour, self.call)
        if again != 200:
            found.append(f"the identical call: {again}")
        if self.first != 200 and self.held_by_seller() > 1:
            found.append(f"{self.held_by_seller()} live signatures for one operation")
        report = verify(payer.ledger)
        if not report.ok:
            found.append(f"audit: {report.problems[:1]}")
        return found if self.first == 200 or not self._is_unseen() else []

    def _is_unseen(self) -> bool:
        return self.lines.where.rpartition(":")[0] in _UNSEEN

    def held_by_seller(self) -> int:
        """How many signatures the seller could collect."""
        return len(set(self.rig.proofs))


class UntilItReturns(Trial):
    """What comes after the client has returned is the caller's affair."""

    async def call(self) -> object:
        client = self.rig.make_client()
        try:
            response = await self.rig.wait(client.post(self.url, json={"image": 1}))
            sys.settrace(None)
        except BaseException as failure:  # that is the point
            return type(failure)
        return response.status_code


def elsewhere(work: Any) -> Any:
    """What *work* returns in another thread within two seconds; ``None`` if it does not."""
    found: list[Any] = []

    def run_it() -> None:
        with suppress(PaymentError):
            found.append(work())

    thread = threading.Thread(target=run_it, daemon=True)
    thread.start()
    thread.join(2)
    return found[0] if found else None


def lines_of(trial: type[Trial], kind: Kind, directory: Path, lines: type[Lines] = Lines) -> int:
    """How many lines a call executes that nothing interrupts, when all is loaded."""
    for number in (0, 1):
        quiet = trial(kind, directory, number, lines(0))
        found = quiet()
        assert found == [] and quiet.first == 200, found
    return quiet.lines.count


def interrupted(
    kind: Kind,
    directory: Path,
    at: Iterable[int],
    *,
    trial: type[Trial] = Trial,
    strikes: Iterable[type[BaseException]] = STRIKES,
    lines: type[Lines] = Lines,
) -> list[str]:
    """Every fault found by interrupting at each of these lines."""
    found = []
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
        for number in at:
            for strike in strikes:
                found += trial(kind, directory, number, lines(number, strike))()
    return found
