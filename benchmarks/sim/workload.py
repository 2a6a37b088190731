"""The workload that every contestant trains, and how its rounds are timed. Needs torch alone: peers import it, too."""

import json
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

SAMPLES, INPUTS, OUTPUTS = 64, 784, 10
HIDDEN = 512
BATCH, STEPS, LR = 16, 4, 0.1
GROUPS = 10
SEED = 1
ENOUGH_S, AT_LEAST = 2.0, 2
"""A turn times rounds until both are reached."""

CACHE = Path(__file__).parents[1] / ".cache"

Weights = dict[str, Tensor]


def data(
    clients: int,
    device: str = "cpu",
    *,
    samples: int = SAMPLES,
    inputs: int = INPUTS,
    outputs: int = OUTPUTS,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """Examples of all clients, clients × samples × inputs, and their classes; noise, for only time is measured."""
    x = torch.randn(clients, samples, inputs, generator=torch.Generator().manual_seed(1))
    y = torch.randint(outputs, (clients, samples), generator=torch.Generator().manual_seed(2))
    return x.to(device, dtype), y.to(device)


def network() -> nn.Sequential:
    """The network of `ist_fed.models.mlp(784, 10, "none")`, by the same names, for who has no ist_fed."""
    layers: list[nn.Module] = [nn.Flatten()]
    for before, after in ((INPUTS, HIDDEN), (HIDDEN, HIDDEN)):
        layers += [nn.Linear(before, after), nn.Identity(), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(HIDDEN, OUTPUTS))


# --- The same result --------------------------------------------------------------------------------------------------


def start_file(clients: int) -> Path:
    """Where `prepare.py` puts the first weights, the first round's orders of examples, and what must come of it."""
    return CACHE / f"start-{clients}.pt"


def start(clients: int) -> dict[str, Any]:
    return torch.load(start_file(clients), weights_only=True)


def in_order_of_round_one(x: Tensor, y: Tensor, orders: Tensor) -> None:
    """Put each client's examples into the order in which the product's first round takes them.

    A peer that takes its examples as they lie, without shuffling, then makes the same first round.
    """
    for client, order in enumerate(orders):
        x[client], y[client] = x[client][order], y[client][order]


def difference(found: Weights, clients: int, rule: str) -> float:
    """How far the weights after the first round are from what they must be (in float64), in lengths of the update."""
    known = start(clients)
    off = length = 0.0
    for name, right in known[rule].items():
        off += float((found[name].detach().cpu().double() - right).square().sum())
        length += float((known["weights"][name].double() - right).square().sum())
    return (off / length) ** 0.5


# --- Time and memory --------------------------------------------------------------------------------------------------


def synchronise(device: str) -> None:
    """Wait until the device has done all it was told to."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def timed(round: Callable[[int], object], device: str = "cpu", warm_up: int = 2) -> list[float]:
    """Seconds of rounds, after some that do not count; the first two are numbers 1 and 2."""
    for number in range(1, warm_up + 1):
        round(number)
    seconds: list[float] = []
    while not enough(seconds):
        synchronise(device)
        began = time.perf_counter()
        round(warm_up + 1 + len(seconds))
        synchronise(device)
        seconds.append(time.perf_counter() - began)
    return seconds


def enough(seconds: list[float]) -> bool:
    return len(seconds) >= AT_LEAST and sum(seconds) >= ENOUGH_S


def peak_mb(device: str = "cpu") -> float:
    """The largest memory this process has had: resident, or of the GPU."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def report(seconds: list[float], **more: Any) -> None:
    """Say what a turn has measured; the last line of the process's output."""
    said = {"seconds": statistics.median(seconds), "rounds": len(seconds), **more}
    known = {name: value for name, value in said.items() if value == value}  # JSON has no NaN
    print("RESULT " + json.dumps(known), flush=True)


def order() -> dict[str, Any]:
    """What this process is asked to do."""
    return json.loads(sys.argv[1])
