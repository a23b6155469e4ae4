"""What built-in services take, known without a catalog.

Anybody may sell something else under the same id, so a schema is kept to only where it is plain
that it is meant: the seller states these inputs, or states none and the request names one of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from x402_mask import _json

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_IMAGE: Final = {"type": "string", "format": "uri"}
_SCHEMAS: Final[dict[str, dict[str, Any]]] = {
    "mask-refinement": {
        "type": "object",
        "properties": {"ImageURL": _IMAGE, "MaskImageURL": _IMAGE},
        "required": ["ImageURL", "MaskImageURL"],
    },
}
_TEXTS: Final = {key: _json.dumps(schema) for key, schema in _SCHEMAS.items()}


def is_built_in(keys: Iterable[str]) -> bool:
    """Whether the inputs of one of these services are known here."""
    return not _SCHEMAS.keys().isdisjoint(keys)


def schemas_for(keys: Iterable[str], stated: Sequence[str], body: bytes | None) -> list[str]:
    """Schemas, as JSON texts, that *body* must fit besides those that the seller has stated."""
    found = [key for key in sorted(keys) if key in _SCHEMAS]
    return [_TEXTS[key] for key in found if _is_meant(_SCHEMAS[key], stated, body)]


def _is_meant(schema: dict[str, Any], stated: Sequence[str], body: bytes | None) -> bool:
    inputs: list[str] = schema["required"]
    with_inputs = [text for text in stated if '"properties":{"' in text]
    if with_inputs:
        return any(all(f'"{name}":' in text for name in inputs) for text in with_inputs)
    sent = (body or b"").lower()
    return any(name.lower().encode() in sent for name in inputs)
