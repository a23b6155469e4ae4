"""Nothing that a seller, a body or a disk does keeps the event loop: a task watches it.

Machines differ and are loaded, so a stall is compared with one that nobody causes at that moment,
and what is tried would take many times longer if it were done on the loop.
"""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import httpx
import pytest

from tests.support.seller import offer, v2_header
from tests.transport.kit import SHOP, Kind, Rig, kinds
from x402_mask import AsyncClient, Cap, MemoryLedger, Payer, SQLiteLedger, Wallet

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

STALL_S = 0.2
"""A tenth of what each of these takes; the promise is 0.05, on a machine that is not loaded."""

WALLET = Wallet.from_key("0x" + "11" * 32)
WATCHED = kinds("transport", "client", libs=["httpx"], colours=["asyncio"])


class Watch:
    """The longest time that the loop did not come round."""

    worst = 0.0

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._beat())
        await asyncio.sleep(0.01)
        self.worst = 0.0
        return self

    async def _beat(self) -> None:
        last = time.perf_counter()
        while True:
            await asyncio.sleep(0.001)
            now = time.perf_counter()
            self.worst = max(self.worst, now - last - 0.001)
            last = now

    async def __aexit__(self, *exc: object) -> None:
        await asyncio.sleep(0.003)
        self._task.cancel()


def rig_of(kind: Kind, **options: Any) -> Rig:
    """A buyer of that kind, and its shop."""
    rig = Rig(kind)
    rig.payer = rig.make_payer(**options)
    return rig


def costly(seed: int, breadth: int = 42) -> dict[str, Any]:
    """A schema that is small as text and large when its references are written out."""
    leaf: list[Any] = [{"type": "string"}] * breadth
    return {
        "title": str(seed),
        "$defs": {"a": {"anyOf": leaf}},
        "anyOf": [{"$ref": "#/$defs/a"}] * breadth + [{}],
    }


@WATCHED
def test_schemas_that_are_costly_to_judge(kind: Kind) -> None:
    """Seventeen in one 402, none of which was seen before."""
    rig = rig_of(kind)
    offers = [
        offer(inputSchema=costly(n), outputSchema={"input": {**costly(-n - 1), "type": "object"}})
        for n in range(8)
    ]
    rig.sells(*offers)

    async def scenario() -> float:
        async with Watch() as watch:
            response = await rig.post(json={f"k{n}": n for n in range(4)})
        assert rig.paid(response)
        await rig.close()
        return watch.worst

    begun = time.perf_counter()
    assert asyncio.run(scenario()) < STALL_S
    assert time.perf_counter() - begun < 5, "they share one budget"


@WATCHED
@pytest.mark.parametrize("how", ["bytes", "file"])
def test_a_long_body_is_digested_elsewhere(kind: Kind, how: str, tmp_path: Path) -> None:
    """The wire is in memory and takes the body as it is: what is measured is the digest."""

    class Seller(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            if "payment-signature" in request.headers:
                return httpx.Response(200, content=b"{}")
            return httpx.Response(402, headers=list(v2_header(offer()).headers), content=b"{}")

    rig, path = rig_of(kind), tmp_path / "big"
    with path.open("wb") as file:
        file.truncate(192 << 20)

    async def scenario() -> float:
        client = rig.make_client(inner=Seller())
        await client.post(f"{SHOP}/warm", content=b"x")
        with path.open("rb") as file:
            body: Any = {"files": {"f": file}} if how == "file" else {"content": file.read()}
            async with Watch() as watch:
                response = await client.post(f"{SHOP}/big", **body)
        assert response.status_code == 200
        await rig.close()
        return watch.worst

    assert asyncio.run(scenario()) < STALL_S


class Slow(SQLiteLedger):
    """A ledger on a disk that takes its time for the commits from the *nth* on."""

    nth = 1
    seconds = 0.4
    commits = 0

    def _commit(self, db: Any) -> None:
        self.commits += 1
        if self.commits >= self.nth:
            time.sleep(self.seconds)
        super()._commit(db)


@WATCHED
def test_a_disk_that_is_slow(kind: Kind, tmp_path: Path) -> None:
    """From the first call on, and for many calls at once."""
    ledger = Slow(tmp_path / "slow.db")
    rig = rig_of(kind, ledger=ledger)

    async def scenario() -> float:
        async with Watch() as watch:
            await rig.get(rig.sells(url=f"{SHOP}/first"))
            urls = [rig.sells(url=f"{SHOP}/{n}") for n in range(3)]
            await asyncio.gather(*(rig.get(url) for url in urls))
        await rig.close()
        return watch.worst

    assert asyncio.run(scenario()) < STALL_S
    assert ledger.commits >= 8


@WATCHED
@pytest.mark.parametrize("when", ["view", "reserve", "finish"])
def test_a_disk_that_turns_slow(kind: Kind, when: str, tmp_path: Path) -> None:
    """Whatever it was before, and whichever step of a call it is that takes long."""
    before = 40

    async def scenario(rig: Rig, ledger: Slow) -> float:
        for number in range(before):
            await rig.get(rig.sells(url=f"{SHOP}/{number}"))
        ledger.nth = ledger.commits + ["view", "reserve", "finish"].index(when) + 1
        async with Watch() as watch:
            await rig.get(rig.sells(url=f"{SHOP}/last"))
        await rig.close()
        assert rig.states() == ["settled"] * (before + 1)
        return watch.worst

    assert stalled_least(scenario, kind, tmp_path, STALL_S) < STALL_S


@WATCHED
def test_many_calls_at_a_disk_that_is_neither_quick_nor_slow(kind: Kind, tmp_path: Path) -> None:
    """Each is waited for but a moment, and all of them together not much longer."""

    async def scenario(rig: Rig, ledger: Slow) -> float:
        for number in range(40):
            await rig.get(rig.sells(url=f"{SHOP}/before/{number}"))
        ledger.nth, ledger.seconds = 0, 0.004
        urls = [rig.sells(url=f"{SHOP}/{n}") for n in range(120)]  # 0.4 s at least, for the first
        async with Watch() as watch:
            await asyncio.gather(*(rig.get(url) for url in urls))
        await rig.close()
        return watch.worst

    assert stalled_least(scenario, kind, tmp_path, 2 * STALL_S) < 2 * STALL_S


def stalled_least(
    scenario: Callable[[Rig, Slow], Coroutine[Any, Any, float]],
    kind: Kind,
    folder: Path,
    enough: float,
) -> float:
    """The shortest of a few longest stalls, seconds: a busy machine stalls whoever it likes."""
    least = float("inf")
    for number in range(TRIES):
        ledger = Slow(folder / f"{number}.db")
        ledger.nth = 10**9
        least = min(least, asyncio.run(scenario(rig_of(kind, ledger=ledger), ledger)))
        if least < enough:
            break
    return least


FLOODS = {
    "informal answers": b"HTTP/1.1 102\n\n" * 8_000
    + b"HTTP/1.1 402 P\r\ncontent-length: 0\r\n\r\n",
    "tiny chunks": b"HTTP/1.1 402 P\r\ntransfer-encoding: chunked\r\n\r\n"
    + b"1\r\na\r\n" * 20_000
    + b"0\r\n\r\n",
}


@pytest.mark.parametrize("what", FLOODS)
def test_an_answer_of_very_many_parts(what: str) -> None:
    """The HTTP library takes 64 KiB apart at a time, with nothing between."""

    def serve() -> None:
        for _ in range(2 * TRIES):
            connection, _ = listening.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(FLOODS[what])

    async def stalled(client: httpx.AsyncClient) -> float:
        async with client:
            async with Watch() as watch:
                response = await client.get(url)
            assert response.status_code == 402
            return watch.worst

    with socket.create_server(("127.0.0.1", 0)) as listening:
        origin = f"http://127.0.0.1:{listening.getsockname()[1]}"
        url = f"{origin}/x"
        threading.Thread(target=serve, daemon=True).start()
        buyer = Payer(WALLET, origins=[origin], caps=[Cap("1", per="day")], ledger=MemoryLedger())
        bare = min(asyncio.run(stalled(httpx.AsyncClient())) for _ in range(TRIES))
        ours = min(asyncio.run(stalled(AsyncClient(buyer))) for _ in range(TRIES))
    assert ours < bare / 2


TRIES = 4
"""The best of so many: another process may have had the processor."""

FIRST = """
import asyncio, sys, time
from tests.transport.test_stalls import Watch
from tests.transport.kit import Kind, Rig
from x402_mask import AsyncClient, Cap, MemoryLedger, Payer, SQLiteLedger, Wallet
rig = Rig(Kind("httpx", "asyncio", sys.argv[1]))
rig.payer = rig.make_payer(ledger=SQLiteLedger(sys.argv[2]))
url = rig.sells()
client = rig.client
async def main():
    async with Watch() as watch:
        response = await client.post(url, json={"a": 1})
    assert response.status_code == 200
    return watch.worst
print(json.dumps(asyncio.run(main())) if (json := __import__("json")) else "")
"""


@pytest.mark.timeout(120)  # three processes, on a busy machine
@pytest.mark.parametrize("plug", ["transport", "client", "auth", "attach"])
def test_the_first_call_of_a_process(plug: str, tmp_path: Path) -> None:
    """What it needs was imported when its client was made."""
    import subprocess
    import sys

    worst = []
    for number in range(3):  # the best of three: another process may have had the processor
        done = subprocess.run(
            [sys.executable, "-c", FIRST, plug, str(tmp_path / f"{number}.db")],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        worst.append(json.loads(done.stdout))
        if worst[-1] < 0.05:
            break
    assert min(worst) < 0.05, worst
