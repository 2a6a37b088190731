"""Shamir's secret sharing over the field of 2⁵²¹ − 1, a Mersenne prime: any t shares give the secret, fewer nothing.

Source: Shamir, How to share a secret, CACM 22(11), 1979.
"""

import secrets
from collections.abc import Mapping, Sequence
from functools import lru_cache

PRIME = (1 << 521) - 1
SHARE_BYTES = 66


def split(secret: bytes, threshold: int, shares: int) -> list[bytes]:
    """Shares of a secret of 32 bytes; share i stands for x = i + 1."""
    assert len(secret) == 32
    assert 1 <= threshold <= shares
    coefficients = [int.from_bytes(secret), *(secrets.randbelow(PRIME) for _ in range(threshold - 1))]
    return [_value(coefficients, x).to_bytes(SHARE_BYTES) for x in range(1, shares + 1)]


def combine(shares: Mapping[int, bytes]) -> bytes | None:
    """The secret of shares by their numbers, counted from 0; None if they are of no secret of 32 bytes."""
    weights = _weights(tuple(shares))
    secret = sum(weight * int.from_bytes(share) for weight, share in zip(weights, shares.values(), strict=True)) % PRIME
    return secret.to_bytes(32) if secret < 1 << 256 else None


def _value(coefficients: Sequence[int], x: int) -> int:
    value = 0
    for coefficient in reversed(coefficients):
        value = (value * x + coefficient) % PRIME
    return value


@lru_cache(maxsize=64)
def _weights(numbers: tuple[int, ...]) -> tuple[int, ...]:
    """Lagrange's at x = 0; the secrets of one round are put together from the same members' shares."""
    weights = []
    for own in numbers:
        above = below = 1
        for other in numbers:
            if other != own:
                above, below = above * (other + 1) % PRIME, below * (other - own) % PRIME
        weights.append(above * pow(below, -1, PRIME) % PRIME)
    return tuple(weights)
