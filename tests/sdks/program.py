"""A user's program: imports an SDK first, pays through it, and prints what it saw as JSON.

Run as a process, because SDKs change the HTTP library that they find, and because two releases of
one SDK cannot be imported together.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from importlib import import_module
from typing import Any

SAYING = [{"role": "user", "content": "hi"}]
FAMILIES = {"openai2": "httpx", "openai3": "httpx2", "anthropic": "httpx2", "groq": "httpx"}


def talk(asked: dict[str, Any]) -> dict[str, Any]:
    """Make one call, and tell of it."""
    name = asked["sdk"].rstrip("23")
    sdk = import_module(name)  # before this library, as programs do
    from x402_mask import Cap, MemoryLedger, Payer, Wallet, refusal_of

    questions: list[Any] = []

    def approve(quote: Any) -> bool:
        questions.append(quote.usd)
        return bool(asked["approve"])

    with Payer(
        Wallet.create(),
        caps=[Cap("1", per="day")],
        origins=[asked["origin"]],
        ledger=MemoryLedger(),
        approve=approve,
    ) as payer:
        made = make(sdk, name, asked, payer)
        try:
            said: Any = words(asked, name, made)
            error = None
        except Exception as exc:
            said, error = None, exc
        refusal = refusal_of(error)
        return {
            "version": sdk.__version__,
            "said": said,
            "error": error and f"{type(error).__name__}: {error}",
            "reason": getattr(refusal, "reason", None),
            "refusal": refusal and str(refusal),
            "header": headers_of(error).get("x-402-refusal"),
            "questions": len(questions),
            "payments": [(row.state, row.open) for row in payer.payments()],
        }


def make(sdk: Any, name: str, asked: dict[str, Any], payer: Any) -> Any:
    """The SDK's client, on one of ours or with ours attached to its own."""
    family = FAMILIES[asked["sdk"]]
    mask = import_module("x402_mask" if family == "httpx" else "x402_mask.httpx2")
    wait, told = asked["colour"] == "async", asked["on_refusal"]
    if asked["plug"] == "client":
        own = (mask.AsyncClient if wait else mask.Client)(payer, on_refusal=told)
    else:
        default = sdk.DefaultAsyncHttpxClient if wait else sdk.DefaultHttpxClient
        own = mask.attach(default(), payer, on_refusal=told)
    kind = {"openai": "OpenAI", "anthropic": "Anthropic", "groq": "Groq"}[name]
    base = asked["origin"] + ("/v1" if name == "openai" else "")
    return getattr(sdk, "Async" * wait + kind)(
        api_key="k",
        base_url=base,
        http_client=own,
        max_retries=asked["retries"],
        default_headers={"x-case": asked["case"]},
    )


def words(asked: dict[str, Any], name: str, made: Any) -> Any:
    """What the model says."""

    async def wait_for() -> Any:
        return await create(name, made)

    answer = asyncio.run(wait_for()) if asked["colour"] == "async" else create(name, made)
    return answer.content[0].text if name == "anthropic" else answer.choices[0].message.content


def create(name: str, made: Any) -> Any:
    if name == "anthropic":
        return made.messages.create(model="m", max_tokens=5, messages=SAYING)
    return made.chat.completions.create(model="m", messages=SAYING)


def headers_of(error: Any) -> Any:
    response = getattr(error, "response", None)
    return getattr(response, "headers", {})


def build(asked: dict[str, Any]) -> dict[str, Any]:
    """Build everything there is to build, after the SDKs were imported in this order."""
    for name in asked["first"]:
        import_module(name)
    import httpx
    import httpx2

    import x402_mask
    import x402_mask.httpx2
    from x402_mask import Cap, MemoryLedger, Payer, Wallet

    payer = Payer(
        Wallet.create(),
        caps=[Cap("1", per="day")],
        origins=[asked["origin"]],
        ledger=MemoryLedger(),
    )
    stamps = [family.BaseTransport.__module__ for family in (httpx, httpx2)]
    said = []
    for family, mask in ((httpx, x402_mask), (httpx2, x402_mask.httpx2)):
        mask.AsyncPaymentTransport(payer, family.AsyncHTTPTransport())
        mask.AsyncClient(payer)
        mask.attach(family.AsyncClient(), payer)
        for client in (
            mask.Client(payer),
            family.Client(transport=mask.PaymentTransport(payer, family.HTTPTransport())),
            mask.attach(family.Client(), payer),
            family.Client(auth=mask.PaymentAuth(payer)),
        ):
            with client:
                request = client.build_request("GET", asked["origin"] + "/paid")
                price = payer.quote(request)
                said.append((str(price and price.usd), client.send(request).status_code))
    payer.close()
    return {"stamps": stamps, "said": said}


def cached(asked: dict[str, Any]) -> dict[str, Any]:
    """Pay through hishel's cache, and from behind it, in both families and colours."""
    import httpx
    import httpx2

    import x402_mask
    import x402_mask.httpx2
    from x402_mask import Cap, MemoryLedger, Payer, Wallet

    found = {}
    for family, mask in ((httpx, x402_mask), (httpx2, x402_mask.httpx2)):
        for wait in (False, True):
            for place in ("below", "above"):
                case = f"{family.__name__}-{'async' if wait else 'sync'}-{place}"
                with Payer(
                    Wallet.create(),
                    caps=[Cap("1", per="day")],
                    origins=[asked["origin"]],
                    ledger=MemoryLedger(),
                ) as payer:
                    client = behind(family, mask, payer, wait=wait, above=place == "above")
                    url = f"{asked['origin']}/cached?case={case}"
                    if wait:
                        said = asyncio.run(twice_async(client, url))
                    else:
                        said = [client.get(url) for _ in range(2)]
                        client.close()
                    receipts = [x402_mask.receipt_of(one) for one in said]
                    found[case] = {
                        "status": [one.status_code for one in said],
                        "outcomes": [one and one.outcome for one in receipts],
                        "payments": [row.state for row in payer.payments()],
                    }
    return found


def behind(family: Any, mask: Any, payer: Any, *, wait: bool, above: bool) -> Any:
    """A client that pays, and caches, one over the other."""
    import hishel

    kinds = import_module(f"hishel.{family.__name__}")
    storage: Any
    if wait:
        cache, storage = kinds.AsyncCacheTransport, hishel.AsyncSqliteStorage
        pays, wire = mask.AsyncPaymentTransport, family.AsyncHTTPTransport
    else:
        cache, storage = kinds.CacheTransport, hishel.SqliteStorage
        pays, wire = mask.PaymentTransport, family.HTTPTransport
    kept = storage(database_path=f"{tempfile.mkdtemp()}/cache.db")
    if above:
        transport = cache(next_transport=pays(payer, wire()), rfc=True, storage=kept)
    else:
        transport = pays(payer, cache(next_transport=wire(), rfc=True, storage=kept))
    return (family.AsyncClient if wait else family.Client)(transport=transport)


async def twice_async(client: Any, url: str) -> list[Any]:
    async with client:
        return [await client.get(url) for _ in range(2)]


if __name__ == "__main__":
    sys.path.extend(sys.argv[2:])  # at the end: what this environment has comes first
    question = json.loads(sys.argv[1])
    if isinstance(question, list):
        print(json.dumps([talk(asked) for asked in question]))
    else:
        print(json.dumps((build if "first" in question else cached)(question)))
