"""Which service a URL is, and which origin it is on.  The caller's URL decides, nothing else."""

from __future__ import annotations

import ipaddress
import re
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, unquote, urlsplit

import idna

from x402_mask._spelling import folded, readings

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

ALIASES: Final = {"aliyun-imageseg-refine-mask": "mask-refinement"}
"""Legacy ids of marketplace services."""

_TOOL: Final = re.compile(r"/api/tools/([A-Za-z0-9][A-Za-z0-9._-]{0,127})/?")
_READ_TOOL: Final = re.compile(r"/api/tools/([a-z0-9][a-z0-9._-]{0,127})")
_MCP: Final = re.compile(r"(mcp:[A-Za-z0-9][A-Za-z0-9._-]{0,127})(/.*)?", re.DOTALL)
_MANY_SLASHES: Final = re.compile("/{2,}")
_HOST: Final = re.compile(r"[^\s*,;%/\\@]+")
_BLANK: Final = re.compile(r"[\s\0-\x1f]")
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}

NO_OTHERS: Final[tuple[str, ...]] = ()
"""What a call also counts for where its URL is spelled plainly."""


def origin_of(url: str) -> str:
    """``scheme://host[:port]`` in lower case, without a default port; or ``mcp:<name>``.

    Raises:
        ValueError: not an absolute http(s) URL, nor the place of an MCP server on stdio.
    """
    local = _MCP.fullmatch(url)
    if local:
        return local[1]
    parts = urlsplit(url)
    if parts.scheme not in _DEFAULT_PORTS or not parts.hostname:
        raise ValueError(f"not an http(s) URL: {url!r}")
    host = _ascii(parts.hostname)
    port = "" if parts.port in (None, _DEFAULT_PORTS[parts.scheme]) else f":{parts.port}"
    return f"{parts.scheme}://{host}{port}"


def path_of(url: str) -> str:
    """The path of an http(s) URL, or of a call to an MCP server on stdio."""
    local = _MCP.fullmatch(url)
    return (local[2] or "") if local else urlsplit(url).path


def tool_url(place: str, tool: str) -> str:
    """Where a call of the MCP tool *tool* is made, as far as money is concerned.

    Tool ``mask_refinement`` is service ``mask-refinement``.  What cannot be the id of a service is
    a call to *place* itself: an origin, or the URL of the MCP server.
    """
    path = tool_path(tool)
    return origin_of(place) + path if _TOOL.fullmatch(path) else place


def tool_path(tool: str) -> str:
    """The path of the service that an MCP tool is, whether that can be the id of one or not."""
    return f"/api/tools/{quote(tool.replace('_', '-'))}"


def _ascii(host: str) -> str:
    """The host as it is looked up: as the HTTP library has it (IDNA 2008)."""
    if ":" in host:
        try:
            return f"[{ipaddress.ip_address(host).compressed}]"
        except ValueError:
            return f"[{host}]"
    if host.isascii():
        return host
    try:
        return idna.encode(host.lower()).decode("ascii")
    except idna.IDNAError as exc:
        raise ValueError(f"no host can be named {host!r}: {exc}") from None


def tool_of(url: str) -> str | None:
    """The marketplace service that a URL or path calls, by its canonical id."""
    found = _TOOL.fullmatch(unquote(path_of(url)))
    return None if found is None else ALIASES.get(found[1], found[1])


def parse_origins(origins: Iterable[str]) -> frozenset[str]:
    """The origins that may be paid.

    Raises:
        TypeError: a single string, or something that is not text.
        ValueError: empty, not an origin, or neither https nor loopback.
    """
    if isinstance(origins, str):
        raise TypeError('origins is a list: origins=["https://host"]')
    found = frozenset(_parse_origin(origin) for origin in origins)
    if not found:
        raise ValueError("origins is empty: name the sellers that may be paid")
    return found


def _parse_origin(origin: str) -> str:
    if not isinstance(origin, str):
        raise TypeError(f"an origin is a str, not {type(origin).__name__}")
    if origin.startswith("mcp:"):
        if origin != origin_of(origin):
            raise ValueError(f"the origin of an MCP server on stdio is mcp:<name>: {origin!r}")
        return origin
    origin = origin.strip()
    if _BLANK.search(origin):  # some of them are left out where a URL is parsed
        raise ValueError(f"an origin has no blanks in it: {origin!r}")
    parts = urlsplit(origin)
    if parts.path not in ("", "/") or parts.query or parts.fragment or parts.username:
        raise ValueError(f"an origin is scheme://host[:port], nothing more: {origin!r}")
    clean = origin_of(origin)
    if not _HOST.fullmatch(parts.hostname or ""):
        raise ValueError(f"an origin names one host: {origin!r}")
    if parts.scheme != "https" and not is_loopback(parts.hostname or ""):
        raise ValueError(f"only loopback origins may be plain http: {origin!r}")
    return clean


def is_loopback(host: str) -> bool:
    """Whether *host* is this machine by its very name."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def service_id(text: str) -> str | None:
    """The id in what a person may write for a service, an id or a path; ``None`` if it is none."""
    bare = text.strip()
    tool = _TOOL.fullmatch(bare) or _TOOL.fullmatch(f"/api/tools/{bare}")
    return tool[1] if tool and "/" not in tool[1] else None


@lru_cache(maxsize=1024)
def service_key(service: str) -> str:
    """What the caps of *service* are kept under: one key for every spelling of its name."""
    bare = service.strip()
    ids = () if "://" in bare else readings(f"/api/tools/{bare}")
    tools = [tool for path in ids if (tool := _tool_read(path)) is not None]
    return tools[-1] if tools else bare.casefold()


def _tool_read(reading: str) -> str | None:
    found = _READ_TOOL.fullmatch(reading)
    return None if found is None else ALIASES.get(found[1], found[1])


class Services:
    """Names the service of a URL: the marketplace's path, the owner's patterns, or the origin."""

    __slots__ = ("_patterns", "_read_patterns", "also", "caps_compared", "name")

    def __init__(self, patterns: Mapping[str, str] | None = None) -> None:
        self._patterns = tuple(_pattern(n, p) for n, p in (patterns or {}).items())
        self.caps_compared = False
        """Whether the names in the caps were compared with what was called."""
        self._read_patterns = tuple(
            (
                name,
                origin,
                {_MANY_SLASHES.sub("/", fold(pattern)) for fold in (str.casefold, folded)},
            )
            for name, origin, pattern in self._patterns
        )
        self.name = lru_cache(maxsize=128)(self._name)  # both are asked several times in a call
        self.also = lru_cache(maxsize=128)(self._also)

    def _name(self, url: str) -> str:
        """The canonical service of *url*."""
        tool = tool_of(url)
        if tool is not None:
            return tool
        path = unquote(path_of(url)) or "/"
        origin = origin_of(url)
        for name, its_origin, pattern in self._patterns:
            if origin == its_origin and fnmatchcase(path, pattern):
                return name
        return origin

    def _also(self, url: str, tool: str | None = None) -> tuple[str, ...]:
        """The keys of services, besides its own, whose caps a call to *url* must fit as well.

        They are those that a usual server may take its path for; *tool* is the name of the MCP
        tool that is called.  They make nothing allowed.
        """
        own, origin, path = self.name(url), origin_of(url), path_of(url)
        paths = [path] if tool is None else [path, tool_path(tool)]
        keys = {self._read(origin, reading) for one in paths for reading in readings(one)}
        return tuple(sorted((keys | {service_key(own)}) - {own})) or NO_OTHERS

    def _read(self, origin: str, reading: str) -> str:
        """The key of the service that a server names which reads the path so."""
        tool = _tool_read(reading)
        if tool is not None:
            return tool
        for name, its_origin, patterns in self._read_patterns:
            if origin == its_origin and any(
                fnmatchcase(reading or "/", pattern) or fnmatchcase(f"{reading}/", pattern)
                for pattern in patterns
            ):
                return service_key(name)
        return service_key(origin)

    def canonical(self, service: str) -> str:
        """The canonical name for what a person may write: an alias, a path, a tool, an origin."""
        service = service.strip()
        if service == "*" or any(service == name for name, _, _ in self._patterns):
            return service
        if "://" in service or service.startswith("mcp:"):
            return origin_of(service) if path_of(service) in ("", "/") else self.name(service)
        tool = _TOOL.fullmatch(service)
        bare = tool[1] if tool else service
        return ALIASES.get(bare, bare)


def _pattern(name: str, pattern: str) -> tuple[str, str, str]:
    if not name or name == "*":
        raise ValueError(f"not a service name: {name!r}")
    if not _MCP.fullmatch(pattern) and not {"?", "#"}.isdisjoint(pattern):
        raise ValueError(
            f"the pattern of the service {name!r} is an origin and a path, and only the path of a"
            " call is compared: leave out ? and #, and write * where anything may stand"
        )
    path = path_of(pattern) or "/"
    return ALIASES.get(name, name), origin_of(pattern), unquote(path)
