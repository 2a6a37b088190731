"""Randomness as an argument: one seed and a path name one stream, the same on any machine and after a restart."""

import hashlib

import numpy as np
import torch


def _entropy(seed: int, path: tuple[int | str, ...]) -> list[int]:
    # The type is part of the text, so that ("1",) and (1,) are different streams.
    text = "/".join(f"{type(part).__name__}:{part}" for part in path)
    digest = hashlib.sha256(text.encode()).digest()
    return [seed, *np.frombuffer(digest, dtype="<u4").tolist()]


def generator(seed: int, *path: int | str) -> np.random.Generator:
    """The NumPy stream named by `path`, for example `generator(seed, round, "assign")`.

    Args:
        seed: a non-negative integer, the scenario's seed.
        path: integers and strings; two different paths give independent streams.
    """
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(_entropy(seed, path))))


def torch_generator(seed: int, *path: int | str) -> torch.Generator:
    """The same for torch: a CPU generator, so that draws do not depend on the device."""
    word = np.random.SeedSequence(_entropy(seed, path)).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(word) >> 1)  # manual_seed takes a signed 64-bit integer
