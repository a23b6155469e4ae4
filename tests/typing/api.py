"""The public API as a type checker sees it.  Never run; ``make lint`` checks it (mypy, pyright)."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Literal, assert_type

import httpx
import httpx2
import mcp
from eth_account import Account
from mcp.types import CallToolResult

import x402_mask
from x402_mask import (
    ApprovalDenied,
    Asset,
    AsyncClient,
    AsyncPaymentTransport,
    BodyNotReplayable,
    Cap,
    CapExceeded,
    CatalogError,
    CatalogService,
    ChallengeError,
    Client,
    Event,
    InputRefused,
    LedgerError,
    Marketplace,
    MemoryLedger,
    Offer,
    OfferRefused,
    OriginRefused,
    Paused,
    Payer,
    Payment,
    PaymentAuth,
    PaymentError,
    PaymentRefused,
    PaymentTransport,
    Quote,
    Receipt,
    RefinedMask,
    Resolved,
    ServiceFailed,
    SignerError,
    Spend,
    SQLiteLedger,
    TokenFlowError,
    UnknownService,
    Wallet,
    attach,
    receipt_of,
    refine_mask,
    refusal_of,
)
from x402_mask import httpx2 as twin
from x402_mask import mcp as tools


def approve(quote: Quote) -> bool:
    return quote.allowed and quote.usd is not None and quote.usd < 1


async def approve_async(quote: Quote) -> bool:
    return approve(quote)


def observe(event: Event) -> None:
    assert_type(event.kind, str)
    assert_type(event.usd, Decimal | None)
    assert_type(event.detail, Mapping[str, Any])


class Hardware:
    """An external signer needs no base class."""

    address = "0x" + "11" * 20

    def sign_typed_data(self, domain: Any, types: Any, message: Any) -> bytes:
        raise NotImplementedError


class Remote(Hardware):
    async def sign_typed_data(  # type: ignore[override]  # sync or async, as the contract has it
        self, domain: Any, types: Any, message: Any
    ) -> bytes:
        raise NotImplementedError


def wallets() -> None:
    assert_type(Wallet.from_key(b"\1" * 32), Wallet)
    assert_type(Wallet.from_key("0x" + "11" * 32), Wallet)
    assert_type(Wallet.from_keystore("key.json", "secret"), Wallet)
    assert_type(Wallet.from_mnemonic("test test"), Wallet)
    assert_type(Wallet.from_env(), Wallet)
    assert_type(Wallet.create(), Wallet)
    assert_type(Wallet.create().address, str)


def payers() -> Payer:
    usdc = Asset("eip155:8453", "0x" + "11" * 20, 6, "USD Coin", "2")
    assert_type(usdc.chain_id, int)
    cap = Cap("0.25", per="call")
    assert_type(cap.limit, Decimal)
    assert_type(cap.per, str | timedelta)
    Cap(Decimal(5), per=timedelta(hours=1), service="mask-refinement")
    Cap(0.25, per="day")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Cap(1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    Payer(Wallet.create(), caps=[cap])  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    for wallet in (None, Wallet.create(), Hardware(), Remote(), Account.create()):
        Payer(wallet, caps=[cap], origins=["https://x402vip.com"])
    return Payer(
        Wallet.create(),
        caps=(cap,),
        origins={"https://x402vip.com"},
        ledger=SQLiteLedger("ledger.db"),
        networks=["eip155:8453"],
        assets=[usdc],
        prefer=("held-token", "x402", "token"),
        services={"photos": "https://api.example.com/photos/*"},
        approve=approve,
        on_event=observe,
        payees="pin",
        max_validity=timedelta(minutes=5),
        preempt=False,
        rpc={"eip155:8453": "http://127.0.0.1:8545"},
        on_refusal="return",
        clock=lambda: 0.0,
        validate_input=False,
        allow_above_catalog=True,
        max_gas_wei=2 * 10**15,
        token_origins=["https://x402vip.com"],
        balance_origins=["https://x402vip.com"],
    )


def configured() -> None:
    assert_type(Payer.from_env(), Payer)
    assert_type(Payer.from_config("x402-mask.toml"), Payer)
    Payer(None, caps=[], origins=[], payees=["0x"], approve=approve_async, ledger=MemoryLedger())
    Payer(None, caps=[], origins=[], on_refusal="x")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def sync(payer: Payer) -> None:
    with Client(payer, timeout=30, http2=True, headers={"a": "b"}) as client:
        assert_type(client, Client)
        response = client.post("https://x402vip.com/api/tools/mask-refinement", json={})
        assert_type(response, httpx.Response)
        assert_type(receipt_of(response), Receipt | None)
        assert_type(refusal_of(response), PaymentError | None)
    assert_type(attach(httpx.Client(), payer), httpx.Client)
    assert_type(attach(httpx.Client(), payer, on_refusal="return"), httpx.Client)
    Client(payer, on_refusal="raise").close()
    PaymentTransport(payer, on_refusal="return").close()
    PaymentAuth(payer, on_refusal="ask")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    httpx.Client(transport=PaymentTransport(payer, httpx.HTTPTransport(retries=1)))
    httpx.Client(auth=PaymentAuth(payer))
    httpx.Client(mounts={"https://x402vip.com": PaymentTransport(payer)})
    assert_type(payer.quote(httpx.Request("GET", "https://x402vip.com")), Quote | None)
    attach(42, payer)  # type: ignore[type-var]  # pyright: ignore[reportArgumentType]


async def concurrent(payer: Payer) -> None:
    async with AsyncClient(payer) as client:
        assert_type(client, AsyncClient)
        response = await client.get("https://x402vip.com")
        assert_type(response, httpx.Response)
    assert_type(attach(httpx.AsyncClient(), payer), httpx.AsyncClient)
    httpx.AsyncClient(transport=AsyncPaymentTransport(payer, httpx.AsyncHTTPTransport()))
    httpx.AsyncClient(auth=PaymentAuth(payer))
    assert_type(await payer.aquote(response), Quote | None)
    assert_type(await payer.areconcile(), list[Resolved])


async def other_family(payer: Payer) -> None:
    with twin.Client(payer) as client:
        assert_type(client.get("https://x402vip.com"), httpx2.Response)
    assert_type(twin.attach(httpx2.Client(), payer), httpx2.Client)
    assert_type(twin.attach(httpx2.AsyncClient(), payer), httpx2.AsyncClient)
    httpx2.Client(transport=twin.PaymentTransport(payer), auth=twin.PaymentAuth(payer))
    async with twin.AsyncClient(payer) as later:
        response = await later.get("https://x402vip.com")
        assert_type(twin.receipt_of(response), Receipt | None)
    # the families do not mix
    httpx2.Client(transport=PaymentTransport(payer))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    twin.PaymentTransport(payer, httpx.HTTPTransport())  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    twin.attach(httpx.Client(), payer)  # type: ignore[type-var]  # pyright: ignore[reportArgumentType]


def catalogs(payer: Payer) -> None:
    market = Marketplace("https://x402vip.com", Client(payer))
    assert_type(market.search("mask"), list[CatalogService])
    service = market.service("mask-refinement")
    assert_type(service, CatalogService)
    assert_type(service.usd, Decimal | None)
    assert_type(service.aliases, tuple[str, ...])
    assert_type(service.input_schema, Mapping[str, Any] | None)
    assert_type(
        Marketplace("https://a", httpx2.Client(), payer=payer).search(), list[CatalogService]
    )
    found = refine_mask(httpx.Client(), image_url="a", mask_image_url="b", base_url="https://a")
    assert_type(found, RefinedMask)
    assert_type(found.receipt, Receipt | None)
    Marketplace("https://x402vip.com", 42)  # type: ignore[type-var]  # pyright: ignore[reportArgumentType]
    try:
        market.service("nothing")
    except UnknownService as unknown:
        assert_type(str(unknown), str)
    except (CatalogError, LookupError):
        raise
    except ServiceFailed as failed:
        assert_type(failed.receipt, Receipt | None)


async def catalogs_async(payer: Payer) -> None:
    market = Marketplace("https://x402vip.com", AsyncClient(payer))
    assert_type(await market.search("mask"), list[CatalogService])
    assert_type(await market.service("mask-refinement"), CatalogService)
    later = twin.AsyncClient(payer)
    assert_type(await Marketplace("https://a", later).service("x"), CatalogService)
    assert_type(await refine_mask(later, image_url="a", mask_image_url="b"), RefinedMask)


def questions(payer: Payer) -> None:
    for spend in payer.spend():
        assert_type(spend, Spend)
        assert_type(spend.left, Decimal)
        assert_type(spend.resets_at, datetime | None)
        assert_type(spend.per, str | timedelta)
    for payment in payer.payments(service="mask-refinement", state="held", limit=10):
        assert_type(payment, Payment)
        assert_type(payment.usd, Decimal)
        assert_type(payment.amount, int)
        assert_type(payment.state, Literal["reserved", "held", "settled", "released", "void"])
        assert_type(payment.open, bool)
    assert_type(payer.reconcile(), list[Resolved])
    payer.pause()
    payer.resume()
    payer.accept_payee("mask-refinement", "0x" + "11" * 20)
    payer.accept_payee("mask-refinement", "0x" + "11" * 20, origin="https://x402vip.com")
    with payer as same:
        assert_type(same, Payer)
    assert_type(payer.address, str | None)
    payer.close()


def answers(receipt: Receipt, quote: Quote, offer: Offer) -> None:
    assert_type(receipt.route, Literal["x402", "token", "held-token"])
    assert_type(receipt.outcome, Literal["settled", "unknown", "rejected"])
    assert_type(receipt.usd, Decimal)
    assert_type(receipt.amount, int)
    assert_type(receipt.transaction, str | None)
    assert_type(receipt.at, datetime)
    assert_type(quote.allowed, bool)
    assert_type(quote.usd, Decimal | None)
    assert_type(quote.refusal, PaymentRefused | None)
    assert_type(quote.offer, Offer | None)
    assert_type(quote.caps, tuple[Spend, ...])
    assert_type(offer.amount, int)
    assert_type(offer.extra, Mapping[str, Any])
    receipt.usd = Decimal(0)  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]


def failures(client: Client) -> None:
    try:
        client.get("https://x402vip.com")
    except CapExceeded as over:
        assert_type(over.cap, Cap)
        assert_type(over.wanted, Decimal)
        assert_type(over.left, Decimal)
        assert_type(over.resets_at, datetime | None)
    except (
        OriginRefused,
        OfferRefused,
        InputRefused,
        ApprovalDenied,
        BodyNotReplayable,
        Paused,
    ) as no:
        assert_type(no.reason, str)
        assert_type(no.quote, Quote | None)
    except (ChallengeError, SignerError, TokenFlowError, LedgerError) as failed:
        assert_type(failed.at_risk, bool)
        assert_type(failed.payment_id, str | None)
    except PaymentError as other:
        assert_type(str(other), str)


async def over_mcp(session: mcp.ClientSession, client: mcp.Client, payer: Payer) -> None:
    paid = tools.PaidSession(session, payer, "mcp:shop")
    result = await paid.call_tool("mask_refinement", {"n": 1}, 30, operation="order 7")
    assert_type(result, CallToolResult)
    assert_type(tools.receipt_of(result), Receipt | None)
    any_result = await paid.call_tool("mask_refinement", allow_input_required=True)
    assert_type(any_result, tools.Result)
    assert_type(paid.origin, str)
    tools.PaidSession(client, payer, "https://x402vip.com/mcp")
    tools.PaidSession(session, payer)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


def lazily() -> None:
    assert_type(x402_mask.SQLiteLedger(), SQLiteLedger)
    assert_type(x402_mask.MemoryLedger(), MemoryLedger)
    x402_mask.PostgresLedger("postgresql://localhost")
    assert_type(x402_mask.__version__, str)
