"""Whether a request body fits a seller's schema.  Pure, and bounded whatever the schema says.

The marketplace settles first: a body that it will refuse is paid for all the same.  So a body is
judged before anything is signed, by JSON Schema 2020-12, as far as the schema can be trusted:

* only keywords of a short list are kept.  Regular expressions (``pattern``, ``patternProperties``)
  are left out, because one can take forever; of ``format`` only ``uri`` asserts something;
  ``$dynamicRef`` and every ``$ref`` that is not ``#/...`` are taken for "anything";
* references are written out, at most 2,000 schemas in all; one that leads back to itself is
  "anything";
* what is left out can only make the schema weaker: where less would mean more (``not``, ``oneOf``,
  ``if``, ``additionalProperties`` next to ``patternProperties``) the whole keyword is left out;
* a body for which that could still be much work (:data:`WORK_MAX`) is not judged.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from x402_mask._policy.fits import plainly
from x402_mask._wire import strict_json
from x402_mask._wire.x402 import shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from x402_mask._wire.x402 import Challenge

SCHEMA_BYTES_MAX: Final = 64 * 1024
NODES_MAX: Final = 2_000
WORK_MAX: Final = 4_000
"""Schemas, with the values they list, times values and KiB of the body; for all schemas together.

The slowest schema that was tried takes jsonschema 30 us for each, so a tenth of a second in all,
and leaves no more objects than the garbage collector looks through without being noticed.
"""

_BYTES: Final = 1024

_PLAIN_URL: Final = re.compile(r"https?://[A-Za-z0-9.-]+(?:/[A-Za-z0-9._~/?=&-]*)?")
_URI: Final = re.compile(
    r"""[A-Za-z][A-Za-z0-9+.-]*:(?:[^\x00-\x20\x7f"<>\\^`{|}%]|%[0-9A-Fa-f]{2})+"""
)

_DEPTH_MAX: Final = 40

_OFFERS_READ: Final = 8
_METHODS: Final = frozenset({"POST", "PUT", "PATCH", "TOOLS/CALL"})
_TYPES: Final = frozenset({"array", "boolean", "integer", "null", "number", "object", "string"})


class Unusable(ValueError):
    """The schema cannot be used at all; the words say why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checker:
    """A schema made safe.  ``ignored`` says what of it is not used; ``cost`` how much is left.

    ``nodes`` is how large it was, as far as it was read.
    """

    schema: dict[str, Any] = field(repr=False)
    ignored: tuple[str, ...]
    cost: int
    nodes: int
    find: Callable[[Any], Iterator[Any]] | None
    fits: Callable[[Any], bool] | None = None
    """Quicker, and true only of what fits."""


def compiled(text: str) -> Checker:
    """A checker for the schema in the JSON *text*; one without effect if it is unusable."""
    cleaner = _Cleaner()
    try:
        schema = cleaner.cleaned(text)
    except (strict_json.BadJSON, Unusable) as exc:
        return Checker(schema={}, ignored=(str(exc),), cost=0, nodes=cleaner.nodes, find=None)
    return Checker(
        schema=schema,
        ignored=tuple(sorted(cleaner.ignored)),
        cost=cleaner.cost,
        nodes=cleaner.nodes,
        find=_finder(schema) if schema else None,
        fits=plainly(schema, {"uri": is_uri}),
    )


def _finder(schema: dict[str, Any]) -> Callable[[Any], Iterator[Any]]:
    from jsonschema import Draft202012Validator, FormatChecker  # noqa: PLC0415  # takes 0.1 s

    formats = FormatChecker(formats=())
    formats.checks("uri")(is_uri)
    checked = Draft202012Validator(schema, format_checker=formats)
    found: Callable[[Any], Iterator[Any]] = checked.iter_errors
    return found


def is_uri(value: object) -> bool:
    """Whether *value* may be an absolute URI (RFC 3986); letters beyond ASCII are let pass.

    What is no text is none of this check's business.
    """
    if not isinstance(value, str) or _PLAIN_URL.fullmatch(value):
        return True
    try:
        host = urlsplit(value).hostname
    except ValueError:
        return False
    web = value.lower().startswith(("http:", "https:"))
    return _URI.fullmatch(value) is not None and (bool(host) or not web)


def check_input(
    schema: str | Checker, body: bytes | None, content_type: str, method: str = "POST"
) -> str | None:
    """Why *body* does not fit *schema*, or ``None`` if it does or cannot be judged.

    Args:
        schema: JSON text, or what :func:`compiled` made of it.
        body: as it would be sent; ``None`` where it is not in memory.
        content_type: as the request says.
        method: of the request; only POST, PUT, PATCH and MCP's tools/call have a body to judge.
    """
    checker = compiled(schema) if isinstance(schema, str) else schema
    return None if body is None or not has_body(method) else judge([checker], body, content_type)


def judge(checkers: Sequence[Checker], body: bytes, content_type: str) -> str | None:
    """Why *body* does not fit one of several schemas, which share what work may be done."""
    useful = [checker for checker in checkers if checker.find is not None]
    if not useful:
        return None
    if not body.strip():
        lacking = _first_objection(useful, {}, 1)
        return None if lacking is None else f"the body is empty: {lacking}"
    try:
        value = strict_json.loads(body)
    except strict_json.BadJSON as exc:
        strange = str(exc).endswith("not JSON")  # else it is JSON that only a reader here refuses
        wanted = _is_json(content_type) or _first_objection(useful, {}, 1) is not None
        return "the body is not JSON" if strange and wanted else None
    return _first_objection(useful, value, _size(value) + len(body) // _BYTES)


def _first_objection(checkers: Sequence[Checker], value: Any, size: int) -> str | None:
    left = WORK_MAX
    for checker in checkers:
        if checker.cost * size > left:
            continue  # not judged by this one, perhaps by a smaller one
        left -= checker.cost * size
        found = _objection(checker, value)
        if found is not None:
            return found
    return None


def _objection(checker: Checker, value: Any) -> str | None:
    assert checker.find is not None
    if checker.fits is not None and checker.fits(value):
        return None
    return next((_reason(error) for error in checker.find(value)), None)


def has_body(method: str) -> bool:
    """Whether requests of this method are judged."""
    return method.upper() in _METHODS


def _is_json(content_type: str) -> bool:
    kind = content_type.partition(";")[0].strip().lower()
    return kind == "application/json" or kind.endswith("+json")


def _size(value: Any) -> int:
    """How many values are in *value*, itself and the names of members included."""
    total, level = 0, [value]
    while level and total <= WORK_MAX:
        total += len(level)
        below: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                below.extend(item.values())
                total += len(item)
            elif isinstance(item, list):
                below.extend(item)
        level = below
    return total


# --- words ----------------------------------------------------------------------------------------


def _reason(error: Any) -> str:
    """The failing field and the rule it breaks; never the value, which may be a secret."""
    where = _path(error.absolute_path)
    rule, wanted, value = error.validator, error.validator_value, error.instance
    if rule == "required":
        name = next((name for name in wanted if name not in value), "")
        return f"{_name(name)} is required{_inside(where)}{_hint(name, value)}"
    if rule == "additionalProperties" and wanted is False:
        known = error.schema.get("properties", {})
        name = next((name for name in value if name not in known), "")
        return f"{_name(name)} is not a parameter{_inside(where)}{_hint(name, known)}"
    subject = where or "the body"
    if rule == "type":
        kinds = [wanted] if isinstance(wanted, str) else wanted
        return f"{subject} is not of type {' or '.join(kinds)}"
    if rule == "format":
        return f"{subject} is not a URL"
    return f"{subject} does not fit {rule} {shown(strict_json.dumps(wanted), 80)}"


def _path(steps: Any) -> str:
    parts = [f"[{step}]" if isinstance(step, int) else f".{shown(step, 40)}" for step in steps]
    return shown("".join(parts).removeprefix("."), 120)


def _name(name: object) -> str:
    return f"'{shown(name, 60)}'"


def _inside(where: str) -> str:
    return f" in {where}" if where else ""


def _hint(name: str, known: Any) -> str:
    near = next((k for k in islice(known, 1000) if k != name and k.lower() == name.lower()), None)
    return "" if near is None else f" (names are case-sensitive: {_name(near)})"


# --- making a schema safe -------------------------------------------------------------------------


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 0


def _is_number(value: object) -> bool:
    return type(value) in (int, float)


def _is_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


_PLAIN: Final[Mapping[str, Callable[[object], bool]]] = {
    "const": lambda _: True,
    "enum": lambda value: isinstance(value, list) and bool(value),
    "required": _is_names,
    "minItems": _is_count,
    "maxItems": _is_count,
    "minLength": _is_count,
    "maxLength": _is_count,
    "minProperties": _is_count,
    "maxProperties": _is_count,
    "minimum": _is_number,
    "maximum": _is_number,
    "exclusiveMinimum": _is_number,
    "exclusiveMaximum": _is_number,
}
"""Keywords kept as they are, where their values make sense."""

_LISTS: Final = frozenset({"const", "enum", "required"})
_DECIDED: Final = frozenset(
    {
        *_PLAIN,
        "type",
        "$ref",
        "properties",
        "additionalProperties",
        "items",
        "prefixItems",
        "allOf",
        "anyOf",
        "oneOf",
        "not",
        "if",
        "then",
        "else",
        "format",
    }
)
_SAYS_NOTHING: Final = frozenset(
    {
        "$comment",
        "$defs",
        "$id",
        "$schema",
        "default",
        "definitions",
        "deprecated",
        "description",
        "example",
        "examples",
        "nullable",
        "readOnly",
        "title",
        "writeOnly",
    }
)
_LEFT_OUT: Final = frozenset(
    {
        "$dynamicRef",
        "$recursiveRef",
        "contains",
        "dependencies",
        "dependentRequired",
        "dependentSchemas",
        "multipleOf",
        "pattern",
        "patternProperties",
        "propertyNames",
        "unevaluatedItems",
        "unevaluatedProperties",
        "uniqueItems",
    }
)
"""Keywords that would assert something: worth a word when they are left out."""


class _Cleaner:
    """Copies a schema without what cannot be trusted; knows what it left out."""

    def __init__(self) -> None:
        self.root: dict[str, Any] = {}
        self.nodes = 0
        self.cost = 0
        self.ignored: set[str] = set()
        self._losses = 0
        self._depth = 0
        self._open: list[str] = []

    def cleaned(self, text: str) -> dict[str, Any]:
        """A safe schema for the one in the JSON *text*."""
        if len(text) > SCHEMA_BYTES_MAX:
            raise Unusable("longer than 64 KiB")
        self.root = strict_json.loads(text)
        if not isinstance(self.root, dict):
            raise Unusable("not an object")
        return self.clean(self.root)

    def clean(self, schema: object) -> dict[str, Any]:
        """A safe schema that allows whatever *schema* allows, and perhaps more."""
        self.nodes, self.cost, self._depth = self.nodes + 1, self.cost + 1, self._depth + 1
        if self.nodes > NODES_MAX:
            raise Unusable(f"more than {NODES_MAX} schemas when references are written out")
        try:
            if self._depth > _DEPTH_MAX:
                return self._lose("schemas nested too deeply")
            return self._copy(schema)
        finally:
            self._depth -= 1

    def _copy(self, schema: object) -> dict[str, Any]:
        if isinstance(schema, bool):
            return {} if schema else {"not": {}}
        if not isinstance(schema, dict):
            return self._lose("a schema that is none")
        if "$ref" in schema:  # what stands beside it counts in some drafts and not in others
            self._losses += len(schema) > 1
            return self._referred(schema["$ref"])
        for name in schema.keys() - _SAYS_NOTHING - _DECIDED:
            self._lose(name, noted=name in _LEFT_OUT)
        return {
            **self._plain(schema),
            **self._type(schema),
            **self._format(schema),
            **self._members(schema),
            **self._elements(schema),
            **self._combined(schema),
            **self._conditional(schema),
        }

    def _plain(self, schema: Mapping[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name in sorted(_PLAIN.keys() & schema.keys()):
            if not _PLAIN[name](schema[name]) or (name == "enum" and schema.get("nullable")):
                self._lose(name)
                continue
            found[name] = schema[name]
            self.cost += _size(schema[name]) if name in _LISTS else 0
        return found

    def _type(self, schema: Mapping[str, Any]) -> dict[str, Any]:
        if "type" not in schema:
            return {}
        kinds = schema["type"]
        named = [kinds] if isinstance(kinds, str) else kinds
        if not _is_names(named) or not named or not set(named) <= _TYPES:
            return self._lose("type")
        return {"type": sorted({*named, "null"}) if schema.get("nullable") is True else kinds}

    def _format(self, schema: Mapping[str, Any]) -> dict[str, Any]:
        """Kept where it is checked; a loss all the same, for its seller may be stricter."""
        if "format" not in schema:
            return {}
        self._losses += 1
        return {"format": "uri"} if schema["format"] == "uri" else {}

    def _members(self, schema: Mapping[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        properties = schema.get("properties", {})
        if isinstance(properties, dict):
            found["properties"] = {name: self.clean(one) for name, one in properties.items()}
        else:
            self._lose("properties")
        if "additionalProperties" in schema:
            if "patternProperties" in schema or not found:
                self._lose("additionalProperties")
            else:
                found["additionalProperties"] = self._either(schema["additionalProperties"])
        return found if found != {"properties": {}} else {}

    def _elements(self, schema: Mapping[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        first = schema.get("prefixItems")
        if isinstance(first, list) and first:
            found["prefixItems"] = [self.clean(one) for one in first]
        elif first is not None:
            self._lose("prefixItems")
        if "items" in schema:
            lost = first is not None and not found
            if lost or isinstance(schema["items"], list):  # a list: the meaning of older drafts
                self._lose("items")
            else:
                found["items"] = self._either(schema["items"])
        return found

    def _either(self, schema: object) -> Any:
        return schema if isinstance(schema, bool) else self.clean(schema)

    def _combined(self, schema: Mapping[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name in ("allOf", "anyOf", "oneOf"):
            several = schema.get(name, [])
            if not isinstance(several, list) or (name in schema and not several):
                self._lose(name)
                continue
            before = self._losses
            cleaned = [self.clean(one) for one in several]
            if name == "oneOf" and self._losses > before:
                self._lose(name)  # weaker schemas may well overlap
            elif cleaned:
                found[name] = cleaned
        return found

    def _conditional(self, schema: Mapping[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, more in (("not", ()), ("if", ("then", "else"))):
            if name not in schema:
                continue
            before = self._losses
            asked = self.clean(schema[name])
            if self._losses > before:
                self._lose(name)
            else:
                found[name] = asked
                found |= {branch: self.clean(schema[branch]) for branch in more if branch in schema}
        return found

    def _referred(self, target: object) -> dict[str, Any]:
        if not isinstance(target, str) or not (target == "#" or target.startswith("#/")):
            return self._lose("a $ref that leads elsewhere")
        if target in self._open or target == "#":
            return self._lose("a $ref to itself")
        found: Any = self.root
        for step in target.split("/")[1:]:
            name = step.replace("~1", "/").replace("~0", "~")
            if not isinstance(found, dict) or name not in found:
                return self._lose("a $ref to nothing")
            found = found[name]
        self._open.append(target)
        try:
            return self.clean(found)
        finally:
            self._open.pop()

    def _lose(self, what: str, *, noted: bool = True) -> dict[str, Any]:
        self._losses += 1
        if noted:
            self.ignored.add(what)
        return {}


# --- schemas in a challenge -----------------------------------------------------------------------


@lru_cache(maxsize=16)
def schemas_of(challenge: Challenge) -> tuple[str, ...]:
    """Schemas of a request body that a challenge states without doubt, as JSON texts.

    These are ``inputSchema``, the ``bodyFields`` of version 1 and Server402
    (``outputSchema.input``), and of a ``bazaar`` entry ``input.inputSchema`` (tools over MCP have
    it) and what its schema says of ``input.body``.
    """
    bazaar = challenge.extensions.get("bazaar")
    found = [
        challenge.document.get("inputSchema"),
        _inside_of(bazaar, "inputSchema"),
        _inside_of(bazaar, "info", "input", "inputSchema"),
        _of_bazaar(bazaar),
    ]
    for offer in challenge.offers[:_OFFERS_READ]:
        found += [offer.raw.get("inputSchema"), _of_output(offer.raw.get("outputSchema"))]
    texts = (text_of(schema) for schema in found)
    return tuple(dict.fromkeys(text for text in texts if text is not None))


def text_of(schema: object) -> str | None:
    """A schema as JSON text; ``None`` if it is no object, or says nothing."""
    if not isinstance(schema, dict) or not schema:
        return None
    try:
        return strict_json.dumps(schema)
    except ValueError:  # a number beyond all floats
        return None


def _of_output(schema: object) -> dict[str, Any] | None:
    asked = schema.get("input") if isinstance(schema, dict) else None
    if not isinstance(asked, dict):
        return None
    if asked.get("type") == "object" and isinstance(asked.get("properties"), dict):
        return asked
    fields = asked.get("bodyFields")
    if asked.get("type") != "http" or asked.get("bodyType", "json") != "json":
        return None
    if not isinstance(fields, dict) or not all(isinstance(f, dict) for f in fields.values()):
        return None
    properties = {name: _field(about) for name, about in fields.items()}
    required = [name for name, about in fields.items() if about.get("required") is True]
    return {"type": "object", "properties": properties, "required": required}


def _field(about: Mapping[str, Any]) -> dict[str, Any]:
    """A field of version 1: a schema, but for a ``required`` that speaks of the field itself."""
    if isinstance(about.get("required"), bool):
        return {name: value for name, value in about.items() if name != "required"}
    return dict(about)


def _of_bazaar(extension: object) -> object:
    if _inside_of(extension, "info", "input", "bodyType") not in (None, "json"):
        return None
    return _inside_of(extension, "schema", "properties", "input", "properties", "body")


def _inside_of(found: Any, *steps: str) -> Any:
    for step in steps:
        found = found.get(step) if isinstance(found, dict) else None
    return found
