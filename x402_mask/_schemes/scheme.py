"""What a way of signing a payment is to the rest of the library: one Protocol, known by no name.

Policy asks :meth:`Scheme.fits` whether an offer may be paid so, the conversation has
:meth:`Scheme.prepare` say what is signed, and the chain is asked about it by
:meth:`Scheme.evidence_key`.  Whoever adds a scheme writes one file here and registers it
(``_schemes.registry``), and one function that asks the chain (``_chain.evidence``).

What a scheme cannot do is take more than was decided: :func:`held_to` compares what it prepared
with the choice and the owner's limit before anything is signed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from x402_mask._policy.offers import OfferScheme
from x402_mask.errors import OfferRefused

if TYPE_CHECKING:
    from collections.abc import Iterable

    from x402_mask._policy.offers import Choice
    from x402_mask._wire.x402 import Settlement


class Moment(NamedTuple):
    """When something is signed, and how long it may live: all in seconds, Unix time.

    ``now`` is this machine's clock, ``seller`` the one to stamp by; ``life_max_s`` is the owner's
    limit, from ``now``.
    """

    now: float
    seller: float
    life_max_s: int


class Unsigned(Protocol):
    """One thing to be signed: each scheme's own frozen record."""

    @property
    def key(self) -> str:
        """What the ledger keeps it by; ``evidence_key`` reads it again.

        Unique for the payer, and told from those of every other scheme, as by a prefix.
        """
        ...

    @property
    def most(self) -> int:
        """The most that it lets the seller take, atomic units."""
        ...

    @property
    def valid_before(self) -> int:
        """From when on nobody can take anything by it, Unix seconds."""
        ...

    @property
    def digest(self) -> bytes:
        """The 32 bytes that a key in this process signs."""
        ...

    def typed_data(self) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        """Domain, types and message (EIP-712), for a signer elsewhere; they hash to ``digest``."""
        ...

    def payload(self, signature: bytes) -> str:
        """The proof's ``payload`` as JSON text, with the signature in it."""
        ...


class Scheme(OfferScheme, Protocol):
    """One thing that a wallet can sign to pay."""

    def prepare(self, choice: Choice, *, payer: str, moment: Moment, nonce: bytes) -> Unsigned:
        """What *payer* would sign for *choice*; *nonce* is 32 bytes that were never used.

        Raises:
            OfferRefused: it would be worth nothing, as where the clocks leave no time.
        """
        ...

    def evidence_key(self, key: str) -> str | None:
        """What the chain is asked by about a payment that the ledger keeps by *key*.

        ``None``: it is no key of this scheme's.
        """
        ...

    def settlement_fault(self, settlement: Settlement, most: int) -> str | None:
        """Why what the seller says does not prove that *most* was settled so; ``None`` if it does.

        Whether it was successful, its network and its payer were judged already.
        """
        ...


def scheme_of(schemes: Iterable[Scheme], key: str | None) -> tuple[Scheme, str] | None:
    """Whose the ledger's *key* is, and what the chain is asked by; ``None``: nobody's here."""
    for scheme in schemes if key is not None else ():
        found = scheme.evidence_key(str(key))
        if found is not None:
            return scheme, found
    return None


def held_to(choice: Choice, unsigned: Unsigned, moment: Moment) -> Unsigned:
    """*unsigned*, if it lets nobody take more, or later, than was decided.

    Raises:
        OfferRefused: it does, so that its scheme is at fault.
    """
    if unsigned.most > choice.offer.amount:
        raise OfferRefused(
            f"{choice.scheme} would let the seller take {unsigned.most} of {choice.offer.amount}",
            reason="scheme",
        )
    if unsigned.valid_before > int(moment.now) + moment.life_max_s:
        raise OfferRefused(
            f"{choice.scheme} would live for longer than max_validity= allows", reason="scheme"
        )
    return unsigned
