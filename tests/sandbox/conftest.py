"""A sandbox per test, and a buyer for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pytest

from tests.sandbox.buyer import Buyer
from x402_mask.sandbox import Sandbox

Open = Callable[..., tuple[Sandbox, Buyer]]
CloseLater = Callable[[Sandbox], None]


@pytest.fixture(scope="session")
def close_later() -> Iterator[CloseLater]:
    """Closes sandboxes beside the next tests: a server takes a sixth of a second to stop."""
    closing: list[Future[None]] = []
    with ThreadPoolExecutor(4) as pool:
        yield lambda sandbox: closing.append(pool.submit(sandbox.close))
    for done in closing:
        done.result(timeout=20)


@pytest.fixture
def opened(close_later: CloseLater) -> Iterator[Open]:
    """Opens a sandbox with the settings given, and a buyer of it."""
    with ExitStack() as stack:

        def open_(**settings: Any) -> tuple[Sandbox, Buyer]:
            sandbox = Sandbox(**settings)
            stack.callback(close_later, sandbox)
            return sandbox, stack.enter_context(Buyer(sandbox.url))

        yield open_


@pytest.fixture
def shop(close_later: CloseLater) -> Iterator[Sandbox]:
    sandbox = Sandbox()
    yield sandbox
    close_later(sandbox)


@pytest.fixture
def buyer(shop: Sandbox) -> Iterator[Buyer]:
    with Buyer(shop.url) as buyer:
        yield buyer
