"""The log: INFO what was paid, WARNING what is rejected, unknown or held, DEBUG the rest."""

from __future__ import annotations

import logging
from decimal import Decimal
from typing import Any

import pytest

from tests.support.seller import Reply, encode, offer, served
from tests.transport.kit import SHOP, Rig, kinds
from x402_mask import Cap, CapExceeded, PaymentRefused, receipt_of

one_plug = kinds("client")
LINES = "x402_mask"


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.DEBUG, LINES)
    return caplog


def lines(log: pytest.LogCaptureFixture, level: int) -> list[str]:
    return [r.getMessage() for r in log.records if r.name == LINES and r.levelno == level]


@one_plug
async def test_what_was_paid(rig: Rig, log: pytest.LogCaptureFixture) -> None:
    """Amount, service, origin and payment id, once; never the proof or the key."""
    rig.payer = rig.make_payer(services={"things": f"{SHOP}/*"})
    rig.sells(offer("200000"))
    receipt = receipt_of(await rig.get())
    assert receipt is not None
    assert lines(log, logging.INFO) == [f"paid $0.20 for things at {SHOP} ({receipt.payment_id})"]
    assert lines(log, logging.WARNING) == []
    assert len(lines(log, logging.DEBUG)) >= 3  # the rest of the story
    told = "\n".join(r.getMessage() for r in log.records)
    assert rig.proofs and not [proof for proof in rig.proofs if proof in told]
    assert "11" * 32 not in told


def _settled(**changes: Any) -> Reply:
    told = {"success": False, "transaction": "", "network": "eip155:8453", **changes}
    return Reply(status=402, headers=[("PAYMENT-RESPONSE", encode(told))], body=b"{}")


@one_plug
@pytest.mark.parametrize(
    ("paid", "word"),
    [
        (_settled(errorReason="no\nmoney\x1b[2J" * 99), "rejected"),
        (Reply(status=500, body=b"no"), "not known"),
        (Reply(status=200, body=b"no settlement"), "not known"),
    ],
    ids=["rejected", "an error", "no settlement"],
)
async def test_what_is_open(
    rig: Rig, log: pytest.LogCaptureFixture, paid: Reply, word: str
) -> None:
    """One warning, on one line, however long the seller's words are."""
    rig.sells(paid=paid)
    receipt = receipt_of(await rig.get())
    assert receipt is not None and receipt.outcome != "settled"
    (line,) = [line for line in lines(log, logging.WARNING) if "held" in line]
    assert all(part in line for part in ("$0.001 for", SHOP, receipt.payment_id, word, "held"))
    assert line.isprintable() and len(line) < 500
    assert lines(log, logging.INFO) == []


@one_plug
async def test_an_answer_that_never_came(rig: Rig, log: pytest.LogCaptureFixture) -> None:
    class Gone(rig.lib.ReadTimeout):  # type: ignore[misc, name-defined]
        pass

    def fail(hit: Any) -> Reply:
        raise Gone("late", request=hit.request)

    rig.sells(paid=fail)  # type: ignore[arg-type]
    with pytest.raises(Gone):
        await rig.get()
    (line,) = lines(log, logging.WARNING)
    assert "stay held" in line and rig.payer.payments()[0].payment_id in line


@one_plug
async def test_a_refusal_is_no_warning(rig: Rig, log: pytest.LogCaptureFixture) -> None:
    rig.sells(offer("999000000"))
    with pytest.raises(CapExceeded):
        await rig.get()
    assert lines(log, logging.INFO) == lines(log, logging.WARNING) == []
    assert any("refused" in line for line in lines(log, logging.DEBUG))


@one_plug
async def test_a_refused_event_is_complete(rig: Rig) -> None:
    """Who, what, how much and why, as far as is known."""
    rig.payer = rig.make_payer(
        caps=[Cap("1", per="day", service="things")],
        services={"things": f"{SHOP}/paid*", "others": f"{SHOP}/*"},
        approve=lambda quote: quote.usd < Decimal("0.1"),
    )
    for path, amount, reason, usd in (
        ("/paid", "3000000", "cap", "3.00"),
        ("/paid/2", "500000", "approval", "0.50"),
        ("/else", "1000", "no_cap", "0.001"),
    ):
        rig.events.clear()
        url = rig.sells(offer(amount), url=SHOP + path, paid=served())
        with pytest.raises(PaymentRefused):
            await rig.get(url)
        event = rig.events[-1]
        service = "others" if path == "/else" else "things"
        assert (event.kind, event.service, event.origin) == ("refused", service, SHOP)
        assert event.usd == Decimal(usd)
        detail = dict(event.detail)
        assert detail.pop("message")
        assert detail == {"reason": reason, "origin": SHOP, "path": path, "method": "GET"}


@one_plug
async def test_a_service_that_is_an_origin_is_said_once(
    rig: Rig, log: pytest.LogCaptureFixture
) -> None:
    """What was paid, what is open, and an answer that is an error."""
    rig.sells(offer("200000"))
    receipt = receipt_of(await rig.get())
    assert receipt is not None
    assert lines(log, logging.INFO) == [f"paid $0.20 for {SHOP} ({receipt.payment_id})"]
    rig.sells(offer("200000"), paid=Reply(status=500, body=b"no"))
    await rig.get()
    warned = lines(log, logging.WARNING)
    assert warned and all(line.count(SHOP) == 1 for line in warned)
