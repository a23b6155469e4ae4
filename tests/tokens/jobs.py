"""What the buyers of the fault tests do, in this process and in others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.faults import jobs
from tests.support.faults import CutSQLite, Points, killing
from x402_mask import Cap, Client, Payer, SQLiteLedger

CAP = "0.2"
"""One price and no more, in all."""


def buyer_on(ledger: Any, origin: str, way: str, **options: Any) -> Payer:
    """A buyer who may pay one price by this way."""
    if way == "settle":

        def settle(document: Any) -> None:
            with jobs.httpx.Client(trust_env=False, verify=jobs.NO_TLS) as client:
                client.post(f"{origin}/settle/{document.payment_id}").raise_for_status()

        options["settle_payment"] = settle
    if way == "account":  # whose balance it is, they say
        options.setdefault("marketplace_headers", {"X-Api-Key": "an account"})
    if way == "named":  # that they have one, they say, and could pay in another way, too
        options.setdefault("balance_origins", [origin])
    return Payer(
        jobs.WALLET if way in ("x402", "object", "named") else None,
        caps=[Cap(options.pop("cap", CAP), per="total")],
        origins=[origin],
        ledger=ledger,
        prefer=("held-token", "token"),
        poll_unpaid=0.3,
        poll_paid=0.1,
        **options,
    )


def killed_call(tell: Any, path: Path, kind: str, url: str, origin: str, way: str, at: int) -> None:
    """Make one call and be killed at the point *at*, if it gets so far."""
    from x402_mask._flow.tokens import purchase

    purchase._FIRST_DELAY_S = 0.01  # type: ignore[misc]
    points = Points(at, strike=lambda name: (tell(name), killing(name))[1])
    tell(jobs.cut_call(buyer_on(CutSQLite(path, points), origin, way), kind, url, points))


def plain_call(tell: Any, path: Path, url: str, origin: str, way: str, cap: str = CAP) -> None:
    """Make one ordinary call; its status, or the error's name."""
    buyer = buyer_on(SQLiteLedger(path), origin, way, cap=cap)
    with Client(buyer, timeout=5, verify=jobs.NO_TLS) as client:
        try:
            tell(str(client.get(url).status_code))
        except BaseException as error:
            tell(type(error).__name__)
