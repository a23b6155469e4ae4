"""``refine_mask``, end to end against the sandbox, and what an answer may be."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import httpx
import pytest

from tests.catalog.conftest import MakePayer
from tests.catalog.kit import MODES, Shop, client_of, using
from tests.support.seller import served
from x402_mask import (
    Cap,
    MemoryLedger,
    Payer,
    RefinedMask,
    ServiceFailed,
    Wallet,
    refine_mask,
)
from x402_mask.sandbox import Sandbox

PICTURES = {"image_url": "https://a.example/photo.png", "mask_image_url": "https://a.example/m.png"}


@pytest.mark.parametrize("family", ["httpx", "httpx2"])
@pytest.mark.parametrize("mode", ["client", "async-attach"])
def test_a_mask_is_refined_and_paid_for_once(mode: str, family: str) -> None:
    with Sandbox() as shop:
        pictures = {
            "image_url": f"{shop.url}/static/photo.png",
            "mask_image_url": f"{shop.url}/static/mask.png",
        }
        options: Any = {
            "caps": [Cap(1, per="total")],
            "origins": [shop.url],
            "ledger": MemoryLedger(),
        }
        with Payer(Wallet.create(), **options) as payer:
            found = using(mode, payer, lambda c: refine_mask(c, **pictures), family)
            assert payer.payments()[0].state == "settled"
        assert isinstance(found, RefinedMask) and found.receipt is not None
        assert (found.receipt.usd, found.receipt.outcome) == (Decimal("0.20"), "settled")
        assert found.request_id == found.raw["requestId"]
        assert httpx.get(str(found.image_url), trust_env=False).content.startswith(b"\x89PNG")
        assert [s.amount for s in shop.book.settlements] == [200_000]


def refined(shop: Shop, payer: Payer, answer: bytes, mode: str = "client") -> Any:
    shop.sells(paid=served(answer))
    return using(mode, payer, lambda client: refine_mask(client, **PICTURES))


@pytest.mark.parametrize(
    ("data", "url"),
    [
        ('{"ImageURL": "https://x/y"}', "https://x/y"),
        ('{"Elements": [{"ImageURL": "http://x"}]}', "http://x"),
        ("{}", None),
        ('{"ImageURL": 7, "Elements": [7]}', None),
        ('{"ImageURL": "javascript:x"}', None),
        ('{"ImageURL": "https://x/\\u202e"}', None),
        ('{"Elements": {}}', None),
    ],
)
def test_where_the_mask_is(shop: Shop, make_payer: MakePayer, data: str, url: str | None) -> None:
    for code in ('"code": "200",', '"code": 200,', ""):
        found = refined(shop, make_payer(), f'{{{code} "data": {data}, "requestId": "r"}}'.encode())
        assert (found.image_url, found.request_id) == (url, "r")
    assert (
        shop.seller.hits[-1].body
        == b'{"ImageURL":"https://a.example/photo.png","MaskImageURL":"https://a.example/m.png"}'
    )


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (
            b'{"code": "400", "message": "no\\u001b such", "data": {}}',
            r"answered 400: no\\x1b such",
        ),
        (b'{"code": "200"}', "no data"),
        (b"<html>", "not usable"),
        (b"[]", "not a JSON object"),
    ],
)
def test_a_failure_tells_what_was_paid(
    shop: Shop, make_payer: MakePayer, answer: bytes, words: str, mode: str
) -> None:
    payer = make_payer()
    with pytest.raises(ServiceFailed, match=words) as caught:
        refined(shop, payer, answer, mode)
    assert caught.value.receipt is not None and caught.value.receipt.usd == Decimal("0.20")
    assert caught.value.response.content == answer
    assert any(caught.value.receipt.payment_id in note for note in caught.value.__notes__)


def test_a_status_is_the_clients_own_error(
    shop: Shop, make_payer: MakePayer, caplog: pytest.LogCaptureFixture
) -> None:
    payer = make_payer()
    shop.sells(paid=served(b"{}", status=503))
    with pytest.raises(httpx.HTTPStatusError) as caught:
        using("client", payer, lambda client: refine_mask(client, **PICTURES))
    (note,) = caught.value.__notes__
    (told,) = [r.getMessage() for r in caplog.records if "HTTP 503 answers" in r.getMessage()]
    assert payer.payments()[0].payment_id in told and "$0.20 for mask-refinement" in told
    assert "$0.20" in note and payer.payments()[0].payment_id in note and "settled" in note


def test_which_marketplace(shop: Shop, make_payer: MakePayer) -> None:
    good = served(b'{"data": {}}')
    shop.sells(paid=good)
    shop.seller.sells(path="/v1/api/tools/mask-refinement", paid=good)
    two = make_payer(origins=[shop.origin, "https://other.example", "mcp:shop"])
    with client_of("client", two) as client, pytest.raises(ValueError, match="which marketplace"):
        refine_mask(client, **PICTURES)
    with client_of("client", make_payer(origins=[shop.origin, "mcp:shop"])) as client:
        assert refine_mask(client, **PICTURES).receipt is not None
    with client_of("client", two, base_url=shop.origin + "/v1/") as client:
        assert refine_mask(client, **PICTURES).receipt is not None
        assert shop.paths()[-1] == "/v1/api/tools/mask-refinement"
        assert refine_mask(client, base_url=shop.origin, **PICTURES).receipt is not None
    with client_of("client", None) as client, pytest.raises(ValueError, match="which marketplace"):
        refine_mask(client, **PICTURES)


NO_URLS = [
    "",
    " ",
    "nope",
    "photo.png",
    "/photo.png",
    "file:///photo.png",
    "data:image/png;base64,AA==",
    "https://",
    "https:///x",
    "https:x",
    "http://[::1/x",
    "https://a.example/a b",
    "ftp://a.example",
    " https://a.example/x",
    "https://a.example/x\n",
    "https://a.example/%zz",
    "https://?x",
    "https://a.example/" + "x" * 5000,
]


def test_nor_is_it_by_an_async_client(shop: Shop) -> None:
    """Found when it is called, not when it is awaited."""
    with pytest.raises(ValueError, match="image_url is not"):
        refine_mask(httpx.AsyncClient(), base_url=shop.origin, **{**PICTURES, "image_url": "nope"})
    assert shop.paths() == []


def test_what_is_no_url_is_never_sent(shop: Shop, make_payer: MakePayer) -> None:
    match = "mask_image_url is a str"
    with client_of("client", make_payer()) as client, pytest.raises(TypeError, match=match):
        refine_mask(client, image_url="https://x", mask_image_url=None)  # type: ignore[arg-type]
    for name in PICTURES:
        for wrong in NO_URLS:
            with client_of("client", make_payer()) as client, pytest.raises(ValueError, match=name):
                refine_mask(client, **{**PICTURES, name: wrong})
    with pytest.raises(TypeError, match="takes an httpx or httpx2 client"):
        refine_mask(7, **PICTURES)  # type: ignore[call-overload]
    assert shop.paths() == []
