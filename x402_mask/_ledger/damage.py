"""Rows that no ledger writes: said as what they are, whatever is wrong in them.

SQLite stores anything anywhere, and text is text in any database.  What reads a row relies on what
it holds; where that is not so, the reading fails in some way or other, within the transaction.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeVar

from x402_mask.errors import LedgerError

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

_KINDS: Final = (
    TypeError,
    ValueError,
    LookupError,
    ArithmeticError,
    AttributeError,
    AssertionError,
)
"""How reading fails where a row holds something else."""


class Misuse(Exception):  # a mark besides the error that it is
    """Marks an error within a transaction that its caller made, not a row."""


class _Foreign(Exception):
    """Carries the error of other code past what reads rows."""

    def __init__(self, failure: Exception) -> None:
        super().__init__()
        self.failure = failure


def foreign(call: Callable[[], T]) -> T:
    """What other code answers within a transaction; what it raises says nothing of a row."""
    try:
        return call()
    except _KINDS as exc:
        raise _Foreign(exc) from None


class _DamageSaid:
    """See :data:`damage_said`; a class, as one is entered in each transaction."""

    __slots__ = ()

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, exc: BaseException | None, trace: object) -> None:
        if isinstance(exc, _Foreign):
            raise exc.failure from exc.failure.__cause__
        if isinstance(exc, _KINDS) and not isinstance(exc, Misuse):
            raise damaged(exc) from exc


damage_said: Final = _DamageSaid()
"""Around what reads rows and uses them: it fails by what they hold.

Raises:
    LedgerError: something in a row is not what it should be.
"""


def damaged(failure: Exception) -> LedgerError:
    """What is said of a *failure* to read what is there."""
    what = f"{type(failure).__name__}: {failure}"[:200]
    return LedgerError(
        f"the ledger holds a row that x402_mask did not write ({what}). Nothing is paid from it:"
        " `x402-mask doctor` names what was changed; restore a backup"
    )


def whole(value: object) -> int:
    """An integer that was stored.

    Raises:
        LedgerError: it is none.
    """
    if type(value) is not int:
        raise damaged(TypeError(f"{value!r:.40} is no integer"))
    return value
