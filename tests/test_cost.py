"""What a network costs a client, against what it is measured to take."""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import peak
import pytest
import tiny
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from ist_fed.cost import cost
from ist_fed.errors import AxesError, TaskError, TrainingError
from ist_fed.train import Training
from ist_fed.worker import Worker

WIDE = {"a": 2000, "b": 2000}
STATELESS = Training(momentum=0.0)


# --- Memory: within a quarter of what is measured ---------------------------------------------------------------------


def measured(
    norm: str, sizes: Mapping[str, int], training: Mapping[str, Any], amp: str | None = None, model: str = "mlp"
) -> None:
    """Train in a process of its own, and compare its estimate with what it grew by."""
    asked = json.dumps({"norm": norm, "sizes": sizes, "training": training, "amp": amp, "model": model})
    command = [sys.executable, str(Path(peak.__file__)), asked]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=250)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["measured"] > 20 << 20, said
    assert abs(said["estimate"] - said["measured"]) <= 0.25 * said["measured"], said


on_linux = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from Linux's /proc")


@on_linux
def test_the_estimate_is_within_a_quarter_of_the_measured_peak() -> None:
    measured("batch", {"a": 1500, "b": 1500}, {"optimizer": "adam"})


@on_linux
def test_the_same_for_convolutions() -> None:
    measured("batch", {"conv1": 32, "conv2": 64, "hidden1": 256}, {"batch_size": 128}, model="cnn")


@pytest.mark.slow
@on_linux
@pytest.mark.parametrize(
    ("model", "norm", "sizes", "training"),
    [
        ("cnn", "none", {"conv1": 32, "conv2": 64, "conv3": 128, "hidden1": 4000}, {"optimizer": "adam"}),
        ("cnn", "layer", {"conv1": 64, "conv2": 64}, {"batch_size": 64}),
        ("resnet", "batch", {"mid1": 64, "mid2": 64}, {"batch_size": 64}),
    ],
)
def test_the_same_for_more_convolutions(model: str, norm: str, sizes: dict[str, int], training: dict[str, Any]) -> None:
    measured(norm, sizes, training, model=model)


@pytest.mark.slow
@on_linux
@pytest.mark.parametrize(
    ("norm", "sizes", "training", "amp"),
    [
        ("none", {"a": 2500, "b": 2500}, {"momentum": 0.0}, None),
        ("batch", {"a": 5000, "b": 5000}, {"momentum": 0.9}, None),
        ("layer", {"a": 2500, "b": 2500}, {"optimizer": "adamw", "weight_decay": 0.1}, None),
        ("batch", {"a": 2500, "b": 2500}, {"optimizer": "adam", "weight_decay": 0.1}, None),
        ("batch", {"a": 1000, "b": 1000, "c": 1000}, {"batch_size": 4096}, None),
        ("layer", {"a": 2000, "b": 500}, {"batch_size": 2048, "clip_norm": 1.0}, None),
        ("batch", {"a": 6000}, {"batch_size": 512, "weight_decay": 0.1}, None),
        ("batch", {"a": 2500, "b": 2500}, {"momentum": 0.9}, "bf16"),
        ("batch", {"a": 1000, "b": 1000, "c": 1000}, {"batch_size": 4096}, "bf16"),
    ],
)
def test_the_same_for_more_networks(
    norm: str, sizes: dict[str, int], training: dict[str, Any], amp: str | None
) -> None:
    measured(norm, sizes, training, amp)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("amp", [None, "bf16", "fp16"])
@pytest.mark.parametrize("training", [{"momentum": 0.0}, {"optimizer": "adam"}, {"batch_size": 4096}])
def test_the_same_on_a_gpu(training: dict[str, Any], amp: Any) -> None:
    task, described = peak.Wide("batch"), Training(**training)
    data, sizes = task.client_data(0, 1), {"a": 3000, "b": 3000}
    worker = Worker(task, data, client=0, device="cuda", amp=amp)
    worker.train(peak.order(task, dict.fromkeys(sizes, 16), described))  # what CUDA's libraries take once
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    assert "error" not in worker.train(peak.order(task, sizes, described)).content["reply"]
    taken = torch.cuda.max_memory_allocated() - before
    estimate = cost(task, sizes, described, data=data, device="cuda", amp=amp).memory
    assert abs(estimate - taken) <= 0.25 * taken


# --- What it says -----------------------------------------------------------------------------------------------------


def test_what_can_be_counted_by_hand() -> None:
    """Parameters and bytes of an MLP with BatchNorm; flops of its products, in and for all but the input."""
    n, a, b = tiny.INPUTS, 40, 24
    found = cost(tiny.Tiny(), {"hidden1": a, "hidden2": b}, Training(batch_size=8))
    weights = n * a + a * b + b * tiny.CLASSES
    assert found.parameters == weights + 2 * (a + b) + tiny.CLASSES
    assert found.bytes == 4 * (found.parameters + 2 * (a + b)) + 2 * 8  # running statistics, and counters of int64
    assert found.flops == 2 * 8 * (3 * weights - n * a)


@pytest.mark.parametrize(
    ("training", "held"),
    [
        (STATELESS, 2),  # weights and gradients
        (Training(momentum=0.9), 3),
        (Training(optimizer="adam"), 4 + 2),  # and two arrays on the way, each as large as the largest weight
        (Training(optimizer="adamw"), 4 + 2),
        (Training(optimizer="adam", weight_decay=0.1), 4 + 3),
        (Training(clip_norm=1.0), 3),
    ],
)
def test_what_an_optimiser_holds(training: Training, held: int) -> None:
    """Of a network that is one large weight, on a GPU or without a wire: times the weight."""

    class One(peak.Wide):
        def build(self, **sizes: int) -> nn.Module:
            return nn.Sequential(nn.Linear(784, sizes["a"], bias=False), nn.AdaptiveAvgPool1d(10))

    task = One("none")
    data = TensorDataset(*(part[:1] for part in task.client_data(0, 1).tensors))
    found = cost(task, {"a": 10_000}, training, data=data)
    assert found.memory == pytest.approx(held * found.bytes, rel=0.01)


def test_a_batch_holds_no_more_examples_than_the_client() -> None:
    task = peak.Wide("none")
    few = TensorDataset(*(part[:10] for part in task.client_data(0, 1).tensors))
    costs = [cost(task, {"a": 50}, Training(batch_size=size), data=few) for size in (10, 1000)]
    assert costs[0] == costs[1]
    assert cost(task, {"a": 50}, Training(batch_size=5), data=few).flops == costs[0].flops / 2


def test_nothing_is_allocated_and_nothing_drawn() -> None:
    task, before = tiny.Tiny(dropout=0.5), torch.random.get_rng_state()
    enormous = cost(task, {"hidden1": 10**7, "hidden2": 10**7}, STATELESS)
    assert enormous.memory > 4 * 10**14
    assert torch.equal(torch.random.get_rng_state(), before)


def test_mixed_precision_halves_the_activations_but_copies_the_weights() -> None:
    task = peak.Wide("none")
    data = task.client_data(0, 1)
    deep = dict.fromkeys("abcdef", 500)
    for training, sizes, less in ((Training(batch_size=8000), deep, True), (Training(batch_size=1), WIDE, False)):
        plain, mixed = (cost(task, sizes, training, data=data, amp=amp).memory for amp in (None, "bf16"))
        assert (mixed < 0.8 * plain) == less
        assert cost(task, sizes, training, data=data, amp="fp16").memory == mixed


def test_a_constant_of_the_tasks_own_is_no_obstacle() -> None:
    class Weighted(tiny.Tiny):
        def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
            return nn.functional.cross_entropy(model(batch[0]), batch[1], weight=WEIGHTS)

    assert cost(Weighted(), tiny.SIZES, STATELESS).flops == cost(tiny.Tiny(), tiny.SIZES, STATELESS).flops


WEIGHTS = torch.ones(tiny.CLASSES)


# --- What is refused --------------------------------------------------------------------------------------------------


def test_a_loss_that_asks_for_numbers_cannot_be_costed() -> None:
    class Asking(tiny.Tiny):
        def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
            loss = super().loss(model, batch)
            return loss if loss.item() > 0 else 2 * loss

    with pytest.raises(TaskError, match=r"must work on arrays without numbers, as under torch.compile, .* but raised "):
        cost(Asking(), tiny.SIZES, STATELESS)


def test_no_example_has_no_shape() -> None:
    with pytest.raises(TaskError, match="at least one example, to take its shape from"):
        cost(tiny.Tiny(), tiny.SIZES, STATELESS, data=tiny.Tiny(examples=0).client_data(0, 1))


def test_a_factory_that_fails_and_batch_norm_of_one_example_are_said_as_always() -> None:
    with pytest.raises(AxesError, match="build"):
        cost(peak.Wide("none"), {"a": -1}, STATELESS, data=peak.Wide("none").client_data(0, 1))
    with pytest.raises(TrainingError, match="BatchNorm needs at least two examples"):
        cost(tiny.Tiny(), tiny.SIZES, STATELESS, data=tiny.Tiny(examples=1).client_data(0, 1))
