"""The rivals, each in a process of its own: one line in, one call, its nanoseconds out.

Interleaving processes call by call keeps a noisy machine fair: whatever it does, it does to all.
A call that is not timed comes before each that is: the rivals that had their turn meanwhile have
left nothing of this one in the processor's caches, which a client in use finds there.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

KEY = "0x" + "11" * 32
PATH = "/api/tools/mask-refinement"


def body(number: int) -> dict[str, str]:
    return {"ImageURL": f"https://example.com/{number}.png", "MaskImageURL": "https://x.y/m.png"}


def payer(url: str, **options: Any) -> Any:
    from x402_mask import Cap, Payer, SQLiteLedger, Wallet

    caps = [Cap("0.25", per="call"), Cap("1000000", per="day")]
    path = Path(os.environ["X402_BENCH_DIR"]) / f"{os.getpid()}.db"
    return Payer(
        Wallet.from_key(KEY), caps=caps, origins=[url], ledger=SQLiteLedger(path), **options
    )


def bare_sync(url: str) -> Callable[[int], None]:
    import httpx

    client = httpx.Client()
    proof = {"X-Bare-Proof": "x" * 1100}

    def call(number: int) -> None:
        assert client.post(url + PATH, json=body(number)).status_code == 402
        assert client.post(url + PATH, json=body(number), headers=proof).status_code == 200

    return call


def ours_sync(url: str, **options: Any) -> Callable[[int], None]:
    from x402_mask import Client

    client = Client(payer(url, **options))

    def call(number: int) -> None:
        assert client.post(url + PATH, json=body(number)).status_code == 200

    return call


def least_sync(url: str, *, preempt: bool = False) -> Callable[[int], None]:
    """The least that keeps the promises: bare requests, one checked signature, one durable commit.

    It stores a row and reads nothing: no caps, no challenge, no history, no end of the call.
    """
    import sqlite3

    import httpx

    client, sign = httpx.Client(), sign_ours(url)
    path = Path(os.environ["X402_BENCH_DIR"]) / f"least-{os.getpid()}.db"
    ledger = sqlite3.connect(path, isolation_level=None)
    for pragma in ("journal_mode=WAL", "wal_autocheckpoint=20000", "synchronous=FULL"):
        ledger.execute(f"PRAGMA {pragma}")
    ledger.execute("CREATE TABLE payments (seq INTEGER PRIMARY KEY, micro BIGINT, proof BLOB)")
    insert = "INSERT INTO payments (micro, proof) VALUES (200000, ?)"
    ledger.execute("BEGIN")
    ledger.executemany(insert, [(b"x" * 1100,)] * 5000)
    ledger.execute("COMMIT")
    ledger.execute("PRAGMA wal_checkpoint(RESTART)")  # the log is long already
    proof = {"X-Bare-Proof": "x" * 1100}

    def call(number: int) -> None:
        if not preempt:
            assert client.post(url + PATH, json=body(number)).status_code == 402
        sign(number)
        ledger.execute(insert, (b"x" * 1100,))
        assert client.post(url + PATH, json=body(number), headers=proof).status_code == 200

    return call


def on_loop(make: Callable[[], Any]) -> Callable[[int], None]:
    """Run an async client's calls on one loop that stays."""
    loop = asyncio.new_event_loop()
    call = make()
    return lambda number: loop.run_until_complete(call(number))


def bare_async(url: str) -> Callable[[int], None]:
    def make() -> Any:
        import httpx

        client = httpx.AsyncClient()
        proof = {"X-Bare-Proof": "x" * 1100}

        async def call(number: int) -> None:
            assert (await client.post(url + PATH, json=body(number))).status_code == 402
            paid = await client.post(url + PATH, json=body(number), headers=proof)
            assert paid.status_code == 200

        return call

    return on_loop(make)


def ours_async(url: str, **options: Any) -> Callable[[int], None]:
    def make() -> Any:
        from x402_mask import AsyncClient

        client = AsyncClient(payer(url, **options))

        async def call(number: int) -> None:
            assert (await client.post(url + PATH, json=body(number))).status_code == 200

        return call

    return on_loop(make)


def official(url: str) -> Callable[[int], None]:
    """PyPI x402 2.25.0; without coincurve where ECC_BACKEND_CLASS says so."""

    def make() -> Any:
        from eth_account import Account
        from x402 import x402Client
        from x402.http.clients import x402HttpxClient
        from x402.mechanisms.evm import EthAccountSigner
        from x402.mechanisms.evm.exact import register_exact_evm_client

        wallet = EthAccountSigner(Account.from_key(KEY))
        buyer = register_exact_evm_client(x402Client(), wallet)
        client = x402HttpxClient(buyer)

        async def call(number: int) -> None:
            assert (await client.post(url + PATH, json=body(number))).status_code == 200

        return call

    return on_loop(make)


def sign_ours(url: str) -> Callable[[int], None]:
    """One EIP-3009 signature: authorization, payload encoded, self-checked."""
    from tests.bench.seller import CHALLENGE, _encoded
    from x402_mask._policy.offers import Choice
    from x402_mask._schemes.exact_eip3009 import ExactEip3009
    from x402_mask._schemes.scheme import Moment
    from x402_mask._wallets.local import Wallet
    from x402_mask._wire.assets import EIP3009_ASSETS
    from x402_mask._wire.x402 import proof_header, read_challenge

    wallet = Wallet.from_key(KEY)
    challenge = read_challenge([_encoded(CHALLENGE).decode()], None)
    assert challenge is not None
    choice = Choice(
        offer=challenge.offers[0],
        scheme="exact-eip3009",
        form="v2",
        asset=EIP3009_ASSETS[0],
        micro=200000,
        validity_s=300,
        skipped=(),
    )

    def call(number: int) -> None:
        signed = ExactEip3009().prepare(
            choice,
            payer=wallet.address,
            moment=Moment(1.7e9, 1.7e9, 300),
            nonce=number.to_bytes(32, "big"),
        )
        signature = wallet.sign_checked(signed.digest)
        payload = signed.payload(signature)
        proof_header(challenge, choice.offer, payload, "pay_" + "0" * 32, payload_bytes=640)

    return call


def sign_eth_account(url: str) -> Callable[[int], None]:
    """The same message by eth-account with coincurve: no payload, no check."""
    from eth_account import Account

    from x402_mask._crypto.eip712 import TRANSFER_TYPES, asset_domain
    from x402_mask._wire.assets import EIP3009_ASSETS

    account = Account.from_key(KEY)
    domain = asset_domain(EIP3009_ASSETS[0])

    def call(number: int) -> None:
        message = {
            "from": account.address,
            "to": "0x209693Bc6afc0C5328bA36FaF03C514EF312287C",
            "value": 200000,
            "validAfter": 0,
            "validBefore": 1700000300,
            "nonce": number.to_bytes(32, "big"),
        }
        account.sign_typed_data(domain, TRANSFER_TYPES, message)

    return call


def fsync(url: str) -> Callable[[int], None]:
    """What this machine's disk takes for four kilobytes."""
    file = os.open(Path(os.environ["X402_BENCH_DIR"]) / "fsync", os.O_CREAT | os.O_WRONLY)

    def call(number: int) -> None:
        os.pwrite(file, b"x" * 4096, 0)
        os.fsync(file)

    return call


RIVALS: dict[str, Callable[[str], Callable[[int], None]]] = {
    "two bare requests, sync": bare_sync,
    "x402_mask, sync": ours_sync,
    "x402_mask, sync, preempt": lambda url: ours_sync(url, preempt=True),
    "the least, sync": least_sync,
    "the least, sync, preempt": lambda url: least_sync(url, preempt=True),
    "two bare requests, async": bare_async,
    "x402_mask, async": ours_async,
    "x402_mask, async, preempt": lambda url: ours_async(url, preempt=True),
    "official x402 with coincurve": official,
    "official x402 as it installs": official,
    "signature, x402_mask": sign_ours,
    "signature, eth-account": sign_eth_account,
    "fsync": fsync,
}
"""What each process can be."""


def main() -> None:
    name, url = sys.argv[1], sys.argv[2]
    call = RIVALS[name](url)
    number = int.from_bytes(os.urandom(5), "big")
    print("ready", flush=True)
    for _ in sys.stdin:
        number += 2
        call(number)
        begun = time.perf_counter_ns()
        call(number + 1)
        print(time.perf_counter_ns() - begun, flush=True)


if __name__ == "__main__":
    os.environ.setdefault("X402_BENCH_DIR", tempfile.mkdtemp())
    main()
