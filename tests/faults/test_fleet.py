"""The same on a fleet's ledger: hosts that fail, connections that are cut, leases that run out."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from decimal import Decimal
from typing import Any

import pytest

from tests.faults import jobs
from tests.faults.deals import PRICE, WAYS
from tests.faults.processes import Process
from tests.support.faults import NO_TLS, Cancelling, Points, cut_postgres, fault, raising
from tests.support.postgres import Postgres
from tests.support.seller import (
    Answer,
    Reply,
    Seller,
    authorization_of,
    offer,
    paywall,
    sequence,
    served,
    v2_header,
)
from x402_mask import Cap, Client, Payer

psycopg = pytest.importorskip("psycopg")
LEASE_S = 1.0
_numbers = iter(range(1, 1_000_000))


@pytest.fixture(scope="module")
def dsn(postgres: Postgres) -> str:
    """A database of this module's own; each deal has a service, and a cap, of its own."""
    return postgres.database()


class FleetDeal:
    """One operation of a service of its own, with a cap for so many prices."""

    def __init__(
        self, seller: Seller, dsn: str, stack: ExitStack, first: Answer, prices: int = 1
    ) -> None:
        self.seller, self.dsn, self.stack, self.prices = seller, dsn, stack, prices
        self.service = f"tool-{next(_numbers)}"
        self.caps = [Cap(Decimal(prices * PRICE) / 10**6, per="total", service=self.service)]
        self.url = seller.on(
            f"/api/tools/{self.service}",
            paywall(v2_header(offer(str(PRICE))), sequence(first, served())),
        )

    def payer(self, ledger: Any = None, **options: Any) -> Payer:
        """A payer as another host has it."""
        ledger = jobs.on_fleet(self.dsn) if ledger is None else ledger
        self.stack.callback(ledger.close)
        return jobs.payer_on(ledger, self.seller.origin, "0", caps=self.caps, **options)

    def call(self, payer: Payer, **options: Any) -> str:
        """Call; the status or the error's name."""
        with Client(payer, timeout=5, verify=NO_TLS) as client:
            try:
                return str(client.get(self.url, **options).status_code)
            except Exception as error:
                return type(error).__name__

    def faults(self, shown: int | None, different: int) -> list[str]:
        """What is wrong at the seller and in the database."""
        hits = [hit for hit in list(self.seller.hits) if self.url.endswith(hit.path)]
        proofs = [proof for hit in hits for proof in hit.proofs]
        raws = {proof.raw: proof for proof in proofs}
        worth = [authorization_of(self.seller.origin, proof) for proof in raws.values()]
        found = []
        if len(raws) != different or None in worth or shown not in (None, len(proofs)):
            found.append(f"{len(proofs)} proofs, {len(raws)} different")
        sql = "SELECT state, SUM(micro) FROM x402_mask.payments WHERE service=%s GROUP BY state"
        with psycopg.connect(self.dsn) as connection:
            states = dict(connection.execute(sql, [self.service]).fetchall())
        counted = sum(int(states.get(name, 0)) for name in ("reserved", "held", "settled"))
        if counted != different * PRICE or states.get("reserved"):
            found.append(f"in the database: {states}")
        return found

    def check(self, shown: int, different: int) -> None:
        """Nothing is wrong."""
        assert not self.faults(shown, different)


Opener = Callable[..., FleetDeal]


@pytest.fixture
def deal(seller: Seller, dsn: str) -> Iterator[Opener]:
    """Make deals; their ledgers are closed in the end."""
    with ExitStack() as stack:
        yield lambda first=served(), prices=1: FleetDeal(seller, dsn, stack, first, prices)  # noqa: B008


@pytest.mark.parametrize("way", ["dropped", "503", "402", "402-pending", "409", "500-settled"])
def test_the_same_bytes_by_another_host(deal: Opener, way: str) -> None:
    """While the first still runs."""
    one = deal(WAYS[way])
    assert one.call(one.payer()) != "200"
    assert one.call(one.payer()) == "200"
    one.check(2, 1)
    assert one.call(one.payer()) == "CapExceeded"


SKEWS = (20, 200, 400, 3600, -20, -200, -3600)


@pytest.mark.parametrize("skew", SKEWS)
def test_hosts_whose_clocks_differ_share_one_live_proof(deal: Opener, skew: int) -> None:
    """The database's clock is one for all: to it the proof is alive, whatever a host believes.

    The seller says nothing of the time that could help.
    """
    one = deal(Reply(drop=True), prices=3)
    assert one.call(one.payer()) != "200"
    other = one.payer(clock=lambda: time.time() + skew)
    assert one.call(other) == "200"
    one.check(2, 1)


@pytest.mark.parametrize("skew", SKEWS)
def test_a_host_with_another_clock_never_passes_the_cap(deal: Opener, skew: int) -> None:
    """... nor is a reservation of the others' given back because it looks old to it."""
    one = deal(served(), prices=3)
    hosts = [one.payer(), one.payer(clock=lambda: time.time() + skew)]
    outcomes = Counter(one.call(hosts[n % 2]) for n in range(8))
    assert outcomes["200"] <= 3
    assert not one.faults(None, outcomes["200"])
    assert hosts[0].reconcile() == []


KEYED: dict[str, Any] = {"extensions": {"x402_mask": {"operation": "o"}}}


def killed_in_flight(one: FleetDeal, elsewhere_s: float | None, options: dict[str, Any]) -> None:
    """Let a process die while the seller has its proof."""
    arguments = (one.dsn, one.url, one.seller.origin, one.caps, elsewhere_s, options)
    with Process(jobs.fleet_call, *arguments) as victim:
        one.seller.wait_for(one.seller.paid_hits, 15)
        victim.kill()


def test_a_process_that_dies_here_is_dead_at_once(deal: Opener) -> None:
    """On one host its death is known: the same bytes, without waiting for the lease."""
    one = deal(Reply(delay=8, drop=True))
    killed_in_flight(one, None, {})
    assert one.call(one.payer()) == "200"
    one.check(2, 1)


@pytest.mark.parametrize("keyed", [True, False])
def test_a_host_that_dies_is_in_flight_until_its_lease_ends(deal: Opener, keyed: bool) -> None:
    """Then the same bytes; before that a shared key waits, and nothing else fits."""
    one = deal(Reply(delay=8, drop=True))
    options = KEYED if keyed else {}
    killed_in_flight(one, LEASE_S, options)
    if not keyed:
        assert one.call(one.payer()) == "CapExceeded"
        time.sleep(LEASE_S + 0.3)
    assert one.call(one.payer(), **options) == "200"
    one.check(2, 1)


def test_a_host_that_lives_keeps_its_lease(deal: Opener) -> None:
    """A call that takes longer than a lease is still in flight: nobody else shows its proof."""
    one = deal(served(delay=2.5 * LEASE_S), prices=2)
    arguments = (one.dsn, one.url, one.seller.origin, one.caps, LEASE_S, KEYED)
    with Process(jobs.fleet_call, *arguments) as host:
        one.seller.wait_for(one.seller.paid_hits, 15)
        time.sleep(1.5 * LEASE_S)
        assert one.call(one.payer(), **KEYED) == "200"
        assert host.heard() == "200"
    one.check(2, 2)


# --- cut anywhere ---------------------------------------------------------------------------------


def cut(one: FleetDeal, how: str, kind: str, *at: int) -> tuple[Points, str, Payer]:
    """Make a call that is cut at these points."""
    cancelling = Cancelling() if how == "cancel" else None
    strikes = {"fault": fault, "interrupt": raising(KeyboardInterrupt), "cut": cutter(one.dsn)}
    points = Points(*at, strike=cancelling or strikes[how])
    payer = one.payer(cut_postgres(one.dsn, jobs.KEY_OF_FLEET, points))
    outcome = jobs.cut_call(payer, kind, one.url, points, cancelling)
    points.armed = False
    return points, outcome, payer


def cutter(dsn: str) -> Callable[[str], None]:
    """Break every connection to the database; what follows from that is the library's to find."""

    def strike(name: str) -> None:
        with psycopg.connect(dsn, autocommit=True) as admin:
            admin.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid<>pg_backend_pid()"
                " AND datname=current_database() AND backend_type='client backend'"
            )

    return strike


@pytest.mark.parametrize(
    ("kind", "how"),
    [
        ("client", "fault"),
        ("async-client", "cancel"),
        ("client", "cut"),
    ],
)
def test_a_call_cut_anywhere(deal: Opener, kind: str, how: str) -> None:
    """One price, one proof, nothing stuck, whatever the connection or the caller does."""
    names = cut(deal(), "fault", kind)[0].names
    found = []
    for at, name in enumerate(names, start=1):
        if how == "cut" and not name.endswith((":begun", ":commit", ":before")):
            continue  # between those nothing is asked of the connection
        if how != "cut" and name.endswith(":enter"):
            continue  # the same as the effect's own point before it
        one = deal()
        points, first, payer = cut(one, how, kind, at)
        again = one.call(payer)
        expected = "CapExceeded" if first == "200" else "200"
        wrong = one.faults(None, 1)
        if again != expected:
            wrong.append(f"expected {expected}")
        if wrong:
            found.append(f"{at} {points.struck} -> {first}, {again}: {'; '.join(wrong)}")
    assert not found, "\n".join(found)


def test_the_answer_to_a_commit_is_lost(deal: Opener) -> None:
    """The server committed, the connection broke: found out, and the call goes on as if nothing."""
    names = cut(deal(), "fault", "client")[0].names
    commits = [name for name in names if name.endswith(":commit")]
    for number, _ in enumerate(commits):
        one = deal()
        seen = -100

        def lose(name: str) -> None:
            nonlocal seen
            if name.endswith(":commit"):
                seen += 1
                ledger.lose_answer = ledger.lose_answer or seen == number + 1  # noqa: B023

        points = Points()
        points.reach = lose  # type: ignore[method-assign]
        ledger = cut_postgres(one.dsn, jobs.KEY_OF_FLEET, points)
        payer = one.payer(ledger)
        payer.spend()  # begins the cap's counter, which leaves no entry to be found again
        seen = 0
        assert one.call(payer) == "200", commits[number]
        one.check(1, 1)
        assert one.call(payer) == "CapExceeded"
        one.check(1, 1)


def test_a_host_killed_anywhere(deal: Opener) -> None:
    """SIGKILL at every fifth point; when its lease has ended another host goes on."""
    names = cut(deal(), "fault", "client")[0].names
    waiting = []
    for at in range(1, len(names) + 1, 5):
        one = deal()
        arguments = (one.dsn, one.url, one.seller.origin, one.caps, LEASE_S, at)
        with Process(jobs.fleet_killed, *arguments) as victim:
            assert victim.heard() == names[at - 1]
            assert victim.ended() == -9
        waiting.append((at, one))
    time.sleep(LEASE_S + 0.3)
    found = []
    for at, one in waiting:
        maybe = at > names.index("ledger:finish:commit") + 1
        again = one.call(one.payer())
        wrong = one.faults(None, 1)
        if again != "200" and not (maybe and again == "CapExceeded"):
            wrong.append(again)
        if wrong:
            found.append(f"{at} {names[at - 1]}: {'; '.join(wrong)}")
    assert not found, "\n".join(found)


def test_hosts_race_on_one_cap(deal: Opener) -> None:
    """4 processes with 4 threads: the cap in full, never passed."""
    one, room = deal(prices=60), 60
    one.seller.on(f"/api/tools/{one.service}", paywall(v2_header(offer(str(PRICE))), served()))
    one.payer().spend()  # makes the tables
    with ExitStack() as stack:
        arguments = (one.dsn, one.url, one.seller.origin, one.caps, 4)
        hosts = [stack.enter_context(Process(jobs.fleet_racing, *arguments)) for _ in range(4)]
        assert [host.heard() for host in hosts] == ["ready"] * 4
        outcomes: Counter[str] = sum((host.heard(60) for host in hosts), Counter())
    assert outcomes == {"200": room, "CapExceeded": 32}
    one.check(room, room)
