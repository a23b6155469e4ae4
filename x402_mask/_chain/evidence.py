"""How a chain is asked about a payment by signature: one function for each scheme.

The ledger keeps what was signed by its key, the scheme tells what a chain is asked by
(``evidence_key``), and the function here makes the question of it.  Whoever adds a scheme adds one;
until then what it signed stays counted, whatever anybody says.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from x402_mask._chain.authorizations import authorization_of
from x402_mask._schemes.registry import registered
from x402_mask._schemes.scheme import scheme_of

if TYPE_CHECKING:
    from x402_mask._chain.verdicts import Question
    from x402_mask._ledger.records import Row

Asks = Callable[["Row", str, float | None], "Question"]
"""Makes the question of a row that has all that was signed, what is asked by, and seconds."""

_asks: dict[str, Asks] = {"exact-eip3009": authorization_of}


def register(scheme_id: str, asks: Asks) -> None:
    """Let *asks* make the questions about what the scheme of that id signed.

    Raises:
        ValueError: there is one.
    """
    if scheme_id in _asks:
        raise ValueError(f"there is evidence for {scheme_id!r} already")
    _asks[scheme_id] = asks


def question_of(row: Row, time_out_s: float | None = None) -> Question | None:
    """What a chain is asked about the payment in *row*, within *time_out_s* seconds.

    ``None``: it was not paid by a signature, or by one of which nobody here can ask.
    """
    if None in (row.nonce, row.valid_before, row.network, row.asset, row.payer, row.pay_to):
        return None
    found = scheme_of(registered().values(), row.nonce)
    asks = None if found is None else _asks.get(found[0].id)
    return None if found is None or asks is None else asks(row, found[1], time_out_s)
