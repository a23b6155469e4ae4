"""Makes ``x402_mask/httpx2.py`` from ``x402_mask/httpx.py``: one source for both families.

``python tests/twins.py`` writes it; ``tests/test_twins.py`` fails when it is stale.
"""

from __future__ import annotations

import re
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "x402_mask"
SOURCE = PACKAGE / "httpx.py"
TWIN = PACKAGE / "httpx2.py"


def render(source: str) -> str:
    """The twin of *source*: the same code under the other family's name."""
    _, docstring, code = source.split('"""', 2)
    assert "httpx2.py" in docstring
    head = '"""Paying through httpx2.  Made from ``httpx.py`` by ``make twins``: edit that."""'
    return head + re.sub(r"\bhttpx\b", "httpx2", code)


if __name__ == "__main__":
    TWIN.write_text(render(SOURCE.read_text("utf-8")), "utf-8")
