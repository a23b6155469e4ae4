"""A payer's configuration is checked when it is made; its questions are answered from the ledger."""

from __future__ import annotations

import functools
import subprocess
import sys
import time
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from tests.core.hand import SHOP, Hand, answered, asked
from tests.support.seller import PAYEE, USDC, offer
from x402_mask import Asset, Cap, LedgerError, MemoryLedger, OfferRefused, Payer, Wallet
from x402_mask._drive.perform import Patience, perform
from x402_mask._flow.effects import Consult, Record, Sleep
from x402_mask._payer import buyer_of

WALLET = Wallet.from_key("11" * 32)
USDC_ASSET = Asset(USDC.network, USDC.address, 6, USDC.name, USDC.version)


def made(**options: Any) -> Payer:
    """A payer with good defaults."""
    settings: dict[str, Any] = {
        "wallet": WALLET,
        "caps": [Cap(1, per="day")],
        "origins": [SHOP],
        "ledger": MemoryLedger(),
    }
    settings.update(options)
    return Payer(settings.pop("wallet"), **settings)


WRONG: list[tuple[type[Exception], dict[str, Any]]] = [
    (TypeError, {"wallet": "11" * 32}),
    (TypeError, {"caps": [1]}),
    (TypeError, {"caps": ["1/day"]}),
    (ValueError, {"caps": []}),
    (TypeError, {"origins": SHOP}),
    (ValueError, {"origins": []}),
    (ValueError, {"origins": ["http://shop.example"]}),
    (ValueError, {"networks": []}),
    (TypeError, {"networks": "eip155:8453"}),
    (TypeError, {"networks": [8453]}),
    (ValueError, {"networks": ["solana"]}),
    (ValueError, {"networks": ["nowhere"]}),
    (ValueError, {"networks": ["eip155:424242"]}),
    (ValueError, {"assets": []}),
    (TypeError, {"assets": [USDC.address]}),
    (ValueError, {"assets": [USDC_ASSET], "networks": ["eip155:1"]}),
    (TypeError, {"payees": PAYEE}),
    (ValueError, {"payees": []}),
    (ValueError, {"payees": ["merchant"]}),
    (ValueError, {"payees": ["0x" + "00" * 20]}),
    (ValueError, {"payees": [PAYEE[:-1] + "d"]}),
    (ValueError, {"max_validity": timedelta(seconds=9)}),
    (TypeError, {"max_validity": 300}),
    (TypeError, {"breaker_for": 60}),
    (TypeError, {"clock": 5}),
    (TypeError, {"ledger": "ledger.db"}),
    (ValueError, {"prefer": ()}),
    (ValueError, {"prefer": ("x402", "x402")}),
    (ValueError, {"prefer": ("cash",)}),
    (TypeError, {"prefer": "x402"}),
    (TypeError, {"approve": True}),
    (TypeError, {"on_event": "log"}),
    (ValueError, {"on_refusal": "ignore"}),
    (ValueError, {"resign": "always"}),
    (ValueError, {"breaker_after": 0}),
    (ValueError, {"breaker_after": True}),
    (TypeError, {"rpc": "http://127.0.0.1:9"}),
    (ValueError, {"services": {"*": "https://a.example/*"}}),
    (TypeError, {"marketplace_headers": {"X-Key": 1}}),
    (ValueError, {"marketplace_headers": {"X-Key": "caf\u00e9"}}),
    (ValueError, {"marketplace_headers": {"X-Key": "a\r\nX-Other: b"}}),
    (ValueError, {"marketplace_headers": {"X Key": "a"}}),
    (TypeError, {"provider_id": 5}),
    (ValueError, {"provider_id": ""}),
]


@pytest.mark.parametrize(("kind", "options"), WRONG, ids=[str(i) for i in range(len(WRONG))])
def test_what_is_not_sound_is_refused(kind: type[Exception], options: dict[str, Any]) -> None:
    """Nothing is guessed, and nothing is silently ignored."""
    with pytest.raises(kind):
        made(**options)


def test_marketplace_options_may_be_none() -> None:
    made(token_origins=None, balance_origins=None)
    made(marketplace_headers=None, provider_id=None, max_gas_wei=None)
    made(marketplace_headers={"Authorization": "Bearer a b", "X-Empty": ""}, provider_id="p")


def test_unknown_options_are_refused() -> None:
    """A typing error in a limit must not become no limit."""
    with pytest.raises(TypeError):
        made(payee=[PAYEE])
    with pytest.raises(TypeError):
        Payer(WALLET, origins=[SHOP])  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        Payer(WALLET, caps=[Cap(1, per="day")])  # type: ignore[call-arg]


def test_one_cap_needs_no_list() -> None:
    """It is what was meant."""
    assert len(buyer_of(made(caps=Cap(1, per="day"))).limits) == 1


def test_networks_by_name() -> None:
    """Version 1 names are taken; a disputed one must be named by name."""
    assert buyer_of(made(networks=["base"])).settings.policy.networks == {"eip155:8453"}
    story = Asset("eip155:1514", "0x" + "ab" * 20, 6, "USDC", "2")
    by_name = buyer_of(made(networks=["story"], assets=[story])).settings.policy
    by_chain = buyer_of(made(networks=["eip155:1514"], assets=[story])).settings.policy
    assert "story" in by_name.names and "story" not in by_chain.names
    first = asked(offer(network="story", asset="0x" + "ab" * 20, extra=None))
    for name, paid in (("story", True), ("eip155:1514", False)):
        hand = Hand(first=first, options={"networks": [name], "assets": [story]})
        if paid:
            assert hand.call().receipt is not None
        else:
            with pytest.raises(OfferRefused, match="different chains"):
                hand.call()


def test_a_payer_says_what_it_is() -> None:
    """Address, caps and origins; nothing else."""
    text = repr(made())
    assert WALLET.address in text and "$1.00/day" in text and SHOP in text
    assert made(wallet=None).address is None


def test_spend_and_payments() -> None:
    """One row per cap in the order given; payments newest first, filtered by an alias too."""
    hand = Hand(
        options={
            "caps": [
                Cap(2, per="day"),
                Cap(1, per="call"),
                Cap(1, per="day", service="aliyun-imageseg-refine-mask"),
            ]
        }
    )
    hand.call()
    hand.fingerprint, hand.paid = "cd" * 32, answered(settled=False)
    hand.call()
    first, call, other = hand.payer.spend()
    assert (first.settled, first.held, first.left) == (
        Decimal("0.001"),
        Decimal("0.001"),
        Decimal("1.998"),
    )
    assert (call.settled, call.held, call.left, call.resets_at) == (0, 0, 1, None)
    assert other.service == "mask-refinement" and other.left == 1
    assert [row.state for row in hand.payer.payments()] == ["held", "settled"]
    assert len(hand.payer.payments(state="held")) == len(hand.payer.payments(limit=1)) == 1
    assert hand.payer.payments(service="aliyun-imageseg-refine-mask") == []
    assert len(hand.payer.payments(service="https://SHOP.example/")) == 2


@pytest.mark.parametrize(
    ("wrong", "kind"),
    [
        ({"limit": 0}, ValueError),
        ({"limit": -1}, ValueError),
        ({"limit": 2**63}, ValueError),
        ({"limit": None}, TypeError),
        ({"limit": 2.5}, TypeError),
        ({"limit": True}, TypeError),
        ({"state": "bogus"}, ValueError),
    ],
)
def test_what_payments_are_not_asked_for(wrong: dict[str, Any], kind: type[Exception]) -> None:
    """It is a mistake of the caller, and says nothing about the ledger."""
    with pytest.raises(kind):
        made().payments(**wrong)


def test_a_pinned_payee_can_be_accepted() -> None:
    """Contract 1: refused, named, accepted, paid; a bad address is not."""
    hand = Hand(options={"payees": "pin"})
    hand.call()
    hand.first, hand.fingerprint = asked(offer(payTo="0x" + "77" * 20)), "cd" * 32
    with pytest.raises(OfferRefused) as caught:
        hand.call()
    assert caught.value.reason == "payee"
    for wrong in ("0x12", "0x" + "00" * 20):
        with pytest.raises(ValueError, match=r"."):
            hand.payer.accept_payee(SHOP, wrong)
    hand.payer.accept_payee(SHOP + "/", "0x" + "77" * 20)
    assert hand.call().receipt is not None


def test_a_payer_is_a_context_and_closes_its_ledger() -> None:
    """And the ledger opens again when it is used."""
    closed: list[int] = []

    class Closing(MemoryLedger):
        def close(self) -> None:
            closed.append(1)

    with made(ledger=Closing()) as payer:
        assert payer.spend()
    assert closed == [1]


def test_the_blocking_performer() -> None:
    """What a sync client does with effects."""
    assert perform(Record(lambda wait_s: wait_s)) == pytest.approx(5.0, abs=1)
    assert perform(Consult(max, (1, 2))) == 2
    assert perform(Sleep(0)) is None

    async def later() -> None: ...

    class Awaitable:
        def __await__(self) -> Any:
            yield

    for function in (later, Awaitable):
        with pytest.raises(TypeError, match="async client"):
            perform(Consult(function, ()))


def test_patience_is_for_all_that_a_call_asks_of_the_ledger() -> None:
    """From one wait for others to the next; who waited in vain waits no more, and still tries."""
    patience, given = Patience(0.2), []

    def record(wait_s: float) -> None:
        given.append(wait_s)
        time.sleep(wait_s)

    for _ in range(3):
        perform(Record(record), patience)
    assert given[0] > 0.19 and max(given[1:]) <= 0.02
    perform(Sleep(0), patience)
    perform(Record(record), patience)
    assert given[-1] <= 0.02, "in vain once is in vain for the whole call"
    patience = Patience(4.0)
    perform(Record(lambda wait_s: time.sleep(0.5)), patience)
    perform(Sleep(0), patience)
    perform(Record(given.append), patience)
    assert given[-1] > 3.9, "what was not in vain is a wait of its own"
    for read_s, most in ((None, 5.0), (60.0, 5.0), (1.0, 1.0), (0.0, 0.02)):
        perform(Record(given.append), Patience(read_s))
        assert 0 < given[-1] <= most


def test_a_memory_ledger_does_not_follow_a_fork() -> None:
    """Two processes would each have the whole budget."""
    ledger = MemoryLedger()
    ledger._pid = -1
    with pytest.raises(LedgerError, match="fork"):
        ledger.is_paused()


IMPORTS = """
import sys
import httpx
before = set(sys.modules)
import x402_mask
x402_mask.Client, x402_mask.Wallet, x402_mask.Payer
print(" ".join(sorted({name.partition(".")[0] for name in set(sys.modules) - before})))
"""
HEAVY = {
    "web3",
    "eth_account",
    "eth_utils",
    "coincurve",
    "sqlite3",
    "cryptography",
    "Crypto",
    "click",
    "rich",
    "httpx2",
    "psycopg",
    "anyio",
    "asyncio",
    "trio",
    "platformdirs",
    "mcp",
    "starlette",
    "uvicorn",
    "numpy",
    "PIL",
    "sniffio",
    "jsonschema",
}


def test_importing_the_package_is_light() -> None:
    """No driver, curve, chain or command line is loaded before it is asked for."""
    done = subprocess.run(
        [sys.executable, "-c", IMPORTS], capture_output=True, text=True, timeout=20, check=True
    )
    loaded = set(done.stdout.split())
    assert "x402_mask" in loaded
    assert not loaded & HEAVY, f"imported: {sorted(loaded & HEAVY)}"


def test_names_that_do_not_exist() -> None:
    """Lazy names are the ledgers, and what reads a marketplace; every one of them is there."""
    import x402_mask

    assert set(x402_mask._LAZY) < set(x402_mask.__all__)
    for name in x402_mask._LAZY:
        assert getattr(x402_mask, name).__name__ == name
    with pytest.raises(AttributeError, match="Walet"):
        x402_mask.Walet  # noqa: B018
    assert sorted(x402_mask.__all__) == x402_mask.__all__


# --- what nobody awaits


class _Observer:
    async def __call__(self, event: Any) -> None:
        """Never run."""


async def _seen(event: Any = None) -> None:
    """Never run."""


async def _told(event: Any = None) -> Any:
    """Never run either."""
    yield event


@pytest.mark.parametrize("name", ["on_event", "clock"])
@pytest.mark.parametrize(
    "function",
    [
        _seen,
        _Observer(),
        functools.partial(_seen, event=1),
        functools.partial(_Observer()),
        _told,
    ],
    ids=repr,
)
def test_a_coroutine_function_is_refused_where_nobody_awaits_it(name: str, function: Any) -> None:
    with pytest.raises(TypeError, match=f"^{name} is a plain function"):
        made(**{name: function})


def test_what_turns_out_to_be_one_is_said(caplog: pytest.LogCaptureFixture) -> None:
    """And leaves no warning of a coroutine that was never awaited."""
    buyer_of(made(on_event=lambda event: (event, _seen(event))[1])).emit("challenge")
    assert "on_event failed at challenge" in caplog.text and "awaitable" in caplog.text


CONTRACT = {
    "address",
    "ledger",
    "from_env",
    "from_config",
    "quote",
    "aquote",
    "spend",
    "payments",
    "reconcile",
    "areconcile",
    "pause",
    "resume",
    "accept_payee",
    "close",
}


def test_a_payer_has_the_names_of_the_contract_and_no_other() -> None:
    payer = made()
    assert {name for name in dir(payer) if not name.startswith("_")} == CONTRACT
    assert not hasattr(payer, "__dict__")


@pytest.mark.parametrize("name", ["origins", "aprove", "address", "ledger", "spend", "_buyer"])
def test_a_payer_is_frozen(name: str) -> None:
    """What was assigned was kept, and some of it obeyed."""
    payer = made()
    before = getattr(payer, name, None)
    with pytest.raises(AttributeError, match="frozen"):
        setattr(payer, name, frozenset())
    with pytest.raises(AttributeError, match="frozen"):
        delattr(payer, name)
    assert getattr(payer, name, None) == before
