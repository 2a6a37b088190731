"""What one round did."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import nan
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Refused:
    """A client whose subnet was not merged, and why."""

    client: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class RoundReport:
    """What one round did.

    Args:
        round: from 1.
        arrays: the wide network after it.
        clients: the numbers of the clients that were asked, in the rule's order.
        capacities: what their shares followed, in the same order: what they said, or what the times of rounds taught.
        limits: largest fraction of every axis that they can hold.
        merged: how many replies were merged; 0 in a private run, which does not tell that, nor who was refused, a loss
            or the time of a phase.
        refused: the others.
        loss: mean training loss of the merged replies that say a finite one; NaN if none does.
        bytes_down: of the subnets sent, all clients together.
        bytes_up: of the subnets that came back and were merged.
        coverage: share of the network trained so far in the run, 0 to 1.
        told: what else its line of metrics says: of robust merging (`robust.Keeper.learn`), and what clients tell of
            the epsilon of their examples.
        seconds: by phase: `assign`, `extract` (with packing), `wait` (from sending to the last reply), of which `train`
            (the clients' own clocks, added up), and `merge` (with unpacking and checking). In place, subnets are cut
            one by one, so `wait` has `extract` in it, too.
        virtual: seconds that it lasted on the simulated network; None if there is none.
        loans: of the leases that are out, `number/name` → an array that everyone holds, as it was lent.
    """

    round: int
    arrays: dict[str, Tensor]
    clients: tuple[int, ...]
    capacities: tuple[float, ...]
    limits: tuple[float, ...]
    merged: int
    refused: tuple[Refused, ...]
    loss: float
    bytes_down: int
    bytes_up: int
    coverage: float
    seconds: dict[str, float]
    virtual: float | None = None
    loans: dict[str, Tensor] = field(default_factory=dict)
    told: Mapping[str, Any] = field(default_factory=dict)


def veiled(report: RoundReport, usual: int) -> RoundReport:
    """What everyone may know: nothing in it depends on who took part, or on what came back but for the arrays.

    Args:
        report: of a private round.
        usual: bytes that all clients together are sent on average.
    """
    alike = (1.0,) * len(report.clients)
    return replace(
        report,
        capacities=alike,
        limits=alike,
        merged=0,
        refused=(),
        loss=nan,
        bytes_down=usual,
        bytes_up=usual,
        seconds={},
        told={},
    )
