"""``demo``: one paid call from the 402 to the picture, on this machine, with play money."""

from __future__ import annotations

import contextlib
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
import httpx

from x402_mask._text.printable import clean
from x402_mask._text.values import money
from x402_mask.cli._faults import DONE, USAGE, Failure
from x402_mask.cli._sandbox import sandbox_package
from x402_mask.cli._session import Session, common
from x402_mask.cli._show import facts, put, say, show, show_caps, table

if TYPE_CHECKING:
    from x402_mask._models import Event, Quote, Receipt, Spend

_CAPS: Final = ("0.25/call", "0.30/day@mask-refinement")
_ARROWS: Final = {"request": "→ request", "answer": "← answer"}
_PROOFS: Final = ("payment-signature", "x-payment", "x-payment-token")


@dataclass(slots=True)
class _Diary:
    """What happened, in order, with milliseconds since the start."""

    started: float = field(default_factory=time.perf_counter)
    lines: list[tuple[int, str, str]] = field(default_factory=list)

    def note(self, who: str, what: str) -> None:
        """Add a line."""
        self.lines.append((round((time.perf_counter() - self.started) * 1000), who, what))

    def watch(self, event: Event) -> None:
        """For ``Payer(on_event=...)``."""
        told = {
            "reserved": ("ledger", f"reserved {money(event.usd)}: it counts against every cap"),
            "sent": ("wallet", "signed; the proof is on disk, encrypted, before it leaves"),
            "settled": ("ledger", "settled"),
            "refused": ("payer", f"refused: {event.detail.get('reason')}"),
        }.get(event.kind)
        if told is not None:
            self.note(*told)

    def approve(self, quote: Quote) -> bool:
        """For ``Payer(approve=...)``: the moment at which the price is known."""
        asset = "" if quote.asset is None else quote.asset.name
        self.note("payer", f"the price is {money(quote.usd)} ({quote.amount} units of {asset})")
        return True


class _Recorder(httpx.HTTPTransport):
    """A transport that writes down every request and answer as they pass the wire."""

    def __init__(self, diary: _Diary) -> None:
        super().__init__()
        self._diary = diary

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send *request*, unpaid or with its proof."""
        proof = next((name for name in _PROOFS if name in request.headers), None)
        with_proof = f" with {proof.upper()}" if proof else ""
        self._diary.note("request", f"{request.method} {request.url.path}{with_proof}")
        response = super().handle_request(request)
        phrase = httpx.codes.get_reason_phrase(response.status_code)
        self._diary.note("answer", f"{response.status_code} {phrase}")
        return response


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shown:
    """Everything the demo found out."""

    diary: _Diary
    wallet: str
    url: str
    receipt: Receipt
    spends: list[Spend]
    refusal: str
    picture: Path


@click.command()
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    default=Path("demo-out/refined-mask.png"),
    show_default=True,
    help="Where the refined mask goes.",
)
@common
def demo(session: Session, output: Path) -> int:
    """Pay for one mask-refinement on this machine: no account, no real money, no network.

    Starts the sandbox, makes a throw-away wallet and a ledger of its own, pays for one call with
    the sandbox's pictures, and shows a second call refused by the cap.
    """
    package = sandbox_package()
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        message = f"cannot make {output.parent}: {exc.strerror}; nothing was paid"
        raise Failure(message, USAGE) from exc
    with package.Sandbox() as sandbox, tempfile.TemporaryDirectory(prefix="x402-mask-") as scratch:
        found = _run(sandbox.url, Path(scratch) / "ledger.db", output)
    if session.as_json:
        put(_document(found))
    else:
        _show(found)
    return DONE


def _run(url: str, ledger: Path, output: Path) -> _Shown:
    from x402_mask._ledger.sqlite import SQLiteLedger
    from x402_mask._payer import Payer
    from x402_mask._settings.words import parse_cap
    from x402_mask._wallets.local import Wallet
    from x402_mask.errors import CapExceeded
    from x402_mask.httpx import Client

    diary, wallet = _Diary(), Wallet.create()
    payer = Payer(
        wallet,
        caps=[parse_cap(cap) for cap in _CAPS],
        origins=[url],
        ledger=SQLiteLedger(ledger),
        approve=diary.approve,
        on_event=diary.watch,
    )
    pictures = {"ImageURL": f"{url}/static/photo.png", "MaskImageURL": f"{url}/static/mask.png"}
    call = f"{url}/api/tools/mask-refinement"
    with contextlib.ExitStack() as stack:
        stack.enter_context(payer)
        transport = _Recorder(diary)
        client = stack.enter_context(Client(payer, transport=transport, trust_env=False))
        diary.started = time.perf_counter()
        receipt = _paid(client, call, pictures, output)
        diary.note("", "the same call again: it would be a second purchase")
        try:
            client.post(call, json=pictures)
        except CapExceeded as refused:
            refusal = str(refused)
        else:
            raise Failure("the second call was not refused: this demo is broken, please report it")
        return _Shown(
            diary=diary,
            wallet=wallet.address,
            url=url,
            receipt=receipt,
            spends=payer.spend(),
            refusal=refusal,
            picture=output,
        )


def _paid(client: httpx.Client, call: str, pictures: dict[str, str], output: Path) -> Receipt:
    """Pay for one call and fetch what it made."""
    from x402_mask.httpx import receipt_of

    response = client.post(call, json=pictures)
    receipt = receipt_of(response)
    if not response.is_success or receipt is None:
        raise Failure(f"the sandbox answered {response.status_code}: {clean(response.text)}")
    picture = client.get(response.json()["data"]["ImageURL"]).raise_for_status()
    output.write_bytes(picture.content)
    return receipt


def _show(found: _Shown) -> None:
    receipt = found.receipt
    rows = [(ms, _ARROWS.get(who, who), what) for ms, who, what in found.diary.lines]
    show(table(f"one call to {found.url}", (">ms", "who", "what"), rows))
    pairs = {
        "service": receipt.service,
        "paid": f"{money(receipt.usd)} ({receipt.amount} units, play money)",
        "by": receipt.payer,
        "to": receipt.pay_to,
        "network": receipt.network,
        "outcome": receipt.outcome,
        "transaction": receipt.transaction,
        "payment": receipt.payment_id,
    }
    show(facts("receipt", pairs))
    show_caps(found.spends, "caps, after it")
    say(f"the second call was refused, nothing was signed: {clean(found.refusal)}", style="yellow")
    say(f"the refined mask is in {found.picture}", style="green")
    say(
        "next: `x402-mask sandbox` keeps this marketplace running to build against;"
        " `x402-mask --help` lists the rest"
    )


def _document(found: _Shown) -> dict[str, Any]:
    names = ("ms", "who", "what")
    return {
        "conversation": [dict(zip(names, line, strict=True)) for line in found.diary.lines],
        "receipt": found.receipt,
        "caps": found.spends,
        "refused": found.refusal,
        "output": str(found.picture),
    }
