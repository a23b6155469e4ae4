"""Whom a service of an origin may pay to: what a ledger saw, and what its owner trusts.

Kept by origin and service, whatever the spelling of the service.  The first payee of a service is
trusted, later ones are only seen, and ``payees="pin"`` refuses them until the owner accepts one;
also a first one that is pinned at some other origin and not at every one.
Pins of an older program have no origin: they hold at every one, until a payee is accepted there.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Final

from x402_mask._ledger.damage import Misuse
from x402_mask._services import service_key
from x402_mask.errors import OfferRefused

if TYPE_CHECKING:
    from collections.abc import Iterable

    from x402_mask._ledger.records import Db, Reservation

EVERYWHERE: Final = ""
"""The origin of pins that an older program made."""

_REFUSED_MAX: Final = 16
"""Most payees that are remembered of one service because they were refused."""


def known(db: Db, origin: str, keys: Iterable[str]) -> dict[str, bool]:
    """The payees of an origin's services, by their keys, and whether each is trusted."""
    names = sorted(keys)
    sql = _known_of(len(names))
    found: tuple[dict[str, bool], dict[str, bool]] = ({}, {})
    for where, payee, trusted in db.all(sql, origin, *names):
        pins = found[where == origin]
        pins[payee] = pins.get(payee, False) or bool(trusted)
    old, own = found
    return own if any(own.values()) else {**own, **old}


@lru_cache(maxsize=64)
def _known_of(keys: int) -> str:
    return (
        "SELECT origin, payee, trusted FROM payees"  # noqa: S608
        f" WHERE origin IN (?, '{EVERYWHERE}') AND service IN ({', '.join('?' * keys)})"
    )


def check(db: Db, want: Reservation) -> str:
    """:func:`standing`; a new payee is written down, trusted if it is the first."""
    found = standing(db, want)
    if found != "known" and want.pay_to is not None:
        payee, key = want.pay_to.lower(), service_key(want.service)
        _put(db, want.origin, key, payee, want.at, trusted=found == "first")
    return found


def standing(db: Db, want: Reservation) -> str:
    """What the payee is to this service: the ``first``, an ``other`` one, or ``known``.

    Raises:
        OfferRefused: payees are pinned, and this one is not trusted.
    """
    if want.pay_to is None:
        return "known"
    pins, payee = known(db, want.origin, want.keys), want.pay_to.lower()
    if want.pin_payee and not pins.get(payee, not pins and not _is_anothers(db, want, payee)):
        refusal = OfferRefused(
            f"{want.service} now names the payee {want.pay_to}; if that is right:"
            f" payer.accept_payee({want.service!r}, {want.pay_to!r}, {want.origin!r})",
            reason="payee",
        )
        refusal.pay_to = want.pay_to
        raise refusal
    if payee in pins:
        return "known"
    return "other" if pins else "first"


def _is_anothers(db: Db, want: Reservation, payee: str) -> bool:
    """Whether the first payee of this origin is one that other origins do not agree about.

    Where one seller has several origins all name its payee.  Where they do not, the payee of one is
    no surprise at itself only: another origin that comes to name it has changed hands, perhaps.
    """
    names = sorted(want.keys)
    sql = (
        "SELECT origin, payee FROM payees WHERE trusted=1"  # noqa: S608
        f" AND service IN ({', '.join('?' * len(names))})"
    )
    pinned: dict[str, set[str]] = {}
    for origin, known_payee in db.all(sql, *names):
        pinned.setdefault(origin, set()).add(known_payee)
    named = [payee in payees for payees in pinned.values()]
    return any(named) and not all(named)


def remember_refused(db: Db, origin: str, service: str, payee: str, now_us: int) -> bool:
    """Write down a payee that was refused, so that the owner may accept it; whether it is new."""
    key = service_key(service)
    seen = db.all("SELECT payee FROM payees WHERE origin=? AND service=?", origin, key)
    if (payee,) in seen or len(seen) >= _REFUSED_MAX:
        return False
    _put(db, origin, key, payee, now_us, trusted=False)
    return True


def accept(db: Db, origin: str | None, service: str, payee: str, now_us: int) -> str:
    """Trust a payee besides those that are trusted at its origin; returns that origin.

    Raises:
        ValueError: no origin is named, and not one alone has a refused change of this service.
    """
    key = service_key(service)
    place = _changed(db, key, service) if origin is None else origin
    _put(db, place, key, payee, now_us, trusted=True)
    return place


def every(db: Db) -> list[tuple[str, str, str, bool]]:
    """Every payee seen: origin, service, address, trusted; an older program's have no origin."""
    sql = "SELECT origin, service, payee, trusted FROM payees ORDER BY service, origin, at, payee"
    return [(o, s, p, bool(t)) for o, s, p, t in db.all(sql)]


class NoOrigin(Misuse, ValueError):  # a ValueError to whoever asked
    """It does not go without saying which origin is meant."""


def _changed(db: Db, key: str, service: str) -> str:
    sql = "SELECT DISTINCT origin FROM payees WHERE service=? AND trusted=0 AND origin<>?"
    found = sorted(origin for (origin,) in db.all(sql, key, EVERYWHERE))
    if len(found) != 1:
        several = f"several origins have one: {', '.join(found)}" if found else "no origin has one"
        raise NoOrigin(f"whose change of payee of {service}? name the origin ({several})")
    return str(found[0])


def _put(db: Db, origin: str, key: str, payee: str, now_us: int, *, trusted: bool) -> None:
    db.run(
        "INSERT INTO payees (origin, service, payee, trusted, at) VALUES (?, ?, ?, ?, ?)"
        " ON CONFLICT (origin, service, payee) DO UPDATE SET trusted=?",
        *(origin, key, payee, int(trusted), now_us, int(trusted)),
    )
