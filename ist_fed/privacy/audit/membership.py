"""Membership inference: does the final network tell the examples it was trained on from others?

The plainest attack: a network is surer of what it has seen, so a low loss speaks for it.

Source: Yeom et al., CSF 2018; Carlini et al., IEEE S&P 2022, for judging by the few that are surest.
"""

from collections.abc import Sequence
from copy import deepcopy

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset

from ist_fed.batches import fetch, length
from ist_fed.privacy.audit.bounds import area_bounds, rate_bounds
from ist_fed.privacy.audit.finding import Finding
from ist_fed.tasks.task import Batch, Task

SURE = 0.025
"""What each side of an interval may be wrong with: intervals hold in 95 of 100 audits."""

_CPU = torch.device("cpu")
_ALARMS = 0.01  # false ones, that the surest guesses may have


def membership_inference(
    model: nn.Module,
    task: Task,
    members: Sequence[Dataset[Batch]],
    others: Dataset[Batch],
    rng: np.random.Generator,
    most: int = 2000,
) -> Finding:
    """Try to tell members from others by their loss.

    Args:
        model: the final network, as it is served, on the processor.
        task: gives the loss.
        members: the examples of each client.
        others: examples like them, on which nobody trained.
        rng: picks examples where there are more than `most`.
        most: examples of either kind.
    """
    inside = [(data, at) for data in members for at in range(length(data))]
    outside = [(others, at) for at in range(length(others))]
    seen, unseen = (-_losses(model, task, _some(pairs, most, rng)) for pairs in (inside, outside))
    area, low, high = area_bounds(seen, unseen, SURE)
    allowed = int(_ALARMS * len(unseen))
    cut = np.sort(unseen)[::-1][allowed]
    caught, alarms = int((seen > cut).sum()), int((unseen > cut).sum())
    return Finding(
        attack="membership inference",
        adversary="whoever has the final network, and examples of which it asks whether they were trained on",
        verdict="succeeds" if low > 0.5 else "fails",
        meaning=_meaning(low, high),
        numbers={
            "members": len(seen),
            "others": len(unseen),
            "AUC": area,
            "AUC, 95 %": [low, high],
            "TPR": caught / len(seen),
            "TPR, 95 %": list(rate_bounds(caught, len(seen), SURE)),
            "FPR": alarms / len(unseen),
            "FPR, 95 %": list(rate_bounds(alarms, len(unseen), SURE)),
        },
    )


def _meaning(low: float, high: float) -> str:
    scale = "an AUC of 0.5 is a coin's, 1 is certainty; TPR at 1 % FPR is the share of members that the surest find"
    if low > 0.5:
        return f"members are told from others more often than by a coin: {scale}"
    if high < 0.5:
        return f"members have larger losses than others, so the two are not alike, and this tells nothing: {scale}"
    return f"members are not told from others by this attack (a stronger one may be better): {scale}"


_Pairs = Sequence[tuple[Dataset[Batch], int]]


def _some(pairs: _Pairs, most: int, rng: np.random.Generator) -> _Pairs:
    if len(pairs) <= most:
        return pairs
    return [pairs[at] for at in rng.permutation(len(pairs))[:most].tolist()]


@torch.no_grad()
def _losses(model: nn.Module, task: Task, pairs: _Pairs) -> np.ndarray:
    """The loss of each example by itself, in float64: in float32 the surest would all be equal."""
    precise, found = deepcopy(model).double().eval(), []
    for data, at in pairs:
        inputs, target = fetch(data, np.array([at]), _CPU)
        found.append(float(task.loss(precise, (inputs.double() if inputs.is_floating_point() else inputs, target))))
    return np.array(found)
