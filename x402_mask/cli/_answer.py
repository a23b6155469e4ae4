"""What a seller answered: to stdout, to a file or into the JSON document, and with which exit code.

A paid answer is worth money.  It is never cut without being kept: what a terminal cannot show goes
to a file, and a file that cannot be written is found out before anything is paid.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final

from x402_mask._text.printable import clean
from x402_mask._text.values import plain
from x402_mask._wire.unpacking import Unpacker, Unreadable
from x402_mask.cli._faults import DONE, USAGE, Failure, of_lost_answer
from x402_mask.cli._parse import parse
from x402_mask.cli._show import count, document, put, say

if TYPE_CHECKING:
    from collections.abc import Iterator

    import httpx

    from x402_mask.cli._paid import Paid
    from x402_mask.cli._session import Session

_SHOWN_MAX: Final = 20_000
"""Characters of an answer that a terminal gets."""
_DOCUMENT_BYTES_MAX: Final = 32 << 20
"""Bytes of an answer that are held in memory, for ``--json`` or a terminal."""
_BYTES_MAX: Final = 1 << 30
"""Bytes of an answer that go to a file or a pipe."""
_ERROR_BYTES_MAX: Final = 64 << 10
_QUOTE_BYTES_MAX: Final = 1 << 20
_BOUNDED_S: Final = 60.0
"""Seconds for what is only looked at."""
_FREE: Final = 32 << 20
_RATIO_MAX: Final = 1032
"""The most that DEFLATE makes of a byte; a coding within a coding makes more, and means harm."""
_SUFFIXES: Final = {
    "application/json": ".json",
    "application/pdf": ".pdf",
    "image/jpeg": ".jpg",
    "image/png": ".png",
    "image/webp": ".webp",
    "text/plain": ".txt",
}


class Target:
    """Where ``--output`` goes: a draft beside it, which takes its name when it is whole.

    What is no ordinary file, such as ``/dev/null`` or a pipe, is written to directly.
    """

    def __init__(self, path: Path, draft: Path | None, file: BinaryIO) -> None:
        self.path = path
        self.draft = draft
        self.file = file

    @classmethod
    @contextmanager
    def open(cls, output: str | None) -> Iterator[Target | None]:
        """The target, proven writable; the draft is removed where the command fails."""
        if output is None:
            yield None
            return
        try:
            target = cls._opened(Path(output).expanduser())
        except OSError as exc:
            message = f"cannot write {output}: {exc.strerror}; nothing was paid"
            raise Failure(message, USAGE) from exc
        try:
            with target.file:
                yield target
        finally:
            if target.draft is not None:
                target.draft.unlink(missing_ok=True)

    @classmethod
    def _opened(cls, path: Path) -> Target:
        real = path.resolve()
        if real.exists() and not real.is_file():
            return cls(path, None, real.open("wb"))
        descriptor, name = tempfile.mkstemp(prefix=f".{real.name}.", dir=real.parent)
        Path(name).chmod(_mode(real))
        return cls(path, Path(name), os.fdopen(descriptor, "wb"))

    def write(self, chunks: Iterator[bytes]) -> int:
        """Write everything, then take the target's name; returns the number of bytes."""
        size = sum(self.file.write(chunk) for chunk in chunks)
        self.file.close()
        if self.draft is not None:
            self.draft.replace(self.path.resolve())
        return size


def _mode(path: Path) -> int:
    """The permissions of a file that is replaced, or of any new one."""
    if path.exists():
        return path.stat().st_mode & 0o777
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


class Answer:
    """A response that was handed back, and what was paid for it."""

    def __init__(
        self, session: Session, response: httpx.Response, paid: Paid, service: str, until: float
    ) -> None:
        self.session = session
        self.response = response
        self.paid = paid
        self.service = service
        self.until = until

    def deliver(self, target: Target | None) -> int:
        """Hand the answer to the user.

        Raises:
            Failure: the seller did not deliver, or what it delivered cannot be kept.
        """
        import httpx

        if not self.response.is_success:
            raise self._refused()
        try:
            self._write(target)
        except httpx.HTTPError as exc:
            self.session.money.look(self.paid.payment)
            url = str(self.response.url)
            raise of_lost_answer(exc, url, self.session.money) from exc
        except OSError as exc:
            raise self._lost(f"the answer could not be written: {exc.strerror or exc}") from exc
        except Unreadable as exc:
            raise self._lost(f"the answer cannot be read: {exc}") from exc
        except TooLarge:
            raise self._lost("the answer grows without end as it is decoded") from None
        return DONE

    def _write(self, target: Target | None) -> None:
        if target is not None:
            size = target.write(self._pieces())
            self._report(
                {"output": str(target.path), "bytes": size},
                f"{count(size, 'byte')} in {target.path}",
            )
        elif self.session.as_json:
            self._report(_body(self._whole(), self.response), "")
        elif sys.stdout.isatty():
            self._show(self._whole())
        else:
            for piece in self._pieces():
                sys.stdout.buffer.write(piece)
            sys.stdout.buffer.flush()
            self._report({}, "")

    def _pieces(self) -> Iterator[bytes]:
        return unpacked(self.response, _BYTES_MAX, self.until)

    def _whole(self) -> bytes:
        try:
            return b"".join(unpacked(self.response, _DOCUMENT_BYTES_MAX, self.until))
        except TooLarge:
            raise self._lost("the answer is larger than 32 MiB: use --output FILE") from None

    def _show(self, content: bytes) -> None:
        """The answer in a terminal; what would not survive that, in a file."""
        text = _readable(content)
        if text is not None and len(text) <= _SHOWN_MAX:
            sys.stdout.write(clean(text, _SHOWN_MAX, lines=True).rstrip("\n") + "\n")
            sys.stdout.flush()
            self._report({}, "")
            return
        path = self._keep(content)
        if text is not None:
            sys.stdout.write(clean(text, _SHOWN_MAX // 10, lines=True).rstrip("\n") + "\n")
            sys.stdout.flush()
        self._report({}, f"all {len(content)} bytes are in {path}")

    def _keep(self, content: bytes) -> Path:
        kind = self.response.headers.get("content-type", "").partition(";")[0].strip().lower()
        descriptor, name = tempfile.mkstemp(
            prefix=f"{self.service}-", suffix=_SUFFIXES.get(kind, ".bin"), dir=Path.cwd()
        )
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        return Path(name)

    def _report(self, body: dict[str, Any], where: str) -> None:
        """What was paid: in the document, or in a line on stderr."""
        if self.session.as_json:
            put({**self._head(), **body})
            return
        if where:
            say(where)
        say(self.paid.line)

    def _head(self) -> dict[str, Any]:
        return {
            "status": self.response.status_code,
            "service": self.service,
            "url": str(self.response.url),
            "receipt": plain(self.paid.receipt),
            "payment_state": self.paid.state,
        }

    def _refused(self) -> Failure:
        """The seller answered with something else than success, paid or not."""
        response = bounded(self.response, _ERROR_BYTES_MAX)
        return self._failure(
            f"the seller answered {told(response)}", "seller", _body(response.content, response)
        )

    def _lost(self, what: str) -> Failure:
        return self._failure(what, "output", {})

    def _failure(self, what: str, code: str, more: dict[str, Any]) -> Failure:
        paid = self.paid
        return Failure(
            f"{what}; {paid.line}",
            paid.exit_code,
            code=code,
            at_risk=paid.at_risk,
            payment_id=paid.payment_id,
            more={**self._head(), **more},
        )


def told(response: httpx.Response) -> str:
    """Status and error text of a response, made safe."""
    text = _error_text(response.content)
    line = f"{response.status_code} {clean(response.reason_phrase, 40)}".strip()
    if response.has_redirect_location:
        line += f" to {clean(response.headers['location'])} (redirects are not followed)"
    return f"{line}: {text}" if text else line


def _error_text(content: bytes) -> str:
    try:
        found = parse(content)
    except ValueError:
        return clean(content.decode("utf-8", "replace"), 200)
    if isinstance(found, dict):
        for name in ("message", "error"):
            value = found.get(name)
            inner = value.get("message") if isinstance(value, dict) else value
            if isinstance(inner, str) and inner:
                return clean(inner, 200)
    return "" if found == {} else clean(content.decode("utf-8", "replace"), 200)


def bounded(response: httpx.Response, limit: int = _QUOTE_BYTES_MAX) -> httpx.Response:
    """*response* closed, with at most *limit* bytes of its body; sellers may never stop."""
    import httpx

    content = bytearray()
    try:
        for piece in unpacked(response, limit, time.monotonic() + _BOUNDED_S):
            content += piece
    except (httpx.HTTPError, TooLarge, Unreadable):
        pass  # what came is what there is to show
    finally:
        response.close()
    headers = [
        (name, value)
        for name, value in response.headers.raw  # bytes: a seller may send any
        if name.lower() not in (b"content-encoding", b"content-length", b"transfer-encoding")
    ]
    return httpx.Response(
        response.status_code,
        headers=headers,
        content=bytes(content),
        request=response.request,
        extensions={"reason_phrase": response.reason_phrase.encode()},
    )


def _readable(content: bytes) -> str | None:
    """*content* as text for a terminal, or ``None``."""
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        return None
    if "\0" in text:
        return None
    try:
        return json.dumps(parse(text), indent=2, ensure_ascii=False)
    except ValueError:
        return text


def _body(content: bytes, response: httpx.Response) -> dict[str, Any]:
    """*content* for the JSON document: as JSON, as text, or in base64."""
    found: dict[str, Any] = {
        "content_type": clean(response.headers.get("content-type", ""), 100) or None
    }
    with contextlib.suppress(ValueError):
        parsed = parse(content)
        document(parsed)  # numbers that JSON itself does not have stay text
        return {**found, "body": parsed}
    try:
        return {**found, "body": content.decode("utf-8")}
    except UnicodeDecodeError:
        return {**found, "body_base64": base64.b64encode(content).decode("ascii")}


class TooLarge(Exception):
    """There is more of the answer than is wanted."""


def unpacked(response: httpx.Response, limit: int, until: float | None = None) -> Iterator[bytes]:
    """The plain bytes of *response*, at most *limit* of them, until then (monotonic seconds).

    However large the limit, a short answer does not become a long one: beyond what one coding can
    make of what has come, only so much is given.

    Raises:
        TooLarge: there would be more.
        Unreadable: they cannot be decoded.
        httpx.HTTPError: they broke off, or came too slowly.
    """
    import httpx

    unpacker, wire, made = Unpacker(response.headers.get("content-encoding", ""), limit), 0, 0
    for chunk in response.iter_raw():
        wire += len(chunk)
        for piece in unpacker.take(chunk):
            made += len(piece)
            if made > _FREE + wire * _RATIO_MAX:
                raise TooLarge
            yield piece
        if unpacker.full:
            raise TooLarge
        if until is not None and time.monotonic() > until:
            raise httpx.ReadTimeout("the answer takes too long", request=response.request)
    if not unpacker.ended:
        raise Unreadable("it breaks off")
