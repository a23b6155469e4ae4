"""A call often needs a login and a payment at once (fact 2.11)."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Generator
from typing import Any

import pytest

from tests.support.seller import Reply, offer, play, served, v2_header
from tests.transport.kit import SHOP, URL, Leg, Rig, kinds

LOGIN = ("attach", "auth", "client", "transport")


def guarded(authorized: Any, answer: Any) -> Any:
    """Answer 401 to who is not authorized, else sell."""

    def script(leg: Leg) -> Reply:
        if not authorized(leg):
            challenge = ("WWW-Authenticate", 'Digest realm="r", nonce="n", qop="auth"')
            return Reply(status=401, headers=[challenge])
        return play(answer if leg.proofs else v2_header(offer()), leg)

    return script


def basic(leg: Leg) -> bool:
    """The header of me:secret."""
    token = base64.b64encode(b"me:secret").decode()
    return leg.header("authorization") == f"Basic {token}"


@kinds(*LOGIN)
async def test_basic_auth_and_payment(rig: Rig) -> None:
    """The login is on both legs."""
    rig.on(URL, guarded(basic, served()))
    rig.client = rig.make_client(auth=rig.lib.BasicAuth("me", "secret"))
    rig.paid(await rig.get())
    assert len(rig.legs) == 2 and all(basic(leg) for leg in rig.legs)


@kinds(*LOGIN)
async def test_userinfo_of_the_url_and_payment(rig: Rig) -> None:
    """The rule of httpx for ``https://me:secret@host`` is not lost behind our auth."""
    rig.on(URL, guarded(basic, served()))
    rig.paid(await rig.get("https://me:secret@shop.example/paid"))
    assert len(rig.legs) == 2 and all(basic(leg) for leg in rig.legs)


def digest(leg: Leg) -> bool:
    """Whether the response of a Digest login is right (RFC 7616, MD5, qop=auth)."""
    header = leg.header("authorization") or ""
    found = dict(re.findall(r'(\w+)="?([^",]+)"?', header))
    if not header.startswith("Digest "):
        return False
    ha1 = hashlib.md5(b"me:r:secret").hexdigest()
    ha2 = hashlib.md5(f"{leg.method}:{leg.target}".encode()).hexdigest()
    text = f"{ha1}:n:{found['nc']}:{found['cnonce']}:auth:{ha2}"
    return found["response"] == hashlib.md5(text.encode()).hexdigest()


@kinds(*LOGIN)
async def test_digest_auth_and_payment(rig: Rig) -> None:
    """A login in two steps, then a payment, then a second call that is logged in already."""
    rig.on(URL, guarded(digest, served()))
    rig.client = rig.make_client(auth=rig.lib.DigestAuth("me", "secret"))
    first = await rig.post(json={"a": 1})
    rig.paid(first)
    assert [bool(leg.proofs) for leg in rig.legs] == [False, False, True]
    assert all(leg.body == rig.legs[0].body for leg in rig.legs)
    rig.paid(await rig.post(json={"a": 1}))
    assert len(set(rig.proofs)) == 2 and rig.states() == ["settled", "settled"]


def refreshing(rig: Rig) -> Any:
    """An auth that fetches a new bearer token when the old one is refused."""
    lib = rig.lib

    class Refresh(lib.Auth):  # type: ignore[misc]
        requires_response_body = False
        token = "old"

        def auth_flow(self, request: Any) -> Generator[Any, Any, None]:
            request.headers["Authorization"] = f"Bearer {self.token}"
            response = yield request
            if response.status_code == 401:
                fresh = yield lib.Request("POST", SHOP + "/token")
                self.token = fresh.headers["x-token"]
                request.headers["Authorization"] = f"Bearer {self.token}"
                yield request

    return Refresh()


@kinds(*LOGIN)
async def test_a_token_that_is_refreshed_before_payment(rig: Rig) -> None:
    """The refresh is another request of the same flow: unpaid, and unharmed."""
    rig.on(URL, guarded(lambda leg: leg.header("authorization") == "Bearer new", served()))
    rig.on("/token", Reply(headers=[("X-Token", "new")]))
    rig.client = rig.make_client(auth=refreshing(rig))
    rig.paid(await rig.get())
    assert [leg.target for leg in rig.legs] == ["/paid", "/token", "/paid", "/paid"]
    assert [bool(leg.proofs) for leg in rig.legs] == [False, False, False, True]


@kinds(*LOGIN)
async def test_a_token_that_runs_out_at_the_paid_leg_costs_one_payment(rig: Rig) -> None:
    """A 401 to the proof leaves the operation open: the same bytes are shown after the refresh."""

    def fresh(leg: Leg) -> bool:
        return not leg.proofs or leg.header("authorization") == "Bearer new"

    rig.on(URL, guarded(fresh, served()))
    rig.on("/token", Reply(headers=[("X-Token", "new")]))
    rig.client = rig.make_client(auth=refreshing(rig))
    rig.paid(await rig.get())
    assert len(rig.proofs) == 2 and len(set(rig.proofs)) == 1
    assert rig.states() == ["settled"]


@kinds("attach", "auth")
async def test_a_token_endpoint_that_asks_for_money_is_paid_like_any_other(rig: Rig) -> None:
    """Each request of the inner flow is a call of its own."""
    rig.on(URL, guarded(lambda leg: leg.header("authorization") == "Bearer new", served()))
    rig.sells(url=SHOP + "/token", paid=served(headers=[("X-Token", "new")]))
    rig.client = rig.make_client(auth=refreshing(rig))
    rig.paid(await rig.get())
    assert rig.states() == ["settled", "settled"]


@kinds("attach")
async def test_functions_and_pairs_are_auth_too(rig: Rig) -> None:
    """What ``auth=`` of a client takes."""
    rig.on(URL, guarded(basic, served()))
    rig.client = rig.make_client(auth=("me", "secret"))
    rig.paid(await rig.get())

    def sign(request: Any) -> Any:
        request.headers["X-Signed"] = "yes"
        return request

    rig.on(URL, guarded(lambda leg: leg.header("x-signed") == "yes", served()))
    rig.client = rig.make_client(auth=sign)
    rig.paid(await rig.get())


@kinds("attach", "auth")
async def test_an_auth_that_fails_fails_as_it_would_alone(rig: Rig) -> None:
    """Its own exceptions pass; ours are not in between."""
    lib = rig.lib

    class Failing(lib.Auth):  # type: ignore[misc]
        def auth_flow(self, request: Any) -> Generator[Any, Any, None]:
            yield request
            raise LookupError("no login")

    rig.sells()
    rig.client = rig.make_client(auth=Failing())
    with pytest.raises(LookupError, match="no login"):
        await rig.get()
    assert rig.states() == ["settled"] and rig.all_closed()


@kinds("attach", "auth")
async def test_an_auth_that_asks_for_the_body_gets_it(rig: Rig) -> None:
    """``requires_response_body`` of the inner auth is honoured, as httpx would."""
    lib, seen = rig.lib, []

    class Reading(lib.Auth):  # type: ignore[misc]
        requires_response_body = True

        def auth_flow(self, request: Any) -> Generator[Any, Any, None]:
            response = yield request
            seen.append(response.content)

    rig.sells()
    rig.client = rig.make_client(auth=Reading())
    rig.paid(await rig.get())
    assert seen == [b"goods"]
