"""`ist-fed inspect`: what a scenario would train and cost, worked out without training."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table
from torch import Tensor

from ist_fed.arrays import arrays_of, build_on_meta
from ist_fed.axes import describe, infer
from ist_fed.cli.arguments import Format, OutputFormat, ScenarioPath, Settings, print_json
from ist_fed.cli.room import check_coverage_fits
from ist_fed.cli.scenarios import find_scenario
from ist_fed.cost import cost
from ist_fed.coverage import Coverage
from ist_fed.phases import Course, Terms
from ist_fed.report.numbers import rule_text
from ist_fed.rescale import Rescaling
from ist_fed.rules import Plan, plan_round
from ist_fed.scenario import Scenario
from ist_fed.tasks import Task, load_task


def inspect(scenario: ScenarioPath, settings: Settings = None, output: OutputFormat = Format.text) -> None:
    """Show what a scenario would train and cost, without training."""
    facts = describe_scenario(find_scenario(scenario, settings))
    if output is Format.json:
        print_json(facts)
    else:
        _show(facts)


def describe_scenario(scenario: Scenario) -> dict[str, Any]:
    """The axes table, each subnet's sizes and costs in the first round, the full network's, the coverage, and phases.

    Phases and coverage are those of a run in which no phase ends before its time. Bytes are of one direction of one
    round; memory and flops are of one local step.
    """
    task = load_task(scenario.task, scenario.options)
    axes = infer(task.build, scenario.sizes, task.declared)
    check_coverage_fits(scenario, axes)
    model = build_on_meta(task.build, scenario.sizes)
    shapes = arrays_of(model)
    coverage = Coverage(shapes, axes, scenario.sizes)
    reached, rounds = [], _phases(scenario)
    for round in range(1, scenario.rounds + 1):
        for units in _plan(scenario.during(rounds[round]), round, coverage.trained).subnets:
            coverage.mark(units)
        reached.append(coverage.fraction())
    return {
        "scenario": scenario.name,
        "axes": {name: {"dims": describe(axes[name]), "shape": list(shapes[name].shape)} for name in axes},
        "full": {"sizes": scenario.sizes, **asdict(cost(task, scenario.sizes, scenario.training))},
        "subnets": _subnets(scenario.during(rounds[1]), task, 1),
        "coverage": reached,
        "rescale": _rescale(scenario, Rescaling(model, axes)),
        "phases": [_phase(scenario, task, n, [r for r in rounds if rounds[r] == n]) for n in _numbers(rounds)],
    }


def _rescale(scenario: Scenario, rescaling: Rescaling) -> str:
    """How hidden inputs are rescaled, in words; by phases, where they differ."""
    each = [scenario.during(number).training.rescale for number in range(1, len(scenario.phases) + 1)]
    asked = dict.fromkeys(each or [scenario.training.rescale])
    return "; ".join(str(rescaling) if how == "auto" else f"rescale = {how}" for how in asked)


def _phases(scenario: Scenario) -> dict[int, int]:
    """Round → its phase, or 0 where there are none."""
    plain = Terms(rule=scenario.make_rule(), local_steps=scenario.local_steps, training=scenario.training)
    course, rounds = Course(scenario.make_phases(), plain), scenario.rounds
    return {round: course.number(round, rounds) if scenario.phases else 0 for round in range(1, rounds + 1)}


def _numbers(rounds: Mapping[int, int]) -> list[int]:
    return sorted(set(rounds.values()) - {0})


def _phase(scenario: Scenario, task: Task, number: int, rounds: Sequence[int]) -> dict[str, Any]:
    own = scenario.during(number)
    return {
        "phase": number,
        "rounds": [rounds[0], rounds[-1]],
        "until": scenario.phases[number - 1].until,
        "rule": own.rule,
        "local_steps": own.local_steps,
        "training": asdict(own.training),
        "subnets": _subnets(own, task, rounds[0]),
    }


def _subnets(scenario: Scenario, task: Task, round: int) -> list[dict[str, Any]]:
    plan, subnets = _plan(scenario, round), []
    for units, cohort in zip(plan.subnets, plan.cohorts, strict=True):
        sizes = {axis: len(held) for axis, held in units.items()}
        subnets.append({"clients": len(cohort), "sizes": sizes, **asdict(cost(task, sizes, scenario.training))})
    return subnets


def _plan(scenario: Scenario, round: int, trained: Mapping[str, Tensor] | None = None) -> Plan:
    nodes = scenario.nodes()
    return plan_round(scenario.make_rule(), round, nodes, scenario.sizes, scenario.seed, trained)


def _show(facts: dict[str, Any]) -> None:
    console = Console(highlight=False)
    table = Table("array", "dimensions", "shape", title=f"{facts['scenario']}: which axis indexes which dimension")
    for name, entry in facts["axes"].items():
        table.add_row(name, entry["dims"], " × ".join(map(str, entry["shape"])) or "scalar")
    console.print(table)
    for phase in facts["phases"]:
        console.print(_described(phase))
        _show_subnets(console, facts["full"], phase["subnets"], phase["rounds"][0])
    if not facts["phases"]:
        _show_subnets(console, facts["full"], facts["subnets"], 1)
    console.print(facts["rescale"])
    for share in (0.5, 0.95, 0.999):
        reached = next((number for number, value in enumerate(facts["coverage"], 1) if value >= share), 0)
        if reached:
            console.print(f"{share:.1%} of the weights are trained at least once after round {reached}")
        else:
            rounds = len(facts["coverage"])
            console.print(f"less than {share:.1%} of the weights are trained at least once in all {rounds} rounds")


def _described(phase: Mapping[str, Any]) -> str:
    first, last = phase["rounds"]
    until = " and ".join(f"{metric} is {value}" for metric, value in phase["until"].items())
    return (
        f"phase {phase['phase']}: rounds {first} to {last}{f', or until {until}' if until else ''}; "
        f"rule {rule_text(phase['rule'])}, {phase['local_steps']} local steps of {phase['training']['optimizer']}, "
        f"learning rate {phase['training']['lr']} ({phase['training']['schedule']})"
    )


def _show_subnets(console: Console, full: Mapping[str, Any], subnets: list[dict[str, Any]], round: int) -> None:
    kinds = _kinds(subnets)
    table = Table("", title=f"what a client holds in round {round}, against the full network")
    for clients, _ in kinds:
        table.add_column(f"{clients} client{'s' * (clients > 1)}, each", justify="right")
    table.add_column("full network", justify="right")
    for axis, units in full["sizes"].items():
        table.add_row(axis, *(_share(subnet["sizes"][axis], units, str) for _, subnet in kinds), str(units))
    for key, (words, show) in _COSTS.items():
        table.add_row(words, *(_share(subnet[key], full[key], show) for _, subnet in kinds), show(full[key]))
    console.print(table)


def _kinds(subnets: list[dict[str, Any]]) -> list[tuple[int, dict[str, Any]]]:
    """Subnets that cost the same, as one, with the clients that hold one; of many kinds the least and the largest."""
    kinds: dict[str, tuple[int, dict[str, Any]]] = {}
    for subnet in sorted(subnets, key=lambda subnet: int(subnet["parameters"])):
        key = str(subnet["sizes"])
        kinds[key] = (kinds.get(key, (0, subnet))[0] + subnet["clients"], subnet)
    several = list(kinds.values())
    return several if len(several) <= 4 else [several[0], several[-1]]


def _share(part: int, whole: int, show: Callable[[int], str]) -> str:
    return f"{show(part)} ({part / whole:.1%})"


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"


_COSTS: dict[str, tuple[str, Callable[[int], str]]] = {
    "parameters": ("parameters", "{:,}".format),
    "bytes": ("bytes down, and up again", _size),
    "memory": ("peak training memory", _size),
    "flops": ("FLOPs in a local step", lambda flops: f"{flops / 1e6:,.1f} M"),
}
