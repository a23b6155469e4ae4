"""A buyer that is killed again and again under load, and the books its sellers keep meanwhile."""

from __future__ import annotations

import json
import random
import sqlite3
import threading
import time
from collections import defaultdict
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import coincurve
from Crypto.Hash import keccak

from tests.faults import jobs
from tests.faults.processes import Process
from tests.support.seller import (
    USDC,
    Hit,
    Proof,
    Reply,
    Seller,
    authorization_of,
    offer,
    served,
    v2_header,
)
from x402_mask import Cap, SQLiteLedger

PRICE = 1000
MARGIN_S = 30


# --- an authorization, checked fast and by nobody's library ---------------------------------------


def _hash(*parts: bytes) -> bytes:
    return keccak.new(digest_bits=256, data=b"".join(parts)).digest()


def _word(value: int) -> bytes:
    return value.to_bytes(32, "big")


_DOMAIN = _hash(
    _hash(b"EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"),
    _hash(USDC.name.encode()),
    _hash(USDC.version.encode()),
    _word(USDC.chain_id),
    _word(int(USDC.address, 16)),
)
_TRANSFER = _hash(
    b"TransferWithAuthorization(address from,address to,uint256 value,"
    b"uint256 validAfter,uint256 validBefore,bytes32 nonce)"
)


def collectable(proof: Proof) -> int:
    """Atomic USDC that this proof lets a seller take (EIP-712, EIP-3009); 0 if it is not valid."""
    said = proof.authorization
    numbers = [int(said[name]) for name in ("value", "validAfter", "validBefore")]
    addresses = [int(said[name], 16) for name in ("from", "to")]
    words = [*addresses, *numbers, int(said["nonce"], 16)]
    message = _hash(_TRANSFER, *map(_word, words))
    signature = bytes.fromhex(str((proof.document or {})["payload"]["signature"])[2:])
    compact = signature[:64] + bytes((signature[64] - 27,))
    digest = _hash(b"\x19\x01", _DOMAIN, message)
    key = coincurve.PublicKey.from_signature_and_message(compact, digest, hasher=None)
    signer = _hash(key.format(compressed=False)[1:])[12:]
    return numbers[0] if signer == addresses[0].to_bytes(20, "big") else 0


# --- the seller's books ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Shown:
    """A proof that was seen for the first time."""

    nonce: str
    at: float
    valid_before: int


@dataclass
class Books:
    """What sellers were shown, by operation, in the order it came."""

    seed: int
    shown: dict[str, list[Shown]] = field(default_factory=lambda: defaultdict(list))
    answered: set[str] = field(default_factory=set)
    raws: dict[str, str] = field(default_factory=dict)
    total: int = 0
    presented: int = 0
    faults: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.lock = threading.Lock()
        self.random = random.Random(self.seed)
        self.samples: list[Proof] = []

    def sell(self, hit: Hit) -> Reply:
        """Answer one request, this way or that."""
        with self.lock:
            life = 10 if self.random.random() < 0.5 else 60
            if not hit.proofs:
                return v2_header(offer(str(PRICE), maxTimeoutSeconds=life))
            proof = hit.proof
            nonce = str(proof.authorization["nonce"])
            self._note(hit.target, proof, nonce)
            return self._answer(hit, nonce)

    def _note(self, operation: str, proof: Proof, nonce: str) -> None:
        self.presented += 1
        known = self.raws.setdefault(nonce, proof.raw)
        if known != proof.raw:
            self.faults.append(f"{operation}: other bytes for the nonce {nonce}")
        if any(one.nonce == nonce for one in self.shown[operation]):
            return
        value, now = collectable(proof), time.time()
        if value != PRICE:
            self.faults.append(f"{operation}: a proof worth {value}")
        for one in self.shown[operation]:
            # It may be signed anew once a 2xx was sent, or the old one has expired.
            if one.nonce not in self.answered and now < one.valid_before + MARGIN_S:
                self.faults.append(f"{operation}: {nonce} while {one} was live")
        valid_before = int(proof.authorization["validBefore"])
        self.shown[operation].append(Shown(nonce, now, valid_before))
        self.total += value
        if len(self.samples) < 20:
            self.samples.append(proof)

    def _answer(self, hit: Hit, nonce: str) -> Reply:
        chance = self.random.random()
        if chance < 0.15:
            return Reply(status=503)
        if chance < 0.22:
            return Reply(drop=True)
        if chance < 0.26:
            return Reply(reset=True)
        if chance < 0.32:
            return v2_header(offer(str(PRICE)))
        if chance < 0.40:
            return Reply(drop=True, delay=self.random.uniform(0.02, 0.2))
        self.answered.add(nonce)
        if chance < 0.50:
            return Reply(body=b"no settlement told")
        delay = self.random.uniform(0.02, 0.2) if chance < 0.6 else 0.0
        return served(delay=delay)(hit)

    def check_samples(self, origin: str) -> None:
        """The fast check agrees with eth-account's."""
        for proof in self.samples:
            slow = authorization_of(origin, proof)
            assert slow is not None and slow.value == collectable(proof)
        assert self.samples


# --- the ledger's own story -----------------------------------------------------------------------


def query(path: Path, sql: str) -> list[tuple[Any, ...]]:
    """Query a ledger that nobody may have closed (which a read-only connection cannot recover)."""
    with closing(sqlite3.connect(path, timeout=10)) as connection:
        return connection.execute(sql).fetchall()


def counted(path: Path) -> int:
    """Micro-USD that count against the caps."""
    if not path.exists() or not query(path, "SELECT 1 FROM sqlite_master WHERE name='payments'"):
        return 0
    sql = "SELECT SUM(micro) FROM payments WHERE state IN ('reserved','held','settled')"
    return int(query(path, sql)[0][0] or 0)


def double_signatures(path: Path) -> list[str]:
    """Reservations made while an earlier proof of the operation was live and undelivered.

    By the history alone: whatever a seller saw or not.
    """
    open_until: dict[str, dict[str, float]] = defaultdict(dict)
    operation_of: dict[str, str] = {}
    ends: dict[str, float] = {}
    found = []
    for at, payment, kind, text in query(
        path, "SELECT at, payment, kind, data FROM history ORDER BY seq"
    ):
        data, now = json.loads(text), at / 1e6
        if kind == "reserved":
            operation_of[payment] = data["operation"]
            found += [
                f"{payment} reserved while {other} was live"
                for other, until in open_until[data["operation"]].items()
                if now < until
            ]
        elif kind == "held" and data.get("valid_before"):
            ends[payment] = data["valid_before"] + MARGIN_S
            open_until[operation_of[payment]][payment] = ends[payment]
        elif kind == "reopened":
            open_until[operation_of[payment]][payment] = ends[payment]
        elif kind == "released" or data.get("delivered"):  # released: its proof was never sent
            open_until[operation_of[payment]].pop(payment, None)
    return found


# --- the soak -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Report:
    """The figures of a soak; money in micro-USD."""

    kills: int
    seconds: float
    presented: int
    distinct: int
    operations: int
    collectable: int
    counted: int
    cap: int
    states: dict[str, int]
    represented: int

    def __str__(self) -> str:
        return ", ".join(f"{name} {value}" for name, value in vars(self).items())


def soak(seller: Seller, path: Path, kills: int, seed: int, *, most_s: float) -> Report:
    """Kill a buyer so many times at random instants; check the books after each."""
    books, chance, began = Books(seed), random.Random(seed + 1), time.monotonic()
    seller._scripts = _Everything(books.sell)
    limit = 0
    for number in range(kills):
        assert time.monotonic() - began < most_s, f"only {number} kills in {most_s} s"
        limit = (30 + 2 * number) * PRICE  # tight: its owner raises it a little each time
        _one_life(seller, path, chance, limit)
        with books.lock:
            total = books.total
        assert total <= counted(path) <= limit, f"after kill {number}"
        assert not books.faults, "\n".join(books.faults)
    return _report(seller, path, books, limit, kills, time.monotonic() - began)


def _one_life(seller: Seller, path: Path, chance: random.Random, limit: int) -> None:
    arguments = (path, seller.origin, chance.random(), limit)
    with Process(jobs.shopping, *arguments) as buyer:
        assert buyer.heard() == "ready"
        time.sleep(chance.uniform(0.0, 0.4))
        assert buyer.running, "the buyer ended by itself"
        buyer.kill()
    seller.hits.clear()  # thousands of them; the books remember what matters


def _report(
    seller: Seller, path: Path, books: Books, limit: int, kills: int, seconds: float
) -> Report:
    books.check_samples(seller.origin)
    payer = jobs.payer_on(
        SQLiteLedger(path), seller.origin, "0", caps=[Cap(limit // 10**6 + 1, per="total")]
    )
    payer.reconcile()
    states = dict(query(path, "SELECT state, COUNT(*) FROM payments GROUP BY state"))
    assert "reserved" not in states
    assert double_signatures(path) == []
    assert query(path, "PRAGMA integrity_check") == [("ok",)]
    spend = payer.spend()[0]
    total = counted(path)
    assert int((spend.settled + spend.held) * 10**6) == total
    seqs = [seq for (seq,) in query(path, "SELECT seq FROM history ORDER BY seq")]
    assert seqs == list(range(1, len(seqs) + 1))
    (represented,) = query(path, "SELECT COUNT(*) FROM history WHERE kind='represented'")[0]
    return Report(
        kills=kills,
        seconds=round(seconds, 1),
        presented=books.presented,
        distinct=len(books.raws),
        operations=len(books.shown),
        collectable=books.total,
        counted=total,
        cap=limit,
        states=states,
        represented=represented,
    )


class _Everything(dict[str, Any]):
    """One script for every path."""

    def __init__(self, script: Any) -> None:
        super().__init__()
        self._script = script

    def get(self, key: str, default: Any = None) -> Any:
        """The script."""
        return self._script
