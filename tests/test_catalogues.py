"""The pages that name tests tell the truth: what they name exists, and nothing stands there bare."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CATALOGUE = ROOT / "tests" / "hostile" / "README.md"
GUARANTEES = ROOT / "docs" / "guarantees.md"
PAGES = {"catalogue": CATALOGUE, "guarantees": GUARANTEES}
ID = re.compile(r"`(tests/[\w/]+\.py)::(\w+)(\[[^`]*\])?`")


@cache
def names_in(path: str) -> frozenset[str]:
    """The names of the tests in a file, whether they were collected or not."""
    tree = ast.parse((ROOT / path).read_text("utf-8"))
    found = (
        node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )
    return frozenset(node.name for node in found if node.name.startswith("test_"))


def rows(page: Path) -> list[list[str]]:
    """The cells of every row of every table."""
    lines = [line for line in page.read_text("utf-8").splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    return [row for row in cells if row[-1] != "tests"]


def words(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize("page", PAGES.values(), ids=PAGES)
def test_every_test_that_is_named_exists(page: Path) -> None:
    named = ID.findall(page.read_text("utf-8"))
    assert len(named) > 50, "the page is not read as it is written"
    assert not [f"{path}::{name}" for path, name, _ in named if not (ROOT / path).is_file()]
    assert not [f"{path}::{name}" for path, name, _ in named if name not in names_in(path)]


@pytest.mark.parametrize("page", PAGES.values(), ids=PAGES)
def test_no_row_is_without_a_test(page: Path) -> None:
    """And a row names nothing else beside its tests, so that no misspelt id is passed over."""
    assert not [row[0] for row in rows(page) if not ID.findall(row[-1])]
    assert not [
        left for row in rows(page) if (left := ID.sub("", row[-1]).replace("<br>", "").strip())
    ]


def test_the_rows_of_the_catalogue_are_numbered() -> None:
    """No row is lost between two others: tests and messages speak of them by number."""
    numbers = [int(row[0]) for row in rows(CATALOGUE)]
    assert numbers == list(range(1, len(numbers) + 1)) and len(numbers) >= 76


def test_a_row_that_a_test_speaks_of_is_there() -> None:
    """In the folder of the sellers the docstrings say ``Row 13``."""
    told = "".join(path.read_text("utf-8") for path in CATALOGUE.parent.glob("test_*.py"))
    numbers = {int(number) for number in re.findall(r"\bRows? (\d+)", told)}
    assert numbers and numbers <= {int(row[0]) for row in rows(CATALOGUE)}


def test_the_readmes_first_promises_are_all_there() -> None:
    """Word for word; and what stands below them is ordered by the README's own headings."""
    readme = (ROOT / "README.md").read_text("utf-8")
    head = readme.partition("\n## ")[0]
    promises = [
        words(text) for text in re.findall(r"^- (.+?)(?=^- |^$|\Z)", head, re.MULTILINE | re.DOTALL)
    ]
    assert len(promises) >= 6
    held = {row[0] for row in rows(GUARANTEES)}
    assert not [promise for promise in promises if promise not in held]
    headings = set(re.findall(r"^##? (.+)$", readme, re.MULTILINE))
    assert set(re.findall(r"^## (.+)$", GUARANTEES.read_text("utf-8"), re.MULTILINE)) <= headings
