"""What is added up in a secure round: the parameters of a subnet as one vector, and what everyone agrees on of it.

Buffers stay where they are: statistics of a client's data are nobody else's business, and the server estimates its own
before it evaluates.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ist_fed.arrays import Arrays
from ist_fed.places import Units
from ist_fed.privacy.secure.messages import digest


def trained_names(model: nn.Module, arrays: Arrays) -> list[str]:
    """The arrays that are trained, in the order of the module; any module of the same factory and sizes gives it."""
    return [name for name, _ in model.named_parameters() if name in arrays and arrays[name].is_floating_point()]


def as_vector(arrays: Arrays, names: Sequence[str]) -> np.ndarray:
    """These arrays behind one another, float64."""
    if not names:
        return np.zeros(0)
    return torch.cat([arrays[name].detach().reshape(-1).cpu().double() for name in names]).numpy()


def moved(arrays: Arrays, names: Sequence[str], update: np.ndarray) -> dict[str, Tensor]:
    """The arrays with an update added to those of these names, rounded once; the others as they are."""
    result, start = dict(arrays), 0
    for name in names:
        array = arrays[name]
        part = torch.from_numpy(update[start : start + array.numel()]).reshape(array.shape)
        result[name] = (array.cpu().double() + part).to(array.dtype)
        start += array.numel()
    return result


def model_hash(layout: str, of_bytes: str) -> bytes:
    """Of a subnet.

    Args:
        layout: of its parcel.
        of_bytes: the digest of its bytes, in hexadecimal.
    """
    return digest("model", layout.encode(), bytes.fromhex(of_bytes))


def order_hash(fields: Mapping[str, Any]) -> bytes:
    """Of how a subnet is trained; scales that are not said are none."""
    return digest("order", json.dumps({"scales": {}, **fields}, sort_keys=True).encode())


def units_hash(units: Units) -> bytes:
    """Of the units that make a subnet."""
    named = {axis: torch.as_tensor(units[axis]).tolist() for axis in sorted(units)}
    return digest("units", json.dumps(named).encode())
