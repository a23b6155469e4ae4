"""Plain http is spoken on this machine only: no proxy carries a call to such an origin."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.seller import Reply, Seller
from tests.transport.kit import LIBS, NO_TLS, Rig, kinds
from tests.transport.servers import Proxy
from x402_mask import OriginRefused
from x402_mask._drive.layer import is_proxy

ENVIRONMENT = ("HTTP_PROXY", "ALL_PROXY", "http_proxy", "all_proxy")


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    """A proxy on loopback: it might as well be elsewhere."""
    with Proxy() as running:
        yield running


def place(proxy: Proxy) -> str:
    return f"http://127.0.0.1:{proxy.port}"


def through(rig: Rig, proxy: Proxy) -> Any:
    """The family's own transport by way of the proxy."""
    own = rig.lib.HTTPTransport if rig.kind.sync else rig.lib.AsyncHTTPTransport
    return own(proxy=place(proxy), verify=NO_TLS)


async def refused(rig: Rig, url: str) -> None:
    with pytest.raises(OriginRefused, match="NO_PROXY") as caught:
        await rig.get(url)
    assert caught.value.reason == "not_https" and not caught.value.at_risk
    assert rig.payer.payments() == []


@kinds("client")
async def test_our_clients_go_round_the_proxy_they_are_given(rig: Rig, proxy: Proxy) -> None:
    """For what they may pay only: the rest goes where the caller sends it."""
    seller, elsewhere = rig.seller(), Seller()
    url = seller.sells()
    rig.client = rig.make_client(inner=None, proxy=place(proxy))
    rig.paid(await rig.get(url))
    rig.paid(await rig.post(url.replace("http:", "HTTP:"), json={"a": 1}))
    assert proxy.asked == [] and len(seller.hits) == 4
    with elsewhere:
        other = elsewhere.on("/free", Reply(body=b"free"))
        assert (await rig.get(other)).content == b"free"
        assert proxy.asked == [f"GET {other}"]
        await rig.close()


@kinds("client", "attach", "auth")
@pytest.mark.parametrize("name", ENVIRONMENT)
async def test_the_environments_proxy_gets_no_proof(
    rig: Rig, proxy: Proxy, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seller = rig.seller()
    url = seller.sells()
    monkeypatch.setenv(name, place(proxy))
    rig.client = rig.make_client(inner=None)
    if rig.kind.plug == "client":
        rig.paid(await rig.get(url))
        assert proxy.asked == []
    else:
        await refused(rig, url)
        assert proxy.asked == [f"GET {url}"] and seller.proofs() == []
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        rig.client = rig.make_client(inner=None)
        rig.paid(await rig.get(url))
        assert proxy.asked == [f"GET {url}"]
    await rig.close()


@kinds("client")
@pytest.mark.parametrize("key", ["all://", "http://", "http://127.0.0.1", "{origin}"])
async def test_our_clients_go_round_a_proxy_that_is_mounted(
    rig: Rig, proxy: Proxy, key: str
) -> None:
    seller = rig.seller()
    url = seller.sells()
    mounts = {key.format(origin=seller.origin): through(rig, proxy)}
    rig.client = rig.make_client(inner=None, mounts=mounts)
    rig.paid(await rig.get(url))
    assert proxy.asked == [] and len(seller.hits) == 2
    await rig.close()


@kinds("client")
@pytest.mark.parametrize("key", ["all://", "http://", "http://127.0.0.1", "{origin}"])
async def test_what_else_is_mounted_is_used(
    rig: Rig, proxy: Proxy, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A transport in this process, say, behind which there is no wire at all."""
    seller = rig.seller()
    monkeypatch.setenv("HTTP_PROXY", place(proxy))
    url = rig.sells(url=seller.origin + "/paid")
    mounts = {key.format(origin=seller.origin): rig.wire}
    rig.client = rig.make_client(inner=None, mounts=mounts)
    rig.paid(await rig.get(url))
    assert proxy.asked == [] and seller.hits == [] and len(rig.legs) == 2
    await rig.close()


@kinds("transport", "attach", "auth", "client")
async def test_a_transport_by_way_of_a_proxy_is_not_paid_through(rig: Rig, proxy: Proxy) -> None:
    seller = rig.seller()
    url = seller.sells()
    rig.client = rig.make_client(inner=through(rig, proxy))
    await refused(rig, url)
    assert seller.proofs() == [] and len(seller.hits) == 1
    await rig.close()


def around(rig: Rig, inner: Any) -> Any:
    """A cache of the caller's, say: it makes its answers anew, so that they tell of no wire."""

    class Rebuilt(rig.lib.BaseTransport if rig.kind.sync else rig.lib.AsyncBaseTransport):  # type: ignore[misc]
        def __init__(self) -> None:
            self.next = inner

        def handle_request(self, request: Any) -> Any:
            answer = self.next.handle_request(request)
            return rig.lib.Response(
                answer.status_code, headers=answer.headers, content=answer.read()
            )

        async def handle_async_request(self, request: Any) -> Any:
            answer = await self.next.handle_async_request(request)
            content = await answer.aread()
            return rig.lib.Response(answer.status_code, headers=answer.headers, content=content)

        def close(self) -> None:
            self.next.close()

        async def aclose(self) -> None:
            await self.next.aclose()

    return Rebuilt()


@kinds("transport", "attach", "client")
async def test_a_layer_around_a_proxy_is_not_paid_through(rig: Rig, proxy: Proxy) -> None:
    seller = rig.seller()
    url = seller.sells()
    rig.client = rig.make_client(inner=around(rig, around(rig, through(rig, proxy))))
    await refused(rig, url)
    assert seller.proofs() == [] and len(seller.hits) == 1
    await rig.close()


@kinds("transport", "attach", "client", libs=["httpx"])
@pytest.mark.parametrize("place", ["dict", "list", "context", "client"])
async def test_a_proxy_is_found_wherever_a_layer_keeps_it(
    rig: Rig, proxy: Proxy, place: str
) -> None:
    """A router has several transports; others send by a client of their own."""
    seller = rig.seller()
    url = seller.sells()
    layer = around(rig, through(rig, proxy))
    base = rig.lib.BaseTransport if rig.kind.sync else rig.lib.AsyncBaseTransport
    kept: Any = type("Slotted", (base,), {"__slots__": ("one",)})()
    kept.one = layer.next
    client = (rig.lib.Client if rig.kind.sync else rig.lib.AsyncClient)(transport=layer.next)
    layer.also = {
        "dict": {"http": layer.next},
        "list": [layer.next],
        "context": kept,
        "client": client,
    }[place]
    own = layer.next
    layer.__dict__["next"] = Hidden(own)
    rig.client = rig.make_client(inner=layer)
    await refused(rig, url)
    assert seller.proofs() == [] and len(seller.hits) == 1
    await rig.close()


class Hidden:
    """Sends by what is kept elsewhere."""

    def __init__(self, one: Any) -> None:
        def send(request: Any) -> Any:
            way = getattr(one, "handle_request", None) or one.handle_async_request
            return way(request)

        self.send, self.shut = send, lambda: getattr(one, "close", None) or one.aclose

    def __getattr__(self, name: str) -> Any:
        return self.shut() if name in ("close", "aclose") else self.send


@kinds("transport", "attach", "client")
async def test_a_layer_around_no_proxy_is_paid_through(rig: Rig) -> None:
    seller = rig.seller()
    url = seller.sells()
    own = rig.lib.HTTPTransport if rig.kind.sync else rig.lib.AsyncHTTPTransport
    rig.client = rig.make_client(inner=around(rig, own(verify=NO_TLS)))
    rig.paid(await rig.get(url))
    await rig.close()


@kinds("client")
async def test_our_clients_go_round_a_layer_around_a_proxy(rig: Rig, proxy: Proxy) -> None:
    seller = rig.seller()
    url = seller.sells()
    mounts = {"http://": around(rig, through(rig, proxy))}
    rig.client = rig.make_client(inner=None, mounts=mounts)
    rig.paid(await rig.get(url))
    assert proxy.asked == [] and len(seller.hits) == 2
    await rig.close()


@kinds("transport", "attach", "auth")
async def test_a_proof_goes_first_only_where_the_last_answer_was_straight(
    rig: Rig, proxy: Proxy
) -> None:
    """A payer is shared: what one client knows of its way says nothing of another's."""
    seller = rig.seller()
    url = seller.sells()
    rig.payer = rig.make_payer(preempt=True)
    near, far = rig.make_client(inner=None), rig.make_client(inner=through(rig, proxy))
    rig.client = near
    rig.paid(await rig.get(url))
    rig.paid(await rig.get(url))
    assert len(seller.hits) == 3 and len(seller.proofs()) == 2
    rig.client = far
    with pytest.raises(OriginRefused):
        await rig.get(url)
    assert len(seller.hits) == 4 and len(seller.proofs()) == 2
    assert "payment-signature" not in proxy.headers
    await rig.close()


class Stream:
    """A network stream with another end, or whose connection is gone."""

    def __init__(self, peer: Any) -> None:
        self.peer = peer

    def get_extra_info(self, name: str) -> Any:
        assert name == "server_addr"
        if isinstance(self.peer, OSError):
            raise self.peer
        return self.peer


def streamed(rig: Rig) -> list[Any]:
    """Give every answer a stream with the first of these ends."""
    ends: list[Any] = []
    answer = rig.answered

    def answered(leg: Any) -> Any:
        response = answer(leg)
        response.extensions["network_stream"] = Stream(ends[0])
        return response

    rig.answered = answered  # type: ignore[method-assign]
    return ends


@kinds("transport", "attach", colours=["sync", "asyncio"])
@pytest.mark.parametrize(
    ("host", "end", "own"),
    [
        ("127.0.0.1:81", ("127.0.0.1", 81), True),
        ("127.0.0.1", ("127.0.0.1", 80), True),
        ("localhost:81", ("127.0.0.1", 81), True),
        ("localhost:81", ("::1", 81, 0, 0), True),
        ("[::1]:81", ("::1", 81, 0, 0), True),
        ("127.0.0.1:81", ("::ffff:127.0.0.1", 81, 0, 0), True),
        ("127.0.0.1:81", ("127.0.0.1", 82), False),
        ("127.0.0.1:81", ("127.0.0.2", 81), False),
        ("localhost:81", ("10.0.0.1", 81), False),
        ("127.0.0.1:81", ("::ffff:10.0.0.1", 81, 0, 0), False),
        ("localhost:81", ("proxy.example", 81), False),
        ("localhost:81", "/run/agent.sock", False),
        ("localhost:81", None, False),
        ("localhost:81", OSError("gone"), False),
    ],
    ids=str,
)
async def test_the_other_end_is_the_origins_own(rig: Rig, host: str, end: Any, own: bool) -> None:
    url = f"http://{host}/paid"
    rig.payer = rig.make_payer(origins=[f"http://{host}"])
    rig.sells(url=url)
    streamed(rig).append(end)
    if own:
        rig.paid(await rig.get(url))
    else:
        await refused(rig, url)
        assert rig.proofs == []


@kinds("transport", "attach", colours=["sync", "asyncio"])
async def test_a_connection_that_is_gone_was_what_it_was_before(rig: Rig) -> None:
    """A seller that answers and hangs up at once is not a proxy."""
    url = "http://127.0.0.1:81/paid"
    rig.payer = rig.make_payer(origins=["http://127.0.0.1:81"])
    rig.sells(url=url)
    ends = streamed(rig)
    ends[:] = [("127.0.0.1", 81)]
    rig.paid(await rig.get(url))
    ends[:] = [OSError("gone")]
    rig.paid(await rig.get(url))


@kinds("client")
async def test_a_quote_is_asked_for_without_the_environments_proxy(
    rig: Rig, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    seller = rig.seller()
    url = seller.sells()
    monkeypatch.setenv("ALL_PROXY", place(proxy))
    payer = rig.make_payer(origins=[seller.origin])
    request = rig.lib.Request("GET", url)
    quote = payer.quote(request) if rig.kind.sync else await payer.aquote(request)
    assert quote is not None and quote.refusal is None and proxy.asked == []


@pytest.mark.parametrize("lib", LIBS)
def test_a_proxy_of_the_family_is_known_as_one(lib: str) -> None:
    """By what is private in both: this guards it."""
    from importlib import import_module

    family: Any = import_module(lib)
    for own in (family.HTTPTransport, family.AsyncHTTPTransport):
        assert is_proxy(own(proxy="http://127.0.0.1:9", verify=NO_TLS))
        assert not is_proxy(own(verify=NO_TLS))
    for client in (family.Client, family.AsyncClient):
        assert callable(client._transport_for_url)
    assert not is_proxy(family.MockTransport(lambda request: None))
