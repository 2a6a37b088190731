"""Update inversion: is the example that a client trained on written in what is released of its update?

A unit of a first linear layer moves along the example that moved it, and its bias by how much: the one divided by the
other is the example. A client with one example, whatever its subnet, and everything else known.

Source: Phong et al., IEEE TIFS 13(5), 2018, for the quotient.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset

from ist_fed.arrays import arrays_of
from ist_fed.axes import Axes
from ist_fed.batches import fetch, length
from ist_fed.batchnorm import has_batch_norm
from ist_fed.errors import asking
from ist_fed.evaluate import network
from ist_fed.places import Units
from ist_fed.privacy.audit.finding import Finding
from ist_fed.privacy.central import CentralMerge, Drawn
from ist_fed.privacy.settings import Mechanism
from ist_fed.rules import Node, Plan, Private, Rule, plan_round
from ist_fed.seeds import generator
from ist_fed.subnet import Merge, extract
from ist_fed.tasks.task import Batch, Task
from ist_fed.train import Training, train

RECOVERED = 0.99
"""Correlation with the true example from which on it counts as recovered."""

_CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What the clients of a scenario do.

    Args:
        task: gives the network, its loss and the clients' examples.
        sizes: of the full network.
        axes: its table.
        arrays: its first state.
        rule: that deals the units out.
        clients: how many.
        local_steps: of each.
        training: how.
        seed: of the scenario.
    """

    task: Task
    sizes: Mapping[str, int]
    axes: Axes
    arrays: Mapping[str, Tensor]
    rule: Rule
    clients: int
    local_steps: int
    training: Training
    seed: int


def update_inversion(setting: Setting, made: Mechanism | None, trials: int = 20) -> Finding:
    """Let clients with one example train, and try to read it from what is released.

    Args:
        setting: what they do.
        made: the mechanism of central privacy; None where there is none.
        trials: how many clients, each with an example and a subnet of its own.
    """
    adversary = "whoever sees the network before and after a round, and knows all other clients"
    if made is None:
        adversary = "the server, or whoever sees the update of one client"
    model = network(setting.task, setting.sizes, setting.arrays, _CPU)
    layer = _reader(model, setting.task, _data_of(setting, 0))
    if layer is None or has_batch_norm(model):
        reason = "the network has BatchNorm, which trains on no batch of one; larger batches are not attacked here"
        if layer is None:
            reason = "no linear layer reads the examples as they are; attacks on other layers are not tried"
        return Finding(
            attack="update inversion",
            adversary=adversary,
            verdict="does not apply",
            meaning=f"{reason}. That is no protection",
        )
    likeness = np.array([_likeness(setting, made, layer, trial) for trial in range(trials)])
    recovered = int((likeness >= RECOVERED).sum())
    return Finding(
        attack="update inversion",
        adversary=adversary,
        verdict="succeeds" if recovered else "fails",
        meaning=_meaning(recovered, made),
        numbers={
            "trials": trials,
            "recovered": recovered,
            "median correlation": float(np.median(likeness)),
            "largest correlation": float(likeness.max()),
        },
    )


def _meaning(recovered: int, made: Mechanism | None) -> str:
    if not recovered:
        return (
            "what was worked out from the release is not the example (a correlation of 1 would be the example itself)"
        )
    if made is None:
        return "without privacy, an update of a client with one example is that example: a subnet hides nothing"
    return "examples can be read from the release in spite of the noise: it is too little to protect anyone"


def _data_of(setting: Setting, client: int) -> Dataset[Batch]:
    with asking(f"client_data() for client {client}"):
        return setting.task.client_data(client, setting.clients)


def _likeness(setting: Setting, made: Mechanism | None, layer: str, trial: int) -> float:
    """How like the true example is to what the attack makes of one release, 0 to 1; the better of two ways."""
    rng = generator(setting.seed, "audit", "inversion", trial)
    client = int(rng.integers(setting.clients))
    data = _data_of(setting, client)
    one = Subset(data, [int(rng.integers(length(data)))])
    plan = plan_round(setting.rule, trial + 1, [Node(n) for n in range(setting.clients)], setting.sizes, setting.seed)
    units = plan[client]
    part = _trained(setting, units, one, rng)
    after = _released(setting, made, plan, units, part)
    before, came = (extract(arrays, setting.axes, units) for arrays in (setting.arrays, after))
    weight, bias = f"{layer}.weight", f"{layer}.bias"
    moved = came[weight].double() - before[weight].double()
    by = came[bias].double() - before[bias].double() if bias in came else None
    truth = fetch(one, np.array([0]), _CPU)[0].flatten().double()
    return max(_alike(guess, truth) for guess in _guesses(moved, by))


def _trained(setting: Setting, units: Units, one: Dataset[Batch], rng: np.random.Generator) -> dict[str, Tensor]:
    """The subnet after the local steps of a client that has one example."""
    sizes = {axis: len(held) for axis, held in units.items()}
    model = network(setting.task, sizes, extract(setting.arrays, setting.axes, units), _CPU)
    training, steps = setting.training, setting.local_steps
    train(model, setting.task, one, training, lr=training.lr, steps=steps, rng=rng)
    return arrays_of(model)


def _released(
    setting: Setting, made: Mechanism | None, plan: Plan, units: Units, part: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The network after a round in which the others' updates are zero, which is as good as known."""
    if made is None:
        merge = Merge(setting.arrays, setting.axes)
        merge.add(units, part)
        return merge.result()
    subnets = plan.subnets
    if isinstance(setting.rule, Private):
        blocks = made.expected / setting.rule.groups
        expected = [blocks] * len(subnets)
    else:
        expected = [made.settings.sampling * len(cohort) for cohort in plan.cohorts]
    trained = [name for name, _ in setting.task.build(**setting.sizes).named_parameters()]
    drawn, clip = Drawn(plan, tuple(expected)), made.settings.clip
    private = CentralMerge(setting.arrays, setting.axes, drawn, trained, made, clip, lambda _: None)
    private.add(units, part)
    return private.result()


def _guesses(moved: Tensor, by: Tensor | None) -> list[Tensor]:
    """The quotient of the unit whose bias moved most, and the direction along which all units moved."""
    guesses = [torch.linalg.svd(moved, full_matrices=False).Vh[0]]
    if by is not None:
        unit = int(by.abs().argmax())
        guesses.append(moved[unit] / by[unit])
    return guesses


def _alike(guess: Tensor, truth: Tensor) -> float:
    """The correlation, whatever its sign; 0 if there is none."""
    value = float(torch.corrcoef(torch.stack([guess, truth]))[0, 1].abs())
    return value if value == value else 0.0


def _reader(model: nn.Module, task: Task, data: Dataset[Batch]) -> str | None:
    """The linear layer that reads the examples as they are."""
    batch, found = fetch(data, np.array([0]), _CPU), list[str]()

    def look(name: str, given: Tensor) -> None:
        if given.numel() == batch[0].numel() and torch.equal(given.flatten(), batch[0].flatten()):
            found.append(name)

    handles = [
        layer.register_forward_pre_hook(lambda _, inputs, name=name: look(name, inputs[0]))
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear)
    ]
    try:
        with torch.no_grad():
            task.loss(model.eval(), batch)
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None
