"""The lines that the logger ``x402_mask`` has of money: INFO what was paid, WARNING what is open.

A seller's words stand in them shortened and on one line, and nothing secret does.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from x402_mask._wire.x402 import shown

if TYPE_CHECKING:
    from collections.abc import Mapping

    from x402_mask._models import Event

log = logging.getLogger("x402_mask")

_NOTE_MAX = 200
_PAID = {
    "settled": "paid $%s for %s (%s)",
}
_OPEN = {
    "held": "$%s for %s stay held (%s), as the outcome is not known: %s",
    "rejected": "$%s for %s stay held (%s), though the seller rejected the payment: %s",
}
_FOUND = {
    "settled": "what was held for %s is paid (%s): %s",
    "void": "what was held for %s was not paid, and is free again (%s): %s",
}


def is_told(kind: str) -> bool:
    """Whether anybody may see a line of an event of this kind."""
    usual = kind not in _PAID and kind not in _OPEN and kind != "reconciled"
    return not usual or log.isEnabledFor(logging.DEBUG)


def tell(event: Event) -> None:
    """Log *event*: every one at DEBUG, and those that people want to know of so that they do."""
    kind, told = event.kind, event.detail
    about = (service_at(event.service, event.origin), event.payment_id)
    if kind in _PAID:
        log.info(_PAID[kind], event.usd, *about)
    elif kind in _OPEN:
        log.warning(_OPEN[kind], event.usd, *about, _note(told))
    elif kind == "reconciled" and told.get("state") in _FOUND:
        log.info(_FOUND[told["state"]], *about, _note(told))
    elif log.isEnabledFor(logging.DEBUG):
        log.debug("%s %s %s %s", kind, event.service, event.payment_id or "", dict(told) or "")


def service_at(service: str, origin: str) -> str:
    """A service and where it is, which may be all the name that it has."""
    return service if service == origin else f"{service} at {origin}"


def _note(told: Mapping[str, Any]) -> str:
    return shown(told.get("note") or "no more is known", _NOTE_MAX)
