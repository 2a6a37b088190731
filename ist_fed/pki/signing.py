"""Members of secure rounds: an authority of their own, which no server holds, and a signing key for each.

The server of a federation sees every message of a round. Were the members' certificates its own to give, it could make
members up and be their whole cohort. So their authority lies in a folder of its own, with whoever the members trust
and the server's operator is not: one of them, or a third party.

On that machine, the authority: FOLDER/ca/ca.key, ca.pem. On a member's: NAME.sign.key (which never leaves),
NAME.sign.csr (what the authority is sent), NAME.sign.pem (what comes back: the certificate, and the authority's).
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID

from ist_fed.errors import PkiError
from ist_fed.pki import certificates, files
from ist_fed.pki.authority import Authority
from ist_fed.pki.keys import PrivateKey, check_passphrase
from ist_fed.pki.revocation import keep

ORGANIZATION = "ist_fed member"

KEY, REQUEST, CERTIFICATE = ".sign.key", ".sign.csr", ".sign.pem"
"""Endings of a member's files."""


@dataclass(frozen=True, kw_only=True)
class Signer:
    """What a member signs with, and how it tells other members.

    Args:
        name: of the member.
        key: its private key.
        certificate: its own, in DER.
        authority: the certificate that every member's is checked against.
    """

    name: str
    key: Ed25519PrivateKey
    certificate: bytes
    authority: x509.Certificate


# --- The authority ----------------------------------------------------------------------------------------------------


def create_authority(
    folder: Path, name: str, passphrase: bytes, clock: Callable[[], datetime] = certificates.now
) -> Authority:
    """Make the members' authority.

    Args:
        folder: where it lies; on no server.
        name: of the federation.
        passphrase: encrypts its key.
        clock: tells the time.

    Raises:
        PkiError: there is one already, or the name or the passphrase cannot be used.
    """
    check_passphrase(passphrase)
    files.check_name(name)
    files.make_folder(folder)
    authority = Authority(folder)
    authority.create(name, passphrase, clock())
    return authority


def certify(
    folder: Path, request: Path, passphrase: bytes, out: Path, clock: Callable[[], datetime] = certificates.now
) -> Path:
    """Give a member its certificate; whoever calls this has made sure whose request it is.

    Args:
        folder: of the authority.
        request: the member's.
        passphrase: of the authority's key.
        out: the folder that the certificate goes to.
        clock: tells the time.

    Raises:
        PkiError: the request is none, or the passphrase is wrong.
    """
    name, key = read_request(request)
    authority, authority_key = Authority(folder).unlock(passphrase, clock())
    issued = issue_member(authority, authority_key, key, name, clock())
    keep(folder, name, issued)
    path = files.inside(out, f"{name}{CERTIFICATE}")
    files.replace(path, (certificates.pem(issued) + certificates.pem(authority)).encode())
    return path


def issue_member(
    authority: x509.Certificate, authority_key: PrivateKey, key: Ed25519PublicKey, name: str, today: datetime
) -> x509.Certificate:
    """The certificate of a member; valid as long as a server's."""
    end = min(today + certificates.SERVER_LIFE, authority.not_valid_after_utc)
    return (
        certificates.builder(certificates.subject(ORGANIZATION, name), authority.subject, key, today, end)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(certificates.usage(authority=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=True)
        .add_extension(certificates.issued_by(authority), critical=False)
        .sign(authority_key, hashes.SHA384())
    )


def signers_of_one_run() -> Callable[[str], Signer]:
    """Signers by name, of an authority in memory that is thrown away: for members that are all in one process."""
    key = ec.generate_private_key(ec.SECP384R1())
    authority = certificates.issue_authority(key, "one run", certificates.now())

    def signer(name: str) -> Signer:
        own = Ed25519PrivateKey.generate()
        issued = issue_member(authority, key, own.public_key(), name, certificates.now())
        return Signer(name=name, key=own, certificate=issued.public_bytes(Encoding.DER), authority=authority)

    return signer


# --- A member ---------------------------------------------------------------------------------------------------------


def request_member(folder: Path, name: str) -> Path:
    """Make a member's key, and a request that proves who holds it.

    Raises:
        PkiError: the name cannot be one, or there is a key already.
    """
    files.check_name(name)
    files.make_folder(folder)
    key = Ed25519PrivateKey.generate()
    builder = x509.CertificateSigningRequestBuilder().subject_name(certificates.subject(ORGANIZATION, name))
    request = builder.sign(key, None).public_bytes(Encoding.PEM)
    text = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    files.create(files.inside(folder, f"{name}{KEY}"), text)
    path = files.inside(folder, f"{name}{REQUEST}")
    files.replace(path, request)
    return path


def read_request(path: Path) -> tuple[str, Ed25519PublicKey]:
    """The name and the key that a request asks a certificate for, once its sender has proved to hold the key.

    Raises:
        PkiError: it is no such request.
    """
    try:
        request = x509.load_pem_x509_csr(files.read(path))
        key, name = request.public_key(), certificates.common_name(request)
        if not (isinstance(key, Ed25519PublicKey) and request.is_signature_valid and len(request.extensions) == 0):
            raise ValueError("it has another kind of key, more in it than a name, or was changed on its way")
    except certificates.MALFORMED as error:
        raise PkiError(
            f"the request '{path}' cannot be used: {error}; have the member send it again, as "
            f"'ist-fed provision signer request' wrote it"
        ) from error
    return files.check_name(name), key


def open_signer(path: Path, fingerprint: str | None = None, clock: Callable[[], datetime] = certificates.now) -> Signer:
    """Read a member's certificate, and check that it can be used.

    Args:
        path: of NAME.sign.pem, in the folder of NAME.sign.key.
        fingerprint: of the members' authority, if it is to be compared; as `openssl x509 -fingerprint -sha256` says it.
        clock: tells the time.

    Raises:
        PkiError: something does not hold; the message says what.
    """
    try:
        own, authority = x509.load_pem_x509_certificates(files.read(path))
    except certificates.MALFORMED as error:
        raise PkiError(
            f"'{path}' holds a member's certificate and its authority's, but cannot be read: {error}; have the "
            f"authority send it again"
        ) from error
    found = certificates.fingerprint(authority)
    if fingerprint is not None and fingerprint.replace(":", "").upper() != found.replace(":", ""):
        raise PkiError(f"the members' authority must be the one you expect, but its fingerprint is {found}")
    certificates.check_authority(authority, clock())
    certificate = own.public_bytes(Encoding.DER)
    name, public = check_member(certificate, authority, clock())
    key_path = path.with_name(f"{name}{KEY}")
    if not os.path.lexists(key_path):
        raise PkiError(f"a member's certificate lies beside its key, but there is no '{key_path}'; copy it there")
    key = load_pem_private_key(files.read(key_path, private=True), None)
    if not isinstance(key, Ed25519PrivateKey) or key.public_key() != public:
        raise PkiError(f"'{path}' is not the certificate of '{key_path}'; have the authority certify that key")
    return Signer(name=name, key=key, certificate=certificate, authority=authority)


def check_member(certificate: bytes, authority: x509.Certificate, today: datetime) -> tuple[str, Ed25519PublicKey]:
    """Name and key of a member whose certificate is as `issue_member` makes it, and valid today.

    Args:
        certificate: in DER.
        authority: whose certificate was checked before.
        today: the time.

    Raises:
        PkiError: it is not such a certificate.
    """
    name, key, start, end = _checked(certificate, authority)
    if not start <= today <= end:
        raise PkiError(
            f"the certificate of '{name}' is valid from {start:%Y-%m-%d} to {end:%Y-%m-%d}; have its authority certify "
            f"it anew, or set the clock"
        )
    return name, key


@lru_cache(maxsize=4096)
def _checked(certificate: bytes, authority: x509.Certificate) -> tuple[str, Ed25519PublicKey, datetime, datetime]:
    """All that does not depend on the time; members meet again every round."""
    try:
        member = x509.load_der_x509_certificate(certificate)
        member.verify_directly_issued_by(authority)
        key, name = member.public_key(), files.check_name(certificates.common_name(member))
        found = [member.extensions.get_extension_for_class(kind) for kind in _WANTED]
    except (*certificates.MALFORMED, InvalidSignature) as error:
        raise PkiError("a member's certificate is signed by the members' authority, but one is not") from error
    sound = all(each.critical and each.value == wanted for each, wanted in zip(found, _WANTED.values(), strict=True))
    if not isinstance(key, Ed25519PublicKey) or not sound or len(member.extensions) != len(_WANTED) + 2:
        raise PkiError(f"a member's certificate is for signing with Ed25519 only, but that of '{name}' says otherwise")
    return name, key, member.not_valid_before_utc, member.not_valid_after_utc


_WANTED: dict[type[x509.ExtensionType], x509.ExtensionType] = {
    x509.BasicConstraints: x509.BasicConstraints(ca=False, path_length=None),
    x509.KeyUsage: certificates.usage(authority=False),
    x509.ExtendedKeyUsage: x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]),
}
