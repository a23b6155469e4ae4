"""How a refusal reaches a program: raised, handed back, or behind an error of somebody else's."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.seller import Reply, offer, v2_header
from tests.transport.kit import URL, Rig, kinds
from tests.transport.test_layers import every_layering, layered
from x402_mask import (
    ApprovalDenied,
    Cap,
    CapExceeded,
    PaymentError,
    PaymentRefused,
    receipt_of,
    refusal_of,
)

DEAR = "9000000"


def make(rig: Rig, payer: Any, on_refusal: Any) -> Any:
    """A client of this kind, told what to do with refusals."""
    mask, sync = rig.mask, rig.kind.sync
    match rig.kind.plug:
        case "transport":
            layer = mask.PaymentTransport if sync else mask.AsyncPaymentTransport
            made = rig.plain(transport=layer(payer, rig.wire, on_refusal=on_refusal))
        case "client":
            own = mask.Client if sync else mask.AsyncClient
            made = own(payer, transport=rig.wire, on_refusal=on_refusal)
        case "auth":
            auth = mask.PaymentAuth(payer, on_refusal=on_refusal)
            made = rig.plain(transport=rig.wire, auth=auth)
        case _:
            made = mask.attach(rig.plain(transport=rig.wire), payer, on_refusal=on_refusal)
    rig._clients.append(made)
    return made


@kinds()
async def test_each_client_says_for_itself(rig: Rig) -> None:
    """Whatever the payer says, which is shared with others."""
    rig.sells(offer(DEAR))
    for payers, own, raised in (
        ("raise", "return", False),
        ("return", "raise", True),
        ("raise", None, True),
        ("return", None, False),
    ):
        rig.payer = rig.make_payer(on_refusal=payers)
        rig.client = make(rig, rig.payer, own)
        if raised:
            with pytest.raises(CapExceeded):
                await rig.get()
        else:
            assert isinstance(refusal_of(await rig.get()), CapExceeded)
    with pytest.raises(ValueError, match="on_refusal"):
        make(rig, rig.payer, "ask")


@kinds("client", "attach")
async def test_attaching_again_says_it_anew(rig: Rig) -> None:
    rig.sells(offer(DEAR))
    assert rig.mask.attach(rig.client, rig.payer, on_refusal="return") is rig.client
    assert (await rig.get()).status_code == 402
    rig.mask.attach(rig.client, rig.payer)
    assert (await rig.get()).status_code == 402
    rig.mask.attach(rig.client, rig.payer, on_refusal="raise")
    with pytest.raises(CapExceeded):
        await rig.get()


@kinds("client")
async def test_a_client_has_the_last_word_over_a_transport_that_pays(rig: Rig) -> None:
    rig.sells(offer(DEAR))
    own = rig.mask.Client if rig.kind.sync else rig.mask.AsyncClient
    below = rig.wrap(rig.payer, rig.wire)
    for options in ({"transport": below}, {"transport": rig.wire, "mounts": {"all://": below}}):
        rig.client = own(rig.payer, on_refusal="return", **options)
        assert (await rig.get()).status_code == 402
        await rig.shut(rig.client)


@every_layering()
async def test_the_outermost_layer_says(rig: Rig, layers: str) -> None:
    rig.sells(offer(DEAR))
    rig.client = layered(rig, layers)
    if layers.startswith(("auth", "attach")):
        rig.client = rig.mask.attach(rig.client, rig.payer, on_refusal="return")
        if layers == "auth-client":
            rig.client.auth = rig.mask.PaymentAuth(rig.payer, on_refusal="return")
        assert (await rig.get()).status_code == 402
    else:
        with pytest.raises(CapExceeded):
            await rig.get()
    assert len(rig.legs) == 1
    await rig.shut(rig.client)


@kinds()
async def test_a_402_that_is_handed_back_says_why(rig: Rig) -> None:
    """To a program that keeps headers only, and to an SDK that would send it again."""
    asked = v2_header(offer(DEAR))
    asked.headers.extend([("X-Should-Retry", "true"), ("X-402-Refusal", "the seller's own words")])
    rig.on(URL, asked)
    rig.client = make(rig, rig.payer, "return")
    response = await rig.get()
    refusal = response.extensions["x402_mask_refusal"]
    assert refusal.response is response and receipt_of(response) is None
    assert response.headers.get_list("x-should-retry") == ["false"]
    assert response.headers.get_list("x-402-refusal") == [str(refusal)]
    assert await rig.read(response) == asked.body


@kinds()
@pytest.mark.parametrize(
    "reply",
    [
        Reply(status=402, body=b"pay by phone", headers=[("X-402-Refusal", "no")]),
        Reply(status=200, headers=[("X-402-Refusal", "no")]),
    ],
)
async def test_a_sellers_own_words_are_no_refusal_of_ours(rig: Rig, reply: Reply) -> None:
    rig.on(URL, reply)
    response = await rig.get()
    assert refusal_of(response) is None and "x-should-retry" not in response.headers


@kinds("transport")
async def test_a_refusal_is_one_line_of_ascii(rig: Rig) -> None:
    """Whatever is in it; httpx would refuse, or fold, anything else."""
    words = (
        'N\N{LATIN SMALL LETTER O WITH DIAERESIS}\r\nSet-Cookie: a=b\0 \N{SNOWMAN}"' + "x" * 9000
    )

    def approve(quote: Any) -> bool:
        raise ApprovalDenied(words)

    rig.payer = rig.make_payer(approve=approve)
    rig.sells()
    rig.client = make(rig, rig.payer, "return")
    response = await rig.get()
    said = response.headers["x-402-refusal"]
    assert said.startswith('N? Set-Cookie: a=b? ?"xxx') and len(said) <= 500 and said.isascii()
    assert str(refusal_of(response)) == words


# --- a no -----------------------------------------------------------------------------------------


class Owner:
    """Says what it is told to, and counts."""

    def __init__(self, *answers: Any) -> None:
        self.answers = [*answers]
        self.asked: list[Any] = []

    def __call__(self, quote: Any) -> Any:
        self.asked.append(quote)
        answer = self.answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        return answer


NOES: list[Callable[[], Any]] = [
    lambda: False,
    lambda: None,
    lambda: "yes",
    lambda: ApprovalDenied("not today"),
]


@kinds()
@pytest.mark.parametrize("no", NOES)
async def test_an_owner_who_said_no_is_asked_again_after_a_minute(
    rig: Rig, no: Callable[[], Any]
) -> None:
    """In every process on the ledger; other operations are other questions."""
    clock = [1_900_000_000.0]
    owner = Owner(no(), True, True)
    options: dict[str, Any] = {"approve": owner, "clock": lambda: clock[0]}
    rig.payer = rig.make_payer(**options)
    rig.sells()
    rig.client = make(rig, rig.payer, None)
    with pytest.raises(ApprovalDenied):
        await rig.get()
    clock[0] += 59
    for client in (rig.client, make(rig, rig.make_payer(**options, ledger=rig.payer.ledger), None)):
        rig.client = client
        with pytest.raises(ApprovalDenied, match="asked again in 1 s") as caught:
            await rig.get()
        assert caught.value.reason == "approval" and caught.value.quote is not None
    assert len(owner.asked) == 1
    rig.paid(await rig.get(params={"another": "call"}))
    clock[0] += 1
    rig.paid(await rig.get())
    assert len(owner.asked) == 3 and len(rig.proofs) == 2


@kinds()
@pytest.mark.parametrize(
    "failure", [RuntimeError("closed"), TimeoutError(), PaymentRefused("above my limit")]
)
async def test_a_question_that_failed_denies_its_own_call_only(rig: Rig, failure: Any) -> None:
    owner = Owner(failure, True)
    rig.payer = rig.make_payer(approve=owner)
    rig.sells()
    rig.client = make(rig, rig.payer, None)
    with pytest.raises(PaymentRefused):
        await rig.get()
    rig.paid(await rig.get())
    assert len(owner.asked) == 2


@kinds("client", colours=["sync"])
async def test_a_no_binds_nobody_who_asks_nobody(rig: Rig) -> None:
    """A payer without approve= has an owner who does not want to be asked."""
    rig.payer = rig.make_payer(approve=lambda quote: False)
    rig.sells()
    with pytest.raises(ApprovalDenied):
        await rig.get()
    rig.client = make(rig, rig.make_payer(ledger=rig.payer.ledger), None)
    rig.paid(await rig.get())


# --- behind an error ------------------------------------------------------------------------------


def ours() -> PaymentError:
    return CapExceeded("too dear", cap=Cap(1, per="day"), wanted=2, left=1, resets_at=None)  # type: ignore[arg-type]


class SdkError(Exception):
    """What an SDK makes of it."""

    def __init__(self, response: Any = None) -> None:
        super().__init__("Connection error.")
        self.response = response


def raised(act: Callable[[], object]) -> BaseException:
    with pytest.raises(BaseException) as caught:
        act()
    return caught.value


def test_ours_is_found_wherever_it_is() -> None:
    error = ours()

    def from_it(depth: int = 3) -> None:
        if not depth:
            raise error
        try:
            from_it(depth - 1)
        except Exception as exc:
            raise SdkError from exc

    def beside_it() -> None:
        try:
            raise error
        except PaymentError:
            raise SdkError from None

    def retried() -> None:
        try:
            from_it()
        except SdkError:
            raise SdkError(object()) from OSError("later")

    for act in (from_it, beside_it, retried):
        assert refusal_of(raised(act)) is error
    assert refusal_of(error) is error
    assert refusal_of(ExceptionGroup("tasks", [OSError(), ExceptionGroup("", [error])])) is error


@kinds("client", colours=["sync"])
async def test_ours_is_found_in_a_response_and_in_an_error_that_carries_one(rig: Rig) -> None:
    rig.sells(offer(DEAR))
    rig.client = make(rig, rig.payer, "return")
    response = await rig.get()
    found = refusal_of(response)
    assert isinstance(found, CapExceeded) and refusal_of(SdkError(response)) is found
    assert refusal_of(raised(response.raise_for_status)) is found


def test_nothing_of_ours_is_none() -> None:
    loop = SdkError()
    loop.__cause__ = loop.__context__ = loop
    long = OSError()
    for _ in range(5000):
        before, long = long, OSError()
        long.__cause__ = before

    class Odd:
        def __init__(self) -> None:
            self.extensions = {"x402_mask_refusal": "a word"}

    for nothing in (None, "x", 1, OSError(), loop, long, SdkError("text"), Odd(), object()):
        assert refusal_of(nothing) is None
    assert refusal_of(pickle.loads(pickle.dumps(ours()))) is not None
