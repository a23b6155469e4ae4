"""What is measured within one process: many calls at once, what they leave, calls unpaid."""

from __future__ import annotations

import asyncio
import gc
import json
import resource
import sys
import time
import tracemalloc
import types
from statistics import median
from typing import Any

from tests.bench.rivals import PATH, body, payer

AT_ONCE = 200


async def _stalls(stop: asyncio.Event) -> float:
    """The longest that a task waiting 1 ms had to wait beyond it, in seconds."""
    worst = 0.0
    while not stop.is_set():
        begun = time.perf_counter()
        await asyncio.sleep(0.001)
        worst = max(worst, time.perf_counter() - begun - 0.001)
    return worst


class _Steps:
    """The longest that one call kept the loop from everybody else, at a stretch; seconds.

    A crowd of bare httpx calls holds up a loop as well, by many short steps that are due at once.
    """

    def __init__(self) -> None:
        self.longest = 0.0

    @types.coroutine
    def watch(self, coroutine: Any) -> Any:
        """Run *coroutine*, step by step."""
        step, value = coroutine.send, None
        while True:
            begun = time.perf_counter()
            try:
                waited = step(value)
            except StopIteration as stop:
                return stop.value
            finally:
                self.longest = max(self.longest, time.perf_counter() - begun)
            try:
                step, value = coroutine.send, (yield waited)
            except BaseException as exc:
                step, value = coroutine.throw, exc


async def _round(call: Any, first: int, steps: _Steps) -> float:
    begun = time.perf_counter()
    await asyncio.gather(*(_one(call(first + number), steps) for number in range(AT_ONCE)))
    return time.perf_counter() - begun


async def _one(coroutine: Any, steps: _Steps) -> None:
    await steps.watch(coroutine)


async def crowd(url: str) -> dict[str, float]:
    """Rounds of 200 calls at once, ours and bare in turn."""
    import httpx

    from x402_mask import AsyncClient

    limits = httpx.Limits(max_connections=50, max_keepalive_connections=50)
    ours = AsyncClient(payer(url), limits=limits, timeout=60)
    bare = httpx.AsyncClient(limits=limits, timeout=60)

    async def paid(number: int) -> None:
        assert (await ours.post(url + PATH, json=body(number))).status_code == 200

    async def two(number: int) -> None:
        await bare.post(url + PATH, json=body(number))
        proof = {"X-Bare-Proof": "x" * 1100}
        assert (await bare.post(url + PATH, json=body(number), headers=proof)).status_code == 200

    times: dict[Any, list[float]] = {paid: [], two: []}
    stalls: dict[Any, list[float]] = {paid: [], two: []}
    longest: dict[Any, list[float]] = {paid: [], two: []}
    for turn in range(8):
        for call in (paid, two) if turn % 2 else (two, paid):
            stop = asyncio.Event()
            watch = asyncio.ensure_future(_stalls(stop))
            await asyncio.sleep(0.01)
            gc.collect()
            steps = _Steps()
            spent = await _round(call, turn * AT_ONCE, steps)
            stop.set()
            stall = await watch
            if turn:  # the first round opens connections
                times[call].append(spent)
                stalls[call].append(stall)
                longest[call].append(steps.longest)
    return {
        "throughput": median(times[two]) / median(times[paid]),
        "step_ms": median(longest[paid]) * 1e3,
        "step_bare_ms": median(longest[two]) * 1e3,
        "stall_ms": median(stalls[paid]) * 1e3,
        "stall_bare_ms": median(stalls[two]) * 1e3,
        "calls_per_s": AT_ONCE / median(times[paid]),
    }


def growth(url: str, calls: int = 10_000) -> dict[str, float]:
    """Bytes that stay per call, after a thousand to warm up; and the RSS."""
    from x402_mask import Client

    client = Client(payer(url))

    def run(first: int, number: int) -> None:
        for at in range(number):
            client.post(url + PATH, json=body(first + at)).raise_for_status()

    run(0, 1000)
    gc.collect()
    rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run(1000, calls - 2000)
    grown_rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - rss
    tracemalloc.start()
    run(calls, 200)
    gc.collect()
    before = tracemalloc.get_traced_memory()[0]
    run(calls + 200, 800)
    gc.collect()
    after = tracemalloc.get_traced_memory()[0]
    return {"bytes_per_call": (after - before) / 800, "rss_kib": float(grown_rss)}


def unpaid(url: str, calls: int = 800) -> dict[str, float]:
    """Medians of a request with nothing to pay, bare and through the transport, in turn.

    Two processes differ by more than what is measured here, by where their memory lies.
    """
    import httpx

    from x402_mask import Client

    clients = {"bare_us": httpx.Client(), "ours_us": Client(payer(url))}
    times: dict[str, list[float]] = {name: [] for name in clients}
    for number in range(calls):
        for name in sorted(clients, reverse=bool(number % 2)):
            begun = time.perf_counter_ns()
            clients[name].post(url + "/free", json=body(number)).raise_for_status()
            times[name].append((time.perf_counter_ns() - begun) / 1e3)
    return {name: median(spent[calls // 10 :]) for name, spent in times.items()}


if __name__ == "__main__":
    what, url = sys.argv[1], sys.argv[2]
    measure = {"crowd": lambda url: asyncio.run(crowd(url)), "growth": growth, "unpaid": unpaid}
    print(json.dumps(measure[what](url)))
