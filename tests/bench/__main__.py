"""``make bench``: measures, prints a table with bounds and verdicts, writes bench.json and PNGs."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.bench import ledgers
from tests.bench.rivals import RIVALS

ROOT = Path(__file__).parents[2]
SCRATCH = ROOT / ".cache"
WARM, CALLS = 15, 300
CALLS_SLOW = 60
SECONDS = 60.0
"""For the interleaved calls, on a machine that has other things to do as well."""

SIZES = (0, 1_000, 100_000, 1_000_000)
NATIVE = {"ECC_BACKEND_CLASS": "eth_keys.backends.NativeECCBackend"}


class Rival:
    """One process that calls when told."""

    def __init__(self, name: str, url: str) -> None:
        self.name, self.times = name, []
        env = {**os.environ, **(NATIVE if name.endswith("as it installs") else {})}
        command = [sys.executable, "-m", "tests.bench.rivals", name, url]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=env
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"

    times: list[float]

    def call(self) -> float:
        """One call, in microseconds."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline()) / 1000

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(10)

    def median(self) -> float:
        return statistics.median(self.times)

    def p99(self) -> float:
        return statistics.quantiles(self.times, n=100)[98]


@contextlib.contextmanager
def seller() -> Iterator[str]:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.bench.seller"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert process.stdout is not None and process.stdin is not None
    try:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.stdin.close()
        process.wait(10)


def interleaved(url: str) -> dict[str, Rival]:
    """Every rival's calls, one of each in turn, the order reversed every other round."""
    rivals = [Rival(name, url) for name in RIVALS]
    until = time.monotonic() + SECONDS
    for turn in range(WARM + CALLS):
        if time.monotonic() > until:
            break
        for rival in rivals if turn % 2 else reversed(rivals):
            if rival.name.endswith("as it installs") and turn >= WARM + CALLS_SLOW:
                continue
            spent = rival.call()
            if turn >= WARM:
                rival.times.append(spent)
    for rival in rivals:
        rival.close()
    return {rival.name: rival for rival in rivals}


def import_ms() -> float:
    """Milliseconds that ``import x402_mask`` adds to ``import httpx``: best of nine."""
    code = "import time,httpx;t=time.perf_counter();import x402_mask;print(time.perf_counter()-t)"
    return min(float(_run("-c", code)) for _ in range(9)) * 1e3


def first_call(url: str) -> float:
    """A first paid call in a fresh process, imports included, against the official client's."""
    code = (
        "import sys, tempfile, os, time; t = time.perf_counter();"
        "from tests.bench.rivals import RIVALS;"
        "RIVALS[sys.argv[1]](sys.argv[2])(1);"
        "print(time.perf_counter() - t)"
    )
    names = ("x402_mask, async", "official x402 with coincurve")
    best = [min(float(_run("-c", code, name, url)) for _ in range(5)) for name in names]
    return best[0] / best[1]


def _start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *arguments], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )


def _run(*arguments: str) -> str:
    env = {**os.environ, "PYTHONPYCACHEPREFIX": os.environ["X402_BENCH_DIR"] + "/bytecode"}
    env.pop("PYTHONDONTWRITEBYTECODE", None)  # what is installed has its bytecode beside it
    done = subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        timeout=250,
        check=True,
        cwd=ROOT,
        env=env,
    )
    return done.stdout.splitlines()[-1]


def verdicts(found: dict[str, Rival], more: dict[str, Any]) -> list[tuple[str, float, float, str]]:
    """What, measured, bound, unit.  Bounds are upper bounds but for those marked >=."""

    def ratio(ours: str, theirs: str) -> tuple[float, float]:
        a, b = found[ours], found[theirs]
        return a.median() / b.median(), a.p99() / b.p99()

    rows: list[tuple[str, float, float, str]] = []
    for colour in ("sync", "async"):
        bare = f"two bare requests, {colour}"
        median, p99 = ratio(f"x402_mask, {colour}", bare)
        rows += [(f"paid call, {colour}, median", median, 1.30, "x two bare requests")]
        rows += [(f"paid call, {colour}, p99", p99, 1.50, "x two bare requests")]
        median, _ = ratio(f"x402_mask, {colour}, preempt", bare)
        rows += [(f"paid call, {colour}, preempt", median, 0.80, "x two bare requests")]
    signature = found["signature, x402_mask"].median()
    rows += [("signature, encoded and checked", signature, 250.0, "us")]
    faster = found["signature, eth-account"].median() / signature
    rows += [("signature, faster than eth-account", faster, 3.0, ">= x")]
    unpaid = more["unpaid"]
    added = unpaid["ours_us"] - unpaid["bare_us"]
    rows += [("request with nothing to pay, added", added, 40.0, "us")]
    rows += [("import x402_mask over httpx", more["import_ms"], 60.0, "ms")]
    rows += [("first paid call, fresh process", more["first_call"], 0.5, "x official")]
    sizes = more["reservation_us"]
    rows += [("reservation, 1 000 000 payments", sizes[1_000_000] / sizes[0], 1.2, "x empty")]
    rows += [("200 calls at once, longest step", more["crowd"]["step_ms"], 20.0, "ms")]
    rows += [("200 calls at once, throughput", more["crowd"]["throughput"], 0.6, ">= x bare")]
    rows += [("memory that stays per call", more["growth"]["bytes_per_call"], 64.0, "bytes")]
    return rows


def holds(value: float, bound: float, unit: str) -> bool:
    return value >= bound if unit.startswith(">=") else value <= bound


def plot(found: dict[str, Rival], sizes: dict[int, float]) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4))
    shown = (
        "two bare requests, async",
        "x402_mask, async",
        "x402_mask, async, preempt",
        "official x402 with coincurve",
        "official x402 as it installs",
    )
    for name in shown:
        times = sorted(found[name].times)
        steps = [100 * (at + 0.5) / len(times) for at in range(len(times))]
        axes.plot(steps, [spent / 1000 for spent in times], label=name)
    axes.set(xlabel="percentile", ylabel="milliseconds", title="One paid call", yscale="log")
    axes.grid(visible=True, which="both", alpha=0.3)
    axes.legend(fontsize="small")
    figure.tight_layout()
    figure.savefig(ROOT / "fixtures" / "bench-latency.png", dpi=110)
    figure, axes = plt.subplots(figsize=(7, 3))
    axes.plot([max(size, 1) for size in sizes], list(sizes.values()), marker="o")
    axes.set(
        xlabel="payments on the ledger",
        ylabel="microseconds",
        xscale="log",
        title="One durable reservation",
        ylim=(0, max(sizes.values()) * 1.3),
    )
    axes.grid(visible=True, alpha=0.3)
    figure.tight_layout()
    figure.savefig(ROOT / "fixtures" / "bench-ledger.png", dpi=110)


def main() -> None:
    SCRATCH.mkdir(exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=SCRATCH, prefix="bench-"))  # a real disk, not a RAM disk
    os.environ["X402_BENCH_DIR"] = str(folder)
    try:
        with seller() as url:
            found = interleaved(url)
            more: dict[str, Any] = {
                "import_ms": import_ms(),
                "first_call": first_call(url),
                "crowd": json.loads(_run("-m", "tests.bench.crowd", "crowd", url)),
                "unpaid": json.loads(_run("-m", "tests.bench.crowd", "unpaid", url)),
            }
            growing = _start("-m", "tests.bench.crowd", "growth", url)
            stores = ledgers.filled(folder, SIZES)  # neither of these two is timed
            more["growth"] = json.loads(growing.communicate(timeout=250)[0])
        more["reservation_us"] = ledgers.by_size(stores)
        more["writers"] = ledgers.by_writers(folder)
    finally:
        shutil.rmtree(folder)
    report(found, more)


def report(found: dict[str, Rival], more: dict[str, Any]) -> None:
    load = ", ".join(f"{number:.1f}" for number in os.getloadavg())
    print(f"Python {platform.python_version()}, {os.cpu_count()} cores, load {load}\n")
    print(f"{'rival':36}{'median us':>12}{'p99 us':>12}")
    for name, rival in found.items():
        print(f"{name:36}{rival.median():12.0f}{rival.p99():12.0f}")
    bare = found["two bare requests, sync"].median()
    least = [found[f"the least, sync{how}"].median() / bare for how in ("", ", preempt")]
    unpaid = more["unpaid"]
    print(f"{'one bare request':36}{unpaid['bare_us']:12.0f}")
    print(f"{'x402_mask, nothing to pay':36}{unpaid['ours_us']:12.0f}")
    print(
        "\nthe least: bare requests, one checked signature, one durable one-row commit, nothing"
        f" else: {least[0]:.2f} x two bare requests, {least[1]:.2f} x with one request"
    )
    print(f"\n{'what':36}{'measured':>12}{'bound':>9}  {'unit':22}verdict")
    rows = verdicts(found, more)
    for what, value, bound, unit in rows:
        verdict = "met" if holds(value, bound, unit) else "NOT MET"
        print(f"{what:36}{value:12.2f}{bound:9.2f}  {unit:22}{verdict}")
    crowd = more["crowd"]
    print(
        "\n200 calls at once, a task that only watches the loop: kept waiting"
        f" {crowd['stall_ms']:.0f} ms, by bare requests {crowd['stall_bare_ms']:.0f} ms;"
        f" longest step of a bare request {crowd['step_bare_ms']:.1f} ms"
    )
    print(
        f"\n{'durable reservations':24}{'writers':>8}{'per s':>9}{'median ms':>11}{'worst ms':>10}"
    )
    for store, by in more["writers"].items():
        for writers, cost in by.items():
            shown = f"{cost['per_s']:9.0f}{cost['median_ms']:11.2f}{cost['worst_ms']:10.0f}"
            print(f"{store:24}{writers:8}{shown}")
    plot(found, more["reservation_us"])
    document = {
        "rivals": {n: {"median_us": r.median(), "p99_us": r.p99()} for n, r in found.items()},
        "verdicts": [
            {"what": w, "measured": v, "bound": b, "unit": u, "met": holds(v, b, u)}
            for w, v, b, u in rows
        ],
        **more,
    }
    (ROOT / "bench.json").write_text(json.dumps(document, indent=2) + "\n", "utf-8")
    print("\nwritten: bench.json, fixtures/bench-latency.png, fixtures/bench-ledger.png")


if __name__ == "__main__":
    main()
