"""What the services on sale do once they are paid."""

from __future__ import annotations

import json
import uuid
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio.to_thread
from starlette.responses import JSONResponse, Response

from x402_mask.sandbox import mask
from x402_mask.sandbox.pictures import BadInput, Pictures

if TYPE_CHECKING:
    from collections.abc import Callable

    from x402_mask.sandbox.catalog import Json, Service


async def perform(
    service: Service, body: bytes, base: str, pictures: Pictures, clock: Callable[[], float]
) -> Response:
    """Answer a paid call of *service*; 400 when *body* does not fit it."""
    match service.id:
        case "timestamp":
            now = clock()
            moment = datetime.fromtimestamp(now, UTC).isoformat(timespec="milliseconds")
            return JSONResponse({"isoTime": moment, "unix": int(now)})
        case "random-uuid":
            return JSONResponse({"uuid": str(uuid.uuid4())})
        case "mask-refinement":
            return await _refine(service, body, base, pictures)
        case unknown:
            raise LookupError(f"{unknown} is listed but not implemented")


async def _refine(service: Service, body: bytes, base: str, pictures: Pictures) -> Response:
    request_id = str(uuid.uuid4())
    try:
        fields = _read(body, service)
        photo = await pictures.load("ImageURL", fields["ImageURL"], base)
        coarse = await pictures.load("MaskImageURL", fields["MaskImageURL"], base)
        refined = await anyio.to_thread.run_sync(partial(_work, photo, coarse))
    except BadInput as error:
        told = {"code": "400", "error": str(error), "message": str(error), "requestId": request_id}
        return JSONResponse(told, status_code=400)
    url = f"{base}/static/{pictures.keep(refined)}"
    return JSONResponse(
        {
            "code": "200",
            "content": "mask refined",
            "data": {"ImageURL": url},
            "message": "success",
            "requestId": request_id,
        }
    )


def _work(photo: bytes, coarse: bytes) -> bytes:
    try:
        return mask.refine(photo, coarse)
    except ValueError as error:
        raise BadInput(str(error)) from error


def _read(body: bytes, service: Service) -> dict[str, str]:
    """The body's fields, each a string, exactly those of the input schema."""
    try:
        document: Any = json.loads(body)
    except (ValueError, RecursionError):
        raise BadInput("the body is not JSON") from None
    if not isinstance(document, dict):
        raise BadInput("the body must be a JSON object")
    names: Json = (service.input_schema or {}).get("properties", {})
    for name in document.keys() - names.keys():
        near = next((n for n in names if n.lower() == str(name).lower()), None)
        hint = f"; names are case-sensitive, use {near}" if near else ""
        raise BadInput(f"unknown parameter {str(name)[:64]!r}{hint}")
    for name in names:
        if not isinstance(document.get(name), str):
            raise BadInput(f"{name} is required: a string, the public http(s) URL of an image")
    return document
