"""What the owner plugs in: signers, approvals, observers, each sync or async."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import anyio
import pytest
import trio
from eth_account import Account

from tests.support.seller import offer
from tests.transport.kit import KEY, SHOP, URL, Rig, kinds
from x402_mask import ApprovalDenied, Cap, CapExceeded, MemoryLedger, SignerError, receipt_of
from x402_mask._ledger.records import Busy
from x402_mask._payer import buyer_of

ONE_PLUG = ("client", "attach")
ASYNC = ("asyncio", "trio")


class Signer:
    """A wallet by the contract's words, slow if asked."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.account = Account.from_key(KEY)
        self.address: str = self.account.address
        self.seconds = seconds
        self.threads: list[int] = []
        self.finished = threading.Event()

    def sign(self, domain: Any, types: Any, message: Any) -> Any:
        """As eth-account does."""
        return self.account.sign_typed_data(domain, types, message).signature

    def sign_typed_data(self, domain: Any, types: Any, message: Any) -> Any:
        self.threads.append(threading.get_ident())
        time.sleep(self.seconds)
        self.finished.set()
        return self.sign(domain, types, message)


class AsyncSigner(Signer):
    """The same behind a coroutine."""

    async def sign_typed_data(self, domain: Any, types: Any, message: Any) -> Any:
        self.threads.append(threading.get_ident())
        await anyio.sleep(self.seconds)
        return self.sign(domain, types, message)


class HiddenAsyncSigner(Signer):
    """A coroutine that does not look like one from outside."""

    def sign_typed_data(self, domain: Any, types: Any, message: Any) -> Any:
        async def later() -> Any:
            return self.sign(domain, types, message)

        return later()


@kinds()
async def test_an_eth_account_wallet_pays(rig: Rig) -> None:
    """Contract 1: a ``LocalAccount`` is accepted."""
    rig.payer = rig.make_payer(wallet=Account.from_key(KEY))
    rig.sells()
    receipt = rig.paid(await rig.get())
    assert receipt.payer == Account.from_key(KEY).address
    assert [leg.authorization() for leg in rig.legs][1] is not None


@kinds()
async def test_an_external_sync_signer_pays(rig: Rig) -> None:
    """Off the event loop where there is one."""
    signer = Signer()
    rig.payer = rig.make_payer(wallet=signer)
    rig.sells()
    rig.paid(await rig.get())
    here = threading.get_ident()
    assert [thread == here for thread in signer.threads] == [rig.kind.sync]


@pytest.mark.parametrize("signer", [AsyncSigner, HiddenAsyncSigner])
@kinds(*ONE_PLUG, colours=ASYNC)
async def test_an_async_signer_pays(rig: Rig, signer: type[Signer]) -> None:
    """In the task of the caller; a wrapper that merely returns a coroutine works as well."""
    rig.payer = rig.make_payer(wallet=signer())
    rig.sells()
    rig.paid(await rig.get())
    assert set(buyer_of(rig.payer).settings.signer.threads) <= {threading.get_ident()}  # type: ignore[union-attr]


@kinds(*ONE_PLUG, colours=["sync"])
async def test_a_hidden_async_signer_in_a_sync_client_is_a_signer_error(rig: Rig) -> None:
    """What cannot be told when the client is built is told when it signs; nothing is left open."""
    rig.payer = rig.make_payer(wallet=HiddenAsyncSigner())
    rig.sells()
    with pytest.raises(SignerError) as caught:
        await rig.get()
    assert isinstance(caught.value.__cause__, TypeError)
    assert rig.states() == ["released"] and rig.proofs == []


class Pulse:
    """How long the event loop stood still, at most."""

    def __init__(self) -> None:
        self.stall = 0.0
        self.beats = 0

    async def beat(self, rig: Rig) -> None:
        """Beat until cancelled."""
        sleep = asyncio.sleep if rig.kind.colour == "asyncio" else trio.sleep
        before = time.monotonic()
        while True:
            await sleep(0.005)
            now = time.monotonic()
            self.stall, before = max(self.stall, now - before - 0.005), now
            self.beats += 1


async def with_pulse(rig: Rig, job: Any) -> Pulse:
    """Run *job* beside a pulse."""
    pulse = Pulse()
    async with anyio.create_task_group() as group:
        group.start_soon(pulse.beat, rig)
        await job
        group.cancel_scope.cancel()
    return pulse


@kinds(*ONE_PLUG, colours=ASYNC)
async def test_a_slow_signer_or_approval_does_not_stop_the_event_loop(rig: Rig) -> None:
    """Other tasks go on while a wallet thinks for 0.3 s, and an owner for 0.1 s."""

    def approve(quote: object) -> bool:
        time.sleep(0.1)
        return True

    rig.payer = rig.make_payer(wallet=Signer(0.3), approve=approve)
    rig.sells()
    pulse = await with_pulse(rig, rig.get())
    assert rig.states() == ["settled"]
    assert pulse.beats >= 10 and pulse.stall < 0.25


class Distant(MemoryLedger):
    """A ledger that is never quick enough for an event loop."""

    inline = False
    seconds = 0.0

    def _transaction(self, wait_s: float, **options: Any) -> Any:
        time.sleep(self.seconds)
        return super()._transaction(wait_s, **options)


class Occupied(Distant):
    """A ledger that somebody else is writing to whenever it is asked."""

    inline = True

    def _transaction(self, wait_s: float, **options: Any) -> Any:
        if wait_s == 0:
            raise Busy
        return super()._transaction(wait_s, **options)


@pytest.mark.parametrize("kept", [Distant, Occupied])
@kinds(*ONE_PLUG, colours=ASYNC)
async def test_a_slow_or_occupied_ledger_does_not_stop_the_event_loop(
    rig: Rig, kept: type[Distant]
) -> None:
    """It is waited for in a thread: a contended lock is not held against every other task."""
    ledger = kept()
    rig.payer = rig.make_payer(ledger=ledger)
    rig.sells()
    rig.paid(await rig.get())
    ledger.seconds = 0.1
    pulse = await with_pulse(rig, rig.get())
    ledger.seconds = 0.0
    assert rig.states() == ["settled", "settled"]
    assert pulse.beats >= 10, "the loop stood still"


@kinds(*ONE_PLUG)
async def test_a_wallet_that_fails_is_a_signer_error(rig: Rig) -> None:
    """The reservation is released, and the next call is not in its way."""

    class Failing(Signer):
        def sign_typed_data(self, domain: Any, types: Any, message: Any) -> Any:
            raise RuntimeError("the card was taken out, key " + KEY)

    rig.payer = rig.make_payer(wallet=Failing())
    rig.sells()
    with pytest.raises(SignerError) as caught:
        await rig.get()
    assert caught.value.at_risk is False and KEY not in str(caught.value)
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert rig.states() == ["released"] and rig.all_closed()
    assert caught.value.payment_id == rig.payer.payments()[0].payment_id
    assert rig.payer.spend()[0].left == 5


@pytest.mark.parametrize("returned", ["other", "junk", None, 7, b"short", "0x" + "ff" * 65])
@kinds(*ONE_PLUG, libs=["httpx"])
async def test_a_wrong_signature_is_never_sent(rig: Rig, returned: Any) -> None:
    """Every signature is recovered and compared before it leaves."""

    class Wrong(Signer):
        def sign_typed_data(self, domain: Any, types: Any, message: Any) -> Any:
            if returned != "other":
                return returned
            return Account.create().sign_typed_data(domain, types, message).signature

    rig.payer = rig.make_payer(wallet=Wrong())
    rig.sells()
    with pytest.raises(SignerError):
        await rig.get()
    assert rig.states() == ["released"] and rig.proofs == []


def approver(rig: Rig, answer: Any, seen: list[Any]) -> Any:
    """An ``approve`` of the colour."""

    def approve(quote: Any) -> Any:
        seen.append((quote, threading.get_ident()))
        if isinstance(answer, BaseException):
            raise answer
        return answer

    if rig.kind.sync:
        return approve

    async def approve_async(quote: Any) -> Any:
        await anyio.lowlevel.checkpoint()
        return approve(quote)

    return approve_async


@kinds()
async def test_approval_is_asked_once_with_the_quote(rig: Rig) -> None:
    """Contract 1: before anything is reserved."""
    seen: list[Any] = []
    rig.payer = rig.make_payer(approve=approver(rig, True, seen))
    rig.sells(offer("2500"))
    rig.paid(await rig.get(URL + "?a=1"))
    ((quote, _),) = seen
    assert (quote.amount, str(quote.usd), quote.url) == (2500, "0.0025", URL + "?a=1")
    assert quote.allowed and quote.payer == rig.payer.address and quote.service == SHOP
    assert [spend.left for spend in quote.caps] == [5]


@pytest.mark.parametrize("answer", [False, None, 1, "yes", object()])
@kinds(*ONE_PLUG)
async def test_only_true_approves(rig: Rig, answer: Any) -> None:
    """Contract 1."""
    seen: list[Any] = []
    rig.payer = rig.make_payer(approve=approver(rig, answer, seen))
    rig.sells()
    with pytest.raises(ApprovalDenied) as caught:
        await rig.get()
    assert caught.value.reason == "approval" and caught.value.quote == seen[0][0]
    assert rig.payer.payments() == [] and rig.proofs == [] and rig.all_closed()


@kinds(*ONE_PLUG)
async def test_an_approval_that_fails_is_none(rig: Rig) -> None:
    """Only ``True`` approves; the 402 is there, and so is what failed."""
    failure = LookupError("no owner")
    rig.payer = rig.make_payer(approve=approver(rig, failure, []))
    rig.sells()
    with pytest.raises(ApprovalDenied, match="LookupError") as caught:
        await rig.get()
    assert caught.value.__cause__ is failure and caught.value.response.status_code == 402
    assert rig.payer.payments() == [] and rig.all_closed()


@kinds(*ONE_PLUG)
async def test_an_approval_may_say_why_not(rig: Rig) -> None:
    """In an error of ours, which is raised as it is."""
    reason = ApprovalDenied("not on a Sunday")
    rig.payer = rig.make_payer(approve=approver(rig, reason, []))
    rig.sells()
    with pytest.raises(ApprovalDenied) as caught:
        await rig.get()
    assert caught.value is reason and rig.payer.payments() == []


@kinds(*ONE_PLUG)
async def test_nobody_is_asked_to_approve_what_is_refused_anyway(rig: Rig) -> None:
    """A cap says no before the owner is woken."""
    seen: list[Any] = []
    rig.payer = rig.make_payer(approve=approver(rig, True, seen), caps=[Cap("0.0001", per="call")])
    rig.sells()
    with pytest.raises(CapExceeded):
        await rig.get()
    assert seen == []


@kinds(*ONE_PLUG, colours=ASYNC)
async def test_a_sync_approval_runs_off_the_loop(rig: Rig) -> None:
    """It may block: a dialogue, a chat message."""
    seen: list[int] = []

    def approve(quote: object) -> bool:
        seen.append(threading.get_ident())
        return True

    rig.payer = rig.make_payer(approve=approve)
    rig.sells()
    rig.paid(await rig.get())
    assert len(seen) == 1 and seen[0] != threading.get_ident()


@kinds()
async def test_an_observer_that_raises_changes_nothing(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    """Contract 1: logged, and that is all."""
    kinds_seen: list[str] = []

    def observe(event: Any) -> None:
        kinds_seen.append(event.kind)
        raise LookupError("observer")

    rig.payer = rig.make_payer(on_event=observe)
    rig.sells()
    rig.paid(await rig.get())
    assert kinds_seen == ["challenge", "reserved", "sent", "settled"]
    assert caplog.text.count("LookupError: observer") == 4


@kinds(*ONE_PLUG)
async def test_events_tell_the_story(rig: Rig) -> None:
    """One id through all of it; a refusal and a repeat included."""
    rig.sells()
    receipt = receipt_of(await rig.get())
    assert receipt is not None
    with_id = [event for event in rig.events if event.payment_id]
    assert [event.kind for event in with_id] == ["reserved", "sent", "settled"]
    assert {event.payment_id for event in with_id} == {receipt.payment_id}
    assert {(event.service, event.origin) for event in with_id} == {(SHOP, SHOP)}
    rig.events.clear()
    rig.sells(offer("999000000"))
    with pytest.raises(CapExceeded):
        await rig.get()
    assert [event.kind for event in rig.events] == ["challenge", "refused"]
    assert rig.events[-1].detail["reason"] == "cap"
