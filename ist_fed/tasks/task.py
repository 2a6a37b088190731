"""What is learnt: a model factory, data, a loss and a metric."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib import import_module
from numbers import Real
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn
from torch.utils.data import Dataset

from ist_fed.errors import TaskError, asking, nearest
from ist_fed.tasks.options import check_kinds, check_names

Batch = tuple[Tensor, Tensor]
"""Inputs and targets; the first dimension of each is the example."""

RESERVED = (
    *("round", "phase", "metric", "loss", "train_loss", "lr", "bytes_down", "bytes_up", "clients", "capacities"),
    *("limits", "merged", "refused", "coverage", "seconds", "virtual", "epsilon", "delta"),
    *("example_epsilon", "clipped", "update_length"),
    *("task", "options", "sizes", "parameters", "bytes"),
)
"""Every field that a run itself may write to a line of `metrics.jsonl`, and to `model.json`: no metric is called so."""


@runtime_checkable
class Task(Protocol):
    """What a user writes to bring a problem of their own; inherit from it to get the defaults.

    A scenario names a task by import path, `task = "my_package.my_task:make"`, and calls what it finds there with the
    scenario's `[options]`; a class that takes its options as keyword arguments will do.
    """

    metric: str = "accuracy"
    """Name of what `score` measures, none of `RESERVED`; higher is better."""

    paths: Sequence[str] = ()
    """Options that say where something lies on the machine, such as `("path",)`; on a client a server may name paths in
    folders that its operator named only. A function that makes tasks may have it, too."""

    declared: Mapping[str, str] = {}
    """Array name → its dimensions, for layouts that `infer` cannot see, such as `{"qkv.weight": "(3 heads 64) ."}`."""

    def build(self, **sizes: int) -> nn.Module:
        """The network at these sizes; a client calls it with smaller ones."""
        ...

    def client_data(self, client: int, clients: int) -> Dataset[Any]:
        """The private examples of client number `client` of `clients`, as a map-style dataset with a length.

        What it holds a type checker cannot say: torch's `TensorDataset` does not tell it how many tensors it has.
        """
        ...

    def local_data(self, path: Path) -> Dataset[Any]:
        """The private examples of a deployed client, read from wherever its operator says they are.

        Raises:
            TaskError: they cannot be read; the message says which file, where, and what is wrong with it.
        """
        raise TaskError(
            f"this task reads no data from a path, so '{path}' is of no use to it; give its class a local_data(path), "
            f"or start the client with --partition"
        )

    def test_data(self) -> Dataset[Any]:
        """Held-out examples on the server, to evaluate the assembled network."""
        ...

    def calibration_data(self) -> Dataset[Any] | None:
        """Examples on the server to estimate BatchNorm statistics with; None where the model has no BatchNorm."""
        return None

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The mean loss over the batch, a scalar to differentiate."""
        ...

    def score(self, model: nn.Module, batch: Batch) -> Tensor:
        """The mean of `metric` over the batch, a scalar."""
        ...


def loss_of(task: Task, model: nn.Module, batch: Batch) -> Tensor:
    """A task's loss on a batch.

    Raises:
        TaskError: it is not a tensor of one element.
    """
    loss = task.loss(model, batch)
    if isinstance(loss, Tensor) and loss.numel() == 1:
        return loss
    raise TaskError(
        f"a task's loss() gives a tensor of one element, to differentiate, but gave {_kind(loss)}; return the mean "
        f"over the batch"
    )


def score_of(task: Task, model: nn.Module, batch: Batch) -> float:
    """A task's score on a batch.

    Raises:
        TaskError: it is not one number.
    """
    score: Any = task.score(model, batch)
    if isinstance(score, Real) or (isinstance(score, Tensor) and score.numel() == 1):
        return float(score)
    raise TaskError(f"a task's score() gives one number, but gave {_kind(score)}; return the mean over the batch")


def _kind(value: object) -> str:
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)


def load_task(name: str, options: Mapping[str, Any] | None = None) -> Task:
    """Find a task and make it with its options.

    Args:
        name: a built-in task (`digits`), or `package.module:attribute` of one's own.
        options: keyword arguments of the task.

    Raises:
        TaskError: there is no such task, an option is unknown, of another kind or refused, the result is not a `Task`,
            or its metric has the name of something else.
    """
    make = _maker(name)
    check_names(name, make, options or {})
    with asking(f"maker, called with the [options] {dict(options or {})},"):
        try:
            task = make(**(options or {}))
        except (TypeError, ValueError) as error:
            raise TaskError(f"task '{name}' refused its [options] {dict(options or {})}: {error}") from error
    check_kinds(name, make, options or {})  # now, for a task's own words are better
    missing = [member for member in _members() if _is_missing(task, member)]
    if missing:
        raise TaskError(
            f"'{name}' must give a Task, but the {type(task).__name__} it gives lacks {', '.join(missing)}; inherit "
            f"from ist_fed.Task and write what has no default"
        )
    if task.metric in RESERVED:
        raise TaskError(
            f"a task's metric must not have the name of what a run records itself, but that of '{name}' is called "
            f"'{task.metric}'; choose another name, such as 'accuracy'"
        )
    return task  # type: ignore[no-any-return]


def paths_of(name: str) -> Sequence[str]:
    """Which options of a task say where something lies on the machine.

    Raises:
        TaskError: there is no such task.
    """
    return tuple(getattr(_maker(name), "paths", ()))


def _maker(name: str) -> Callable[..., Any]:
    from ist_fed.tasks import TASKS

    if ":" in name:
        return _imported(name)
    if name in TASKS:
        return _imported(TASKS[name])
    raise TaskError(
        f"there is no task '{name}'{nearest(name, list(TASKS))} "
        f"(one's own is named by import path: 'package.module:attribute')"
    )


def _imported(path: str) -> Callable[..., Any]:
    module, _, attribute = path.partition(":")
    if not (all(part.isidentifier() for part in module.split(".")) and attribute.isidentifier()):
        raise TaskError(f"one's own task is written 'package.module:attribute', but is '{path}'")
    try:
        found = import_module(module)
    except ImportError as error:
        raise TaskError(
            f"task '{path}' cannot be imported: {error}; it and what it needs must be installed, or lie in the folder "
            f"where the command runs"
        ) from error
    except Exception as error:  # of the task's own module
        raise TaskError(f"task '{path}' cannot be imported: it raises {type(error).__name__}: {error}") from error
    if not hasattr(found, attribute):
        own = [name for name in vars(found) if not name.startswith("_")]
        raise TaskError(f"task '{path}' cannot be found: '{module}' has no '{attribute}'{nearest(attribute, own)}")
    make = getattr(found, attribute)
    if not callable(make):
        raise TaskError(f"'{path}' must be a class or a function that makes a Task, but is a {type(make).__name__}")
    return make  # type: ignore[no-any-return]


_DEFAULTS = ("metric", "declared", "calibration_data")
_OPTIONAL = ("local_data", "paths")  # a task that does not inherit need not have them


def _is_missing(task: Any, member: str) -> bool:
    """Whether a member is not there, or is what `Task` has in its place and does nothing."""
    if not hasattr(task, member):
        return True
    return member not in _DEFAULTS and getattr(type(task), member, None) is getattr(Task, member)


@cache
def _members() -> tuple[str, ...]:
    members = dict.fromkeys((*Task.__annotations__, *vars(Task)))
    return tuple(member for member in members if not member.startswith("_") and member not in _OPTIONAL)
