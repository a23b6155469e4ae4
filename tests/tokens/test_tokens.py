"""Tokens that are held: used first, by everybody on the ledger, and never anywhere else."""

from __future__ import annotations

import json
import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.deciding import decide
from tests.support.faults import rows
from tests.support.seller import Reply
from tests.tokens.bazaar import GOODS, SERVICE, Bazaar, answered, nothing, once
from tests.tokens.shop import (
    NO_TLS,
    USD,
    WALLET,
    assert_sound,
    call,
    counted,
    made,
    payer,
    states,
)
from tests.transport.servers import Proxy
from x402_mask import (
    Cap,
    Client,
    MemoryLedger,
    OriginRefused,
    PaymentAuth,
    PaymentError,
    PaymentRefused,
    PaymentTransport,
    SQLiteLedger,
    TokenFlowError,
    attach,
    receipt_of,
)
from x402_mask._payer import buyer_of

PAIR = ("client", "async-attach")


def rich(bazaar: Bazaar, calls: int = 3, **options: Any) -> Any:
    """A buyer who holds a token with ``calls - 1`` calls left."""
    bazaar.paid_at, bazaar.calls = "creation", calls
    buyer = payer(bazaar, **options)
    assert call("client", buyer, bazaar.url()).status_code == 200
    bazaar.hits.clear()
    return buyer


# --- who uses it ----------------------------------------------------------------------------------


def test_it_goes_first_for_every_buyer_on_the_ledger(bazaar: Bazaar, fast_path: Path) -> None:
    """Another payer, another ledger object, and one who had looked before it was bought."""
    path = fast_path / "ledger.db"
    early = payer(bazaar, ledger=SQLiteLedger(path))
    bazaar.before["tool"] = once(lambda hit: Reply(body=b"free"), nothing)
    assert call("client", early, bazaar.url()).content == b"free"  # it knows of no token now
    first = rich(bazaar, 6, ledger=SQLiteLedger(path))
    later = payer(bazaar, ledger=SQLiteLedger(path))
    for colour in PAIR:
        receipt = receipt_of(call(colour, later, bazaar.url()))
        assert receipt is not None and (receipt.route, receipt.usd) == ("held-token", 0)
    assert bazaar.steps() == ["redeem"] * 2
    call("client", early, bazaar.url(), 2)
    assert bazaar.steps() == ["redeem"] * 2 + ["tool", "redeem", "redeem"]
    assert {p.payment_id for p in early.payments()} == {first.payments()[0].payment_id}
    assert len(bazaar.moved) == 1
    assert_sound(early, bazaar)


def test_it_is_for_its_service_and_origin_only(bazaar: Bazaar) -> None:
    buyer = rich(bazaar)
    token = bazaar.bought[0].token
    with Bazaar() as other:
        both = payer(bazaar, ledger=buyer.ledger)
        decide(both, origins=buyer_of(both).settings.origins | {other.origin})
        decide(both, poll_unpaid_s=0.02)
        other.paid_at = bazaar.paid_at = None
        for url in (other.url(), bazaar.url("timestamp"), f"{bazaar.origin}/paid"):
            with made("client", both) as client, suppress(PaymentError):
                client.get(url)
        for hit in [*other.hits, *bazaar.hits]:
            assert token not in str(hit.headers) and token not in hit.target


def test_it_stays_behind_when_the_call_is_redirected(bazaar: Bazaar) -> None:
    """To another origin and on the same: the token goes with the first request alone."""
    buyer = rich(bazaar, 9)
    with Bazaar() as other:
        for colour in ("client", "attach", "async-client", "async-attach"):
            for target in (f"{other.origin}/x", "/y"):
                bazaar.before["redeem"] = lambda hit, to=target: Reply(
                    status=307, headers=[("Location", to)]
                )
                bazaar.before["lost"] = other.before["lost"] = lambda hit: Reply(body=b"there")
                answer = call(colour, buyer, bazaar.url(), client={"follow_redirects": True})
                assert answer.content == b"there"
                receipt = receipt_of(answer)
                assert receipt is not None and receipt.route == "held-token"
        assert not any(hit.proofs for hit in other.hits)
        assert not any(hit.proofs for hit in bazaar.hits if hit.path == "/y")
    assert len(bazaar.moved) == 1


@pytest.mark.parametrize("colour", ["client", "attach", "async-client", "async-attach"])
def test_a_slash_redirect_before_the_till(bazaar: Bazaar, colour: str) -> None:
    """A framework sends every call on to the path with a slash: tokens are used there as well."""
    bazaar.paid_at, bazaar.calls = "creation", 3

    def slashed(hit: Any) -> Any:
        if hit.path.endswith("/"):
            return None
        return Reply(status=307, headers=[("Location", hit.path + "/")])

    bazaar.before["tool"] = slashed
    bazaar.before["redeem"] = lambda hit: slashed(hit) or bazaar._goods([])
    buyer = payer(bazaar)
    answers = call(colour, buyer, bazaar.url(), 3, client={"follow_redirects": True})
    assert [answer.status_code for answer in answers] == [200] * 3
    receipts = [receipt_of(answer) for answer in answers]
    assert [r.route for r in receipts if r is not None] == ["token", "held-token", "held-token"]
    assert len(bazaar.moved) == 1 and buyer.ledger.held_tokens(now_us=0) == frozenset()
    assert_sound(buyer, bazaar)


@pytest.mark.parametrize("colour", ["client", "attach", "async-client", "async-attach"])
def test_a_stranger_asks_for_money_where_a_token_led(bazaar: Bazaar, colour: str) -> None:
    """A redirect to another origin, and its 402: nobody there is paid, and the token is kept."""
    buyer = rich(bazaar)
    buyer = payer(bazaar, ledger=buyer.ledger, wallet=WALLET)
    with Bazaar() as other:
        bazaar.before["redeem"] = lambda hit: Reply(status=307, headers=[("Location", other.url())])
        with pytest.raises(OriginRefused) as caught:
            call(colour, buyer, bazaar.url(), client={"follow_redirects": True})
        assert caught.value.reason == "redirected"
        assert not any(hit.proofs for hit in other.hits) and other.at_market() == []
    assert len(bazaar.proofs()) == 1 and counted(buyer) == USD
    assert buyer.ledger.held_tokens(now_us=0)
    assert_sound(buyer, bazaar)


def test_a_bought_token_stays_behind_too(bazaar: Bazaar) -> None:
    with Bazaar() as other:
        for colour in ("client", "attach", "async-attach"):
            bazaar.paid_at = "creation"
            bazaar.before["redeem"] = lambda hit: Reply(
                status=302, headers=[("Location", f"{other.origin}/x")]
            )
            other.before["lost"] = lambda hit: Reply(body=b"there")
            buyer = payer(bazaar)
            answer = call(colour, buyer, bazaar.url(), client={"follow_redirects": True})
            receipt = receipt_of(answer)
            assert receipt is not None and (receipt.route, receipt.usd) == ("token", USD)
            assert counted(buyer) == USD
        assert other.hits and not any(hit.proofs for hit in other.hits)


@pytest.mark.parametrize("asks", ["object", "server402", "v2-header"])
@pytest.mark.parametrize("outer", ["attach", "auth", "transport"])
def test_a_layer_below_does_not_pay_a_side_request(bazaar: Bazaar, asks: str, outer: str) -> None:
    """A held token is refused, and the outer layer buys another: one payment, counted once."""
    bazaar.asks, bazaar.calls = asks, 3
    buyer = payer(bazaar, wallet=WALLET, prefer=("held-token", "token"))
    below: Any = PaymentTransport(buyer, httpx.HTTPTransport(verify=NO_TLS, trust_env=False))

    class Between(httpx.BaseTransport):
        def handle_request(self, request: httpx.Request) -> httpx.Response:
            return below.handle_request(request)  # type: ignore[no-any-return]

        def close(self) -> None:
            below.close()

    auth = PaymentAuth(buyer) if outer == "auth" else None
    transport = PaymentTransport(buyer, Between()) if outer == "transport" else below
    with httpx.Client(transport=transport, auth=auth, timeout=10) as client:
        if outer == "attach":
            attach(client, buyer)
        assert client.post(bazaar.url(), json={"n": 1}).status_code == 200
        for sale in bazaar.sales.values():
            sale.status = "exhausted"
        assert client.post(bazaar.url(), json={"n": 2}).status_code == 200
    assert [(row.route, row.service) for row in buyer.payments()] == [("token", SERVICE)] * 2
    assert len(bazaar.moved) == 2 and counted(buyer) == 2 * USD
    assert_sound(buyer, bazaar)


@pytest.mark.parametrize("colour", PAIR)
@pytest.mark.parametrize("status", [200, 404])
def test_what_a_bought_token_leads_to(bazaar: Bazaar, colour: str, status: int) -> None:
    """Contract 2: a 2xx behind its redirect is the delivery, anything else leaves it open."""
    bazaar.paid_at = "creation"
    bazaar.before["redeem"] = lambda hit: Reply(status=303, headers=[("Location", "/goods")])
    bazaar.before["lost"] = lambda hit: Reply(status=status, body=b"goods")
    buyer = payer(bazaar)
    answer = call(colour, buyer, bazaar.url(), client={"follow_redirects": True})
    receipt = receipt_of(answer)
    assert answer.status_code == status and receipt is not None and receipt.usd == USD
    assert [row.open for row in buyer.payments()] == [status != 200]
    assert buyer.ledger.held_tokens(now_us=0) == frozenset()
    assert_sound(buyer, bazaar)


@pytest.mark.parametrize("colour", PAIR)
def test_a_held_token_whose_answer_breaks_off(bazaar: Bazaar, colour: str) -> None:
    """It does not open the purchase that bought it, which another call was delivered by."""
    buyer = rich(bazaar)
    bazaar.after["redeem"] = lambda hit, reply: Reply(body=b"half of it", length=100, cut=10)
    with pytest.raises(httpx.HTTPError) as caught:
        call(colour, buyer, bazaar.url())
    (row,) = buyer.payments()
    assert any(row.payment_id in note for note in caught.value.__notes__)
    assert not row.open
    assert_sound(buyer, bazaar)


def test_prefer_may_leave_held_tokens_out(bazaar: Bazaar) -> None:
    buyer = rich(bazaar)
    other = payer(bazaar, ledger=buyer.ledger, prefer=("token",))
    receipt = receipt_of(call("client", other, bazaar.url()))
    assert receipt is not None and receipt.route == "token"
    assert len(bazaar.moved) == 2


def test_a_pause_keeps_tokens_back_and_forgets_none(bazaar: Bazaar) -> None:
    buyer = rich(bazaar)
    buyer.pause()
    with pytest.raises(PaymentRefused):
        call("client", buyer, bazaar.url())
    buyer.resume()
    bazaar.hits.clear()
    assert call("client", buyer, bazaar.url()).status_code == 200
    assert bazaar.steps() == ["redeem"]


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
def test_threads_never_use_more_calls_than_are_left(
    bazaar: Bazaar, fast_path: Path, kind: str
) -> None:
    ledger = MemoryLedger() if kind == "memory" else SQLiteLedger(fast_path / "l.db")
    buyer = rich(bazaar, 5, ledger=ledger, poll_unpaid=0.02)
    bazaar.paid_at = None
    outcomes: list[str] = []

    def one(number: int) -> None:
        with made("client", buyer) as client:
            try:
                client.get(f"{bazaar.url()}?n={number}")
                outcomes.append("served")
            except TokenFlowError:
                outcomes.append("refused")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(one, range(10)))
    assert sorted(outcomes) == ["refused"] * 6 + ["served"] * 4
    assert bazaar.steps().count("redeem") == 4
    assert_sound(buyer, bazaar)


# --- when it is over ------------------------------------------------------------------------------


@pytest.mark.parametrize("colour", PAIR)
def test_an_expired_token_is_not_used(bazaar: Bazaar, colour: str) -> None:
    bazaar.shape = lambda said: {**said, "expiresAt": int(time.time()) + 60}
    late = [0.0]
    buyer = rich(bazaar, clock=lambda: time.time() + late[0])
    late[0] = 61.0
    bazaar.shape = lambda said: said
    receipt = receipt_of(call(colour, buyer, bazaar.url()))
    assert receipt is not None and receipt.route == "token"
    assert bazaar.steps() == ["tool", "create", "redeem"]


@pytest.mark.parametrize("colour", ["client", "attach", "async-client", "async-attach"])
@pytest.mark.parametrize("wallet", [None, WALLET])
def test_a_refused_token_is_dropped_and_the_call_goes_on(
    bazaar: Bazaar, colour: str, wallet: Any
) -> None:
    """At most one purchase per call, and the refused token is never sent again."""
    buyer = rich(bazaar)
    old = bazaar.bought[0].token
    bazaar.bought[0].status = "exhausted"
    buyer = payer(bazaar, ledger=buyer.ledger, wallet=wallet)
    receipt = receipt_of(call(colour, buyer, bazaar.url()))
    assert receipt is not None
    assert receipt.route == ("token" if wallet is None else "x402") and receipt.usd == USD
    sent = [hit.header("x-payment-token") for hit in bazaar.hits]
    assert sent.count(old) == 1
    assert counted(buyer) == 2 * USD and len(bazaar.moved) == 2
    assert_sound(buyer, bazaar)


def test_a_refused_token_and_no_room_in_the_cap(bazaar: Bazaar) -> None:
    buyer = rich(bazaar, caps=[Cap("0.2", per="total")])
    bazaar.bought[0].status = "exhausted"
    with pytest.raises(PaymentRefused) as caught:
        call("client", buyer, bazaar.url())
    assert caught.value.reason == "cap" and "create" not in bazaar.steps()
    assert caught.value.response.status_code == 402


def test_several_refused_tokens_and_one_purchase(bazaar: Bazaar) -> None:
    bazaar.paid_at, bazaar.calls = "creation", 2
    ledger = MemoryLedger()
    for number in range(3):
        buyer = payer(bazaar, ledger=ledger, prefer=("token",))
        call("client", buyer, f"{bazaar.url()}?n={number}")
    for sale in bazaar.bought:
        sale.status = "exhausted"
    bazaar.hits.clear()
    buyer = payer(bazaar, ledger=ledger)
    assert call("client", buyer, bazaar.url()).status_code == 200
    assert bazaar.steps() == ["redeem"] * 3 + ["create", "redeem"]
    assert len(bazaar.moved) == 4
    assert_sound(buyer, bazaar)


@pytest.mark.parametrize("colour", PAIR)
def test_a_fresh_token_that_is_refused_is_handed_back(bazaar: Bazaar, colour: str) -> None:
    """``rejected``; the identical call shows it again; refused once more, it is dropped."""
    bazaar.paid_at = "creation"
    bazaar.before["redeem"] = once(
        lambda hit: Reply(status=402, body=b'{"error": "pending"}'), nothing
    )
    buyer = payer(bazaar)
    answer = call(colour, buyer, bazaar.url())
    receipt = receipt_of(answer)
    assert answer.status_code == 402 and answer.json() == {"error": "pending"}
    assert receipt is not None and (receipt.outcome, receipt.usd) == ("rejected", USD)
    again = call(colour, buyer, bazaar.url())
    second = receipt_of(again)
    assert again.status_code == 200 and second is not None
    assert second.payment_id == receipt.payment_id
    assert len({hit.header("x-payment-token") for hit in bazaar.hits} - {None}) == 1
    assert len(bazaar.moved) == 1 and counted(buyer) == USD
    assert_sound(buyer, bazaar)


@pytest.mark.parametrize("way", ["balance", "x402", "settle"])
def test_a_token_that_is_refused_is_replaced_once_its_proof_is_dead(
    bazaar: Bazaar, way: str
) -> None:
    """Until then an identical call shows the same token: one operation, one live proof."""
    bazaar.paid_at = "creation" if way == "balance" else None
    bazaar.asks = "server402" if way == "x402" else None
    bazaar.before["redeem"] = lambda hit: Reply(status=402, body=b"{}")
    late = 0.0
    buyer = payer(
        bazaar,
        wallet=WALLET if way == "x402" else None,
        prefer=("held-token", "token"),
        settle_payment=lambda document: bazaar.pay(document["paymentId"], "settle"),
        clock=lambda: time.time() + late,
    )
    answers = [call("client", buyer, bazaar.url()) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [402] * 3
    assert {receipt_of(answer).outcome for answer in answers} == {"rejected"}  # type: ignore[union-attr]
    assert len(bazaar.moved) == 1 and counted(buyer) == USD
    late = 331.0
    del bazaar.before["redeem"]
    bazaar.before["redeem"] = once(lambda hit: Reply(status=402, body=b"{}"), nothing)
    assert call("client", buyer, bazaar.url()).status_code == 200
    assert len(bazaar.moved) == 2 and counted(buyer) == 2 * USD
    assert_sound(buyer, bazaar)


@pytest.mark.parametrize(
    "trouble", [Reply(status=503, body=b"busy"), Reply(status=500), Reply(drop=True)]
)
@pytest.mark.parametrize("colour", PAIR)
def test_a_held_token_whose_call_failed_is_shown_again(
    bazaar: Bazaar, trouble: Reply, colour: str
) -> None:
    """The last call of a token brought nothing: the identical call does not buy another."""
    buyer = rich(bazaar, 2)
    bazaar.before["redeem"] = once(lambda hit: trouble, nothing)
    if trouble.drop:
        with pytest.raises(httpx.RemoteProtocolError) as caught:
            call(colour, buyer, bazaar.url())
        assert any("pay_" in note for note in caught.value.__notes__)
    else:
        assert call(colour, buyer, bazaar.url()).status_code == trouble.status
    receipt = receipt_of(call(colour, buyer, bazaar.url()))
    assert receipt is not None and (receipt.route, receipt.usd) == ("held-token", 0)
    assert len(bazaar.moved) == 1 and bazaar.steps() == ["redeem", "redeem"]
    assert_sound(buyer, bazaar)


@pytest.mark.parametrize("colour", ["client", "attach", "async-client", "async-attach"])
def test_an_answer_that_breaks_off(bazaar: Bazaar, colour: str) -> None:
    """The goods never came whole: the identical call shows the same token and pays nothing."""
    bazaar.paid_at = "creation"
    half = Reply(body=b"half of it", length=100, cut=10)
    bazaar.before["redeem"] = once(lambda hit: half, nothing)
    buyer = payer(bazaar)
    with pytest.raises(httpx.RemoteProtocolError):
        call(colour, buyer, bazaar.url())
    assert counted(buyer) == USD
    answer = call(colour, buyer, bazaar.url())
    assert answer.json() == GOODS and len(bazaar.moved) == 1
    assert len({hit.header("x-payment-token") for hit in bazaar.hits} - {None}) == 1
    assert_sound(buyer, bazaar)


def test_an_answer_that_breaks_off_from_a_token_that_is_spent(bazaar: Bazaar) -> None:
    """The marketplace does not show the token any more, and delivers again for it."""
    bazaar.paid_at = "creation"
    bazaar.after["redeem"] = once(
        lambda hit, reply: Reply(body=b"half", length=100, cut=4), answered
    )
    buyer = payer(bazaar)
    with pytest.raises(httpx.RemoteProtocolError):
        call("client", buyer, bazaar.url())
    assert bazaar.bought[0].status == "exhausted"
    bazaar.before["redeem"] = lambda hit: bazaar._goods([])
    assert call("client", buyer, bazaar.url()).json() == GOODS
    assert len({hit.header("x-payment-token") for hit in bazaar.hits} - {None}) == 1
    assert len(bazaar.moved) == 1
    assert_sound(buyer, bazaar)


def test_a_stream_is_handed_back_unread(bazaar: Bazaar) -> None:
    """The paid answer streams; stopping early is no failure."""
    bazaar.paid_at = "creation"
    gate = threading.Event()

    def pieces() -> Any:
        yield b"first"
        gate.wait(5)
        yield b"second"

    bazaar.before["redeem"] = lambda hit: Reply(body=pieces(), framing="chunked")
    buyer = payer(bazaar)
    with made("client", buyer) as client, client.stream("GET", bazaar.url()) as answer:
        receipt = receipt_of(answer)
        assert receipt is not None and receipt.outcome == "settled"
        found = answer.iter_bytes()
        assert next(found) == b"first"
        gate.set()
        assert b"".join(found) == b"second"
    assert states(buyer) == ["settled"]


# --- where it may never be ------------------------------------------------------------------------


@pytest.mark.parametrize("colour", ["client", "attach", "async-attach"])
def test_the_token_is_kept_secret(
    bazaar: Bazaar, colour: str, fast_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Not in logs, events, reprs, errors, histories, nor in the ledger's files."""
    caplog.set_level(logging.DEBUG)
    events: list[Any] = []
    bazaar.paid_at, bazaar.calls = 1, 2
    path = fast_path / "ledger.db"
    buyer = payer(bazaar, ledger=SQLiteLedger(path), on_event=events.append)
    texts: list[str] = []
    answer = call(colour, buyer, bazaar.url())
    token = str(bazaar.bought[0].token)
    texts += [repr(answer), repr(answer.request.headers), str(dict(answer.request.headers))]
    for hop in answer.history:
        texts += [str(dict(hop.headers)), hop.text, str(dict(hop.request.headers))]
    bazaar.before["redeem"] = lambda hit: Reply(drop=True)
    with pytest.raises(httpx.RemoteProtocolError) as caught:
        call(colour, buyer, bazaar.url())
    error = caught.value
    texts += [repr(error), str(error.__notes__), str(dict(error.request.headers))]
    texts += [repr(found) for found in events] + [str(found) for found in events]
    texts += [caplog.text, repr(buyer), repr(buyer.payments()), repr(receipt_of(answer))]
    texts += [str(row) for row in rows(path, "SELECT * FROM history")]
    assert {"token_asked", "bought", "token_used"} <= {event.kind for event in events}
    for text in texts:
        assert token not in text
    buyer.close()
    for file in fast_path.iterdir():
        assert token.encode() not in file.read_bytes(), file


def test_the_token_is_not_in_an_error_after_it_was_bought(bazaar: Bazaar) -> None:
    bazaar.paid_at = "creation"
    bazaar.before["redeem"] = lambda hit: Reply(reset=True)
    with pytest.raises(httpx.TransportError) as caught:
        call("attach", payer(bazaar), bazaar.url())
    token = str(bazaar.bought[0].token)
    seen: set[int] = set()
    queue: list[Any] = [caught.value]
    while queue:
        error = queue.pop()
        if error is None or id(error) in seen:
            continue
        seen.add(id(error))
        request = getattr(error, "_request", None)
        said = [repr(error), str(getattr(error, "__notes__", ""))]
        said += [str(dict(request.headers))] if request is not None else []
        assert all(token not in text for text in said)
        queue += [error.__cause__, error.__context__]


@pytest.mark.parametrize("colour", ["client", "attach", "async-client", "async-attach", "auth"])
def test_the_callers_secrets_do_not_go_to_the_payments_endpoint(
    bazaar: Bazaar, colour: str
) -> None:
    """Its ``User-Agent`` and ``marketplace_headers`` do, to every step there and nowhere else."""
    bazaar.asks, bazaar.token_late = "server402", 2
    ours = {"X-Market-Key": "market", "user-agent-2": "x"}
    buyer = payer(
        bazaar,
        wallet=WALLET,
        marketplace_headers=ours,
        provider_id="x402-base-usdc",
        prefer=("token",),
    )
    options: dict[str, Any] = {
        "cookies": {"session": "secret-1"},
        "headers": {"X-Api-Key": "secret-2", "User-Agent": "me/1", "Accept": "image/png"},
        "params": {"q": "secret-3"},
    }
    if colour != "auth":
        options["auth"] = ("user", "secret-4")
    if colour.endswith("client"):
        del options["auth"]
        options["headers"]["Authorization"] = "Bearer secret-4"
    answer = call(colour, buyer, bazaar.url(), client=options)
    assert answer.status_code == 200
    assert {"create", "prove", "poll"} <= set(bazaar.steps())
    for hit in bazaar.at_market():
        said = f"{hit.target} {hit.headers} {hit.body!r}"
        assert "secret" not in said and not hit.values("authorization")
        assert hit.header("user-agent") == "me/1" and hit.header("x-market-key") == "market"
        assert hit.header("accept") == "application/json"
        if hit.method == "POST":
            assert json.loads(hit.body) == {"serviceId": SERVICE, "providerId": "x402-base-usdc"}
    for hit in bazaar.hits:
        if not hit.path.startswith("/api/payments"):
            assert hit.header("x-market-key") is None
            assert hit.header("x-api-key") == "secret-2" and hit.target.endswith("q=secret-3")


def test_marketplace_headers_replace_ours(bazaar: Bazaar) -> None:
    bazaar.paid_at = "creation"
    buyer = payer(bazaar, marketplace_headers={"User-Agent": "bot/2", "ACCEPT": "text/json"})
    call("client", buyer, bazaar.url())
    (hit,) = bazaar.at_market()
    assert (hit.header("user-agent"), hit.header("accept")) == ("bot/2", "text/json")


@pytest.mark.parametrize("asynchronous", [False, True])
def test_response_hooks_see_the_answer_alone(bazaar: Bazaar, asynchronous: bool) -> None:
    """``raise_for_status`` as a hook: it sees neither the 402 nor what the side requests bring."""
    bazaar.paid_at = 3
    bad = [Reply(status=500), Reply(status=404)]
    bazaar.before["poll"] = lambda hit: bad.pop() if bad else None
    seen: list[str] = []

    def hook(response: Any) -> None:
        seen.append(f"{response.request.url.path} {response.status_code}")
        response.raise_for_status()

    async def ahook(response: Any) -> None:
        hook(response)

    buyer = payer(bazaar, poll_unpaid=3)
    colour = "async-attach" if asynchronous else "attach"
    hooks = {"event_hooks": {"response": [ahook if asynchronous else hook]}}
    assert call(colour, buyer, bazaar.url(), client=hooks).status_code == 200
    assert seen == [f"/api/tools/{SERVICE} 200"]


@pytest.mark.parametrize("colour", ["attach", "async-attach"])
def test_response_hooks_do_not_see_where_a_side_request_was_sent_on_to(
    bazaar: Bazaar, colour: str
) -> None:
    seen: list[Any] = []

    def hook(response: Any) -> None:
        seen.append(response.request.url.path)

    async def ahook(response: Any) -> None:
        hook(response)

    bazaar.before["create"] = lambda hit: Reply(status=307, headers=[("Location", "/on")])
    hooks = {"event_hooks": {"response": [ahook if "async" in colour else hook]}}
    buyer = payer(bazaar, wallet=WALLET, prefer=("token",), on_refusal="return")
    options = {**hooks, "follow_redirects": True}
    assert call(colour, buyer, bazaar.url(), client=options).status_code == 402
    assert seen == [f"/api/tools/{SERVICE}"]


def test_a_token_of_the_callers_own_passes_through(bazaar: Bazaar) -> None:
    """It is the caller's proof: whatever comes is handed back."""
    bazaar.paid_at = "creation"
    buyer = payer(bazaar)
    answer = call("client", buyer, bazaar.url(), headers={"X-Payment-Token": "mine"})
    assert answer.status_code == 402 and bazaar.steps() == ["redeem"]
    assert buyer.payments() == []


def test_a_body_that_can_be_sent_once_is_refused_before_anything_is_posted(bazaar: Bazaar) -> None:
    bazaar.paid_at = "creation"
    buyer = payer(bazaar)
    with pytest.raises(PaymentRefused) as caught:
        call("client", buyer, bazaar.url(), content=iter([b"a", b"b"]))
    assert caught.value.reason == "body" and bazaar.at_market() == []


def test_the_lost_answer_to_a_bought_token(bazaar: Bazaar) -> None:
    """A network error passes unchanged, with a note; the identical call shows the same token."""
    bazaar.paid_at = "creation"
    bazaar.before["redeem"] = once(lambda hit: Reply(drop=True), nothing)
    buyer = payer(bazaar)
    with pytest.raises(httpx.RemoteProtocolError) as caught:
        call("client", buyer, bazaar.url())
    assert any("pay_" in note for note in caught.value.__notes__)
    assert call("client", buyer, bazaar.url()).status_code == 200
    assert len(bazaar.moved) == 1
    assert_sound(buyer, bazaar)


def test_a_preempted_purchase_that_fails_asks_first(bazaar: Bazaar) -> None:
    """The price is known, and no token can be had: the seller's 402 is the answer, not a guess."""
    bazaar.paid_at = "creation"
    buyer = payer(bazaar, preempt=True, prefer=("token",), on_refusal="return", poll_unpaid=0.02)
    assert call("client", buyer, bazaar.url()).status_code == 200
    bazaar.paid_at = None
    answer = call("client", buyer, bazaar.url())
    assert answer.status_code == 402 and answer.json()["accepts"]
    assert isinstance(answer.extensions["x402_mask_refusal"], TokenFlowError)
    assert_sound(buyer, bazaar)


def test_one_client_is_attached_and_used_by_hand(bazaar: Bazaar) -> None:
    """The payment goes through the caller's own client, and its connection is used again."""
    bazaar.paid_at = 2
    buyer = payer(bazaar)
    limits = httpx.Limits(max_connections=1)
    with attach(httpx.Client(verify=NO_TLS, trust_env=False, limits=limits, timeout=5), buyer) as c:
        assert c.get(bazaar.url()).status_code == 200
    with Client(buyer, verify=NO_TLS, trust_env=False, limits=limits, timeout=5) as c:
        assert c.get(bazaar.url()).status_code == 200
    assert len({hit.connection for hit in bazaar.hits}) == 2


@pytest.mark.parametrize("style", PAIR)
def test_no_cache_answers_for_the_marketplace(bazaar: Bazaar, style: str) -> None:
    """A payment that a cache once saw unpaid would be unpaid for as long as it is kept."""
    bazaar.paid_at = 1
    buyer = payer(bazaar, marketplace_headers={"Cache-Control": "max-age=60, no-transform"})
    call(style, buyer, bazaar.url())
    asked = [hit for hit in bazaar.hits if hit.path.startswith("/api/payments")]
    assert {hit.method for hit in asked} == {"POST", "GET"}
    for hit in asked:
        assert hit.values("cache-control") == ["no-transform, no-store, no-cache"]


@pytest.mark.parametrize("plug", ["transport", "attach", "auth"])
def test_a_held_token_goes_through_no_proxy(bazaar: Bazaar, plug: str) -> None:
    """It is a bearer's, and the wire is plain: the seller is asked, and then it is refused."""
    buyer = rich(bazaar)
    with Proxy() as proxy:
        place = f"http://127.0.0.1:{proxy.port}"
        if plug == "transport":
            inner = httpx.HTTPTransport(proxy=place, verify=NO_TLS)
            client = httpx.Client(transport=PaymentTransport(buyer, inner))
        elif plug == "attach":
            client = attach(httpx.Client(proxy=place, verify=NO_TLS), buyer)
        else:
            client = httpx.Client(proxy=place, verify=NO_TLS, auth=PaymentAuth(buyer))
        with client, pytest.raises(OriginRefused, match="proxy"):
            client.post(bazaar.url(), json={})
        assert len(proxy.asked) == 1 and "x-payment-token" not in proxy.headers
