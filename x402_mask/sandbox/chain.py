"""Settlement on a real chain: the sandbox as its own facilitator, through web3."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Any

from x402_mask.sandbox.verify import Authorization, Rejected

if TYPE_CHECKING:
    from x402_mask.sandbox.settings import SandboxSettings

logger = logging.getLogger(__name__)


def _function(name: str, output: str | None, **inputs: str) -> dict[str, Any]:
    return {
        "type": "function",
        "name": name,
        "stateMutability": "view" if output else "nonpayable",
        "inputs": [{"name": n.rstrip("_"), "type": t} for n, t in inputs.items()],
        "outputs": [{"name": "", "type": output}] if output else [],
    }


TOKEN_ABI = [
    _function("balanceOf", "uint256", account="address"),
    _function("authorizationState", "bool", authorizer="address", nonce="bytes32"),
    _function(
        "transferWithAuthorization",
        None,
        from_="address",
        to="address",
        value="uint256",
        validAfter="uint256",
        validBefore="uint256",
        nonce="bytes32",
        v="uint8",
        r="bytes32",
        s="bytes32",
    ),
    {
        "type": "event",
        "name": "Transfer",
        "anonymous": False,
        "inputs": [
            {"name": "from", "type": "address", "indexed": True},
            {"name": "to", "type": "address", "indexed": True},
            {"name": "value", "type": "uint256", "indexed": False},
        ],
    },
]


class SettlementFailed(Exception):
    """Settlement was tried and not seen to succeed; *transaction* is ``""`` if none was sent."""

    def __init__(self, reason: str, transaction: str = "") -> None:
        super().__init__(reason, transaction)
        self.reason = reason
        self.transaction = transaction


class Chain:
    """Sends authorizations to the token contract and believes only receipts. Thread-safe."""

    def __init__(self, settings: SandboxSettings) -> None:
        # Imported here: web3 takes about a second to import, and only --rpc needs it.
        from eth_account import Account
        from web3 import Web3

        self._settings = settings
        # web3 keeps a session for every thread and closes none: leave no connection open in them.
        headers = {"Content-Type": "application/json", "Connection": "close"}
        self._web3 = Web3(Web3.HTTPProvider(settings.rpc, {"headers": headers}))
        self._token: Any = self._web3.eth.contract(
            address=Web3.to_checksum_address(settings.asset), abi=TOKEN_ABI
        )
        self._sender = Account.from_key(settings.facilitator_key)
        self._sent: dict[tuple[str, str], bytes] = {}
        self._own: set[str] = set()
        self._busy: set[tuple[str, str]] = set()
        self._lock = threading.Lock()

    def settle(self, paid: Authorization) -> str:
        """Settle *paid* and return the transaction hash; blocks until the receipt is there.

        Raises `Rejected` when it cannot be settled (nothing was sent), `SettlementFailed` when it
        was tried. Calling again for a pending transaction waits for that one.
        """
        from web3.exceptions import Web3Exception

        key = (paid.payer.lower(), paid.nonce)
        with self._lock:
            if key in self._busy:
                raise Rejected("duplicate_settlement")
            self._busy.add(key)
        try:
            self._send(key, paid)
            return self._confirm(key, paid)
        except (Rejected, SettlementFailed):
            raise
        except (Web3Exception, OSError, ValueError) as error:
            logger.warning("settlement failed: %s", type(error).__name__)
            raise SettlementFailed("unexpected_settle_error", self._hash(key)) from error
        finally:
            with self._lock:
                self._busy.discard(key)

    def _hash(self, key: tuple[str, str]) -> str:
        """The hash of what was sent for *key*, ``""`` if nothing was."""
        raw = self._sent.get(key)
        return self._web3.to_hex(self._web3.keccak(raw)) if raw else ""

    def _send(self, key: tuple[str, str], paid: Authorization) -> None:
        if key in self._sent:
            self._broadcast(self._sent[key])
            return
        payer = self._web3.to_checksum_address(paid.payer)
        nonce = bytes.fromhex(paid.nonce[2:])
        if self._token.functions.authorizationState(payer, nonce).call():
            raise Rejected("invalid_exact_evm_nonce_already_used")
        if self._token.functions.balanceOf(payer).call() < paid.value:
            raise Rejected("invalid_exact_evm_insufficient_balance")
        r, s, v = paid.signature[:32], paid.signature[32:64], paid.signature[64]
        call = self._token.functions.transferWithAuthorization(
            payer,
            self._web3.to_checksum_address(paid.pay_to),
            *(paid.value, paid.valid_after, paid.valid_before, nonce, v, r, s),
        )
        with self._lock:  # one at a time: two transactions must not take the same account nonce
            raw = self._signed(call)
            self._sent[key] = raw  # before it leaves, so a lost answer is never sent anew
            self._own.add(self._hash(key))
            self._broadcast(raw)

    def _broadcast(self, raw: bytes) -> None:
        from web3.exceptions import TransactionNotFound

        try:
            self._web3.eth.get_transaction(self._web3.keccak(raw))
        except TransactionNotFound:
            self._web3.eth.send_raw_transaction(raw)

    def _signed(self, call: Any) -> bytes:
        from web3.exceptions import ContractLogicError

        sender = self._sender.address
        count = self._web3.eth.get_transaction_count(sender, "pending")
        try:
            fields = call.build_transaction(
                {"from": sender, "nonce": count, "chainId": self._settings.chain_id}
            )
        except ContractLogicError as error:
            reason = "invalid_exact_evm_transaction_simulation_failed"
            raise Rejected(reason, str(error)) from error
        return bytes(self._sender.sign_transaction(fields).raw_transaction)

    def _confirm(self, key: tuple[str, str], paid: Authorization) -> str:
        from hexbytes import HexBytes
        from web3.exceptions import TimeExhausted

        transaction = self._hash(key)
        try:
            receipt = self._web3.eth.wait_for_transaction_receipt(
                HexBytes(transaction),
                timeout=self._settings.settle_timeout,
                poll_latency=0.1,
            )
        except TimeExhausted as error:
            raise SettlementFailed("settlement_pending", transaction) from error
        moved = self._moved(receipt, paid)
        del self._sent[key]  # it is mined: from now on the chain knows what became of it
        if receipt["status"] != 1:
            raise SettlementFailed("transaction_failed", transaction)
        if not moved:
            raise SettlementFailed("invalid_exact_evm_transfer_event_mismatch", transaction)
        return transaction

    def _moved(self, receipt: Any, paid: Authorization) -> bool:
        from web3.logs import DISCARD

        events = self._token.events.Transfer().process_receipt(receipt, errors=DISCARD)
        wanted = (paid.payer.lower(), paid.pay_to.lower(), paid.value)
        return any(
            event["address"].lower() == self._settings.asset.lower()
            and (a["from"].lower(), a["to"].lower(), a["value"]) == wanted
            for event in events
            for a in [event["args"]]
        )

    def height(self) -> int:
        """The number of the latest block."""
        return int(self._web3.eth.block_number)

    def transfers(self, pay_to: str, amount: int, first_block: int) -> list[str]:
        """Hashes of others' transactions since *first_block* that moved *amount* to *pay_to*."""
        logs = self._token.events.Transfer().get_logs(
            from_block=first_block,
            argument_filters={"to": self._web3.to_checksum_address(pay_to)},
        )
        found = (log["transactionHash"] for log in logs if log["args"]["value"] == amount)
        return [t for t in map(self._web3.to_hex, found) if t not in self._own]
