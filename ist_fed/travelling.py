"""The state of the clients' optimisers, kept by the server at the wide network's size: it travels with the units.

A momentum has the shape of its parameter, so it is cut and merged by the parameter's own axes.
"""

from collections.abc import Mapping

from torch import Tensor, nn

from ist_fed.arrays import Arrays
from ist_fed.axes import Axes
from ist_fed.errors import AxesError
from ist_fed.optimizer_state import SLOTS, no_state, split_state, trainable
from ist_fed.train import Training


class Travelling:
    """What stands beside the wide network while it is cut and merged.

    An optimiser's number of steps, one for a parameter, merges by its maximum, as any integer. In a round all holders
    count from one number, and agree; leases begin apart, and the most is right for what was trained longest.

    Args:
        model: the wide network, on the meta device.
        axes: the table from `infer`.

    Attributes:
        axes: the same for the network's arrays and all that may stand beside them.
    """

    def __init__(self, model: nn.Module, axes: Axes) -> None:
        self._parameters = trainable(model)
        self._slots: tuple[str, ...] = ()
        self._state: dict[str, Tensor] = {}
        every = {slot for slots in SLOTS.values() for slot in slots}
        beside = {
            f"{slot}/{name}": axes[name] if slot != "step" else tuple(dim for dim in axes[name] if dim.owner)
            for slot in every
            for name in self._parameters
        }
        self.axes: Axes = {**axes, **beside}

    def beside(self, arrays: Arrays, training: Training) -> dict[str, Tensor]:
        """The wide network and the state that travels in a round.

        The state begins at zero, and again whenever a round asks for another optimiser's, or for none.
        """
        self._slots = training.carried
        keys = no_state(self._parameters, self._slots)
        if self._state.keys() != keys.keys():
            self._state = no_state({name: arrays[name] for name in self._parameters}, self._slots)
        return {**arrays, **{key: self._state[key].to(arrays[key.partition("/")[2]].device) for key in keys}}

    def take(self, arrays: Arrays) -> dict[str, Tensor]:
        """Keep the state that was merged, and give the network's arrays."""
        own, self._state = split_state(arrays, self._slots)
        return dict(own)

    def state(self) -> dict[str, Tensor]:
        """The state as tensors, for a checkpoint; they are not changed afterwards."""
        return dict(self._state)

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take the state of a checkpoint.

        Raises:
            AxesError: it is of other parameters.
        """
        if unknown := {key.partition("/")[2] for key in state} - self._parameters.keys():
            raise AxesError(
                f"the optimiser's state in a checkpoint must be of this network's parameters; '{min(unknown)}' is none"
            )
        self._state = dict(state)
