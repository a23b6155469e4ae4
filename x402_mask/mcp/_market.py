"""The marketplace's HTTP side of a paid tool call: payments are created and polled over HTTP."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import httpx

from x402_mask._drive.clients import around
from x402_mask._drive.gathered import Gathered
from x402_mask._flow.effects import Fetched
from x402_mask._wire.caching import clock_in, uncached
from x402_mask.errors import TokenFlowError

if TYPE_CHECKING:
    from x402_mask._flow.effects import Fetch

_TIMEOUT: Final = httpx.Timeout(5.0, read=60.0)


class Market:
    """Requests to the origin of one tool call: one client, and so one cookie jar, per payment."""

    __slots__ = ("_client", "_origin")

    def __init__(self, origin: str) -> None:
        self._origin = origin
        self._client: httpx.AsyncClient | None = None

    async def fetch(self, wanted: Fetch) -> Fetched:
        """Ask the origin itself; redirects are answers.

        Raises:
            TokenFlowError: the MCP server is on stdio and has no HTTP origin.
            httpx.HTTPError: no answer.
        """
        if self._origin.startswith("mcp:"):
            raise TokenFlowError(
                f"{self._origin} sells tokens nowhere: it has no HTTP origin", at_risk=False
            )
        if self._client is None:
            self._client = httpx.AsyncClient(
                timeout=_TIMEOUT, follow_redirects=False, mounts=around([self._origin])
            )
        headers = httpx.Headers({"accept": "application/json", "accept-encoding": "gzip, deflate"})
        headers.update(wanted.headers)
        headers["cache-control"] = uncached(headers.get_list("cache-control"))
        if wanted.content is not None:
            headers.setdefault("content-type", "application/json")
        if wanted.proof is not None:
            headers[wanted.proof[0]] = wanted.proof[1]
        url, gathered = self._origin + wanted.path, Gathered()
        async with self._client.stream(
            wanted.method, url, headers=headers, content=wanted.content
        ) as response:
            async for chunk in response.aiter_raw():
                if not gathered.add(chunk):
                    break
            else:
                gathered.complete = True
        found = response.headers
        return Fetched(
            status=response.status_code,
            url=url,
            headers={name.lower(): found.get_list(name) for name in found},
            body=gathered.decoded(found.get("content-encoding", "")),
            date=clock_in(found.get("date"), found.get("age")),
        )

    @property
    def open(self) -> bool:
        """Whether there is anything to let go of."""
        return self._client is not None

    async def aclose(self) -> None:
        """Let go of the connections."""
        if self._client is not None:
            await self._client.aclose()
