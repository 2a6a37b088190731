"""What the server sees of one member's upload: uniform numbers, whatever is in it."""

import secrets

import numpy as np
import pytest
from cohort import MODEL, ORDER, Cohort, terms, zeros
from scipy.stats import chi2

from ist_fed.privacy.secure.masks import add_mask, keystream
from ist_fed.privacy.secure.messages import LARGEST
from ist_fed.privacy.secure.shamir import PRIME, SHARE_BYTES, combine, split

LENGTH = 1 << 16
FALSE_ALARM = 1e-10  # of each comparison; there are 8 of them, on random numbers of the operating system


def surprise(numbers: np.ndarray) -> float:
    """The largest χ² of the four bytes of a number, in units of what chance gives once in 10¹⁰ tests."""
    counts = [np.bincount(byte, minlength=256) for byte in numbers.view(np.uint8).reshape(-1, 4).T]
    expected = len(numbers) / 256
    return max(float(((count - expected) ** 2 / expected).sum()) for count in counts) / chi2.isf(FALSE_ALARM, 255)


@pytest.mark.parametrize("value", [0, 1 << 20])
def test_a_masked_update_is_uniform_whatever_is_in_it(value: int) -> None:
    cohort = Cohort(terms(5, LENGTH))
    boxes = cohort.until(2)
    update = np.full(LENGTH, value)
    assert surprise(update.astype(np.uint32)) > 100  # the test sees an update that is not masked
    member = cohort.members["m0"]
    member.receive(boxes["m0"], model=MODEL, order=ORDER)
    assert surprise(member.mask(update).values) < 1


def test_an_update_stays_hidden_when_all_pair_masks_are_known() -> None:
    """A member that is late, and said to be lost: the server learns its key, and the seed's mask still hides it."""
    cohort = Cohort(terms(5, LENGTH))
    boxes = cohort.until(2)
    member = cohort.members["m0"]
    member.receive(boxes["m0"], model=MODEL, order=ORDER)
    session = member._session
    pairs = np.zeros(LENGTH, np.uint32)
    seed, session.seed = session.seed, bytearray(32)
    session.mask(pairs, session.held.keys() - {session.own})
    own = np.zeros(LENGTH, np.uint32)
    session.mask(own, [])
    session.seed = seed
    late = member.mask(zeros(cohort)["m0"]).values - (pairs - own)  # less all that pairs add
    assert surprise(late) < 1


def test_masks_are_those_of_the_published_chacha20() -> None:
    """RFC 8439, A.1, test vectors 1 and 2: key and nonce zero, blocks 0 and 1."""
    blocks = bytes.fromhex(
        "76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7"
        "da41597c5157488d7724e03fb8d84a376a43b8f41518a11cc387b669b2ee6586"
        "9f07e7be5551387a98ba977c732d080dcb0f29a048e3656912c6533e32ee7aed"
        "29b721769ce64e43d57133b074d839d531ed1f28510afb45ace10a1f4b794d6f"
    )
    assert keystream(bytes(32)).update(bytes(128)) == blocks
    vector = np.ones(32, np.uint32)
    add_mask(vector, bytes(32))
    assert (vector - np.uint32(1)).astype("<u4").tobytes() == blocks


@pytest.mark.parametrize("length", [1, 65_535, 65_536, 65_537, 200_000])
def test_a_mask_that_is_taken_away_leaves_nothing(length: int) -> None:
    key = secrets.token_bytes(32)
    before = np.arange(length, dtype=np.uint32)
    vector = before.copy()
    add_mask(vector, key)
    whole = np.frombuffer(keystream(key).update(bytes(4 * length)), dtype="<u4")
    assert np.array_equal(vector, before + whole)
    add_mask(vector, key, subtract=True)
    assert np.array_equal(vector, before)


@pytest.mark.parametrize(("threshold", "members"), [(1, 1), (3, 3), (4, 5), (14, 20)])
def test_threshold_shares_give_the_secret_and_fewer_do_not(threshold: int, members: int) -> None:
    for secret in (bytes(32), b"\xff" * 32, secrets.token_bytes(32)):
        shares = dict(enumerate(split(secret, threshold, members)))
        assert all(len(share) == SHARE_BYTES for share in shares.values())
        chosen = secrets.SystemRandom().sample(sorted(shares), threshold)
        assert combine({at: shares[at] for at in chosen}) == secret
        if threshold > 1:
            fewer = {at: shares[at] for at in chosen[1:]}
            assert combine(fewer) != secret  # a chance of 2⁻⁵²¹


def test_shares_below_the_threshold_fit_every_secret() -> None:
    """Perfect secrecy: t − 1 shares and any secret at all lie on one polynomial, which `split` draws as likely."""
    shares = split(secrets.token_bytes(32), 3, 5)
    y1, y2 = (int.from_bytes(share) for share in shares[:2])
    for other in (0, 1, secrets.randbelow(1 << 256)):
        # a + bx + cx² through (0, other), (1, y1), (2, y2)
        half = pow(2, -1, PRIME)
        c = (y2 - 2 * y1 + other) * half % PRIME
        b = (y1 - other - c) % PRIME
        y3 = (other + 3 * b + 9 * c) % PRIME
        forged = {0: shares[0], 1: shares[1], 2: y3.to_bytes(SHARE_BYTES)}
        assert combine(forged) == other.to_bytes(32)


def test_a_cohort_is_never_larger_than_its_places() -> None:
    assert LARGEST < 1 << 16
