"""mask-refinement: it really refines, and says what is wrong with its input."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from tests.sandbox.buyer import Buyer, receipt
from tests.sandbox.conftest import Open
from tests.support.loopback import Handler, HttpServer
from x402_mask.sandbox import STATIC, Sandbox, SandboxSettings
from x402_mask.sandbox.mask import refine
from x402_mask.sandbox.pictures import Pictures

TRUTH = Path(__file__).with_name("truth.png")
FIXTURES = Path(__file__).parents[2] / "fixtures"

Bits = NDArray[np.bool_]


def bits(picture: bytes | Path) -> Bits:
    source = io.BytesIO(picture) if isinstance(picture, bytes) else picture
    answer: Bits = np.asarray(Image.open(source).convert("L")) > 127
    return answer


def iou(mask: Bits, truth: Bits) -> float:
    return float((mask & truth).sum() / (mask | truth).sum())


def png(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def test_the_refined_mask_is_much_nearer_the_truth(shop: Sandbox, buyer: Buyer) -> None:
    response = buyer.pay()
    answer = response.json()
    assert list(answer) == ["code", "content", "data", "message", "requestId"]
    assert (answer["code"], answer["message"]) == ("200", "success")
    url = answer["data"]["ImageURL"]
    assert url.startswith(f"{shop.url}/static/results/")
    picture = buyer.http.get(url)
    assert picture.headers["Content-Type"] == "image/png"
    truth, coarse, refined = bits(TRUTH), bits(STATIC / "mask.png"), bits(picture.content)
    assert iou(coarse, truth) < 0.9
    assert iou(refined, truth) > 0.98


def test_the_demo_pictures_are_those_the_sandbox_serves(buyer: Buyer) -> None:
    for name in ("photo.png", "mask.png"):
        picture = (FIXTURES / name).read_bytes()
        assert len(picture) < 200_000
        assert buyer.http.get(f"/static/{name}").content == picture


@pytest.mark.parametrize("seed", range(4))
def test_other_pictures_gain_too(seed: int) -> None:
    rng = np.random.default_rng(seed)
    size = (200 + 40 * seed, 180)
    photo = Image.new("RGB", size, tuple(int(c) for c in rng.integers(0, 120, 3)))
    truth = Image.new("1", size)
    corners = rng.uniform(0.25, 0.75, 4) * [size[0], size[1], size[0], size[1]]
    x, y = corners[:2]
    shape = [(x - 40, y - 30), (x + 45, y - 42), (x + 20, y + 40), (x - 30, y + 35)]
    colour = tuple(int(c) for c in rng.integers(140, 256, 3))
    ImageDraw.Draw(photo).polygon(shape, fill=colour)
    ImageDraw.Draw(truth).polygon(shape, fill=1)
    noisy = np.asarray(photo) + rng.normal(0, 8, (size[1], size[0], 3))
    photo = Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))
    small = truth.convert("L").resize((size[0] // 12, size[1] // 12), Image.Resampling.BOX)
    coarse = small.point(lambda level: 255 if level > 60 else 0)
    refined = bits(refine(png(photo), png(coarse)))
    full = coarse.resize(size, Image.Resampling.NEAREST)
    exact = np.asarray(truth)
    assert refined.shape == exact.shape
    assert iou(refined, exact) > max(0.97, iou(bits(png(full)), exact))


@pytest.mark.parametrize("level", [0, 255])
def test_an_empty_or_full_mask_stays_what_it_is(level: int) -> None:
    photo = (STATIC / "photo.png").read_bytes()
    refined = refine(photo, png(Image.new("L", (384, 288), level)))
    assert np.unique(np.asarray(Image.open(io.BytesIO(refined)))).tolist() == [level]


def test_a_mask_may_be_an_alpha_channel() -> None:
    photo = (STATIC / "photo.png").read_bytes()
    coarse = Image.open(STATIC / "mask.png").convert("L")
    cutout = Image.new("RGBA", coarse.size, (0, 0, 0, 0))
    cutout.putalpha(coarse)
    assert iou(bits(refine(photo, png(cutout))), bits(TRUTH)) > 0.98


# -- input that does not fit is told clearly, after payment (settleMode: settle_first)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"ImageURL": "x"}, "MaskImageURL is required"),
        ({"imageURL": "x", "MaskImageURL": "x"}, "case-sensitive, use ImageURL"),
        ({"ImageURL": 1, "MaskImageURL": "x"}, "ImageURL is required: a string"),
        ({"ImageURL": "file:///etc/passwd", "MaskImageURL": "x"}, "must be a public http(s) URL"),
        ({"ImageURL": "http://", "MaskImageURL": "x"}, "could not be fetched"),
        ([1], "must be a JSON object"),
    ],
)
def test_bad_input_is_400_and_paid(shop: Sandbox, buyer: Buyer, body: Any, said: str) -> None:
    proof = buyer.proof(buyer.offer())
    bad, buyer.pictures = buyer.pictures, body
    response = buyer.show(proof)
    buyer.pictures = bad
    answer = response.json()
    assert (response.status_code, answer["code"]) == (400, "400")
    assert said in answer["error"]
    assert receipt(response)["success"]
    assert len(shop.book.settlements) == 1


def test_the_sandbox_has_no_other_pictures_of_its_own(shop: Sandbox, buyer: Buyer) -> None:
    for path in ("none.png", "../__init__.py", "%2e%2e/__init__.py", "results/x.png"):
        buyer.pictures["ImageURL"] = f"{shop.url}/static/{path}"
        assert "no such picture" in buyer.pay().json()["error"]
        assert buyer.http.get(f"/static/{path}").status_code == 404


@contextmanager
def web(replies: dict[str, tuple[int, bytes]]) -> Iterator[str]:
    """A web server with other people's pictures."""

    class Page(Handler):
        def do_GET(self) -> None:  # noqa: N802 - the base's name
            status, body = replies[self.path]
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Location", "/photo")
            self.end_headers()
            self.wfile.write(body)

    with HttpServer(Page) as server:
        yield server.url


def test_pictures_of_the_open_web(opened: Open) -> None:
    _, buyer = opened(fetch_bytes_max=150_000)
    replies = {
        "/photo": (200, (STATIC / "photo.png").read_bytes()),
        "/moved": (302, b""),
        "/gone": (404, b""),
        "/text": (200, b"not a picture"),
        "/large": (200, bytes(150_001)),
    }
    with web(replies) as base:
        said = {}
        for path in replies:
            buyer.pictures["ImageURL"] = base + path
            said[path] = buyer.pay().json().get("error")
    assert said["/photo"] is None
    assert said["/moved"] == "ImageURL answered 302"
    assert said["/gone"] == "ImageURL answered 404"
    assert said["/text"].startswith("ImageURL is not a readable picture")
    assert said["/large"] == "ImageURL is larger than 150000 bytes"


def test_the_open_web_can_be_closed(opened: Open) -> None:
    _, buyer = opened(fetch_remote=False)
    buyer.pictures["MaskImageURL"] = "http://127.0.0.1:9/mask.png"
    assert "only reads its own" in buyer.pay().json()["error"]


def test_old_results_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("x402_mask.sandbox.pictures.RESULTS_MAX", 2)
    pictures = Pictures(SandboxSettings())
    paths = [pictures.keep(bytes([n])) for n in range(3)]
    assert [pictures.get(path) for path in paths] == [None, b"\x01", b"\x02"]


def test_a_huge_picture_is_refused_before_it_is_decoded() -> None:
    huge = png(Image.new("1", (4001, 1000)))
    with pytest.raises(ValueError, match="more than 4000000 pixels"):
        refine(huge, huge)
    cut = (STATIC / "photo.png").read_bytes()[:5000]
    with pytest.raises(ValueError, match="ImageURL is not a readable picture"):
        refine(cut, cut)
