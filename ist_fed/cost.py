"""What a network costs a client: parameters, bytes, memory and arithmetic, worked out without allocating it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from weakref import finalize

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.data import Dataset
from torch.utils.flop_counter import FlopCounterMode

from ist_fed.arrays import arrays_of, build_on_meta
from ist_fed.batches import fetch, first_readable, length
from ist_fed.device import shares_memory
from ist_fed.errors import IstFedError, TaskError, asking
from ist_fed.optimizer_state import no_state, trainable
from ist_fed.rescale import scalable, scaled_inputs
from ist_fed.tasks import Batch, Task
from ist_fed.train import Amp, Step, Training


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Of one network at one batch size.

    Args:
        parameters: trainable numbers.
        bytes: of the whole state, buffers included, and the optimiser's if it travels: what goes one way in a round.
        memory: bytes that a client needs for it at its peak, where it trains: the network, gradients, the optimiser's
            state and what it makes on the way, activations of one batch. Unless that is a GPU with memory of its own,
            at least the network and the subnet as it came, or as it goes.
        flops: floating-point operations of one local step, forward and backward.
    """

    parameters: int
    bytes: int
    memory: int
    flops: int


def cost(
    task: Task,
    sizes: Mapping[str, int],
    training: Training,
    *,
    data: Dataset[Batch] | None = None,
    device: torch.device | str = "cpu",
    amp: Amp | None = None,
) -> Cost:
    """Work out what training the task's network at `sizes` costs, by two local steps on arrays without numbers.

    Args:
        task: gives the factory and the loss.
        sizes: units of each axis, of the full network or of a subnet.
        training: batch size and optimiser.
        data: the client's own examples, whose shape counts and of which a batch has no more than there are; by
            default the test data, taken to be many.
        device: where it would be trained.
        amp: mixed precision.

    Raises:
        AxesError: the factory cannot build at these sizes.
        TaskError: there is no example, or the loss asks for numbers where there are only shapes.
    """
    device = torch.device(device)
    model = build_on_meta(task.build, sizes)
    sent = {**arrays_of(model), **no_state(trainable(model), training.carried)}
    state = sum(array.nbytes for array in sent.values())
    memory, flops = _two_steps(task, sizes, training, _shape_of_batch(task, training, data), device, amp)
    if shares_memory(device):
        memory = max(memory, 2 * state)  # the network beside the subnet as it came, and later beside the packed reply
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Cost(parameters=parameters, bytes=state, memory=memory, flops=flops)


_Shapes = list[tuple[tuple[int, ...], torch.dtype]]


def _shape_of_batch(task: Task, training: Training, data: Dataset[Batch] | None) -> _Shapes:
    with asking("test_data()"):
        given = task.test_data() if data is None else data
    if length(given) == 0:
        raise TaskError("the data must hold at least one example, to take its shape from, but they are empty")
    size = training.batch_size if data is None else min(training.batch_size, length(data))
    cpu = torch.device("cpu")  # a client's own may have some that it cannot read, and that is nobody else's affair
    one = fetch(given, np.zeros(1, dtype=np.int64), cpu) if data is None else first_readable(given, cpu)
    return [((size, *part.shape[1:]), part.dtype) for part in one]


def _two_steps(
    task: Task, sizes: Mapping[str, int], training: Training, shapes: _Shapes, device: torch.device, amp: Amp | None
) -> tuple[int, int]:
    """Bytes at the peak of two steps, for in the second the optimiser has its state from the start; FLOPs of one."""
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), _Watch() as watch:
            with device:
                model = task.build(**sizes).train()
                inputs, targets = (torch.empty(shape, dtype=dtype) for shape, dtype in shapes)
            # fp16 takes the memory of bf16; its scaler would ask whether numbers are finite, and there are none.
            step = Step(model, task, training, lr=1.0, amp="bf16" if amp else None)
            scales = dict.fromkeys(scalable(model), 1.0) if training.rescale != "none" else {}  # at most
            with scaled_inputs(model, scales):
                with FlopCounterMode(display=False) as counter:
                    step((inputs, targets))
                step((inputs, targets))
    except IstFedError:
        raise
    except Exception as error:  # of the task's own code
        raise TaskError(
            f"the network and its loss must work on arrays without numbers, as under torch.compile, to be costed, but "
            f"raised {type(error).__name__}: {error}"
        ) from error
    return watch.peak, counter.get_total_flops()


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the bytes of all arrays that live, as torch makes them and lets them go."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._known: set[int] = set()
        self._bytes = self.peak = 0

    def __torch_dispatch__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        made = function(*args, **(kwargs or {}))
        for array in tree_leaves(made):
            if isinstance(array, Tensor):
                self._see(array.untyped_storage())
        return made

    def _see(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()  # a storage is the same object as long as it lives
        if key not in self._known:
            self._known.add(key)
            self._bytes += size
            self.peak = max(self.peak, self._bytes)
            finalize(storage, self._forget, key, size).atexit = False

    def _forget(self, key: int, size: int) -> None:
        self._known.remove(key)
        self._bytes -= size
