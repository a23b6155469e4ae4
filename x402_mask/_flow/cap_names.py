"""Caps that bind nothing: their service is one that no call has ever named.

A name that is spelled wrong refuses nothing, and looks in every list like one that does.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from x402_mask._flow.effects import record
from x402_mask.errors import LedgerError

if TYPE_CHECKING:
    from x402_mask._flow.buyer import Buyer
    from x402_mask._flow.effects import Flow
    from x402_mask._flow.records import Demand
    from x402_mask._policy.caps import Limit

log = logging.getLogger("x402_mask")


def warn_once(buyer: Buyer, demand: Demand) -> Flow[None]:
    """With the first call that a payer is asked to pay for; this call names its own services."""
    if buyer.settings.services.caps_compared:
        return
    buyer.settings.services.caps_compared = True
    here = demand.service_request.keys
    others = [x for x in buyer.limits if x.scope != "*" and here.isdisjoint(x.scopes)]
    if not others:
        return
    try:
        found = yield from record(lambda wait_s: buyer.ledger.unnamed(others, wait_s=wait_s))
    except LedgerError:  # the call is about to say so itself
        buyer.settings.services.caps_compared = False
        return
    for limit in found:
        log.warning("%s", said(limit))


def said(limit: Limit) -> str:
    """What there is to say of a cap that binds nothing."""
    return f"no call has ever named {limit.scope!r}, which a cap is for ({limit.cap})"
