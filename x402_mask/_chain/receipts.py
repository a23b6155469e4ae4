"""What the chain says about a stored transfer: paid, reverted, displaced, or not known.

Two questions, both put to every endpoint of the network.  :func:`glance` is quick and looks at the
latest block: good enough to go on with a payment that stays counted.  :func:`evidence` reads one
confirmed block that all endpoints agree on, and only it may free money:

* **paid**: one of the stored transactions succeeded *and* the token's only ``Transfer`` from the
  payer in it is exactly the amount, to the payee (a success status alone proves nothing);
* **reverted**: one of them failed, and so used the nonce up: none of the others can be mined;
* **displaced**: the nonce is used, but by none of them, nor by another that moved the same;
* everything else is :class:`~x402_mask._chain.verdicts.Unknown`.

Receipts, the account's nonce and the token's events must tell the same story.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from x402_mask._chain.reader import same_block
from x402_mask._chain.rpc import (
    DATA,
    HASH,
    TRANSFER,
    EndpointError,
    address_word,
    each,
    hex_of,
    list_of,
    object_of,
    quantity_of,
    together,
)
from x402_mask._chain.verdicts import Unknown

if TYPE_CHECKING:
    from collections.abc import Coroutine, Sequence

    from x402_mask._chain.reader import ChainReader
    from x402_mask._chain.rpc import Endpoint, Header, Log, Receipt
    from x402_mask._ledger.transfers import StoredTransfer, Terms

QUESTION_S: Final = 60.0
_PROBES_MAX: Final = 200
_PAYMENTS_MAX: Final = 10_000  # of one payer to one payee in the blocks that are searched


@dataclass(frozen=True, slots=True, kw_only=True)
class Paid:
    """``transaction`` moved exactly what was to be moved."""

    transaction: str
    block: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Reverted:
    """``transaction`` used the nonce up and moved nothing."""

    transaction: str
    block: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Displaced:
    """As of ``block`` the nonce is used by a transaction that is not ours and did not pay."""

    block: int


Verdict = Paid | Reverted | Displaced | Unknown


@dataclass(frozen=True, slots=True, kw_only=True)
class Glance:
    """What every endpoint sees at the top: the one receipt, if any, and if the nonce is used.

    ``pays``: that receipt moved exactly what was to be moved.
    """

    transaction: str | None
    ok: bool
    pays: bool
    used: bool


def glance(chain: ChainReader, stored: StoredTransfer, *, time_out_s: float) -> Glance | str:
    """Look once; a text says why nothing can be said.  Blocks; never raises for RPC faults."""

    async def ask(endpoints: Sequence[Endpoint]) -> Glance | str:
        seen = await each(endpoints, lambda endpoint: _glance(endpoint, stored))
        return seen[0] if all(each == seen[0] for each in seen) else "the RPC endpoints disagree"

    try:
        return chain.ask(stored.terms.network, ask, time_out_s)
    except EndpointError as error:
        return str(error)


def evidence(
    chain: ChainReader, stored: StoredTransfer, *, time_out_s: float = QUESTION_S
) -> Verdict:
    """What the confirmed chain proves.  Blocks; never raises for RPC faults."""

    async def ask(endpoints: Sequence[Endpoint]) -> Verdict:
        await each(endpoints, lambda endpoint: endpoint.check_chain())
        top = await chain.common_top(endpoints)
        verdicts = await each(endpoints, lambda endpoint: _judge(endpoint, stored, top))
        await same_block(endpoints, top.number, top)
        if any(verdict != verdicts[0] for verdict in verdicts):
            told = "; ".join(f"{v.name}: {w}" for v, w in zip(endpoints, verdicts, strict=True))
            raise EndpointError(f"endpoints disagree: {told}")
        return verdicts[0]

    try:
        return chain.ask(stored.terms.network, ask, time_out_s)
    except EndpointError as error:
        return Unknown(reason=str(error), answered=False)


async def _glance(endpoint: Endpoint, stored: StoredTransfer) -> Glance:
    # The nonce first: a receipt that appears meanwhile is no contradiction.
    used = await _count(endpoint, stored.terms.payer, "latest")
    checks: tuple[Coroutine[Any, Any, Any], ...] = (
        endpoint.check_chain(),
        _receipt(endpoint, stored),
    )
    _, receipt = await together(*checks)
    return Glance(
        transaction=None if receipt is None else receipt.transaction,
        ok=receipt is not None and receipt.ok,
        pays=receipt is not None and _pays(receipt, stored.terms),
        used=receipt is not None or used > stored.nonce,
    )


async def _judge(endpoint: Endpoint, stored: StoredTransfer, top: Header) -> Verdict:
    """One endpoint's verdict as of the confirmed block *top*."""
    used = await _count(endpoint, stored.terms.payer, hex(top.number)) > stored.nonce
    receipt = await _receipt(endpoint, stored)
    if receipt is not None and receipt.block > top.number:
        return Unknown(reason=f"transaction {receipt.transaction} is not confirmed yet")
    if receipt is None and not used:
        return Unknown(reason=f"nonce {stored.nonce} is unused in confirmed block {top.number}")
    if not used:
        raise endpoint.error("contradiction: a mined transaction whose nonce is unused")
    if receipt is None:
        return await _displaced(endpoint, stored, top)
    await endpoint.check_canonical(receipt)
    if not receipt.ok:
        return await _reverted(endpoint, stored, receipt)
    if not _pays(receipt, stored.terms):
        return Unknown(reason=mismatch(stored, receipt.transaction))
    return Paid(transaction=receipt.transaction, block=receipt.block)


async def _reverted(endpoint: Endpoint, stored: StoredTransfer, receipt: Receipt) -> Reverted:
    logs = await _payments(endpoint, stored.terms, receipt.block, receipt.block)
    if receipt.logs or any(log.transaction == receipt.transaction for log in logs):
        raise endpoint.error("contradiction: a failed transaction that moved money")
    return Reverted(transaction=receipt.transaction, block=receipt.block)


async def _displaced(endpoint: Endpoint, stored: StoredTransfer, top: Header) -> Verdict:
    """No stored transaction has a receipt: then no event may be of one that has this nonce.

    A wallet program that "sped up" the transfer made another transaction with the same nonce and
    the same effect: that one paid.  One with another effect did not, and ours can never be mined.
    """
    first = stored.attempts[0].first_block
    await _check_memory(endpoint, first, top.number)
    for log in await _payments(endpoint, stored.terms, first, top.number):
        if await _is_at_nonce(endpoint, log.transaction, stored):
            receipt = await endpoint.confirmed_receipt(log, top)
            if _pays(receipt, stored.terms):
                return Paid(transaction=log.transaction, block=log.block)
            break  # another payment to the same payee, of another program or ledger
    if await _receipt(endpoint, stored) is not None:
        raise endpoint.error("contradiction: a receipt that was absent a moment ago")
    return Displaced(block=top.number)


async def _check_memory(endpoint: Endpoint, first: int, last: int) -> None:
    """Refuse an endpoint that has forgotten: where it has no old receipts, absence proves nothing.

    Receipts are forgotten from the oldest on, and the nonce was used after block *first*.
    """
    for number in range(first, min(last, first + _PROBES_MAX) + 1):
        block = object_of(await endpoint.call("eth_getBlockByNumber", hex(number), False), endpoint)
        named = list_of(block.get("transactions"), endpoint)
        if named:
            if await endpoint.receipt(hex_of(named[0], HASH, endpoint)) is None:
                raise endpoint.error(
                    f"has no receipts of block {number}, so a missing one says nothing"
                )
            return
    raise endpoint.error(f"no transaction since block {first}, though the nonce was used since")


async def _is_at_nonce(endpoint: Endpoint, transaction: str, stored: StoredTransfer) -> bool:
    raw = await endpoint.call("eth_getTransactionByHash", transaction)
    if raw is None:
        raise endpoint.error(f"a log names transaction {transaction}, which it does not have")
    found = object_of(raw, endpoint)
    sender = hex_of(found.get("from"), DATA, endpoint)
    nonce = quantity_of(found.get("nonce"), endpoint)
    if hex_of(found.get("hash"), HASH, endpoint) != transaction:
        raise endpoint.error("answered another transaction")
    return sender == stored.terms.payer.lower() and nonce == stored.nonce


async def _receipt(endpoint: Endpoint, stored: StoredTransfer) -> Receipt | None:
    """The receipt of the one attempt that was mined."""
    found = [
        receipt
        for receipt in await together(*(endpoint.receipt(name) for name in stored.hashes))
        if receipt is not None
    ]
    if len(found) > 1:
        raise endpoint.error("contradiction: two transactions with one nonce were mined")
    return found[0] if found else None


async def _count(endpoint: Endpoint, payer: str, block: str) -> int:
    """The account's next nonce as of *block*."""
    return quantity_of(
        await endpoint.call("eth_getTransactionCount", payer.lower(), block), endpoint
    )


async def _payments(endpoint: Endpoint, terms: Terms, first: int, last: int) -> list[Log]:
    """The token's ``Transfer`` events from the payer to the payee in these blocks."""
    topics = ((TRANSFER,), (address_word(terms.payer),), (address_word(terms.pay_to),))
    return await endpoint.logs(terms.asset.lower(), topics, first, last, most=_PAYMENTS_MAX)


def _pays(receipt: Receipt, terms: Terms) -> bool:
    """Whether the payer's only transfer of the token here is exactly what was to be moved."""
    payer = address_word(terms.payer)
    moved = [
        log
        for log in receipt.logs
        if log.address == terms.asset.lower() and log.topics[:2] == (TRANSFER, payer)
    ]
    return (
        receipt.ok
        and len(moved) == 1
        and moved[0].topics[2:] == (address_word(terms.pay_to),)
        and moved[0].data == f"0x{terms.amount:064x}"
    )


def mismatch(stored: StoredTransfer, transaction: str | None) -> str:
    """For people: the nonce is used, and the money did not go as it should."""
    terms = stored.terms
    return (
        f"PAYMENT MISMATCH: transaction {transaction} on {terms.network} did not move exactly"
        f" {terms.amount} of {terms.asset} from {terms.payer} to {terms.pay_to}; the money stays"
        " held, look at that transaction"
    )
