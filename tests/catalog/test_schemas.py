"""Schemas of strangers: what they may refuse, and what they may cost."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from x402_mask._policy.schemas import check_input, compiled, text_of
from x402_mask._wire import strict_json

JSON = "application/json"
IMAGE = {
    "type": "object",
    "required": ["ImageURL"],
    "properties": {"ImageURL": {"type": "string", "format": "uri"}, "size": {"enum": [1, 2]}},
    "additionalProperties": False,
}


def judged(schema: Any, body: Any, kind: str = JSON, method: str = "POST") -> str | None:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return check_input(json.dumps(schema), raw, kind, method)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"ImageURL": "a:x"}, None),
        ({"ImageURL": "a:x", "size": 2}, None),
        ({"ImageURL": "x"}, "ImageURL is not a URL"),
        ({}, "'ImageURL' is required"),
        ([], "the body is not of type object"),
        ({"ImageURL": 7}, "ImageURL is not of type string"),
        ({"ImageURL": "a:x", "size": 3}, "size does not fit enum [1,2]"),
        ({"imageurl": "x"}, "names are case-sensitive"),
        (
            {"ImageURL": "a:x", "Imageurl": 1},
            "'Imageurl' is not a parameter (names are case-sensitive: 'ImageURL')",
        ),
        (b"", "the body is empty: 'ImageURL' is required"),
        (b"x", "the body is not JSON"),
        (b"\xff", "the body is not JSON"),
        (b'{"ImageURL": NaN}', "the body is not JSON"),
    ],
)
def test_a_body_is_judged(body: Any, reason: str | None) -> None:
    found = judged(IMAGE, body)
    assert found is None if reason is None else found is not None and reason in found


@pytest.mark.parametrize(
    "good",
    [
        "https://a.example/x?y=%20#z",
        "http://a",
        "HTTPS://A.example",
        "https://u:p@a.example:8443/~x",
        "https://[::1]:1/x",
        "https://bücher.example/ä",
        "file:///x",
        "data:,x",
        "urn:isbn:1",
        "mailto:a@b",
        7,
        None,
        ["x"],
    ],
)
def test_what_may_be_a_uri(good: Any) -> None:
    """And what is no text, of which ``format`` says nothing."""
    assert judged({"properties": {"a": {"format": "uri"}}}, {"a": good}) is None


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "nope",
        "photo.png",
        "/x",
        "//a.example/x",
        "https://",
        "https:///x",
        "https:x",
        "http://#",
        "http://[::1",
        "https://a b",
        "https://a/\t",
        "https://a/<x>",
        "https://a/{x}",
        "https://a/%x",
        ":x",
        "1a:x",
        "a:",
        "https://a\\b",
    ],
)
def test_what_is_no_uri(bad: str) -> None:
    """Refused by every validator, whatever its leniency."""
    assert judged({"properties": {"a": {"format": "uri"}}}, {"a": bad}) == "a is not a URL"


def test_a_format_is_asserted_only_where_more_would_be_refused() -> None:
    """A seller may be stricter: where that would allow more, nothing is asserted."""
    uri = {"format": "uri"}
    for schema in ({"not": uri}, {"oneOf": [uri, {"maxLength": 3}]}, {"if": uri, "then": False}):
        assert judged(schema, "https://bücher.example") is None
        assert judged(schema, "no") is None
    assert judged({"anyOf": [uri, {"maxLength": 2}]}, "nope") is not None
    for other in ("uri-reference", "email", "date-time", 7, ["uri"]):
        assert judged({"format": other}, "no such") is None


def test_the_place_is_named_and_the_value_is_not() -> None:
    secret = "sk-live-" + "7" * 40
    schema = {"properties": {"a": {"items": {"properties": {"b": {"anyOf": [{"type": "null"}]}}}}}}
    found = judged(schema, {"a": [{}, {"b": secret}]})
    assert (
        found is not None and found.startswith("a[1].b does not fit anyOf") and secret not in found
    )
    for part in ({"type": "integer"}, {"maxLength": 3}, {"enum": ["a"]}, {"const": 1}, False):
        found = judged({"properties": {"key": part}}, {"key": secret})
        assert found is not None and found.startswith("key ") and secret not in found
    words = judged({"properties": {"k" * 5000: {"enum": ["x" * 5000]}}}, {"k" * 5000: secret})
    assert words is not None and len(words) < 300


def test_who_is_judged() -> None:
    """The body is, in memory, of a method that has one; anything else cannot be judged."""
    assert check_input(json.dumps(IMAGE), None, JSON) is None
    for method in ("GET", "HEAD", "DELETE"):
        assert judged(IMAGE, {}, method=method) is None
    for method in ("POST", "PUT", "patch"):
        assert judged(IMAGE, {}, method=method) is not None


@pytest.mark.parametrize(
    ("kind", "anything", "strict"),
    [
        ("", None, "not JSON"),
        ("application/x-www-form-urlencoded", None, "not JSON"),
        (JSON, "not JSON", "not JSON"),
        ("application/vnd.x+json; charset=utf-8", "not JSON", "not JSON"),
    ],
)
def test_a_body_that_is_not_json(kind: str, anything: str | None, strict: str) -> None:
    """It is refused where it claims to be JSON, or where the schema asks for something."""
    for schema, reason in (({"type": "object"}, anything), (IMAGE, strict)):
        found = judged(schema, b"a=1", kind)
        assert found is None if reason is None else found is not None and reason in found
    for body in (b'{"a": 1, "a": 2}', b"[" * 60 + b"]" * 60):  # JSON that only we do not read
        assert judged(IMAGE, body, kind) is None


# --- schemas that cannot be trusted


@pytest.mark.parametrize(
    ("schema", "ignored"),
    [
        (
            {"properties": {"a": {"$ref": "https://evil.example/s.json"}}},
            "a $ref that leads elsewhere",
        ),
        ({"$ref": "#"}, "a $ref to itself"),
        ({"$ref": "#/nowhere"}, "a $ref to nothing"),
        (
            {"$defs": {"a": {"items": {"$ref": "#/$defs/a"}}}, "$ref": "#/$defs/a"},
            "a $ref to itself",
        ),
        ({"properties": {"a": {"pattern": "(a+)+$"}}}, "pattern"),
        (
            {"patternProperties": {"(a+)+$": False}, "additionalProperties": False},
            "patternProperties",
        ),
        ({"$dynamicRef": "#x"}, "$dynamicRef"),
        ({"not": {"pattern": "a"}}, "not"),
        ({"oneOf": [{"pattern": "a"}, {"pattern": "b"}]}, "oneOf"),
        ({"if": {"multipleOf": 0.1}, "then": False}, "if"),
        ({"required": True}, "required"),
        ({"required": "a"}, "required"),
        ({"type": "file"}, "type"),
        ({"type": [{}]}, "type"),
        ({"enum": {}}, "enum"),
        ({"minimum": "5"}, "minimum"),
        ({"properties": []}, "properties"),
        ({"allOf": []}, "allOf"),
        ({"anyOf": 7}, "anyOf"),
        ({"items": [False]}, "items"),
        ({"uniqueItems": True}, "uniqueItems"),
        ([], "not an object"),
        ("x", "not an object"),
        ({"description": "x" * 70_000}, "longer than 64 KiB"),
        ({"properties": {str(n): {} for n in range(2100)}}, "more than 2000 schemas"),
    ],
    ids=range(25),
)
def test_what_cannot_be_used_is_ignored_and_said(schema: Any, ignored: str) -> None:
    """Leaving something out never makes a schema refuse more than it did."""
    checker = compiled(json.dumps(schema))
    assert any(ignored in one for one in checker.ignored)
    body = json.dumps({"a": "a" * 50 + "!", "x": [1, 1]}).encode()
    began = time.monotonic()
    assert check_input(checker, body, JSON) is None
    assert check_input(checker, b'["a"]', JSON) is None
    assert time.monotonic() - began < 0.5


def test_local_references_are_followed() -> None:
    schema = {
        "$defs": {"url/x": {"type": "string"}, "t": {"$ref": "#/$defs/url~1x"}},
        "properties": {"a": {"$ref": "#/$defs/t"}, "b": {"$ref": "#/$defs/t"}},
    }
    assert judged(schema, {"a": "x", "b": "y"}) is None
    assert judged(schema, {"a": "x", "b": 7}) == "b is not of type string"
    tree = {
        "$defs": {"node": {"type": "object", "properties": {"next": {"$ref": "#/$defs/node"}}}},
        "$ref": "#/$defs/node",
    }
    assert judged(tree, []) == "the body is not of type object"
    assert judged(tree, {"next": {"next": 7}}) is None  # as far as it goes without a circle


def test_no_reference_leaves_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> None:
        raise AssertionError(f"asked for {args}")

    monkeypatch.setattr("socket.getaddrinfo", refuse)
    monkeypatch.setattr("urllib.request.urlopen", refuse)
    schema = {
        "$schema": "http://evil.example/s",
        "$id": "http://evil.example/i",
        "type": "object",
        "properties": {"a": {"$ref": "other.json"}, "b": {"$ref": "file:///etc/passwd"}},
    }
    assert judged(schema, {"a": 1, "b": 2}) is None
    assert judged(schema, []) == "the body is not of type object"


def test_numbers_beyond_all_floats() -> None:
    assert text_of(strict_json.loads('{"maximum": 1e400}')) is None
    assert compiled('{"maximum": 1e400}').ignored == ()


def test_openapi_nullable() -> None:
    schema = {"properties": {"a": {"type": "string", "nullable": True}}}
    assert judged(schema, {"a": None}) is None and judged(schema, {"a": 1}) is not None


def wide(n: int) -> Any:
    """References that double at each of *n* steps."""
    steps = {f"d{k}": {"anyOf": [{"$ref": f"#/$defs/d{k + 1}"}] * 2} for k in range(n)}
    return {"$ref": "#/$defs/d0", "$defs": {**steps, f"d{n}": {"type": "string"}}}


def chain(n: int) -> Any:
    """References that lead ever deeper, *n* steps."""
    steps = {f"d{k}": {"items": {"$ref": f"#/$defs/d{k + 1}"}} for k in range(n)}
    return {"$ref": "#/$defs/d0", "$defs": {**steps, f"d{n}": {"type": "string"}}}


def test_schemas_nest_40_deep_at_most() -> None:
    """Python's own recursion limit is no help: eth-account lifts it."""
    assert compiled(json.dumps(chain(900))).ignored == ("schemas nested too deeply",)
    shallow: Any = chain(15)
    assert compiled(json.dumps(shallow)).ignored == ()
    body: Any = 7
    for _ in range(15):
        body = [body]
    assert judged(shallow, body) == "[0]" * 15 + " is not of type string"


FAILS, FITS = {"type": "null"}, {"type": "integer"}


@pytest.mark.parametrize(
    ("schema", "body"),
    [
        (wide(60), [1]),
        (wide(9), [1] * 100),
        (chain(900), [[1]]),
        ({"items": {"anyOf": [*[FAILS] * 1900, FITS]}}, [0] * 100_000),
        ({"items": {"allOf": [FITS] * 60}}, [0] * 300),
        ({"items": {"enum": list(range(5000))}}, [4999] * 5_000),
        ({"anyOf": [FAILS] * 11}, "a" * 1_000_000),
        ({"anyOf": [FAILS] * 1900}, "a" * 1_000_000),
    ],
    ids=range(8),
)
def test_no_schema_takes_long(schema: Any, body: Any) -> None:
    text, raw = json.dumps(schema), json.dumps(body).encode()
    began = time.process_time()
    check_input(text, raw, JSON)
    assert time.process_time() - began < 2
