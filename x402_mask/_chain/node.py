"""What a network says of nonces, fees and gas, and what takes transactions to it: by web3.

Web3 estimates, encodes and sends, through the bounded exchange of ``_chain.rpc`` in place of its
own provider, which has no limit of size, follows redirects and logs URLs.  Where there are several
endpoints, each is asked.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, TypeVar

from x402_mask._chain.rpc import EndpointError
from x402_mask._chain.transaction import TRANSFER_ABI, Fees
from x402_mask._crypto.eip712 import checksum

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from x402_mask._chain.reader import ChainReader
    from x402_mask._chain.transaction import Transaction
    from x402_mask._ledger.transfers import Terms

T = TypeVar("T")

_CALL_S: Final = 5.0
_GAS_MAX: Final = 30_000_000
_WEI_MAX: Final = 1 << 96
_L1_ORACLE: Final = "0x420000000000000000000000000000000000000F"
"""``GasPriceOracle`` of OP Stack chains, such as Base: what the layer below costs (its specs)."""
_GET_L1_FEE: Final = "49948e0e"


class Node:
    """Web3 on one endpoint, through the bounded exchange."""

    def __init__(self, chain: ChainReader, network: str, number: int) -> None:
        self._chain, self._network, self._number = chain, network, number
        self.web3 = _web3_on()(self._call)

    def ask(self, what: str, question: Callable[[Any], T]) -> T:
        """Put *question* to ``web3.eth``.

        Raises:
            EndpointError: the endpoint refused, failed, or answered what web3 cannot read.
        """
        try:
            return question(self.web3.eth)
        except EndpointError:
            raise
        except Exception as error:  # noqa: BLE001  # web3 meets garbage with errors of any kind
            raise EndpointError(
                f"the RPC's {what} cannot be read ({type(error).__name__})"
            ) from None

    def number(self, what: str, question: Callable[[Any], object]) -> int:
        """The answer to *question*, an amount of wei, gas, blocks or transactions."""
        found = self.ask(what, question)
        if type(found) is not int or not 0 <= found < _WEI_MAX:
            raise EndpointError(f"the RPC's {what} is out of range")
        return found

    def nonce(self, payer: str, block: str) -> int:
        """How many transactions *payer* has sent."""
        return self.number("nonce", lambda e: e.get_transaction_count(checksum(payer), block))

    def base_fee(self) -> int | None:
        """Wei for one unit of gas, burnt; ``None`` on a chain without (EIP-1559)."""
        block = self.ask("block", lambda e: dict(e.get_block("latest")))
        found = block.get("baseFeePerGas")
        return None if found is None else self.number("base fee", lambda _: found)

    def check_chain(self) -> None:
        """Refuse an endpoint of another network."""
        wanted = int(self._network.partition(":")[2])
        found = self.number("chain id", lambda e: e.chain_id)
        if found != wanted:
            raise EndpointError(f"an RPC endpoint of {self._network} serves chain {found}")

    def _call(self, method: str, params: Sequence[Any]) -> Any:
        return self._chain.ask(
            self._network, lambda endpoints: endpoints[self._number].call(method, *params), _CALL_S
        )


@lru_cache(maxsize=1)
def _web3_on() -> Callable[[Callable[[str, Sequence[Any]], Any]], Any]:
    """A maker of web3 objects that call by the given function.  Web3 takes a second to import."""
    from web3 import Web3
    from web3.providers.base import BaseProvider

    class Bounded(BaseProvider):  # type: ignore[misc]  # web3 has no stubs that are read here
        def __init__(self, call: Callable[[str, Sequence[Any]], Any]) -> None:
            super().__init__()
            self._call = call

        def make_request(self, method: str, params: Any) -> Any:
            return {"jsonrpc": "2.0", "id": 1, "result": self._call(method, params)}

    return lambda call: Web3(Bounded(call), middleware=[])


def agreed_nonce(nodes: Sequence[Node], payer: str) -> tuple[int, str | None]:
    """The next nonce, and why it may not be used yet."""
    found = set()
    for node in nodes:
        node.check_chain()
        found |= {node.nonce(payer, "latest"), node.nonce(payer, "pending")}
    if len(found) == 1:
        return found.pop(), None
    return min(found), (
        f"nonces {min(found)} to {max(found)} are under way, sent by another program, or the RPC"
        " endpoints disagree; give this payer a wallet of its own"
    )


def market_fees(nodes: Sequence[Node]) -> Fees:
    """What a block takes now: twice the base fee, for it may rise, and the tip."""
    bases = [node.base_fee() for node in nodes]
    if None in bases:
        price = max(node.number("gas price", lambda e: e.gas_price) for node in nodes)
        return Fees(max_fee=price + price // 4, tip=None)
    base = max(base for base in bases if base is not None)
    tip = max(1, min(_tip(node, base) for node in nodes))
    return Fees(max_fee=2 * base + tip, tip=tip)


def _tip(node: Node, base: int) -> int:
    try:
        return node.number("tip", lambda e: e.max_priority_fee)
    except EndpointError:  # not every node knows the method
        return base // 8


def gas_for(nodes: Sequence[Node], terms: Terms) -> int:
    """Units of gas, with a quarter to spare.

    Raises:
        EndpointError: the transfer would fail: the wallet has too little of the token, or may not
            send.
    """
    data = _encoded(nodes[0], terms)
    call = {"from": checksum(terms.payer), "to": checksum(terms.asset), "data": data}
    found = max(node.number("gas estimate", lambda e: e.estimate_gas(call)) for node in nodes)
    if found > _GAS_MAX:
        raise EndpointError(f"the RPC estimates {found} gas for a transfer")
    return found + found // 4


def _encoded(node: Node, terms: Terms) -> str:
    contract = node.web3.eth.contract(address=checksum(terms.asset), abi=TRANSFER_ABI)
    return str(contract.encode_abi("transfer", args=[checksum(terms.pay_to), terms.amount]))


def l1_fee(nodes: Sequence[Node], made: Transaction) -> int:
    """Wei that the layer below may cost besides gas: twice what it costs now, or 0 without one.

    It is asked with bytes that nobody signed: what is not stored yet may not leave.
    """
    stand_in = made.stand_in()
    padded = stand_in.ljust(-(-len(stand_in) // 32) * 32, b"\0")
    data = f"0x{_GET_L1_FEE}{32:064x}{len(stand_in):064x}{padded.hex()}"
    call = {"to": _L1_ORACLE, "data": data}
    found = [node.ask("layer 1 fee", lambda e: bytes(e.call(call))) for node in nodes]
    if any(len(word) not in (0, 32) for word in found):
        raise EndpointError("the RPC's layer 1 fee is out of range")
    return 2 * max(int.from_bytes(word, "big") for word in found)
