"""Randomness as an argument: one seed and a path name one stream, the same on any machine and after a restart."""

import hashlib
import json

import numpy as np
import torch


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


def _sequence(seed: int, path: tuple[int | str, ...]) -> np.random.SeedSequence:
    # JSON keeps ("1",) apart from (1,), and ("a/b",) from ("a", "b").
    digest = hashlib.sha256(json.dumps(path).encode()).digest()
    return np.random.SeedSequence([seed, *np.frombuffer(digest, dtype="<u4").tolist()])
