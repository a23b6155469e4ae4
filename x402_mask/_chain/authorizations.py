"""EIP-3009: what a chain says of a signed authorization.

* **used** and a ``Transfer`` of exactly what was signed in the same transaction: ``Settled``;
* **used** by ``cancelAuthorization``: ``Canceled``;
* **unused** in a confirmed block later than ``validBefore``, and no event to the contrary:
  ``Unused``.  It can never be used again, for both bounds are exclusive and block times do not fall
  (EIP-3009).  Where the chain's blocks lag behind our clock, the block must be later by as much: a
  chain that catches up makes in a second what else takes minutes, so that twelve blocks on top say
  little;
* everything else: ``Unknown``.

Every value read here is one 32-byte word that is compared for equality, so no ABI codec is needed.
The tests hold the words below against web3's codec.

Sources: EIP-3009 (``authorizationState``, events), EIP-20 (``Transfer``).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from x402_mask._chain.rpc import (
    ADDRESS,
    HASH,
    TRANSFER,
    EndpointError,
    Refused,
    address_word,
    hex_of,
    together,
)
from x402_mask._chain.verdicts import Canceled, Evidence, Settled, Unknown, Unused
from x402_mask._money import SECOND

if TYPE_CHECKING:
    from collections.abc import Coroutine, Sequence

    from x402_mask._chain.rpc import Endpoint, Header, Log, Receipt
    from x402_mask._ledger.records import Row

_USED: Final = "0x98de503528ee59b575ef0c0a2576a82497bfc029a5685b209e9ec333479b10a5"
_CANCELED: Final = "0x1cdd46ff242716cdaa72d159d339a485b3438398348d68f09d7c8c0a59353d81"
_AUTHORIZATION_STATE: Final = "0xe94a0102"

_EVENTS_MAX: Final = 16  # a nonce is used once; a liar could say a million
_FAR_SPANS: Final = 32  # how far past validBefore a late cancellation is looked for
_NEAR_S: Final = 120  # ordinary distance between this machine's clock and block times
_SKEW_S: Final = 3600  # a clock an hour fast signs "after" it was settled


@dataclass(frozen=True, slots=True, kw_only=True)
class Authorization:
    """What was signed: one EIP-3009 ``TransferWithAuthorization``.

    ``network`` is CAIP-2, ``amount`` atomic units of ``asset``, ``nonce`` 0x and 64 hex digits,
    times are Unix seconds.  ``signed_at`` bounds the search for events from below.
    ``transaction`` is a hint, such as a seller's claim: looked at first, never trusted.
    ``time_out_s`` bounds the whole question about it, in seconds.

    Raises:
        ValueError: an address, nonce, amount or time that nobody could have signed.
    """

    network: str
    asset: str
    payer: str
    pay_to: str
    amount: int
    nonce: str
    valid_before: int
    signed_at: int
    transaction: str | None = None
    time_out_s: float | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        for name in ("asset", "payer", "pay_to"):
            if not ADDRESS.fullmatch(getattr(self, name)):
                raise ValueError(f"{name} is not an address")
        if not HASH.fullmatch(self.nonce):
            raise ValueError("nonce is not 32 bytes in hex")
        for name in ("amount", "valid_before", "signed_at"):
            value = getattr(self, name)
            if type(value) is not int or not 0 <= value < 1 << 256:
                raise ValueError(f"{name} is not an integer from 0 to 2**256 - 1")

    async def judge(self, endpoint: Endpoint, top: Header, lag_s: int) -> Evidence:
        """One endpoint's evidence as of the confirmed block ``top`` of a chain that lags so much.

        Raises:
            EndpointError: it cannot be believed.
        """
        terms = _Terms.of(self)
        if await _is_used(endpoint, terms, top):
            hinted = await _hinted(endpoint, self, terms, top)
            return hinted or await _searched(endpoint, self, terms, top)
        if top.time <= self.valid_before + lag_s:
            lags = f" by the {lag_s} s that the chain lags" if lag_s else ""
            return Unknown(
                reason=f"{endpoint.name}: not expired yet: unused in confirmed block {top.number}, "
                f"whose time {top.time} is not past validBefore {self.valid_before}{lags}"
            )
        window = await _window(endpoint, self, top)
        if await _events(endpoint, terms, *window):
            raise endpoint.error(
                "contradiction: the nonce is unused by state, used or cancelled by event"
            )
        return Unused(block=top.number, block_time=top.time)

    async def glance(self, endpoint: Endpoint, transaction: str) -> Evidence:
        """Whether *transaction* pays, at whatever depth.

        Raises:
            EndpointError: the endpoint cannot be believed.
        """
        terms = _Terms.of(self)
        checks: tuple[Coroutine[Any, Any, Any], ...] = (
            endpoint.check_chain(),
            endpoint.receipt(transaction),
        )
        _, receipt = await together(*checks)
        told = f"{endpoint.name}: transaction {transaction}"
        if receipt is None:
            return Unknown(reason=f"{told} is not on chain yet")
        if not receipt.ok:
            return Unknown(reason=f"{told} failed")
        if not _used_in(receipt, terms):
            return Unknown(reason=f"{told} does not use this authorization")
        if not _pays(receipt, terms):
            return Unknown(reason=_mismatch(endpoint, self, receipt))
        return Settled(transaction=receipt.transaction, block=receipt.block, amount=self.amount)


def authorization_of(row: Row, nonce: str, time_out_s: float | None) -> Authorization:
    """The question about the payment in *row*, of which everything that was signed is known."""
    assert row.valid_before is not None
    return Authorization(
        network=str(row.network),
        asset=str(row.asset),
        payer=str(row.payer),
        pay_to=str(row.pay_to),
        amount=int(row.amount),
        nonce=nonce,
        valid_before=row.valid_before,
        signed_at=row.at // SECOND,
        transaction=row.trans,
        time_out_s=time_out_s,
    )


async def _hinted(
    endpoint: Endpoint, a: Authorization, terms: _Terms, top: Header
) -> Settled | None:
    """The settlement, if the hinted transaction is it; else the events are searched."""
    if a.transaction is None or not HASH.fullmatch(a.transaction):
        return None
    receipt = await endpoint.receipt(a.transaction)
    if receipt is None or receipt.block > top.number or not receipt.ok:
        return None
    if not _pays(receipt, terms):
        return None
    await endpoint.check_canonical(receipt)
    return Settled(transaction=receipt.transaction, block=receipt.block, amount=a.amount)


async def _window(endpoint: Endpoint, a: Authorization, top: Header) -> tuple[int, int]:
    """First and last block in which ``a`` is used, by clocks that agree within two minutes."""
    (first, _), (_, last) = await together(
        endpoint.around(a.signed_at - _NEAR_S, top), endpoint.around(a.valid_before, top)
    )
    return first, last


async def _searched(endpoint: Endpoint, a: Authorization, terms: _Terms, top: Header) -> Evidence:
    """Find by its events how the nonce was used."""
    first, last = await _window(endpoint, a, top)
    events = await _events(endpoint, terms, first, last)
    if not events:
        early, _ = await endpoint.around(a.signed_at - _SKEW_S, top)
        events = await _events(endpoint, terms, early, first - 1)
    if not events:
        late = min(top.number, last + _FAR_SPANS * endpoint.block_span)
        events = await _events(endpoint, terms, last + 1, late)
    if not events:
        raise endpoint.error("the nonce is used, but the event that says how was not found")
    kinds = {event.topics[0] for event in events}
    if kinds == {_USED}:
        return await _settled(endpoint, a, terms, top, events)
    if kinds == {_CANCELED} and len(events) == 1:
        return await _canceled(endpoint, top, events[0])
    raise endpoint.error("contradiction: more than one event says how the nonce was used")


async def _settled(
    endpoint: Endpoint, a: Authorization, terms: _Terms, top: Header, events: Sequence[Log]
) -> Settled:
    """The one transaction of these events that moved the money, and none that moved other."""
    receipts = [
        await endpoint.confirmed_receipt(event, top)
        for event in {event.transaction: event for event in events}.values()
    ]
    paying = [receipt for receipt in receipts if _pays(receipt, terms)]
    # A token that lets a used nonce pass without a revert may log the use again: harmless if
    # that transaction moved nothing of the payer's.
    others = [r for r in receipts if not _pays(r, terms) and _moved(r, terms)]
    if len(paying) != 1 or others:
        raise EndpointError(_mismatch(endpoint, a, (others or receipts)[0]))
    return Settled(transaction=paying[0].transaction, block=paying[0].block, amount=a.amount)


async def _canceled(endpoint: Endpoint, top: Header, event: Log) -> Canceled:
    receipt = await endpoint.confirmed_receipt(event, top)
    return Canceled(transaction=receipt.transaction, block=receipt.block)


def _mismatch(endpoint: Endpoint, a: Authorization, receipt: Receipt) -> str:
    return (
        f"{endpoint.name}: PAYMENT MISMATCH: transaction {receipt.transaction} on {a.network} used "
        f"the authorization of {a.payer}, but did not move exactly {a.amount} of {a.asset} to "
        f"{a.pay_to}; the money stays held, look at that transaction"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Terms:
    """The words of one authorization as they appear in calls and logs (lower-case hex)."""

    asset: str
    call: str
    payer: str
    pay_to: str
    nonce: str
    amount: str

    @classmethod
    def of(cls, a: Authorization) -> _Terms:
        payer, nonce = address_word(a.payer), a.nonce.lower()
        return cls(
            asset=a.asset.lower(),
            call=_AUTHORIZATION_STATE + payer[2:] + nonce[2:],
            payer=payer,
            pay_to=address_word(a.pay_to),
            nonce=nonce,
            amount=f"0x{a.amount:064x}",
        )


def _own(receipt: Receipt, terms: _Terms) -> list[Log]:
    return [log for log in receipt.logs if log.address == terms.asset]


def _used_in(receipt: Receipt, terms: _Terms) -> bool:
    use = (_USED, terms.payer, terms.nonce)
    return any(log.topics == use for log in _own(receipt, terms))


def _moved(receipt: Receipt, terms: _Terms) -> bool:
    """Whether anything of the payer's left in this token."""
    return any(log.topics[:2] == (TRANSFER, terms.payer) for log in _own(receipt, terms))


def _pays(receipt: Receipt, terms: _Terms) -> bool:
    """Whether this transaction used the nonce and moved exactly what was signed.

    A batch may use several authorizations of one payer; there the transfer that belongs to a use
    is the payer's first one after it, the order of EIP-3009's reference implementation.
    """
    if not _used_in(receipt, terms):
        return False
    own = _own(receipt, terms)
    at = [log.topics for log in own].index((_USED, terms.payer, terms.nonce))
    uses = sum(log.topics[:2] == (_USED, terms.payer) for log in own)
    moves = [
        log for log in (own if uses == 1 else own[at:]) if log.topics[:2] == (TRANSFER, terms.payer)
    ]
    return any(
        len(log.topics) == 3 and log.topics[2] == terms.pay_to and log.data == terms.amount
        for log in (moves if uses == 1 else moves[:1])
    )


# --- one endpoint ---------------------------------------------------------------------------------


async def _is_used(endpoint: Endpoint, terms: _Terms, block: Header) -> bool:
    """``authorizationState``: used or cancelled as of ``block``."""
    call = {"to": terms.asset, "data": terms.call}
    try:
        raw = await endpoint.call(
            "eth_call", call, {"blockHash": block.hash, "requireCanonical": True}
        )
    except Refused:
        # Not every node knows EIP-1898.  By number is as good: whoever asks compares the
        # block's hash again at the end.
        raw = await endpoint.call("eth_call", call, hex(block.number))
    word = hex_of(raw, HASH, endpoint)
    if int(word, 16) > 1:
        raise endpoint.error("authorizationState answered neither true nor false")
    return int(word, 16) == 1


async def _events(endpoint: Endpoint, terms: _Terms, first: int, last: int) -> list[Log]:
    """Uses and cancellations of the nonce in these blocks, asked for in bounded ranges."""
    wanted = ((_USED, _CANCELED), (terms.payer,), (terms.nonce,))
    return await endpoint.logs(terms.asset, wanted, first, last, most=_EVENTS_MAX)
