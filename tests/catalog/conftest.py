"""A scripted marketplace per test, and payers for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.catalog.kit import Shop, Signer
from tests.support.seller import Seller
from x402_mask import Cap, MemoryLedger, Payer

MakePayer = Callable[..., Payer]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """No test may hang."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.timeout(20))


@pytest.fixture
def shop() -> Iterator[Shop]:
    with Seller() as seller:
        yield Shop(seller)
        assert not seller.errors, seller.errors


@pytest.fixture
def make_payer(shop: Shop) -> Iterator[MakePayer]:
    """A payer for the shop, with a wallet that counts; closed with the test."""
    made: list[Payer] = []

    def make(**options: Any) -> Payer:
        options.setdefault("caps", [Cap("5", per="total")])
        options.setdefault("origins", [shop.origin])
        options.setdefault("ledger", MemoryLedger())
        made.append(Payer(options.pop("wallet", None) or Signer(), **options))
        return made[-1]

    yield make
    for payer in made:
        payer.close()
