"""``call``: what is sent, what comes out, and every exit code."""

from __future__ import annotations

import json
import os
import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import ADDRESS, Cli, Sells
from tests.support.seller import (
    TRANSACTION,
    Answer,
    Hit,
    Reply,
    Seller,
    offer,
    paywall,
    play,
    served,
    settlement,
    v2_header,
)
from x402_mask.sandbox import Sandbox, SandboxSettings


@pytest.fixture
def nobody() -> Iterator[str]:
    """An origin where nobody listens, nor anybody else can, as another run of the tests might."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


# --- 0: done --------------------------------------------------------------------------------------


def test_pays_and_prints_the_answer_alone_on_stdout(cli: Cli, seller: Seller, sells: Sells) -> None:
    sells(served(b'{"made": "it"}\n'))
    done = cli.alone("call", "thing", "a=b")
    assert (done.code, done.out) == (0, b'{"made": "it"}\n')
    assert "paid $0.10 for thing: settled in " + TRANSACTION in done.err
    assert seller.totals().total() == 100_000


def test_json_is_one_document_with_the_receipt(cli: Cli, sells: Sells) -> None:
    sells()
    done = cli.alone("call", "thing", "--json")
    assert done.code == 0
    document = done.document
    assert document["status"] == 200
    assert document["body"] == {"made": "it"}
    receipt = document["receipt"]
    assert (receipt["usd"], receipt["amount"], receipt["outcome"]) == ("0.10", 100_000, "settled")
    assert receipt["payer"] == ADDRESS
    assert receipt["service"] == "thing"
    assert done.err == ""


def test_a_free_answer_has_no_receipt(cli: Cli, seller: Seller) -> None:
    seller.on("/api/tools/thing", Reply(body=b"free"))
    assert cli("call", "thing", "--json").document["receipt"] is None
    done = cli("call", "thing")
    assert (done.code, done.out) == (0, b"free")
    assert "nothing was paid" in done.err


def test_delivered_without_a_settlement_is_done_and_says_that_money_is_held(
    cli: Cli, sells: Sells
) -> None:
    sells(Reply(body=b"goods"))
    done = cli("call", "thing")
    assert (done.code, done.out) == (0, b"goods")
    assert "stays held" in done.err
    assert cli("call", "thing", "--json").document["receipt"]["outcome"] == "unknown"


def test_fields_are_a_json_body(cli: Cli, seller: Seller, sells: Sells) -> None:
    sells()
    fields = ("a=1", "b:=1", 'c:={"d": [true, null]}', "e=x=y", "f=")
    done = cli("call", "thing", "--no-check", *fields)
    assert done.code == 0
    sent = [json.loads(hit.body) for hit in seller.hits]
    assert sent == [{"a": "1", "b": 1, "c": {"d": [True, None]}, "e": "x=y", "f": ""}] * 2
    assert {hit.method for hit in seller.hits} == {"POST"}


def test_fields_of_a_get_are_its_query(cli: Cli, seller: Seller, sells: Sells) -> None:
    sells()
    fields = ("a=b c", "n:=3", "t:=true")
    assert cli("call", "thing", "--no-check", "--method", "GET", *fields).code == 0
    assert {(hit.method, hit.target) for hit in seller.hits} == {
        ("GET", "/api/tools/thing?a=b+c&n=3&t=true")
    }


def test_the_first_configured_origin_is_called(
    cli: Cli, seller: Seller, sells: Sells, nobody: str
) -> None:
    sells()
    origins = f"mcp:local,{seller.origin},{nobody}"
    assert cli("call", "thing", X402_MASK_ORIGINS=origins).code == 0


def test_base_url_chooses_another(cli: Cli, seller: Seller, sells: Sells, nobody: str) -> None:
    sells()
    origins = f"{nobody},{seller.origin}"
    done = cli("call", "thing", "--base-url", seller.origin + "/", X402_MASK_ORIGINS=origins)
    assert done.code == 0


def test_max_price_allows_exactly_that(cli: Cli, sells: Sells) -> None:
    sells()
    assert cli("call", "thing", "--max-price", "0.10").code == 0


def test_output_gets_every_byte(cli: Cli, sells: Sells) -> None:
    picture = bytes(range(256)) * 500
    sells(served(picture, headers=[("Content-Type", "image/png")]))
    done = cli("call", "thing", "--output", "picture.png")
    assert (done.code, done.out) == (0, b"")
    assert (cli.home / "picture.png").read_bytes() == picture
    assert [file.name for file in cli.home.iterdir() if file.name != "data"] == ["picture.png"]
    told = cli("call", "thing", "--json", "--output", "picture.png").document
    assert (told["output"], told["bytes"]) == ("picture.png", len(picture))
    assert "body" not in told


def test_binary_through_a_pipe_and_in_json(cli: Cli, sells: Sells) -> None:
    sells(served(b"\x89PNG\x00\xff"))
    assert cli.alone("call", "thing").out == b"\x89PNG\x00\xff"
    assert cli.alone("call", "thing", "--json").document["body_base64"] == "iVBORwD/"


@pytest.mark.parametrize("body", [b'{"a": NaN}', b'{"a": 1e999}', b"[" * 100_000, b"9" * 5000])
def test_what_is_not_json_stays_text_in_the_document(cli: Cli, sells: Sells, body: bytes) -> None:
    sells(served(body))
    assert cli("call", "thing", "--json").document["body"] == body.decode()


def test_an_answer_that_was_lost_is_presented_again_and_not_bought_again(
    cli: Cli, seller: Seller, sells: Sells
) -> None:
    sells(Reply(drop=True))
    assert cli.alone("call", "thing", "a=b").code == 4
    assert cli.alone("call", "thing", "a=b").code == 4
    sells()
    done = cli.alone("call", "thing", "a=b", "--json")
    assert done.code == 0
    assert len(seller.authorizations()) == 1
    assert cli.alone("spend", "--json").document["caps"][1]["settled"] == "0.10"


def test_mask_refinement_at_the_sandbox(shopper: Cli, marketplace: Sandbox) -> None:
    url = marketplace.url
    pictures = (f"ImageURL={url}/static/photo.png", f"MaskImageURL={url}/static/mask.png")
    done = shopper.alone("call", "mask-refinement", *pictures, "--json", "--max-price", "0.2")
    assert done.code == 0
    assert done.document["receipt"]["usd"] == "0.20"
    assert done.document["body"]["data"]["ImageURL"].startswith(f"{url}/static/")


def test_a_service_that_is_read_is_asked_with_get(cli: Cli, seller: Seller) -> None:
    """Unless a method was named.  Nothing was asked to be paid before."""
    paid = paywall(v2_header(offer("100000")), served(b"now"))
    wrong = Reply(status=405, headers=[("Allow", "HEAD, GET")])
    seller.on("/api/tools/thing", lambda hit: play(paid, hit) if hit.method == "GET" else wrong)
    assert cli("quote", "thing", "--json").document["usd"] == "0.10"
    done = cli("call", "thing", "a=b")
    assert (done.code, done.out) == (0, b"now")
    assert [hit.target for hit in seller.paid_hits()] == ["/api/tools/thing?a=b"]
    assert cli("call", "thing", "--method", "POST").code == 1


def test_a_seller_that_was_paid_is_not_asked_again(cli: Cli, seller: Seller, sells: Sells) -> None:
    sells(served(status=405, headers=[("Allow", "GET")]))
    assert cli("call", "thing", "--no-check").code == 5
    assert {hit.method for hit in seller.hits} == {"POST"} and len(seller.paid_hits()) == 1


def test_a_held_token_is_no_payment_for_a_405(bare: Cli) -> None:
    """A service that is read is asked with GET, also where a token that is held came with POST."""
    with Sandbox(SandboxSettings(auto_paid=True, calls_per_payment=4)) as balance:
        cli = bare.having(X402_MASK_ORIGINS=balance.url, X402_MASK_CAPS="0.25/call,1/day")
        routes = []
        for _ in range(3):
            done = cli.alone("call", "random-uuid", "--no-check", "--json")
            assert done.code == 0, done
            routes.append(done.document["receipt"]["route"])
    assert routes == ["token", "held-token", "held-token"]


# --- the catalog ----------------------------------------------------------------------------------

CATALOG = "/api/catalog/search"


def _lists(seller: Seller, **entry: object) -> None:
    listed = {"id": "thing", "endpoint": "/api/tools/thing", **entry}
    seller.on(CATALOG, Reply(body=json.dumps({"services": [listed]}).encode()))


def _targets(seller: Seller) -> list[str]:
    return [hit.target.partition("?")[0] for hit in seller.hits]


def test_fields_that_the_service_does_not_take_are_not_paid_for(
    shopper: Cli, marketplace: Sandbox
) -> None:
    before = len(marketplace.book.settlements)
    for fields, told in (
        (("ImageURL=https://h/x.png",), "MaskImageURL"),
        (("imageurl=https://h/x.png", "MaskImageURL=https://h/y.png"), "ImageURL"),
        (("ImageURL:=5", "MaskImageURL=https://h/y.png"), "ImageURL"),
    ):
        done = shopper("call", "mask-refinement", *fields, "--json")
        assert (done.code, done.document["error"]["reason"]) == (3, "input")
        assert told in done.document["error"]["message"]
    assert len(marketplace.book.settlements) == before
    unread = ("call", "mask-refinement", "--no-check")
    assert shopper(*unread, "ImageURL=x").code == 3  # known without a catalog
    pictures = ("ImageURL=https://h.invalid/x.png", "MaskImageURL=https://h.invalid/y.png")
    assert shopper(*unread, *pictures).code == 5
    assert len(marketplace.book.settlements) == before + 1


def test_a_price_above_the_catalogs_is_not_paid(cli: Cli, seller: Seller, sells: Sells) -> None:
    sells()
    _lists(seller, pricing={"amountCents": 9, "currency": "USD"})
    done = cli("call", "thing", "--json")
    assert (done.code, done.document["error"]["reason"]) == (3, "catalog_price")
    assert seller.proofs() == []
    assert cli("call", "thing", "--no-check").code == 0


def test_the_catalog_is_read_with_one_request_that_says_nothing(
    cli: Cli, seller: Seller, sells: Sells
) -> None:
    sells()
    _lists(seller)
    assert cli("call", "thing", "a=b").code == 0
    assert _targets(seller) == [CATALOG, "/api/tools/thing", "/api/tools/thing"]
    asked = seller.hits[0]
    assert (asked.method, asked.target, asked.body) == ("GET", f"{CATALOG}?q=thing", b"")
    assert ADDRESS.lower() not in str(asked.headers).lower()
    seller.hits.clear()
    assert cli("call", "thing", "a=b", "--no-check").code == 0
    assert CATALOG not in _targets(seller)


def test_the_catalog_tells_the_method(cli: Cli, seller: Seller, sells: Sells) -> None:
    sells()
    _lists(seller, method="GET")
    assert cli("call", "thing", "a=b").code == 0
    assert {hit.method for hit in seller.hits} == {"GET"}
    assert cli("call", "thing", "a=b", "--method", "POST").code == 0
    assert {hit.method for hit in seller.paid_hits()} == {"GET", "POST"}


def test_what_is_free_is_not_checked(cli: Cli, seller: Seller) -> None:
    seller.on("/api/tools/thing", Reply(body=b"free"))
    _lists(seller, inputSchema={"type": "object", "required": ["a"]})
    assert cli("call", "thing").out == b"free"


@pytest.mark.parametrize(
    "catalog",
    [
        Reply(status=500),
        Reply(status=302, headers=[("Location", "/elsewhere")]),
        Reply(body=b"nonsense"),
        Reply(body=b'{"services": []}'),
        Reply(drop=True),
        Reply(delay=30),
        Reply(body=b"x" * (2 << 20)),
        Reply(body=b'{"services": [{"id": "thing", "endpoint": "https://elsewhere.invalid/x"}]}'),
        v2_header(offer("100000")),
    ],
)
def test_a_catalog_that_cannot_be_read_keeps_nobody_from_calling(
    cli: Cli, seller: Seller, sells: Sells, catalog: Reply
) -> None:
    sells()
    seller.on(CATALOG, catalog)
    began = time.monotonic()
    assert cli("call", "thing").code == 0
    assert time.monotonic() - began < 15
    assert _targets(seller) == [CATALOG, "/api/tools/thing", "/api/tools/thing"]


# --- 1: failed, nothing paid ----------------------------------------------------------------------


def test_nobody_there(cli: Cli, nobody: str) -> None:
    done = cli.alone("call", "thing", "--json", X402_MASK_ORIGINS=nobody)
    assert done.code == 1
    error = done.document["error"]
    assert (error["code"], error["at_risk"], error["payment_id"]) == ("network", False, None)
    assert "nothing was paid" in error["message"]


@pytest.mark.parametrize("status", [302, 400, 404, 500])
def test_an_unpaid_failure(cli: Cli, seller: Seller, status: int) -> None:
    seller.on("/api/tools/thing", Reply(status=status, body=b'{"error": "no such thing"}'))
    done = cli("call", "thing")
    assert done.code == 1
    assert f"{status} Status: no such thing; nothing was paid" in done.err
    assert done.out == b""
    told = cli("call", "thing", "--json").document
    assert told["error"]["code"] == "seller"
    assert (told["status"], told["body"]) == (status, {"error": "no such thing"})


def test_a_redirect_is_not_followed(cli: Cli, seller: Seller) -> None:
    seller.on("/api/tools/thing", Reply(status=307, headers=[("Location", "/elsewhere")]))
    done = cli("call", "thing", "--no-check")
    assert done.code == 1
    assert "to /elsewhere (redirects are not followed)" in done.err
    assert len(seller.hits) == 1


def test_a_402_that_is_no_challenge(cli: Cli, seller: Seller) -> None:
    seller.on("/api/tools/thing", Reply(status=402, body=b"pay me"))
    done = cli("call", "thing")
    assert done.code == 1
    assert "402 Status: pay me; nothing was paid" in done.err


def test_a_challenge_that_cannot_be_read(cli: Cli, seller: Seller) -> None:
    seller.on("/api/tools/thing", Reply(status=402, headers=[("PAYMENT-REQUIRED", "!!!")]))
    done = cli.alone("call", "thing", "--json")
    assert done.code == 1
    assert done.document["error"]["code"] == "challenge"


def test_a_damaged_ledger(cli: Cli, sells: Sells) -> None:
    sells()
    (cli.home / "broken.db").write_bytes(b"not a database" * 1000)
    done = cli("call", "thing", "--json", X402_MASK_LEDGER="broken.db")
    assert done.code == 1
    assert done.document["error"]["code"] == "ledger"


def test_time_out_before_anything_was_paid(cli: Cli, seller: Seller) -> None:
    seller.on("/api/tools/thing", Reply(delay=30))
    done = cli("call", "thing", "--timeout", "0.3")
    assert done.code == 1
    assert "ReadTimeout" in done.err
    assert "nothing was paid" in done.err


def test_interrupted_before_anything_was_paid(cli: Cli, seller: Seller) -> None:
    seller.on("/api/tools/thing", Reply(delay=30))
    done = cli.interrupted(lambda: seller.wait_for(lambda: seller.hits, 60), "call", "thing")
    assert done.code == 1
    assert "interrupted; nothing was paid" in done.err


# --- 2: usage -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), "Usage:"),
        (("../etc",), "not a service id"),
        (("https://host/api/tools/x",), "--base-url names the seller"),
        (("thing", "novalue"), "not KEY=VALUE"),
        (("thing", "=x"), "not KEY=VALUE"),
        (("thing", "a=1", "a:=2"), "given twice"),
        (("thing", "a:={"), "not followed by JSON"),
        (("thing", "a:=NaN"), "not followed by JSON"),
        (("thing", "--max-price", "cheap"), "not a USD amount"),
        (("thing", "--max-price", "-1"), "below 0"),
        (("thing", "--max-price", "0.0000001"), "six decimals"),
        (("thing", "--base-url", "ftp://x"), "not an http(s) URL"),
        (("thing", "--base-url", "http://127.0.0.1/x"), "nothing more"),
        (("thing", "--method", "BREW"), "BREW"),
        (("thing", "--method", "GET", "a:=[1]"), "a query holds text"),
        (("thing", "--timeout", "0"), "--timeout"),
        (("thing", "--output", "no/such/dir/file"), "nothing was paid"),
        (("thing", "--bogus"), "--bogus"),
    ],
)
def test_usage(cli: Cli, seller: Seller, arguments: tuple[str, ...], told: str) -> None:
    done = cli("call", *arguments)
    assert done.code == 2
    assert told in done.err
    assert done.out == b""
    assert seller.hits == []
    if arguments:
        failure = cli("call", *arguments, "--json")
        assert failure.code == 2
        assert told in failure.document["error"]["message"]


@pytest.mark.parametrize(
    ("env", "told"),
    [
        ({"X402_MASK_CAPS": None}, "no caps are configured: set X402_MASK_CAPS"),
        ({"X402_MASK_ORIGINS": None}, "no origins are configured: set X402_MASK_ORIGINS"),
        ({"X402_MASK_CAPS": "much/day"}, "X402_MASK_CAPS: not a USD amount: 'much'"),
        ({"X402_MASK_ORIGINS": "http://host"}, "X402_MASK_ORIGINS: only loopback"),
        ({"X402_MASK_PRIVATE_KEY": "0x1234"}, "X402_MASK_PRIVATE_KEY is not a private key"),
        ({"X402_MASK_CONFIG": "missing.toml"}, "X402_MASK_CONFIG: missing.toml: No such file"),
        ({"X402_MASK_LEDGER": "mysql://h/db"}, "not mysql://"),
        (
            {"X402_MASK_PRIVATE_KEY": None, "X402_MASK_KEYSTORE": "gone.json"},
            "gone.json",
        ),
    ],
)
def test_a_mistake_in_the_settings(
    cli: Cli, seller: Seller, env: dict[str, str | None], told: str
) -> None:
    if "X402_MASK_KEYSTORE" in env:
        env["X402_MASK_KEYSTORE_PASSWORD"] = "x"
    done = cli("call", "thing", **env)
    assert done.code == 2
    assert told in done.err
    assert len(done.err.strip().splitlines()) == 1
    assert seller.hits == []
    error = cli("call", "thing", "--json", **env).document["error"]
    assert error["code"] == "config"
    assert told in error["message"]


def test_a_file_that_is_missing_is_named_as_it_was_given(cli: Cli) -> None:
    for arguments in (("--config", "gone.toml", "spend"), ("spend", "--config", "gone.toml")):
        done = cli(*arguments)
        assert done.code == 2
        assert "--config gone.toml: No such file" in done.err
        assert "X402_MASK_CONFIG" not in done.err


def test_a_password_that_nobody_can_be_asked_for(cli: Cli, seller: Seller) -> None:
    (cli.home / "k.json").write_text("{}")
    done = cli.alone("call", "thing", X402_MASK_PRIVATE_KEY=None, X402_MASK_KEYSTORE="k.json")
    assert done.code == 2
    assert "set X402_MASK_KEYSTORE_PASSWORD" in done.err
    assert seller.hits == []


# --- 3: refused -----------------------------------------------------------------------------------


def test_over_the_cap(cli: Cli, seller: Seller, sells: Sells) -> None:
    sells(amount="260000")
    done = cli.alone("call", "thing")
    assert done.code == 3
    assert "$0.25/call" in done.err
    told = cli.alone("call", "thing", "--json")
    assert told.code == 3
    error = told.document["error"]
    assert (error["code"], error["reason"], error["at_risk"]) == ("refused", "cap", False)
    assert error["exit_code"] == 3
    assert seller.proofs() == []


def test_over_max_price(cli: Cli, seller: Seller, sells: Sells) -> None:
    sells()
    done = cli("call", "thing", "--max-price", "0.09", "--json")
    assert done.code == 3
    error = done.document["error"]
    assert error["reason"] == "approval"
    assert "costs $0.10, which is above --max-price 0.09" in error["message"]
    assert done.document["quote"]["usd"] == "0.10"
    assert seller.proofs() == []


def test_max_price_does_not_stand_in_for_a_cap(cli: Cli, seller: Seller, sells: Sells) -> None:
    sells()
    done = cli("call", "thing", "--max-price", "1", "--json", X402_MASK_CAPS="1/day@other")
    assert (done.code, done.document["error"]["reason"]) == (3, "no_cap")
    assert seller.proofs() == []


def test_no_wallet(cli: Cli, sells: Sells) -> None:
    sells()
    done = cli("call", "thing", "--json", X402_MASK_PRIVATE_KEY=None)
    assert (done.code, done.document["error"]["reason"]) == (3, "no_wallet")


def test_paused_in_another_process(cli: Cli, sells: Sells) -> None:
    sells()
    assert cli.alone("pause").code == 0
    done = cli.alone("call", "thing", "--json")
    assert (done.code, done.document["error"]["reason"]) == (3, "paused")
    assert cli.alone("resume").code == 0
    assert cli.alone("call", "thing").code == 0


@pytest.mark.parametrize("command", ["call", "quote"])
def test_base_url_lists_no_origin(cli: Cli, seller: Seller, sells: Sells, command: str) -> None:
    """Nothing at all is sent to who is not configured, the fields of the call least of all."""
    sells()
    env = {"X402_MASK_ORIGINS": "https://seller.invalid"}
    done = cli(command, "thing", "secret=x", "--base-url", seller.origin, "--json", **env)
    assert (done.code, done.document["error"]["reason"]) == (3, "origin")
    assert "(X402_MASK_ORIGINS)" in done.document["error"]["message"]
    assert seller.hits == []
    assert cli(command, "thing", "--base-url", seller.origin, X402_MASK_ORIGINS=None).code == 2


def test_a_refusal_stays_an_error_whatever_the_file_says(cli: Cli, sells: Sells) -> None:
    sells(amount="260000")
    (cli.home / "c.toml").write_text('on_refusal = "return"\n')
    assert cli("call", "thing", "--config", "c.toml").code == 3
    assert cli("--config", "c.toml", "call", "thing").code == 3


# --- 4: outcome unknown ---------------------------------------------------------------------------


def test_the_answer_was_lost(cli: Cli, sells: Sells) -> None:
    sells(Reply(drop=True))
    done = cli.alone("call", "thing", "--json")
    assert done.code == 4
    error = done.document["error"]
    assert (error["code"], error["at_risk"]) == ("network", True)
    assert error["payment_id"].startswith("pay_")
    assert error["payment_id"] in error["message"]
    held = cli.alone("payments", "--state", "held", "--json").document["payments"]
    assert [payment["payment_id"] for payment in held] == [error["payment_id"]]


def test_no_answer_in_time(cli: Cli, sells: Sells) -> None:
    sells(Reply(delay=30))
    done = cli.alone("call", "thing", "--timeout", "0.5")
    assert done.code == 4
    assert "ReadTimeout" in done.err


def test_refused_with_the_proof_in_hand(cli: Cli, sells: Sells) -> None:
    sells(v2_header(offer("100000")))
    done = cli.alone("call", "thing", "--json")
    assert done.code == 4
    told = done.document
    assert (told["error"]["at_risk"], told["receipt"]["outcome"]) == (True, "rejected")


def test_refused_is_not_called_paid(cli: Cli, sells: Sells) -> None:
    sells(v2_header(offer("100000")))
    words = cli("call", "thing").words
    assert (
        "sent and stays held: the seller asked to be paid again (no settlement reported)" in words
    )
    assert "paid $0.10" not in words


def _claiming(status: int = 200, **claim: object) -> Answer:
    def answer(hit: Hit) -> Reply:
        return Reply(status=status, headers=[settlement(hit, **claim)])

    return answer


@pytest.mark.parametrize(
    ("answer", "code", "told"),
    [
        (_claiming(success=False, errorReason="oh"), 0, "stays held: settlement failed: oh"),
        (_claiming(amount="5"), 0, "stays held: the settlement names another amount"),
        (
            _claiming(402, success=False, errorReason="settlement_pending"),
            4,
            "stays held: the seller refused it: settlement_pending (it is on its way",
        ),
    ],
)
def test_what_is_wrong_with_a_settlement(
    cli: Cli, sells: Sells, answer: Answer, code: int, told: str
) -> None:
    sells(answer)
    done = cli("call", "thing")
    assert done.code == code
    assert told in done.words


def test_failed_and_said_nothing_of_the_money(cli: Cli, sells: Sells) -> None:
    sells(Reply(status=500, body=b"oops"))
    done = cli("call", "thing")
    assert done.code == 4
    assert "500 Status: oops; a payment of $0.10 for thing was sent and stays held" in done.err


def test_interrupted_with_the_proof_under_way(cli: Cli, seller: Seller, sells: Sells) -> None:
    sells(Reply(delay=30))
    done = cli.interrupted(lambda: seller.wait_for(seller.paid_hits, 60), "call", "thing", "--json")
    assert done.code == 4
    assert done.document["error"]["code"] == "interrupted"
    assert done.document["error"]["at_risk"] is True


def test_cut_in_the_body_without_a_settlement(cli: Cli, sells: Sells) -> None:
    sells(Reply(body=b"x" * 1000, cut=10))
    assert cli("call", "thing").code == 4


# --- 5: paid, but the seller failed ---------------------------------------------------------------


def test_settled_and_failed(cli: Cli, sells: Sells) -> None:
    sells(served(b'{"error": {"message": "the model is down"}}', status=500))
    done = cli.alone("call", "thing", "--json")
    assert done.code == 5
    told = done.document
    assert (told["error"]["code"], told["error"]["at_risk"]) == ("seller", False)
    assert "the model is down" in told["error"]["message"]
    assert told["receipt"]["transaction"] == TRANSACTION


def test_settled_with_an_earlier_call_and_refused_now(
    cli: Cli, seller: Seller, sells: Sells
) -> None:
    """The ledger knows that it is settled, whatever the seller says of the same proof now."""
    sells(served(status=500))
    first = cli.alone("call", "thing", "--json")
    assert (first.code, first.document["payment_state"]) == (5, "settled")
    sells(v2_header(offer("100000")))
    done = cli.alone("call", "thing", "--json")
    assert done.code == 5
    told = done.document
    assert (told["error"]["at_risk"], told["payment_state"]) == (False, "settled")
    assert told["receipt"]["outcome"] == "rejected"
    assert f"settled already in {TRANSACTION}: nothing more was paid" in told["error"]["message"]
    sells(Reply(drop=True))
    lost = cli.alone("call", "thing", "--json")
    assert (lost.code, lost.document["error"]["at_risk"]) == (5, False)
    assert "it is settled, and the same command" in lost.document["error"]["message"]
    assert len(seller.authorizations()) == 1


def test_settled_with_an_earlier_call_and_cut_in_the_body_now(cli: Cli, sells: Sells) -> None:
    sells(served(status=500))
    assert cli("call", "thing").code == 5
    sells(Reply(body=b"x" * 1000, cut=10))
    assert cli("call", "thing").code == 5


def test_settled_and_cut_in_the_body(cli: Cli, sells: Sells) -> None:
    sells(served(b"x" * 1000, cut=10))
    done = cli.alone("call", "thing", "--output", "out")
    assert done.code == 5
    assert not (cli.home / "out").exists()
    assert [file.name for file in cli.home.iterdir()] == ["data"]


def test_settled_and_the_answer_cannot_be_written(cli: Cli, sells: Sells) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    sells()
    with Path("/dev/full").open("wb") as full:
        done = cli.run(["-m", "x402_mask", "call", "thing"], stdout=full)
    assert done.code == 5
    assert "could not be written" in done.err


def test_an_output_file_is_replaced_whole_or_not_at_all(cli: Cli, sells: Sells) -> None:
    (cli.home / "out").write_text("old")
    sells(served(b"new", status=500))
    assert cli("call", "thing", "--output", "out").code == 5
    assert (cli.home / "out").read_text() == "old"
    sells(served(b"new"))
    assert cli("call", "thing", "b=c", "--output", "out").code == 0
    assert (cli.home / "out").read_text() == "new"


def test_output_that_is_no_ordinary_file(cli: Cli, sells: Sells) -> None:
    sells(served(b"new"))
    (cli.home / "real").write_text("old")
    (cli.home / "real").chmod(0o640)
    (cli.home / "link").symlink_to("real")
    assert cli("call", "thing", "--output", "link").code == 0
    assert (cli.home / "link").is_symlink()
    assert (cli.home / "real").read_text() == "new"
    assert (cli.home / "real").stat().st_mode & 0o777 == 0o640
    os.mkfifo(cli.home / "pipe")
    reader = os.open(cli.home / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    try:
        assert cli("call", "thing", "n=2", "--output", "pipe").code == 0
        assert os.read(reader, 100) == b"new"
    finally:
        os.close(reader)
    assert stat.S_ISFIFO((cli.home / "pipe").stat().st_mode)


# --- debug ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [("--debug", "call", "thing"), ("call", "thing", "--debug")])
def test_debug_shows_the_traceback(cli: Cli, sells: Sells, arguments: tuple[str, ...]) -> None:
    sells(amount="260000")
    done = cli.alone(*arguments)
    assert done.code == 3
    assert "Traceback" in done.err
    assert "11" * 32 not in done.err
