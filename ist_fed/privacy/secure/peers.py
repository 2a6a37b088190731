"""Who the others are: certificates, signatures, and that nobody stands twice in a roster."""

from collections.abc import Collection
from datetime import datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from ist_fed.errors import ForgedIdentity, PkiError, SmallCohort
from ist_fed.pki.signing import check_member
from ist_fed.privacy.secure.limits import survivors_needed
from ist_fed.privacy.secure.messages import Advert, Roster, Terms, digest


def place(advert: Advert) -> bytes:
    """What a roster is sorted by."""
    return digest("certificate", advert.certificate)


def check_advert(
    advert: Advert, terms: Terms, authority: x509.Certificate, today: datetime, revoked: Collection[int] = ()
) -> tuple[str, Ed25519PublicKey]:
    """Name and key of who sent an advert.

    Raises:
        ForgedIdentity: the certificate is not the authority's, or holds no more, or the signature is of another key or
            for another round.
    """
    try:
        name, key = check_member(advert.certificate, authority, today)
    except PkiError as error:
        raise ForgedIdentity(str(error)) from error
    if revoked and x509.load_der_x509_certificate(advert.certificate).serial_number in revoked:
        raise ForgedIdentity(f"the certificate of '{name}' was revoked; have the server's operator revoke that client")
    check_signature(key, advert.signature, advert.signed(terms), f"the keys of '{name}'")
    return name, key


def check_roster(
    roster: Roster,
    terms: Terms,
    authority: x509.Certificate,
    min_cohort: int,
    today: datetime,
    revoked: Collection[int] = (),
) -> list[Ed25519PublicKey]:
    """The keys that members sign with, in the order of the roster; `revoked` are certificates' serial numbers.

    Raises:
        SmallCohort: too few are in it.
        ForgedIdentity: an advert is, or somebody stands in it twice.
    """
    least, most = survivors_needed(terms, min_cohort), terms.members
    if not least <= len(roster.adverts) <= most:
        raise SmallCohort(f"a roster here has {least} to {most} members, but this one has {len(roster.adverts)}")
    names, keys = zip(*(check_advert(each, terms, authority, today, revoked) for each in roster.adverts), strict=True)
    agreed = [key for each in roster.adverts for key in (each.seal_key, each.mask_key)]
    signing = {key.public_bytes(Encoding.Raw, PublicFormat.Raw) for key in keys}
    if not len(set(names)) == len(signing) == len(names) or len(set(agreed)) < len(agreed):
        raise ForgedIdentity("everyone stands once in a roster, with keys of their own, but somebody stands twice")
    places = [place(each) for each in roster.adverts]
    if places != sorted(places):
        raise ForgedIdentity("a roster is sorted, so that all members read the same, but this one is not")
    return list(keys)


def check_signature(key: Ed25519PublicKey, signature: bytes, content: bytes, what: str) -> None:
    """Check who signed something.

    Raises:
        ForgedIdentity: somebody else, or something else.
    """
    try:
        key.verify(signature, content)
    except InvalidSignature as error:
        raise ForgedIdentity(f"{what} must be signed by the member itself, for this round, but are not") from error
