"""Makes ``x402_mask/httpx2`` from ``x402_mask/httpx``: one source for both families.

``python tests/twins.py`` writes it; ``tests/test_twins.py`` fails when it is stale.
"""

from __future__ import annotations

import re
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "x402_mask"
SOURCE = PACKAGE / "httpx"
TWIN = PACKAGE / "httpx2"


def render(name: str) -> str:
    """The twin of a module: the same code under the other family's name."""
    before, _, code = (SOURCE / name).read_text("utf-8").split('"""', 2)
    assert not before
    head = f'"""Made from ``x402_mask/httpx/{name}`` by ``make twins``: edit that."""'
    if name == "__init__.py":
        head = f'"""Paying through httpx2.\n\n{head[3:-3]}\n"""'
    return head + re.sub(r"\bhttp(x|core)\b", r"http\g<1>2", code)


def modules(folder: Path) -> list[str]:
    """The names of the modules of a package."""
    return sorted(path.name for path in folder.glob("*.py"))


def main() -> None:
    """Write the twin."""
    TWIN.mkdir(exist_ok=True)
    for name in modules(TWIN):
        (TWIN / name).unlink()
    for name in modules(SOURCE):
        (TWIN / name).write_text(render(name), "utf-8")


if __name__ == "__main__":
    main()
