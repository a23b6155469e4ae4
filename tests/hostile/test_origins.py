"""Row 26 and what else needs names of hosts: in memory, over ``MockTransport``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest

from tests.hostile.kit import World, notes
from tests.support.seller import PROOF_HEADERS, challenge, encode, offer
from x402_mask import (
    Cap,
    OriginRefused,
    PaymentRefused,
    PaymentTransport,
    attach,
    receipt_of,
)

SHOP = "https://shop.example"
PLUGS = ["transport", "attach"]
Handler = Callable[[httpx.Request], httpx.Response]


def demand(**headers: str) -> httpx.Response:
    """A 402."""
    required = encode(challenge(offer("1000")))
    return httpx.Response(402, headers={"PAYMENT-REQUIRED": required, **headers})


def has_proof(request: httpx.Request) -> bool:
    """Does it carry any payment header?"""
    return any(name in request.headers for name in PROOF_HEADERS)


def till(request: httpx.Request) -> httpx.Response:
    """A seller in memory: asks, then delivers."""
    return httpx.Response(200, text="goods") if has_proof(request) else demand()


def client(world: World, plug: str, handler: Handler, **payer: Any) -> httpx.Client:
    """A paying client whose network is a function."""
    payer.setdefault("origins", [SHOP])
    payer_made = world.payer(**payer)
    inner = httpx.MockTransport(handler)
    if plug == "attach":
        plain = httpx.Client(transport=inner, follow_redirects=True)
        attach(plain, payer_made)
        return plain
    transport = PaymentTransport(payer_made, inner)
    return httpx.Client(transport=transport, follow_redirects=True)


OTHERS = [
    "http://shop.example/p",
    "https://shop.example:8443/p",
    "https://sub.shop.example/p",
    "https://shop.example.evil.test/p",
    "https://shop.example@evil.test/p",
    "https://evil.test/https://shop.example",
    "https://evil.test/?https://shop.example",
    "https://xn--shp-1na.example/p",
    "https://shop.example./p",
]
SAME = [
    "https://shop.example/p",
    "https://SHOP.example/p",
    "https://shop.example:443/p",
    "https://shop.example/p?x=http://evil.test#y",
]


@pytest.mark.parametrize("plug", PLUGS)
@pytest.mark.parametrize("url", OTHERS)
def test_an_address_that_only_looks_like_the_shop_is_not_paid(
    world: World, plug: str, url: str
) -> None:
    """Row 26: plain http, another port, a subdomain, look-alikes."""
    with client(world, plug, till) as buyer, pytest.raises(OriginRefused) as caught:
        buyer.get(url)
    assert caught.value.at_risk is False and world.signer.calls == 0
    assert caught.value.response.status_code == 402


@pytest.mark.parametrize("plug", PLUGS)
@pytest.mark.parametrize("url", SAME)
def test_other_spellings_of_the_shop_are_the_shop(world: World, plug: str, url: str) -> None:
    """Row 26: letter case of the host and the default port."""
    with client(world, plug, till) as buyer:
        response = buyer.get(url)
    found = receipt_of(response)
    assert response.text == "goods" and found is not None and found.origin == SHOP


@pytest.mark.parametrize(
    "origin",
    [
        "http://shop.example",
        "http://localhost.evil.test",
        "http://127.0.0.1.evil.test",
        "http://169.254.169.254",
        "ftp://shop.example",
        "shop.example",
        "https://",
        "*",
        "",
    ],
)
def test_an_origin_that_must_not_be_paid_cannot_be_listed(world: World, origin: str) -> None:
    """Row 26: https only, loopback excepted."""
    with pytest.raises(ValueError):
        world.payer(origins=[origin])


@pytest.mark.parametrize("missing", ["origins", "caps"])
def test_caps_and_origins_are_not_optional(world: World, missing: str) -> None:
    """Rows 2 and 26: an empty list is an error and not a licence."""
    if missing == "origins":
        with pytest.raises(ValueError):
            world.payer(origins=[])
    else:
        with pytest.raises(ValueError):
            world.payer(origins=[SHOP], wide=False)


@pytest.mark.parametrize("plug", PLUGS)
@pytest.mark.parametrize("paid", [False, True], ids=["before-payment", "after-payment"])
@pytest.mark.parametrize(
    "target", ["http://shop.example/p", "https://www.shop.example/p", "https://shop.example:444/p"]
)
def test_a_downgrade_by_redirect_is_not_paid_and_sees_no_proof(
    world: World, plug: str, paid: bool, target: str
) -> None:
    """Rows 25 and 26: https to http, to a subdomain, to another port."""
    seen: list[httpx.Request] = []
    away = httpx.Response(307, headers={"Location": target})

    def handler(request: httpx.Request) -> httpx.Response:
        if request.url.copy_with(raw_path=b"/") != httpx.URL(SHOP + "/"):
            seen.append(request)
            return till(request)
        return away if has_proof(request) or not paid else demand()

    with client(world, plug, handler) as buyer:
        outcome: Any = None
        try:
            buyer.get(SHOP + "/start")
        except OriginRefused as error:
            outcome = error
    assert outcome is None or outcome.at_risk is paid
    assert seen and not any(has_proof(request) for request in seen)
    assert world.signer.calls == int(paid)


@pytest.mark.parametrize("plug", PLUGS)
@pytest.mark.parametrize("failure", [KeyboardInterrupt, SystemExit, MemoryError, ZeroDivisionError])
def test_whatever_is_raised_on_the_paid_leg_passes_and_the_money_is_held(
    world: World, plug: str, failure: type[BaseException]
) -> None:
    """Row 28: Ctrl-C included; the same exception, and the next call shows the same bytes."""
    proofs: list[str] = []
    answers: list[Any] = [failure("stop"), httpx.Response(200, text="goods")]

    def handler(request: httpx.Request) -> httpx.Response:
        if not has_proof(request):
            return demand()
        proofs.append(request.headers["PAYMENT-SIGNATURE"])
        answer = answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        assert isinstance(answer, httpx.Response)
        return answer

    with client(world, plug, handler) as buyer:
        with pytest.raises(failure):
            buyer.get(SHOP + "/p")
        assert world.held() > 0 and len(world.in_state("held")) == 1
        assert buyer.get(SHOP + "/p").text == "goods"
    assert len(set(proofs)) == 1 and len(proofs) == 2


@pytest.mark.parametrize("plug", PLUGS)
@pytest.mark.parametrize(
    "failure",
    [
        httpx.ReadTimeout,
        httpx.WriteTimeout,
        httpx.PoolTimeout,
        httpx.ConnectTimeout,
        httpx.ReadError,
        httpx.WriteError,
        httpx.ConnectError,
        httpx.RemoteProtocolError,
        httpx.ProxyError,
    ],
)
def test_a_network_error_stays_what_it_is_and_gains_a_note(
    world: World, plug: str, failure: type[httpx.TransportError]
) -> None:
    """Rows 27, 28 and 35: same class, same object, a note that names the payment."""
    raised = failure("broken")

    def handler(request: httpx.Request) -> httpx.Response:
        if has_proof(request):
            raise raised
        return demand()

    with client(world, plug, handler) as buyer, pytest.raises(failure) as caught:
        buyer.get(SHOP + "/p")
    assert caught.value is raised
    payment = world.in_state("reserved", "held", "released", "settled")[0]
    assert payment.payment_id in notes(raised)


@pytest.mark.parametrize("plug", PLUGS)
def test_a_failure_of_the_unpaid_leg_is_none_of_our_business(world: World, plug: str) -> None:
    """Row 35: no note, no record, the same exception."""
    raised = httpx.ReadTimeout("slow")

    def handler(request: httpx.Request) -> httpx.Response:
        raise raised

    with client(world, plug, handler) as buyer, pytest.raises(httpx.ReadTimeout) as caught:
        buyer.get(SHOP + "/p")
    assert caught.value is raised and notes(raised) == "" and world.counted() == 0


def test_a_transport_of_the_other_family_is_named_and_not_asserted(world: World) -> None:
    """Facts 1: mixing httpx and httpx2 is a mistake that says so at once."""
    httpx2 = pytest.importorskip("httpx2")
    payer = world.payer(origins=[SHOP])
    with pytest.raises(TypeError):
        PaymentTransport(payer, httpx2.MockTransport(till))


def test_the_route_of_a_cap_is_the_callers_url(world: World) -> None:
    """Row 16: a marketplace path on a listed https origin is that service, elsewhere it is not."""
    with client(world, "transport", till, wide=True) as buyer:
        one = receipt_of(buyer.post(SHOP + "/api/tools/mask-refinement?x=/api/tools/other"))
        two = receipt_of(buyer.post(SHOP + "/api/tools/aliyun-imageseg-refine-mask"))
        three = receipt_of(buyer.post(SHOP + "/shop/api/tools/mask-refinement"))
    assert one is not None and two is not None and three is not None
    assert (one.service, two.service, three.service) == ("mask-refinement",) * 2 + (SHOP,)


@pytest.mark.parametrize(
    "path",
    [
        "/api/tools/Mask-Refinement",
        "/api/tools/mask%2Drefinement",
        "/api/tools//mask-refinement",
        "/api/tools/x/../mask-refinement",
        "/api/./tools/mask-refinement",
        "/API/tools/mask-refinement",
        "/api/tools/mask-refinement/",
    ],
)
def test_another_spelling_of_the_path_never_escapes_the_cap(world: World, path: str) -> None:
    """Row 2: a cap on a service and none on "*": a spelling is that service, or it is not paid."""
    cap = Cap("0.0015", per="day", service="mask-refinement")
    payer = world.payer(cap, wide=False, origins=[SHOP])
    transport = PaymentTransport(payer, httpx.MockTransport(till))
    paid = 0
    with httpx.Client(transport=transport) as buyer:
        for spelling in ("/api/tools/mask-refinement", path, path):
            try:
                buyer.post(SHOP + spelling)
            except PaymentRefused:
                continue
            paid += 1
    assert paid == 1 and world.signer.calls == 1
