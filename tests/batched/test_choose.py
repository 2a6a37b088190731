"""Which way is chosen, and what it is chosen by."""

import numpy as np
import pytest
import tiny
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from ist_fed.batched import Choice, Job, Pool, Way
from ist_fed.batched.choose import LARGE, choose, pays, pays_in_data
from ist_fed.batched.probe import factorable, probe
from ist_fed.batches import batches, first_batches
from ist_fed.models import cnn, mlp
from ist_fed.seeds import generator
from ist_fed.tasks import Batch
from ist_fed.train import Training

SGD, ADAM = Training(), Training(optimizer="adam")
BATCH = (torch.rand(16, 784), torch.randint(10, (16,)))


class Wide(tiny.Tiny):
    """The workload of a federation of many small clients."""

    def build(self, **sizes: int) -> nn.Module:
        return mlp(784, 10, "none")(**sizes)


def chosen(
    width: int,
    steps: int,
    training: Training = SGD,
    memory: int = 1 << 28,
    examples: int = 64,
    only: Way | None = None,
) -> Choice:
    task = Wide()
    job = Job((("a", width), ("b", width)), 16, examples, steps, training)
    return choose(task.build(a=width, b=width), task, BATCH, job, memory, only)


def test_few_steps_are_factored_and_the_first_layer_is_written_in_terms_of_the_examples() -> None:
    choice = chosen(512, steps=4)
    assert (choice.way, choice.in_data, choice.factored) == ("factored", "1", {"4"})


def test_many_steps_are_not() -> None:
    assert chosen(64, steps=500, examples=2000).way == "stacked"


def test_with_more_examples_than_inputs_the_first_layer_is_a_factored_one_like_others() -> None:
    choice = chosen(512, steps=4, examples=1000)
    assert (choice.in_data, choice.factored) == ("", {"1", "4"})


def test_adam_is_stacked_while_weights_stay_in_a_cache() -> None:
    assert chosen(50, steps=4, training=ADAM).way == "stacked"
    assert chosen(512, steps=4, training=ADAM).way == "one by one"
    assert sum(p.numel() for p in Wide().build(a=512, b=512).parameters()) > LARGE


def test_no_more_at_once_than_memory_holds() -> None:
    few, many = (chosen(50, steps=4, memory=memory).at_once for memory in (1 << 24, 1 << 28))
    assert 10 * few < many < 20 * few
    assert chosen(50, steps=4, memory=1).at_once == 1


def test_what_is_made_of_images_counts_as_memory() -> None:
    """A small network of large images: its weights are nothing beside what it makes of them."""

    class Images(tiny.Tiny):
        def build(self, **sizes: int) -> nn.Module:
            return cnn((1, 28, 28), 10, "none", "global")(**sizes)

    images = (torch.rand(16, 1, 28, 28), torch.randint(10, (16,)))
    job = Job((("conv1", 8),), 16, 64, 4, SGD)
    made = 4 * 16 * 8 * (2 * 28 * 28 + 14 * 14 * 3)  # before and after ReLU, halved with int64 places
    for only in ("stacked", None):
        at_once = choose(Images().build(conv1=8), Images(), images, job, 1 << 28, only).at_once
        assert (1 << 28) / (3 * made) < at_once < (1 << 28) / made


def test_the_one_way_asked_for_is_taken() -> None:
    assert chosen(512, steps=4, only="one by one").way == "one by one"
    assert chosen(512, steps=4, only="stacked").way == "stacked"
    assert chosen(50, steps=400, only="factored").way == "factored"
    assert chosen(50, steps=4, training=ADAM, only="factored").way == "stacked"


@pytest.mark.parametrize("steps", [1, 4, 16, 64, 256])
def test_a_layer_that_pays_at_some_steps_pays_at_fewer_and_when_wider(steps: int) -> None:
    narrow, wide = nn.Linear(64, 64), nn.Linear(512, 512)
    assert pays(wide, 16, steps) or not pays(narrow, 16, steps)
    assert pays(wide, 16, steps) or not pays(wide, 16, steps + 1)
    jobs = [Job((), 16, examples, steps, SGD) for examples in (8, 64, 512)]
    worth = [pays_in_data(wide, job) for job in jobs]
    assert worth == sorted(worth, reverse=True)


def test_a_tied_or_frozen_weight_is_not_factored() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    model[3].weight.requires_grad_(False)
    assert not factorable(model)


class Sum(tiny.Tiny):
    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return model(batch[0]).mean()


@pytest.mark.parametrize(
    ("layers", "reader"),
    [
        ([nn.Flatten(), nn.Linear(12, 3)], "1"),
        ([nn.Unflatten(1, (3, 4)), nn.Flatten(), nn.Linear(12, 3)], "2"),
        ([nn.LayerNorm(12), nn.Linear(12, 3)], ""),
        ([nn.Unflatten(1, (3, 4)), nn.Linear(4, 3)], ""),
        ([nn.ReLU(), nn.Linear(12, 3)], ""),
        ([nn.Conv1d(1, 1, 3), nn.Linear(10, 3)], ""),
    ],
)
def test_who_reads_the_examples(layers: list[nn.Module], reader: str) -> None:
    inputs = torch.rand(5, 1, 12) if isinstance(layers[0], nn.Conv1d) else torch.rand(5, 12)
    model = nn.Sequential(*layers).eval()
    assert probe(model, Sum(), (inputs, torch.zeros(5))).reader == reader


def test_rows_are_counted_where_a_layer_is_called_on_many_positions() -> None:
    model = nn.Sequential(nn.Unflatten(1, (3, 4)), nn.Linear(4, 3))
    assert probe(model, Sum(), (torch.rand(5, 12), torch.zeros(5))).rows == {"1": 15}


# --- Examples ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("examples", "size", "steps"), [(30, 8, 10), (30, 8, 1), (5, 8, 3), (16, 16, 2), (7, 1, 20)])
def test_the_first_batches_are_those_that_come_one_after_another(examples: int, size: int, steps: int) -> None:
    drawn = batches(examples, size, np.random.default_rng(3))
    first = first_batches(examples, size, steps, np.random.default_rng(3))
    assert first.tolist() == [next(drawn).tolist() for _ in range(steps)]


class Listed(Dataset[Batch]):
    """A dataset that gives its examples one by one."""

    def __init__(self, inputs: Tensor, targets: Tensor) -> None:
        self.examples = list(zip(inputs, targets, strict=True))

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Batch:
        return self.examples[index]


def test_a_pool_gives_each_client_its_own_examples_in_its_own_order() -> None:
    pool, data = Pool(torch.device("cpu")), {}
    for client, examples in ((3, 10), (1, 20), (7, 10)):
        data[client] = (torch.rand(examples, 4), torch.randint(3, (examples,)))
        pool.add(client, (Listed if client == 1 else TensorDataset)(*data[client]))
    pool.add(9, TensorDataset(torch.rand(0, 4), torch.randint(3, (0,))))
    assert (pool.examples(1), pool.examples(9), 9 in pool, 8 in pool) == (20, 0, True, False)
    orders = pool.orders([7, 1], 5, 3, seed=2, round=4)
    examples = pool.in_data([7, 1], orders)
    for at, client in enumerate((7, 1)):
        alone = batches(len(data[client][0]), 5, generator(2, 4, "batches", client))
        assert torch.equal(examples.rows[at], data[client][0])
        count = len(data[client][0])
        everything = torch.arange(count).expand(2, -1)
        ours = examples.alike(everything, everything)[at]
        assert torch.allclose(ours, data[client][0] @ data[client][0].T)
        for step in range(3):
            order = next(alone)
            assert torch.equal(pool.batch(orders[step])[0][at], data[client][0][order])
            assert torch.equal(pool.batch(orders[step])[1][at], data[client][1][order])
            assert torch.equal(pool.batch_in_data(orders[step])[1][at], data[client][1][order])
            assert examples.orders[step, at].tolist() == order.tolist()


def test_a_client_that_comes_alone_after_the_others_has_its_examples_there() -> None:
    pool = Pool(torch.device("cpu"))
    pool.add(0, TensorDataset(torch.zeros(3, 2), torch.zeros(3)))
    pool.one(0, 3)
    pool.add(1, TensorDataset(torch.ones(3, 2), torch.ones(3)))
    assert pool.one(1, 3)[0].tolist() == [[1, 1]] * 3
