"""A cap holds for every spelling that a usual server takes for its service (contract 3)."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.core.hand import SHOP, Hand
from x402_mask import Cap, CapExceeded
from x402_mask._flow.records import CallState
from x402_mask._ledger.counters import over_cap
from x402_mask._models import Spend
from x402_mask._policy.caps import applying, compile_caps, named
from x402_mask._services import Services, service_key, tool_url
from x402_mask._spelling import readings

HOST = "https://shop.example"
SERVICES = Services({"dear": f"{HOST}/V1/dear//*", "page": f"{HOST}/page"})

SAME: dict[str, str] = {
    "/api/tools/Mask-Refinement": "case",
    "/API/Tools/mask-refinement": "case of the folders",
    "/api/tools//mask-refinement": "slashes",
    "//api///tools/mask-refinement//": "more slashes",
    "/api\\tools\\mask-refinement": "slashes of the other sort",
    "/api%5Ctools%5cmask-refinement": "those, encoded",
    "/api/tools/x/%2e%2e/mask-refinement": "dot segments, encoded",
    "/api/tools/x/%252e%252E/mask-refinement": "... twice",
    "/api/tools/x/.%2e/mask-refinement": "... by half",
    "/api/tools/x//%2e%2e/mask-refinement": "slashes merged before dots are resolved",
    "/api/tools/x%2f..%2fmask-refinement": "slashes, encoded",
    "/api/tools/%2e/mask-refinement": "one dot",
    "/x/..;/api/tools/mask-refinement": "parameters of a dot segment",
    "/x/..;a=b/api;c/tools;d=e/mask-refinement;v=1": "parameters everywhere",
    "/api/tools/mask-refinement%3Bv=1": "parameters, encoded",
    "/api/tools/mask-refinement;%2f..%2f..%2fhealth": "parameters cut before they are decoded",
    "/api/tools/mask-refinement;/../../tools/mask-refinement": "parameters and dots",
    "/api/tools/mask-refinement%20": "a blank",
    "/api/tools/%20mask-refinement%09": "blanks round it",
    "/api/tools/x/..%20/mask-refinement": "a blank after dots",
    "/api/tools/x/%252e%252e/%2e%2e/%252e%252e/mask-refinement": "dots, resolved at each decoding",
    "/api/tools/a%5Cb%2f..%2fmask-refinement": "a backslash that is a letter",
    "/api/tools/%2e%2e%20/%2e%2e/mask-refinement": "dots with a blank that are a name",
    "/api/tools/.%09/%2e%2e/mask-refinement": "a dot with a blank that is a name",
    "/api/tools/.%00/%2e%2e/mask-refinement": "a dot with a NUL that is a name",
    "/api/tools/mask-refinement;/x": "all that is behind the first parameter",
    "/api/tools/mask-refinement.": "a dot at the end",
    "/api./tools%20/mask-refinement...%20.": "dots and blanks",
    "/api/tools/mask-refinement%00": "a NUL",
    "/api/tools/mask-refinement%00.png": "what a NUL ends",
    "/api/tools/mask%00-refinement": "a NUL left out",
    "/api/tools/mask-refinement%3Fa=b": "a query, encoded",
    "/api/tools/mask-refinement%23a": "a fragment, encoded",
    "/api%2ftools%2fmask-refinement": "a decoding proxy",
    "/api/tools/mask%2Drefinement": "letters",
    "/%61pi/t%256Fols/m%61sk-refinement": "letters, encoded once and twice",
    "/api/tools/%u006dask-refinement": "letters, encoded as IIS reads them",
    "/api%u002ftools%u005Cmask-refinement": "slashes, encoded so",
    "/api/tools/%EF%BD%8Dask-refinement": "a letter of another width",
    "/api%EF%BC%8Ftools/mask-refinement%EF%BC%8E": "a slash and a dot of another width",
    "/api/tools/m%C3%A1sk-refinement": "an accent",
    "/api/tools/mask%E2%80%90refinement": "another hyphen",
    "/api/tools/%EF%BB%BFmask-refinement%E2%80%8B": "what is not seen",
    "/api/tools/mask-%0Arefinement%01": "control characters",
    "/api/tools/mask-refinement+": "a plus sign for a blank",
    "/api/tools/aliyun-imageseg-refine-mask": "the alias",
    "/api/tools/Aliyun-ImageSeg-Refine-Mask": "the alias in another case",
    "//api/tools/%41liyun-imageseg-refine-mask;x/": "the alias, spelled",
}


def keys(url: str, tool: str | None = None) -> set[str]:
    """Every service whose caps a call counts for."""
    return {service_key(SERVICES.name(url)), *SERVICES.also(url, tool)}


@pytest.mark.parametrize("path", SAME, ids=SAME.get)
def test_one_service_however_it_is_spelled(path: str) -> None:
    """As Express, IIS, nginx, Envoy, Tomcat, Jetty and servers in C route it."""
    assert "mask-refinement" in keys(HOST + path)


@pytest.mark.parametrize(
    "path", ["/api/tools/mask-refinement", "/api/tools/mask-refinement/", "/v2/dear/1", "/page", ""]
)
def test_a_plain_spelling_counts_for_its_own_service_only(path: str) -> None:
    """So nothing changes for whoever spells as usual, also of services that share a pattern."""
    assert SERVICES.also(HOST + path) == ()


def test_the_first_pattern_that_matches_a_reading_counts() -> None:
    """A wider pattern further down is not that of a plainly spelled call."""
    wide = Services({"free": f"{HOST}/x/free/*", "dear": f"{HOST}/x/*", "all": f"{HOST}/*"})
    assert wide.also(f"{HOST}/x/free/1") == wide.also(f"{HOST}/x/1") == ()
    assert wide.also(f"{HOST}/x/free/..%2f1") == ("dear",)
    assert wide.also(f"{HOST}/X/free/1") == ("free",)
    assert wide.name(f"{HOST}/X/free/1") == "all"


@pytest.mark.parametrize(
    "path", ["/V1/dear/1", "/v1/DEAR/1", "/V1//dear/", "/v1/x/%2e%2e/dear/1", "/v1;a/dear%2f1"]
)
def test_patterns_of_the_owner(path: str) -> None:
    """Their own spelling does not matter either."""
    assert "dear" in keys(HOST + path)


def test_patterns_with_accents_hold_however_they_are_composed() -> None:
    """One letter, a letter and its accent, or none: a call counts, and for nothing besides."""
    menu = Services({"menu": f"{HOST}/café+bar/*"})
    for path in ("/caf%C3%A9+bar/1", "/CAF%C3%89+bar/1", "/cafe%CC%81+bar/1", "/cafe%20bar/1"):
        url = HOST + path
        assert "menu" in {menu.name(url), *menu.also(url)}
    assert menu.also(f"{HOST}/caf%C3%A9+bar/1") == ()


@pytest.mark.parametrize("tool", ["Mask_Refinement", "mask_refinement ", "mask_refinement;v=1"])
def test_tools_of_mcp(tool: str) -> None:
    """A name that is no id leaves the call at its place, and counts for the service all the same."""
    assert "mask-refinement" in keys(tool_url("mcp:shop", tool), tool)
    assert SERVICES.also(tool_url("mcp:shop", "mask_refinement"), "mask_refinement") == ()


@pytest.mark.parametrize(
    "name",
    ["Mask-Refinement", "mask-refinement.", " mask-refinement/", "ALIYUN-imageseg-refine-mask"],
)
def test_names_in_a_cap_are_read_the_same_way(name: str) -> None:
    """A cap that is spelled oddly binds; a permission it is not."""
    (limit,) = compile_caps([Cap(1, per="day", service=name)], SERVICES.canonical)
    assert applying([limit], "mask-refinement") == (limit,)
    assert not named([limit], "mask-refinement")


def test_a_call_of_a_tool_counts_for_the_service_that_its_name_may_be() -> None:
    """Also where the name is no id, so that the call is one to the server itself."""
    cap = Cap("0.0001", per="call", service="mask-refinement")
    hand = Hand(options={"caps": [Cap(1, per="day"), cap]})
    for tool in ("mask_refinement ", "Mask_Refinement;v=1", " aliyun_imageseg_refine_mask"):
        url = tool_url(SHOP, tool)
        with pytest.raises(CapExceeded):
            hand.call(url=url, state=CallState(origin=SHOP, url=url, tool=tool))


# --- any spelling -----------------------------------------------------------------------------------


def _letter(letter: str, how: int) -> str:
    """In another case, encoded, or encoded twice; most stay as they are."""
    changed = {0: letter.swapcase(), 1: f"%{ord(letter):02x}", 2: f"%25{ord(letter):02X}"}
    return changed.get(how, letter)


@st.composite
def spellings(draw: Any, segments: tuple[str, ...]) -> str:
    """A path that a chain of usual servers reads as these segments."""
    noise = st.sampled_from(
        ["", "", "", "/.", "/%2e", "/x/..", "/y/%2E%2e", "/z/%252e%252e", "/.;a=1", "/w/..;b"]
    )
    end = st.sampled_from(["", "", "", ";v=1", ";a;b", ".", "%20", "..", "%09", "%2e"])
    slash = st.sampled_from(["/", "/", "/", "//", "%2f", "\\", "/%2F"])
    path = ""
    for segment in segments:
        path += (
            draw(noise)
            + draw(slash)
            + "".join(_letter(c, draw(st.integers(0, 9))) for c in segment)
            + draw(end)
        )
    path += draw(st.sampled_from(["", "/", "//", "%00", ";", "/."]))
    return path if path.startswith("/") else "/" + path


@given(spellings(("api", "tools", "mask-refinement")))
def test_every_spelling_counts(path: str) -> None:
    """The caps of the canonical service always apply."""
    assert "mask-refinement" in keys(HOST + path), readings(path)


@given(spellings(("v1", "dear", "thing")))
def test_every_spelling_of_a_pattern_counts(path: str) -> None:
    """Those of an owner's pattern too."""
    assert "dear" in keys(HOST + path), readings(path)


CAPS = [
    Cap(1, per="day"),
    Cap(2, per="day", service="mask-refinement"),
    Cap(3, per="day", service="Mask-Refinement"),
    Cap(4, per="hour", service="dear"),
    Cap(5, per="call", service="page"),
    Cap(6, per="total", service=HOST),
    Cap(7, per="day", service="x"),
    Cap(8, per="day", service="x."),
]
ANY = st.text("/.;%2eExX\\ \x00?#Page", max_size=12) | st.text(max_size=12)


@given(
    st.sampled_from(["", "/api/tools/x", "/page", "/v1/dear", "/api/tools/Mask-Refinement"]), ANY
)
def test_reading_never_takes_a_cap_away_nor_allows_a_call(start: str, rest: str) -> None:
    """Whatever the path is: what its plain name brings stays, and only that is a permission."""
    path = start + rest if start or rest.startswith("/") else "/" + rest
    url = HOST + (path if "?" not in path else path.replace("?", "%3f")).replace("#", "%23")
    service, also = SERVICES.name(url), SERVICES.also(url)
    limits = compile_caps(CAPS, SERVICES.canonical)
    found = applying(limits, service, also)
    assert {x.name for x in limits if x.scope in ("*", service)} <= {x.name for x in found}
    only_read = [x for x in found if x.scope not in ("*", service)]
    spends = [
        Spend(
            service=x.scope,
            per=x.cap.per,
            limit=x.cap.limit,
            settled=x.cap.limit * 0,
            held=x.cap.limit * 0,
            left=x.cap.limit,
            resets_at=None,
        )
        for x in only_read
    ]
    refusal = over_cap(only_read, spends, 1, service)
    assert refusal is not None and refusal.reason == "no_cap"


@given(st.text(max_size=40))
def test_keys_are_stable(name: str) -> None:
    """A key is its own key: what was counted once is found again."""
    assert service_key(service_key(name)) == service_key(name)
