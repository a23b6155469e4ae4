"""The challenge reader on a corpus, and on what nobody thought of."""

from __future__ import annotations

import base64
import contextlib
import json
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.seller import challenge, encode, offer, offer_server402, offer_v1
from x402_mask import Cap, ChallengeError, MemoryLedger, OfferRefused, Payer, Wallet
from x402_mask._payer import buyer_of
from x402_mask._policy.offers import Choice, choose
from x402_mask._wire import strict_json
from x402_mask._wire.assets import NETWORK_NAMES
from x402_mask._wire.x402 import (
    CHALLENGE_BYTES_MAX,
    OFFERS_MAX,
    Challenge,
    proof_header,
    read_challenge,
    read_settlement,
    shown,
)

CORPUS = Path(__file__).parents[2] / "fixtures" / "challenges"


@dataclass(frozen=True)
class Read:
    """What a file is read as: its form, the offers that parse, and the amount paid or the refusal."""

    form: str
    offers: int
    verdict: int | str
    index: int | None = None
    skipped: Sequence[str] | None = None


NOT_JSON = "the 402's body is not usable JSON: "
NO_LIST = "the payment challenge has no list of offers (accepts)"
BASE64 = "the PAYMENT-REQUIRED header is not base64"
EXPECTED: dict[str, Read | str | None] = {
    # every wire form; .txt is a PAYMENT-REQUIRED header, the rest are bodies
    "v2-header.txt": Read("v2", 1, 1000),
    "v2-header-no-version.txt": Read("v2", 1, 1000),
    "v2-header-version-text.txt": Read("v2", 1, 1000),
    "v2-header-padding-missing.txt": Read("v2", 1, 1000),
    "v2-header-spaces-around.txt": Read("v2", 1, 1000),
    "v1-header.txt": Read("v1", 1, 1000),
    "header-url-safe.txt": Read("v2", 1, 1000),
    "header-latin1.txt": Read("v2", 0, "no_offer"),
    "v2-body.json": Read("v2", 1, 1000),
    "v2-body-bom.bin": Read("v2", 1, 1000),
    "v2-body-extensions.json": Read("v2", 1, 1000),
    "v2-body-leading-space.bin": Read("v2", 1, 1000),
    "v1-body.json": Read("v1", 1, 1000),
    "v1-body-extra-text.json": Read("v1", 1, 1000),
    "v1-body-extra-bad-text.json": Read("v1", 1, 1000, 1, ["domain"] * 3),
    "server402-body.json": Read("server402", 1, 1000),
    "server402-body-legacy-network.json": Read("server402", 1, 1000),
    # offers
    "many-offers-cheapest-last.json": Read("v2", 3, 1000, 2, ["price"] * 2),
    "one-bad-among-good.json": Read("v2", 1, 1000, 4, ["network", "scheme", "scheme", "scheme"]),
    "other-chain-then-ours.json": Read("v2", 3, 1000, 2, ["network"] * 2),
    "null-fields.json": Read("v2", 1, 1000),
    "unknown-fields.json": Read("v2", 1, 1000),
    "surrogate.bin": Read("v2", 1, 1000),
    "huge-float.bin": Read("v2", 1, 1000),
    "sixty-four-offers.json": Read("v2", 64, 1937, 63),
    "accepts-empty.json": Read("v2", 0, "no_offer"),
    "amounts-that-are-none.json": Read("v2", 0, "price", skipped=["price"] * 15),
    "amount-named-twice-alike.json": Read("v2", 1, 1000),
    "amount-named-twice-differently.json": Read("v2", 0, "price"),
    "amount-larger-than-a-ledger.json": Read("v2", 1, "price"),
    "timeouts.json": Read("v2", 4, 1000, 6, ["validity"] * 6),
    "timeout-missing.json": Read("v2", 1, 1000),
    "timeout-ten-years.json": Read("v2", 1, 1000),
    "schemes.json": Read("v2", 5, 1000, 4, ["scheme"] * 4),
    "flows.json": Read("v2", 3, 1000, 1),
    "permit2.json": Read("v2", 1, "transfer_method"),
    "domain-lies.json": Read("v2", 5, "domain"),
    "domain-right.json": Read("v2", 1, 1000),
    "payees.json": Read("v2", 9, "payee", skipped=["payee"] * 2),
    "payee-lower-case.json": Read("v2", 1, 1000),
    "payee-upper-case.json": Read("v2", 1, 1000),
    "asset-unknown.json": Read("v2", 1, "asset"),
    "asset-lower-case.json": Read("v2", 1, 1000),
    "network-disputed.json": Read("v1", 1, "network"),
    "extensions-not-an-object.json": Read("v2", 1, 1000),
    # claims to be a challenge, and is none
    "version-99.json": "unknown x402Version 99",
    "version-float.json": "unknown x402Version 2.0",
    "version-list.json": "unknown x402Version [2]",
    "version-true.json": "unknown x402Version True",
    "accepts-missing.json": NO_LIST,
    "accepts-null.json": NO_LIST,
    "accepts-object.json": NO_LIST,
    "accepts-text.json": NO_LIST,
    "too-many-offers.json": "the payment challenge lists more than 64 offers",
    "not-json.bin": NOT_JSON + "not JSON",
    "trailing.bin": NOT_JSON + "not JSON",
    "nul-bytes.bin": NOT_JSON + "not JSON",
    "repeated-key.bin": NOT_JSON + "a repeated key",
    "repeated-key-in-offer.bin": NOT_JSON + "a repeated key",
    "nan.bin": NOT_JSON + "NaN is not JSON",
    "infinity.bin": NOT_JSON + "-Infinity is not JSON",
    "huge-integer.bin": NOT_JSON + "an integer with too many digits",
    "deep.bin": NOT_JSON + "nested too deeply",
    "very-deep.bin": NOT_JSON + "nested too deeply",
    "latin1.bin": "the 402's body is not UTF-8",
    "header-empty.txt": BASE64,
    "header-not-base64.txt": BASE64,
    "header-odd-length.txt": BASE64,
    "header-joined.txt": BASE64,
    "header-newline-inside.txt": BASE64,
    "header-too-long.txt": "the PAYMENT-REQUIRED header is longer than 64 KiB",
    "header-not-json.txt": "the 402's PAYMENT-REQUIRED header is not usable JSON: not JSON",
    "header-list.txt": "the payment challenge is not a JSON object",
    "header-text.txt": "the payment challenge is not a JSON object",
    "header-null.txt": "the payment challenge is not a JSON object",
    "header-no-accepts.txt": NO_LIST,
    # another kind of 402
    "empty.bin": None,
    "html.bin": None,
    "array.bin": None,
    "number.bin": None,
    "plain-json.bin": None,
    "escaped-key.bin": None,
    "utf16.bin": None,
    "header-like-but-quota.json": None,
}


@pytest.fixture(scope="module")
def payer() -> Payer:
    """Base, its USDC, anybody as payee."""
    return Payer(
        Wallet.from_key("11" * 32),
        caps=[Cap(5, per="day")],
        origins=["https://shop.example"],
        ledger=MemoryLedger(),
    )


def read(path: Path) -> Challenge | None:
    """Read a file of the corpus as its ending says."""
    if path.suffix == ".txt":
        return read_challenge([path.read_text("ascii")], b"{}")
    return read_challenge([], path.read_bytes())


def test_the_table_names_every_file() -> None:
    """A file that nobody expects anything of tests nothing."""
    assert {path.name for path in CORPUS.iterdir()} == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_corpus(name: str, payer: Payer) -> None:
    """As the table says, and nothing is lost on the way."""
    expected = EXPECTED[name]
    if isinstance(expected, str):
        with pytest.raises(ChallengeError) as caught:
            read(CORPUS / name)
        assert str(caught.value) == expected and caught.value.at_risk is False
        return
    found = read(CORPUS / name)
    if expected is None:
        assert found is None
        return
    assert found is not None and (found.form, len(found.offers)) == (expected.form, expected.offers)
    indices = sorted([o.index for o in found.offers] + [s.index for s in found.skipped])
    assert indices == list(range(len(found.document["accepts"])))
    verdict = judged(payer, found)
    if isinstance(verdict, str):
        assert verdict == expected.verdict
        skipped = found.skipped
    else:
        assert verdict.offer.amount == expected.verdict
        assert expected.index in (None, verdict.offer.index)
        skipped = verdict.skipped
    if expected.skipped is not None:
        assert [one.reason for one in skipped] == list(expected.skipped)


def judged(payer: Payer, found: Challenge) -> Choice | str:
    """The choice, or the reason of the refusal."""
    try:
        return choose(buyer_of(payer).settings.policy, found, {})
    except OfferRefused as refusal:
        return refusal.reason


# --- what is tolerated, where nothing is at stake

ACCENTS = 'caffè "€" ÿ'


def echoed(header: str) -> dict[str, Any]:
    """The proof that answers a ``PAYMENT-REQUIRED`` header, as the bytes that are sent."""
    found = read_challenge([header], None)
    assert found is not None
    _, value = proof_header(found, found.offers[0], "{}", "pay_" + "0" * 32)
    data = base64.b64decode(value)
    by_bytes = json.loads(data.decode("latin-1"))
    assert by_bytes == json.loads(data.decode("utf-8")) or "€" in data.decode()
    return dict(by_bytes if "€" not in data.decode() else json.loads(data))


@pytest.mark.parametrize("alphabet", [base64.b64encode, base64.urlsafe_b64encode])
@pytest.mark.parametrize("padding", ["=", ""])
@pytest.mark.parametrize("charset", ["utf-8", "latin-1"])
def test_either_alphabet_and_either_charset(alphabet: Any, padding: str, charset: str) -> None:
    """What btoa makes of a text is Latin-1; what we echo is right for whoever reads either."""
    words = ACCENTS if charset == "utf-8" else ACCENTS.replace("€", "~?>")
    document = challenge({**offer(), "description": words}, error=">>>???" + words)
    raw = alphabet(json.dumps(document, ensure_ascii=False).encode(charset))
    told = echoed(raw.decode() if padding else raw.decode().rstrip("="))
    assert told["accepted"] == document["accepts"][0]


@pytest.mark.parametrize(
    ("amount", "read"),
    [
        ("5", 5),
        (5, 5),
        (5.0, 5),
        (0, 0),
        (None, None),
        (True, "bad"),
        (0.5, "bad"),
        (-5, "bad"),
        ("-5", "bad"),
        ("5.0", "bad"),
        ([5], "bad"),
        ("", "bad"),
    ],
)
def test_the_amount_of_a_settlement(amount: object, read: object) -> None:
    document = {"success": True, "transaction": "0x1", "amount": amount}
    found = read_settlement({"payment-response": [encode(document)]})
    assert found is not None
    assert ("bad" if found.garbled else found.amount) == read


# --- header and body together


def test_the_header_decides_and_the_body_is_kept_as_a_rival() -> None:
    """Contract 2: the header wins; a body that is no challenge does not matter."""
    header, body = challenge(offer("1000")), challenge(offer("2000"))
    found = read_challenge([encode(header)], json.dumps(body).encode())
    assert found is not None and found.offers[0].amount == 1000
    assert found.rival is not None and found.rival.offers[0].amount == 2000
    for other in (None, b"", b"<html>", b"{}", b'{"accepts": 7}', b"\xff\xfe", b'{"x402Version":9'):
        alone = read_challenge([encode(header)], other)
        assert alone is not None and alone.rival is None and alone.offers == found.offers


def test_more_than_one_header_is_malformed() -> None:
    """Even if they say the same."""
    header = encode(challenge(offer()))
    with pytest.raises(ChallengeError, match="more than one"):
        read_challenge([header, header], None)


@pytest.mark.parametrize("changes", [{"amount": "999"}, {"payTo": "0x" + "77" * 20}])
def test_header_and_body_that_contradict_each_other_are_refused(
    changes: dict[str, str], payer: Payer
) -> None:
    """For the same token; another token in the body is no contradiction."""
    body = json.dumps(challenge({**offer(), **changes})).encode()
    found = read_challenge([encode(challenge(offer()))], body)
    assert found is not None and judged(payer, found) == "contradiction"
    elsewhere = json.dumps(challenge(offer("1", network="eip155:1"))).encode()
    found = read_challenge([encode(challenge(offer()))], elsewhere)
    assert found is not None and not isinstance(judged(payer, found), str)
    several = json.dumps(challenge({**offer(), **changes}, offer())).encode()
    found = read_challenge([encode(challenge(offer()))], several)
    assert found is not None and not isinstance(judged(payer, found), str)


# --- limits


def test_the_limits_are_exactly_where_they_are() -> None:
    """64 KiB of header, 64 offers, 32 levels."""
    filler = CHALLENGE_BYTES_MAX // 4 * 3 - len(json.dumps(challenge(offer(), x="")))
    header = encode(challenge(offer(), x="y" * (filler - 200)))
    assert len(header) <= CHALLENGE_BYTES_MAX and read_challenge([header], None) is not None
    longer = encode(challenge(offer(), x="y" * (filler + 200)))
    with pytest.raises(ChallengeError, match="64 KiB"):
        read_challenge([longer], None)
    most = challenge(*[offer()] * OFFERS_MAX)
    assert len(read_challenge([], json.dumps(most).encode()).offers) == OFFERS_MAX  # type: ignore[union-attr]
    for depth, fits in ((strict_json.DEPTH_MAX, True), (strict_json.DEPTH_MAX + 1, False)):
        text = "[" * depth + "1" + "]" * depth
        if fits:
            strict_json.loads(text)
        else:
            with pytest.raises(strict_json.BadJSON, match="deeply"):
                strict_json.loads(text)


def test_seller_text_in_messages_is_short_and_plain() -> None:
    """No control characters, no lookalikes, no walls of text."""
    assert shown("a\x1b[31m\n" + "ü" * 10) == r"a\x1b[31m\n" + r"\xfc" * 10
    assert len(shown("x" * 500)) == 80 and shown("x" * 500).endswith("...")
    assert shown(None) == "None" and shown({"a": "'"}, 20).isascii()


# --- what nobody thought of


def mutations(rng: random.Random, data: bytes) -> Iterator[bytes]:
    """A few small damages."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(changed) + 1)
        kind = rng.randrange(5)
        if kind == 0 and at < len(changed):
            changed[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            changed[at:at] = bytes([rng.randrange(256)])
        elif kind == 2:
            del changed[at : at + rng.randint(1, 6)]
        elif kind == 3:
            changed[at:at] = rng.choice([b'"', b"{", b"]", b",", b"\\u0000", b"1e9", b"null", b"-"])
        else:
            end = rng.randrange(len(changed) + 1)
            changed[at:at] = changed[min(at, end) : max(at, end)][:200]
    yield bytes(changed)


VALID = [
    challenge(offer("1000"), offer("2000", payTo="0x" + "77" * 20)),
    challenge(offer_v1("1000"), version=1),
    challenge(offer_server402("1000"), version=None),
    challenge(offer("1000"), extensions={"payment-identifier": {"info": {"required": True}}}),
]


def agree(found: Challenge, said: Any) -> None:
    """Every offer is exactly what the document says, by an independent reading of it."""
    for one in found.offers:
        entry = said["accepts"][one.index]
        amount = entry.get("amount", entry.get("maxAmountRequired"))
        if amount is None:
            amount = entry["maxAmountRequired"]
        assert str(one.amount) == str(int(amount)) and isinstance(amount, str)
        assert (one.scheme, one.asset, one.pay_to) == (
            entry["scheme"],
            entry["asset"],
            entry["payTo"],
        )
        assert one.network == NETWORK_NAMES.get(entry["network"], entry["network"])
        assert one.max_timeout_s == (
            60 if entry.get("maxTimeoutSeconds") is None else entry["maxTimeoutSeconds"]
        )
        name, value = proof_header(found, one, '{"signature":"0x"}', "pay_" + "0" * 32)
        proof = json.loads(base64.b64decode(value))
        assert proof["payload"] == {"signature": "0x"}
        if found.form == "v1":
            assert (name, proof["network"]) == ("X-PAYMENT", entry["network"])
            continue
        assert name == "PAYMENT-SIGNATURE" and proof["accepted"] == entry
        assert proof.get("resource") == said.get("resource")
        extensions = said.get("extensions")
        if isinstance(extensions, dict):
            for key in set(extensions) - {"payment-identifier"}:
                assert proof["extensions"][key] == extensions[key]


def plainly(header: str) -> str:
    """A header's text by another reading of base64, with either alphabet, and of bytes."""
    data = base64.b64decode(header.strip().translate(str.maketrans("-_", "+/")) + "===")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def survives(headers: Sequence[str], body: bytes | None, payer: Payer) -> Challenge | None:
    """Read and judge within a second, raising nothing but our own."""
    began, told = time.monotonic(), ""
    try:
        found = read_challenge(headers, body)
        if found is not None:
            judged(payer, found)
    except ChallengeError as error:
        found, told = None, str(error)
    assert len(told) < 300 and told.isascii()
    assert time.monotonic() - began < 1.0
    return found


@pytest.mark.parametrize("seed", range(40))
def test_damaged_challenges_never_become_other_offers(seed: int, payer: Payer) -> None:
    """Bytes are flipped, added, dropped, repeated: 2 000 times over."""
    rng = random.Random(seed)
    for _ in range(50):
        data = json.dumps(rng.choice(VALID)).encode()
        for damaged in mutations(rng, data):
            found = survives([], damaged, payer)
            if found is not None:
                agree(found, json.loads(damaged.decode("utf-8-sig")))
            header = base64.b64encode(damaged).decode()
            if rng.randrange(2):
                header = next(mutations(rng, header.encode())).decode("latin-1")
            found = survives([header], damaged, payer)
            if found is not None:
                agree(found, json.loads(plainly(header)))


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)
FIELDS = [
    "scheme",
    "network",
    "asset",
    "amount",
    "maxAmountRequired",
    "payTo",
    "extra",
    "maxTimeoutSeconds",
]


@given(st.dictionaries(st.sampled_from(FIELDS), anything, max_size=4), anything)
def test_any_value_in_any_field(changes: dict[str, Any], version: Any) -> None:
    """Types are never trusted; a version that is not known is refused."""
    payer = _PAYER
    for document in (
        {"x402Version": 2, "accepts": [{**offer(), **changes}]},
        {"x402Version": version, "accepts": [{**offer(), **changes}], "extensions": version},
    ):
        text = json.dumps(document)
        found = survives([], text.encode(), payer)
        if found is not None:
            agree(found, json.loads(text))


_PAYER = Payer(
    Wallet.from_key("11" * 32),
    caps=[Cap(5, per="day")],
    origins=["https://shop.example"],
    ledger=MemoryLedger(),
)


@given(st.binary(max_size=200), st.text(max_size=100))
def test_any_bytes(body: bytes, header: str) -> None:
    """Noise is no challenge."""
    survives([], body, _PAYER)
    survives([], b'{"accepts":' + body, _PAYER)
    survives([header], body, _PAYER)
    survives([base64.b64encode(body).decode()], None, _PAYER)


@given(anything)
def test_any_document(document: Any) -> None:
    """Whatever shape."""
    for one in (document, {"accepts": document}, {"x402Version": 2, "accepts": [document]}):
        survives([], json.dumps(one).encode(), _PAYER)
        survives([encode(one)], None, _PAYER)


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**70), 10**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(max_examples=60)
@given(st.dictionaries(st.text(max_size=8), plain, max_size=5), st.sampled_from([None, 1, 4]))
def test_members_and_elements_are_cut_out_to_the_letter(document: Any, indent: int | None) -> None:
    """What is echoed is the seller's own spelling: joined again it is the same document."""
    for ascii_only in (True, False):
        text = json.dumps(document, indent=indent, ensure_ascii=ascii_only)
        cut = strict_json.members(text)
        assert list(cut) == list(document)
        assert {key: json.loads(value) for key, value in cut.items()} == document
        assert all(value in text and value == value.strip() for value in cut.values())
        listed = json.dumps(list(document.values()), indent=indent, ensure_ascii=ascii_only)
        assert [json.loads(item) for item in strict_json.elements(listed)] == list(
            document.values()
        )


@given(plain)
def test_json_is_read_as_json(value: Any) -> None:
    """Where it reads at all it reads what the standard library reads."""
    text = json.dumps(value)
    try:
        found = strict_json.loads(text)
    except strict_json.BadJSON:
        return
    assert found == value and strict_json.loads(strict_json.dumps(value)) == value
    assert strict_json.loads(b"\xef\xbb\xbf" + text.encode()) == value


@given(st.text(max_size=60) | st.binary(max_size=60))
def test_json_raises_its_own_error_only(text: str | bytes) -> None:
    """For text and bytes alike."""
    with contextlib.suppress(strict_json.BadJSON):
        strict_json.loads(text)
