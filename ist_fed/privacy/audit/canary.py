"""Canaries: does what one client adds show more in what is released than the reported ε allows?

The releases are the product's own: its draw of clients and blocks, its clipping, sums, noise and denominators. One
release carries many canaries, each a coordinate of its own in every block, so that each is a trial apart: noise is
independent, and a sum does not care who else is in it.
"""

from dataclasses import dataclass, replace
from math import log

import numpy as np
import torch
from torch import Tensor

from ist_fed.axes import Dim
from ist_fed.privacy.accounting import epsilon_of, steps_of
from ist_fed.privacy.audit.bounds import epsilon_bound
from ist_fed.privacy.audit.finding import Finding
from ist_fed.privacy.central import Central, CentralMerge, Drawn
from ist_fed.privacy.ledger import Ledger
from ist_fed.privacy.settings import Mechanism
from ist_fed.rules import Disjoint, Full, Node, Private, Rule, plan_round

DELTAS = (0.001, 0.01, 0.1, 0.3)
"""At which a bound is looked for, besides the scenario's own: at small δ few trials see little."""

DOUBT = 1e-6
"""Chance that a mechanism which keeps its promise is said to break it."""

ADVERSARY = "whoever sees every release and knows all other clients; not who took part, nor what is drawn in secret"

_AT_ONCE = 240  # canaries in a release
_LOUD = 1e6  # what a canary changes before it is clipped
_AXES = {"blocks": (Dim("canary"),), "shared": (Dim(),)}


def canaries(
    made: Mechanism,
    rule: Rule,
    *,
    rounds: int,
    trials: int,
    claimed: Mechanism | None = None,
    seed: int = 0,
) -> Finding:
    """Compare a lower bound of ε, from trials, with what the accountant reports for as many rounds.

    Args:
        made: what is carried out.
        rule: that deals the blocks out.
        rounds: in each trial.
        trials: with the canary, and as many without.
        claimed: what is reported, if that is something else.
        seed: of the deal that everyone may know.
    """
    if not isinstance(rule, (Private, Disjoint, Full)):
        return Finding(
            attack="canaries",
            adversary=ADVERSARY,
            verdict="does not apply",
            meaning=f"canaries are worked out for rules private, disjoint and full, not for {type(rule).__name__}",
        )
    if not isinstance(rule, Full):
        rule = replace(rule, min_units=1)  # a canary's block is no wider than it must be
    present, absent = (_scores(made, rule, rounds, trials, seed, there) for there in (True, False))
    promised = {step: rounds * count for step, count in steps_of((claimed or made).round()).items()}
    deltas = sorted({made.settings.delta, *DELTAS})
    rows = [
        {
            "delta": delta,
            "at least": epsilon_bound(present, absent, delta, DOUBT / len(deltas)),
            "reported": epsilon_of(promised, delta).epsilon,
        }
        for delta in deltas
    ]
    broken = any(row["at least"] > row["reported"] for row in rows)
    return Finding(
        attack="canaries",
        adversary=ADVERSARY,
        verdict="promise broken" if broken else "promise holds",
        meaning=_meaning(rounds, trials, broken),
        numbers={"rounds": rounds, "trials": trials, "epsilon": rows},
    )


def _meaning(rounds: int, trials: int, broken: bool) -> str:
    if broken:
        return (
            f"a client shows more in {rounds} rounds of the mechanism than the reported epsilon allows: 'at least' is "
            f"larger than 'reported'. The mechanism or its accounting is wrong; do not release anything"
        )
    return (
        f"over {rounds} rounds, {trials} trials with the loudest client there can be and {trials} without prove that "
        f"epsilon is at least so much; it must not be more than what is reported, and is not. The rest of the gap is "
        f"what so few trials cannot see, and slack of the accountant"
    )


# --- Trials -----------------------------------------------------------------------------------------------------------


def _scores(made: Mechanism, rule: Rule, rounds: int, trials: int, seed: int, there: bool) -> np.ndarray:
    """For each trial, the log of how much likelier its releases are with the canary than without."""
    games = range(-(-trials // _AT_ONCE))
    scores = [
        sum(_round(made, rule, game * rounds + number + 1, seed, there) for number in range(rounds)) for game in games
    ]
    return np.concatenate(scores)[:trials]


def _round(made: Mechanism, rule: Rule, round: int, seed: int, there: bool) -> np.ndarray:
    """The scores of one release: of a network that has a coordinate for each canary in each block."""
    groups = rule.groups if isinstance(rule, (Private, Disjoint)) else 1
    sizes, nodes = {"canary": groups * _AT_ONCE}, [Node(canary) for canary in range(_AT_ONCE)]
    before = {
        "blocks": torch.zeros(groups * _AT_ONCE, dtype=torch.float64),
        "shared": torch.zeros(_AT_ONCE, dtype=torch.float64),
    }
    central = Central(made, Ledger([], epsilon=made.settings.epsilon, delta=made.settings.delta))
    drawn = central.draw(rule, round, nodes, sizes, seed)
    merge = CentralMerge(before, _AXES, drawn, list(before), made, made.settings.clip, lambda _: None)
    if there:
        part = {name: torch.zeros(_AT_ONCE, dtype=torch.float64) for name in before}  # a block is as wide as all share
        for canary in drawn.plan:
            for array in part.values():
                array[canary] = _LOUD
            merge.add(drawn.plan[canary], part)
            for array in part.values():
                array[canary] = 0
    seen = _Seen.of(merge.result(), drawn, made)
    if isinstance(rule, Private):
        return seen.score(None)
    plan = plan_round(rule, round, nodes, sizes, seed)  # anyone can, who knows the seed or the others' blocks
    return seen.score(np.array([plan.subnet_of(canary) for canary in range(_AT_ONCE)]))


@dataclass(frozen=True)
class _Seen:
    """The coordinates of each canary in a release, with a clip as one.

    Args:
        blocks: canaries × blocks.
        shared: of each canary.
        made: what was carried out.
    """

    blocks: np.ndarray
    shared: np.ndarray
    made: Mechanism

    @classmethod
    def of(cls, after: dict[str, Tensor], drawn: Drawn, made: Mechanism) -> "_Seen":
        clip = made.settings.clip
        blocks = [
            after["blocks"][units["canary"][:_AT_ONCE]].numpy() * expected / clip
            for units, expected in zip(drawn.plan.subnets, drawn.expected, strict=True)
        ]
        shared = after["shared"].numpy() * sum(drawn.expected) / (made.shared_clip * clip)
        return cls(np.stack(blocks, axis=1), shared, made)

    def score(self, known: np.ndarray | None) -> np.ndarray:
        """The log-likelihood ratio: by a mixture over blocks, unless it is known which one a canary would have."""
        made = self.made
        each = (self.blocks - 0.5) / made.noise_multiplier**2
        scores = _mean_of_exp(each) if known is None else each[np.arange(len(each)), known]
        if made.blocks > 1:
            scores = scores + (self.shared - 0.5) / made.shared_multiplier**2
        chance = made.settings.sampling
        if chance == 1:
            return scores
        return np.logaddexp(log(1 - chance), log(chance) + scores)


def _mean_of_exp(logs: np.ndarray) -> np.ndarray:
    mean: np.ndarray = np.logaddexp.reduce(logs, axis=1) - log(logs.shape[1])
    return mean
