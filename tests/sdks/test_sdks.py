"""openai 2 and 3, anthropic, groq and mcp, as their users meet this library."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest

from tests.sdks.conftest import WORDS
from tests.support.seller import Seller

Program = Callable[..., Any]
Sdks = Callable[[str], str]

VERSIONS = {"openai2": "2.", "openai3": "3.", "anthropic": "2.", "groq": "1."}
WAYS = list(itertools.product(["client", "attach"], ["sync", "async"]))
CASES: dict[str, dict[str, Any]] = {
    f"{what}-{plug}-{colour}": {"plug": plug, "colour": colour, "retries": 2, **how}
    for plug, colour in WAYS
    for what, how in {
        "paid": {"approve": True, "on_refusal": None},
        "returned": {"approve": False, "on_refusal": "return"},
    }.items()
}
CASES["raised"] = {
    "plug": "client",
    "colour": "sync",
    "retries": 1,
    "approve": False,
    "on_refusal": None,
}


@pytest.fixture(scope="module", params=VERSIONS)
def saw(
    request: pytest.FixtureRequest, program: Program, sdks: Sdks, seller: Seller
) -> dict[str, Any]:
    """What one program saw of an SDK, case by case, and how often it asked the seller."""
    sdk = request.param
    cases = [
        {**how, "case": f"{sdk} {case}", "sdk": sdk, "origin": seller.origin}
        for case, how in CASES.items()
    ]
    told = dict(
        zip(CASES, program(cases, sdks("openai2" if sdk == "openai2" else "sdks")), strict=True)
    )
    for case, found in told.items():
        assert found["version"].startswith(VERSIONS[sdk])
        found["hits"] = [hit for hit in seller.hits if hit.header("x-case") == f"{sdk} {case}"]
    return told


@pytest.mark.parametrize(("plug", "colour"), WAYS)
def test_an_sdk_pays(saw: dict[str, Any], plug: str, colour: str) -> None:
    found = saw[f"paid-{plug}-{colour}"]
    assert (found["said"], found["error"], found["payments"]) == (WORDS, None, [["settled", False]])
    assert len(found["hits"]) == 2 and found["questions"] == 1


@pytest.mark.parametrize(("plug", "colour"), WAYS)
def test_a_refusal_is_said_once_and_in_our_words(
    saw: dict[str, Any], plug: str, colour: str
) -> None:
    """Handed back: one request, one question, and the reason reaches the program."""
    found = saw[f"returned-{plug}-{colour}"]
    assert "402" in found["error"] and found["said"] is None
    assert found["reason"] == "approval"
    assert found["refusal"].startswith("approve() did not approve")
    assert found["header"] == found["refusal"]
    assert (found["questions"], len(found["hits"]), found["payments"]) == (1, 1, [])


def test_an_owner_is_asked_once_however_often_an_sdk_repeats_it(saw: dict[str, Any]) -> None:
    """Raised: an SDK may take it for a broken connection, and still ours is behind its error."""
    found = saw["raised"]
    assert (found["reason"], found["questions"], found["payments"]) == ("approval", 1, [])
    assert len(found["hits"]) <= 2 and not any(hit.proofs for hit in found["hits"])


@pytest.mark.parametrize(
    ("wanted", "first", "stamped"),
    [
        ("openai2", ["openai"], True),
        ("sdks", ["openai"], True),
        ("sdks", ["anthropic", "mcp"], False),
        ("sdks", ["groq", "openai", "anthropic", "mcp"], True),
    ],
)
def test_any_sdk_may_have_been_imported_first(
    program: Program, sdks: Sdks, seller: Seller, wanted: str, first: list[str], stamped: bool
) -> None:
    """Even one that writes its name on the classes of the HTTP library."""
    saw = program({"origin": seller.origin, "first": first}, sdks(wanted))
    assert saw["said"] == [["0.001", 200]] * 8
    if stamped:
        assert not {"httpx", "httpx2"} >= set(saw["stamps"])
