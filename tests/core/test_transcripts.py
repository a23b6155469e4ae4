"""The conversation, told by the names of its effects, and cut at every one of them."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import pickle
from collections.abc import Callable
from typing import Any

import pytest

from tests.core.hand import URL, Cut, Hand, Signer, a_trip, answered, asked, local
from tests.support.seller import offer, v2_body
from x402_mask import (
    ApprovalDenied,
    BodyNotReplayable,
    Cap,
    CapExceeded,
    ChallengeError,
    LedgerError,
    MemoryLedger,
    OfferRefused,
    OriginRefused,
    Paused,
    PaymentRefused,
    SignerError,
    Wallet,
)
from x402_mask._drive.pump import Abandoned
from x402_mask._flow.effects import Reply
from x402_mask._flow.reconciling import Said
from x402_mask._models import Resolved
from x402_mask._payer import buyer_of

HEAD = ["ask", "read", "fingerprint", "view"]
TAIL = ["ask+proof", "finish", "checkpoint"]
BOUGHT = [*HEAD, "reserve", "sign", "hold", *TAIL]


def other(status: int, **headers: list[str]) -> Reply:
    """An answer that is no challenge."""
    return Reply(
        status=status, url=URL, headers={k.replace("_", "-"): v for k, v in headers.items()}
    )


def yes(quote: object) -> bool:
    return True


# --- transcripts


def test_free() -> None:
    """Fact: an unpaid call is one effect."""
    for status in (200, 301, 404, 500):
        hand = Hand(first=other(status))
        verdict = hand.call()
        assert hand.transcript == ["ask"]
        assert (verdict.receipt, verdict.refusal) == (None, None)


def test_a_402_that_is_no_challenge() -> None:
    """Read, and handed back."""
    for body in (b"", b"<html>", None, b'{"detail": 1}'):
        hand = Hand(first=other(402), body=body)
        assert hand.call().receipt is None and hand.transcript == ["ask", "read"]


def test_paid() -> None:
    """The whole way, with an external signer."""
    hand = Hand()
    verdict = hand.call()
    assert hand.transcript == BOUGHT
    assert verdict.receipt is not None and verdict.receipt.outcome == "settled"
    assert verdict.delivered and hand.rows() == [("settled", False, "settled")]
    assert hand.kinds() == ["challenge", "reserved", "sent", "settled"]


def test_paid_from_a_body() -> None:
    """A challenge in the body alone."""
    body = v2_body(offer()).body
    assert isinstance(body, bytes)
    hand = Hand(first=other(402), body=body)
    assert hand.call().receipt is not None and hand.transcript == BOUGHT


def test_a_wallet_in_this_process_is_no_effect() -> None:
    """Signing takes a tenth of a millisecond: it is done within the reservation, held at once."""
    hand = Hand(options=local())
    assert hand.call().receipt is not None
    assert hand.transcript == [*HEAD, "reserve", "checkpoint", *TAIL]
    kinds = [entry["kind"] for entry in hand.payer.ledger.history()]
    assert kinds == ["reserved", "held", "settled"]


def test_a_signature_that_fails_reserves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """What signs within the reservation takes it back when it fails."""
    hand = Hand(options=local())

    def spoiled(self: Wallet, digest: bytes) -> bytes:
        raise SignerError("a bit flipped")

    monkeypatch.setattr(Wallet, "sign_checked", spoiled)
    with pytest.raises(SignerError):
        hand.call()
    assert hand.rows() == [] and hand.payer.spend()[0].left == 1 and hand.proofs == []
    monkeypatch.undo()
    assert hand.call().receipt is not None


def test_approval_comes_before_the_reservation() -> None:
    """And after the room in the caps is known."""
    hand = Hand(options={"approve": yes})
    hand.call()
    assert hand.transcript == [
        *HEAD,
        "foresee",
        "spend",
        "denied_for",
        "approve",
        "reserve",
        "sign",
        "hold",
        *TAIL,
    ]


def test_an_open_operation_is_shown_again() -> None:
    """Neither policy nor caps nor signer are asked."""
    hand = Hand(paid=answered(503, settled=False))
    hand.call()
    hand.paid = answered()
    hand.first = asked(offer("999999999", payTo="0x" + "77" * 20))
    verdict = hand.call()
    assert hand.transcript == [*HEAD, "claim", *TAIL]
    assert verdict.receipt is not None and verdict.receipt.amount == 1000
    assert len(hand.proofs) == 2 and len(set(hand.proofs)) == 1 and hand.signer.calls == 1
    assert hand.rows() == [("settled", False, "settled")]


def test_a_key_waits_while_its_twin_is_in_flight() -> None:
    """Polling, until the caller's own time-out; forever if the caller has none."""
    hand = Hand(key="k")
    ledger = hand.payer.ledger
    gone: list[int] = []

    def second(proof: tuple[str, str]) -> Reply:
        with pytest.raises(PaymentRefused, match="in flight") as caught:
            Hand.call(inner)
        assert caught.value.reason == "in_flight"
        gone.append(inner.transcript.count("sleep"))
        return answered()(proof)

    inner = Hand(key="k", options={"ledger": ledger}, clock=hand.clock)
    hand.paid = second
    hand.call()
    assert gone == [4] and inner.transcript[-1] == "note_refusal"
    assert hand.rows() == [("settled", False, "settled")] and inner.signer.calls == 0


def test_a_caller_without_a_timeout_waits_until_its_turn() -> None:
    """Its twin ends in the meantime."""
    hand = Hand(key="k", wait_s=None)
    real = hand.payer.ledger.view
    looks: list[int] = []
    first = Hand(key="k", options={"ledger": hand.payer.ledger}, clock=hand.clock)
    flow_left: list[Any] = []

    def hold_on(proof: tuple[str, str]) -> Reply:
        flow_left.append(proof)
        hand.payer.ledger.view = look  # type: ignore[method-assign]
        hand.call()
        return answered()(proof)

    def look(*args: Any, **kw: Any) -> Any:
        looks.append(1)
        if len(looks) == 8:
            first.payer.ledger._flying.clear()
        return real(*args, **kw)

    first.paid = hold_on
    first.call()
    assert hand.transcript.count("sleep") == 7 and len(looks) == 8
    assert hand.transcript[-4:] == ["claim", *TAIL]
    assert len(set(first.proofs + hand.proofs)) == 1


REFUSALS: dict[str, tuple[Callable[[], Hand], type[PaymentRefused], str, list[str]]] = {
    "cap": (
        lambda: Hand(first=asked(offer("2000000"))),
        CapExceeded,
        "cap",
        [*HEAD, "reserve", "spend"],
    ),
    "no_cap": (
        lambda: Hand(options={"caps": [Cap(1, per="day", service="other")]}),
        PaymentRefused,
        "no_cap",
        [*HEAD[:-1], "unnamed", "view", "reserve"],
    ),
    "offer": (lambda: Hand(first=asked(offer(scheme="upto"))), OfferRefused, "scheme", HEAD),
    "no offer": (lambda: Hand(first=asked({})), OfferRefused, "scheme", HEAD),
    "origin": (
        lambda: Hand(options={"origins": ["https://else.example"]}),
        OriginRefused,
        "origin",
        ["ask", "read"],
    ),
    "one-shot": (
        lambda: Hand(fingerprint=None),
        BodyNotReplayable,
        "body",
        ["ask", "read", "fingerprint"],
    ),
    "no wallet": (lambda: Hand(options={"wallet": None}), PaymentRefused, "no_wallet", HEAD),
    "approval": (
        lambda: Hand(options={"approve": lambda quote: False}),
        ApprovalDenied,
        "approval",
        [*HEAD, "foresee", "spend", "denied_for", "approve", "deny"],
    ),
    "clock": (
        lambda: Hand(first=dataclasses.replace(asked(), date=1.0), options={"clock": None}),
        OfferRefused,
        "clock",
        HEAD,
    ),
    "cap before approval": (
        lambda: Hand(first=asked(offer("2000000")), options={"approve": yes}),
        CapExceeded,
        "cap",
        [*HEAD, "foresee", "spend"],
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refused(name: str) -> None:
    """Invariant 6: denied means zero signatures, and the reason is in the history."""
    make, kind, reason, transcript = REFUSALS[name]
    hand = make()
    with pytest.raises(kind) as caught:
        hand.call()
    assert caught.value.reason == reason and caught.value.at_risk is False
    assert hand.transcript == [*transcript, "note_refusal"]
    assert hand.rows() == [] and hand.proofs == [] and hand.kinds()[-1] == "refused"
    assert getattr(hand.signer, "calls", 0) == 0
    noted = [row for row in hand.payer.ledger.history() if row["kind"] == "refused"]
    assert [row["reason"] for row in noted] == [reason]
    if reason == "cap":
        assert caught.value.quote is not None and caught.value.quote.amount == 2_000_000
        [spend] = caught.value.quote.caps
        assert spend.left == caught.value.left and caught.value.quote.refusal is caught.value
    again = pickle.loads(pickle.dumps(caught.value))
    assert (type(again), str(again), again.reason) == (kind, str(caught.value), reason)
    assert vars(again).keys() == vars(caught.value).keys()


@pytest.mark.parametrize("name", REFUSALS)
def test_refused_and_returned(name: str) -> None:
    """``on_refusal="return"``: the same, as a verdict."""
    make, kind, reason, transcript = REFUSALS[name]
    hand = make()
    verdict = hand.call(returns_refusals=True)
    assert isinstance(verdict.refusal, kind) and verdict.refusal.reason == reason
    assert hand.transcript == [*transcript, "note_refusal"] and verdict.receipt is None


def test_paused() -> None:
    """Before any decision; an open proof is not shown either."""
    hand = Hand(paid=answered(503, settled=False))
    hand.call()
    hand.payer.pause()
    with pytest.raises(Paused):
        hand.call()
    assert hand.transcript == [*HEAD, "note_refusal"] and len(hand.proofs) == 1
    hand.payer.resume()
    hand.call()
    assert len(hand.proofs) == 2


def test_malformed() -> None:
    """No refusal by policy: nothing to write down."""
    hand = Hand(first=other(402, payment_required=["!"]))
    with pytest.raises(ChallengeError):
        hand.call()
    assert hand.transcript == ["ask", "read"]
    verdict = hand.call(returns_refusals=True)
    assert isinstance(verdict.refusal, ChallengeError)


def test_a_redirected_402_and_http_are_refused() -> None:
    """Origins are compared with what the caller named."""
    hand = Hand()
    with pytest.raises(OriginRefused) as caught:
        hand.call(state=a_trip("https://first.example"))
    assert caught.value.reason == "redirected"
    hand = Hand(first=Reply(status=402, url="http://shop.example/paid", headers=asked().headers))
    with pytest.raises(OriginRefused) as caught:
        hand.call(state=a_trip("http://shop.example"))
    assert caught.value.reason == "not_https"


def test_a_call_that_paid_or_brings_a_proof_is_handed_back() -> None:
    """No second payment in one call, and none for who pays by hand."""
    hand = Hand()
    trip = a_trip()
    first = hand.call(state=trip)
    again = hand.call(state=trip)
    assert hand.transcript == ["ask"] and again.receipt == first.receipt
    assert hand.call(has_proof=True).receipt is None and hand.transcript == ["ask"]
    assert len(hand.proofs) == 1


OUTCOMES: list[tuple[Any, str, str, bool]] = [
    (answered(), "settled", "settled", False),
    (answered(201), "settled", "settled", False),
    (answered(500), "settled", "settled", True),
    (answered(402), "held", "rejected", True),
    (answered(settled=False), "held", "unknown", False),
    (answered(404, settled=False), "held", "unknown", True),
    (answered(402, settled=False), "held", "rejected", True),
    (answered(402, success=False), "held", "rejected", True),
    (answered(success=False), "held", "unknown", False),
    (answered(success="true"), "held", "unknown", False),
    (answered(network="eip155:1"), "held", "unknown", False),
    (answered(network="base"), "settled", "settled", False),
    (answered(network=None), "settled", "settled", False),
    (answered(payer="0x" + "77" * 20), "held", "unknown", False),
    (answered(payer=None), "settled", "settled", False),
    (answered(payer=7), "held", "unknown", False),
    (answered(amount="1000"), "settled", "settled", False),
    (answered(amount="50000"), "held", "unknown", False),
    (answered(amount=1000), "settled", "settled", False),
    (answered(amount=1001), "held", "unknown", False),
    (answered(transaction=""), "held", "unknown", False),
    (answered(transaction="0x"), "held", "unknown", False),
    (answered(transaction="0x" + "zz" * 32), "held", "unknown", False),
    (answered(transaction="0x" + "ab" * 33), "held", "unknown", False),
    (answered(transaction=None), "held", "unknown", False),
    (lambda proof: other(200, payment_response=["!"]), "held", "unknown", False),
    (lambda proof: other(200, payment_response=["W10="]), "held", "unknown", False),
    (lambda proof: other(200, payment_response=["e30=", "e30="]), "held", "unknown", False),
    (lambda proof: other(200, payment_response=["bm90IGpzb24="]), "held", "unknown", False),
    (lambda proof: other(200, payment_response=["A" * 70_000]), "held", "unknown", False),
    (lambda proof: other(200, payment_response=["AAAAA"]), "held", "unknown", False),
]


@pytest.mark.parametrize(("paid", "state", "outcome", "stays_open"), OUTCOMES)
def test_outcomes(paid: Any, state: str, outcome: str, stays_open: bool) -> None:
    """What a seller says is a claim: it settles only what agrees with what was signed."""
    hand = Hand(paid=paid)
    verdict = hand.call()
    assert hand.transcript == BOUGHT
    assert verdict.receipt is not None and verdict.receipt.outcome == outcome
    assert hand.rows() == [(state, stays_open, outcome)]
    assert (verdict.receipt.transaction is None) == (outcome != "settled")
    assert hand.kinds()[-1] == {"unknown": "held"}.get(outcome, outcome)


def test_with_an_rpc_only_the_chain_settles() -> None:
    """Contract 2: what is not seen yet is unknown; a reader that fails costs nobody the answer."""
    for seen, outcome in (
        (True, "settled"),
        (False, "unknown"),
        (ConnectionError("rpc"), "unknown"),
    ):
        hand = Hand(options={"rpc": {"eip155:8453": "http://127.0.0.1:9"}})

        def chain(row: Any, proof: Any, told: Any, wait_s: Any, answer: Any = seen) -> bool:
            if isinstance(answer, BaseException):
                raise answer
            assert told == "0x" + "ab" * 32
            return bool(answer)

        chain.__name__ = "seen_on_chain"
        buyer_of(hand.payer).seen_on_chain = chain  # type: ignore[method-assign]
        verdict = hand.call()
        assert hand.transcript == [*BOUGHT[:-2], "chain", "finish", "checkpoint"]
        assert verdict.receipt is not None and verdict.receipt.outcome == outcome
        hand.paid = answered(success=False)
        hand.fingerprint = "cd" * 32
        hand.call()
        assert "chain" not in hand.transcript, "the chain is asked only about a claim that agrees"


def test_an_expired_proof_may_be_followed_by_another() -> None:
    """Once it is past ``validBefore`` and 30 s, if the owner allows it."""
    for resign in ("expired", "never"):
        hand = Hand(paid=TimeoutError("slow"), options={"resign": resign})
        with pytest.raises(TimeoutError):
            hand.call()
        hand.paid = answered()
        hand.clock += 60 + 30 + 2
        if resign == "never":
            with pytest.raises(PaymentRefused) as caught:
                hand.call()
            assert caught.value.reason == "resign" and hand.signer.calls == 1
            continue
        hand.call()
        assert hand.transcript == BOUGHT and len(hand.authorizations()) == 2
        assert [row[0] for row in hand.rows()] == ["settled", "held"]


def test_before_it_expires_the_same_proof_is_shown() -> None:
    """Up to and within the margin."""
    hand = Hand(paid=TimeoutError("slow"))
    for later in (0, 59, 30):
        hand.clock += later
        with pytest.raises(TimeoutError):
            hand.call()
    assert len(hand.proofs) == 3 and len(hand.authorizations()) == 1


def test_the_chain_is_asked_before_a_second_signature() -> None:
    """With an rpc."""
    hand = Hand(paid=TimeoutError("slow"), options={"rpc": {"eip155:8453": "http://127.0.0.1:9"}})
    with pytest.raises(TimeoutError):
        hand.call()
    asked_about: list[str] = []

    def resolve(rows: Any, wait_s: Any) -> Any:
        asked_about.extend(row.state for row in rows)
        assert wait_s == hand.wait_s, "within the caller's own time-out"
        unknown = Resolved(payment_id="", state="held", transaction=None, detail="", answered=False)
        return [Said(unknown)]

    buyer_of(hand.payer).resolve = resolve  # type: ignore[method-assign, assignment]
    buyer_of(hand.payer).seen_on_chain = lambda *args: True  # type: ignore[method-assign]
    hand.clock += 100
    hand.paid = answered()
    hand.call()
    assert asked_about == ["held"] and hand.transcript[4:6] == ["resolve", "view"]


def test_a_slow_signer_gives_up_when_the_offer_ran_out() -> None:
    """Row 20: stamped before the wait, so a wait that ate the window ends the call."""

    class Slow(Signer):
        def sign_typed_data(self, domain: Any, types: Any, message: Any) -> Any:
            hand.clock += 55
            return super().sign_typed_data(domain, types, message)

    hand = Hand(options={"wallet": Slow()})
    with pytest.raises(OfferRefused) as caught:
        hand.call()
    assert caught.value.reason == "wait" and hand.rows()[0][0] == "released"
    assert hand.transcript == [*HEAD, "reserve", "sign", "release", "note_refusal"]
    assert caught.value.payment_id == hand.payer.payments()[0].payment_id


def test_a_breaker_opens_and_says_so() -> None:
    """After so many bad ends in a row."""
    hand = Hand(paid=answered(500, settled=False), options={"breaker_after": 2})
    for number in range(2):
        hand.fingerprint = f"{number:064x}"
        hand.call()
    assert hand.kinds().count("breaker_open") == 1
    hand.fingerprint = "f" * 64
    with pytest.raises(PaymentRefused) as caught:
        hand.call()
    assert caught.value.reason == "breaker" and hand.signer.calls == 2
    found = quoted(hand)
    assert found.refusal.reason == "breaker" and str(found.refusal) == str(caught.value)


def test_nobody_is_asked_to_approve_what_an_open_breaker_refuses() -> None:
    asked_for: list[Any] = []
    hand = Hand(
        paid=answered(500, settled=False),
        options={"breaker_after": 1, "approve": lambda found: asked_for.append(found) or True},
    )
    hand.call()
    hand.fingerprint = "f" * 64
    with pytest.raises(PaymentRefused, match="payments in a row"):
        hand.call()
    assert len(asked_for) == 1


def test_a_new_payee_is_reported() -> None:
    """Once, from the second on."""
    hand = Hand()
    hand.call()
    for number, payee in enumerate(("0x" + "77" * 20, "0x" + "77" * 20)):
        hand.fingerprint = f"{number:064x}"
        hand.first = asked(offer(payTo=payee))
        hand.call()
    changed = [event for event in hand.events if event.kind == "payee_changed"]
    assert [event.detail["pay_to"] for event in changed] == ["0x" + "77" * 20]


def test_an_operation_is_method_url_service_and_body() -> None:
    """Contract 2; a fragment is not sent, so it does not count."""
    hand = Hand(paid=answered(503, settled=False))
    changes: list[dict[str, Any]] = [{}, {"method": "POST"}, {"key": "k"}]
    for change in changes:
        hand.call(**change)
    hand.fingerprint = "cd" * 32
    hand.call()
    hand.first = Reply(status=402, url=URL + "?a=1", headers=hand.first.headers)
    hand.call()
    assert len(hand.authorizations()) == 5
    hand.first = Reply(status=402, url=URL + "?a=1#part", headers=hand.first.headers)
    hand.call()
    assert len(hand.authorizations()) == 5
    hand.call(key="k", method="PUT")
    assert len(hand.authorizations()) == 5


# --- preempting


PREEMPTED = ["fingerprint", "view", "reserve", "sign", "hold", *TAIL]


def preempting(**more: Any) -> Hand:
    """A buyer that has bought here once."""
    hand = Hand(options={"preempt": True, **more})
    assert hand.call().receipt is not None
    assert hand.transcript[:4] == HEAD, "the first call has to ask"
    hand.fingerprint = "cd" * 32
    return hand


def test_a_known_price_is_paid_with_the_first_request() -> None:
    """Contract 2, preemption: the same checks, one round trip less."""
    hand = preempting(approve=yes)
    assert hand.call().receipt is not None
    before = ["fingerprint", "view", "foresee", "spend", "denied_for", "approve"]
    assert hand.transcript == [*before, *PREEMPTED[2:]]
    assert hand.rows() == [("settled", False, "settled")] * 2


def test_a_price_is_known_for_ten_minutes() -> None:
    """Then it is asked again, and known again."""
    hand = preempting()
    hand.clock += 599
    hand.call()
    assert hand.transcript == PREEMPTED
    hand.fingerprint = "ef" * 32
    hand.clock += 2
    hand.call()
    assert hand.transcript == BOUGHT


def test_a_preempted_proof_that_is_rejected_is_not_followed_by_another() -> None:
    """The 402 is handed back; the price is forgotten, for ten minutes nothing is preempted."""
    hand = preempting()
    hand.paid = answered(402, settled=False)
    verdict = hand.call()
    assert verdict.receipt is not None and verdict.receipt.outcome == "rejected"
    assert hand.transcript == PREEMPTED and hand.signer.calls == 2
    hand.paid, hand.fingerprint = answered(), "ef" * 32
    hand.call()
    assert hand.transcript == BOUGHT
    hand.fingerprint = "01" * 32
    hand.call()
    assert hand.transcript == BOUGHT, "still within the ten minutes"
    hand.clock += 601
    for expected in (BOUGHT, PREEMPTED):
        hand.fingerprint = str(len(hand.proofs)).zfill(64)
        hand.call()
        assert hand.transcript == expected


def test_what_policy_refuses_is_not_preempted() -> None:
    """The call goes on as if nothing was known: the seller is asked, and the refusal is said then."""
    hand = preempting(caps=[Cap("0.0015", per="total")])
    with pytest.raises(CapExceeded):
        hand.call()
    assert hand.transcript == [
        "fingerprint",
        "view",
        "reserve",
        "spend",
        *HEAD,
        "reserve",
        "spend",
        "note_refusal",
    ]
    hand.first = other(200)
    assert hand.call().receipt is None and hand.transcript[-1] == "ask"


def test_a_service_that_changes_its_terms_is_not_preempted() -> None:
    """Ever again by this payer."""
    hand = preempting()
    hand.clock += 700
    hand.first = asked(offer("2000"))
    for number in range(3):
        hand.fingerprint = f"{number:064x}"
        hand.call()
        assert hand.transcript == BOUGHT


def test_preempting_is_for_the_same_method_origin_and_service() -> None:
    """And not for a call that pays by hand, or has paid."""
    hand = preempting()
    hand.call(method="POST")
    assert hand.transcript == BOUGHT
    hand.call(has_proof=True)
    assert hand.transcript == ["ask"]
    trip = a_trip()
    trip.paid = True
    hand.call(state=trip)
    assert hand.transcript == ["ask"]


# --- races


def test_a_claim_that_comes_too_late_looks_again() -> None:
    """Another call took the open proof between the look and the claim."""
    hand = Hand(paid=answered(503, settled=False))
    hand.call()
    hand.paid = answered()
    ledger, real = hand.payer.ledger, hand.payer.ledger.claim
    late = iter([None])

    def claim(*args: Any, **kw: Any) -> Any:
        return next(late, "none left") and real(*args, **kw)

    ledger.claim = claim  # type: ignore[method-assign]
    hand.call()
    assert hand.transcript == [*HEAD, "claim", "view", "claim", *TAIL]


def test_a_reservation_that_finds_an_open_twin_shows_that() -> None:
    """Another call opened the operation between the look and the reservation."""
    hand = Hand(paid=answered(503, settled=False))
    hand.call()
    hand.paid = answered()
    ledger, real = hand.payer.ledger, hand.payer.ledger.view
    blind = iter([True])

    def look(*args: Any, **kw: Any) -> Any:
        view = real(*args, **kw)
        return dataclasses.replace(view, twin=None) if next(blind, False) else view

    ledger.view = look  # type: ignore[method-assign]
    hand.call()
    assert hand.transcript == [*HEAD, "reserve", "view", "claim", *TAIL]
    assert len(hand.authorizations()) == 1 and hand.signer.calls == 1


def test_a_refusal_that_cannot_be_noted_is_said_all_the_same() -> None:
    """The reason matters more than its record."""

    class Failing(MemoryLedger):
        def note_refusal(self, *args: Any, **kw: Any) -> None:
            raise LedgerError("disk full")

    hand = Hand(first=asked(offer("2000000")), options={"ledger": Failing()})
    with pytest.raises(CapExceeded):
        hand.call()
    assert hand.transcript[-1] == "note_refusal" and hand.rows() == []


# --- quoting


def quoted(hand: Hand) -> Any:
    """What a call would cost."""
    from x402_mask._flow.quoting import quote
    from x402_mask._flow.records import Call

    hand.transcript = []
    call = Call(method="GET", url=URL, state=a_trip())
    return hand.drive(quote(buyer_of(hand.payer), call, hand.first))


def test_a_quote_tells_what_paying_would_say() -> None:
    """And signs, reserves and notes nothing."""
    assert quoted(Hand(first=other(200))) is None
    assert quoted(Hand(first=other(402))) is None
    two = quoted(Hand(first=asked(offer(scheme="upto"), offer())))
    assert two.skipped == ("offer 0: scheme upto is not spoken",)
    plain = Hand()
    assert quoted(plain).allowed and plain.transcript == [
        "read",
        "fingerprint",
        "view",
        "foresee",
        "spend",
    ]
    assert plain.rows() == [] and plain.signer.calls == 0
    for name in ("cap", "no_cap", "offer", "origin", "no wallet", "clock"):
        make, kind, reason, _ = REFUSALS[name]
        hand = make()
        found = quoted(hand)
        assert isinstance(found.refusal, kind) and found.refusal.reason == reason
        assert not found.allowed and (found.usd is None) == (name in ("offer", "origin"))
    paused = Hand()
    paused.payer.pause()
    assert isinstance(quoted(paused).refusal, Paused)


# --- cut at every effect


SCENES: dict[str, Callable[[], Hand]] = {
    "bought": Hand,
    "local": lambda: Hand(options=local()),
    "approved": lambda: Hand(options={"approve": yes}),
    "unanswered": lambda: Hand(paid=ConnectionResetError("reset")),
    "refused": lambda: Hand(first=asked(offer("2000000"))),
    "keyed": lambda: Hand(key="k"),
    "seen": lambda: Hand(options={"rpc": {"eip155:8453": "http://127.0.0.1:9"}}),
    "failed": lambda: Hand(paid=answered(500, settled=False)),
    "open": lambda: _opened(),  # noqa: PLW0108  # defined below
}


def _opened() -> Hand:
    hand = Hand(paid=answered(503, settled=False))
    hand.call()
    hand.paid = answered()
    return hand


def set_scene(name: str) -> Hand:
    """A fresh scene."""
    hand = SCENES[name]()
    buyer_of(hand.payer).seen_on_chain = seen_on_chain  # type: ignore[method-assign]
    return hand


def seen_on_chain(*args: object) -> bool:
    return True


def length(name: str) -> int:
    """How many effects a scene has when nobody cuts it."""
    hand = set_scene(name)
    with contextlib.suppress(PaymentRefused, ConnectionResetError):
        hand.call()
    return len(hand.transcript)


ERRORS: list[Callable[[], BaseException]] = [
    lambda: RuntimeError("cut"),
    asyncio.CancelledError,
    KeyboardInterrupt,
    Abandoned,
    lambda: LedgerError("the disk is full"),
]
FAILING = {("unanswered", 8), ("refused", 5)}
"""Effects that fail by themselves: there is no "after"."""
CUTS = [(name, number) for name in SCENES for number in range(1, length(name) + 1)]


@pytest.mark.parametrize(("name", "number"), CUTS)
def test_cut(name: str, number: int) -> None:
    """Whatever happens, and wherever: no money is lost, none is spent twice."""
    for make in ERRORS:
        cut_once(name, number, make(), after=False)
        if (name, number) not in FAILING:
            cut_once(name, number, make(), after=True)


def cut_once(name: str, number: int, error: BaseException, *, after: bool) -> None:
    """One call that fails at its n-th effect, instead of it or right after."""
    hand = set_scene(name)
    before = len(hand.proofs)
    raised: BaseException | None = None
    try:
        hand.call(Cut(number, error, after))
    except BaseException as caught:
        raised = caught
    failed_at = hand.transcript[number - 1]
    rest = hand.transcript[number:]
    expect_error(raised, error, failed_at, name)
    expect_rows(hand, failed_at, rest, after, before)
    expect_repair(hand, name)


def expect_error(raised: BaseException | None, error: BaseException, at: str, name: str) -> None:
    """The failure comes out as it is, but for those that must not cost the answer or the reason."""
    if at == "sign" and isinstance(error, Exception):
        assert isinstance(raised, SignerError) and raised.__cause__ is error
    elif at == "approve" and isinstance(error, RuntimeError):
        assert isinstance(raised, ApprovalDenied) and raised.__cause__ is error
    elif name == "refused" and at == "spend" and isinstance(error, LedgerError):
        assert isinstance(raised, CapExceeded)
    elif isinstance(error, LedgerError) and at in ("finish", "note_refusal"):
        assert raised is None or isinstance(raised, (PaymentRefused, ConnectionResetError))
    elif at == "chain" and isinstance(error, Exception):
        assert raised is None
    else:
        assert raised is error
    if name == "unanswered" and isinstance(raised, ConnectionResetError):
        assert "x402_mask" in raised.__notes__[0]


def expect_rows(hand: Hand, at: str, rest: list[str], after: bool, before: int) -> None:
    """Before the proof left: released, at worst reserved; after: held, never lost."""
    rows = hand.payer.payments()
    left = hand.payer.spend()[0].left
    counted = sum(row.usd for row in rows if row.state in ("reserved", "held", "settled"))
    assert left == 1 - counted, "the caps do not count what the ledger holds"
    assert "in flight" not in [row.note for row in rows], "nobody carries this payment any more"
    if len(hand.proofs) > before:
        (row,) = rows
        assert row.state in ("held", "settled"), "a proof left and is not counted"
    for row in rows:
        if row.state == "reserved":
            # only the ledger itself could leave it so, or an interruption inside of it
            assert at in ("reserve", "release") or rest == []
    asking = ("foresee", "spend", "denied_for", "approve")
    if at in ("ask", "read", "fingerprint", "view", *asking) and not before:
        assert rows == [] and getattr(hand.signer, "calls", 0) == 0
    if at == "sign":
        assert [row.state for row in rows] == ["released"] and rest[0] == "release"
    if at == "hold":
        assert [row.state for row in rows] == (["held"] if after else ["released"])
    if at == "ask+proof":
        assert [row.state for row in rows] == ["held"]


def expect_repair(hand: Hand, name: str) -> None:
    """The same call made again is delivered; an open proof is shown, never replaced."""
    hand.payer.ledger.sweep(now_us=buyer_of(hand.payer).now_us())
    assert "reserved" not in [row.state for row in hand.payer.payments()]
    still_open = [row.payment_id for row in hand.payer.payments() if row.open]
    shown = set(hand.proofs)
    if name == "refused":
        with pytest.raises(CapExceeded):
            hand.call()
        return
    hand.paid = answered()
    verdict = hand.call()
    assert verdict.receipt is not None and verdict.receipt.outcome == "settled"
    if still_open:
        assert [verdict.receipt.payment_id] == still_open
        assert not shown or set(hand.proofs) == shown
    states = [row.state for row in hand.payer.payments()]
    assert states.count("held") == 0 or not still_open
    assert len(hand.authorizations()) <= states.count("settled") + states.count("held")


@pytest.mark.parametrize("name", SCENES)
def test_closed_like_a_generator(name: str) -> None:
    """``GeneratorExit`` cannot be answered by effects: drivers must translate it, and this is why."""
    hand = set_scene(name)
    from x402_mask._flow.conversation import converse
    from x402_mask._flow.records import Call

    call = Call(method="GET", url=URL, state=a_trip(), key=hand.key)
    flow = converse(buyer_of(hand.payer), call)
    assert next(flow).__class__.__name__ == "Ask"
    flow.close()  # nothing was begun: closing is harmless here
    assert len(hand.payer.payments()) == (1 if name == "open" else 0)


def test_a_ledger_that_fails_twice_keeps_the_reservation() -> None:
    """When even giving back fails, the money counts until somebody sweeps: never lost, never lent."""

    class Failing(MemoryLedger):
        broken = False

        def release(self, *args: Any, **kw: Any) -> None:
            if self.broken:
                raise LedgerError("disk full")
            super().release(*args, **kw)

        def hold(self, *args: Any, **kw: Any) -> None:
            self.broken = True
            raise LedgerError("disk full")

    ledger = Failing()
    hand = Hand(options={"ledger": ledger})
    with pytest.raises(LedgerError, match="disk full"):
        hand.call()
    assert [row.state for row in hand.payer.payments()] == ["reserved"] and hand.proofs == []
    assert "ledger_failed" in hand.kinds() and hand.payer.spend()[0].held > 0
    ledger.broken = False
    ledger.sweep(now_us=buyer_of(hand.payer).now_us())
    assert hand.rows()[0][0] == "released" and hand.payer.spend()[0].held == 0


def test_an_end_that_cannot_be_written_is_written_later() -> None:
    """A ledger that fails after the answer costs nobody the answer."""

    class Failing(MemoryLedger):
        broken = True

        def _finish(self, *args: Any, **kw: Any) -> bool:
            if self.broken:
                raise LedgerError("disk full")
            return super()._finish(*args, **kw)

    ledger = Failing()
    hand = Hand(options={"ledger": ledger})
    verdict = hand.call()
    assert verdict.receipt is not None and verdict.receipt.outcome == "settled"
    assert hand.rows()[0][0] == "held" and hand.kinds()[-1] == "ledger_failed"
    ledger.broken = False
    hand.fingerprint = "cd" * 32
    hand.call()
    assert [row[0] for row in hand.rows()] == ["settled", "settled"]
