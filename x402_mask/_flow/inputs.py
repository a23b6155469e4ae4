"""Judging one request body by all the schemas that speak of it, on one budget.

Schemas are a seller's, and to read and to apply them is work.  What may take longer than an event
loop should wait is done elsewhere: see :func:`is_light`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from x402_mask._policy.schemas import NODES_MAX, compiled, judge

if TYPE_CHECKING:
    from collections.abc import Sequence

    from x402_mask._flow.effects import Content
    from x402_mask._policy.catalog_cache import CatalogCache

_LIGHT: Final = 400
"""Schemas times eighths of the body's bytes, which bound its values.  At their slowest these take
8 ms, and usually a tenth of a millisecond."""

_VALUE_BYTES: Final = 8
_NEW_MAX: Final = NODES_MAX
"""How large the schemas may be together that one request body makes us read."""


def is_light(cache: CatalogCache, texts: Sequence[str], content: Content) -> bool:
    """Whether the body is judged in no time: a short one, by schemas that were read before."""
    known = [cache.known(text) for text in texts]
    cost = sum(_LIGHT + 1 if checker is None else checker.cost for checker in known)
    return cost * (1 + len(content.body) // _VALUE_BYTES) <= _LIGHT


def judged(
    cache: CatalogCache, texts: Sequence[str], content: Content
) -> tuple[str | None, list[tuple[str, ...]]]:
    """Why the body fits none of its schemas, if it does not; what of new ones is not used.

    Schemas beyond the budget are not asked.
    """
    checkers, ignored, left = [], list[tuple[str, ...]](), _NEW_MAX
    for text in texts:
        checker = cache.known(text)
        if checker is None and left > 0:
            checker = cache.learn(text, compiled(text))
            left -= checker.nodes
            if checker.ignored:
                ignored.append(checker.ignored)
        if checker is not None:
            checkers.append(checker)
    return judge(checkers, content.body, content.type), ignored
