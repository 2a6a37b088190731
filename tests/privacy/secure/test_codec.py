"""Messages as bytes: what comes out is what went in, and nothing else gets in."""

from contextlib import suppress

import numpy as np
import pytest
from cohort import Cohort, terms, zeros
from hypothesis import given
from hypothesis import strategies as st

from ist_fed.errors import SecureError
from ist_fed.privacy.secure import messages as say
from ist_fed.privacy.secure.codec import Packed

KINDS = (
    say.Call, say.Advert, say.Roster, say.Shares, say.Boxes, say.Masked, say.Survivors, say.Vote, say.Votes, say.Opened,
)  # fmt: skip


def said() -> list[Packed]:
    """One message of every kind, from a round."""
    cohort = Cohort(terms(5))
    call, first = cohort.aggregator.call(), cohort.members["m0"]
    roster = cohort.advertise()
    boxes = cohort.share(roster)
    survivors = cohort.upload(boxes, zeros(cohort))
    votes = cohort.agree(survivors)
    opened = first.unmask(votes)
    masked = say.Masked(context=bytes(32), values=np.arange(7, dtype=np.uint32))
    vote = say.Vote(signature=votes.ballots[0].signature)
    shares = cohort.aggregator._shares[0]
    return [call, roster.adverts[0], roster, shares, boxes["m0"], masked, survivors, vote, votes, opened]


MESSAGES = said()


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_a_message_comes_out_as_it_went_in(message: Packed) -> None:
    back = type(message).unpack(message.pack())
    if isinstance(message, say.Masked):
        assert np.array_equal(back.values, message.values)
        assert back.context == message.context
    else:
        assert back == message
    assert back.pack() == message.pack()


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_a_message_that_is_cut_or_longer_or_another_is_refused(message: Packed) -> None:
    data, kind = message.pack(), type(message)
    for wrong in (b"", data[:4], data[:-1], data + b"x", b"ISF0" + data[4:]):
        with pytest.raises(SecureError):
            kind.unpack(wrong)
    for other in KINDS:
        if other is not kind:
            with pytest.raises(SecureError, match="what the step asks for"):
                other.unpack(data)


def test_every_message_has_its_own_number() -> None:
    assert len({kind.kind for kind in KINDS}) == len(KINDS) == len(MESSAGES)
    assert {type(message) for message in MESSAGES} == set(KINDS)


@given(st.sampled_from(KINDS), st.binary(max_size=300))
def test_no_bytes_do_more_than_be_refused(kind: type[Packed], data: bytes) -> None:
    with suppress(SecureError):
        kind.unpack(b"ISF1" + bytes([kind.kind]) + data)


@pytest.mark.parametrize("count", [5, 1 << 20, (1 << 32) - 1])
def test_a_list_says_no_more_than_what_came(count: int) -> None:
    """A header that claims four thousand million entries is refused by its number, and nothing is made."""
    data = b"ISF1" + bytes([say.Roster.kind]) + count.to_bytes(4, "little") + b"xx"
    with pytest.raises(SecureError, match="holds at most 2"):
        say.Roster.unpack(data)


def test_a_number_that_is_not_finite_is_refused() -> None:
    data = say.Call(terms=terms(5)).pack()
    nan = np.float64("nan").tobytes()
    grid = np.float64(2.0**-20).tobytes()
    assert data.count(grid) == 1
    with pytest.raises(SecureError, match="finite"):
        say.Call.unpack(data.replace(grid, nan))


def test_a_masked_update_is_read_without_a_copy() -> None:
    data = say.Masked(context=bytes(32), values=np.arange(1000, dtype=np.uint32)).pack()
    values = say.Masked.unpack(data).values
    assert not values.flags.owndata
    assert not values.flags.writeable
