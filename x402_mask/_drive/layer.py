"""One place where calls are paid, and how straight it is to a seller on this machine."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Any, Final

from x402_mask._drive.context import origin_at
from x402_mask._drive.refusals import returns

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from x402_mask._drive.family import URL, Family, Response
    from x402_mask._drive.refusals import OnRefusal
    from x402_mask._flow.buyer import Buyer

_INNER_MAX: Final = 4
"""How deep transports that wrap transports are looked into."""


class Layer:
    """What the calls through one transport, or by one auth, share.

    ``returns``: whether refusals are handed back, ``None`` to do as the payer says.  *way* tells
    the transport that carries a call to a URL, as far as it is known.
    """

    __slots__ = ("buyer", "direct", "family", "returns", "way")

    def __init__(
        self,
        family: Family,
        buyer: Buyer,
        on_refusal: OnRefusal | None = None,
        way: Callable[[URL], Any] | None = None,
    ) -> None:
        self.family, self.buyer = family, buyer
        self.returns = returns(on_refusal)
        self.way = way
        self.direct: dict[str, bool] = {}
        """Of plain http origins: whether the last answer came from themselves."""

    def may_begin(self, url: URL) -> bool:
        """Whether a proof may go with the first request: to plain http only where it is known."""
        if url.scheme != "http":
            return True
        known = self.direct.get(origin_at(url))
        if known is None:
            return self.way is not None and _dials(self.family, self.way(url), url)
        return known

    def note(self, url: URL, response: Response) -> bool:
        """Whether *response* came from *url*'s own origin, as far as that matters; remembered."""
        if url.scheme != "http":
            return True
        asked, stream = origin_at(url), response.extensions.get("network_stream")
        if stream is None:  # in this process, where nobody is in between; or a cache's answer
            proxied = self.way is not None and is_proxy(self.way(url))
            return self.direct.setdefault(asked, not proxied)
        found = _is_own_peer(url, stream)
        if found is None:
            return self.direct.get(asked, False)
        self.direct[asked] = found
        return found


def _is_own_peer(url: URL, stream: Any) -> bool | None:
    """Whether the other end of *stream* is the loopback address and port that *url* names.

    ``None``: the connection is gone already, and cannot tell.
    """
    try:
        peer = stream.get_extra_info("server_addr")
    except OSError:
        return None
    if not isinstance(peer, tuple) or len(peer) < 2 or peer[1] != (url.port or 80):
        return False  # a Unix socket, say, and who knows what is behind it
    try:
        there = ipaddress.ip_address(str(peer[0]).partition("%")[0])
        mapped = getattr(there, "ipv4_mapped", None)
        there = mapped or there
        return there.is_loopback and (
            url.host == "localhost" or there == ipaddress.ip_address(url.host)
        )
    except ValueError:
        return False


def is_proxy(transport: Any, depth: int = 0) -> bool:
    """Whether *transport* is a library's own made to go through a proxy, or has such a one in it.

    A retry, a cache or a router around a proxy, which may make its answers anew, is as much of one;
    so is a client that it sends by.
    """
    if getattr(_pool(transport), "_proxy_url", None) is not None:
        return True
    return depth < _INNER_MAX and any(is_proxy(one, depth + 1) for one in _inside(transport))


def _inside(thing: Any) -> Iterator[Any]:
    """What *thing* may send by: transports and clients, its own or in a collection of its."""
    slots = (name for kind in type(thing).__mro__ for name in _names(kind))
    held = [
        *getattr(thing, "__dict__", {}).values(),
        *(getattr(thing, name, None) for name in slots),
    ]
    for value in held:
        several = value.values() if isinstance(value, dict) else value
        listed = isinstance(value, (dict, list, tuple, set, frozenset))
        yield from (one for one in (several if listed else (value,)) if _sends(one))


def _names(kind: type) -> tuple[str, ...]:
    slots = kind.__dict__.get("__slots__", ())
    return (slots,) if isinstance(slots, str) else tuple(slots)


def _sends(thing: Any) -> bool:
    ways = ("handle_request", "handle_async_request", "_transport_for_url")
    return any(hasattr(type(thing), way) for way in ways)


def _dials(family: Family, transport: Any, url: URL) -> bool:
    """Whether *transport* is sure to connect to the very loopback address that *url* names."""
    inner = getattr(transport, "inner", transport)
    own = isinstance(inner, (family.HTTPTransport, family.AsyncHTTPTransport))
    near = own and not is_proxy(inner) and getattr(_pool(inner), "_uds", "?") is None
    return near and url.host != "localhost"  # which is what a file of hosts makes of it


def _pool(transport: Any) -> Any:
    return getattr(getattr(transport, "inner", transport), "_pool", None)


def straight(client: Any, buyer: Buyer, url: URL) -> Any:
    """The transport for a plain http origin that may be paid: the first that fits and is no proxy.

    ``None`` for any other URL, which is the client's own business.
    """
    if url.scheme != "http" or origin_at(url) not in buyer.settings.origins:
        return None
    for pattern, transport in client._mounts.items():  # noqa: SLF001  # no public way round a proxy
        if pattern.matches(url) and not is_proxy(transport):
            return client._transport if transport is None else transport  # noqa: SLF001  # as above
    return client._transport  # noqa: SLF001  # as above
