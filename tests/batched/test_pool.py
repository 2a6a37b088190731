"""The pool of examples, as clients join it."""

import torch
from torch.utils.data import TensorDataset

from ist_fed.batched import Pool


def test_a_client_that_joins_alone_after_others_were_read_is_there() -> None:
    pool = Pool(torch.device("cpu"))
    for client in range(4):
        pool.add(client, TensorDataset(torch.full((3, 2), float(client)), torch.full((3,), client)))
        for known in range(client + 1):  # read in between, so that each join finds the others put together
            assert pool.one(known, 3)[1].tolist() == [known] * 3
