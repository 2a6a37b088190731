"""Central differential privacy, round by round: the server clips, adds, and is trusted with what it saw."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from math import exp, prod

import torch
from torch import Tensor

from ist_fed.axes import Axes, sizes_of
from ist_fed.errors import AxesError, PrivacyError
from ist_fed.places import Indices, Units, check_units, places_of, read, shape_of, write
from ist_fed.privacy import noise
from ist_fed.privacy.accounting import steps_of
from ist_fed.privacy.clipping import apart, clipped
from ist_fed.privacy.ledger import Ledger
from ist_fed.privacy.settings import Mechanism, check_conditions, claimed
from ist_fed.rules import Node, Plan, Private, Rule, plan_round
from ist_fed.seeds import generator


@dataclass(frozen=True, eq=False)
class Drawn:
    """Who trains what in one round; secret, but for the blocks.

    Args:
        plan: of those who take part; a block that nobody drew is there, with a cohort of nobody.
        expected: how many clients each block has on average, which everyone may know.
    """

    plan: Plan
    expected: tuple[float, ...]


class Central:
    """Keeps the promise of a mechanism over the rounds of a run.

    Args:
        mechanism: what is promised.
        ledger: where it is counted; a clip that adapts goes on from what it says of the round before.
    """

    def __init__(self, mechanism: Mechanism, ledger: Ledger) -> None:
        self.mechanism, self.ledger = mechanism, ledger
        ((self._step, _),) = steps_of(mechanism.round()).items()

    def check_run(self, rule: Rule, *, weighting: str, adapt: bool, phases: bool) -> None:
        """Refuse a run that is not the one for which the promise was worked out.

        Raises:
            PrivacyError: amplification was claimed for another rule; or as of `check_conditions`.
        """
        settings, blocks = replace(self.mechanism.settings, mode="central"), self.mechanism.blocks
        check_conditions(settings, weighting=weighting, adapt=adapt, phases=phases)
        if blocks not in (1, claimed(rule)[0]):
            raise PrivacyError(
                f"this promise hides a client among {blocks} blocks, of which each client draws its own, but the rule "
                f"is {rule}; make the mechanism for that rule"
            )

    def draw(
        self,
        rule: Rule,
        round: int,
        nodes: Sequence[Node],
        sizes: Mapping[str, int],
        seed: int,
        trained: Mapping[str, Tensor] | None = None,
    ) -> Drawn:
        """Blocks from the scenario's seed; who takes part, and in which block, from the operating system."""
        chance = self.mechanism.settings.sampling
        taking = [node.id for node in nodes if noise.takes_part(chance)]
        if isinstance(rule, Private):
            blocks = rule.blocks(nodes, sizes, generator(seed, round, "assign"))
            own = {node: noise.draw(len(blocks)) for node in taking}
            cohorts = [tuple(node for node in taking if own[node] == block) for block in range(len(blocks))]
            expected = [self.mechanism.expected / len(blocks)] * len(blocks)
            return Drawn(Plan(subnets=blocks, cohorts=tuple(cohorts)), tuple(expected))
        plan = plan_round(rule, round, nodes, sizes, seed, trained)
        asked = set(taking)
        cohorts = [tuple(node for node in cohort if node in asked) for cohort in plan.cohorts]
        expected = [chance * len(cohort) for cohort in plan.cohorts]
        return Drawn(Plan(subnets=plan.subnets, cohorts=tuple(cohorts)), tuple(expected))

    def merge(
        self, round: int, arrays: Mapping[str, Tensor], axes: Axes, drawn: Drawn, trained: Collection[str]
    ) -> "CentralMerge":
        """What takes the round's updates; see `CentralMerge`.

        Raises:
            BudgetSpent: the round could not be released, so nobody need train for it.
        """
        self.ledger.check(self._step)
        before = self.ledger.last(round - 1)
        clip = float(before["next_clip"]) if before else self.mechanism.settings.clip

        def spend(next_clip: float) -> None:
            self.ledger.spend(self._step, {"round": round, "clip": clip, "next_clip": next_clip})

        return CentralMerge(arrays, axes, drawn, trained, self.mechanism, clip, spend)


class CentralMerge:
    """The wide network as updates come, in any order: clipped, summed, with noise on every block, over public numbers.

    Only arrays that are trained change: statistics of BatchNorm and the like are not merged, for they would need noise
    of their own. A coordinate that is in no block of the round is not anyone's to change and keeps its bits.

    Sensitivity: what one client adds to the sum is a vector of norm at most `clip` within one block, and one of norm
    at most its share of that within what is in every block. Nothing else of it reaches the result. What a client does
    to the shared part may depend on the block it drew; by Kahane's inequality (the likelihood ratio's moments are
    expectations of convex functions of sums of log-normals, which grow with their covariances) the case that the
    accountant reckons with, where it is the same in each, is the worst.

    Args:
        arrays: the wide network as it was; it is not changed.
        axes: the table from `infer`.
        drawn: of the round.
        trained: names of the arrays that are parameters.
        mechanism: what is promised.
        clip: largest norm of an update.
        spend: called with the next round's clip, before there is a result.

    Attributes:
        usual: bytes of the subnets that all clients together hold in such a round on average.
    """

    def __init__(
        self,
        arrays: Mapping[str, Tensor],
        axes: Axes,
        drawn: Drawn,
        trained: Collection[str],
        mechanism: Mechanism,
        clip: float,
        spend: Callable[[float], None],
    ) -> None:
        self._arrays, self._axes, self._sizes = arrays, axes, sizes_of(arrays, axes)
        self._mechanism, self._clip, self._spend = mechanism, clip, spend
        self._below = 0.0
        self._trained = [name for name in arrays if name in trained]
        everyones = {name for name in self._trained if all(dim.axis is None for dim in axes[name])}
        self._shared = everyones if mechanism.blocks > 1 else set()
        self._sums = {name: torch.zeros_like(arrays[name], dtype=torch.float64) for name in self._trained}
        self._expected = {name: torch.zeros_like(array) for name, array in self._sums.items()}
        self._places: dict[int, tuple[Units, dict[str, Indices]]] = {}
        self.usual = 0.0
        for units, expected in zip(drawn.plan.subnets, drawn.expected, strict=True):
            places = self._places_of(units)
            for name in (name for name in self._trained if name in places):
                array = self._expected[name]
                write(array, places[name], read(array, places[name]) + expected)
            self.usual += expected * sum(
                arrays[name].itemsize * prod(shape_of(arrays[name], at)) for name, at in places.items()
            )

    @torch.no_grad()
    def add(self, units: Units, part: Mapping[str, Tensor], weight: float = 1.0) -> None:
        """Take one client's subnet back.

        Raises:
            WireError: it is not finite; nothing was added.
            AxesError: it has another shape, or weighs more than others; nothing was added.
        """
        if weight != 1:
            raise AxesError(f"in a private run no client counts more than another, but one has weight {weight}")
        places = self._places_of(units)
        update = {}
        for name in (name for name in self._trained if name in places):
            array, came = self._arrays[name], part[name]
            if came.shape != shape_of(array, places[name]) or came.dtype != array.dtype:
                raise AxesError(f"array '{name}' of this part is {tuple(came.shape)} {came.dtype}, not what was sent")
            update[name] = came.to(array.device).double() - read(array, places[name]).double()
        own, shared = apart(update, self._shared)
        own, norm = clipped(own, self._clip)
        shared, _ = clipped(shared, self._clip * self._mechanism.shared_clip)
        for name, array in (own | shared).items():
            write(self._sums[name], places[name], read(self._sums[name], places[name]) + array)
        self._below += 0.5 if norm <= self._clip else -0.5

    @torch.no_grad()
    def result(self) -> dict[str, Tensor]:
        """The wide network as it is now. The privacy that it costs is spent first.

        Raises:
            BudgetSpent: there is not enough left; nothing was released.
        """
        self._spend(self._next_clip())
        merged = dict(self._arrays)
        for name in self._trained:
            reached = self._expected[name] > 0
            if not reached.any():
                continue
            noisy = self._noisy(name, reached) / self._expected[name][reached]
            array = self._arrays[name].clone()
            array[reached] = (array[reached].double() + noisy).to(array.dtype)
            merged[name] = array
        return merged

    def _noisy(self, name: str, reached: Tensor) -> Tensor:
        mechanism = self._mechanism
        scale = mechanism.noise_multiplier * self._clip
        if name in self._shared:
            scale = mechanism.shared_multiplier * mechanism.shared_clip * self._clip
        summed = self._sums[name][reached]
        return summed + torch.from_numpy(noise.normal(len(summed))).to(summed.device) * scale

    def _next_clip(self) -> float:
        """The clip, a step nearer the quantile: down where more updates than that are below it.

        Source: Andrew et al., NeurIPS 2021, algorithm 1.
        """
        settings, expected = self._mechanism.settings, self._mechanism.expected
        if not settings.quantile:
            return self._clip
        noisy = self._below + float(noise.normal(1)[0]) * self._mechanism.count_noise
        return self._clip * exp(-settings.clip_lr * (noisy / expected + 0.5 - settings.quantile))

    def _places_of(self, units: Units) -> dict[str, Indices]:
        """Where a block's units stand; a cohort shares one object."""
        if id(units) not in self._places:
            held = check_units(units, self._sizes)
            self._places[id(units)] = (units, places_of(self._arrays, self._axes, self._sizes, held))
        return self._places[id(units)][1]
