"""A stranger's nesting is judged before it is parsed: the parser recurses on the C stack."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from x402_mask._wire import strict_json


@pytest.fixture
def no_recursion_limit() -> Iterator[None]:
    """As after importing eth-account, whose dependency lifts the limit for everybody."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(100_000)
    yield
    sys.setrecursionlimit(before)


@pytest.mark.parametrize("bomb", [b"[" * 65_000, b'{"a":' * 13_000, b'[{"":' * 10_000])
def test_deep_nesting_is_refused_on_a_small_stack(bomb: bytes, no_recursion_limit: None) -> None:
    """64 KiB of brackets in a thread with 512 KiB of stack: an error, not a crash."""
    caught: list[str] = []

    def read() -> None:
        with pytest.raises(strict_json.BadJSON) as refused:
            strict_json.loads(bomb)
        caught.append(str(refused.value))

    size = threading.stack_size(512 * 1024)
    try:
        thread = threading.Thread(target=read)
        thread.start()
    finally:
        threading.stack_size(size)
    thread.join(30)
    assert caught == ["nested too deeply"]


def test_brackets_in_text_do_not_count() -> None:
    """Only structure nests."""
    text = '{"a": "' + "[" * 1000 + r"\"{{{\\" + '", "b": [[[]]]}'
    assert strict_json.loads(text)["b"] == [[[]]]


@pytest.mark.parametrize("depth", [31, 32, 33, 64, 65])
def test_the_limit_is_what_it_says(depth: int) -> None:
    """Thirty-two levels are read, no more, whatever is in the last one."""
    text = "[" * depth + "]" * depth
    if depth <= strict_json.DEPTH_MAX:
        strict_json.loads(text)
    else:
        with pytest.raises(strict_json.BadJSON):
            strict_json.loads(text)


@pytest.mark.parametrize(
    "text",
    [
        "".join("[" * n + "]" * n for n in range(1, 250)),
        "[" + ",".join(["[" * 30 + "]" * 30] * 1000) + "]",
        "[" * 30 + "[]," * 20_000 + "[]" + "]" * 30,
        '"' + "\\\\" * 30_000 + '"',
    ],
    ids=["ladder", "deep", "flat", "backslashes"],
)
def test_nesting_is_judged_in_one_pass(text: str) -> None:
    """Sixty-four kilobytes of whatever shape: a millisecond, where one pass a level took sixty."""
    taken = []
    for _ in range(5):
        begun = time.thread_time()
        with suppress(strict_json.BadJSON):
            strict_json._check_brackets(text, strict_json.DEPTH_MAX)
        taken.append(time.thread_time() - begun)
    assert min(taken) < 0.02


@pytest.mark.parametrize("inside", [r"\"", r"\\", r"\\\"", r"\\\\", r"[\"[\\"])
def test_only_what_is_outside_of_strings_nests(inside: str) -> None:
    """However a string ends, what comes after it is read as what it is."""
    for depth, fine in ((30, True), (32, False)):
        text = f'["{inside}", ' + "[" * depth + "]" * depth + f', "{inside}"]'
        if fine:
            assert strict_json.loads(text)
        else:
            with pytest.raises(strict_json.BadJSON, match="deeply"):
                strict_json.loads(text)
