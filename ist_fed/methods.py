"""What one would use instead: each method as a change of one scenario, and how many rounds an equal budget buys it."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from math import ceil
from typing import Any, Literal

from ist_fed.cost import cost
from ist_fed.errors import ScenarioError, nearest
from ist_fed.rules import Plan, plan_round
from ist_fed.scenario import Scenario
from ist_fed.server_optimizer import ServerOptimizer
from ist_fed.tasks import load_task

Budget = Literal["steps", "bytes", "arithmetic"]
"""What is equal: the local steps of a client, the bytes it moves, or its floating-point operations."""


def _as_it_is(scenario: Scenario) -> Scenario:
    return scenario


def _by_rule(scenario: Scenario, name: str, **given: Any) -> Scenario:
    least = {"min_units": scenario.rule["min_units"]} if "min_units" in scenario.rule and name != "full" else {}
    return replace(scenario, rule={"name": name, **least, **given}, phases=())


def _share(scenario: Scenario, name: str) -> Scenario:
    """Subnets as wide as the scenario's own; where clients differ, the strongest hold everything."""
    equal = all(tier.width == 1 for tier in scenario.network.tiers.values())
    return _by_rule(scenario, name, share=1 / scenario.rule.get("groups", 1) if equal else 1.0)


def _local(scenario: Scenario) -> Scenario:
    return replace(_by_rule(scenario, "full"), round=replace(scenario.round, weighting="uniform"))


def _exclude_weak(scenario: Scenario) -> Scenario:
    return replace(_by_rule(scenario, "full"), round=replace(scenario.round, min_limit=1.0, min_clients=0))


def _ddp(scenario: Scenario) -> Scenario:
    """The gradient of all clients in every step; evaluations and checkpoints come after as many steps as before.

    A momentum of SGD is of the mean gradient, so the server keeps it: clients that take one step have none. Moments of
    other optimisers start afresh in every step.
    """
    steps, record = scenario.local_steps, scenario.record
    seldom = {key: getattr(record, key) * steps for key in ("evaluate_every", "checkpoint_every")}
    record = replace(record, **seldom)
    training, server = scenario.training, scenario.server
    if (
        training.optimizer == "sgd"
        and training.momentum
        and server == ServerOptimizer()
        and not scenario.round.in_place
    ):
        server = ServerOptimizer(optimizer="momentum", momentum=training.momentum)
        training = replace(training, momentum=0.0)
    return replace(_local(scenario), local_steps=1, record=record, training=training, server=server)


METHODS: dict[str, Callable[[Scenario], Scenario]] = {
    "ist": _as_it_is,
    "fedavg": partial(_by_rule, name="full"),
    "local": _local,
    "heterofl": partial(_by_rule, name="nested"),
    "fjord": partial(_by_rule, name="fjord"),
    "fedrolex": partial(_share, name="rolling"),
    "dropout": partial(_share, name="independent"),
    "exclude-weak": _exclude_weak,
    "ddp": _ddp,
}
"""Name → the scenario as that method runs it.

`ist` is the scenario as it stands; `fedavg` gives everything to everyone and weighs by examples, `local` (local SGD)
weighs all alike, `ddp` does so after every single step; `exclude-weak` is FedAvg on those clients that can hold
everything; the others are the rules `nested`, `fjord`, `rolling` and `independent`.
"""


def method(name: str, scenario: Scenario, budget: Budget) -> Scenario:
    """A scenario as a method runs it, with as many rounds as the scenario's own budget buys.

    Args:
        name: a key of `METHODS`.
        scenario: whose method, as it stands, is `ist`.
        budget: what is equal.

    Raises:
        ScenarioError: there is no such method.
    """
    if name not in METHODS:
        raise ScenarioError(f"there is no method '{name}'{nearest(name, list(METHODS))}")
    made = replace(METHODS[name](scenario), name=name)
    if name == "ist":
        return made
    return replace(made, rounds=max(1, ceil(in_all(scenario)[budget] / a_round(made)[budget])))


def in_all(scenario: Scenario) -> dict[str, float]:
    """What a whole run costs a client, as `a_round` says it; phases with `until` count as long as they may last."""
    given = [phase.rounds for phase in scenario.phases] or [0]
    left = scenario.rounds - sum(given)
    given[given.index(0) if 0 in given else -1] += left  # one may take what the others leave; else the last lasts on
    each = (
        [a_round(scenario.during(number)) for number in range(1, len(given) + 1)]
        if scenario.phases
        else [a_round(scenario)]
    )
    return {key: sum(rounds * cost[key] for rounds, cost in zip(given, each, strict=True)) for key in each[0]}


def a_round(scenario: Scenario) -> dict[str, float]:
    """What one round costs a client, on average over the first round's plan: `steps`, `bytes`, `arithmetic` (FLOPs)."""
    task = load_task(scenario.task, scenario.options)
    plan = first_plan(scenario)
    total = {"bytes": 0.0, "arithmetic": 0.0}
    for units, cohort in zip(plan.subnets, plan.cohorts, strict=True):
        sizes = {axis: len(held) for axis, held in units.items()}
        narrow = cost(task, sizes, scenario.training)
        total["bytes"] += 2 * narrow.bytes * len(cohort)
        total["arithmetic"] += narrow.flops * scenario.local_steps * len(cohort)
    return {"steps": scenario.local_steps, **{key: value / len(plan) for key, value in total.items()}}


def first_plan(scenario: Scenario) -> Plan:
    """Who holds what in the first round, if every client is there."""
    return plan_round(scenario.make_rule(), 1, scenario.nodes(), scenario.sizes, scenario.seed)
