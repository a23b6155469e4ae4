"""What the tables of a ledger should hold, by its history.

The history is read row by row, from the first; each row does again to plain dictionaries what the
ledger did to its tables when it wrote that row, and ``_ledger.audit`` compares the two.  This is
written a second time on purpose, not by way of the one ``_move``: what is wrong there shows here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from x402_mask._ledger.purchases import TERMS
from x402_mask._ledger.restore import counted
from x402_mask._policy.caps import as_datetime, keys_of
from x402_mask._services import service_key
from x402_mask._wire import strict_json

if TYPE_CHECKING:
    from collections.abc import Mapping

_PROBLEMS_MAX: Final = 200

FIXED: Final = (
    "service",
    "origin",
    "route",
    "micro",
    "amount",
    "asset",
    "network",
    "payer",
    "pay_to",
    "operation",
)
"""Columns of a payment that its reservation sets, for good."""
MOVING: Final = (
    "at",
    "updated",
    "state",
    "delivered",
    "nonce",
    "valid_before",
    "header",
    "proof_digest",
    "outcome",
    "trans",
    "seen",
    "note",
    "reason",
)
"""Columns that later rows set again."""
_ASIDE: Final = frozenset(
    {
        *("represented", "asked", "created", "paying", "closed"),
        *("token_used", "token_returned", "token_dropped"),
        *("transfer_replaced", "transfer_closed"),
    }
)
"""Kinds of history that change nothing of the payment itself."""
COMPARED: Final = (*FIXED, *MOVING, "also", "again")
"""Every column that history tells: all but the sealed proof, and who carries the payment."""


@dataclass(slots=True)
class Replay:
    """What the tables should hold after the rows of history read so far."""

    rows: int = 0
    payments: dict[str, dict[str, Any]] = field(default_factory=dict)
    payees: dict[tuple[str, str, str], bool] = field(default_factory=dict)
    pins: dict[tuple[str, str], bool] = field(default_factory=dict)
    """Payees of an older program, which knew no origins: by service and address."""
    transfers: dict[tuple[str, int], str] = field(default_factory=dict)
    purchases: dict[str, tuple[str, str | None]] = field(default_factory=dict)
    tokens: dict[str, str] = field(default_factory=dict)
    dropped: set[str] = field(default_factory=set)
    unpaid: dict[str, set[str]] = field(default_factory=dict)
    maybe_closed: set[str] = field(default_factory=set)
    unknown: list[str] = field(default_factory=list)
    paused: bool = False
    restores: dict[int, int | None] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    more: int = 0

    def problem(self, sentence: str) -> None:
        """Note what is wrong; a ruined ledger must not make an endless report."""
        if len(self.problems) < _PROBLEMS_MAX:
            self.problems.append(sentence)
        else:
            self.more += 1

    def report(self) -> list[str]:
        """The sentences."""
        rest = [f"and {self.more} more problems"] if self.more else []
        return [*self.problems, *rest]

    def apply(self, at: int, payment: str | None, kind: str, data: Mapping[str, Any]) -> None:
        """Do again what a row of history says was done."""
        if type(at) is not int:
            raise TypeError("a time is microseconds")
        if kind == "reserved" and payment is not None:
            self._reserve(at, payment, data)
        elif payment is not None:
            if "attempt" in data:
                self.transfers[payment, data["attempt"]] = data["transaction"]
            self._move(self.payments[payment], at, kind, data)
            self._purchase(payment, kind, data)
        elif kind in ("paused", "resumed"):
            self.paused = kind == "paused"
        elif kind in ("payee", "refused"):
            self._see_payee(data, trusted=kind == "payee")
        elif kind == "head_made":
            self.unknown.append(
                f"whether rows before {as_datetime(at)} were lost: no head was left"
            )
        elif kind == "accepted":
            self.restores = counted(self.restores, at, data["micro"])

    def _reserve(self, at: int, payment: str, data: Mapping[str, Any]) -> None:
        if type(data["micro"]) is not int:
            raise TypeError("an amount is micro-USD")
        row: dict[str, Any] = dict.fromkeys(COMPARED)
        row |= {name: data[name] for name in FIXED}
        row |= {"at": at, "updated": at, "state": "reserved", "delivered": 0, "seen": 0, "note": ""}
        others = sorted(keys_of(data["service"], data.get("also", ())) - {data["service"]})
        row["also"] = strict_json.dumps(others) if others else None
        self.payments[payment] = row
        payee, service = data["pay_to"], data["service"]
        if data.get("payee") in ("first", "other"):
            pin = (data["origin"], service_key(service), payee.lower())
            self.payees[pin] = data["payee"] == "first"
        elif "payee" not in data and payee is not None:
            first = not any(known == service for known, _ in self.pins)
            self.pins.setdefault((service, payee.lower()), first)

    def _see_payee(self, data: Mapping[str, Any], *, trusted: bool) -> None:
        """One that the owner accepted, or that was refused as a new one."""
        if "payee" not in data:
            return
        if "origin" not in data:
            self.pins[data["service"], data["payee"]] = trusted
        else:
            pin = (data["origin"], service_key(data["service"]), data["payee"])
            self.payees[pin] = trusted

    def _move(self, row: dict[str, Any], at: int, kind: str, data: Mapping[str, Any]) -> None:
        if kind in _ASIDE:
            return
        if kind == "paid_before":  # a repeat was refused: nothing of the payment itself changes
            row["again"] = at
            return
        row |= {"updated": at, "state": data["state"], "note": data.get("note", "")}
        if kind == "held":
            row["proof_digest"] = data["proof"]
            row |= {name: data[name] for name in ("header", "nonce", "valid_before")}
        elif kind == "reconciled":
            row |= {"trans": data["transaction"], "seen": 1}
        elif kind == "bought":
            row["trans"] = row["trans"] or data["transaction"]
        elif kind == "released":
            row |= dict.fromkeys(("proof_digest", "header", "nonce", "valid_before"))
        else:  # the end of a call
            row |= {"outcome": data["outcome"], "delivered": int(data["delivered"])}
            row["reason"] = data.get("reason")
            row["trans"] = row["trans"] or data["transaction"]

    def _purchase(self, payment: str, kind: str, data: Mapping[str, Any]) -> None:
        """How far the purchase of a token has come, if this payment is one."""
        if kind == "asked":
            self._take_over(payment, data["remote"], data.get("took"))
            stage = "asked" if data["remote"] is None else "created"
            self.purchases[payment] = (stage, data["remote"])
        if payment not in self.purchases:
            return
        stage, remote = self.purchases[payment]
        if kind == "created":
            stage, remote = "created" if stage == "asked" else stage, data["remote"]
        elif kind == "bought":
            stage, self.tokens[payment] = "bought", data["token"]
            self.dropped.discard(payment)
        elif kind == "paying" or (kind == "held" and "attempt" in data):
            stage = "paying"
            self.payments[payment] |= {name: data[name] for name in TERMS if name in data}
        elif kind == "closed":
            stage = "closed"
        elif kind == "token_dropped":
            self.dropped.add(payment)
        self.purchases[payment] = (stage, remote)
        if stage == "created" and remote is not None:
            self.unpaid.setdefault(remote, set()).add(payment)

    def _take_over(self, payment: str, remote: str | None, took: str | None) -> None:
        """Another purchase now follows what an earlier one of the operation left unpaid.

        A marketplace may give one name to several payments.  Programs of the second schema did not
        write down which of them was taken over: then it may be any.
        """
        if took is not None:
            self.purchases[took] = ("closed", self.purchases[took][1])
            return
        mine, may = self.payments[payment], set[str]()
        for other in self.unpaid.get(remote or "", ()):
            theirs, same = self.payments[other], ("operation", "origin")
            left = theirs["state"] == "released" and self.purchases[other] == ("created", remote)
            if left and all(theirs[name] == mine[name] for name in same):
                may.add(other)
        if len(may) > 1:
            self.unknown.append(
                f"which of the payments {', '.join(sorted(may))} the purchase {payment} went on"
                " with: the program that made it did not write that down"
            )
        self.maybe_closed |= may
