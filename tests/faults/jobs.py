"""What the processes of the fault tests do.  Imported once, by the server they are forked from."""

from __future__ import annotations

import asyncio
import resource
import sys
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from decimal import Decimal
from pathlib import Path
from random import Random
from threading import Thread
from types import FrameType
from typing import Any, Self

# Imported lazily by the library; here at once, so that a forked process need not.
import anyio._backends._asyncio
import anyio.to_thread  # noqa: F401
import coincurve  # noqa: F401
import cryptography.hazmat.primitives.ciphers.aead  # noqa: F401
import httpcore  # noqa: F401
import httpx
from Crypto.Hash import keccak  # noqa: F401

import x402_mask
from tests.support.faults import (
    NO_TLS,
    AsyncCutTransport,
    CutSQLite,
    CutTransport,
    Points,
    cut_postgres,
    effects_cut,
    killing,
)
from x402_mask import (
    AsyncClient,
    Cap,
    CapExceeded,
    Client,
    Payer,
    PaymentError,
    SQLiteLedger,
    Wallet,
    attach,
)

KEY = "0x" + "11" * 32
WALLET = Wallet.from_key(KEY)
Tell = Callable[[Any], None]


def payer_on(ledger: Any, origin: str, limit: str, **options: Any) -> Payer:
    """A payer with one cap in all, on this ledger."""
    if "caps" not in options:
        options["caps"] = [Cap(limit, per="total")]
    return Payer(options.pop("wallet", WALLET), origins=[origin], ledger=ledger, **options)


def cut_call(payer: Payer, kind: str, url: str, points: Points, cancelling: Any = None) -> str:
    """Make one call with points everywhere; how it ended, in a word."""
    with effects_cut(points):
        try:
            if kind.startswith("async"):
                return asyncio.run(_cut_async(payer, kind, url, points, cancelling))
            transport = CutTransport(points)
            if kind == "attach":
                client = attach(httpx.Client(transport=transport, timeout=5), payer)
            else:
                client = Client(payer, transport=transport, timeout=5)
            with client:
                return str(client.get(url).status_code)
        except BaseException as error:
            return type(error).__name__


async def _cut_async(payer: Payer, kind: str, url: str, points: Points, cancelling: Any) -> str:
    transport = AsyncCutTransport(points)
    if kind == "async-attach":
        client = attach(httpx.AsyncClient(transport=transport, timeout=5), payer)
    else:
        client = AsyncClient(payer, transport=transport, timeout=5)
    async with client:
        task = asyncio.ensure_future(client.get(url))
        if cancelling is not None:
            cancelling.loop, cancelling.task = asyncio.get_running_loop(), task
        try:
            return str((await task).status_code)
        except BaseException as error:
            return type(error).__name__


def killed_call(
    tell: Tell, path: Path, kind: str, url: str, origin: str, limit: str, at: int
) -> None:
    """Make one call and be killed at the point *at*, if it gets so far."""
    points = Points(at, strike=lambda name: (tell(name), killing(name))[1])
    ledger = CutSQLite(path, points, brief=kind != "async-threads")
    tell(cut_call(payer_on(ledger, origin, limit), kind, url, points))


def plain_call(tell: Tell, path: Path, url: str, origin: str, limit: str) -> None:
    """Make one ordinary call; its status, or the error's name."""
    with Client(payer_on(SQLiteLedger(path), origin, limit), timeout=5, verify=NO_TLS) as client:
        try:
            tell(str(client.get(url).status_code))
        except Exception as error:
            tell(type(error).__name__)


def keyed_call(
    tell: Tell, path: Path, url: str, origin: str, limit: str, options: dict[str, Any]
) -> None:
    """Make one call with these options; its status, or the error's name."""
    with Client(payer_on(SQLiteLedger(path), origin, limit), timeout=20, verify=NO_TLS) as client:
        try:
            tell(str(client.get(url, **options).status_code))
        except Exception as error:
            tell(type(error).__name__)


def racing_calls(
    tell: Tell, path: Path, urls: list[str], origin: str, cap: Cap, threads: int
) -> None:
    """Buy in several threads, each with a client of its own, until the cap refuses."""
    payer = payer_on(SQLiteLedger(path), origin, "0", caps=[cap], breaker_after=None)
    _race(tell, payer, urls, threads)


def _race(tell: Tell, payer: Payer, urls: list[str], threads: int) -> None:
    def buy(number: int) -> Counter[str]:
        outcomes: Counter[str] = Counter()
        with Client(payer, timeout=30, verify=NO_TLS) as client:
            while outcomes["CapExceeded"] < 2:
                url = urls[(number + sum(outcomes.values())) % len(urls)]
                try:
                    outcomes[str(client.get(url).status_code)] += 1
                except CapExceeded:
                    outcomes["CapExceeded"] += 1
                except Exception as error:
                    outcomes[f"{type(error).__name__}: {error}"] += 1
                    break
        return outcomes

    tell("ready")
    with ThreadPoolExecutor(threads) as pool:
        tell(sum(pool.map(buy, range(threads)), Counter()))


def shopping(tell: Tell, path: Path, origin: str, seed: float, limit: int) -> None:
    """Buy until killed: threads and tasks, each with operations of its own, and shared keys."""
    cap = Cap(Decimal(limit) / 10**6, per="total")
    payer = payer_on(SQLiteLedger(path), origin, "0", caps=[cap], breaker_after=None)
    workers = [
        Thread(target=_shopper, args=(payer, origin, seed, n), daemon=True) for n in range(3)
    ]
    workers.append(Thread(target=_async_shoppers, args=(payer, origin, seed), daemon=True))
    for worker in workers:
        worker.start()
    tell("ready")
    for worker in workers:
        worker.join()


def _wanted(chance: Random, who: str) -> dict[str, Any]:
    if chance.random() < 0.15:
        key = f"shared-{chance.randrange(6)}"
        return {"url": f"/keyed/{key}", "extensions": {"x402_mask": {"operation": key}}}
    return {"url": f"/{who}/{chance.randrange(25)}"}


def _shopper(payer: Payer, origin: str, seed: float, number: int) -> None:
    chance = Random(f"{seed} {number}")
    with Client(payer, timeout=5, verify=NO_TLS, base_url=origin) as client:
        while True:
            with suppress(PaymentError, httpx.TransportError):
                client.get(**_wanted(chance, f"thread-{number}"))


def _async_shoppers(payer: Payer, origin: str, seed: float) -> None:
    async def shopper(client: httpx.AsyncClient, number: int) -> None:
        chance = Random(f"{seed} async {number}")
        while True:
            with suppress(PaymentError, httpx.TransportError, TimeoutError):
                async with asyncio.timeout(chance.choice([5, 0.05])):
                    await client.get(**_wanted(chance, f"task-{number}"))

    async def main() -> None:
        async with (
            AsyncClient(payer, timeout=5, verify=NO_TLS, base_url=origin) as client,
            asyncio.TaskGroup() as group,
        ):
            for number in range(4):
                group.create_task(shopper(client, number))

    asyncio.run(main())


# --- on a fleet's ledger --------------------------------------------------------------------------

KEY_OF_FLEET = b"\x22" * 32


def on_fleet(dsn: str, *, elsewhere_s: float | None = None) -> Any:
    """The fleet's ledger; perhaps as a process on another host has it, with leases so long."""
    from x402_mask import PostgresLedger
    from x402_mask._ledger import owners, postgres

    if elsewhere_s is not None:
        postgres.LEASE_S, postgres.BEAT_S = elsewhere_s, elsewhere_s / 5  # type: ignore[misc]
        owners.boot_id = postgres.boot_id = lambda: "another-host"  # type: ignore[assignment]
    return PostgresLedger(dsn, key=KEY_OF_FLEET)


def fleet_call(
    tell: Tell,
    dsn: str,
    url: str,
    origin: str,
    caps: list[Cap],
    elsewhere_s: float | None,
    options: Any,
) -> None:
    """Make one call on the fleet's ledger; its status, or the error's name."""
    ledger = on_fleet(dsn, elsewhere_s=elsewhere_s)
    with Client(payer_on(ledger, origin, "0", caps=caps), timeout=20, verify=NO_TLS) as client:
        try:
            tell(str(client.get(url, **options).status_code))
        except Exception as error:
            tell(type(error).__name__)


def fleet_killed(
    tell: Tell, dsn: str, url: str, origin: str, caps: list[Cap], elsewhere_s: float | None, at: int
) -> None:
    """Make one call on the fleet's ledger and be killed at the point *at*."""
    on_fleet(dsn, elsewhere_s=elsewhere_s).close()
    points = Points(at, strike=lambda name: (tell(name), killing(name))[1])
    ledger = cut_postgres(dsn, KEY_OF_FLEET, points)
    tell(cut_call(payer_on(ledger, origin, "0", caps=caps), "client", url, points))


def fleet_racing(
    tell: Tell, dsn: str, url: str, origin: str, caps: list[Cap], threads: int
) -> None:
    """Buy in several threads until the cap refuses."""
    _race(tell, payer_on(on_fleet(dsn), origin, "0", caps=caps, breaker_after=None), [url], threads)


# --- killed at a line -----------------------------------------------------------------------------


class Lines:
    """Counts the lines executed in the library, or some of its modules, and strikes at one."""

    def __init__(self, *modules: str, at: int = 0, strike: Callable[[str], None] = killing) -> None:
        self.count = 0
        self.struck = ""
        self._at, self._strike = at, strike
        folder = Path(x402_mask.__file__).parent
        wanted = [folder / f"{name}.py" for name in modules] if modules else folder.rglob("*.py")
        self._files = {str(file) for file in wanted}
        # Kept: a strike within a finalizer ends the tracing while CPython, which has only borrowed
        # the tracer, is about to call it.
        self._tracer = self._enter

    def __enter__(self) -> Self:
        sys.settrace(self._tracer)
        return self

    def __exit__(self, *exc: object) -> None:
        sys.settrace(None)

    def _enter(self, frame: FrameType, event: str, arg: Any) -> Any:
        return self._line if frame.f_code.co_filename in self._files else None

    def _line(self, frame: FrameType, event: str, arg: Any) -> Any:
        if event == "line" and not self.struck:
            self.count += 1
            if self.count == self._at:
                place = Path(frame.f_code.co_filename).name
                self.struck = f"{place}:{frame.f_lineno} {frame.f_code.co_name}"
                self._strike(self.struck)
        return self._line


def first_call(tell: Tell, path: Path, url: str, origin: str, limit: str, at: int) -> None:
    """Make the first call on a new ledger; killed at the line *at* of its storage, if any."""
    payer = payer_on(SQLiteLedger(path), origin, limit)
    with Client(payer, timeout=5, verify=NO_TLS) as client, Lines(*STORAGE, at=at) as lines:
        client.get(url)
    tell(lines.count)


STORAGE = ("_ledger/sqlite", "_ledger/key", "_ledger/head")


def cramped_call(tell: Tell, path: Path, url: str, origin: str, limit: str, room: int) -> None:
    """Make one call where no file may grow beyond *room* bytes: the disk is full."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
    plain_call(tell, path, url, origin, limit)
