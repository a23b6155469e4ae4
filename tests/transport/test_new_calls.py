"""A new request is a new call, whatever extensions it was made with; a redirect goes on in its own."""

from __future__ import annotations

import asyncio
import contextvars
from typing import Any

import pytest

from tests.support.seller import Reply, offer, served, v2_header
from tests.transport.kit import SHOP, URL, Leg, Rig, kinds
from x402_mask import Cap, CapExceeded, receipt_of

TOOLS = SHOP + "/api/tools/"


def made_with(rig: Rig, request: Any, url: str, method: str = "GET") -> Any:
    """Another request, with the extensions of one that was sent."""
    return rig.lib.Request(method, url, extensions=request.extensions)


class Lost:
    """Delivers to whoever shows a proof, but loses the first such answer."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.losses = 1

    def __call__(self, leg: Leg) -> Reply:
        if self.losses:
            self.losses -= 1
            raise self.rig.lib.ReadTimeout("lost", request=leg.request)
        return served()(leg)


@kinds()
async def test_a_refused_calls_extensions_move_no_call_to_its_service(rig: Rig) -> None:
    rig.payer = rig.make_payer(
        caps=[Cap("0.002", per="day", service="cheap"), Cap("0.001", per="day", service="dear")]
    )
    rig.sells(offer("3000"), url=TOOLS + "cheap")
    rig.sells(offer("1000"), url=TOOLS + "dear")
    rig.paid(await rig.get(TOOLS + "dear"))
    refused = rig.client.build_request("GET", TOOLS + "cheap")
    with pytest.raises(CapExceeded):
        await rig.send(refused)
    with pytest.raises(CapExceeded) as caught:
        await rig.send(made_with(rig, refused, TOOLS + "dear"))
    assert caught.value.cap.service == "dear"
    assert [row.service for row in rig.payer.payments()] == ["dear"] and len(rig.proofs) == 1


@kinds()
async def test_a_failed_calls_extensions_close_nothing(rig: Rig) -> None:
    """The other call is paid for itself; what was lost is still open."""
    rig.sells(paid=Lost(rig))
    rig.sells(url=SHOP + "/other")
    rig.on("/free", Reply(body=b"free"))
    lost = rig.client.build_request("GET", URL)
    with pytest.raises(rig.lib.ReadTimeout):
        await rig.send(lost)
    assert receipt_of(await rig.send(made_with(rig, lost, SHOP + "/free"))) is None
    other = rig.paid(await rig.send(made_with(rig, lost, SHOP + "/other")))
    first = rig.payer.payments()[-1]
    assert (first.state, first.open) == ("held", True) and first.payment_id != other.payment_id
    assert rig.paid(await rig.get()).payment_id == first.payment_id
    assert len(set(rig.proofs)) == 2


@kinds("transport", "client")
async def test_a_retry_that_copies_the_request_shows_the_proof_again(rig: Rig) -> None:
    rig.sells(paid=Lost(rig))
    below, lib = rig.wrap(rig.payer, rig.wire), rig.lib

    class Retry(lib.BaseTransport, lib.AsyncBaseTransport):  # type: ignore[misc]
        def copy(self, request: Any) -> Any:
            return lib.Request(
                request.method,
                request.url,
                headers=request.headers,
                content=request.content,
                extensions=request.extensions,
            )

        def handle_request(self, request: Any) -> Any:
            try:
                return below.handle_request(request)
            except lib.TransportError:
                return below.handle_request(self.copy(request))

        async def handle_async_request(self, request: Any) -> Any:
            try:
                return await below.handle_async_request(request)
            except lib.TransportError:
                return await below.handle_async_request(self.copy(request))

    rig.client = rig.plain(transport=Retry())
    first, second = [rig.paid(await rig.post(json={"a": 1})) for _ in range(2)]
    assert first.payment_id != second.payment_id
    assert len(rig.proofs) == 3 and len(set(rig.proofs)) == 2
    await rig.shut(rig.client)


@kinds()
@pytest.mark.parametrize("price", [True, False], ids=["paid", "free"])
async def test_only_what_a_redirect_leads_to_goes_on_in_its_call(rig: Rig, price: bool) -> None:
    """Not another request with its extensions, before or after, nor the same place once more."""
    moved = [("Location", "/next?a=b")]
    if price:
        rig.sells(paid=served(b"", status=303, headers=moved))
    else:
        rig.on("/paid", Reply(status=303, headers=moved))
    rig.sells(url=SHOP + "/next")
    rig.sells(url=SHOP + "/other")
    moving = await rig.post()
    count = len(rig.payer.payments())
    assert count == price
    asked = moving.request
    for url, method in ((SHOP + "/other", "GET"), (SHOP + "/next", "POST")):
        rig.paid(await rig.send(made_with(rig, asked, url, method)))
    assert len(rig.payer.payments()) == count + 2
    goes_on = await rig.send(moving.next_request)
    if price:
        assert goes_on.status_code == 402 and len(rig.payer.payments()) == count + 2
    else:
        rig.paid(goes_on)
    before = len(rig.payer.payments())
    rig.paid(await rig.send(made_with(rig, asked, SHOP + "/next?a=b")))
    assert len(rig.payer.payments()) == before + 1


@kinds("transport", "attach", colours=["sync", "asyncio"])
async def test_what_was_begun_in_a_call_that_is_over_is_no_part_of_it(rig: Rig) -> None:
    """A task begun by a hook, say: it runs in that call's context, and after its end."""
    kept: list[contextvars.Context] = []

    def script(leg: Leg) -> Reply:
        kept.append(contextvars.copy_context())
        return v2_header(offer()) if not leg.proofs else served()(leg)

    rig.on("/paid", script)
    rig.sells(url=SHOP + "/other")
    request = rig.client.build_request("GET", URL)
    first = rig.paid(await rig.send(request))
    later = made_with(rig, request, SHOP + "/other")
    if rig.kind.sync:
        response = kept[-1].run(rig.client.send, later)
    else:
        response = await asyncio.create_task(rig.client.send(later), context=kept[-1])
    assert rig.paid(response).payment_id != first.payment_id
