"""Fixtures of the tests on a real chain."""

from tests.support.fixtures import chain, own_chain

__all__ = ["chain", "own_chain"]
