"""Cut one dataset into clients' shares, with the partitioners of `flwr-datasets`; nothing is downloaded."""

import os
import warnings
from typing import Literal

import numpy as np

from ist_fed.errors import TaskError

Split = Literal["iid", "dirichlet"]


def partition(labels: np.ndarray, clients: int, split: Split, alpha: float, seed: int) -> list[np.ndarray]:
    """Deal examples out to clients.

    Args:
        labels: class of each example, `(examples,)`.
        clients: how many shares.
        split: `iid` deals a shuffled deck; `dirichlet` draws each client's mix of classes from Dirichlet(alpha).
        alpha: concentration; small is uneven (0.1: one or two classes each), large is even.
        seed: of the draw.

    Returns:
        Indices of each client's examples, disjoint; every client has at least two.

    Raises:
        TaskError: a share would be empty.

    Source: Hsu, Qi, Brown, 2019 (Dirichlet).
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing here may reach for a network
    from datasets import Dataset
    from flwr_datasets.partitioner import DirichletPartitioner, IidPartitioner, Partitioner

    least = 2  # BatchNorm cannot train on one example
    if clients * least > len(labels):
        raise TaskError(f"{len(labels)} examples are too few for {clients} clients with at least {least} each")
    order = np.random.default_rng(seed).permutation(len(labels))
    made: Partitioner
    if split == "iid":
        made = IidPartitioner(num_partitions=clients)
    elif split == "dirichlet":
        made = DirichletPartitioner(clients, "label", alpha, min_partition_size=least, self_balancing=False, seed=seed)
    else:
        raise TaskError(f"partition must be 'iid' or 'dirichlet', but is '{split}'")
    made.dataset = Dataset.from_dict({"index": order, "label": labels[order]})
    try:
        with warnings.catch_warnings(action="ignore"):  # it warns at every redraw, a page long
            return [np.asarray(made.load_partition(client)["index"]) for client in range(clients)]
    except ValueError as error:
        raise TaskError(
            f"Dirichlet(alpha={alpha}) leaves one of {clients} clients with fewer than {least} of {len(labels)} "
            f"examples, however often it is drawn; use a larger alpha or fewer clients"
        ) from error
