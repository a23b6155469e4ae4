"""Event hooks, history and logs (facts 2.8, 2.9, 2.15, 3.11)."""

from __future__ import annotations

import base64
import json
import logging

import pytest

from tests.support.seller import Reply, offer, served, v2_header
from tests.transport.kit import OTHER, URL, Rig, kinds
from x402_mask import CapExceeded, receipt_of

INSIDE = ("transport", "client")


@kinds(*INSIDE)
async def test_behind_a_transport_hooks_and_history_see_one_leg(rig: Rig) -> None:
    """Fact 2.9."""
    rig.sells()
    asked: list[object] = []
    answered: list[int] = []
    rig.client = rig.make_client(
        event_hooks={
            "request": [rig.hook(asked.append)],
            "response": [rig.hook(lambda response: answered.append(response.status_code))],
        }
    )
    response = await rig.get()
    assert (len(asked), answered) == (1, [200]) and response.history == []
    assert len(rig.legs) == 2


@kinds("attach")
async def test_attached_response_hooks_do_not_see_a_402_that_is_then_paid(rig: Rig) -> None:
    """Contract 1: so that a hook that raises for status does not spoil the payment."""
    rig.sells()
    answered: list[int] = []

    def check(response: object) -> None:
        answered.append(response.status_code)  # type: ignore[attr-defined]
        response.raise_for_status()  # type: ignore[attr-defined]

    rig.client = rig.make_client(event_hooks={"response": [rig.hook(check)]})
    response = await rig.get()
    assert answered == [200]
    assert [old.status_code for old in response.history] == [402]


@kinds("auth")
async def test_an_auth_flow_alone_shows_hooks_both_legs(rig: Rig) -> None:
    """Fact 2.9: which is why ``attach`` is there."""
    rig.sells()
    answered: list[int] = []
    hooks = [rig.hook(lambda response: answered.append(response.status_code))]
    rig.client = rig.make_client(event_hooks={"response": hooks})
    response = await rig.get()
    assert answered == [402, 200]
    assert [old.status_code for old in response.history] == [402]
    assert response.history[0].read() == b"", "what was discarded reads as nothing"


@kinds("attach")
async def test_hooks_that_are_added_later_work_as_well(rig: Rig) -> None:
    """Fact 2.8: hooks may be appended after construction, in requests and answers."""
    rig.sells()
    answered: list[int] = []
    stamped = rig.hook(lambda request: request.headers.update({"X-Stamp": "1"}))
    rig.client.event_hooks["request"].append(stamped)
    seen = rig.hook(lambda response: answered.append(response.status_code))
    rig.client.event_hooks["response"].append(seen)
    rig.paid(await rig.get())
    assert answered == [200]
    assert [leg.header("x-stamp") for leg in rig.legs] == ["1", "1"]
    rig.client.event_hooks["response"].remove(seen)
    rig.paid(await rig.get())
    assert answered == [200], "a hook that was taken off still runs"


@kinds("attach")
async def test_replacing_all_hooks_does_not_take_the_guard_off(rig: Rig) -> None:
    """A client's ``event_hooks`` may be set anew at any time; a proof stays at home all the same."""
    rig.sells(paid=Reply(status=307, headers=[("Location", OTHER + "/next")]))
    rig.on(OTHER + "/next", Reply(body=b"elsewhere"))
    rig.client = rig.make_client(follow_redirects=True)
    answered: list[int] = []
    seen = rig.hook(lambda response: answered.append(response.status_code))
    rig.client.event_hooks = {"response": [seen]}
    assert (await rig.get()).content == b"elsewhere"
    assert [bool(leg.proofs) for leg in rig.legs] == [False, True, False]
    assert answered == [307, 200]


@kinds("attach")
async def test_a_402_that_is_handed_back_is_shown_to_the_hooks(rig: Rig) -> None:
    """A hook waits only until it is known whether the 402 is paid."""
    rig.on("/free", Reply(status=402, body=b"pay at the door"))
    rig.sells(paid=Reply(status=402, body=b"not good enough"))
    seen: list[object] = []
    rig.client = rig.make_client(event_hooks={"response": [rig.hook(seen.append)]})
    plain = await rig.get("https://shop.example/free")
    assert seen == [plain]
    rejected = await rig.get()
    assert seen == [plain, rejected]


@kinds("attach")
async def test_a_call_with_its_own_auth_is_left_alone_hooks_included(rig: Rig) -> None:
    """``auth=`` of one call replaces the client's, the payment with it: no hook may be lost."""
    rig.sells()
    seen: list[int] = []
    hooks = [rig.hook(lambda response: seen.append(response.status_code))]
    rig.client = rig.make_client(event_hooks={"response": hooks})
    response = await rig.get(auth=("me", "secret"))
    assert response.status_code == 402 and rig.proofs == []
    assert seen == [402]


@kinds("attach")
async def test_an_exception_in_a_deferred_hook_reaches_the_caller(rig: Rig) -> None:
    """Fact 2.8: as it would from any hook; the answer is closed."""
    rig.on(URL, Reply(status=402, body=b"pay at the door"))

    def fail(response: object) -> None:
        raise LookupError("hook")

    rig.client = rig.make_client(event_hooks={"response": [rig.hook(fail)]})
    with pytest.raises(LookupError):
        await rig.get()
    assert rig.all_closed()


@kinds()
async def test_an_exception_in_a_request_hook_of_the_paid_leg_keeps_the_books(rig: Rig) -> None:
    """Fact 2.8: the proof may have left as far as anyone knows; it is shown again, not replaced."""
    rig.sells()
    calls: list[object] = []

    def fail_once(request: object) -> None:
        calls.append(request)
        if len(calls) == 2:
            raise LookupError("hook")

    rig.client = rig.make_client(event_hooks={"request": [rig.hook(fail_once)]})
    if rig.kind.plug in INSIDE:
        rig.paid(await rig.get())  # hooks run outside a transport: there is no second one
        return
    with pytest.raises(LookupError):
        await rig.get()
    (row,) = rig.payer.payments()
    assert (row.state, row.open) == ("held", True)
    rig.paid(await rig.get())
    assert len(set(rig.proofs)) == 1 and len(rig.payer.payments()) == 1


@kinds()
async def test_receipts_are_in_the_extensions(rig: Rig) -> None:
    """Fact 2.15."""
    rig.sells()
    response = await rig.get()
    assert receipt_of(response) is response.extensions["x402_mask"]
    assert rig.mask.receipt_of(response) is response.extensions["x402_mask"]
    assert receipt_of(rig.lib.Response(200)) is None
    assert receipt_of(rig.lib.Response(200, extensions={"x402_mask": "?"})) is None


@kinds()
async def test_nothing_worth_money_is_logged(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    """Fact 3.11: whatever the level, no proof, signature or key is in a log record or an event."""
    caplog.set_level(logging.DEBUG)
    rig.sells(offer("1000"), paid=served())
    rig.paid(await rig.get())
    rig.on("/dear", v2_header(offer("9000000")))
    with pytest.raises(CapExceeded):
        await rig.get("https://shop.example/dear")
    (raw,) = rig.proofs
    payload = json.loads(base64.b64decode(raw))["payload"]
    logged = caplog.text + repr(rig.events) + repr([vars(r) for r in caplog.records])
    for secret in (raw, payload["signature"][2:], "11" * 32):
        assert secret not in logged
    assert "sent" in [event.kind for event in rig.events]
