"""Paying by an on-chain transfer: prepare, (the ledger stores), carry.

:meth:`TransferSender.prepare` asks the network what a transfer needs and signs it; nothing leaves.
The caller lets the ledger store it (``hold_transfer``), which is the point of no return.
:meth:`TransferSender.carry` broadcasts what is stored until a block has it, and replaces it by the
same transfer with higher fees and the same nonce where it is stuck, each replacement stored first.

Why nobody pays twice: a payment has one nonce for ever, so of all that was ever signed for it one
transaction at most is mined; what is not stored is not sent; what is stored may be sent by anyone,
any number of times.  So ``carry`` may be run again, run twice at once, or be abandoned.

What the network says of nonces, fees and gas: see ``_chain.node``.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, NoReturn

from x402_mask._chain.node import Node, agreed_nonce, gas_for, l1_fee, market_fees
from x402_mask._chain.receipts import QUESTION_S, Glance, Paid, Reverted, evidence, glance, mismatch
from x402_mask._chain.rpc import EndpointError
from x402_mask._chain.transaction import Transaction, calldata, checked, sign
from x402_mask._chain.verdicts import Unknown
from x402_mask._crypto.eip712 import checksum
from x402_mask._ledger.transfers import MAY_SEND
from x402_mask._money import SECOND
from x402_mask._wallets.local import Wallet
from x402_mask.errors import LedgerError, TokenFlowError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from x402_mask._chain.reader import ChainReader
    from x402_mask._chain.receipts import Verdict
    from x402_mask._ledger.ledger import Ledger
    from x402_mask._ledger.transfers import (
        Progress,
        SignedTransfer,
        Standing,
        StoredTransfer,
        Terms,
    )

_LOOK_S: Final = 10.0
_PROOF_S: Final = 20.0
_POLL_S: Final = (0.1, 2.0)  # from the first to the longest pause between two looks
_SEND_AGAIN_S: Final = 10.0  # a node may have dropped what it took
_ATTEMPTS_MAX: Final = 24  # each an eighth dearer: sixteen times the first one's fees
_REORG_BLOCKS: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferState:
    """How far a transfer has got.

    ``mined``: a block has it and the money moved; ``failed``, ``displaced``: proven at depth that
    it did not and never will; ``pending``: not known, ``detail`` says what it waits for.
    ``transaction`` is the one that counts, or the latest one sent.
    """

    state: Literal["mined", "pending", "failed", "displaced"]
    transaction: str | None
    detail: str


class TransferSender:
    """Makes transfers and carries them to their end.  Safe to share by threads.

    Args:
        chain: where the network is asked.
        ledger: where transfers are stored.
        signer: the wallet; only a :class:`~x402_mask.Wallet` can sign a transaction.
        max_gas_wei: the most that one payment's gas may cost, replacements included, wei; ``None``
            makes no transfer.
        now_us: Unix microseconds.
        stuck_s: seconds after which an attempt that no block has is replaced.
    """

    def __init__(
        self,
        chain: Callable[[], ChainReader],
        ledger: Ledger,
        *,
        signer: object,
        max_gas_wei: int | None,
        now_us: Callable[[], int],
        stuck_s: float = 20.0,
    ) -> None:
        self._chain = chain
        self._ledger = ledger
        self._signer = signer
        self._max_gas_wei = max_gas_wei
        self._now_us = now_us
        self._stuck_s = stuck_s

    def possible(self, network: str) -> str | None:
        """Why no transfer can be made on *network*, or ``None`` if one can."""
        if self._max_gas_wei is None:
            return "max_gas_wei=None allows no on-chain transfer"
        if not isinstance(self._signer, Wallet):
            return "the wallet cannot sign transactions; an on-chain transfer needs a Wallet"
        if network not in self._chain().networks:
            return f"no rpc= is given for {network}"
        return None

    # --- preparing

    def prepare(self, terms: Terms, wait_s: float = 30.0) -> SignedTransfer:
        """Sign the transfer with the account's next nonce; nothing is stored, nothing leaves.

        An earlier transfer from the same address is carried to its end first, for *wait_s* seconds
        at most.  Blocks.

        Raises:
            TokenFlowError: it cannot be made now, and why; never ``at_risk``.
            LedgerError: the ledger cannot be read.
        """
        deadline = time.monotonic() + wait_s
        reason = self.possible(terms.network)
        if reason is not None:
            _refuse(reason)
        try:
            return self._prepared(terms, deadline)
        except (EndpointError, ValueError) as error:
            _refuse(str(error))

    def _prepared(self, terms: Terms, deadline: float) -> SignedTransfer:
        if not isinstance(self._signer, Wallet) or self._max_gas_wei is None:
            raise ValueError("no wallet")  # `possible` told more
        if self._signer.address.lower() != terms.payer.lower():
            raise ValueError(f"this wallet is not {terms.payer}")
        nodes = self._nodes(terms.network)
        nonce, first_block = self._next_nonce(nodes, terms, deadline)
        made = Transaction(
            chain_id=terms.chain_id,
            nonce=nonce,
            fees=market_fees(nodes),
            gas=gas_for(nodes, terms),
            to=bytes.fromhex(terms.asset[2:]),
            value=0,
            data=calldata(terms),
        )
        besides = l1_fee(nodes, made)
        self._check_cost(nodes, terms, made.max_gas_wei + besides)
        return sign(self._signer, terms, made, besides_wei=besides, first_block=first_block)

    def _check_cost(self, nodes: Sequence[Node], terms: Terms, cost: int) -> None:
        assert self._max_gas_wei is not None
        if cost > self._max_gas_wei:
            raise ValueError(
                f"gas may cost {cost} wei, more than max_gas_wei={self._max_gas_wei}; raise it to"
                " allow this transfer, or wait for lower fees"
            )
        owned = min(
            node.number("balance", lambda e: e.get_balance(checksum(terms.payer))) for node in nodes
        )
        if owned < cost:
            raise ValueError(
                f"{terms.payer} has {owned} wei on {terms.network} and gas may cost {cost}: send it"
                " some of the chain's own coin"
            )

    def _next_nonce(self, nodes: Sequence[Node], terms: Terms, deadline: float) -> tuple[int, int]:
        """The account's next nonce, when nothing of it waits anywhere; and a block before now."""
        pause = _POLL_S[0]
        while True:
            standing = self._ledger.standing(terms.network, terms.payer)
            if standing.waiting is None:
                nonce, reason = agreed_nonce(nodes, terms.payer)
                if reason is None and nonce > standing.nonce:
                    blocks = [node.number("block", lambda e: e.block_number) for node in nodes]
                    return nonce, max(0, min(blocks) - _REORG_BLOCKS)
                reason = reason or self._used_before(standing, nonce)
            else:
                reason = self._finished(standing.waiting, deadline)
            if reason is not None:
                if time.monotonic() + pause > deadline:
                    raise ValueError(f"{terms.payer} cannot send on {terms.network}: {reason}")
                time.sleep(pause)
                pause = min(pause * 2, _POLL_S[1])

    def _finished(self, earlier: str, deadline: float) -> str | None:
        """One transfer at a time: carry the earlier one to its end, or say why it has none."""
        progress = self.carry(earlier, max(0.0, deadline - time.monotonic()))
        if progress.state != "pending":
            return None
        return f"the transfer of payment {earlier} is still under way ({progress.detail})"

    def _used_before(self, standing: Standing, nonce: int) -> str:
        """The endpoint lags; or the last transfer's block was replaced, and it is sent again."""
        if standing.last is not None:
            self.carry(standing.last, 0)
        return f"the RPC says nonce {nonce}, but {standing.nonce} was used already"

    # --- carrying

    def carry(self, payment_id: str, wait_s: float) -> TransferState:
        """Bring the stored transfer into a block, and tell how that went; *wait_s* seconds at most.

        With 0 it looks once and sends once.  Blocks.  Sends nothing that is not stored.

        Raises:
            LedgerError: nothing is stored, what is stored is not what was reserved, or the ledger
                cannot be read or written.
        """
        deadline, pause = time.monotonic() + wait_s, _POLL_S[0]
        sent_at, failures = float("-inf"), ""
        while True:
            stored = self._stored(payment_id)
            progress = self._looked(stored)
            if progress.state != "pending":
                return progress
            if stored.payment not in MAY_SEND:
                return _waiting(
                    stored, progress, f"the payment is {stored.payment}: nothing is sent"
                )
            if progress.transaction is None and time.monotonic() - sent_at >= _SEND_AGAIN_S:
                failures, sent_at = self._push(stored), time.monotonic()
            elif progress.transaction is None and self._is_stuck(stored):
                failures = self._replaced(stored)
            if time.monotonic() + pause > deadline:
                return _waiting(stored, progress, failures)
            time.sleep(pause)
            pause = min(pause * 1.5, _POLL_S[1])

    def evidence(self, stored: StoredTransfer, *, time_out_s: float = QUESTION_S) -> Verdict:
        """What the confirmed chain proves of a stored transfer.  Blocks, *time_out_s* at most."""
        return evidence(self._chain(), stored, time_out_s=time_out_s)

    def close(self, stored: StoredTransfer, verdict: Verdict) -> TransferState:
        """Write down what was proven, so that the address is free for its next transfer."""
        if isinstance(verdict, Unknown):
            return TransferState(state="pending", transaction=None, detail=verdict.reason)
        at = f"as of block {verdict.block}"
        if isinstance(verdict, Paid):
            return self._closed(stored, "mined", verdict.transaction, f"paid {at}")
        if isinstance(verdict, Reverted):
            return self._closed(stored, "failed", verdict.transaction, f"reverted {at}")
        told = f"another transaction of {stored.terms.payer} used nonce {stored.nonce}, {at}"
        return self._closed(stored, "displaced", None, told)

    def _closed(
        self,
        stored: StoredTransfer,
        state: Literal["mined", "failed", "displaced"],
        transaction: str | None,
        detail: str,
    ) -> TransferState:
        self._mark(stored, state, transaction)
        return TransferState(state=state, transaction=transaction, detail=detail)

    def _mark(self, stored: StoredTransfer, state: Progress, transaction: str | None) -> None:
        if stored.state != state:
            payment_id = stored.terms.payment_id
            self._ledger.close_transfer(payment_id, state, transaction, now_us=self._now_us())

    def _stored(self, payment_id: str) -> StoredTransfer:
        stored = self._ledger.transfer_of(payment_id)
        if stored is None:
            raise LedgerError(f"payment {payment_id} has no stored transfer")
        return stored

    def _looked(self, stored: StoredTransfer) -> TransferState:
        """How far it is.  Pending without a transaction: nothing speaks against sending it."""
        if stored.state in ("failed", "displaced"):
            return TransferState(state=stored.state, transaction=None, detail="as proven before")
        seen = glance(self._chain(), stored, time_out_s=_LOOK_S)
        if not isinstance(seen, Glance):
            return TransferState(state="pending", transaction=None, detail=seen)
        if seen.pays:
            return self._closed(stored, "mined", seen.transaction, "a block has it")
        if seen.ok:
            self._mark(stored, "mined", seen.transaction)
            told = mismatch(stored, seen.transaction)
            return TransferState(state="pending", transaction=seen.transaction, detail=told)
        if seen.used:
            return self._ended(stored, seen)
        self._mark(stored, "open", None)  # also where the block that had it was replaced
        return TransferState(state="pending", transaction=None, detail="no block has it yet")

    def _ended(self, stored: StoredTransfer, seen: Glance) -> TransferState:
        """The nonce is used, and nothing was paid: true only once it is proven at depth."""
        found = self.close(stored, self.evidence(stored, time_out_s=_PROOF_S))
        if found.state != "pending":
            return found
        told = "it was reverted" if seen.transaction else "another transaction used its nonce"
        last = seen.transaction or stored.last.hash
        return TransferState(
            state="pending", transaction=last, detail=f"{told}, not proven yet: {found.detail}"
        )

    def _push(self, stored: StoredTransfer) -> str:
        """Send the latest attempt, or a replacement where that has waited long enough."""
        return self._replaced(stored) if self._is_stuck(stored) else self._send(stored.last)

    def _is_stuck(self, stored: StoredTransfer) -> bool:
        return self._now_us() - stored.last_at > self._stuck_s * SECOND

    def _replaced(self, stored: StoredTransfer) -> str:
        """Sign the same with higher fees, store it, send it; where that may not be, send again."""
        try:
            signed = self._replacement(stored)
        except (EndpointError, ValueError) as error:
            return f"{error}; {self._send(stored.last)}".removesuffix("; ")
        attempt = len(stored.attempts)
        if not self._ledger.add_attempt(signed, attempt, now_us=self._now_us()):
            return ""  # another process was first, or it has ended: look again
        return self._send(signed)

    def _replacement(self, stored: StoredTransfer) -> SignedTransfer:
        terms, nodes = stored.terms, self._nodes(stored.terms.network)
        wallet, limit = self._signer, self._max_gas_wei
        if not isinstance(wallet, Wallet) or wallet.address.lower() != terms.payer.lower():
            raise ValueError("it is stuck, and the wallet that could replace it is not here")
        if len(stored.attempts) >= _ATTEMPTS_MAX:
            raise ValueError(f"it is stuck after {_ATTEMPTS_MAX} attempts")
        old = _own(stored.last)
        made = Transaction(
            chain_id=old.chain_id,
            nonce=old.nonce,
            gas=old.gas,
            to=old.to,
            value=old.value,
            data=old.data,
            fees=old.fees.bumped(market_fees(nodes)),
        )
        besides = l1_fee(nodes, made)
        if limit is None or made.max_gas_wei + besides > limit:
            raise ValueError(
                f"it is stuck, and a replacement may cost {made.max_gas_wei + besides} wei, more"
                f" than max_gas_wei={limit}; raise that, or use nonce {stored.nonce} for another"
                " transaction of this wallet to give it up"
            )
        return sign(wallet, terms, made, besides_wei=besides, first_block=stored.last.first_block)

    def _send(self, signed: SignedTransfer) -> str:
        """Hand the stored bytes to every endpoint; what they answer proves nothing either way."""
        _own(signed)
        failures = []
        for node in self._nodes(signed.terms.network):
            try:
                node.check_chain()
                node.ask("hash", lambda e: e.send_raw_transaction(signed.raw))
            except EndpointError as error:
                failures.append(str(error))
        return "; ".join(failures)

    def _nodes(self, network: str) -> list[Node]:
        chain = self._chain()
        return [Node(chain, network, number) for number in range(chain.count(network))]


def _refuse(reason: str) -> NoReturn:
    raise TokenFlowError(
        f"no on-chain transfer was made: {reason}; nothing was sent", at_risk=False
    ) from None


def _own(signed: SignedTransfer) -> Transaction:
    """The fields of what was stored.

    Raises:
        LedgerError: it does something else than its payment was reserved for.
    """
    try:
        return checked(signed)
    except ValueError as fault:
        raise LedgerError(
            f"the stored transfer of payment {signed.terms.payment_id} is not sent: {fault}"
        ) from None


def _waiting(stored: StoredTransfer, progress: TransferState, failures: str) -> TransferState:
    told = f"{progress.detail} ({failures})" if failures else progress.detail
    last = progress.transaction or stored.last.hash
    return TransferState(state="pending", transaction=last, detail=told)
