"""A paid answer that is an error: what is raised for it names the payment."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

from x402_mask._flow.records import paid_note

if TYPE_CHECKING:
    from x402_mask._drive.family import Family, Response


@cache
def _paid_error(family: Family) -> Any:
    """Of nothing else than the library's own class, whose objects become such ones."""

    class PaidError(family.Response):  # type: ignore[misc]  # which of the two is known now only
        """The seller's answer as it is, but for a note on what ``raise_for_status`` raises."""

        def raise_for_status(self) -> Response:
            try:
                return super().raise_for_status()
            except family.HTTPStatusError as failure:
                receipt = self.extensions.get("x402_mask")
                if receipt is not None:
                    failure.add_note(paid_note(receipt))
                raise

        def __reduce__(self) -> tuple[Any, ...]:
            return _blank, (family.__name__,), self.__getstate__()

    return PaidError


def _blank(library: str) -> Response:
    """What a stored answer is read back into."""
    kind: Response = _paid_error(import_module(library))
    return kind.__new__(kind)


def named(family: Family, response: Response) -> None:
    """Let *response*, which was paid for, name its payment where it is an error.

    It stays the very object that the transport made: who else holds it sees the same.
    """
    if response.is_error and type(response) is family.Response:
        response.__class__ = _paid_error(family)
