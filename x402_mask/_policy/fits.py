"""That a value plainly fits a schema, told in a few steps: most bodies do.

Only of schemas of a few plain words.  Where this does not say yes, jsonschema is asked, and has the
last word and finds the reason.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Check = Callable[[Any], bool]

_TYPES: Final[Mapping[str, tuple[type, ...]]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "boolean": (bool,),
    "null": (type(None),),
    "integer": (int,),
    "number": (int, float),
}
_KNOWN: Final = frozenset({"type", "properties", "required", "format", "enum"})


def plainly(schema: Mapping[str, Any], formats: Mapping[str, Check]) -> Check | None:
    """A check that is true only of what fits *schema*; ``None`` where it says anything else.

    *formats* are those that assert something.
    """
    members = {name: plainly(one, formats) for name, one in schema.get("properties", {}).items()}
    kinds, one_of = schema.get("type", []), schema.get("enum")
    kinds = [kinds] if isinstance(kinds, str) else kinds
    plain = schema.keys() <= _KNOWN and _TYPES.keys() >= set(kinds) and None not in members.values()
    if not plain or not (one_of is None or all(isinstance(value, str) for value in one_of)):
        return None
    types = frozenset(one for kind in kinds for one in _TYPES[kind])
    checks = [(name, check) for name, check in members.items() if check is not None]
    required, form = schema.get("required", ()), formats.get(schema.get("format", ""))

    def fits(value: Any) -> bool:
        kind = type(value)
        if (types and kind not in types) or (one_of is not None and value not in one_of):
            return False
        if kind is str:
            return form is None or form(value)
        return kind is not dict or (
            all(name in value for name in required)
            and all(name not in value or check(value[name]) for name, check in checks)
        )

    return fits
