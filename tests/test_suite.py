"""The suite itself: what each folder is for, and which combinations of the matrix a run takes."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.__main__ import APART, Part, parts
from tests.support.matrix import once

TESTS = Path(__file__).parent
LIBS, COLOURS, PLUGS = (
    ("httpx", "httpx2"),
    ("sync", "asyncio", "trio"),
    ("client", "attach", "transport", "auth"),
)
EVERY = tuple(f"{lib}-{colour}-{plug}" for lib in LIBS for colour in COLOURS for plug in PLUGS)


@pytest.mark.parametrize(
    "folder", sorted(path.parent for path in TESTS.rglob("__init__.py")), ids=lambda p: p.name
)
def test_a_folder_says_what_it_is_for(folder: Path) -> None:
    """In two to five lines, of which the first is a sentence."""
    said = ast.get_docstring(ast.parse((folder / "__init__.py").read_text("utf-8")))
    assert said is not None
    lines = [line for line in said.splitlines() if line]
    assert 2 <= len(lines) <= 5 and lines[0].endswith((".", "``."))


def chosen(cases: list[tuple[str, str]]) -> list[tuple[str, str]]:
    return once(cases, lambda one: one[0], lambda one: (one[1],) if one[1] else ())


def test_each_case_is_run_and_each_combination_too() -> None:
    """One of each case; a combination that none of them fell on is added."""
    cases = [(f"case {number}", kind) for number in range(300) for kind in EVERY]
    kept = chosen(cases)
    assert {case for case, _ in kept} == {case for case, _ in cases}
    assert {kind for _, kind in kept} == set(EVERY)
    assert len(kept) <= 300 + len(EVERY)
    assert max(Counter(kind for _, kind in kept).values()) < 3 * 300 / len(EVERY), "no round"
    few = chosen(cases[:48])
    assert {kind for _, kind in few} == set(EVERY) and len(few) <= 2 + len(EVERY)


def test_what_has_no_combination_is_never_left_out() -> None:
    """Also where two tests are alike in all that is known of them but their names."""
    cases = [("one", ""), ("two", ""), ("three", "httpx-sync-client")]
    assert chosen(cases) == cases
    assert chosen([]) == []


def test_a_case_keeps_its_combination_whatever_stands_beside_it() -> None:
    """The name decides: a new case moves no other."""
    cases = [(f"case {number}", kind) for number in range(300) for kind in EVERY]
    more = [(f"new {number}", kind) for number in range(20) for kind in EVERY]
    assert [one for one in chosen(more + cases) if one in cases] == chosen(cases)


def collected(*args: str) -> set[str]:
    """What a run would take."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "-o", "addopts=", *args],
        cwd=TESTS.parent,
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return {line for line in done.stdout.splitlines() if "::" in line}


def test_a_run_takes_the_part_that_it_was_asked_for() -> None:
    """``once`` is the default and a part of ``full``; a test that is named is run in full."""
    legs = "tests/transport/test_legs.py"
    full, part, named = (
        collected(legs, "--matrix=full"),
        collected(legs),
        collected(f"{legs}::{CASE}"),
    )
    assert part < full
    assert {name.partition("[")[0] for name in part} == {name.partition("[")[0] for name in full}
    assert all(any(kind in name for name in part) for kind in EVERY)
    assert named == {name for name in full if f"::{CASE}[" in name} and len(named) == len(EVERY)


CASE = "test_url_and_query_survive_exactly"


def test_no_file_of_tests_is_in_no_part() -> None:
    """And what ``make`` runs by other names is in none."""
    folders = {path.relative_to(TESTS).parent.parts[:1] for path in TESTS.rglob("test_*.py")}
    named = {folder[0] if folder else "" for folder in folders}
    assert len(parts()) == len(set(parts()))
    assert set(parts()) == named - APART


@pytest.mark.parametrize("code", [1, 2, 3, 4, 5, 0, -9])
def test_what_is_said_of_a_part(code: int) -> None:
    """All of it where it failed, also where it was killed; else what is more than dots."""
    output = "..F.s    [ 50%]\n.....\nE  it broke\nSkipped: no Node\n1 failed, 8 passed, 1 skipped in 2s\n"
    part = Part("ledger", code, output)
    assert part.passed is (code in (0, 5))
    assert part.said().startswith("tests/ledger: 1 failed, 8 passed, 1 skipped in 2s\n")
    assert "Skipped: no Node" in part.said() and ("..F.s" in part.said()) is not part.passed
    assert part.counts == {"failed": 1, "passed": 8, "skipped": 1}
    assert Part("ledger", 0, "").said() == "tests/ledger: nothing"
