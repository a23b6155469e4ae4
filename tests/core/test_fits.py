"""What is said to fit a schema plainly does so by jsonschema too, whatever it is."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest

from x402_mask._policy.schemas import compiled

VALUES: list[Any] = [
    None,
    True,
    False,
    0,
    1,
    1.0,
    2.5,
    "",
    "a",
    "https://a.example/x",
    "not a url",
    [],
    ["a"],
    {},
    {"a": 1},
    {"a": "a"},
    {"a": None, "b": 2},
    {"a": {"a": "a"}},
    {"a": {"b": True}},
    {"a": "https://a.example/x", "b": 1.5},
    {"b": []},
]
LEAVES: list[Any] = [
    {},
    True,
    False,
    {"type": "string"},
    {"type": ["integer", "null"]},
    {"type": "number"},
    {"type": "boolean"},
    {"type": "array"},
    {"type": "string", "format": "uri"},
    {"format": "uri"},
    {"enum": ["a", "b"]},
    {"enum": ["a", 1, None]},
    {"const": 1},
    {"type": "string", "minLength": 1},
    {"type": "array", "items": {"type": "string"}},
    {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]},
    {"type": "string", "nullable": True},
    {"anyOf": [{"type": "string"}, {"type": "null"}]},
]
SCHEMAS: list[Any] = [
    *(leaf for leaf in LEAVES if isinstance(leaf, dict)),
    *({"properties": {"a": one, "b": other}} for one, other in itertools.product(LEAVES, LEAVES)),
    *({"type": "object", "properties": {"a": one}, "required": ["a", "b"]} for one in LEAVES),
    {"properties": {"a": {}}, "additionalProperties": False},
]


def test_what_fits_plainly_fits() -> None:
    told = 0
    for schema in SCHEMAS:
        checker = compiled(json.dumps(schema))
        for value in VALUES:
            if checker.fits is not None and checker.find is not None and checker.fits(value):
                told += 1
                assert list(checker.find(value)) == [], (schema, value)
    assert told > len(SCHEMAS)  # else it would be of no use


@pytest.mark.parametrize("value", [{"a": "https://a.example/x"}, {"a": "http://b.example", "c": 1}])
def test_a_usual_body_is_judged_quickly(value: object) -> None:
    link = {"type": "string", "format": "uri", "description": "an image"}
    schema = {"type": "object", "properties": {"a": link, "b": {"enum": ["x"]}}, "required": ["a"]}
    checker = compiled(json.dumps(schema))
    assert checker.fits is not None
    assert checker.fits(value)
    assert not checker.fits({"a": "no link"})
