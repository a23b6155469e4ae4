"""What hooks and flows in a caller's own client see: no proof, and no 402 that is then paid."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from x402_mask._drive.context import CONTEXT, CallContext
from x402_mask._wire.x402 import PROOF_HEADERS

if TYPE_CHECKING:
    from collections.abc import Callable

    from x402_mask._drive.family import Request, Response


def scrub(
    response: Response,
    sent: Request,
    request: Request,
    side_request: Request | None,
) -> Request:
    """Keep the proof out of what the caller can look at afterwards; what was asked is returned."""
    if sent is request:
        return response.request
    bare(sent)
    if response.next_request is not None:
        bare(response.next_request)
    if sent is side_request:
        return response.request
    if response.request is not sent:
        return response.request  # where a redirect led, without the proof
    response.request = request
    return request


def bare(request: Request) -> None:
    """Take the proof off a request that was sent: errors and histories go on showing it."""
    for name in PROOF_HEADERS:
        request.headers.pop(name, None)


def strip(request: Request) -> None:
    """Take proofs off a request that must not carry them, before each hop."""
    context = request.extensions.get(CONTEXT)
    if not isinstance(context, CallContext):
        context = request.extensions[CONTEXT] = CallContext(request)
    context.shed(request)


def wrap_hooks(hooks: list[Any], wrapper: Callable[[Any], Any]) -> None:
    """Wrap the client's response hooks, those added since the last call as well."""
    hooks[:] = [hook if isinstance(hook, Deferred) else wrapper(hook) for hook in hooks]


class Deferred:
    """A response hook that waits with a 402 until it is known to be handed back."""

    __slots__ = ("hook",)

    def __init__(self, hook: Callable[[Response], Any]) -> None:
        self.hook = hook

    def __call__(self, response: Response) -> Any:
        if not self.waits(response):
            self.hook(response)

    def waits(self, response: Response) -> bool:
        """Whether the hook is put off."""
        context = response.request.extensions.get(CONTEXT)
        if isinstance(context, CallContext) and context.on_side_request:
            return True  # a side request of ours is no answer of the caller's
        if (
            response.status_code != 402
            or not isinstance(context, CallContext)
            or context.deferred is None
        ):
            return False
        context.deferred.append((self.hook, response))
        return True

    def __eq__(self, other: object) -> bool:
        """So that the hook can be found, and taken off, by its own name."""
        return other is self or other == self.hook

    def __hash__(self) -> int:
        return hash(self.hook)


class AsyncDeferred(Deferred):
    """:class:`Deferred`, async."""

    __slots__ = ()

    async def __call__(self, response: Response) -> None:
        if not self.waits(response):
            await self.hook(response)
