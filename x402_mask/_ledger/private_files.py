"""Files that are nobody else's: the ledger, its key, its head.

Who may read the key may read stored proofs; who may write the database may raise what is left of a
cap.  A file that others may use is made its owner's alone, and that is said; what cannot be mended,
and a link that somebody may have put there, is refused.  Windows has no such modes.
"""

from __future__ import annotations

import logging
import os
import secrets
import stat
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from x402_mask.errors import LedgerError

if TYPE_CHECKING:
    from pathlib import Path

log = logging.getLogger("x402_mask")

_POSIX: Final = os.name == "posix"
_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO
NO_LINK: Final = getattr(os, "O_NOFOLLOW", 0)
"""A flag for ``os.open`` where what is opened must not be a link."""


def keep_private(path: Path) -> None:
    """Have the file at *path*, if there is one, used by its owner alone.

    It is not opened: closing a database that SQLite has open elsewhere in this process would undo
    its locks.

    Raises:
        LedgerError: it is a link or no file, belongs to somebody else, or cannot be mended.
    """
    if not _POSIX:
        return
    try:
        found = path.lstat()
    except (FileNotFoundError, NotADirectoryError):  # whoever makes it says what is in the way
        return
    except OSError as exc:
        raise LedgerError(f"cannot look at {path.name}: {exc.strerror}") from exc
    _insist_on_file(path, found)
    if not found.st_mode & _OTHERS:
        return
    with suppress(OSError):  # whether it helped is looked at
        path.chmod(stat.S_IMODE(found.st_mode) & ~_OTHERS)
    if path.lstat().st_mode & _OTHERS:
        raise LedgerError(
            f"others may {_what(found.st_mode)} {path.name}, and its mode cannot be changed;"
            f" make it its owner's alone (chmod 600), on a file system that keeps modes"
        )
    log.warning(
        "others could %s %s (mode %03o); now only its owner can",
        _what(found.st_mode),
        path.name,
        stat.S_IMODE(found.st_mode),
    )


def _insist_on_file(path: Path, found: os.stat_result) -> None:
    if stat.S_ISLNK(found.st_mode):
        raise LedgerError(
            f"{path.name} is a link to another file, which somebody may have put there; move the"
            f" file itself to {path.parent}"
        )
    if not stat.S_ISREG(found.st_mode):
        raise LedgerError(f"unable to open {path.name}: it is not a file")
    me = os.geteuid()
    if me not in (0, found.st_uid) and found.st_uid != 0:
        raise LedgerError(
            f"{path.name} belongs to another user, who may change it; it must belong to the user"
            " who pays"
        )


def _what(mode: int) -> str:
    write = mode & (stat.S_IWGRP | stat.S_IWOTH)
    read = mode & (stat.S_IRGRP | stat.S_IROTH)
    return "read and write" if write and read else "write" if write else "read"


def follow(path: Path) -> Path:
    """The file that *path* is; a link of one's own to it, in a directory of one's own, is followed.

    Raises:
        LedgerError: somebody else may have made the link.
    """
    if not _POSIX or not path.is_symlink():
        return path
    folder = path.parent.stat()
    theirs = folder.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    if theirs or path.lstat().st_uid not in (0, os.geteuid()) or not path.exists():
        raise LedgerError(
            f"{path.name} is a link that somebody else may have put there; name the file itself"
        )
    return path.resolve()


def make_folder(path: Path) -> None:
    """Make a directory, and those above it that are missing, for nobody else to look into."""
    missing = [path]
    while not missing[-1].parent.exists():
        missing.append(missing[-1].parent)
    for folder in reversed(missing):
        folder.mkdir(mode=0o700, exist_ok=True)


def make_file(path: Path) -> None:
    """Make an empty file, unless there is one; it is never open to others, whatever the umask.

    It appears whole, by a link: where the file system has none, whoever opens the file makes it.
    """
    draft = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    os.close(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | NO_LINK, 0o600))
    try:
        with suppress(OSError):
            os.link(draft, path)
    finally:
        draft.unlink(missing_ok=True)
