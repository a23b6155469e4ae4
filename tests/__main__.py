"""Runs the tests folder by folder, as many at once as there are cores: ``make test``.

A folder that passes says so in a line, with what it could not run; one that fails shows its whole
output.  Further arguments go to pytest.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple

TESTS = Path(__file__).parent
APART = {"interop", "soak", "bench", "support", "typing"}
"""What ``make`` runs by other names, and folders without tests."""
LONGEST = ("ledger", "tokens", "faults", "transport", "hostile", "mcp", "chain", "cli", "transfers")
"""These begin, so that none of them is waited for at the end."""
DOTS = re.compile(r"[.FEsxX]+( +\[ *\d+%\])?")
NOTHING_COLLECTED = 5


class Part(NamedTuple):
    """How one folder went."""

    name: str
    code: int
    output: str

    @property
    def passed(self) -> bool:
        """Also where ``-k`` leaves nothing of a folder."""
        return self.code in (0, NOTHING_COLLECTED)

    @property
    def counts(self) -> Counter[str]:
        """What its last line counts."""
        last = self.output.strip().rpartition("\n")[2]
        found = re.findall(r"(\d+) (passed|failed|skipped|errors?)", last)
        return Counter({word: int(number) for number, word in found})

    def said(self) -> str:
        """What is to be read of it."""
        lines = self.output.strip().splitlines()
        kept = lines if not self.passed else [one for one in lines if not DOTS.fullmatch(one)]
        return "\n".join([f"tests/{self.name}: {kept[-1] if kept else 'nothing'}", *kept[:-1]])


def parts() -> list[str]:
    """The folders with tests, the longest first, and the files beside them as one."""
    folders = {path.parent.relative_to(TESTS).parts[0] for path in TESTS.rglob("*/test_*.py")}
    first = [name for name in LONGEST if name in folders]
    return [*first, *sorted(folders - APART - set(first)), ""]


def run(name: str, arguments: list[str]) -> Part:
    """Run one folder to its end."""
    files = [TESTS / name] if name else sorted(TESTS.glob("test_*.py"))
    command = [sys.executable, "-m", "pytest", *map(str, files), *arguments]
    done = subprocess.run(
        command,
        cwd=TESTS.parent,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    return Part(name or "test_*.py", done.returncode, done.stdout)


def all_of(jobs: int, arguments: list[str]) -> Iterator[Part]:
    """Run every folder, *jobs* at once; each as it ends."""
    with ThreadPoolExecutor(jobs) as pool:
        for done in as_completed([pool.submit(run, name, arguments) for name in parts()]):
            yield done.result()


def main() -> int:
    """Run them, and say how it went in all."""
    parser = argparse.ArgumentParser(prog="python -m tests", description=__doc__)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="folders at once")
    given, arguments = parser.parse_known_args()
    began, total, failed = time.monotonic(), Counter[str](), list[str]()
    for part in all_of(max(1, given.jobs), arguments):
        print(part.said(), flush=True)
        total += part.counts
        if not part.passed:
            failed.append(f"tests/{part.name}")
    counts = ", ".join(f"{number} {word}" for word, number in sorted(total.items()))
    print(f"{counts} in {time.monotonic() - began:.0f} s")
    if failed:
        print("FAILED: " + " ".join(failed))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
