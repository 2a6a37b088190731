"""Randomness as an argument: one seed and a path name one stream, the same on any machine and after a restart."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache, lru_cache

import numpy as np
import torch
from numpy.random.bit_generator import ISeedSequence
from numpy.typing import NDArray

_WORD, _HALF = np.dtype("<u4"), np.uint32(16)
_MANY = 10
Path = tuple[int | str, ...]
Words = NDArray[np.uint32]


def generator(seed: int, *path: int | str) -> np.random.Generator:
    """The NumPy stream named by `path`, for example `generator(seed, round, "assign")`.

    Args:
        seed: a non-negative integer, the scenario's seed.
        path: integers and strings; two different paths give independent streams.
    """
    return np.random.Generator(np.random.PCG64(_sequence(seed, path)))


def generators(seed: int, paths: Sequence[Path]) -> list[np.random.Generator]:
    """Of each path its `generator`; of many in a third of the time."""
    if len(paths) < _MANY:
        return [generator(seed, *path) for path in paths]
    entropy = np.frombuffer(b"".join([_entropy(seed, path) for path in paths]), dtype=_WORD)
    words = _spread(np.ascontiguousarray(entropy.reshape(len(paths), -1).T))
    return [np.random.Generator(np.random.PCG64(_Seed(each))) for each in words]  # type: ignore[arg-type]  # its stub


def torch_generator(seed: int, *path: int | str) -> torch.Generator:
    """The same for torch: a CPU generator, so that draws do not depend on the device."""
    word = _sequence(seed, path).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(word) >> 1)  # manual_seed takes a signed 64-bit integer


@contextmanager
def seeded(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """Let what torch draws without a generator (first weights, dropout) come from `seed`; after it, all is as before.

    `torch.random.fork_rng` with `torch.manual_seed` does the same and takes a millisecond, for it also looks after
    accelerators that are not there.

    Args:
        seed: 0 to 2⁶³ − 1.
        device: seed the generator of this device as well as the processor's.
    """
    generators = [torch.default_generator]
    if device is not None and device.type == "cuda":
        torch.cuda.init()  # type: ignore[no-untyped-call]
        generators.append(torch.cuda.default_generators[device.index or 0])
    before = [each.get_state() for each in generators]
    for each in generators:
        each.manual_seed(seed)
    try:
        yield
    finally:
        for each, state in zip(generators, before, strict=True):
            each.set_state(state)


def _sequence(seed: int, path: Path) -> np.random.SeedSequence:
    return np.random.SeedSequence(np.frombuffer(_entropy(seed, path), dtype=_WORD))


def _entropy(seed: int, path: Path) -> bytes:
    # JSON keeps ("1",) apart from (1,), and ("a/b",) from ("a", "b").
    return _words(seed) + hashlib.sha256(f"[{', '.join(map(_json, path))}]".encode()).digest()


@lru_cache(maxsize=4096, typed=True)
def _json(part: int | str) -> str:
    """Each part alone: the same few come again and again, and of a whole path it takes several times as long."""
    return json.dumps(part)


@cache
def _words(seed: int) -> bytes:
    """The seed in words, as NumPy would take it apart; given whole, it takes twice as long over it."""
    if seed < 0:
        raise ValueError(f"a seed must be non-negative, but is {seed}")
    return seed.to_bytes(4 * max(1, -(-seed.bit_length() // 32)), "little")


# --- NumPy's `SeedSequence`, of many streams at once ------------------------------------------------------------------

# NumPy promises that what it makes of the same words never changes.


class _Seed(ISeedSequence):
    """The words that a generator begins with."""

    def __init__(self, words: NDArray[np.uint64]) -> None:
        self._words = words

    def generate_state(self, n_words: int, dtype: object = np.uint64) -> NDArray[np.uint64]:
        """As many as PCG64 asks for."""
        return self._words


def _spread(entropy: Words) -> NDArray[np.uint64]:
    """What `SeedSequence(column).generate_state(4, np.uint64)` gives for every column of more than four words."""
    constants = _constants(0x43B0D7E5, 0x931E8875, 4 * len(entropy))
    pool, used = _hashed(entropy[:4], constants[:5]), 4
    for at in range(4):
        others = [other for other in range(4) if other != at]
        pool[others] = _mixed(pool[others], _hashed(pool[at], constants[used : used + 4]))
        used += 3
    for word in entropy[4:]:
        pool = _mixed(pool, _hashed(word, constants[used : used + 5]))
        used += 4
    words = _hashed(np.concatenate([pool, pool]), _constants(0x8B51F9DD, 0x58F38DED, 8))
    return np.ascontiguousarray(words.T, dtype=_WORD).view("<u8")


def _constants(first: int, factor: int, count: int) -> Words:
    """A number for each word that is hashed, and one more: each the one before it times a factor."""
    return np.array([first * pow(factor, at, 1 << 32) % (1 << 32) for at in range(count + 1)], np.uint32)[:, None]


def _hashed(words: Words, constants: Words) -> Words:
    words = (words ^ constants[:-1]) * constants[1:]
    return words ^ words >> _HALF


def _mixed(pool: Words, words: Words) -> Words:
    pool = pool * np.uint32(0xCA01F9DD) - words * np.uint32(0x4973F715)
    return pool ^ pool >> _HALF
