"""The ledger's promises about transfers, on each kind of ledger."""

from __future__ import annotations

import json
import secrets
from dataclasses import replace
from typing import Any

import pytest

from tests.ledger.kit import NOW, Store, proof, reserved, state_of, together, used
from x402_mask import Cap, LedgerError
from x402_mask._crypto.eip712 import keccak
from x402_mask._ledger.audit import verify
from x402_mask._ledger.ledger import Ledger
from x402_mask._ledger.records import Reservation, Result
from x402_mask._ledger.transfers import SignedTransfer, Terms

CAP = Cap("1", per="total")


def terms(made: Reservation) -> Terms:
    assert made.network and made.asset and made.payer and made.pay_to
    return Terms(
        payment_id=made.id,
        network=made.network,
        asset=made.asset,
        payer=made.payer,
        pay_to=made.pay_to,
        amount=made.amount,
    )


def signed(made: Reservation, nonce: int = 0, **changed: Any) -> SignedTransfer:
    """Bytes that nobody else has; the ledger does not read them."""
    raw = secrets.token_bytes(100)
    plain = SignedTransfer(
        terms=terms(made),
        nonce=nonce,
        hash="0x" + keccak(raw).hex(),
        raw="0x" + raw.hex(),
        max_gas_wei=10**30,
        first_block=5,
    )
    return replace(plain, **changed)


def hold(ledger: Ledger, nonce: int = 0, **changed: Any) -> tuple[Reservation, SignedTransfer]:
    made = reserved(ledger, CAP, **changed)
    stored = signed(made, nonce)
    assert ledger.hold_transfer(made.id, stored, now_us=NOW)
    return made, stored


def test_it_is_held_and_stored_at_once(store: Store) -> None:
    made, sent = hold(store.ledger, 3)
    again = store.again()
    found = again.transfer_of(made.id)
    assert found is not None
    assert (found.attempts, found.nonce, found.state, found.payment) == ((sent,), 3, "open", "held")
    assert found.last.raw == sent.raw and found.hashes == (sent.hash,) and found.last_at == NOW
    (payment,) = again.payments()
    assert (payment.state, payment.nonce, payment.proof_digest) == ("held", "3", None)
    assert used(again, CAP) == 1000
    report = verify(again)
    assert report.ok, report.problems


def test_its_bytes_are_nowhere_in_clear(store: Store) -> None:
    made, sent = hold(store.ledger)
    again = replace(signed(made), max_gas_wei=1)
    assert store.ledger.add_attempt(again, 1, now_us=NOW)
    told = json.dumps(store.ledger.history())
    assert sent.hash in told and again.hash in told
    for raw in (sent.raw, again.raw):
        assert raw[2:] not in told
        if store.kind != "memory":
            for (sealed,) in store.sql("SELECT raw FROM transfers"):
                assert bytes.fromhex(raw[2:]) not in bytes(sealed)
                assert raw[2:].encode() not in bytes(sealed)


def test_a_payment_without_a_transfer(ledger: Ledger) -> None:
    made = reserved(ledger, CAP)
    assert ledger.transfer_of(made.id) is None
    assert ledger.transfer_of("pay_unknown") is None
    with pytest.raises(LedgerError, match="no transfer"):
        ledger.add_attempt(signed(made), 1, now_us=NOW)


def test_one_transfer_of_an_address_at_a_time(ledger: Ledger) -> None:
    first, _ = hold(ledger, 4)
    second = reserved(ledger, CAP)
    assert not ledger.hold_transfer(second.id, signed(second, 5), now_us=NOW)
    assert state_of(ledger, second.id) == "reserved" and ledger.transfer_of(second.id) is None
    hold(ledger, 0, payer="0x" + "cc" * 20)
    hold(ledger, 0, network="eip155:1")

    ledger.close_transfer(first.id, "mined", "0x" + "11" * 32, now_us=NOW)
    for nonce in (0, 4):
        assert not ledger.hold_transfer(second.id, signed(second, nonce), now_us=NOW)
    assert ledger.hold_transfer(second.id, signed(second, 5), now_us=NOW)
    standing = ledger.standing("eip155:8453", terms(first).payer.upper().replace("0X", "0x"))
    assert (standing.waiting, standing.last, standing.nonce) == (second.id, second.id, 5)


def test_nothing_stands_where_nothing_was_sent(ledger: Ledger) -> None:
    standing = ledger.standing("eip155:8453", "0x" + "cc" * 20)
    assert (standing.waiting, standing.last, standing.nonce) == (None, None, -1)


def test_many_at_once_hold_one(store: Store) -> None:
    payments = [reserved(store.ledger, CAP) for _ in range(6)]
    ledgers = [store.again() for _ in payments]
    answers = together(
        6, lambda n: ledgers[n].hold_transfer(payments[n].id, signed(payments[n]), now_us=NOW)
    )
    assert sorted(answers) == [False] * 5 + [True]


def test_a_payment_gets_one_transfer(ledger: Ledger) -> None:
    made, sent = hold(ledger)
    ledger.close_transfer(made.id, "displaced", None, now_us=NOW)
    with pytest.raises(LedgerError, match="is held, not reserved"):
        ledger.hold_transfer(made.id, signed(made, 1), now_us=NOW)
    found = ledger.transfer_of(made.id)
    assert found is not None and found.attempts == (sent,)


@pytest.mark.parametrize("state", ["released", "held"])
def test_only_a_reservation_is_held(ledger: Ledger, state: str) -> None:
    made = reserved(ledger, CAP)
    if state == "released":
        ledger.release(made.id, "", now_us=NOW)
    else:
        ledger.hold(made.id, proof(), now_us=NOW)
    with pytest.raises(LedgerError, match=f"is {state}, not reserved"):
        ledger.hold_transfer(made.id, signed(made), now_us=NOW)
    assert ledger.transfer_of(made.id) is None


@pytest.mark.parametrize(
    "change",
    [
        {"amount": 1001},
        {"pay_to": "0x" + "dd" * 20},
        {"asset": "0x" + "dd" * 20},
        {"payer": "0x" + "dd" * 20},
        {"network": "eip155:1"},
        {"payment_id": "pay_other"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_was_not_reserved_is_not_stored(ledger: Ledger, change: dict[str, Any]) -> None:
    made = reserved(ledger, CAP)
    other = signed(made, terms=replace(terms(made), **change))
    with pytest.raises(LedgerError, match="was not reserved for that transfer"):
        ledger.hold_transfer(made.id, other, now_us=NOW)
    held, _ = hold(ledger)
    again = signed(held, terms=replace(terms(held), **change))
    with pytest.raises(LedgerError, match=r"not reserved for that|is not on this ledger"):
        ledger.add_attempt(again, 1, now_us=NOW)


def test_replacements_come_one_after_the_other(ledger: Ledger) -> None:
    made, first = hold(ledger)
    second, third = signed(made), signed(made)
    assert not ledger.add_attempt(second, 2, now_us=NOW)
    assert ledger.add_attempt(second, 1, now_us=NOW + 1)
    assert not ledger.add_attempt(third, 1, now_us=NOW + 2)
    found = ledger.transfer_of(made.id)
    assert found is not None and found.attempts == (first, second) and found.last_at == NOW + 1
    with pytest.raises(LedgerError, match="no transfer with that nonce"):
        ledger.add_attempt(signed(made, 1), 2, now_us=NOW)
    report = verify(ledger)
    assert report.ok, report.problems


@pytest.mark.parametrize("state", ["mined", "failed", "displaced"])
def test_what_has_ended_is_not_replaced(ledger: Ledger, state: Any) -> None:
    made, _ = hold(ledger)
    ledger.close_transfer(made.id, state, None, now_us=NOW)
    assert not ledger.add_attempt(signed(made), 1, now_us=NOW)


def test_what_is_void_is_not_replaced(ledger: Ledger) -> None:
    made, _ = hold(ledger)
    assert ledger.resolve(made.id, "void", transaction=None, note="", now_us=NOW)
    assert not ledger.add_attempt(signed(made), 1, now_us=NOW)
    found = ledger.transfer_of(made.id)
    assert found is not None and found.payment == "void"


def test_a_block_may_be_replaced_but_not_a_proof(ledger: Ledger) -> None:
    made, _ = hold(ledger)

    def closed(state: Any) -> str:
        ledger.close_transfer(made.id, state, None, now_us=NOW)
        found = ledger.transfer_of(made.id)
        assert found is not None
        return found.state

    assert [closed(s) for s in ("mined", "open", "open", "failed", "open", "mined")] == [
        "mined",
        "open",
        "open",
        "failed",
        "failed",
        "failed",
    ]
    kinds = [entry["kind"] for entry in ledger.history()]
    assert kinds == ["reserved", "held", *["transfer_closed"] * 3]
    with pytest.raises(ValueError, match="not how a transfer ends"):
        closed("gone")
    assert verify(ledger).ok


def test_a_call_with_a_transfer_ends_as_any_other(ledger: Ledger) -> None:
    made, _ = hold(ledger)
    ledger.finish(made.id, Result(outcome="settled", delivered=True), now_us=NOW)
    assert [row.id for row in ledger.unresolved(["eip155:8453"])] == [made.id]
    assert ledger.resolve(made.id, "settled", transaction="0x12", note="", now_us=NOW)
    assert ledger.unresolved(["eip155:8453"]) == []
    report = verify(ledger)
    assert report.ok, report.problems


@pytest.mark.parametrize(
    "tamper",
    [
        "DELETE FROM transfers",
        "UPDATE transfers SET attempt=1",
        "UPDATE transfers SET payment='pay_other'",
        "UPDATE transfers SET hash='0x" + "00" * 32 + "'",
        "UPDATE transfers SET raw=(SELECT mac FROM history WHERE seq=1)",
    ],
)
def test_the_audit_sees_what_was_altered(shared: Store, tamper: str) -> None:
    hold(shared.ledger)
    assert verify(shared.ledger).ok
    shared.sql(tamper)
    report = verify(shared.ledger)
    assert not report.ok and any("transfer 0 of payment" in said for said in report.problems)
