"""Ways to buy, and the comparison of what a buyer believes with what the chain says."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

import anyio
import httpx
from eth_account.signers.local import LocalAccount

from tests.support.chain import NETWORK, USDC, Chain

if TYPE_CHECKING:
    from x402_mask import Payer, Receipt

SECONDS = 30.0
MODES = ("client", "attach", "async-client", "async-attach", "trio-client", "trio-attach")


class Wanted(NamedTuple):
    """One request to make."""

    method: str
    url: str
    json: dict[str, Any] | None = None


def buy(
    mode: str, payer: Payer, wanted: Sequence[Wanted], family: str = "httpx"
) -> list[httpx.Response]:
    """Make every request in turn, on one client of the library under test, and read the answers.

    *family* is ``httpx`` or ``httpx2``, whose names are the same.
    """
    style, _, name = mode.rpartition("-")
    if not style:
        return _buy(family, name, payer, wanted)
    backend = "trio" if style == "trio" else "asyncio"
    return anyio.run(_buy_async, family, name, payer, wanted, backend=backend)


def _buy(family: str, name: str, payer: Payer, wanted: Sequence[Wanted]) -> list[httpx.Response]:
    library, paying = _modules(family)
    if name == "attach":
        made = paying.attach(library.Client(timeout=SECONDS, trust_env=False), payer)
    else:
        made = paying.Client(payer, timeout=SECONDS, trust_env=False)
    with made as client:
        return [client.request(w.method, w.url, json=w.json) for w in wanted]


async def _buy_async(
    family: str, name: str, payer: Payer, wanted: Sequence[Wanted]
) -> list[httpx.Response]:
    library, paying = _modules(family)
    if name == "attach":
        made = paying.attach(library.AsyncClient(timeout=SECONDS, trust_env=False), payer)
    else:
        made = paying.AsyncClient(payer, timeout=SECONDS, trust_env=False)
    async with made as client:
        return [await client.request(w.method, w.url, json=w.json) for w in wanted]


def _modules(family: str) -> tuple[Any, Any]:
    """Return the HTTP library and the module that has its paying clients."""
    home = "x402_mask" if family == "httpx" else f"x402_mask.{family}"
    return import_module(family), import_module(home)


def official_buy(account: LocalAccount, wanted: Sequence[Wanted]) -> list[httpx.Response]:
    """Make every request in turn with the official Python client, which speaks v1 and v2."""
    return anyio.run(_official_buy, account, wanted)


async def _official_buy(account: LocalAccount, wanted: Sequence[Wanted]) -> list[httpx.Response]:
    from x402 import x402Client
    from x402.http.clients import wrapHttpxWithPayment
    from x402.mechanisms.evm import EthAccountSigner
    from x402.mechanisms.evm.exact import register_exact_evm_client

    buyer = register_exact_evm_client(x402Client(), EthAccountSigner(account))
    async with wrapHttpxWithPayment(buyer, timeout=SECONDS) as client:
        return [await client.request(w.method, w.url, json=w.json) for w in wanted]


def standard_basket(url: str) -> list[Wanted]:
    """Return one request per route that the official sellers have; the last one is free."""
    return [
        Wanted("GET", f"{url}/paid"),
        Wanted("POST", f"{url}/api/tools/mask-refinement", {"picture": "a", "n": [1, 2]}),
        Wanted("GET", f"{url}/stream"),
        Wanted("GET", f"{url}/free"),
    ]


def refinement(url: str) -> Wanted:
    """Return a call of the sandbox's mask-refinement on the sandbox's own pictures."""
    pictures = {"ImageURL": f"{url}/static/photo.png", "MaskImageURL": f"{url}/static/mask.png"}
    return Wanted("POST", f"{url}/api/tools/mask-refinement", pictures)


def assert_standard_answers(answers: Sequence[httpx.Response]) -> None:
    """Check that every route of `standard_basket` was delivered whole."""
    assert [answer.status_code for answer in answers] == [200] * 4
    paid, tool, stream, free = answers
    assert paid.json() == {"paid": "content"}
    assert tool.json() == {"echo": {"picture": "a", "n": [1, 2]}}
    assert stream.text == "".join(f"chunk {number}\n" for number in range(5))
    assert free.json() == {"free": "content"}


class Books:
    """What a wallet and a payee owned before, to be compared with what is owned after."""

    def __init__(self, chain: Chain, wallet: LocalAccount, pay_to: str) -> None:
        """Remember the balances of *wallet* and *pay_to* on *chain*."""
        self.chain = chain
        self.wallet = wallet
        self.pay_to = pay_to
        self.before = self._balances()

    def _balances(self) -> tuple[int, int]:
        return self.chain.balance(self.wallet.address), self.chain.balance(self.pay_to)

    def moved(self) -> list[tuple[int, str]]:
        """Return (value, transaction) of each transfer from the wallet to the payee, in order."""
        found = self.chain.transfers(sender=self.wallet.address, to=self.pay_to)
        return [(transfer.value, transfer.tx) for transfer in found]

    def assert_only_moved(self, amounts: Sequence[int]) -> None:
        """Check that exactly *amounts* left the wallet, all of it to the payee."""
        assert [value for value, _ in self.moved()] == list(amounts)
        assert len(self.chain.transfers(sender=self.wallet.address)) == len(amounts)
        wallet, payee = self.before
        assert self._balances() == (wallet - sum(amounts), payee + sum(amounts))

    def assert_agree(
        self, payer: Payer, receipts: Sequence[Receipt], amounts: Sequence[int]
    ) -> None:
        """Check receipts, ledger and caps against the chain: each transfer once, to the unit.

        *payer* bought nothing else, and its first cap counts every service.
        """
        self.assert_only_moved(amounts)
        assert [(r.amount, r.transaction) for r in receipts] == self.moved()
        for receipt in receipts:
            self._assert_receipt(receipt)
        total = _usd(sum(amounts))
        recorded = payer.payments(state="settled")
        assert payer.payments() == recorded
        assert [(p.payment_id, p.amount, p.usd, p.transaction) for p in reversed(recorded)] == [
            (r.payment_id, r.amount, r.usd, r.transaction) for r in receipts
        ]
        first = payer.spend()[0]
        assert (first.settled, first.held, first.left) == (
            total,
            Decimal(0),
            first.limit - total,
        )

    def _assert_receipt(self, receipt: Receipt) -> None:
        assert (receipt.outcome, receipt.route) == ("settled", "x402")
        assert receipt.usd == _usd(receipt.amount)
        assert (receipt.network, str(receipt.asset).lower()) == (NETWORK, USDC.lower())
        assert str(receipt.payer).lower() == self.wallet.address.lower()
        assert str(receipt.pay_to).lower() == self.pay_to.lower()
        assert self.chain.succeeded(str(receipt.transaction)) is True


def receipts_of(answers: Sequence[httpx.Response]) -> list[Receipt]:
    """Return the receipts of those answers that have one."""
    from x402_mask import receipt_of

    found = (receipt_of(answer) for answer in answers)
    return [receipt for receipt in found if receipt is not None]


def _usd(amount: int) -> Decimal:
    return Decimal(amount) / 10**6
