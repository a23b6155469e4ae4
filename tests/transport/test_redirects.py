"""Where a proof may go: redirects, and what the caller can see afterwards (facts 2.1 to 2.10)."""

from __future__ import annotations

import pytest

from tests.support.seller import PROOF_HEADERS, Reply, offer, paywall, play, served, v2_header
from tests.transport.kit import OTHER, SHOP, URL, Leg, Rig, kinds
from x402_mask import OriginRefused, receipt_of
from x402_mask._ledger.audit import verify

SAFE = ("transport", "client", "attach")
ELSEWHERE = (OTHER, "https://shop.example:8443", "https://sub.shop.example", "http://shop.example")


def to(location: str, status: int = 307) -> Reply:
    """A redirect."""
    return Reply(status=status, headers=[("Location", location)])


def carries_proof(leg: Leg) -> bool:
    """Whether any payment header reached the wire on this leg."""
    return any(leg.values(name) for name in PROOF_HEADERS)


@kinds(*SAFE)
async def test_a_proof_never_follows_a_redirect_to_another_origin(rig: Rig) -> None:
    """Facts 2.2 and 2.3: another host, port, subdomain or scheme."""
    rig.client = rig.make_client(follow_redirects=True)
    for number, origin in enumerate(ELSEWHERE):
        rig.legs.clear()
        rig.sells(paid=to(origin + "/next"))
        rig.on(origin + "/next", Reply(body=b"elsewhere"))
        response = await rig.post(json={"a": number})
        assert response.content == b"elsewhere"
        assert [carries_proof(leg) for leg in rig.legs] == [False, True, False]
        assert len(set(rig.proofs)) == 1


@kinds(*SAFE)
async def test_a_proof_of_the_callers_own_does_not_leave_its_origin(rig: Rig) -> None:
    """Fact 2.8: what the caller put there by hand is a bearer secret too."""
    rig.on(URL, to(OTHER + "/next"))
    rig.on(OTHER + "/next", Reply())
    rig.client = rig.make_client(follow_redirects=True)
    mine = dict.fromkeys(PROOF_HEADERS, "mine")
    request = rig.client.build_request("GET", URL, headers=mine)
    await rig.send(request)
    assert [carries_proof(leg) for leg in rig.legs] == [True, False]
    assert request.headers["x-payment"] == "mine", "the caller's request was changed"


@kinds(*SAFE)
async def test_a_proof_is_not_sent_again_on_a_redirect_within_the_origin(rig: Rig) -> None:
    """Fact 2.10: what follows a paid request is the caller's request, without our header."""
    rig.sells(paid=to("/next"))
    rig.on("/next", Reply(body=b"goods"))
    rig.client = rig.make_client(follow_redirects=True)
    response = await rig.get()
    assert response.content == b"goods"
    assert [carries_proof(leg) for leg in rig.legs] == [False, True, False]
    receipt = receipt_of(response)
    assert receipt is not None and receipt.amount == 1000


@kinds()
async def test_a_redirect_to_a_price_on_the_same_origin_is_followed_and_paid(rig: Rig) -> None:
    """Fact 2.4: the paid request goes to where the price was asked, as it was asked there."""
    rig.sells()
    rig.client = rig.make_client(follow_redirects=True)
    for status in (302, 303, 307, 308):
        rig.legs.clear()
        rig.on("/go", to("/paid?x=1", status))
        assert rig.paid(await rig.post(SHOP + "/go", json={"a": 1})).service == SHOP
        first, asked, paid = rig.legs
        assert (asked.url, asked.method, asked.body) == (paid.url, paid.method, paid.body)
        assert paid.url == URL + "?x=1" and not first.proofs
        assert paid.method == ("GET" if status in (302, 303) else "POST")


@kinds()
async def test_a_price_asked_by_another_origin_after_a_redirect_is_refused(rig: Rig) -> None:
    """Fact 2.4: even one that is on the list: the caller did not name it."""
    rig.on(URL, to(OTHER + "/paid"))
    rig.sells(url=OTHER + "/paid")
    rig.client = rig.make_client(follow_redirects=True)
    with pytest.raises(OriginRefused) as caught:
        await rig.get()
    assert caught.value.reason == "redirected"
    assert caught.value.response.status_code == 402
    assert rig.proofs == [] and rig.payer.payments() == [] and rig.all_closed()


@kinds(*SAFE)
async def test_a_redirect_loop_after_payment_costs_one_payment(rig: Rig) -> None:
    """Fact 2.5."""
    rig.sells(paid=to("/paid"))
    rig.client = rig.make_client(follow_redirects=True)
    response = await rig.get()  # the second hop asks again: handed back, not paid
    assert response.status_code == 402
    receipt = receipt_of(response)
    assert receipt is not None
    assert len(rig.proofs) == 1 and len(rig.payer.payments()) == 1
    assert rig.payer.payments()[0].state == "held"


@kinds()
async def test_what_a_paid_redirect_leads_to_is_the_delivery(rig: Rig) -> None:
    """Contract 2: open until a 2xx was handed to the caller; then the same call is a new one."""
    rig.sells(paid=served(b"", status=303, headers=[("Location", "/goods")]))
    rig.on("/goods", Reply(body=b"goods"))
    rig.client = rig.make_client(follow_redirects=True)
    first = rig.paid(await rig.post(json={"a": 1}))
    second = rig.paid(await rig.post(json={"a": 1}))
    assert first.payment_id != second.payment_id and len(set(rig.proofs)) == 2
    told = [(row.payment_id, row.transaction) for row in rig.payer.payments()]
    assert told == [(one.payment_id, one.transaction) for one in (second, first)]
    assert first.transaction is not None
    assert [event.kind for event in rig.events].count("settled") == 2
    assert verify(rig.payer.ledger).ok


@pytest.mark.parametrize("status", [404, 503])
@kinds(*SAFE)
async def test_a_paid_redirect_that_leads_to_no_2xx_leaves_it_open(rig: Rig, status: int) -> None:
    rig.sells(paid=served(b"", status=303, headers=[("Location", "/goods")]))
    rig.on("/goods", Reply(status=status))
    rig.client = rig.make_client(follow_redirects=True)
    for _ in range(2):
        assert (await rig.post(json={"a": 1})).status_code == status
    assert len(set(rig.proofs)) == 1 and len(rig.proofs) == 2
    assert [(p.state, p.open) for p in rig.payer.payments()] == [("settled", True)]


@kinds()
async def test_a_failure_behind_a_paid_redirect_names_the_payment(rig: Rig) -> None:
    """Contract 2.5."""

    def fail(leg: Leg) -> Reply:
        raise rig.lib.ReadTimeout("slow")

    rig.sells(paid=served(b"", status=303, headers=[("Location", "/goods")]))
    rig.on("/goods", fail)
    rig.client = rig.make_client(follow_redirects=True)
    with pytest.raises(rig.lib.ReadTimeout) as caught:
        await rig.post(json={"a": 1})
    (row,) = rig.payer.payments()
    assert any(row.payment_id in note for note in caught.value.__notes__) and row.open


@kinds(*SAFE)
async def test_what_breaks_off_behind_a_redirect_was_not_delivered(rig: Rig) -> None:
    rig.sells(paid=served(b"", status=303, headers=[("Location", "/goods")]))
    rig.on("/goods", Reply(body=[b"half", rig.lib.ReadError("cut")], framing="chunked"))
    rig.client = rig.make_client(follow_redirects=True)
    with pytest.raises(rig.lib.ReadError, match="cut"):
        await rig.post(json={"a": 1})
    assert [(p.state, p.open) for p in rig.payer.payments()] == [("settled", True)]


@kinds(*SAFE)
async def test_a_paid_redirect_to_another_price_is_settled_as_it_said(rig: Rig) -> None:
    """Row 23: the redirect answered the proof, the 402 behind it answers something else."""
    rig.sells(paid=served(b"", status=307, headers=[("Location", "/more")]))
    rig.on("/more", v2_header(offer()))
    rig.client = rig.make_client(follow_redirects=True)
    response = await rig.get()
    receipt = receipt_of(response)
    assert response.status_code == 402 and receipt is not None and receipt.outcome == "settled"
    assert rig.states() == ["settled"] and len(rig.proofs) == 1


@kinds(*SAFE)
async def test_a_loop_of_redirects_ends_with_the_familys_own_error(rig: Rig) -> None:
    """Fact 2.16: and leaves one payment, held."""
    rig.on(URL, lambda leg: play(to("/round") if leg.proofs else v2_header(offer()), leg))
    rig.on("/round", to("/round"))
    rig.client = rig.make_client(follow_redirects=True, max_redirects=3)
    with pytest.raises(rig.lib.TooManyRedirects):
        await rig.get()
    assert len(rig.proofs) == 1 and rig.states() == ["held"]


@kinds()
async def test_redirects_are_not_followed_unless_asked(rig: Rig) -> None:
    """Fact 2.16: the paid redirect is handed back with its receipt, and without the proof."""
    rig.sells(paid=served(b"", status=307, headers=[("Location", OTHER + "/next")]))
    response = await rig.get()
    assert response.status_code == 307 and response.is_redirect
    receipt = receipt_of(response)
    assert receipt is not None and receipt.outcome == "settled"
    following = response.next_request
    assert following is not None and not any(name in following.headers for name in PROOF_HEADERS)
    assert not any(name in response.request.headers for name in PROOF_HEADERS)


@kinds()
async def test_the_callers_request_is_never_written_to(rig: Rig) -> None:
    """Fact 2.10."""
    rig.sells()
    request = rig.client.build_request("POST", URL, json={"a": 1}, headers={"X-Mine": "1"})
    before = request.headers.raw
    response = await rig.send(request)
    rig.paid(response)
    assert request.headers.raw == before and response.request is request
    assert rig.legs[1].request is not request


@kinds()
async def test_the_same_request_sent_twice_is_two_purchases(rig: Rig) -> None:
    """Fact 2.6: what the hops of one call share must know when the call has ended."""
    rig.sells()
    request = rig.client.build_request("GET", URL)
    first, second = await rig.send(request), await rig.send(request)
    assert rig.paid(first).payment_id != rig.paid(second).payment_id
    assert len(set(rig.proofs)) == 2 and len(rig.legs) == 4


@kinds()
async def test_the_same_request_sent_again_after_a_failure_shows_the_same_proof(rig: Rig) -> None:
    """As a retry library does, with the very object that failed."""
    failures = iter([rig.lib.ReadTimeout("slow"), None])

    def answer(leg: Leg) -> Reply:
        for failure in failures:
            if failure is not None:
                raise failure
            break
        return served()(leg)

    rig.sells(paid=answer)
    request = rig.client.build_request("GET", URL)
    with pytest.raises(rig.lib.ReadTimeout):
        await rig.send(request)
    rig.paid(await rig.send(request))
    assert len(rig.proofs) == 2 and len(set(rig.proofs)) == 1 and rig.states() == ["settled"]


@kinds()
async def test_a_new_request_for_an_open_operation_shows_the_same_proof(rig: Rig) -> None:
    """Fact 2.7: a caller's retry is a new request; the ledger knows that it is the same call."""
    answers = iter([Reply(status=503), served()])
    rig.sells(paid=lambda leg: play(next(answers), leg))
    failed = await rig.post(json={"a": 1})
    assert failed.status_code == 503
    delivered = await rig.post(json={"a": 1})
    rig.paid(delivered)
    assert len(rig.proofs) == 2 and len(set(rig.proofs)) == 1
    assert len(rig.payer.payments()) == 1


@kinds(*SAFE)
async def test_authorization_is_dropped_by_httpx_and_kept_by_us(rig: Rig) -> None:
    """Fact 2.3: the family's rule for ``Authorization`` is its own; the paid leg carries it."""
    rig.sells(paid=to(OTHER + "/next"))
    rig.on(OTHER + "/next", Reply())
    rig.client = rig.make_client(follow_redirects=True)
    await rig.get(headers={"Authorization": "Bearer x"})
    assert [leg.header("authorization") for leg in rig.legs] == ["Bearer x", "Bearer x", None]


@kinds()
async def test_a_call_that_brings_its_own_proof_is_not_paid_again(rig: Rig) -> None:
    """A proof set by hand is the caller's business: the answer is theirs, 402 or not."""
    rig.on(URL, v2_header(offer()))
    response = await rig.get(headers={"PAYMENT-SIGNATURE": "mine"})
    assert response.status_code == 402 and receipt_of(response) is None
    assert len(rig.legs) == 1 and rig.payer.payments() == []


@kinds("transport", "attach", libs=["httpx"], colours=["sync"])
async def test_paywall_helper_asks_again_without_proof(rig: Rig) -> None:
    """The wire tells paid from unpaid legs: without that no test here could fail."""
    rig.on(URL, paywall(Reply(status=418), Reply(status=200)))
    assert (await rig.get()).status_code == 418
