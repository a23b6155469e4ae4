"""What is asked before an expired proof is followed by a new one.

Part of the conversation (``_flow.conversation``): no I/O, effects only.

A proof that has expired by our clock may be alive by another (``_policy.clocks``): then the
same bytes are presented again.  With an ``rpc`` the chain is asked about all that have expired,
together: it may prove them settled, which is not paid for again, or unused; it ends what a seller's
clock delays; and where its own blocks are not past ``validBefore``, the proof is alive.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from x402_mask._flow.effects import consult
from x402_mask._flow.steps import booked, check_resign
from x402_mask._ledger.records import OpenPayment, paid_before
from x402_mask.errors import PaymentRefused

if TYPE_CHECKING:
    from collections.abc import Sequence

    from x402_mask._flow.buyer import Buyer
    from x402_mask._flow.effects import Flow
    from x402_mask._flow.records import Call, Demand
    from x402_mask._ledger.records import LedgerView, Row
    from x402_mask._policy.clocks import Clock


@dataclass(slots=True)
class Doubts:
    """What the chain said in this call about the operation's earlier proofs, by payment."""

    is_past: dict[str, bool | None] = field(default_factory=dict)

    def clocks(self, demand: Demand, view: LedgerView) -> Demand:
        """The demand without its seller's clock, once the chain has every proof dead."""
        if view.lapsed and all(self.is_past.get(row.id) for row in view.lapsed):
            return replace(demand, seller_us=None)
        return demand

    def twin(self, view: LedgerView) -> OpenPayment | None:
        """What is idle and open, by the ledger's clocks or by the chain's; else what is busy."""
        if view.twin is not None and not view.twin.busy:
            return view.twin
        carried = view.twin.row.id if view.twin is not None else None
        for row in reversed(view.lapsed):
            if row.is_live and row.id != carried and self.is_past.get(row.id) is False:
                return OpenPayment(row=row, busy=False, by="chain")
        return view.twin

    def dismiss(self, twin: OpenPayment) -> None:
        """Another call has it, or it has ended: the chain's word on it is old.

        One that expired in this very moment was never asked about: that comes next.
        """
        if twin.row.id in self.is_past:
            self.is_past[twin.row.id] = None


def ask(buyer: Buyer, call: Call, view: LedgerView, doubts: Doubts) -> Flow[bool]:
    """Ask the chain about what has expired; whether it was asked: then look again.

    Each proof once in a call, and together within the caller's own time-out.
    """
    twin = view.twin
    if twin is not None and ((call.key is not None and twin.busy) or twin.is_ours):
        return False  # nothing new is signed
    rows = [
        row for row in view.lapsed if row.id not in doubts.is_past and _is_due(buyer, row, view)
    ]
    if not rows or buyer.settings.resign == "never":
        return False
    said = yield from consult(buyer.resolve, rows, call.wait_s)
    doubts.is_past |= {row.id: one.is_past for row, one in zip(rows, said, strict=True)}
    return True


def _is_due(buyer: Buyer, row: Row, view: LedgerView) -> bool:
    """Whether the chain can tell something of *row* that matters now."""
    delayed = view.twin is not None and view.twin.by == "seller"
    return buyer.chain_knows(row.network) and (delayed or not row.seen)


def check(buyer: Buyer, call: Call, demand: Demand, view: LedgerView) -> Flow[Demand]:
    """Whether a new proof may follow those that have expired; the demand, which knows of them.

    Raises:
        PaymentRefused: it was paid before, or ``resign="never"``; or the seller's clock, which has
            a say in it, is not at hand.
    """
    if demand.is_remembered and (view.lapsed or view.paid):
        raise PaymentRefused("an earlier proof of this operation has expired: ask", reason="clock")
    if view.paid:
        yield from _note_repeat(buyer, view.paid)
    return foresee(buyer, call, demand, view)


def foresee(buyer: Buyer, call: Call, demand: Demand, view: LedgerView) -> Demand:
    """:func:`check` of what was asked for; writes nothing.

    Raises:
        PaymentRefused: it was paid before, or ``resign="never"``.
    """
    if view.paid:
        raise paid_before(view.paid[-1], keyed=call.key is not None)
    if view.lapsed:
        check_resign(buyer, view.lapsed[0])
    return replace(demand, lapsed=frozenset(row.id for row in view.lapsed))


def refuse(buyer: Buyer, call: Call, rows: Sequence[Row]) -> Flow[None]:
    """Note that a repeat of what is paid was refused, and refuse it.

    Raises:
        PaymentRefused: always.
    """
    yield from _note_repeat(buyer, rows)
    raise paid_before(rows[-1], keyed=call.key is not None)


def _note_repeat(buyer: Buyer, rows: Sequence[Row]) -> Flow[None]:
    """When a repeat was first refused: without a key that ends a day later."""
    yield from booked(buyer, lambda at: buyer.ledger.refuse_again([row.id for row in rows], **at))


_NAMES: dict[Clock, str] = {
    "database": "the clock of the ledger's database",
    "seller": "the seller's Date",
    "chain": "the chain's own time",
}


def check_twin(twin: OpenPayment) -> None:
    """Whether to present the same bytes again is of any use.

    Raises:
        PaymentRefused: only another clock than ours has them alive, and they were refused already.
    """
    if twin.is_pointless:
        raise PaymentRefused(
            f"the proof of this operation ({twin.row.id}) has expired by this machine's clock, but"
            f" not by {_NAMES[twin.by]}: nothing new is signed until then, and the seller refused"
            " the old one again; set the clock that is wrong",
            reason="clock",
            payment_id=twin.row.id,
        )
