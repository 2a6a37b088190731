"""Cut one dataset into clients' shares, with NumPy and the partitioners of `flwr-datasets`; nothing is downloaded."""

import os
import warnings
from math import inf
from typing import Literal, get_args

import numpy as np

from ist_fed.errors import TaskError

Split = Literal["iid", "dirichlet", "sorted"]

_SHARDS = 2  # that each client gets of `sorted`


def partition(labels: np.ndarray, clients: int, split: Split, alpha: float, seed: int) -> list[np.ndarray]:
    """Deal examples out to clients.

    Args:
        labels: class of each example, `(examples,)`.
        clients: how many shares.
        split: `iid` deals a shuffled deck; `dirichlet` draws how each class is shared among them from Dirichlet(alpha);
            `sorted` sorts by class, cuts that into twice as many shards as clients, and deals each client two.
        alpha: concentration; small is uneven (0.1: a few classes each), large is even.
        seed: of the draw.

    Returns:
        Indices of each client's examples, disjoint; every client has at least two.

    Raises:
        TaskError: a share would have fewer than two examples, or an argument is out of its range.

    Source: Yurochkin et al., ICML 2019, section 4 (Dirichlet); McMahan et al., AISTATS 2017, section 3 (sorted).
    """
    least = 2  # BatchNorm cannot train on one example
    check_split(split, alpha, seed)
    if clients < 1:
        raise TaskError(f"examples are dealt to at least one client, but there are {clients}")
    if clients * least > len(labels):
        raise TaskError(
            f"every client needs at least {least} examples, but {len(labels)} are too few for {clients} clients; "
            f"use at most {len(labels) // least}"
        )
    if split == "sorted":
        return _sorted_shards(labels, clients, np.random.default_rng(seed))
    order = np.random.default_rng(seed).permutation(len(labels))
    if split == "iid":  # as flwr-datasets' IidPartitioner, which takes seconds to import and 200 MB
        return np.array_split(order, clients)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing here may reach for a network
    try:
        from datasets import Dataset
        from flwr_datasets.partitioner import DirichletPartitioner
    except ImportError as error:
        raise TaskError("dealing examples out needs flwr-datasets: pip install 'ist-fed[tasks]'") from error
    made = DirichletPartitioner(clients, "label", alpha, min_partition_size=least, self_balancing=False, seed=seed)
    made.dataset = Dataset.from_dict({"index": order, "label": labels[order]})
    try:
        with warnings.catch_warnings(action="ignore"):  # it warns at every redraw, a page long
            return [np.asarray(made.load_partition(client)["index"]) for client in range(clients)]
    except ValueError as error:
        raise TaskError(
            f"Dirichlet(alpha={alpha}) leaves one of {clients} clients with fewer than {least} of {len(labels)} "
            f"examples, however often it is drawn; use a larger alpha or fewer clients"
        ) from error


def _sorted_shards(labels: np.ndarray, clients: int, rng: np.random.Generator) -> list[np.ndarray]:
    """No partitioner of `flwr-datasets` deals out every example so."""
    order = rng.permutation(len(labels))
    shards = np.array_split(order[np.argsort(labels[order], kind="stable")], _SHARDS * clients)
    dealt = rng.permutation(len(shards)).reshape(clients, _SHARDS)
    return [np.concatenate([shards[shard] for shard in hand]) for hand in dealt]


def check_client(client: int, clients: int) -> None:
    """Refuse a client that there is not.

    Raises:
        TaskError: its number is not below how many there are.
    """
    if not 0 <= client < clients:
        raise TaskError(f"clients are numbered from 0 to below {clients}, how many there are; {client} was asked for")


def check_split(split: str, alpha: float, seed: int) -> None:
    """Refuse a split that cannot be drawn; tasks call it when they are made, so that the mistake shows at once.

    Raises:
        TaskError: there is no such split, or a number is out of its range.
    """
    if split not in get_args(Split):
        raise TaskError(f"partition must be one of {', '.join(get_args(Split))}, but is {split!r}")
    if type(alpha) not in (int, float) or not 0 < alpha < inf:
        raise TaskError(f"alpha must be a positive number, but is {alpha!r}")
    if type(seed) is not int or seed < 0:
        raise TaskError(f"partition_seed must be a whole number, not negative, but is {seed!r}")
