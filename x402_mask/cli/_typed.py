"""What was typed, in messages: shown where it can hardly be a secret in the wrong place.

Who pastes a key or a password where something else belongs is told which argument is wrong, and
does not find the secret in a log of what was said.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from x402_mask._system.owner_text import secret_like, told_path
from x402_mask._text.printable import clean

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_SECRET: Final = re.compile(r"(0[xX])?[0-9a-fA-F]{48,}|(?<=\()([a-z]+ ){11,}[a-z]+(?=\))")
"""Hex about as long as a private key, or a dozen words in brackets."""
_SHORT: Final = 5
_PLAIN: Final = re.compile(
    r"""
      (?=.{1,30}$) (--?)? [A-Za-z]+ ([_-][A-Za-z]+){0,2}            # a command, an option, an id
    | \$? [0-9]{1,9} ([.][0-9]{1,6})? (/[a-z0-9]{1,8})?             # an amount, a cap
    | 0x [0-9a-fA-F]{40}                                            # an address
    | https?:// [A-Za-z0-9.\[\]:-]{1,80} (/[A-Za-z][A-Za-z_.-]{0,23}){0,5} /?
    | (~|\.{1,2})? / (?!/) [^:@?=]*                                 # a path that can be no other
    """,
    re.VERBOSE,
)
_HEAD: Final = 39
"""Characters of what is quoted that stay where a message is cut, at the least."""


def without_secrets(text: str, arguments: Sequence[str], *, usage: bool) -> str:
    """*text* without what may be a secret among the *arguments* that were typed.

    With *usage*, a mistake in these, nothing that looks like a key is left; other messages may name
    a transaction.
    """
    for typed in sorted(set(_told(arguments)), key=len, reverse=True):
        text = _hidden(text, typed)
    return _SECRET.sub("***", text) if usage else text


def _told(arguments: Sequence[str]) -> Iterator[str]:
    """Each argument that is not shown, in every form in which a message may quote it."""
    for argument in arguments:
        name, equals, value = argument.partition("=")
        for part in (name, value) if equals and _is_plain(name) else (argument,):
            if len(part) > _SHORT and not _is_plain(part):
                yield from _forms(part)


def _is_plain(text: str) -> bool:
    if secret_like(text):
        return False
    return len(text) <= _SHORT or _PLAIN.fullmatch(text) is not None or bool(told_path(text, ""))


def _forms(text: str) -> Iterator[str]:
    for form in (text, repr(text)[1:-1], text.lstrip("-"), text.replace("//", "/")):
        yield from (form, clean(form, len(form) + 1))


def _hidden(text: str, typed: str) -> str:
    """*text* without *typed*, or as much of its beginning as is quoted."""
    head, found, at = typed[:_HEAD], "", 0
    while head and (start := text.find(head, at)) >= 0:
        found, at = f"{found}{text[at:start]}***", start + len(head)
        for char in typed[len(head) :]:
            if text[at : at + 1] != char:
                break
            at += 1
    return found + text[at:]
