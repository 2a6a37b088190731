"""The pool of examples, as clients join it."""

import pytest
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from ist_fed.batched import Pool


def test_a_client_that_joins_alone_after_others_were_read_is_there() -> None:
    pool = Pool(torch.device("cpu"))
    for client in range(4):
        pool.add(client, TensorDataset(torch.full((3, 2), float(client)), torch.full((3,), client)))
        for known in range(client + 1):  # read in between, so that each join finds the others put together
            assert pool.one(known, 3)[1].tolist() == [known] * 3


def pools(apart: bool) -> tuple[Pool, Tensor, Tensor]:
    """Four clients with three examples each: slices of one tensor, or tensors of their own."""
    inputs, targets = torch.arange(24.0).view(4, 3, 2), torch.arange(12).view(4, 3)
    pool = Pool(torch.device("cpu"))
    for client in range(4):
        own = inputs[client], targets[client]
        pool.add(client, TensorDataset(*(part.clone() for part in own) if apart else own))
    return pool, inputs, targets


@pytest.mark.parametrize("apart", [False, True])
def test_batches_are_the_clients_own_wherever_their_examples_lie(apart: bool) -> None:
    pool, inputs, targets = pools(apart)
    order = pool.orders([2, 0], 2, 3, seed=1, round=1)
    for step in order:
        batch = pool.batch(step)
        assert torch.equal(batch[0], inputs.flatten(0, 1)[step])
        assert torch.equal(batch[1], targets.flatten()[step])
        assert torch.equal(pool.batch_in_data(step)[1], batch[1])
        assert pool.batch_in_data(step)[0].shape == batch[0].shape
    assert torch.equal(pool.one(3, 2)[0], inputs[3, :2])


def test_examples_that_lie_side_by_side_are_not_copied() -> None:
    pool, inputs, _ = pools(apart=False)
    assert pool._all(0).data_ptr() == inputs.data_ptr()
    pool, inputs, _ = pools(apart=True)
    assert pool._all(0).data_ptr() == pool._parts[0][0].data_ptr()  # once, not twice
    backwards = Pool(torch.device("cpu"))
    for client in (1, 0):
        backwards.add(client, TensorDataset(inputs[client], torch.zeros(3)))
    assert torch.equal(backwards._all(0), inputs[[1, 0]].flatten(0, 1))


@pytest.mark.parametrize(
    ("parts", "why"),
    [
        ([torch.ones(3, 2)], "not inputs and targets, but of 1 parts"),
        ([torch.ones(3, 2), torch.ones(3), torch.ones(3)], "not inputs and targets, but of 3 parts"),
        ([torch.tensor([[1.0], [float("nan")]]), torch.ones(2)], "not all finite"),
        ([torch.ones(2, 1), torch.tensor([1.0, float("inf")])], "not all finite"),
    ],
)
def test_examples_that_cannot_stand_beside_others_are_not_taken_in(parts: list[Tensor], why: str) -> None:
    pool = Pool(torch.device("cpu"))
    with pytest.raises(ValueError, match=why):
        pool.add(0, TensorDataset(*parts))
    assert 0 not in pool


def test_the_task_s_own_code_is_given_copies() -> None:
    pool, inputs, targets = pools(apart=False)
    for part in pool.one(1, 2):
        part.zero_()
    assert inputs[1].all()
    assert targets[1].all()
