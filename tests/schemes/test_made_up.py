"""A scheme from outside is registered, chosen, signed, shown and booked; its name is known nowhere."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import httpx
import pytest
from eth_account import Account
from eth_account.messages import encode_typed_data

from tests.chain_reader.fake import Chain, Node, Transaction, at
from tests.hostile.kit import AsyncSigner, Signer
from tests.schemes.made_up import TYPES, MadeUp, domain_of, tally_question, transaction_of
from tests.support.seller import (
    PAYEE,
    Hit,
    Reply,
    Seller,
    offer,
    paywall,
    served,
    v2_header,
)
from x402_mask import (
    AsyncClient,
    Cap,
    Client,
    MemoryLedger,
    OfferRefused,
    Payer,
    Wallet,
    receipt_of,
)
from x402_mask._chain import evidence
from x402_mask._schemes import registry

PRICE = "250000"


@pytest.fixture(autouse=True)
def own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is known in this test only."""
    monkeypatch.setattr(registry, "_known", registry.registered())
    monkeypatch.setattr(evidence, "_asks", dict(evidence._asks))


@pytest.fixture
def seller() -> Iterator[Seller]:
    """A seller on loopback."""
    with Seller() as one:
        yield one
        assert not one.errors


def tally(amount: str = PRICE, **changes: Any) -> dict[str, Any]:
    """An offer to take a tally."""
    return offer(amount, scheme="tally", **{"extra": None, **changes})


def payer_for(seller: Seller, wallet: object, **options: Any) -> Payer:
    """A payer of this seller."""
    options.setdefault("ledger", MemoryLedger())
    return Payer(wallet, caps=[Cap(1, per="day")], origins=[seller.origin], **options)


def checked(hit: Hit) -> dict[str, Any]:
    """The tally in a request, whose seal is its payer's own."""
    document = hit.proof.document
    assert document is not None and document["accepted"]["scheme"] == "tally"
    message, seal = document["payload"]["tally"], document["payload"]["seal"]
    signable = encode_typed_data(domain_of(8453), TYPES, message)
    assert Account.recover_message(signable, signature=seal) == message["from"]
    return dict(message)


def takes(hit: Hit) -> Reply:
    """Deliver for a tally that is good, and say who paid."""
    return served(changes={"payer": checked(hit)["from"]})(hit)


def test_it_is_paid_with_end_to_end(seller: Seller) -> None:
    """By a wallet here; it is the cheaper of two offers, and no authorization was ever signed."""
    registry.register(MadeUp())
    url = seller.sells(offer("260000"), tally(), paid=takes)
    payer = payer_for(seller, Wallet.from_key("11" * 32))
    with Client(payer) as client:
        answer = client.get(url)
    receipt = receipt_of(answer)
    assert answer.status_code == 200 and receipt is not None
    assert (receipt.usd, receipt.outcome, receipt.pay_to) == (Decimal("0.25"), "settled", PAYEE)
    (paid,) = [checked(hit) for hit in seller.paid_hits()]
    assert (paid["to"], paid["most"], paid["from"]) == (PAYEE, int(PRICE), payer.address)
    assert seller.authorizations() == []
    (booked,) = payer.payments()
    assert (booked.state, booked.usd) == ("settled", Decimal("0.25"))


@pytest.mark.parametrize(("taken", "outcome"), [("1", "settled"), ("250001", "unknown")])
def test_its_settlements_are_judged_by_its_own_rules(
    seller: Seller, taken: str, outcome: str
) -> None:
    """Less than was signed is as good as all of it, and counted as all; more is no proof."""
    registry.register(MadeUp())
    url = seller.sells(
        tally(),
        paid=lambda hit: served(changes={"payer": checked(hit)["from"], "amount": taken})(hit),
    )
    payer = payer_for(seller, Wallet.from_key("11" * 32))
    with Client(payer) as client:
        receipt = receipt_of(client.get(url))
    assert receipt is not None and (receipt.outcome, receipt.usd) == (outcome, Decimal("0.25"))


@pytest.mark.parametrize("signer", [Signer, AsyncSigner])
def test_a_signer_elsewhere_signs_it_too(seller: Seller, signer: type[Signer]) -> None:
    """What it is shown is what is checked."""
    registry.register(MadeUp())
    url, wallet = seller.sells(tally(), paid=takes), signer()
    payer = payer_for(seller, wallet)

    async def call() -> httpx.Response:
        async with AsyncClient(payer) as client:
            return await client.get(url)

    assert asyncio.run(call()).status_code == 200
    assert wallet.calls == 1 and wallet.signed[0]["domain"]["name"] == "Tally"


def test_a_lost_answer_is_asked_for_with_the_same_bytes(seller: Seller) -> None:
    """One operation, one live proof, whatever was signed."""
    registry.register(MadeUp())
    lost = [Reply(drop=True)]
    url = seller.on(
        "/paid", paywall(v2_header(tally()), lambda hit: lost.pop() if lost else takes(hit))
    )
    payer = payer_for(seller, Wallet.from_key("11" * 32))
    with Client(payer) as client:
        with pytest.raises(httpx.RemoteProtocolError):
            client.get(url)
        assert client.get(url).status_code == 200
    first, second = seller.proofs()
    assert first.raw == second.raw and len(payer.payments()) == 1


def test_it_is_not_spoken_where_nobody_registered_it(seller: Seller) -> None:
    """Nor by a payer that was made before."""
    url = seller.sells(tally())
    payer = payer_for(seller, Wallet.from_key("11" * 32))
    registry.register(MadeUp())
    with Client(payer) as client, pytest.raises(OfferRefused, match="tally is not spoken") as told:
        client.get(url)
    assert told.value.reason == "scheme" and not seller.proofs()


def test_what_it_cannot_do_is_refused_in_its_own_words(seller: Seller) -> None:
    """And the next scheme of that name is asked; where none fits, the closest says why."""
    url = seller.sells(tally(extra={"wax": "red"}), paid=takes)
    registry.register(MadeUp())
    with (
        Client(payer_for(seller, Wallet.from_key("11" * 32))) as client,
        pytest.raises(OfferRefused, match="demands wax"),
    ):
        client.get(url)

    class Waxen(MadeUp):
        def fits(self, *_: object) -> None:
            return None

    registry.register(Waxen("tally-in-wax"))
    with Client(payer_for(seller, Wallet.from_key("11" * 32))) as client:
        assert client.get(url).status_code == 200


@pytest.mark.parametrize("fault", [{"more": 1}, {"longer": 300}])
@pytest.mark.parametrize("wallet", [Wallet.from_key("11" * 32), Signer()], ids=["here", "there"])
def test_a_scheme_can_take_no_more_than_was_decided(
    seller: Seller, wallet: Any, fault: dict[str, int]
) -> None:
    """It is held to the offer and to the owner's limit before anything is signed."""
    registry.register(MadeUp(**fault))
    url = seller.sells(tally())
    payer = payer_for(seller, wallet)
    with Client(payer) as client, pytest.raises(OfferRefused, match="tally would"):
        client.get(url)
    assert not seller.proofs() and getattr(wallet, "calls", 0) == 0
    assert [row.state for row in payer.payments()] in ([], ["released"])
    (spent,) = payer.spend()
    assert spent.held == spent.settled == 0


def late_payer(seller: Seller, node: Node, now: list[int]) -> Payer:
    """One that asks a chain of tallies, at a time of ours."""
    wallet = Wallet.from_key("11" * 32)
    return payer_for(seller, wallet, rpc={"eip155:8453": node.url}, clock=lambda: float(now[0]))


@pytest.mark.parametrize("cashed", [True, False])
def test_the_chain_is_asked_by_its_own_evidence(seller: Seller, cashed: bool) -> None:
    """It proves either end of a payment whose answer was lost."""
    registry.register(MadeUp())
    evidence.register("tally", tally_question)
    url, now = seller.on("/paid", paywall(v2_header(tally()), Reply(status=500))), [at(1000)]
    with Node(Chain()) as node:
        payer = late_payer(seller, node, now)
        with Client(payer) as client:
            assert client.get(url).status_code == 500
        (hit,) = seller.paid_hits()
        where = transaction_of(checked(hit)["mark"])
        if cashed:
            node.chain.transactions[where] = Transaction(1010, ())
        now[0] = at(1100)
        (resolved,) = payer.reconcile()
        payer.close()
    assert resolved.state == ("settled" if cashed else "void"), resolved
    assert resolved.transaction == (where if cashed else None)


@pytest.mark.parametrize("honest", [True, False])
def test_a_settlement_is_believed_where_its_chain_shows_it(seller: Seller, honest: bool) -> None:
    """As with any scheme; a transaction of another tally is none."""
    registry.register(MadeUp())
    evidence.register("tally", tally_question)
    with Node(Chain()) as node:

        def cash(hit: Hit) -> Reply:
            message = checked(hit)
            where = transaction_of(message["mark"] if honest else "ab" * 8)
            node.chain.transactions[where] = Transaction(1001, ())
            return served(changes={"payer": message["from"], "transaction": where})(hit)

        payer = late_payer(seller, node, [at(1000)])
        with Client(payer) as client:
            receipt = receipt_of(client.get(seller.sells(tally(), paid=cash)))
        payer.close()
    assert receipt is not None and receipt.outcome == ("settled" if honest else "unknown")


def test_what_nobody_can_ask_about_stays_counted(seller: Seller) -> None:
    """A scheme without evidence: the money is held, however late it is."""
    registry.register(MadeUp())
    url, now = seller.on("/paid", paywall(v2_header(tally()), Reply(status=500))), [at(1000)]
    with Node(Chain()) as node:
        payer = late_payer(seller, node, now)
        with Client(payer) as client:
            assert client.get(url).status_code == 500
        now[0] = at(1100)
        (resolved,) = payer.reconcile()
        assert resolved.state == "held" and "not known here" in resolved.detail
        assert not node.calls and payer.spend()[0].held == Decimal("0.25")
        payer.close()


def test_where_a_scheme_is_not_known_any_more_nobody_is_believed(
    seller: Seller, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The open proof goes out again as it was; what the seller says of it proves nothing here."""
    without = registry.registered()
    registry.register(MadeUp())
    url, ledger = seller.on("/paid", paywall(v2_header(tally()), Reply(status=500))), MemoryLedger()
    wallet = Wallet.from_key("11" * 32)
    with Client(payer_for(seller, wallet, ledger=ledger)) as client:
        assert client.get(url).status_code == 500
    monkeypatch.setattr(registry, "_known", without)
    seller.sells(tally(), paid=takes)
    with Node(Chain()) as node:
        payer = payer_for(seller, wallet, ledger=ledger, rpc={"eip155:8453": node.url})
        with Client(payer) as client:
            receipt = receipt_of(client.get(url))
        (resolved,) = payer.reconcile()
        payer.close()
    first, second = seller.proofs()
    assert first.raw == second.raw
    assert receipt is not None and receipt.outcome == "unknown"
    assert resolved.state == "held" and "not known here" in resolved.detail


def test_an_id_is_given_once() -> None:
    """Else what one signed would be asked about as if by the other."""
    registry.register(MadeUp())
    with pytest.raises(ValueError, match="already"):
        registry.register(MadeUp())
    with pytest.raises(ValueError, match="already"):
        evidence.register("exact-eip3009", tally_question)
