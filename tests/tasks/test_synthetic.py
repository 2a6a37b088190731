"""Synthetic examples: the same whenever they are drawn, of the shape asked for, and something to learn in them."""

import pytest
import torch

from ist_fed import Task, infer
from ist_fed.errors import TaskError
from ist_fed.evaluate import evaluate, ready
from ist_fed.seeds import generator, seeded
from ist_fed.symmetry import check_symmetry
from ist_fed.tasks.synthetic import Synthetic
from ist_fed.train import Training, train

DENSE = {"features": 20, "classes": 5, "examples": 200, "test_examples": 100}
SPARSE = {"features": 500, "classes": 50, "examples": 400, "test_examples": 100, "nonzeros": 10, "noise": 0.2}


@pytest.mark.parametrize("options", [DENSE, SPARSE, {**SPARSE, "labels": 3}])
def test_the_same_examples_for_the_same_client_whenever_they_are_drawn(options: dict[str, object]) -> None:
    task = Synthetic(**options)
    assert isinstance(task, Task)
    first = task.client_data(2, 3).tensors
    for again in (task.client_data(2, 3), Synthetic(**options).client_data(2, 100_000)):
        assert all(torch.equal(one, other) for one, other in zip(first, again.tensors, strict=True))
    others = [task.client_data(1, 3), task.test_data(), task.calibration_data()]
    others.append(Synthetic(**options, seed=1).client_data(2, 3))
    assert all(not torch.equal(first[0][:50], other.tensors[0][:50]) for other in others)


def test_shapes() -> None:
    inputs, targets = Synthetic(**DENSE).client_data(0, 1).tensors
    assert (inputs.shape, targets.shape, inputs.dtype) == ((200, 20), (200,), torch.float32)
    inputs, targets = Synthetic(**SPARSE, labels=3).client_data(0, 1).tensors
    assert (inputs.shape, targets.shape, inputs.dtype) == ((400, 2, 10), (400, 3), torch.float32)
    index, values = inputs.unbind(1)
    assert torch.allclose(values.square().sum(1), torch.ones(400))
    assert bool((index == index.round()).all())
    assert 0 <= float(index.min()) <= float(index.max()) < 500


def test_examples_of_a_class_are_alike_but_for_the_noise() -> None:
    for seed in (0, 1 << 40):
        inputs, targets = Synthetic(**{**DENSE, "noise": 0.0}, seed=seed).client_data(0, 1).tensors
        for one in range(5):
            assert len(inputs[targets == one].unique(dim=0)) == 1
        assert len(inputs.unique(dim=0)) == 5
        assert set(inputs.unique().tolist()) == {-1.0, 1.0}


@pytest.mark.parametrize("options", [DENSE, {**SPARSE, "labels": 2, "norm": "batch"}])
def test_there_is_something_to_learn(options: dict[str, object]) -> None:
    task = Synthetic(**options)
    with seeded(0):
        model = task.build(hidden1=32)
    before = evaluate(ready(model, task), task, task.test_data())["accuracy"]
    train(model, task, task.client_data(0, 1), Training(lr=0.5), lr=0.5, steps=200, rng=generator(0, "b"))
    after = evaluate(ready(model, task), task, task.test_data())["accuracy"]
    assert before < 0.5
    assert after > 0.6


@pytest.mark.parametrize("options", [DENSE, SPARSE])
@pytest.mark.parametrize("norm", ["batch", "layer", "none"])
def test_its_networks_can_be_cut(options: dict[str, object], norm: str) -> None:
    task, sizes = Synthetic(**options, norm=norm), {"hidden1": 6, "hidden2": 4}
    inputs, targets = (part[:8] for part in task.test_data().tensors)
    axes = infer(task.build, sizes, task.declared)
    check_symmetry(task.build, sizes, axes, lambda model: task.loss(model, (inputs.double(), targets)))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"classes": 1}, "classes must be a whole number, at least 2"),
        ({"examples": 0}, "examples must be a whole number, at least 1"),
        ({"noise": -0.1}, "noise must be a number from 0"),
        ({"noise": 1.5, "nonzeros": 5}, "noise must be a number from 0, of sparse examples to 1"),
        ({"noise": float("nan")}, "noise must be"),
        ({"labels": 2}, "labels is 2 and nonzeros 0"),
        ({"labels": 6, "nonzeros": 5}, "labels is 6 and nonzeros 5"),
        ({"norm": "group"}, "norm must be one of"),
        ({"features": 1 << 25, "nonzeros": 3}, "numbered in float32"),
    ],
)
def test_options_out_of_range(options: dict[str, object], said: str) -> None:
    with pytest.raises(TaskError, match=said):
        Synthetic(**options)


def test_a_client_that_there_is_not() -> None:
    with pytest.raises(TaskError, match="from 0 to below 4"):
        Synthetic().client_data(4, 4)
