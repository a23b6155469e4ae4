"""Random purchases on a real chain with everything going wrong, and the comparison afterwards.

One buyer, restarted and killed in simulation, buys from sellers who settle at once, late, twice,
never, and lie about it.  Time is the chain's: each block is a second, and the buyer's clock reads
the last block.  What is true is only what the chain says in the end.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from itertools import count
from pathlib import Path
from random import Random
from typing import Any

import httpx
from eth_account.signers.local import LocalAccount

from tests.support.chain import DOMAIN, NETWORK, USDC, Chain
from tests.support.faults import (
    Bug,
    Cancelling,
    CutSQLite,
    Points,
    Strike,
    effects_cut,
    fault,
    raising,
    rows,
)
from tests.support.seller import (
    Proof,
    challenge,
    decode_proof,
    encode,
    offer,
)
from x402_mask import AsyncClient, Cap, Client, Payer, PaymentError, Wallet

ORIGIN = "http://127.0.0.1:9"
BATCH = 50
MARGIN_BLOCKS = 12
_TRANSFER_CALL = "0xcf092995"  # transferWithAuthorization(..., bytes signature)
_CANCEL_CALL = "0xb7b72899"  # cancelAuthorization(address,bytes32,bytes)
_USED = "0x98de503528ee59b575ef0c0a2576a82497bfc029a5685b209e9ec333479b10a5"
_MOVED = "0xddf252ad1be2c89b69c2b068fc378daa952ba7f163c4a11628f55a4df523b3ef"


# --- the chain, driven block by block -------------------------------------------------------------


class Blocks:
    """A `Chain` whose blocks come only when asked for, a second apart."""

    def __init__(self, chain: Chain) -> None:
        self.chain = chain
        host, _, port = chain.url.removeprefix("http://").partition(":")
        self._http = http.client.HTTPConnection(host, int(port), timeout=20)
        self._ids = count(1)
        self.rpc("evm_setAutomine", False)
        self.rpc("anvil_setBlockTimestampInterval", 1)
        self.now = chain.now()

    def rpc(self, method: str, *params: Any) -> Any:
        """One JSON-RPC call.

        Raises:
            RuntimeError: the node answered with an error.
        """
        call = {"jsonrpc": "2.0", "id": next(self._ids), "method": method, "params": params}
        self._http.request("POST", "/", json.dumps(call), {"Content-Type": "application/json"})
        answer = json.loads(self._http.getresponse().read())
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    def mine(self, blocks: int = 1) -> None:
        """Mine what is waiting, then empty blocks."""
        self.rpc("evm_mine")
        if blocks > 1:
            self.rpc("anvil_mine", hex(blocks - 1), "0x1")
        self.now = int(self.rpc("eth_getBlockByNumber", "latest", False)["timestamp"], 16)

    @contextmanager
    def mined_at_once(self) -> Iterator[Chain]:
        """The chain with its own way of mining, for the rig's own transactions."""
        self.rpc("evm_setAutomine", True)
        try:
            yield self.chain
        finally:
            self.rpc("evm_setAutomine", False)
            self.mine()

    def until(self, at: int) -> None:
        """Let the next block carry the time *at*, if that is still to come."""
        if at > self.now:
            self.rpc("evm_setNextBlockTimestamp", at)

    def submit(self, proof: Proof) -> str:
        """Send the authorization in *proof* to the token; mined with the next block."""
        said = proof.authorization
        words = [int(said[name], 16) for name in ("from", "to")]
        words += [int(said[name]) for name in ("value", "validAfter", "validBefore")]
        words += [int(said["nonce"], 16), 7 * 32, 65]
        signature = str((proof.document or {})["payload"]["signature"])[2:]
        data = (
            _TRANSFER_CALL + "".join(f"{word:064x}" for word in words) + signature.ljust(192, "0")
        )
        sender = self.chain._admin
        call = {"from": sender, "to": USDC, "data": data, "gas": "0x30d40"}
        return str(self.rpc("eth_sendTransaction", call))

    def cancel(self, account: LocalAccount, nonce: str) -> str:
        """Send the payer's own cancellation of *nonce*; fails on chain if it was used before."""
        message = {"authorizer": account.address, "nonce": bytes.fromhex(nonce[2:])}
        types = {
            "CancelAuthorization": [
                {"name": "authorizer", "type": "address"},
                {"name": "nonce", "type": "bytes32"},
            ]
        }
        signed = account.sign_typed_data(DOMAIN, types, message).signature
        words = f"{int(account.address, 16):064x}{nonce[2:]}{3 * 32:064x}{65:064x}"
        data = _CANCEL_CALL + words + signed.hex().ljust(192, "0")
        call = {"from": self.chain._admin, "to": USDC, "data": data, "gas": "0x30d40"}
        return str(self.rpc("eth_sendTransaction", call))

    def logs(self, topics: Sequence[str | None], first: int = 0) -> list[dict[str, Any]]:
        """The token's logs with these topics."""
        span = {"fromBlock": hex(first), "toBlock": "latest"}
        found: list[dict[str, Any]] = self.rpc(
            "eth_getLogs", {**span, "address": USDC, "topics": list(topics)}
        )
        return found

    def close(self) -> None:
        """Close the connection."""
        self._http.close()


# --- the buyer's process, simulated ---------------------------------------------------------------


class Died(BaseException):
    """The simulated process is dead: nothing it does any more has any effect."""


class Life:
    """One life of the buyer's process."""

    def __init__(self) -> None:
        self.name = secrets.token_hex(8)
        self.over = False


class MortalSQLite(CutSQLite):
    """A ledger of a simulated process: its owner is a life, not this test's process."""

    def __init__(self, path: Path, life: Life, lives: dict[str, Life]) -> None:
        super().__init__(path, Points())
        self.life, self.lives = life, lives

    def _new_owner(self) -> str:
        return self.life.name

    def _is_alive(self, db: Any, owner: str) -> bool:
        return not self.lives[owner].over

    def _transaction(self, wait_s: float, *, write: bool = True, durable: bool = False) -> Any:
        if self.life.over:
            raise Died
        return super()._transaction(wait_s, write=write, durable=durable)


# --- the sellers ----------------------------------------------------------------------------------


@dataclass
class Deed:
    """What a seller means to do with a proof, later."""

    proof: Proof
    when: str

    @property
    def valid_before(self) -> int:
        """When the authorization ends, Unix seconds."""
        return int(self.proof.authorization["validBefore"])


class Stall:
    """Answers requests without a network, and settles as its mood has it."""

    MOODS = (
        *("honest",) * 6,
        "silent-then-settled",
        "silent-never",
        "lost-before",
        "lost-after",
        "lost-late",
        "failed-before",
        "failed-after",
        "failed-after-told",
        "asked-again",
        "asked-again-settled",
        "double-first",
        "double-second",
        "double-lost",
        "late",
        "late",
        "too-late",
        "cancelled",
        "cancelled-then-tried",
        "claims-nothing-settles",
        "claims-garbage",
        "claims-anothers",
        "claims-anothers-late",
        "claims-failed",
        "denies-settled",
        "wrong-amount-told",
        "conflict",
        "redirect-settled",
    )

    def __init__(self, blocks: Blocks, chance: Random, cancel: Callable[[str], None]) -> None:
        self.blocks, self.chance, self.cancel = blocks, chance, cancel
        self.deeds: list[Deed] = []
        self.seen: dict[str, Proof] = {}
        self.moods: Counter[str] = Counter()
        self.last_second: set[str] = set()
        self.too_late: set[str] = set()
        self.last_transaction = "0x" + "ab" * 32
        self.last_failed = "0x" + "cd" * 32

    def answer(self, request: httpx.Request) -> httpx.Response:
        """Answer one request, or raise what the network would."""
        value = request.headers.get("payment-signature")
        if value is None:
            return self._asks(request)
        proof = decode_proof("payment-signature", value)
        self.seen[str(proof.authorization["nonce"])] = proof
        mood = self.chance.choice(self.MOODS)
        self.moods[mood] += 1
        method = getattr(self, "_" + mood.replace("-", "_"))
        answer: httpx.Response = method(request, proof)
        return answer

    def _asks(self, request: httpx.Request) -> httpx.Response:
        amount = request.url.params["amount"]
        document = challenge(offer(amount, maxTimeoutSeconds=self.chance.choice([20, 60, 120])))
        return httpx.Response(402, headers={"PAYMENT-REQUIRED": encode(document)}, content=b"{}")

    def _settle(self, proof: Proof, *, mine: bool = True) -> str:
        transaction = self.blocks.submit(proof)
        if mine:
            self.blocks.mine()
        return transaction

    def _told(self, status: int, proof: Proof, transaction: str, **changes: Any) -> httpx.Response:
        document = {
            "success": True,
            "transaction": transaction,
            "network": NETWORK,
            "payer": proof.authorization["from"],
            **changes,
        }
        headers = {"PAYMENT-RESPONSE": encode(document)}
        return httpx.Response(status, headers=headers, content=b"goods")

    def _later(self, proof: Proof, when: str) -> None:
        self.deeds.append(Deed(proof, when))

    # moods

    def _honest(self, request: httpx.Request, proof: Proof) -> httpx.Response:
        self.last_transaction = self._settle(proof)
        return self._told(200, proof, self.last_transaction)

    def _silent_then_settled(self, request: httpx.Request, proof: Proof) -> httpx.Response:
        self._later(proof, "soon")
        return httpx.Response(200, content=b"goods")

    def _silent_never(self, request: httpx.Request, proof: Proof) -> httpx.Response:
        return httpx.Response(200, content=b"goods")

    def _lost_before(self, request: httpx.Request, proof: Proof) -> httpx.Response:
        raise httpx.ReadError("lost before it was settled", request=request)

    def _lost_after(self, request: httpx.Request, proof: Proof) -> httpx.Response:
        self._settle(proof)
        raise httpx.ReadTimeout("lost after it was settled", request=request)

    def _lost_late(self, request: httpx.Request, proof: Proof) -> httpx.Response:
        self._later(proof, "late")
        raise httpx.RemoteProtocolError("lost, settled late", request=request)

    def _failed_before(self, request: httpx.Request, proof: Proof) -> httpx.Response:
        return httpx.Response(503)

    def _failed_after(self, request: httpx.Request, proof: Proof) -> httpx.Response:
        self._settle(proof)
        return httpx.Response(500)

    def _failed_after_told(self, request: httpx.Request, proof: Proof) -> httpx.Response:
        return self._told(502, proof, self._settle(proof))

    def _asked_again(self, request: httpx.Request, proof: Proof) -> httpx.Response:
        return self._asks(request)

    def _asked_again_settled(self, request: httpx.Request, proof: Proof) -> httpx.Response:
        self._settle(proof)
        return self._asks(request)

    def _double_first(self, request: httpx.Request, proof: Proof) -> httpx.Response:
        first = self._settle(proof, mine=False)
        self.last_failed = self._settle(proof)
        return self._told(200, proof, first)

    def _double_second(self, request: httpx.Request, proof: Proof) -> httpx.Response:
        self._settle(proof)
        self.last_failed = self._settle(proof)
        return self._told(200, proof, self.last_failed)

    def _double_lost(self, request: httpx.Request, proof: Proof) -> httpx.Response:
        self._settle(proof)
        self._later(proof, "soon")
        raise httpx.ReadError("lost", request=request)

    def _late(self, request: httpx.Request, proof: Proof) -> httpx.Response:
        self._later(proof, "late")
        return httpx.Response(self.chance.choice([200, 202, 504]), content=b"goods")

    def _too_late(self, request: httpx.Request, proof: Proof) -> httpx.Response:
        self._later(proof, "too-late")
        return httpx.Response(self.chance.choice([200, 504]), content=b"goods")

    def _cancelled(self, request: httpx.Request, proof: Proof) -> httpx.Response:
        self._later(proof, "cancel")
        return httpx.Response(503)

    def _cancelled_then_tried(self, request: httpx.Request, proof: Proof) -> httpx.Response:
        self._later(proof, "cancel")
        self._later(proof, "late")
        return httpx.Response(200, content=b"goods")

    def _claims_nothing_settles(self, request: httpx.Request, proof: Proof) -> httpx.Response:
        return self._told(200, proof, "0x" + secrets.token_hex(32))

    def _claims_garbage(self, request: httpx.Request, proof: Proof) -> httpx.Response:
        return self._told(200, proof, self.chance.choice(["", "0x", "yes", "0x" + "zz" * 32]))

    def _claims_anothers(self, request: httpx.Request, proof: Proof) -> httpx.Response:
        return self._told(200, proof, self.last_transaction)

    def _claims_anothers_late(self, request: httpx.Request, proof: Proof) -> httpx.Response:
        self._later(proof, "late")
        return self._told(200, proof, self.last_transaction)

    def _claims_failed(self, request: httpx.Request, proof: Proof) -> httpx.Response:
        return self._told(200, proof, self.last_failed)

    def _denies_settled(self, request: httpx.Request, proof: Proof) -> httpx.Response:
        return self._told(402, proof, self._settle(proof), success=False, errorReason="expired")

    def _wrong_amount_told(self, request: httpx.Request, proof: Proof) -> httpx.Response:
        return self._told(200, proof, self._settle(proof), amount="1")

    def _conflict(self, request: httpx.Request, proof: Proof) -> httpx.Response:
        return httpx.Response(409)

    def _redirect_settled(self, request: httpx.Request, proof: Proof) -> httpx.Response:
        answer = self._told(303, proof, self._settle(proof))
        answer.headers["location"] = "/elsewhere"
        return answer

    # later

    def keep_promises(self) -> None:
        """Do what was put off, each at its time."""
        deeds, self.deeds = self.deeds, []
        for deed in deeds:
            if deed.when == "cancel":
                self.cancel(str(deed.proof.authorization["nonce"]))
            elif deed.when == "soon":
                self.blocks.submit(deed.proof)
        self.blocks.mine()
        timed = [
            (deed.valid_before - (deed.when == "late"), deed)
            for deed in deeds
            if deed.when in ("late", "too-late")
        ]
        for at in sorted({at for at, _ in timed}):
            self.blocks.until(at)
            # If time has passed already, "late" is as good as "too late".
            tried = self.last_second if at > self.blocks.now else self.too_late
            for its, deed in timed:
                if its == at:
                    kept = self.too_late if deed.when == "too-late" else tried
                    kept.add(self.blocks.submit(deed.proof))
            self.blocks.mine()


class Wire(httpx.BaseTransport):
    """The buyer's network: points on either side of the stall."""

    def __init__(self, stall: Stall, points: Points) -> None:
        self.stall, self.points = stall, points

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send."""
        self.points.reach("send:before")
        answer = self.stall.answer(request)
        self.points.reach("send:after")
        return answer


class AsyncWire(httpx.AsyncBaseTransport):
    """:class:`Wire`, async."""

    def __init__(self, stall: Stall, points: Points) -> None:
        self.stall, self.points = stall, points

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send."""
        self.points.reach("send:before")
        await asyncio.sleep(0)
        answer = self.stall.answer(request)
        self.points.reach("send:after")
        await asyncio.sleep(0)
        return answer


# --- the buyer ------------------------------------------------------------------------------------


class Buyer:
    """A payer on one ledger file, whose process is restarted now and then."""

    def __init__(self, blocks: Blocks, path: Path, chance: Random) -> None:
        self.blocks, self.path, self.chance = blocks, path, chance
        self.account = blocks_account(blocks)
        self.stall = Stall(blocks, Random(chance.random()), self._cancel)
        self.lives: dict[str, Life] = {}
        self.restarts = self.cuts = self.calls = 0
        self.runner = asyncio.Runner()
        self.points = Points()
        self._begin()

    def _begin(self) -> None:
        self.life = Life()
        self.lives[self.life.name] = self.life
        self.ledger = MortalSQLite(self.path, self.life, self.lives)
        self.payer = Payer(
            Wallet.from_key(bytes(self.account.key)),
            caps=[Cap("1000000", per="total"), Cap("8", per="hour")],
            origins=[ORIGIN],
            ledger=self.ledger,
            rpc={NETWORK: self.blocks.chain.url},
            clock=lambda: float(self.blocks.now),
            breaker_after=None,
        )

    def restart(self) -> None:
        """The process is gone, whatever it was doing; another begins."""
        self.life.over = True
        self.payer.close()
        self.restarts += 1
        self._begin()

    def _cancel(self, nonce: str) -> None:
        self.blocks.cancel(self.account, nonce)

    def call(self, operation: int, amount: int, *, cut: bool) -> bool:
        """Make one call, cut at a random point perhaps; whether a 2xx came back."""
        self.calls += 1
        url = f"{ORIGIN}/op/{operation}?amount={amount}"
        make = self._async if self.chance.random() < 0.3 else self._sync
        try:
            return make(url, cut=cut)
        except (PaymentError, httpx.TransportError, KeyboardInterrupt, Died, Bug):
            return False
        finally:
            self.points.armed = False
            self.cuts += bool(self.points.struck)
            if self.life.over:
                self.restart()

    def _sync(self, url: str, *, cut: bool) -> bool:
        strike = self.chance.choice([self._die, self._die, fault, raising(KeyboardInterrupt)])
        self._arm(strike if cut else None)
        wire = Wire(self.stall, self.points)
        with effects_cut(self.points), Client(self.payer, transport=wire) as client:
            return client.get(url).is_success

    def _async(self, url: str, *, cut: bool) -> bool:
        cancelling = Cancelling()
        self._arm(self.chance.choice([self._die, fault, cancelling]) if cut else None)

        async def call() -> bool:
            wire = AsyncWire(self.stall, self.points)
            async with AsyncClient(self.payer, transport=wire) as client:
                task = asyncio.ensure_future(client.get(url))
                cancelling.loop, cancelling.task = asyncio.get_running_loop(), task
                try:
                    return (await task).is_success
                except asyncio.CancelledError:
                    return False

        with effects_cut(self.points):
            return self.runner.run(call())

    def _arm(self, strike: Strike | None) -> None:
        at = () if strike is None else (self.chance.randint(1, 50),)
        self.points = self.ledger.points = Points(*at, strike=strike or fault)

    def _die(self, name: str) -> None:
        self.life.over = True
        raise Died

    def close(self) -> None:
        """Close the payer and the loop."""
        self.payer.close()
        self.runner.close()


def blocks_account(blocks: Blocks) -> Any:
    """A wallet with enough money for every operation."""
    with blocks.mined_at_once() as chain:
        return chain.account(usdc=10**12)


# --- the run, and the comparison ------------------------------------------------------------------


@dataclass(frozen=True)
class Report:
    """The figures of a run; money in atomic USDC."""

    operations: int
    calls: int
    cuts: int
    restarts: int
    payments: int
    states: dict[str, int]
    settled: int
    moved: int
    proofs_seen: int
    settled_late: int
    cancelled: int
    blocks: int
    seconds: float
    moods: dict[str, int]

    def __str__(self) -> str:
        return ", ".join(f"{name} {value}" for name, value in vars(self).items())


def run(chain: Chain, path: Path, operations: int, seed: int, *, most_s: float) -> Report:
    """Make so many random operations; check the ledger against the chain after each batch."""
    began, chance, blocks = time.monotonic(), Random(seed), Blocks(chain)
    buyer = Buyer(blocks, path, chance)
    left_open: list[tuple[int, int]] = []
    try:
        for first in range(0, operations, BATCH):
            assert time.monotonic() - began < most_s, f"{first} operations in {most_s} s"
            wanted = [
                (n, chance.randint(1, 20_000)) for n in range(first, min(first + BATCH, operations))
            ]
            left_open = _batch(buyer, [*left_open, *wanted])
        _settle_down(buyer)
        return _compare(buyer, operations, time.monotonic() - began)
    finally:
        buyer.close()
        blocks.close()


def _batch(buyer: Buyer, wanted: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Buy, try again what failed, let the sellers settle, reconcile; what is bought again later."""
    chance, failed = buyer.chance, []
    for operation, amount in wanted:
        cut = chance.random() < 0.25
        for _ in range(chance.choice([1, 1, 2, 3])):
            if buyer.call(operation, amount, cut=cut):
                break
            cut = False
        else:
            failed.append((operation, amount))
        if chance.random() < 0.01:
            buyer.restart()
    _settle_down(buyer)
    return chance.sample(failed, len(failed) // 4)


def _settle_down(buyer: Buyer) -> None:
    """After the sellers did what they would, and past every expiry: nothing is left unknown."""
    blocks = buyer.blocks
    buyer.stall.keep_promises()
    early = buyer.payer.reconcile() if buyer.chance.random() < 0.2 else []
    blocks.until(blocks.now + 200)
    blocks.mine(MARGIN_BLOCKS + 2)
    done = buyer.payer.reconcile()
    _check_resolved(buyer, early, done)


def _check_resolved(buyer: Buyer, *answers: Sequence[Any]) -> None:
    """What was resolved is on the ledger as told, and nothing waits any more."""
    states = dict(rows(buyer.path, "SELECT id, state FROM payments"))
    for answer in answers[-1]:
        assert states[answer.payment_id] == answer.state, answer
    waiting = {n: state for n, state in states.items() if state in ("held", "reserved")}
    assert not waiting, (waiting, answers[-1])
    assert not buyer.payer.reconcile(), "resolved twice"


def _compare(buyer: Buyer, operations: int, seconds: float) -> Report:
    """The ledger is the chain, payment by payment and to the unit."""
    blocks, address = buyer.blocks, buyer.account.address.lower()
    word = "0x" + "0" * 24 + address[2:]
    used = {log["topics"][2]: log["transactionHash"] for log in blocks.logs([_USED, word])}
    late = len(buyer.stall.last_second & set(used.values()))
    assert not buyer.stall.too_late & set(used.values()), "taken by the chain too late"
    moves = [int(log["data"], 16) for log in blocks.logs([_MOVED, word])]
    sql = "SELECT id, state, amount, nonce, trans, micro FROM payments"
    states: Counter[str] = Counter()
    settled = 0
    for payment, state, amount, nonce, transaction, micro in rows(buyer.path, sql):
        states[state] += 1
        assert int(amount) == micro
        if state == "settled":
            settled += int(amount)
            assert used.pop(nonce) == transaction, payment
        else:
            assert state in ("void", "released") and nonce not in used, (payment, state)
    assert not used, "the chain moved money that the ledger does not know"
    sql = "SELECT COUNT(*) FROM payments WHERE note='cancelled on chain'"
    (cancelled,) = rows(buyer.path, sql)[0]
    balance = blocks.chain.balance(buyer.account.address)
    assert settled == sum(moves) == 10**12 - balance
    spend = buyer.payer.spend()[0]
    assert (spend.settled, spend.held) == (Decimal(settled) / 10**6, 0)
    return Report(
        operations=operations,
        calls=buyer.calls,
        cuts=buyer.cuts,
        restarts=buyer.restarts,
        payments=states.total(),
        states=dict(states),
        settled=settled,
        moved=sum(moves),
        proofs_seen=len(buyer.stall.seen),
        settled_late=late,
        cancelled=cancelled,
        blocks=blocks.chain.block(),
        seconds=round(seconds, 1),
        moods=dict(buyer.stall.moods),
    )
