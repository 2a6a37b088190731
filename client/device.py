"""How this node trains: what its operator said in `--node-config`."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ist_fed.device import parse_bytes, pick_device
from ist_fed.errors import TrainingError
from ist_fed.train import AMP, Amp, Precision, amp_of


@dataclass(frozen=True)
class Machine:
    """What a `Worker` trains on; its fields are the worker's arguments of the same names."""

    device: torch.device
    amp: Amp | None
    memory: int | None


def machine_of(node_config: Mapping[str, object], simulated: str, precision: Precision = "float32") -> Machine:
    """Read `device`, `amp` and `memory`, each of which may be left out.

    Args:
        node_config: of Flower's context.
        simulated: the device of a node that names none, as in Flower's simulation; its memory has no bound, where
            a real node that says nothing takes what is free.
        precision: of such a node.

    Raises:
        TrainingError: there is no such device here, or a value makes no sense.
    """
    memory = node_config.get("memory")
    is_simulated = "device" not in node_config
    amp = node_config.get("amp") or (amp_of(precision) if is_simulated else None)
    if amp not in (None, *AMP):
        raise TrainingError(f"mixed precision is one of {', '.join(AMP)}, but this node's amp is {amp!r}")
    return Machine(
        device=pick_device(str(node_config.get("device", simulated))),
        amp=amp,
        memory=parse_bytes(str(memory)) if memory else 0 if is_simulated else None,
    )
