"""A cohort in memory: members, their authority, and the five steps with whoever stays."""

import secrets
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import cache

import numpy as np
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding

from ist_fed.pki.certificates import issue_authority, now
from ist_fed.pki.signing import Signer, issue_member
from ist_fed.privacy.secure import Aggregator, Member
from ist_fed.privacy.secure import messages as say
from ist_fed.privacy.secure.limits import threshold_of

MODEL, ORDER = say.digest("m"), say.digest("o")


@cache
def authority(name: str = "members") -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    key = ec.generate_private_key(ec.SECP384R1())
    return issue_authority(key, name, now()), key


def signer(name: str, of: str = "members") -> Signer:
    return _signer(name, of)


@cache
def _signer(name: str, of: str) -> Signer:
    certificate, key = authority(of)
    own = Ed25519PrivateKey.generate()
    issued = issue_member(certificate, key, own.public_key(), name, now())
    return Signer(name=name, key=own, certificate=issued.public_bytes(Encoding.DER), authority=certificate)


def terms(members: int, length: int = 7, **changed: object) -> say.Terms:
    fields = {
        "run": secrets.token_bytes(16),
        "round": 1,
        "cohort": 0,
        "members": members,
        "threshold": threshold_of(members),
        "length": length,
        "bound": ((1 << 29) - 1) // members,
        "grid": 2.0**-20,
        "clip": 1.0,
        "variance": 0.0,
        "model": MODEL,
        "units": say.digest("u"),
        "order": ORDER,
    }
    return say.Terms(**{**fields, **changed})


def again(message: say.Packed) -> say.Packed:
    """The message, as it is after it has travelled."""
    return type(message).unpack(message.pack())


@dataclass
class Cohort:
    """Members by handle, and their aggregator; each step can be taken by some of them only."""

    terms: say.Terms
    min_cohort: int = 3
    members: dict[str, Member] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = [f"m{number}" for number in range(self.terms.members)]
        self.members = {name: Member(signer(name), min_cohort=self.min_cohort) for name in names}
        self.aggregator = Aggregator[str](self.terms, self.min_cohort)

    def advertise(self, lost: Collection[str] = ()) -> say.Roster:
        for name in self.there(lost):
            self.aggregator.advertised(name, again(self.members[name].advertise(again(self.aggregator.call()))))
        return again(self.aggregator.roster())

    def share(self, roster: say.Roster, lost: Collection[str] = ()) -> dict[str, say.Boxes]:
        for name in self.there(lost):
            self.aggregator.shared(name, again(self.members[name].share(roster)))
        return {name: again(boxes) for name, boxes in self.aggregator.boxes().items()}

    def upload(
        self, boxes: Mapping[str, say.Boxes], updates: Mapping[str, np.ndarray], lost: Collection[str] = ()
    ) -> say.Survivors:
        for name in self.there(lost):
            self.members[name].receive(boxes[name], model=MODEL, order=ORDER)
            self.aggregator.masked(name, again(self.members[name].mask(updates[name])))
        return again(self.aggregator.survivors())

    def agree(self, survivors: say.Survivors, lost: Collection[str] = ()) -> say.Votes:
        for name in self.there(lost):
            self.aggregator.voted(name, again(self.members[name].agree(survivors)))
        return again(self.aggregator.votes())

    def unmask(self, votes: say.Votes, lost: Collection[str] = ()) -> tuple[np.ndarray, int]:
        for name in self.there(lost):
            self.aggregator.opened(name, again(self.members[name].unmask(votes)))
        return self.aggregator.total()

    def run(self, updates: Mapping[str, np.ndarray], lost: Mapping[str, int]) -> tuple[np.ndarray, int]:
        """All steps; `lost` says from which step on, 0 to 4, a member does not answer."""
        gone: Callable[[int], set[str]] = lambda step: {name for name, at in lost.items() if at <= step}  # noqa: E731
        boxes = self.share(self.advertise(gone(0)), gone(1))
        votes = self.agree(self.upload(boxes, updates, gone(2)), gone(3))
        return self.unmask(votes, gone(4))

    def until(self, step: int, updates: Mapping[str, np.ndarray] | None = None) -> object:
        """The first steps, with everyone; what the next one is given."""
        updates = zeros(self) if updates is None else updates
        given: object = self.advertise()
        if step > 1:
            given = self.share(given)
        if step > 2:
            given = self.upload(given, updates)
        if step > 3:
            given = self.agree(given)
        return given

    def there(self, lost: Collection[str]) -> list[str]:
        return [name for name in self.members if name not in lost]


def zeros(cohort: Cohort) -> dict[str, np.ndarray]:
    return {name: np.zeros(cohort.terms.length, np.int64) for name in cohort.members}


__all__ = ["MODEL", "ORDER", "Cohort", "again", "authority", "replace", "signer", "terms", "zeros"]
