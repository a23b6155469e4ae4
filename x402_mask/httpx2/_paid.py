"""Made from ``x402_mask/httpx/_paid.py`` by ``make twins``: edit that."""

from __future__ import annotations

import httpx2

from x402_mask._flow.records import paid_note


class PaidError(httpx2.Response):
    """The seller's answer as it is, but for a note on what ``raise_for_status`` raises."""

    def raise_for_status(self) -> httpx2.Response:
        try:
            return super().raise_for_status()
        except httpx2.HTTPStatusError as failure:
            receipt = self.extensions.get("x402_mask")
            if receipt is not None:
                failure.add_note(paid_note(receipt))
            raise


def named(response: httpx2.Response) -> None:
    """Let *response*, which was paid for, name its payment where it is an error.

    It stays the very object that the transport made: who else holds it sees the same.
    """
    if response.is_error and type(response) is httpx2.Response:
        response.__class__ = PaidError
