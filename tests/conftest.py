"""How much of the matrix of libraries, colours and plug points a run takes."""

from __future__ import annotations

import pytest

from tests.support.matrix import select


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--matrix``; see ``tests/README.md``."""
    parser.addoption(
        "--matrix",
        choices=("once", "full"),
        help="each case under one combination of library, colour and plug point, or under all;"
        " default: once, but full where a test is named with ::",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what the matrix leaves out, before ``-k`` does so: the choice never depends on it."""
    matrix = config.getoption("matrix")
    if matrix == "full" or (matrix is None and any("::" in arg for arg in config.args)):
        return
    kept = select(items)
    names = {item.nodeid for item in kept}
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid not in names])
    items[:] = kept
