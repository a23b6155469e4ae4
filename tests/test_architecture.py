"""What ``docs/architecture.md`` says of the tree is so."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "x402_mask"
PAGE = (ROOT / "docs" / "architecture.md").read_text("utf-8")


def rooms() -> set[str]:
    """Folders and modules of the package, as the page writes them."""
    folders = {f"{path.parent.name}/" for path in PACKAGE.glob("*/__init__.py")}
    modules = {path.name for path in PACKAGE.glob("*.py")} - {"__init__.py", "__main__.py"}
    return folders | modules


def test_the_page_names_each_room_and_no_other() -> None:
    table = PAGE.split("## The tree")[1].split("## The rule")[0]
    named = set(re.findall(r"`([a-z0-9_]+(?:/|\.py))`", table))
    assert named == rooms()


def test_a_caption_is_one_line() -> None:
    for path in PACKAGE.rglob("__init__.py"):
        if any(part.startswith("_") for part in path.parent.relative_to(PACKAGE).parts):
            assert re.fullmatch(r'"""[^"\n]+"""\n', path.read_text("utf-8")), path


def test_the_contract_is_in_the_order_of_the_page() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"]
    layers = contracts["contracts"][0]["layers"]
    lines = [re.findall(r"[a-z0-9_]+", layer) for layer in layers]
    table = PAGE.split("## The tree")[1].split("## The rule")[0]
    places = [min(table.index(f"`{name}") for name in line) for line in lines]
    assert places[:13] == sorted(places[:13])


def test_the_top_is_small() -> None:
    assert len(list(PACKAGE.glob("*.py"))) <= 12
