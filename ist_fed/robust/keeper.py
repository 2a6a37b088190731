"""Robust merging over the rounds of a run: what length of an update is usual."""

import logging
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from statistics import median
from typing import Any

from torch import Tensor

from ist_fed.axes import Axes
from ist_fed.errors import ScenarioError
from ist_fed.robust.merge import Loss, RobustMerge
from ist_fed.robust.settings import Robust
from ist_fed.rules import Plan

logger = logging.getLogger("ist_fed")

_ROUNDS = 5  # before, whose medians say what is usual: few, for updates shorten as training goes on


class Keeper:
    """Makes each round's merge, and learns from it.

    Args:
        settings: what is asked for.
        loss: of the wide network on examples that the server holds; `loss_margin` needs it.

    Raises:
        ScenarioError: there are no such examples.
    """

    def __init__(self, settings: Robust, loss: Loss | None = None) -> None:
        if settings.loss_margin and loss is None:
            raise ScenarioError(
                "robust.loss_margin compares losses on examples that the server holds, but the task's "
                "calibration_data() gives none; let it return some, or set loss_margin to 0"
            )
        self._settings, self._loss, self._said = settings, loss, False
        self._medians: deque[float] = deque(maxlen=_ROUNDS)

    @property
    def outvotes(self) -> bool:
        """Whether every number that a cohort sends is outvoted, and not only its parameters looked at."""
        return self._settings.merge != "mean"

    def merge(self, arrays: Mapping[str, Tensor], axes: Axes, plan: Plan, trained: Collection[str]) -> RobustMerge:
        """What takes a round's subnets."""
        cohorts = {id(units): len(cohort) for units, cohort in zip(plan.subnets, plan.cohorts, strict=True)}
        usual = median(self._medians) if self._medians else None
        return RobustMerge(self._settings, arrays, axes, trained, cohorts, usual, self._loss)

    def learn(self, merge: RobustMerge) -> dict[str, Any]:
        """Take in a round that is over.

        Returns:
            What its line of metrics says of it: the clients whose updates were scaled down, and the usual length of an
            update, from which a resumed run goes on.
        """
        if merge.small and self._settings.merge != "mean" and not self._said:
            self._said = True
            logger.warning("cohorts of fewer than three have nobody to outvote: their merge is the mean")
        if not self._settings.norm_bound:
            return {}
        lengths: Sequence[float] = list(merge.lengths.values())
        told = {"clipped": sorted(merge.clipped), "update_length": median(lengths) if lengths else None}
        self.resume(told)
        return told

    def forget(self) -> None:
        """Begin anew, with no round before."""
        self._medians.clear()

    def resume(self, line: Mapping[str, Any]) -> None:
        """Take in what an earlier round's line of metrics says."""
        if line.get("update_length"):
            self._medians.append(float(line["update_length"]))
