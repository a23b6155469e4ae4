"""The error tree that is drawn is the tree there is; the codes that are listed are those in use."""

from __future__ import annotations

import ast
import re
from decimal import Decimal
from pathlib import Path

import httpx
import httpx2

import x402_mask
from x402_mask import Cap, errors

SOURCE = Path(errors.__file__).parent
TREE = re.compile(r"^    ([│├└─ ]*)(\w+)  ", re.MULTILINE)


def drawn() -> dict[str, str]:
    """Each class of the drawing, and its parent."""
    found: dict[str, str] = {}
    path: list[str] = []
    assert errors.__doc__ is not None
    for branch, name in TREE.findall(errors.__doc__):
        depth = len(branch) // 4
        path = [*path[:depth], name]
        if depth:
            found[name] = path[depth - 1]
    return found


def test_the_tree_is_drawn_as_it_is() -> None:
    """Contract 5."""
    classes = {
        name: kind.__mro__[1].__name__
        for name, kind in vars(errors).items()
        if isinstance(kind, type)
        and issubclass(kind, Exception)
        and kind is not errors.PaymentError
    }
    assert drawn() == classes and len(classes) == 13
    assert errors.PaymentError.__mro__[1] is Exception


def test_every_error_is_public() -> None:
    """From the package root."""
    for name in {*drawn(), "PaymentError"}:
        assert getattr(x402_mask, name) is getattr(errors, name) and name in x402_mask.__all__


def test_no_error_is_an_error_of_the_http_libraries() -> None:
    """Row 35: a retry library must not repeat a refusal."""
    for name in {*drawn(), "PaymentError"}:
        kind = getattr(errors, name)
        assert not issubclass(kind, (httpx.HTTPError, httpx2.HTTPError, OSError))


def listed() -> set[str]:
    """The codes of the table."""
    assert errors.__doc__ is not None
    table = errors.__doc__.split("====\n")
    return set(re.findall(r"^``(\w+)``", table[1], re.MULTILINE))


def used() -> set[str]:
    """Codes in the source: ``reason="..."``, defaults, and the codes of skipped offers."""
    found: set[str] = set()
    others = {"_chain", "agent", "cli", "sandbox"}  # which have reasons of another sort
    for path in SOURCE.rglob("*.py"):
        if path.relative_to(SOURCE).parts[0] in others:
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.keyword) and node.arg == "reason":
                found |= constants(node.value)
            if isinstance(node, (ast.Assign, ast.AnnAssign)):
                names = {t.id for t in ast.walk(node) if isinstance(t, ast.Name)}
                if names & {"default_reason", "_REASONS"} and node.value is not None:
                    found |= constants(node.value)
    return found - {"refused"}


def constants(node: ast.AST) -> set[str]:
    """The texts in an expression."""
    return {
        one.value
        for one in ast.walk(node)
        if isinstance(one, ast.Constant) and isinstance(one.value, str)
    }


def test_the_codes_listed_are_those_used() -> None:
    """Stable codes: what is raised is listed."""
    assert used() == listed()


def test_what_errors_carry() -> None:
    """Contract 5."""
    plain = errors.PaymentError("x")
    assert (plain.at_risk, plain.payment_id, plain.response) == (False, None, None)
    assert errors.TokenFlowError("x", at_risk=True, payment_id="p").at_risk is True
    assert errors.TokenFlowError("x").at_risk is False
    refused = errors.PaymentRefused("x", payment_id="p")
    assert (refused.reason, refused.quote, refused.payment_id) == ("refused", None, "p")
    cap = Cap(1, per="day")
    over = errors.CapExceeded("x", cap=cap, wanted=Decimal(2), left=Decimal(1), resets_at=None)
    assert (over.reason, over.cap, over.wanted, over.left, over.resets_at) == (
        "cap",
        cap,
        2,
        1,
        None,
    )
    for kind, code in (
        (errors.OriginRefused, "origin"),
        (errors.OfferRefused, "no_offer"),
        (errors.InputRefused, "input"),
        (errors.ApprovalDenied, "approval"),
        (errors.BodyNotReplayable, "body"),
        (errors.Paused, "paused"),
    ):
        assert kind("x").reason == code and kind("x", reason="other").reason == "other"
