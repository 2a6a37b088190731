"""The aggregator's side of the five steps: a state machine without input or output.

It holds one vector, the sum of what came so far, however many members there are. Members are known by handles of the
caller's, such as Flower's node ids.
"""

from collections.abc import Hashable, Mapping
from typing import Generic, TypeVar

import numpy as np
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from ist_fed.errors import ForgedIdentity, SecureError, SmallCohort
from ist_fed.pki.certificates import MALFORMED
from ist_fed.privacy.secure import messages as say
from ist_fed.privacy.secure.keys import agree, derive
from ist_fed.privacy.secure.limits import survivors_needed
from ist_fed.privacy.secure.masks import Ring, add_mask
from ist_fed.privacy.secure.peers import check_signature, place
from ist_fed.privacy.secure.session import pair_purpose, self_purpose
from ist_fed.privacy.secure.shamir import combine

Handle = TypeVar("Handle", bound=Hashable)


class Aggregator(Generic[Handle]):
    """One cohort in one round. What one member sends and is refused, it alone is out for.

    Args:
        terms: of the round.
        min_cohort: fewest members whose sum is wanted; members have their own opinion, too.
    """

    def __init__(self, terms: say.Terms, min_cohort: int) -> None:
        self.terms, self._least = terms, survivors_needed(terms, min_cohort)
        self._adverts: dict[Handle, say.Advert] = {}
        self._roster, self._context = say.Roster(adverts=()), b""
        self._places: dict[Handle, int] = {}
        self._shares: dict[int, say.Shares] = {}
        self._sum: Ring = np.zeros(terms.length, np.uint32)
        self._came: set[int] = set()
        self._survivors: tuple[int, ...] = ()
        self._votes: dict[int, bytes] = {}
        self._opened: dict[int, say.Opened] = {}

    def call(self) -> say.Call:
        """What everyone is told first."""
        return say.Call(terms=self.terms)

    def advertised(self, member: Handle, advert: say.Advert) -> None:
        """Take a member's advert.

        Raises:
            ForgedIdentity: its keys are not signed with the key of its certificate; by whom that is, members check.
        """
        check_signature(_signing_key(advert), advert.signature, advert.signed(self.terms), "keys")
        taken = {key for each in self._adverts.values() for key in (each.certificate, each.seal_key, each.mask_key)}
        if member in self._adverts or not taken.isdisjoint((advert.certificate, advert.seal_key, advert.mask_key)):
            raise ForgedIdentity("everyone comes once, with a certificate and keys of their own, but one came twice")
        self._adverts[member] = advert

    def roster(self) -> say.Roster:
        """Who came, for all of them.

        Raises:
            SmallCohort: too few did.
        """
        self._check_count(len(self._adverts), "came")
        handles = sorted(self._adverts, key=lambda handle: place(self._adverts[handle]))
        self._places = {handle: at for at, handle in enumerate(handles)}
        self._roster = say.Roster(adverts=tuple(self._adverts[handle] for handle in handles))
        self._context = say.context_of(self.terms, self._roster)
        return self._roster

    def shared(self, member: Handle, shares: say.Shares) -> None:
        """Take a member's boxes.

        Raises:
            SecureError: they are not one for every other member.
        """
        own = self._place(member, shares.context)
        wanted = [peer for peer in range(len(self._places)) if peer != own]
        if [box.member for box in shares.boxes] != wanted or own in self._shares:
            raise SecureError("a member sends one box for every other, once, but these are not so")
        self._shares[own] = shares

    def boxes(self) -> dict[Handle, say.Boxes]:
        """For each member who sent its own, the boxes of the others who did.

        Raises:
            SmallCohort: too few did.
        """
        self._check_count(len(self._shares), "shared their secrets")
        sealed = {(sender, box.member): box.sealed for sender, shares in self._shares.items() for box in shares.boxes}
        senders = sorted(self._shares)
        return {
            handle: say.Boxes(
                context=self._context,
                boxes=tuple(say.Box(member=peer, sealed=sealed[peer, own]) for peer in senders if peer != own),
            )
            for handle, own in self._places.items()
            if own in self._shares
        }

    def masked(self, member: Handle, masked: say.Masked) -> None:
        """Add a masked update to the sum.

        Raises:
            SecureError: it is not as long as announced, or not due.
        """
        own = self._place(member, masked.context)
        if own in self._came or own not in self._shares or self._survivors or masked.values.size != self.terms.length:
            raise SecureError(
                f"a masked update has {self.terms.length} numbers and comes once, before the survivors are named, but "
                f"this one has {masked.values.size}, or comes again or late"
            )
        np.add(self._sum, masked.values, out=self._sum)
        self._came.add(own)

    def survivors(self) -> say.Survivors:
        """Whose updates came.

        Raises:
            SmallCohort: too few did.
        """
        self._check_count(len(self._came), "sent an update")
        self._survivors = tuple(sorted(self._came))
        return self._named()

    def voted(self, member: Handle, vote: say.Vote) -> None:
        """Take a member's vote.

        Raises:
            ForgedIdentity: it is not for these survivors.
        """
        own = self._places[member]
        if own not in self._came or own in self._votes:
            raise SecureError("survivors vote once each, but this vote is another's or comes again")
        check_signature(_signing_key(self._roster.adverts[own]), vote.signature, self._named().signed(), "votes")
        self._votes[own] = vote.signature

    def votes(self) -> say.Votes:
        """Everyone's votes, for everyone who voted.

        Raises:
            SmallCohort: there are too few.
        """
        self._check_count(len(self._votes), "voted", self.terms.threshold)
        ballots = (say.Ballot(member=member, signature=self._votes[member]) for member in sorted(self._votes))
        return say.Votes(context=self._context, ballots=tuple(ballots))

    def opened(self, member: Handle, opened: say.Opened) -> None:
        """Take a member's shares.

        Raises:
            SecureError: they are not one of every peer.
        """
        own = self._places[member]
        lost = tuple(sorted(self._shares.keys() - self._came))
        given = tuple(share.member for share in opened.seeds), tuple(share.member for share in opened.keys)
        if own not in self._votes or own in self._opened or given != (self._survivors, lost):
            raise SecureError("who voted gives one share of every peer, once, but these are not so")
        self._opened[own] = opened

    def total(self) -> tuple[np.ndarray, int]:
        """The sum of all updates that came, and how many did.

        Returns:
            Whole numbers, `terms.length` of them, int64; and the number of survivors.

        Raises:
            SmallCohort: too few gave their shares.
            SecureError: shares or masks do not fit each other, so that there is noise and no sum.
        """
        needed = self.terms.threshold
        self._check_count(len(self._opened), "gave their shares", needed)
        givers = sorted(self._opened)[:needed]
        seeds = _gathered({giver: self._opened[giver].seeds for giver in givers})
        keys = _gathered({giver: self._opened[giver].keys for giver in givers})
        for member, shares in seeds.items():
            self._take_own_mask(member, combine(shares))
        for member, shares in keys.items():
            self._take_pair_masks(member, combine(shares))
        total = self._sum.view(np.int32).astype(np.int64)
        self._sum = np.zeros(0, np.uint32)
        if np.abs(total).max() > len(self._survivors) * self.terms.bound:
            raise SecureError(
                "the sum of a cohort is within the bound of its terms, but this one is not: members were sent "
                "different things, or one did not follow the protocol"
            )
        return total, len(self._survivors)

    def _take_own_mask(self, member: int, seed: bytes | None) -> None:
        commitment = self._shares[member].commitment
        if seed is None or say.digest("seed", self._context, seed) != commitment:
            raise SecureError("the shares of a member make its seed, but these do not; the cohort's sum is lost")
        add_mask(self._sum, derive(seed, self_purpose(self._context)), subtract=True)

    def _take_pair_masks(self, member: int, secret: bytes | None) -> None:
        """What survivors added for somebody who is lost; from its key and theirs, as they made it from theirs."""
        key = X25519PrivateKey.from_private_bytes(secret or bytes(32))
        if key.public_key().public_bytes_raw() != self._roster.adverts[member].mask_key:
            raise SecureError("the shares of a member make its key, but these do not; the cohort's sum is lost")
        for peer in self._survivors:
            mask = agree(key, self._roster.adverts[peer].mask_key, pair_purpose(self._context))
            add_mask(self._sum, mask, subtract=peer < member)

    def _named(self) -> say.Survivors:
        return say.Survivors(context=self._context, members=self._survivors)

    def _place(self, member: Handle, context: bytes) -> int:
        if context != self._context or member not in self._places:
            raise SecureError("a message is of this round and of somebody in its roster, but this one is not")
        return self._places[member]

    def _check_count(self, there: int, what: str, least: int | None = None) -> None:
        if there < (least := self._least if least is None else least):
            raise SmallCohort(f"of this cohort at least {least} must have {what}, but {there} have")


def _gathered(given: Mapping[int, tuple[say.Share, ...]]) -> dict[int, dict[int, bytes]]:
    """Shares by whose secret they are of, and by who gave them."""
    gathered: dict[int, dict[int, bytes]] = {}
    for giver, shares in given.items():
        for share in shares:
            gathered.setdefault(share.member, {})[giver] = share.value
    return gathered


def _signing_key(advert: say.Advert) -> Ed25519PublicKey:
    """Of a certificate whose issuer is not looked at: every member does that, with an authority it trusts."""
    try:
        key = x509.load_der_x509_certificate(advert.certificate).public_key()
    except MALFORMED as error:
        raise ForgedIdentity("a member shows a certificate in DER, but this is none") from error
    if not isinstance(key, Ed25519PublicKey):
        raise ForgedIdentity("a member signs with Ed25519, but this certificate is for another kind of key")
    return key
