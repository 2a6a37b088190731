"""Whether every example has a gradient of its own, tried on examples and weights that are made up.

Neither a client's examples nor the weights that a server sends have a say in it, so a refusal tells nothing.
"""

import logging
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from copy import deepcopy

import torch
from torch import Tensor, nn

from ist_fed.arrays import device_of
from ist_fed.errors import PrivacyError
from ist_fed.privacy.example.settings import check_network
from ist_fed.seeds import seeded
from ist_fed.tasks.task import Batch, Task

logger = logging.getLogger("ist_fed")

_EXAMPLES = 3
_ROUNDING = 1e-2  # of what is computed in two ways, in TF32 by some layers
_NOISE = 1e-5  # of all of a gradient: less than that is rounding, as where a gradient is zero


def check_apart(model: nn.Module, task: Task, like: Batch) -> None:
    """Refuse a network, or a loss, in which examples change each other's gradients.

    Args:
        model: left as it is.
        task: gives the loss.
        like: a batch that says of which shapes and dtypes examples are; its values are not looked at.

    Raises:
        PrivacyError: it is so, or cannot be known.
    """
    check_network(model)
    try:
        with quiet():
            _check(_stand_in(model), task, like)
    except PrivacyError:
        raise
    except Exception as error:
        logger.error("made-up examples, of shapes as this client's, cannot be trained on", exc_info=error)
        raise PrivacyError(
            "a network whose examples are private is first tried on made-up ones, of random numbers and classes 0 and "
            "1, but the task cannot be trained on them; why stands in the client's log"
        ) from None


def _check(trial: nn.Module, task: Task, like: Batch) -> None:
    from opacus.grad_sample import GradSampleModule

    kept = [buffer.clone() for buffer in trial.buffers()]
    GradSampleModule(trial.train())  # puts hooks on it
    together = _rows(trial, task, _made_up(like))
    for one in range(_EXAMPLES):
        others = [each for each in range(_EXAMPLES) if each != one]
        changed = _rows(trial, task, _made_up(like, [one]))
        if not (changed - together)[others].norm() <= _NOISE * together.norm():
            raise PrivacyError(
                "an example's gradient must not depend on the others of its batch, but with this network and loss it "
                "does; use layers and a loss that look at each example alone"
            )
    if not all(torch.equal(*pair) for pair in zip(kept, trial.buffers(), strict=True)):
        raise PrivacyError(
            "there is noise on gradients only, but this network keeps statistics of its examples besides; use another "
            "normalisation"
        )
    _check_mean(trial.eval(), task, _made_up(like))


def _rows(trial: nn.Module, task: Task, batch: Batch) -> Tensor:
    """The gradients of all parameters, a row for each example; they must make up the batch's.

    Hooks on layers do not see weights that are used elsewhere, and take the first dimension for the examples.
    """
    for parameter in trial.parameters():
        parameter.grad = parameter.grad_sample = None  # type: ignore[attr-defined]
    with seeded(0, device_of(trial)):  # dropout is to be the same each time
        task.loss(trial, batch).backward()  # type: ignore[no-untyped-call]
    rows = []
    for name, parameter in trial.named_parameters():
        apart, whole = getattr(parameter, "grad_sample", None), parameter.grad
        if not isinstance(apart, Tensor) or len(apart) != _EXAMPLES or whole is None:
            raise _unseen(name)
        rows.append((name, apart.flatten(1), whole.flatten()))
    found = torch.cat([apart for _, apart, _ in rows], dim=1)
    for name, apart, whole in rows:
        if not (apart.mean(0) - whole).norm() <= _ROUNDING * apart.norm() + _NOISE * found.norm():
            raise _unseen(name)
    return found


def _unseen(name: str) -> PrivacyError:
    return PrivacyError(
        f"gradients of single examples cannot be had for this network: '{name}' is not used, "
        f"or outside its own layer, or its layer's input does not have the examples as its first dimension"
    )


@torch.no_grad()
def _check_mean(trial: nn.Module, task: Task, batch: Batch) -> None:
    """Does an example count as much, however many there are? Where layers draw, that cannot be seen; here none does."""
    each = [(batch[0][one : one + 1], batch[1][one : one + 1]) for one in range(_EXAMPLES)]
    alone = torch.stack([task.loss(trial, one) for one in each])
    if not (task.loss(trial, batch) - alone.mean()).abs() <= _ROUNDING * alone.abs().mean():
        raise PrivacyError(
            "where examples are private, the loss of a batch must be the mean of what it is for each example alone, "
            "but this task's is another; let it be the mean, without weights that depend on the batch"
        )


@torch.no_grad()
def _stand_in(model: nn.Module) -> nn.Module:
    """The same network with other weights, for a server could send some that hide what the network does."""
    made = deepcopy(model)
    with seeded(0, device_of(made)):
        for parameter in made.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
            else:
                nn.init.uniform_(parameter)
    return made


def _made_up(like: Batch, changed: Collection[int] = ()) -> Batch:
    """Numbers between 0 and 1, or one of them; the same each time, but for the examples that are to be others."""
    generator = torch.Generator().manual_seed(0)

    def part(own: Tensor) -> Tensor:
        made = torch.rand((_EXAMPLES, *own.shape[1:]), generator=generator)
        made = made if own.is_floating_point() else made.round()
        for one in changed:
            made[one] = 1 - made[one]
        return made.to(own)

    return part(like[0]), part(like[1])


@contextmanager
def quiet() -> Iterator[None]:
    """Torch warns of hooks on layers whose inputs have no gradient, such as every first one."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Full backward hook is firing")
        yield
