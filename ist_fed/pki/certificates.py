"""X.509: the authority's certificate and the server's, as strict verifiers want them (RFC 5280)."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from ist_fed.errors import PkiError
from ist_fed.pki import files
from ist_fed.pki.address import general_name
from ist_fed.pki.keys import PrivateKey, PublicKey

AUTHORITY_LIFE = timedelta(days=5 * 365)
SERVER_LIFE = timedelta(days=90)
EARLY = timedelta(minutes=5)
"""How much a client's clock may be behind."""

MALFORMED = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.ExtensionNotFound,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)
"""What `cryptography` raises when a certificate is not as it should be."""


def now() -> datetime:
    """The time, to the second, in UTC."""
    return datetime.now(UTC).replace(microsecond=0)


def issue_authority(key: PrivateKey, name: str, today: datetime) -> x509.Certificate:
    """The certificate of a federation's authority, signed by itself."""
    own = subject("ist_fed certificate authority", name)
    return (
        builder(own, own, key.public_key(), today, today + AUTHORITY_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage(authority=True), critical=True)
        .sign(key, hashes.SHA384())
    )


def issue_server(
    authority: x509.Certificate, authority_key: PrivateKey, key: PublicKey, hosts: Sequence[str], today: datetime
) -> x509.Certificate:
    """The certificate of a server.

    Args:
        authority: whose certificate signs it, and is valid today.
        authority_key: its key.
        key: the server's public key.
        hosts: DNS names and IP addresses that it answers to.
        today: when it starts to be valid; never longer than the authority.
    """
    end = min(today + SERVER_LIFE, authority.not_valid_after_utc)
    return (
        builder(subject("ist_fed server", common_name(authority)), authority.subject, key, today, end)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(usage(authority=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([general_name(host) for host in hosts]), critical=False)
        .add_extension(issued_by(authority), critical=False)
        .sign(authority_key, hashes.SHA384())
    )


def builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: PublicKey | ed25519.Ed25519PublicKey,
    start: datetime,
    end: datetime,
) -> x509.CertificateBuilder:
    """What all certificates of a federation have in common."""
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start - EARLY)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def subject(organization: str, common: str) -> x509.Name:
    """Whose certificate it is."""
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization),
            x509.NameAttribute(NameOID.COMMON_NAME, common),
        ]
    )


def common_name(certificate: x509.Certificate | x509.CertificateSigningRequest) -> str:
    """The name in a certificate; empty if there is not exactly one."""
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if len(names) == 1 else ""


def issued_by(authority: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    """The extension that names the issuer's key."""
    identifier = authority.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier)


def usage(authority: bool) -> x509.KeyUsage:
    """What a key may be used for: an authority's for certificates, any other for signatures."""
    return x509.KeyUsage(
        digital_signature=not authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )


def load(text: str) -> x509.Certificate:
    """Read one certificate in PEM.

    Raises:
        PkiError: it is none, or there is more than one in it.
    """
    try:
        certificate = x509.load_pem_x509_certificate(text.encode())
        if pem(certificate) != text:
            raise ValueError("there is more in it than one certificate")
    except MALFORMED as error:
        raise PkiError(f"a certificate in PEM is wanted, but this is none: {str(error)[:200]}") from error
    return certificate


def read(path: Path, remedy: str) -> x509.Certificate:
    """Read the one certificate in a file.

    Raises:
        PkiError: there is none; the message ends with the remedy.
    """
    try:
        return load(files.read(path).decode(errors="replace"))
    except PkiError as error:
        raise PkiError(f"the certificate '{path}' cannot be used: {error}; {remedy}") from error


def pem(certificate: x509.Certificate) -> str:
    """A certificate as text."""
    return certificate.public_bytes(Encoding.PEM).decode()


def fingerprint(certificate: x509.Certificate) -> str:
    """What `openssl x509 -fingerprint -sha256` prints for a certificate: for people to compare."""
    return certificate.fingerprint(hashes.SHA256()).hex(":").upper()


def hosts_of(certificate: x509.Certificate) -> list[str]:
    """The DNS names and IP addresses that a server's certificate is for."""
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return [str(name.value) for name in names]


def check_authority(certificate: x509.Certificate, today: datetime) -> PublicKey:
    """The public key of an authority whose certificate is as `issue_authority` makes it, and valid today.

    Raises:
        PkiError: it is not.
    """
    try:
        key = certificate.public_key()
        basic = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
        uses = certificate.extensions.get_extension_for_class(x509.KeyUsage)
        certificate.verify_directly_issued_by(certificate)
    except (*MALFORMED, InvalidSignature) as error:
        raise PkiError(f"a federation's CA signs itself, but this certificate is no such CA's: {error}") from error
    extensions = (basic.critical, basic.value, uses.critical, uses.value)
    expected = (True, x509.BasicConstraints(ca=True, path_length=0), True, usage(authority=True))
    if not isinstance(key, PublicKey) or not isinstance(key.curve, ec.SECP384R1) or extensions != expected:
        raise PkiError(
            "a federation's CA has a P-384 key and may sign servers only, but this certificate says otherwise"
        )
    _check_time("the CA's certificate", certificate, today, "start a new federation with: ist-fed provision init")
    return key


def check_server(authority: x509.Certificate, certificate: x509.Certificate, host: str, today: datetime) -> None:
    """Check that a client which trusts the authority would accept the server under this host's name.

    Raises:
        PkiError: it would not.
    """
    remedy = "make a new one with: ist-fed provision rotate"
    _check_time("the server's certificate", certificate, today, remedy)
    verifier = PolicyBuilder().store(Store([authority])).time(today).build_server_verifier(general_name(host))
    try:
        verifier.verify(certificate, [])
    except VerificationError as error:
        raise PkiError(f"clients would refuse the server's certificate for '{host}': {error}; {remedy}") from error


def _check_time(what: str, certificate: x509.Certificate, today: datetime, remedy: str) -> None:
    start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if today > end:
        raise PkiError(f"{what} expired on {end:%Y-%m-%d}; {remedy}")
    if today < start:
        raise PkiError(
            f"{what} is valid from {start:%Y-%m-%d %H:%M} UTC, but it is {today:%Y-%m-%d %H:%M}; set the clock"
        )
