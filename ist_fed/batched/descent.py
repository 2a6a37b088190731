"""An optimiser's steps, of many clients' weights stacked."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.optim.sgd import sgd

from ist_fed.optimizer_state import load_state, read_state
from ist_fed.train import OPTIMIZERS, Training, optimizer_options


class Optimizer:
    """Torch's, whose state begins where that which travels left off.

    Args:
        weights: by name, stacked.
        training: which, and its settings.
        lr: learning rate.
        state: that travels; its arrays are changed.
    """

    def __init__(self, weights: Mapping[str, Tensor], training: Training, lr: float, state: dict[str, Tensor]) -> None:
        self._weights, self._state = weights, state
        self._torch = OPTIMIZERS[training.optimizer](weights.values(), **optimizer_options(training, lr))
        load_state(self._torch, weights, state)

    def step(self) -> None:
        """Move the weights by their gradients, and forget these."""
        self._torch.step()
        self._torch.zero_grad()

    def state(self) -> dict[str, Tensor]:
        """What travels on."""
        read_state(self._torch, self._weights, self._state)
        return self._state


class Descent:
    """SGD whose momentum begins anew, by torch's function; also where there are no weights to move.

    The first optimiser that torch makes in a process loads its compiler: 2 seconds, and 70 MB that stay.
    """

    def __init__(self, weights: Mapping[str, Tensor], training: Training, lr: float) -> None:
        self._weights, self._options = list(weights.values()), optimizer_options(training, lr)
        self._momenta: list[Tensor | None] = [None] * len(weights)

    @torch.no_grad()
    def step(self) -> None:
        """Move the weights by their gradients, and forget these."""
        moved = {at: array.grad for at, array in enumerate(self._weights) if array.grad is not None}
        weights, momenta = [self._weights[at] for at in moved], [self._momenta[at] for at in moved]
        sgd(weights, [*moved.values()], momenta, dampening=0.0, nesterov=False, maximize=False, **self._options)
        for at, momentum in zip(moved, momenta, strict=True):
            self._momenta[at], self._weights[at].grad = momentum, None

    def state(self) -> dict[str, Tensor]:
        """Nothing travels on."""
        return {}
