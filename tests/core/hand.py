"""Drives a conversation by hand: every effect gets a name, and can be made to fail."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from typing import Any

from eth_account import Account

from tests.support.seller import Hit, challenge, decode_proof, encode, offer, settlement
from x402_mask import Cap, MemoryLedger, Payer, Wallet
from x402_mask._flow.conversation import converse
from x402_mask._flow.effects import (
    Ask,
    Checkpoint,
    Consult,
    Effect,
    Fingerprint,
    ReadBody,
    Record,
    Reply,
    Sleep,
)
from x402_mask._flow.records import Call, CallState, Verdict
from x402_mask._payer import buyer_of

KEY = "11" * 32
SHOP = "https://shop.example"
URL = SHOP + "/paid"


LEDGER_CALLS = frozenset(
    {
        "view",
        "spend",
        "foresee",
        "denied_for",
        "deny",
        "reserve",
        "hold",
        "claim",
        "finish",
        "release",
        "reopen",
        "note_refusal",
        "unnamed",
    }
)


class Signer:
    """An external wallet that counts."""

    def __init__(self) -> None:
        self.account = Account.from_key(KEY)
        self.address: str = self.account.address
        self.calls = 0

    def sign_typed_data(self, domain: Any, types: Any, message: Any) -> Any:
        """As eth-account does."""
        self.calls += 1
        return self.account.sign_typed_data(domain, types, message).signature


def a_trip(origin: str = SHOP) -> CallState:
    """What the hops of a call share."""
    return CallState(origin=origin, url=origin + "/paid")


def asked(*offers: Any, status: int = 402, **more: Any) -> Reply:
    """A 402 with a challenge in its header."""
    header = encode(challenge(*(offers or (offer(),)), **more))
    return Reply(status=status, url=URL, headers={"payment-required": [header]})


def answered(status: int = 200, *, settled: bool = True, **changes: Any) -> Any:
    """What the seller makes of a proof."""

    def reply(proof: tuple[str, str]) -> Reply:
        if not settled:
            return Reply(status=status, url=URL, headers={})
        hit = Hit(method="GET", target="/", headers=[proof], body=b"", connection=0, began=0)
        _, value = settlement(hit, **changes)
        return Reply(status=status, url=URL, headers={"payment-response": [value]})

    return reply


def names_in(call: Any) -> Iterator[str]:
    """The attributes that a lambda, or one that it calls, takes of anything."""
    yield from call.__code__.co_names
    for cell in call.__closure__ or ():
        if hasattr(cell.cell_contents, "__code__"):
            yield from names_in(cell.cell_contents)


def name_of(effect: Effect) -> str:
    """What an effect is called in a transcript."""
    match effect:
        case Ask(proof):
            return "ask" if proof is None else "ask+proof"
        case ReadBody():
            return "read"
        case Fingerprint():
            return "fingerprint"
        case Record(call):
            return next(name for name in names_in(call) if name in LEDGER_CALLS)
        case Consult(function, _):
            named = getattr(function, "__name__", "approve")
            return {"sign_typed_data": "sign", "seen_on_chain": "chain", "resolve": "resolve"}.get(
                named, "approve"
            )
        case Sleep():
            return "sleep"
        case Checkpoint():
            return "checkpoint"


@dataclass(slots=True)
class Cut:
    """Fail at the n-th effect, instead of performing it or right after."""

    number: int
    error: BaseException
    after: bool = False


@dataclass
class Hand:
    """One buyer, one seller, no I/O."""

    first: Reply = field(default_factory=asked)
    paid: Callable[[tuple[str, str]], Reply] | BaseException = field(default_factory=answered)
    body: bytes | None = b"{}"
    fingerprint: str | None = "ab" * 32
    options: dict[str, Any] = field(default_factory=dict)
    key: str | None = None
    wait_s: float | None = 0.2
    clock: float = 1_800_000_000.0
    transcript: list[str] = field(default_factory=list)
    proofs: list[str] = field(default_factory=list)
    events: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        options: dict[str, Any] = {
            "wallet": Signer(),
            "caps": [Cap(1, per="total")],
            "origins": [SHOP],
            "ledger": MemoryLedger(),
            "clock": lambda: self.clock,
            "on_event": self.events.append,
        }
        options.update(self.options)
        self.payer = Payer(options.pop("wallet"), **options)

    @property
    def signer(self) -> Any:
        """The wallet of the payer."""
        return buyer_of(self.payer).settings.signer

    def call(self, cut: Cut | None = None, **changes: Any) -> Verdict:
        """Make a call; its transcript is kept."""
        self.transcript = []
        call = Call(
            method="GET",
            url=URL,
            state=CallState(origin=SHOP, url=URL),
            key=self.key,
            wait_s=self.wait_s,
        )
        return self.drive(converse(buyer_of(self.payer), dataclasses.replace(call, **changes)), cut)

    def drive(self, flow: Generator[Effect, Any, Any], cut: Cut | None = None) -> Any:
        """Perform every effect of a flow."""
        try:
            effect = next(flow)
            while True:
                self.transcript.append(name_of(effect))
                failing = cut is not None and len(self.transcript) == cut.number
                try:
                    if cut is not None and failing and not cut.after:
                        raise cut.error
                    answer = self.perform(effect)
                    if cut is not None and failing:
                        raise cut.error
                except BaseException as error:
                    effect = flow.throw(error)
                else:
                    effect = flow.send(answer)
        except StopIteration as stop:
            return stop.value

    def perform(self, effect: Effect) -> Any:
        """Do what the effect says."""
        match effect:
            case Ask(None):
                return self.first
            case Ask(proof):
                assert proof is not None
                self.proofs.append(proof[1])
                if isinstance(self.paid, BaseException):
                    raise self.paid
                return self.paid(proof)
            case ReadBody():
                return self.body
            case Fingerprint():
                return self.fingerprint
            case Record(call):
                return call(1.0)
            case Consult(function, args):
                return function(*args)
            case Sleep(seconds):
                self.clock += seconds
                return None
            case Checkpoint():
                return None

    # --- looking

    def rows(self) -> list[tuple[str, bool, str | None]]:
        """State, openness and outcome of every payment, newest first."""
        return [(row.state, row.open, row.outcome) for row in self.payer.payments()]

    def kinds(self) -> list[str]:
        """The kinds of all events so far."""
        return [event.kind for event in self.events]

    def authorizations(self) -> set[str]:
        """The distinct nonces that were shown."""
        found = (decode_proof("payment-signature", raw) for raw in self.proofs)
        return {one.authorization["nonce"] for one in found}


def local() -> dict[str, Any]:
    """Options for a wallet in this process, whose signing is no effect."""
    return {"wallet": Wallet.from_key(KEY)}
