"""Networks, losses and data that are another's in a later step: one step, or one batch, does not show what they do."""

import logging
from collections.abc import Callable

import pytest
import tiny
import torch
from test_trial import WAYS, Around, Built, is_the_same
from torch import Tensor, nn

from ist_fed.batched import Way
from ist_fed.train import Training

STEPS = {"local_steps": 7, "training": Training(lr=0.5, batch_size=8)}


class Later(Around):
    """Does something else from the fourth step on, by its own count."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(one, two)
        self.steps = 0
        self.register_buffer("mean", torch.zeros(tiny.CLASSES))

    def forward(self, inputs: Tensor) -> Tensor:
        self.steps += 1
        return self.late(inputs) if self.steps > 3 else self.net(inputs)

    def late(self, inputs: Tensor) -> Tensor:
        raise NotImplementedError


class Assigning(Later):
    def late(self, inputs: Tensor) -> Tensor:
        outputs = self.net(inputs) - self.mean
        self.mean = 0.9 * self.mean + 0.1 * outputs.detach().mean(0)
        return outputs


class Replacing(Later):
    def late(self, inputs: Tensor) -> Tensor:
        self.net[4].bias = nn.Parameter(torch.ones(tiny.CLASSES, dtype=torch.float64))
        return self.net(inputs)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("make", [Assigning, Replacing])
def test_an_array_that_is_assigned_anew_late_is_not_lost(
    make: Callable[..., nn.Module], way: Way | None, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "ist_fed.engine"):
        assert is_the_same(Built(make=make), way, **STEPS)
    assert "is assigned anew" in caplog.text
