"""Undoing the codings of a body, bounded at every step whatever is in it.

``gzip`` and ``deflate`` are always read; ``br`` and ``zstd`` where a package for them is installed,
as then an HTTP client offers them to every seller without being told to (httpx: ``brotli``,
``brotlicffi``, ``zstandard``; httpx2: Python's own ``compression.zstd``, ``backports.zstd``).
"""

from __future__ import annotations

import logging
import zlib
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from x402_mask._wire.x402 import CHALLENGE_BYTES_MAX, shown

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger("x402_mask")

_NESTED_MAX: Final = 4
_MEMBERS_MAX: Final = 64
_GZIP: Final = b"\x1f\x8b"
_WINDOW_LOG: Final = 23
"""Most memory for what was said before, of a ``zstd`` body: 8 MiB, as RFC 9659 wants."""


def decode(data: bytes, encodings: str, limit: int = CHALLENGE_BYTES_MAX) -> bytes | None:
    """Undo the codings of a ``Content-Encoding`` without ever making more than *limit* of them.

    ``None`` where they are not known, there are too many, or what comes of them is longer.
    """
    names = [part.strip().lower() for part in encodings.split(",") if part.strip()]
    named = [name for name in names if name != "identity"]
    if len(named) > _NESTED_MAX:
        log.warning("a body in %d codings is not read", len(named))
        return None
    for name in reversed(named):
        undo = _UNDO.get(name, _unknown)
        try:
            plain = undo(data, limit)
        except ImportError:
            log.warning(
                "a body in the coding %s is not read: ask for gzip or none", shown(name, 20)
            )
            return None
        if plain is None:
            return None
        data = plain
    return data


def _unknown(*_: object) -> bytes | None:
    raise ImportError


def _gzip(data: bytes, limit: int) -> bytes | None:
    """All members of it (RFC 1952, 2.2): some servers write one for each part of a body."""
    plain = b""
    for _ in range(_MEMBERS_MAX):
        member = zlib.decompressobj(16 + zlib.MAX_WBITS)
        try:
            plain += member.decompress(data, limit + 1 - len(plain))
        except zlib.error:
            return None
        if len(plain) > limit or not member.eof:
            return None
        data = member.unused_data
        if not data.startswith(_GZIP):
            return plain
    return None


def _deflate(data: bytes, limit: int) -> bytes | None:
    found = _inflate(data, zlib.MAX_WBITS, limit)
    # some servers send it without zlib's header
    return _inflate(data, -zlib.MAX_WBITS, limit) if found is None else found


def _inflate(data: bytes, wbits: int, limit: int) -> bytes | None:
    inflater = zlib.decompressobj(wbits)
    try:
        plain = inflater.decompress(data, limit + 1)
    except zlib.error:
        return None
    return plain if len(plain) <= limit and inflater.eof else None


def _brotli(data: bytes, limit: int) -> bytes | None:
    module = _first("brotli", "brotlicffi")
    decoder = module.Decompressor()
    try:
        if hasattr(decoder, "can_accept_more_data"):  # since 1.2
            plain = decoder.process(data, output_buffer_limit=limit + 1)
            while len(plain) <= limit and not decoder.can_accept_more_data():
                plain += decoder.process(b"", output_buffer_limit=limit + 1)
        else:  # no bound but what one byte of input may make, which is one block of 16 MiB
            plain = b""
            for at in range(len(data)):
                plain += decoder.process(data[at : at + 1])
                if len(plain) > limit:
                    return None
    except module.error:
        return None
    return plain if len(plain) <= limit and decoder.is_finished() else None


def _zstd(data: bytes, limit: int) -> bytes | None:
    module = _first("compression.zstd", "backports.zstd", "zstandard")
    own = hasattr(module, "DecompressionParameter")
    return _zstd_frames(module, data, limit) if own else _zstandard(module, data, limit)


def _zstd_frames(module: Any, data: bytes, limit: int) -> bytes | None:
    """By Python's own module, or its backport."""
    options, plain = {module.DecompressionParameter.window_log_max: _WINDOW_LOG}, b""
    while data:
        frame = module.ZstdDecompressor(options=options)
        try:
            plain += frame.decompress(data, max_length=limit + 1 - len(plain))
        except module.ZstdError:
            return None
        if len(plain) > limit or not frame.eof:
            return None
        data = frame.unused_data
    return plain


def _zstandard(module: Any, data: bytes, limit: int) -> bytes | None:
    """By the package of that name, whose frame objects have no bound of their own."""
    decoder = module.ZstdDecompressor(max_window_size=1 << _WINDOW_LOG)
    try:
        plain: bytes = decoder.stream_reader(data, read_across_frames=True).read(limit + 1)
        if len(plain) > limit:
            return None
        while data:  # now that their size is known: whether they are whole
            frame = decoder.decompressobj()
            frame.decompress(data)
            if not frame.eof:
                return None
            data = frame.unused_data
    except module.ZstdError:
        return None
    return plain


def _first(*names: str) -> Any:
    """The first module of these that is installed.

    Raises:
        ImportError: none is.
    """
    for name in names[:-1]:
        try:
            return import_module(name)
        except ImportError:
            continue
    return import_module(names[-1])


_UNDO: Final[dict[str, Callable[[bytes, int], bytes | None]]] = {
    "gzip": _gzip,
    "x-gzip": _gzip,
    "deflate": _deflate,
    "br": _brotli,
    "zstd": _zstd,
}
