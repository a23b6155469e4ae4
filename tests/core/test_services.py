"""Which service a URL is, which origin it is on, and what an owner may list."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from x402_mask._policy.offers import payee_fault
from x402_mask._services import Services, is_loopback, origin_of, parse_origins
from x402_mask._wire.assets import (
    DISPUTED_NAMES,
    EIP3009_ASSETS,
    NETWORK_NAMES,
    PERMIT2_ASSETS,
    caip2,
    default_assets,
)

ORIGINS: dict[str, str] = {
    "https://Shop.Example/a?b#c": "https://shop.example",
    "https://shop.example:443/": "https://shop.example",
    "https://shop.example:8443": "https://shop.example:8443",
    "http://localhost:80/x": "http://localhost",
    "http://127.0.0.1:8000/x": "http://127.0.0.1:8000",
    "https://[::1]:8443/x": "https://[::1]:8443",
    "https://[2001:DB8:0:0::1]": "https://[2001:db8::1]",
    "https://user:pass@shop.example/": "https://shop.example",
    "https://münchen.example/": "https://xn--mnchen-3ya.example",
    "HTTPS://SHOP.EXAMPLE": "https://shop.example",
    "https://straße.example": "https://xn--strae-oqa.example",
    "https://FAß.example": "https://xn--fa-hia.example",
}


@pytest.mark.parametrize(("url", "origin"), ORIGINS.items())
def test_origins(url: str, origin: str) -> None:
    """Lower case, without a default port, user or path."""
    assert origin_of(url) == origin == origin_of(origin)


HOSTS = st.text(
    st.characters(
        categories=["Ll", "Lu", "Lo", "Lm", "Mn", "Mc", "Nd", "Pd"],
        include_characters="-.。ßςıİſ\u200d·",
    ),
    min_size=1,
    max_size=12,
)


@given(HOSTS)
def test_an_origin_in_unicode_is_where_the_http_library_goes(host: str) -> None:
    """Contract: the domain that the user meant (IDNA 2008), or refused."""
    url = f"https://{host}.example"
    try:
        meant = httpx.URL(url).raw_host.decode()
    except httpx.InvalidURL:
        with pytest.raises(ValueError, match=r"."):
            parse_origins([url])
        return
    try:
        (listed,) = parse_origins([url])
    except ValueError:
        return
    assert listed == f"https://{meant}"


@pytest.mark.parametrize(
    "host",
    ["strasse", "straße", "fass", "faß", "βόλος", "βόλοσ", "نامه\u200cای", "münchen", "ıstanbul"],
)
def test_domains_that_idna_2003_took_for_others(host: str) -> None:
    """Each is its own, so that a neighbour's domain is never paid in its place."""
    (listed,) = parse_origins([f"https://{host}.example"])
    assert listed == f"https://{httpx.URL(f'https://{host}.example').raw_host.decode()}"
    assert parse_origins([listed]) == {listed}


@pytest.mark.parametrize("host", ["a\u200bb", "ｆｕｌｌ", "Ａ", "☃", "-ä-", "ä" * 64, "a\u0301"])
def test_what_is_no_domain_is_refused(host: str) -> None:
    """Nothing is mapped to something else, as IDNA 2003 did."""
    with pytest.raises(ValueError, match=r"."):
        parse_origins([f"https://{host}.example"])


@pytest.mark.parametrize("url", ["", "shop.example", "/path", "ftp://a", "https://", "mailto:a@b"])
def test_no_origins(url: str) -> None:
    """Not an absolute http(s) URL."""
    with pytest.raises(ValueError, match="URL"):
        origin_of(url)


def test_origins_of_the_owner() -> None:
    """Contract 1: required, not empty, https but for loopback."""
    good = ["https://A.example/", "http://localhost:9", "http://127.0.0.2", "http://[::1]", "mcp:x"]
    assert parse_origins(good) == {
        "https://a.example",
        "http://localhost:9",
        "http://127.0.0.2",
        "http://[::1]",
        "mcp:x",
    }
    for wrong in (
        [],
        ["http://shop.example"],
        ["http://0.0.0.0"],
        ["https://a.example/path"],
        ["https://a.example?x"],
        ["https://u@a.example"],
        ["a.example"],
        ["mcp:"],
        ["http://localhost.evil.example"],
        [""],
        ["https://a.example#f"],
        ["https://*"],
        ["https://*.a.example"],
        ["https://a.example,b.example"],
        ["https://a.example\n.evil.example"],
        ["https://a\t.example"],
        ["https://a .example"],
    ):
        with pytest.raises(ValueError, match=r"."):
            parse_origins(wrong)
    assert parse_origins([" https://a.example\n"]) == {"https://a.example"}
    for odd in ("https://a.example", [7], [None]):
        with pytest.raises(TypeError):
            parse_origins(odd)  # type: ignore[arg-type]


def test_loopback_by_its_very_name() -> None:
    """No lookup: a name that merely resolves to this machine is not loopback."""
    for host in ("localhost", "127.0.0.1", "127.255.0.1", "::1", "[::1]"):
        assert is_loopback(host)
    for host in ("localhost.example", "0.0.0.0", "10.0.0.1", "", "127.1", "::2"):
        assert not is_loopback(host)


SERVICES = Services(
    {"photos": "https://api.example.com/v1/photos/*", "all": "https://api.example.com/*"}
)
NAMES = {
    "https://x402vip.com/api/tools/mask-refinement": "mask-refinement",
    "https://x402vip.com/api/tools/mask-refinement/": "mask-refinement",
    "https://x402vip.com/api/tools/aliyun-imageseg-refine-mask": "mask-refinement",
    "https://other.example/api/tools/mask-refinement?a=1": "mask-refinement",
    "https://x402vip.com/api/tools/mask%2Drefinement": "mask-refinement",
    "https://x402vip.com/api/tools/": "https://x402vip.com",
    "https://x402vip.com/api/tools/a/b": "https://x402vip.com",
    "https://x402vip.com/api/tools/-x": "https://x402vip.com",
    "https://x402vip.com/": "https://x402vip.com",
    "https://x402vip.com": "https://x402vip.com",
    "https://api.example.com/v1/photos/1": "photos",
    "https://api.example.com/v1/videos": "all",
    "https://api.example.com:8443/v1/photos/1": "https://api.example.com:8443",
    "http://api.example.com/v1/photos/1": "http://api.example.com",
    "https://api.example.com/api/tools/x": "x",
}


@pytest.mark.parametrize(("url", "name"), NAMES.items())
def test_services(url: str, name: str) -> None:
    """Contract 3: the marketplace's path, then the owner's patterns, then the origin."""
    assert SERVICES.name(url) == name


CANONICAL = {
    "*": "*",
    "mask-refinement": "mask-refinement",
    " aliyun-imageseg-refine-mask ": "mask-refinement",
    "/api/tools/x": "x",
    "https://a.example": "https://a.example",
    "https://A.example/": "https://a.example",
    "https://a.example/api/tools/aliyun-imageseg-refine-mask": "mask-refinement",
    "photos": "photos",
    "whatever": "whatever",
}


@pytest.mark.parametrize(("written", "name"), CANONICAL.items())
def test_what_a_person_may_write(written: str, name: str) -> None:
    """In a cap, or on the command line."""
    assert SERVICES.canonical(written) == name


def test_patterns_are_checked() -> None:
    """A pattern that can never match is a mistake."""
    for wrong in ({"": "https://a.example/*"}, {"*": "https://a.example/*"}, {"x": "/path/*"}):
        with pytest.raises(ValueError, match=r"."):
            Services(wrong)
    aliased = Services({"aliyun-imageseg-refine-mask": "https://a.example/*"})
    assert aliased.name("https://a.example/x") == "mask-refinement"


@given(
    st.from_regex(
        r"https://[a-z]{1,9}\.example(:[1-9][0-9]{0,3})?(/[A-Za-z0-9%._~-]{0,12}){0,4}",
        fullmatch=True,
    )
)
def test_naming_is_stable(url: str) -> None:
    """A canonical name is its own canonical name; nothing in a path moves a call off its origin."""
    name = SERVICES.name(url)
    assert SERVICES.canonical(name) == name
    assert name == origin_of(url) or "/api/tools/" in url or "api.example.com" in url


def test_the_registry_is_sound() -> None:
    """One entry per token, honest addresses, names that lead to known networks."""
    every = [*EIP3009_ASSETS, *PERMIT2_ASSETS]
    assert len({(asset.network, asset.address.lower()) for asset in every}) == len(every) == 31
    for asset in every:
        assert payee_fault(asset.address, payer=None, asset="") is None, asset
    assert all(caip2(name) == chain for name, chain in NETWORK_NAMES.items())
    assert caip2("eip155:7") == "eip155:7" and set(NETWORK_NAMES) >= DISPUTED_NAMES
    assert [asset.name for asset in default_assets(frozenset({"eip155:8453"}))] == ["USD Coin"]
    assert default_assets(frozenset()) == ()


def test_fixtures_are_part_of_the_project() -> None:
    """The vectors carry no address of a machine or a registry."""
    for path in (Path(__file__).parents[2] / "fixtures" / "vectors").glob("*.json"):
        document: Any = json.loads(path.read_text())
        assert document["vectors"] and "/work" not in path.read_text()


@pytest.mark.parametrize("pattern", ["/v?/x", "/v/x?a=*", "/v/x#a", "/v/x?"])
def test_a_pattern_of_more_than_a_path_is_refused(pattern: str) -> None:
    """It would be cut there without a word, and its cap bind something else."""
    with pytest.raises(ValueError, match="only the path of a call is compared"):
        Services({"dear": f"https://a.example{pattern}"})
    assert Services({"dear": "https://a.example/v[12]/*"}).name("https://a.example/v2/x") == "dear"
    assert Services({"dear": "mcp:shop/v?"}).name("mcp:shop/v1") == "dear"
