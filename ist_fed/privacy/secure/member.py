"""A member's side of the five steps: a state machine without input or output.

Whatever does not fit ends the round for this member: it raises a typed error, erases its secrets and answers nothing
more. Secrets are erased as far as Python lets one: seeds and shares are overwritten; private keys live in OpenSSL,
which clears them when they are let go; copies that Python makes on the way are not in our hands.
"""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from datetime import datetime

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from ist_fed.errors import Disagreement, DoubleRequest, ForgedIdentity, OtherModel, SecureError, SmallCohort
from ist_fed.pki.certificates import now
from ist_fed.pki.signing import Signer
from ist_fed.privacy.secure import messages as say
from ist_fed.privacy.secure.budget import Budget
from ist_fed.privacy.secure.limits import FLOOR, MIN_COHORT, check_terms, survivors_needed
from ist_fed.privacy.secure.masks import Ring
from ist_fed.privacy.secure.peers import check_roster, check_signature
from ist_fed.privacy.secure.session import Session, new_seed

STEPS = ("share", "receive", "mask", "agree", "unmask")
"""What follows `advertise`, each once and in this order."""


class Member:
    """One client, in one secure round at a time.

    Args:
        signer: who it is, and by whom it knows others.
        min_cohort: fewest members among whom it hides.
        budget: what it may give away; without one, anything.
        clock: tells the time.
        revoked: says the serial numbers of certificates that hold no more; asked every round.
    """

    def __init__(
        self,
        signer: Signer,
        *,
        min_cohort: int = MIN_COHORT,
        budget: Budget | None = None,
        clock: Callable[[], datetime] = now,
        revoked: Callable[[], Collection[int]] = tuple,
    ) -> None:
        if min_cohort < FLOOR:
            raise SmallCohort(f"a cohort must never be smaller than {FLOOR}, but {min_cohort} is asked for")
        self._signer, self._min_cohort, self._clock = signer, min_cohort, clock
        self._budget, self._revoked = budget, revoked
        self._session: Session | None = None
        self._counted: dict[bytes, int] = {}  # run → the last round that was trained for
        self._over = b""  # context of the last round that ended

    def advertise(self, call: say.Call) -> say.Advert:
        """Show who one is, with fresh keys; whatever was open before is forgotten.

        Raises:
            DoubleRequest: this round, or a later one, was trained for already: the difference of two sums is
                somebody's update.
            SmallCohort: too few are called.
            SecureError: the round would cost more privacy than is left.
        """
        self.forget()
        terms = call.terms
        if terms.round <= self._counted.get(terms.run, 0):
            raise DoubleRequest(f"an update is given away once a round, and round {terms.round} is over here")
        check_terms(terms, self._min_cohort)
        if self._budget is not None:
            self._budget.check(terms)  # before anyone counts on this one
        seal_key, mask_key = X25519PrivateKey.generate(), X25519PrivateKey.generate()
        advert = say.Advert(
            certificate=self._signer.certificate,
            seal_key=seal_key.public_key().public_bytes_raw(),
            mask_key=mask_key.public_key().public_bytes_raw(),
            signature=bytes(64),
        )
        signature = self._signer.key.sign(advert.signed(terms))
        advert = say.Advert(**{**vars(advert), "signature": signature})
        self._session = Session(terms=terms, advert=advert, seal_key=seal_key, mask_key=mask_key, seed=new_seed())
        return advert

    def share(self, roster: say.Roster) -> say.Shares:
        """Share both secrets among everyone in the roster.

        Raises:
            ForgedIdentity: somebody in it is not who they say, or stands in it twice, or one's own keys are not in it.
            SmallCohort: too few are in it.
            PkiError: the list of the revoked cannot be read.
        """
        with self._step("share") as session:
            authority, today = self._signer.authority, self._clock()
            revoked = self._revoked()
            session.signing = check_roster(roster, session.terms, authority, self._min_cohort, today, revoked)
            if session.advert not in roster.adverts:
                raise ForgedIdentity("a member finds its own keys in the roster, but others stand in their place")
            session.roster, session.own = roster, roster.adverts.index(session.advert)
            session.context = say.context_of(session.terms, roster)
            commitment = say.digest("seed", session.context, bytes(session.seed))
            return say.Shares(context=session.context, commitment=commitment, boxes=session.boxes())

    def receive(self, boxes: say.Boxes, *, model: bytes, order: bytes) -> say.Terms:
        """Open the boxes, compare what came with them with what was announced, and count the round; train after this.

        The round is counted before the data are looked at: if this member is never heard of again, because of them or
        not, that has been paid for, and is not asked for a second time.

        Args:
            boxes: of all who sent theirs, but one's own.
            model: hash of the subnet that came, worked out here.
            order: hash of how it is to be trained.

        Raises:
            OtherModel: the subnet or the order is another.
            SmallCohort: too few sent theirs.
            ForgedIdentity: a box is not from who it says.
            SecureError: the round would cost more privacy than is left.
            RunError: it cannot be counted on the disk.
        """
        with self._step("receive", boxes.context) as session:
            if (model, order) != (session.terms.model, session.terms.order):
                raise OtherModel("what is to be trained is what was announced to everyone, but something else came")
            senders = {box.member for box in boxes.boxes}
            if len(senders) < len(boxes.boxes) or not senders <= session.others():
                raise Disagreement("a member gets one box of every other, but these are not so")
            self._check_count(session, 1 + len(senders))
            for box in boxes.boxes:
                session.open(box)
            if self._budget is not None:
                self._budget.spend(session.terms)
            self._counted[session.terms.run] = session.terms.round
            return session.terms

    def mask(self, values: np.ndarray) -> say.Masked:
        """Hide a quantised update, noise and all.

        Args:
            values: whole numbers, `terms.length` of them, none larger than `terms.bound`.

        Raises:
            SecureError: they are not so.
        """
        with self._step("mask") as session:
            terms = session.terms
            fits = values.shape == (terms.length,) and values.dtype == np.int64
            if not fits or max(int(values.max()), -int(values.min())) > terms.bound:
                raise SecureError("an update has as many numbers as announced, each within the bound, but this one not")
            vector: Ring = values.astype(np.uint32)  # modulo 2³²
            session.mask(vector, session.held.keys() - {session.own})
            return say.Masked(context=session.context, values=vector)

    def agree(self, survivors: say.Survivors) -> say.Vote:
        """Sign whose updates came: once, so that there is one set of them.

        Raises:
            SmallCohort: too few came.
            Disagreement: somebody stands in it twice, or sent no shares; or one's own update is said to be lost.
        """
        with self._step("agree", survivors.context) as session:
            members = survivors.members
            if list(members) != sorted(set(members)) or not session.held.keys() >= set(members):
                raise Disagreement("survivors are some of those who sent shares, each once, but these are not")
            if session.own not in members:
                raise Disagreement("a member that sent its update is among the survivors, but this one is not")
            self._check_count(session, len(members))
            session.survivors = members
            return say.Vote(signature=self._signer.key.sign(survivors.signed()))

    def unmask(self, votes: say.Votes) -> say.Opened:
        """Give exactly one share of every peer, and forget the round.

        Raises:
            Disagreement: not enough members signed the survivors that this one signed.
        """
        with self._step("unmask", votes.context) as session:
            voters = {ballot.member for ballot in votes.ballots}
            if len(voters) < len(votes.ballots) or not voters <= set(session.survivors):
                raise Disagreement("survivors vote once each, but others do or somebody does twice")
            if len(voters) < session.terms.threshold:
                raise Disagreement(f"{session.terms.threshold} votes are needed, but there are {len(voters)}")
            signed = say.Survivors(context=session.context, members=session.survivors).signed()
            for ballot in votes.ballots:
                try:
                    check_signature(session.signing[ballot.member], ballot.signature, signed, "votes")
                except ForgedIdentity as error:
                    raise Disagreement("all votes are for the survivors that one voted for, but one is not") from error
            opened = _opened(session)
        self.forget()
        return opened

    def forget(self) -> None:
        """Erase all secrets of the round that is open, if there is one."""
        if self._session is not None:
            self._over = self._session.context
            self._session.wipe()
            self._session = None

    @contextmanager
    def _step(self, name: str, context: bytes | None = None) -> Iterator[Session]:
        """The session, in a step that is due; if anything goes wrong in it, all is forgotten."""
        session = self._session
        if session is None:
            if context is not None and context == self._over:
                raise DoubleRequest("every step is asked for once, but this round is over here")
            raise SecureError(
                "this client knows of no such round: it was started anew, or a process is started for each message; "
                "secure rounds need clients that stay, as 'ist-fed client start' without --supernode"
            )
        try:
            due = STEPS[session.done]
            if name != due:
                asked = DoubleRequest if STEPS.index(name) < session.done else SecureError
                raise asked(f"every step is asked for once and in its order, but '{name}' came where '{due}' is due")
            if context is not None and context != session.context:
                raise Disagreement("all members of a round have agreed on the same, but this message is of another")
            yield session
            session.done += 1
        except BaseException:
            self.forget()
            raise

    def _check_count(self, session: Session, there: int) -> None:
        if there < (least := survivors_needed(session.terms, self._min_cohort)):
            raise SmallCohort(f"at least {least} members must be there to the end, but {there} are")


def _opened(session: Session) -> say.Opened:
    survived = set(session.survivors)
    shares = {
        member: say.Share(member=member, value=session.share_of(member, survived=member in survived))
        for member in sorted(session.held)
    }
    return say.Opened(
        seeds=tuple(share for member, share in shares.items() if member in survived),
        keys=tuple(share for member, share in shares.items() if member not in survived),
    )
