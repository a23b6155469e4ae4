"""Settings, faults, and the life of the server."""

from __future__ import annotations

import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient

from tests.sandbox.buyer import Buyer
from x402_mask.sandbox import FAULTS, Faults, Sandbox, SandboxSettings, create_app, parse_faults
from x402_mask.sandbox import faults as faults_module

KEY = "0x" + "1" * 64


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"faults": {"none": True}}, "unknown fault 'none'"),
        ({"faults": {"no-receipt": -1}}, "cannot happen -1 times"),
        ({"pay_to": "0xMerchantAddress"}, "pay_to"),
        ({"asset": "0x" + "ab" * 20}, "asset"),
        ({"rpc": "http://127.0.0.1:1"}, "facilitator_key"),
        ({"watch_transfers": True}, "needs an rpc"),
        ({"challenge": "v1", "chain_id": 31337}, "no name for chain 31337"),
        ({"challenge": "v1", "payment_identifier": "optional"}, "no payment-identifier"),
        ({"price_cents": {"timestamp": -1}}, "prices"),
        ({"decimals": 1}, "prices"),
    ],
)
def test_settings_that_cannot_work(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        SandboxSettings(**settings)


def test_the_facilitator_key_is_shown_nowhere() -> None:
    settings = SandboxSettings(rpc="http://127.0.0.1:1", facilitator_key=KEY)
    assert KEY[2:] not in repr(settings)
    with pytest.raises(TypeError, match="private key"):
        pickle.dumps(settings)
    with pytest.raises(ValueError, match="not a private key") as caught:
        SandboxSettings(rpc="http://127.0.0.1:1", facilitator_key="5ecret")
    assert "5ecret" not in str(caught.value)
    assert caught.value.__suppress_context__


def test_settings_without_a_key_can_be_pickled() -> None:
    settings = SandboxSettings(build="newer", faults={"no-receipt": 2})
    assert pickle.loads(pickle.dumps(settings)) == settings


def test_faults_are_parsed_and_used_up() -> None:
    assert parse_faults(" no-receipt, drop-after-settle=2,") == {
        "no-receipt": True,
        "drop-after-settle": 2,
    }
    for bad in ("none", "no-receipt=x", "no-receipt=-1"):
        with pytest.raises(ValueError, match=bad.partition("=")[0]):
            parse_faults(bad)
    faults = Faults({"no-receipt": 2, "token-null": True})
    assert [faults.take("no-receipt") for _ in range(3)] == [True, True, False]
    assert all(faults.take("token-null") for _ in range(3))
    faults.set("token-null", times=False)
    assert not faults.take("token-null")
    faults.set("no-receipt")
    faults.clear()
    assert not faults.take("no-receipt")


def test_the_table_of_faults_is_complete() -> None:
    table = str(faults_module.__doc__)
    assert all(f"``{name}``" in table for name in FAULTS)
    assert table.count("\n``") == len(FAULTS)


def test_a_sandbox_ends_and_frees_its_port() -> None:
    with Sandbox() as sandbox:
        port = httpx.URL(sandbox.url).port or 0
        assert httpx.get(f"{sandbox.url}/ai.txt", trust_env=False).status_code == 200
    assert not any(t.name == "x402-mask-sandbox" and t is sandbox._thread for t in alive())
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{sandbox.url}/ai.txt", trust_env=False)
    with Sandbox(port=port) as again:
        assert again.url == sandbox.url


def alive() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.is_alive()]


def test_a_taken_port_is_said_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OSError, match="in use"):
        Sandbox(port=taken.getsockname()[1])


def test_settings_and_overrides_combine() -> None:
    settings = SandboxSettings(build="newer")
    with Sandbox(settings, default_balance=5) as sandbox:
        assert (sandbox.settings.build, sandbox.book.balance("0x" + "1" * 40)) == ("newer", 5)


def test_proofs_at_once_spend_a_balance_once(shop: Sandbox, buyer: Buyer) -> None:
    """Twenty proofs at once from a wallet that can pay three."""
    shop.book.fund(buyer.address, 90_000)
    path = "/api/tools/timestamp"
    challenge = buyer.offer(path)
    proofs = [buyer.proof(challenge) for _ in range(20)]
    statuses: list[int] = []
    threads = [
        threading.Thread(target=lambda p=p: statuses.append(buyer.show(p, path).status_code))
        for p in proofs
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sorted(statuses) == [200] * 3 + [402] * 17
    assert shop.book.balance(buyer.address) == 0


def test_the_app_runs_under_any_asgi_server() -> None:
    app = create_app(SandboxSettings(build="newer"))
    with TestClient(app, base_url="http://shop.test") as client:
        document = client.get("/.well-known/server402.json").json()
    assert document["baseUrl"] == "http://shop.test"
    assert app.state.settings.build == "newer"


def test_run_serves_until_interrupted() -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    code = f"from x402_mask.sandbox import run; run('127.0.0.1', {port})"
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    try:
        assert until_answer(f"http://127.0.0.1:{port}/ai.txt") == 200
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == 0
    assert "Traceback" not in said


def until_answer(url: str) -> int | None:
    for _ in range(300):
        try:
            return httpx.get(url, timeout=1, trust_env=False).status_code
        except httpx.TransportError:
            time.sleep(0.05)
    return None
