"""An answer that is lost while another thread writes down how its call ended."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from tests.ledger.kit import NOW, SERVICE, Store, end, held
from x402_mask._ledger.carrier import Carrier
from x402_mask._ledger.ledger import Ledger
from x402_mask.errors import LedgerError


class Ending(Carrier):
    """A call that is interrupted at a chosen moment."""

    runs = True
    after: Callable[[], None] | None = None

    @property
    def is_running(self) -> bool:
        runs, self.runs = self.runs, self.runs and self.after is None
        return runs


def elsewhere(work: Callable[[], Any]) -> None:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join(30)
    assert not thread.is_alive()


def is_open(ledger: Ledger, operation: str) -> bool:
    """Whether an identical call presents the same bytes again, and signs nothing new."""
    twin = ledger.view(operation, SERVICE, now_us=NOW).twin
    return twin is not None and not twin.busy


def unwritten(store: Store, carrier: Carrier) -> Any:
    """A payment whose delivery could not be written down, in the hands of a call that runs."""
    made, _ = held(store.ledger)
    with store.locked(), pytest.raises(LedgerError, match="locked"):
        store.ledger.finish(made.id, end(), carrier=carrier, now_us=NOW, wait_s=0.05)
    return made


def test_a_call_that_is_interrupted_while_another_looks_whether_it_runs(ledger: Ledger) -> None:
    carrier = Ending()
    made, _ = held(ledger)
    ledger.finish(made.id, end(), carrier=carrier, now_us=NOW)
    carrier.after = lambda: None  # from the next look on it has ended, in nobody's hands
    ledger.sweep(now_us=NOW)
    assert is_open(ledger, made.operation)


def test_an_answer_lost_while_its_delivery_is_being_written(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger, carrier = store.ledger, Carrier(lambda: None)
    made = unwritten(store, carrier)
    finish = ledger._finish

    def and_then(*args: Any) -> bool:
        done = finish(*args)
        monkeypatch.undo()
        elsewhere(take_back)
        return done

    def take_back() -> None:
        with suppress(LedgerError):  # it waits for the thread that writes
            ledger.take_back(carrier, now_us=NOW, wait_s=0.05)

    # the call still runs for whoever looks, until it is taken back
    monkeypatch.setattr(Carrier, "is_running", property(lambda _: True))
    monkeypatch.setattr(ledger, "_finish", and_then)
    ledger.sweep(now_us=NOW)
    assert is_open(ledger, made.operation)


def test_an_answer_lost_before_a_late_thread_writes_its_delivery(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger, carrier = store.ledger, Carrier(lambda: None)
    made = unwritten(store, carrier)
    transaction = ledger._transaction

    def late(*args: Any, **kwargs: Any) -> Any:
        monkeypatch.undo()
        elsewhere(lambda: ledger.take_back(carrier, now_us=NOW))
        return transaction(*args, **kwargs)

    monkeypatch.setattr(Carrier, "is_running", property(lambda _: True))
    monkeypatch.setattr(ledger, "_transaction", late)
    ledger.sweep(now_us=NOW)
    assert is_open(ledger, made.operation)
