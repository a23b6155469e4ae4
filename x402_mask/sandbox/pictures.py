"""Pictures in and out: the sandbox's own, results, and those of the open web."""

from __future__ import annotations

import uuid
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import httpx

if TYPE_CHECKING:
    from x402_mask.sandbox.settings import SandboxSettings

STATIC = Path(__file__).parent / "static"
RESULTS_MAX = 256


class BadInput(Exception):
    """The request does not fit the service; the message is for the caller."""


class Pictures:
    """Where mask-refinement reads from and writes to; results live in memory."""

    def __init__(self, settings: SandboxSettings) -> None:
        self._settings = settings
        self._results: OrderedDict[str, bytes] = OrderedDict()
        self._static = {file.name: file.read_bytes() for file in STATIC.glob("*.png")}

    def get(self, path: str) -> bytes | None:
        """The picture at *path* below ``/static/``, if there is one."""
        return self._static.get(path) or self._results.get(path)

    def keep(self, picture: bytes) -> str:
        """Keep a result for a while and return its path below ``/static/``."""
        path = f"results/{uuid.uuid4().hex}.png"
        self._results[path] = picture
        while len(self._results) > RESULTS_MAX:
            self._results.popitem(last=False)
        return path

    async def load(self, name: str, url: str, base: str) -> bytes:
        """The picture at *url*; the sandbox's own without asking itself. Raises `BadInput`."""
        own = f"{base}/static/"
        if url.startswith(own):
            picture = self.get(url.removeprefix(own))
            if picture is None:
                raise BadInput(f"{name}: the sandbox has no such picture")
            return picture
        if not url.startswith(("http://", "https://")):
            raise BadInput(f"{name} must be a public http(s) URL")
        if not self._settings.fetch_remote:
            raise BadInput(f"{name}: this sandbox only reads its own pictures, under {own}")
        try:
            with anyio.fail_after(self._settings.fetch_timeout):
                return await self._fetch(name, url)
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError) as error:
            raise BadInput(f"{name} could not be fetched ({type(error).__name__})") from error

    async def _fetch(self, name: str, url: str) -> bytes:
        # Redirects are not followed: a public URL should not lead somewhere else unseen.
        picture = bytearray()
        async with httpx.AsyncClient() as client, client.stream("GET", url) as response:
            if response.status_code != httpx.codes.OK:
                raise BadInput(f"{name} answered {response.status_code}")
            async for chunk in response.aiter_bytes():
                picture += chunk
                if len(picture) > self._settings.fetch_bytes_max:
                    raise BadInput(f"{name} is larger than {self._settings.fetch_bytes_max} bytes")
        return bytes(picture)
