"""What the conversation may ask of whoever pays: settings, ledger, clock, and what it remembers."""

from __future__ import annotations

import logging
from inspect import isawaitable
from typing import TYPE_CHECKING, Any

from x402_mask._flow.builtin_inputs import is_built_in, schemas_for
from x402_mask._flow.journal import is_told, tell
from x402_mask._flow.preemption import HeldTokens, OfferCache
from x402_mask._models import Event
from x402_mask._money import SECOND
from x402_mask._policy.caps import akin, compile_caps
from x402_mask._policy.catalog_cache import CatalogCache
from x402_mask._policy.schemas import has_body, schemas_of
from x402_mask._system.deadlines import Deadline
from x402_mask._wallets.local import is_async
from x402_mask.errors import LedgerError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from decimal import Decimal

    from x402_mask._chain.reader import ChainReader
    from x402_mask._chain.sender import TransferSender
    from x402_mask._flow.effects import Content
    from x402_mask._flow.reconciling import Said
    from x402_mask._ledger.ledger import Ledger
    from x402_mask._ledger.records import Proof, Row
    from x402_mask._policy.catalog_cache import CatalogEntry, ServiceRequest
    from x402_mask._settings.arguments import Settings

log = logging.getLogger("x402_mask")


class Buyer:
    """One payer, as the conversation knows it.

    Args:
        settings: what its owner decided.
        ledger: where reservations live.
        clock: Unix seconds.
    """

    def __init__(self, settings: Settings, ledger: Ledger, clock: Callable[[], float]) -> None:
        self.settings = settings
        self.ledger = ledger
        self.limits = compile_caps(settings.caps, settings.services.canonical)
        self.catalog = CatalogCache()
        self.offer_cache = OfferCache()
        self.tokens = HeldTokens()
        self._clock = clock
        self._chain: ChainReader | None = None

    def now(self) -> float:
        """Unix seconds by this buyer's clock."""
        return self._clock()

    def now_us(self) -> int:
        """Unix microseconds by this buyer's clock."""
        return int(self._clock() * SECOND)

    @property
    def address(self) -> str | None:
        """The address that pays, if there is a wallet."""
        return self.settings.address

    @property
    def needs_async(self) -> str | None:
        """Which part of this buyer a sync client cannot call, if any."""
        signer = self.settings.signer
        if signer is not None and is_async(signer.sign_typed_data):
            return "signer"
        for name in ("approve", "settle_payment"):
            function = getattr(self.settings, name)
            if function is not None and is_async(function):
                return name
        return None

    def sends_first(self, url: Any) -> bool:
        """Whether a call to *url* (an httpx ``URL``) may be paid with its first request."""
        return self.settings.preempt or (
            self.tokens.possible and url.raw_path.startswith(b"/api/tools/")
        )

    def learn(self, origin: str, entry: CatalogEntry) -> None:
        """Remember what the catalog of a listed *origin* says of a service.

        Its other names add caps to one another, for as long as this buyer lives.
        """
        with self.catalog.lock:
            if origin in self.settings.origins and self.catalog.keep(origin, entry):
                self.limits = akin(self.limits, self.catalog.groups)

    def listed_price(self, request: ServiceRequest) -> int | None:
        """The catalog's price, in micro-USD, if there is one that must not be passed."""
        if self.settings.allow_above_catalog:
            return None
        known = self.catalog.every(request, self.now())
        return min((entry.micro for entry in known if entry.micro is not None), default=None)

    def input_schemas(self, request: ServiceRequest) -> list[str] | None:
        """The schemas that the challenge and the catalog state; ``None``: nothing is judged."""
        if not self.settings.validate_input or not has_body(request.method):
            return None
        told = schemas_of(request.challenge) if request.challenge is not None else ()
        listed = [entry.schema for entry in self.catalog.every(request, self.now()) if entry.schema]
        texts = list(dict.fromkeys((*told, *listed)))
        return texts if texts or is_built_in(request.keys) else None

    def schemas(self, request: ServiceRequest, stated: list[str], content: Content) -> list[str]:
        """What a request body must fit, by its seller and by what is known of the service."""
        listed = any(entry.schema for entry in self.catalog.every(request, self.now()))
        known = [] if listed else schemas_for(request, stated, content)  # a catalog knows best
        return known if content.is_upload else [*stated, *known]  # which a schema of JSON is not of

    def schema_ignored(self, request: ServiceRequest, ignored: tuple[str, ...]) -> None:
        """Say what of a schema is not used."""
        log.warning("parts of an input schema are ignored: %s", ", ".join(ignored))
        self.emit("schema_ignored", request, detail={"ignored": ignored[:8]})

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
        if self.settings.on_event is None and not is_told(kind):
            return
        event = Event(
            kind=kind,
            service=getattr(about, "service", ""),
            origin=getattr(about, "origin", ""),
            payment_id=payment_id,
            usd=usd,
            detail=detail or {},
        )
        tell(event)
        if self.settings.on_event is None:
            return
        try:
            returned = self.settings.on_event(event)
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
        return frozenset(self.settings.rpc)

    def chain_knows(self, network: str | None) -> bool:
        """Whether an RPC endpoint was given for *network*."""
        return network is not None and network in self.settings.rpc

    def chain(self) -> ChainReader:
        """The reader over the RPC endpoints, made when first needed."""
        if self._chain is None:
            from x402_mask._chain.reader import ChainReader  # noqa: PLC0415

            self._chain = ChainReader(self.settings.rpc, clock=self.now)
        return self._chain

    def transfer_sender(self, wait_s: float | None = None) -> TransferSender:
        """What makes on-chain transfers from the wallet, and carries them to their end.

        Its questions to the chain end *wait_s* seconds from now.
        """
        from x402_mask._chain.sender import TransferSender  # noqa: PLC0415

        until = Deadline(wait_s).at
        return TransferSender(
            self.chain if until is None else lambda: self.chain().until(until),
            self.ledger,
            signer=self.settings.signer,
            max_gas_wei=self.settings.max_gas_wei,
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

    def close(self) -> None:
        """Close the ledger's and the chain reader's connections."""
        self.ledger.close()
        if self._chain is not None:
            self._chain.close()
            self._chain = None
