"""Two layers that pay in one client: one call is paid for once, by one of them."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.seller import Reply, offer, served, v2_header
from tests.transport.kit import URL, Rig, kinds
from x402_mask import Cap, CapExceeded, receipt_of

LAYERS = (
    "attach-transport",
    "auth-transport",
    "auth-client",
    "transport-transport",
    "attach-client",
)


def layered(rig: Rig, layers: str, **options: Any) -> Any:
    """A client with two layers, outer and inner."""
    outer, inner = layers.split("-")
    if inner == "client":
        own = rig.mask.Client if rig.kind.sync else rig.mask.AsyncClient
        kwargs = {"transport": rig.wire, **options}
        if outer == "auth":
            kwargs["auth"] = rig.mask.PaymentAuth(rig.payer)
        client = own(rig.payer, **kwargs)
        return rig.mask.attach(client, rig.payer) if outer == "attach" else client
    below = rig.wrap(rig.payer, rig.wire)
    if outer in ("transport", "wrapped"):
        below = between(rig, below) if outer == "wrapped" else below
        return rig.plain(transport=rig.wrap(rig.payer, below), **options)
    if outer == "auth":
        return rig.plain(transport=below, auth=rig.mask.PaymentAuth(rig.payer), **options)
    return rig.mask.attach(rig.plain(transport=below, **options), rig.payer)


def between(rig: Rig, below: Any) -> Any:
    """A transport of the user's own around another."""

    class Between(rig.lib.BaseTransport, rig.lib.AsyncBaseTransport):  # type: ignore[misc]
        def handle_request(self, request: Any) -> Any:
            return below.handle_request(request)

        async def handle_async_request(self, request: Any) -> Any:
            return await below.handle_async_request(request)

    return Between()


def every_layering() -> Any:
    """Every pair of layers, in every family and colour."""
    layerings = pytest.mark.parametrize("layers", LAYERS)
    return lambda test: layerings(kinds("client")(test))


@every_layering()
async def test_one_call_signs_once_whatever_the_seller_says(rig: Rig, layers: str) -> None:
    """Contract 2, row 29: a 402 to the proof is no reason to sign, nor for the other layer."""
    rig.sells(paid=v2_header(offer()))
    rig.client = layered(rig, layers)
    response = await rig.get()
    receipt = receipt_of(response)
    assert response.status_code == 402 and receipt is not None and receipt.outcome == "rejected"
    assert len(rig.proofs) == 1 and rig.states() == ["held"]
    await rig.get()
    assert len(rig.proofs) == 2 and len(set(rig.proofs)) == 1
    await rig.shut(rig.client)


@every_layering()
async def test_two_layers_pay_once(rig: Rig, layers: str) -> None:
    rig.sells()
    rig.client = layered(rig, layers)
    first, second = rig.paid(await rig.get()), rig.paid(await rig.get())
    assert first.payment_id != second.payment_id and len(rig.legs) == 4
    await rig.shut(rig.client)


@every_layering()
async def test_two_layers_pay_once_across_a_redirect(rig: Rig, layers: str) -> None:
    rig.sells(paid=Reply(status=307, headers=[("Location", "/next")]))
    rig.on("/next", v2_header(offer()))
    rig.client = layered(rig, layers, follow_redirects=True)
    assert (await rig.get()).status_code == 402
    assert len(rig.proofs) == 1 and rig.states() == ["held"]
    await rig.shut(rig.client)


@every_layering()
async def test_two_layers_pay_once_though_the_caller_follows_the_redirect(
    rig: Rig, layers: str
) -> None:
    """By hand, with what the answer names."""
    rig.sells(paid=served(b"", status=307, headers=[("Location", "/next")]))
    rig.on("/next", v2_header(offer()))
    rig.client = layered(rig, layers)
    response = await rig.get()
    assert (await rig.send(response.next_request)).status_code == 402
    assert len(rig.proofs) == 1 and rig.states() == ["settled"]
    await rig.shut(rig.client)


@every_layering()
async def test_the_same_request_sent_again_is_a_new_call(rig: Rig, layers: str) -> None:
    """Two layers know it as well as one does."""
    rig.sells()
    rig.client = layered(rig, layers)
    request = rig.client.build_request("GET", URL)
    ids = {rig.paid(await rig.send(request)).payment_id for _ in range(2)}
    assert len(ids) == 2
    await rig.shut(rig.client)


@every_layering()
async def test_what_is_paid_for_at_once_is_paid_once(rig: Rig, layers: str) -> None:
    """``preempt``: the outer layer's proof passes the other, and stays behind at a redirect."""
    rig.payer = rig.make_payer(preempt=True)
    rig.sells()
    rig.client = layered(rig, layers, follow_redirects=True)
    rig.paid(await rig.get())
    rig.sells(paid=served(b"", status=303, headers=[("Location", "/goods")]))
    rig.on("/goods", Reply(body=b"goods"))
    assert rig.paid(await rig.get()) is not None
    assert len(rig.proofs) == len(set(rig.proofs)) == 2
    await rig.shut(rig.client)


@kinds("client", colours=["sync", "asyncio"])
async def test_an_answer_that_is_handed_out_twice(rig: Rig) -> None:
    """By a fake, say: the marks of its first call are not those of a layer below."""
    rig.sells()
    shared = rig.lib.Response(200, content=b"goods")

    def answer(request: Any) -> Any:
        return (
            shared if "payment-signature" in request.headers else rig.answered(rig.arrived(request))
        )

    own = rig.mask.Client if rig.kind.sync else rig.mask.AsyncClient
    rig.client = own(rig.payer, transport=rig.lib.MockTransport(answer))
    ids = {receipt_of(await rig.get()).payment_id for _ in range(3)}  # type: ignore[union-attr]
    assert len(ids) == 3 and [row.open for row in rig.payer.payments()] == [False] * 3
    await rig.shut(rig.client)


@every_layering()
async def test_an_owner_is_asked_once(rig: Rig, layers: str) -> None:
    """And what one layer refuses and hands back is no business of the other."""
    asked: list[Any] = []
    rig.payer = rig.make_payer(approve=asked.append, on_refusal="return")
    rig.sells()
    rig.client = layered(rig, layers)
    response = await rig.get()
    assert response.extensions["x402_mask_refusal"].reason == "approval"
    assert len(asked) == 1 and len(rig.legs) == 1 and rig.states() == []
    await rig.shut(rig.client)


@every_layering()
async def test_what_one_layer_refuses_is_raised(rig: Rig, layers: str) -> None:
    rig.payer = rig.make_payer(caps=[Cap("0.0001", per="call")])
    rig.sells()
    rig.client = layered(rig, layers)
    with pytest.raises(CapExceeded):
        await rig.get()
    assert rig.proofs == [] and len(rig.legs) == 1
    await rig.shut(rig.client)


@kinds("client")
async def test_a_client_of_ours_is_attached_to_its_own_payer_only(rig: Rig) -> None:
    own = rig.mask.Client if rig.kind.sync else rig.mask.AsyncClient
    client = own(rig.payer, transport=rig.wire)
    assert rig.mask.attach(client, rig.payer) is client and client.auth is None
    with pytest.raises(ValueError, match="another payer"):
        rig.mask.attach(client, rig.make_payer())
    await rig.shut(client)


@kinds("client")
async def test_transports_of_two_payers_do_not_mix(rig: Rig) -> None:
    below = rig.wrap(rig.payer, rig.wire)
    own = rig.mask.Client if rig.kind.sync else rig.mask.AsyncClient
    for layer in (rig.wrap, lambda payer, inner: own(payer, transport=inner)):
        with pytest.raises(ValueError, match="another payer"):
            layer(rig.make_payer(), below)


@kinds("transport", colours=["sync"])
async def test_a_flow_that_is_dropped_ends_nobody_elses_call(rig: Rig) -> None:
    """Whenever it is collected: here while another call's proof is under way."""
    rig.sells()
    flow = rig.mask.PaymentAuth(rig.payer).sync_auth_flow(rig.lib.Request("GET", URL))
    next(flow)
    dropped = [flow]
    del flow

    class Between(rig.lib.BaseTransport):  # type: ignore[misc]
        def handle_request(self, request: Any) -> Any:
            if request.url.path == "/next":
                dropped.clear()  # its last reference
            return below.handle_request(request)

    below = rig.wrap(rig.payer, rig.wire)
    rig.sells(paid=served(b"", status=307, headers=[("Location", "/next")]))
    rig.on("/next", v2_header(offer()))
    rig.client = rig.plain(transport=rig.wrap(rig.payer, Between()), follow_redirects=True)
    assert (await rig.get(extensions={"x402_mask": {}})).status_code == 402
    assert len(rig.proofs) == 1 and rig.states() == ["settled"]
    await rig.shut(rig.client)
