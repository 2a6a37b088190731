"""`ist-fed privacy`: what a scenario promises its clients, worked out without training."""

from dataclasses import asdict, replace
from math import isfinite
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from ist_fed.arrays import build_on_meta
from ist_fed.cli.arguments import Format, OutputFormat, ScenarioPath, Settings, print_json
from ist_fed.cli.scenarios import find_scenario
from ist_fed.errors import PrivacyError, ScenarioError
from ist_fed.federation import first_plans
from ist_fed.privacy import Disclosure, disclose, mechanism
from ist_fed.privacy.secure.disclosure import CohortSize, disclose_secure
from ist_fed.scenario import Scenario
from ist_fed.tasks import load_task


def privacy(
    scenario: ScenarioPath,
    settings: Settings = None,
    losses: Annotated[
        bool, typer.Option("--pld", help="Also the tighter bound by privacy loss distributions.")
    ] = False,
    output: OutputFormat = Format.text,
) -> None:
    """Show what a scenario promises its clients, and what it takes, without training."""
    said = disclosure_of(find_scenario(scenario, settings), losses)
    if output is Format.json:
        print_json(asdict(said))
    else:
        _show(said)


def disclosure_of(scenario: Scenario, losses: bool = False) -> Disclosure:
    """What may be said of a scenario.

    Raises:
        PrivacyError: it promises nothing, or there is no tighter bound.
        ScenarioError: its cohorts are too small for secure rounds, or its updates too long.
    """
    if scenario.is_secure:
        if losses:
            raise PrivacyError("privacy loss distributions are for privacy.mode = 'central'; leave --pld out")
        return _secure(scenario)
    if scenario.privacy.mode != "central":
        raise PrivacyError(
            f"only a scenario with privacy.mode = 'central' or 'secure' promises something, but {scenario.name}'s is "
            f"'{scenario.privacy.mode}'; try: --set privacy.mode=central --set privacy.epsilon=4"
        )
    rule = scenario.make_rule()
    made = mechanism(scenario.privacy, rule, clients=scenario.clients, rounds=scenario.rounds)
    said = disclose(made, rule, rounds=scenario.rounds, losses=losses)
    return replace(said, epsilons={method: value for method, value in said.epsilons.items() if isfinite(value)})


def _secure(scenario: Scenario) -> Disclosure:
    task, cohorts = load_task(scenario.task, scenario.options), set[CohortSize]()
    for plan in first_plans(scenario):
        for units, cohort in zip(plan.subnets, plan.cohorts, strict=True):
            if not cohort:  # nobody trains it in this round
                continue
            model = build_on_meta(task.build, {axis: len(held) for axis, held in units.items()})
            length = sum(parameter.numel() for parameter in model.parameters() if parameter.is_floating_point())
            cohorts.add(CohortSize(members=len(cohort), length=length))
    try:
        return disclose_secure(scenario.secure, list(cohorts), rounds=scenario.rounds)
    except ValueError as error:
        raise ScenarioError(str(error)) from error


def _show(said: Disclosure) -> None:
    console = Console(highlight=False)
    table = Table(show_header=False, title="what is promised")
    for name, value in said.facts.items():
        table.add_row(name, f"{value:.5g}" if isinstance(value, float) else str(value))
    for method, value in said.epsilons.items():
        table.add_row(f"epsilon, {method}", f"{value:.4g}")
    console.print(table)
    if said.curve:
        table = Table("after round", "epsilon", title=f"at delta {said.facts['delta']:g}")
        for round, value in said.curve.items():
            table.add_row(str(round), f"{value:.4g}")
        console.print(table)
    if said.needed:
        table = Table("for epsilon", *next(iter(said.needed.values())), title="noise that a budget takes")
        for target, noises in said.needed.items():
            table.add_row(f"{target:g}", *[f"{noise:.4g}" for noise in noises.values()])
        console.print(table)
    console.print("not covered:")
    for line in said.not_covered:
        console.print(f"- {line}")
