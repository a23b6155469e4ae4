"""Answers that were paid for, kept so that the same proof gets the same answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
from starlette.responses import Response

from x402_mask.sandbox.book import Settlement

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

Answer = tuple[Response, Settlement]


class Conflict(Exception):
    """The key already belongs to another proof."""


class Replays:
    """Answers by key; a second caller waits for the first one's answer."""

    def __init__(self) -> None:
        self._entries: dict[str, _Entry] = {}

    async def once(
        self, key: str, digest: str, produce: Callable[[], Awaitable[Answer]]
    ) -> tuple[Answer, bool]:
        """The answer kept under *key*, or a new one, and whether it is new.

        Raises `Conflict` if *key* belongs to another *digest*, and what *produce* raises; then the
        key stays free.
        """
        entry = self._entries.get(key)
        if entry is None or entry.free:
            entry = self._entries[key] = _Entry(digest)
        if entry.digest != digest:
            raise Conflict
        async with entry.turn:
            if entry.answer is not None:
                return entry.answer, False
            entry.answer = await produce()
            return entry.answer, True


class _Entry:
    def __init__(self, digest: str) -> None:
        self.digest = digest
        self.turn = anyio.Lock()
        self.answer: Answer | None = None

    @property
    def free(self) -> bool:
        return self.answer is None and not self.turn.locked()
