"""Clients of either family and colour, told apart by what they can do."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterable
    from types import ModuleType

FAMILIES = ("httpx", "httpx2")
"""The HTTP libraries that are served; their objects do not mix."""


class SyncClient(Protocol):
    """An ``httpx.Client`` or ``httpx2.Client``, paying or not."""

    def close(self) -> None:
        """Close it."""


class AsyncClient(Protocol):
    """An ``httpx.AsyncClient`` or ``httpx2.AsyncClient``, paying or not."""

    def aclose(self) -> Coroutine[Any, Any, None]:
        """Close it."""
        ...


def is_async(client: object) -> bool:
    """Whether calls of *client* are awaited.

    Raises:
        TypeError: not a client.
    """
    if not callable(getattr(client, "build_request", None)):
        raise TypeError(f"takes an httpx or httpx2 client, not {type(client).__name__}")
    return hasattr(client, "aclose")


def is_foreign(transport: object, own: ModuleType) -> bool:
    """Whether *transport* is of another family than *own*, by what it is, not by its name.

    SDKs write their own name into ``__module__`` of classes that they re-export, and
    ``httpx2.alias_httpx()`` makes one family of two.
    """
    others = [found for name in FAMILIES if (found := sys.modules.get(name)) not in (None, own)]
    return any(_is_transport(transport, other) for other in others) and not _is_transport(
        transport, own
    )


def _is_transport(transport: object, family: Any) -> bool:
    names = ("BaseTransport", "AsyncBaseTransport")
    kinds = [getattr(family, name, None) for name in names]  # another thread may yet import it
    return isinstance(transport, tuple(filter(None, kinds)))


def around(origins: Iterable[str]) -> dict[str, None]:
    """Mounts by which no proxy of the environment carries a call to a plain http origin."""
    return dict.fromkeys(origin for origin in origins if origin.startswith("http:"))
