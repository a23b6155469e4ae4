"""Misbehaviour on demand.

A fault is switched on by name, for ever (``True``) or for the next *n* times (a number).

=========================  =========================================================================
name                       what the sandbox then does
=========================  =========================================================================
``slow-settle``            settles, then waits ``slow_settle`` seconds before it answers
``drop-after-settle``      takes the money (or the token), then closes the connection unanswered
``500-after-settle``       takes the money (or the token), then answers 500 with the receipt
``no-receipt``             leaves the settlement header out (also of a 500)
``success-false``          delivers, but its receipt claims ``success: false``
``wrong-amount-receipt``   delivers, but its receipt claims 50 times the amount
``settlement-pending``     broadcasts, answers 402 ``settlement_pending`` with the hash; the same
                           proof shown again is then honoured
``price-changed``          raises the price once a proof arrives, refusing that proof with the new
                           offer; a payment created names twice the live price
``payee-differs``          a payment created names another ``payTo`` than the live offer
``token-missing``          a paid payment has no ``token`` key
``token-null``             a paid payment has ``token: null``
``token-for-other-service``  a payment's token is good for another service only
``poll-never-ends``        a paid or expired payment is still shown as ``pending``
``expired-token``          a good token is answered 402, payment ``expired``, and is lost
``exhausted-token``        a good token is answered 402, payment ``exhausted``, and is lost
``402-after-token``        a good token is answered with a fresh challenge, and stays good
=========================  =========================================================================
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

FAULTS = frozenset(
    {
        "slow-settle",
        "drop-after-settle",
        "500-after-settle",
        "no-receipt",
        "success-false",
        "wrong-amount-receipt",
        "settlement-pending",
        "price-changed",
        "payee-differs",
        "token-missing",
        "token-null",
        "token-for-other-service",
        "poll-never-ends",
        "expired-token",
        "exhausted-token",
        "402-after-token",
    }
)


def check_faults(faults: Mapping[str, bool | int]) -> None:
    """Raise ``ValueError`` if a name is not a fault or a count is negative."""
    for name, times in faults.items():
        if name not in FAULTS:
            raise ValueError(f"unknown fault {name!r}; known: {', '.join(sorted(FAULTS))}")
        if times < 0:
            raise ValueError(f"fault {name!r} cannot happen {times} times")


def parse_faults(text: str) -> dict[str, bool | int]:
    """Read ``"no-receipt,drop-after-settle=2"``; raises ``ValueError`` as `check_faults` does."""
    faults: dict[str, bool | int] = {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        name, _, times = item.partition("=")
        if times and not (times.isascii() and times.isdigit()):
            raise ValueError(f"fault {name!r}: {times!r} is not a number of times")
        faults[name] = int(times) if times else True
    check_faults(faults)
    return faults


class Faults:
    """The faults that are switched on; safe to change while the sandbox runs."""

    def __init__(self, faults: Mapping[str, bool | int]) -> None:
        check_faults(faults)
        self._left = dict(faults)
        self._lock = threading.Lock()

    def set(self, name: str, times: bool | int = True) -> None:  # noqa: FBT001, FBT002
        """Switch *name* on, for ever or for the next *times*; ``False`` or 0 switches it off."""
        check_faults({name: times})
        with self._lock:
            self._left[name] = times

    def clear(self) -> None:
        """Behave from now on."""
        with self._lock:
            self._left.clear()

    def take(self, name: str) -> bool:
        """Say whether *name* happens now, using up one of its times."""
        with self._lock:
            times = self._left.get(name, False)
            if times is not True and times > 0:
                self._left[name] = times - 1
            return bool(times)
