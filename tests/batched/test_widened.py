"""Subnets that differ by a unit train side by side, filled up with units of zeros, where that changes nothing."""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import runs
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ist_fed import rules
from ist_fed.arrays import arrays_of
from ist_fed.batched.widened import is_near, narrowed, shapes_of, stays_zero, widened
from ist_fed.models import cnn, mlp
from ist_fed.tasks import Batch
from ist_fed.train import Training

SIZES = {"hidden1": 68, "hidden2": 82}  # of three groups one has a unit more of either: 23 to 22, 28 to 27


@dataclass(frozen=True, kw_only=True)
class Built(tiny.Tiny):
    """Any factory, in float64."""

    factory: Callable[..., nn.Module]

    def build(self, **sizes: int) -> nn.Module:
        return self.factory(**sizes).double()

    def client_data(self, client: int, clients: int) -> torch.utils.data.TensorDataset:
        inputs, targets = super().client_data(client, clients).tensors
        return torch.utils.data.TensorDataset(inputs.double(), targets)


def batch(shape: tuple[int, ...] = (8, tiny.INPUTS)) -> Batch:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).double(), torch.arange(8) % tiny.CLASSES


def with_activation(activation: nn.Module) -> Callable[..., nn.Module]:
    def build(hidden1: int) -> nn.Module:
        return nn.Sequential(nn.Linear(tiny.INPUTS, hidden1), activation, nn.Linear(hidden1, tiny.CLASSES))

    return build


@pytest.mark.parametrize(
    ("factory", "stays"),
    [
        (with_activation(nn.ReLU()), True),
        (with_activation(nn.Tanh()), True),
        (with_activation(nn.Sigmoid()), False),  # of nothing it makes a half, from which the next layer learns
        (with_activation(nn.Dropout(0.5)), False),  # draws otherwise
        (with_activation(nn.Softmax(-1)), False),
        (lambda hidden1: mlp(tiny.INPUTS, tiny.CLASSES)(hidden1=hidden1), True),
        (lambda hidden1: mlp(tiny.INPUTS, tiny.CLASSES, "layer")(hidden1=hidden1), False),  # means over more units
    ],
)
def test_whether_units_of_zeros_stay_so_is_found_out(factory: Callable[..., nn.Module], stays: bool) -> None:
    assert stays_zero(Built(factory=factory), {"hidden1": 22}, {"hidden1": 23}, batch()) is stays


def test_images_are_filled_up_too_and_what_two_halves_of_a_layer_make_is_not() -> None:
    images, narrow, wide = cnn((1, 8, 8), tiny.CLASSES), {"conv1": 4, "hidden1": 8}, {"conv1": 5, "hidden1": 9}
    assert stays_zero(Built(factory=images), narrow, wide, batch((8, 1, 8, 8)))

    def gated(hidden1: int) -> nn.Module:  # zeros behind the second half move where the halves meet
        return nn.Sequential(nn.Linear(tiny.INPUTS, 2 * hidden1), nn.GLU(), nn.Linear(hidden1, tiny.CLASSES))

    assert not stays_zero(Built(factory=gated), {"hidden1": 22}, {"hidden1": 23}, batch())


def test_arrays_come_back_from_being_widened() -> None:
    small, large = (mlp(3, 2)(hidden1=units) for units in (4, 5))
    own = arrays_of(small)
    there = {name: array[0] for name, array in widened([own], shapes_of(arrays_of(large))).items()}
    assert shapes_of(there) == shapes_of(arrays_of(large))
    assert tiny.same(narrowed(there, shapes_of(own)), own)
    assert sum(int(array.count_nonzero()) for array in there.values()) == sum(
        int(array.count_nonzero()) for array in own.values()
    )


def test_what_is_near() -> None:
    assert is_near({"a": 51, "b": 20}, {"a": 52, "b": 20})
    assert not is_near({"a": 51, "b": 21}, {"a": 52, "b": 20})
    assert not is_near({"a": 10}, {"a": 11})
    assert not is_near({"block": 0}, {"block": 1})
    assert not is_near({"a": 51}, {"a": 52, "b": 20})


@settings(max_examples=25, deadline=None)
@given(
    norm=st.sampled_from(["batch", "layer", "none"]),
    training=st.builds(
        Training,
        optimizer=st.sampled_from(["sgd", "sgd", "adamw"]),
        lr=st.sampled_from([0.01, 0.1]),
        momentum=st.sampled_from([0.0, 0.9]),
        weight_decay=st.sampled_from([0.0, 0.01]),
        batch_size=st.sampled_from([4, 8]),
        clip_norm=st.sampled_from([0.0, 0.3]),
        rescale=st.sampled_from(["none", "full"]),
    ),
    clients=st.integers(3, 7),
    steps=st.integers(1, 4),
)
def test_side_by_side_is_one_by_one(norm: str, training: Training, clients: int, steps: int) -> None:
    task, rule = Built(factory=mlp(tiny.INPUTS, tiny.CLASSES, norm)), rules.Disjoint(groups=3, min_units=1)
    reports = [
        runs.train_on(
            runs.local_grid(task, clients, only), task, rule, sizes=SIZES, training=training, local_steps=steps
        )
        for only in ("one by one", "stacked", "factored")
    ]
    for alone, *others in zip(*reports, strict=True):
        for other in others:
            assert other.merged == alone.merged
            for name, array in alone.arrays.items():
                assert (other.arrays[name].double() - array.double()).abs().max() < 1e-10


@pytest.mark.parametrize(("norm", "jobs"), [("batch", 1), ("layer", 3)])
def test_subnets_of_three_sizes_are_one_job_where_they_can_be(
    norm: str, jobs: int, caplog: pytest.LogCaptureFixture
) -> None:
    task = Built(factory=mlp(tiny.INPUTS, tiny.CLASSES, norm))
    with caplog.at_level(logging.INFO, logger="ist_fed.engine"):
        runs.train_on(runs.local_grid(task, 6, "stacked"), task, rules.Disjoint(groups=3, min_units=1), sizes=SIZES)
    said = [record.message for record in caplog.records if "train stacked" in record.message]
    assert len(said) == jobs
    assert "'hidden1': 23, 'hidden2': 28" in said[0]
