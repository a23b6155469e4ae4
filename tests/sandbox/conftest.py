"""A sandbox per test, and a buyer for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.sandbox.buyer import Buyer
from x402_mask.sandbox import Sandbox

Open = Callable[..., tuple[Sandbox, Buyer]]


@pytest.fixture
def opened() -> Iterator[Open]:
    """Opens a sandbox with the settings given, and a buyer of it."""
    with ExitStack() as stack:

        def open_(**settings: Any) -> tuple[Sandbox, Buyer]:
            sandbox = stack.enter_context(Sandbox(**settings))
            buyer = Buyer(sandbox.url)
            stack.callback(buyer.http.close)
            return sandbox, buyer

        yield open_


@pytest.fixture
def shop(opened: Open) -> Sandbox:
    return opened()[0]


@pytest.fixture
def buyer(shop: Sandbox) -> Iterator[Buyer]:
    buyer = Buyer(shop.url)
    yield buyer
    buyer.http.close()
