"""The owner's words to Python values: caps, lengths of time, endpoints, keys of the file."""

from __future__ import annotations

import difflib
import re
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, get_args

from x402_mask._models import Asset, Cap, Route
from x402_mask._money import parse_usd
from x402_mask._policy.offers import payee_fault
from x402_mask._services import Services, parse_origins
from x402_mask._system.owner_text import (
    Unshown,
    can_be_sent,
    secret_like,
    told,
    told_name,
)
from x402_mask._wire.assets import caip2

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping


_SPAN: Final = re.compile(r"([1-9][0-9]{0,8}) ?([a-z]+)")
_UNITS: Final = {"s": 1, "min": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_SPAN_MAX: Final = timedelta(days=3660)
_RPC_ITEM: Final = re.compile(r",(?=\s*[A-Za-z0-9:-]+\s*=)")
_RPC_NETWORK: Final = re.compile(r"eip155:[1-9][0-9]{0,18}")


def _kind(exc: Exception) -> str:
    """What is wrong, without what was written: our messages put that behind a colon."""
    return str(exc).partition(": ")[0]


# --- the languages of the variables ---------------------------------------------------------------


def parse_caps(text: str) -> list[Cap]:
    """Caps from ``"0.25/call,5/day,2/day@mask-refinement,1/36h"``.

    Raises:
        ValueError: not that language, or no cap at all.
    """
    found = _parse_caps([part for part in text.split(",") if part.strip()])
    if not found:
        raise ValueError('names no cap; write such as "0.25/call,5/day"')
    return found


def _parse_caps(texts: list[str]) -> list[Cap]:
    found = []
    for number, text in enumerate(texts, 1):
        try:
            found.append(parse_cap(text))
        except ValueError as exc:
            which = f"cap {number}: " if len(texts) > 1 else ""
            raise ValueError(f"{which}{exc}") from None
    return found


def parse_cap(text: str) -> Cap:
    """One cap: ``USD/PER`` or ``USD/PER@SERVICE``.

    ``PER`` is call, hour, day, month, total, or a rolling span such as 30min, 36h, 7d, 2w.

    Raises:
        ValueError: not that language; what was written is not quoted.
    """
    what, at, service = text.strip().partition("@")
    limit, slash, per = what.partition("/")
    if not slash or (at and not service.strip()) or secret_like(service):
        raise ValueError("it is not USD/PER or USD/PER@SERVICE, such as 0.25/call")
    amount = limit.strip().removeprefix("$")
    try:
        parse_usd(amount)
    except ValueError as exc:
        raise ValueError(f"{_kind(exc)}: {told(amount, 'what stands before /')}") from None
    return Cap(amount, per=_per(per.strip()), service=service.strip() or "*")


def _per(text: str) -> str | timedelta:
    if text in ("call", "hour", "day", "month", "total"):
        return text
    if re.fullmatch(r"[0-9]+ ?m", text):
        raise ValueError(f"{told(text)} may mean minutes or months; write such as 30min or 30d")
    try:
        return parse_span(text)
    except ValueError:
        raise ValueError(
            f"{told(text)} is not call, hour, day, month, total, or a span such as 30min, 36h, 7d"
        ) from None


def parse_span(text: str) -> timedelta:
    """A length of time: a number and s, min (or m), h, d or w.

    Raises:
        ValueError: not that, or longer than ten years.
    """
    found = _SPAN.fullmatch(text.strip())
    unit = _UNITS.get("min" if found[2] == "m" else found[2]) if found else None
    if found is None or unit is None:
        raise ValueError(f"{told(text)} is not a length of time such as 90s, 30min, 36h, 7d")
    seconds = int(found[1]) * unit
    if seconds > _SPAN_MAX.total_seconds():
        raise ValueError(f"{told(text)} is longer than ten years")
    return timedelta(seconds=seconds)


def origins_text(text: str) -> list[str]:
    return _origins([part.strip() for part in text.split(",") if part.strip()])


def parse_rpc(text: str) -> dict[str, list[str]]:
    """Endpoints from ``"eip155:8453=https://one,eip155:8453=https://two"``.

    Endpoints of the same network must agree.

    Raises:
        ValueError: not that language; URLs are not quoted, they may carry a key.
    """
    found: dict[str, list[str]] = Unshown()
    for number, item in enumerate(_RPC_ITEM.split(text), 1):
        name, equals, url = (part.strip() for part in item.partition("="))
        if not equals:
            raise ValueError(f"endpoint {number} is not NETWORK=URL, such as eip155:8453=https://h")
        network = _rpc_network(name)
        found.setdefault(network, []).append(_rpc_url(name, url))
    return found


def _rpc_network(name: str) -> str:
    if _RPC_NETWORK.fullmatch(caip2(name)) is None:
        raise ValueError(f"{told(name)} is not an EVM network in CAIP-2 form, such as eip155:8453")
    return caip2(name)


def _rpc_url(network: str, url: object) -> str:
    if not isinstance(url, str) or not url.startswith(("http://", "https://")):
        raise ValueError(f"the endpoint of {network} is not an http(s) URL")
    from x402_mask._chain.rpc import endpoints_of  # noqa: PLC0415  # brings httpx

    endpoints_of(_rpc_network(network), url)
    return url


def check_keys(table: Mapping[str, object], known: Collection[str]) -> None:
    for name in table:
        if name not in known:
            called = told_name(name, "")
            which = repr(called) if called else "(not shown: it may be a secret)"
            raise ValueError(f"unknown key {which}{_meant(name, known)}")


def _meant(name: str, known: Collection[str]) -> str:
    close = difflib.get_close_matches(name, known, n=3)
    return f"; did you mean {' or '.join(close)}?" if close else f" (known: {', '.join(known)})"


# --- what each key of the file holds --------------------------------------------------------------


def as_text(value: object, name: str) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"{name} is text, not {'empty' if value == '' else type(value).__name__}")
    return value


def _texts(value: object) -> list[str]:
    if not isinstance(value, list):
        raise TypeError(f"is a list of text, not {type(value).__name__}")
    return [as_text(item, "each item") for item in value]


def _origins(value: object) -> list[str]:
    found = _texts(value)
    try:
        parse_origins(found)
    except ValueError as exc:
        raise ValueError(_kind(exc) if found else str(exc)) from None
    return found


def _some_origins(value: object) -> list[str]:
    return _origins(value) if _texts(value) else []


def _networks(value: object) -> list[str]:
    return [_network(name) for name in _texts(value)]


def _network(name: str) -> str:
    if caip2(name) == name:  # no name of version 1
        return _rpc_network(name)
    return name


def _prefer(value: object) -> list[str]:
    found = _texts(value)
    if not set(found) <= set(get_args(Route)):
        raise ValueError(f"orders some of {', '.join(get_args(Route))}")
    return found


def _caps(value: object) -> list[Cap]:
    if isinstance(value, str):
        return parse_caps(value)
    found = _parse_caps(_texts(value))
    if not found:
        raise ValueError('is empty; write such as ["0.25/call", "5/day"]')
    return found


def _assets(value: object) -> list[Asset]:
    if not isinstance(value, list):
        raise TypeError("is a list of tables ([[assets]])")
    return [_asset(item) for item in value]


def _asset(table: object) -> Asset:
    names = ("network", "address", "decimals", "name", "version")
    if not isinstance(table, dict):
        raise TypeError("is a list of tables ([[assets]])")
    check_keys(table, names)
    for name in names:
        if name not in table:
            raise ValueError(f"an asset has no {name}")
    for name in ("network", "address", "name", "version"):
        as_text(table[name], name)
    try:
        return Asset(**{**table, "network": caip2(table["network"])})
    except ValueError as exc:
        raise ValueError(_kind(exc)) from None


def _payees(value: object) -> str | list[str]:
    if isinstance(value, str):
        if value != "pin":
            raise ValueError('is "pin" or a list of addresses')
        return value
    found = _texts(value)
    for number, payee in enumerate(found, 1):
        if payee_fault(payee, payer=None, asset="") is not None:
            raise ValueError(f"payee {number} is not an address that can be paid")
    return found


def _services(value: object) -> dict[str, str]:
    if not isinstance(value, dict):
        raise TypeError("is a table of name = URL pattern")
    found = {
        name: as_text(pattern, told_name(name, "a pattern")) for name, pattern in value.items()
    }
    try:
        Services(found)
    except ValueError as exc:
        raise ValueError(_kind(exc)) from None
    return found


def _headers(value: object) -> dict[str, str]:
    if not isinstance(value, dict):
        raise TypeError("is a table of header = value")
    found = {name: as_text(text, told_name(name, "a header")) for name, text in value.items()}
    for name, text in found.items():
        if not can_be_sent(name, text):
            raise ValueError(f"{told_name(name, 'a header')} cannot be sent in a header")
    return Unshown(found)


def _word(value: object) -> str:
    return as_text(value, "it")


def _rpc(value: object) -> dict[str, list[str]]:
    if not isinstance(value, dict):
        raise TypeError("is a table of network = URL, or a list of URLs that must agree")
    found: dict[str, list[str]] = Unshown()
    for name, urls in value.items():
        several = urls if isinstance(urls, list) else [urls]
        if not several:
            raise ValueError(f"{told_name(name, 'a network')} has no endpoint")
        network = _rpc_network(name)
        found[network] = [_rpc_url(name, url) for url in several]
    return found


def _span(value: object) -> timedelta:
    if isinstance(value, str):
        return parse_span(value)
    if type(value) is not int or not 0 < value <= _SPAN_MAX.total_seconds():
        raise ValueError('is seconds, or a length of time such as "5m"')
    return timedelta(seconds=value)


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise TypeError("is true or false")
    return value


def _one_of(*allowed: str) -> Callable[[object], str]:
    def reader(value: object) -> str:
        if value not in allowed:
            raise ValueError(f"is one of {', '.join(allowed)}")
        return str(value)

    return reader


def _breaker_after(value: object) -> int | None:
    if value is False:
        return None
    if type(value) is not int or value < 1:
        raise ValueError("is a number of bad ends above 0, or false for never")
    return value


def _max_gas_wei(value: object) -> int | None:
    if value is False:
        return None
    if type(value) is not int or value < 1:
        raise ValueError("is wei above 0, or false for no on-chain transfers")
    return value


READERS: Final[Mapping[str, Callable[[object], Any]]] = {
    "caps": _caps,
    "origins": _origins,
    "networks": _networks,
    "assets": _assets,
    "payees": _payees,
    "prefer": _prefer,
    "services": _services,
    "max_validity": _span,
    "rpc": _rpc,
    "on_refusal": _one_of("raise", "return"),
    "preempt": _flag,
    "resign": _one_of("expired", "never"),
    "breaker_after": _breaker_after,
    "breaker_for": _span,
    "token_origins": _some_origins,
    "balance_origins": _some_origins,
    "poll_unpaid": _span,
    "poll_paid": _span,
    "marketplace_headers": _headers,
    "provider_id": _word,
    "max_gas_wei": _max_gas_wei,
    "validate_input": _flag,
    "allow_above_catalog": _flag,
}
"""Every key of the file besides ``wallet`` and ``ledger``: keywords of ``Payer``."""
