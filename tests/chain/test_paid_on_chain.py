"""What the library says it paid is what moved on the chain, to the unit."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import anyio
import httpx
import pytest

from tests.support.buyers import (
    MODES,
    SECONDS,
    Books,
    Wanted,
    assert_standard_answers,
    buy,
    receipts_of,
    refinement,
    standard_basket,
)
from tests.support.chain import Chain
from tests.support.fixtures import PayerFor
from tests.support.official_py import OfficialSeller
from x402_mask.sandbox import Sandbox

pytestmark = [pytest.mark.chain, pytest.mark.timeout(60, func_only=True)]

# Every plug point on the attested challenge; a sync and an async one on the other shapes.
SANDBOX_CASES = [("attested", mode) for mode in MODES] + [
    (challenge, mode)
    for challenge in ("v2-header", "v2-body", "v1")
    for mode in ("client", "async-attach")
]
USDC_5 = 5_000_000


@pytest.mark.parametrize("family", ["httpx", "httpx2"])
@pytest.mark.parametrize("mode", MODES)
def test_the_official_seller_is_paid(
    chain: Chain, seller: OfficialSeller, payer_for: PayerFor, mode: str, family: str
) -> None:
    """JSON, a posted body, a stream and a free route, by every plug point of both families."""
    wallet = chain.account(ether=0, usdc=USDC_5)
    payer = payer_for(wallet, seller.url)
    books = Books(chain, wallet, seller.pay_to)

    answers = buy(mode, payer, standard_basket(seller.url), family)

    assert_standard_answers(answers)
    receipts = receipts_of(answers)
    assert [r.service for r in receipts] == [seller.url, "mask-refinement", seller.url]
    books.assert_agree(payer, receipts, [200_000] * 3)


@pytest.mark.parametrize(("sandbox", "mode"), SANDBOX_CASES, indirect=["sandbox"])
def test_the_sandbox_is_paid(
    chain: Chain, sandbox: Sandbox, payer_for: PayerFor, mode: str
) -> None:
    """Our own seller, in every shape of challenge, by every plug point."""
    wallet = chain.account(ether=0, usdc=USDC_5)
    payer = payer_for(wallet, sandbox.url)
    books = Books(chain, wallet, sandbox.pay_to)

    answers = buy(
        mode,
        payer,
        [refinement(sandbox.url), Wanted("GET", f"{sandbox.url}/api/tools/random-uuid")],
    )

    assert [answer.status_code for answer in answers] == [200, 200]
    assert answers[0].json()["data"]["ImageURL"].startswith("http")
    receipts = receipts_of(answers)
    assert [r.service for r in receipts] == ["mask-refinement", "random-uuid"]
    books.assert_agree(payer, receipts, [200_000, 50_000])


def test_an_rpc_confirms_the_settlement(
    chain: Chain, seller: OfficialSeller, payer_for: PayerFor
) -> None:
    """With an ``rpc`` the receipt says settled because the chain said so."""
    wallet = chain.account(ether=0, usdc=USDC_5)
    payer = payer_for(wallet, seller.url, rpc={"eip155:8453": chain.url})
    books = Books(chain, wallet, seller.pay_to)

    answers = buy("client", payer, [Wanted("GET", f"{seller.url}/paid")])

    books.assert_agree(payer, receipts_of(answers), [200_000])


@pytest.mark.parametrize("mode", MODES)
def test_an_empty_wallet_is_told_what_it_lacks(
    chain: Chain, seller: OfficialSeller, payer_for: PayerFor, mode: str
) -> None:
    """The official seller says why it refuses; the receipt and the ledger keep that."""
    wallet = chain.account(ether=0, usdc=100_000)
    payer = payer_for(wallet, seller.url)
    (answer,) = buy(mode, payer, [Wanted("GET", f"{seller.url}/paid")])

    assert answer.status_code == 402
    (receipt,) = receipts_of([answer])
    assert receipt.outcome == "rejected" and receipt.reason is not None
    for word in ("insufficient_balance", wallet.address, "$0.20", "USD Coin", "base (eip155:8453)"):
        assert word in receipt.reason
    (payment,) = payer.payments()
    assert (payment.state, payment.reason) == ("held", receipt.reason)


def test_two_identical_calls_are_two_purchases(
    chain: Chain, seller: OfficialSeller, payer_for: PayerFor
) -> None:
    """After a 2xx the same call buys again, with another nonce."""
    wallet = chain.account(ether=0, usdc=USDC_5)
    payer = payer_for(wallet, seller.url)
    books = Books(chain, wallet, seller.pay_to)

    answers = buy("client", payer, [Wanted("GET", f"{seller.url}/paid")] * 2)

    assert [answer.status_code for answer in answers] == [200, 200]
    books.assert_agree(payer, receipts_of(answers), [200_000] * 2)
    assert len(set(seller.proofs)) == 2


def test_a_retry_after_a_failure_pays_once(
    chain: Chain, seller: OfficialSeller, payer_for: PayerFor
) -> None:
    """The seller fails twice with a proof in hand; the same bytes go a third time and pay."""
    seller.faults = 2
    wallet = chain.account(ether=0, usdc=USDC_5)
    payer = payer_for(wallet, seller.url)
    books = Books(chain, wallet, seller.pay_to)
    flaky = Wanted("GET", f"{seller.url}/flaky")

    for _ in range(2):
        (failed,) = receipts_of(answers := buy("client", payer, [flaky]))
        assert answers[0].status_code == 503
        assert (failed.outcome, failed.transaction) == ("unknown", None)
        books.assert_only_moved([])
        assert payer.spend()[0].held == failed.usd
    (answer,) = buy("async-attach", payer, [flaky])

    assert answer.status_code == 200
    assert len({proof for _, proof in seller.proofs}) == 1
    (receipt,) = receipts_of([answer])
    assert receipt.payment_id == failed.payment_id
    books.assert_agree(payer, [receipt], [200_000])


def test_a_settlement_the_buyer_never_saw_is_held(
    chain: Chain, seller: OfficialSeller, payer_for: PayerFor
) -> None:
    """The answer was lost on the way, the money moved: the ledger holds exactly that much."""
    wallet = chain.account(ether=0, usdc=USDC_5)
    payer = payer_for(wallet, seller.url)
    books = Books(chain, wallet, seller.pay_to)
    lossy = _LosesPaidAnswers(trust_env=False)

    from x402_mask import Client

    with (
        Client(payer, transport=lossy, timeout=SECONDS) as client,
        pytest.raises(httpx.ReadError),
    ):
        client.get(f"{seller.url}/paid")

    books.assert_only_moved([200_000])
    (held,) = payer.payments()
    assert (held.state, held.amount) == ("held", 200_000)
    assert chain.authorization_state(wallet.address, str(held.nonce))
    assert payer.spend()[0].held == held.usd


class _LosesPaidAnswers(httpx.HTTPTransport):
    """Delivers every request; the answer to one that carried a proof is lost."""

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        answer = super().handle_request(request)
        if "payment-signature" not in request.headers:
            return answer
        answer.read()
        answer.close()
        raise httpx.ReadError("connection reset", request=request)


def test_an_empty_wallet_is_rejected_and_held(
    chain: Chain, seller: OfficialSeller, payer_for: PayerFor
) -> None:
    """The seller answers 402 again; nothing moved, yet the proof is out, so the money is held."""
    wallet = chain.account(ether=0)
    payer = payer_for(wallet, seller.url)

    (answer,) = buy("client", payer, [Wanted("GET", f"{seller.url}/paid")])

    assert answer.status_code == 402
    (receipt,) = receipts_of([answer])
    assert receipt.outcome == "rejected"
    assert chain.transfers(sender=wallet.address) == []
    assert [payment.state for payment in payer.payments()] == ["held"]


def test_a_cap_holds_against_concurrent_tasks(
    chain: Chain, seller: OfficialSeller, payer_for: PayerFor
) -> None:
    """Twelve tasks want to buy, the cap allows five: the chain sees five."""
    from x402_mask import AsyncClient, Cap, CapExceeded

    wallet = chain.account(ether=0, usdc=USDC_5)
    payer = payer_for(wallet, seller.url, caps=[Cap("1.10", per="day")])
    books = Books(chain, wallet, seller.pay_to)
    answers: list[httpx.Response] = []
    refused: list[CapExceeded] = []

    async def one(client: httpx.AsyncClient, number: int) -> None:
        try:
            answers.append(await client.get(f"{seller.url}/paid", params={"n": number}))
        except CapExceeded as error:
            refused.append(error)

    async def all_at_once() -> None:
        async with (
            AsyncClient(payer, timeout=SECONDS) as client,
            anyio.create_task_group() as group,
        ):
            for number in range(12):
                group.start_soon(one, client, number)

    anyio.run(all_at_once)

    assert (len(answers), len(refused)) == (5, 7)
    assert {answer.status_code for answer in answers} == {200}
    _assert_five(books, payer, answers)


def test_a_cap_holds_against_concurrent_threads(
    chain: Chain, seller: OfficialSeller, payer_for: PayerFor
) -> None:
    """The same with threads that share one client."""
    from x402_mask import Cap, CapExceeded, Client

    wallet = chain.account(ether=0, usdc=USDC_5)
    payer = payer_for(wallet, seller.url, caps=[Cap("1.10", per="day")])
    books = Books(chain, wallet, seller.pay_to)

    def one(number: int) -> httpx.Response | None:
        try:
            return client.get(f"{seller.url}/paid", params={"n": number})
        except CapExceeded:
            return None

    with Client(payer, timeout=SECONDS) as client, ThreadPoolExecutor(12) as pool:
        found = list(pool.map(one, range(12), timeout=45))

    answers = [answer for answer in found if answer is not None]
    assert [answer.status_code for answer in answers] == [200] * 5
    _assert_five(books, payer, answers)


def _assert_five(books: Books, payer: Any, answers: list[httpx.Response]) -> None:
    """Five prices moved, and each receipt names another of those transfers."""
    books.assert_only_moved([200_000] * 5)
    receipts = receipts_of(answers)
    assert sorted((r.amount, str(r.transaction)) for r in receipts) == sorted(books.moved())
    assert {r.outcome for r in receipts} == {"settled"}
    assert [payment.state for payment in payer.payments()] == ["settled"] * 5


def test_a_refused_call_signs_nothing(
    chain: Chain, seller: OfficialSeller, payer_for: PayerFor
) -> None:
    """Above the cap: no proof reaches the seller, nothing moves."""
    from x402_mask import Cap, CapExceeded

    wallet = chain.account(ether=0, usdc=USDC_5)
    payer = payer_for(wallet, seller.url, caps=[Cap("0.199999", per="call")])

    with pytest.raises(CapExceeded):
        buy("client", payer, [Wanted("GET", f"{seller.url}/paid")])

    assert seller.proofs == []
    assert chain.transfers(sender=wallet.address) == []
