"""Cutting one dataset into clients' shares."""

from math import ceil

import numpy as np
import pytest
from datasets import Dataset
from flwr_datasets.partitioner import IidPartitioner

from ist_fed.errors import TaskError
from ist_fed.tasks.partition import partition

LABELS = np.random.default_rng(3).integers(0, 10, 500)


def mixes(shares: list[np.ndarray]) -> np.ndarray:
    """Share of each class in each client's examples, `(clients, classes)`."""
    return np.array([np.bincount(LABELS[share], minlength=10) / len(share) for share in shares])


@pytest.mark.parametrize("split", ["iid", "dirichlet", "sorted"])
@pytest.mark.parametrize("clients", [1, 2, 7, 30])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_shares_are_disjoint_and_cover_everything(split: str, clients: int, seed: int) -> None:
    shares = partition(LABELS, clients, split, 0.5, seed)
    assert len(shares) == clients
    assert sorted(np.concatenate(shares).tolist()) == list(range(500))
    assert min(map(len, shares)) >= 2


@pytest.mark.parametrize("split", ["iid", "dirichlet", "sorted"])
def test_the_same_seed_gives_the_same_shares_and_another_others(split: str) -> None:
    one, other, third = (partition(LABELS, 5, split, 0.5, seed) for seed in (4, 4, 5))
    assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(one, third, strict=True))


def test_iid_shares_are_even_and_alike() -> None:
    shares = partition(LABELS, 7, "iid", 0.5, 0)
    assert {len(share) for share in shares} <= {71, 72}
    assert all(not np.array_equal(share, np.sort(share)) for share in shares)
    assert np.abs(mixes(shares) - mixes([np.arange(500)])).max() < 0.2


@pytest.mark.parametrize("clients", [1, 3, 8, 250])
def test_iid_shares_are_those_of_flwr_datasets(clients: int) -> None:
    made, order = IidPartitioner(num_partitions=clients), np.random.default_rng(9).permutation(500)
    made.dataset = Dataset.from_dict({"index": order})
    shares = partition(LABELS, clients, "iid", 0.5, 9)
    assert [share.tolist() for share in shares] == [list(made.load_partition(at)["index"]) for at in range(clients)]


def test_a_small_alpha_is_uneven_and_a_large_one_even() -> None:
    spread = {
        alpha: mixes(partition(LABELS, 5, "dirichlet", alpha, 0)).std(axis=0).mean() for alpha in (0.1, 1.0, 100.0)
    }
    assert spread[0.1] > 1.3 * spread[1.0] > 2.6 * spread[100.0]


@pytest.mark.parametrize("clients", [4, 7, 30])
def test_sorted_shards_are_even_and_of_few_classes(clients: int) -> None:
    shares = partition(LABELS, clients, "sorted", 0.5, 0)
    assert max(map(len, shares)) - min(map(len, shares)) <= 2
    touched = ceil(10 / (2 * clients)) + 1  # classes of one shard, which may begin and end within one
    assert all(len(set(LABELS[share])) <= 2 * touched for share in shares)


def test_nothing_global_is_drawn_from() -> None:
    np.random.seed(1)
    before = np.random.get_state()[1].copy()
    partition(LABELS, 5, "dirichlet", 0.5, 0)
    assert np.array_equal(np.random.get_state()[1], before)


@pytest.mark.parametrize(
    ("clients", "split", "alpha", "seed", "message"),
    [
        (0, "iid", 1.0, 0, "at least one client, but there are 0"),
        (251, "iid", 1.0, 0, "at least 2 examples, but 500 are too few for 251 clients; use at most 250"),
        (5, "even", 1.0, 0, "partition must be one of iid, dirichlet, sorted, but is 'even'"),
        (5, "dirichlet", 0.0, 0, "alpha must be a positive number, but is 0.0"),
        (5, "dirichlet", float("inf"), 0, "alpha must be a positive number, but is inf"),
        (5, "iid", 1.0, -1, "partition_seed must be a whole number, not negative, but is -1"),
        (100, "dirichlet", 0.01, 0, r"Dirichlet\(alpha=0.01\) leaves one of 100 clients with fewer than 2 of 500"),
    ],
)
def test_what_cannot_be_dealt_is_said(clients: int, split: str, alpha: float, seed: int, message: str) -> None:
    with pytest.raises(TaskError, match=message):
        partition(LABELS, clients, split, alpha, seed)
