"""Rows 44 to 47: what the seller says after the proof, and what is believed of it."""

from __future__ import annotations

import base64
import sqlite3
from typing import Any

import pytest

from tests.hostile.kit import EVERY, SYNC, Kind, World, every_kind, id_of, receipt, usd
from tests.support.seller import (
    OTHER_PAYEE,
    TRANSACTION,
    Answer,
    Hit,
    Reply,
    encode,
    offer,
    offer_v1,
    paywall,
    served,
    settlement,
    v1_body,
    v2_header,
)
from x402_mask import receipt_of

PRICE = usd(1000)


def sells(world: World, kind: Kind, paid: Answer, challenge: Reply | None = None) -> Any:
    """The answer to one paid call."""
    seller = world.seller()
    url = seller.on("/paid", paywall(challenge or v2_header(offer()), paid))
    return world.buyer(kind).get(url)


# --- row 44


@pytest.mark.parametrize("status", [200, 201, 204, 206])
def test_a_200_without_a_settlement_is_returned_and_held(
    world: World, kind: Kind, status: int
) -> None:
    """Row 44: missing is an observation, not a failure."""
    body = b"" if status == 204 else b"goods"
    reply = Reply(status=status, body=body, framing="length" if body else "none", length=0)
    answer = reply if not body else Reply(status=status, body=body)
    response = sells(world, kind, answer)
    assert (response.status_code, response.content) == (status, body)
    paid = receipt(response)
    assert paid.outcome == "unknown" and paid.transaction is None and paid.usd == PRICE
    assert world.settled() == 0 and world.held() == PRICE
    (held,) = world.in_state("held")
    assert id_of(held) == paid.payment_id


# --- row 45


LIES: dict[str, dict[str, Any]] = {
    "failed": {"success": False},
    "failed-with-transaction": {"success": False, "transaction": TRANSACTION},
    "amount-times-50": {"amount": "50000"},
    "amount-less": {"amount": "1"},
    "amount-zero": {"amount": "0"},
    "amount-number": {"amount": 50000},
    "amount-word": {"amount": "lots"},
    "amount-negative": {"amount": "-1000"},
    "other-payer": {"payer": OTHER_PAYEE},
    "payer-word": {"payer": "me"},
    "other-network": {"network": "eip155:1"},
    "network-word": {"network": "moon"},
    "success-text": {"success": "true"},
    "success-one": {"success": 1},
    "success-missing": {"success": None},
    "transaction-word": {"transaction": "done"},
    "transaction-empty": {"transaction": ""},
    "transaction-number": {"transaction": 7},
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
def test_a_settlement_that_does_not_agree_is_never_settled(
    world: World, kind: Kind, lie: dict[str, Any]
) -> None:
    """Row 45: the response is returned; the books keep the full amount as held."""
    response = sells(world, kind, served(changes=lie))
    assert response.status_code == 200 and response.content == b"goods"
    assert receipt(response).outcome == "unknown"
    assert world.settled() == 0 and world.held() == PRICE


GARBAGE: dict[str, str] = {
    "words": "thank you",
    "empty": "",
    "list": encode([]),
    "null": encode(None),
    "latin-1": base64.b64encode(b'{"success": true, "x": "\xff"}').decode(),
    "deep": base64.b64encode(b"[" * 20_000).decode(),
    "nan": base64.b64encode(b'{"success": true, "amount": NaN}').decode(),
    "json-plain": '{"success": true}',
    "endless-number": base64.b64encode(b'{"success": true, "a": ' + b"9" * 9000 + b"}").decode(),
    "twice": base64.b64encode(b'{"success": true, "success": false}').decode(),
}


@pytest.mark.parametrize("value", GARBAGE.values(), ids=GARBAGE)
def test_garbage_for_a_settlement_costs_nothing_but_certainty(
    world: World, kind: Kind, value: str
) -> None:
    """Row 45: unreadable means unknown; the content is delivered."""
    response = sells(world, kind, Reply(body=b"goods", headers=[("PAYMENT-RESPONSE", value)]))
    assert response.content == b"goods" and receipt(response).outcome == "unknown"
    assert world.settled() == 0 and world.held() == PRICE


def test_two_settlements_that_contradict_each_other_settle_nothing(
    world: World, kind: Kind
) -> None:
    """Row 45: one says yes, one says no."""

    def both(hit: Hit) -> Reply:
        headers = [settlement(hit), settlement(hit, success=False, transaction="")]
        return Reply(body=b"goods", headers=headers)

    response = sells(world, kind, both)
    assert response.content == b"goods" and receipt(response).outcome == "unknown"
    assert world.held() == PRICE


@pytest.mark.parametrize("status", [200, 404, 500])
def test_a_settlement_nobody_paid_for_is_no_receipt(world: World, kind: Kind, status: int) -> None:
    """Row 45: a free answer that claims to have been paid."""
    seller = world.seller()
    claim = encode({"success": True, "transaction": TRANSACTION, "network": "eip155:8453"})
    reply = Reply(status=status, headers=[("PAYMENT-RESPONSE", claim)], body=b"free")
    response = world.buyer(kind).get(seller.on("/free", reply))
    assert response.content == b"free" and receipt_of(response) is None
    assert world.counted() == 0


def test_the_new_and_the_old_settlement_header_must_agree(world: World, kind: Kind) -> None:
    """Row 45: one says settled, the other failed: unknown."""

    def both(hit: Hit) -> Reply:
        _, failed = settlement(hit, success=False, transaction="")
        return Reply(body=b"goods", headers=[settlement(hit), ("X-PAYMENT-RESPONSE", failed)])

    response = sells(world, kind, both)
    assert response.content == b"goods" and world.counted() == PRICE
    assert receipt(response).outcome in {"settled", "unknown"}


HONEST: dict[str, dict[str, Any]] = {
    "plain": {},
    "with-amount": {"amount": "1000"},
    "no-payer": {"payer": None},
    "nulls": {"errorReason": None, "extra": {}, "extensions": {}},
    "unknown-keys": {"receipt": {"a": [1]}, "message": "thanks"},
}


@pytest.mark.parametrize("changes", HONEST.values(), ids=HONEST)
def test_an_honest_settlement_needs_no_optional_field(
    world: World, kind: Kind, changes: dict[str, Any]
) -> None:
    """Guard 5: fields that may be missing are not asked for."""
    response = sells(world, kind, served(changes=changes))
    paid = receipt(response)
    assert (paid.outcome, paid.transaction) == ("settled", TRANSACTION)
    assert world.settled() == PRICE and world.held() == 0


def test_the_old_header_and_the_old_network_name_settle_version_1(world: World, kind: Kind) -> None:
    """Row 45: ``X-PAYMENT-RESPONSE`` with the network ``base``; and the payer in lower case."""

    def paid(hit: Hit) -> Reply:
        payer = hit.proof.authorization["from"].lower()
        return Reply(body=b"goods", headers=[settlement(hit, payer=payer)])

    response = sells(world, kind, paid, v1_body(offer_v1()))
    assert receipt(response).outcome == "settled" and world.settled() == PRICE


# --- row 46


@pytest.mark.parametrize("status", [301, 400, 404, 410, 500, 503])
@pytest.mark.parametrize("settles", [True, False], ids=["settled", "silent"])
def test_what_was_paid_and_failed_keeps_its_evidence(
    world: World, kind: Kind, status: int, settles: bool
) -> None:
    """Row 46: the answer is delivered, the receipt says paid, the books agree."""
    headers = [("X-Why", "gone")]
    failed = Reply(status=status, body=b"sorry", headers=headers)
    paid = served(b"sorry", status=status, headers=headers) if settles else failed
    response = sells(world, kind, paid)
    assert (response.status_code, response.content) == (status, b"sorry")
    found = receipt(response)
    assert found.outcome == ("settled" if settles else "unknown")
    assert (world.settled() if settles else world.held()) == PRICE == world.counted()
    assert found.transaction == (TRANSACTION if settles else None)


def test_a_paid_answer_that_breaks_off_is_the_networks_error(world: World, kind: Kind) -> None:
    """Row 46: the head said settled, the body broke: the exception is httpx's, the books are right."""
    seller = world.seller()
    url = seller.sells(paid=served(b"g" * 1000, cut=10))
    buyer = world.buyer(kind)
    with pytest.raises(buyer.lib.RemoteProtocolError):
        buyer.get(url)
    assert world.counted() == PRICE and len(seller.authorizations()) == 1


# --- row 47


@every_kind(*EVERY)
def test_an_observer_that_raises_changes_nothing(world: World, kind: Kind) -> None:
    """Row 47: logged at most; the content is delivered, the refusal is the same refusal."""
    seen: list[object] = []

    def observe(event: object) -> None:
        seen.append(event)
        raise OSError("metrics are down")

    seller = world.seller()
    buyer = world.buyer(kind, world.payer(on_event=observe))
    assert buyer.get(seller.sells()).content == b"goods"
    assert seen and world.settled() == PRICE
    world.refused(buyer, seller.sells(offer(network="eip155:1"), path="/dear"))


@every_kind(*EVERY)
def test_a_ledger_that_breaks_under_the_paid_call_does_not_cost_the_content(
    world: World, kind: Kind
) -> None:
    """Row 47: its tables are gone when the settlement is to be written; the caller gets the goods."""
    seller = world.seller()
    world.audited = False

    def sabotage(hit: Hit) -> Reply:
        with sqlite3.connect(world.path, timeout=5, isolation_level=None) as connection:
            rows = connection.execute("SELECT type, name FROM sqlite_master").fetchall()
            for sort, name in rows:
                if sort in {"trigger", "view"}:
                    connection.execute(f'DROP {sort} IF EXISTS "{name}"')
            for sort, name in rows:
                if sort == "table" and not name.startswith("sqlite_"):
                    connection.execute(f'DROP TABLE IF EXISTS "{name}"')
        connection.close()
        return served()(hit)

    response = world.buyer(kind).get(seller.sells(paid=sabotage))
    assert response.status_code == 200 and response.content == b"goods"
    assert len(seller.authorizations()) == 1


@every_kind(*SYNC)
def test_what_an_event_shows_is_no_bearer_secret(world: World, kind: Kind) -> None:
    """Row 47: observers write logs; no signature may be in what they are given."""
    seller = world.seller()
    world.buyer(kind).get(seller.sells())
    (paid,) = seller.paid_hits()
    document = paid.proof.document or {}
    shown = " ".join(repr(event) for event in world.events)
    assert world.events
    assert paid.proof.raw not in shown
    assert document["payload"]["signature"][2:40] not in shown
