"""One configured buyer: wallet, caps, origins, policy and ledger, shared by every client."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal, NoReturn, Self, get_args

from x402_mask._flow.buyer import Buyer
from x402_mask._models import Asset, Cap, Event, State
from x402_mask._services import origin_of
from x402_mask._settings.arguments import ROUTES, checked_ledger, checked_payee, settings_of

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from x402_mask._ledger.ledger import Ledger
    from x402_mask._models import Payment, Quote, Resolved, Spend
    from x402_mask._wire.server402 import PaymentDocument


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

    __slots__ = ("__weakref__", "_buyer")
    _buyer: Buyer

    def __init__(  # noqa: PLR0913  # one keyword per decision of the owner
        self,
        wallet: object | None,
        *,
        caps: Iterable[Cap],
        origins: Iterable[str],
        ledger: Ledger | None = None,
        networks: Iterable[str] | None = None,
        assets: Iterable[Asset] | None = None,
        prefer: Sequence[str] = ROUTES,
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
        settings = settings_of(locals())
        ledger = _default_ledger() if ledger is None else checked_ledger(ledger)
        object.__setattr__(self, "_buyer", Buyer(settings, ledger, settings.clock or time.time))

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"a Payer is frozen: make one with another {name}")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"a Payer is frozen: it keeps its {name}")

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
        return self._buyer.address

    @property
    def ledger(self) -> Ledger:
        """Where reservations live."""
        return self._buyer.ledger

    def spend(self) -> list[Spend]:
        """How far each cap is used, in the order given.  USD."""
        return self._buyer.ledger.spend(self._buyer.limits, now_us=self._buyer.now_us())

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
        name = None if service is None else self._buyer.settings.services.canonical(service)
        return self._buyer.ledger.payments(service=name, state=state, limit=limit)

    def pause(self) -> None:
        """Refuse every payment, in every process on this ledger, until :meth:`resume`."""
        self._buyer.ledger.set_paused(True, now_us=self._buyer.now_us())

    def resume(self) -> None:
        """End a pause."""
        self._buyer.ledger.set_paused(False, now_us=self._buyer.now_us())

    def accept_payee(self, service: str, address: str, origin: str | None = None) -> None:
        """Trust *address* as a payee of *service* at *origin*, where ``payees="pin"`` refused it.

        Without an origin it is the one that has a refused change of payee for this service.

        Raises:
            ValueError: not an address; not one of ``origins``; or no origin is named, and not one
                alone has a refused change.
        """
        payee = checked_payee(address)
        place = None if origin is None else origin_of(origin)
        if place is not None and place not in self._buyer.settings.origins:
            raise ValueError(f"{place} is not in origins=")
        name = self._buyer.settings.services.canonical(service)
        self._buyer.ledger.accept_payee(name, payee, place, now_us=self._buyer.now_us())

    def quote(self, asked: Any) -> Quote | None:
        """What a request or a 402 response would cost; ``None`` if it asks for nothing.

        A response is judged without I/O (its body must have been read); a request is sent, unpaid.
        Signs nothing and spends nothing.

        Raises:
            ChallengeError: the 402 claims to be a challenge and cannot be read.
        """
        from x402_mask._drive.quoting import quote  # noqa: PLC0415  # needs an HTTP library

        return quote(self._buyer, asked)

    async def aquote(self, asked: Any) -> Quote | None:
        """:meth:`quote`, async."""
        from x402_mask._drive.quoting import aquote  # noqa: PLC0415

        return await aquote(self._buyer, asked)

    def reconcile(self) -> list[Resolved]:
        """Ask the chain about every payment whose end is not proven; needs ``rpc``.

        Returns what was resolved, and what not and why.  Also gives back reservations of processes
        that died before their proof was stored.
        """
        from x402_mask._flow.reconciling import reconcile  # noqa: PLC0415

        return reconcile(self._buyer)

    async def areconcile(self) -> list[Resolved]:
        """:meth:`reconcile` off the event loop."""
        import anyio.to_thread  # noqa: PLC0415

        return await anyio.to_thread.run_sync(self.reconcile)

    def close(self) -> None:
        """Close the ledger's and the chain reader's connections."""
        self._buyer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        caps = ", ".join(str(limit.cap) for limit in self._buyer.limits)
        origins = sorted(self._buyer.settings.origins)
        return f"<Payer {self.address} caps=[{caps}] origins={origins}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Payer cannot be pickled: make one in each process, on the same ledger")


def _default_ledger() -> Ledger:
    from x402_mask._ledger.sqlite import SQLiteLedger  # noqa: PLC0415

    return SQLiteLedger()


def payer_of(client: object) -> Payer | None:
    """The payer of a client of this library, or of one it was attached to."""
    for found in (
        getattr(client, "payer", None),
        getattr(getattr(client, "auth", None), "payer", None),
    ):
        if isinstance(found, Payer):
            return found
    return None


def buyer_of(payer: object) -> Buyer:
    """What stands behind a payer.

    Raises:
        TypeError: it is no payer.
    """
    if not isinstance(payer, Payer):
        raise TypeError(f"payer is a Payer, not {type(payer).__name__}")
    return payer._buyer  # noqa: SLF001  # of this module
