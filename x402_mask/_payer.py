"""One configured buyer: wallet, caps, origins, policy and ledger, shared by every client."""

from __future__ import annotations

import logging
import time
from datetime import timedelta
from inspect import isawaitable
from typing import TYPE_CHECKING, Any, Literal, NoReturn, Self, cast, get_args

from x402_mask._flow.builtin_inputs import is_built_in, schemas_for
from x402_mask._flow.journal import is_told, tell
from x402_mask._flow.preemption import HeldTokens, Memory
from x402_mask._ledger.records import Breaker
from x402_mask._models import Asset, Cap, Event, State
from x402_mask._money import SECOND
from x402_mask._policy.caps import akin, compile_caps
from x402_mask._policy.catalog_cache import Shelf
from x402_mask._policy.offers import Policy
from x402_mask._policy.schemas import has_body, schemas_of
from x402_mask._services import Services, origin_of, parse_origins
from x402_mask._system.owner_text import Unshown, can_be_sent
from x402_mask._wallets.local import as_signer, is_async
from x402_mask._wire.assets import BASE, DISPUTED_NAMES, caip2, default_assets
from x402_mask._wire.x402 import shown
from x402_mask.errors import LedgerError

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from decimal import Decimal

    from x402_mask._chain.authorizations import ChainReader
    from x402_mask._chain.sender import Desk
    from x402_mask._flow.effects import Content
    from x402_mask._flow.reconciling import Said
    from x402_mask._flow.records import Purchase
    from x402_mask._ledger.ledger import Ledger
    from x402_mask._ledger.records import Proof, Row
    from x402_mask._models import Payment, Quote, Resolved, Route, Spend
    from x402_mask._policy.catalog_cache import Asked, Terms
    from x402_mask._wallets.local import Signer
    from x402_mask._wire.server402 import PaymentDocument

log = logging.getLogger("x402_mask")

_ROUTES = ("held-token", "x402", "token")


class Payer:
    """Decides, pays and remembers; every client, thread and task may share one.

    Args:
        wallet: a :class:`~x402_mask.Wallet`, an eth-account ``LocalAccount``, any object with
            ``.address`` and ``sign_typed_data``, or ``None``.
        caps: the :class:`~x402_mask.Cap` limits; a payment must fit all that name its service.
        origins: the sellers that may be paid, e.g. ``["https://x402vip.com"]``.
        ledger: where reservations live; default ``SQLiteLedger()``.
        networks: CAIP-2 networks that may be paid on; default Base mainnet.
        assets: tokens that may be paid with; default the registry's on those networks.
        prefer: ways of paying, in order.
        services: ``{"name": "https://host/path/*"}`` for what is not a marketplace path.
        approve: asked with a :class:`~x402_mask.Quote` before anything is reserved; only ``True``
            approves.  A no is not asked again for a minute.  May be async for async clients.
        on_event: observes :class:`~x402_mask.Event` records, a plain function in async clients
            too; what it raises is logged.
        payees: ``None``, ``"pin"`` (the first that a service of an origin names, until
            :meth:`accept_payee`), or the only addresses that may be paid.
        max_validity: longest life of a signature.
        preempt: send a proof with the first request where the price of that path is already known.
        rpc: ``{"eip155:8453": "http://..."}`` (or a list of URLs that must agree): payments are
            checked on chain.
        on_refusal: ``"raise"``, or ``"return"`` the 402 with the error in its extensions.
        clock: Unix seconds, for tests; replaces ``time.time``.
        resign: ``"expired"`` allows a new proof once an operation's last one has expired;
            ``"never"`` forbids it.
        breaker_after: refuse new payments to an origin after so many bad ends in a row; ``None``
            never does.
        breaker_for: for how long.
        token_origins: marketplaces that sell payment tokens though their 402 does not show it.
        balance_origins: marketplaces where a balance of the owner's may pay a payment as it is
            created, though no header says whose it is: where the answer to that is lost, no other
            payment is created.
        settle_payment: pays a marketplace payment by another rail; called once with the payment
            object (a ``dict`` as received, with ``.payment_id``, ``.usd``, ``.pay_to``).  May be
            async for async clients.
        poll_unpaid: how long a marketplace payment that nothing here can pay is waited for.
        poll_paid: how long one that was paid is waited for.
        marketplace_headers: sent to ``/api/payments``, besides ``User-Agent``; they may name an
            account whose balance pays, so where an answer is lost no other payment is created.
        provider_id: the marketplace's payment provider to ask for.
        max_gas_wei: the most that the gas of one payment by on-chain transfer may cost,
            replacements included, in wei (1 ETH is 10**18); default 10**15, which is 0.001 ETH.
            ``None``: no such payments.
        validate_input: refuse a request body that does not fit the service's own input schema,
            where the challenge or a catalog entry read within the last hour states one.
        allow_above_catalog: pay more than the price in such a catalog entry.

    Raises:
        TypeError, ValueError: the configuration is not sound; nothing is guessed.
    """

    def __init__(  # noqa: PLR0913  # one keyword per decision of the owner
        self,
        wallet: object | None,
        *,
        caps: Iterable[Cap],
        origins: Iterable[str],
        ledger: Ledger | None = None,
        networks: Iterable[str] | None = None,
        assets: Iterable[Asset] | None = None,
        prefer: Sequence[str] = _ROUTES,
        services: Mapping[str, str] | None = None,
        approve: Callable[[Quote], Any] | None = None,
        on_event: Callable[[Event], object] | None = None,
        payees: Literal["pin"] | Iterable[str] | None = None,
        max_validity: timedelta = timedelta(minutes=5),
        preempt: bool = False,
        rpc: Mapping[str, str | Sequence[str]] | None = None,
        on_refusal: Literal["raise", "return"] = "raise",
        clock: Callable[[], float] | None = None,
        resign: Literal["expired", "never"] = "expired",
        breaker_after: int | None = 20,
        breaker_for: timedelta = timedelta(minutes=1),
        token_origins: Iterable[str] | None = None,
        balance_origins: Iterable[str] | None = None,
        settle_payment: Callable[[PaymentDocument], Any] | None = None,
        poll_unpaid: timedelta | float = timedelta(seconds=10),
        poll_paid: timedelta | float = timedelta(seconds=120),
        marketplace_headers: Mapping[str, str] | None = None,
        provider_id: str | None = None,
        max_gas_wei: int | None = 10**15,
        validate_input: bool = True,
        allow_above_catalog: bool = False,
    ) -> None:
        self.signer: Signer | None = None if wallet is None else as_signer(wallet)
        self.origins = parse_origins(origins)
        self.services = Services(services)
        self.limits = compile_caps(_caps(caps), self.services.canonical)
        self.catalog = Shelf()
        self.validate_input = bool(validate_input)
        self.allow_above_catalog = bool(allow_above_catalog)
        self.policy = _policy(
            networks, assets, payees=payees, max_validity=max_validity, payer=self.address
        )
        self.prefer = _one_of_each(prefer)
        self.approve = _callable(approve, "approve")
        self.preempt = bool(preempt)
        self.memory = Memory()
        self.tokens = HeldTokens()
        self.token_origins = _among(token_origins, self.origins, "token_origins")
        self.balance_origins = _among(balance_origins, self.origins, "balance_origins")
        self.settle_payment = _callable(settle_payment, "settle_payment")
        self.poll_unpaid_s = _seconds(poll_unpaid, "poll_unpaid")
        self.poll_paid_s = _seconds(poll_paid, "poll_paid")
        self.marketplace_headers = _headers(marketplace_headers)
        self.provider_id = _provider(provider_id)
        self.resign = _choice(resign, "resign", "expired", "never")
        self.returns_refusals = _choice(on_refusal, "on_refusal", "raise", "return") == "return"
        self.strict_clock = clock is None
        self.breaker = _breaker(breaker_after, breaker_for)
        self.max_gas_wei = _max_gas(max_gas_wei)
        self._on_event = _plain_callable(on_event, "on_event")
        self._clock = _plain_callable(clock, "clock") or time.time
        self._rpc = _endpoints(rpc)
        self._chain: ChainReader | None = None
        self.ledger: Ledger = _default_ledger() if ledger is None else _checked_ledger(ledger)

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None, **overrides: Any) -> Payer:
        """A payer from the environment variables of the README; *overrides* win.

        Raises:
            ValueError: a variable is missing or cannot be read.
        """
        from x402_mask._settings.sources import from_env  # noqa: PLC0415

        return cls(**{**from_env(environ, given=overrides), **overrides})

    @classmethod
    def from_config(cls, path: str | os.PathLike[str], **overrides: Any) -> Payer:
        """A payer from a TOML file; *overrides* win.

        Raises:
            OSError: the file cannot be read.
            ValueError: something in it is unknown, missing or malformed.
        """
        from x402_mask._settings.sources import from_config  # noqa: PLC0415

        return cls(**{**from_config(path, given=overrides), **overrides})

    # --- the owner's questions and orders

    @property
    def address(self) -> str | None:
        """The address that pays, if there is a wallet."""
        return None if self.signer is None else self.signer.address

    def spend(self) -> list[Spend]:
        """How far each cap is used, in the order given.  USD."""
        return self.ledger.room(self.limits, now_us=self.now_us())

    def payments(
        self, service: str | None = None, state: str | None = None, limit: int = 100
    ) -> list[Payment]:
        """At most *limit* payments on this ledger, newest first.

        Raises:
            TypeError, ValueError: no such state, or a limit that is no positive int.
        """
        if state is not None and state not in get_args(State):
            raise ValueError(f"a payment's state is one of {get_args(State)}, not {state!r}")
        if type(limit) is not int:
            raise TypeError(f"limit is an int, not {type(limit).__name__}")
        if not 0 < limit < 1 << 63:
            raise ValueError("limit is above 0, and below 2**63")
        name = None if service is None else self.services.canonical(service)
        return self.ledger.payments(service=name, state=state, limit=limit)

    def pause(self) -> None:
        """Refuse every payment, in every process on this ledger, until :meth:`resume`."""
        self.ledger.set_paused(True, now_us=self.now_us())

    def resume(self) -> None:
        """End a pause."""
        self.ledger.set_paused(False, now_us=self.now_us())

    def accept_payee(self, service: str, address: str, origin: str | None = None) -> None:
        """Trust *address* as a payee of *service* at *origin*, where ``payees="pin"`` refused it.

        Without an origin it is the one that has a refused change of payee for this service.

        Raises:
            ValueError: not an address; not one of ``origins``; or no origin is named, and not one
                alone has a refused change.
        """
        payee = _payee(address)
        place = None if origin is None else origin_of(origin)
        if place is not None and place not in self.origins:
            raise ValueError(f"{place} is not in origins=")
        name = self.services.canonical(service)
        self.ledger.accept_payee(name, payee, place, now_us=self.now_us())

    def quote(self, asked: Any) -> Quote | None:
        """What a request or a 402 response would cost; ``None`` if it asks for nothing.

        A response is judged without I/O (its body must have been read); a request is sent, unpaid.
        Signs nothing and spends nothing.

        Raises:
            ChallengeError: the 402 claims to be a challenge and cannot be read.
        """
        from x402_mask._drive.quoting import quote  # noqa: PLC0415  # needs an HTTP library

        return quote(self, asked)

    async def aquote(self, asked: Any) -> Quote | None:
        """:meth:`quote`, async."""
        from x402_mask._drive.quoting import aquote  # noqa: PLC0415

        return await aquote(self, asked)

    def reconcile(self) -> list[Resolved]:
        """Ask the chain about every payment whose end is not proven; needs ``rpc``.

        Returns what was resolved, and what not and why.  Also gives back reservations of processes
        that died before their proof was stored.
        """
        from x402_mask._flow.reconciling import reconcile  # noqa: PLC0415

        return reconcile(self)

    async def areconcile(self) -> list[Resolved]:
        """:meth:`reconcile` off the event loop."""
        import anyio.to_thread  # noqa: PLC0415

        return await anyio.to_thread.run_sync(self.reconcile)

    def close(self) -> None:
        """Close the ledger's and the chain reader's connections."""
        self.ledger.close()
        if self._chain is not None:
            self._chain.close()
            self._chain = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        caps = ", ".join(str(limit.cap) for limit in self.limits)
        return f"<Payer {self.address} caps=[{caps}] origins={sorted(self.origins)}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Payer cannot be pickled: make one in each process, on the same ledger")

    # --- what the conversation needs

    def now(self) -> float:
        """Unix seconds by this payer's clock."""
        return self._clock()

    def now_us(self) -> int:
        """Unix microseconds by this payer's clock."""
        return int(self._clock() * SECOND)

    @property
    def needs_async(self) -> str | None:
        """Which part of this payer a sync client cannot call, if any."""
        if self.signer is not None and is_async(self.signer.sign_typed_data):
            return "signer"
        for name in ("approve", "settle_payment"):
            function = getattr(self, name)
            if function is not None and is_async(function):
                return name
        return None

    def sends_first(self, url: Any) -> bool:
        """Whether a call to *url* (an httpx ``URL``) may be paid with its first request."""
        return self.preempt or (self.tokens.possible and url.raw_path.startswith(b"/api/tools/"))

    def learn(self, origin: str, terms: Terms) -> None:
        """Remember what the catalog of a listed *origin* says of a service.

        Its other names add caps to one another, for as long as this payer lives.
        """
        with self.catalog.lock:
            if origin in self.origins and self.catalog.keep(origin, terms):
                self.limits = akin(self.limits, self.catalog.groups)

    def listed_price(self, purchase: Purchase) -> int | None:
        """The catalog's price, in micro-USD, if there is one that must not be passed."""
        if self.allow_above_catalog:
            return None
        known = self.catalog.every(purchase.asked, self.now())
        return min((terms.micro for terms in known if terms.micro is not None), default=None)

    def input_schemas(self, asked: Asked) -> list[str] | None:
        """The schemas that the challenge and the catalog state; ``None``: nothing is judged."""
        if not self.validate_input or not has_body(asked.method):
            return None
        told = schemas_of(asked.challenge) if asked.challenge is not None else ()
        listed = [terms.schema for terms in self.catalog.every(asked, self.now()) if terms.schema]
        texts = list(dict.fromkeys((*told, *listed)))
        return texts if texts or is_built_in(asked.keys) else None

    def schemas(self, asked: Asked, stated: list[str], content: Content) -> list[str]:
        """What a request body must fit, by its seller and by what is known of the service."""
        listed = any(terms.schema for terms in self.catalog.every(asked, self.now()))
        known = [] if listed else schemas_for(asked, stated, content)  # a catalog knows best
        return known if content.is_upload else [*stated, *known]  # which a schema of JSON is not of

    def schema_ignored(self, asked: Asked, ignored: tuple[str, ...]) -> None:
        """Say what of a schema is not used."""
        log.warning("parts of an input schema are ignored: %s", ", ".join(ignored))
        self.emit("schema_ignored", asked, detail={"ignored": ignored[:8]})

    def emit(
        self,
        kind: str,
        about: Any = None,
        *,
        payment_id: str | None = None,
        usd: Decimal | None = None,
        detail: Mapping[str, Any] | None = None,
    ) -> None:
        """Log an event and show it to the observer, whose failures change nothing."""
        if self._on_event is None and not is_told(kind):
            return
        event = Event(
            kind=kind, service=getattr(about, "service", ""), origin=getattr(about, "origin", ""),
            payment_id=payment_id, usd=usd, detail=detail or {},
        )  # fmt: skip
        tell(event)
        if self._on_event is None:
            return
        try:
            returned = self._on_event(event)
            if isawaitable(returned):  # which only calling could tell
                close = getattr(returned, "close", None)
                if close is not None:
                    close()
                raise TypeError("on_event returned an awaitable, which nobody awaits")  # noqa: TRY301
        except Exception:
            log.exception("on_event failed at %s", kind)

    @property
    def chains(self) -> frozenset[str]:
        """The networks that an RPC endpoint was given for."""
        return frozenset(self._rpc)

    def chain_knows(self, network: str | None) -> bool:
        """Whether an RPC endpoint was given for *network*."""
        return network is not None and network in self._rpc

    def chain(self) -> ChainReader:
        """The reader over the RPC endpoints, made when first needed."""
        if self._chain is None:
            from x402_mask._chain.authorizations import ChainReader  # noqa: PLC0415

            self._chain = ChainReader(self._rpc, clock=self.now)
        return self._chain

    def desk(self, wait_s: float | None = None) -> Desk:
        """What makes on-chain transfers from the wallet, and carries them to their end.

        Its questions to the chain end *wait_s* seconds from now.
        """
        from x402_mask._chain.sender import Desk  # noqa: PLC0415

        until = None if wait_s is None else time.monotonic() + wait_s
        return Desk(
            self.chain if until is None else lambda: self.chain().until(until),
            self.ledger,
            signer=self.signer,
            max_gas_wei=self.max_gas_wei,
            now_us=self.now_us,
        )

    def seen_on_chain(
        self, row: Row, proof: Proof, transaction: str, wait_s: float | None = None
    ) -> bool:
        """Whether *transaction* moved exactly what *row* reserved."""
        from x402_mask._flow.reconciling import seen  # noqa: PLC0415

        return seen(self, row, proof, transaction, wait_s)

    def reopen(self, payment_id: str, wait_s: float) -> None:
        """What was recorded as delivered never reached the caller: an identical call goes on."""
        try:
            self.ledger.reopen(payment_id, now_us=self.now_us(), wait_s=wait_s)
        except LedgerError:
            log.exception("payment %s is re-opened with the next call only", payment_id)

    def take_back(self, carrier: object, wait_s: float) -> None:
        """The call of *carrier* does not end in its caller's hands, whatever was recorded of it."""
        try:
            self.ledger.take_back(carrier, now_us=self.now_us(), wait_s=wait_s)
        except LedgerError:
            log.exception("what was lost of a call is re-opened with the next call only")

    def resolve(self, rows: Sequence[Row], wait_s: float | None = None) -> list[Said]:
        """Ask the chain about these payments together and write down what it proves."""
        from x402_mask._flow.reconciling import resolve  # noqa: PLC0415

        return resolve(self, rows, wait_s)


def payer_of(client: object) -> Payer | None:
    """The payer of a client of this library, or of one it was attached to."""
    for found in (
        getattr(client, "payer", None), getattr(getattr(client, "auth", None), "payer", None)
    ):  # fmt: skip
        if isinstance(found, Payer):
            return found
    return None


# --- configuration, checked -----------------------------------------------------------------------


def _default_ledger() -> Ledger:
    from x402_mask._ledger.sqlite import SQLiteLedger  # noqa: PLC0415

    return SQLiteLedger()


def _checked_ledger(ledger: Ledger) -> Ledger:
    if not callable(getattr(ledger, "reserve", None)):
        raise TypeError(f"ledger is a ledger, such as SQLiteLedger(), not {type(ledger).__name__}")
    return ledger


def _caps(caps: Iterable[Cap]) -> tuple[Cap, ...]:
    found = (caps,) if isinstance(caps, Cap) else tuple(caps)
    for cap in found:
        if not isinstance(cap, Cap):
            raise TypeError(f"caps holds Cap records, not {type(cap).__name__}")
    if not found:
        raise ValueError("caps is empty: say how much may be spent")
    return found


def _policy(
    networks: Iterable[str] | None,
    assets: Iterable[Asset] | None,
    *,
    payees: str | Iterable[str] | None,
    max_validity: timedelta,
    payer: str | None,
) -> Policy:
    names = frozenset((BASE,) if networks is None else _texts(networks, "networks"))
    if not names:
        raise ValueError("networks is empty")
    chains = frozenset(caip2(name) for name in names if name not in DISPUTED_NAMES) | {
        caip2(name) for name in names & DISPUTED_NAMES
    }
    for chain in chains:
        if not chain.startswith("eip155:"):
            raise ValueError(f"not an EVM network in CAIP-2 form: {chain!r}")
    if not isinstance(max_validity, timedelta):
        raise TypeError(f"max_validity is a timedelta, not {type(max_validity).__name__}")
    seconds = int(max_validity / timedelta(seconds=1))
    if seconds < 10:
        raise ValueError("max_validity is at least 10 seconds")
    return Policy(
        networks=chains,
        names=names,
        assets=_assets(assets, chains),
        payees=None if payees is None or payees == "pin" else _payees(payees),
        pin=payees == "pin",
        max_validity_s=seconds,
        payer=payer,
    )


def _assets(
    assets: Iterable[Asset] | None, networks: frozenset[str]
) -> dict[tuple[str, str], Asset]:
    known = default_assets(networks) if assets is None else tuple(assets)
    for asset in known:
        if not isinstance(asset, Asset):
            raise TypeError(f"assets holds Asset records, not {type(asset).__name__}")
        if asset.network not in networks:
            raise ValueError(f"asset {asset.address} is on {asset.network}, not in networks=")
    if not known:
        raise ValueError(f"no asset is known on {sorted(networks)}; give assets=")
    return {(asset.network, asset.address.lower()): asset for asset in known}


def _payees(payees: str | Iterable[str]) -> frozenset[str]:
    found = frozenset(_payee(payee) for payee in _texts(payees, "payees"))
    if not found:
        raise ValueError("payees is empty: None pays whom the listed origin names")
    return found


def _payee(address: str) -> str:
    from x402_mask._policy.offers import payee_fault  # noqa: PLC0415

    fault = payee_fault(address, payer=None, asset="")
    if fault is not None:
        raise ValueError(fault)
    return address.lower()


def _texts(values: str | Iterable[str], name: str) -> tuple[str, ...]:
    if isinstance(values, str):
        raise TypeError(f"{name} is a list of str")
    found = tuple(values)
    for value in found:
        if not isinstance(value, str):
            raise TypeError(f"{name} holds str, not {type(value).__name__}")
    return found


def _one_of_each(prefer: Sequence[str]) -> tuple[Route, ...]:
    found = _texts(prefer, "prefer")
    if not found or len(set(found)) != len(found) or not set(found) <= set(_ROUTES):
        raise ValueError(f"prefer orders some of {_ROUTES}, each once")
    return cast("tuple[Route, ...]", found)


def _callable(function: Any, name: str) -> Any:
    if function is not None and not callable(function):
        raise TypeError(f"{name} is callable")
    return function


def _plain_callable(function: Any, name: str) -> Any:
    """What is called in the middle of everything, in sync and async calls alike."""
    if function is not None and is_async(function):
        raise TypeError(f"{name} is a plain function, not a coroutine function: nobody awaits it")
    return _callable(function, name)


def _among(origins: Iterable[str] | None, listed: frozenset[str], name: str) -> frozenset[str]:
    given = () if origins is None else _texts(origins, name)
    found = parse_origins(given) if given else frozenset()
    if not found <= listed:
        raise ValueError(f"{name} names {sorted(found - listed)}, not in origins=")
    return found


def _headers(headers: Mapping[str, str] | None) -> dict[str, str]:
    """Headers that can be sent: an error here costs nothing, later it would leave a reservation."""
    found = Unshown(headers or {})
    for name, value in found.items():
        if {type(name), type(value)} != {str}:
            raise TypeError("marketplace_headers holds str")
        if not can_be_sent(name, value):
            raise ValueError(f"marketplace_headers: {shown(name, 40)} cannot be sent in a header")
    return found


def _provider(name: str | None) -> str | None:
    if name is not None and not isinstance(name, str):
        raise TypeError(f"provider_id is a str, or None, not {type(name).__name__}")
    if name == "":
        raise ValueError("provider_id is empty: None asks for no provider")
    return name


def _seconds(duration: timedelta | float, name: str) -> float:
    seconds = duration / timedelta(seconds=1) if isinstance(duration, timedelta) else duration
    if type(seconds) not in (int, float) or not seconds >= 0:
        raise ValueError(f"{name} is a timedelta, or seconds")
    return float(seconds)


def _choice(value: str, name: str, *allowed: str) -> str:
    if value not in allowed:
        raise ValueError(f"{name} is one of {allowed}, not {shown(value, 30)}")
    return value


def _breaker(after: int | None, duration: timedelta) -> Breaker | None:
    if after is None:
        return None
    if type(after) is not int or after < 1:
        raise ValueError("breaker_after is a positive int, or None")
    if not isinstance(duration, timedelta):
        raise TypeError(f"breaker_for is a timedelta, not {type(duration).__name__}")
    return Breaker(failures=after, seconds=duration / timedelta(seconds=1))


def _max_gas(wei: int | None) -> int | None:
    if wei is not None and type(wei) is not int:
        raise TypeError(f"max_gas_wei is an int of wei, or None, not {type(wei).__name__}")
    if wei is not None and wei < 1:
        raise ValueError("max_gas_wei is above 0, or None for no on-chain transfers")
    return wei


def _endpoints(
    rpc: Mapping[str, str | Sequence[str]] | None,
) -> dict[str, str | Sequence[str]]:
    if rpc is None:
        return {}
    if isinstance(rpc, str):
        raise TypeError('rpc maps networks to URLs: rpc={"eip155:8453": "https://..."}')
    found = Unshown({caip2(network): urls for network, urls in rpc.items()})
    if found:
        from x402_mask._chain.rpc import endpoints_of  # noqa: PLC0415  # few payers ask a chain

        for network, urls in found.items():
            endpoints_of(network, urls)
    return found
