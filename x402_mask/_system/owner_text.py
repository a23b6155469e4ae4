"""What a person wrote, in a variable, a file or a call: read as it was meant, or refused.

Nothing here quotes a value, which may be a secret in the wrong place; who calls names it.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn, SupportsIndex, TypeVar

if TYPE_CHECKING:
    from collections.abc import Mapping

K = TypeVar("K")
V = TypeVar("V")

_QUOTES: Final = "\"'`\u2018\u2019\u201a\u201c\u201d\u201e\u00ab\u00bb"
_HEADER: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_FIELD: Final = re.compile(r"([\x21-\x7e]([\t\x20-\x7e]*[\x21-\x7e])?)?")
_SHORT: Final = 5
_NAME: Final = re.compile(r"[A-Z][A-Z0-9]*(_[A-Z0-9]+)+|[a-z]+([_-][a-z]+)*")
_KEY: Final = re.compile(
    r"(0[xX])?[0-9a-fA-F]{48,128}|[1-9A-HJ-NP-Za-km-z]{86,88}"
    r"|\[(\s*[0-9]{1,3}\s*,){31,63}\s*[0-9]{1,3}\s*\]|([A-Za-z]{3,8}[\s,]+){11,23}[A-Za-z]{3,8}"
)
"""A private key of an EVM chain or of Solana, whole or in part, or BIP-39 words."""
_FILE: Final = re.compile(r"\.(json|toml|keystore|txt)$")
LIBPQ: Final = re.compile(
    r"\s*(application_name|channel_binding|client_encoding|connect_timeout|dbname|gss[a-z]+|host"
    r"|hostaddr|keepalives[a-z_]*|options|passfile|password|port|require[a-z_]+|service|ssl[a-z_]+"
    r"|target_session_attrs|user)\s*=|.*\bpassword\s*=",
    re.DOTALL | re.IGNORECASE,
)
"""How a DSN of PostgreSQL in keywords begins; where a password is said, nothing is a path."""
_LOGIN: Final = re.compile(r"[^/\\:@]+:[^/\\@]*@[^/\\]")
"""How a DSN goes on whose scheme was lost: a user and a password, which no name of a file has."""
_UNFILLED: Final = re.compile(
    r"\$\{|(^|[/\\])(\$[A-Za-z_][A-Za-z0-9_]*|%[A-Za-z_][A-Za-z0-9_]*%)([/\\]|$)"
)
"""A variable of a shell, which nobody has filled in: a file of settings has no shell."""
_WINDOWS: Final = re.compile(r"[A-Za-z]:[/\\]|\\\\")
_STORE: Final = re.compile(r"\.(db|db3|sqlite|sqlite3|ledger|dat|data|bin)", re.IGNORECASE)
"""How the files of databases end."""
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")
_URL: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/|(file|sqlite3?|postgres(ql)?):", re.IGNORECASE)
"""How a URL begins, also where its second slash was lost; a drive has one letter only."""


def plain(text: str) -> str:
    """*text* without blanks and newlines at its ends.

    Raises:
        ValueError: it is still in quotation marks, as ``docker --env-file`` leaves them.
    """
    found = text.strip()
    if quoted(found):
        raise ValueError("is still in quotation marks: take them off")
    return found


def quoted(text: str) -> bool:
    """Whether *text* begins with a quotation mark, or ends with one that was never begun."""
    if not text:
        return False
    return text[0] in _QUOTES or (text[-1] in _QUOTES and text.count(text[-1]) % 2 == 1)


def told(text: str, otherwise: str = "it") -> str:
    """*text* for a message, where it is too short to be a secret in the wrong place."""
    return repr(text) if len(text) <= _SHORT and text.isascii() and text.isalnum() else otherwise


def told_name(name: str, otherwise: str) -> str:
    """What should be the name of a variable or a key, for a message, if it looks like one."""
    likely = len(name) <= _SHORT or (len(name) <= 48 and _NAME.fullmatch(name))
    return name if likely and name.isidentifier() else otherwise


def told_path(path: str | os.PathLike[str], otherwise: str) -> str:
    """A path for a message where no file is there, if it is called as a file of settings is."""
    text = os.fspath(path)
    return text if _FILE.search(text) and not secret_like(text) else otherwise


def secret_like(text: str) -> bool:
    """Whether *text* can hardly be anything but a private key, or the words of one."""
    return _KEY.fullmatch(text.strip()) is not None


def maybe_secret(text: str, place: Path) -> bool:
    """Whether *text*, relative and without ``./``, may as well be a password as name *place*.

    It is not called as databases are, and neither it nor the directory that it names is there.
    """
    named = not {"/", os.sep}.isdisjoint(text) and os.path.isdir(place.parent)  # noqa: PTH112  # below
    there = named or os.path.isfile(place)  # noqa: PTH113  # is_file() raises for long names
    return not there and _STORE.fullmatch(place.suffix) is None


class Unshown(dict[K, V]):
    """A mapping whose values are, or hold, secrets: it shows its keys, and is not pickled."""

    def __repr__(self) -> str:
        return f"<values of {', '.join(map(str, self))} are not shown>" if self else "{}"

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise TypeError("what holds secrets is not pickled")


def variable(environ: Mapping[str, str], name: str) -> str | None:
    """What the variable *name* says; ``None`` where it is not set, or says nothing.

    Raises:
        ValueError: it is still in quotation marks; its name is said.
    """
    try:
        return plain(environ.get(name, "")) or None
    except ValueError as exc:
        raise ValueError(f"{name}: {exc}") from None


def can_be_sent(name: str, value: str) -> bool:
    """Whether this can be a header of a request."""
    return bool(_HEADER.fullmatch(name) and _FIELD.fullmatch(value))


def fixed(path: str | os.PathLike[str], base: Path | None = None) -> Path:
    """The one place that *path* names from now on, wherever the process goes later.

    ``~`` is the user's directory; what is relative is so to *base*, or else to the directory at
    this moment.

    Raises:
        ValueError: it can name no file: it is empty, a URL, a private key, quoted, has blanks at
            its ends or control characters, names a variable or a drive that is none here, or begins
            with the ``~`` of a user unknown here.
        OSError: it is relative, and the directory of the process is gone.
    """
    text = os.fspath(path)
    if not text:
        raise ValueError("is empty, not a path")
    if _CONTROL.search(text) or text != plain(text):
        raise ValueError("is not a path: it has blanks at its ends, or control characters")
    if secret_like(text):
        raise ValueError("is a private key or its words, not a path")
    if _URL.match(text):
        raise ValueError("is a URL, not a path")
    if text == ":memory:":
        raise ValueError("is not a path: a MemoryLedger is what lives in memory")
    if _UNFILLED.search(text):
        raise ValueError("names a variable, and nobody fills those in here: write the path itself")
    if os.name == "posix" and _WINDOWS.match(text):
        raise ValueError("is a path of Windows, which here would be a name in some directory")
    found = _at_home(text)
    return found.absolute() if base is None else base / found


def _at_home(text: str) -> Path:
    try:
        found = Path(text).expanduser()
    except RuntimeError:
        found = Path()
    if text.startswith("~") and not found.is_absolute():
        raise ValueError("begins with ~, and whose directory that is is not known here")
    return found


def file_of_ledger(path: str | os.PathLike[str]) -> Path:
    """The one place that *path* names as the file of a ledger.

    Raises:
        ValueError: it can name none, or is the words of a DSN: it would be called by a password.
    """
    text = os.fspath(path)
    if LIBPQ.match(text) or _LOGIN.match(text):
        raise ValueError("the path of a ledger is a DSN: a PostgresLedger takes one")
    try:
        return fixed(path)
    except ValueError as exc:
        raise ValueError(f"the path of a ledger {exc}") from None
