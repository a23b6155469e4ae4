"""What a payer remembers of catalogs: prices, input schemas, and other names of a service.

Kept in memory by one payer, bounded.  All of it is seller text, so it may only make paying harder:
a price refuses a dearer offer, a schema refuses a body, and another name adds the caps of its
service.  Prices and schemas are good for an hour; names stay, because forgetting one would lift a
cap.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from x402_mask._policy.caps import keys_of
from x402_mask._system.turns import Mutex

if TYPE_CHECKING:
    from x402_mask._policy.schemas import Checker
    from x402_mask._wire.x402 import Challenge

ENTRY_S: Final = 3600
_ENTRIES_MAX: Final = 256
_NAMES_MAX: Final = 8
"""Most names of one service.  Catalogs list one legacy id, at most."""

_GROUPS_MAX: Final = 64
_CHECKERS_MAX: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CatalogEntry:
    """What a catalog said of one service.

    ``micro`` is the most its list price can mean, in micro-USD, ``None`` where it names none;
    ``schema`` its input schema as JSON text, or empty; ``names`` the services that its paths and
    ids name, its own included; ``at`` the Unix seconds at which it was read.
    """

    service: str
    micro: int | None
    schema: str = field(repr=False)
    names: frozenset[str]
    at: float


@dataclass(frozen=True, slots=True, eq=False)
class ServiceRequest:
    """What a request asks of which service, and the challenge it was answered, if it was sent."""

    method: str
    origin: str
    service: str
    challenge: Challenge | None = field(default=None, repr=False)
    also: tuple[str, ...] = ()
    """Keys of other services that it may be taken for."""

    @property
    def keys(self) -> frozenset[str]:
        """The keys of every service that it may be."""
        return keys_of(self.service, self.also)

    @property
    def name(self) -> str:
        """Its service; where the URL names only its origin, what a usual server takes that for."""
        if self.service != self.origin:
            return self.service
        return next((key for key in sorted(self.keys) if key != self.origin), self.service)

    __hash__ = None  # type: ignore[assignment]  # holds a challenge


class CatalogCache:
    """The catalog entries that one payer remembers."""

    __slots__ = ("_checkers", "_entries", "_groups", "_other", "lock")

    def __init__(self) -> None:
        self.lock = Mutex()
        self._entries: dict[tuple[str, str], CatalogEntry] = {}
        self._other: dict[tuple[str, str], str] = {}
        self._groups: dict[frozenset[str], None] = {}
        self._checkers: dict[str, Checker] = {}

    def keep(self, origin: str, entry: CatalogEntry) -> bool:
        """Remember *entry*; whether it brought names that were not known before.

        Its caller holds the lock.
        """
        _put(self._entries, (origin, entry.service), entry, _ENTRIES_MAX)
        names = frozenset(sorted(entry.names - {entry.service})[: _NAMES_MAX - 1])
        for name in names:
            _put(self._other, (origin, name), entry.service, _ENTRIES_MAX)
        group = names | {entry.service}
        if len(group) < 2 or group in self._groups or len(self._groups) >= _GROUPS_MAX:
            return False
        self._groups[group] = None
        return True

    def recall(self, origin: str, service: str, now: float) -> CatalogEntry | None:
        """What is known of *service* and not older than an hour.

        A service's own entry goes before that of one that only claims its name.
        """
        entry = self._entries.get((origin, service))
        if entry is None and (origin, service) in self._other:
            entry = self._entries.get((origin, self._other[origin, service]))
        return entry if entry is not None and entry.at <= now < entry.at + ENTRY_S else None

    def every(self, request: ServiceRequest, now: float) -> list[CatalogEntry]:
        """What is known of each service that a request may be, its own first."""
        if not self._entries:  # most payers never read a catalog
            return []
        names = dict.fromkeys((request.service, *sorted(request.keys)))
        found = (self.recall(request.origin, name, now) for name in names)
        return [entry for entry in found if entry is not None]

    @property
    def groups(self) -> tuple[frozenset[str], ...]:
        """Services that a catalog called the same."""
        return tuple(self._groups)

    def known(self, schema: str) -> Checker | None:
        """The checker of a schema that was read before."""
        return self._checkers.get(schema)

    def learn(self, schema: str, checker: Checker) -> Checker:
        """Remember what was made of a schema."""
        with self.lock:
            _put(self._checkers, schema, checker, _CHECKERS_MAX)
        return checker


def _put(entries: dict[Any, Any], key: object, value: object, most: int) -> None:
    """Put last, and let go of what was put first."""
    entries.pop(key, None)
    while len(entries) >= most:
        entries.pop(next(iter(entries)), None)
    entries[key] = value
