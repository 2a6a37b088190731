"""Keys of one round: agreed with X25519, drawn out with HKDF-SHA256, each for one purpose and bound to the context."""

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from ist_fed.errors import ForgedIdentity

KEY_BYTES = 32
SEAL_BYTES = 16
"""By which a box is larger than what is in it."""

_ONCE = bytes(12)  # each key seals one box


def agree(own: X25519PrivateKey, other: bytes, purpose: bytes) -> bytes:
    """The key that two members share, for one purpose.

    Args:
        own: the one's private key.
        other: the other's public key.
        purpose: what the key is for, with the context in it.

    Raises:
        ForgedIdentity: the public key is none; with it anybody would know the secret.
    """
    try:
        secret = own.exchange(X25519PublicKey.from_public_bytes(other))
    except ValueError as error:
        raise ForgedIdentity("a member's key must be a point of full order, but one is not") from error
    return derive(secret, purpose)


def derive(secret: bytes | bytearray, purpose: bytes) -> bytes:
    """A key for one purpose out of a secret."""
    return HKDF(hashes.SHA256(), KEY_BYTES, salt=None, info=b"ist_fed secure 1 " + purpose).derive(secret)


def seal(key: bytes, content: bytes | bytearray, beside: bytes) -> bytes:
    """Encrypt and authenticate, once with each key."""
    return ChaCha20Poly1305(key).encrypt(_ONCE, content, beside)


def unseal(key: bytes, sealed: bytes, beside: bytes) -> bytes:
    """What is in a box.

    Raises:
        ForgedIdentity: it was not sealed by who it says.
    """
    try:
        return ChaCha20Poly1305(key).decrypt(_ONCE, sealed, beside)
    except InvalidTag as error:
        raise ForgedIdentity("a box of shares must be sealed by the member it comes from, but one is not") from error
