"""``preempt=True``: a known price is paid with the first request (contract 2, Preemption)."""

from __future__ import annotations

import base64
import json
import time
from typing import Any

import httpx
import pytest

from x402_mask import (
    ApprovalDenied,
    Cap,
    CapExceeded,
    Client,
    MemoryLedger,
    Payer,
    Wallet,
    receipt_of,
)
from x402_mask._flow.preemption import OfferCache, Place

URL = "https://seller.example/api/tools/mask-refinement"
ASSET = "0x833589fCD6eDb6E08f4c7C32D4f71b54bdA02913"


class Seller:
    """Answers 402 or the content, and counts what it could collect."""

    def __init__(self) -> None:
        self.amount = "200000"
        self.pay_to = "0x209693Bc6afc0C5328bA36FaF03C514EF312287C"
        self.refuse_proofs = self.fails = False
        self.requests: list[bool] = []
        self.free: set[str] = set()
        self.nonces: set[str] = set()

    def __call__(self, request: httpx.Request) -> httpx.Response:
        proof = request.headers.get("payment-signature")
        self.requests.append(proof is not None)
        if proof is not None:
            sent = json.loads(base64.b64decode(proof))
            self.nonces.add(sent["payload"]["authorization"]["nonce"])
        if request.url.path in self.free:
            return httpx.Response(200, json={"ok": True})
        if proof is None or self.refuse_proofs:
            return httpx.Response(402, json={"accepts": [self.offer()], "error": "pay"})
        if self.fails:
            return httpx.Response(500)
        return httpx.Response(200, json={"ok": True}, headers=self.settled())

    def offer(self) -> dict[str, Any]:
        return {
            "scheme": "exact",
            "network": "eip155:8453",
            "amount": self.amount,
            "asset": ASSET,
            "payTo": self.pay_to,
            "maxTimeoutSeconds": 60,
        }

    def settled(self) -> dict[str, str]:
        said = {"success": True, "transaction": "0x" + "ab" * 32, "network": "eip155:8453"}
        return {"PAYMENT-RESPONSE": base64.b64encode(json.dumps(said).encode()).decode()}


class Clock:
    def __init__(self) -> None:
        self.now = time.time()

    def __call__(self) -> float:
        return self.now


class World:
    def __init__(self, **options: Any) -> None:
        self.seller, self.clock = Seller(), Clock()
        self.payer = Payer(
            Wallet.create(),
            caps=[Cap("1", per="day")],
            origins=["https://seller.example"],
            ledger=MemoryLedger(),
            clock=self.clock,
            **{"preempt": True, **options},
        )
        self.client = Client(self.payer, transport=httpx.MockTransport(self.seller))

    def call(self, name: str, method: str = "POST") -> httpx.Response:
        self.seller.requests.clear()
        return self.client.request(method, URL, json={"picture": name})


def test_the_second_call_takes_one_round_trip() -> None:
    """The first call asks and pays; the next pays at once, and each is its own purchase."""
    world = World()
    assert world.call("a").status_code == 200
    assert world.seller.requests == [False, True]
    response = world.call("b")
    assert world.seller.requests == [True]
    receipt = receipt_of(response)
    assert receipt is not None and receipt.outcome == "settled"
    assert len(world.seller.nonces) == 2
    assert str(world.payer.spend()[0].settled) == "0.40"


def test_what_has_expired_by_our_clock_alone_is_asked_first() -> None:
    """Whether it is dead is for the seller's clock to say as well, and only a 402 has that."""
    world = World()
    world.call("a")
    world.seller.fails = True
    assert world.call("b").status_code == 500
    assert world.seller.requests == [True]
    world.seller.fails = False
    world.clock.now += 200
    assert world.call("b").status_code == 200
    assert world.seller.requests == [False, True]


def test_off_by_default() -> None:
    """Nobody sends money unasked without having said so."""
    world = World(preempt=False)
    world.call("a")
    world.call("b")
    assert world.seller.requests == [False, True]


def test_another_method_is_asked_first() -> None:
    """An offer holds for the method it was made for."""
    world = World()
    world.call("a")
    world.call("b", method="PUT")
    assert world.seller.requests == [False, True]


@pytest.mark.parametrize("other", ["https://seller.example/health", URL + "/", URL + "/more"])
def test_another_path_is_asked_first(other: str) -> None:
    """An offer holds for the path it was made for, whatever shares its service."""
    world = World(services={"all": "https://seller.example/*"})
    world.call("a")
    world.seller.free.add(httpx.URL(other).path)
    world.seller.requests.clear()
    assert world.client.post(other, json={"picture": "a"}).status_code == 200
    assert world.seller.requests == [False] and len(world.seller.nonces) == 1


def test_paths_with_prices_of_their_own_are_preempted_each() -> None:
    """Two prices in one service are no change of terms; a change of one turns the service off."""
    world, dear = World(), "https://seller.example/dear"
    for number, expected in enumerate([[False, True], [True]]):
        for url, amount in ((dear, "200000"), ("https://seller.example/cheap", "1000")):
            world.seller.amount = amount
            world.seller.requests.clear()
            world.client.post(url, json={"n": number})
            assert world.seller.requests == expected, url
    world.clock.now += 601
    world.seller.amount = "100000"
    world.client.post(dear, json={"n": 2})
    world.seller.requests.clear()
    world.seller.amount = "1000"
    world.client.post("https://seller.example/cheap", json={"n": 3})
    assert world.seller.requests == [False, True]


def test_a_rejected_proof_says_nothing_of_other_paths() -> None:
    """Preemption is off where it was rejected, and on elsewhere."""
    world, here, there = World(), "https://seller.example/here", "https://seller.example/there"
    for url in (here, there):
        world.client.post(url, json={"n": 1})
    world.seller.refuse_proofs = True
    assert world.client.post(here, json={"n": 2}).status_code == 402
    world.seller.refuse_proofs = False
    for url, expected in ((here, [False, True]), (there, [True])):
        world.seller.requests.clear()
        world.client.post(url, json={"n": 3})
        assert world.seller.requests == expected, url


def test_paths_without_number_are_forgotten() -> None:
    """What is remembered of them is bounded; a forgotten one is asked first."""
    cache, place = OfferCache(), Place("GET", "https://seller.example", "s", "/0")
    for number in range(3000):
        cache.keep(place._replace(path=f"/{number}"), number, 1.0)  # type: ignore[arg-type]
    kept = [n for n in range(3000) if cache.recall(place._replace(path=f"/{n}"), 2.0) is not None]
    assert kept == list(range(3000 - len(kept), 3000)) and 0 < len(kept) <= 1024


def test_a_rejected_proof_is_never_followed_by_a_second() -> None:
    """The 402 is handed back as rejected, and for ten minutes the service is asked first."""
    world = World()
    world.call("a")
    world.seller.refuse_proofs = True
    response = world.call("b")
    assert world.seller.requests == [True]
    receipt = receipt_of(response)
    assert response.status_code == 402
    assert receipt is not None and receipt.outcome == "rejected"
    assert str(world.payer.spend()[0].held) == "0.20"
    world.seller.refuse_proofs = False
    world.call("c")
    assert world.seller.requests == [False, True]
    world.call("d")
    assert world.seller.requests == [False, True]
    world.clock.now += 601
    world.call("e")
    assert world.seller.requests == [False, True]  # the offer is too old as well


def test_an_offer_is_good_for_ten_minutes() -> None:
    """Its age counts from the challenge, however often it was used since."""
    world = World()
    world.call("a")
    world.clock.now += 599
    world.call("b")
    assert world.seller.requests == [True]
    world.clock.now += 2
    world.call("c")
    assert world.seller.requests == [False, True]


@pytest.mark.parametrize("change", ["amount", "pay_to"])
def test_a_service_that_changes_its_terms_is_asked_first(change: str) -> None:
    """Changed between two challenges: off, though the new offer was paid."""
    world = World()
    world.call("a")
    world.clock.now += 601
    other = {"amount": "100000", "pay_to": "0x" + "5" * 40}[change]
    setattr(world.seller, change, other)
    world.call("b")
    world.call("c")
    assert world.seller.requests == [False, True]


def test_a_full_cap_refuses_with_the_402_in_hand() -> None:
    """Every cap is checked anew, and nothing is signed."""
    world = World()
    for name in "abcde":
        world.call(name)
    with pytest.raises(CapExceeded) as caught:
        world.call("f")
    assert world.seller.requests == [False]
    assert caught.value.response.status_code == 402
    assert len(world.seller.nonces) == 5


def test_approval_is_asked_anew() -> None:
    """Once a call, even where the price is known; a denial stops the proof."""
    asked: list[object] = []
    answers = [True, False]

    def approve(quote: object) -> bool:
        asked.append(quote)
        return answers[len(asked) - 1]

    world = World(approve=approve)
    world.call("a")
    with pytest.raises(ApprovalDenied):
        world.call("b")
    assert len(world.seller.nonces) == 1 and len(asked) == 2
