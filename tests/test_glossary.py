"""Each word of ``docs/glossary.md`` has one meaning, and the types that it names are there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
ROWS = [
    [cell.strip() for cell in line.strip("|").split(" | ")]
    for line in (ROOT / "docs" / "glossary.md").read_text("utf-8").splitlines()
    if re.match(r"\| [a-z]", line) and not line.startswith("| word |")
]


def classes() -> set[str]:
    trees = (ast.parse(path.read_text("utf-8")) for path in (ROOT / "x402_mask").rglob("*.py"))
    return {node.name for tree in trees for node in ast.walk(tree) if type(node) is ast.ClassDef}


def test_each_word_stands_once_and_in_order() -> None:
    words = [row[0] for row in ROWS]
    assert len(words) > 50 and words == sorted(set(words))


def test_a_meaning_is_one_sentence() -> None:
    for word, meaning, *_ in ROWS:
        assert re.fullmatch(r"[A-Z][^.]*(\.\d[^.]*)?\.", meaning.replace("`", "")), word


def test_the_types_are_there() -> None:
    named = {name for row in ROWS for name in re.findall(r"`(\w+)`", row[-1]) if len(row) == 3}
    assert named and named <= classes(), named - classes()
