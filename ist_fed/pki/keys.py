"""Elliptic-curve keys: what they look like on disk, and what they sign."""

import base64
import hashlib

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_ssh_private_key,
    load_ssh_public_key,
)

from ist_fed.errors import PkiError

PrivateKey = ec.EllipticCurvePrivateKey
PublicKey = ec.EllipticCurvePublicKey

PASSPHRASE = (12, 1023)
"""Bytes of the shortest and longest passphrase. PKCS#8 as `cryptography` writes it stretches a passphrase with 2048
rounds of PBKDF2 only, so that a short one would soon be guessed; OpenSSL takes no longer one."""

MALFORMED = (ValueError, TypeError, UnsupportedAlgorithm, NotImplementedError, IndexError)
"""What `cryptography` raises when a key is not as it should be."""


def check_passphrase(passphrase: bytes) -> None:
    """Check that a passphrase may encrypt the authority's key.

    Raises:
        PkiError: it is too short or too long.
    """
    shortest, longest = PASSPHRASE
    if not shortest <= len(passphrase) <= longest:
        raise PkiError(
            f"the passphrase of the CA key has {shortest} to {longest} bytes, but this one has {len(passphrase)}; "
            f"choose several words"
        )


def authority_key_text(key: PrivateKey, passphrase: bytes) -> bytes:
    """A private key as PKCS#8, encrypted."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(passphrase))


def server_key_text(key: PrivateKey) -> bytes:
    """A private key as gRPC reads it: PKCS#8, not encrypted."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def client_key_text(key: PrivateKey) -> bytes:
    """A private key as Flower's SuperNode reads it: OpenSSH, not encrypted."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())


def load_authority_key(text: bytes, passphrase: bytes) -> PrivateKey:
    """Read an authority's private key.

    Raises:
        PkiError: it is none, or the passphrase does not open it.
    """
    try:
        return _elliptic(load_pem_private_key(text, passphrase))
    except MALFORMED as error:
        raise PkiError("the passphrase does not open the CA key; try again, or restore ca.key from a backup") from error


def load_server_key(text: bytes) -> PrivateKey:
    """Read a server's private key.

    Raises:
        PkiError: it is none.
    """
    try:
        return _elliptic(load_pem_private_key(text, None))
    except MALFORMED as error:
        raise PkiError(f"an unencrypted private key in PKCS#8 is wanted, but this is none: {error}") from error


def load_client_key(text: bytes) -> PrivateKey:
    """Read a private key of a client, OpenSSH.

    Raises:
        PkiError: it is none, or not on the curve P-384.
    """
    try:
        key = _elliptic(load_ssh_private_key(text, None))
    except MALFORMED as error:
        raise PkiError(
            f"an unencrypted private key in OpenSSH's format is wanted, but this is none: {error}"
        ) from error
    if not isinstance(key.curve, ec.SECP384R1):
        raise PkiError("a client's key is on the curve P-384, but this one is not")
    return key


def _elliptic(key: object) -> PrivateKey:
    if not isinstance(key, PrivateKey):
        raise PkiError(f"an elliptic-curve key is wanted, but this is {type(key).__name__}")
    return key


def public_text(key: PublicKey) -> str:
    """A public key in OpenSSH's one line, without a comment: two keys are the same if their texts are."""
    return key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


def load_public(text: str) -> PublicKey:
    """Read a client's public key.

    Raises:
        PkiError: it is none on the curve P-384, or has more in it than the key.
    """
    try:
        key = load_ssh_public_key(text.encode())
    except MALFORMED as error:
        raise PkiError(f"a public key is one line in OpenSSH's format, but is {text[:80]!r}") from error
    if not isinstance(key, PublicKey) or not isinstance(key.curve, ec.SECP384R1) or public_text(key) != text:
        raise PkiError(f"a public key is 'ecdsa-sha2-nistp384 …' and nothing else, but is {text[:80]!r}")
    return key


def public_fingerprint(text: str) -> str:
    """What `ssh-keygen -lf` prints for a public key: for people to compare."""
    digest = hashlib.sha256(base64.b64decode(text.split()[1])).digest()
    return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")


def sign(key: PrivateKey, data: bytes) -> str:
    """A signature, ECDSA with SHA-384, in base64."""
    return base64.b64encode(key.sign(data, ec.ECDSA(hashes.SHA384()))).decode()


def is_signed(key: PublicKey, data: bytes, signature: str) -> bool:
    """Whether a signature over these bytes is this key's."""
    try:
        key.verify(base64.b64decode(signature, validate=True), data, ec.ECDSA(hashes.SHA384()))
    except (InvalidSignature, ValueError):
        return False
    return True
