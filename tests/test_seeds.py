"""A seed and a path name a stream: the same bytes on any machine, and no two paths the same stream."""

import hashlib
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ist_fed.seeds import generator, generators, torch_generator

seeds = st.integers(0, 2**80)
paths = st.lists(st.integers(-(2**70), 2**70) | st.text(max_size=4), max_size=4).map(tuple)


def words(rng: np.random.Generator | torch.Generator) -> list[int]:
    if isinstance(rng, torch.Generator):
        return torch.randint(2**62, (4,), generator=rng).tolist()
    return rng.integers(2**62, size=4).tolist()


@pytest.mark.parametrize("make", [generator, torch_generator])
@given(seeds, paths)
def test_the_same_name_gives_the_same_stream(make: Any, seed: int, path: tuple[int | str, ...]) -> None:
    assert words(make(seed, *path)) == words(make(seed, *path))


@given(seeds, st.lists(paths, max_size=5) | st.lists(paths, min_size=10, max_size=12))
def test_many_streams_at_once_are_those_that_numpy_makes(seed: int, several: list[tuple[int | str, ...]]) -> None:
    alone = [generator(seed, *path).bit_generator.state for path in several]
    assert [each.bit_generator.state for each in generators(seed, several)] == alone


@given(st.integers(0, 2**32 - 1), paths)
def test_a_stream_is_that_of_the_paths_json(seed: int, path: tuple[int | str, ...]) -> None:
    digest = hashlib.sha256(json.dumps(path).encode()).digest()
    own = np.random.SeedSequence([seed, *np.frombuffer(digest, dtype="<u4")])
    assert words(generator(seed, *path)) == words(np.random.default_rng(own))


@pytest.mark.parametrize("make", [generator, torch_generator])
@given(seeds, paths, seeds, paths)
def test_another_name_gives_another_stream(make: Any, seed: int, path: Any, other_seed: int, other_path: Any) -> None:
    same = (seed, path) == (other_seed, other_path)
    assert (words(make(seed, *path)) == words(make(other_seed, *other_path))) is same


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((1,), ("1",)),
        (("a", "b"), ("a/b",)),
        (("a", "b"), ("a/str:b",)),
        (("a", "b"), ("ab",)),
        ((1, 23), (12, 3)),
        ((), ("",)),
        ((1, 2), (2, 1)),
    ],
)
def test_names_that_look_alike_are_told_apart(one: tuple[int | str, ...], other: tuple[int | str, ...]) -> None:
    assert words(generator(0, *one)) != words(generator(0, *other))


def test_streams_of_neighbouring_rounds_are_not_correlated() -> None:
    draws = np.stack([generator(0, round, "assign").standard_normal(400) for round in range(50)])
    correlations = np.corrcoef(draws)[np.triu_indices(50, k=1)]
    assert abs(correlations).max() < 5 / np.sqrt(400)  # of 1225 pairs none beyond five standard deviations


def test_nothing_global_is_read_or_changed() -> None:
    numpy_state, torch_state = np.random.get_state()[1].copy(), torch.get_rng_state()  # type: ignore[index, union-attr]
    words(generator(3, "x")), words(torch_generator(3, "x"))
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # type: ignore[index]
    assert torch.equal(torch.get_rng_state(), torch_state)


def test_a_negative_seed_is_refused() -> None:
    with pytest.raises(ValueError, match="non-negative"):
        generator(-1)


def test_streams_are_the_pinned_ones(golden: Callable[[str, Any], None]) -> None:
    rng = generator(7, 3, "assign")
    golden(
        "seeds",
        {
            "integers": rng.integers(2**62, size=4).tolist(),
            "permutation": rng.permutation(16).tolist(),
            "uniform": [value.hex() for value in rng.random(4)],
            "big seed": words(generator(2**70, "ü", -1)),
            "torch": words(torch_generator(7, 3, "batches")),
        },
    )
