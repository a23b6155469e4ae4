"""The pump, cut at every effect by every kind of exception, and cancelled and closed there.

What drives a call through an HTTP library, a tool call and a quote is derived from it.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from x402_mask._drive.perform import AsyncPerformer
from x402_mask._drive.pump import Abandoned, AsyncPump, Pump
from x402_mask._flow.effects import (
    Ask,
    Checkpoint,
    Consult,
    Effect,
    Fetch,
    Fingerprint,
    Payload,
    ReadBody,
    Record,
    Sleep,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

EFFECTS: list[Effect] = [
    ReadBody(),
    Fingerprint(),
    Payload(),
    Record(lambda _: None),
    Consult(lambda: None, ()),
    Sleep(0),
    Checkpoint(),
]
KINDS: list[type[BaseException]] = [
    RuntimeError,
    StopIteration,
    StopAsyncIteration,
    KeyboardInterrupt,
    asyncio.CancelledError,
    GeneratorExit,
    SystemExit,
]
WRITTEN = Record(lambda _: "written")
COLOURS = ["sync", "async"]
every_effect = pytest.mark.parametrize("number", range(len(EFFECTS)))
every_kind = pytest.mark.parametrize("kind", KINDS)
every_colour = pytest.mark.parametrize("colour", COLOURS)


class Story:
    """A conversation that wants everything once, and writes down how it was cut short.

    *ends*: what it makes of a failure; by default it raises it again.
    """

    def __init__(self, effects: list[Effect], ends: Callable[[], object] | None = None) -> None:
        self.effects, self.ends = effects, ends
        self.answers: list[object] = []
        self.thrown: list[BaseException] = []
        self.written: object = None

    def told(self) -> Generator[Effect, Any, object]:
        for effect in self.effects:
            try:
                self.answers.append((yield effect))
            except BaseException as exc:
                self.thrown.append(exc)
                self.written = yield WRITTEN
                if self.ends is None:
                    raise
                return self.ends()
        return "done"


class Driver(Pump[object]):
    """Performs by *act*, except what is written down at the end."""

    def __init__(self, story: Story, act: Callable[[Effect], Any]) -> None:
        self.flow, self.act = story.told(), act

    def _perform(self, effect: Effect) -> Any:
        return "written" if effect is WRITTEN else self.act(effect)


class AsyncDriver(AsyncPump[object]):
    """:class:`Driver`, async."""

    def __init__(self, story: Story, act: Callable[[Effect], Any], *, inline: bool = True) -> None:
        self.flow, self.act = story.told(), act
        ledger: Any = SimpleNamespace(inline=inline, brief=False)
        self._performer = AsyncPerformer(ledger)

    async def _perform(self, effect: Effect) -> Any:
        if isinstance(effect, Record):
            return await self._performer.perform(effect)
        await self._performer.deliver()
        answer = self.act(effect)
        return await answer if asyncio.iscoroutine(answer) else answer


def begun(colour: str, story: Story, act: Callable[[Effect], Any]) -> object:
    """What the first step leads to."""
    if colour == "sync":
        driver = Driver(story, act)
        return driver.advance(lambda: next(driver.flow))
    drive = AsyncDriver(story, act)
    return finished(drive.advance(lambda: next(drive.flow)))


def finished(work: Any) -> object:
    """The result of a coroutine that waits for nothing."""
    try:
        work.send(None)
    except StopIteration as stop:
        return stop.value
    raise AssertionError("it waits")


def cut(number: int, failure: BaseException) -> tuple[list[Effect], Callable[[Effect], Any]]:
    """Effects of which the *number*-th fails, and what performs them."""
    effects = EFFECTS.copy()
    marked = effects[number]
    if isinstance(marked, Record):
        effects[number] = marked = Record(partial(fail, failure))

    def act(effect: Effect) -> object:
        return fail(failure) if effect is marked else type(effect).__name__

    return effects, act


def causes(failure: BaseException | None) -> list[BaseException]:
    """It, and what it was raised from."""
    return [] if failure is None else [failure, *causes(failure.__cause__)]


def fail(failure: BaseException, _: object = None) -> object:
    raise failure


@every_colour
def test_all_is_performed_in_its_order(colour: str) -> None:
    story = Story(EFFECTS)
    seen: list[Effect] = []
    assert begun(colour, story, seen.append) == "done"
    assert len(story.answers) == len(EFFECTS)
    assert [one for one in EFFECTS if one in seen] == seen


@every_colour
@every_kind
@every_effect
def test_a_failure_is_thrown_in_where_it_happened(
    number: int, kind: type[BaseException], colour: str
) -> None:
    """The conversation writes it down, and what it raises comes out as it is."""
    failure = kind()
    effects, act = cut(number, failure)
    story = Story(effects)
    wanted: Any = RuntimeError if kind is StopIteration else kind  # as Python has it of generators
    with pytest.raises(wanted) as caught:
        begun(colour, story, act)
    assert len(story.answers) == number
    (thrown,) = story.thrown
    if kind is GeneratorExit:
        assert isinstance(thrown, Abandoned)
    else:
        assert failure in causes(thrown)
        assert thrown in causes(caught.value)
    assert story.written == "written"


@every_colour
@every_kind
@every_effect
def test_what_the_conversation_makes_of_a_failure_counts(
    number: int, kind: type[BaseException], colour: str
) -> None:
    effects, act = cut(number, kind())
    assert begun(colour, Story(effects, lambda: "kept"), act) == "kept"
    with pytest.raises(LookupError):
        begun(colour, Story(effects, lambda: fail(LookupError())), act)


@every_colour
@every_kind
@pytest.mark.parametrize("sent", [Ask(), Ask(("name", "proof")), Fetch(method="GET", path="/")])
def test_what_is_to_be_sent_is_left_to_the_front_end(
    sent: Ask | Fetch, kind: type[BaseException], colour: str
) -> None:
    """Which throws in what sending raised."""
    story = Story([EFFECTS[0], sent, EFFECTS[1]], lambda: "kept")
    driver: Any = (Driver if colour == "sync" else AsyncDriver)(story, lambda _: None)

    def advance(step: Callable[[], Effect]) -> object:
        found = driver.advance(step)
        return found if colour == "sync" else finished(found)

    assert advance(lambda: next(driver.flow)) is sent
    assert not driver.is_over
    assert advance(lambda: driver.throw(kind())) == "kept"
    assert driver.is_over
    (thrown,) = story.thrown
    assert isinstance(thrown, Abandoned if kind is GeneratorExit else kind)


# --- cancelled and closed -------------------------------------------------------------------------


@every_effect
def test_cancelled_at_every_effect(number: int) -> None:
    """It is thrown in there; of a ledger call, which is finished first, at the next effect."""
    effects, marked = EFFECTS.copy(), EFFECTS[number]
    at_it, let_on, is_record = threading.Event(), threading.Event(), isinstance(marked, Record)

    def held(_: float) -> str:
        at_it.set()
        assert let_on.wait(5)
        return "finished"

    async def waiting() -> None:
        at_it.set()
        await asyncio.Event().wait()

    if is_record:
        effects[number] = Record(held)
    story = Story(effects)
    driver = AsyncDriver(
        story, lambda effect: waiting() if effect is marked else None, inline=not is_record
    )

    async def main() -> None:
        task = asyncio.ensure_future(driver.advance(lambda: next(driver.flow)))
        assert await asyncio.to_thread(at_it.wait, 5)
        task.cancel()
        await asyncio.sleep(0)
        let_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert story.written == "written"
    assert ("finished" in story.answers) is is_record
    assert len(story.answers) == number + is_record
    assert driver.is_over


@pytest.mark.parametrize("last", [True, False])
def test_a_cancellation_that_was_kept_comes_before_what_is_sent(*, last: bool) -> None:
    """With nothing to be sent it comes before the result, which nobody takes."""
    story = Story([] if last else [Ask(("name", "proof"))])
    driver = AsyncDriver(story, lambda _: None)
    driver._performer._cancelled = asyncio.CancelledError()
    with pytest.raises(asyncio.CancelledError):
        finished(driver.advance(lambda: next(driver.flow)))
    assert driver.is_over
    assert story.written == (None if last else "written")


class Forever:
    """What is never done, on any event loop or none."""

    def __await__(self) -> Generator[None, None, None]:
        yield


@every_effect
def test_closed_at_every_effect(number: int) -> None:
    """A coroutine that is closed waits no more, and writes down what is to be written."""
    marked = EFFECTS[number]
    effects = EFFECTS.copy()
    if isinstance(marked, Record):
        effects[number] = marked = Consult(lambda: None, ())
    story = Story(effects)

    async def waiting() -> None:
        await Forever()

    driver = AsyncDriver(story, lambda effect: waiting() if effect is marked else None)
    work = driver.advance(lambda: next(driver.flow))
    work.send(None)
    with contextlib.suppress(GeneratorExit):
        work.close()
    assert isinstance(story.thrown[0], Abandoned)
    assert story.written == "written"
    assert driver.is_over
    assert not driver._performer.may_wait
