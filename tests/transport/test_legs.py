"""What the paid leg has in common with the first: headers, cookies, extensions, time-outs, URLs."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.deciding import decide
from tests.support.seller import (
    PROOF_HEADERS,
    Reply,
    offer,
    offer_server402,
    paywall,
    served,
    server402_body,
    v2_header,
)
from tests.transport.kit import SHOP, URL, Leg, Rig, kinds


def without_proof(leg: Leg) -> list[tuple[str, str]]:
    """The headers of a leg, in order and spelling, but for payment headers."""
    return [(k, v) for k, v in leg.headers if k.lower() not in PROOF_HEADERS]


@kinds()
async def test_headers_survive_with_repeats_order_and_case(rig: Rig) -> None:
    """Fact 3.5."""
    rig.sells()
    mine = [("X-D", "a"), ("x-d", "b"), ("Cookie", "a=1"), ("X-CamelCase", "Kept")]
    rig.paid(await rig.post(json={"a": 1}, headers=mine))
    first, paid = rig.legs
    assert without_proof(paid) == [*without_proof(first), ("cache-control", "no-store, no-cache")]
    assert paid.values("x-d") == ["a", "b"] and ("X-CamelCase", "Kept") in paid.headers
    assert [name for name, _ in paid.headers if name.lower() in PROOF_HEADERS] == [
        "PAYMENT-SIGNATURE"
    ]


@kinds()
async def test_url_and_query_survive_exactly(rig: Rig) -> None:
    """Spelling included: a seller may sign over it."""
    rig.sells(url=SHOP + "/p%20a/th")
    rig.paid(await rig.get(SHOP + "/p%20a/th?b=2&a=1&a=%2F", params=None))
    first, paid = rig.legs
    assert first.target == paid.target == "/p%20a/th?b=2&a=1&a=%2F"


@kinds()
async def test_extensions_and_timeouts_govern_both_legs(rig: Rig) -> None:
    """Fact 3.10: a bare request has no time-out; a copy keeps the caller's."""
    rig.sells()
    timeout = rig.lib.Timeout(1.0, read=2.0, pool=3.0)
    rig.paid(await rig.get(timeout=timeout, extensions={"sni_hostname": "a.example"}))
    first, paid = rig.legs
    expected = {"connect": 1.0, "read": 2.0, "write": 1.0, "pool": 3.0}
    assert first.timeout == paid.timeout == expected
    assert paid.request.extensions["sni_hostname"] == "a.example"


@kinds("client")
async def test_our_clients_wait_longer_for_an_answer(rig: Rig) -> None:
    """Contract 1: 5 s, and 60 s to read; what the caller says wins."""
    rig.sells()
    await rig.get()
    assert rig.legs[1].timeout == {"connect": 5.0, "read": 60.0, "write": 5.0, "pool": 5.0}
    assert rig.make_client(timeout=7).timeout == rig.lib.Timeout(7)


@kinds()
async def test_cookies_of_caller_and_402_reach_the_paid_leg(rig: Rig) -> None:
    """Fact 3.9: a session that the 402 opened is the session that is paid for."""
    asked = v2_header(offer())
    asked.headers.extend([("Set-Cookie", "session=new; Path=/"), ("Set-Cookie", "b=2; Path=/")])
    rig.on(URL, paywall(asked, served()))
    client = rig.make_client(cookies={"mine": "1", "session": "old"})
    rig.client = client
    rig.paid(await rig.get())
    first, paid = rig.legs
    assert set((first.header("cookie") or "").split("; ")) == {"mine=1", "session=old"}
    assert set((paid.header("cookie") or "").split("; ")) == {"mine=1", "session=new", "b=2"}


@kinds()
async def test_cookies_for_another_place_do_not_reach_the_paid_leg(rig: Rig) -> None:
    """Fact 3.9: the jar's rules apply."""
    asked = v2_header(offer())
    asked.headers.append(("Set-Cookie", "x=1; Path=/elsewhere"))
    asked.headers.append(("Set-Cookie", "y=1; Domain=evil.example"))
    rig.on(URL, paywall(asked, served()))
    rig.paid(await rig.get())
    assert rig.legs[1].header("cookie") is None


@kinds()
async def test_cookies_of_a_marketplace_stay_with_its_payment(rig: Rig) -> None:
    """One jar per payment: it may know its client by a cookie.  The caller's own stay out of it."""
    tool, till = SHOP + "/api/tools/one", SHOP + "/api/payments"
    given = [("Set-Cookie", "client=new"), ("Set-Cookie", "z=1; Domain=evil.example")]
    asked = server402_body(offer_server402("1000"))
    rig.on(tool, lambda hit: Reply() if hit.header("x-payment-token") else asked)
    rig.on(till, Reply(body=b'{"paymentId": "p1", "status": "pending"}', headers=given))
    rig.on(till + "/p1", Reply(body=b'{"paymentId": "p1", "status": "paid", "token": "t1"}'))
    decide(rig.payer, prefer=("token",))
    rig.client = rig.make_client(cookies={"mine": "1", "client": "old"})
    assert (await rig.get(tool)).status_code == 200
    sent = [set((leg.header("cookie") or "").split("; ")) for leg in rig.legs]
    mine = {"mine=1", "client=old"}
    assert sent == [mine, {""}, {"client=new"}, {"mine=1", "client=new"}]


@kinds()
async def test_cookies_of_the_paid_answer_reach_the_jar(rig: Rig) -> None:
    """As with any answer."""
    rig.sells(paid=served(headers=[("Set-Cookie", "bought=1; Path=/")]))
    response = await rig.get()
    assert response.cookies["bought"] == "1" and rig.client.cookies["bought"] == "1"


@kinds()
async def test_elapsed_and_http_version_are_there(rig: Rig) -> None:
    """An answer is an answer of the client: what reads it need not know of payments."""
    rig.sells()
    response = await rig.get()
    assert response.elapsed.total_seconds() >= 0 and response.http_version == "HTTP/1.1"
    assert response.request.url == rig.lib.URL(URL) and response.is_success
    assert response.default_encoding == "utf-8"
    rig.on(URL, Reply(status=402, body=b"no challenge"))
    assert (await rig.get()).elapsed.total_seconds() >= 0


def failing(rig: Rig, name: str, *, paid: bool) -> Any:
    """A script that raises on one of the legs."""

    def script(leg: Leg) -> Reply:
        if bool(leg.proofs) is paid:
            raise getattr(rig.lib, name)("boom", request=leg.request)
        return v2_header(offer())

    return script


FAULTS = ("ReadTimeout", "ConnectError", "ReadError", "RemoteProtocolError", "PoolTimeout")


@kinds()
async def test_a_fault_of_the_paid_leg_passes_unchanged_with_a_note(rig: Rig) -> None:
    """Fact 2.1 and contract 2.5: the type, the request and the text are httpx's own."""
    for name in FAULTS:
        url = f"{SHOP}/{name}"
        rig.legs.clear()
        rig.on(url, failing(rig, name, paid=True))
        with pytest.raises(getattr(rig.lib, name), match="boom") as caught:
            await rig.get(url)
        assert type(caught.value) is getattr(rig.lib, name)
        row = rig.payer.payments()[0]
        assert (row.state, row.open, row.outcome) == ("held", True, "unknown")
        assert name in row.note
        assert row.payment_id in "".join(getattr(caught.value, "__notes__", []))
        rig.sells(url=url)
        assert rig.paid(await rig.get(url)).payment_id == row.payment_id
        assert len(rig.proofs) == 2 and len(set(rig.proofs)) == 1
    assert rig.states() == ["settled"] * len(FAULTS)


@kinds()
async def test_a_fault_of_the_first_leg_has_nothing_to_do_with_money(rig: Rig) -> None:
    """No note, no row."""
    for name in FAULTS:
        rig.on(URL, failing(rig, name, paid=False))
        with pytest.raises(getattr(rig.lib, name)) as caught:
            await rig.get()
        assert not getattr(caught.value, "__notes__", [])
    assert rig.payer.payments() == []


@kinds()
async def test_an_unsupported_url_is_the_familys_own_error(rig: Rig) -> None:
    """A forgotten ``https://`` is httpx's to explain, not ours."""
    rig.client = rig.make_client(inner=None)
    for url in ("shop.example/paid", "ftp://shop.example/", "https:///paid"):
        with pytest.raises((rig.lib.UnsupportedProtocol, rig.lib.LocalProtocolError)):
            await rig.get(url)


@kinds()
async def test_a_scheme_of_the_users_own_transport_is_none_of_our_business(rig: Rig) -> None:
    """Nothing but http(s) is ever paid; a mount for something else still works."""
    rig.on("cache://shop/paid", v2_header(offer()))
    response = await rig.get("cache://shop/paid")
    assert response.status_code == 402 and rig.proofs == []
    assert response.headers["payment-required"]


@kinds("transport", "client", "attach")
async def test_extensions_of_an_earlier_answer_do_not_make_a_call_paid(rig: Rig) -> None:
    """Fact 2.6: what one call shares is over with it, also for who copies extensions."""
    rig.sells()
    first = await rig.get()
    again = rig.client.build_request("GET", URL, extensions=dict(first.request.extensions))
    second = await rig.send(again)
    assert rig.paid(first).payment_id != rig.paid(second).payment_id


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"operation": 7}, TypeError),
        ({"operation": ""}, ValueError),
        ({"pay": 0}, TypeError),
        ({"operaton": "one"}, TypeError),
        ("one", TypeError),
        ([], TypeError),
    ],
)
@kinds("transport", "client", "attach")
async def test_options_that_are_not_understood(rig: Rig, options: Any, error: type) -> None:
    """A wrong key is an error before anything is sent: else two calls were one, or one was two."""
    rig.sells()
    with pytest.raises(error, match="x402_mask"):
        await rig.get(extensions={"x402_mask": options})
    assert rig.legs == []
