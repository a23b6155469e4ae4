"""Which of a test's combinations of library, colour and plug point are run.

Most promises are the same code under two HTTP libraries, three colours and four plug points, and
most tests are written once for all of them.  ``--matrix=once`` runs each case under one combination,
which one goes round by the case's name; ``--matrix=full`` runs all.  What is chosen depends on the
file alone, never on what else is run, and no combination that a file names is left out of it.
"""

from __future__ import annotations

import re
import zlib
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable
from typing import TypeVar

import pytest

T = TypeVar("T")
Combination = tuple[str, ...]

AXES = frozenset({"kind", "lib", "family", "colour", "mode", "plug", "style"})
"""Parameters that may be a part of a combination; a ``kind`` of something else is told by its words."""
WORDS = frozenset(
    {"httpx", "httpx2", "sync", "async", "asyncio", "trio", "client", "attach", "auth", "transport"}
)


def once(
    cases: Iterable[T], case: Callable[[T], Hashable], under: Callable[[T], Combination]
) -> list[T]:
    """One of each *case*, and each combination at least once; in the order given.

    Args:
        cases: the tests of one file.
        case: what a test is besides its combination; those with the same are one promise.
        under: the combination; empty for a test that has none, which is kept.
    """
    everything = list(cases)
    groups: defaultdict[Hashable, list[int]] = defaultdict(list)
    for index, one in enumerate(everything):
        groups[case(one)].append(index)
    kept = {
        members[zlib.crc32(repr(name).encode()) % len(members)] for name, members in groups.items()
    }
    seen = {under(everything[index]) for index in kept}
    for index, one in enumerate(everything):
        if under(one) not in seen:
            seen.add(under(one))
            kept.add(index)
    return [everything[index] for index in sorted(kept)]


def combination_of(item: pytest.Item) -> Combination:
    """The parameters of a test that say under which library, colour and plug point it runs."""
    return tuple(value for _, value in _axes(item))


def case_of(item: pytest.Item) -> Hashable:
    """A test without its combination: its function and its other parameters."""
    call = getattr(item, "callspec", None)
    if call is None:
        return item.nodeid
    axes = {name for name, _ in _axes(item)}
    others = sorted((name, at) for name, at in call.indices.items() if name not in axes)
    return (item.nodeid.partition("[")[0], *others)


def _axes(item: pytest.Item) -> list[tuple[str, str]]:
    call = getattr(item, "callspec", None)
    given = {} if call is None else call.params
    named = [(name, getattr(value, "__name__", str(value))) for name, value in given.items()]
    return [(n, value) for n, value in named if n in AXES and set(re.split("[-:]", value)) <= WORDS]


def select(items: list[pytest.Item]) -> list[pytest.Item]:
    """What ``--matrix=once`` runs of these tests."""
    files: defaultdict[str, list[pytest.Item]] = defaultdict(list)
    for item in items:
        files[item.nodeid.partition("::")[0]].append(item)
    chosen: set[str] = set()
    for tests in files.values():
        chosen.update(item.nodeid for item in once(tests, case_of, combination_of))
    return [item for item in items if item.nodeid in chosen]
