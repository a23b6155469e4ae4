"""Fixtures of the hostile sellers: one audited world per test, and the usual plug points."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hostile.kit import CORE, OTHER_PAIR, PAIR, Kind, World
from tests.support.fixtures import fast_path

__all__ = ["fast_path"]

_TEST_SECONDS = 30
_POLICY = {"amounts", "payees", "validity", "malformed", "settlement", "extensions"}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that asks for ``kind`` gets the four usual plug points, or fewer.

    The conversation is the same code under every plug point: where a file is about policy a test
    takes two of them, a table of bad input one; which ones goes round by the test's name. What
    differs by plug point names its kinds itself.
    """
    named = any(
        "kind" in (mark.args[0].split(",") if isinstance(mark.args[0], str) else mark.args[0])
        for mark in metafunc.definition.iter_markers("parametrize")
    )
    if "kind" in metafunc.fixturenames and not named:
        tabled = any(metafunc.definition.iter_markers("parametrize"))
        turn = len(metafunc.function.__name__)
        kinds: tuple[Kind, ...] = (
            (PAIR, OTHER_PAIR)[turn % 2] if _is_about_policy(metafunc) else CORE
        )
        if tabled:
            kinds = (CORE[turn % len(CORE)],)
        metafunc.parametrize("kind", kinds, ids=str)


def _is_about_policy(metafunc: pytest.Metafunc) -> bool:
    return metafunc.module.__name__.rpartition("_")[2] in _POLICY


@pytest.fixture
def world(fast_path: Path) -> Iterator[World]:
    """Sellers, a wallet and a ledger; audited and closed when the test is over."""
    made = World(fast_path)
    try:
        yield made
        made.audit()
    finally:
        made.close()


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nobody's home."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(autouse=True)
def quiet_environment(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No proxy, no configuration and no data directory of the person who runs the tests."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_DATA_HOME", str(home / "data"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / "config"))


@pytest.fixture(autouse=True)
def watchdog() -> Iterator[None]:
    """No test may hang."""

    def bark(*_: object) -> None:
        raise TimeoutError(f"the test took longer than {_TEST_SECONDS} s")

    previous = signal.signal(signal.SIGALRM, bark)
    signal.setitimer(signal.ITIMER_REAL, _TEST_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
