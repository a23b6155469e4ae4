"""Building clients: what mixes, what does not, who closes what (facts 1, 2.11, 2.13, 2.14)."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import httpx2
import pytest
from eth_account import Account
from eth_account.signers.local import LocalAccount

import x402_mask
import x402_mask.httpx2
from tests.transport.kit import LIBS, NO_TLS, SHOP, URL, Kind, Rig, kinds
from x402_mask import Cap, MemoryLedger, Payer, Wallet
from x402_mask._payer import buyer_of


def payer_for(**options: Any) -> Payer:
    """A payer with the options."""
    options.setdefault("caps", [Cap(1, per="day")])
    options.setdefault("ledger", MemoryLedger())
    return Payer(options.pop("wallet", Wallet.create()), origins=[SHOP], **options)


def mask_of(lib: str) -> Any:
    """The plug points of a family."""
    return x402_mask if lib == "httpx" else x402_mask.httpx2


class AsyncSigner:
    """A wallet behind a coroutine."""

    address = "0x" + "11" * 20

    async def sign_typed_data(self, domain: Any, types: Any, message: Any) -> bytes:
        raise AssertionError("never asked")


async def approve_async(quote: object) -> bool:
    raise AssertionError("never asked")


FAMILY = {"httpx": httpx, "httpx2": httpx2}
OTHER_FAMILY: dict[str, Any] = {"httpx": httpx2, "httpx2": httpx}


@pytest.mark.parametrize("lib", LIBS)
def test_the_families_do_not_mix(lib: str) -> None:
    """Fact 1: the other family's object is a TypeError that names both, where it is built."""
    mask, other, payer = mask_of(lib), OTHER_FAMILY[lib], payer_for()
    for wrong in (other.HTTPTransport(), other.MockTransport(lambda request: None)):
        with pytest.raises(TypeError, match=f"transport of {lib} "):
            mask.PaymentTransport(payer, wrong)
    with pytest.raises(TypeError, match=f"transport of {lib} "):
        mask.AsyncPaymentTransport(payer, other.AsyncHTTPTransport())
    with pytest.raises(TypeError, match=f"transport of {lib} "):
        mask.Client(payer, mounts={"https://": other.HTTPTransport()})
    for client in (other.Client(), other.AsyncClient()):
        with pytest.raises(TypeError, match=f"{lib} client"):
            mask.attach(client, payer)


@pytest.mark.parametrize("stamped", [("httpx",), ("httpx2",), ("httpx", "httpx2")], ids="-".join)
@pytest.mark.parametrize("lib", LIBS)
def test_a_class_is_what_it_is_whatever_an_sdk_calls_it(
    lib: str, stamped: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """SDKs write their own name into ``__module__`` of all that they re-export."""
    for name in stamped:
        for kind in vars(FAMILY[name]).values():
            if isinstance(kind, type):
                monkeypatch.setattr(kind, "__module__", "some_sdk")
    monkeypatch.setattr(LocalAccount, "__module__", "some_sdk")
    mask, own, other = mask_of(lib), FAMILY[lib], OTHER_FAMILY[lib]
    payer = payer_for(wallet=Account.from_key("11" * 32))
    assert isinstance(buyer_of(payer).settings.signer, Wallet)
    for make in (mask.Client, mask.AsyncClient, mask.PaymentTransport, mask.AsyncPaymentTransport):
        make(payer)
    mask.PaymentTransport(payer, own.MockTransport(lambda request: None))
    mask.attach(own.Client(), payer)
    for family in (own, other):
        answer = family.Response(200, request=family.Request("GET", SHOP))
        assert payer.quote(answer) is None
    with pytest.raises(TypeError, match=f"transport of {lib} "):
        mask.PaymentTransport(payer, other.HTTPTransport())


@pytest.mark.parametrize("lib", LIBS)
def test_a_library_that_another_thread_still_imports_is_in_nobodys_way(
    lib: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its module is there, and empty."""
    other = OTHER_FAMILY[lib].__name__
    monkeypatch.setitem(sys.modules, other, ModuleType(other))
    accounts = "eth_account.signers.local"
    monkeypatch.setitem(sys.modules, accounts, ModuleType(accounts))
    mask, own = mask_of(lib), FAMILY[lib]
    payer = payer_for(wallet=AsyncSigner())
    mask.AsyncPaymentTransport(payer, own.AsyncHTTPTransport(verify=NO_TLS))
    mask.AsyncClient(payer, verify=NO_TLS)
    with pytest.raises(TypeError, match="handle_async_request"):
        mask.AsyncPaymentTransport(payer, own.HTTPTransport(verify=NO_TLS))


@pytest.mark.parametrize("lib", LIBS)
def test_the_colours_do_not_mix(lib: str) -> None:
    """An async transport cannot be wrapped for a sync client, nor the other way round."""
    mask, own, payer = mask_of(lib), FAMILY[lib], payer_for()
    for wrong in (own.AsyncHTTPTransport(), object(), "https://shop.example"):
        with pytest.raises(TypeError, match="handle_request"):
            mask.PaymentTransport(payer, wrong)
    for wrong in (own.HTTPTransport(), object()):
        with pytest.raises(TypeError, match="handle_async_request"):
            mask.AsyncPaymentTransport(payer, wrong)
    for nonsense in (object(), payer, own.HTTPTransport()):
        with pytest.raises(TypeError, match="attach"):
            mask.attach(nonsense, payer)


@pytest.mark.parametrize("lib", LIBS)
@pytest.mark.parametrize("wrong", [None, "payer", object()])
def test_what_is_no_payer_is_refused_at_once(lib: str, wrong: Any) -> None:
    """And not at the first 402."""
    mask, own = mask_of(lib), FAMILY[lib]
    makers = (
        mask.PaymentTransport,
        mask.AsyncPaymentTransport,
        mask.Client,
        mask.AsyncClient,
        mask.PaymentAuth,
        lambda payer: mask.attach(own.Client(), payer),
        lambda payer: mask.attach(own.AsyncClient(), payer),
    )
    for make in makers:
        with pytest.raises(TypeError, match="payer is a Payer"):
            make(wrong)


@pytest.mark.parametrize("lib", LIBS)
@pytest.mark.parametrize("part", ["signer", "approve"])
def test_what_is_async_needs_an_async_client(lib: str, part: str) -> None:
    """Contract 1: a TypeError when the client is built, not when it has to pay."""
    options: dict[str, Any] = (
        {"wallet": AsyncSigner()} if part == "signer" else {"approve": approve_async}
    )
    mask, own, payer = mask_of(lib), FAMILY[lib], payer_for(**options)
    with pytest.raises(TypeError, match=part):
        mask.PaymentTransport(payer)
    with pytest.raises(TypeError, match=part):
        mask.Client(payer)
    with own.Client() as client, pytest.raises(TypeError, match=part):
        mask.attach(client, payer)
    with own.Client(auth=mask.PaymentAuth(payer)) as client, pytest.raises(TypeError, match=part):
        client.get(URL)
    mask.AsyncPaymentTransport(payer)
    mask.AsyncClient(payer)
    mask.attach(own.AsyncClient(), payer)


@pytest.mark.parametrize("lib", LIBS)
def test_any_object_with_the_right_method_is_a_transport(lib: str) -> None:
    """As for httpx itself."""

    class Duck:
        def handle_request(self, request: Any) -> Any:
            return FAMILY[lib].Response(200, content=b"quack")

    transport = mask_of(lib).PaymentTransport(payer_for(), Duck())
    assert transport.handle_request(FAMILY[lib].Request("GET", URL)).content == b"quack"


@pytest.mark.parametrize("lib", LIBS)
def test_transports_stack(lib: str) -> None:
    """Fact 2.11: what wraps us wraps us, and what we wrap may wrap something."""
    own: Any = FAMILY[lib]
    seen: list[str] = []

    class Outer(own.BaseTransport):  # type: ignore[misc]
        def __init__(self, inner: Any, name: str) -> None:
            self.inner, self.name = inner, name

        def handle_request(self, request: Any) -> Any:
            seen.append(self.name)
            return self.inner.handle_request(request)

    inner = Outer(own.MockTransport(lambda request: own.Response(200)), "inside")
    stack = Outer(mask_of(lib).PaymentTransport(payer_for(), inner), "outside")
    with own.Client(transport=stack) as client:
        assert client.get(URL).status_code == 200
    assert seen == ["outside", "inside"]


@kinds("attach")
async def test_attaching_twice_is_attaching_once(rig: Rig) -> None:
    """The second time changes nothing; another payer is a mistake."""
    rig.sells()
    assert rig.mask.attach(rig.client, rig.payer) is rig.client
    rig.paid(await rig.get())
    assert len(rig.legs) == 2 and len(set(rig.proofs)) == 1
    with pytest.raises(ValueError, match="another payer"):
        rig.mask.attach(rig.client, rig.make_payer())


@kinds("attach")
async def test_a_paying_client_can_be_attached_too(rig: Rig) -> None:
    """Both layers pay from one payer: one payment."""
    rig.sells()
    own = rig.mask.Client if rig.kind.sync else rig.mask.AsyncClient
    rig.client = rig.mask.attach(own(rig.payer, transport=rig.wire), rig.payer)
    rig.paid(await rig.get())
    assert len(rig.payer.payments()) == 1
    await rig.shut(rig.client)


@kinds()
async def test_closing_a_client_closes_its_transport_and_never_the_payer(rig: Rig) -> None:
    """Contract 1."""
    rig.sells()
    client = rig.make_client()
    async with Entered(rig, client):
        pass
    assert rig.wire.closed == 1 and client.is_closed
    rig.client = rig.make_client()
    rig.paid(await rig.get())


class Entered:
    """``with`` or ``async with``, by colour."""

    def __init__(self, rig: Rig, client: Any) -> None:
        self._rig, self._client = rig, client

    async def __aenter__(self) -> Any:
        enter = self._client.__enter__ if self._rig.kind.sync else self._client.__aenter__
        return await self._rig.wait(enter())

    async def __aexit__(self, *exc: object) -> None:
        leave = self._client.__exit__ if self._rig.kind.sync else self._client.__aexit__
        await self._rig.wait(leave(*exc))


@kinds("client")
async def test_mounts_are_paid_through(rig: Rig) -> None:
    """Fact 2.14: those the user gives as well, None included; one that pays already stays."""
    rig.sells()
    dead = rig.lib.MockTransport(lambda request: rig.lib.Response(500))
    rig.client = rig.make_client(inner=dead, mounts={SHOP: rig.wire, "https://dead.example": None})
    rig.paid(await rig.get())
    assert (await rig.get("https://dead.example/")).status_code == 500
    rig.client = rig.make_client(inner=dead, mounts={SHOP: rig.wrap(rig.payer, rig.wire)})
    rig.paid(await rig.get())
    assert len(rig.legs) == 4


@kinds("client")
async def test_proxies_of_the_environment_are_paid_through(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fact 2.13, at the private hooks that it needs; a socket does it in ``test_sockets``."""
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    wrapper = rig.mask.PaymentTransport if rig.kind.sync else rig.mask.AsyncPaymentTransport
    client = rig.make_client(inner=None)
    mounts = [transport for transport in client._mounts.values() if transport is not None]
    assert mounts and all(isinstance(one, wrapper) for one in [*mounts, client._transport])
    alone = rig.make_client(inner=None, trust_env=False)
    assert not alone._mounts and isinstance(alone._transport, wrapper)
    proxied = rig.make_client(inner=None, proxy="http://127.0.0.1:9")
    assert all(isinstance(one, wrapper) for one in proxied._mounts.values())


@pytest.mark.parametrize("lib", LIBS)
def test_the_private_hooks_of_the_family_are_still_there(lib: str) -> None:
    """Fact 2.13: the one test that guards what ``Client`` overrides."""
    for client in (FAMILY[lib].Client, FAMILY[lib].AsyncClient):
        assert callable(client._init_transport) and callable(client._init_proxy_transport)


@pytest.mark.parametrize("lib", LIBS)
def test_clients_are_subclasses(lib: str) -> None:
    """What takes an httpx client takes ours."""
    mask, own, payer = mask_of(lib), FAMILY[lib], payer_for()
    with mask.Client(payer, base_url=SHOP, headers={"a": "b"}, verify=NO_TLS) as client:
        assert isinstance(client, own.Client) and client.base_url.host == "shop.example"
        assert client.headers["a"] == "b"
        assert client.timeout == own.Timeout(5.0, read=60.0)
    assert isinstance(mask.AsyncClient(payer), own.AsyncClient)
    assert isinstance(mask.PaymentAuth(payer), own.Auth)
    assert isinstance(mask.PaymentTransport(payer), own.BaseTransport)
    assert isinstance(mask.AsyncPaymentTransport(payer), own.AsyncBaseTransport)
    assert mask.attach(own.AsyncClient(), payer).auth.payer is payer


def test_a_payer_cannot_be_pickled_or_copied() -> None:
    """Contract 1: two copies would be two budgets."""
    payer = payer_for()
    for attempt in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="pickled"):
            attempt(payer)


def test_both_twins_have_the_same_names() -> None:
    """Contract 1."""
    assert x402_mask.httpx2.__all__ == x402_mask.httpx.__all__
    names = set(x402_mask.httpx.__all__)
    assert names <= set(x402_mask.__all__) and all(hasattr(x402_mask, name) for name in names)


@kinds("transport", libs=["httpx"])
async def test_nothing_warns_when_a_client_is_forgotten(rig: Rig, kind: Kind) -> None:
    """Our layers add no warning of their own to what httpx does."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rig.wrap(rig.payer)
        rig.mask.attach(rig.plain(transport=rig.wire), rig.payer)


ALIASED = """
import httpx2
httpx2.alias_httpx()
import httpx
assert httpx.Client is httpx2.Client
from tests.transport.kit import Kind, Rig
rig = Rig(Kind("httpx", "sync", "attach"))
rig.sells()
rig.paid(rig.client.get("https://shop.example/paid"))
from x402_mask import Client, PaymentTransport
with Client(rig.payer, transport=rig.wire) as client:
    rig.paid(client.get("https://shop.example/paid"))
PaymentTransport(rig.payer, httpx2.MockTransport(lambda request: None))
import x402_mask.httpx as one, x402_mask.httpx2 as two
contexts = set()
for outer, inner in ((one, two), (two, one)):
    before = len(rig.payer.ledger.payments())
    wire = inner.PaymentTransport(rig.payer, rig.wire)
    for client in (outer.Client(rig.payer, transport=wire), httpx.Client(transport=wire)):
        with outer.attach(client, rig.payer):
            answer = client.get("https://shop.example/paid")
        rig.paid(answer)
        contexts.add(type(answer.request.extensions["x402_mask_trip"]))
    assert len(rig.payer.ledger.payments()) == before + 2
assert len(contexts) == 1
print(rig.payer.quote(httpx.Response(200, request=httpx.Request("GET", "https://a.example"))))
"""


def test_httpx_may_be_httpx2_in_disguise() -> None:
    """Fact 1: ``httpx2.alias_httpx()`` makes ``import httpx`` mean httpx2 for a whole process."""
    done = subprocess.run(
        [sys.executable, "-c", ALIASED],
        capture_output=True,
        text=True,
        timeout=15,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert (done.returncode, done.stdout) == (0, "None\n"), done.stderr
