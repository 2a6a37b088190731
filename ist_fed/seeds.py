"""Randomness as an argument: one seed and a path name one stream, the same on any machine and after a restart."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import numpy as np
import torch

_WORD = np.dtype("<u4")


def generator(seed: int, *path: int | str) -> np.random.Generator:
    """The NumPy stream named by `path`, for example `generator(seed, round, "assign")`.

    Args:
        seed: a non-negative integer, the scenario's seed.
        path: integers and strings; two different paths give independent streams.
    """
    return np.random.Generator(np.random.PCG64(_sequence(seed, path)))


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


def _sequence(seed: int, path: tuple[int | str, ...]) -> np.random.SeedSequence:
    # JSON keeps ("1",) apart from (1,), and ("a/b",) from ("a", "b").
    digest = hashlib.sha256(json.dumps(path).encode()).digest()
    return np.random.SeedSequence(np.frombuffer(_words(seed) + digest, dtype=_WORD))


@cache
def _words(seed: int) -> bytes:
    """The seed in words, as NumPy would take it apart; given whole, it takes twice as long over it."""
    if seed < 0:
        raise ValueError(f"a seed must be non-negative, but is {seed}")
    return seed.to_bytes(4 * max(1, -(-seed.bit_length() // 32)), "little")
