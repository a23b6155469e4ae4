"""Taking a proof: judge it, settle it once, and say how that went."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread
from starlette.responses import JSONResponse, Response

from x402_mask.sandbox.chain import Chain, SettlementFailed
from x402_mask.sandbox.challenge import NO_STORE, Tariff, settlement_header
from x402_mask.sandbox.verify import Proof, check_proof

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from x402_mask.sandbox.book import Book, Settlement
    from x402_mask.sandbox.catalog import Json, Service
    from x402_mask.sandbox.faults import Faults
    from x402_mask.sandbox.settings import SandboxSettings

HANG_UP = "x402_mask.sandbox.hang_up"
"""ASGI scope extension of `x402_mask.sandbox.server`: a callable that cuts the connection."""


class HangUp(Response):
    """No answer at all: the connection is cut."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        """Cut the connection and wait until it is gone. Starlette's signature."""
        cut = scope.get("extensions", {}).get(HANG_UP)
        if cut is None:
            raise RuntimeError("this ASGI server offers no way to cut a connection")
        cut()
        while (await receive())["type"] != "http.disconnect":
            pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Cashier:
    """Settles proofs, in the embedded book or on chain, with the faults that are switched on."""

    settings: SandboxSettings
    book: Book
    tariff: Tariff
    faults: Faults
    chain: Chain | None
    unfinished: dict[str, Settlement]
    """Settlements answered as pending, by the digest of their proof."""

    async def take(self, proof: Proof, service: Service, url: str) -> Settlement:
        """Settle *proof* for *service*; raises `Rejected` or `SettlementFailed`."""
        if (finished := self.unfinished.pop(proof.digest, None)) is not None:
            return finished
        if self.faults.take("price-changed"):
            self.tariff.rise(service)
        check_proof(proof, self.tariff.terms(service, url), self.settings)
        settlement = await self._settle(proof, service)
        if self.faults.take("slow-settle"):
            await anyio.sleep(self.settings.slow_settle)
        if self.faults.take("settlement-pending"):
            self.unfinished[proof.digest] = settlement
            raise SettlementFailed("settlement_pending", settlement.transaction)
        return settlement

    async def _settle(self, proof: Proof, service: Service) -> Settlement:
        network = self.settings.network_on_wire
        if self.chain is None:
            return self.book.settle(proof.authorization, service.id, network)
        transaction = await anyio.to_thread.run_sync(self.chain.settle, proof.authorization)
        return self.book.record(proof.authorization, service.id, network, transaction)

    def receipt(self, settlement: Settlement) -> Json:
        """The settlement as the settlement header tells it when nothing is wrong."""
        return {
            "success": True,
            "transaction": settlement.transaction,
            "network": settlement.network,
            "payer": settlement.payer,
            "amount": str(settlement.amount),
        }

    def failure(self, failed: SettlementFailed) -> Response:
        """The 402 of a settlement that was tried: no challenge, an empty object as body."""
        content = {
            "success": False,
            "transaction": failed.transaction,
            "network": self.settings.network_on_wire,
            "errorReason": failed.reason,
        }
        headers = NO_STORE | dict(settlement_header(self.settings, content))
        return JSONResponse({}, status_code=402, headers=headers)

    def deliver(self, response: Response, settlement: Settlement | None) -> Response:
        """*response* with its receipt, or what the faults make of it.

        *settlement* is ``None`` where a token was taken instead of money.
        """
        if self.faults.take("drop-after-settle"):
            return HangUp()
        if self.faults.take("500-after-settle"):
            response = JSONResponse({"error": "internal error"}, status_code=500)
        response.headers["Cache-Control"] = "no-store, private"
        if settlement is not None and not self.faults.take("no-receipt"):
            told = self._told(self.receipt(settlement))
            response.headers.update(settlement_header(self.settings, told))
        return response

    def _told(self, receipt: Json) -> Json:
        if self.faults.take("success-false"):
            lie = {"success": False, "transaction": "", "errorReason": "unexpected_settle_error"}
            return receipt | lie
        if self.faults.take("wrong-amount-receipt"):
            return receipt | {"amount": str(50 * int(receipt["amount"]))}
        return receipt
