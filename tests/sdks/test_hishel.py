"""A real cache, hishel, below a paying transport and above one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.support.seller import Seller


def test_hishel_below_and_above(
    program: Callable[..., Any], sdks: Callable[[str], str], seller: Seller
) -> None:
    """Below it keeps a 402, which is no answer to a proof; above it serves what was paid for."""
    saw = program({"origin": seller.origin}, sdks("sdks"))
    assert len(saw) == 8
    for case, found in saw.items():
        hits = [hit for hit in seller.hits if hit.target.endswith(f"case={case}")]
        proofs = sum(bool(hit.proofs) for hit in hits)
        assert found["status"] == [200, 200], case
        if case.endswith("above"):
            assert found["outcomes"][0] == "settled" and found["payments"] == ["settled"], case
            assert (len(hits), proofs) == (2, 1), case
        else:
            assert len(found["payments"]) == proofs == found["outcomes"].count("settled"), case
