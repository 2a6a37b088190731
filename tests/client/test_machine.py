"""The client's own configuration: what its operator said of the machine."""

from typing import Any

import pytest
import torch

from client.device import Machine, machine_of
from ist_fed.errors import TrainingError

CPU = torch.device("cpu")


def test_a_simulated_node_says_nothing_and_trains_as_the_scenario_says() -> None:
    config = {"partition-id": 0, "num-partitions": 2}
    assert machine_of(config, "cpu") == Machine(CPU, None, 0)
    assert machine_of(config, "cpu", "bf16") == Machine(CPU, "bf16", 0)


def test_a_real_one_that_says_nothing_else_takes_what_is_free() -> None:
    assert machine_of({"device": "cpu"}, "cuda:7", "bf16") == Machine(CPU, None, None)


@pytest.mark.parametrize(("memory", "amount"), [("2GiB", 2 << 30), ("1500000", 1_500_000), (1_500_000, 1_500_000)])
def test_what_it_says_counts(memory: Any, amount: int) -> None:
    assert machine_of({"device": "cpu", "amp": "bf16", "memory": memory}, "auto") == Machine(CPU, "bf16", amount)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"device": "cuda:99"}, "device 'cuda:99' cannot be used here"),
        ({"device": "cpu", "amp": "int8"}, "mixed precision is one of bf16, fp16, but this node's amp is 'int8'"),
        ({"device": "cpu", "memory": "lots"}, "an amount of memory is written like 2GiB"),
    ],
)
def test_what_makes_no_sense_is_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        machine_of(config, "auto")
