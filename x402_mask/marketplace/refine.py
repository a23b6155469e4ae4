"""``refine_mask``: the marketplace's mask-refinement, with types."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, overload

from x402_mask._drive.clients import AsyncClient, SyncClient, is_async
from x402_mask._flow.records import paid_note
from x402_mask._models import Receipt
from x402_mask._payer import buyer_of, payer_of
from x402_mask._policy.schemas import is_uri
from x402_mask._wire import strict_json
from x402_mask._wire.x402 import shown

if TYPE_CHECKING:
    from collections.abc import Coroutine, Mapping

_PATH: Final = "/api/tools/mask-refinement"
_URL_MAX: Final = 4096


class ServiceFailed(Exception):  # not a PaymentError: the payment may well have worked
    """The service answered, and not with what was asked for; **it may have been paid**.

    ``response`` is its answer, ``receipt`` what was paid for it.
    """

    def __init__(self, message: str, response: Any, receipt: Receipt | None) -> None:
        super().__init__(message)
        self.response = response
        self.receipt = receipt


@dataclass(frozen=True, slots=True, kw_only=True)
class RefinedMask:
    """What mask-refinement answered.  Seller text, the URL included.

    ``image_url`` is the refined mask, ``None`` where no http(s) URL was found in ``data``; ``raw``
    is the whole answer.
    """

    image_url: str | None
    data: Mapping[str, Any]
    request_id: str | None
    receipt: Receipt | None
    raw: Mapping[str, Any] = field(repr=False)

    __hash__ = None  # type: ignore[assignment]  # holds mappings


@overload
def refine_mask(
    client: SyncClient, *, image_url: str, mask_image_url: str, base_url: str | None = None
) -> RefinedMask: ...
@overload
def refine_mask(
    client: AsyncClient, *, image_url: str, mask_image_url: str, base_url: str | None = None
) -> Coroutine[Any, Any, RefinedMask]: ...
def refine_mask(
    client: SyncClient | AsyncClient,
    *,
    image_url: str,
    mask_image_url: str,
    base_url: str | None = None,
) -> Any:
    """Make a coarse mask follow the edges of its picture, at a marketplace, for its price.

    With an async client this is awaited.

    Args:
        client: an httpx or httpx2 client that pays.
        image_url: public http(s) URL of the picture.
        mask_image_url: public http(s) URL of the coarse mask.
        base_url: the marketplace; default the client's ``base_url``, or its payer's only origin.

    Raises:
        ValueError: not a URL, or no marketplace is named; nothing was sent.
        PaymentError: it may not be paid, or could not be.
        ServiceFailed: the answer is not a refined mask; it may have been paid.
        HTTPStatusError: the client's own, for any status but 2xx; a note on it names the payment.
    """
    later = is_async(client)
    for name, url in (("image_url", image_url), ("mask_image_url", mask_image_url)):
        if not isinstance(url, str):
            raise TypeError(f"{name} is a str, not {type(url).__name__}")
        if not _is_web(url) or not is_uri(url):
            raise ValueError(f"{name} is not an http(s) URL, and would be paid for in vain")
    caller: Any = client
    sent = caller.post(
        _base(caller, base_url) + _PATH,
        json={"ImageURL": image_url, "MaskImageURL": mask_image_url},
    )
    return _later(sent) if later else _result(sent)


async def _later(sent: Any) -> RefinedMask:
    return _result(await sent)


def _base(client: Any, base_url: str | None) -> str:
    named = str(client.base_url) if base_url is None else base_url
    if named:
        return named.rstrip("/")
    payer = payer_of(client)
    listed = () if payer is None else buyer_of(payer).settings.origins
    origins = [origin for origin in listed if not origin.startswith("mcp:")]
    if len(origins) != 1:
        raise ValueError("which marketplace? give base_url=, to the client or to refine_mask")
    return origins[0]


def _result(response: Any) -> RefinedMask:
    found = response.extensions.get("x402_mask")
    receipt = found if isinstance(found, Receipt) else None
    try:
        return _read(response, receipt)
    except Exception as failure:
        if receipt is not None and paid_note(receipt) not in getattr(failure, "__notes__", ()):
            failure.add_note(paid_note(receipt))
        raise


def _read(response: Any, receipt: Receipt | None) -> RefinedMask:
    response.raise_for_status()
    try:
        answer = strict_json.loads(response.content)
    except strict_json.BadJSON as exc:
        raise ServiceFailed(f"the answer is not usable: {exc}", response, receipt) from None
    if not isinstance(answer, dict):
        raise ServiceFailed("the answer is not a JSON object", response, receipt)
    code, data = answer.get("code"), answer.get("data")
    if code is not None and str(code) != "200":
        words = f"mask-refinement answered {shown(code, 20)}: {shown(answer.get('message'), 200)}"
        raise ServiceFailed(words, response, receipt)
    if not isinstance(data, dict):
        raise ServiceFailed("the answer has no data", response, receipt)
    request_id = answer.get("requestId")
    return RefinedMask(
        image_url=_image(data),
        data=data,
        request_id=request_id if isinstance(request_id, str) else None,
        receipt=receipt,
        raw=answer,
    )


def _image(data: Mapping[str, Any]) -> str | None:
    """The URL in ``data``, or in the first of its ``Elements``."""
    elements = data.get("Elements")
    first = elements[0] if isinstance(elements, list) and elements else None
    for one in (data, first):
        for name in ("ImageURL", "ImageUrl", "imageUrl", "MaskImageURL", "url"):
            url = one.get(name) if isinstance(one, dict) else None
            if isinstance(url, str) and _is_web(url):
                return url
    return None


def _is_web(url: str) -> bool:
    web = url.lower().startswith(("https://", "http://"))
    return web and len(url) <= _URL_MAX and url.isprintable()
