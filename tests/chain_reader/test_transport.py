"""Endpoints that misbehave below JSON-RPC, secrets in URLs, threads, forks and closing."""

from __future__ import annotations

import gzip
import json
import logging
import os
import pickle
import signal
import socket
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest

from tests.chain_reader.conftest import Ask
from tests.chain_reader.fake import (
    NETWORK,
    Chain,
    Node,
    Refusal,
    at,
    authorization,
    moved,
    nodes,
    send,
    used,
)
from x402_mask._chain.reader import ChainReader
from x402_mask._chain.verdicts import Settled, Unknown, Unused

A = replace(authorization(), transaction="0x" + "99" * 32)
SECRET = "hunter2secret"
pytestmark = pytest.mark.timeout(60)

Raw = Callable[[BaseHTTPRequestHandler, bytes], None]


def status(code: int, **headers: str) -> Raw:
    return lambda handler, body: send(handler, body, status=code, headers=headers)


def body(content: bytes, **headers: str) -> Raw:
    return lambda handler, _body: send(handler, content, headers=headers)


def edited(**fields: Any) -> Raw:
    """Change fields of the JSON-RPC envelope; `None` leaves them out."""

    def answer(handler: BaseHTTPRequestHandler, content: bytes) -> None:
        envelope = json.loads(content) | fields
        kept = {name: value for name, value in envelope.items() if value is not ...}
        send(handler, json.dumps(kept).encode())

    return answer


def gzipped(handler: BaseHTTPRequestHandler, content: bytes) -> None:
    send(handler, gzip.compress(content), headers={"Content-Encoding": "gzip"})


def hang_up(handler: BaseHTTPRequestHandler, _content: bytes) -> None:
    handler.close_connection = True


def cut(handler: BaseHTTPRequestHandler, content: bytes) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(content) + 10))
    handler.end_headers()
    handler.wfile.write(content)
    handler.close_connection = True


def not_http(handler: BaseHTTPRequestHandler, _content: bytes) -> None:
    handler.wfile.write(b"\x00\xff" * 100)
    handler.close_connection = True


RAW: list[tuple[str, Raw, str]] = [
    ("404", status(404), "HTTP 404"),
    ("429", status(429, retry_after="1"), "HTTP 429"),
    ("500", status(500), "HTTP 500"),
    ("204", status(204), "HTTP 204"),
    ("html", body(b"<html>Bad gateway</html>", content_type="text/html"), "garbage"),
    ("empty", body(b""), "garbage"),
    ("null", body(b"null"), "garbage"),
    ("batch", body(b'[{"jsonrpc":"2.0","id":1,"result":"0x2105"}]'), "garbage"),
    ("latin-1", body(b'{"jsonrpc":"2.0","id":1,"result":"\xe9"}'), "garbage"),
    ("NaN", body(b'{"jsonrpc":"2.0","id":1,"result":NaN}'), "garbage"),
    ("digits", body(b'{"jsonrpc":"2.0","id":1,"result":' + b"9" * 5000 + b"}"), "garbage"),
    ("deep", body(b"[" * 100_000), "garbage"),
    ("deeper", body(b'{"a":["]}",' * 300_000), "garbage"),
    ("escapes", body(b'"' + b'\\"' * 2_000_000), "garbage"),
    ("deep pairs", body(b"[" * 1000 + b"]" * 1000), "garbage"),
    ("said twice", body(b'{"jsonrpc":"2.0","id":1,"result":"0x1","result":"0x2105"}'), "garbage"),
    ("odd error", edited(error="no"), "garbage"),
    ("error list", edited(error=[1]), "garbage"),
    ("another id", edited(id=77), "no answer to the call"),
    ("text id", edited(id="1"), "no answer to the call"),
    ("no id", edited(id=...), "no answer to the call"),
    ("no version", edited(jsonrpc=...), "no answer to the call"),
    ("version 1", edited(jsonrpc="1.0"), "no answer to the call"),
    ("no result", edited(result=...), "no answer to the call"),
    (
        "refused",
        edited(error={"code": -32601, "message": "no\x1b[2J such\nmethod"}),
        "refused eth_",
    ),
    ("refused oddly", edited(error={"code": True, "message": [1]}), "error ?"),
    ("encoded", gzipped, "encoding"),
    ("hung up", hang_up, "RPC failed (RemoteProtocolError)"),
    ("cut short", cut, "RPC failed"),
    ("not http", not_http, "RPC failed"),
    ("huge header", status(200, x_much="y" * 300_000), "RPC failed"),
]


@pytest.mark.parametrize(("raw", "said"), [pytest.param(*row[1:], id=row[0]) for row in RAW])
def test_an_endpoint_that_misbehaves(node: Node, reader: Ask, raw: Raw, said: str) -> None:
    made = reader(node)
    assert isinstance(made.evidence(A), Unused)
    node.raw = raw
    for answer in (made.evidence(A), made.seen(A, time_out_s=20)):
        assert isinstance(answer, Unknown), answer
        assert said in answer.reason
        assert answer.reason.isascii() and answer.reason.isprintable()
        assert node.url in answer.reason
    node.raw = None
    assert isinstance(made.evidence(A), Unused), "one bad answer does no lasting harm"


def test_null_error_beside_a_result_is_an_answer(node: Node, reader: Ask) -> None:
    node.raw = edited(error=None)
    assert isinstance(reader(node).evidence(A), Unused)


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_redirects_are_not_followed(reader: Ask, code: int) -> None:
    with nodes(Chain(), Chain()) as (first, second):
        first.raw = status(code, location=second.url)
        answer = reader(first).evidence(A)
        assert isinstance(answer, Unknown) and f"HTTP {code}" in answer.reason
        assert not second.calls


def test_a_connection_that_was_closed_meanwhile(node: Node, reader: Ask) -> None:
    """Servers close idle connections at any time; one call is repeated on a new one."""
    made = reader(node)
    dropped: list[str] = []

    def drop_each_once(handler: BaseHTTPRequestHandler, content: bytes) -> None:
        method, _params = node.calls[-1]
        if method in dropped:
            send(handler, content)
        else:
            dropped.append(method)
            hang_up(handler, content)

    node.raw = drop_each_once
    assert isinstance(made.evidence(A), Unused)
    assert len(dropped) >= 4


def test_a_huge_answer_is_not_read_to_its_end(node: Node, reader: Ask) -> None:
    sent = 0
    ended = threading.Event()

    def endless(handler: BaseHTTPRequestHandler, _body: bytes) -> None:
        nonlocal sent
        handler.send_response(200)
        handler.send_header("Content-Length", str(1 << 40))
        handler.end_headers()
        try:
            for _ in range(512):
                handler.wfile.write(b" " * (1 << 20))
                sent += 1 << 20
        finally:
            ended.set()

    node.raw = endless
    answer = reader(node).evidence(A)
    assert isinstance(answer, Unknown) and "more than 4194304 bytes" in answer.reason
    assert ended.wait(10)
    assert sent < 64 << 20


# -- time -----------------------------------------------------------------------------------------


def hang(handler: BaseHTTPRequestHandler, _body: bytes) -> None:
    handler.rfile.read(1)  # ends when the reader hangs up


def drip_body(handler: BaseHTTPRequestHandler, _body: bytes) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "100000")
    handler.end_headers()
    _drip(handler)


def drip_headers(handler: BaseHTTPRequestHandler, _body: bytes) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
    _drip(handler)


def _drip(handler: BaseHTTPRequestHandler) -> None:
    for _ in range(1000):
        handler.wfile.write(b"x")
        time.sleep(0.01)


@pytest.mark.parametrize("raw", [hang, drip_body, drip_headers])
def test_a_call_has_a_deadline_however_the_endpoint_stalls(
    node: Node, reader: Ask, raw: Raw
) -> None:
    made = reader(node, time_out_s=0.5)
    node.raw = raw
    for ask in (made.evidence, lambda a: made.seen(a, time_out_s=0.5)):
        began = time.monotonic()
        answer = ask(A)
        assert isinstance(answer, Unknown) and "timed out" in answer.reason
        assert 0.45 < time.monotonic() - began < 5.0


def test_a_question_has_a_deadline_too(node: Node, reader: Ask) -> None:
    """Every single call is in time, but there are too many of them."""

    def slow(handler: BaseHTTPRequestHandler, content: bytes) -> None:
        time.sleep(0.1)
        send(handler, content)

    node.raw = slow
    began = time.monotonic()
    answer = reader(node, time_out_s=0.5, block_span=1).evidence(A)
    assert isinstance(answer, Unknown) and "timed out (no answer in 3 s)" in answer.reason
    assert 2.9 < time.monotonic() - began < 10.0


def test_seen_takes_no_longer_than_asked(node: Node, reader: Ask) -> None:
    node.raw = hang
    made = reader(node, time_out_s=30)
    began = time.monotonic()
    answer = made.seen(A, time_out_s=0.5)
    assert isinstance(answer, Unknown) and "timed out" in answer.reason
    assert time.monotonic() - began < 5.0


def test_a_slow_endpoint_beside_a_quick_one(reader: Ask) -> None:
    with nodes(Chain(), Chain()) as (quick, slow):
        slow.raw = hang
        answer = reader(quick, slow, time_out_s=2.0).evidence(A)
        assert isinstance(answer, Unknown) and not answer.answered
        assert answer.reason == f"{slow.url}: RPC timed out"


def test_nobody_listens(reader: Ask) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        answer = reader(url).evidence(A)
    assert answer == Unknown(reason=f"{url}: RPC failed (ConnectError)")
    assert isinstance(answer, Unknown) and not answer.answered


def test_https_is_verified(node: Node, reader: Ask) -> None:
    """A plain server under https: no fallback to http."""
    answer = reader(node.url.replace("http:", "https:")).evidence(A)
    assert isinstance(answer, Unknown) and "RPC failed" in answer.reason
    assert not node.calls


# -- secrets --------------------------------------------------------------------------------------


def test_keys_in_urls_show_nowhere(reader: Ask, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)

    def echo(params: list[Any], _truth: Any) -> Any:
        raise Refusal(-32000, f"key {SECRET}1 is used up, see /v2/{SECRET}2")

    with Node(Chain()) as node:
        at = f"user-{SECRET}:pass-{SECRET}@127.0.0.1:{node.port}/v2/{SECRET}1?key={SECRET}2"
        made = reader(f"http://{at}#frag")
        assert isinstance(made.evidence(A), Unused)
        assert set(node.targets) == {f"/v2/{SECRET}1?key={SECRET}2"}
        texts = [repr(made), str(made), repr(vars(made))]
        node.lies["eth_chainId"] = echo
        texts += [repr(made.evidence(A)), repr(made.seen(A))]
        node.lies.clear()
        for raw in (status(401), hang_up, not_http, body(SECRET.encode())):
            node.raw = raw
            texts += [repr(made.evidence(A)), repr(made.seen(A))]
        assert all("http://127.0.0.1" in text for text in texts)
    texts.append(repr(made.evidence(A)))
    texts.append(caplog.text)
    assert caplog.records, "something was logged, so that this can fail"
    assert not [text for text in texts if SECRET in text or "dXNlci1odW50ZXI" in text]


def test_login_in_the_url_is_sent_as_basic_auth(node: Node, reader: Ask) -> None:
    made = reader(f"http://Aladdin:open%20sesame@127.0.0.1:{node.port}")
    assert isinstance(made.evidence(A), Unused)
    assert set(node.logins) == {"Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="}  # RFC 7617, section 2


def test_it_cannot_be_pickled(node: Node, reader: Ask) -> None:
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(reader(node))


# -- proxies --------------------------------------------------------------------------------------


def test_environment_proxies_are_used_for_https(
    reader: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        proxy.settimeout(30)
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{proxy.getsockname()[1]}")
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(reader("https://rpc.invalid/v2/key").evidence, A)
            connection, _ = proxy.accept()
            with connection:
                assert connection.recv(100).startswith(b"CONNECT rpc.invalid:443 ")
                proxy.close()  # else the next try is taken by nobody, and waited for
            assert isinstance(answer.result(), Unknown)
    monkeypatch.setenv("https_proxy", "gopher://127.0.0.1:1")
    answered = reader("https://rpc.invalid/v2/key").evidence(A)
    told = "https://rpc.invalid: the environment's proxy cannot be used"
    assert answered == Unknown(reason=told)


def test_plain_http_never_leaves_this_machine(
    node: Node, reader: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy in between could say of the chain what it likes."""
    for name in ("http_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert isinstance(reader(node).evidence(A), Unused)


# -- threads, forks, closing ------------------------------------------------------------------------


def test_many_threads_share_a_reader(node: Node, reader: Ask) -> None:
    authorizations = []
    for i in range(32):
        a = replace(A, nonce=f"0x{i + 1:064x}", amount=i)
        tx = node.chain.add(1001 + i % 20, used(a), moved(a)) if i % 2 else None
        authorizations.append(replace(a, transaction=tx if i % 4 == 1 else None))
    made = reader(node)
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(made.evidence, authorizations))
    for i, answer in enumerate(answers):
        assert isinstance(answer, Settled if i % 2 else Unused), answer
        assert not isinstance(answer, Settled) or answer.amount == i


def test_it_works_inside_a_running_event_loop(node: Node, reader: Ask) -> None:
    import asyncio

    async def main() -> object:
        return reader(node).evidence(A)

    assert isinstance(asyncio.run(main()), Unused)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_connects_anew(node: Node, reader: Ask) -> None:
    made = reader(node)
    assert isinstance(made.evidence(A), Unused)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the parent has threads: the point
        child = os.fork()
    if child == 0:
        try:
            os._exit(0 if isinstance(made.evidence(A), Unused) else 3)
        finally:
            os._exit(4)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert isinstance(made.evidence(A), Unused)


def test_closed(node: Node) -> None:
    made = ChainReader({NETWORK: node.url}, margin_blocks=5, clock=lambda: float(at(1100)))
    assert isinstance(made.evidence(A), Unused)
    before = _threads()
    made.close()
    made.close()
    assert len(_threads()) == len(before) - 1
    for answer in (made.evidence(A), made.seen(A)):
        assert answer == Unknown(reason="the chain reader is closed")
    unused = ChainReader({NETWORK: node.url})
    unused.close()
    assert isinstance(unused.evidence(A), Unknown)


def _threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "x402-mask-chain"]


def test_closing_ends_questions_in_flight(node: Node) -> None:
    waiting = threading.Event()

    def stall(handler: BaseHTTPRequestHandler, content: bytes) -> None:
        waiting.set()
        hang(handler, content)

    node.raw = stall
    with closing(ChainReader({NETWORK: node.url}, time_out_s=30)) as made, _asking(made) as answers:
        assert waiting.wait(10)
        made.close()
    assert answers == [Unknown(reason="the chain reader is closed")]


@contextmanager
def _asking(reader: ChainReader) -> Iterator[list[object]]:
    answers: list[object] = []
    thread = threading.Thread(target=lambda: answers.append(reader.evidence(A)), daemon=True)
    thread.start()
    yield answers
    thread.join(10)
    assert not thread.is_alive()


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="no signals to threads here")
def test_an_interrupt_ends_the_question(node: Node, reader: Ask) -> None:
    """Ctrl-C while waiting passes through, and the reader goes on working."""
    hung_up = threading.Event()

    def wait(handler: BaseHTTPRequestHandler, content: bytes) -> None:
        hang(handler, content)
        hung_up.set()

    node.raw = wait
    made = reader(node, time_out_s=30)
    main = threading.main_thread().ident
    assert main is not None
    timer = threading.Timer(0.2, signal.pthread_kill, (main, signal.SIGINT))
    # Shells start background jobs with SIGINT ignored, and Python then leaves it so.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            made.evidence(A)
        timer.join(5)
    finally:
        signal.signal(signal.SIGINT, before)
    assert hung_up.wait(10), "the abandoned calls are ended, not left to time out"
    node.raw = None
    assert isinstance(made.evidence(A), Unused)
