"""What a ledger stores and answers, as records; and the state machine of one payment.

Times are microseconds since the Unix epoch, and ``micro`` is micro-USD.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, get_args

from x402_mask._ledger.damage import damaged
from x402_mask._models import Route
from x402_mask._policy.caps import as_datetime, keys_of
from x402_mask._policy.clocks import DAY_US, dead_at
from x402_mask._wire import strict_json
from x402_mask.errors import Paused, PaymentRefused

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from x402_mask._models import Outcome, State
    from x402_mask._policy.caps import Limit
    from x402_mask._policy.clocks import Clock, Clocks

MOVES: Final[Mapping[str, frozenset[str]]] = {
    "reserved": frozenset({"held", "released"}),
    "held": frozenset({"held", "settled", "void", "released"}),  # released: it was never sent
    "settled": frozenset({"settled", "void"}),  # void: the chain disproved an unseen claim
    "released": frozenset(),
    "void": frozenset(),
}
"""The state machine of one payment."""

COLUMNS: Final = (
    "id, at, updated, state, service, origin, route, micro, amount, asset, network, payer, pay_to,"
    " operation, delivered, flight, nonce, valid_before, header, proof, proof_digest, outcome,"
    " trans, seen, note, also, again, reason"
)


class Busy(Exception):  # a signal between driver and ledger, never an error
    """The lock is not free and the caller said not to wait."""


Last = tuple[int, bytes, str | None]
"""A row of history: its number, its link, and the sum over the counters that it carries."""

Change = tuple[str, str, int, int, int, int, int]
"""A counter: scope, unit, bucket, settled and held before, settled and held now."""


class Db(Protocol):
    """One open transaction."""

    last: Last | None
    """The last row of history, once it was asked for."""

    changes: list[Change]
    """What changed in the counters since then."""

    @property
    def clock_us(self) -> int | None:
        """What the database's own clock said when the transaction began, microseconds.

        ``None`` where it is the clock of this host.
        """

    def one(self, sql: str, *params: object) -> tuple[Any, ...] | None:
        """The first row, or ``None``."""

    def all(self, sql: str, *params: object) -> list[tuple[Any, ...]]:
        """Every row."""
        ...

    def run(self, sql: str, *params: object) -> int:
        """Execute, and tell how many rows changed."""
        ...


class Row(NamedTuple):
    """A row of ``payments``, in the order of ``COLUMNS``."""

    id: str
    at: int
    updated: int
    state: State
    service: str
    origin: str
    route: Route
    micro: int
    amount: str
    asset: str | None
    network: str | None
    payer: str | None
    pay_to: str | None
    operation: str
    delivered: int
    flight: str | None
    nonce: str | None
    valid_before: int | None
    header: str | None
    proof: bytes | None
    proof_digest: str | None
    outcome: Outcome | None
    trans: str | None
    seen: int
    note: str
    also: str | None = None
    again: int | None = None
    reason: str | None = None

    @classmethod
    def read(cls, found: Sequence[Any]) -> Row:
        """The row that a query *found*, of which everything is what its name says.

        Raises:
            LedgerError: it is not, so that no ledger wrote it.
        """
        row = cls._make(found)
        if (types := tuple(map(type, found))) not in _good:
            _check_types(row)
            _good.add(types)
        if row.state not in MOVES or row.route not in _ROUTES or row.micro < 0:
            told = f"payment {row.id!r:.60} is {row.state!r:.20}, {row.route!r:.20}, {row.micro}"
            raise damaged(ValueError(told))
        return row

    @property
    def others(self) -> tuple[str, ...]:
        """The keys of services besides its own that it counts for."""
        return () if self.also is None else tuple(strict_json.loads(self.also))

    @property
    def keys(self) -> frozenset[str]:
        """The keys of every service that it counts for."""
        return keys_of(self.service, self.others)

    @property
    def is_live(self) -> bool:
        """Whether there is a proof that an identical call presents, as long as it is alive."""
        signed = self.proof is not None and self.state in ("held", "settled")
        return signed and not self.delivered

    def expired(self, now_us: int) -> bool:
        """Whether the proof is dead by one clock that says *now_us*."""
        return self.valid_before is not None and now_us > dead_at(self.valid_before)

    def lapsed(self, now_us: int) -> bool:
        """Whether it has a proof that is shown by itself, and is dead by one clock."""
        return self.route != "token" and self.proof is not None and self.expired(now_us)

    def refuses_again(self, clocks: Clocks, *, keyed: bool) -> bool:
        """Whether what this row paid for is not paid for again by itself.

        Its money is proven gone, and nobody had an answer.  With a key that is final; else it ends
        a day after it was first said.
        """
        if self.delivered or self.state != "settled" or not self.seen:
            return False
        return keyed or self.again is None or clocks.slowest <= self.again + DAY_US


_KINDS: Final[Mapping[str, tuple[type, ...]]] = {
    "str": (str,),
    "State": (str,),
    "Route": (str,),
    "int": (int,),
    "str | None": (str, type(None)),
    "Outcome | None": (str, type(None)),
    "int | None": (int, type(None)),
    "bytes | None": (bytes, type(None)),
}
_TYPES_OF_ROW: Final = tuple(
    _KINDS[str(getattr(noted, "__forward_arg__", noted))] for noted in Row.__annotations__.values()
)
_ROUTES: Final = get_args(Route)
_good: Final[set[tuple[type, ...]]] = set()
"""Types of rows that were right: a few dozen, as what may be NULL is so in few combinations."""


def _check_types(row: Row) -> None:
    for name, value, types in zip(row._fields, row, _TYPES_OF_ROW, strict=True):
        if type(value) not in types:
            raise damaged(TypeError(f"payment {row.id!r:.60} has {name} {value!r:.60}"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """What is presented to a seller.  Not printable: it is worth money."""

    header: str
    value: str = field(repr=False)
    nonce: str | None = None
    valid_before: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OpenPayment:
    """An open payment for the same operation; ``busy`` while its own call is in flight.

    ``by`` is the clock that keeps it open.
    """

    row: Row
    busy: bool
    by: Clock = "ours"

    @property
    def is_ours(self) -> bool:
        """Whether it can be presented again, by our own clock."""
        return not self.busy and self.by == "ours"

    @property
    def is_pointless(self) -> bool:
        """Whether its seller took it for dead when it was dead by our clock as well."""
        dead = self.by != "ours" and self.row.expired(self.row.updated)
        return dead and self.row.outcome == "rejected"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LedgerView:
    """What the ledger knows before a decision; ``token``: one that may be used now is held.

    ``lapsed`` are this operation's proofs that have expired by our clock, whichever clock keeps
    them alive; ``paid`` those whose money is proven gone and which are not paid for again.
    """

    paused: bool
    token: bool
    twin: OpenPayment | None
    lapsed: tuple[Row, ...]
    paid: tuple[Row, ...]
    payees: Mapping[str, bool]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reservation:
    """A payment about to be made.  Times are microseconds, ``micro`` micro-USD."""

    id: str
    at: int
    service: str
    origin: str
    operation: str
    keyed: bool
    route: Route
    micro: int
    amount: int
    asset: str | None
    network: str | None
    payer: str | None
    pay_to: str | None
    limits: tuple[Limit, ...]
    pin_payee: bool
    also: tuple[str, ...] = ()
    """Keys of services besides its own that it counts for: other readings of its URL."""
    seller_us: int | None = None
    """The time by the seller's clock, if it told."""
    lapsed: frozenset[str] | None = None
    """Payments of the operation whose proofs are known to have expired; ``None`` for whichever."""
    detail: Mapping[str, Any] = field(default_factory=dict)

    @property
    def keys(self) -> frozenset[str]:
        """The keys of every service whose caps it must fit."""
        return keys_of(self.service, self.also)

    @property
    def others(self) -> list[str]:
        """Those that the name of its service does not say: what is written down."""
        return sorted(self.keys - {self.service})

    def unheard(self, rows: Sequence[Row]) -> OpenPayment | None:
        """One of *rows* that has expired since it was decided to pay: nobody was asked about it."""
        known = self.lapsed
        if known is None:
            return None
        new = (row for row in rows if row.id not in known and row.lapsed(self.at))
        return next((OpenPayment(row=row, busy=False, by="chain") for row in new), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reserved:
    """The reservation stands; ``new_payee`` tells of a payee not seen before for the service.

    ``proof`` is what was made with it: then the payment is held already.
    """

    new_payee: bool
    proof: Proof | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """How a call with a proof ended, as far as its caller can tell.

    ``reason``: the seller's words for refusing it.
    ``lost``: what was delivered never reached the caller after all.
    """

    outcome: Outcome
    delivered: bool
    transaction: str | None = None
    note: str = ""
    reason: str | None = None
    lost: bool = False


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Breaker:
    """Refuse new payments to an origin after *failures* bad ends in a row, for *seconds*."""

    failures: int
    seconds: float


def paused() -> Paused:
    """The refusal of everything while its owner has stopped the ledger."""
    return Paused("this ledger is paused; `x402-mask resume` ends it")


def breaker_open(origin: str, breaker: Breaker, until: int) -> PaymentRefused:
    """What is said while *origin* is not paid; *until* is in microseconds."""
    return PaymentRefused(
        f"{origin} failed {breaker.failures} payments in a row; refused until"
        f" {as_datetime(until).isoformat()} (breaker_after=)",
        reason="breaker",
    )


def paid_before(row: Row, *, keyed: bool) -> PaymentRefused:
    """The refusal of a repeat of what *row*, whose money is proven gone, paid for."""
    then = "another operation key buys it again"
    if not keyed:
        until = "24 hours from now" if row.again is None else _text_of(row.again + DAY_US)
        then = f"an identical call is a new purchase after {until}, or now with an operation key"
    shown = f" in {row.trans}" if row.trans else ""
    return PaymentRefused(
        f"this was paid before ({row.id}, settled{shown}), and its answer never arrived; {then}",
        reason="paid_before",
        payment_id=row.id,
    )


def _text_of(at_us: int) -> str:
    return as_datetime(at_us).isoformat(timespec="seconds")


def new_payment_id(at_us: int) -> str:
    """A name that nobody can guess; names of one time are neighbours.

    So a new one finds its place in the index among the last, however many there are: on a ledger of
    a million payments a reservation under a random name costs 1.3 times that on an empty one.
    """
    return f"pay_{at_us // 1000 & 0xFFFF_FFFF_FFFF:012x}{secrets.token_hex(10)}"
