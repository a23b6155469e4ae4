"""The keywords of ``Payer``, each checked in one place."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, cast

from x402_mask._ledger.records import Breaker
from x402_mask._models import Asset, Cap
from x402_mask._policy.offers import Policy, payee_fault
from x402_mask._schemes.registry import registered
from x402_mask._services import Services, parse_origins
from x402_mask._system.owner_text import Unshown, can_be_sent
from x402_mask._wallets.local import as_signer, is_async
from x402_mask._wire.assets import BASE, DISPUTED_NAMES, caip2, default_assets
from x402_mask._wire.x402 import shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from x402_mask._ledger.ledger import Ledger
    from x402_mask._models import Event, Quote, Route
    from x402_mask._schemes.scheme import Scheme
    from x402_mask._wallets.local import Signer
    from x402_mask._wire.server402 import PaymentDocument

ROUTES = ("held-token", "x402", "token")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Settings:
    """What the owner of a payer decided, checked; ``Payer`` says what each is.

    Without ``repr``: headers and endpoints may have keys in them.
    """

    signer: Signer | None
    origins: frozenset[str]
    services: Services
    caps: tuple[Cap, ...]
    schemes: Mapping[str, Scheme]
    policy: Policy
    prefer: tuple[Route, ...]
    approve: Callable[[Quote], Any] | None
    on_event: Callable[[Event], object] | None
    preempt: bool
    rpc: Mapping[str, str | Sequence[str]]
    returns_refusals: bool
    clock: Callable[[], float] | None
    resign: str
    breaker: Breaker | None
    token_origins: frozenset[str]
    balance_origins: frozenset[str]
    settle_payment: Callable[[PaymentDocument], Any] | None
    poll_unpaid_s: float
    poll_paid_s: float
    marketplace_headers: Mapping[str, str]
    provider_id: str | None
    max_gas_wei: int | None
    validate_input: bool
    allow_above_catalog: bool

    @property
    def address(self) -> str | None:
        """The address that pays, if there is a wallet."""
        return None if self.signer is None else self.signer.address

    @property
    def strict_clock(self) -> bool:
        """Whether time is this machine's own, so that a seller's may differ from it."""
        return self.clock is None


def settings_of(given: Mapping[str, Any]) -> Settings:
    """The settings in the arguments of ``Payer``, by their names.

    Raises:
        TypeError, ValueError: one of them is not sound; nothing is guessed.
    """
    wallet = given["wallet"]
    signer = None if wallet is None else as_signer(wallet)
    origins, schemes = parse_origins(given["origins"]), registered()
    return Settings(
        signer=signer,
        origins=origins,
        services=Services(given["services"]),
        caps=_caps(given["caps"]),
        schemes=schemes,
        policy=_policy(
            given["networks"],
            given["assets"],
            payees=given["payees"],
            max_validity=given["max_validity"],
            schemes=tuple(schemes.values()),
            payer=None if signer is None else signer.address,
        ),
        prefer=_one_of_each(given["prefer"]),
        approve=_callable(given["approve"], "approve"),
        on_event=_plain_callable(given["on_event"], "on_event"),
        preempt=bool(given["preempt"]),
        rpc=_endpoints(given["rpc"]),
        returns_refusals=_choice(given["on_refusal"], "on_refusal", "raise", "return") == "return",
        clock=_plain_callable(given["clock"], "clock"),
        resign=_choice(given["resign"], "resign", "expired", "never"),
        breaker=_breaker(given["breaker_after"], given["breaker_for"]),
        token_origins=_among(given["token_origins"], origins, "token_origins"),
        balance_origins=_among(given["balance_origins"], origins, "balance_origins"),
        settle_payment=_callable(given["settle_payment"], "settle_payment"),
        poll_unpaid_s=_seconds(given["poll_unpaid"], "poll_unpaid"),
        poll_paid_s=_seconds(given["poll_paid"], "poll_paid"),
        marketplace_headers=_headers(given["marketplace_headers"]),
        provider_id=_provider(given["provider_id"]),
        max_gas_wei=_max_gas(given["max_gas_wei"]),
        validate_input=bool(given["validate_input"]),
        allow_above_catalog=bool(given["allow_above_catalog"]),
    )


def checked_ledger(ledger: Ledger) -> Ledger:
    """*ledger*, if it is one.

    Raises:
        TypeError: it is not.
    """
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
    schemes: tuple[Scheme, ...],
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
        schemes=schemes,
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
    found = frozenset(checked_payee(payee) for payee in _texts(payees, "payees"))
    if not found:
        raise ValueError("payees is empty: None pays whom the listed origin names")
    return found


def checked_payee(address: str) -> str:
    """*address* in lower case, if it can be paid to.

    Raises:
        ValueError: it cannot.
    """
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
    if not found or len(set(found)) != len(found) or not set(found) <= set(ROUTES):
        raise ValueError(f"prefer orders some of {ROUTES}, each once")
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
