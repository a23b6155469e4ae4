"""What is said where something is asked for that is installed with an extra, and is not there."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection


def missing(exc: ModuleNotFoundError, what: str, extra: str, names: Collection[str]) -> ImportError:
    """The error to raise in place of *exc*; that itself, where it is about something else.

    Args:
        exc: what importing raised.
        what: what needs it.
        extra: the extra that installs it.
        names: the top-level modules that the extra brings.
    """
    name = (exc.name or "").partition(".")[0]
    if name not in names:
        return exc
    message = f"{what} needs {name}: pip install 'x402-mask[{extra}]'"
    return ModuleNotFoundError(message, name=exc.name)
