"""Real sockets: proxies, TLS, HTTP/2, pools, time-outs (facts 2.13, 3.7, 3.10)."""

from __future__ import annotations

import os
import ssl
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import anyio
import pytest

from tests.support.seller import (
    Hit,
    Reply,
    Seller,
    challenge,
    encode,
    offer,
    paywall,
    served,
    v2_body,
    v2_header,
)
from tests.transport.kit import Rig, kinds
from tests.transport.servers import Front, Http2, Proxy, certificate
from x402_mask import CapExceeded, ChallengeError, OriginRefused, PaymentRefused, receipt_of

ON_SOCKETS = ("asyncio", "sync", "trio")


def real(rig: Rig, **options: Any) -> Any:
    """A client of this kind on the family's own transport."""
    return rig.make_client(inner=None, **options)


# --- pools and leaks


def endings(seller: Seller) -> str:
    """Answers for each way in which a call can end; their common origin."""
    asked, padding = v2_header(offer()).headers, b"x" * 200_000
    upto = v2_header(offer(scheme="upto")).headers
    seller.sells()
    seller.on("/dear", v2_header(offer("999000000")))
    seller.on("/bad", Reply(status=402, headers=[("PAYMENT-REQUIRED", "!")], body=b"x" * 1000))
    seller.on("/plain", Reply(status=402, body=b"x" * 1000))
    seller.on("/long", paywall(Reply(status=402, headers=asked, body=padding), served()))
    seller.on("/long-refused", Reply(status=402, headers=upto, body=padding))
    seller.on("/rejected", paywall(v2_header(offer()), Reply(status=402, body=b"no")))
    seller.on("/failed", paywall(v2_header(offer()), Reply(status=500, body=b"no")))
    seller.on("/dropped", paywall(v2_header(offer()), Reply(drop=True)))
    seller.on("/free", Reply(body=b"free"))
    return seller.origin


PATHS = (
    "/paid",
    "/dear",
    "/bad",
    "/plain",
    "/long",
    "/long-refused",
    "/rejected",
    "/failed",
    "/dropped",
    "/free",
)


@pytest.mark.filterwarnings("ignore:Async generator:ResourceWarning")
@kinds()
async def test_a_pool_of_one_is_enough_whatever_happens(rig: Rig) -> None:
    """Fact 3.7: the 402 lets go of its connection before the retry, and on every way out."""
    seller = rig.seller()
    base = endings(seller)
    rig.client = real(
        rig, limits=rig.lib.Limits(max_connections=1), timeout=rig.lib.Timeout(5.0, pool=1.0)
    )
    for path in (*PATHS, *PATHS):
        try:
            response = await rig.get(base + path)
        except (PaymentRefused, ChallengeError, rig.lib.RemoteProtocolError):
            continue
        if path in ("/paid", "/long"):
            rig.paid(response)
    async with rig.stream("GET", base + "/plain") as response:
        assert response.status_code == 402
    assert (await rig.get(base + "/free")).content == b"free"
    seller.wait_for(lambda: seller.open_connections() <= 1)  # it sees an end a moment later
    assert not {"reserved"} & set(rig.states())


@kinds("client", "attach")
async def test_connections_are_reused_for_the_paid_leg(rig: Rig) -> None:
    """A 402 that was read to its end gives its connection back alive."""
    seller = rig.seller()
    url = seller.sells()
    rig.client = real(rig)
    rig.paid(await rig.get(url))
    rig.paid(await rig.get(url))
    assert len({hit.connection for hit in seller.hits}) == 1 and len(seller.hits) == 4


# --- time-outs


@kinds("transport", "client", "attach", "auth")
async def test_the_callers_timeout_governs_the_paid_leg(rig: Rig) -> None:
    """Fact 3.10, with the note of contract 2.5; the proof is shown again by the next call."""
    seller = rig.seller()

    def slow_once(hit: Hit) -> Reply:
        return served(delay=0.6 if len(seller.proofs()) == 1 else 0.0)(hit)

    url = seller.sells(paid=slow_once)
    rig.client = real(rig)
    with pytest.raises(rig.lib.ReadTimeout) as caught:
        await rig.get(url, timeout=0.15)
    (row,) = rig.payer.payments()
    assert row.state == "held" and row.payment_id in "".join(caught.value.__notes__)
    rig.paid(await rig.get(url, timeout=5))
    assert len(seller.authorizations()) == 1 and len(seller.proofs()) == 2


@kinds("client", libs=["httpx"])
async def test_the_callers_timeout_governs_the_first_leg(rig: Rig) -> None:
    """And has nothing to do with money there."""
    seller = rig.seller()
    url = seller.on("/slow", Reply(status=402, delay=1.0))
    rig.client = real(rig)
    with pytest.raises(rig.lib.ReadTimeout) as caught:
        await rig.get(url, timeout=0.1)
    assert not getattr(caught.value, "__notes__", []) and rig.payer.payments() == []


# --- proxies


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, Path]:
    """A certificate for loopback."""
    return certificate(tmp_path_factory.mktemp("tls"))


@kinds("client", "attach", "transport")
@pytest.mark.parametrize("how", ["proxy", "environment"])
async def test_https_through_a_connect_proxy_with_a_private_authority(
    rig: Rig, tls: tuple[ssl.SSLContext, Path], how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``verify``, a proxy and payment at once; the proxy never sees the proof."""
    seller = rig.seller()
    seller.sells()
    context, authority = tls
    trust = ssl.create_default_context(cafile=str(authority))
    with ExitStack() as stack:
        front = stack.enter_context(Front(context, int(seller.origin.rpartition(":")[2])))
        proxy = stack.enter_context(Proxy())
        origin = f"https://127.0.0.1:{front.port}"
        rig.payer = rig.make_payer(origins=[origin])
        place = f"http://127.0.0.1:{proxy.port}"
        if how == "proxy" or rig.kind.plug == "transport":  # which knows no environment
            rig.client = real(rig, proxy=place, verify=trust)
        else:
            monkeypatch.setenv("HTTPS_PROXY", place)
            rig.client = real(rig, verify=trust)
        rig.paid(await rig.get(origin + "/paid"))
        assert proxy.asked[0] == f"CONNECT 127.0.0.1:{front.port}"
        assert "payment-signature" not in proxy.headers
        await rig.close()


@kinds("client", "attach")
async def test_a_certificate_that_is_not_trusted_is_not_paid(
    rig: Rig, tls: tuple[ssl.SSLContext, Path]
) -> None:
    """``verify`` keeps working: the family's own ConnectError."""
    seller = rig.seller()
    seller.sells()
    with Front(tls[0], int(seller.origin.rpartition(":")[2])) as front:
        rig.payer = rig.make_payer(origins=[f"https://127.0.0.1:{front.port}"])
        rig.client = real(rig)
        with pytest.raises(rig.lib.ConnectError):
            await rig.get(f"https://127.0.0.1:{front.port}/paid")
        rig.client = real(rig, verify=False)
        rig.paid(await rig.get(f"https://127.0.0.1:{front.port}/paid"))
        await rig.close()


# --- HTTP/2


@kinds("client", "attach", "transport")
async def test_http2_is_paid_over(rig: Rig) -> None:
    """``http2=True``: lower-case headers and one connection for both legs."""
    pytest.importorskip("h2")

    def answer(headers: dict[str, str]) -> tuple[int, list[Any], bytes]:
        if "payment-signature" not in headers:
            return 402, [("payment-required", encode(challenge(offer())))], b"{}"
        proofs = [("PAYMENT-SIGNATURE", headers["payment-signature"])]
        hit = Hit(method="GET", target="/", headers=proofs, body=b"", connection=0, began=0)
        reply = served()(hit)
        return 200, [(name.lower(), value) for name, value in reply.headers], b"goods"

    with Http2(answer) as server:
        origin = f"http://127.0.0.1:{server.port}"
        rig.payer = rig.make_payer(origins=[origin])
        rig.client = real(rig, http1=False, http2=True)
        response = await rig.get(origin + "/paid")
        rig.paid(response)
        assert response.http_version == "HTTP/2" and response.content == b"goods"
        assert len(server.requests) == 2
        await rig.close()


# --- processes


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_pays_from_the_same_budget(tmp_path: Path) -> None:
    """Contract 1: the child opens its own connection to the ledger; the caps hold for both."""
    import subprocess
    import sys

    script = Path(__file__).with_name("fork_script.py")
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "ledger.db")],
        capture_output=True,
        text=True,
        timeout=15,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert (done.returncode, done.stdout.split()) == (0, ["settled", "child", "settled", "cap"]), (
        done.stderr
    )


@kinds("client", colours=["asyncio"], libs=["httpx"])
async def test_many_tasks_share_one_client_and_one_payer(rig: Rig) -> None:
    """Forty calls at once: forty payments, one budget, no connection too many."""
    seller = rig.seller()
    url = seller.sells()
    rig.client = real(rig, limits=rig.lib.Limits(max_connections=5))
    found: list[Any] = []

    async def one(number: int) -> None:
        found.append(await rig.get(f"{url}?n={number}"))

    async with anyio.create_task_group() as group:
        for number in range(40):
            group.start_soon(one, number)
    assert len({rig.paid(response).payment_id for response in found}) == 40
    assert len(seller.authorizations()) == 40
    assert float(rig.payer.spend()[0].settled) == pytest.approx(0.04)


@kinds("client", libs=["httpx"], colours=["sync"])
async def test_loopback_is_only_paid_where_it_was_listed(rig: Rig) -> None:
    """Ports are part of an origin."""
    seller, stranger = rig.seller(), rig.seller()
    rig.payer = rig.make_payer(origins=[seller.origin])
    rig.client = real(rig)
    rig.paid(await rig.get(seller.sells()))
    with pytest.raises(OriginRefused):
        await rig.get(stranger.sells())
    with pytest.raises(CapExceeded):
        await rig.get(seller.sells(offer("6000000")))
    body = seller.on("/body", paywall(v2_body(offer()), served()))
    assert receipt_of(await rig.get(body)) is not None
