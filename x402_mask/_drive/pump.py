"""Drives a conversation, sync and async, from one thing that is to be sent to the next.

What happens when an exception meets a conversation is written here and nowhere else: it is thrown
in where it happened, and the conversation decides.  Whoever derives from a pump says how its own
effects are performed, and sends.
"""

from __future__ import annotations

from inspect import GEN_CLOSED, getgeneratorstate
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from x402_mask._flow.effects import Ask, Fetch

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from x402_mask._drive.perform import AsyncPerformer
    from x402_mask._flow.effects import Effect

R = TypeVar("R")


class Abandoned(BaseException):
    """The caller's own code was closed in the middle of a call.

    Stands in for ``GeneratorExit``, which Python would use to close the conversation at once,
    before it could write down how things stand.
    """


class _Driven(Generic[R]):
    """A conversation that is under way; a pump is derived from, so that no two refer to another."""

    flow: Generator[Effect, Any, R]

    @property
    def is_over(self) -> bool:
        """Whether the conversation has come to its end, good or bad."""
        return getgeneratorstate(self.flow) == GEN_CLOSED

    def throw(self, exc: BaseException) -> Effect:
        """Tell the conversation of a failure."""
        return self.flow.throw(Abandoned() if isinstance(exc, GeneratorExit) else exc)


class Pump(_Driven[R]):
    """Drives a conversation, blocking."""

    def _perform(self, effect: Effect) -> Any:
        raise NotImplementedError

    def advance(self, step: Callable[[], Effect]) -> Ask | Fetch | R:
        """Take a *step*, and go on until something is to be sent, or to the result.

        Raises:
            BaseException: as the conversation ended with it.
        """
        try:
            effect = step()
            while not isinstance(effect, (Ask, Fetch)):
                try:
                    answer = self._perform(effect)
                except BaseException as exc:  # noqa: BLE001  # the flow decides
                    effect = self.throw(exc)
                else:
                    effect = self.flow.send(answer)
        except StopIteration as stop:
            result: R = stop.value
            return result
        except Abandoned:
            raise GeneratorExit from None
        return effect


class AsyncPump(_Driven[R]):
    """Drives a conversation without blocking the event loop.

    A cancellation that came while the ledger was busy is delivered before anything is sent, where
    the conversation is told of it, and before the result is handed on.
    """

    _performer: AsyncPerformer

    async def _perform(self, effect: Effect) -> Any:
        raise NotImplementedError

    def throw(self, exc: BaseException) -> Effect:
        """Tell the conversation of a failure; a coroutine that is being closed cannot wait."""
        self._performer.may_wait = not isinstance(exc, GeneratorExit)
        return super().throw(exc)

    async def advance(self, step: Callable[[], Effect]) -> Ask | Fetch | R:
        """Take a *step*, and go on until something is to be sent, or to the result.

        Raises:
            BaseException: as the conversation ended with it.
        """
        try:
            effect = step()
            while True:
                try:
                    if isinstance(effect, (Ask, Fetch)):
                        await self._performer.deliver()
                        return effect
                    answer = await self._perform(effect)
                except BaseException as exc:  # noqa: BLE001  # the flow decides
                    effect = self.throw(exc)
                else:
                    effect = self.flow.send(answer)
        except StopIteration as stop:
            result: R = stop.value
        except Abandoned:
            raise GeneratorExit from None
        except Exception:
            await self._performer.deliver()
            raise
        await self._performer.deliver()
        return result
