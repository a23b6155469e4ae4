"""The chain the other tests stand on behaves like Base where it matters."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from web3 import Web3
from web3.exceptions import ContractLogicError

from tests.support.chain import CHAIN_ID, DOMAIN_SEPARATOR, USDC, Chain
from tests.support.process import Child

pytestmark = [pytest.mark.chain, pytest.mark.timeout(60, func_only=True)]
ROOT = Path(__file__).parents[2]


def test_the_token_is_base_usdc(chain: Chain) -> None:
    """Chain id, address, name, version and so the EIP-712 domain are those of Base."""
    call = chain.usdc.functions
    assert chain.w3.eth.chain_id == CHAIN_ID
    assert chain.usdc.address == USDC
    assert (call.name().call(), call.version().call()) == ("USD Coin", "2")
    assert (call.symbol().call(), call.decimals().call()) == ("USDC", 6)
    assert Web3.to_hex(call.DOMAIN_SEPARATOR().call()) == DOMAIN_SEPARATOR


def test_a_signed_transfer_moves_exactly_its_value(chain: Chain) -> None:
    """A signature moves the money once, and the event and the nonce say so."""
    payer, payee = chain.account(usdc=1_000_000), chain.account().address
    signed = chain.sign_transfer(payer, payee, 200_001)
    nonce = signed.authorization["nonce"]
    assert not chain.authorization_state(payer.address, nonce)
    start = chain.block() + 1

    tx = chain.transfer_with_authorization(*signed)

    assert chain.succeeded(tx)
    assert (chain.balance(payer.address), chain.balance(payee)) == (799_999, 200_001)
    assert chain.transfers(start) == [(payer.address, payee, 200_001, tx)]
    assert chain.transfers(sender=payer.address, to=payee) == chain.transfers(start)
    assert chain.authorization_state(payer.address, nonce)


def test_a_second_use_is_refused(chain: Chain) -> None:
    """The same bytes pay once."""
    payer, payee = chain.account(usdc=1_000_000), chain.account().address
    signed = chain.sign_transfer(payer, payee, 200_000)
    chain.transfer_with_authorization(*signed)

    with pytest.raises(ContractLogicError, match="used or canceled"):
        chain.transfer_with_authorization(*signed)
    failed = chain.transfer_with_authorization(*signed, gas=200_000)

    assert chain.succeeded(failed) is False
    assert chain.balance(payee) == 200_000


def test_a_changed_authorization_is_refused(chain: Chain) -> None:
    """The contract checks the signature; the rig does not merely move numbers."""
    payer, payee = chain.account(usdc=1_000_000), chain.account().address
    signed = chain.sign_transfer(payer, payee, 200_000)

    with pytest.raises(ContractLogicError, match="invalid signature"):
        chain.transfer_with_authorization(
            signed.authorization | {"value": "200001"}, signed.signature
        )

    assert chain.balance(payee) == 0


def test_a_cancelled_nonce_pays_nothing(chain: Chain) -> None:
    """Cancelling uses the nonce up without a transfer."""
    payer, payee = chain.account(usdc=1_000_000), chain.account().address
    signed = chain.sign_transfer(payer, payee, 200_000)

    tx = chain.cancel_authorization(payer, signed.authorization["nonce"])

    assert chain.authorization_state(payer.address, signed.authorization["nonce"])
    receipt = chain.w3.eth.get_transaction_receipt(tx)
    assert len(chain.usdc.events.AuthorizationCanceled().process_receipt(receipt)) == 1
    with pytest.raises(ContractLogicError, match="used or canceled"):
        chain.transfer_with_authorization(*signed)
    assert chain.balance(payee) == 0


def test_both_bounds_of_validity_are_exclusive(own_chain: Chain) -> None:
    """``validAfter < block time < validBefore``, to the second."""
    chain = own_chain
    payer, payee = chain.account(usdc=1_000_000), chain.account().address
    start = chain.now() + 1000
    signed = chain.sign_transfer(
        payer, payee, 1, valid_after=start, valid_before=start + 2, nonce=secrets.token_bytes(32)
    )
    outcomes = []
    for at in (start, start + 1, start + 2):
        before = chain.snapshot()
        chain.set_next_timestamp(at)
        outcomes.append(chain.succeeded(chain.transfer_with_authorization(*signed, gas=200_000)))
        assert chain.now() == at
        chain.revert(before)
    assert outcomes == [False, True, False]


def test_revert_takes_everything_back(own_chain: Chain) -> None:
    """Balances, blocks and nonces return; a snapshot is good for one revert."""
    chain = own_chain
    payer, payee = chain.account(usdc=1_000_000), chain.account().address
    signed = chain.sign_transfer(payer, payee, 5)
    before, block = chain.snapshot(), chain.block()
    chain.transfer_with_authorization(*signed)
    assert chain.balance(payee) == 5

    chain.revert(before)

    assert (chain.balance(payee), chain.block()) == (0, block)
    assert not chain.authorization_state(payer.address, signed.authorization["nonce"])
    with pytest.raises(RuntimeError):
        chain.revert(before)


def test_the_clock_moves_only_when_told(own_chain: Chain) -> None:
    """Many blocks do not run ahead of the clock; `increase_time` does."""
    chain = own_chain
    chain.mine(50)
    assert abs(chain.now() - time.time()) < 5
    chain.increase_time(3600)
    assert 3590 < chain.now() - time.time() < 3610


def test_a_paused_pool_confirms_later(own_chain: Chain) -> None:
    """A transaction in the pool has no receipt, and moves nothing, until it is mined."""
    chain = own_chain
    payer, payee = chain.account(usdc=10), chain.account().address
    with chain.mining_paused():
        tx = chain.transfer_with_authorization(*chain.sign_transfer(payer, payee, 7))
        assert chain.succeeded(tx) is None
        assert chain.balance(payee) == 0
    assert chain.succeeded(tx) is True
    assert chain.balance(payee) == 7


def test_a_child_ends_with_its_tests(tmp_path: Path) -> None:
    """A killed test process leaves no program behind."""
    code = (
        "import sys, time; from tests.support.process import Child;"
        "child = Child([sys.executable, '-c', 'import os, time;"
        'print(f"pid {os.getpid()}.", flush=True); time.sleep(60)\'], ready=r"pid (\\d+)\\.");'
        "print(child.ready.group(1), flush=True); time.sleep(60)"
    )
    tests = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | {"TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
    )
    assert tests.stdout is not None
    with tests.stdout as out:
        pid = int(out.readline())
    assert _alive(pid)
    tests.send_signal(signal.SIGKILL)
    tests.wait(5)
    deadline = time.monotonic() + 10
    while _alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _alive(pid)


def test_a_child_stopped_at_once_leaves_nothing() -> None:
    """Whenever the end comes, the program ends with it."""
    code = "import os, time; print(f'pid {os.getpid()}.', flush=True); time.sleep(60)"
    for pause in (0.0, 0.002, 0.01, 0.05):
        with Child([sys.executable, "-I", "-S", "-c", code], ready=r"pid (\d+)\.") as child:
            pid = int(child.ready.group(1))
            time.sleep(pause)
        assert not _alive(pid)


def test_a_child_that_fails_is_quoted() -> None:
    """A program that does not come up says why."""
    with pytest.raises(RuntimeError, match="no such luck"):
        Child([sys.executable, "-c", "print('no such luck')"], ready="never", timeout_s=5)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
