"""What built-in services take, known without a catalog.

At the marketplaces whose services these are a schema always holds, unless they state other inputs.
Anybody else may sell something else under the same id, so there a schema is kept to only where it
is plain that it is meant: the seller states these inputs, or states none and the request names one
of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from x402_mask._wire import strict_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from x402_mask._flow.effects import Content
    from x402_mask._policy.catalog_cache import ServiceRequest

_HOMES: Final = frozenset({"https://x402vip.com", "https://aivps.lat"})
"""Whose services these are, by their own public documents."""

_IMAGE: Final = {"type": "string", "format": "uri"}
_SCHEMAS: Final[dict[str, dict[str, Any]]] = {
    "mask-refinement": {
        "type": "object",
        "properties": {"ImageURL": _IMAGE, "MaskImageURL": _IMAGE},
        "required": ["ImageURL", "MaskImageURL"],
    },
}
_TEXTS: Final = {key: strict_json.dumps(schema) for key, schema in _SCHEMAS.items()}


def is_built_in(keys: Iterable[str]) -> bool:
    """Whether the inputs of one of these services are known here."""
    return not _SCHEMAS.keys().isdisjoint(keys)


def schemas_for(request: ServiceRequest, stated: Sequence[str], content: Content) -> list[str]:
    """Schemas, as JSON texts, that a body must fit besides those that the seller has stated."""
    found = [key for key in sorted(request.keys) if key in _SCHEMAS]
    at_home = request.origin in _HOMES
    return [
        _TEXTS[key] for key in found if _is_meant(_SCHEMAS[key], stated, content, at_home=at_home)
    ]


def _is_meant(
    schema: dict[str, Any], stated: Sequence[str], content: Content, *, at_home: bool
) -> bool:
    inputs: list[str] = schema["required"]
    with_inputs = [text for text in stated if '"properties":{"' in text]
    if with_inputs:
        return any(all(f'"{name}":' in text for name in inputs) for text in with_inputs)
    if at_home or content.is_upload:
        return at_home
    sent = content.body.lower()
    return any(name.lower().encode() in sent for name in inputs)
