"""Runs scenarios (coroutine tests) in the colour of their rig."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.transport.kit import Kind, Rig, run

_TEST_SECONDS = 20


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """No test may hang."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.timeout(_TEST_SECONDS))


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a scenario; other tests are pytest's own business."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    given: dict[str, Any] = pyfuncitem.funcargs
    wanted = {name: given[name] for name in pyfuncitem._fixtureinfo.argnames}
    rig: Rig = given["rig"]

    async def scenario() -> None:
        try:
            await pyfuncitem.obj(**wanted)
        finally:
            await rig.close()

    run(rig.kind.colour, scenario)
    return True


@pytest.fixture
def rig(kind: Kind) -> Iterator[Rig]:
    """One kind of client and its shop."""
    made = Rig(kind)
    yield made
    made.close_rest()


@pytest.fixture(autouse=True, scope="session")
def quiet_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No proxy, no configuration and no data directory of the person who runs the tests."""
    home = str(tmp_path_factory.mktemp("home"))
    with pytest.MonkeyPatch.context() as patch:
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
            patch.delenv(name, raising=False)
            patch.delenv(name.lower(), raising=False)
        for name in ("HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME"):
            patch.setenv(name, home)
        yield
