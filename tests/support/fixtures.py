"""Fixtures of the chain; import them in a ``conftest.py`` to use them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.support.chain import Chain
from tests.support.npm import Unavailable


@contextmanager
def needed() -> Iterator[None]:
    """Skip in one line what this machine cannot run; fail with ``X402_MASK_REQUIRE_NODE=1``."""
    try:
        yield
    except Unavailable as missing:
        if os.environ.get("X402_MASK_REQUIRE_NODE") == "1":
            pytest.fail(str(missing), pytrace=False)
        pytest.skip(str(missing))


@pytest.fixture(scope="session")
def chain() -> Iterator[Chain]:
    """Return a chain shared by the session; leave its clock alone."""
    with needed():
        started = Chain.start()
    with started:
        yield started


@pytest.fixture
def own_chain() -> Iterator[Chain]:
    """Return a chain for one test, which may move its clock."""
    with needed():
        started = Chain.start()
    with started:
        yield started
