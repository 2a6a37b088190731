"""The wide network while its units are lent out: cutting, merging at once, and what a round's report says."""

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import fsum, isfinite, nan

import torch
from torch import Tensor

from ist_fed.arrays import Arrays
from ist_fed.axes import Axes, sizes_of
from ist_fed.clock import Timed
from ist_fed.cohort import Assignment, Outcome
from ist_fed.coverage import Coverage
from ist_fed.errors import RoundError
from ist_fed.lending.contract import Conditions, Lending
from ist_fed.places import check_units, places_of, write
from ist_fed.round import Client, Refused, RoundReport
from ist_fed.rules import Grant
from ist_fed.subnet import extract
from ist_fed.train import learning_rate

logger = logging.getLogger("ist_fed")


@dataclass(frozen=True, eq=False)
class Loan:
    """A lease that is out: who has it, and the subnet as it was lent."""

    client: Client
    asked: Assignment


class Lender:
    """Holds the wide network, always as it is now.

    A coordinate of an array that some axis splits has one holder, whose value is copied. What no axis splits (the
    biases of a head) everyone holds, and a copy would undo what others did since: such an array moves by the client's
    change, in proportion to its weight among all clients, so that when each has returned once it has moved by the
    weighted mean, as in a synchronous round.

    Args:
        conditions: what is asked.
        arrays: the wide network; not changed.
        axes: the table from `infer`.
        coverage: of the whole run.
        total: sum of all clients' weights.
    """

    def __init__(self, conditions: Conditions, arrays: Arrays, axes: Axes, coverage: Coverage, total: float) -> None:
        self._conditions, self._axes, self._coverage, self.total = conditions, axes, coverage, total
        self._wide = {name: array.clone() for name, array in arrays.items()}
        self._sizes = sizes_of(self._wide, axes)
        self._shared = {name for name in arrays if all(dim.axis is None for dim in axes[name])}
        self.out: dict[int, Loan] = {}
        self._tally = _Tally()

    def lend(self, grant: Grant, client: Client, round: int, shared: Mapping[str, Tensor] | None = None) -> Assignment:
        """Cut the subnet of a lease.

        Args:
            grant: the lease.
            client: who borrows.
            round: in which it is lent, for the learning rate.
            shared: the arrays that no axis splits as they were when it was lent, if that was before now.
        """
        conditions = self._conditions
        with self.timed("extract"):
            arrays = extract(self._wide, self._axes, grant.units)
            was = {**arrays, **(shared or {})}
            arrays |= {name: was[name].to(arrays[name].device, copy=True) for name in self._shared}
        asked = Assignment(
            round=grant.number,
            seed=conditions.seed,
            units=grant.units,
            arrays=arrays,
            nodes=(client.node,),
            weights=(1.0,),
            local_steps=conditions.local_steps,
            lr=learning_rate(conditions.training, round, conditions.rounds),
            training=conditions.training,
            scales=conditions.scales({axis: len(held) for axis, held in grant.units.items()}),
        )
        self.out[grant.number] = Loan(client, asked)
        return asked

    def take_back(self, outcome: Outcome) -> None:
        """Merge what came back, at once; or note why nothing did."""
        loan = self.out[outcome.assignment.round]
        self._tally.seconds["train"] += outcome.seconds
        if outcome.arrays is None:
            self.give_up(outcome.assignment.round, next(iter(outcome.refused.values()), "nothing came back"))
            return
        del self.out[outcome.assignment.round]
        with self.timed("merge"):
            self._write(loan, outcome.arrays)
            self._coverage.mark(loan.asked.units)
        self._tally.merged(loan, outcome.losses.tolist())

    def give_up(self, number: int, reason: str) -> None:
        """A lease ended, and nothing came of it; its units keep their values."""
        loan = self.out.pop(number)
        self._tally.refused(loan, reason)
        logger.warning("client %d: %s; its units keep their values", loan.client.number, reason)

    def shared_of_loans(self) -> dict[str, Tensor]:
        """What cannot be read off the wide network of the leases that are out: arrays that no axis splits."""
        return {
            f"{number}/{name}": loan.asked.arrays[name] for number, loan in self.out.items() for name in self._shared
        }

    def timed(self, phase: str) -> Timed:
        """Add the time spent inside to a phase of the report."""
        return Timed(self._tally.seconds, phase)

    def report(self, round: int, virtual: float | None) -> RoundReport:
        """What happened since the last report.

        Raises:
            RoundError: fewer than `min_replies` leases came back well.
        """
        tally, self._tally = self._tally, _Tally()
        if tally.count < self._conditions.min_replies:
            said = "; ".join(sorted({refused.reason for refused in tally.failures})[:3]) or "nobody was asked"
            raise RoundError(
                f"round {round} needs usable replies, at least {self._conditions.min_replies}, but {tally.count} of "
                f"{len(tally.clients)} leases brought one: {said}"
            )
        return RoundReport(
            round=round,
            arrays={name: array.clone() for name, array in self._wide.items()},
            clients=tuple(client.number for client in tally.clients),
            capacities=tuple(client.capacity for client in tally.clients),
            limits=tuple(client.limit for client in tally.clients),
            merged=tally.count,
            refused=tuple(tally.failures),
            loss=fsum(tally.losses) / len(tally.losses) if tally.losses else nan,
            bytes_down=tally.down,
            bytes_up=tally.up,
            coverage=self._coverage.fraction(),
            seconds={"train": 0.0, **tally.seconds},
            virtual=virtual,
            loans=self.shared_of_loans(),
        )

    @torch.no_grad()
    def _write(self, loan: Loan, arrays: Arrays) -> None:
        places = places_of(self._wide, self._axes, self._sizes, check_units(loan.asked.units, self._sizes))
        share = loan.client.weight / self.total
        for name, at in places.items():
            wide, part = self._wide[name], arrays[name].to(self._wide[name].device)
            if name not in self._shared:
                write(wide, at, part)
            elif wide.is_floating_point():
                wide.copy_(wide.double() + (part.double() - loan.asked.arrays[name].double()) * share)
            else:
                wide.copy_(torch.maximum(wide, part))


def lender_of(lending: Lending, arrays: Arrays, clients: Sequence[Client]) -> Lender:
    """Lends to these clients."""
    total = sum(client.weight for client in clients)
    return Lender(lending.conditions, arrays, lending.axes, lending.coverage, total)


class _Tally:
    """What a report counts."""

    def __init__(self) -> None:
        self.clients: list[Client] = []
        self.failures: list[Refused] = []
        self.losses: list[float] = []
        self.count = self.down = self.up = 0
        self.seconds: defaultdict[str, float] = defaultdict(float)

    def merged(self, loan: Loan, losses: Sequence[float]) -> None:
        self._ended(loan)
        self.count += 1
        self.up += loan.asked.size
        self.losses += [loss for loss in losses if isfinite(loss)]

    def refused(self, loan: Loan, reason: str) -> None:
        self._ended(loan)
        self.failures.append(Refused(loan.client.number, reason))

    def _ended(self, loan: Loan) -> None:
        self.clients.append(loan.client)
        self.down += loan.asked.size
