"""Rows 18 to 21: how long an authorization lives, and whose clock says so."""

from __future__ import annotations

import time
from dataclasses import replace
from email.utils import formatdate
from typing import Any

import pytest

from tests.hostile.kit import Clock, Kind, World, attempt
from tests.support.seller import (
    Hit,
    Reply,
    offer,
    offer_v1,
    paywall,
    served,
    v1_body,
    v2_header,
)
from x402_mask import ApprovalDenied, ChallengeError, OfferRefused, PaymentError

UNREADABLE = (OfferRefused, ChallengeError)
CAP_S = 300
SLACK_S = 5


def dated(reply: Reply, ahead: float | Clock = 0.0) -> Any:
    """The same reply with a ``Date`` header, off by ``ahead`` seconds, or by a clock."""

    def script(hit: Hit) -> Reply:
        now = ahead() if isinstance(ahead, Clock) else time.time() + ahead
        date = formatdate(now, usegmt=True)
        return replace(reply, headers=[*reply.headers, ("Date", date)])

    return script


def life(world: World) -> float:
    """Seconds the only authorization still lives, by the real clock."""
    (one,) = world.authorizations()
    return one.valid_before - time.time()


# --- row 18


@pytest.mark.parametrize("seconds", [315_360_000, 2**53, 10**30, 301])
def test_a_life_of_ten_years_is_cut_to_our_own_limit(
    world: World, kind: Kind, seconds: int
) -> None:
    """Row 18: ``validBefore`` is at most five minutes off; ``accepted`` is echoed unchanged."""
    seller = world.seller()
    entry = offer("1000", maxTimeoutSeconds=seconds)
    assert world.buyer(kind).get(seller.sells(entry)).status_code == 200
    assert 60 < life(world) <= CAP_S + SLACK_S
    assert seller.paid_hits()[0].proof.accepted == entry


def test_a_version_1_authorization_is_cut_too(world: World, kind: Kind) -> None:
    """Row 18: the other version, the same limit; it starts in the past and not in the future."""
    seller = world.seller()
    entry = offer_v1("1000", maxTimeoutSeconds=315_360_000)
    url = seller.on("/paid", paywall(v1_body(entry), served()))
    assert world.buyer(kind).get(url).status_code == 200
    assert 60 < life(world) <= CAP_S + SLACK_S
    (one,) = seller.authorizations()
    assert one.valid_after <= time.time()


def test_a_short_life_of_the_seller_is_honoured(world: World, kind: Kind) -> None:
    """Row 18: the smaller of the two limits."""
    seller = world.seller()
    world.buyer(kind).get(seller.sells(offer("1000", maxTimeoutSeconds=30)))
    assert 20 < life(world) <= 30 + SLACK_S


# --- row 19


@pytest.mark.parametrize(
    "seconds",
    [0, -5, 1, 9, -(10**30), "300", True, [60], {"s": 60}],
    ids=repr,
)
def test_a_life_that_is_too_short_or_no_number_is_refused(
    world: World, kind: Kind, seconds: object
) -> None:
    """Row 19: under ten seconds, or not a number at all."""
    url = world.seller().sells(offer("1000", maxTimeoutSeconds=seconds))
    world.refused(world.buyer(kind), url, *UNREADABLE)


def test_a_usable_offer_beside_a_stillborn_one_is_paid(world: World, kind: Kind) -> None:
    """Row 19: what policy forbids is dropped, the rest stays."""
    seller = world.seller()
    url = seller.sells(offer("10", maxTimeoutSeconds=0), offer("1000"))
    assert world.buyer(kind).get(url).status_code == 200
    assert [one.value for one in seller.authorizations()] == [1000]


# --- row 20


def test_the_authorization_is_stamped_after_the_approval(world: World, kind: Kind) -> None:
    """Row 20: a person who takes 200 s to say yes does not eat the seller's 60 s."""
    seller = world.seller()
    clock = Clock(ahead=-1000)

    def approve(quote: object) -> bool:
        clock.ahead += 200
        return True

    buyer = world.buyer(kind, world.payer(approve=approve, clock=clock))
    assert buyer.get(seller.sells(offer("1000"))).status_code == 200
    (one,) = seller.authorizations()
    assert 50 < one.valid_before - clock() <= 60 + SLACK_S


def test_a_wait_of_the_signer_that_eats_the_window_releases(world: World, kind: Kind) -> None:
    """Row 20: a hardware wallet answered after the authorization had died; nothing is sent."""
    seller = world.seller()
    clock = Clock()

    def slow() -> None:
        clock.ahead += 100

    world.signer.before = slow
    buyer = world.buyer(kind, world.payer(clock=clock))
    with pytest.raises(PaymentError) as caught:
        buyer.get(seller.sells(offer("1000", maxTimeoutSeconds=60)))
    assert caught.value.at_risk is False
    assert seller.proofs() == [] and world.counted() == 0


@pytest.mark.parametrize(
    "answer", [False, None, 1, "yes", object()], ids=["no", "none", "1", "yes", "object"]
)
def test_only_true_approves(world: World, kind: Kind, answer: object) -> None:
    """Row 20: whatever is not ``True`` is a no, and nothing was reserved when it was asked."""
    seller = world.seller()
    reserved: list[int] = []

    def approve(quote: object) -> Any:
        reserved.append(len(world.in_state("reserved", "held")))
        return answer

    buyer = world.buyer(kind, world.payer(approve=approve))
    world.refused(buyer, seller.sells(), ApprovalDenied)
    assert reserved == [0]


def test_an_approval_that_fails_pays_nothing(world: World, kind: Kind) -> None:
    """Row 20: an exception in ``approve`` is not a yes."""
    seller = world.seller()

    def approve(quote: object) -> bool:
        raise RuntimeError("the telephone is dead")

    buyer = world.buyer(kind, world.payer(approve=approve))
    with pytest.raises((ApprovalDenied, RuntimeError)):
        buyer.get(seller.sells())
    assert world.signer.calls == 0 and world.counted() == 0 and seller.proofs() == []


# --- row 21


def test_a_clock_two_minutes_behind_is_corrected_or_named(world: World, kind: Kind) -> None:
    """Row 21: 60 s from a clock 120 s slow would be dead on arrival."""
    seller = world.seller()
    challenge = dated(v2_header(offer("1000", maxTimeoutSeconds=60)))
    url = seller.on("/paid", paywall(challenge, served()))
    buyer = world.buyer(kind, world.payer(clock=lambda: time.time() - 120))
    outcome = attempt(buyer, url)
    if isinstance(outcome, PaymentError):
        assert outcome.at_risk is False and "clock" in str(outcome).lower()
        assert seller.proofs() == []
        return
    assert outcome.status_code == 200
    assert 6 < life(world) <= 60 + SLACK_S


def test_a_clock_two_minutes_ahead_does_not_lengthen_the_life(world: World, kind: Kind) -> None:
    """Row 21: the other way round the authorization would outlive what was allowed."""
    seller = world.seller()
    challenge = dated(v2_header(offer("1000", maxTimeoutSeconds=60)))
    url = seller.on("/paid", paywall(challenge, served()))
    buyer = world.buyer(kind, world.payer(clock=lambda: time.time() + 120))
    outcome = attempt(buyer, url)
    if isinstance(outcome, PaymentError):
        assert outcome.at_risk is False and "clock" in str(outcome).lower()
        return
    assert outcome.status_code == 200
    assert 6 < life(world) <= 180 + SLACK_S


@pytest.mark.parametrize(("own", "seller_s"), [(120, 0), (290, 0), (0, -120), (0, -299), (-120, 0)])
def test_a_proof_lives_by_the_clock_that_it_is_stamped_by(
    world: World, kind: Kind, own: float, seller_s: float
) -> None:
    """Invariant 2: else it were dead to us, and signed anew, while it can still be settled."""
    seller = world.seller()
    clock, theirs = Clock(ahead=own), Clock(ahead=seller_s)
    challenge = dated(v2_header(offer("1000", maxTimeoutSeconds=60)), theirs)
    url = seller.on("/paid", paywall(challenge, Reply(status=503)))
    buyer = world.buyer(kind, world.payer(clock=clock))
    for _ in range(3):
        assert buyer.get(url).status_code == 503
    assert len(seller.authorizations()) == 1
    passed = 95 + abs(own - seller_s)  # by the clock that is behind
    clock.ahead, theirs.ahead = clock.ahead + passed, theirs.ahead + passed
    assert buyer.get(url).status_code == 503
    assert len(seller.authorizations()) == 2


# --- one live proof, by every clock at hand


def expiring(world: World, paid: Any, theirs: Clock) -> str:
    """A seller whose offer lives for a minute, and what it does with proofs."""
    challenge = dated(v2_header(offer("1000", maxTimeoutSeconds=60)), theirs)
    return world.seller().on("/paid", paywall(challenge, paid))


def test_a_step_of_our_clock_makes_no_second_live_proof(world: World, kind: Kind) -> None:
    """The seller's ``Date`` in the very 402 says that the first lives: the same bytes go again."""
    own, theirs = Clock(), Clock()
    failing = [Reply(status=503)]
    url = expiring(world, lambda hit: failing.pop() if failing else served()(hit), theirs)
    buyer = world.buyer(kind, world.payer(clock=own))
    assert buyer.get(url).status_code == 503
    own.ahead += 200
    answer = buyer.get(url)
    assert answer.status_code == 200
    (one,) = world.authorizations()
    assert one.valid_before > time.time()


def test_a_date_that_stands_still_delays_for_a_day_by_our_clock(world: World, kind: Kind) -> None:
    """Shown again once; then what keeps it open is said, and nothing is sent."""
    own, theirs = Clock(), Clock()
    url = expiring(world, v2_header(offer("1000")), theirs)
    buyer = world.buyer(kind, world.payer(clock=own))
    assert buyer.get(url).status_code == 402
    for late in (200, 600, 23 * 3600):
        own.ahead = late
        outcome = attempt(buyer, url)
        if late == 200:
            assert outcome.status_code == 402, "the same bytes, which the seller does not want"
            continue
        assert isinstance(outcome, PaymentError)
        assert getattr(outcome, "reason", None) == "clock" and "the seller's Date" in str(outcome)
        assert outcome.at_risk is False
    assert len(set(world.authorizations())) == 1
    own.ahead = 25 * 3600
    attempt(buyer, url)
    assert len(world.authorizations()) == 2


def test_a_402_that_a_cache_kept_is_as_old_as_it_says(world: World, kind: Kind) -> None:
    """``Age`` tells how long its ``Date`` is past: no seller whose clock is behind."""
    own, theirs = Clock(), Clock()
    seller, aged = world.seller(), []

    def challenge(hit: Hit) -> Reply:
        reply = dated(v2_header(offer("1000", maxTimeoutSeconds=60)), theirs)(hit)
        return replace(reply, headers=[*reply.headers, *aged])

    url = seller.on("/paid", paywall(challenge, Reply(status=503)))
    buyer = world.buyer(kind, world.payer(clock=own))
    buyer.get(url)
    own.ahead += 200
    aged.append(("Age", "200"))
    buyer.get(url)
    assert len(seller.authorizations()) == 2
    aged[:] = [("Age", "-1"), ("Age", "soon")]
    own.ahead += 200
    buyer.get(url)
    assert len(seller.authorizations()) == 2, "an age that is none is none"


@pytest.mark.parametrize("ahead", [-315_360_000, -3600, -90, 90, 3600, 315_360_000])
def test_a_date_that_lies_never_lengthens_the_life_beyond_the_cap(
    world: World, kind: Kind, ahead: int
) -> None:
    """Row 21: ``Date`` is the seller's word; at most it makes us refuse."""
    seller = world.seller()
    challenge = dated(v2_header(offer("1000", maxTimeoutSeconds=3600)), ahead)
    url = seller.on("/paid", paywall(challenge, served()))
    outcome = attempt(world.buyer(kind), url)
    if isinstance(outcome, PaymentError):
        assert outcome.at_risk is False and "clock" in str(outcome).lower()
        assert seller.proofs() == []
        return
    assert outcome.status_code == 200
    assert life(world) <= CAP_S + SLACK_S


@pytest.mark.parametrize("date", ["", "yesterday", "Thu, 99 Foo 9999 99:99:99 GMT", "9" * 400])
def test_a_date_that_cannot_be_read_is_no_reason_to_fail(
    world: World, kind: Kind, date: str
) -> None:
    """Row 21: garbage in ``Date`` is ignored."""
    seller = world.seller()
    reply = v2_header(offer("1000"))
    odd = replace(reply, headers=[*reply.headers, ("Date", date)])
    url = seller.on("/paid", paywall(odd, served()))
    assert world.buyer(kind).get(url).status_code == 200


def test_a_dead_on_arrival_answer_is_held_and_not_signed_again(world: World, kind: Kind) -> None:
    """Row 21: the seller says the authorization expired; that is a claim, not a licence."""
    seller = world.seller()
    code = "invalid_exact_evm_payload_authorization_valid_before"
    rejected = v2_header(offer("1000"), error=code)
    url = seller.on("/paid", paywall(v2_header(offer("1000")), rejected))
    buyer = world.buyer(kind)
    for _ in range(3):
        assert buyer.get(url).status_code == 402
    assert len(seller.authorizations()) == 1 and world.signer.calls == 1
    assert world.held() == world.collectable()
