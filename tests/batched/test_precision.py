"""Mixed precision: the same for clients trained at once and alone, but for what it rounds."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from ist_fed import rules, wire
from ist_fed.batched import Way
from ist_fed.device import tf32_products
from ist_fed.engines.local import LocalGrid, simulate
from ist_fed.engines.simulation import simulate as by_flower
from ist_fed.errors import EngineError, TrainingError
from ist_fed.run import Run
from ist_fed.scenario import Record, Scenario
from ist_fed.train import Amp, Training, amp_of
from ist_fed.worker import Worker

CPU = torch.device("cpu")


def trained(only: Way, amp: Amp | None, training: Training, task: tiny.Tiny | None = None) -> Mapping[str, Tensor]:
    task = task or tiny.Tiny()
    grid = LocalGrid(
        6,
        lambda client: Worker(task, task.client_data(client, 6), client=client, amp=amp),
        task,
        CPU,
        only=only,
        amp=amp,
    )
    arrays = list[Mapping[str, Tensor]]()
    made = tiny.strategy(
        task, rules.Disjoint(groups=2, min_units=2), training=training, on_round=lambda r: arrays.append(r.arrays)
    )
    made.start(grid, wire.to_record(tiny.initial(task, made.sizes)), 1)
    return arrays[-1]


class Exact(tiny.Tiny):
    """In float64, which mixed precision leaves alone."""

    def build(self, **sizes: int) -> nn.Module:
        return super().build(**sizes).double()

    def client_data(self, client: int, clients: int) -> TensorDataset:
        inputs, targets = super().client_data(client, clients).tensors
        return TensorDataset(inputs.double(), targets)


def apart(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    squares = [(one[name].double() - other[name].double()).square().sum() for name in one]
    return float(torch.stack(squares).sum().sqrt())


@pytest.mark.parametrize("only", ["stacked", "factored"])
def test_float64_stays_float64(only: Way) -> None:
    alone, together = (trained(way, "bf16", Training(lr=0.1), Exact(norm="none")) for way in ("one by one", only))
    assert apart(together, alone) < 1e-12


@pytest.mark.parametrize(
    "training", [Training(lr=0.1), Training(lr=0.1, momentum=0.0, clip_norm=0.5), Training(optimizer="adam", lr=0.01)]
)
@pytest.mark.parametrize("only", ["stacked", "factored"])
def test_clients_at_once_round_as_much_as_alone_and_no_more(only: Way, training: Training) -> None:
    whole, alone = trained("one by one", None, training), trained("one by one", "bf16", training)
    together = trained(only, "bf16", training)
    rounded = apart(alone, whole)
    assert rounded > 0
    assert 0 < apart(together, whole) < 3 * rounded
    assert all(together[name].dtype == whole[name].dtype for name in whole)


def test_fp16_trains_one_by_one(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "ist_fed.engine"):
        together = trained("stacked", "fp16", Training(lr=0.1))
    assert "a factor of its own" in caplog.text
    assert apart(together, trained("one by one", "fp16", Training(lr=0.1))) == 0


SCENARIO = Scenario(
    name="mixed",
    task="digits",
    sizes={"hidden1": 32},
    rule={"name": "disjoint", "groups": 2},
    clients=4,
    rounds=2,
    local_steps=2,
    device="cpu",
    precision="bf16",
    record=Record(tensorboard=False),
)


def test_a_scenario_says_it_for_its_simulated_clients(tmp_path: Path) -> None:
    losses = {}
    for precision in ("float32", "bf16"):
        run = Run.create(tmp_path / precision, replace(SCENARIO, precision=precision))
        simulate(run)
        losses[precision] = run.metrics()[-1]["train_loss"]
    assert losses["bf16"] != losses["float32"]
    assert losses["bf16"] == pytest.approx(losses["float32"], rel=0.05)


def test_tf32_is_for_gpus_that_know_it_and_for_this_process(tmp_path: Path) -> None:
    assert amp_of("tf32") is None
    with pytest.raises(TrainingError, match="NVIDIA GPUs from Ampere on, but the device is 'cpu'"), tf32_products(CPU):
        pass
    pytest.importorskip("ray")
    with pytest.raises(EngineError, match="precision 'tf32'"):
        by_flower(Run.create(tmp_path / "run", replace(SCENARIO, precision="tf32")))


def test_private_examples_want_float32() -> None:
    private = replace(SCENARIO.example_privacy, epsilon=4.0, max_grad_norm=1.0)
    with pytest.raises(ValueError, match="float32, but precision is 'bf16'"):
        replace(SCENARIO, example_privacy=private)
