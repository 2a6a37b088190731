"""What a member knows in one round, secrets included, and how they are used and erased."""

import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from ist_fed.privacy.secure.keys import KEY_BYTES, agree, derive, seal, unseal
from ist_fed.privacy.secure.masks import Ring, add_mask
from ist_fed.privacy.secure.messages import Advert, Box, Roster, Terms
from ist_fed.privacy.secure.shamir import SHARE_BYTES, split


@dataclass(kw_only=True)
class Session:
    """One round of one member.

    Args:
        terms: of the round.
        advert: the member's own.
        seal_key: opens boxes.
        mask_key: makes masks with others.
        seed: makes its own mask.
        done: steps that are over.
        own: its place in the roster.
        context: hash of everything that was agreed.
        roster: everyone.
        signing: the keys they sign with.
        held: shares of each member's two secrets, one behind the other.
        survivors: whom it voted for.
    """

    terms: Terms
    advert: Advert
    seal_key: X25519PrivateKey
    mask_key: X25519PrivateKey
    seed: bytearray
    done: int = 0
    own: int = 0
    context: bytes = b""
    roster: Roster = field(default_factory=lambda: Roster(adverts=()))
    signing: list[Ed25519PublicKey] = field(default_factory=list)
    held: dict[int, bytearray] = field(default_factory=dict)
    survivors: tuple[int, ...] = ()

    def boxes(self) -> tuple[Box, ...]:
        """A sealed share of both secrets for every other member; the own ones are kept."""
        threshold, members = self.terms.threshold, len(self.roster.adverts)
        seeds = split(bytes(self.seed), threshold, members)
        keys = split(self.mask_key.private_bytes_raw(), threshold, members)
        both = [bytearray(seed + key) for seed, key in zip(seeds, keys, strict=True)]
        self.held[self.own] = both[self.own]
        boxes = []
        for peer, shares in enumerate(both):
            if peer != self.own:
                key = self._box_key(peer, self.own, peer)
                boxes.append(Box(member=peer, sealed=seal(key, shares, self.context)))
                wipe(shares)
        return tuple(boxes)

    def open(self, box: Box) -> None:
        """Keep the shares in a box from another member."""
        key = self._box_key(box.member, box.member, self.own)
        self.held[box.member] = bytearray(unseal(key, box.sealed, self.context))

    def mask(self, vector: Ring, peers: Iterable[int]) -> None:
        """Add the own mask, and those with peers: the one of two adds what the other takes away."""
        add_mask(vector, derive(self.seed, self_purpose(self.context)))
        for peer in peers:
            key = agree(self.mask_key, self.roster.adverts[peer].mask_key, pair_purpose(self.context))
            add_mask(vector, key, subtract=self.own > peer)

    def others(self) -> set[int]:
        """Every place in the roster but one's own."""
        return set(range(len(self.roster.adverts))) - {self.own}

    def share_of(self, member: int, *, survived: bool) -> bytes:
        """The one share of a member that may be given."""
        held = self.held[member]
        return bytes(held[:SHARE_BYTES] if survived else held[SHARE_BYTES:])

    def wipe(self) -> None:
        """Overwrite what can be, and let go of the rest."""
        wipe(self.seed)
        for shares in self.held.values():
            wipe(shares)
        self.held.clear()
        del self.seal_key, self.mask_key

    def _box_key(self, peer: int, sender: int, receiver: int) -> bytes:
        way = sender.to_bytes(2, "little") + receiver.to_bytes(2, "little")
        return agree(self.seal_key, self.roster.adverts[peer].seal_key, b"box " + self.context + way)


def self_purpose(context: bytes) -> bytes:
    """What a seed is for."""
    return b"self mask " + context


def pair_purpose(context: bytes) -> bytes:
    """What two members' key is for."""
    return b"pair mask " + context


def new_seed() -> bytearray:
    """Of a member's own mask, from the operating system."""
    return bytearray(secrets.token_bytes(KEY_BYTES))


def wipe(secret: bytearray) -> None:
    """Overwrite a secret."""
    secret[:] = bytes(len(secret))
