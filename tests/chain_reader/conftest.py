"""Fixtures of the chain reader's tests."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.chain_reader.fake import NETWORK, Chain, Node, at
from tests.support.fixtures import own_chain, pytest_terminal_summary
from x402_mask._chain.reader import ChainReader

__all__ = ["own_chain", "pytest_terminal_summary"]

Ask = Callable[..., ChainReader]


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the machine's proxies out of it."""
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)


@pytest.fixture
def node() -> Iterator[Node]:
    """Return a node that serves an honest chain."""
    with Node(Chain()) as started:
        yield started


@pytest.fixture
def reader() -> Iterator[Ask]:
    """Return a maker of readers of the given nodes or URLs; all are closed in the end.

    Unless it says otherwise a reader's clock keeps the time of its highest chain.
    """
    made: list[ChainReader] = []

    def make(*sources: Node | str, **options: Any) -> ChainReader:
        urls = [source if isinstance(source, str) else source.url for source in sources]
        chains = [source.chain for source in sources if not isinstance(source, str)] or [Chain()]
        clock = lambda: float(at(max(chain.height for chain in chains)))  # noqa: E731
        options = {"margin_blocks": 5, "time_out_s": 20.0, "clock": clock} | options
        made.append(ChainReader({NETWORK: urls}, **options))
        return made[-1]

    yield make
    for each in made:
        each.close()
