"""Members whose certificates hold no more: a list that their authority signs, as X.509 has it (RFC 5280).

At the authority: FOLDER/members/NAME/SERIAL.pem, every certificate it gave, and FOLDER/revoked.pem, the list. It holds
no secret. Members get it as they got their certificates; the server has no part in it.
"""

from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from ist_fed.errors import PkiError, nearest
from ist_fed.pki import certificates, files
from ist_fed.pki.authority import Authority

LIST = "revoked.pem"

_LIMIT = 16 * files.LIMIT  # bytes; room for ten thousand certificates


def keep(folder: Path, name: str, certificate: x509.Certificate) -> None:
    """Keep a certificate that was given, at the authority."""
    path = files.inside(folder, "members", name, f"{certificate.serial_number:x}.pem")
    files.make_folder(path.parent)
    files.replace(path, certificates.pem(certificate).encode())


def revoke(folder: Path, name: str, passphrase: bytes, today: datetime) -> Path:
    """Put all certificates that a member has been given on the list; where that is.

    Raises:
        PkiError: there is no such member, or the passphrase is wrong.
    """
    files.check_name(name)
    kept = [certificates.read(path, "restore it from a backup") for path in (folder / "members" / name).glob("*.pem")]
    if not kept:
        known = [path.name for path in (folder / "members").glob("*")]
        raise PkiError(f"this authority has certified no member '{name}'{nearest(name, known)}")
    authority, key = Authority(folder).unlock(passphrase, today)
    path = files.inside(folder, LIST)
    listed = {each.serial_number: each for each in _load(path)} if path.exists() else {}
    fresh = x509.RevokedCertificateBuilder().revocation_date(today)
    listed = {each.serial_number: fresh.serial_number(each.serial_number).build() for each in kept} | listed
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(authority.subject)
        .last_update(today)
        .next_update(authority.not_valid_after_utc)
        .add_extension(certificates.issued_by(authority), critical=False)
        .add_extension(x509.CRLNumber(int(today.timestamp())), critical=False)
    )
    for each in listed.values():
        builder = builder.add_revoked_certificate(each)
    files.replace(path, builder.sign(key, hashes.SHA384()).public_bytes(Encoding.PEM))
    return path


def read_revoked(path: Path, authority: x509.Certificate) -> frozenset[int]:
    """The serial numbers on a list.

    Args:
        path: of the list.
        authority: the members', whose certificate was checked before.

    Raises:
        PkiError: it is no list that this authority signed.
    """
    found, key = _load(path), authority.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    if found.issuer != authority.subject or not found.is_signature_valid(key):
        raise PkiError(f"a list of revoked members is signed by the members' authority, but '{path}' is not")
    return frozenset(each.serial_number for each in found)


def _load(path: Path) -> x509.CertificateRevocationList:
    try:
        return x509.load_pem_x509_crl(files.read(path, limit=_LIMIT))
    except certificates.MALFORMED as error:
        raise PkiError(
            f"the list of revoked members '{path}' cannot be read: {error}; have their authority send it again"
        ) from error
