"""What a server, or a member, can try: the member aborts with a typed error, and nothing more is to be had from it."""

from collections.abc import Callable
from datetime import timedelta

import numpy as np
import pytest
from cohort import MODEL, ORDER, Cohort, again, replace, signer, terms, zeros
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from ist_fed.errors import Disagreement, DoubleRequest, ForgedIdentity, OtherModel, PkiError, SecureError, SmallCohort
from ist_fed.pki.certificates import now
from ist_fed.privacy.secure import Aggregator, Member, fit_grid
from ist_fed.privacy.secure import messages as say
from ist_fed.privacy.secure.limits import threshold_of
from ist_fed.privacy.secure.peers import place


def silent(member: Member, cohort: Cohort) -> bool:
    """Whether a member has erased its secrets and answers no step any more."""
    empty = say.Boxes(context=bytes(32), boxes=())
    asked: list[Callable[[], object]] = [
        lambda: member.share(say.Roster(adverts=())),
        lambda: member.receive(empty, model=MODEL, order=ORDER),
        lambda: member.mask(np.zeros(cohort.terms.length, np.int64)),
        lambda: member.agree(say.Survivors(context=bytes(32), members=())),
        lambda: member.unmask(say.Votes(context=bytes(32), ballots=())),
    ]
    for ask in asked:
        with pytest.raises(SecureError):
            ask()
    return member._session is None


def sorted_roster(adverts: list[say.Advert]) -> say.Roster:
    return say.Roster(adverts=tuple(sorted(adverts, key=place)))


def advert(name: str, of: say.Terms, authority: str = "members") -> say.Advert:
    return Member(signer(name, authority), min_cohort=3).advertise(say.Call(terms=of))


# --- Small cohorts ----------------------------------------------------------------------------------------------------


def test_a_small_cohort_is_refused_whatever_the_server_says() -> None:
    with pytest.raises(SmallCohort, match="at least 5 members"):
        Member(signer("m0")).advertise(say.Call(terms=terms(4)))
    with pytest.raises(SmallCohort, match="at least 3 members"):
        Member(signer("m0"), min_cohort=3).advertise(say.Call(terms=terms(2, threshold=2)))
    with pytest.raises(SmallCohort, match="never be smaller than 3"):
        Member(signer("m0"), min_cohort=2)


def test_a_threshold_that_two_sets_of_survivors_could_reach_is_refused() -> None:
    with pytest.raises(SmallCohort, match="at least 7"):
        Member(signer("m0")).advertise(say.Call(terms=terms(10, threshold=6)))


FITTING = fit_grid(clip=1.0, noise=4.0, length=7, members=5)
NOISY = {"grid": FITTING.step, "clip": FITTING.clip, "variance": FITTING.variance, "bound": FITTING.bound}


@pytest.mark.parametrize(
    "changed",
    [
        {"grid": 1.0, "clip": 1e-6, "bound": 1 << 20},  # every update is lengthened, and counts as one of 1e-6 steps
        {"clip": 2.6 * FITTING.step},  # a little below √7
        {"bound": FITTING.bound - 1},  # who breaks off has an update that is as long as can be
        {"variance": 1023.9},  # noise of which nobody knows how exactly it is drawn
        {"variance": 2.0**56},
        {"variance": -1.0},
        {"grid": 0.0},
        {"grid": 2.0**-300, "clip": 2.0**-280},  # of a long update nobody sees that it is one
        {"grid": 2.0**-200, "clip": 1e300},
        {"clip": -1.0},
        {"clip": float("nan")},
        {"length": 0},
        {"bound": 1 << 29},
    ],
)
def test_terms_by_which_an_update_says_more_than_is_counted_are_refused(changed: dict[str, float]) -> None:
    Member(signer("m0")).advertise(say.Call(terms=terms(5, **NOISY)))
    with pytest.raises(SecureError, match="terms of this round are not so"):
        Member(signer("m0")).advertise(say.Call(terms=terms(5, **{**NOISY, **changed})))


@pytest.mark.parametrize("step", ["roster", "boxes", "survivors"])
def test_a_cohort_that_became_small_is_refused(step: str) -> None:
    cohort = Cohort(terms(6), min_cohort=5)
    member = cohort.members["m0"]
    if step == "roster":
        own = member.advertise(say.Call(terms=cohort.terms))
        few = sorted_roster([own, *(advert(f"m{n}", cohort.terms) for n in (1, 2, 3))])
        with pytest.raises(SmallCohort, match="5 to 6 members"):
            member.share(few)
    elif step == "boxes":
        boxes = cohort.until(2)["m0"]
        with pytest.raises(SmallCohort, match="at least 5"):
            member.receive(replace(boxes, boxes=boxes.boxes[:3]), model=MODEL, order=ORDER)
    else:
        survivors = cohort.until(3)
        own = cohort.aggregator._places["m0"]
        few = sorted({own, *[n for n in range(6) if n != own][:3]})
        with pytest.raises(SmallCohort, match="at least 5"):
            member.agree(replace(survivors, members=tuple(few)))
    assert silent(member, cohort)


# --- Identities -------------------------------------------------------------------------------------------------------


def swapped_keys(adverts: list[say.Advert], of: say.Terms) -> None:
    """The server puts keys of its own into somebody's advert."""
    key = X25519PrivateKey.generate().public_key().public_bytes_raw()
    adverts[1] = replace(adverts[1], mask_key=key)


def forged_signature(adverts: list[say.Advert], of: say.Terms) -> None:
    adverts[1] = replace(adverts[1], signature=bytes(64))


def invented_member(adverts: list[say.Advert], of: say.Terms) -> None:
    """The server makes members up, with an authority of its own."""
    adverts[1] = advert("invented", of, authority="the server's")


def twice(adverts: list[say.Advert], of: say.Terms) -> None:
    adverts[1] = adverts[2]


def of_another_round(adverts: list[say.Advert], of: say.Terms) -> None:
    """An advert from a round in which its member was lost and the server learnt its key."""
    adverts[1] = advert("m1", replace(of, round=2))


def other_own_keys(adverts: list[say.Advert], of: say.Terms) -> None:
    """A replay of the member's own earlier advert in this very round."""
    adverts[0] = advert("m0", of)


def not_a_certificate(adverts: list[say.Advert], of: say.Terms) -> None:
    adverts[1] = replace(adverts[1], certificate=b"\x30\x03\x02\x01\x01")


@pytest.mark.parametrize(
    "attack",
    [swapped_keys, forged_signature, invented_member, twice, of_another_round, other_own_keys, not_a_certificate],
)
def test_a_roster_with_a_forgery_gets_no_shares(attack: Callable[[list[say.Advert], say.Terms], None]) -> None:
    cohort = Cohort(terms(5))
    member = cohort.members["m0"]
    adverts = [member.advertise(say.Call(terms=cohort.terms)), *(advert(f"m{n}", cohort.terms) for n in range(1, 5))]
    attack(adverts, cohort.terms)
    with pytest.raises(ForgedIdentity):
        member.share(again(sorted_roster(adverts)))
    assert silent(member, cohort)


def test_an_unsorted_roster_is_refused() -> None:
    cohort = Cohort(terms(5))
    roster = cohort.advertise()
    with pytest.raises(ForgedIdentity, match="sorted"):
        cohort.members["m0"].share(replace(roster, adverts=roster.adverts[::-1]))


def test_an_expired_certificate_is_refused() -> None:
    cohort = Cohort(terms(5))
    roster = cohort.advertise()
    member = cohort.members["m0"]
    member._clock = lambda: now() + timedelta(days=200)
    with pytest.raises(ForgedIdentity, match="valid from"):
        member.share(roster)


@pytest.mark.parametrize("name", ["m0", "m3"])
def test_a_revoked_certificate_is_refused(name: str) -> None:
    """By everyone who has the list, were it their own."""
    cohort = Cohort(terms(5))
    serial = x509.load_der_x509_certificate(signer(name).certificate).serial_number
    member = cohort.members["m0"] = Member(signer("m0"), min_cohort=3, revoked=lambda: {serial})
    roster = cohort.advertise()
    with pytest.raises(ForgedIdentity, match=f"the certificate of '{name}' was revoked"):
        member.share(roster)
    assert silent(member, cohort)
    cohort.members["m1"].share(roster)  # it has no list


def test_a_list_of_the_revoked_that_cannot_be_read_ends_the_round() -> None:
    def unreadable() -> set[int]:
        raise PkiError("gone")

    cohort = Cohort(terms(5))
    member = cohort.members["m0"] = Member(signer("m0"), min_cohort=3, revoked=unreadable)
    roster = cohort.advertise()
    with pytest.raises(PkiError, match="gone"):
        member.share(roster)
    assert silent(member, cohort)


def test_a_key_of_low_order_is_refused() -> None:
    """With it everybody would know the secret that two members agree on. A malicious member signs it itself."""
    cohort = Cohort(terms(5))
    own = cohort.members["m0"].advertise(say.Call(terms=cohort.terms))
    bad = replace(advert("m1", cohort.terms), seal_key=bytes(32))
    bad = replace(bad, signature=signer("m1").key.sign(bad.signed(cohort.terms)))
    rest = [advert(f"m{n}", cohort.terms) for n in (2, 3, 4)]
    with pytest.raises(ForgedIdentity, match="full order"):
        cohort.members["m0"].share(sorted_roster([own, bad, *rest]))


def test_a_box_that_was_touched_is_refused() -> None:
    cohort = Cohort(terms(5))
    boxes = cohort.until(2)["m0"]
    first = boxes.boxes[0]
    swapped = replace(boxes.boxes[1], sealed=first.sealed)  # from another member
    with pytest.raises(ForgedIdentity, match="sealed by the member"):
        cohort.members["m0"].receive(replace(boxes, boxes=(first, swapped, *boxes.boxes[2:])), model=MODEL, order=ORDER)
    assert silent(cohort.members["m0"], cohort)


# --- Models -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("other", ["model", "order"])
def test_another_model_than_announced_is_not_trained(other: str) -> None:
    cohort = Cohort(terms(5))
    boxes = cohort.until(2)["m0"]
    sent = {"model": MODEL, "order": ORDER, other: say.digest("another")}
    with pytest.raises(OtherModel):
        cohort.members["m0"].receive(boxes, **sent)
    assert silent(cohort.members["m0"], cohort)


def test_members_told_of_different_models_make_noise_and_no_sum() -> None:
    """Model inconsistency (Pasquini et al.): the server announces another model to one member from the start."""
    true = terms(5, 200, grid=2.0**-9, bound=1000)
    false = replace(true, model=say.digest("crafted"))
    honest = Cohort(true)
    victim = honest.members["m0"]
    adverts = [victim.advertise(say.Call(terms=false))]
    adverts += [honest.members[f"m{n}"].advertise(say.Call(terms=true)) for n in range(1, 5)]
    with pytest.raises(ForgedIdentity, match="for this round"):
        victim.share(sorted_roster(adverts))  # the others signed other terms


def test_members_shown_different_rosters_cannot_open_each_others_boxes() -> None:
    cohort = Cohort(terms(7))
    roster = cohort.advertise()
    places = {name: cohort.aggregator._places[name] for name in cohort.members}
    shown = replace(roster, adverts=tuple(each for at, each in enumerate(roster.adverts) if at != places["m6"]))
    victim = cohort.members["m0"]
    victim.share(shown)
    context = victim._session.context
    boxes = []
    for name in ("m1", "m2", "m3", "m4", "m5"):
        sent = cohort.members[name].share(roster)
        at = shown.adverts.index(roster.adverts[places[name]])
        boxes.append(say.Box(member=at, sealed=next(b.sealed for b in sent.boxes if b.member == places["m0"])))
    with pytest.raises(ForgedIdentity, match="sealed by the member"):
        victim.receive(say.Boxes(context=context, boxes=tuple(boxes)), model=MODEL, order=ORDER)


# --- Survivors --------------------------------------------------------------------------------------------------------


def named(cohort: Cohort, *names: str) -> tuple[int, ...]:
    return tuple(sorted(cohort.aggregator._places[name] for name in names))


def test_two_sets_of_survivors_do_not_both_get_their_votes() -> None:
    """The attack on survivors: half of the members are told that m9 is lost, the others that m8 is."""
    cohort = Cohort(terms(10))
    survivors = cohort.until(3)
    names = list(cohort.members)
    sets = [replace(survivors, members=named(cohort, *(n for n in names if n != lost))) for lost in ("m9", "m8")]
    votes = []
    for told, half in zip(sets, ([*names[:4], "m8"], [*names[4:8], "m9"]), strict=True):
        signed = {cohort.aggregator._places[n]: cohort.members[n].agree(told).signature for n in half}
        ballots = tuple(say.Ballot(member=at, signature=signed[at]) for at in sorted(signed))
        votes.append(say.Votes(context=told.context, ballots=ballots))
    with pytest.raises(Disagreement, match="7 votes are needed, but there are 5"):
        cohort.members["m0"].unmask(votes[0])
    both = {ballot.member: ballot for vote in votes for ballot in vote.ballots}
    mixed = tuple(both[at] for at in sorted(both) if at in sets[0].members)
    with pytest.raises(Disagreement, match="one voted for"):
        cohort.members["m1"].unmask(replace(votes[0], ballots=mixed))
    assert silent(cohort.members["m0"], cohort)
    assert silent(cohort.members["m1"], cohort)


def test_one_vote_many_times_is_one_vote() -> None:
    cohort = Cohort(terms(5))
    votes = cohort.until(4)
    with pytest.raises(Disagreement, match="twice"):
        cohort.members["m0"].unmask(replace(votes, ballots=votes.ballots[:1] * 5))


def test_who_survived_is_not_said_to_be_lost() -> None:
    """Else the server would get the key of a member that uploaded, and with its seed the update."""
    cohort = Cohort(terms(6))
    survivors = cohort.until(3)
    others = named(cohort, "m1", "m2", "m3", "m4", "m5")
    with pytest.raises(Disagreement, match="among the survivors"):
        cohort.members["m0"].agree(replace(survivors, members=others))


@pytest.mark.parametrize("members", [(0, 1, 2, 3, 9), (0, 1, 1, 2, 3, 4), (4, 3, 2, 1, 0)])
def test_survivors_are_in_the_roster_once_each(members: tuple[int, ...]) -> None:
    cohort = Cohort(terms(5))
    survivors = cohort.until(3)
    with pytest.raises(Disagreement):
        cohort.members["m0"].agree(replace(survivors, members=members))


# --- Twice ------------------------------------------------------------------------------------------------------------


def test_both_shares_of_a_peer_are_never_given() -> None:
    """Asked again with another set of survivors, a member has nothing left to give."""
    cohort = Cohort(terms(6))
    votes = cohort.until(4)
    member = cohort.members["m0"]
    opened = member.unmask(votes)
    asked = [share.member for share in (*opened.seeds, *opened.keys)]
    assert sorted(asked) == sorted(set(asked)) == list(range(6))
    with pytest.raises(DoubleRequest, match="round is over"):
        member.unmask(votes)
    assert silent(member, cohort)


def test_a_second_vote_is_refused() -> None:
    cohort = Cohort(terms(6))
    survivors = cohort.until(3)
    member = cohort.members["m0"]
    member.agree(survivors)
    with pytest.raises(DoubleRequest, match="'agree' came where 'unmask' is due"):
        member.agree(survivors)
    assert silent(member, cohort)


def test_a_round_is_not_taken_part_in_twice() -> None:
    """Two sums over one round that differ in one member would give its update away."""
    cohort = Cohort(terms(5))
    cohort.until(3)
    member = cohort.members["m0"]
    for number in (1, 0):
        with pytest.raises((DoubleRequest, SecureError)):
            member.advertise(say.Call(terms=replace(cohort.terms, round=number)))
    member.advertise(say.Call(terms=replace(cohort.terms, round=2)))


def test_keys_are_fresh_every_round() -> None:
    """Who learns those of one round, as of a member that is lost in it, can open no other."""
    member, of = Member(signer("m0"), min_cohort=3), terms(5)
    adverts = [member.advertise(say.Call(terms=replace(of, round=number))) for number in (1, 1, 2)]
    keys = {key for each in adverts for key in (each.seal_key, each.mask_key)}
    assert len(keys) == 6


def test_a_step_before_its_time_is_refused() -> None:
    cohort = Cohort(terms(5))
    cohort.advertise()
    with pytest.raises(SecureError, match="'mask' came where 'share' is due"):
        cohort.members["m0"].mask(np.zeros(7, np.int64))
    assert silent(cohort.members["m0"], cohort)


def test_a_message_of_another_round_is_refused() -> None:
    cohort, other = Cohort(terms(5)), Cohort(terms(5))
    cohort.until(3)
    with pytest.raises(Disagreement, match="of another"):
        cohort.members["m0"].agree(other.until(3))


def test_a_member_that_was_started_anew_says_what_is_needed() -> None:
    cohort = Cohort(terms(5))
    roster = cohort.advertise()
    with pytest.raises(SecureError, match="without --supernode"):
        Member(signer("m0"), min_cohort=3).share(roster)


# --- What a malicious member can do to the sum -----------------------------------------------------------------------


def test_an_update_beyond_the_bound_is_not_masked() -> None:
    cohort = Cohort(terms(5, grid=2.0**-6, bound=100))
    boxes = cohort.until(2)
    member = cohort.members["m0"]
    member.receive(boxes["m0"], model=MODEL, order=ORDER)
    with pytest.raises(SecureError, match="within the bound"):
        member.mask(np.full(7, 101))
    assert silent(member, cohort)


@pytest.mark.parametrize("which", ["seeds", "keys"])
def test_shares_of_something_else_are_noticed(which: str) -> None:
    cohort = Cohort(terms(6, 50, grid=2.0**-9, bound=1000))
    boxes = cohort.until(2)
    survivors = cohort.upload(boxes, zeros(cohort), lost={"m5"})
    votes = cohort.agree(survivors, lost={"m5"})
    for name in list(cohort.members)[:5]:
        opened = cohort.members[name].unmask(votes)
        if name == "m2":
            first, *rest = getattr(opened, which)
            opened = replace(opened, **{which: (replace(first, value=bytes(66)), *rest)})
        cohort.aggregator.opened(name, opened)
    with pytest.raises(SecureError, match="these do not; the cohort's sum is lost"):
        cohort.aggregator.total()


def test_masks_that_do_not_cancel_are_noticed() -> None:
    cohort = Cohort(terms(5, 200, grid=2.0**-9, bound=1000))
    boxes = cohort.until(2)
    for name, member in cohort.members.items():
        member.receive(boxes[name], model=MODEL, order=ORDER)
        masked = member.mask(np.zeros(200, np.int64))
        extra = np.arange(200, dtype=np.uint32) << np.uint32(24) if name == "m1" else np.uint32(0)
        cohort.aggregator.masked(name, replace(masked, values=masked.values + extra))
    votes = cohort.agree(cohort.aggregator.survivors())
    with pytest.raises(SecureError, match="within the bound of its terms"):
        cohort.unmask(votes)


def test_the_aggregator_refuses_what_is_not_due() -> None:
    cohort = Cohort(terms(5))
    own = cohort.members["m0"].advertise(cohort.aggregator.call())
    cohort.aggregator.advertised("m0", own)
    with pytest.raises(ForgedIdentity, match="came twice"):
        cohort.aggregator.advertised("somebody else", own)
    with pytest.raises(ForgedIdentity, match="signed"):
        cohort.aggregator.advertised("m1", replace(own, signature=bytes(64)))
    with pytest.raises(ForgedIdentity, match="this is none"):
        cohort.aggregator.advertised("m1", replace(own, certificate=b"no"))

    cohort = Cohort(terms(5))
    boxes = cohort.until(2)
    cohort.members["m0"].receive(boxes["m0"], model=MODEL, order=ORDER)
    masked = cohort.members["m0"].mask(np.zeros(7, np.int64))
    with pytest.raises(SecureError, match="has 7 numbers"):
        cohort.aggregator.masked("m0", replace(masked, values=masked.values[:6]))
    cohort.aggregator.masked("m0", masked)
    with pytest.raises(SecureError, match="comes again"):
        cohort.aggregator.masked("m0", masked)
    with pytest.raises(SecureError, match="somebody in its roster"):
        Aggregator[str](cohort.terms, 3).masked("m0", masked)


def test_two_thirds_and_one_vote() -> None:
    for members in range(3, 40):
        least = threshold_of(members)
        assert least == min(t for t in range(members + 1) if 3 * t > 2 * members)
