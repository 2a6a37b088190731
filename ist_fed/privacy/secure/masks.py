"""Masks: the keystream of ChaCha20, added to and taken from vectors over the ring of 2³²."""

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms

Ring = np.ndarray
"""Numbers modulo 2³², dtype uint32."""

LONGEST = 1 << 30
"""Numbers in a vector; ChaCha20 comes round after 2³⁶."""

_CHUNK = 1 << 16  # numbers; what is made of them on the way stays in a processor's cache
_ZEROS = bytes(4 * _CHUNK)


def add_mask(vector: Ring, key: bytes, *, subtract: bool = False) -> None:
    """Add the mask of a key to a vector, in place; or take it away.

    Args:
        vector: of one dimension.
        key: 32 bytes, used for this mask and nothing else.
        subtract: take it away.
    """
    assert vector.dtype == np.uint32
    assert vector.size <= LONGEST
    stream, combine, mask = keystream(key), np.subtract if subtract else np.add, bytearray(4 * _CHUNK)
    for start in range(0, vector.size, _CHUNK):
        part = vector[start : start + _CHUNK]
        stream.update_into(memoryview(_ZEROS)[: part.nbytes], mask)
        combine(part, np.frombuffer(mask, dtype="<u4", count=part.size), out=part)


def keystream(key: bytes) -> CipherContext:
    """The keystream of a key, as what encrypts zeros."""
    return Cipher(algorithms.ChaCha20(key, bytes(16)), None).encryptor()
