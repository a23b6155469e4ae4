"""What the conversation wants done.  It yields these; a driver does them and sends back the answer.

Drivers never close a conversation: an exception is thrown into it where it happened, so that it can
still write down how things ended.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

T = TypeVar("T")

PAYLOAD_BYTES_MAX: Final = 1 << 20
"""Longest request body that is looked at."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reply:
    """Status and the few headers of a response that the conversation looks at.

    ``url`` is where the response came from; ``date`` the ``Date`` header in Unix seconds;
    ``direct`` is false where plain http came from somebody else than the origin: a proxy;
    ``length`` is that of the body, in bytes, of a 402 that says so.
    """

    status: int
    url: str
    headers: Mapping[str, Sequence[str]]
    date: float | None = None
    direct: bool = True
    length: int | None = None

    @property
    def delivered(self) -> bool:
        """Whether this hands over what was bought."""
        return 200 <= self.status < 300


@dataclass(frozen=True, slots=True, eq=False)
class Ask:
    """Send the request, with a proof header or without; answered by a :class:`Reply`."""

    proof: tuple[str, str] | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Fetch:
    """Make another request to the call's own origin, through the same client.

    Answered by a :class:`Fetched`.  It carries none of the caller's headers but ``User-Agent``;
    redirects are not followed.  ``path`` begins with ``/``.
    """

    method: str
    path: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    content: bytes | None = None
    proof: tuple[str, str] | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Fetched:
    """The answer to a :class:`Fetch`.

    ``headers`` are the few that the conversation looks at; ``body`` is decoded, and ``None`` where
    it is longer than 64 KiB, cannot be decoded, or came after a redirect.
    """

    status: int
    url: str
    headers: Mapping[str, Sequence[str]]
    body: bytes | None = field(repr=False)
    date: float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class ReadBody:
    """Read the 402's body, bounded; answered by bytes, or ``None`` if it is too long.

    ``wanted``: a body that breaks off is an error; else, where a header decides, it is no body.
    """

    wanted: bool = True


@dataclass(frozen=True, slots=True, eq=False)
class Fingerprint:
    """Digest the request's body; answered by hex, or ``None`` if it can be sent only once."""


@dataclass(frozen=True, slots=True, eq=False)
class Payload:
    """Look at the request's body; answered by a :class:`Content`.

    ``None`` where it is not in memory, or longer than :data:`PAYLOAD_BYTES_MAX`.
    """


@dataclass(frozen=True, slots=True, eq=False)
class Content:
    """A request body, and the content type that the request gives it.

    ``is_upload``: a form with files, of which ``body`` is the beginning only.
    """

    body: bytes = field(repr=False)
    type: str
    is_upload: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Record(Generic[T]):
    """Call the ledger with the seconds it may wait.

    Once begun it is finished: a cancellation that comes meanwhile is delivered at the next effect.
    """

    call: Callable[[float], T]


@dataclass(frozen=True, slots=True, eq=False)
class Consult:
    """Call foreign code, which may block or be async: a signer, an approver, a chain."""

    function: Callable[..., Any]
    args: tuple[Any, ...]


class AsyncNeeded(TypeError):
    """Foreign code turned out to be async, and a sync driver cannot wait for it."""


@dataclass(frozen=True, slots=True, eq=False)
class Sleep:
    """Wait, in seconds."""

    seconds: float


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """Nothing to do; a cancellation that was kept back is delivered here."""


Effect = Ask | Fetch | ReadBody | Fingerprint | Payload | Record[Any] | Consult | Sleep | Checkpoint

Flow = Generator[Effect, Any, T]
"""A part of the conversation, which ends with a ``T``."""


def ask(proof: tuple[str, str] | None = None) -> Flow[Reply]:
    """Send the request."""
    reply = yield Ask(proof)
    assert isinstance(reply, Reply)
    return reply


def fetch(wanted: Fetch) -> Flow[Fetched]:
    """Make another request to the same origin."""
    answer = yield wanted
    assert isinstance(answer, Fetched)
    return answer


def read_body(*, wanted: bool) -> Flow[bytes | None]:
    """Read the 402's body."""
    body = yield ReadBody(wanted)
    assert body is None or isinstance(body, bytes)
    return body


def fingerprint() -> Flow[str | None]:
    """Digest the request's body."""
    found = yield Fingerprint()
    assert found is None or isinstance(found, str)
    return found


def payload() -> Flow[Content | None]:
    """Look at the request's body."""
    found = yield Payload()
    assert found is None or isinstance(found, Content)
    return found


def record(call: Callable[[float], T]) -> Flow[T]:
    """Call the ledger."""
    answer: T = yield Record(call)
    return answer


def consult(function: Callable[..., Any], *args: Any) -> Flow[Any]:
    """Call foreign code."""
    return (yield Consult(function, args))


def checkpoint() -> Flow[None]:
    """Let a cancellation through."""
    yield Checkpoint()


def sleep(seconds: float) -> Flow[None]:
    """Wait."""
    yield Sleep(seconds)
