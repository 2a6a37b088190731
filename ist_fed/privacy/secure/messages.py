"""What is said in the five steps, as frozen dataclasses. A member is named by its place in the roster, from 0.

| step | server → member | member → server |
|---|---|---|
| advertise | `Call` | `Advert` |
| share | `Roster` | `Shares` |
| upload | `Boxes`, and the subnet | `Masked` |
| agree | `Survivors` | `Vote` |
| unmask | `Votes` | `Opened` |
"""

import hashlib
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ist_fed.privacy.secure.codec import Exactly, Many, Packed, Real, Record, Upto, Vector, Whole, packed
from ist_fed.privacy.secure.keys import KEY_BYTES, SEAL_BYTES
from ist_fed.privacy.secure.shamir import SHARE_BYTES

LARGEST = 1 << 12
"""Members of a cohort; one that is larger is better split."""

_HASH, _SIGNATURE = 32, 64
_KEY, _CONTEXT, _MEMBER = Exactly(KEY_BYTES), Exactly(_HASH), Whole(2)


def digest(label: str, *parts: bytes) -> bytes:
    """SHA-256 of parts, each with its length, so that none can pass for another."""
    hashed = hashlib.sha256(b"ist_fed secure 1 " + label.encode())
    for part in parts:
        hashed.update(len(part).to_bytes(8, "little"))
        hashed.update(part)
    return hashed.digest()


@dataclass(frozen=True, kw_only=True)
class Terms(Packed):
    """What the server announces, and every member's masks are bound to.

    Args:
        run: name of the run, drawn at its start.
        round: from 1.
        cohort: which one of the round.
        members: how many were called, k.
        threshold: how many must be there to the end, t.
        length: numbers in an update.
        bound: no number of a member's quantised and noised update is larger, nor smaller than its negative.
        grid: what one step of a quantised update stands for.
        clip: largest norm of an update.
        variance: of the Skellam noise that a member adds to each quantised number.
        model: hash of the subnet's bytes and layout.
        units: hash of the units that make it.
        order: hash of how it is trained.
    """

    run: bytes = packed(Exactly(16))
    round: int = packed(Whole(4))
    cohort: int = packed(Whole(4))
    members: int = packed(Whole(2))
    threshold: int = packed(Whole(2))
    length: int = packed(Whole(4))
    bound: int = packed(Whole(4))
    grid: float = packed(Real())
    clip: float = packed(Real())
    variance: float = packed(Real())
    model: bytes = packed(Exactly(_HASH))
    units: bytes = packed(Exactly(_HASH))
    order: bytes = packed(Exactly(_HASH))


@dataclass(frozen=True, kw_only=True)
class Call(Packed):
    """The server calls a cohort together."""

    kind: ClassVar[int] = 1
    terms: Terms = packed(Record(Terms))  # noqa: RUF009


@dataclass(frozen=True, kw_only=True)
class Advert(Packed):
    """A member shows who it is, and two keys for this round alone: for boxes, and for masks."""

    kind: ClassVar[int] = 2
    certificate: bytes = packed(Upto(1 << 12))
    seal_key: bytes = packed(_KEY)
    mask_key: bytes = packed(_KEY)
    signature: bytes = packed(Exactly(_SIGNATURE))

    def signed(self, terms: Terms) -> bytes:
        """What the signature is over."""
        return digest("advert", terms.fields_packed(), self.certificate, self.seal_key, self.mask_key)


@dataclass(frozen=True, kw_only=True)
class Roster(Packed):
    """Everyone who came, in the order of their certificates' hashes."""

    kind: ClassVar[int] = 3
    adverts: tuple[Advert, ...] = packed(Many(Record(Advert), LARGEST))


def context_of(terms: Terms, roster: Roster) -> bytes:
    """The hash of everything that was agreed; every key of the round is bound to it."""
    adverts = [digest("member", each.certificate, each.seal_key, each.mask_key) for each in roster.adverts]
    return digest("context", terms.fields_packed(), *adverts)


@dataclass(frozen=True, kw_only=True)
class Box(Packed):
    """Sealed shares of one member's two secrets, from one member to another.

    Args:
        member: in `Shares` whom it is for, in `Boxes` whom it is from.
        sealed: a share of the seed of its own mask, and one of its key for masks.
    """

    member: int = packed(_MEMBER)
    sealed: bytes = packed(Exactly(2 * SHARE_BYTES + SEAL_BYTES))


@dataclass(frozen=True, kw_only=True)
class Shares(Packed):
    """A member gives every other a share of its two secrets.

    Args:
        context: of the round.
        commitment: hash of the seed, by which the server knows later that it was put together aright.
        boxes: one for every other member.
    """

    kind: ClassVar[int] = 4
    context: bytes = packed(_CONTEXT)
    commitment: bytes = packed(Exactly(_HASH))
    boxes: tuple[Box, ...] = packed(Many(Record(Box), LARGEST))


@dataclass(frozen=True, kw_only=True)
class Boxes(Packed):
    """The boxes for one member, of those who sent theirs."""

    kind: ClassVar[int] = 5
    context: bytes = packed(_CONTEXT)
    boxes: tuple[Box, ...] = packed(Many(Record(Box), LARGEST))


@dataclass(frozen=True, kw_only=True)
class Masked(Packed):
    """A masked update."""

    kind: ClassVar[int] = 6
    context: bytes = packed(_CONTEXT)
    values: np.ndarray = packed(Vector())  # noqa: RUF009


@dataclass(frozen=True, kw_only=True)
class Survivors(Packed):
    """Whose updates came."""

    kind: ClassVar[int] = 7
    context: bytes = packed(_CONTEXT)
    members: tuple[int, ...] = packed(Many(_MEMBER, LARGEST))

    def signed(self) -> bytes:
        """What a vote signs."""
        return digest("survivors", self.fields_packed())


@dataclass(frozen=True, kw_only=True)
class Vote(Packed):
    """A member's signature under the survivors."""

    kind: ClassVar[int] = 8
    signature: bytes = packed(Exactly(_SIGNATURE))


@dataclass(frozen=True, kw_only=True)
class Ballot(Packed):
    """Somebody's vote, passed on."""

    member: int = packed(_MEMBER)
    signature: bytes = packed(Exactly(_SIGNATURE))


@dataclass(frozen=True, kw_only=True)
class Votes(Packed):
    """The votes under one set of survivors."""

    kind: ClassVar[int] = 9
    context: bytes = packed(_CONTEXT)
    ballots: tuple[Ballot, ...] = packed(Many(Record(Ballot), LARGEST))


@dataclass(frozen=True, kw_only=True)
class Share(Packed):
    """One share of one secret of a member."""

    member: int = packed(_MEMBER)
    value: bytes = packed(Exactly(SHARE_BYTES))


@dataclass(frozen=True, kw_only=True)
class Opened(Packed):
    """Of every peer exactly one share: of the seed if it survived, of the key for masks if it did not."""

    kind: ClassVar[int] = 10
    seeds: tuple[Share, ...] = packed(Many(Record(Share), LARGEST))
    keys: tuple[Share, ...] = packed(Many(Record(Share), LARGEST))
